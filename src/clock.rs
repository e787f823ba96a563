//! Where a reactor reads the time: the machine's clock, or one that stands still until a test advances it.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// See the top of this file.
#[derive(Debug)]
pub(crate) enum Clock {
    Machine,
    Manual(Mutex<Instant>),
}

impl Clock {
    /// A clock that stands still.
    pub(crate) fn manual() -> Self {
        Self::Manual(Mutex::new(Instant::now()))
    }

    pub(crate) fn now(&self) -> Instant {
        match self {
            Self::Machine => Instant::now(),
            Self::Manual(now) => *now.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Moves a manual clock on; the machine's goes by itself.
    pub(crate) fn advance(&self, by: Duration) {
        if let Self::Manual(now) = self {
            *now.lock().unwrap_or_else(PoisonError::into_inner) += by;
        }
    }
}
