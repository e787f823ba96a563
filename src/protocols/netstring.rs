//! Netstrings (`5:hello,`): Twisted's `NetstringReceiver`, and the format of
//! <https://cr.yp.to/proto/netstrings.txt>.

use std::{borrow::Cow, error, fmt};

use super::{Next, StringBuffer, StringTooLongError, fill, receive};
use crate::{
    output::Write,
    protocol::{Cx, Protocol},
};

/// Digits that say a length at most; what they say fits in 64 bits.
const DIGITS_MAX: usize = 19;

/// What arrived is no netstring, or one that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetstringError {
    /// Something other than a length stands before the colon: digits, with no zero before others.
    Length,
    /// The string is longer than [`NetstringReceiver::MAX_LENGTH`].
    TooLong {
        /// Bytes that it was to have.
        length: u64,
    },
    /// There is no comma behind the string.
    Comma,
}

impl fmt::Display for NetstringError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length => f.write_str("a netstring does not begin with its length and a colon"),
            Self::TooLong { length } => write!(f, "a netstring of {length} bytes is too long"),
            Self::Comma => f.write_str("a netstring does not end with a comma"),
        }
    }
}

impl error::Error for NetstringError {}

/// A protocol that receives netstrings.
///
/// Its [`data_received`](Protocol::data_received) passes everything on to [`receive_strings`](Self::receive_strings).
pub trait NetstringReceiver<F>: Protocol<F> {
    /// Bytes of a string at most, in either direction.
    const MAX_LENGTH: usize = 99_999;

    /// Where this protocol keeps the receiver's state.
    fn string_buffer(&mut self) -> &mut StringBuffer;

    /// A string has come.
    fn string_received(&mut self, cx: &mut Cx<'_, F>, string: &[u8]);

    /// What has come is no netstring. Ends the connection with the error, unless this says otherwise; what came with it is
    /// dropped, since nobody knows where the next string begins.
    fn parse_error(&mut self, cx: &mut Cx<'_, F>, error: NetstringError) {
        cx.transport.fail(error);
    }

    /// Takes what has arrived, and passes it on string by string.
    fn receive_strings(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        receive(
            self,
            cx,
            data,
            |me, data| next_netstring(&mut me.string_buffer().partial, data, Self::MAX_LENGTH),
            Self::string_received,
            Self::parse_error,
        );
    }

    /// Writes a string as a netstring.
    ///
    /// # Errors
    /// It is longer than [`MAX_LENGTH`](Self::MAX_LENGTH). Nothing is written.
    fn send_string(&mut self, cx: &mut Cx<'_, F>, string: &[u8]) -> Result<Write, StringTooLongError> {
        if string.len() > Self::MAX_LENGTH {
            return Err(StringTooLongError { length: string.len(), max: Self::MAX_LENGTH });
        }
        Ok(cx.transport.write_with(|out| {
            let _ = write!(out, "{}:", string.len());
            out.push(string);
            out.push(b",");
        }))
    }
}

/// The next netstring.
fn next_netstring<'a>(partial: &mut Vec<u8>, data: &mut &'a [u8], max: usize) -> Next<'a, NetstringError> {
    if partial.is_empty() {
        match whole(data, max) {
            Ok(None) => {}
            Ok(Some((string, rest))) => {
                *data = rest;
                return Next::Message(Cow::Borrowed(string));
            }
            Err(error) => return Next::Wrong(error),
        }
    }
    // The head comes byte by byte, since nobody knows how long it is.
    let head = loop {
        match head(partial, max) {
            Ok(Some(head)) => break head,
            Ok(None) if fill(partial, data, partial.len() + 1) => {}
            Ok(None) => return Next::Nothing,
            Err(error) => return Next::Wrong(error),
        }
    };
    if !fill(partial, data, head.bytes + head.length + 1) {
        return Next::Nothing;
    }
    let mut string = std::mem::take(partial);
    if string.pop() != Some(b',') {
        return Next::Wrong(NetstringError::Comma);
    }
    string.drain(..head.bytes);
    Next::Message(Cow::Owned(string))
}

/// The length of a string, and how many bytes have said so, colon included.
struct Head {
    bytes: usize,
    length: usize,
}

/// Reads the head of a netstring; None if it has not come to its colon yet.
fn head(bytes: &[u8], max: usize) -> Result<Option<Head>, NetstringError> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let is_length = match bytes {
        [b'0', rest @ ..] => rest.first().is_none_or(|byte| *byte == b':'),
        _ => digits <= DIGITS_MAX && bytes.get(digits).is_none_or(|byte| *byte == b':' && digits > 0),
    };
    if !is_length {
        return Err(NetstringError::Length);
    }
    let length = bytes[..digits].iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0'));
    if length > max as u64 {
        return Err(NetstringError::TooLong { length });
    }
    Ok((digits < bytes.len()).then_some(Head { bytes: digits + 1, length: length as usize }))
}

/// A string, and what comes after it.
type Whole<'a> = (&'a [u8], &'a [u8]);

/// A netstring that lies whole at the front of the data.
fn whole(data: &[u8], max: usize) -> Result<Option<Whole<'_>>, NetstringError> {
    let Some(Head { bytes, length }) = head(data, max)? else { return Ok(None) };
    let Some((string, rest)) = data[bytes..].split_at_checked(length) else { return Ok(None) };
    match rest {
        [] => Ok(None),
        [b',', rest @ ..] => Ok(Some((string, rest))),
        _ => Err(NetstringError::Comma),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocols::tests::{fed, owned};

    fn strings(bytes: &[u8], piece: usize, max: usize) -> (Vec<Vec<u8>>, Option<NetstringError>) {
        let mut partial = Vec::new();
        fed(bytes, piece, |data| owned(next_netstring(&mut partial, data, max)))
    }

    #[test]
    fn strings_are_the_same_however_they_were_cut() {
        let wanted = [b"hello world!".to_vec(), Vec::new(), b"1:x,".to_vec(), b",".repeat(120)];
        let said = |string: &Vec<u8>| [format!("{}:", string.len()).as_bytes(), string, b","].concat();
        let bytes: Vec<u8> = wanted.iter().flat_map(said).collect();
        for piece in (1..=9).chain([bytes.len()]) {
            assert_eq!(strings(&bytes, piece, 120), (wanted.to_vec(), None), "{piece}");
        }
    }

    #[test]
    fn a_string_that_came_whole_is_lent() {
        let (mut data, mut partial) = (&b"3:one,3:tw"[..], Vec::new());
        let next = next_netstring(&mut partial, &mut data, 10);
        assert!(matches!(next, Next::Message(Cow::Borrowed(b"one"))));
        assert_eq!(next_netstring(&mut partial, &mut data, 10), Next::Nothing);
        assert_eq!(partial, b"3:tw");
    }

    #[test]
    fn what_is_no_netstring_is_found_however_it_was_cut() {
        use NetstringError::{Comma, Length, TooLong};
        let wrong = [
            (&b"hello"[..], Length),
            (b":x,", Length),
            (b"-1:", Length),
            (b"01:x,", Length),
            (b"00:,", Length),
            (b"3 :abc,", Length),
            (b"99999999999999999999999:", TooLong { length: 101 }),
            (b"101:", TooLong { length: 101 }),
            (b"3:abcd", Comma),
            (b"0:x", Comma),
        ];
        for (bytes, error) in wrong {
            for piece in 1..=9 {
                let (got, found) = strings(&[b"2:ok,", bytes].concat(), piece, 100);
                assert_eq!(got, [b"ok"], "{bytes:?} {piece}");
                let same =
                    matches!((found, error), (Some(TooLong { .. }), TooLong { .. })) || found == Some(error);
                assert!(same, "{bytes:?} {piece}: {found:?}");
            }
        }
    }
}
