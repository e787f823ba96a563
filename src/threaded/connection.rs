//! One connection among threads: who works on it, and when.
//!
//! Working on a connection means asking its state machine for the next step and doing that, until
//! there is none. Only one thread at a time does so: the one that has the baton. This is why no
//! two callbacks of a connection ever run at once, though they may run on different threads.
//!
//! * Its own thread, the reader, has the baton while it works, and lays it down when it goes to
//!   wait: for bytes in the kernel, or, while the protocol has paused it, for somebody to hand it
//!   the baton.
//! * Whoever changes a connection [pokes](ThreadConnection::poke) it afterwards. If the baton lies
//!   there while the reader is in the kernel, the one who pokes takes it and works. If the reader
//!   waits for it, it is handed over. If somebody has it, nothing needs to be done: he looks once
//!   more before he lays it down, whenever he has let go of the lock in between.
//! * The reader alone ever waits for the baton, and only ever for its own.
//! * The end is the reader's too: whoever finds that a connection is over wakes the reader, which
//!   tells the protocol and lets go of the socket.

use std::{
    collections::VecDeque,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Instant,
};

use super::{
    host::ThreadProtocol,
    hosts::Hosted,
    link::ThreadLink,
    shared::{Duty, Mail, Shared, lock},
};
use crate::{
    address::Address,
    backend::threads::{Gone, Wire},
    connection::{AnyProducer, Arrival, Connection, Filters, Produce, Step},
    error::Errno,
    event_loop::loss_count,
    host::{Env, ProtocolEvent, caught, drop_quietly, tell_filters_lost},
    id::{ConnId, HostKey},
    limits::Limits,
    output::{Batch, Pool, Write},
    producer,
    reason::{Loss, Reason},
    stats::Count,
    sys::{self, RightsInbox},
    timer::TimerKey,
    transport::Transport,
};

/// A receive buffer at first: most messages are small, and a thread has a buffer for itself.
const BUFFER_BYTES: usize = 4 << 10;
/// A receive buffer at most; it doubles with each receive that fills it.
const BUFFER_BYTES_MAX: usize = 64 << 10;
/// One who works for others sends this often in a row before he leaves the rest to the sender.
const SENDS_IN_A_ROW: usize = 16;

/// Who works on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Baton {
    /// Nobody; the reader is in the kernel, or on its way there or back.
    Free,
    /// Nobody; the reader waits to be handed it.
    Awaited,
    /// Somebody.
    Taken,
}

/// One connection.
pub(super) struct ThreadConnection {
    id: ConnId,
    shared: Arc<Shared>,
    hosted: Arc<Hosted>,
    protocol: Box<dyn ThreadProtocol>,
    wire: Wire,
    /// `connection_made` has run: from here on others see the connection.
    made: AtomicBool,
    state: Mutex<State>,
    /// The reader's, when it waits for the baton.
    turn: Condvar,
}

/// What a connection is made of.
pub(super) struct Parts {
    pub(super) shared: Arc<Shared>,
    pub(super) hosted: Arc<Hosted>,
    pub(super) protocol: Box<dyn ThreadProtocol>,
    pub(super) wire: Wire,
    /// The peer's address, if the factory has asked for it.
    pub(super) peer: Option<Address>,
}

/// What the lock guards. No user code runs under it, and no call that waits.
pub(super) struct State {
    pub(super) connection: Connection,
    pub(super) pool: Pool,
    pub(super) timers: Vec<TimerKey>,
    pub(super) peer: Option<Address>,
    pub(super) host: Option<Address>,
    /// Descriptors that came and were not told yet.
    descriptors: VecDeque<OwnedFd>,
    /// Calls for the protocol.
    mail: VecDeque<Mail>,
    /// Output that did not go at once, and how many bytes of it did; the sender watches for room.
    waiting: Option<(Box<Batch>, usize)>,
    deadline: Option<(Instant, TimerKey)>,
    baton: Baton,
    /// The reader is back from the kernel and waits for the baton.
    reader_waits: bool,
    /// The connection wants to receive.
    reading: bool,
    /// The machine has stopped; only the protocol has yet to be told.
    over: bool,
    /// The protocol has been told of the loss.
    pub(super) lost: bool,
}

/// On whose behalf a thread works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Worker {
    Reader,
    Other,
}

/// For everyone.
impl ThreadConnection {
    /// A connection that its own thread, which makes it, is going to [serve](Self::serve).
    pub(super) fn new(id: ConnId, parts: Parts) -> Self {
        let Parts { shared, hosted, protocol, wire, peer } = parts;
        let state = State {
            connection: Connection::new(hosted.host.half_closeable()),
            pool: shared.new_pool(),
            timers: Vec::new(),
            peer,
            host: None,
            descriptors: VecDeque::new(),
            mail: VecDeque::new(),
            waiting: None,
            deadline: None,
            baton: Baton::Taken,
            reader_waits: false,
            reading: false,
            over: false,
            lost: false,
        };
        let (state, turn) = (Mutex::new(state), Condvar::new());
        Self { id, shared, hosted, protocol, wire, made: AtomicBool::new(false), state, turn }
    }

    pub(super) fn id(&self) -> ConnId {
        self.id
    }

    /// The factory's name.
    pub(super) fn host(&self) -> HostKey {
        self.hosted.key
    }

    pub(super) fn is_made(&self) -> bool {
        self.made.load(SeqCst)
    }

    pub(super) fn wire(&self) -> &Wire {
        &self.wire
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Sees to it that somebody works on the connection, now that it has been changed.
    pub(super) fn poke(&self, duty: &mut Duty) {
        let mut state = self.lock();
        match state.baton {
            Baton::Free => {
                state.baton = Baton::Taken;
                let mut state = self.work(state, duty, Worker::Other);
                state.baton = Baton::Free;
                if state.reader_waits {
                    self.turn.notify_one();
                }
            }
            Baton::Awaited => {
                state.baton = Baton::Taken;
                self.turn.notify_one();
            }
            Baton::Taken => {}
        }
    }

    /// Changes the connection.
    pub(super) fn change(&self, duty: &mut Duty, change: impl FnOnce(&mut Connection)) {
        change(&mut self.lock().connection);
        self.poke(duty);
    }

    /// The moment has come that the main thread has waited for on its behalf.
    pub(super) fn deadline_passed(&self, now: Instant, duty: &mut Duty) {
        let mut state = self.lock();
        // Another one may have been set meanwhile, which is still to come.
        state.deadline.take_if(|(deadline, _)| *deadline <= now);
        state.connection.deadline_passed();
        drop(state);
        self.poke(duty);
    }

    /// Calls this with the protocol, soon.
    pub(super) fn mail(&self, duty: &mut Duty, mail: Mail) {
        let mut state = self.lock();
        if state.lost {
            drop(state);
            return self.shared.drop_mail(mail);
        }
        state.mail.push_back(mail);
        drop(state);
        self.poke(duty);
    }

    /// There is room to send again.
    pub(super) fn writable(&self, duty: &mut Duty) {
        let mut state = self.lock();
        if let Some((batch, gone)) = state.waiting.take() {
            state.sent(batch, gone, None, self.shared.limits());
        }
        drop(state);
        self.poke(duty);
    }
}

/// For the one who has the baton.
impl ThreadConnection {
    /// Does all that the connection wants done.
    fn work<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        duty: &mut Duty,
        worker: Worker,
    ) -> MutexGuard<'a, State> {
        let mut sends_left = SENDS_IN_A_ROW;
        while !state.over {
            if let Some(mail) = state.mail.pop_front() {
                if let Some(call) = self.shared.open(mail) {
                    state = self.tell(state, duty, ProtocolEvent::Call(call));
                }
                continue;
            }
            if let Some(descriptor) = state.next_descriptor() {
                state = self.tell(state, duty, ProtocolEvent::Descriptor(descriptor));
                continue;
            }
            match state.step(self.shared.limits(), sends_left > 0) {
                Step::Idle => break,
                Step::Later if self.watch(&mut state) => break,
                Step::Later => {}
                Step::PauseWriting => state = self.tell(state, duty, ProtocolEvent::PauseWriting),
                Step::ResumeWriting => state = self.tell(state, duty, ProtocolEvent::ResumeWriting),
                Step::Deliver(held) => state = self.tell(state, duty, ProtocolEvent::Data(&held)),
                Step::ReadLost => state = self.tell(state, duty, ProtocolEvent::ReadLost),
                Step::TimedOut => state = self.tell(state, duty, ProtocolEvent::TimedOut),
                Step::Filter(filters) => state = self.filter(state, filters),
                Step::Produce(what, producer) => state = self.produce(state, duty, what, producer),
                Step::Send(batch) => {
                    sends_left -= 1;
                    state = self.send(state, batch);
                }
                Step::Read(on) => state.reading = on,
                Step::ShutdownWrite => self.wire.shutdown_write(),
                // The reader tells, once the machine has stopped.
                Step::Lost => {}
                Step::Close { reset } => self.stop(&mut state, reset, worker),
            }
        }
        self.mind_deadline(&mut state);
        state
    }

    /// Calls the protocol with the lock let go. A panic ends the connection.
    fn tell<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        duty: &mut Duty,
        event: ProtocolEvent<'_>,
    ) -> MutexGuard<'a, State> {
        drop(state);
        let mut link = ThreadLink::new(&self.shared, Some(self), duty);
        let env = Env { link: &mut link, reactor: &self.shared.reactor, host: self.host() };
        let made = matches!(event, ProtocolEvent::Made);
        // Whoever has the factory next finds it among the others.
        let told = self.protocol.tell(self.id, env, event, &|| {
            if made {
                self.made.store(true, SeqCst);
            }
        });
        if told.held_factory {
            self.shared.call_factory(&self.hosted, duty);
        }
        let mut state = self.lock();
        if let Err(text) = told.result {
            state.connection.finish(Reason::Panicked(text), true);
        }
        state
    }

    /// Tells the producer with the lock let go. A panic ends the connection.
    fn produce<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        duty: &mut Duty,
        what: Produce,
        mut producer: AnyProducer,
    ) -> MutexGuard<'a, State> {
        drop(state);
        let mut link = ThreadLink::new(&self.shared, Some(self), duty);
        let told = caught(|| producer::tell(&mut producer, &mut Transport::new(&mut link, self.id), what));
        let mut state = self.lock();
        let unwanted = match told {
            Ok(()) => state.connection.producer_told(producer),
            Err(text) => {
                state.connection.finish(Reason::Panicked(text), true);
                Some(producer)
            }
        };
        if unwanted.is_some() {
            drop(state);
            drop_quietly(unwanted);
            state = self.lock();
        }
        state
    }

    /// Lets filters work with the lock let go. A panic ends the connection.
    fn filter<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        mut filters: Box<Filters>,
    ) -> MutexGuard<'a, State> {
        drop(state);
        let ran = caught(|| filters.run());
        let mut state = self.lock();
        let State { connection, pool, .. } = &mut *state;
        if let Err(text) = ran {
            connection.finish(Reason::Panicked(text), true);
        }
        // Also after a panic: all of them are to be told of the loss.
        connection.filtered(filters, pool, self.shared.limits());
        state
    }

    /// Sends what goes at once, with the lock let go; the sender watches for room for the rest.
    fn send<'a>(&'a self, state: MutexGuard<'a, State>, mut batch: Box<Batch>) -> MutexGuard<'a, State> {
        drop(state);
        let sent = self.wire.send(&mut batch);
        let mut state = self.lock();
        match sent {
            Ok(Gone { bytes, full: true }) => {
                state.waiting = Some((batch, bytes));
                let _ = self.watch(&mut state);
            }
            Ok(Gone { bytes, .. }) => state.sent(batch, bytes, None, self.shared.limits()),
            Err(errno) => state.sent(batch, 0, Some(errno), self.shared.limits()),
        }
        state
    }

    /// Has the sender watch for room. Where that cannot be had, the connection ends.
    fn watch(&self, state: &mut State) -> bool {
        let watched = self.shared.sender.watch(self.id, &self.wire);
        if let Err(errno) = watched {
            state.connection.finish(Reason::Lost(Loss::Errno(errno)), true);
        }
        watched.is_ok()
    }

    /// The machine has stopped: what is left is the reader's.
    fn stop(&self, state: &mut State, reset: bool, worker: Worker) {
        state.over = true;
        if reset {
            self.wire.reset_on_close();
        }
        if worker == Worker::Other {
            self.wire.wake();
        }
    }

    /// Keeps the main thread's note of the deadline as the connection wants it.
    #[inline]
    fn mind_deadline(&self, state: &mut State) {
        let wanted = state.connection.deadline();
        match (wanted, state.deadline) {
            (None, None) => return,
            // One that comes too early is asked again then: so what moves on with each message moves nothing here.
            (Some(wanted), Some((armed, _))) if wanted >= armed => return,
            _ => {}
        }
        let old = state.deadline.take().map(|(_, key)| key);
        match (wanted, old) {
            (Some(wanted), old) => {
                let (key, missed) = self.shared.deadlines.set(old, wanted, self.id);
                state.deadline = Some((wanted, key));
                if missed {
                    self.shared.reactor.core.wake();
                }
            }
            (None, Some(key)) => self.shared.deadlines.remove(key),
            (None, None) => {}
        }
    }
}

/// For its own thread.
impl ThreadConnection {
    /// The life of the connection, from `connection_made` to `connection_lost`; why it ended. One
    /// that has been reset already ends with that, after what came before.
    pub(super) fn serve(&self, duty: &mut Duty, reset: Option<Errno>) -> Reason {
        self.wire.counters().add(Count::Made, 1);
        let mut state = self.tell(self.lock(), duty, ProtocolEvent::Made);
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut rights = self.hosted.host.receives_descriptors().then(RightsInbox::boxed);
        while let Some(room) = self.settle(state, duty) {
            let room = room.min(buffer.len());
            let received = self.wire.receive(&mut buffer[..room], rights.as_deref_mut());
            let received = match (received, reset) {
                // Whoever saw the reset has taken the error off the socket, which says FIN now.
                (Ok(0), Some(errno)) => Err(errno),
                (received, _) => received,
            };
            // What cannot be taken is logged, and so not under the lock.
            let descriptors = rights.as_mut().map(|rights| rights.take());
            state = self.take_baton();
            if let Some(descriptors) = descriptors {
                state.descriptors.extend(descriptors);
            }
            state = self.arrived(state, duty, received.map(|n| &buffer[..n]));
            if received == Ok(buffer.len()) && buffer.len() < BUFFER_BYTES_MAX {
                buffer = vec![0; 2 * buffer.len()];
            }
        }
        self.lost(duty)
    }

    /// Works until there is nothing to do but to receive; so many bytes at most. None if the
    /// connection is over.
    fn settle<'a>(&'a self, mut state: MutexGuard<'a, State>, duty: &mut Duty) -> Option<usize> {
        loop {
            state = self.work(state, duty, Worker::Reader);
            if duty.has_errands() {
                drop(state);
                duty.run_errands();
                state = self.lock();
                continue;
            }
            if state.over {
                return None;
            }
            if state.reading {
                state.baton = Baton::Free;
                return Some(state.room());
            }
            state.baton = Baton::Awaited;
            let handed = self.turn.wait_while(state, |state| state.baton == Baton::Awaited);
            state = handed.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes what came from the kernel; descriptors first.
    fn arrived<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        duty: &mut Duty,
        received: Result<&[u8], Errno>,
    ) -> MutexGuard<'a, State> {
        while let Some(descriptor) = state.next_descriptor() {
            state = self.tell(state, duty, ProtocolEvent::Descriptor(descriptor));
        }
        match received {
            Ok(data) if !data.is_empty() => {
                if state.connection.received(data, self.shared.limits()) == Arrival::Deliver {
                    state = self.tell(state, duty, ProtocolEvent::Data(data));
                }
            }
            Ok(_) => state.read_ended(None, self.is_stopping()),
            Err(errno) if errno.raw() == libc::EINTR => {}
            Err(errno) => state.read_ended(Some(errno), self.is_stopping()),
        }
        state
    }

    fn is_stopping(&self) -> bool {
        self.shared.reactor.core.system_events.has_stop_begun()
    }

    fn take_baton(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        if state.baton != Baton::Free {
            state.reader_waits = true;
            let free = self.turn.wait_while(state, |state| state.baton != Baton::Free);
            state = free.unwrap_or_else(PoisonError::into_inner);
            state.reader_waits = false;
        }
        state.baton = Baton::Taken;
        state
    }

    /// Tells the protocol and forgets it, with all that is bound to it.
    fn lost(&self, duty: &mut Duty) -> Reason {
        let (reason, timers, filters) = {
            let mut state = self.lock();
            let timers = std::mem::take(&mut state.timers);
            (state.connection.reason(), timers, state.connection.take_filters())
        };
        self.wire.counters().add(loss_count(&reason), 1);
        let (unsent, drained) = {
            let state = self.lock();
            (state.unsent(), state.connection.was_drained())
        };
        self.wire.counters().add(Count::BytesUnsent, unsent as u64);
        if drained {
            let left = sys::unacknowledged(self.wire.as_fd());
            self.wire.counters().add(Count::BytesUnacknowledged, left as u64);
        }
        let mut state = self.tell(self.lock(), duty, ProtocolEvent::Lost(&reason));
        state.lost = true;
        let (set_while_told, mail) = (std::mem::take(&mut state.timers), std::mem::take(&mut state.mail));
        drop(state);
        tell_filters_lost(filters, &reason);
        for key in timers.into_iter().chain(set_while_told) {
            // The lock is let go before the call is dropped: what it captured may run any code.
            let call = self.shared.reactor.core.timers().remove(key);
            drop_quietly(call);
        }
        mail.into_iter().for_each(|mail| self.shared.drop_mail(mail));
        self.protocol.forget();
        self.shared.table.remove(self.id);
        duty.run_errands();
        reason
    }
}

impl State {
    /// Takes a copy of `data` to be sent, and says whether that passes the budget of all.
    #[inline]
    pub(super) fn write(&mut self, limits: &Limits, data: &[u8]) -> (Write, bool) {
        let answer = self.connection.write(&mut self.pool, limits, data);
        (answer, self.pool.take_passed())
    }

    /// The next descriptor to be told, if anything may be told now.
    #[inline]
    fn next_descriptor(&mut self) -> Option<OwnedFd> {
        if self.descriptors.is_empty() { None } else { self.next_descriptor_if_open() }
    }

    #[cold]
    fn next_descriptor_if_open(&mut self) -> Option<OwnedFd> {
        if !self.connection.is_open() {
            self.descriptors.clear();
        }
        if self.connection.is_delivering() { self.descriptors.pop_front() } else { None }
    }

    fn step(&mut self, limits: &Limits, may_send: bool) -> Step {
        // The usual way asks for no clock, which would cost more than all the rest of it.
        if may_send && let Some(batch) = self.connection.next_batch_if_calm() {
            return batch.map_or(Step::Idle, Step::Send);
        }
        self.connection.step(Instant::now(), limits, &mut self.pool, may_send)
    }

    fn sent(&mut self, batch: Box<Batch>, bytes: usize, errno: Option<Errno>, limits: &Limits) {
        self.connection.sent(batch, bytes, errno, &mut self.pool, limits);
    }

    /// Bytes that the kernel has not taken.
    fn unsent(&self) -> usize {
        let gone = self.waiting.as_ref().map_or(0, |(_, gone)| *gone);
        self.connection.unsent().saturating_sub(gone)
    }

    /// How much to receive at once. A closing connection takes sips: a socket that was shut for
    /// reading opens its window no more, so one who empties a full one in a single gulp, just as
    /// he is woken by that, leaves a peer that waits for room until the kernel gives up.
    fn room(&self) -> usize {
        if self.connection.is_open() { BUFFER_BYTES_MAX } else { BUFFER_BYTES }
    }

    /// What ends once the reactor is being stopped ends for that reason: the peer may have been a
    /// connection of the same reactor.
    fn read_ended(&mut self, errno: Option<Errno>, stopping: bool) {
        if stopping && !self.connection.is_draining() {
            self.connection.finish(Reason::Lost(Loss::Shutdown), false);
        }
        self.connection.read_ended(errno);
        self.reading = false;
    }
}
