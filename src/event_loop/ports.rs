//! Listening ports of a loop: opening, accepting, shedding, closing.

use super::EventLoop;
use crate::{
    address::Address,
    backend::{
        Sockets,
        accept::{AcceptDecision, decide},
    },
    driver::{Driver, MORE_DESCRIPTORS, OpenPort, admit, equip, tell_done},
    error::{Errno, Error},
    factory::Peer,
    host::ProtocolEvent,
    id::{ConnId, PortKey},
    policies::{Guard, Verdict},
    port::Port,
    reactor::{State, TimerCall},
    stats::Count,
    sys::Socket,
    table::Stage,
};

impl EventLoop {
    pub(super) fn open_port(&mut self, port: Port) {
        if self.stopping || port.is_stopped() {
            return tell_done(&port, &self.reactor, None);
        }
        let Some(listener) = port.listener() else { return };
        if let Err(error) = self.use_hosts(&port) {
            log::error!("{error}; ({} Closed)", port.label());
            tell_done(&port, &self.reactor, Some(&error));
            self.fail_start(error);
            return;
        }
        self.backend.listen(port.key(), listener);
        self.ports.insert(port.key(), OpenPort::new(port));
    }

    /// A factory that cannot start ends a reactor that is only just starting: nothing would listen.
    fn fail_start(&mut self, error: Error) {
        if self.starting && self.ports.is_empty() && self.core().change_state(State::Running, State::Stopping)
        {
            self.failed = Some(error);
        }
    }

    pub(super) fn close_port(&mut self, key: PortKey) {
        if self.ports.contains_key(&key) {
            self.backend.unlisten(key);
        }
    }

    pub(super) fn close_all_ports(&mut self) {
        for open in self.ports.values() {
            if open.port.shut() {
                self.backend.unlisten(open.port.key());
            }
        }
    }

    pub(super) fn port_closed(&mut self, key: PortKey, error: Option<&Error>) {
        let Some(open) = self.ports.remove(&key) else { return self.datagrams_closed(key, error) };
        log::info!("({} Closed)", open.port.label());
        self.release_host(open.port.host());
        open.port.overflow().into_iter().for_each(|overflow| self.release_host(overflow));
        open.end(&self.reactor, error);
    }

    pub(super) fn accepted(&mut self, key: PortKey, socket: Socket) {
        self.counters.add(Count::Accepted, 1);
        let Some(OpenPort { port, .. }) = self.ports.get(&key) else {
            return self.backend.refuse(socket);
        };
        if port.turns_away() {
            self.counters.add(Count::RefusedStopped, 1);
            return self.backend.refuse(socket);
        }
        let host = port.host();
        let Some(slot) = self.host_slots.get(&host).copied() else {
            return self.backend.refuse(socket);
        };
        let guard = port.guard().cloned();
        let unix = port.is_unix();
        let id = self.insert(host, slot, Stage::Connecting);
        self.backend.adopt(id, socket);
        if unix {
            self.backend.is_unix(id);
        }
        if guard.as_ref().is_some_and(|guard| !self.admit(id, guard)) {
            self.counters.add(Count::RefusedByPolicy, 1);
            self.close(id, false);
        } else if self.build(id, guard.as_deref()) {
            self.made(id);
        } else {
            self.counters.add(Count::RefusedByFactory, 1);
            self.close(id, false);
        }
    }

    /// Asks the accept policies about a connection; some move it to the factory for those who are too many.
    fn admit(&mut self, id: ConnId, guard: &Guard) -> bool {
        let mut ask = ask_peer(self.backend.sockets(), id);
        let (overflow, places) = match admit(guard, &mut Peer::new(&mut ask)) {
            Verdict::Refused => return false,
            Verdict::Admitted(places) => (None, places),
            Verdict::Overflow(host, places) => (Some(host), places),
        };
        let Some(entry) = self.table.get(id) else { return false };
        entry.keep_places(places);
        let Some(host) = overflow else { return true };
        let Some(slot) = self.host_slots.get(&host).copied() else { return false };
        self.hosts[entry.host_slot as usize].connections -= 1;
        self.hosts[slot].connections += 1;
        (entry.host, entry.host_slot) = (host, slot as u32);
        self.counters.add(Count::Overflowed, 1);
        true
    }

    /// Has the factory build the protocol of a connection, which is made by it.
    pub(super) fn build(&mut self, id: ConnId, guard: Option<&Guard>) -> bool {
        let Some(entry) = self.table.get(id) else { return false };
        let host = &mut self.hosts[entry.host_slot as usize].host;
        let (protocol, equipment, peer) = {
            let mut ask = ask_peer(self.backend.sockets(), id);
            let mut peer = Peer::new(&mut ask);
            let Some(equipment) = equip(guard, &mut peer) else { return false };
            let Some(protocol) = host.build(&mut peer) else { return false };
            (protocol, equipment, peer.answer())
        };
        entry.become_made(protocol, host.half_closeable(), peer);
        if host.receives_descriptors() {
            self.backend.receive_descriptors(id);
        }
        if guard.is_some() {
            entry.connection.equip(self.reactor.core.clock.now(), equipment);
        }
        self.table.join(id);
        true
    }

    pub(super) fn made(&mut self, id: ConnId) {
        self.counters.add(Count::Made, 1);
        self.tell(id, ProtocolEvent::Made);
        self.table.mark_dirty(id);
    }

    pub(super) fn accept_failed(&mut self, key: PortKey, errno: Errno) {
        if self.ports.get(&key).is_none_or(|open| open.port.is_stopped()) {
            return;
        }
        match decide(errno) {
            AcceptDecision::Next => self.backend.accept_again(key),
            AcceptDecision::Shed => {
                self.log_accept_failure(key, errno, MORE_DESCRIPTORS);
                let shed = self.backend.shed(key);
                self.counters.add(Count::RefusedDescriptors, shed as u64);
                self.rest(key);
            }
            AcceptDecision::Rest => {
                self.log_accept_failure(key, errno, "accepting rests");
                self.rest(key);
            }
            AcceptDecision::Over => {
                self.log_accept_failure(key, errno, "the port is closed");
                self.ports.get_mut(&key).into_iter().for_each(|open| open.fail(errno));
                self.backend.unlisten(key);
            }
        }
    }

    fn rest(&mut self, key: PortKey) {
        let backoff = self.table.limits.accept_backoff;
        self.reactor.schedule_key(backoff, TimerCall::AcceptAgain(key));
    }

    pub(super) fn accept_again(&mut self, key: PortKey) {
        if self.ports.get(&key).is_some_and(|open| !open.port.is_stopped()) {
            self.backend.accept_again(key);
        }
    }

    fn log_accept_failure(&mut self, key: PortKey, errno: Errno, remedy: &str) {
        if let Some(open) = self.ports.get_mut(&key) {
            open.log_failure(self.reactor.core.clock.now(), &errno.to_string(), remedy);
        }
    }
}

/// Who a peer is, for whoever asks.
fn ask_peer(sockets: &mut dyn Sockets, id: ConnId) -> impl FnMut() -> Address {
    move || sockets.peer_address(id).unwrap_or(Address::Unknown)
}
