//! Foreign descriptors of a loop: what becomes of them is in `watches.rs`, and the backend waits for them.

use super::EventLoop;
use crate::{
    backend::watching::Readiness, descriptor::NewWatch, error::Errno, id::WatchKey, watches::lose_unwatched,
};

impl EventLoop {
    pub(super) fn add_descriptor(&mut self, new: NewWatch) {
        if self.stopping {
            return lose_unwatched(new, &self.reactor);
        }
        self.watches.open(new, &self.reactor, &mut *self.backend);
    }

    pub(super) fn mind_descriptor(&mut self, key: WatchKey) {
        self.watches.mind(key, &self.reactor, &mut *self.backend);
    }

    pub(super) fn descriptor_ready(&mut self, key: WatchKey, readiness: Readiness) {
        self.watches.ready(key, readiness, &self.reactor, &mut *self.backend);
    }

    pub(super) fn descriptor_refused(&mut self, key: WatchKey, errno: Errno) {
        self.watches.refused(key, errno, &self.reactor, &mut *self.backend);
    }

    pub(super) fn check_descriptors(&mut self) {
        self.watches.check(&self.reactor, &mut *self.backend);
    }

    pub(super) fn lose_descriptors(&mut self) {
        self.watches.lose_all(&self.reactor, &mut *self.backend);
    }
}
