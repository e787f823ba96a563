//! Listening sockets that are handed over (N3), from reactor to reactor; from process to process it is `tests/faults/activation.rs`.

use std::{
    io::ErrorKind,
    net::TcpStream,
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use ringspun::{Count, Port};

use crate::{
    generations::{Callers, Generation, ask_once, call},
    kit::{Event, Gate, Running, Script, Server},
    peers::{LIMIT, Peer},
    setups::{Setup, on_every_backend},
    unix::Folder,
};

on_every_backend!(
    n3_nobody_is_refused_while_a_port_goes_from_hand_to_hand,
    n3_the_file_of_a_unix_port_stays_for_the_successor,
    n3_who_was_accepted_too_late_is_served,
    n3_a_shared_socket_survives_the_end_of_a_reactor,
    n3_a_reactor_that_is_stopped_leaves_those_who_wait_to_the_others,
    n3_a_port_that_nobody_else_has_ends_as_ever,
    n3_a_port_that_ends_gives_no_socket_away,
);

const GENERATIONS: usize = 8;

fn pass_on_under_load(setup: &Setup, mut serving: Generation, callers: Callers) {
    for _ in 0..GENERATIONS {
        callers.wait_for(50);
        let successor = serving.successor(setup.reactor());
        callers.wait_for(10);
        serving.retire();
        serving = successor;
    }
    callers.wait_for(50);
    assert!(callers.stop() >= 50 * GENERATIONS);
    serving.retire();
}

fn n3_nobody_is_refused_while_a_port_goes_from_hand_to_hand(setup: &Setup) {
    let first = Generation::serve(setup.reactor(), "tcp:0:127.0.0.1");
    let address = first.port.get_host().socket_addr().unwrap();
    pass_on_under_load(setup, first, Callers::start(4, move || call(address)));
    // The last one has closed the last descriptor.
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

fn n3_the_file_of_a_unix_port_stays_for_the_successor(setup: &Setup) {
    let folder = Folder::new();
    let path = folder.file("echo");
    let first = Generation::serve(setup.reactor(), &format!("unix:{}", path.display()));
    let place = path.clone();
    let call = move || {
        let stream = UnixStream::connect(&place)?;
        stream.set_read_timeout(Some(LIMIT))?;
        ask_once(stream)
    };
    pass_on_under_load(setup, first, Callers::start(4, call));
    assert!(path.exists(), "nobody knows who was the last");
    assert_eq!(UnixStream::connect(&path).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

/// Peers come while the old one is held in a callback, which then stops the port: whoever has accepted them, they are served.
fn n3_who_was_accepted_too_late_is_served(setup: &Setup) {
    const LATE: usize = 10;
    let (inside, go) = (Gate::default(), Gate::default());
    let (tell, wait) = (inside.clone(), go.clone());
    let place: Arc<Mutex<Option<Port>>> = Arc::default();
    let port = Arc::clone(&place);
    let script = Script::echo().on_build(move |_, number| {
        if number == 0 {
            tell.open();
            wait.pass();
            port.lock().unwrap().as_ref().unwrap().stop_listening();
        }
        true
    });
    let server = script.serve(setup.reactor());
    *place.lock().unwrap() = Some(server.port.clone());
    let done = Gate::default();
    let told = done.clone();
    server.port.on_done(move |_, _| told.open());
    // Nobody accepts from it before the old one has gone.
    let socket = server.port.try_clone_socket().unwrap();
    let mut first = server.dial();
    inside.pass();
    let late: Vec<Peer> = (0..LATE).map(|_| server.dial()).collect();
    if setup.is_threads() {
        // They wait for the factory.
        server.running.wait_count(Count::Accepted, 1 + LATE as u64);
    }
    go.open();
    done.pass();
    let accepted = server.count(Count::Accepted);
    assert_eq!(server.journal.count(|event| matches!(event, Event::Built(_))) as u64, accepted);
    assert_eq!(server.count(Count::RefusedStopped), 0);
    first.ask(b"the first", b"the first");
    let successor = Running::start(setup.reactor());
    successor.reactor.adopt_stream_port(socket, Script::echo()).unwrap();
    late.into_iter().for_each(|mut peer| peer.ask(b"and I?", b"and I?"));
    assert_eq!(accepted + successor.count(Count::Accepted), 1 + LATE as u64);
}

fn n3_a_shared_socket_survives_the_end_of_a_reactor(setup: &Setup) {
    let mut server = Script::echo().serve(setup.reactor());
    let address = server.address();
    let socket = server.port.try_clone_socket().unwrap();
    server.dial().ask(b"one", b"one");
    server.stop();
    // Nobody accepts now, but nobody is refused either.
    let mut waiting = Peer::dial(address);
    waiting.write(b"two");
    let successor = Running::start(setup.reactor());
    let port = successor.reactor.adopt_stream_port(socket, Script::echo()).unwrap();
    assert_eq!(waiting.read_exactly(3), b"two");
    // What was adopted is shared from the beginning.
    let kept = port.try_clone_socket().unwrap();
    port.stop_listening();
    let _third = successor.reactor.adopt_stream_port(kept, Script::echo()).unwrap();
    Peer::dial(address).ask(b"three", b"three");
}

/// Peers come while the loop is held, and then it is stopped. Whom the kernel has accepted for it by then it turns away, but it takes in nobody
/// to do that.
fn n3_a_reactor_that_is_stopped_leaves_those_who_wait_to_the_others(setup: &Setup) {
    const WAITING: usize = 10;
    let (inside, go) = (Gate::default(), Gate::default());
    let (tell, wait) = (inside.clone(), go.clone());
    let mut server = Script::echo().serve(setup.reactor());
    let socket = server.port.try_clone_socket().unwrap();
    server.running.reactor.call_from_thread(move |reactor| {
        tell.open();
        wait.pass();
        reactor.stop().unwrap();
    });
    inside.pass();
    let mut waiting: Vec<Peer> = (0..WAITING).map(|_| server.dial()).collect();
    go.open();
    server.running.wait().unwrap();
    let refused = server.count(Count::RefusedStopped) as usize;
    assert_eq!(server.count(Count::Made), 0);
    let successor = Running::start(setup.reactor());
    successor.reactor.adopt_stream_port(socket, Script::echo()).unwrap();
    let served = waiting.iter_mut().filter_map(|peer| ask_once(&peer.0).ok()).count();
    assert_eq!(served + refused, WAITING);
    assert!(setup.is_uring() || refused == 0, "{refused} were taken in to be turned away");
}

fn refused_in_time(server: &Server) {
    let until = Instant::now() + LIMIT;
    while TcpStream::connect(server.address()).is_ok() {
        assert!(Instant::now() < until, "it still listens");
        thread::sleep(Duration::from_millis(1));
    }
}

fn n3_a_port_that_nobody_else_has_ends_as_ever(setup: &Setup) {
    let server = Script::echo().serve(setup.reactor());
    drop(server.port.try_clone_socket().unwrap());
    let mut made = server.dial_made(0);
    server.port.stop_listening();
    refused_in_time(&server);
    made.ask(b"alive?", b"alive?");
}

fn n3_a_port_that_ends_gives_no_socket_away(setup: &Setup) {
    let server = Script::echo().serve(setup.reactor());
    server.port.stop_listening();
    let error = server.port.try_clone_socket().unwrap_err();
    assert!(error.to_string().contains("stopped"), "{error}");
    refused_in_time(&server);
}
