//! What can be wrong with a response.

use std::fmt;

use super::head::{FIELDS_MAX, HEAD_BYTES_MAX};
use crate::units;

/// What is wrong with a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HttpFinding {
    /// The first bytes of something else.
    NotHttp {
        start: Vec<u8>,
    },
    /// A head that breaks the grammar.
    MalformedHead {
        what: String,
    },
    HeadTooLarge,
    /// Neither a length nor chunks: only the connection's end would end it.
    NoLength,
    /// Chunks that break the grammar.
    MalformedChunk {
        what: &'static str,
    },
    /// Not a success.
    Status(u16),
    /// Another success than that of the first response.
    OtherStatus {
        first: u16,
        got: u16,
    },
    /// Another number of bytes in the body than in the first response.
    OtherLength {
        first: u64,
        got: u64,
    },
    /// Other bytes in the body than in the first response.
    OtherBody {
        first: u32,
        got: u32,
    },
}

impl HttpFinding {
    /// The name under which results count it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::NotHttp { .. } => "not_http",
            Self::MalformedHead { .. } => "malformed_head",
            Self::HeadTooLarge => "head_too_large",
            Self::NoLength => "no_length",
            Self::MalformedChunk { .. } => "malformed_chunk",
            Self::Status(_) => "status",
            Self::OtherStatus { .. } => "other_status",
            Self::OtherLength { .. } => "other_length",
            Self::OtherBody { .. } => "other_body",
        }
    }
}

impl fmt::Display for HttpFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotHttp { start } => write!(
                f,
                "answers '{}', which is not HTTP/1; is it another kind of server? tcp://host:port measures echoes",
                start.escape_ascii()
            ),
            Self::MalformedHead { what } => {
                write!(f, "the response's head is malformed ({what}); the server must keep to RFC 9112")
            }
            Self::HeadTooLarge => write!(
                f,
                "the response's head has more than {} or {FIELDS_MAX} fields; the server must send fewer",
                units::bytes(HEAD_BYTES_MAX as u64)
            ),
            Self::NoLength => f.write_str(
                "it cannot be told where the response ends; the server must send Content-Length or chunks",
            ),
            Self::MalformedChunk { what } => {
                write!(f, "the response's chunks are malformed ({what}); the server must keep to RFC 9112")
            }
            Self::Status(status) => write!(f, "answers {status}; {}", remedy(*status)),
            Self::OtherStatus { first, got } => {
                write!(f, "answers {got} where the first response was {first}; {SAME}")
            }
            Self::OtherLength { first, got } => {
                write!(f, "the body has {got} bytes where the first response's had {first}; {SAME}")
            }
            Self::OtherBody { first, got } => write!(
                f,
                "the body has the checksum {got:08x} where the first response's had {first:08x}; {SAME}"
            ),
        }
    }
}

const SAME: &str = "take a path that always answers the same, or --verify header or off";

fn remedy(status: u16) -> &'static str {
    match status {
        101 => "the server must not leave HTTP when it is not asked to",
        300..400 => "redirects are not followed, so name the address that it points to",
        500.. => "the server failed, see its log",
        _ => "name a path that the server answers with 2xx",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finding_is_one_line_with_a_remedy_and_a_name_of_its_own() {
        let findings = [
            HttpFinding::NotHttp { start: b"SSH-2.0\r\n".to_vec() },
            HttpFinding::MalformedHead { what: "invalid header name".into() },
            HttpFinding::HeadTooLarge,
            HttpFinding::NoLength,
            HttpFinding::MalformedChunk { what: "no size" },
            HttpFinding::Status(404),
            HttpFinding::OtherStatus { first: 200, got: 204 },
            HttpFinding::OtherLength { first: 1, got: 2 },
            HttpFinding::OtherBody { first: 1, got: 2 },
        ];
        for (index, finding) in findings.iter().enumerate() {
            let text = finding.to_string();
            assert!(text.contains("; ") && !text.contains('\n'), "{text}");
            assert!(findings[..index].iter().all(|other| other.name() != finding.name()));
            assert!(finding.name().chars().all(|c| c.is_ascii_lowercase() || c == '_'));
        }
    }

    #[test]
    fn a_status_is_named_with_what_to_do_about_it() {
        for (status, remedy) in
            [(101, "leave HTTP"), (302, "not followed"), (404, "a path"), (502, "its log")]
        {
            let text = HttpFinding::Status(status).to_string();
            assert!(text.starts_with(&format!("answers {status}; ")) && text.contains(remedy), "{text}");
        }
    }

    #[test]
    fn bytes_that_are_not_http_are_shown_so_that_no_terminal_minds() {
        let text = HttpFinding::NotHttp { start: b"\x1b[2J\r\n".to_vec() }.to_string();
        assert!(text.starts_with(r"answers '\x1b[2J\r\n', which"), "{text}");
    }
}
