//! Foreign descriptors on the ring: one poll each, armed again before every wait, which makes it level-triggered.
//!
//! A multishot poll would tell edges only, and a program need not read all there is.

use std::{
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
};

use io_uring::{opcode, types};

use super::{Io, Kind, Uring, ring::Completion};
use crate::{
    backend::{
        Event,
        watching::{Interest, Readiness, Watcher},
    },
    id::WatchKey,
    sys::watched_file::WatchedFile,
};

/// One foreign descriptor. At most one poll of it is in flight, so that none need be told from an earlier one.
pub(super) struct Watching {
    /// Held until the last completion: a poll that waits in the queue names it by its number.
    file: Arc<WatchedFile>,
    wanted: Interest,
    /// What the poll in flight is for.
    armed: Option<Interest>,
}

impl Watching {
    /// Whether a poll is in flight that has been cancelled.
    pub(super) fn is_to_end(&self) -> bool {
        self.armed.is_some_and(|armed| armed != self.wanted)
    }
}

impl Watcher for Uring {
    fn watch(&mut self, key: WatchKey, file: &Arc<WatchedFile>, interest: Interest) {
        let io = &mut self.io;
        let new = || Watching { file: Arc::clone(file), wanted: interest, armed: None };
        let watching = io.watched.entry(key).or_insert_with(new);
        watching.wanted = interest;
        match watching.armed {
            // The poll pins the file until it is over; its end, whatever it is, arms the next one.
            Some(armed) if armed != interest => io.cancel(Kind::Watch.of_port(key.0)),
            Some(_) => {}
            None if interest.is_none() => drop(io.watched.remove(&key)),
            None => io.unarmed.push_back(key),
        }
    }
}

impl Io {
    /// Arms what is to be watched in the coming wait. Those that are always ready complete at once; no more of them are armed
    /// together than leave room for others in the completion queue, which would overflow for ever.
    pub(super) fn arm_watches(&mut self) {
        if self.unarmed.is_empty() {
            return;
        }
        let room = (self.ring.completions() as usize / 2).max(1);
        for _ in 0..room {
            let Some(key) = self.unarmed.pop_front() else { return };
            self.arm_watch(key);
        }
        self.hurried |= !self.unarmed.is_empty();
    }

    fn arm_watch(&mut self, key: WatchKey) {
        let Some(watching) = self.watched.get_mut(&key).filter(|watching| watching.armed.is_none()) else {
            return;
        };
        if watching.wanted.is_none() {
            self.watched.remove(&key);
            return;
        }
        watching.armed = Some(watching.wanted);
        let fd = types::Fd(watching.file.as_fd().as_raw_fd());
        let entry = opcode::PollAdd::new(fd, watching.wanted.mask() as u32).build();
        // SAFETY: a poll points to nothing.
        unsafe { self.ring.push(entry.user_data(Kind::Watch.of_port(key.0))) };
    }

    pub(super) fn watch_completed(&mut self, completion: Completion) -> Option<Event<'static>> {
        let key = WatchKey(completion.user_data() as u32);
        let watching = self.watched.get_mut(&key)?;
        watching.armed = None;
        self.unarmed.push_back(key);
        match completion.outcome() {
            Ok(mask) => Some(Event::Ready { key, readiness: Readiness::from_mask(mask as i16) }),
            Err(errno) if errno.raw() == libc::ECANCELED => None,
            Err(errno) => Some(Event::WatchFailed { key, errno }),
        }
    }
}
