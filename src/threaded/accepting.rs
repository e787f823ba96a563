//! Listening ports of the main thread, and what becomes of those who come to them.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Instant,
};

use super::{
    Main,
    connection::{Parts, ThreadConnection},
    host::Built,
    hosts::Hold,
    shared::{Duty, Note, Shared},
};
use crate::{
    backend::{
        accept::{AcceptDecision, decide},
        threads::Wire,
    },
    driver::{Driver, MORE_DESCRIPTORS, OpenPort, admit, equip, tell_done},
    error::{Errno, Error},
    factory::Peer,
    host::drop_quietly,
    id::{HostKey, PortKey},
    network::Listening,
    policies::{Guard, Place, Verdict},
    port::Port,
    reactor::{State, TimerCall},
    stats::{Count, Syscall},
    sys,
};

/// Connections that one port accepts before others get their turn.
const ACCEPTS_A_TURN: usize = 64;
/// What to do where peers are turned away for want of threads.
const MORE_THREADS: &str =
    "the peer is turned away; raise `ulimit -u` or vm.max_map_count, or choose another backend";

/// Ports.
impl Main {
    pub(super) fn open_port(&mut self, port: Port) {
        if self.stopping || port.is_stopped() {
            return tell_done(&port, &self.shared.reactor, None);
        }
        let Some(listener) = port.listener().and_then(Listening::socket) else { return };
        if let Err(error) = self.use_hosts(&port) {
            log::error!("{error}; ({} Closed)", port.label());
            tell_done(&port, &self.shared.reactor, Some(&error));
            self.fail_start(error);
            return;
        }
        self.doors.open(port.key(), listener);
        self.ports.insert(port.key(), OpenPort::new(port));
    }

    /// A factory that cannot start ends a reactor that is only just starting: nothing would listen.
    fn fail_start(&mut self, error: Error) {
        if self.starting && self.ports.is_empty() && self.core().change_state(State::Running, State::Stopping)
        {
            self.failed = Some(error);
        }
    }

    /// Accepts no more, at any port.
    pub(super) fn shut_all_ports(&mut self) {
        for (key, open) in &self.ports {
            open.port.shut();
            self.doors.close(*key);
        }
    }

    pub(super) fn all_ports_closed(&mut self) {
        let keys: Vec<_> = self.ports.keys().copied().collect();
        keys.into_iter().for_each(|key| self.port_closed(key, None));
    }

    /// A port accepts no more, and has ended once all it has let in have a protocol.
    pub(super) fn stop_port(&mut self, key: PortKey) {
        self.doors.close(key);
        let empty = self.ports.get(&key).is_some_and(|open| open.guests.load(SeqCst) == 0);
        if empty && !self.stopping {
            self.port_closed(key, None);
        }
    }

    pub(super) fn port_closed(&mut self, key: PortKey, error: Option<&Error>) {
        let Some(open) = self.ports.remove(&key) else { return };
        self.doors.close(key);
        log::info!("({} Closed)", open.port.label());
        self.release_host(open.port.host());
        open.port.overflow().into_iter().for_each(|overflow| self.release_host(overflow));
        open.end(&self.shared.reactor, error);
    }
}

/// Accepting.
impl Main {
    /// Lets in those who wait at a port.
    pub(super) fn accept(&mut self, key: PortKey) {
        for _ in 0..ACCEPTS_A_TURN {
            match self.doors.accept(key, &self.counters) {
                Some(Ok(socket)) => self.accepted(key, socket),
                Some(Err(errno)) => {
                    if !self.accept_failed(key, errno) {
                        return;
                    }
                }
                None => return,
            }
        }
    }

    fn accepted(&mut self, key: PortKey, socket: OwnedFd) {
        self.counters.add(Count::Accepted, 1);
        let Some(open) = self.ports.get(&key) else { return };
        let Some((host, places)) = self.admit(&open.port, &socket) else {
            self.counters.add(Count::RefusedByPolicy, 1);
            self.counters.call(Syscall::Close);
            return;
        };
        let Some(hosted) = self.hosted(host) else { return };
        let (guest, shared) = (Guest::new(&self.shared, open), Arc::clone(&self.shared));
        let hold = Hold::new(&shared, &hosted);
        let started = self.shared.start(move |duty| {
            welcome(&shared, hold, guest, socket, duty);
            drop(places);
        });
        if let Err(error) = started {
            // The socket is closed already: it went with the work that could not be started.
            self.counters.call(Syscall::Close);
            self.counters.add(Count::RefusedThreads, 1);
            self.log_accept_failure(key, &error.to_string(), MORE_THREADS);
        }
    }

    /// Asks the accept policies about a peer: which factory is to serve it, and what was taken for it; None if it is refused.
    fn admit(&self, port: &Port, socket: &OwnedFd) -> Option<(HostKey, Vec<Place>)> {
        let Some(guard) = port.guard() else { return Some((port.host(), Vec::new())) };
        let mut ask = || sys::peer_address(socket.as_fd()).into();
        match admit(guard, &mut Peer::new(&mut ask)) {
            Verdict::Admitted(places) => Some((port.host(), places)),
            Verdict::Overflow(host, places) => {
                self.counters.add(Count::Overflowed, 1);
                Some((host, places))
            }
            Verdict::Refused => None,
        }
    }

    /// Answers whether to accept the next one at once.
    fn accept_failed(&mut self, key: PortKey, errno: Errno) -> bool {
        if self.ports.get(&key).is_none_or(|open| open.port.is_stopped()) {
            self.doors.close(key);
            return false;
        }
        let decision = decide(errno);
        match decision {
            AcceptDecision::Next => {}
            AcceptDecision::Shed => {
                self.log_accept_failure(key, &errno.to_string(), MORE_DESCRIPTORS);
                let shed = self.doors.shed(key, &self.counters);
                self.counters.add(Count::RefusedDescriptors, shed as u64);
                self.rest(key);
            }
            AcceptDecision::Rest => {
                self.log_accept_failure(key, &errno.to_string(), "accepting rests");
                self.rest(key);
            }
            AcceptDecision::Over => {
                self.log_accept_failure(key, &errno.to_string(), "the port is closed");
                let error = Error::System { doing: "accepting", cause: errno.into() };
                self.port_closed(key, Some(&error));
            }
        }
        decision == AcceptDecision::Next
    }

    fn rest(&mut self, key: PortKey) {
        self.doors.close(key);
        let backoff = self.shared.limits().accept_backoff;
        self.shared.reactor.schedule_key(backoff, TimerCall::AcceptAgain(key));
    }

    pub(super) fn accept_again(&mut self, key: PortKey) {
        if let Some(open) = self.ports.get(&key).filter(|open| !open.port.is_stopped()) {
            let listener = open.port.listener().and_then(Listening::socket);
            listener.into_iter().for_each(|listener| self.doors.open(key, listener));
        }
    }

    fn log_accept_failure(&mut self, key: PortKey, cause: &str, remedy: &str) {
        if let Some(open) = self.ports.get_mut(&key) {
            open.log_failure(self.now, cause, remedy);
        }
    }
}

/// A peer that a port has let in and that has no protocol yet. The last one of a port that was stopped lets it end.
struct Guest {
    shared: Arc<Shared>,
    port: Port,
    guests: Arc<AtomicUsize>,
}

impl Guest {
    fn new(shared: &Arc<Shared>, open: &OpenPort) -> Self {
        open.guests.fetch_add(1, SeqCst);
        Self { shared: Arc::clone(shared), port: open.port.clone(), guests: Arc::clone(&open.guests) }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // A port is marked as stopped before its guests are counted, so that one of us sees what the other did.
        if self.guests.fetch_sub(1, SeqCst) == 1 && self.port.is_stopped() {
            self.shared.note(Note::NoGuests(self.port.key()));
        }
    }
}

/// The life of the thread of an accepted connection.
fn welcome(shared: &Arc<Shared>, hold: Hold, guest: Guest, socket: OwnedFd, duty: &mut Duty) {
    let wire = Wire::new(socket, shared.reactor.core.counters.branch());
    let guard = guest.port.guard().map(|guard| &**guard);
    let made = make(shared, &hold, wire, guard, &|| !guest.port.turns_away(), duty);
    drop(guest);
    match made {
        Made::Connection(connection) => drop_quietly(connection.serve(duty, None)),
        Made::Refused(wire) => wire.counters().add(Count::RefusedByFactory, 1),
        Made::Stopped(wire) => wire.counters().add(Count::RefusedStopped, 1),
    }
}

/// What became of a socket.
pub(super) enum Made {
    Connection(Arc<ThreadConnection>),
    /// The factory does not want it.
    Refused(Wire),
    /// Nobody wants it any more.
    Stopped(Wire),
}

/// Has the factory build a protocol for a socket, and makes a connection of both.
pub(super) fn make(
    shared: &Arc<Shared>,
    hold: &Hold,
    wire: Wire,
    guard: Option<&Guard>,
    wanted: &dyn Fn() -> bool,
    duty: &mut Duty,
) -> Made {
    let mut ask = || sys::peer_address(wire.as_fd()).into();
    let mut peer = Peer::new(&mut ask);
    let Some(equipment) = equip(guard, &mut peer) else { return Made::Refused(wire) };
    let built = Arc::clone(&hold.hosted.host).build(&mut peer, wanted);
    let peer = peer.answer();
    shared.call_factory(&hold.hosted, duty);
    let protocol = match built {
        Built::Protocol(protocol) => protocol,
        Built::Refused => return Made::Refused(wire),
        Built::Unwanted => return Made::Stopped(wire),
    };
    let (shared, hosted) = (Arc::clone(shared), Arc::clone(&hold.hosted));
    match shared.clone().table.insert(Parts { shared, hosted, protocol, wire, peer }) {
        Ok(connection) => {
            if guard.is_some() {
                connection.lock().connection.equip(Instant::now(), equipment);
            }
            Made::Connection(connection)
        }
        Err(Parts { protocol, wire, .. }) => {
            protocol.forget();
            Made::Stopped(wire)
        }
    }
}
