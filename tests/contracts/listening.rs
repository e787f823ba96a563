//! Ports: opened, refused, closed, opened again (L1-L3). L4 needs a process of its own.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use ringspun::{Count, Error, ListenOptions, Port};

use crate::{
    kit::{Event, Gate, Running, Script, ignore},
    peers::{End, Peer, assert_refused},
    setups::{Setup, on_every_backend},
};

on_every_backend!(
    l1_port_zero_gives_a_real_port,
    l1_a_port_in_use_is_an_error_that_names_it,
    l1_an_interface_that_is_none_is_an_error,
    l2_stop_listening_ends_accepting_and_nothing_else,
    l2_peers_that_wait_when_the_port_stops_are_turned_away,
    l2_who_was_accepted_too_late_is_turned_away_and_counted,
    l2_the_same_address_can_be_listened_on_at_once,
    l2_a_port_is_told_of_its_end_once,
    l3_none_from_build_protocol_closes_that_connection,
    l3_the_port_can_be_closed_inside_build_protocol,
);

fn l1_port_zero_gives_a_real_port(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let ports: Vec<Port> =
        ["127.0.0.1", "::1"].map(|ip| running.reactor.listen_tcp((ip, 0), Script::echo()).unwrap()).into();
    for port in &ports {
        let address = port.get_host().socket_addr().unwrap();
        assert_ne!(address.port(), 0);
        Peer::dial(address).ask(b"here?", b"here?");
    }
    assert_ne!(ports[0].get_host(), ports[1].get_host());
}

fn l1_a_port_in_use_is_an_error_that_names_it(setup: &Setup) {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let reactor = setup.reactor();
    let error = reactor.listen_tcp(address, Script::new()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&address.to_string()), "{text}");
    assert!(text.contains("in use"), "{text}");
    match error {
        Error::CannotListen { cause, .. } => assert_eq!(cause.kind(), io::ErrorKind::AddrInUse),
        other => panic!("{other:?}"),
    }
    // Likewise if a port of the same reactor holds it.
    let port = reactor.listen_tcp(("127.0.0.1", 0), Script::new()).unwrap();
    let own = port.get_host().socket_addr().unwrap();
    assert!(reactor.listen_tcp(own, Script::new()).unwrap_err().to_string().contains(&own.to_string()));
    // Unless both say that they share it.
    let shared = ListenOptions::from(("127.0.0.1", 0)).reuse_port(true);
    let port = reactor.listen_tcp(shared, Script::new()).unwrap();
    let again = ListenOptions::from(port.get_host().socket_addr().unwrap()).reuse_port(true);
    reactor.listen_tcp(again, Script::new()).unwrap();
}

fn l1_an_interface_that_is_none_is_an_error(setup: &Setup) {
    let reactor = setup.reactor();
    let text = reactor.listen_tcp(("lo", 1), Script::new()).unwrap_err().to_string();
    assert!(text.contains("lo:1") && text.contains("IP address"), "{text}");
    // An address of a test network, which no machine has.
    let text = reactor.listen_tcp(("192.0.2.1", 0), Script::new()).unwrap_err().to_string();
    assert!(text.contains("192.0.2.1:0"), "{text}");
}

fn l2_stop_listening_ends_accepting_and_nothing_else(setup: &Setup) {
    let server = Script::echo().serve_at(setup.own_address(), setup.reactor());
    let mut made = server.dial_made(0);
    let done = Gate::default();
    let told = done.clone();
    server.port.on_done(move |_, error| {
        assert!(error.is_none(), "{error:?}");
        told.open();
    });
    server.port.stop_listening();
    server.port.stop_listening();
    done.pass();
    assert_refused(server.address());
    made.ask(b"alive?", b"alive?");
    assert_eq!(server.journal.count(|event| matches!(event, Event::Built(_))), 1);
}

fn l2_peers_that_wait_when_the_port_stops_are_turned_away(setup: &Setup) {
    let (inside, go) = (Gate::default(), Gate::default());
    let (tell, wait) = (inside.clone(), go.clone());
    let place: Arc<Mutex<Option<Port>>> = Arc::default();
    let port = Arc::clone(&place);
    let script = Script::new().on_data(move |cx, _, data| {
        if data == b"stop" {
            tell.open();
            wait.pass();
            port.lock().unwrap().as_ref().unwrap().stop_listening();
        }
        let _ = cx.transport.write(data);
    });
    // Holding the one thread of a loop holds accepting too; on threads, only this connection.
    let server = script.serve(setup.reactor());
    *place.lock().unwrap() = Some(server.port.clone());
    let mut made = server.dial_made(0);
    made.write(b"stop");
    inside.pass();
    let waiting: Vec<Peer> = (0..10).map(|_| server.dial()).collect();
    if setup.is_threads() {
        server.journal.wait_for(Event::Made(10));
    }
    go.open();
    assert_eq!(made.read_exactly(4), b"stop");
    let built = server.journal.count(|event| matches!(event, Event::Built(_)));
    assert_eq!(built, if setup.is_threads() { 11 } else { 1 });
    if !setup.is_threads() {
        for mut peer in waiting {
            peer.read_to_end();
        }
    }
    made.ask(b"alive?", b"alive?");
    assert_eq!(server.journal.count(|event| matches!(event, Event::Built(_))), built);
}

fn l2_who_was_accepted_too_late_is_turned_away_and_counted(setup: &Setup) {
    const LATE: u64 = 5;
    let (inside, go) = (Gate::default(), Gate::default());
    let (tell, wait) = (inside.clone(), go.clone());
    let script = Script::echo().on_build(move |_, _| {
        tell.open();
        wait.pass();
        true
    });
    let server = script.serve(setup.reactor());
    let mut made = server.dial();
    inside.pass();
    let late: Vec<Peer> = (0..LATE).map(|_| server.dial()).collect();
    // On threads they are accepted and wait for the factory. On a loop they may be.
    if setup.is_threads() {
        server.running.wait_count(Count::Accepted, 1 + LATE);
    }
    server.port.stop_listening();
    go.open();
    for mut peer in late {
        assert_eq!(peer.read_to_end().0, []);
    }
    made.ask(b"alive?", b"alive?");
    assert_eq!(server.journal.count(|event| matches!(event, Event::Built(_))), 1);
    let refused = server.count(Count::RefusedStopped);
    assert_eq!(server.count(Count::Accepted), 1 + refused);
    if setup.is_threads() {
        assert_eq!(refused, LATE);
    }
}

fn l2_the_same_address_can_be_listened_on_at_once(setup: &Setup) {
    let first = Script::echo().serve(setup.reactor());
    let mut made = first.dial_made(0);
    let reactor = &first.running.reactor;
    let mut port = first.port.clone();
    for _ in 0..10 {
        port.stop_listening();
        let script = Script::new().on_made(|cx, _| ignore(cx.transport.write(b"the next one")));
        port = reactor.listen_tcp(first.address(), script).expect("at once");
        let mut peer = first.dial();
        assert_eq!(peer.read_exactly(12), b"the next one");
        made.ask(b"alive?", b"alive?");
    }
    // And from inside a callback of the reactor itself.
    let (address, port) = (first.address(), port.clone());
    first.running.call(move |reactor| {
        port.stop_listening();
        reactor.listen_tcp(address, Script::echo()).expect("at once");
    });
    first.dial().ask(b"still?", b"still?");
}

fn l2_a_port_is_told_of_its_end_once(setup: &Setup) {
    let mut server = Script::new().serve(setup.reactor());
    let journal = server.journal.clone();
    let tell = |text: &'static str| {
        let journal = journal.clone();
        move |_: &ringspun::Reactor, error: Option<&Error>| {
            journal.note(format!("{text} {}", error.is_none()))
        }
    };
    let early = server.running.reactor.listen_tcp(("127.0.0.1", 0), Script::new()).unwrap();
    early.on_done(tell("first"));
    early.on_done(tell("second"));
    early.stop_listening();
    server.journal.wait_note("second true");
    early.on_done(tell("late"));
    server.journal.wait_note("late true");
    server.port.on_done(tell("shutdown"));
    server.stop();
    server.journal.wait_note("shutdown true");
    for text in ["first true", "second true", "late true", "shutdown true"] {
        assert_eq!(server.journal.count(|event| *event == Event::Note(text.to_owned())), 1, "{text}");
    }
}

fn l3_none_from_build_protocol_closes_that_connection(setup: &Setup) {
    let script = Script::echo().on_build(|_, number| number % 2 == 1);
    let server = script.serve(setup.reactor());
    for number in 0..20 {
        let mut peer = server.dial();
        if number % 2 == 1 {
            peer.ask(b"welcome?", b"welcome?");
        } else {
            assert_eq!(peer.read_to_end(), (Vec::new(), End::Fin));
        }
    }
    assert_eq!(server.journal.count(|event| matches!(event, Event::Made(_))), 10);
    assert_eq!(server.count(Count::RefusedByFactory), 10);
}

fn l3_the_port_can_be_closed_inside_build_protocol(setup: &Setup) {
    for accept_it in [true, false] {
        let place: Arc<Mutex<Option<Port>>> = Arc::default();
        let port = Arc::clone(&place);
        let script = Script::echo().on_build(move |_, _| {
            port.lock().unwrap().as_ref().unwrap().stop_listening();
            accept_it
        });
        let server = script.serve(setup.reactor());
        let done = Gate::default();
        let told = done.clone();
        server.port.on_done(move |_, _| told.open());
        *place.lock().unwrap() = Some(server.port.clone());
        let mut peer = server.dial();
        if accept_it {
            peer.ask(b"the last one", b"the last one");
        } else {
            peer.read_to_end();
        }
        done.pass();
        assert!(std::net::TcpStream::connect_timeout(&server.address(), Duration::from_secs(5)).is_err());
        assert_eq!(server.journal.count(|event| matches!(event, Event::Built(_))), 1);
    }
}
