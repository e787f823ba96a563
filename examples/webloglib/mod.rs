//! What the weblog examples share: following a log file, and turning its lines into XML.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

/// The log that the examples follow, in the current folder.
pub(crate) const LOG: &str = "access-log";

/// Gives what is appended to the log, from where it ended when this was made.
pub(crate) struct Follower {
    file: File,
    /// A line that is not finished yet.
    partial: Vec<u8>,
}

impl Follower {
    pub(crate) fn at_end(log: impl AsRef<Path>) -> io::Result<Self> {
        let name = log.as_ref().display();
        let opened = File::open(log.as_ref());
        let mut file = opened.map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self { file, partial: Vec::new() })
    }

    /// All hits whose lines have been finished since the last call, as XML.
    pub(crate) fn new_hits(&mut self) -> io::Result<Vec<u8>> {
        self.file.read_to_end(&mut self.partial)?;
        let finished = self.partial.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines: Vec<u8> = self.partial.drain(..finished).collect();
        let mut hits = String::new();
        for line in String::from_utf8_lossy(&lines).lines() {
            match hit_tag(line) {
                Some(hit) => hits += &hit,
                None => log::warn!("not in the Common Log Format: {line:?}"),
            }
        }
        Ok(hits.into_bytes())
    }
}

/// A line of the Common Log Format, or of the Combined one, as an XML element.
pub(crate) fn hit_tag(line: &str) -> Option<String> {
    let (host, rest) = line.split_once(' ')?;
    let (_ident, rest) = rest.split_once(' ')?;
    let (user, rest) = rest.split_once(" [")?;
    let (time, rest) = rest.split_once("] \"")?;
    let (request, rest) = until_quote(rest)?;
    let mut numbers = rest.split(' ');
    let (status, bytes) = (numbers.next()?, numbers.next()?);
    let is_number = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(status) || !(is_number(bytes) || bytes == "-") {
        return None;
    }
    let mut hit = String::from("<hit>");
    let fields = [
        ("host", host),
        ("user", user),
        ("time", time),
        ("request", request),
        ("status", status),
        ("bytes", bytes),
    ];
    for (name, text) in fields {
        let _ = write!(hit, "<{name}>{}</{name}>", escaped(text));
    }
    Some(hit + "</hit>")
}

/// What stands before the quote that ends a field, and after it; a quote behind a backslash is part of the field.
fn until_quote(text: &str) -> Option<(&str, &str)> {
    let ends = |at: &usize| !text[..*at].ends_with('\\');
    let end = text.match_indices("\" ").map(|(at, _)| at).find(ends)?;
    Some((&text[..end], &text[end + 2..]))
}

/// Text as it may stand in XML: control characters may not, in any form.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe += "&amp;",
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '"' => safe += "&quot;",
            character if character.is_control() => safe.push('\u{fffd}'),
            character => safe.push(character),
        }
    }
    safe
}
