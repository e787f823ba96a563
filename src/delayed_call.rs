//! The handle that `call_later` returns.

use std::{
    error, fmt,
    sync::{
        Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::{
    reactor::Core,
    timer::{TimerKey, deadline_after},
};

/// A call that is scheduled, as Twisted's `IDelayedCall`. Dropping the handle leaves the call alone.
pub struct DelayedCall {
    core: Weak<Core>,
    key: TimerKey,
    cancelled: AtomicBool,
}

/// Why a [`DelayedCall`] could not be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DelayedCallError {
    /// It has been called, or what it was bound to is gone.
    AlreadyCalled,
    /// It was cancelled before.
    AlreadyCancelled,
}

impl DelayedCall {
    pub(crate) fn new(core: Weak<Core>, key: TimerKey) -> Self {
        Self { core, key, cancelled: AtomicBool::new(false) }
    }

    pub(crate) fn key(&self) -> TimerKey {
        self.key
    }

    /// Whether the call is still to come.
    pub fn active(&self) -> bool {
        self.core.upgrade().is_some_and(|core| core.timers().deadline(self.key).is_some())
    }

    /// Forgets the call.
    ///
    /// # Errors
    /// If it has been called or cancelled before.
    pub fn cancel(&self) -> Result<(), DelayedCallError> {
        let core = self.core.upgrade().ok_or_else(|| self.dead())?;
        // Dropped after the lock: what the call captured may run any code.
        let removed = core.timers().remove(self.key);
        removed.ok_or_else(|| self.dead())?;
        self.cancelled.store(true, Relaxed);
        Ok(())
    }

    /// Makes the call come `delay` from now.
    ///
    /// # Errors
    /// If it has been called or cancelled before.
    pub fn reset(&self, delay: Duration) -> Result<(), DelayedCallError> {
        self.reschedule(|core, _| deadline_after(core.clock.now(), delay))
    }

    /// Makes the call come `extra` later than it was to come.
    ///
    /// # Errors
    /// If it has been called or cancelled before.
    pub fn delay(&self, extra: Duration) -> Result<(), DelayedCallError> {
        self.reschedule(|_, deadline| deadline_after(deadline, extra))
    }

    fn reschedule(&self, new: impl FnOnce(&Core, Instant) -> Instant) -> Result<(), DelayedCallError> {
        let core = self.core.upgrade().ok_or_else(|| self.dead())?;
        let mut timers = core.timers();
        let deadline = timers.deadline(self.key).ok_or_else(|| self.dead())?;
        timers.reschedule(self.key, new(&core, deadline));
        drop(timers);
        core.wake();
        Ok(())
    }

    fn dead(&self) -> DelayedCallError {
        if self.cancelled.load(Relaxed) {
            DelayedCallError::AlreadyCancelled
        } else {
            DelayedCallError::AlreadyCalled
        }
    }
}

impl fmt::Debug for DelayedCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DelayedCall").field("active", &self.active()).finish()
    }
}

impl fmt::Display for DelayedCallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AlreadyCalled => "the delayed call has been called, or what it was bound to is gone",
            Self::AlreadyCancelled => "the delayed call was cancelled",
        })
    }
}

impl error::Error for DelayedCallError {}
