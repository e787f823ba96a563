//! A program is told the same in memory as over the sockets of each backend, and so is its peer.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Duration,
};

use ringspun::{
    Cx, Factory, Peer, Protocol, Reactor, ReactorBuilder, Reason,
    testing::{End, MemoryReactor},
};

ringspun::testing::on_every_backend!(m1_what_is_told_in_memory_is_told_over_sockets);

/// No wait is longer: what has not come by then does not come.
const LIMIT: Duration = Duration::from_secs(20);

/// What the peer does.
#[derive(Clone, Copy)]
enum Act {
    Send(&'static [u8]),
    /// Waits until so many bytes have come altogether.
    Await(usize),
    Fin,
    Reset,
}
use Act::{Await, Fin, Reset, Send};

/// What was told to the program, what its peer received, and how that saw the end.
#[derive(Debug, PartialEq, Eq)]
struct Transcript {
    told: Vec<String>,
    received: String,
    end: Option<End>,
}

/// Obeys each byte: `L` loses the connection, `W` its writing half, `A` aborts, `F` fails, `!` panics, `P` pauses for a moment, `B` writes a big piece; all
/// others are echoed. `H` says whether it knows half-closed connections.
struct Obedient<const H: bool> {
    told: Told,
}

#[derive(Clone, Default)]
struct Told(Arc<(Mutex<Vec<String>>, Condvar)>);

impl Told {
    /// Data that came in pieces is noted as one.
    fn note(&self, text: &str) {
        let mut all = self.0.0.lock().unwrap();
        match (all.last_mut(), text.strip_prefix("data ")) {
            (Some(last), Some(data)) if last.starts_with("data ") => last.push_str(data),
            _ => all.push(text.to_owned()),
        }
        self.0.1.notify_all();
    }

    fn wait_for_loss(&self) -> Vec<String> {
        let lost = |all: &Vec<String>| all.iter().any(|text| text.starts_with("lost"));
        let all = self.0.0.lock().unwrap();
        let (all, _) = self.0.1.wait_timeout_while(all, LIMIT, |all| !lost(all)).unwrap();
        all.clone()
    }
}

impl<const H: bool> Factory for Obedient<H> {
    type Protocol = Obedient<H>;

    fn build_protocol(&mut self, _peer: &mut Peer<'_>) -> Option<Obedient<H>> {
        Some(Obedient { told: self.told.clone() })
    }
}

impl<const H: bool> Protocol<Obedient<H>> for Obedient<H> {
    const HALF_CLOSEABLE: bool = H;

    fn connection_made(&mut self, cx: &mut Cx<'_, Obedient<H>>) {
        self.told.note("made");
        cx.transport.write(b"hi");
    }

    fn data_received(&mut self, cx: &mut Cx<'_, Obedient<H>>, data: &[u8]) {
        self.told.note(&format!("data {}", data.escape_ascii()));
        for byte in data {
            match byte {
                b'L' => cx.transport.lose_connection(),
                b'W' => cx.transport.lose_write_connection(),
                b'A' => cx.transport.abort_connection(),
                b'F' => cx.transport.fail("as it was told"),
                b'!' => panic!("as it was told"),
                b'P' => {
                    cx.transport.pause_producing();
                    cx.call_later(Duration::from_millis(20), |_, cx| cx.transport.resume_producing());
                }
                b'B' => drop(cx.transport.write(&[b'B'; 300_000])),
                _ => drop(cx.transport.write(&[*byte])),
            }
        }
    }

    fn read_connection_lost(&mut self, cx: &mut Cx<'_, Obedient<H>>) {
        self.told.note("read lost");
        cx.transport.write(b"bye");
        cx.transport.lose_connection();
    }

    fn connection_lost(&mut self, _cx: &mut Cx<'_, Obedient<H>>, reason: &Reason) {
        self.told.note(&format!("lost {reason:?}"));
    }
}

const SCRIPTS: &[&[Act]] = &[
    &[Await(2), Fin],
    &[Send(b"xyz"), Fin],
    &[Send(b"x"), Await(3), Reset],
    &[Await(2), Send(b"1L"), Await(3)],
    &[Await(2), Send(b"B"), Send(b"L"), Await(300_002)],
    &[Await(2), Send(b"1"), Await(3), Send(b"W"), Send(b"2"), Fin],
    &[Await(2), Send(b"A")],
    &[Await(2), Send(b"F")],
    &[Await(2), Send(b"!")],
    &[Await(2), Send(b"P"), Send(b"123"), Fin],
    &[Await(2), Send(b"x"), Await(3), Send(b"P"), Fin],
    &[Send(b"B"), Fin, Await(300_002)],
];

fn m1_what_is_told_in_memory_is_told_over_sockets(builder: ReactorBuilder) {
    for (number, script) in SCRIPTS.iter().enumerate() {
        let sockets = [over_sockets::<false>(&builder, script), over_sockets::<true>(&builder, script)];
        let memory = [in_memory::<false>(script), in_memory::<true>(script)];
        assert_eq!(memory, sockets, "script {number}: memory is on the left");
    }
}

fn in_memory<const H: bool>(script: &[Act]) -> Transcript {
    let told = Told::default();
    let mut memory = MemoryReactor::new();
    let port = memory.reactor().listen_tcp(("127.0.0.1", 0), Obedient::<H> { told: told.clone() }).unwrap();
    let mut peer = memory.connect(&port).unwrap();
    let mut received = Vec::new();
    memory.turn();
    for act in script {
        match act {
            Send(bytes) => peer.send(bytes),
            Await(count) => {
                received.extend(peer.take_received());
                assert!(received.len() >= *count, "{} of {count} bytes have come", received.len());
            }
            Fin => peer.shutdown_write(),
            Reset => peer.reset(),
        }
        memory.turn();
    }
    memory.advance(Duration::from_millis(20));
    received.extend(peer.take_received());
    let end = peer.end();
    peer.close();
    memory.turn();
    let _ = memory.take_panics();
    Transcript { told: told.wait_for_loss(), received: brief(&received), end }
}

fn over_sockets<const H: bool>(builder: &ReactorBuilder, script: &[Act]) -> Transcript {
    let told = Told::default();
    let reactor: Reactor = builder.clone().build().unwrap();
    let port = reactor.listen_tcp(("127.0.0.1", 0), Obedient::<H> { told: told.clone() }).unwrap();
    let handle = reactor.handle();
    let runs = thread::spawn(move || reactor.run());
    let mut peer = TcpStream::connect(port.get_host().socket_addr().unwrap()).unwrap();
    peer.set_read_timeout(Some(LIMIT)).unwrap();
    let (mut received, mut was_reset) = (Vec::new(), false);
    for act in script {
        match act {
            Send(bytes) => peer.write_all(bytes).unwrap(),
            Await(count) => {
                let have = received.len();
                received.resize(*count, 0);
                peer.read_exact(&mut received[have..]).unwrap();
            }
            Fin => peer.shutdown(Shutdown::Write).unwrap(),
            Reset => {
                reset_on_close(&peer);
                was_reset = true;
            }
        }
    }
    let end = if was_reset { None } else { Some(read_to_the_end(&mut peer, &mut received)) };
    drop(peer);
    let told = told.wait_for_loss();
    handle.stop().unwrap();
    runs.join().unwrap().unwrap();
    Transcript { told, received: brief(&received), end }
}

fn reset_on_close(peer: &TcpStream) {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    nix::sys::socket::setsockopt(peer, nix::sys::socket::sockopt::Linger, &linger).unwrap();
}

fn read_to_the_end(peer: &mut TcpStream, received: &mut Vec<u8>) -> End {
    match peer.read_to_end(received) {
        Ok(_) => End::Fin,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => End::Reset,
        Err(error) => panic!("{error}"),
    }
}

/// A big piece by its length.
fn brief(received: &[u8]) -> String {
    match received.len() {
        ..100 => received.escape_ascii().to_string(),
        length => format!("{length} bytes"),
    }
}
