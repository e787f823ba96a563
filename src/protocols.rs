//! Protocols that most others are built of, as in Twisted's `twisted.protocols.basic`: text in lines, and byte
//! strings that say how long they are.
//!
//! Each is a trait for a [`Protocol`](crate::Protocol) that keeps the receiver's state in a field, and hands what arrives to it:
//!
//! ```
//! use ringspun::{Cx, Protocol, protocols::{LineBuffer, LineReceiver}};
//!
//! #[derive(Default)]
//! struct Shout { lines: LineBuffer }
//!
//! impl<F> Protocol<F> for Shout {
//!     fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
//!         self.receive_lines(cx, data);
//!     }
//! }
//!
//! impl<F> LineReceiver<F> for Shout {
//!     fn line_buffer(&mut self) -> &mut LineBuffer { &mut self.lines }
//!
//!     fn line_received(&mut self, cx: &mut Cx<'_, F>, line: &[u8]) {
//!         self.send_line(cx, &line.to_ascii_uppercase());
//!     }
//! }
//! ```
//!
//! A message that lies whole inside what has arrived is passed on without being copied. A protocol that pauses its
//! transport inside a callback gets the next message once it has resumed; one that closes it gets no more.

mod int_string;
mod line;
mod netstring;

use std::borrow::Cow;

pub use int_string::{IntNStringReceiver, IntPrefix};
pub use line::{LineBuffer, LineOnlyReceiver, LineReceiver};
pub use netstring::{NetstringError, NetstringReceiver};

use crate::protocol::Cx;

/// The beginning of a string whose end has not come yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StringBuffer {
    partial: Vec<u8>,
}

/// A string that its receiver could not, or would not, take: longer than its protocol allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StringTooLongError {
    /// Bytes of the string.
    pub length: usize,
    /// Bytes that are allowed.
    pub max: usize,
}

impl std::fmt::Display for StringTooLongError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { length, max } = self;
        write!(f, "a string of {length} bytes cannot be sent: at most {max} are allowed; send it in parts")
    }
}

impl std::error::Error for StringTooLongError {}

/// What comes next in what has arrived.
#[derive(Debug, PartialEq, Eq)]
enum Next<'a, E> {
    /// Only the beginning of something, which is kept.
    Nothing,
    /// A whole message: lent, if all of it came at once.
    Message(Cow<'a, [u8]>),
    /// What no message can begin with. Nothing after it makes sense.
    Wrong(E),
}

/// Passes on one message after another, as long as the protocol wants them.
fn receive<'a, P, F, E>(
    protocol: &mut P,
    cx: &mut Cx<'_, F>,
    mut data: &'a [u8],
    next: fn(&mut P, &mut &'a [u8]) -> Next<'a, E>,
    received: fn(&mut P, &mut Cx<'_, F>, &[u8]),
    wrong: fn(&mut P, &mut Cx<'_, F>, E),
) {
    while !data.is_empty() {
        if !cx.transport.is_producing() {
            return cx.transport.unread(data);
        }
        match next(protocol, &mut data) {
            Next::Message(message) => received(protocol, cx, &message),
            Next::Nothing => {}
            Next::Wrong(error) => return wrong(protocol, cx, error),
        }
    }
}

/// Moves bytes from the front of `data` to `partial` until that holds `wanted`. Answers whether it does.
fn fill(partial: &mut Vec<u8>, data: &mut &[u8], wanted: usize) -> bool {
    let missing = wanted.saturating_sub(partial.len());
    let (moved, rest) = data.split_at(missing.min(data.len()));
    partial.extend_from_slice(moved);
    *data = rest;
    moved.len() == missing
}

#[cfg(test)]
mod tests {
    use super::Next;

    /// Feeds `bytes` in pieces of this length, and gives all messages, or what was wrong.
    pub(super) fn fed<E>(
        bytes: &[u8],
        piece: usize,
        mut next: impl FnMut(&mut &[u8]) -> Next<'static, E>,
    ) -> (Vec<Vec<u8>>, Option<E>) {
        let mut messages = Vec::new();
        for mut data in bytes.chunks(piece) {
            while !data.is_empty() {
                match next(&mut data) {
                    Next::Message(message) => messages.push(message.into_owned()),
                    Next::Nothing => {}
                    Next::Wrong(error) => return (messages, Some(error)),
                }
            }
        }
        (messages, None)
    }

    /// The same message, on its own feet.
    pub(super) fn owned<E>(next: Next<'_, E>) -> Next<'static, E> {
        match next {
            Next::Message(message) => Next::Message(message.into_owned().into()),
            Next::Nothing => Next::Nothing,
            Next::Wrong(error) => Next::Wrong(error),
        }
    }
}
