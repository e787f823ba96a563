//! Byte strings behind their length as a number: Twisted's `Int8StringReceiver`, `Int16StringReceiver` and `Int32StringReceiver`.

use std::borrow::Cow;

use super::{Next, StringBuffer, StringTooLongError, fill, receive};
use crate::{
    output::Write,
    protocol::{Cx, Protocol},
};

/// How many bytes, in network order, say how long a string is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntPrefix {
    /// One: up to 255 bytes follow.
    Int8,
    /// Two: up to 65,535.
    Int16,
    /// Four: up to 4,294,967,295, if they are allowed.
    Int32,
}

impl IntPrefix {
    const fn bytes(self) -> usize {
        match self {
            Self::Int8 => 1,
            Self::Int16 => 2,
            Self::Int32 => 4,
        }
    }

    /// The longest string whose length it can say.
    const fn max(self) -> usize {
        (u32::MAX >> (32 - 8 * self.bytes())) as usize
    }
}

/// A protocol that receives byte strings, each behind its length as a number.
///
/// Its [`data_received`](Protocol::data_received) passes everything on to [`receive_strings`](Self::receive_strings).
pub trait IntNStringReceiver<F>: Protocol<F> {
    /// How the length is said.
    const PREFIX: IntPrefix;
    /// Bytes of a string at most, in either direction.
    const MAX_LENGTH: usize = 99_999;

    /// Where this protocol keeps the receiver's state.
    fn string_buffer(&mut self) -> &mut StringBuffer;

    /// A string has come.
    fn string_received(&mut self, cx: &mut Cx<'_, F>, string: &[u8]);

    /// The peer has announced a string that is longer than [`MAX_LENGTH`](Self::MAX_LENGTH). Closes the connection,
    /// unless this says otherwise; what came with it is dropped.
    fn length_limit_exceeded(&mut self, cx: &mut Cx<'_, F>, length: usize) {
        let _ = length;
        cx.transport.lose_connection();
    }

    /// Takes what has arrived, and passes it on string by string.
    fn receive_strings(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        receive(
            self,
            cx,
            data,
            |me, data| next_string(&mut me.string_buffer().partial, data, Self::PREFIX, Self::MAX_LENGTH),
            Self::string_received,
            Self::length_limit_exceeded,
        );
    }

    /// Writes a string behind its length.
    ///
    /// # Errors
    /// It is longer than [`MAX_LENGTH`](Self::MAX_LENGTH), or than its prefix can say. Nothing is written.
    fn send_string(&mut self, cx: &mut Cx<'_, F>, string: &[u8]) -> Result<Write, StringTooLongError> {
        let max = Self::MAX_LENGTH.min(Self::PREFIX.max());
        if string.len() > max {
            return Err(StringTooLongError { length: string.len(), max });
        }
        let length = (string.len() as u32).to_be_bytes();
        Ok(cx.transport.write_sequence([&length[4 - Self::PREFIX.bytes()..], string]))
    }
}

/// The next string, or the length of one that is too long.
fn next_string<'a>(
    partial: &mut Vec<u8>,
    data: &mut &'a [u8],
    prefix: IntPrefix,
    max: usize,
) -> Next<'a, usize> {
    let bytes = prefix.bytes();
    if partial.is_empty() && data.len() >= bytes {
        let length = length_of(&data[..bytes]);
        if length <= max && data.len() - bytes >= length {
            let (string, rest) = data[bytes..].split_at(length);
            *data = rest;
            return Next::Message(Cow::Borrowed(string));
        }
    }
    if !fill(partial, data, bytes) {
        return Next::Nothing;
    }
    let length = length_of(&partial[..bytes]);
    if length > max {
        return Next::Wrong(length);
    }
    if !fill(partial, data, bytes + length) {
        return Next::Nothing;
    }
    let mut string = std::mem::take(partial);
    string.drain(..bytes);
    Next::Message(Cow::Owned(string))
}

fn length_of(prefix: &[u8]) -> usize {
    prefix.iter().fold(0, |length, byte| length << 8 | usize::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocols::tests::{fed, owned};

    fn strings(bytes: &[u8], piece: usize, prefix: IntPrefix, max: usize) -> (Vec<Vec<u8>>, Option<usize>) {
        let mut partial = Vec::new();
        fed(bytes, piece, |data| owned(next_string(&mut partial, data, prefix, max)))
    }

    #[test]
    fn strings_are_the_same_however_they_were_cut() {
        let wanted = [b"first".to_vec(), Vec::new(), b"x".repeat(200), vec![0, 1, 2, 3]];
        for prefix in [IntPrefix::Int8, IntPrefix::Int16, IntPrefix::Int32] {
            let said = |string: &Vec<u8>| (string.len() as u32).to_be_bytes()[4 - prefix.bytes()..].to_vec();
            let bytes: Vec<u8> =
                wanted.iter().flat_map(|string| [said(string), string.clone()].concat()).collect();
            for piece in (1..=9).chain([bytes.len()]) {
                assert_eq!(
                    strings(&bytes, piece, prefix, 200),
                    (wanted.to_vec(), None),
                    "{prefix:?} {piece}"
                );
            }
        }
    }

    #[test]
    fn a_string_that_came_whole_is_lent() {
        let (mut data, mut partial) = (&b"\x03one\x03tw"[..], Vec::new());
        let next = next_string(&mut partial, &mut data, IntPrefix::Int8, 10);
        assert!(matches!(next, Next::Message(Cow::Borrowed(b"one"))));
        assert_eq!(next_string(&mut partial, &mut data, IntPrefix::Int8, 10), Next::Nothing);
        assert_eq!(partial, b"\x03tw");
    }

    #[test]
    fn a_length_that_is_too_great_is_found_before_the_string() {
        for piece in 1..=9 {
            let (got, wrong) = strings(b"\x00\x02ok\x01\x00", piece, IntPrefix::Int16, 255);
            assert_eq!((got, wrong), (vec![b"ok".to_vec()], Some(256)));
            assert_eq!(strings(&[0xff; 4], piece, IntPrefix::Int32, 99_999).1, Some(u32::MAX as usize));
        }
    }

    #[test]
    fn a_prefix_knows_what_it_can_say() {
        let max = [IntPrefix::Int8, IntPrefix::Int16, IntPrefix::Int32].map(IntPrefix::max);
        assert_eq!(max, [255, 65_535, 4_294_967_295]);
    }
}
