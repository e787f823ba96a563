//! The head of a response: its status, and what it says of the body and the connection.

use std::mem::MaybeUninit;

use httparse::{Error, Header, ParserConfig, Status};

use super::{HttpFinding, body::Body};

/// The longest head that is read.
pub(super) const HEAD_BYTES_MAX: usize = 64 << 10;

/// The most fields in a head.
pub(super) const FIELDS_MAX: usize = 128;

pub(super) const SWITCHING_PROTOCOLS: u16 = 101;
const NO_CONTENT: u16 = 204;
const NOT_MODIFIED: u16 = 304;

/// How much is shown of something that is not HTTP.
const SHOWN_BYTES: usize = 24;

/// What every head begins with.
pub(super) const START: &[u8] = b"HTTP/1.";

/// What a head says.
#[derive(Debug)]
pub(super) struct Head {
    /// From the status line to the empty line.
    pub(super) bytes: usize,
    pub(super) status: u16,
    pub(super) body: Body,
    pub(super) close: bool,
}

impl Head {
    /// None while the head is incomplete.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<Self>, HttpFinding> {
        // The parser would pass over empty lines, which no server may send here.
        let there = bytes.len().min(START.len());
        if bytes[..there] != START[..there] {
            return Err(HttpFinding::NotHttp { start: bytes[..bytes.len().min(SHOWN_BYTES)].to_vec() });
        }
        let mut fields = [MaybeUninit::uninit(); FIELDS_MAX];
        let mut response = httparse::Response::new(&mut []);
        let config = ParserConfig::default();
        match config.parse_response_with_uninit_headers(&mut response, bytes, &mut fields) {
            Ok(Status::Complete(length)) => Self::of(length, &response).map(Some),
            Ok(Status::Partial) => Ok(None),
            Err(Error::TooManyHeaders) => Err(HttpFinding::HeadTooLarge),
            Err(error) => Err(malformed(&error.to_string())),
        }
    }

    /// Whether another head follows for the same request.
    pub(super) fn is_interim(&self) -> bool {
        is_interim(self.status)
    }

    fn of(bytes: usize, response: &httparse::Response<'_, '_>) -> Result<Self, HttpFinding> {
        let status = response.code.unwrap_or_default();
        let fields = &*response.headers;
        let body = match status {
            NO_CONTENT | NOT_MODIFIED | SWITCHING_PROTOCOLS => Body::of_length(0),
            _ if is_interim(status) => Body::of_length(0),
            _ => body(fields)?,
        };
        let says = |word| tokens(fields, "connection").any(|token| token.eq_ignore_ascii_case(word));
        let close = says(b"close") || (response.version == Some(0) && !says(b"keep-alive"));
        Ok(Self { bytes, status, body, close })
    }
}

fn is_interim(status: u16) -> bool {
    (100..200).contains(&status) && status != SWITCHING_PROTOCOLS
}

/// RFC 9112, 6.3. A head with both a length and chunks is how responses are smuggled, so it is none.
fn body(fields: &[Header<'_>]) -> Result<Body, HttpFinding> {
    let length = content_length(fields)?;
    match (tokens(fields, "transfer-encoding").last(), length) {
        (Some(_), Some(_)) => Err(malformed("both Content-Length and Transfer-Encoding")),
        (Some(last), None) if last.eq_ignore_ascii_case(b"chunked") => Ok(Body::in_chunks()),
        (None, Some(length)) => Ok(Body::of_length(length)),
        _ => Err(HttpFinding::NoLength),
    }
}

fn content_length(fields: &[Header<'_>]) -> Result<Option<u64>, HttpFinding> {
    let mut length = None;
    for token in tokens(fields, "content-length") {
        let value = number(token).ok_or_else(|| malformed("Content-Length is no number of bytes"))?;
        if length.is_some_and(|length| length != value) {
            return Err(malformed("two values of Content-Length"));
        }
        length = Some(value);
    }
    Ok(length)
}

/// Digits only: a sign, which Rust would take, is none.
fn number(token: &[u8]) -> Option<u64> {
    let digits = !token.is_empty() && token.iter().all(u8::is_ascii_digit);
    digits.then(|| str::from_utf8(token).ok()?.parse().ok())?
}

/// The members of a list, over all fields of this name.
fn tokens<'a>(fields: &'a [Header<'a>], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let named = fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
    named.flat_map(|field| field.value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
}

fn malformed(what: &str) -> HttpFinding {
    HttpFinding::MalformedHead { what: what.into() }
}
