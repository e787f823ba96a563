//! The request body: a header that says whose it is, and a payload nobody else sends.
//!
//! ```text
//! 0      4            8                    16       20         24
//! | magic | connection |      sequence      | length | checksum | payload ...
//! ```
//!
//! Numbers are little-endian. The checksum (CRC-32) covers the 20 bytes before it and the payload.
//! The payload is pseudo-random and differs by seed, connection and sequence, so an echo server
//! cannot answer one request with the bytes of another unnoticed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes of the header, and so the smallest message.
pub(crate) const HEADER_BYTES: usize = 24;

/// The largest message: each connection keeps one of them in memory.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 << 20;

const MAGIC: [u8; 4] = *b"RSLG";
const CHECKSUM_AT: usize = 20;

/// How much of every reply is compared with what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub(crate) enum Verify {
    /// Every byte.
    Full,
    /// The header only.
    Header,
    /// The number of bytes only.
    Off,
}

impl Verify {
    /// How many leading bytes of a message of `size` bytes are compared.
    pub(crate) fn compared(self, size: usize) -> usize {
        match self {
            Self::Full => size,
            Self::Header => HEADER_BYTES,
            Self::Off => 0,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Header => "header",
            Self::Off => "off",
        }
    }
}

/// Writes the request of this connection and sequence over the whole of `message`.
pub(crate) fn encode(message: &mut [u8], seed: u64, connection: u32, sequence: u64) {
    let length = message.len() as u32;
    let (header, payload) = message.split_at_mut(HEADER_BYTES);
    fill(payload, mix(seed ^ mix(u64::from(connection) ^ mix(sequence))));
    header[0..4].copy_from_slice(&MAGIC);
    header[4..8].copy_from_slice(&connection.to_le_bytes());
    header[8..16].copy_from_slice(&sequence.to_le_bytes());
    header[16..20].copy_from_slice(&length.to_le_bytes());
    let checksum = checksum(&header[..CHECKSUM_AT], payload);
    header[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    hasher.finalize()
}

/// A number that is always the same for this request, to choose its size by.
pub(crate) fn random(seed: u64, connection: u32, sequence: u64) -> u64 {
    mix(!seed ^ mix(u64::from(connection) ^ mix(sequence)))
}

/// The finaliser of SplitMix64: every input bit moves every output bit.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn fill(payload: &mut [u8], mut state: u64) {
    for chunk in payload.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        chunk.copy_from_slice(&mix(state).to_le_bytes()[..chunk.len()]);
    }
}

/// What is wrong with a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// A whole reply that belongs to another connection.
    Foreign { connection: u32, sequence: u64 },
    /// A whole reply of this connection that was answered before.
    Repeated { sequence: u64 },
    /// A whole reply of this connection, while others are due before it.
    OutOfOrder { sequence: u64 },
    /// Bytes that were never sent.
    Corrupted { offset: usize, expected: u8, got: u8 },
    /// A reply of another length than its request, where replies have ends of their own.
    Resized { expected: usize, got: usize },
    /// Bytes that answer nothing.
    Unsolicited { bytes: usize },
}

impl Finding {
    /// The name under which results count it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Foreign { .. } => "foreign_reply",
            Self::Repeated { .. } => "repeated_reply",
            Self::OutOfOrder { .. } => "out_of_order_reply",
            Self::Corrupted { .. } => "corrupted_reply",
            Self::Resized { .. } => "resized_reply",
            Self::Unsolicited { .. } => "unsolicited_bytes",
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign { connection, sequence } => write!(
                f,
                "got the reply of connection {connection}, sequence {sequence}; the server mixes up its connections"
            ),
            Self::Repeated { sequence } => write!(
                f,
                "got the reply of sequence {sequence} once more; the server must answer each request once"
            ),
            Self::OutOfOrder { sequence } => write!(
                f,
                "got the reply of sequence {sequence} instead; the server must answer in the order of the requests, \
                 and leave none out"
            ),
            Self::Corrupted { offset, expected, got } => write!(
                f,
                "reply corrupted at byte {offset}: expected 0x{expected:02x}, got 0x{got:02x}; \
                 the server must echo every byte unchanged"
            ),
            Self::Resized { expected, got } => write!(
                f,
                "a reply of {got} bytes came to a request of {expected}; the server must send back each datagram whole"
            ),
            Self::Unsolicited { bytes } => write!(
                f,
                "{bytes} bytes came that answer no request; the server must answer each request once"
            ),
        }
    }
}

/// Says what bytes are that came where `expected` should have, or where nothing should: `connection` is
/// their receiver, `due` the sequence it waits for. The more of them are there, the surer the answer.
pub(crate) fn diagnose(connection: u32, due: u64, expected: &[u8], got: &[u8]) -> Finding {
    if let Some((owner, sequence)) = intact(got) {
        if owner != connection {
            return Finding::Foreign { connection: owner, sequence };
        }
        if sequence < due {
            return Finding::Repeated { sequence };
        }
        if sequence > due {
            return Finding::OutOfOrder { sequence };
        }
    }
    let differs = expected.iter().zip(got).position(|(expected, got)| expected != got);
    differs.map_or(Finding::Unsolicited { bytes: got.len() }, |offset| Finding::Corrupted {
        offset,
        expected: expected[offset],
        got: got[offset],
    })
}

/// The connection and sequence that a message's header names, whatever the rest of it.
pub(crate) fn header(got: &[u8]) -> Option<(u32, u64)> {
    let header = got.get(..HEADER_BYTES).filter(|header| header[0..4] == MAGIC)?;
    Some((u32_at(header, 4), u64_at(header, 8)))
}

/// The connection and sequence of a whole message whose checksum holds.
pub(crate) fn intact(got: &[u8]) -> Option<(u32, u64)> {
    let length = u32_at(got.get(..HEADER_BYTES)?, 16) as usize;
    let (header, payload) = got.get(..length.max(HEADER_BYTES))?.split_at(HEADER_BYTES);
    let holds =
        header[0..4] == MAGIC && u32_at(header, CHECKSUM_AT) == checksum(&header[..CHECKSUM_AT], payload);
    holds.then(|| (u32_at(header, 4), u64_at(header, 8)))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(size: usize, connection: u32, sequence: u64) -> Vec<u8> {
        let mut bytes = vec![0; size];
        encode(&mut bytes, 7, connection, sequence);
        bytes
    }

    #[test]
    fn bodies_differ_by_seed_connection_and_sequence() {
        let payload = |seed, connection, sequence| {
            let mut bytes = vec![0; 64];
            encode(&mut bytes, seed, connection, sequence);
            bytes[HEADER_BYTES..].to_vec()
        };
        let first = payload(1, 1, 1);
        assert_eq!(first, payload(1, 1, 1));
        assert_ne!(first, payload(2, 1, 1));
        assert_ne!(first, payload(1, 2, 1));
        assert_ne!(first, payload(1, 1, 2));
    }

    #[test]
    fn a_flipped_bit_is_found_wherever_it_is() {
        let expected = message(67, 3, 9);
        for offset in 0..expected.len() {
            let mut got = expected.clone();
            got[offset] ^= 1;
            let finding = diagnose(3, 9, &expected, &got);
            assert_eq!(finding, Finding::Corrupted { offset, expected: expected[offset], got: got[offset] });
        }
    }

    #[test]
    fn another_connection_s_reply_is_named() {
        let finding = diagnose(3, 9, &message(64, 3, 9), &message(64, 4, 2));
        assert_eq!(finding, Finding::Foreign { connection: 4, sequence: 2 });
    }

    #[test]
    fn a_repeated_reply_is_named() {
        let finding = diagnose(3, 9, &message(64, 3, 9), &message(64, 3, 8));
        assert_eq!(finding, Finding::Repeated { sequence: 8 });
    }

    #[test]
    fn the_smallest_message_is_the_header() {
        let expected = message(HEADER_BYTES, 0, 0);
        assert_eq!(intact(&expected), Some((0, 0)));
        assert_eq!(
            diagnose(0, 0, &expected, b"HTTP"),
            Finding::Corrupted { offset: 0, expected: b'R', got: b'H' }
        );
    }
}
