//! Connection attempts of a loop, from `connect` to made or failed.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
};

use super::EventLoop;
use crate::{
    address::Address,
    connector::{Attempt, Connector, Destination},
    driver::Driver,
    error::{Errno, Error},
    host::FactoryEvent,
    id::ConnId,
    network::Owner,
    reactor::{Reactor, TimerCall},
    reason::{ConnectError, Reason},
    resolve,
    stats::Count,
    sys::{self, ClientSocketError, Name, Socket},
    table::Stage,
    timer::TimerKey,
};

/// The attempts under way, by connector.
#[derive(Default)]
pub(super) struct Attempts(HashMap<usize, Underway>);

/// One attempt: the addresses still to be tried, and why the last one failed.
struct Underway {
    connector: Connector,
    attempt: Attempt,
    addresses: VecDeque<Address>,
    /// The one that is being tried.
    trying: Option<Address>,
    failure: Option<ConnectError>,
    timeout: TimerKey,
    socket: Option<ConnId>,
}

impl EventLoop {
    pub(super) fn begin_connecting(&mut self, connector: Connector) {
        let (host, attempt) = (connector.host(), connector.attempt());
        if self.stopping {
            connector.set_disconnected();
            return self.release_connector(&connector);
        }
        if !connector.set_counted(true)
            && let Err(error) = self.use_host(host)
        {
            return self.could_not_start(&connector, error);
        }
        let _ = self.tell_factory(host, FactoryEvent::StartedConnecting(&connector));
        let options = connector.options();
        let timeout = TimerCall::ConnectTimeout(connector.clone(), attempt);
        let underway = Underway {
            timeout: self.reactor.schedule_key(options.timeout, timeout),
            connector: connector.clone(),
            attempt,
            addresses: VecDeque::new(),
            trying: None,
            failure: None,
            socket: None,
        };
        self.attempts.0.insert(connector.key(), underway);
        match &options.destination {
            Destination::Address(address) => self.resolved(&connector, attempt, Ok(vec![address.clone()])),
            Destination::Name(name, port) => {
                resolve::start(&self.reactor, &connector, attempt, name.clone(), *port);
            }
            Destination::Adopted => self.adopt(&connector, attempt),
        }
    }

    /// A connection that somebody else has made.
    fn adopt(&mut self, connector: &Connector, attempt: Attempt) {
        if let Some(socket) = connector.take_adopted()
            && let Some(id) = self.insert_attempt(connector, attempt)
        {
            let unix = sys::local_address(socket.as_fd()).is_some_and(|address| address.unix().is_some());
            self.backend.adopt(id, Socket::Fd(socket));
            if unix {
                self.backend.is_unix(id);
            }
            self.connected(id, None);
        }
    }

    /// A place in the table for what an attempt connects.
    fn insert_attempt(&mut self, connector: &Connector, attempt: Attempt) -> Option<ConnId> {
        let host = connector.host();
        let slot = self.host_slots.get(&host).copied()?;
        let id = self.insert(host, slot, Stage::Connecting);
        self.table.get(id)?.set_connector(connector.clone(), attempt);
        self.underway(connector, attempt)?.socket = Some(id);
        Some(id)
    }

    /// The factory is told, though it has not started: only it can know what to do now.
    fn could_not_start(&mut self, connector: &Connector, error: Error) {
        log::error!("{error}; not connecting to {}", connector.get_destination());
        connector.set_counted(false);
        connector.set_disconnected();
        let error = ConnectError::StartFactory(error.to_string());
        let _ = self.tell_factory(connector.host(), FactoryEvent::ConnectFailed(connector, &error));
    }

    pub(super) fn resolved(
        &mut self,
        connector: &Connector,
        attempt: Attempt,
        addresses: io::Result<Vec<Address>>,
    ) {
        let Some(underway) = self.underway(connector, attempt) else { return };
        match addresses {
            Ok(addresses) => {
                underway.addresses = addresses.into();
                self.try_next(connector);
            }
            Err(error) => self.connect_failed(connector, ConnectError::Resolve(error)),
        }
    }

    fn underway(&mut self, connector: &Connector, attempt: Attempt) -> Option<&mut Underway> {
        let underway = self.attempts.0.get_mut(&connector.key())?;
        (underway.attempt == attempt).then_some(underway)
    }

    /// Tries the next address, or gives up with what stopped the last one.
    fn try_next(&mut self, connector: &Connector) {
        let Some(underway) = self.attempts.0.get_mut(&connector.key()) else { return };
        let Some(address) = underway.addresses.pop_front() else {
            let no_address = || ConnectError::Resolve(io::Error::other("the name has no address"));
            let failure = underway.failure.take().unwrap_or_else(no_address);
            return self.connect_failed(connector, failure);
        };
        let attempt = underway.attempt;
        underway.trying = Some(address.clone());
        match client_socket(&self.reactor, &address, connector.options().bind) {
            Ok(socket) => {
                let Some(id) = self.insert_attempt(connector, attempt) else { return };
                match socket {
                    ClientSocket::Kernel(socket, name) => self.backend.connect(id, socket, &name),
                    ClientSocket::Memory(socket) => self.backend.adopt(id, socket),
                }
                if address.unix().is_some() {
                    self.backend.is_unix(id);
                }
            }
            Err(error) => {
                underway.failure = Some(match error {
                    ClientSocketError::Bind(local, errno) => ConnectError::Bind(local, errno),
                    ClientSocketError::Other(errno) => ConnectError::from_errno(errno),
                });
                self.try_next(connector);
            }
        }
    }

    pub(super) fn connected(&mut self, id: ConnId, errno: Option<Errno>) {
        let Some(entry) = self.table.get(id).filter(|entry| entry.stage == Stage::Connecting) else {
            return;
        };
        let Some((connector, attempt)) = entry.connector().cloned() else { return };
        match errno {
            Some(errno) => {
                self.close(id, false);
                if let Some(underway) = self.underway(&connector, attempt) {
                    underway.socket = None;
                    underway.failure = Some(ConnectError::from_errno(errno));
                    self.try_again_or_next(&connector, attempt, errno);
                }
            }
            None => self.connection_made(id, &connector),
        }
    }

    /// The backlog of a Unix socket may be full, and have room again soon.
    fn try_again_or_next(&mut self, connector: &Connector, attempt: Attempt, errno: Errno) {
        let Some(underway) = self.underway(connector, attempt) else { return };
        let again = underway.trying.take().filter(|address| sys::is_full_backlog(address, errno));
        if let Some(address) = again {
            underway.addresses.push_front(address);
            let call = TimerCall::ConnectAgain(connector.clone(), attempt);
            self.reactor.schedule_key(sys::FULL_BACKLOG_PAUSE, call);
        } else {
            self.try_next(connector);
        }
    }

    pub(super) fn connect_again(&mut self, connector: &Connector, attempt: Attempt) {
        if self.underway(connector, attempt).is_some() {
            self.try_next(connector);
        }
    }

    fn connection_made(&mut self, id: ConnId, connector: &Connector) {
        if !connector.set_connected(Some(id)) {
            return self.connect_failed(connector, ConnectError::User);
        }
        if let Some(underway) = self.attempts.0.remove(&connector.key()) {
            let _ = self.core().timers().remove(underway.timeout);
        }
        self.counters.add(Count::Connected, 1);
        match self.build(id, connector.guard().as_deref()) {
            true => self.made(id),
            false => {
                self.counters.add(Count::RefusedByFactory, 1);
                self.close(id, false);
                self.connector_lost(connector, &Reason::Done);
            }
        }
    }

    pub(super) fn connect_timed_out(&mut self, connector: &Connector, attempt: Attempt) {
        self.give_up(connector, attempt, ConnectError::TimedOut);
    }

    pub(super) fn stop_connecting(&mut self, connector: &Connector, attempt: Attempt) {
        self.give_up(connector, attempt, ConnectError::User);
    }

    fn give_up(&mut self, connector: &Connector, attempt: Attempt, error: ConnectError) {
        if self.underway(connector, attempt).is_some() {
            self.connect_failed(connector, error);
        }
    }

    pub(super) fn fail_all_attempts(&mut self) {
        let connectors: Vec<_> = self.attempts.0.values().map(|u| u.connector.clone()).collect();
        for connector in connectors {
            self.connect_failed(&connector, ConnectError::Shutdown);
        }
    }

    fn connect_failed(&mut self, connector: &Connector, error: ConnectError) {
        let Some(underway) = self.attempts.0.remove(&connector.key()) else { return };
        let _ = self.core().timers().remove(underway.timeout);
        if let Some(id) = underway.socket {
            self.close(id, false);
        }
        self.counters.add(Count::ConnectFailed, 1);
        connector.set_disconnected();
        let _ = self.tell_factory(connector.host(), FactoryEvent::ConnectFailed(connector, &error));
        self.release_connector(connector);
    }

    /// The protocol has been told; now the factory is (K3).
    pub(super) fn connector_lost(&mut self, connector: &Connector, reason: &Reason) {
        connector.set_disconnected();
        let _ = self.tell_factory(connector.host(), FactoryEvent::ConnectLost(connector, reason));
        self.release_connector(connector);
    }
}

/// A socket to be connected.
enum ClientSocket {
    /// To this name.
    Kernel(OwnedFd, Name),
    /// By itself.
    Memory(Socket),
}

fn client_socket(
    reactor: &Reactor,
    address: &Address,
    bind: Option<SocketAddr>,
) -> Result<ClientSocket, ClientSocketError> {
    if let Some(network) = &reactor.core.network {
        let place = network.connect(Owner::Reactor, address, bind.map(Into::into));
        return Ok(ClientSocket::Memory(Socket::Direct(place)));
    }
    sys::client_socket(address, bind).map(|(socket, name)| ClientSocket::Kernel(socket, name))
}
