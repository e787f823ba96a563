//! Factories on the main thread: counting those who use them, starting and stopping them.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use super::{
    Main,
    host::ThreadHost,
    shared::{Mail, Note, Shared, lock},
};
use crate::{
    host::{FactoryEvent, HostSeed, drop_quietly},
    id::HostKey,
    protocol::ErasedCall,
    timer::Due,
};

/// A factory, as its connections' threads hold it.
pub(super) struct Hosted {
    pub(super) key: HostKey,
    pub(super) name: &'static str,
    pub(super) host: Arc<dyn ThreadHost>,
    connections: AtomicUsize,
    /// No handle of the program names it any more.
    forgotten: AtomicBool,
    /// Timed calls for the factory, made by whoever holds it next.
    due: Mutex<VecDeque<Due>>,
    has_due: AtomicBool,
}

impl Hosted {
    pub(super) fn add_due(&self, due: Due) {
        let mut waiting = lock(&self.due);
        waiting.push_back(due);
        self.has_due.store(true, SeqCst);
    }

    pub(super) fn has_due(&self) -> bool {
        self.has_due.load(SeqCst)
    }

    pub(super) fn next_due(&self) -> Option<Due> {
        let mut waiting = lock(&self.due);
        let due = waiting.pop_front();
        self.has_due.store(!waiting.is_empty(), SeqCst);
        due
    }
}

/// A factory on the main thread, and how many ports and connectors use it.
pub(super) struct HostSlot {
    pub(super) hosted: Arc<Hosted>,
    pub(super) users: usize,
}

/// One connection's hold on its factory.
pub(super) struct Hold {
    shared: Arc<Shared>,
    pub(super) hosted: Arc<Hosted>,
}

impl Hold {
    pub(super) fn new(shared: &Arc<Shared>, hosted: &Arc<Hosted>) -> Self {
        hosted.connections.fetch_add(1, SeqCst);
        Self { shared: Arc::clone(shared), hosted: Arc::clone(hosted) }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // The main thread looks at these two in the other order, so that one of us sees both.
        if self.hosted.connections.fetch_sub(1, SeqCst) == 1 && self.hosted.forgotten.load(SeqCst) {
            self.shared.note(Note::HostIdle(self.hosted.key));
        }
    }
}

impl Main {
    pub(super) fn add_host(&mut self, key: HostKey, name: &'static str, seed: ErasedCall) {
        let Ok(seed) = seed.downcast::<HostSeed>() else { return };
        let hosted = Arc::new(Hosted {
            key,
            name,
            host: Arc::from(seed.0.on_threads()),
            connections: AtomicUsize::new(0),
            forgotten: AtomicBool::new(false),
            due: Mutex::default(),
            has_due: AtomicBool::new(false),
        });
        self.hosts.insert(key, HostSlot { hosted, users: 0 });
    }

    pub(super) fn set_hooks(&mut self, key: HostKey, hooks: ErasedCall) {
        if let Some(slot) = self.hosts.get(&key) {
            slot.hosted.host.set_hooks(hooks);
        }
    }

    pub(super) fn hosted(&self, key: HostKey) -> Option<Arc<Hosted>> {
        self.hosts.get(&key).map(|slot| Arc::clone(&slot.hosted))
    }

    pub(super) fn forget_host(&mut self, key: HostKey) {
        if let Some(slot) = self.hosts.get(&key) {
            slot.hosted.forgotten.store(true, SeqCst);
            self.drop_if_forgotten(key);
        }
    }

    /// Drops a factory that no handle, port, connector or connection names any more.
    pub(super) fn drop_if_forgotten(&mut self, key: HostKey) {
        let idle = |slot: &mut HostSlot| {
            let hosted = &slot.hosted;
            slot.users == 0 && hosted.forgotten.load(SeqCst) && hosted.connections.load(SeqCst) == 0
        };
        if self.hosts.get_mut(&key).is_some_and(idle) {
            let slot = self.hosts.remove(&key);
            drop_quietly(slot);
        }
    }

    pub(super) fn tell_factory(&mut self, key: HostKey, event: FactoryEvent<'_>) -> io::Result<()> {
        let Some(hosted) = self.hosted(key) else { return Ok(()) };
        self.shared.tell_factory(&hosted, &mut self.duty, event)
    }

    pub(super) fn call_factory(&mut self, key: HostKey, due: Due) {
        if let Some(hosted) = self.hosted(key) {
            hosted.add_due(due);
            self.shared.call_factory(&hosted, &mut self.duty);
            self.duty.run_errands();
        } else {
            self.shared.drop_mail(Mail::Timer(due));
        }
    }
}
