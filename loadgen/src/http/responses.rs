//! What the connections of a cell know together: the first response, and the bytes of the last one.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::HttpFinding;
use crate::message::Verify;

/// Longer responses are parsed each time: reading them costs more than their heads.
const REMEMBERED_BYTES_MAX: usize = 64 << 10;

/// What is compared of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Response {
    pub(super) status: u16,
    /// Bytes of the body, without what frames chunks.
    pub(super) length: u64,
    /// CRC-32 of the body; 0 unless all is verified.
    pub(super) checksum: u32,
}

impl fmt::Display for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, length, checksum } = self;
        write!(f, "status {status} with a body of {length} bytes, checksum {checksum:08x}")
    }
}

impl Response {
    /// Takes a piece of the body.
    pub(super) fn add(&mut self, data: &[u8], verify: Verify) {
        self.length += data.len() as u64;
        if verify == Verify::Full {
            let mut hasher = crc32fast::Hasher::new_with_initial(self.checksum);
            hasher.update(data);
            self.checksum = hasher.finalize();
        }
    }
}

/// The responses to one request, on all connections of a cell.
#[derive(Debug, Default)]
pub(crate) struct Responses {
    first: Option<Response>,
    /// A response that was right, from its first byte to its last; empty if none is remembered.
    last: Vec<u8>,
    last_closes: bool,
}

impl Responses {
    /// What all of them are like, once there is one.
    pub(crate) fn first(&self) -> Option<Response> {
        self.first
    }

    /// Whether `chunk` begins with the very bytes of a response that was right, and so is right without a parser:
    /// its length, and whether the server will close after it.
    pub(super) fn repeated(&self, chunk: &[u8]) -> Option<(usize, bool)> {
        let repeats = !self.last.is_empty() && chunk.starts_with(&self.last);
        repeats.then_some((self.last.len(), self.last_closes))
    }

    pub(super) fn remember(&mut self, bytes: &[u8], closes: bool) {
        if bytes.len() <= REMEMBERED_BYTES_MAX {
            self.last.clear();
            self.last.extend_from_slice(bytes);
            self.last_closes = closes;
        }
    }

    /// Compares a whole response with the first one.
    pub(super) fn judge(&mut self, got: Response, verify: Verify) -> Result<(), HttpFinding> {
        let first = *self.first.get_or_insert(got);
        if verify == Verify::Off || got == first {
            return Ok(());
        }
        Err(if got.status != first.status {
            HttpFinding::OtherStatus { first: first.status, got: got.status }
        } else if got.length != first.length {
            HttpFinding::OtherLength { first: first.length, got: got.length }
        } else {
            HttpFinding::OtherBody { first: first.checksum, got: got.checksum }
        })
    }
}
