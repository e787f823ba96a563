//! Foreign descriptors at the seam: a program's own, of which a backend tells only that they are ready.

use std::sync::Arc;

use crate::{id::WatchKey, sys::watched_file::WatchedFile};

/// What a descriptor is watched for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interest {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

impl Interest {
    pub(crate) const NONE: Self = Self { read: false, write: false };

    pub(crate) fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// As poll(2), epoll and io_uring alike spell it.
    pub(crate) fn mask(self) -> i16 {
        let read = if self.read { libc::POLLIN } else { 0 };
        let write = if self.write { libc::POLLOUT } else { 0 };
        read | write
    }
}

/// What a descriptor turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Readiness {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The other side is gone, or the file has failed. The kernel tells it whatever was asked.
    pub(crate) hung_up: bool,
}

impl Readiness {
    pub(crate) fn from_mask(mask: i16) -> Self {
        Self {
            readable: mask & libc::POLLIN != 0,
            writable: mask & libc::POLLOUT != 0,
            hung_up: mask & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0,
        }
    }
}

/// Watches foreign descriptors.
///
/// Level-triggered: for as long as a file is ready, [`Event::Ready`](super::Event::Ready) comes once in each turn. What was found before
/// the interest changed may still come after it.
pub(crate) trait Watcher {
    /// Watches a file for this from now on, and for nothing else; for nothing at all, it is forgotten.
    fn watch(&mut self, key: WatchKey, file: &Arc<WatchedFile>, interest: Interest);
}
