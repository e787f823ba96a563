//! The example `weblog_push`: in memory, where a second takes no time, and over the sockets of every backend.

#[path = "../../examples/pushing/mod.rs"]
mod pushing;
#[allow(dead_code)]
#[path = "../../examples/webloglib/mod.rs"]
mod webloglib;

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    ops::Range,
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};
use ringspun::{
    Count, Port, Reactor, ReactorBuilder,
    testing::{MemoryPeer, MemoryReactor, on_every_backend},
};

use self::pushing::WebLogFactory;

on_every_backend!(weblog_by_push_tells_each_connected_client_each_record_once_over_sockets);

const RECORDS: usize = 1000;
const SECOND: Duration = Duration::from_secs(1);

/// A log of the test's own, gone with it.
struct Log(PathBuf);

impl Log {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("ringspun-pushed-{}-{}", std::process::id(), NEXT.fetch_add(1, SeqCst));
        let log = Self(std::env::temp_dir().join(name));
        fs::write(&log.0, line(999_999, "")).unwrap();
        log
    }

    fn append(&self, number: usize) {
        self.append_long(number, "");
    }

    fn append_long(&self, number: usize, query: &str) {
        let mut file = OpenOptions::new().append(true).open(&self.0).unwrap();
        file.write_all(line(number, query).as_bytes()).unwrap();
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn line(number: usize, query: &str) -> String {
    format!("10.0.0.1 - - [13/Oct/2026:13:55:36 +0000] \"GET /{number}{query} HTTP/1.1\" 200 {number}\n")
}

/// What a client was told, to its end.
#[derive(Default)]
struct Told(String);

impl Told {
    fn take(&mut self, peer: &mut MemoryPeer) {
        self.0 += std::str::from_utf8(&peer.take_received()).unwrap();
    }

    /// The greeting, and then each of these records once.
    fn expect(&self, numbers: Range<usize>) {
        let told = self.0.strip_prefix("<hits>").expect("the greeting comes first");
        let told: Vec<_> = told.split_inclusive("</hit>").map(number).collect();
        assert!(
            told.iter().copied().eq(numbers.clone()),
            "{} records, {:?} to {:?}, in place of {numbers:?}",
            told.len(),
            told.first(),
            told.last(),
        );
    }
}

fn number(hit: &str) -> usize {
    let hit = hit.strip_suffix("</bytes></hit>").unwrap_or_else(|| panic!("no whole hit: {hit}"));
    hit.rsplit_once("<bytes>").unwrap().1.parse().unwrap()
}

#[test]
fn weblog_by_push_tells_each_connected_client_each_record_once() {
    let (log, mut memory) = (Log::new(), MemoryReactor::new());
    memory.set_buffer_bytes(1000);
    let port = memory.reactor().listen_tcp(("127.0.0.1", 0), WebLogFactory::new(&log.0, SECOND)).unwrap();
    let (mut steady, mut fickle) = (memory.connect(&port).unwrap(), memory.connect(&port).unwrap());
    let [mut to_steady, mut to_fickle, mut to_fickle_again] = [(); 3].map(|()| Told::default());
    for number in 0..RECORDS {
        match number {
            200 => steady.pause(),
            // Five records are not pushed yet.
            305 => {
                to_fickle.take(&mut fickle);
                fickle.close();
            }
            // And five more are not, which are for the other one only.
            455 => fickle = memory.connect(&port).unwrap(),
            800 => {
                to_steady.take(&mut steady);
                to_steady.expect(0..200);
                steady.resume();
            }
            _ => {}
        }
        memory.turn();
        log.append(number);
        if number % 10 == 9 {
            memory.advance(SECOND);
        }
    }
    // Nobody is told anything twice, or late.
    memory.advance(60 * SECOND);
    to_steady.take(&mut steady);
    to_fickle_again.take(&mut fickle);
    to_steady.expect(0..RECORDS);
    to_fickle.expect(0..300);
    to_fickle_again.expect(455..RECORDS);
    assert_eq!(memory.pending_calls(), 1, "the next look at the log");
    port.stop_listening();
    drop(steady);
    drop(fickle);
    memory.turn();
    assert_eq!(memory.pending_calls(), 0);
    memory.stop().unwrap();
}

/// No wait is longer: what has not come by then does not come.
const LIMIT: Duration = Duration::from_secs(20);

/// A client over a socket.
struct Client {
    stream: TcpStream,
    told: Told,
}

impl Client {
    /// Is there when it has been greeted.
    fn dial(port: &Port, receive_buffer: usize) -> Self {
        let fd: OwnedFd =
            socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&fd, sockopt::RcvBuf, &receive_buffer).unwrap();
        let address = port.get_host().socket_addr().unwrap();
        connect(fd.as_raw_fd(), &SockaddrStorage::from(address)).unwrap();
        let stream = TcpStream::from(fd);
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut client = Self { stream, told: Told::default() };
        client.read_until("<hits>");
        client
    }

    /// Reads on until this has come last.
    fn read_until(&mut self, last: &str) {
        let mut buffer = vec![0; 64 << 10];
        while !self.told.0.ends_with(last) {
            let count = match self.stream.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                read => read.unwrap_or_else(|error| panic!("{error} before {last:?}")),
            };
            assert!(count > 0, "the end before {last:?}");
            self.told.0 += std::str::from_utf8(&buffer[..count]).unwrap();
        }
    }

    fn read_until_hit(&mut self, number: usize) {
        self.read_until(&format!("<bytes>{number}</bytes></hit>"));
    }
}

fn wait_until(what: &str, reactor: &Reactor, done: impl Fn(&Reactor) -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done(reactor) {
        assert!(Instant::now() < deadline, "{what} does not come");
        thread::sleep(Duration::from_millis(1));
    }
}

fn weblog_by_push_tells_each_connected_client_each_record_once_over_sockets(builder: ReactorBuilder) {
    // All records together are more than the buffers of a connection's sockets can hold.
    let query = format!("?{}", "q".repeat(16 << 10));
    let (log, reactor) = (Log::new(), builder.build().unwrap());
    let port =
        reactor.listen_tcp(("127.0.0.1", 0), WebLogFactory::new(&log.0, Duration::from_millis(5))).unwrap();
    let handle = reactor.handle();
    let runs = thread::spawn(move || reactor.run());
    // It pauses at once, for it is not read from.
    let (mut steady, mut fickle) = (Client::dial(&port, 4096), Client::dial(&port, 1 << 20));
    (0..300).for_each(|number| log.append_long(number, &query));
    fickle.read_until_hit(299);
    fickle.told.expect(0..300);
    drop(fickle);
    // It is away while these are appended.
    (300..455).for_each(|number| log.append_long(number, &query));
    let mut fickle = Client::dial(&port, 1 << 20);
    (455..RECORDS).for_each(|number| log.append_long(number, &query));
    fickle.read_until_hit(RECORDS - 1);
    fickle.told.expect(455..RECORDS);
    let held = handle.stats().output_total();
    assert!(held > 1 << 20, "the kernel took all but {held} bytes: the client that pauses held nobody up");
    steady.read_until_hit(RECORDS - 1);
    steady.told.expect(0..RECORDS);
    // Nobody is told anything twice.
    log.append_long(RECORDS, &query);
    for (client, first) in [(&mut steady, 0), (&mut fickle, 455)] {
        client.read_until_hit(RECORDS);
        client.told.expect(first..RECORDS + 1);
    }
    drop((steady, fickle));
    let lost = |reactor: &Reactor| reactor.stats().count(Count::Made) - reactor.stats().connections();
    wait_until("the loss of the clients", &handle, |reactor| lost(reactor) == 3);
    wait_until("the next look at the log, alone", &handle, |reactor| reactor.pending_calls() == 1);
    port.stop_listening();
    wait_until("a reactor without timers", &handle, |reactor| reactor.pending_calls() == 0);
    handle.stop().unwrap();
    runs.join().unwrap().unwrap();
}

#[test]
fn a_line_becomes_a_record_whatever_stands_in_it() {
    let hit = |user, request, bytes| {
        Some(format!(
            "<hit><host>10.0.0.1</host><user>{user}</user><time>22/Nov/2026:10:00:00 +0000</time>\
             <request>{request}</request><status>200</status><bytes>{bytes}</bytes></hit>"
        ))
    };
    let line = |user: &str, rest: &str| {
        webloglib::hit_tag(&format!("10.0.0.1 - {user} [22/Nov/2026:10:00:00 +0000] {rest}"))
    };
    assert_eq!(line("-", "\"GET / HTTP/1.1\" 200 17"), hit("-", "GET / HTTP/1.1", "17"));
    assert_eq!(line("-", "\"GET / HTTP/1.1\" 200 -"), hit("-", "GET / HTTP/1.1", "-"));
    let combined = "\"GET / HTTP/1.1\" 200 17 \"http://from.example/\" \"an agent\"";
    assert_eq!(line("-", combined), hit("-", "GET / HTTP/1.1", "17"));
    assert_eq!(
        line("a b", "\"GET /?a=1&b=<2> HTTP/1.1\" 200 1"),
        hit("a b", "GET /?a=1&amp;b=&lt;2&gt; HTTP/1.1", "1")
    );
    assert_eq!(line("-", r#""GET /\" 5 HTTP/1.1" 200 1"#), hit("-", r"GET /\&quot; 5 HTTP/1.1", "1"));
    assert_eq!(line("-", "\"GET /\u{7}\" 200 1"), hit("-", "GET /\u{fffd}", "1"));
    for wrong in ["", "\"GET /", "\"GET /\" ok 1", "\"GET /\" 200", "\"GET /\" 200 many", "GET / 200 1"] {
        assert_eq!(line("-", wrong), None, "{wrong}");
    }
    assert_eq!(webloglib::hit_tag("nothing of the kind"), None);
}
