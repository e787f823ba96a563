//! What the user reads: progress on standard error, the report on standard output.

pub(crate) mod text;

use std::io::{self, Write};

/// A line of progress. A closed standard error is no reason to stop measuring.
pub(crate) fn progress(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// The report. A reader that has gone away, such as `head`, has what it wanted.
pub(crate) fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}
