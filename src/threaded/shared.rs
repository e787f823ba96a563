//! What all threads of one reactor share, and what each of them carries about.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{Ordering::SeqCst, fence},
    },
    thread::{Builder, JoinHandle},
    time::Instant,
};

use slab::Slab;

use super::{
    connection::{Parts, State as ConnectionState, ThreadConnection},
    hosts::Hosted,
    link::ThreadLink,
};
use crate::{
    backend::threads::sender::Sender,
    connector::{Attempt, Connector},
    crew::Crew,
    host::{Env, FactoryEvent, drop_quietly},
    id::{ConnId, GENERATION_MASK, HostKey, PortKey, first_generation},
    limits::Limits,
    output::Pool,
    port::Port,
    protocol::ErasedCall,
    reactor::{Reactor, State, TimerCall},
    timer::{Due, TimerKey, TimerQueue},
};

/// Locks; a panic while it was held has ended what it concerned, so it is sound to go on.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Something for the main thread to see to.
pub(super) enum Note {
    /// An attempt to connect is over.
    AttemptEnded(Connector, Attempt),
    /// A connector is disconnected after this attempt, if its factory has not begun another.
    ConnectorEnded(Connector, Attempt),
    /// All that a port has let in have a protocol, or were turned away.
    NoGuests(PortKey),
    /// A factory that no handle names any more has lost its last connection.
    HostIdle(HostKey),
    /// The thread of a port for datagrams has ended.
    DatagramsClosed(Port),
}

/// A call for a protocol.
pub(super) enum Mail {
    Post(ErasedCall),
    /// A timed call, which can be cancelled until it is made.
    Timer(Due),
}

/// What all threads of one reactor share. Nothing here is touched by a message.
pub(super) struct Shared {
    pub(super) reactor: Reactor,
    pub(super) table: Table,
    pub(super) deadlines: Deadlines,
    pub(super) sender: Sender,
    pub(super) crew: Arc<Crew>,
    notes: Mutex<Vec<Note>>,
    /// Held by the one who ends connections because all together have too much unsent: two at once would end too many.
    ending: Mutex<()>,
}

impl Shared {
    pub(super) fn new(reactor: Reactor) -> io::Result<Self> {
        let number = reactor.core.number;
        let core = Arc::clone(&reactor.core);
        let left = move || {
            if core.state() == State::Stopping {
                core.wake();
            }
        };
        Ok(Self {
            reactor,
            table: Table::new(number),
            deadlines: Deadlines::default(),
            sender: Sender::new(number)?,
            crew: Arc::new(Crew::new(Box::new(left))),
            notes: Mutex::default(),
            ending: Mutex::default(),
        })
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.reactor.core.config.limits
    }

    pub(super) fn new_pool(&self) -> Pool {
        Pool::new(self.limits(), &self.reactor.core.budget)
    }

    /// All connections together have too much unsent: ends the one that has the most, or `writer` if that has as much. Answers whether
    /// `writer` was ended. Asked under no connection's lock.
    #[cold]
    pub(super) fn end_fullest(&self, writer: ConnId, duty: &mut Duty) -> bool {
        let _alone = lock(&self.ending);
        let mut writer_ended = false;
        while self.reactor.core.budget.is_passed() {
            let all = self.table.all();
            let fullest = all.iter().map(|connection| (connection.lock().connection.counted(), connection));
            let fullest = fullest.max_by_key(|(counted, connection)| (*counted, connection.id() == writer));
            let Some((1.., connection)) = fullest else { break };
            let ConnectionState { connection: machine, pool, .. } = &mut *connection.lock();
            machine.end_for_budget(pool);
            duty.touch(connection.id());
            writer_ended |= connection.id() == writer;
        }
        writer_ended
    }

    /// Starts the thread that waits for peers that do not read.
    pub(super) fn start_sender(self: &Arc<Self>) -> io::Result<JoinHandle<()>> {
        let shared = Arc::clone(self);
        let run = move || {
            let counters = shared.reactor.core.counters.branch();
            let mut duty = Duty::new(&shared);
            shared.sender.run(&counters, Box::new(move |id| duty.run_writable(id)));
        };
        Builder::new().name("ringspun-sender".to_owned()).spawn(run)
    }

    /// Starts a connection's thread.
    pub(super) fn start(self: &Arc<Self>, work: impl FnOnce(&mut Duty) + Send + 'static) -> io::Result<()> {
        let mut duty = Duty::new(self);
        self.crew.start("ringspun-conn", Box::new(move || work(&mut duty)))
    }

    /// Tells the factory of a host.
    pub(super) fn tell_factory(
        &self,
        hosted: &Hosted,
        duty: &mut Duty,
        event: FactoryEvent<'_>,
    ) -> io::Result<()> {
        let told = {
            let mut link = ThreadLink::new(self, None, duty);
            let env = Env { link: &mut link, reactor: &self.reactor, host: hosted.key };
            hosted.host.tell_factory(env, event)
        };
        self.call_factory(hosted, duty);
        duty.run_errands();
        told
    }

    /// Makes the timed calls of a factory, unless somebody holds it: whoever does makes them when he has
    /// let it go. So no thread waits for a factory to make a call of its own.
    pub(super) fn call_factory(&self, hosted: &Hosted, duty: &mut Duty) {
        // One of two must see what the other did: who lets go and looks for calls, or who adds one
        // and looks for somebody who holds it.
        fence(SeqCst);
        while hosted.has_due() {
            let mut link = ThreadLink::new(self, None, duty);
            let env = Env { link: &mut link, reactor: &self.reactor, host: hosted.key };
            let mut next = || hosted.next_due().map(|due| self.take_due(due));
            if !hosted.host.try_call(env, &mut next) {
                return;
            }
        }
    }

    /// The call that came by mail, if it has not been cancelled.
    pub(super) fn open(&self, mail: Mail) -> Option<ErasedCall> {
        match mail {
            Mail::Post(call) => Some(call),
            Mail::Timer(due) => self.take_due(due),
        }
    }

    pub(super) fn drop_mail(&self, mail: Mail) {
        drop_quietly(self.open(mail));
    }

    fn take_due(&self, due: Due) -> Option<ErasedCall> {
        match self.reactor.core.timers().take(due)? {
            TimerCall::Factory(_, call) | TimerCall::Connection(_, call) => Some(call),
            _ => None,
        }
    }

    pub(super) fn note(&self, note: Note) {
        lock(&self.notes).push(note);
        self.reactor.core.wake();
    }

    pub(super) fn has_notes(&self) -> bool {
        !lock(&self.notes).is_empty()
    }

    pub(super) fn take_notes(&self) -> Vec<Note> {
        std::mem::take(&mut *lock(&self.notes))
    }
}

/// What one thread carries from callback to callback.
pub(super) struct Duty {
    shared: Arc<Shared>,
    /// Connections that a callback has changed, to be seen to when it has returned.
    touched: VecDeque<ConnId>,
    /// For output that user code fills.
    pub(super) pool: Pool,
}

impl Duty {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), touched: VecDeque::new(), pool: shared.new_pool() }
    }

    /// Notes that a connection has been changed.
    pub(super) fn touch(&mut self, id: ConnId) {
        if self.touched.back() != Some(&id) {
            self.touched.push_back(id);
        }
    }

    pub(super) fn has_errands(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Sees to what callbacks have changed, and to what follows from that.
    pub(super) fn run_errands(&mut self) {
        while let Some(id) = self.touched.pop_front() {
            if let Some(connection) = self.shared.table.get(id) {
                connection.poke(self);
            }
        }
    }

    /// There is room to send to a connection again.
    pub(super) fn run_writable(&mut self, id: ConnId) {
        if let Some(connection) = self.shared.table.get(id) {
            connection.writable(self);
        }
        self.run_errands();
    }
}

/// The made connections.
pub(super) struct Table {
    reactor: u8,
    first_generation: u32,
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    /// The latest generation of each place, free ones included.
    generations: Vec<u32>,
    taken: Slab<Arc<ThreadConnection>>,
    closed: bool,
}

impl Table {
    fn new(reactor: u8) -> Self {
        Self { reactor, first_generation: first_generation(), places: Mutex::default() }
    }

    /// Makes a connection under an id of its own; gives the parts back if the table is closed.
    pub(super) fn insert(&self, parts: Parts) -> Result<Arc<ThreadConnection>, Parts> {
        let mut places = lock(&self.places);
        if places.closed {
            return Err(parts);
        }
        let slot = places.taken.vacant_key();
        if places.generations.len() <= slot {
            places.generations.resize(slot + 1, self.first_generation);
        }
        let generation = (places.generations[slot] + 1) & GENERATION_MASK;
        places.generations[slot] = generation;
        let id = ConnId::new(self.reactor, generation, slot as u32);
        let connection = Arc::new(ThreadConnection::new(id, parts));
        places.taken.insert(Arc::clone(&connection));
        Ok(connection)
    }

    /// The connection of this id, if it is still there.
    pub(super) fn get(&self, id: ConnId) -> Option<Arc<ThreadConnection>> {
        let places = lock(&self.places);
        places.taken.get(id.slot()).filter(|connection| connection.id() == id).cloned()
    }

    pub(super) fn remove(&self, id: ConnId) {
        // Bound to a name, so that the lock is let go before the connection is.
        let _removed = {
            let mut places = lock(&self.places);
            let there = places.taken.get(id.slot()).is_some_and(|connection| connection.id() == id);
            there.then(|| places.taken.remove(id.slot()))
        };
    }

    /// The connections of a factory that are made, or are the asker's own: whoever writes to all
    /// must not come before a greeting.
    pub(super) fn ids(&self, host: HostKey, own: Option<ConnId>) -> Vec<ConnId> {
        let places = lock(&self.places);
        let of_host = places.taken.iter().filter(|(_, connection)| connection.host() == host);
        let seen = of_host.filter(|(_, other)| other.is_made() || Some(other.id()) == own);
        seen.map(|(_, connection)| connection.id()).collect()
    }

    pub(super) fn all(&self) -> Vec<Arc<ThreadConnection>> {
        lock(&self.places).taken.iter().map(|(_, connection)| Arc::clone(connection)).collect()
    }

    /// Lets no connection be made any more; answers those that are.
    pub(super) fn close(&self) -> Vec<Arc<ThreadConnection>> {
        let mut places = lock(&self.places);
        places.closed = true;
        places.taken.iter().map(|(_, connection)| Arc::clone(connection)).collect()
    }
}

/// When connections have to be looked at even if nothing happens.
#[derive(Default)]
pub(super) struct Deadlines(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    queue: TimerQueue<ConnId>,
    /// Until when the main thread sleeps, or None if it does not mind being late.
    sleeping_until: Option<Instant>,
}

impl Deadlines {
    /// Sets a deadline in the place of an earlier one; answers whether the main thread, as it
    /// sleeps now, would miss it.
    pub(super) fn set(&self, old: Option<TimerKey>, deadline: Instant, id: ConnId) -> (TimerKey, bool) {
        let mut waiting = lock(&self.0);
        let moved = old.filter(|key| waiting.queue.reschedule(*key, deadline));
        let key = moved.unwrap_or_else(|| waiting.queue.insert(deadline, id));
        (key, waiting.sleeping_until.is_none_or(|until| deadline < until))
    }

    pub(super) fn remove(&self, key: TimerKey) {
        lock(&self.0).queue.remove(key);
    }

    /// Takes the connections whose deadline has come.
    pub(super) fn due(&self, now: Instant) -> Vec<ConnId> {
        let queue = &mut lock(&self.0).queue;
        let mark = queue.mark();
        std::iter::from_fn(|| queue.pop_due(now, mark)).collect()
    }

    /// Says until when the main thread is about to sleep: the next deadline, here or among `calls`.
    pub(super) fn sleep_until(&self, calls: Option<Instant>) -> Option<Instant> {
        let mut waiting = lock(&self.0);
        let next = waiting.queue.next_deadline().into_iter().chain(calls).min();
        waiting.sleeping_until = next;
        next
    }
}
