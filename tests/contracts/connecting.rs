//! Connectors: states, attempts that fail, connections that are made again (K1-K4).

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use ringspun::{ConnectOptions, Connector, ConnectorState, Count};

use crate::{
    kit::{Event, Gate, Journal, Running, Script, Server, Tally, ignore},
    peers::{Bound, Peer},
    setups::{Setup, on_every_backend},
};

on_every_backend!(
    k1_a_connector_has_three_states,
    k1_connect_in_a_wrong_state_is_an_error,
    k1_stop_connecting_fails_the_attempt,
    k1_disconnect_ends_whatever_is_under_way,
    k1_while_its_protocol_is_built_a_connector_is_connected,
    k1_disconnect_while_its_protocol_is_built_closes_the_connection,
    k2_connect_inside_the_loss_reconnects,
    k2_connect_inside_the_failure_tries_again,
    k3_the_protocol_hears_of_the_loss_before_its_factory,
    k4_refused,
    k4_timed_out,
    k4_unreachable,
    k4_unresolvable,
    k4_a_bad_bind_address,
    k4_a_name_is_resolved_and_a_bind_address_used,
    k4_the_reactor_can_be_stopped_in_the_failure,
);

/// A listener whose queue is full: who connects gets no answer.
pub(crate) struct Deaf {
    _listener: TcpListener,
    _filler: TcpStream,
    pub(crate) address: SocketAddr,
}

impl Deaf {
    pub(crate) fn new() -> Self {
        let bound = Bound::new();
        let address = bound.address;
        let listener = bound.listen(0);
        let filler = TcpStream::connect(address).unwrap();
        Self { _listener: listener, _filler: filler, address }
    }
}

fn failed(journal: &Journal) -> String {
    journal.wait("a failure", |events| events.iter().any(|event| matches!(event, Event::Failed(_))));
    let text = |event| match event {
        Event::Failed(text) => Some(text),
        _ => None,
    };
    journal.all().into_iter().find_map(text).unwrap()
}

/// Connects with this script; the connector and the journal.
fn connect(running: &Running, options: impl Into<ConnectOptions>, script: Script) -> (Connector, Journal) {
    let journal = script.journal.clone();
    (running.reactor.connect_tcp(options, script), journal)
}

fn k1_a_connector_has_three_states(setup: &Setup) {
    let server = Script::new().on_data(|cx, _, _| cx.transport.lose_connection()).serve(setup.reactor());
    let script = Script::new().on_client_lost(|_, connector, _| {
        assert_eq!(connector.state(), ConnectorState::Disconnected);
    });
    let script = script.on_data(|_, _, _| ()).on_made(|cx, _| ignore(cx.transport.write(b"x")));
    let deaf = Deaf::new();
    let (waiting, _) = connect(&server.running, deaf.address, Script::new());
    assert_eq!(waiting.state(), ConnectorState::Connecting);
    assert_eq!(waiting.get_destination(), deaf.address.to_string());
    let seen: std::sync::Arc<std::sync::Mutex<Vec<ConnectorState>>> = Default::default();
    let (place, states) = (Gate::default(), seen.clone());
    let opened = place.clone();
    let held: std::sync::Arc<std::sync::Mutex<Option<Connector>>> = Default::default();
    let connector = held.clone();
    let script = script.on_made(move |cx, _| {
        opened.pass();
        states.lock().unwrap().push(connector.lock().unwrap().as_ref().unwrap().state());
        let _ = cx.transport.write(b"x");
    });
    let (made, journal) = connect(&server.running, server.address(), script);
    *held.lock().unwrap() = Some(made.clone());
    place.open();
    journal.wait_for(Event::ClientLost("Done".to_owned()));
    assert_eq!(*seen.lock().unwrap(), [ConnectorState::Connected]);
    assert_eq!(made.state(), ConnectorState::Disconnected);
}

fn k1_connect_in_a_wrong_state_is_an_error(setup: &Setup) {
    let server = Script::new().serve(setup.reactor());
    let deaf = Deaf::new();
    let (waiting, _) = connect(&server.running, deaf.address, Script::new());
    let error = waiting.connect().unwrap_err().to_string();
    assert!(error.contains("connect") && error.contains("Connecting"), "{error}");
    let (made, journal) = connect(&server.running, server.address(), Script::new());
    journal.wait_for(Event::Made(0));
    assert!(made.connect().unwrap_err().to_string().contains("Connected"));
    assert!(made.stop_connecting().unwrap_err().to_string().contains("Connected"));
    made.disconnect();
    journal.wait_for(Event::ClientLost("Done".to_owned()));
    assert!(made.stop_connecting().unwrap_err().to_string().contains("Disconnected"));
    made.connect().expect("it is disconnected");
    journal.wait_for(Event::Made(1));
}

fn k1_stop_connecting_fails_the_attempt(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let deaf = Deaf::new();
    let (connector, journal) = connect(&running, deaf.address, Script::new());
    journal.wait_for(Event::Connecting);
    connector.stop_connecting().unwrap();
    assert_eq!(failed(&journal), "User");
    assert_eq!(connector.state(), ConnectorState::Disconnected);
    journal.wait_for(Event::Stopped);
    assert_eq!(running.count(Count::ConnectFailed), 1);
    assert_eq!(journal.count(|event| matches!(event, Event::Built(_) | Event::Failed(_))), 1);
}

fn k1_disconnect_ends_whatever_is_under_way(setup: &Setup) {
    let server = Script::new().serve(setup.reactor());
    let deaf = Deaf::new();
    let (waiting, journal) = connect(&server.running, deaf.address, Script::new());
    waiting.disconnect();
    assert_eq!(failed(&journal), "User");
    waiting.disconnect();
    let script = Script::new().on_made(|cx, conn| {
        let _ = cx.transport.write(b"all of this");
        conn.note("wrote");
    });
    let (made, journal) = connect(&server.running, server.address(), script);
    journal.wait_note("wrote");
    made.disconnect();
    journal.wait_for(Event::ClientLost("Done".to_owned()));
    assert_eq!(server.journal.wait_lost(0), "Done");
    assert_eq!(server.journal.bytes(0), b"all of this");
}

type Build = dyn Fn(&Connector) + Send + Sync;

/// Asks a connector whose protocol is being built, from inside of `build_protocol` or, while that
/// lasts, from elsewhere; the connector and the journal.
fn connect_and_ask(server: &Server, inside: bool, ask: Arc<Build>) -> (Connector, Journal) {
    let (building, go) = (Gate::default(), Gate::default());
    let (tell, wait) = (building.clone(), go.clone());
    let place: Arc<Mutex<Option<Connector>>> = Arc::default();
    let (known, asked) = (Arc::clone(&place), Arc::clone(&ask));
    let script = Script::new().on_build(move |_, _| {
        tell.open();
        wait.pass();
        if inside {
            asked(known.lock().unwrap().as_ref().unwrap());
        }
        true
    });
    let (connector, journal) = connect(&server.running, server.address(), script);
    *place.lock().unwrap() = Some(connector.clone());
    building.pass();
    if !inside {
        ask(&connector);
    }
    go.open();
    (connector, journal)
}

fn k1_while_its_protocol_is_built_a_connector_is_connected(setup: &Setup) {
    let server = Script::new().serve(setup.reactor());
    for inside in [true, false] {
        let answers: Arc<Mutex<Vec<String>>> = Arc::default();
        let place = Arc::clone(&answers);
        let ask = move |connector: &Connector| {
            let state = connector.state();
            let errors = [connector.stop_connecting(), connector.connect()].map(|answer| match answer {
                Ok(()) => "done".to_owned(),
                Err(error) => error.to_string(),
            });
            place.lock().unwrap().extend([format!("{state:?}")].into_iter().chain(errors));
        };
        let (connector, journal) = connect_and_ask(&server, inside, Arc::new(ask));
        journal.wait_for(Event::Made(0));
        let wanted = ["", "cannot stop connecting: the connector is ", "cannot connect: the connector is "];
        assert_eq!(*answers.lock().unwrap(), wanted.map(|text| format!("{text}Connected")));
        assert_eq!(connector.state(), ConnectorState::Connected);
    }
}

fn k1_disconnect_while_its_protocol_is_built_closes_the_connection(setup: &Setup) {
    let server = Script::new().serve(setup.reactor());
    for (number, inside) in [true, false].into_iter().enumerate() {
        let (connector, journal) = connect_and_ask(&server, inside, Arc::new(Connector::disconnect));
        assert_eq!(server.journal.wait_lost(number), "Done", "the other end had a FIN");
        journal.wait_for(Event::ClientLost("Done".to_owned()));
        assert_eq!(connector.state(), ConnectorState::Disconnected);
        let told = journal.all();
        let wanted = [
            Event::Started,
            Event::Connecting,
            Event::Built(0),
            Event::Made(0),
            Event::Lost(0, "Done".to_owned()),
            Event::ClientLost("Done".to_owned()),
        ];
        assert_eq!(told[..wanted.len()], wanted);
    }
}

fn k2_connect_inside_the_loss_reconnects(setup: &Setup) {
    const TIMES: usize = 5;
    let script = Script::new().on_data(|cx, conn, _| match conn.number % 2 {
        0 => cx.transport.lose_connection(),
        _ => cx.transport.abort_connection(),
    });
    let server = script.serve(setup.reactor());
    let losses = Tally::default();
    let count = losses.clone();
    let script = Script::new().on_made(|cx, _| ignore(cx.transport.write(b"x")));
    let script = script.on_client_lost(move |_, connector, _| {
        if count.up() + 1 < TIMES {
            connector.connect().unwrap();
        }
    });
    let (connector, journal) = connect(&server.running, server.address(), script);
    journal.wait_for(Event::Stopped);
    assert_eq!(losses.get(), TIMES);
    assert_eq!(journal.count(|event| matches!(event, Event::Made(_))), TIMES);
    assert_eq!(journal.count(|event| *event == Event::Started), 1, "it kept its place");
    assert_eq!(connector.state(), ConnectorState::Disconnected);
}

fn k2_connect_inside_the_failure_tries_again(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let bound = Bound::new();
    let address = bound.address;
    let place = std::sync::Mutex::new(Some(bound));
    let listening: std::sync::Arc<std::sync::Mutex<Option<TcpListener>>> = Default::default();
    let opened = listening.clone();
    let failures = Tally::default();
    let count = failures.clone();
    let script = Script::new().on_failed(move |_, connector, _| {
        if count.up() == 2 {
            *opened.lock().unwrap() = place.lock().unwrap().take().map(|bound| bound.listen(10));
        }
        connector.connect().unwrap();
    });
    let (connector, journal) = connect(&running, address, script);
    journal.wait_for(Event::Made(0));
    assert_eq!(failures.get(), 3);
    assert_eq!(connector.state(), ConnectorState::Connected);
    assert_eq!(journal.count(|event| *event == Event::Started), 1);
}

fn k3_the_protocol_hears_of_the_loss_before_its_factory(setup: &Setup) {
    let server = Script::new().on_data(|cx, _, _| cx.transport.abort_connection()).serve(setup.reactor());
    for _ in 0..10 {
        let script = Script::new().on_made(|cx, _| ignore(cx.transport.write(b"x")));
        let (_, journal) = connect(&server.running, server.address(), script);
        journal.wait_for(Event::Stopped);
        let events = journal.all();
        let place = |wanted: fn(&Event) -> bool| events.iter().position(wanted).unwrap();
        let lost = place(|event| matches!(event, Event::Lost(0, _)));
        let told = place(|event| matches!(event, Event::ClientLost(_)));
        assert!(lost < told, "{events:?}");
    }
}

fn k4_refused(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let nobody = Bound::new();
    let (connector, journal) = connect(&running, nobody.address, Script::new());
    assert_eq!(failed(&journal), "Refused");
    assert_eq!(connector.state(), ConnectorState::Disconnected);
}

fn k4_timed_out(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let deaf = Deaf::new();
    let timeout = Duration::from_millis(200);
    let options = ConnectOptions::from(deaf.address).timeout(timeout);
    let before = Instant::now();
    let (_, journal) = connect(&running, options, Script::new());
    assert_eq!(failed(&journal), "TimedOut");
    assert!(before.elapsed() >= timeout, "never early");
    journal.wait_for(Event::Stopped);
    // Nothing comes late.
    running.call(|_| ());
    assert_eq!(journal.count(|event| matches!(event, Event::Failed(_) | Event::Built(_))), 1);
}

fn k4_unreachable(setup: &Setup) {
    let running = Running::start(setup.reactor());
    // A TCP connection to the broadcast address is refused before anything is sent.
    let (_, journal) = connect(&running, ("255.255.255.255", 9), Script::new());
    assert_eq!(failed(&journal), "Unreachable(ENETUNREACH)");
}

fn k4_unresolvable(setup: &Setup) {
    let running = Running::start(setup.reactor());
    // Longer than a name may be, so that no server has to be asked.
    let name = format!("{}.invalid", "x".repeat(64));
    let (connector, journal) = connect(&running, (&*name, 9), Script::new());
    let text = failed(&journal);
    assert!(text.starts_with("Resolve("), "{text}");
    assert_eq!(connector.get_destination(), format!("{name}:9"));
}

fn k4_a_bad_bind_address(setup: &Setup) {
    let server = Script::new().serve(setup.reactor());
    // An address of a test network, which no machine has.
    let options = ConnectOptions::from(server.address()).bind("192.0.2.1:0".parse().unwrap());
    let (_, journal) = connect(&server.running, options, Script::new());
    assert_eq!(failed(&journal), "Bind(192.0.2.1:0, EADDRNOTAVAIL)");
}

fn k4_a_name_is_resolved_and_a_bind_address_used(setup: &Setup) {
    let server = Script::echo().serve(setup.reactor());
    let script = Script::new().on_made(|cx, conn| conn.note(cx.transport.get_host().to_string()));
    let options = ConnectOptions::from(("localhost", server.address().port()));
    let (connector, journal) = connect(&server.running, options, script);
    journal.wait_for(Event::Made(0));
    assert_eq!(connector.state(), ConnectorState::Connected);
    let options = ConnectOptions::from(server.address()).bind("127.0.0.3:0".parse().unwrap());
    let script = Script::new().on_made(|cx, conn| conn.note(format!("{}", cx.transport.get_host())));
    let (_, journal) = connect(&server.running, options, script);
    journal.wait("the own address", |events| {
        events.iter().any(|event| matches!(event, Event::Note(text) if text.starts_with("127.0.0.3:")))
    });
    Peer::dial(server.address()).ask(b"alive?", b"alive?");
}

fn k4_the_reactor_can_be_stopped_in_the_failure(setup: &Setup) {
    let nobody = Bound::new();
    let reactor = setup.reactor();
    let script = Script::new().on_failed(|cx, _, _| cx.reactor.stop().unwrap());
    let journal = script.journal.clone();
    reactor.connect_tcp(nobody.address, script);
    Running::start_unsure(reactor).wait().unwrap();
    let wanted = [Event::Started, Event::Connecting, Event::Failed("Refused".into()), Event::Stopped];
    assert_eq!(journal.all(), wanted);
}
