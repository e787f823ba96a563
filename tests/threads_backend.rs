//! What is peculiar to the threads backend: that nobody waits for somebody else's callback, and
//! that a connection is reached, changed and ended while its own thread sits in `recv`.
//!
//! The contracts that all backends share are in `tests/contracts`.

use std::{
    fs,
    io::{self, ErrorKind, Read, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ringspun::{
    Backend, ClientFactory, ConnId, ConnectorState, Count, Cx, DelayedCall, Factory, FactoryCx, Limits, Peer,
    Protocol, Reactor, ReactorHandle, Reason, Serve, Stats, Syscall,
};

const LIMIT: Duration = Duration::from_secs(20);

/// Tests that count threads of the process have it for themselves.
static ALONE: Mutex<()> = Mutex::new(());

/// What a protocol was told.
#[derive(Debug, PartialEq)]
enum Told {
    Made(ConnId),
    Paused(ConnId),
    Resumed(ConnId),
    Lost(ConnId, String),
    FactoryTimer,
}

type Act = dyn Fn(&mut Cx<'_, Actors>, &[u8]) + Send + Sync;

/// Builds protocols that do what the test says with what they receive.
struct Actors {
    told: Sender<Told>,
    act: Arc<Act>,
    number: u32,
    /// A timer of the factory's.
    timer: Option<DelayedCall>,
}

struct Actor {
    told: Sender<Told>,
    act: Arc<Act>,
}

impl Factory for Actors {
    type Protocol = Actor;

    fn build_protocol(&mut self, _peer: &mut Peer<'_>) -> Option<Actor> {
        Some(Actor { told: self.told.clone(), act: Arc::clone(&self.act) })
    }

    fn start_factory(&mut self, cx: &mut FactoryCx<'_, Self>) -> io::Result<()> {
        let tell =
            |factory: &mut Self, _: &mut FactoryCx<'_, Self>| ignore(factory.told.send(Told::FactoryTimer));
        self.timer = Some(cx.call_later(Duration::from_secs(3600), tell));
        Ok(())
    }
}

impl Protocol<Actors> for Actor {
    fn connection_made(&mut self, cx: &mut Cx<'_, Actors>) {
        self.tell(Told::Made(cx.transport.id()));
    }

    fn data_received(&mut self, cx: &mut Cx<'_, Actors>, data: &[u8]) {
        (self.act)(cx, data);
    }

    fn connection_lost(&mut self, cx: &mut Cx<'_, Actors>, reason: &Reason) {
        self.tell(Told::Lost(cx.transport.id(), format!("{reason:?}")));
    }

    fn pause_writing(&mut self, cx: &mut Cx<'_, Actors>) {
        self.tell(Told::Paused(cx.transport.id()));
    }

    fn resume_writing(&mut self, cx: &mut Cx<'_, Actors>) {
        self.tell(Told::Resumed(cx.transport.id()));
    }
}

impl Actor {
    fn tell(&self, told: Told) {
        // A test that is over listens no more.
        let _ = self.told.send(told);
    }
}

/// A reactor at work in a thread.
struct Running {
    handle: ReactorHandle,
    address: SocketAddr,
    told: Receiver<Told>,
    thread: Option<JoinHandle<()>>,
    _alone: MutexGuard<'static, ()>,
}

impl Running {
    fn start(act: impl Fn(&mut Cx<'_, Actors>, &[u8]) + Send + Sync + 'static) -> Self {
        Self::limited(Limits::default(), act)
    }

    fn limited(limits: Limits, act: impl Fn(&mut Cx<'_, Actors>, &[u8]) + Send + Sync + 'static) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let reactor =
            Reactor::builder().backend(Backend::Threads).signals(false).limits(limits).build().unwrap();
        let (tell, told) = channel();
        let actors = Actors { told: tell, act: Arc::new(act), number: 0, timer: None };
        let port = reactor.listen_tcp(("127.0.0.1", 0), actors).unwrap();
        let address = (Ipv4Addr::LOCALHOST, port.get_host().port().unwrap()).into();
        let handle = reactor.handle();
        let thread = Some(thread::spawn(move || reactor.run().unwrap()));
        Self { handle, address, told, thread, _alone: alone }
    }

    /// Connects, and waits until the protocol has been told.
    fn dial(&self) -> (TcpStream, ConnId) {
        let peer = TcpStream::connect(self.address).unwrap();
        peer.set_read_timeout(Some(LIMIT)).unwrap();
        peer.set_write_timeout(Some(LIMIT)).unwrap();
        match self.next() {
            Told::Made(id) => (peer, id),
            other => panic!("not made, but {other:?}"),
        }
    }

    fn next(&self) -> Told {
        self.told.recv_timeout(LIMIT).expect("nothing was told")
    }

    fn expect(&self, told: Told) {
        assert_eq!(self.next(), told);
    }

    /// Calls this on the reactor's main thread and waits for its answer.
    fn call<R: Send + 'static>(&self, call: impl FnOnce(&Reactor) -> R + Send + 'static) -> R {
        let (answer, answered) = channel();
        self.handle.call_from_thread(move |reactor| answer.send(call(reactor)).unwrap());
        answered.recv_timeout(LIMIT).expect("the main thread did not come to it")
    }

    /// Waits until the statistics are as `done` wants them.
    fn wait_stats(&self, done: impl Fn(&Stats) -> bool) -> Stats {
        let deadline = Instant::now() + LIMIT;
        loop {
            let stats = self.handle.stats();
            if done(&stats) {
                return stats;
            }
            assert!(Instant::now() < deadline, "{stats:?}");
            thread::yield_now();
        }
    }

    fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.handle.stop().unwrap();
            thread.join().unwrap();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.stop();
        }
    }
}

fn read_exactly(peer: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    peer.read_exact(&mut bytes).unwrap();
    bytes
}

fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// How many threads the library has.
fn threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|name| name.starts_with("ringspun")).count()
}

/// Waits until the library has only so many threads left.
fn wait_threads(left: usize) {
    let deadline = Instant::now() + LIMIT;
    while threads() > left {
        assert!(Instant::now() < deadline, "{} threads", threads());
        thread::yield_now();
    }
}

/// Whether the write was accepted is not what these tests are about.
fn ignore<T>(_: T) {}

/// A door that a callback stands before until the test opens it.
fn door() -> (Sender<()>, Mutex<Receiver<()>>) {
    let (open, closed) = channel();
    (open, Mutex::new(closed))
}

fn pass(door: &Mutex<Receiver<()>>) {
    door.lock().unwrap().recv_timeout(LIMIT).expect("the door stayed closed");
}

#[test]
fn a_long_callback_holds_up_nobody_but_its_own_connection() {
    let (open, door) = door();
    let (said, heard) = channel();
    let said = Mutex::new(said);
    let running = Running::start(move |cx, data| match data {
        b"wait" => {
            said.lock().unwrap().send("inside").unwrap();
            pass(&door);
            cx.transport.write(b"waited");
        }
        b"later" => {
            drop(cx.call_later(Duration::from_millis(1), |_, cx| ignore(cx.transport.write(b"timer"))))
        }
        data => ignore(cx.transport.write(data)),
    });
    let (mut waiting, waiting_id) = running.dial();
    let (mut other, _) = running.dial();
    waiting.write_all(b"wait").unwrap();
    assert_eq!(heard.recv_timeout(LIMIT), Ok("inside"));

    other.write_all(b"other").unwrap();
    assert_eq!(read_exactly(&mut other, 5), b"other");
    other.write_all(b"later").unwrap();
    assert_eq!(read_exactly(&mut other, 5), b"timer");
    let (mut third, _) = running.dial();
    third.write_all(b"third").unwrap();
    assert_eq!(read_exactly(&mut third, 5), b"third");
    let (fired, firing) = channel();
    running.handle.call_later(Duration::from_millis(1), move |_| fired.send(()).unwrap());
    firing.recv_timeout(LIMIT).expect("a timer waits for a callback");

    open.send(()).unwrap();
    assert_eq!(read_exactly(&mut waiting, 6), b"waited");
    drop(waiting);
    running.expect(Told::Lost(waiting_id, "Done".to_owned()));
}

#[test]
fn what_is_asked_of_a_connection_in_a_long_callback_is_done_after_it() {
    let (open, door) = door();
    let (said, heard) = channel();
    let said = Mutex::new(said);
    let target: Arc<Mutex<Option<ConnId>>> = Arc::default();
    let to = Arc::clone(&target);
    let running = Running::start(move |cx, data| match data {
        b"wait" => {
            said.lock().unwrap().send("inside").unwrap();
            pass(&door);
        }
        b"post" => {
            let id = to.lock().unwrap().unwrap();
            for word in [b"1", b"2", b"3"] {
                cx.post(id, move |_, cx| ignore(cx.transport.write(word)));
            }
            cx.transport.to(id).write(b"0");
            cx.transport.write(b"posted");
        }
        _ => {}
    });
    let (mut waiting, id) = running.dial();
    *target.lock().unwrap() = Some(id);
    waiting.write_all(b"wait").unwrap();
    assert_eq!(heard.recv_timeout(LIMIT), Ok("inside"));
    let (mut other, _) = running.dial();
    other.write_all(b"post").unwrap();
    assert_eq!(read_exactly(&mut other, 6), b"posted");
    running.call(|_| ());
    open.send(()).unwrap();
    assert_eq!(read_exactly(&mut waiting, 4), b"0123");
}

/// What any other port serves.
struct Greeting;

impl<F> Protocol<F> for Greeting {
    fn connection_made(&mut self, cx: &mut Cx<'_, F>) {
        cx.transport.write(b"welcome");
    }

    fn data_received(&mut self, _cx: &mut Cx<'_, F>, _data: &[u8]) {}
}

#[test]
fn a_callback_that_keeps_the_factory_holds_up_only_what_needs_the_factory() {
    let (open, door) = door();
    let (said, heard) = channel();
    let said = Mutex::new(said);
    let running = Running::start(move |cx, _| {
        let factory = &mut *cx.factory;
        // Due from here on, where the factory cannot be had.
        factory.timer.as_ref().unwrap().reset(Duration::ZERO).unwrap();
        said.lock().unwrap().send("inside").unwrap();
        pass(&door);
        factory.number += 1;
    });
    let (mut keeping, _) = running.dial();
    keeping.write_all(b"keep").unwrap();
    assert_eq!(heard.recv_timeout(LIMIT), Ok("inside"));

    let (fired, firing) = channel();
    running.handle.call_later(Duration::ZERO, move |_| fired.send(()).unwrap());
    firing.recv_timeout(LIMIT).expect("a timer of the reactor waits for the factory");
    let port = running.handle.listen_tcp(("127.0.0.1", 0), Serve(|| Greeting)).unwrap();
    let mut peer = TcpStream::connect((Ipv4Addr::LOCALHOST, port.get_host().port().unwrap())).unwrap();
    peer.set_read_timeout(Some(LIMIT)).unwrap();
    assert_eq!(read_exactly(&mut peer, 7), b"welcome");
    running.call(|_| ());

    assert!(running.told.try_recv().is_err(), "nobody else has the factory");
    open.send(()).unwrap();
    running.expect(Told::FactoryTimer);
}

#[test]
fn posts_and_timers_reach_a_connection_that_sits_in_recv() {
    let target: Arc<Mutex<Option<ConnId>>> = Arc::default();
    let to = Arc::clone(&target);
    let running = Running::start(move |cx, data| match data {
        b"post" => cx.post(to.lock().unwrap().unwrap(), |_, cx| {
            cx.transport.write(b"post");
            cx.call_later(Duration::from_millis(1), |_, cx| ignore(cx.transport.write(b"timer")));
        }),
        _ => panic!("{data:?}"),
    });
    let (mut sitting, id) = running.dial();
    *target.lock().unwrap() = Some(id);
    let (mut other, _) = running.dial();
    for _ in 0..100 {
        other.write_all(b"post").unwrap();
        assert_eq!(read_exactly(&mut sitting, 9), b"posttimer");
    }
}

#[test]
fn a_peer_that_does_not_read_blocks_nobody_who_writes_to_it() {
    const BYTES: usize = 12 << 20;
    let target: Arc<Mutex<Option<ConnId>>> = Arc::default();
    let to = Arc::clone(&target);
    let running = Running::start(move |cx, _| {
        cx.transport.to(to.lock().unwrap().unwrap()).write(&pattern(BYTES));
        cx.transport.write(b"done");
    });
    let (mut deaf, id) = running.dial();
    *target.lock().unwrap() = Some(id);
    let (mut other, _) = running.dial();
    other.write_all(b"go").unwrap();
    assert_eq!(read_exactly(&mut other, 4), b"done");
    running.expect(Told::Paused(id));
    assert!(read_exactly(&mut deaf, BYTES) == pattern(BYTES), "bytes were changed, lost or doubled");
    running.expect(Told::Resumed(id));
}

/// Were the reader woken with SHUT_RD before the flush is over, what the peer sends meanwhile would
/// be answered with RST, and the output destroyed.
#[test]
fn c7_losing_a_connection_from_elsewhere_while_its_peer_sends() {
    const BYTES: usize = 4 << 20;
    let target: Arc<Mutex<Option<ConnId>>> = Arc::default();
    let to = Arc::clone(&target);
    let limits = Limits { drain_max: usize::MAX, ..Limits::default() };
    let running = Running::limited(limits, move |cx, data| {
        if data == b"lose" {
            let mut other = cx.transport.to(to.lock().unwrap().unwrap());
            other.write(&pattern(BYTES));
            other.lose_connection();
        }
    });
    let (mut busy, id) = running.dial();
    *target.lock().unwrap() = Some(id);
    let (mut other, _) = running.dial();
    let mut sending = busy.try_clone().unwrap();
    let (enough, stop) = channel::<()>();
    let sender = thread::spawn(move || {
        while stop.try_recv().is_err() {
            sending.write_all(&[b'.'; 4096]).unwrap();
        }
        sending.shutdown(std::net::Shutdown::Write).unwrap();
    });
    other.write_all(b"lose").unwrap();
    running.expect(Told::Paused(id));
    let got = read_exactly(&mut busy, BYTES);
    assert!(got == pattern(BYTES), "bytes were changed, lost or doubled");
    assert_eq!(busy.read(&mut [0]).unwrap(), 0, "FIN, and no reset");
    enough.send(()).unwrap();
    sender.join().unwrap();
    assert_eq!(lost(&running), (id, "Done".to_owned()));
}

/// The next loss, whatever else is told before it.
fn lost(running: &Running) -> (ConnId, String) {
    loop {
        if let Told::Lost(id, reason) = running.next() {
            return (id, reason);
        }
    }
}

#[test]
fn an_abort_from_elsewhere_wakes_the_reader_and_resets_the_peer() {
    let target: Arc<Mutex<Option<ConnId>>> = Arc::default();
    let to = Arc::clone(&target);
    let running = Running::start(move |cx, _| {
        cx.transport.to(to.lock().unwrap().unwrap()).abort_connection();
        cx.transport.write(b"done");
    });
    let (mut aborted, id) = running.dial();
    *target.lock().unwrap() = Some(id);
    let (mut other, _) = running.dial();
    other.write_all(b"abort").unwrap();
    running.expect(Told::Lost(id, "Aborted".to_owned()));
    assert_eq!(aborted.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(read_exactly(&mut other, 4), b"done");
    // The id is stale now, and inert.
    other.write_all(b"again").unwrap();
    assert_eq!(read_exactly(&mut other, 4), b"done");
}

#[test]
fn a_drain_that_takes_too_long_ends_a_reader_in_recv() {
    let limits = Limits { drain_timeout: Duration::from_millis(50), ..Limits::default() };
    let running = Running::limited(limits, |cx, _| cx.transport.lose_connection());
    let (mut peer, id) = running.dial();
    peer.write_all(b"lose").unwrap();
    assert_eq!(peer.read(&mut [0]).unwrap(), 0, "FIN");
    // The peer keeps its own half open.
    running.expect(Told::Lost(id, "Done".to_owned()));
    drop(peer);
}

#[test]
fn a_resume_from_elsewhere_delivers_what_was_held() {
    let target: Arc<Mutex<Option<ConnId>>> = Arc::default();
    let to = Arc::clone(&target);
    let running = Running::start(move |cx, data| match data {
        b"pause" => {
            cx.transport.pause_producing();
            cx.transport.write(b"paused");
        }
        b"resume" => cx.transport.to(to.lock().unwrap().unwrap()).resume_producing(),
        data => ignore(cx.transport.write(data)),
    });
    let (mut paused, id) = running.dial();
    *target.lock().unwrap() = Some(id);
    let (mut other, _) = running.dial();
    for _ in 0..50 {
        paused.write_all(b"pause").unwrap();
        assert_eq!(read_exactly(&mut paused, 6), b"paused");
        paused.write_all(b"held").unwrap();
        other.write_all(b"resume").unwrap();
        assert_eq!(read_exactly(&mut paused, 4), b"held");
    }
}

/// `write_with` runs its closure before it locks anything, for the closure may lock the factory.
#[test]
fn filling_output_from_the_factory_cannot_deadlock() {
    let target: Arc<Mutex<Option<ConnId>>> = Arc::default();
    let to = Arc::clone(&target);
    let (filling, inside) = door();
    let (held, holding) = door();
    let running = Running::start(move |cx, data| match data {
        b"hold" => {
            cx.factory.number += 1;
            held.send(()).unwrap();
            let id = to.lock().unwrap().unwrap();
            // The other one is about to ask for the factory, inside of its `write_with`.
            pass(&inside);
            cx.transport.to(id).write(b"from elsewhere ");
        }
        _ => {
            let Cx { transport, factory, .. } = cx;
            transport.write_with(|out| {
                filling.send(()).unwrap();
                write!(out, "{}", factory.number)
            });
        }
    });
    let (mut filled, id) = running.dial();
    *target.lock().unwrap() = Some(id);
    let (mut holder, _) = running.dial();
    holder.write_all(b"hold").unwrap();
    pass(&holding);
    filled.write_all(b"fill").unwrap();
    assert_eq!(read_exactly(&mut filled, 16), b"from elsewhere 1");
}

#[test]
fn a_panic_with_the_factory_locked_poisons_nothing() {
    let running = Running::start(|cx, data| {
        cx.factory.number += 1;
        assert_ne!(data, b"panic", "as the test wants it");
        let number = cx.factory.number;
        cx.transport.write_with(|out| write!(out, "{number}"));
    });
    let (mut panicking, id) = running.dial();
    panicking.write_all(b"panic").unwrap();
    let (lost, reason) = lost(&running);
    assert_eq!(lost, id);
    assert!(reason.starts_with("Panicked("), "{reason}");
    let (mut next, _) = running.dial();
    next.write_all(b"next").unwrap();
    assert_eq!(read_exactly(&mut next, 1), b"2");
}

#[test]
fn one_thread_a_connection_and_none_is_left_at_the_end() {
    const CONNECTIONS: usize = 50;
    let mut running = Running::start(|cx, data| ignore(cx.transport.write(data)));
    let mut peers: Vec<_> = (0..CONNECTIONS).map(|_| running.dial()).collect();
    let sender = 1;
    assert_eq!(threads(), CONNECTIONS + sender);
    let (mut first, id) = peers.swap_remove(0);
    first.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(first.read(&mut [0]).unwrap(), 0);
    running.expect(Told::Lost(id, "Done".to_owned()));
    running.stop();
    assert_eq!(threads(), 0);
    let losses: Vec<_> = running.told.try_iter().collect();
    assert_eq!(losses.len(), CONNECTIONS - 1);
    let shutdown = |told: &Told| matches!(told, Told::Lost(_, reason) if reason == "Lost(Shutdown)");
    assert!(losses.iter().all(shutdown), "{losses:?}");
    assert_eq!(running.handle.stats().connections(), 0);
}

/// Connects a client factory, and says when it stops.
struct Caller {
    name: &'static str,
    stopping: Box<dyn FnMut(&'static str) + Send>,
}

impl Factory for Caller {
    type Protocol = Greeting;

    fn build_protocol(&mut self, _peer: &mut Peer<'_>) -> Option<Greeting> {
        Some(Greeting)
    }

    fn stop_factory(&mut self, _cx: &mut FactoryCx<'_, Self>) {
        (self.stopping)(self.name);
    }
}

impl ClientFactory for Caller {}

/// The last thing that the main thread sees of a reactor is a connector that connects once more.
#[test]
fn f1_a_connector_that_connects_at_the_very_end_lets_its_factory_stop() {
    let mut running = Running::start(|_, _| ());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (open, door) = door();
    let (said, heard) = channel();
    let mut calls = vec![];
    let mut door = Some(door);
    for name in ["first", "second"] {
        let (said, door) = (said.clone(), door.take());
        let stopping = Box::new(move |name| {
            said.send(name).unwrap();
            door.iter().for_each(pass);
        });
        let connector = running.handle.connect_tcp(listener.local_addr().unwrap(), Caller { name, stopping });
        let mut peer = listener.accept().unwrap().0;
        assert_eq!(read_exactly(&mut peer, 7), b"welcome");
        calls.push((connector, peer));
    }
    let (go, wait) = channel::<()>();
    let (held, holding) = channel();
    running.handle.call_from_thread(move |_| {
        held.send(()).unwrap();
        wait.recv_timeout(LIMIT).unwrap();
    });
    holding.recv_timeout(LIMIT).unwrap();
    // Nothing is done for them while the main thread is held: only their threads have ended.
    let second = calls.pop().unwrap();
    let first = calls.pop().unwrap();
    drop(first);
    wait_threads(2);
    let (connector, peer) = second;
    drop(peer);
    wait_threads(1);
    running.handle.stop().unwrap();
    go.send(()).unwrap();
    assert_eq!(heard.recv_timeout(LIMIT), Ok("first"));
    connector.connect().unwrap();
    open.send(()).unwrap();
    running.thread.take().unwrap().join().unwrap();
    assert_eq!(heard.try_recv(), Ok("second"), "it was told to stop");
    assert_eq!(connector.state(), ConnectorState::Disconnected);
}

#[test]
fn a_message_is_one_recv_and_one_send_and_idleness_is_nothing() {
    const CONNECTIONS: u64 = 20;
    const MESSAGES: u64 = 50;
    let mut running = Running::start(|cx, data| ignore(cx.transport.write(data)));
    let mut peers: Vec<_> = (0..CONNECTIONS).map(|_| running.dial().0).collect();
    let sitting = |stats: &Stats| stats.syscall(Syscall::Recv) == CONNECTIONS;
    let before = running.wait_stats(sitting);
    for _ in 0..MESSAGES {
        peers.iter_mut().for_each(|peer| peer.write_all(b"message").unwrap());
        peers.iter_mut().for_each(|peer| assert_eq!(read_exactly(peer, 7), b"message"));
    }
    let all = CONNECTIONS * MESSAGES;
    let after = running.wait_stats(|stats| stats.syscall(Syscall::Recv) == CONNECTIONS + all);
    assert_eq!(after.syscall(Syscall::Send), all);
    // The main thread may have been on its way back to sleep.
    assert!(after.syscalls_total() - before.syscalls_total() <= 2 * all + 2, "{before:?} {after:?}");
    assert_eq!(after.count(Count::BytesReceived), 7 * all);
    assert_eq!(after.count(Count::BytesSent), 7 * all);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(running.handle.stats(), after, "an idle server makes no call");
    drop(peers);
    running.wait_stats(|stats| stats.count(Count::LostDone) == CONNECTIONS);
    running.stop();
    let ended = running.handle.stats();
    assert_eq!(ended.syscall(Syscall::Send), all, "what ended connections counted is kept");
    assert_eq!(ended.syscall(Syscall::Close), CONNECTIONS);
}

#[test]
fn calls_into_one_connection_from_all_sides_never_meet() {
    const SIDES: usize = 8;
    const ROUNDS: usize = 300;
    let target: Arc<Mutex<Option<ConnId>>> = Arc::default();
    let to = Arc::clone(&target);
    let inside = Arc::new(Mutex::new(()));
    let told = Arc::new(Mutex::new(0));
    let (alone, count) = (Arc::clone(&inside), Arc::clone(&told));
    let running = Running::start(move |cx, data| {
        let id = to.lock().unwrap().unwrap();
        if cx.transport.id() == id {
            let _only_one = alone.try_lock().expect("two callbacks of one connection at once");
            *count.lock().unwrap() += data.len();
            return;
        }
        let (alone, count) = (Arc::clone(&alone), Arc::clone(&count));
        let meet = move || {
            let _only_one = alone.try_lock().expect("two callbacks of one connection at once");
            *count.lock().unwrap() += 1;
        };
        let again = meet.clone();
        cx.post(id, move |_, cx| {
            meet();
            cx.call_later(Duration::ZERO, move |_, _| again());
        });
        cx.transport.to(id).pause_producing();
        cx.transport.to(id).write(b"x");
        cx.transport.to(id).resume_producing();
        cx.transport.write(b"k");
    });
    let (mut target_peer, id) = running.dial();
    *target.lock().unwrap() = Some(id);
    let mut sides: Vec<_> = (0..SIDES).map(|_| running.dial().0).collect();
    for _ in 0..ROUNDS {
        sides.iter_mut().for_each(|side| side.write_all(b"!").unwrap());
        target_peer.write_all(b"data").unwrap();
        sides.iter_mut().for_each(|side| assert_eq!(read_exactly(side, 1), b"k"));
    }
    assert_eq!(read_exactly(&mut target_peer, SIDES * ROUNDS), vec![b'x'; SIDES * ROUNDS]);
    let all = SIDES * ROUNDS * 2 + ROUNDS * 4;
    let deadline = Instant::now() + LIMIT;
    while *told.lock().unwrap() < all {
        assert!(Instant::now() < deadline, "{} of {all}", told.lock().unwrap());
        thread::yield_now();
    }
    assert_eq!(*told.lock().unwrap(), all);
    assert!(running.told.try_iter().next().is_none(), "nobody was lost");
}
