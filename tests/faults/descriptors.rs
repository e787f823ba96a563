//! Few descriptors, many connections (C17, L4) and watches (I1).

use std::{
    fs,
    io::{self, IoSlice, PipeReader, Read, Write, pipe},
    net::SocketAddr,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::sys::{
    resource::{Resource, setrlimit},
    socket::{ControlMessage, MsgFlags, sendmsg},
};
use ringspun::{
    Backend, Count, Cx, Descriptor, DescriptorCx, Limits, Protocol, Reactor, Serve, Stats, WatchedDescriptor,
};

use crate::{
    child::{Child, Role, hear_parent, in_child, role, tell_parent},
    kit::{Event, Running, Script, Server, Tally, keep_log_records, logged},
    peers::{End, LIMIT, Peer},
    raw,
    setups::{Setup, on_every_backend},
};

on_every_backend!(
    c17_more_connections_than_descriptors_one_after_another,
    i1_watches_leave_no_descriptor_and_without_one_adding_is_an_error,
    l4_others_who_take_descriptors_leave_nobody_without_an_answer,
    l4_out_of_descriptors_the_port_sheds_and_survives,
    u3_descriptors_that_find_no_place_are_told_of_once,
);

fn limit_descriptors(count: u64) {
    setrlimit(Resource::RLIMIT_NOFILE, count, count).unwrap();
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn c17_more_connections_than_descriptors_one_after_another(setup: &Setup) {
    in_child(setup.test, || {
        limit_descriptors(128);
        let script = Script::new().on_build(|_, number| number % 7 != 6).on_data(|cx, conn, _| {
            let _ = cx.transport.write(b"hello");
            match conn.number % 7 {
                0 => cx.transport.lose_connection(),
                1 => cx.transport.abort_connection(),
                2 => cx.transport.fail("on purpose"),
                _ => {}
            }
        });
        let server = script.serve(setup.reactor());
        server.let_it_turn();
        let before = open_descriptors();
        for number in 0..600 {
            let mut peer = server.dial();
            if number % 7 == 6 {
                peer.read_to_end();
                continue;
            }
            peer.write(b"x");
            match number % 7 {
                0..3 => drop(peer.read_to_end()),
                3 => assert_eq!(peer.read_exactly(5), b"hello"),
                _ => {}
            }
            match number % 7 {
                4 => peer.reset(),
                _ => drop(peer),
            }
            server.journal.wait_lost(number);
        }
        connect_often(&server);
        server.let_it_turn();
        let after = open_descriptors();
        assert!(after <= before + 1, "{before} descriptors were open, {after} are");
        assert_eq!(server.count(Count::RefusedDescriptors), 0);
    });
}

/// The other direction, from the reactor to itself.
fn connect_often(server: &Server) {
    let script = Script::new().on_made(|cx, _| cx.transport.abort_connection());
    let script = script.on_client_lost(|_, connector, _| connector.connect().unwrap());
    let journal = script.journal.clone();
    let connector = server.running.reactor.connect_tcp(server.address(), script);
    journal.wait("200 connections", |events| {
        events.iter().filter(|event| matches!(event, Event::Made(_))).count() >= 200
    });
    let done = journal.clone();
    // It reconnects until its port is gone; a refusal ends it.
    server.port.stop_listening();
    done.wait("the refusal", |events| events.iter().any(|event| matches!(event, Event::Failed(_))));
    drop(connector);
}

fn l4_out_of_descriptors_the_port_sheds_and_survives(setup: &Setup) {
    match role(setup.test) {
        Role::Child => starve(setup),
        Role::Parent(child) => flood(child),
    }
}

fn l4_others_who_take_descriptors_leave_nobody_without_an_answer(setup: &Setup) {
    match role(setup.test) {
        Role::Child => {
            limit_descriptors(DESCRIPTORS);
            // Takes whatever descriptor there is, that held back for shedding included.
            thread::spawn(|| {
                loop {
                    drop(fs::File::open("/dev/null"));
                }
            });
            let limits = Limits { accept_backoff: Duration::from_millis(1), ..Limits::default() };
            let server = Script::echo().serve(setup.build(setup.builder().limits(limits)));
            tell_parent(server.address());
            hear_parent();
        }
        Role::Parent(mut child) => {
            let address: SocketAddr = child.hear().parse().unwrap();
            let mut peers: Vec<Peer> = (0..DESCRIPTORS).map(|_| Peer::dial(address)).collect();
            peers.retain_mut(is_served);
            for _ in 0..300 {
                let mut peer = Peer::dial(address);
                if is_served(&mut peer) {
                    peers.push(peer);
                }
            }
            child.tell("finish");
            child.expect_success();
        }
    }
}

const DESCRIPTORS: u64 = 64;

/// Serves with hardly any descriptors, and answers the parent's questions.
fn starve(setup: &Setup) {
    limit_descriptors(DESCRIPTORS);
    let server = Script::echo().serve(setup.reactor());
    tell_parent(server.address());
    loop {
        match &*hear_parent() {
            "measure" => {
                let before = server.running.reactor.stats();
                tell_parent("measuring");
                thread::sleep(Duration::from_millis(500));
                tell_parent(work(&server.running.reactor.stats()) - work(&before));
            }
            "report" => {
                tell_parent(server.count(Count::RefusedDescriptors));
                tell_parent(logged("could not accept a connection"));
            }
            _ => break,
        }
    }
}

fn work(stats: &Stats) -> u64 {
    stats.count(Count::Waits) + stats.syscalls_total()
}

/// Whether this peer is served; if not, it must be told so by an end.
fn is_served(peer: &mut Peer) -> bool {
    use std::io::Write;
    if peer.0.write_all(b"?").is_err() {
        return false;
    }
    match peer.read_some(&mut [0; 8]) {
        Ok(0) => false,
        Ok(_) => true,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
        Err(error) => panic!("neither served nor shed: {error}"),
    }
}

fn flood(mut child: Child) {
    let address: SocketAddr = child.hear().parse().unwrap();
    let mut peers: Vec<Peer> = (0..200).map(|_| Peer::dial(address)).collect();
    // Every one of them gets its answer: its echo, or its end.
    let mut served: Vec<Peer> =
        peers.drain(..).filter_map(|mut peer| is_served(&mut peer).then_some(peer)).collect();
    assert!((20..DESCRIPTORS as usize + 1).contains(&served.len()), "{} are served", served.len());
    // While none is free and others go on knocking, the server does not spin.
    child.tell("measure");
    assert_eq!(child.hear(), "measuring");
    let knocking: Vec<Peer> = (0..5).map(|_| Peer::dial(address)).collect();
    let work: u64 = child.hear().parse().unwrap();
    assert!(work < 250, "{work} waits and system calls in half a second");
    for mut peer in knocking {
        assert!(!is_served(&mut peer), "there was no descriptor for it");
    }
    served.iter_mut().for_each(|peer| peer.ask(b"alive?", b"alive?"));
    // Accepting resumes once there is room.
    served.truncate(5);
    let until = std::time::Instant::now() + LIMIT;
    while !is_served(&mut Peer::dial(address)) {
        assert!(std::time::Instant::now() < until, "nobody is accepted any more");
    }
    for _ in 0..10 {
        Peer::dial(address).ask(b"me too?", b"me too?");
    }
    child.tell("report");
    let shed: u64 = child.hear().parse().unwrap();
    assert!(shed >= 100, "{shed} are counted as shed");
    assert_eq!(child.hear(), "1", "it is logged once");
    child.tell("finish");
    child.expect_success();
    served.iter_mut().for_each(|peer| assert_ne!(peer.read_to_end(), (vec![0], End::Fin)));
}

// io_uring accepts without a system call, so that there is nothing for a filter to deny.
#[test]
fn l4_without_memory_accepting_rests_on_epoll() {
    in_child("descriptors::l4_without_memory_accepting_rests_on_epoll", || rests(Backend::Epoll));
}

#[test]
fn l4_without_memory_accepting_rests_on_threads() {
    in_child("descriptors::l4_without_memory_accepting_rests_on_threads", || rests(Backend::Threads));
}

/// Nobody can be shed for want of memory: those who wait go on waiting, and the port does not spin.
fn rests(backend: Backend) {
    keep_log_records();
    let server = Script::echo().serve(Reactor::builder().backend(backend).signals(false).build().unwrap());
    let mut made = server.dial_made(0);
    server.let_it_turn();
    raw::deny(libc::SYS_accept4, libc::ENOBUFS);
    let _waiting: Vec<Peer> = (0..3).map(|_| server.dial()).collect();
    let until = Instant::now() + LIMIT;
    while logged("could not accept a connection") == 0 {
        assert!(Instant::now() < until, "nothing is logged");
        server.let_it_turn();
    }
    let before = server.running.reactor.stats();
    thread::sleep(Duration::from_millis(500));
    let work = work(&server.running.reactor.stats()) - work(&before);
    assert!((4..100).contains(&work), "{work} waits and system calls in half a second");
    assert_eq!(logged("could not accept a connection"), 1, "it is logged once");
    made.ask(b"alive?", b"alive?");
}

/// The reading end of a pipe that several watches share.
struct Shared(Arc<PipeReader>, Tally);

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Descriptor for Shared {
    fn do_read(&mut self, cx: &mut DescriptorCx<'_>) -> io::Result<()> {
        self.1.up();
        cx.descriptor.remove_reader();
        Ok(())
    }
}

fn i1_watches_leave_no_descriptor_and_without_one_adding_is_an_error(setup: &Setup) {
    in_child(setup.test, || {
        limit_descriptors(128);
        let running = Running::start(setup.reactor());
        let (reader, mut writer) = pipe().unwrap();
        let (reader, called) = (Arc::new(reader), Tally::default());
        let before = open_descriptors();
        let add = || running.reactor.add_reader(Shared(Arc::clone(&reader), called.clone()));
        for _ in 0..600 {
            add().unwrap().remove();
            wait_until(|| Arc::strong_count(&reader) == 1);
        }
        wait_until(|| open_descriptors() == before);
        let mut watches = Vec::new();
        let refused = loop {
            match add() {
                Ok(watch) => watches.push(watch),
                Err(error) => break error.to_string(),
            }
        };
        assert!(
            refused.contains("Too many open files") && refused.contains("raise `ulimit -n`"),
            "{refused}"
        );
        // Whoever is watched is called all the same.
        writer.write_all(b"1").unwrap();
        wait_until(|| called.get() == watches.len());
        (&*reader).read_exact(&mut [0]).unwrap();
        watches.iter().for_each(WatchedDescriptor::remove);
        wait_until(|| open_descriptors() == before);
    });
}

/// Takes descriptors, and sends back the bytes.
struct Taker;

impl<F> Protocol<F> for Taker {
    const RECEIVES_DESCRIPTORS: bool = true;

    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        let _ = cx.transport.write(data);
    }
}

fn u3_descriptors_that_find_no_place_are_told_of_once(setup: &Setup) {
    in_child(setup.test, || {
        let running = Running::start(setup.reactor());
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(LIMIT)).unwrap();
        running.reactor.adopt_stream_connection(ours.into(), Serve(|| Taker)).unwrap();
        let mut send = || {
            let along = [theirs.as_raw_fd()];
            let (bytes, control) = ([IoSlice::new(b"x")], [ControlMessage::ScmRights(&along)]);
            let sent = sendmsg::<()>(theirs.as_raw_fd(), &bytes, &control, MsgFlags::empty(), None);
            assert_eq!(sent, Ok(1));
            theirs.read_exact(&mut [0]).unwrap();
        };
        let lost = || logged("descriptors that came over a Unix socket were lost");
        send();
        assert_eq!(lost(), 0);
        limit_descriptors(128);
        let _all: Vec<fs::File> = std::iter::from_fn(|| fs::File::open("/dev/null").ok()).collect();
        (0..20).for_each(|_| send());
        assert_eq!(lost(), 1);
    });
}

fn wait_until(done: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "it does not come");
        thread::yield_now();
    }
}
