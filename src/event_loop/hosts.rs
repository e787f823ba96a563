//! Factories of a loop: who uses them, when they start and stop, and what is told to them.

use std::io;

use super::{EventLoop, HostSlot};
use crate::{
    host::{Env, FactoryEvent, HostSeed, ProtocolEvent, drop_quietly},
    id::{ConnId, HostKey},
    protocol::ErasedCall,
    table::{LoopLink, Stage},
};

impl EventLoop {
    pub(super) fn add_host(&mut self, key: HostKey, name: &'static str, seed: ErasedCall) {
        let Ok(seed) = seed.downcast::<HostSeed>() else { return };
        let host = seed.0.on_loop();
        let slot =
            self.hosts.insert(HostSlot { key, name, host, users: 0, connections: 0, forgotten: false });
        self.host_slots.insert(key, slot);
    }

    pub(super) fn forget_host(&mut self, key: HostKey) {
        if let Some(slot) = self.host_slots.get(&key).copied() {
            self.hosts[slot].forgotten = true;
            self.drop_if_forgotten(slot);
        }
    }

    /// Drops a factory that no handle, port, connector or connection names any more.
    pub(super) fn drop_if_forgotten(&mut self, slot: usize) {
        let host = &self.hosts[slot];
        if host.forgotten && host.users == 0 && host.connections == 0 {
            let host = self.hosts.remove(slot);
            self.host_slots.remove(&host.key);
            drop_quietly(host);
        }
    }

    pub(super) fn tell_factory(&mut self, key: HostKey, event: FactoryEvent<'_>) -> io::Result<()> {
        let Some(slot) = self.host_slots.get(&key).copied() else { return Ok(()) };
        let mut link = LoopLink { table: &mut self.table, sockets: self.backend.sockets() };
        let env = Env { link: &mut link, reactor: &self.reactor, host: key };
        self.hosts[slot].host.tell_factory(env, event)
    }

    pub(super) fn call_factory(&mut self, key: HostKey, call: ErasedCall) {
        if self.host_slots.contains_key(&key) {
            let _ = self.tell_factory(key, FactoryEvent::Call(call));
        } else {
            drop_quietly(call);
        }
    }

    pub(super) fn call_protocol(&mut self, id: ConnId, call: ErasedCall) {
        if self.table.get(id).is_some_and(|entry| entry.stage == Stage::Made) {
            self.tell(id, ProtocolEvent::Call(call));
        } else {
            drop_quietly(call);
        }
    }
}
