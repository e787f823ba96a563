//! Listening ports of a loop: opening, accepting, shedding, closing.

use std::time::{Duration, Instant};

use super::EventLoop;
use crate::{
    backend::accept::{AcceptDecision, decide},
    error::{Errno, Error},
    factory::Peer,
    host::{ProtocolEvent, caught},
    id::{ConnId, PortKey},
    port::Port,
    reactor::{State, TimerCall},
    stats::Count,
    sys::{self, Socket},
    table::Stage,
};

/// A failing accept is logged once, and again only after this long.
const QUIET: Duration = Duration::from_secs(60);

/// A port that listens, or whose end the backend has yet to report.
pub(super) struct OpenPort {
    port: Port,
    quiet_until: Option<Instant>,
    /// Why it is about to end, if not because somebody stopped it.
    failure: Option<Error>,
}

impl EventLoop {
    pub(super) fn open_port(&mut self, port: Port) {
        if self.stopping || port.is_stopped() {
            return self.port_done(&port, None);
        }
        let Some(listener) = port.listener() else { return };
        if let Err(error) = self.use_host(port.host()) {
            log::error!("{error}; (TCP Port {} Closed)", port.number());
            self.port_done(&port, Some(&error));
            self.fail_start(error);
            return;
        }
        self.backend.listen(port.key(), listener);
        self.ports.insert(port.key(), OpenPort { port, quiet_until: None, failure: None });
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
            if open.port.mark_stopped() {
                self.backend.unlisten(open.port.key());
            }
        }
    }

    pub(super) fn port_closed(&mut self, key: PortKey, error: Option<&Error>) {
        let Some(OpenPort { port, failure, .. }) = self.ports.remove(&key) else { return };
        log::info!("(TCP Port {} Closed)", port.number());
        self.release_host(port.host());
        self.port_done(&port, error.or(failure.as_ref()));
    }

    fn port_done(&mut self, port: &Port, error: Option<&Error>) {
        for call in port.end(error) {
            let _ = caught(|| call(&self.reactor, error));
        }
    }

    pub(super) fn accepted(&mut self, key: PortKey, socket: Socket) {
        self.counters.add(Count::Accepted, 1);
        let Some(OpenPort { port, .. }) = self.ports.get(&key) else {
            return self.backend.refuse(socket);
        };
        if port.is_stopped() {
            self.counters.add(Count::RefusedStopped, 1);
            return self.backend.refuse(socket);
        }
        let host = port.host();
        let Some(slot) = self.host_slots.get(&host).copied() else {
            return self.backend.refuse(socket);
        };
        let id = self.insert(host, slot, Stage::Connecting);
        self.backend.adopt(id, socket);
        if self.build(id) {
            self.made(id);
        } else {
            self.counters.add(Count::RefusedByFactory, 1);
            self.close(id, false);
        }
    }

    /// Has the factory build the protocol of a connection, which is made by it.
    pub(super) fn build(&mut self, id: ConnId) -> bool {
        let Some(entry) = self.table.get(id) else { return false };
        let host = &mut self.hosts[entry.host_slot as usize].host;
        let sockets = self.backend.sockets();
        let mut ask = || {
            let mut address = None;
            let _ = sockets.lend(id, &mut |fd| address = sys::peer_address(fd));
            address.into()
        };
        let mut peer = Peer::new(&mut ask);
        let Some(protocol) = host.build(&mut peer) else { return false };
        entry.become_made(protocol, host.half_closeable(), peer.answer());
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
                self.log_accept_failure(
                    key,
                    errno,
                    "peers that wait are turned away; raise `ulimit -n` or serve fewer",
                );
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
                if let Some(open) = self.ports.get_mut(&key) {
                    open.failure = Some(Error::System { doing: "accepting", cause: errno.into() });
                }
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
        let now = self.now;
        let Some(open) = self.ports.get_mut(&key) else { return };
        if open.quiet_until.is_none_or(|until| now >= until) {
            let (factory, port) = (open.port.factory_name(), open.port.number());
            log::error!("{factory} on {port} could not accept a connection: {errno}; {remedy}");
        }
        open.quiet_until = Some(now + QUIET);
    }
}
