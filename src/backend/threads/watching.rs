//! Foreign descriptors beside the doors: the main thread polls them together.

use std::{os::fd::AsFd, sync::Arc};

use nix::poll::{PollFd, PollFlags};

use super::doors::Doors;
use crate::{
    backend::watching::{Interest, Readiness, Watcher},
    id::WatchKey,
    sys::watched_file::WatchedFile,
};

/// The foreign descriptors that are watched, and those that were found ready.
#[derive(Debug, Default)]
pub(super) struct Watched {
    files: Vec<(WatchKey, Arc<WatchedFile>, Interest)>,
    ready: Vec<(WatchKey, Readiness)>,
}

impl Watched {
    /// What to poll for them.
    pub(super) fn to_poll(&self) -> impl Iterator<Item = PollFd<'_>> {
        let polled = |interest: Interest| PollFlags::from_bits_retain(interest.mask());
        self.files.iter().map(move |(_, file, interest)| PollFd::new(file.as_fd(), polled(*interest)))
    }

    /// What came of it, in the same order; how many are ready.
    pub(super) fn polled(&mut self, flags: impl Iterator<Item = PollFlags>) -> usize {
        let told = self.files.iter().zip(flags).filter(|(_, flags)| !flags.is_empty());
        self.ready.extend(told.map(|((key, ..), flags)| (*key, Readiness::from_mask(flags.bits()))));
        self.ready.len()
    }
}

impl Watcher for Doors {
    fn watch(&mut self, key: WatchKey, file: &Arc<WatchedFile>, interest: Interest) {
        let files = &mut self.watched.files;
        files.retain(|(known, ..)| *known != key);
        if !interest.is_none() {
            files.push((key, Arc::clone(file), interest));
        }
    }
}

impl Doors {
    /// The next foreign descriptor that the last wait has found ready.
    pub(crate) fn next_ready(&mut self) -> Option<(WatchKey, Readiness)> {
        self.watched.ready.pop()
    }
}
