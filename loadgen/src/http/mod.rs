//! HTTP/1.1 without any I/O: the request that is asked, and whether what comes back answers it.
//!
//! All connections ask the same, so all responses must be the same: the first one is the measure of the others.
//! Bodies of any size are counted and hashed as they come; none is kept.

mod body;
mod finding;
mod head;
mod request;
mod responses;

pub(crate) use self::{
    finding::HttpFinding,
    request::Request,
    responses::{Response, Responses},
};

use std::mem;

use self::{
    body::Body,
    head::{HEAD_BYTES_MAX, Head},
};
use crate::message::Verify;

/// What a chunk of received bytes amounts to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The response goes on.
    Partial,
    /// The response is whole after this many bytes of the chunk, and right.
    Complete {
        used: usize,
        /// The server will close the connection after it.
        close: bool,
    },
    /// This differs, and the connection cannot go on.
    Wrong(HttpFinding),
}

/// Where one connection is within a response.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    state: State,
}

#[derive(Debug, Default)]
enum State {
    /// Nothing of a response has come.
    #[default]
    Idle,
    /// A part of the head; empty after an interim response.
    Head(Vec<u8>),
    Body(Incoming),
}

impl Reader {
    /// Takes a chunk up to the end of the response in it. All readers that share `shared` must have the same `verify`.
    pub(crate) fn receive(&mut self, chunk: &[u8], shared: &mut Responses, verify: Verify) -> Progress {
        let from_start = self.at_end();
        if from_start && let Some((used, close)) = shared.repeated(chunk) {
            return Progress::Complete { used, close };
        }
        match self.advance(chunk, shared, verify) {
            Ok(None) => Progress::Partial,
            Ok(Some((used, close))) => {
                if from_start {
                    shared.remember(&chunk[..used], close);
                }
                Progress::Complete { used, close }
            }
            Err(finding) => Progress::Wrong(finding),
        }
    }

    /// Whether nothing of a response has come, so that the connection may end here.
    pub(crate) fn at_end(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Goes through head and body. At the end of a response that is right, says how many bytes were used and
    /// whether the server will close.
    fn advance(
        &mut self,
        chunk: &[u8],
        shared: &mut Responses,
        verify: Verify,
    ) -> Result<Option<(usize, bool)>, HttpFinding> {
        let mut used = 0;
        while used < chunk.len() {
            let mut incoming = match mem::take(&mut self.state) {
                State::Body(incoming) => incoming,
                before => {
                    let (taken, head) = self.head(before, &chunk[used..])?;
                    used += taken;
                    let Some(head) = head else { continue };
                    if head.is_interim() {
                        self.state = State::Head(Vec::new());
                        continue;
                    }
                    Incoming::new(head, verify)?
                }
            };
            used += incoming.receive(&chunk[used..], verify)?;
            if incoming.body.is_over() {
                shared.judge(incoming.response, verify)?;
                return Ok(Some((used, incoming.close)));
            }
            self.state = State::Body(incoming);
        }
        Ok(None)
    }

    /// Reads a head that may have begun in chunks before: the bytes taken, and the head once it is whole.
    fn head(&mut self, before: State, bytes: &[u8]) -> Result<(usize, Option<Head>), HttpFinding> {
        let mut buffer = match before {
            State::Head(buffer) => buffer,
            _ => Vec::new(),
        };
        let old = buffer.len();
        let bytes = &bytes[..bytes.len().min(HEAD_BYTES_MAX - old)];
        let head = if old == 0 {
            Head::parse(bytes)?
        } else {
            buffer.extend_from_slice(bytes);
            // Heads end with a line, and lines are few: so no sender of single bytes makes this dear.
            let may_tell = bytes.contains(&b'\n') || old < head::START.len();
            if may_tell { Head::parse(&buffer)? } else { None }
        };
        if let Some(head) = head {
            return Ok((head.bytes.saturating_sub(old), Some(head)));
        }
        if old + bytes.len() == HEAD_BYTES_MAX {
            return Err(HttpFinding::HeadTooLarge);
        }
        if old == 0 {
            buffer = bytes.to_vec();
        }
        self.state = State::Head(buffer);
        Ok((bytes.len(), None))
    }
}

/// A response whose head is known.
#[derive(Debug)]
struct Incoming {
    /// Of the body, what has come so far.
    response: Response,
    body: Body,
    close: bool,
}

impl Incoming {
    fn new(head: Head, verify: Verify) -> Result<Self, HttpFinding> {
        let is_good = (200..300).contains(&head.status);
        // Who asks for no verification may measure how fast errors come; where a connection leaves HTTP no reader can follow.
        if !is_good && (verify != Verify::Off || head.status == head::SWITCHING_PROTOCOLS) {
            return Err(HttpFinding::Status(head.status));
        }
        let response = Response { status: head.status, length: 0, checksum: 0 };
        Ok(Self { response, body: head.body, close: head.close })
    }

    fn receive(&mut self, bytes: &[u8], verify: Verify) -> Result<usize, HttpFinding> {
        let response = &mut self.response;
        self.body.receive(bytes, |data| response.add(data, verify))
    }
}

#[cfg(test)]
mod tests;
