//! What servers do when they are asked for more than an echo: push, closing first, a planted slow-down.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd,
    process::{Child, ChildStdout, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt},
    },
    time::clock_getcpuclockid,
    unistd::Pid,
};

use crate::common::{PATIENCE, SIZE, eventually, loadgen};

const LIBRARY: [&str; 4] = ["io_uring", "io_uring:direct", "epoll", "threads"];
/// All servers of our own.
pub(crate) const ALL: [&str; 8] = [
    "io_uring",
    "io_uring:direct",
    "epoll",
    "threads",
    "raw-uring",
    "raw-uring:direct",
    "raw-epoll",
    "raw-threads",
];
const SUBSCRIBERS: usize = 8;
const MIB: usize = 1 << 20;

/// A `loadgen serve`; dropping it ends the process.
struct Serving {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// What it says first.
    greeting: String,
    address: SocketAddr,
}

impl Serving {
    #[track_caller]
    fn start(backend: &str, more: &[&str]) -> Self {
        let mut command = loadgen(&["serve", "--backend", backend, "--port", "0"]);
        let mut child = command.args(more).stdout(Stdio::piped()).spawn().expect("the binary runs");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut greeting = String::new();
        stdout.read_line(&mut greeting).expect("text");
        let address = greeting.split(&['/', ','][..]).nth(2).and_then(|address| address.parse().ok());
        let address = address.unwrap_or_else(|| panic!("no address in {greeting:?} of {backend}"));
        Self { child, stdout, greeting, address }
    }

    #[track_caller]
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("longer than 0");
        stream.set_nodelay(true).expect("a TCP socket");
        stream
    }

    /// A connection that takes so little at a time that a server soon has output which the kernel does not take.
    #[track_caller]
    fn connect_narrowly(&self) -> TcpStream {
        let socket =
            socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("one more");
        setsockopt(&socket, sockopt::RcvBuf, &4096).expect("a TCP socket");
        setsockopt(&socket, sockopt::TcpMaxSeg, &536).expect("a TCP socket");
        connect(socket.as_raw_fd(), &SockaddrStorage::from(self.address)).expect("it listens");
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).expect("longer than 0");
        stream.set_write_timeout(Some(PATIENCE)).expect("longer than 0");
        stream
    }

    /// Whether nothing that this client has sent waits to be received.
    fn has_received_all(&self, client: &TcpStream) -> bool {
        let client = client.local_addr().expect("connected").port();
        let ends = format!("0100007F:{:04X} 0100007F:{client:04X}", self.address.port());
        let sockets = fs::read_to_string("/proc/net/tcp").expect("procfs");
        let own = sockets.lines().find(|line| line.contains(&ends)).expect("it has the connection");
        own.contains(":00000000 ")
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// CPU that it has used so far.
    fn cpu(&self) -> Duration {
        let clock = clock_getcpuclockid(self.pid()).expect("it runs");
        clock.now().expect("it runs").into()
    }

    /// Stops it as Ctrl-C does; answers its account.
    #[track_caller]
    fn stop(mut self) -> String {
        kill(self.pid(), Signal::SIGINT).expect("it runs");
        let status = eventually("it ends", || self.child.try_wait().expect("our child"));
        assert!(status.success(), "{status}");
        let mut account = String::new();
        self.stdout.read_to_string(&mut account).expect("text");
        account
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Both fail only if it has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes of which no two neighbouring stretches are alike.
fn pattern(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| ((seed + at) * 31 + at / 251) as u8).collect()
}

#[track_caller]
fn read(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).expect("it is sent so much");
    bytes
}

/// Connections that have each heard themselves, one after the other, and all who came later.
#[track_caller]
fn subscribe(serving: &Serving, count: usize) -> Vec<TcpStream> {
    let mut streams: Vec<TcpStream> = Vec::new();
    for number in 0..count {
        let mut stream = serving.connect();
        stream.write_all(&[number as u8]).expect("it reads");
        streams.push(stream);
        for stream in &mut streams {
            assert_eq!(read(stream, 1), [number as u8], "{}", serving.greeting);
        }
    }
    streams
}

/// Writes from a thread of its own: whoever writes much must be read meanwhile.
fn write_aside(stream: &TcpStream, bytes: Vec<u8>) -> thread::JoinHandle<()> {
    let mut stream = stream.try_clone().expect("descriptors are left");
    thread::spawn(move || stream.write_all(&bytes).expect("it reads"))
}

#[test]
fn push_sends_what_one_writes_to_all_in_order() {
    for backend in LIBRARY {
        let serving = Serving::start(backend, &["--as", "push"]);
        assert!(serving.greeting.starts_with("push on tcp://"), "{}", serving.greeting);
        let mut streams = subscribe(&serving, SUBSCRIBERS + 1);
        let leaver = streams.remove(4);
        let sent = pattern(1, 2 * MIB);
        let writer = write_aside(&streams[0], sent.clone());
        let readers: Vec<_> =
            streams.into_iter().map(|mut stream| thread::spawn(move || read(&mut stream, 2 * MIB))).collect();
        // With bytes that it has not read, and more on their way to it.
        drop(leaver);
        for reader in readers {
            assert!(reader.join().expect("it gets all") == sent, "{backend}");
        }
        writer.join().expect("it writes all");
    }
}

#[test]
fn push_has_one_order_for_all() {
    for backend in LIBRARY {
        let serving = Serving::start(backend, &["--as", "push"]);
        let streams = subscribe(&serving, SUBSCRIBERS);
        let writers: Vec<_> =
            (0..4).map(|number| write_aside(&streams[number], vec![number as u8; MIB / 4])).collect();
        let readers: Vec<_> =
            streams.into_iter().map(|mut stream| thread::spawn(move || read(&mut stream, MIB))).collect();
        let heard: Vec<_> = readers.into_iter().map(|reader| reader.join().expect("it gets all")).collect();
        assert!(heard.windows(2).all(|two| two[0] == two[1]), "{backend}");
        for writer in writers {
            writer.join().expect("it writes all");
        }
    }
}

/// More than the bound at which the library ends a connection that does not read.
#[test]
fn push_drops_nothing_for_who_reads_late() {
    for backend in LIBRARY {
        let serving = Serving::start(backend, &["--as", "push"]);
        let mut streams = subscribe(&serving, 2);
        let (mut late, mut prompt) = (streams.remove(1), streams.remove(0));
        let sent = pattern(2, 32 * MIB);
        let writer = write_aside(&prompt, sent.clone());
        assert!(read(&mut prompt, sent.len()) == sent, "{backend}");
        assert!(read(&mut late, sent.len()) == sent, "{backend}");
        writer.join().expect("it writes all");
    }
}

#[test]
fn close_after_answers_and_then_closes() {
    const CONNECTIONS: usize = 200;
    for backend in ALL {
        let serving = Serving::start(backend, &["--close-after", "64"]);
        for number in 0..CONNECTIONS {
            let mut stream = serving.connect();
            let request = pattern(number, SIZE);
            stream.write_all(&request).expect("it reads");
            assert_eq!(read(&mut stream, SIZE), request, "{backend}");
            assert_eq!(stream.read(&mut [0]).expect("FIN, not RST"), 0, "{backend}, connection {number}");
        }
        let account = serving.stop();
        let bytes = CONNECTIONS * SIZE;
        assert!(
            account.contains(&format!("{CONNECTIONS} connections, {bytes} bytes received")),
            "{backend}: {account}"
        );
    }
}

#[test]
fn close_after_counts_over_several_messages() {
    for backend in ALL {
        let serving = Serving::start(backend, &["--close-after", "192B"]);
        let mut stream = serving.connect();
        for number in 0..3 {
            let request = pattern(number, SIZE);
            stream.write_all(&request).expect("it has not closed yet");
            assert_eq!(read(&mut stream, SIZE), request, "{backend}");
        }
        assert_eq!(stream.read(&mut [0]).expect("FIN, not RST"), 0, "{backend}");
    }
}

/// Several at once, each in every kind of buffer and with sends that stay short meanwhile.
#[test]
fn close_after_sends_all_of_a_large_answer_first() {
    for backend in ALL {
        let serving = Serving::start(backend, &["--close-after", "4MiB"]);
        for wave in 0..3 {
            let clients: Vec<_> = (0..4)
                .map(|number| {
                    let mut stream = serving.connect();
                    thread::spawn(move || {
                        let sent = pattern(4 * wave + number, 4 * MIB);
                        let writer = write_aside(&stream, sent.clone());
                        let mut heard = Vec::new();
                        stream.read_to_end(&mut heard).expect("FIN, not RST");
                        writer.join().expect("it writes all");
                        heard == sent
                    })
                })
                .collect();
            for client in clients {
                assert!(client.join().expect("it gets all"), "{backend}");
            }
        }
    }
}

/// The buffers on the way take them all, but the server's output does not.
#[test]
fn close_after_waits_for_a_peer_that_reads_late() {
    const BYTES: usize = 64 << 10;
    for backend in ALL {
        let serving = Serving::start(backend, &["--close-after", "64KiB"]);
        for number in 0..5 {
            let mut stream = serving.connect_narrowly();
            let sent = pattern(number, BYTES);
            stream.write_all(&sent).expect("it reads");
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).expect("FIN, not RST");
            assert!(heard == sent, "{backend}: {} of {BYTES} bytes", heard.len());
        }
    }
}

/// It goes on receiving while a send is in flight, and what gathers behind that has to go out before the close.
#[test]
fn close_after_on_raw_uring_sends_what_has_gathered() {
    const PIECE: usize = 3000;
    const PIECES: usize = 20;
    for backend in ["raw-uring", "raw-uring:direct"] {
        let serving = Serving::start(backend, &["--close-after", &(PIECE * PIECES).to_string()]);
        for number in 0..2 {
            let mut stream = serving.connect_narrowly();
            let sent = pattern(number, PIECE * PIECES);
            for piece in sent.chunks(PIECE) {
                stream.write_all(piece).expect("it reads");
                // Or it would get several at once, and receive into large buffers, one after the other.
                eventually("it receives the piece", || serving.has_received_all(&stream).then_some(()));
            }
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).expect("FIN, not RST");
            assert!(heard == sent, "{backend}: {} of {} bytes", heard.len(), sent.len());
        }
    }
}

#[test]
fn without_close_after_the_client_closes() {
    for backend in ALL {
        let serving = Serving::start(backend, &[]);
        assert!(serving.greeting.starts_with("echo on tcp://"), "{}", serving.greeting);
        let mut stream = serving.connect();
        for number in 0..50 {
            let request = pattern(number, SIZE);
            stream.write_all(&request).expect("it reads");
            assert_eq!(read(&mut stream, SIZE), request, "{backend}");
        }
    }
}

#[test]
fn several_reactors_share_a_port_and_are_counted_together() {
    const CLIENTS: usize = 40;
    for backend in ["io_uring", "io_uring:direct", "epoll"] {
        let serving = Serving::start(backend, &["--reactors", "3"]);
        assert!(serving.greeting.contains("3 reactors, each "), "{}", serving.greeting);
        // All at once, so that more than one of them has some.
        let mut streams: Vec<TcpStream> = (0..CLIENTS).map(|_| serving.connect()).collect();
        for (number, stream) in streams.iter_mut().enumerate() {
            let request = pattern(number, SIZE);
            stream.write_all(&request).expect("it reads");
            assert_eq!(read(stream, SIZE), request, "{backend}");
        }
        let account = serving.stop();
        let counted = format!("{CLIENTS} connections, {} bytes received", CLIENTS * SIZE);
        assert!(account.contains(&counted), "{backend}: {account}");
    }
}

#[test]
fn a_planted_slow_down_burns_what_it_says() {
    const ROUND_TRIPS: u32 = 20;
    let spin = Duration::from_millis(2);
    for (backend, way) in LIBRARY.iter().flat_map(|backend| [(backend, "echo"), (backend, "push")]) {
        let serving = Serving::start(backend, &["--spin-per-message", "2ms", "--as", way]);
        let mut stream = serving.connect();
        let (start, cpu) = (Instant::now(), serving.cpu());
        for _ in 0..ROUND_TRIPS {
            stream.write_all(&[7; SIZE]).expect("it reads");
            read(&mut stream, SIZE);
        }
        let (elapsed, cpu) = (start.elapsed(), serving.cpu() - cpu);
        assert!(elapsed >= ROUND_TRIPS * spin, "{backend} as {way}: {elapsed:?}");
        // Others may have the CPU while it spins, but not most of the time.
        assert!(cpu >= ROUND_TRIPS * spin / 4, "{backend} as {way}: {cpu:?} of CPU");
    }
}

#[test]
fn what_a_server_cannot_do_is_refused_in_one_line() {
    let refused: [(&[&str], &[&str]); 16] = [
        (
            &["--backend", "raw-epoll", "--as", "push"],
            &["raw-epoll can only echo", "io_uring, epoll or threads"],
        ),
        (&["--backend", "raw-uring:direct", "--as", "push"], &["raw-uring:direct can only echo"]),
        (&["--backend", "raw-threads", "--as", "push"], &["raw-threads can only echo"]),
        (&["--as", "push", "--close-after", "64"], &["--close-after", "--as echo"]),
        (
            &["--backend", "raw-epoll", "--spin-per-message", "1us"],
            &["raw-epoll", "--spin-per-message", "io_uring, epoll or threads"],
        ),
        (&["--control", "--command", "mine=true {port}", "--as", "push"], &["leave them out with --command"]),
        (&["--control", "--command", "mine=true {port}", "--close-after", "1"], &["leave them out"]),
        (&["--control", "--command", "mine=true {port}", "--spin-per-message", "1us"], &["leave them out"]),
        (&["--reactors", "0"], &["--reactors", "from 1 to 256"]),
        (&["--reactors", "2", "--backend", "threads"], &["only io_uring and epoll have --reactors"]),
        (&["--reactors", "2", "--backend", "raw-uring"], &["only io_uring and epoll have --reactors"]),
        (&["--reactors", "2", "--as", "push"], &["--as push", "leave out --reactors"]),
        (&["--control", "--command", "mine=true {port}", "--reactors", "2"], &["its program makes"]),
        (&["--as", "chargen"], &["chargen", "echo, push"]),
        (&["--close-after", "0"], &["--close-after", "the least is 1"]),
        (&["--spin-per-message", "250"], &["--spin-per-message", "500ms"]),
    ];
    for (line, words) in refused {
        let output = loadgen(&["serve", "--port", "0"]).args(line).output().expect("the binary runs");
        let text = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(2), "{line:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{line:?}: {text}");
        for word in words {
            assert!(text.contains(word), "'{word}' in {text}");
        }
    }
}
