//! The reactor as a program sees it: a queue that any thread may put something into.
//!
//! What takes things out is `event_loop.rs` for the loops and `threaded.rs` for the threads
//! backend; nothing here knows which of them runs.

use std::{
    cell::Cell,
    collections::VecDeque,
    fmt,
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    address::Address,
    clock::Clock,
    connector::{Attempt, Connector},
    delayed_call::DelayedCall,
    descriptor::NewWatch,
    error::Error,
    id::{ConnId, HostKey, PortKey, WatchKey},
    limits::Limits,
    network::Network,
    options::{BackendInfo, Config},
    output::Budget,
    port::Port,
    protocol::ErasedCall,
    schedule::{Locked, Schedule},
    stats::{Counters, Stats, Syscall},
    sys::Waker,
    system_event::SystemEvents,
    thread_pool::ThreadPool,
    timer::{TimerKey, deadline_after},
};

/// A call for the reactor itself.
pub(crate) type ReactorCall = Box<dyn FnOnce(&Reactor) + Send>;

/// Something to do on the reactor's thread.
pub(crate) enum Command {
    /// Call this.
    Call(ReactorCall),
    /// A factory joins under its type's name, in the form that only the driver knows.
    AddHost(HostKey, &'static str, ErasedCall),
    /// A factory turns out to be a client factory.
    SetHooks(HostKey, ErasedCall),
    /// No handle names this factory any more.
    ForgetHost(HostKey),
    /// Open a port for a factory.
    Listen(Port),
    /// Close a port.
    StopListening(PortKey),
    /// Begin a connection attempt.
    Connect(Connector),
    /// A name has been resolved for a connection attempt.
    Resolved(Connector, Attempt, std::io::Result<Vec<Address>>),
    /// End a connection attempt because the user said so.
    StopConnecting(Connector, Attempt),
    /// Close the connection of a connector.
    Disconnect(ConnId),
    /// Call this with the protocol of a connection.
    Post(ConnId, ErasedCall),
    /// Open a port for datagrams, with its protocol in the form that only the driver knows; the longest one to be received.
    OpenDatagrams(Port, ErasedCall, usize),
    /// Call this with the protocol of a port for datagrams.
    PostDatagrams(PortKey, ErasedCall),
    /// Watch a foreign descriptor.
    AddDescriptor(NewWatch),
    /// Do what the handle of a foreign descriptor says.
    MindDescriptor(WatchKey),
}

/// Something to do at a given time.
pub(crate) enum TimerCall {
    Reactor(ReactorCall),
    Factory(HostKey, ErasedCall),
    Connection(ConnId, ErasedCall),
    ConnectTimeout(Connector, Attempt),
    ConnectAgain(Connector, Attempt),
    AcceptAgain(PortKey),
    Datagrams(PortKey, ErasedCall),
    CheckDescriptors,
}

/// Where a reactor is in its life. It runs once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    New = 0,
    Running = 1,
    Stopping = 2,
    Stopped = 3,
}

/// What all handles of one reactor share.
pub(crate) struct Core {
    pub(crate) number: u8,
    pub(crate) config: Config,
    pub(crate) info: BackendInfo,
    pub(crate) counters: Arc<Counters>,
    pub(crate) waker: Arc<Waker>,
    /// What all connections have unsent together.
    pub(crate) budget: Arc<Budget>,
    /// For work that blocks.
    pub(crate) threads: ThreadPool,
    pub(crate) system_events: SystemEvents,
    pub(crate) clock: Clock,
    /// What it listens and connects in, if not in the kernel's.
    pub(crate) network: Option<Arc<Network>>,
    state: AtomicU8,
    inbox: Mutex<VecDeque<Command>>,
    /// Whether anything is in it, known without the lock.
    has_commands: AtomicBool,
    timers: Schedule<TimerCall>,
    notified: AtomicBool,
    next_key: AtomicU32,
}

/// Which of the 256 numbers that a `ConnId` has room for belong to a living reactor.
static NUMBERS: Mutex<Numbers> = Mutex::new(Numbers { taken: [false; 256], next: 0 });

struct Numbers {
    taken: [bool; 256],
    /// Given in turn, so that a number rests long before it is used again.
    next: u8,
}

/// A number for a new reactor, taken until its core is dropped.
pub(crate) fn take_number() -> Result<u8, Error> {
    let mut numbers = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner);
    let in_turn = (0..=u8::MAX).map(|offset| numbers.next.wrapping_add(offset));
    let free = in_turn.into_iter().find(|number| !numbers.taken[usize::from(*number)]);
    let free = free.ok_or(Error::TooManyReactors)?;
    numbers.taken[usize::from(free)] = true;
    numbers.next = free.wrapping_add(1);
    Ok(free)
}

thread_local! {
    /// The reactor whose loop this thread runs: its own calls need no wake-up.
    static RUNNING_HERE: Cell<*const Core> = const { Cell::new(std::ptr::null()) };
}

impl Core {
    pub(crate) fn new(number: u8, config: Config, info: BackendInfo, waker: Waker) -> Self {
        Self {
            number,
            threads: ThreadPool::new("ringspun-thread", config.thread_pool_size),
            system_events: SystemEvents::default(),
            budget: Arc::new(Budget::new(config.limits.output_total_max)),
            clock: Clock::Machine,
            network: None,
            config,
            info,
            counters: Arc::default(),
            waker: Arc::new(waker),
            state: AtomicU8::new(State::New as u8),
            inbox: Mutex::default(),
            has_commands: AtomicBool::new(false),
            timers: Schedule::new(),
            notified: AtomicBool::new(false),
            next_key: AtomicU32::new(0),
        }
    }

    /// The same, over a network that is only memory, by a clock that stands still.
    pub(crate) fn in_memory(mut self, network: Arc<Network>) -> Self {
        (self.clock, self.network) = (Clock::manual(), Some(network));
        self
    }

    pub(crate) fn timers(&self) -> Locked<'_, TimerCall> {
        self.timers.lock()
    }

    /// When the next timed call is due.
    pub(crate) fn next_call(&self) -> Option<Instant> {
        self.timers.next_deadline()
    }

    fn inbox(&self) -> MutexGuard<'_, VecDeque<Command>> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is put in after this, or noted, or timed, wakes the loop again: to be called after each wait, and before the looks that decide
    /// whether the next one sleeps.
    pub(crate) fn listen_for_wake_ups(&self) {
        // A look is enough while nobody has woken the loop: whoever does so later writes to its waker.
        if self.notified.load(Ordering::SeqCst) {
            self.notified.store(false, Ordering::SeqCst);
        }
    }

    /// Takes all that has been put in so far, in order, into `into`, which must be empty.
    pub(crate) fn take_inbox(&self, into: &mut VecDeque<Command>) {
        let mut inbox = self.inbox();
        std::mem::swap(&mut *inbox, into);
        self.has_commands.store(false, Ordering::SeqCst);
    }

    pub(crate) fn has_commands(&self) -> bool {
        self.has_commands.load(Ordering::SeqCst)
    }

    /// Makes a sleeping loop look at its inbox and timers. Any number of wake-ups between two
    /// looks is one write.
    pub(crate) fn wake(&self) {
        let here = RUNNING_HERE.with(|running| std::ptr::eq(running.get(), self));
        if !here && !self.notified.swap(true, Ordering::SeqCst) {
            self.counters.call_shared(Syscall::Write);
            self.waker.wake();
        }
    }

    pub(crate) fn state(&self) -> State {
        match self.state.load(Ordering::SeqCst) {
            0 => State::New,
            1 => State::Running,
            2 => State::Stopping,
            _ => State::Stopped,
        }
    }

    /// Moves on in life; `false` if the reactor was not where `from` says.
    pub(crate) fn change_state(&self, from: State, to: State) -> bool {
        self.state.compare_exchange(from as u8, to as u8, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    pub(crate) fn next_key(&self) -> u32 {
        self.next_key.fetch_add(1, Ordering::Relaxed)
    }

    /// Says that this thread runs the loop, until the guard is dropped.
    pub(crate) fn run_here(&self) -> RunningHere {
        RunningHere(RUNNING_HERE.with(|running| running.replace(self)))
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        let mut numbers = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner);
        numbers.taken[usize::from(self.number)] = false;
    }
}

/// See [`Core::run_here`].
pub(crate) struct RunningHere(*const Core);

impl Drop for RunningHere {
    fn drop(&mut self) {
        RUNNING_HERE.with(|running| running.set(self.0));
    }
}

/// Runs ports, connectors, timers and all connections of one thread, on the backend it was built
/// with. A process may have several, typically one a core; none is global.
///
/// All methods but [`run`](Self::run) may be called at any time, from any thread or callback:
/// they only queue.
pub struct Reactor {
    pub(crate) core: Arc<Core>,
}

impl Reactor {
    /// A handle for other threads.
    pub fn handle(&self) -> ReactorHandle {
        ReactorHandle { reactor: self.share() }
    }

    /// Another name for the same reactor; private so that a program holds a `ReactorHandle`.
    pub(crate) fn share(&self) -> Reactor {
        Reactor { core: Arc::clone(&self.core) }
    }

    /// Calls `call` on the reactor's thread after `delay`, never early; calls with equal deadlines
    /// come in the order in which they were scheduled. A delay of 0 means the next turn.
    pub fn call_later(&self, delay: Duration, call: impl FnOnce(&Reactor) + Send + 'static) -> DelayedCall {
        self.schedule(delay, TimerCall::Reactor(Box::new(call)))
    }

    /// How many timed calls are still to come (Twisted's `getDelayedCalls`), those of factories and connections included.
    pub fn pending_calls(&self) -> usize {
        self.core.timers().count()
    }

    /// Calls `call` once the reactor runs, or in its next turn if it does. Calls keep their order.
    pub fn call_when_running(&self, call: impl FnOnce(&Reactor) + Send + 'static) {
        self.call_from_thread(call);
    }

    /// Calls `call` on the reactor's thread, soon. Calls keep their order; those made before `run`
    /// come after its start.
    pub fn call_from_thread(&self, call: impl FnOnce(&Reactor) + Send + 'static) {
        self.push(Command::Call(Box::new(call)));
    }

    /// Ends `run`: ports close, connections are lost with `Loss::Shutdown`, factories stop.
    ///
    /// # Errors
    /// [`Error::NotRunning`] before `run` and after an earlier stop.
    pub fn stop(&self) -> Result<(), Error> {
        if !self.core.change_state(State::Running, State::Stopping) {
            return Err(Error::NotRunning);
        }
        self.core.wake();
        Ok(())
    }

    /// Whether `run` is under way and has not been told to stop.
    pub fn is_running(&self) -> bool {
        self.core.state() == State::Running
    }

    /// The time by which the reactor goes (Twisted's `seconds`): the machine's monotonic clock, or that of a
    /// [test](crate::testing). A program that measures time by it can be tested without waiting.
    pub fn now(&self) -> Instant {
        self.core.clock.now()
    }

    /// Everything counted so far.
    pub fn stats(&self) -> Stats {
        let budget = &self.core.budget;
        self.core.counters.snapshot().with_output_total(budget.counted(), budget.peak())
    }

    /// Which backend this reactor runs on, and why.
    pub fn backend(&self) -> &BackendInfo {
        &self.core.info
    }

    /// The limits it was built with.
    pub fn limits(&self) -> &Limits {
        &self.core.config.limits
    }

    pub(crate) fn push(&self, command: Command) {
        drop(self.try_push(command));
    }

    /// Gives the command back if the reactor has stopped: nobody would take it out. What it captured may name this very
    /// reactor, so it is not kept, and must not be dropped under the lock.
    pub(crate) fn try_push(&self, command: Command) -> Result<(), Command> {
        let mut inbox = self.core.inbox();
        if self.core.state() == State::Stopped {
            return Err(command);
        }
        inbox.push_back(command);
        self.core.has_commands.store(true, Ordering::SeqCst);
        drop(inbox);
        self.core.wake();
        Ok(())
    }

    /// An error in memory, where what is the kernel's cannot be had: descriptors and datagrams.
    pub(crate) fn in_kernel(&self) -> std::io::Result<()> {
        match self.core.network {
            Some(_) => Err(std::io::Error::new(
                std::io::ErrorKind::Unsupported,
                "a reactor in memory has neither descriptors nor datagrams; test that over sockets",
            )),
            None => Ok(()),
        }
    }

    pub(crate) fn schedule(&self, delay: Duration, call: TimerCall) -> DelayedCall {
        let key = self.schedule_key(delay, call);
        DelayedCall::new(self.downgrade(), key)
    }

    pub(crate) fn schedule_key(&self, delay: Duration, call: TimerCall) -> TimerKey {
        let mut timers = self.core.timers();
        let key = timers.insert(deadline_after(self.core.clock.now(), delay), call);
        let late = if self.core.state() == State::Stopped { timers.remove(key) } else { None };
        drop(timers);
        drop(late);
        self.core.wake();
        key
    }

    fn downgrade(&self) -> Weak<Core> {
        Arc::downgrade(&self.core)
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor")
            .field("backend", &self.core.info)
            .field("state", &self.core.state())
            .finish_non_exhaustive()
    }
}

/// A [`Reactor`] to be kept and sent to other threads.
pub struct ReactorHandle {
    reactor: Reactor,
}

impl Clone for ReactorHandle {
    fn clone(&self) -> Self {
        self.reactor.handle()
    }
}

impl Deref for ReactorHandle {
    type Target = Reactor;

    fn deref(&self) -> &Reactor {
        &self.reactor
    }
}

impl fmt::Debug for ReactorHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reactor.fmt(f)
    }
}
