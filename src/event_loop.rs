//! The loop behind the io_uring and epoll backends: operations down, events up, timers and calls
//! from other threads in between.
//!
//! One turn: due timers, queued commands, settle what changed (one send a connection), wait,
//! dispatch what happened. `hosts.rs`, `ports.rs`, `connecting.rs` and `descriptors.rs` beside this file hold what happens to
//! factories, to listening ports, to connection attempts and to foreign descriptors.

mod connecting;
mod datagrams;
mod descriptors;
mod hosts;
mod ports;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use slab::Slab;

use crate::{
    backend::{DatagramBatch, Event, Proactor, Sent, watching::Readiness},
    connection::{AnyProducer, Arrival, Filters, Produce, Step},
    driver::{Driver, OpenPort, WAIT_MAX, call_triggers, end_by_stop, make_call},
    error::Error,
    host::{Env, FactoryEvent, Host, Panicked, ProtocolEvent, caught, drop_quietly, tell_filters_lost},
    id::{ConnId, HostKey, PortKey, WatchKey},
    producer,
    reactor::{Command, Core, Reactor, State, TimerCall},
    reason::{Loss, Reason},
    stats::{Count, Counters},
    system_event::{Phase, SystemEvent},
    table::{Entry, LoopLink, Stage, Table},
    timer::{Due, TimerQueue},
    transport::Transport,
    watches::Watches,
};

use self::{connecting::Attempts, datagrams::DatagramPorts};

/// Rounds of settling in one turn: what a callback writes to others goes out in the same turn,
/// but connections that answer each other for ever do not starve the rest.
const SETTLE_ROUNDS: usize = 4;

/// A factory with its protocols, and how many ports and connectors use it.
struct HostSlot {
    key: HostKey,
    name: &'static str,
    host: Box<dyn Host>,
    users: usize,
    connections: usize,
    /// No handle of the program names it any more.
    forgotten: bool,
}

/// One reactor at work.
pub(crate) struct EventLoop {
    reactor: Reactor,
    counters: Arc<Counters>,
    backend: Box<dyn Proactor>,
    /// What a callback has written is sent right after it, not when the turn is over.
    answers_at_once: bool,
    table: Table,
    hosts: Slab<HostSlot>,
    host_slots: BTreeMap<HostKey, usize>,
    ports: BTreeMap<PortKey, OpenPort>,
    datagrams: DatagramPorts,
    attempts: Attempts,
    watches: Watches,
    deadlines: TimerQueue<ConnId>,
    /// When this turn has begun, before its wait: who looks at the time after that asks the clock.
    now: Instant,
    /// The commands from before `run` are being carried out.
    starting: bool,
    stopping: bool,
    failed: Option<Error>,
    commands: VecDeque<Command>,
    settling: Vec<ConnId>,
    /// Connections that have used up this turn's send.
    later: Vec<ConnId>,
}

/// Runs a reactor until it is stopped.
pub(crate) fn run(reactor: Reactor, backend: Box<dyn Proactor>) -> Result<(), Error> {
    let core = Arc::clone(&reactor.core);
    let _here = core.run_here();
    let mut event_loop = EventLoop::new(reactor, backend);
    event_loop.start();
    while event_loop.go_on() {}
    event_loop.end()
}

/// What `run` does, for those who have a say in when the next turn comes.
impl EventLoop {
    pub(crate) fn new(reactor: Reactor, backend: Box<dyn Proactor>) -> Self {
        let core = &reactor.core;
        Self {
            counters: Arc::clone(&core.counters),
            table: Table::new(core),
            answers_at_once: backend.queues_sends(),
            backend,
            hosts: Slab::new(),
            host_slots: BTreeMap::new(),
            ports: BTreeMap::new(),
            datagrams: DatagramPorts::default(),
            attempts: Attempts::default(),
            watches: Watches::default(),
            deadlines: TimerQueue::default(),
            now: core.clock.now(),
            starting: false,
            stopping: false,
            failed: None,
            commands: VecDeque::new(),
            settling: Vec::new(),
            later: Vec::new(),
            reactor,
        }
    }

    /// Carries out what was queued before `run`.
    pub(crate) fn start(&mut self) {
        self.starting = true;
        self.run_commands();
        self.starting = false;
    }

    /// Does one turn; `false` when all is over.
    pub(crate) fn go_on(&mut self) -> bool {
        if self.is_over() {
            return false;
        }
        let turned = self.turn();
        if let Err(error) = turned {
            self.collapse(Error::System { doing: "waiting for the kernel", cause: error });
            return false;
        }
        true
    }

    /// Drops the factories; what the loop failed of, if it did.
    pub(crate) fn end(&mut self) -> Result<(), Error> {
        self.hosts.drain().for_each(drop_quietly);
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Timed calls and deadlines of connections that are still to come.
    pub(crate) fn pending_calls(&self) -> usize {
        self.core().timers().count() + self.deadlines.count()
    }
}

impl EventLoop {
    /// The kernel has failed the loop itself: everybody is told, then it is over.
    fn collapse(&mut self, error: Error) {
        log::error!("{error}; the reactor ends");
        self.core().change_state(State::Running, State::Stopping);
        self.core().system_events.give_up_hope();
        self.mind_stop();
        while self.table.has_dirty() {
            self.settle_dirty();
        }
        let ports: Vec<_> = self.ports.keys().copied().collect();
        for port in ports {
            self.port_closed(port, Some(&error));
        }
        self.collapse_datagrams(&error);
        self.failed = Some(error);
    }

    fn turn(&mut self) -> io::Result<()> {
        self.now = self.core().clock.now();
        let timers_left = self.run_timers();
        self.run_commands();
        self.mind_signals();
        self.mind_stop();
        self.settle_dirty();
        self.send_datagrams();
        if self.is_over() {
            return Ok(());
        }
        let timeout = if timers_left { Duration::ZERO } else { self.timeout() };
        self.counters.add(Count::Waits, 1);
        self.backend.wait(timeout)?;
        self.dispatch_events();
        Ok(())
    }

    /// Whether nothing is left of a loop that was stopped.
    fn is_over(&self) -> bool {
        self.stopping && self.table.is_empty() && self.ports.is_empty() && self.datagrams.are_closed()
    }

    fn core(&self) -> &Core {
        &self.reactor.core
    }

    fn timeout(&mut self) -> Duration {
        let stop = !self.stopping && self.stop_is_due();
        if stop || self.table.has_dirty() || self.datagrams.have_dirty() || self.core().has_commands() {
            return Duration::ZERO;
        }
        let calls = self.core().next_call();
        let next = calls.into_iter().chain(self.deadlines.next_deadline()).min();
        next.map_or(WAIT_MAX, |next| next.saturating_duration_since(self.core().clock.now()).min(WAIT_MAX))
    }

    /// Begins to stop, once: ports close, attempts fail, connections are lost.
    fn mind_stop(&mut self) {
        if self.stopping || !self.begin_stop() {
            return;
        }
        self.stopping = true;
        self.close_all_ports();
        self.close_all_datagrams();
        self.fail_all_attempts();
        self.lose_descriptors();
        let drain_until = self.drain_until();
        for id in self.table.ids(|entry| entry.stage == Stage::Made) {
            if let Some(entry) = self.table.get(id) {
                end_by_stop(&mut entry.connection, drain_until);
            }
            self.table.mark_dirty(id);
        }
        call_triggers(&self.reactor, SystemEvent::Shutdown, Phase::During);
    }
}

impl Driver for EventLoop {
    fn reactor(&self) -> &Reactor {
        &self.reactor
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
        let mark = self.deadlines.mark();
        while let Some(id) = self.deadlines.pop_due(self.now, mark) {
            if let Some(entry) = self.table.get(id) {
                entry.set_deadline(None);
                entry.connection.deadline_passed();
            }
            self.settle(id);
        }
    }

    fn call_due(&mut self, due: Due) {
        let call = self.core().timers().take(due);
        match call {
            Some(TimerCall::Reactor(call)) => make_call(&self.reactor, call),
            Some(TimerCall::Factory(host, call)) => self.call_factory(host, call),
            Some(TimerCall::Connection(id, call)) => self.call_protocol(id, call),
            Some(TimerCall::ConnectAgain(connector, attempt)) => self.connect_again(&connector, attempt),
            Some(TimerCall::ConnectTimeout(connector, attempt)) => {
                self.connect_timed_out(&connector, attempt);
            }
            Some(TimerCall::AcceptAgain(port)) => self.accept_again(port),
            Some(TimerCall::Datagrams(port, call)) => self.call_datagrams(port, call),
            Some(TimerCall::CheckDescriptors) => self.check_descriptors(),
            None => {}
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Call(call) => make_call(&self.reactor, call),
            Command::AddHost(key, name, seed) => self.add_host(key, name, seed),
            Command::SetHooks(key, hooks) => {
                if let Some(slot) = self.host_slots.get(&key) {
                    self.hosts[*slot].host.set_hooks(hooks);
                }
            }
            Command::Listen(port) => self.open_port(port),
            Command::StopListening(port) => {
                self.close_port(port);
                self.datagrams.close(port);
            }
            Command::Connect(connector) => self.begin_connecting(connector),
            Command::Resolved(connector, attempt, addresses) => {
                self.resolved(&connector, attempt, addresses);
            }
            Command::StopConnecting(connector, attempt) => self.stop_connecting(&connector, attempt),
            Command::Disconnect(id) => {
                if let Some(entry) = self.table.get(id) {
                    entry.connection.lose();
                    self.table.mark_dirty(id);
                }
            }
            Command::Post(id, call) => self.call_protocol(id, call),
            Command::ForgetHost(key) => self.forget_host(key),
            Command::OpenDatagrams(port, seed, max) => self.open_datagrams(port, seed, max),
            Command::PostDatagrams(port, call) => self.call_datagrams(port, call),
            Command::AddDescriptor(new) => self.add_descriptor(new),
            Command::MindDescriptor(key) => self.mind_descriptor(key),
        }
    }

    fn use_host(&mut self, key: HostKey) -> Result<(), Error> {
        let Some(slot) = self.host_slots.get(&key).copied() else { return Ok(()) };
        self.hosts[slot].users += 1;
        if self.hosts[slot].users > 1 {
            return Ok(());
        }
        log::info!("Starting factory {}", self.hosts[slot].name);
        self.tell_factory(key, FactoryEvent::Start).map_err(|cause| {
            self.hosts[slot].users -= 1;
            Error::StartFactory { factory: self.hosts[slot].name, cause }
        })
    }

    /// The other end of `use_host`: the last one stops the factory.
    fn release_host(&mut self, key: HostKey) {
        let Some(slot) = self.host_slots.get(&key).copied() else { return };
        self.hosts[slot].users -= 1;
        if self.hosts[slot].users == 0 {
            log::info!("Stopping factory {}", self.hosts[slot].name);
            let _ = self.tell_factory(key, FactoryEvent::Stop);
            self.drop_if_forgotten(slot);
        }
    }
}

/// Connections.
impl EventLoop {
    fn dispatch_events(&mut self) {
        while let Some((event, sockets)) = self.backend.next() {
            // Data is the one event that lends from the backend, so it is told right here, beside
            // that loan; all others own what they carry.
            let owned = match event {
                Event::Data { id, data } => {
                    let mut link = LoopLink { table: &mut self.table, sockets };
                    deliver(&mut link, &mut self.hosts, &self.reactor, id, data);
                    if self.answers_at_once {
                        self.answer(id);
                    }
                    continue;
                }
                Event::Sent { id, sent } => {
                    self.counters.add(Count::BytesSent, sent.bytes as u64);
                    if self.table.sent(id, sent) {
                        self.table.mark_dirty(id);
                    }
                    continue;
                }
                Event::Datagram { port } => {
                    let datagram = self.backend.take_datagram(port);
                    self.datagrams.received(&self.reactor, port, datagram);
                    continue;
                }
                Event::DatagramsSent { port, sent } => Owned::DatagramsSent(port, sent),
                Event::DatagramsFailed { port, errno } => Owned::DatagramsFailed(port, errno),
                Event::Descriptors { id, descriptors } => Owned::Descriptors(id, descriptors),
                Event::Accepted { port, socket } => Owned::Accepted(port, socket),
                Event::AcceptFailed { port, errno } => Owned::AcceptFailed(port, errno),
                Event::Unlistened { port } => Owned::Unlistened(port),
                Event::Connected { id, errno } => Owned::Connected(id, errno),
                Event::End { id, errno } => Owned::End(id, errno),
                Event::Closed { id } => Owned::Closed(id),
                Event::Ready { key, readiness } => Owned::Ready(key, readiness),
                Event::WatchFailed { key, errno } => Owned::WatchFailed(key, errno),
                Event::Woken => continue,
            };
            self.dispatch(owned);
        }
    }

    /// Sends what a connection that was just told has written, while all that belongs to it is in the cache.
    fn answer(&mut self, id: ConnId) {
        if let Some(batch) = self.table.take_answer(id)
            && let Some(sent) = self.backend.send(id, batch)
            && self.sent(id, sent)
        {
            self.table.mark_dirty(id);
        }
    }

    fn dispatch(&mut self, event: Owned) {
        match event {
            Owned::Accepted(port, socket) => self.accepted(port, socket),
            Owned::AcceptFailed(port, errno) => self.accept_failed(port, errno),
            Owned::Unlistened(port) => self.port_closed(port, None),
            Owned::Connected(id, errno) => self.connected(id, errno),
            Owned::End(id, errno) => {
                if let Some(entry) = self.table.get(id) {
                    entry.connection.read_ended(errno);
                    self.table.mark_dirty(id);
                }
            }
            Owned::Closed(id) => self.remove(id),
            Owned::Descriptors(id, descriptors) => {
                if let Some(entry) = self.table.get(id).filter(|entry| entry.stage == Stage::Made) {
                    entry.add_descriptors(descriptors);
                    self.tell_descriptors(id);
                }
            }
            Owned::DatagramsSent(port, sent) => self.datagrams.sent(&self.reactor, port, sent),
            Owned::DatagramsFailed(port, errno) => self.datagrams.failed(&self.reactor, port, errno),
            Owned::Ready(key, readiness) => self.descriptor_ready(key, readiness),
            Owned::WatchFailed(key, errno) => self.descriptor_refused(key, errno),
        }
    }

    /// A batch came back. Answers whether the connection has to be settled after it.
    fn sent(&mut self, id: ConnId, sent: Sent) -> bool {
        self.counters.add(Count::BytesSent, sent.bytes as u64);
        self.table.sent(id, sent)
    }

    /// A place in the table for a new connection of a host.
    fn insert(&mut self, host: HostKey, slot: usize, stage: Stage) -> ConnId {
        self.hosts[slot].connections += 1;
        self.table.insert(host, slot as u32, stage)
    }

    fn remove(&mut self, id: ConnId) {
        if let Some(entry) = self.table.remove(id) {
            self.counters.add(Count::BytesUnsent, entry.connection.unsent() as u64);
            let slot = entry.host_slot as usize;
            if let Some(host) = self.hosts.get_mut(slot) {
                host.connections -= 1;
                self.drop_if_forgotten(slot);
            }
        }
    }

    fn tell(&mut self, id: ConnId, event: ProtocolEvent<'_>) {
        let mut link = LoopLink { table: &mut self.table, sockets: self.backend.sockets() };
        tell(&mut link, &mut self.hosts, &self.reactor, id, event);
    }

    fn settle_dirty(&mut self) {
        if !self.table.has_dirty() && self.later.is_empty() {
            return;
        }
        for _ in 0..SETTLE_ROUNDS {
            if !self.table.has_dirty() {
                break;
            }
            let mut settling = std::mem::take(&mut self.settling);
            self.table.take_dirty(&mut settling);
            settling.drain(..).for_each(|id| self.settle(id));
            self.settling = settling;
        }
        let mut later = std::mem::take(&mut self.later);
        later.drain(..).for_each(|id| self.table.mark_dirty(id));
        self.later = later;
    }

    /// Does all that a connection wants done.
    fn settle(&mut self, id: ConnId) {
        let mut may_send = true;
        if let Some(batch) = self.table.next_batch_if_calm(id) {
            let Some(batch) = batch else { return };
            let Some(sent) = self.backend.send(id, batch) else { return };
            if !self.sent(id, sent) {
                return;
            }
            may_send = false;
        }
        loop {
            self.tell_descriptors(id);
            match self.table.step(id, self.now, may_send) {
                Step::Idle => break,
                Step::Later => {
                    self.later.push(id);
                    break;
                }
                Step::PauseWriting => self.tell(id, ProtocolEvent::PauseWriting),
                Step::ResumeWriting => self.tell(id, ProtocolEvent::ResumeWriting),
                Step::Deliver(held) => self.tell(id, ProtocolEvent::Data(&held)),
                Step::ReadLost => self.tell(id, ProtocolEvent::ReadLost),
                Step::TimedOut => self.tell(id, ProtocolEvent::TimedOut),
                Step::Filter(filters) => self.filter(id, filters),
                Step::Produce(what, producer) => self.produce(id, what, producer),
                Step::Send(batch) => {
                    if let Some(sent) = self.backend.send(id, batch) {
                        may_send = false;
                        let _ = self.sent(id, sent);
                    }
                }
                Step::Read(on) => self.backend.read(id, on),
                Step::ShutdownWrite => self.backend.shutdown_write(id),
                Step::Lost => self.lost(id),
                Step::Close { reset } => {
                    self.close(id, reset);
                    return;
                }
            }
        }
        if self.table.get(id).is_some_and(|entry| entry.connection.waits_for_batch()) {
            self.backend.hurry(id);
        }
        self.mind_deadline(id);
    }

    /// Tells of the descriptors that came, unless the connection is paused or closing.
    fn tell_descriptors(&mut self, id: ConnId) {
        while let Some(descriptor) = self.table.get(id).and_then(Entry::next_descriptor) {
            self.tell(id, ProtocolEvent::Descriptor(descriptor));
        }
    }

    fn produce(&mut self, id: ConnId, what: Produce, mut producer: AnyProducer) {
        let mut link = LoopLink { table: &mut self.table, sockets: self.backend.sockets() };
        let told = caught(|| producer::tell(&mut producer, &mut Transport::new(&mut link, id), what));
        if let Err(text) = told {
            end_after_panic(&mut self.table, id, text);
            return drop_quietly(producer);
        }
        let entry = self.table.get(id);
        drop_quietly(match entry {
            Some(entry) => entry.connection.producer_told(producer),
            None => Some(producer),
        });
    }

    fn filter(&mut self, id: ConnId, mut filters: Box<Filters>) {
        let ran = caught(|| filters.run());
        if let Err(text) = ran {
            end_after_panic(&mut self.table, id, text);
        }
        // Also after a panic: all of them are to be told of the loss.
        self.table.filtered(id, filters);
    }

    fn close(&mut self, id: ConnId, reset: bool) {
        if let Some(entry) = self.table.get(id) {
            entry.stage = Stage::Closing;
            if let Some(deadline) = entry.deadline() {
                entry.set_deadline(None);
                self.deadlines.remove(deadline);
            }
            if entry.connection.was_drained() {
                let left = self.backend.sockets().unacknowledged(id);
                self.counters.add(Count::BytesUnacknowledged, left as u64);
            }
            self.backend.close(id, reset);
        }
    }

    /// Keeps the timer of a connection's deadline where the connection wants it.
    fn mind_deadline(&mut self, id: ConnId) {
        let Some(entry) = self.table.get(id) else { return };
        match (entry.connection.deadline(), entry.deadline()) {
            (Some(wanted), None) => entry.set_deadline(Some(self.deadlines.insert(wanted, id))),
            // One that comes too early is asked again then: so what moves on with each message moves nothing here.
            (Some(wanted), Some(key)) if self.deadlines.deadline(key).is_none_or(|armed| wanted < armed) => {
                self.deadlines.reschedule(key, wanted);
            }
            (None, Some(key)) => {
                entry.set_deadline(None);
                self.deadlines.remove(key);
            }
            _ => {}
        }
    }

    /// Tells the protocol, then the factory if a connector made the connection.
    fn lost(&mut self, id: ConnId) {
        let Some(entry) = self.table.get(id) else { return };
        let reason = entry.connection.reason();
        let (host_slot, protocol) = (entry.host_slot as usize, entry.protocol);
        let (timers, connector) = (entry.take_timers(), entry.connector().cloned());
        let filters = entry.connection.take_filters();
        self.counters.add(loss_count(&reason), 1);
        self.tell(id, ProtocolEvent::Lost(&reason));
        tell_filters_lost(filters, &reason);
        self.drop_timers(id, timers);
        self.hosts[host_slot].host.drop_protocol(protocol);
        self.table.leave(id);
        if let Some((connector, _)) = connector {
            self.connector_lost(&connector, &reason);
        }
        drop_quietly(reason);
    }

    fn drop_timers(&mut self, id: ConnId, timers: Vec<crate::timer::TimerKey>) {
        let set_while_told = self.table.get(id).map(|entry| entry.take_timers()).unwrap_or_default();
        for key in timers.into_iter().chain(set_while_told) {
            // The lock is let go before the call is dropped: what it captured may run any code.
            let call = self.core().timers().remove(key);
            drop_quietly(call);
        }
    }
}

/// An event that borrows nothing.
enum Owned {
    Accepted(PortKey, crate::sys::Socket),
    AcceptFailed(PortKey, crate::error::Errno),
    Unlistened(PortKey),
    Connected(ConnId, Option<crate::error::Errno>),
    End(ConnId, Option<crate::error::Errno>),
    Closed(ConnId),
    Descriptors(ConnId, Vec<OwnedFd>),
    DatagramsSent(PortKey, Box<DatagramBatch>),
    DatagramsFailed(PortKey, crate::error::Errno),
    Ready(WatchKey, Readiness),
    WatchFailed(WatchKey, crate::error::Errno),
}

/// Which counter a loss belongs to.
pub(crate) fn loss_count(reason: &Reason) -> Count {
    match reason {
        Reason::Done => Count::LostDone,
        Reason::Lost(Loss::Shutdown) => Count::LostShutdown,
        Reason::Lost(_) => Count::LostErrno,
        Reason::Aborted => Count::LostAborted,
        Reason::Limit(_) => Count::LostLimit,
        Reason::TimedOut(_) => Count::LostTimedOut,
        Reason::Callback(_) => Count::LostCallback,
        Reason::Panicked(_) => Count::LostPanicked,
    }
}

/// The way of every message: table, host, protocol.
fn deliver(link: &mut LoopLink<'_>, hosts: &mut Slab<HostSlot>, reactor: &Reactor, id: ConnId, data: &[u8]) {
    reactor.core.counters.add(Count::BytesReceived, data.len() as u64);
    match link.table.received(id, data) {
        Some((Arrival::Deliver, host, protocol)) => {
            let Some(HostSlot { key, host, .. }) = hosts.get_mut(host as usize) else { return };
            if let Err(text) = host.tell_data(protocol, &mut *link, id, reactor, *key, data) {
                end_after_panic(link.table, id, text);
            }
        }
        Some((Arrival::Held | Arrival::Discarded, ..)) => link.table.mark_dirty(id),
        None => {}
    }
}

/// Calls one callback of a made connection; a panic in it ends that connection.
fn tell(
    link: &mut LoopLink<'_>,
    hosts: &mut Slab<HostSlot>,
    reactor: &Reactor,
    id: ConnId,
    event: ProtocolEvent<'_>,
) {
    let Some(entry) = link.table.get(id).filter(|entry| entry.stage == Stage::Made) else { return };
    let (host_slot, protocol) = (entry.host_slot as usize, entry.protocol);
    let Some(HostSlot { key, host, .. }) = hosts.get_mut(host_slot) else { return };
    let env = Env { link: &mut *link, reactor, host: *key };
    if let Err(text) = host.tell(protocol, id, env, event) {
        end_after_panic(link.table, id, text);
    }
}

fn end_after_panic(table: &mut Table, id: ConnId, text: Panicked) {
    if let Some(entry) = table.get(id) {
        entry.connection.finish(Reason::Panicked(text), true);
        table.mark_dirty(id);
    }
}
