//! Factories: when they start and stop, what they can schedule, what may wrap them (F1, F2).

use std::{io, time::Duration};

use ringspun::{
    ClientFactory, Cx, Error, Factory, FactoryCx, Peer as Asking, Protocol, Serve, WrappingFactory,
};

use crate::{
    kit::{Event, Gate, Journal, Running, Script, ignore},
    peers::{Bound, assert_refused},
    setups::{Setup, on_every_backend, shared},
};

on_every_backend!(
    f1_a_factory_starts_before_its_first_port_and_stops_after_its_last,
    f1_a_connector_counts_among_the_users_of_a_factory,
    f1_a_factory_that_cannot_start_opens_no_port,
    f1_a_factory_that_reconnects_at_the_reactors_stop_is_stopped,
    f2_a_timer_of_a_factory_gets_the_factory_back,
    f2_one_protocol_type_serves_on_both_ends,
    f2_a_wrapped_factory_keeps_its_timers_and_posts,
);

fn count(journal: &Journal, event: Event) -> usize {
    journal.count(|other| *other == event)
}

fn f1_a_factory_starts_before_its_first_port_and_stops_after_its_last(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let reactor = &running.reactor;
    let script = Script::echo();
    let journal = script.journal.clone();
    let factory = reactor.add_factory(script);
    running.call(|_| ());
    assert_eq!(journal.all(), [], "a factory without a port has not started");
    for round in 1..=2 {
        let first = reactor.listen_tcp(("127.0.0.1", 0), &factory).unwrap();
        let second = reactor.listen_tcp(("127.0.0.1", 0), &factory).unwrap();
        running.call(|_| ());
        assert_eq!(count(&journal, Event::Started), round);
        first.stop_listening();
        let done = Gate::default();
        let told = done.clone();
        first.on_done(move |_, _| told.open());
        done.pass();
        assert_eq!(count(&journal, Event::Stopped), round - 1, "the second port is open");
        second.stop_listening();
        journal.wait("the stop", |events| events.iter().filter(|e| **e == Event::Stopped).count() == round);
        assert_eq!(count(&journal, Event::Started), round);
    }
    let events = journal.all();
    assert_eq!(events, [Event::Started, Event::Stopped, Event::Started, Event::Stopped]);
}

fn f1_a_connector_counts_among_the_users_of_a_factory(setup: &Setup) {
    let nobody = Bound::new();
    let server = Script::new().on_data(|cx, _, _| cx.transport.lose_connection()).serve(setup.reactor());
    let reactor = &server.running.reactor;
    let script = Script::new().on_made(|cx, _| ignore(cx.transport.write(b"bye")));
    let journal = script.journal.clone();
    let factory = reactor.add_factory(script);
    // One that fails alone starts and stops; one that connects holds it until the loss.
    reactor.connect_tcp(nobody.address, &factory);
    journal.wait_for(Event::Stopped);
    let wanted = [Event::Started, Event::Connecting, Event::Failed("Refused".into()), Event::Stopped];
    assert_eq!(journal.all(), wanted);
    reactor.connect_tcp(server.address(), &factory);
    journal.wait("the second stop", |events| events.iter().filter(|e| **e == Event::Stopped).count() == 2);
    let told = journal.all().split_off(4);
    let wanted = [
        Event::Started,
        Event::Connecting,
        Event::Built(0),
        Event::Made(0),
        Event::Lost(0, "Done".into()),
        Event::ClientLost("Done".into()),
        Event::Stopped,
    ];
    assert_eq!(told, wanted);
}

/// Cannot start.
struct Broken(Journal);

impl Factory for Broken {
    type Protocol = Nothing;

    fn build_protocol(&mut self, _peer: &mut Asking<'_>) -> Option<Nothing> {
        Some(Nothing)
    }

    fn start_factory(&mut self, _cx: &mut FactoryCx<'_, Self>) -> io::Result<()> {
        Err(io::Error::other("its data file is missing"))
    }

    fn stop_factory(&mut self, _cx: &mut FactoryCx<'_, Self>) {
        self.0.add(Event::Stopped);
    }
}

struct Nothing;

impl<F> Protocol<F> for Nothing {
    fn data_received(&mut self, _cx: &mut Cx<'_, F>, _data: &[u8]) {}
}

fn f1_a_factory_that_cannot_start_opens_no_port(setup: &Setup) {
    // While the reactor starts, that is the end of it; later, only of the port.
    let journal = Journal::default();
    let reactor = setup.reactor();
    let port = reactor.listen_tcp(("127.0.0.1", 0), Broken(journal.clone())).unwrap();
    let ended = journal.clone();
    port.on_done(move |_, error| ended.note(error.map(Error::to_string).unwrap_or_default()));
    let error = Running::start_unsure(reactor).wait().unwrap_err();
    assert!(matches!(error, Error::StartFactory { .. }), "{error:?}");
    assert!(error.to_string().contains("Broken") && error.to_string().contains("its data file"), "{error}");
    assert!(journal.has(&Event::Note(error.to_string())), "the port was told");
    let server = Script::echo().serve(setup.reactor());
    let at = (setup.own_address(), 0);
    let port = server.running.reactor.listen_tcp(at, Broken(journal.clone())).unwrap();
    let address = port.get_host().socket_addr().unwrap();
    let done = Gate::default();
    let told = done.clone();
    port.on_done(move |_, error| {
        assert!(error.is_some());
        told.open();
    });
    done.pass();
    assert_refused(address);
    server.dial().ask(b"alive?", b"alive?");
    assert!(!journal.has(&Event::Stopped), "what did not start does not stop");
}

fn f1_a_factory_that_reconnects_at_the_reactors_stop_is_stopped(setup: &Setup) {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    for _ in 0..100 {
        let mut running = Running::start(setup.reactor());
        let journals = [(); 2].map(|()| {
            let script = Script::new().on_client_lost(|_, connector, _| ignore(connector.connect()));
            let journal = script.journal.clone();
            running.reactor.connect_tcp(listener.local_addr().unwrap(), script);
            journal
        });
        let _peers = journals.each_ref().map(|journal| {
            journal.wait_for(Event::Made(0));
            listener.accept().unwrap()
        });
        running.stop().unwrap();
        for journal in journals {
            assert_eq!(count(&journal, Event::Started), 1);
            assert_eq!(count(&journal, Event::Stopped), 1, "{:?}", journal.all());
        }
    }
}

fn f2_a_timer_of_a_factory_gets_the_factory_back(setup: &Setup) {
    fn update(factory: &mut Script, cx: &mut FactoryCx<'_, Script>) {
        factory.counter += 1;
        let line = shared(format!("update {}\n", factory.counter).as_bytes());
        cx.connections.each(|mut transport| ignore(transport.write_shared(&line)));
        factory.journal.note(format!("{} told {}", cx.connections.count(), factory.counter));
        if factory.counter < 3 {
            cx.call_later(Duration::from_millis(1), update);
        }
    }
    let script = Script::new().on_start(|cx, journal| {
        journal.note("starts");
        cx.call_later(Duration::from_secs(3600), |_, _| panic!("an hour is over")).cancel().unwrap();
    });
    let script = script.on_data(|cx, conn, _| {
        cx.factory.counter = 0;
        conn.note("asked");
        // From a protocol to its factory: a timer of the connection that reaches both.
        cx.call_later(Duration::ZERO, |recorder, cx| {
            let factory = &mut *cx.factory;
            factory.counter += 10;
            recorder.conn.note(format!("counter {}", factory.counter));
        });
    });
    let server = script.serve(setup.reactor());
    let mut peers = [server.dial_made(0), server.dial_made(1)];
    peers[0].write(b"?");
    server.journal.wait_note("counter 10");
    let running = Running::start(setup.reactor());
    let telling = Script::new().on_start(|cx, _| {
        cx.call_later(Duration::from_millis(1), update);
    });
    let journal = telling.journal.clone();
    let port = running.reactor.listen_tcp(("127.0.0.1", 0), telling).unwrap();
    journal.wait_note("0 told 3");
    drop(port);
    // With connections to tell.
    let late = Script::echo().on_made(|cx, conn| {
        if conn.number == 1 {
            cx.factory.counter = 0;
            let line = shared(b"all of you\n");
            let mut connections = cx.connections();
            assert_eq!(connections.count(), 2);
            connections.each(|mut transport| ignore(transport.write_shared(&line)));
        }
    });
    let server = late.serve(setup.reactor());
    let mut first = server.dial();
    // From then on the second one sees it.
    first.ask(b"made?", b"made?");
    for mut peer in [first, server.dial()] {
        assert_eq!(peer.read_exactly(11), b"all of you\n");
    }
}

/// Answers a number with the next one, up to 5; says on which side it was when it ends.
struct Count {
    starts: bool,
    journal: Journal,
}

impl<F> Protocol<F> for Count {
    fn connection_made(&mut self, cx: &mut Cx<'_, F>) {
        if self.starts {
            let _ = cx.transport.write(&[1]);
        }
    }

    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        if data[0] < 5 {
            let _ = cx.transport.write(&[data[0] + 1]);
        } else {
            self.journal.note(format!("5 came to the one that started: {}", self.starts));
            cx.transport.lose_connection();
        }
    }
}

fn f2_one_protocol_type_serves_on_both_ends(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let journal = Journal::default();
    let [server, client] = [journal.clone(), journal.clone()];
    let serve = Serve(move || Count { starts: false, journal: server.clone() });
    let port = running.reactor.listen_tcp(("127.0.0.1", 0), serve).unwrap();
    let call = Serve(move || Count { starts: true, journal: client.clone() });
    running.reactor.connect_tcp(port.get_host().socket_addr().unwrap(), call);
    journal.wait_note("5 came to the one that started: false");
}

/// Any factory, with its traffic counted.
struct Counting<F> {
    inner: F,
    bytes: usize,
    journal: Journal,
}

struct Counted<P>(P);

impl<F: Factory> Factory for Counting<F> {
    type Protocol = Counted<F::Protocol>;

    fn build_protocol(&mut self, peer: &mut Asking<'_>) -> Option<Self::Protocol> {
        self.inner.build_protocol(peer).map(Counted)
    }

    fn start_factory(&mut self, cx: &mut FactoryCx<'_, Self>) -> io::Result<()> {
        let inner = &mut self.inner;
        cx.inner(|cx| inner.start_factory(cx))
    }
}

impl<F: Factory> ClientFactory for Counting<F> {}

impl<F: Factory> WrappingFactory for Counting<F> {
    type Inner = F;

    fn inner(&self) -> &F {
        &self.inner
    }

    fn inner_mut(&mut self) -> &mut F {
        &mut self.inner
    }

    fn inner_protocol(protocol: &mut Counted<F::Protocol>) -> &mut F::Protocol {
        &mut protocol.0
    }
}

impl<F: Factory> Protocol<Counting<F>> for Counted<F::Protocol> {
    fn connection_made(&mut self, cx: &mut Cx<'_, Counting<F>>) {
        cx.inner(|cx| self.0.connection_made(cx));
    }

    fn data_received(&mut self, cx: &mut Cx<'_, Counting<F>>, data: &[u8]) {
        cx.factory.bytes += data.len();
        let bytes = cx.factory.bytes;
        cx.factory.journal.note(format!("{bytes} bytes passed"));
        cx.inner(|cx| self.0.data_received(cx, data));
    }
}

fn f2_a_wrapped_factory_keeps_its_timers_and_posts(setup: &Setup) {
    let script = Script::new()
        .on_start(|cx, _| {
            cx.call_later(Duration::ZERO, |factory, _| {
                factory.counter += 100;
                factory.journal.note("the inner factory's timer");
            });
        })
        .on_data(|cx, _, _| {
            cx.factory.counter += 1;
            let counter = cx.factory.counter;
            cx.call_later(Duration::ZERO, move |recorder, cx| {
                let _ = cx.transport.write(format!("timer {counter};").as_bytes());
                let id = cx.transport.id();
                recorder.conn.note("the inner protocol's timer");
                cx.post(id, |recorder, cx| {
                    cx.factory.counter += 1;
                    let counter = cx.factory.counter;
                    let _ = cx.transport.write(format!("post {counter}").as_bytes());
                    recorder.conn.note("the inner protocol's post");
                });
            });
        });
    let journal = script.journal.clone();
    // Wrapped twice, so that the way back leads through two wrappers.
    let once = Counting { inner: script, bytes: 0, journal: Journal::default() };
    let outer_journal = Journal::default();
    let twice = Counting { inner: once, bytes: 0, journal: outer_journal.clone() };
    let running = Running::start(setup.reactor());
    let port = running.reactor.listen_tcp(("127.0.0.1", 0), twice).unwrap();
    journal.wait_note("the inner factory's timer");
    let mut peer = crate::peers::Peer::dial(port.get_host().socket_addr().unwrap());
    peer.ask(b"???", b"timer 101;post 102");
    assert!(journal.has(&Event::Note("the inner protocol's post".to_owned())));
    outer_journal.wait_note("3 bytes passed");
}
