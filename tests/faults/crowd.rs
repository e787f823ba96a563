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
/// What the process may take beside. The budget counts bytes: the buffers around them grow by doubling, what is freed is not all given
/// back, and there are a few large writes, of those who pass the budget and of those who are being taken down. Each connection costs
/// something, too, with what it may have unsent uncounted. All of it was 65 to 90 MiB.
const BESIDE: usize = 144 << 20;
/// The same on threads, where each has a stack, a buffer, and a share in as many heaps: 310 to 420 MiB.
const BESIDE_THREADS: usize = 576 << 20;

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
            "{} {} {} {} {:?}",
            asked.get(),
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
    connections: usize,
    unsent: usize,
    peak: usize,
    losses: String,
}

fn report(child: &mut Child) -> Report {
    child.tell("report");
    let text = child.hear();
    let mut words = text.splitn(5, ' ');
    let mut number = || words.next().unwrap().parse().unwrap();
    let (asked, connections, unsent, peak) = (number(), number(), number(), number());
    Report { asked, connections, unsent, peak, losses: words.next().unwrap().to_owned() }
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

/// How long the answer to one who reads takes.
fn ask(reader: &mut Peer) -> Duration {
    let asked = Instant::now();
    reader.ask(b"still there?", b"still there?");
    asked.elapsed()
}

fn crowd(setup: &Setup, mut child: Child) {
    // Two crowds at once would be more than this process may have descriptors for.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let address: SocketAddr = child.hear().parse().unwrap();
    let mut reader = Peer::dial(address);
    reader.ask(b"hello", b"hello");
    let before = memory_peak(child.pid());
    let mut slowest = Duration::ZERO;
    let mut crowd = Vec::with_capacity(PEERS);
    for number in 0..PEERS {
        let mut peer = Peer::dial_narrow(address, 4096);
        peer.write(&[kind(number)]);
        crowd.push(peer);
        if number % 100 == 0 {
            slowest = slowest.max(ask(&mut reader));
        }
    }
    slowest = slowest.max(ask(&mut reader));
    // Between a write that passes the budget and the end that follows it is more.
    let full = wait(&mut child, |now| now.asked == PEERS && now.unsent <= BUDGET);
    slowest = slowest.max(ask(&mut reader));
    let grown = memory_peak(child.pid()) - before;
    let beside = if setup.is_threads() { BESIDE_THREADS } else { BESIDE };
    println!(
        "{PEERS} peers on {}: {} KiB more, slowest answer {slowest:?}, {full:?}",
        setup.name,
        grown >> 10
    );
    assert!(grown <= BUDGET + beside, "{} KiB more, {full:?}", grown >> 10);
    assert!(full.peak > BUDGET, "{full:?}");
    // One write passes the budget; on threads as many as come at the same moment.
    assert!(setup.is_threads() || full.peak <= BUDGET + ASKED_FOR, "{full:?}");
    assert!(full.losses.contains("OutputTotal") && full.connections < PEERS, "{full:?}");
    assert!(slowest < LIMIT / 2, "somebody waited for {slowest:?}");
    // Nobody who is left waits for ever.
    reader.write(&[CLOSE_ALL]);
    let last = wait(&mut child, |now| now.connections == 1 && ended(now, "") == PEERS);
    ask(&mut reader);
    println!("{last:?}");
    assert_eq!(last.unsent, 0);
    assert_eq!(ended(&last, "Limit(OutputTotal)") + ended(&last, "TimedOut(Close)"), PEERS, "{last:?}");
    assert_eq!(
        ended(&last, "p TimedOut(Close)"),
        (0..PEERS).filter(|number| kind(*number) == PULLED).count()
    );
    drop(crowd);
    child.tell("finish");
    child.expect_success();
}

/// How many connections ended so.
fn ended(report: &Report, how: &str) -> usize {
    let entries = report.losses.trim_matches(['{', '}']).split(", ").filter(|entry| entry.contains(how));
    entries.map(|entry| entry.rsplit_once(": ").unwrap().1.parse::<usize>().unwrap()).sum()
}
