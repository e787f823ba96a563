//! Errors as the user meets them: one line, and the exit code that goes with it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Exit {
    /// Everything that was asked for was done.
    Done = 0,
    /// loadgen itself, or the server child it started, failed.
    Internal = 1,
    /// The command line was refused before anything was tried.
    Usage = 2,
    /// The machine or the network cannot do what was asked.
    Machine = 3,
    /// An objective was not met, or a gate failed.
    Unmet = 4,
    /// A reply was wrong, foreign, repeated or missing, or a server was not what its row says.
    Verification = 5,
    /// With `--strict`: the run is invalid or its verdict inconclusive.
    Inconclusive = 6,
    /// SIGINT or SIGTERM.
    Interrupted = 130,
}

impl Exit {
    pub(crate) fn code(self) -> u8 {
        self as u8
    }
}

/// An error that names the thing, the cause and the remedy in one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Error {
    pub(crate) exit: Exit,
    text: String,
}

impl Error {
    pub(crate) fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into() }
    }

    pub(crate) fn internal(text: impl Into<String>) -> Self {
        Self::new(Exit::Internal, text)
    }

    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::new(Exit::Usage, text)
    }

    pub(crate) fn machine(text: impl Into<String>) -> Self {
        Self::new(Exit::Machine, text)
    }

    pub(crate) fn verification(text: impl Into<String>) -> Self {
        Self::new(Exit::Verification, text)
    }

    pub(crate) fn interrupted() -> Self {
        Self::new(Exit::Interrupted, "interrupted")
    }

    /// The same error with one more remedy.
    pub(crate) fn and(mut self, remedy: &str) -> Self {
        self.text.push_str(remedy);
        self
    }

    /// The same error with the place where it happened in front.
    pub(crate) fn within(mut self, place: &str) -> Self {
        self.text = format!("{place}: {}", self.text);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}
