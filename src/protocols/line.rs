//! Lines: Twisted's `LineReceiver` and `LineOnlyReceiver`.

use std::borrow::Cow;

use memchr::memmem;

use super::{Next, receive};
use crate::{
    output::Write,
    protocol::{Cx, Protocol},
};

/// Bytes of a line at most, unless a receiver says otherwise.
const MAX_LENGTH: usize = 16_384;

/// What a receiver of lines remembers between two pieces of data: the beginning of a line, and the mode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LineBuffer {
    partial: Vec<u8>,
    raw: bool,
    /// How many of the last bytes that were passed on raw are lines after all.
    given_back: usize,
}

impl LineBuffer {
    /// From now on what arrives is passed to [`LineReceiver::raw_data_received`] as it comes.
    pub fn set_raw_mode(&mut self) {
        self.raw = true;
    }

    /// From now on what arrives is lines again. `extra` is the end of the data that `raw_data_received` is looking at, from where
    /// the lines begin: it is not copied, so nothing else may be given. Elsewhere there is nothing to give.
    pub fn set_line_mode(&mut self, extra: &[u8]) {
        self.raw = false;
        self.given_back = extra.len();
    }
}

/// A protocol that receives lines, or raw bytes in between.
///
/// Its [`data_received`](Protocol::data_received) passes everything on to [`receive_lines`](Self::receive_lines).
pub trait LineReceiver<F>: Protocol<F> {
    /// What ends a line.
    const DELIMITER: &'static [u8] = b"\r\n";
    /// Bytes of a line at most, without its delimiter.
    const MAX_LENGTH: usize = MAX_LENGTH;

    /// Where this protocol keeps the receiver's state.
    fn line_buffer(&mut self) -> &mut LineBuffer;

    /// A line has come, without its delimiter.
    fn line_received(&mut self, cx: &mut Cx<'_, F>, line: &[u8]);

    /// Bytes have come in raw mode.
    fn raw_data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        let _ = (cx, data);
    }

    /// A line is longer than [`MAX_LENGTH`](Self::MAX_LENGTH); `line` is what there is of it. It is dropped, with all that came
    /// with it. Closes the connection, unless this says otherwise.
    fn line_length_exceeded(&mut self, cx: &mut Cx<'_, F>, line: &[u8]) {
        let _ = line;
        cx.transport.lose_connection();
    }

    /// Takes what has arrived, and passes it on line by line.
    fn receive_lines(&mut self, cx: &mut Cx<'_, F>, mut data: &[u8]) {
        while !data.is_empty() {
            if !cx.transport.is_producing() {
                return cx.transport.unread(data);
            }
            let buffer = self.line_buffer();
            if buffer.raw {
                if !buffer.partial.is_empty() {
                    // The mode was changed between two pieces of data: the beginning of a line is raw, too.
                    let whole = joined(&mut buffer.partial, data);
                    return self.receive_lines(cx, &whole);
                }
                let all = std::mem::take(&mut data);
                buffer.given_back = 0;
                self.raw_data_received(cx, all);
                let given_back = std::mem::take(&mut self.line_buffer().given_back);
                data = &all[all.len() - given_back.min(all.len())..];
                continue;
            }
            match next_line(&mut buffer.partial, &mut data, Self::DELIMITER, Self::MAX_LENGTH) {
                Next::Message(line) => self.line_received(cx, &line),
                Next::Nothing => {}
                Next::Wrong(line) => return self.line_length_exceeded(cx, &line),
            }
        }
    }

    /// Writes a line and its delimiter.
    fn send_line(&mut self, cx: &mut Cx<'_, F>, line: &[u8]) -> Write {
        cx.transport.write_sequence([line, Self::DELIMITER])
    }
}

/// A protocol that receives nothing but lines.
///
/// Its [`data_received`](Protocol::data_received) passes everything on to [`receive_lines`](Self::receive_lines).
pub trait LineOnlyReceiver<F>: Protocol<F> {
    /// What ends a line.
    const DELIMITER: &'static [u8] = b"\r\n";
    /// Bytes of a line at most, without its delimiter.
    const MAX_LENGTH: usize = MAX_LENGTH;

    /// Where this protocol keeps the receiver's state.
    fn line_buffer(&mut self) -> &mut LineBuffer;

    /// A line has come, without its delimiter.
    fn line_received(&mut self, cx: &mut Cx<'_, F>, line: &[u8]);

    /// A line is longer than [`MAX_LENGTH`](Self::MAX_LENGTH); `line` is what there is of it. It is dropped, with all that came
    /// with it. Closes the connection, unless this says otherwise.
    fn line_length_exceeded(&mut self, cx: &mut Cx<'_, F>, line: &[u8]) {
        let _ = line;
        cx.transport.lose_connection();
    }

    /// Takes what has arrived, and passes it on line by line.
    fn receive_lines(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        receive(
            self,
            cx,
            data,
            |me, data| next_line(&mut me.line_buffer().partial, data, Self::DELIMITER, Self::MAX_LENGTH),
            Self::line_received,
            |me, cx, line| me.line_length_exceeded(cx, &line),
        );
    }

    /// Writes a line and its delimiter.
    fn send_line(&mut self, cx: &mut Cx<'_, F>, line: &[u8]) -> Write {
        cx.transport.write_sequence([line, Self::DELIMITER])
    }
}

/// The next line. One that is too long comes as it is, with everything after it.
fn next_line<'a>(
    partial: &mut Vec<u8>,
    data: &mut &'a [u8],
    delimiter: &[u8],
    max: usize,
) -> Next<'a, Cow<'a, [u8]>> {
    let Some(end) = end_of_line(partial, data, delimiter) else {
        if partial.len() + data.len() >= max + delimiter.len() {
            return Next::Wrong(joined(partial, std::mem::take(data)));
        }
        partial.extend_from_slice(std::mem::take(data));
        return Next::Nothing;
    };
    if partial.len() + end - delimiter.len() > max {
        return Next::Wrong(joined(partial, std::mem::take(data)));
    }
    let (line, rest) = data.split_at(end);
    *data = rest;
    Next::Message(without_end(joined(partial, line), delimiter.len()))
}

/// How many bytes of `data` end the line that `partial` begins, delimiter included.
fn end_of_line(partial: &[u8], data: &[u8], delimiter: &[u8]) -> Option<usize> {
    // A delimiter that was cut in two begins before any that lies in the data.
    let longest = partial.len().min(delimiter.len().saturating_sub(1));
    let cut = (1..=longest).rev().find(|before| {
        let (first, second) = delimiter.split_at(*before);
        partial.ends_with(first) && data.starts_with(second)
    });
    match cut {
        Some(before) => Some(delimiter.len() - before),
        None => memmem::find(data, delimiter).map(|at| at + delimiter.len()),
    }
}

/// What `partial` holds, which it gives away, and what comes after it; a copy only if it holds anything.
fn joined<'a>(partial: &mut Vec<u8>, data: &'a [u8]) -> Cow<'a, [u8]> {
    if partial.is_empty() {
        return Cow::Borrowed(data);
    }
    let mut whole = std::mem::take(partial);
    whole.extend_from_slice(data);
    Cow::Owned(whole)
}

fn without_end(line: Cow<'_, [u8]>, len: usize) -> Cow<'_, [u8]> {
    match line {
        Cow::Borrowed(line) => Cow::Borrowed(&line[..line.len() - len]),
        Cow::Owned(mut line) => {
            line.truncate(line.len() - len);
            Cow::Owned(line)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocols::tests::{fed, owned};

    fn lines(bytes: &[u8], piece: usize, delimiter: &[u8], max: usize) -> (Vec<Vec<u8>>, bool) {
        let mut partial = Vec::new();
        let next = |data: &mut &[u8]| match owned(next_line(&mut partial, data, delimiter, max)) {
            Next::Wrong(_) => Next::Wrong(()),
            Next::Message(line) => Next::Message(line),
            Next::Nothing => Next::Nothing,
        };
        let (lines, wrong) = fed(bytes, piece, next);
        (lines, wrong.is_some())
    }

    #[test]
    fn lines_are_the_same_however_they_were_cut() {
        for delimiter in [&b"\r\n"[..], b"\n", b"END", b"aab"] {
            let lone = &delimiter[..delimiter.len() - 1];
            let wanted = [b"first".to_vec(), Vec::new(), [b"x", lone, b"y"].concat(), b"a".repeat(30)];
            let bytes: Vec<u8> = wanted.iter().flat_map(|line| [line, delimiter].concat()).collect();
            for piece in 1..=9 {
                assert_eq!(lines(&bytes, piece, delimiter, 100), (wanted.to_vec(), false), "{piece}");
            }
        }
    }

    #[test]
    fn a_line_that_came_whole_is_lent() {
        let mut data = &b"one\r\ntwo\r\nthr"[..];
        let mut partial = Vec::new();
        for wanted in [b"one", b"two"] {
            let next = next_line(&mut partial, &mut data, b"\r\n", 10);
            assert!(matches!(next, Next::Message(Cow::Borrowed(line)) if line == wanted));
        }
        assert_eq!(next_line(&mut partial, &mut data, b"\r\n", 10), Next::Nothing);
        assert_eq!(partial, b"thr");
    }

    #[test]
    fn a_line_may_be_as_long_as_it_may_be_and_no_longer() {
        for piece in 1..=9 {
            assert_eq!(lines(b"12345678\r\n", piece, b"\r\n", 8), (vec![b"12345678".to_vec()], false));
            assert_eq!(lines(b"ok\r\n123456789\r\n", piece, b"\r\n", 8), (vec![b"ok".to_vec()], true));
            assert_eq!(lines(b"123456789 and no end", piece, b"\r\n", 8), (Vec::new(), true));
        }
    }

    #[test]
    fn no_more_than_a_line_is_ever_kept() {
        let mut partial = Vec::new();
        for _ in 0..1000 {
            let mut data = &b"0123456"[..];
            let _ = next_line(&mut partial, &mut data, b"\r\n", 50);
            assert!(partial.len() < 52);
        }
    }
}
