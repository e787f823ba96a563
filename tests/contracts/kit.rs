//! The test kit: reactors in threads, protocols made of closures that keep a journal, and waiting
//! for what the journal says.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, Once, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::Instant,
};

use ringspun::{
    ClientFactory, ConnId, ConnectError, Connector, Count, Cx, Error, Factory, FactoryCx, Peer as Asking,
    Port, Protocol, Reactor, ReactorHandle, Reason, Transport, policies::Policies,
};

use crate::peers::{LIMIT, Peer};

/// What a factory and its protocols were told, in order. Numbers are those of the connections, in
/// the order in which they were built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Started,
    Stopped,
    Built(usize),
    Made(usize),
    Data(usize, Vec<u8>),
    ReadLost(usize),
    PauseWriting(usize),
    ResumeWriting(usize),
    /// With the reason as `Debug` prints it.
    Lost(usize, String),
    Connecting,
    Failed(String),
    ClientLost(String),
    /// What a hook of the test said.
    Note(String),
}

/// What happened so far, for many threads to add to and to wait for.
#[derive(Clone, Default)]
pub(crate) struct Journal(Arc<Shared>);

#[derive(Default)]
struct Shared {
    kept: Mutex<Kept>,
    added: Condvar,
}

#[derive(Default)]
struct Kept {
    events: Vec<Event>,
    /// Of the connections whose `connection_made` is over.
    ids: BTreeMap<usize, ConnId>,
}

impl Journal {
    pub(crate) fn add(&self, event: Event) {
        self.kept().events.push(event);
        self.0.added.notify_all();
    }

    pub(crate) fn note(&self, text: impl Into<String>) {
        self.add(Event::Note(text.into()));
    }

    pub(crate) fn all(&self) -> Vec<Event> {
        self.kept().events.clone()
    }

    pub(crate) fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.kept().events.iter().filter(|event| wanted(event)).count()
    }

    pub(crate) fn has(&self, event: &Event) -> bool {
        self.kept().events.contains(event)
    }

    /// Waits until the journal is as `done` wants it.
    pub(crate) fn wait(&self, what: &str, done: impl Fn(&[Event]) -> bool) {
        drop(self.wait_kept(what, |kept| done(&kept.events)));
    }

    pub(crate) fn wait_for(&self, event: Event) {
        self.wait(&format!("{event:?}"), |events| events.contains(&event));
    }

    pub(crate) fn wait_note(&self, text: &str) {
        self.wait_for(Event::Note(text.to_owned()));
    }

    /// Waits for the loss of a connection; its reason.
    pub(crate) fn wait_lost(&self, conn: usize) -> String {
        let lost = |event: &Event| match event {
            Event::Lost(number, reason) if *number == conn => Some(reason.clone()),
            _ => None,
        };
        self.wait(&format!("the loss of connection {conn}"), |events| {
            events.iter().any(|e| lost(e).is_some())
        });
        self.kept().events.iter().find_map(lost).unwrap()
    }

    /// Waits until so many connections are lost.
    pub(crate) fn wait_losses(&self, count: usize) {
        self.wait(&format!("{count} losses"), |events| {
            events.iter().filter(|event| matches!(event, Event::Lost(..))).count() >= count
        });
    }

    /// All bytes that a connection received so far.
    pub(crate) fn bytes(&self, conn: usize) -> Vec<u8> {
        self.kept().events.iter().filter_map(|event| event.data_of(conn)).flatten().copied().collect()
    }

    /// Waits until a connection has received so many bytes; all it has received.
    pub(crate) fn wait_bytes(&self, conn: usize, count: usize) -> Vec<u8> {
        self.wait(&format!("{count} bytes for connection {conn}"), |events| {
            events.iter().filter_map(|event| event.data_of(conn)).map(<[u8]>::len).sum::<usize>() >= count
        });
        self.bytes(conn)
    }

    /// Waits until the `connection_made` of a connection is over; its id.
    pub(crate) fn id(&self, conn: usize) -> ConnId {
        let kept = self.wait_kept(&format!("connection {conn}"), |kept| kept.ids.contains_key(&conn));
        kept.ids[&conn]
    }

    /// Lets [`Server::act_on`] have this connection.
    pub(crate) fn keep_id(&self, conn: usize, id: ConnId) {
        self.kept().ids.insert(conn, id);
        self.0.added.notify_all();
    }

    fn wait_kept(&self, what: &str, done: impl Fn(&Kept) -> bool) -> MutexGuard<'_, Kept> {
        let deadline = Instant::now() + LIMIT;
        let mut kept = self.kept();
        while !done(&kept) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited too long for {what}; so far: {:?}", Brief(&kept.events));
            kept = self.0.added.wait_timeout(kept, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        kept
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Event {
    /// The bytes, if this is data of that connection.
    fn data_of(&self, conn: usize) -> Option<&[u8]> {
        match self {
            Self::Data(number, data) if *number == conn => Some(data),
            _ => None,
        }
    }
}

/// A journal for a failure's message: lengths in place of data.
struct Brief<'a>(&'a [Event]);

impl fmt::Debug for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let skipped = self.0.len().saturating_sub(60);
        write!(f, "({skipped} more)")?;
        for event in &self.0[skipped..] {
            match event {
                Event::Data(conn, data) => write!(f, ", Data({conn}, {} bytes)", data.len())?,
                other => write!(f, ", {other:?}")?,
            }
        }
        Ok(())
    }
}

/// One connection, for the hooks of its protocol.
#[derive(Clone)]
pub(crate) struct Conn {
    pub(crate) number: usize,
    pub(crate) journal: Journal,
    drops: Option<Guard>,
}

impl Conn {
    pub(crate) fn note(&self, text: impl Into<String>) {
        self.journal.note(text);
    }

    /// Another guard of the same counter, for a closure to capture.
    pub(crate) fn guard(&self) -> Option<Guard> {
        self.drops.clone()
    }
}

type Hook<const H: bool> = Box<dyn Fn(&mut Cx<'_, Script<H>>, &Conn) + Send + Sync>;
type DataHook<const H: bool> = Box<dyn Fn(&mut Cx<'_, Script<H>>, &Conn, &[u8]) + Send + Sync>;
type LostHook<const H: bool> = Box<dyn Fn(&mut Cx<'_, Script<H>>, &Conn, &Reason) + Send + Sync>;
type BuildHook = Box<dyn Fn(&mut Asking<'_>, usize) -> bool + Send + Sync>;
type FactoryHook<const H: bool> = Box<dyn Fn(&mut FactoryCx<'_, Script<H>>, &Journal) + Send + Sync>;
type ClientHook<const H: bool, W> = Box<dyn Fn(&mut FactoryCx<'_, Script<H>>, &Connector, &W) + Send + Sync>;

/// What the callbacks do beside keeping the journal.
struct Hooks<const H: bool> {
    made: Hook<H>,
    data: DataHook<H>,
    read_lost: Hook<H>,
    pause: Hook<H>,
    resume: Hook<H>,
    lost: LostHook<H>,
    build: BuildHook,
    start: FactoryHook<H>,
    failed: ClientHook<H, ConnectError>,
    client_lost: ClientHook<H, Reason>,
}

/// A factory made of closures; `Script<true>` is half-close-aware.
pub(crate) struct Script<const H: bool = false> {
    pub(crate) journal: Journal,
    /// For tests of what a factory may be told with `&mut`.
    pub(crate) counter: usize,
    hooks: Arc<Hooks<H>>,
    built: usize,
    drops: Option<Drops>,
    _own_guard: Option<Guard>,
}

impl Script {
    pub(crate) fn new() -> Self {
        Self::of_kind()
    }

    /// Sends back what it receives.
    pub(crate) fn echo() -> Self {
        Self::new().on_data(|cx, _, data| {
            let _ = cx.transport.write(data);
        })
    }
}

impl Script<true> {
    pub(crate) fn half_closeable() -> Self {
        Self::of_kind()
    }
}

impl<const H: bool> Script<H> {
    fn of_kind() -> Self {
        let hooks = Hooks {
            made: Box::new(|_, _| ()),
            data: Box::new(|_, _, _| ()),
            read_lost: Box::new(|_, _| ()),
            pause: Box::new(|_, _| ()),
            resume: Box::new(|_, _| ()),
            lost: Box::new(|_, _, _| ()),
            build: Box::new(|_, _| true),
            start: Box::new(|_, _| ()),
            failed: Box::new(|_, _, _| ()),
            client_lost: Box::new(|_, _, _| ()),
        };
        Self {
            journal: Journal::default(),
            counter: 0,
            hooks: Arc::new(hooks),
            built: 0,
            drops: None,
            _own_guard: None,
        }
    }

    fn set(mut self, set: impl FnOnce(&mut Hooks<H>)) -> Self {
        set(Arc::get_mut(&mut self.hooks).expect("no protocol exists yet"));
        self
    }

    pub(crate) fn on_made(self, hook: impl Fn(&mut Cx<'_, Self>, &Conn) + Send + Sync + 'static) -> Self {
        self.set(|hooks| hooks.made = Box::new(hook))
    }

    pub(crate) fn on_data(
        self,
        hook: impl Fn(&mut Cx<'_, Self>, &Conn, &[u8]) + Send + Sync + 'static,
    ) -> Self {
        self.set(|hooks| hooks.data = Box::new(hook))
    }

    pub(crate) fn on_read_lost(
        self,
        hook: impl Fn(&mut Cx<'_, Self>, &Conn) + Send + Sync + 'static,
    ) -> Self {
        self.set(|hooks| hooks.read_lost = Box::new(hook))
    }

    pub(crate) fn on_pause(self, hook: impl Fn(&mut Cx<'_, Self>, &Conn) + Send + Sync + 'static) -> Self {
        self.set(|hooks| hooks.pause = Box::new(hook))
    }

    pub(crate) fn on_resume(self, hook: impl Fn(&mut Cx<'_, Self>, &Conn) + Send + Sync + 'static) -> Self {
        self.set(|hooks| hooks.resume = Box::new(hook))
    }

    pub(crate) fn on_lost(
        self,
        hook: impl Fn(&mut Cx<'_, Self>, &Conn, &Reason) + Send + Sync + 'static,
    ) -> Self {
        self.set(|hooks| hooks.lost = Box::new(hook))
    }

    /// Whether to build a protocol for the connection of this number.
    pub(crate) fn on_build(
        self,
        hook: impl Fn(&mut Asking<'_>, usize) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.set(|hooks| hooks.build = Box::new(hook))
    }

    pub(crate) fn on_start(
        self,
        hook: impl Fn(&mut FactoryCx<'_, Self>, &Journal) + Send + Sync + 'static,
    ) -> Self {
        self.set(|hooks| hooks.start = Box::new(hook))
    }

    pub(crate) fn on_failed(
        self,
        hook: impl Fn(&mut FactoryCx<'_, Self>, &Connector, &ConnectError) + Send + Sync + 'static,
    ) -> Self {
        self.set(|hooks| hooks.failed = Box::new(hook))
    }

    pub(crate) fn on_client_lost(
        self,
        hook: impl Fn(&mut FactoryCx<'_, Self>, &Connector, &Reason) + Send + Sync + 'static,
    ) -> Self {
        self.set(|hooks| hooks.client_lost = Box::new(hook))
    }

    /// Has the factory and every protocol hold a guard of this counter.
    pub(crate) fn counting(mut self, drops: &Drops) -> Self {
        self.drops = Some(drops.clone());
        self._own_guard = Some(drops.guard());
        self
    }

    /// Keeps the journal of another script.
    pub(crate) fn journal(mut self, journal: &Journal) -> Self {
        self.journal = journal.clone();
        self
    }

    /// Serves a port of 127.0.0.1 on a reactor of its own.
    pub(crate) fn serve(self, reactor: Reactor) -> Server {
        let journal = self.journal.clone();
        let port = reactor.listen_tcp(("127.0.0.1", 0), self).unwrap();
        Server::start(journal, port, reactor)
    }

    /// The same at another address.
    pub(crate) fn serve_at(self, address: IpAddr, reactor: Reactor) -> Server {
        let journal = self.journal.clone();
        let port = reactor.listen_tcp((address, 0), self).unwrap();
        Server::start(journal, port, reactor)
    }

    /// The same, with these policies.
    pub(crate) fn serve_behind(self, policies: &Policies, reactor: Reactor) -> Server {
        let journal = self.journal.clone();
        let port = reactor.listen_tcp(("127.0.0.1", 0), policies.wrap(self)).unwrap();
        Server::start(journal, port, reactor)
    }

    /// Serves a Unix socket, which [`dial_unix`](Peer::dial_unix) connects to.
    pub(crate) fn serve_unix(self, path: &Path, reactor: Reactor) -> Server {
        let journal = self.journal.clone();
        let port = reactor.listen_unix(path, self).unwrap();
        Server::start(journal, port, reactor)
    }
}

impl<const H: bool> Factory for Script<H> {
    type Protocol = Recorder<H>;

    fn build_protocol(&mut self, peer: &mut Asking<'_>) -> Option<Recorder<H>> {
        let number = self.built;
        self.built += 1;
        self.journal.add(Event::Built(number));
        let hooks = Arc::clone(&self.hooks);
        (hooks.build)(peer, number).then(|| Recorder {
            conn: Conn {
                number,
                journal: self.journal.clone(),
                drops: self.drops.as_ref().map(Drops::guard),
            },
            hooks,
        })
    }

    fn start_factory(&mut self, cx: &mut FactoryCx<'_, Self>) -> std::io::Result<()> {
        self.journal.add(Event::Started);
        (self.hooks.start)(cx, &self.journal);
        Ok(())
    }

    fn stop_factory(&mut self, _cx: &mut FactoryCx<'_, Self>) {
        self.journal.add(Event::Stopped);
    }
}

impl<const H: bool> ClientFactory for Script<H> {
    fn started_connecting(&mut self, _cx: &mut FactoryCx<'_, Self>, _connector: &Connector) {
        self.journal.add(Event::Connecting);
    }

    fn client_connection_failed(
        &mut self,
        cx: &mut FactoryCx<'_, Self>,
        connector: &Connector,
        error: &ConnectError,
    ) {
        self.journal.add(Event::Failed(format!("{error:?}")));
        (self.hooks.failed)(cx, connector, error);
    }

    fn client_connection_lost(
        &mut self,
        cx: &mut FactoryCx<'_, Self>,
        connector: &Connector,
        reason: &Reason,
    ) {
        self.journal.add(Event::ClientLost(format!("{reason:?}")));
        (self.hooks.client_lost)(cx, connector, reason);
    }
}

/// Writes into the journal, then does what the script says.
pub(crate) struct Recorder<const H: bool> {
    pub(crate) conn: Conn,
    hooks: Arc<Hooks<H>>,
}

impl<const H: bool> Protocol<Script<H>> for Recorder<H> {
    const HALF_CLOSEABLE: bool = H;

    fn connection_made(&mut self, cx: &mut Cx<'_, Script<H>>) {
        self.conn.journal.add(Event::Made(self.conn.number));
        (self.hooks.made)(cx, &self.conn);
        self.conn.journal.keep_id(self.conn.number, cx.transport.id());
    }

    fn data_received(&mut self, cx: &mut Cx<'_, Script<H>>, data: &[u8]) {
        self.conn.journal.add(Event::Data(self.conn.number, data.to_vec()));
        (self.hooks.data)(cx, &self.conn, data);
    }

    fn connection_lost(&mut self, cx: &mut Cx<'_, Script<H>>, reason: &Reason) {
        self.conn.journal.add(Event::Lost(self.conn.number, format!("{reason:?}")));
        (self.hooks.lost)(cx, &self.conn, reason);
    }

    fn read_connection_lost(&mut self, cx: &mut Cx<'_, Script<H>>) {
        self.conn.journal.add(Event::ReadLost(self.conn.number));
        (self.hooks.read_lost)(cx, &self.conn);
    }

    fn pause_writing(&mut self, cx: &mut Cx<'_, Script<H>>) {
        self.conn.journal.add(Event::PauseWriting(self.conn.number));
        (self.hooks.pause)(cx, &self.conn);
    }

    fn resume_writing(&mut self, cx: &mut Cx<'_, Script<H>>) {
        self.conn.journal.add(Event::ResumeWriting(self.conn.number));
        (self.hooks.resume)(cx, &self.conn);
    }
}

/// A reactor that runs in a thread of its own, until it is told to stop or dropped.
pub(crate) struct Running {
    pub(crate) reactor: ReactorHandle,
    ended: Mutex<Receiver<Result<(), Error>>>,
    over: bool,
}

impl Running {
    pub(crate) fn start(reactor: Reactor) -> Self {
        let running = Self::start_unsure(reactor);
        let (told, started) = mpsc::channel();
        running.reactor.call_when_running(move |_| told.send(()).unwrap());
        started.recv_timeout(LIMIT).expect("the reactor runs");
        running
    }

    /// As [`start`](Self::start), for a reactor that may not come to run.
    pub(crate) fn start_unsure(reactor: Reactor) -> Self {
        let handle = reactor.handle();
        let (tell, ended) = mpsc::channel();
        let name = thread::current().name().unwrap_or("reactor").to_owned();
        let run = move || drop(tell.send(reactor.run()));
        thread::Builder::new().name(name).spawn(run).unwrap();
        Self { reactor: handle, ended: Mutex::new(ended), over: false }
    }

    /// Stops it; what `run` returned.
    pub(crate) fn stop(&mut self) -> Result<(), Error> {
        let _ = self.reactor.stop();
        self.wait()
    }

    /// Waits until it ends by itself; what `run` returned.
    pub(crate) fn wait(&mut self) -> Result<(), Error> {
        self.over = true;
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        match ended.recv_timeout(LIMIT) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => panic!("the reactor does not end"),
            Err(RecvTimeoutError::Disconnected) => panic!("the reactor panicked"),
        }
    }

    pub(crate) fn count(&self, count: Count) -> u64 {
        self.reactor.stats().count(count)
    }

    /// Waits until so many have been counted.
    pub(crate) fn wait_count(&self, count: Count, wanted: u64) {
        let deadline = Instant::now() + LIMIT;
        while self.count(count) < wanted {
            assert!(Instant::now() < deadline, "{} of {wanted} are counted as {count}", self.count(count));
            thread::yield_now();
        }
    }

    /// Runs this on the reactor's thread; its answer.
    pub(crate) fn call<R: Send + 'static>(&self, call: impl FnOnce(&Reactor) -> R + Send + 'static) -> R {
        let (tell, told) = mpsc::channel();
        self.reactor.call_from_thread(move |reactor| drop(tell.send(call(reactor))));
        told.recv_timeout(LIMIT).expect("an answer of the reactor's thread")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let ended = if thread::panicking() {
            drop(self.reactor.stop());
            Ok(())
        } else {
            self.stop()
        };
        assert!(ended.is_ok() || thread::panicking(), "run returned {ended:?}");
    }
}

/// A script on a port of a running reactor.
pub(crate) struct Server {
    pub(crate) journal: Journal,
    pub(crate) port: Port,
    control: Mutex<Option<Control>>,
    // Dropped last: what the others hold is let go while it still runs.
    pub(crate) running: Running,
}

impl Server {
    /// Runs the reactor of a port, whose protocols tell the journal.
    pub(crate) fn start(journal: Journal, port: Port, reactor: Reactor) -> Self {
        Self { journal, port, control: Mutex::default(), running: Running::start(reactor) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.port.get_host().socket_addr().unwrap()
    }

    pub(crate) fn dial(&self) -> Peer {
        Peer::dial(self.address())
    }

    /// Dials and waits until the connection is made.
    pub(crate) fn dial_made(&self, number: usize) -> Peer {
        let peer = self.dial();
        self.journal.wait_for(Event::Made(number));
        peer
    }

    pub(crate) fn count(&self, count: Count) -> u64 {
        self.running.count(count)
    }

    pub(crate) fn stop(&mut self) {
        self.running.stop().unwrap();
    }

    /// Lets `act` have the transport of any connection, from inside a callback of another one.
    pub(crate) fn act<R: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Transport<'_>) -> R + Send + 'static,
    ) -> R {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        control.get_or_insert_with(|| Control::open(&self.running.reactor)).act(act)
    }
}

impl Server {
    /// As [`act`](Self::act), with the transport of a connection that was made.
    pub(crate) fn act_on<R: Send + 'static>(
        &self,
        conn: usize,
        act: impl FnOnce(&mut Transport<'_>) -> R + Send + 'static,
    ) -> R {
        let id = self.journal.id(conn);
        self.act(move |transport| act(&mut transport.to(id)))
    }

    /// Has the loop turn a few times, so that what was about to happen has happened.
    pub(crate) fn let_it_turn(&self) {
        (0..5).for_each(|_| self.act(|_| ()));
    }
}

type Act = Box<dyn FnOnce(&mut Transport<'_>) + Send>;

/// A connection to the reactor that carries a byte for each thing to be done there.
struct Control {
    peer: Peer,
    acts: Sender<Act>,
}

struct Obedient {
    acts: Arc<Mutex<Receiver<Act>>>,
}

impl<F> Protocol<F> for Obedient {
    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        for _ in data {
            let act = self.acts.lock().unwrap().recv().unwrap();
            act(&mut cx.transport);
        }
    }
}

impl Control {
    fn open(reactor: &Reactor) -> Self {
        let (send, acts) = mpsc::channel();
        let acts = Arc::new(Mutex::new(acts));
        let factory = ringspun::Serve(move || Obedient { acts: Arc::clone(&acts) });
        let port = reactor.listen_tcp(("127.0.0.1", 0), factory).unwrap();
        let peer = Peer::dial(port.get_host().socket_addr().unwrap());
        Self { peer, acts: send }
    }

    fn act<R: Send + 'static>(&mut self, act: impl FnOnce(&mut Transport<'_>) -> R + Send + 'static) -> R {
        let (tell, told) = mpsc::channel();
        self.acts.send(Box::new(move |transport| drop(tell.send(act(transport))))).unwrap();
        self.peer.write(b"!");
        told.recv_timeout(LIMIT).expect("an answer of the control connection")
    }
}

/// Counts what was made and is not dropped yet.
#[derive(Clone, Default)]
pub(crate) struct Drops(Arc<(Mutex<usize>, Condvar)>);

/// Alive as long as it is not dropped.
pub(crate) struct Guard(Drops);

impl Drops {
    pub(crate) fn guard(&self) -> Guard {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Guard(self.clone())
    }

    pub(crate) fn alive(&self) -> usize {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until only so many are left.
    pub(crate) fn wait_for(&self, left: usize) {
        let alive = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (alive, _) = self
            .0
            .1
            .wait_timeout_while(alive, LIMIT, |alive| *alive > left)
            .unwrap_or_else(PoisonError::into_inner);
        assert_eq!(*alive, left, "something is kept alive");
    }
}

impl Clone for Guard {
    fn clone(&self) -> Self {
        self.0.guard()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        *self.0.0.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.0.1.notify_all();
    }
}

/// Makes an expression whose answer does not matter fit where none is wanted.
pub(crate) fn ignore<T>(_: T) {}

/// A gate that a callback waits at until the test opens it.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub(crate) fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    pub(crate) fn pass(&self) {
        let open = self.0.0.lock().unwrap();
        let (open, _) = self.0.1.wait_timeout_while(open, LIMIT, |open| !*open).unwrap();
        assert!(*open, "nobody opened the gate");
    }
}

/// Counts upwards from any thread.
#[derive(Clone, Default)]
pub(crate) struct Tally(Arc<AtomicUsize>);

impl Tally {
    /// One more; how many there were.
    pub(crate) fn up(&self) -> usize {
        self.0.fetch_add(1, SeqCst)
    }

    pub(crate) fn get(&self) -> usize {
        self.0.load(SeqCst)
    }
}

/// Everything that was logged by this process.
static RECORDS: Mutex<Vec<String>> = Mutex::new(Vec::new());
static RECORD_ADDED: Condvar = Condvar::new();

struct Keeper;

impl log::Log for Keeper {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let text = format!("{} {}", record.level(), record.args());
        records().push(text);
        RECORD_ADDED.notify_all();
    }

    fn flush(&self) {}
}

/// Installs the logger that [`logged`] asks.
pub(crate) fn keep_log_records() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Keeper).expect("no other logger");
        log::set_max_level(log::LevelFilter::Info);
    });
}

fn records() -> MutexGuard<'static, Vec<String>> {
    RECORDS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many log records contain this text.
pub(crate) fn logged(text: &str) -> usize {
    records().iter().filter(|record| record.contains(text)).count()
}

/// Waits for a log record that contains this text.
pub(crate) fn wait_logged(text: &str) {
    let (deadline, mut records, mut looked_at) = (Instant::now() + LIMIT, records(), 0);
    while !records[looked_at..].iter().any(|record| record.contains(text)) {
        // All tests log into one place: who looked at everything each time would keep the others from it.
        looked_at = records.len();
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "nobody says {text}");
        records = RECORD_ADDED.wait_timeout(records, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}
