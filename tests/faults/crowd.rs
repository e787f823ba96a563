//! Ten thousand peers that never read, each of which asks for 10 MB (P4). The server is a process of its own, so that its memory and
//! its descriptors are its own.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::unistd::Pid;
use ringspun::{
    ConnId, Cx, Factory, FileSender, Limits, Peer as Asking, Production, Protocol, Reason, Write,
};

use crate::{
    child::{Child, Role, hear_parent, role, tell_parent},
    kit::{Running, Tally},
    peers::{LIMIT, Peer},
    raw,
    setups::{Setup, on_every_backend},
};

on_every_backend!(p4_ten_thousand_peers_that_never_read);

const ASKED_FOR: usize = 10 << 20;
const PIECE: usize = 16 << 10;
const BUDGET: usize = 64 << 20;
/// As many connections have room in the budget, full to the high mark, as stay.
const STAYING: usize = BUDGET / (64 << 10);
/// What one of them may cost beside its unsent bytes. The buffer around these grows by doubling, which comes to almost as much again; the rest is
/// the connection itself, up to 4 KiB that are not counted, and what the allocator has not given back of those that have ended. It was 53 to 80 KiB.
const CONNECTION: usize = 104 << 10;
/// The same on threads, where each has a stack, a buffer to receive into, and a share in a heap: 290 to 380 KiB.
const CONNECTION_ON_THREADS: usize = 490 << 10;
/// On threads, all that write at the same moment pass the budget together: whoever asks for all at once comes alone, as he holds the factory, with
/// so many beside him that write a piece.
const PIECES_AT_ONCE: usize = 64;

/// Questions to be answered while everybody else is stuck.
const EXCHANGES: usize = 1000;
/// System calls that one may take: receive, send and wait, and one to spare. Who is stuck costs none.
const CALLS_PER_EXCHANGE: usize = 4;

const PEERS: usize = 10_000;

/// What a peer asks for, by its first byte.
const CARELESS: u8 = b'c';
const MINDFUL: u8 = b'm';
const PULLED: u8 = b'p';
const CLOSE_ALL: u8 = b'!';

/// One in fifty is served by a protocol that does not mind the marks, one in twenty-five by a producer.
fn kind(number: usize) -> u8 {
    match number % 50 {
        0 => CARELESS,
        1 | 2 => PULLED,
        _ => MINDFUL,
    }
}

fn p4_ten_thousand_peers_that_never_read(setup: &Setup) {
    match role(setup.test) {
        Role::Child => serve(setup),
        Role::Parent(child) => crowd(setup, child),
    }
}

type Losses = Arc<Mutex<BTreeMap<String, usize>>>;

/// Counts how its connections ended, by what they had asked for.
struct Hall {
    ids: Vec<ConnId>,
    asked: Tally,
    losses: Losses,
}

#[derive(Default)]
struct Guest {
    kind: u8,
    owed: usize,
}

impl Factory for Hall {
    type Protocol = Guest;

    fn build_protocol(&mut self, _peer: &mut Asking<'_>) -> Option<Guest> {
        Some(Guest::default())
    }
}

impl Guest {
    /// Writes as much as it is allowed to.
    fn go_on(&mut self, cx: &mut Cx<'_, Hall>) {
        while self.owed > 0 {
            self.owed -= PIECE;
            if cx.transport.write(&[b'.'; PIECE]) != Write::Accepted {
                return;
            }
        }
    }
}

impl Protocol<Hall> for Guest {
    fn connection_made(&mut self, cx: &mut Cx<'_, Hall>) {
        let id = cx.transport.id();
        cx.factory.ids.push(id);
    }

    fn data_received(&mut self, cx: &mut Cx<'_, Hall>, data: &[u8]) {
        static MUCH: [u8; ASKED_FOR] = [0; ASKED_FOR];
        if matches!(data[0], CARELESS | MINDFUL | PULLED) {
            cx.factory.asked.up();
        }
        match data[0] {
            CARELESS => drop(cx.transport.write(&MUCH)),
            PULLED => {
                let file = io::Read::take(io::repeat(b'.'), ASKED_FOR as u64);
                cx.transport.register_producer(FileSender::new(file), Production::Pull).unwrap();
            }
            MINDFUL => {
                self.owed = ASKED_FOR;
                self.go_on(cx);
            }
            CLOSE_ALL => {
                let own = cx.transport.id();
                let others: Vec<_> = cx.factory.ids.iter().copied().filter(|id| *id != own).collect();
                others.into_iter().for_each(|id| cx.transport.to(id).lose_connection());
            }
            _ => drop(cx.transport.write(data)),
        }
        self.kind = data[0];
    }

    fn resume_writing(&mut self, cx: &mut Cx<'_, Hall>) {
        self.go_on(cx);
    }

    fn connection_lost(&mut self, cx: &mut Cx<'_, Hall>, reason: &Reason) {
        let ended = format!("{} {reason:?}", char::from(self.kind));
        *cx.factory.losses.lock().unwrap().entry(ended).or_default() += 1;
    }
}

fn serve(setup: &Setup) {
    let limits =
        Limits { output_total_max: BUDGET, close_timeout: Duration::from_secs(2), ..Limits::default() };
    let reactor = setup.limited(limits);
    let (losses, asked) = (Losses::default(), Tally::default());
    let hall = Hall { ids: Vec::new(), asked: asked.clone(), losses: Arc::clone(&losses) };
    let port = reactor.listen_tcp(("127.0.0.1", 0), hall).unwrap();
    // Else the kernel takes some MiB of each.
    raw::narrow_listeners(4096);
    let running = Running::start(reactor);
    tell_parent(port.get_host().socket_addr().unwrap());
    while hear_parent() == "report" {
        let stats = running.reactor.stats();
        tell_parent(format_args!(
            "{} {} {} {} {} {:?}",
            asked.get(),
            stats.syscalls_total(),
            stats.connections(),
            stats.output_total(),
            stats.output_total_peak(),
            losses.lock().unwrap()
        ));
    }
}

/// What a server says of itself.
#[derive(Debug)]
struct Report {
    asked: usize,
    calls: usize,
    connections: usize,
    unsent: usize,
    peak: usize,
    losses: String,
}

fn report(child: &mut Child) -> Report {
    child.tell("report");
    let text = child.hear();
    let mut words = text.splitn(6, ' ');
    let mut number = || words.next().unwrap().parse().unwrap();
    let [asked, calls, connections, unsent, peak] = [(); 5].map(|()| number());
    Report { asked, calls, connections, unsent, peak, losses: words.next().unwrap().to_owned() }
}

/// Waits until the server says what is wanted.
fn wait(child: &mut Child, done: impl Fn(&Report) -> bool) -> Report {
    let begun = Instant::now();
    loop {
        let now = report(child);
        if done(&now) {
            return now;
        }
        assert!(begun.elapsed() < 2 * LIMIT, "it stays so: {now:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The most memory that a process has ever had at once, in bytes.
fn memory_peak(pid: Pid) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// One who reads asks so often, and is answered each time.
fn exchange(reader: &mut Peer, times: usize) {
    for number in 0..times {
        let question = number.to_string().repeat(1 + number % 1000);
        reader.ask(question.as_bytes(), question.as_bytes());
    }
}

fn crowd(setup: &Setup, mut child: Child) {
    // Two crowds at once would be more than this process may have descriptors for.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let address: SocketAddr = child.hear().parse().unwrap();
    let mut reader = Peer::dial(address);
    reader.ask(b"hello", b"hello");
    let before = memory_peak(child.pid());
    let mut crowd = Vec::with_capacity(PEERS);
    for number in 0..PEERS {
        let mut peer = Peer::dial_narrow(address, 4096);
        peer.write(&[kind(number)]);
        crowd.push(peer);
        if number % 10 == 0 {
            reader.ask(b"still there?", b"still there?");
        }
    }
    // Between a write that passes the budget and the end that follows it is more.
    let full = wait(&mut child, |now| now.asked == PEERS && now.unsent <= BUDGET);
    let full = serve_while_full(&mut child, &mut reader, full);
    judge_memory(setup, memory_peak(child.pid()) - before, &full);
    close_all(child, reader);
    // Not before: the server ends while all of them are there, and do not read.
    drop(crowd);
}

/// The one who reads is served as if he were alone: all others stay stuck, which costs nothing.
fn serve_while_full(child: &mut Child, reader: &mut Peer, full: Report) -> Report {
    assert!(full.losses.contains("OutputTotal") && full.connections < PEERS, "{full:?}");
    let begun = Instant::now();
    exchange(reader, EXCHANGES);
    let took = begun.elapsed();
    let after = report(child);
    println!("{EXCHANGES} exchanges took {took:?} and {} calls", after.calls - full.calls);
    assert!(after.unsent > BUDGET / 2 && after.connections > STAYING / 2, "few are stuck: {after:?}");
    assert!(took < LIMIT, "{EXCHANGES} exchanges took {took:?}");
    assert!(after.calls - full.calls < CALLS_PER_EXCHANGE * EXCHANGES, "{full:?}, then {after:?}");
    after
}

fn judge_memory(setup: &Setup, grown: usize, full: &Report) {
    let (connection, pieces) = match setup.is_threads() {
        true => (CONNECTION_ON_THREADS, PIECES_AT_ONCE),
        false => (CONNECTION, 0),
    };
    println!("{PEERS} peers on {}: {} KiB more, {full:?}", setup.name, grown >> 10);
    // One write passes the budget.
    let peak_max = BUDGET + ASKED_FOR + pieces * PIECE;
    assert!(full.peak > BUDGET && full.peak <= peak_max, "{peak_max} at most: {full:?}");
    let grown_max = BUDGET + ASKED_FOR + STAYING * connection;
    assert!(grown <= grown_max, "{} KiB more than {}, {full:?}", grown >> 10, grown_max >> 10);
}

/// Nobody who is left waits for ever.
fn close_all(mut child: Child, mut reader: Peer) {
    reader.write(&[CLOSE_ALL]);
    let last = wait(&mut child, |now| now.connections == 1 && ended(now, "") == PEERS);
    exchange(&mut reader, 10);
    println!("{last:?}");
    assert_eq!(last.unsent, 0);
    assert_eq!(ended(&last, "Limit(OutputTotal)") + ended(&last, "TimedOut(Close)"), PEERS, "{last:?}");
    assert_eq!(
        ended(&last, "p TimedOut(Close)"),
        (0..PEERS).filter(|number| kind(*number) == PULLED).count()
    );
    child.tell("finish");
    child.expect_success();
}

/// How many connections ended so.
fn ended(report: &Report, how: &str) -> usize {
    let entries = report.losses.trim_matches(['{', '}']).split(", ").filter(|entry| entry.contains(how));
    entries.map(|entry| entry.rsplit_once(": ").unwrap().1.parse::<usize>().unwrap()).sum()
}
