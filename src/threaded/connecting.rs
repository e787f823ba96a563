//! Connection attempts: begun on the main thread, made on the thread that the connection will have.

use std::{io, sync::Arc, time::Instant};

use super::{
    Main,
    accepting::{Made, make},
    hosts::Hold,
    shared::{Duty, Note, Shared},
};
use crate::{
    backend::threads::{
        Wire,
        dial::{Connected, Dial},
    },
    connector::{Attempt, Connector, Destination},
    driver::Driver,
    error::{Errno, Error},
    host::{FactoryEvent, drop_quietly},
    reactor::Command,
    reason::{ConnectError, Reason},
    resolve,
    stats::{Branch, Count},
    timer::deadline_after,
};

/// An attempt under way, by which the main thread can reach it.
pub(super) struct Underway {
    attempt: Attempt,
    pub(super) dial: Arc<Dial>,
}

impl Main {
    pub(super) fn begin_connecting(&mut self, connector: Connector) {
        let host = connector.host();
        if self.stopping {
            connector.set_disconnected();
            return self.release_connector(&connector);
        }
        if !connector.set_counted(true)
            && let Err(error) = self.use_host(host)
        {
            return self.could_not_start(&connector, &error);
        }
        let Some(hosted) = self.hosted(host) else { return };
        let (attempt, dial) = (connector.attempt(), Arc::new(Dial::default()));
        let underway = Underway { attempt, dial: Arc::clone(&dial) };
        self.attempts.insert(connector.key(), underway);
        let try_it = Try {
            hold: Hold::new(&self.shared, &hosted),
            shared: Arc::clone(&self.shared),
            connector: connector.clone(),
            attempt,
            deadline: deadline_after(Instant::now(), connector.options().timeout),
        };
        match self.shared.start(move |duty| try_it.run(&dial, duty)) {
            Ok(()) => self.look_up(&connector, attempt),
            Err(error) => self.cannot_try(&connector, attempt, &error),
        }
    }

    /// The factory is told, though it has not started: only it can know what to do now.
    fn could_not_start(&mut self, connector: &Connector, error: &Error) {
        log::error!("{error}; not connecting to {}", connector.get_destination());
        connector.set_counted(false);
        connector.set_disconnected();
        let error = ConnectError::StartFactory(error.to_string());
        let _ = self.tell_factory(connector.host(), FactoryEvent::ConnectFailed(connector, &error));
    }

    fn look_up(&mut self, connector: &Connector, attempt: Attempt) {
        let options = connector.options();
        match &options.destination {
            Destination::Address(address) => {
                let addresses = Ok(vec![address.clone()]);
                self.with_attempt(connector, attempt, |dial| dial.resolved(addresses));
            }
            Destination::Name(name, port) => {
                let (name, port) = (name.clone(), *port);
                resolve::start(&self.shared.reactor, connector, attempt, name, port);
            }
            Destination::Adopted => {}
        }
    }

    /// No thread could be started for an attempt, so its factory is told on this one.
    fn cannot_try(&mut self, connector: &Connector, attempt: Attempt, error: &io::Error) {
        self.attempt_ended(connector, attempt);
        self.counters.add(Count::ConnectFailed, 1);
        connector.set_disconnected();
        let error = ConnectError::Errno(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EAGAIN)));
        let _ = self.tell_factory(connector.host(), FactoryEvent::ConnectFailed(connector, &error));
        self.release_connector(connector);
    }

    pub(super) fn with_attempt(&self, connector: &Connector, attempt: Attempt, act: impl FnOnce(&Dial)) {
        let underway = self.attempts.get(&connector.key());
        if let Some(underway) = underway.filter(|underway| underway.attempt == attempt) {
            act(&underway.dial);
        }
    }

    pub(super) fn attempt_ended(&mut self, connector: &Connector, attempt: Attempt) {
        if self.attempts.get(&connector.key()).is_some_and(|underway| underway.attempt == attempt) {
            self.attempts.remove(&connector.key());
        }
    }

    pub(super) fn connector_ended(&mut self, connector: &Connector, attempt: Attempt) {
        // Of a later attempt there will be a note of its own, when its factory has had its say.
        if connector.attempt() == attempt {
            self.release_connector(connector);
        }
    }
}

/// An attempt, as its thread makes it.
struct Try {
    shared: Arc<Shared>,
    hold: Hold,
    connector: Connector,
    attempt: Attempt,
    deadline: Instant,
}

impl Try {
    /// The life of the thread: the attempt, and the connection if there is one.
    fn run(self, dial: &Dial, duty: &mut Duty) {
        self.tell_factory(duty, FactoryEvent::StartedConnecting(&self.connector));
        let counters = self.shared.reactor.core.counters.branch();
        let connected = match self.connector.take_adopted() {
            Some(socket) => dial.adopt(socket),
            None => dial.run(self.connector.options().bind, self.deadline, &counters),
        };
        match connected {
            Ok(Connected { socket, reset }) => self.connected(Wire::new(socket, counters), reset, duty),
            Err(error) => self.failed(&error, &counters, duty),
        }
        // What may drop the connector, and so forget its factory, comes after all that needs it.
        self.shared.note(Note::ConnectorEnded(self.connector.clone(), self.attempt));
    }

    fn connected(&self, wire: Wire, reset: Option<Errno>, duty: &mut Duty) {
        if !self.connector.set_connected(None) {
            return self.failed(&ConnectError::User, wire.counters(), duty);
        }
        wire.counters().add(Count::Connected, 1);
        self.ended();
        let guard = self.connector.guard();
        match make(&self.shared, &self.hold, wire, guard.as_deref(), &|| true, duty) {
            Made::Connection(connection) => {
                if !self.connector.set_connection(connection.id()) {
                    self.shared.reactor.push(Command::Disconnect(connection.id()));
                }
                let reason = connection.serve(duty, reset);
                drop(connection);
                self.lost(&reason, duty);
                drop_quietly(reason);
            }
            Made::Refused(wire) => {
                wire.counters().add(Count::RefusedByFactory, 1);
                drop(wire);
                self.lost(&Reason::Done, duty);
            }
            Made::Stopped(wire) => self.failed(&ConnectError::Shutdown, wire.counters(), duty),
        }
    }

    fn failed(&self, error: &ConnectError, counters: &Branch, duty: &mut Duty) {
        counters.add(Count::ConnectFailed, 1);
        self.connector.set_disconnected();
        self.tell_factory(duty, FactoryEvent::ConnectFailed(&self.connector, error));
        self.ended();
    }

    /// The protocol has been told; now the factory is (K3).
    fn lost(&self, reason: &Reason, duty: &mut Duty) {
        self.connector.set_disconnected();
        self.tell_factory(duty, FactoryEvent::ConnectLost(&self.connector, reason));
    }

    fn ended(&self) {
        self.shared.note(Note::AttemptEnded(self.connector.clone(), self.attempt));
    }

    fn tell_factory(&self, duty: &mut Duty, event: FactoryEvent<'_>) {
        let _ = self.shared.tell_factory(&self.hold.hosted, duty, event);
    }
}
