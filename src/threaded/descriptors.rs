//! Foreign descriptors of the main thread: what becomes of them is in `watches.rs`, and the doors wait for them.

use super::Main;
use crate::{descriptor::NewWatch, id::WatchKey, watches::lose_unwatched};

impl Main {
    pub(super) fn add_descriptor(&mut self, new: NewWatch) {
        if self.stopping {
            return lose_unwatched(new, &self.shared.reactor);
        }
        self.watches.open(new, &self.shared.reactor, &mut self.doors);
    }

    pub(super) fn mind_descriptor(&mut self, key: WatchKey) {
        self.watches.mind(key, &self.shared.reactor, &mut self.doors);
    }

    /// Calls those that the last wait has found ready.
    pub(super) fn call_ready_descriptors(&mut self) {
        while let Some((key, readiness)) = self.doors.next_ready() {
            self.watches.ready(key, readiness, &self.shared.reactor, &mut self.doors);
        }
    }

    pub(super) fn check_descriptors(&mut self) {
        self.watches.check(&self.shared.reactor, &mut self.doors);
    }

    pub(super) fn lose_descriptors(&mut self) {
        self.watches.lose_all(&self.shared.reactor, &mut self.doors);
    }
}
