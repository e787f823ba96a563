//! The joint of the threads backend: a thread for each connection, and the main thread, which does
//! for all of them what no connection can do for itself.
//!
//! The main thread, the one that called `run`, accepts, runs timers and queued calls, starts and
//! stops factories, and minds signals. A connection's own thread receives, calls the protocol and
//! sends. What else a connection is told, a timer, a post, that there is room to write again, is
//! told by its own thread if that is awake, and else by whoever has it to tell
//! (`threaded/connection.rs` has the rules).
//!
//! So a `data_received` may take as long as it likes: it holds up its own connection, and, from its
//! first use of `cx.factory` on, those who need the same factory: protocols that use it, new
//! connections, its `stop_factory`. Its timed calls wait without holding up a thread. What runs on the main
//! thread (timers and posts of connections that sleep, calls from threads, foreign descriptors, the factory's callbacks) and on the
//! sender's (`resume_writing`, and `pause_writing` after it) had better be quick, as on a loop.
//!
//! Locks are taken in this order: protocol, factory, and then those under which no user code runs:
//! a connection's state, and one of the table and the queues.

mod accepting;
mod connecting;
mod connection;
mod datagrams;
mod descriptors;
mod host;
mod hosts;
mod link;
mod shared;

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    backend::threads::doors::Doors,
    driver::{Driver, OpenPort, WAIT_MAX, call_triggers, end_by_stop, make_call},
    error::Error,
    host::{FactoryEvent, drop_quietly},
    id::{ConnId, HostKey, PortKey},
    reactor::{Command, Core, Reactor, State, TimerCall},
    reason::ConnectError,
    stats::{Branch, Count},
    system_event::{Phase, SystemEvent},
    timer::Due,
    watches::Watches,
};

pub(crate) use self::host::{ThreadHost, ThreadedFactory};
use self::{
    connecting::Underway,
    datagrams::DatagramPort,
    hosts::HostSlot,
    shared::{Duty, Mail, Note, Shared},
};

/// The main thread of one reactor.
struct Main {
    shared: Arc<Shared>,
    duty: Duty,
    counters: Branch,
    doors: Doors,
    /// Ports at which peers wait.
    ready: Vec<PortKey>,
    hosts: HashMap<HostKey, HostSlot>,
    ports: HashMap<PortKey, OpenPort>,
    attempts: HashMap<usize, Underway>,
    datagrams: HashMap<PortKey, Arc<DatagramPort>>,
    watches: Watches,
    now: Instant,
    /// The commands from before `run` are being carried out.
    starting: bool,
    stopping: bool,
    failed: Option<Error>,
    commands: VecDeque<Command>,
}

/// Who makes a timed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Connection(ConnId),
    Factory(HostKey),
    Datagrams(PortKey),
    Main,
}

/// Runs a reactor until it is stopped and all its threads are gone.
pub(crate) fn run(reactor: Reactor) -> Result<(), Error> {
    let core = Arc::clone(&reactor.core);
    let _here = core.run_here();
    let shared = Shared::new(reactor).map_err(Error::system("making the sender's epoll instance"))?;
    let shared = Arc::new(shared);
    let sender = shared.start_sender().map_err(Error::system("starting the sender's thread"))?;
    let mut main = Main {
        duty: Duty::new(&shared),
        counters: core.counters.branch(),
        doors: Doors::new(Arc::clone(&core.waker)),
        shared: Arc::clone(&shared),
        ready: Vec::new(),
        hosts: HashMap::new(),
        ports: HashMap::new(),
        attempts: HashMap::new(),
        datagrams: HashMap::new(),
        watches: Watches::default(),
        now: Instant::now(),
        starting: true,
        stopping: false,
        failed: None,
        commands: VecDeque::new(),
    };
    let ended = main.run();
    shared.sender.stop(&main.counters);
    let _ = sender.join();
    ended
}

impl Main {
    fn run(&mut self) -> Result<(), Error> {
        self.run_commands();
        self.starting = false;
        while !self.is_over() {
            if let Err(error) = self.turn() {
                self.collapse(Error::System { doing: "waiting for the kernel", cause: error });
                break;
            }
        }
        self.shared.crew.join();
        // A connector that its factory told to connect again, as the last thread did, is among them.
        self.run_commands();
        self.hosts.drain().for_each(drop_quietly);
        self.failed.take().map_or(Ok(()), Err)
    }

    /// The kernel has failed the main thread itself: everybody is told, then it is over.
    fn collapse(&mut self, error: Error) {
        log::error!("{error}; the reactor ends");
        self.core().change_state(State::Running, State::Stopping);
        self.core().system_events.give_up_hope();
        self.mind_stop();
        self.shared.crew.wait_until_empty();
        self.run_notes();
        let ports: Vec<_> = self.ports.keys().copied().collect();
        ports.into_iter().for_each(|port| self.port_closed(port, Some(&error)));
        self.failed = Some(error);
    }

    fn turn(&mut self) -> io::Result<()> {
        self.now = Instant::now();
        let timers_left = self.run_timers();
        self.run_commands();
        self.mind_signals();
        self.mind_stop();
        if self.is_over() {
            return Ok(());
        }
        let timeout = if timers_left { Duration::ZERO } else { self.timeout() };
        self.counters.add(Count::Waits, 1);
        self.doors.wait(timeout, &self.counters, &mut self.ready)?;
        self.now = Instant::now();
        while let Some(port) = self.ready.pop() {
            self.accept(port);
        }
        self.call_ready_descriptors();
        Ok(())
    }

    /// Whether nothing is left of a reactor that was stopped.
    fn is_over(&self) -> bool {
        // Asked in this order: a thread leaves its notes before it ends.
        let threads_ended = self.stopping && self.ports.is_empty() && self.shared.crew.is_empty();
        threads_ended && !self.shared.has_notes()
    }

    fn core(&self) -> &Core {
        &self.shared.reactor.core
    }

    fn timeout(&self) -> Duration {
        let calls = self.core().next_call();
        let next = self.shared.deadlines.sleep_until(calls);
        // Asked after it was said until when the sleep is to last: what comes now wakes it.
        let stop = !self.stopping && self.stop_is_due();
        if stop || self.core().has_commands() || self.shared.has_notes() {
            return Duration::ZERO;
        }
        next.map_or(WAIT_MAX, |next| next.saturating_duration_since(Instant::now()).min(WAIT_MAX))
    }

    /// Begins to stop, once: ports accept no more, attempts fail, connections are lost. Ports are
    /// reported closed, and factories stopped, when the last connection's thread has ended.
    fn mind_stop(&mut self) {
        if !self.stopping && !self.begin_stop() {
            return;
        }
        if !std::mem::replace(&mut self.stopping, true) {
            self.shut_all_ports();
            self.close_all_datagrams();
            self.attempts.values().for_each(|underway| underway.dial.give_up(ConnectError::Shutdown));
            self.lose_descriptors();
            let drain_until = self.drain_until();
            for connection in self.shared.table.close() {
                connection.change(&mut self.duty, |state| end_by_stop(state, drain_until));
            }
            self.duty.run_errands();
            call_triggers(&self.shared.reactor, SystemEvent::Shutdown, Phase::During);
        }
        if self.shared.crew.is_empty() {
            self.all_ports_closed();
        }
    }
}

impl Driver for Main {
    fn reactor(&self) -> &Reactor {
        &self.shared.reactor
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn is_stopping(&self) -> bool {
        self.stopping
    }

    fn spare_queue(&mut self) -> &mut VecDeque<Command> {
        &mut self.commands
    }

    fn run_deadlines(&mut self) {
        for id in self.shared.deadlines.due(self.now) {
            if let Some(connection) = self.shared.table.get(id) {
                connection.deadline_passed(self.now, &mut self.duty);
            }
        }
        self.duty.run_errands();
    }

    /// What is for a protocol or a factory stays in the queue, where it can be cancelled, until that
    /// can be called.
    fn call_due(&mut self, due: Due) {
        let mut timers = self.shared.reactor.core.timers();
        let owner = match timers.get(due) {
            Some(TimerCall::Connection(id, _)) => Owner::Connection(*id),
            Some(TimerCall::Factory(host, _)) => Owner::Factory(*host),
            Some(TimerCall::Datagrams(port, _)) => Owner::Datagrams(*port),
            _ => Owner::Main,
        };
        let call = (owner == Owner::Main).then(|| timers.take(due)).flatten();
        drop(timers);
        match (owner, call) {
            (Owner::Connection(id), _) => self.mail(id, Mail::Timer(due)),
            (Owner::Factory(host), _) => self.call_factory(host, due),
            (Owner::Datagrams(port), _) => self.call_datagrams_later(port, due),
            (_, Some(TimerCall::Reactor(call))) => make_call(&self.shared.reactor, call),
            (_, Some(TimerCall::AcceptAgain(port))) => self.accept_again(port),
            (_, Some(TimerCall::CheckDescriptors)) => self.check_descriptors(),
            _ => {}
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Call(call) => make_call(&self.shared.reactor, call),
            Command::AddHost(key, name, seed) => self.add_host(key, name, seed),
            Command::SetHooks(key, hooks) => self.set_hooks(key, hooks),
            Command::ForgetHost(key) => self.forget_host(key),
            Command::Listen(port) => self.open_port(port),
            Command::StopListening(port) => {
                self.stop_port(port);
                self.close_datagrams(port);
            }
            Command::Connect(connector) => self.begin_connecting(connector),
            Command::Resolved(connector, attempt, addresses) => {
                self.with_attempt(&connector, attempt, |dial| dial.resolved(addresses));
            }
            Command::StopConnecting(connector, attempt) => {
                self.with_attempt(&connector, attempt, |dial| dial.give_up(ConnectError::User));
            }
            Command::Disconnect(id) => self.disconnect(id),
            Command::Post(id, call) => self.mail(id, Mail::Post(call)),
            Command::OpenDatagrams(port, seed, max) => self.open_datagrams(port, seed, max),
            Command::PostDatagrams(port, call) => self.call_datagrams(port, call),
            Command::AddDescriptor(new) => self.add_descriptor(new),
            Command::MindDescriptor(key) => self.mind_descriptor(key),
        }
    }

    fn use_host(&mut self, key: HostKey) -> Result<(), Error> {
        let Some(slot) = self.hosts.get_mut(&key) else { return Ok(()) };
        slot.users += 1;
        if slot.users > 1 {
            return Ok(());
        }
        let factory = slot.hosted.name;
        log::info!("Starting factory {factory}");
        self.tell_factory(key, FactoryEvent::Start).map_err(|cause| {
            self.hosts.get_mut(&key).into_iter().for_each(|slot| slot.users -= 1);
            Error::StartFactory { factory, cause }
        })
    }

    /// The other end of `use_host`: the last one stops the factory.
    fn release_host(&mut self, key: HostKey) {
        let Some(slot) = self.hosts.get_mut(&key) else { return };
        slot.users -= 1;
        if slot.users == 0 {
            log::info!("Stopping factory {}", slot.hosted.name);
            let _ = self.tell_factory(key, FactoryEvent::Stop);
            self.drop_if_forgotten(key);
        }
    }

    fn run_notes(&mut self) {
        for note in self.shared.take_notes() {
            match note {
                Note::AttemptEnded(connector, attempt) => self.attempt_ended(&connector, attempt),
                Note::ConnectorEnded(connector, attempt) => self.connector_ended(&connector, attempt),
                Note::NoGuests(port) => self.stop_port(port),
                Note::HostIdle(key) => self.drop_if_forgotten(key),
                Note::DatagramsClosed(port) => self.datagrams_closed(&port),
            }
        }
    }
}

/// What the main thread has for the connections' threads.
impl Main {
    fn mail(&mut self, id: ConnId, mail: Mail) {
        if let Some(connection) = self.shared.table.get(id) {
            connection.mail(&mut self.duty, mail);
            self.duty.run_errands();
        } else {
            self.shared.drop_mail(mail);
        }
    }

    fn disconnect(&mut self, id: ConnId) {
        if let Some(connection) = self.shared.table.get(id) {
            connection.change(&mut self.duty, crate::connection::Connection::lose);
            self.duty.run_errands();
        }
    }
}
