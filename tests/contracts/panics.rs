//! Callbacks that fail or panic: what ends with them, and that nothing else does (C11).

use std::{
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::Duration,
};

use ringspun::{
    Address, Count, Cx, DatagramCx, DatagramProtocol, Errno, Factory, FactoryCx, Peer as Asking, Producer,
    Production, Protocol, Reason, Transport,
};

use crate::{
    datagrams::{nobody, patient, udp},
    kit::{Event, Gate, Journal, Running, Script, ignore, logged, wait_logged},
    peers::{MORE_THAN_FITS, Peer},
    rights::send_along,
    setups::{Setup, on_every_backend},
    unix::Folder,
};

on_every_backend!(
    c11_a_failure_ends_its_connection_only,
    c11_a_panic_in_any_callback_ends_its_connection_only,
    c11_a_panic_in_a_callback_that_is_rarely_called_ends_its_connection_only,
    c11_a_panic_in_build_protocol_refuses_its_connection_only,
    c11_a_panic_in_an_answer_to_no_connection_ends_nothing,
    c11_a_panic_in_a_callback_of_datagrams_ends_nothing,
);

fn c11_a_failure_ends_its_connection_only(setup: &Setup) {
    let text = format!("c11 {}.", setup.test);
    let error = text.clone();
    let script = Script::new().on_data(move |cx, conn, data| match conn.number {
        0 => ignore(cx.transport.write(data)),
        _ => {
            let _ = cx.transport.write(b"half an answer");
            cx.transport.fail(error.clone());
            cx.transport.fail("a second failure of the same connection");
        }
    });
    let server = script.serve(setup.reactor());
    let mut bystander = server.dial_made(0);
    let mut peer = server.dial_made(1);
    peer.write(b"x");
    peer.expect_reset();
    assert_eq!(server.journal.wait_lost(1), format!("Callback({text:?})"));
    bystander.ask(b"alive?", b"alive?");
    assert_eq!(logged(&text), 1);
}

fn c11_a_panic_in_any_callback_ends_its_connection_only(setup: &Setup) {
    const PLACES: [&str; 10] =
        ["", "made", "data", "read_lost", "pause", "resume", "lost", "timer", "post", "produce"];
    let test = setup.test;
    let text = move |place: &str| format!("c11 in {place} of {test}.");
    let panics = move |number: usize, place: &str| {
        if PLACES[number] == place {
            panic!("{}", text(place));
        }
    };
    let script = Script::half_closeable()
        .on_made(move |_, conn| panics(conn.number, "made"))
        .on_data(move |cx, conn, data| {
            panics(conn.number, "data");
            match PLACES[conn.number] {
                "" => ignore(cx.transport.write(data)),
                "pause" | "resume" => ignore(cx.transport.write(&MUCH)),
                "lost" => cx.transport.lose_connection(),
                "produce" => {
                    let bomb = Bomb { at: Place::Resume, text: text("produce") };
                    cx.transport.register_producer(bomb, Production::Pull).unwrap();
                }
                "timer" => drop(cx.call_later(Duration::ZERO, move |me, _| panics(me.conn.number, "timer"))),
                "post" => {
                    let id = cx.transport.id();
                    cx.post(id, move |me, _| panics(me.conn.number, "post"));
                }
                _ => {}
            }
        })
        .on_read_lost(move |_, conn| panics(conn.number, "read_lost"))
        .on_pause(move |_, conn| panics(conn.number, "pause"))
        .on_resume(move |_, conn| panics(conn.number, "resume"))
        .on_lost(move |_, conn, _| panics(conn.number, "lost"));
    let server = script.serve(setup.reactor());
    let mut bystander = server.dial_made(0);
    for (number, place) in PLACES.iter().enumerate().skip(1) {
        let mut peer = server.dial_made(number);
        if *place == "read_lost" {
            peer.finish_writing();
        } else if *place != "made" {
            peer.write(b"x");
        }
        peer.read_to_end();
        let wanted = match *place {
            "lost" => "Done".to_owned(),
            _ => format!("Panicked({:?})", text(place)),
        };
        drop(peer);
        assert_eq!(server.journal.wait_lost(number), wanted, "{place}");
        bystander.ask(b"alive?", b"alive?");
        wait_logged(&text(place));
        assert_eq!(logged(&text(place)), 1, "{place}");
        let losses = |event: &Event| matches!(event, Event::Lost(n, _) if *n == number);
        assert_eq!(server.journal.count(losses), 1, "{place}");
    }
}

/// A producer that panics when it is told this.
struct Bomb {
    at: Place,
    text: String,
}

#[derive(PartialEq)]
enum Place {
    Resume,
    Pause,
    Stop,
}

impl Bomb {
    fn told(&self, what: Place) {
        if self.at == what {
            panic!("{}", self.text);
        }
    }
}

impl Producer for Bomb {
    fn resume_producing(&mut self, _transport: &mut Transport<'_>) {
        self.told(Place::Resume);
    }

    fn pause_producing(&mut self, _transport: &mut Transport<'_>) {
        self.told(Place::Pause);
    }

    fn stop_producing(&mut self) {
        self.told(Place::Stop);
    }
}

fn c11_a_panic_in_build_protocol_refuses_its_connection_only(setup: &Setup) {
    let text = format!("c11 in build of {}.", setup.test);
    let panics = text.clone();
    let script = Script::echo().on_build(move |_, number| match number {
        1 => panic!("{panics}"),
        _ => true,
    });
    let server = script.serve(setup.reactor());
    let mut bystander = server.dial_made(0);
    server.dial().read_to_end();
    bystander.ask(b"alive?", b"alive?");
    server.dial_made(2).ask(b"and another", b"and another");
    assert_eq!(logged(&text), 1);
    assert_eq!(server.count(Count::RefusedByFactory), 1);
    assert!(!server.journal.has(&Event::Made(1)));
}

static MUCH: [u8; MORE_THAN_FITS] = [7; MORE_THAN_FITS];

/// A protocol that does as it is told, and panics where this leads to.
struct Fragile {
    text: String,
    journal: Journal,
}

/// Its connections have numbers, which are in what they say when they panic.
struct FragileFactory {
    text: String,
    journal: Journal,
    built: usize,
}

impl Factory for FragileFactory {
    type Protocol = Fragile;

    fn build_protocol(&mut self, _peer: &mut Asking<'_>) -> Option<Fragile> {
        let text = format!("{} {}.", self.text, self.built);
        self.built += 1;
        Some(Fragile { text, journal: self.journal.clone() })
    }
}

impl Fragile {
    fn register(&self, at: Place, transport: &mut Transport<'_>) {
        let bomb = Bomb { at, text: self.text.clone() };
        transport.register_producer(bomb, Production::Push).unwrap();
    }
}

impl Protocol<FragileFactory> for Fragile {
    const RECEIVES_DESCRIPTORS: bool = true;

    fn data_received(&mut self, cx: &mut Cx<'_, FragileFactory>, data: &[u8]) {
        match data {
            b"time-out" => drop(cx.transport.set_timeout(Some(Duration::from_millis(1)))),
            b"answer" => cx.call_in_thread(|| (), |me, _, _| panic!("{}", me.text)),
            b"pause" => {
                self.register(Place::Pause, &mut cx.transport);
                let _ = cx.transport.write(&MUCH);
            }
            b"stop by FIN" => {
                self.register(Place::Stop, &mut cx.transport);
                // The end is not decided as long as this has not gone.
                let _ = cx.transport.write(&MUCH);
            }
            b"stop by abort" => {
                self.register(Place::Stop, &mut cx.transport);
                cx.transport.abort_connection();
            }
            b"stop at once" => {
                cx.transport.lose_connection();
                self.register(Place::Stop, &mut cx.transport);
            }
            _ => ignore(cx.transport.write(data)),
        }
    }

    fn file_descriptor_received(&mut self, _cx: &mut Cx<'_, FragileFactory>, _descriptor: OwnedFd) {
        panic!("{}", self.text);
    }

    fn timeout_connection(&mut self, _cx: &mut Cx<'_, FragileFactory>) {
        panic!("{}", self.text);
    }

    fn connection_lost(&mut self, _cx: &mut Cx<'_, FragileFactory>, reason: &Reason) {
        self.journal.note(format!("{} {reason:?}", self.text));
    }
}

fn c11_a_panic_in_a_callback_that_is_rarely_called_ends_its_connection_only(setup: &Setup) {
    const ORDERS: [&[u8]; 7] =
        [b"time-out", b"descriptor", b"answer", b"pause", b"stop by FIN", b"stop by abort", b"stop at once"];
    let (folder, running, journal) = (Folder::new(), Running::start(setup.reactor()), Journal::default());
    let (path, text) = (folder.file("fragile"), format!("c11 of {} in", setup.test));
    let factory = FragileFactory { text: text.clone(), journal: journal.clone(), built: 0 };
    running.reactor.listen_unix(path.as_path(), factory).unwrap();
    let mut bystander = Peer::dial_unix(&path);
    bystander.ask(b"there?", b"there?");
    for (order, number) in ORDERS.into_iter().zip(1..) {
        let mut peer = Peer::dial_unix(&path);
        if order == b"descriptor" {
            let any = UnixStream::pair().unwrap().0;
            send_along(&peer.0, order, &[&any]);
        } else {
            peer.write(order);
        }
        if order == b"stop by FIN" {
            peer.finish_writing();
        }
        let text = format!("{text} {number}.");
        let reason = match order {
            // Its end was decided before.
            b"stop by abort" => "Aborted".to_owned(),
            _ => format!("Panicked({text:?})"),
        };
        journal.wait_note(&format!("{text} {reason}"));
        peer.read_to_end();
        bystander.ask(b"alive?", b"alive?");
        assert_eq!(logged(&text), 1, "{number}");
        let lost = |event: &Event| matches!(event, Event::Note(note) if note.starts_with(&text));
        assert_eq!(journal.count(lost), 1, "{number}");
    }
    Peer::dial_unix(&path).ask(b"and another", b"and another");
}

fn c11_a_panic_in_an_answer_to_no_connection_ends_nothing(setup: &Setup) {
    let text = move |whose| format!("c11 of {} in the answer to {whose}.", setup.test);
    let (reactors, factorys) = (text("the reactor"), text("the factory"));
    let script = Script::echo().on_start(move |cx: &mut FactoryCx<'_, Script>, _| {
        let text = factorys.clone();
        cx.call_in_thread(|| (), move |_, _, _| panic!("{text}"));
    });
    let server = script.serve(setup.reactor());
    let mut bystander = server.dial_made(0);
    server.running.reactor.call_in_thread(|| (), move |_, _| panic!("{reactors}"));
    for whose in ["the reactor", "the factory"] {
        wait_logged(&text(whose));
        bystander.ask(b"alive?", b"alive?");
        assert_eq!(logged(&text(whose)), 1);
    }
    // Answers come as before, and so do connections.
    let gate = Gate::default();
    let open = gate.clone();
    server.running.reactor.call_in_thread(|| (), move |_, _| open.open());
    gate.pass();
    server.dial_made(1).ask(b"and another", b"and another");
}

/// A protocol for datagrams that panics in one place.
struct FragilePort {
    place: &'static str,
    text: String,
}

impl FragilePort {
    fn at(&self, place: &str) {
        if self.place == place {
            panic!("{}", self.text);
        }
    }
}

impl DatagramProtocol for FragilePort {
    fn start_protocol(&mut self, _cx: &mut DatagramCx<'_, Self>) {
        self.at("start");
    }

    fn datagram_received(&mut self, _cx: &mut DatagramCx<'_, Self>, _data: &[u8], _from: &Address) {
        self.at("received");
    }

    fn connection_refused(&mut self, _cx: &mut DatagramCx<'_, Self>) {
        self.at("refused");
    }

    fn send_failed(&mut self, _cx: &mut DatagramCx<'_, Self>, _to: Option<&Address>, _errno: Errno) {
        self.at("failed");
    }

    fn stop_protocol(&mut self, _cx: &mut DatagramCx<'_, Self>) {
        self.at("stop");
    }
}

fn c11_a_panic_in_a_callback_of_datagrams_ends_nothing(setup: &Setup) {
    const PLACES: [&str; 7] = ["start", "received", "refused", "failed", "timer", "post", "stop"];
    let server = Script::echo().serve(setup.reactor());
    let mut bystander = server.dial_made(0);
    for place in PLACES {
        let text = format!("c11 of {} in {place}.", setup.test);
        let fragile = FragilePort { place, text: text.clone() };
        let port = server.running.reactor.listen_udp(("127.0.0.1", 0), fragile).unwrap();
        let (held, closed) = (nobody(), Gate::default());
        let (gone, told) = (Address::Udp(held.local_addr().unwrap()), closed.clone());
        port.on_done(move |_, error| {
            assert!(error.is_none());
            told.open();
        });
        match place {
            "received" => ignore(udp().send_to(b"x", port.get_host().socket_addr().unwrap()).unwrap()),
            // Not before it has started.
            "stop" => port.post(|_, cx| cx.transport.stop_listening()),
            _ => port.post(move |me, cx| match place {
                "refused" => {
                    cx.transport.connect(&gone).unwrap();
                    cx.transport.write_connected(b"anybody?").unwrap();
                }
                "failed" => {
                    let no_port = Address::Udp("127.0.0.1:0".parse().unwrap());
                    cx.transport.write(b"x", &no_port).unwrap();
                }
                "timer" => drop(cx.call_later(Duration::ZERO, |me, _| me.at("timer"))),
                _ => me.at("post"),
            }),
        }
        wait_logged(&text);
        if place != "stop" {
            // The port lives, and sends.
            let peer = udp();
            let address = Address::Udp(peer.local_addr().unwrap());
            port.post(move |_, cx| {
                cx.transport.connect(&address).unwrap();
                cx.transport.write_connected(b"alive").unwrap();
            });
            assert_eq!(patient(|| peer.recv(&mut [0; 8])), 5);
            port.stop_listening();
        }
        closed.pass();
        bystander.ask(b"alive?", b"alive?");
        assert_eq!(logged(&text), 1, "{place}");
    }
}
