//! Foreign descriptors in the interest list. They are level-triggered, since a program need not read all there is.

use std::sync::Arc;

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::{EpollLoop, WATCHED};
use crate::{
    backend::{
        Event,
        watching::{Interest, Readiness, Watcher},
    },
    id::WatchKey,
    stats::Syscall,
    sys::watched_file::WatchedFile,
};

impl Watcher for EpollLoop {
    fn watch(&mut self, key: WatchKey, file: &Arc<WatchedFile>, interest: Interest) {
        let io = &mut self.io;
        let mut event = EpollEvent::new(
            EpollFlags::from_bits_retain(i32::from(interest.mask())),
            WATCHED | u64::from(key.0),
        );
        let changed = if interest.is_none() {
            // With an empty interest the kernel would still tell of a hang-up, for ever.
            io.watched.remove(&key);
            let _ = io.epoll.delete(&**file);
            Ok(())
        } else if io.watched.insert(key) {
            io.epoll.add(&**file, event)
        } else {
            io.epoll.modify(&**file, &mut event)
        };
        io.counters.call(Syscall::EpollCtl);
        if let Err(errno) = changed {
            io.ready.push_back(Event::WatchFailed { key, errno: errno.into() });
        }
    }
}

/// What an event of a foreign descriptor tells.
pub(super) fn ready(event: EpollEvent) -> Event<'static> {
    let readiness = Readiness::from_mask(event.events().bits() as i16);
    Event::Ready { key: WatchKey(event.data() as u32), readiness }
}
