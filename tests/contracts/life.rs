//! The life of a connection: made once, lost once, told why, and nothing kept (C1-C4, C6, C14, C16).

use std::{cell::Cell, collections::HashSet, iter, net::SocketAddr, time::Duration};

use ringspun::{Address, ConnId, Count, FactoryCx, Limits, Transport, Write};

use crate::{
    kit::{Drops, Event, Gate, Running, Script, Server, ignore},
    peers::{Bound, End, Peer, pattern},
    setups::{Setup, on_every_backend},
};

on_every_backend!(
    c1_the_connection_is_made_once_before_any_data,
    c1_what_is_told_to_all_comes_after_the_greeting,
    c1_what_is_told_to_all_while_a_connection_is_made_comes_after_its_greeting,
    c1_a_connection_that_is_made_is_among_its_factorys,
    c2_every_made_connection_is_lost_once,
    c2_a_connection_that_was_not_made_is_never_lost,
    c3_the_reason_says_what_ended_it,
    c4_no_data_after_the_end_was_asked_for,
    c4_no_held_data_after_lose_connection,
    c6_a_write_after_the_loss_does_nothing,
    c6_a_write_in_vain_asks_for_no_bytes,
    c6_a_stale_id_reaches_no_later_connection,
    c6_no_two_reactors_give_the_same_id,
    c14_a_lost_connection_keeps_nothing_alive,
    c14_a_stopped_reactor_keeps_nothing_alive,
    c16_both_ends_have_their_addresses,
    c16_an_address_asked_for_once_stays,
    c16_socket_options_can_be_set_and_read,
);

const HOUR: Duration = Duration::from_secs(3600);

fn c1_the_connection_is_made_once_before_any_data(setup: &Setup) {
    let script = Script::new()
        .on_made(|cx, conn| {
            assert_ne!(cx.transport.get_peer(), Address::Unknown, "the transport is there");
            assert_eq!(cx.transport.write(b"hello"), Write::Accepted);
            conn.note("wrote");
        })
        .on_data(|cx, _, data| ignore(cx.transport.write(data)));
    let server = script.serve(setup.reactor());
    for number in 0..20 {
        let mut peer = server.dial();
        peer.ask(b"early", b"helloearly");
        peer.finish_writing();
        peer.expect_fin();
        server.journal.wait_lost(number);
    }
    for number in 0..20 {
        let mine = |event: &Event| matches!(event, Event::Made(n) | Event::Data(n, _) | Event::Lost(n, _) if *n == number);
        let told: Vec<Event> = server.journal.all().into_iter().filter(mine).collect();
        assert_eq!(told[0], Event::Made(number));
        assert!(told[1..told.len() - 1].iter().all(|event| matches!(event, Event::Data(..))), "{told:?}");
        assert_eq!(*told.last().unwrap(), Event::Lost(number, "Done".to_owned()));
    }
    assert_eq!(server.count(Count::Made), 20);
}

fn c1_what_is_told_to_all_comes_after_the_greeting(setup: &Setup) {
    fn tell_all(_: &mut Script, cx: &mut FactoryCx<'_, Script>) {
        cx.connections.each(|mut transport| ignore(transport.write(b"all")));
        cx.call_later(Duration::ZERO, tell_all);
    }
    let script = Script::new()
        .on_start(|cx, _| drop(cx.call_later(Duration::ZERO, tell_all)))
        .on_made(|cx, _| ignore(cx.transport.write(b"you")));
    let server = script.serve(setup.reactor());
    for number in 0..500 {
        assert_eq!(server.dial().read_exactly(3), b"you", "connection {number}");
    }
}

fn c1_what_is_told_to_all_while_a_connection_is_made_comes_after_its_greeting(setup: &Setup) {
    let (inside, go) = (Gate::default(), Gate::default());
    let (tell, wait) = (inside.clone(), go.clone());
    let script = Script::new()
        .on_made(move |cx, conn| {
            if conn.number == 1 {
                tell.open();
                wait.pass();
            }
            let _ = cx.transport.write(b"you");
        })
        .on_data(|cx, conn, _| {
            cx.connections().each(|mut transport| ignore(transport.write(b"all")));
            conn.note("told all");
        });
    let server = script.serve(setup.reactor());
    let mut telling = server.dial_made(0);
    let mut late = server.dial();
    inside.pass();
    telling.write(b"!");
    // On a loop nobody is told anything while a callback lasts.
    if setup.is_threads() {
        server.journal.wait_note("told all");
    }
    go.open();
    assert_eq!(late.read_exactly(3), b"you");
    assert_eq!(telling.read_exactly(6), b"youall");
}

fn c1_a_connection_that_is_made_is_among_its_factorys(setup: &Setup) {
    let script = Script::echo().on_made(|cx, conn| {
        let (own, mut among) = (cx.transport.id(), 0);
        let mut connections = cx.connections();
        connections.each(|transport| among += usize::from(transport.id() == own));
        conn.note(format!("{} with {} more", among, connections.count() - 1));
    });
    let server = script.serve(setup.reactor());
    let dial = |number| {
        let mut peer = server.dial();
        // An answer says that its connection_made is over: others see it from then on.
        peer.ask(b"made?", b"made?");
        assert!(server.journal.has(&Event::Note(format!("1 with {number} more"))), "{number}");
        peer
    };
    let _peers: Vec<Peer> = (0..5).map(dial).collect();
}

/// Ways to end a connection: a name, the reason it gives, and how the peer brings it about.
type Ending = (&'static str, &'static str, fn(&Server, Peer) -> Option<Peer>);

const ENDINGS: [Ending; 9] = [
    ("the peer's FIN", "Done", |_, peer| {
        peer.finish_writing();
        Some(peer)
    }),
    ("the peer's RST", "Lost(Errno(ECONNRESET))", |_, peer| {
        peer.reset();
        None
    }),
    ("lose_connection", "Done", |_, peer| say(peer, b"l")),
    ("abort_connection", "Aborted", |_, peer| say(peer, b"a")),
    ("fail", "Callback(\"on purpose\")", |_, peer| say(peer, b"f")),
    ("a panic", "Panicked(\"on purpose\")", |_, peer| say(peer, b"p")),
    ("the output limit", "Limit(Output)", |_, peer| say(peer, b"w")),
    ("the close timeout", "TimedOut(Close)", |_, peer| say(peer, b"t")),
    ("the reactor's stop", "Lost(Shutdown)", |server, peer| {
        server.running.reactor.stop().unwrap();
        Some(peer)
    }),
];

fn say(mut peer: Peer, byte: &[u8]) -> Option<Peer> {
    peer.write(byte);
    Some(peer)
}

/// Ends a connection in each of these ways and lets the journal tell.
fn end_in_every_way(setup: &Setup) -> Server {
    let limits = Limits {
        output_max: 1 << 20,
        close_timeout: Duration::from_millis(100),
        drain_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let much = vec![0; 8 << 20];
    let script = Script::new().on_data(move |cx, _, data| match data[0] {
        b'l' => cx.transport.lose_connection(),
        b'a' => cx.transport.abort_connection(),
        b'f' => cx.transport.fail("on purpose"),
        b'p' => panic!("on purpose"),
        b'w' => {
            let _ = cx.transport.write(&much);
            assert_eq!(cx.transport.write(b"one too many"), Write::Closed);
        }
        b't' => {
            let _ = cx.transport.write(&much);
            cx.transport.lose_connection();
        }
        _ => unreachable!(),
    });
    let mut server = script.serve(setup.limited(limits));
    for (number, (_, _, end)) in ENDINGS.iter().enumerate() {
        let peer = Peer::dial_narrow(server.address(), 4096);
        server.journal.wait_for(Event::Made(number));
        let peer = end(&server, peer);
        server.journal.wait_lost(number);
        drop(peer);
    }
    server.running.wait().unwrap();
    server
}

fn c2_every_made_connection_is_lost_once(setup: &Setup) {
    let server = end_in_every_way(setup);
    for (number, (name, ..)) in ENDINGS.iter().enumerate() {
        let losses = |event: &Event| matches!(event, Event::Lost(n, _) if *n == number);
        assert_eq!(server.journal.count(losses), 1, "{name}");
    }
    assert_eq!(server.running.reactor.stats().connections(), 0);
}

fn c3_the_reason_says_what_ended_it(setup: &Setup) {
    let server = end_in_every_way(setup);
    for (number, (name, reason, _)) in ENDINGS.iter().enumerate() {
        assert_eq!(server.journal.wait_lost(number), *reason, "{name}");
    }
    let ways = [
        (Count::LostDone, 2),
        (Count::LostErrno, 1),
        (Count::LostAborted, 1),
        (Count::LostCallback, 1),
        (Count::LostPanicked, 1),
        (Count::LostLimit, 1),
        (Count::LostTimedOut, 1),
        (Count::LostShutdown, 1),
    ];
    for (count, wanted) in ways {
        assert_eq!(server.count(count), wanted, "{count}");
    }
}

fn c2_a_connection_that_was_not_made_is_never_lost(setup: &Setup) {
    let script = Script::new().on_build(|_, _| false);
    let mut server = script.serve(setup.reactor());
    for _ in 0..3 {
        server.dial().read_to_end();
    }
    let nobody = Bound::new();
    let client = Script::new().journal(&server.journal);
    server.running.reactor.connect_tcp(nobody.address, client);
    server.journal.wait_for(Event::Failed("Refused".to_owned()));
    server.stop();
    assert_eq!(server.journal.count(|event| matches!(event, Event::Built(_))), 3);
    assert_eq!(server.journal.count(|event| matches!(event, Event::Made(_) | Event::Lost(..))), 0);
    assert_eq!(server.journal.count(|event| matches!(event, Event::ClientLost(_))), 0);
}

fn c4_no_data_after_the_end_was_asked_for(setup: &Setup) {
    let script = Script::new().on_data(|cx, conn, _| {
        match conn.number {
            0 => cx.transport.lose_connection(),
            1 => cx.transport.abort_connection(),
            2 => cx.transport.fail("enough"),
            3 => panic!("enough"),
            // From a call of the connection's own, between two deliveries.
            4 => {
                cx.call_later(Duration::ZERO, |recorder, cx| {
                    recorder.conn.note("over 4");
                    cx.transport.lose_connection();
                });
                return;
            }
            _ => {
                let id = cx.transport.id();
                cx.post(id, |recorder, cx| {
                    recorder.conn.note("over 5");
                    cx.transport.abort_connection();
                });
                return;
            }
        }
        conn.note(format!("over {}", conn.number));
    });
    let server = script.serve(setup.reactor());
    for number in 0..6 {
        let mut peer = server.dial_made(number);
        peer.write_until_broken(4 << 20);
        drop(peer);
        server.journal.wait_lost(number);
        let over = Event::Note(format!("over {number}"));
        let after = server.journal.all().into_iter().skip_while(|event| *event != over);
        let late = after.filter(|event| matches!(event, Event::Data(n, _) if *n == number)).count();
        assert_eq!(late, 0, "connection {number}");
    }
}

fn c4_no_held_data_after_lose_connection(setup: &Setup) {
    let script = Script::new().on_data(|cx, _, _| {
        cx.transport.pause_producing();
    });
    let server = script.serve(setup.reactor());
    for number in 0..2 {
        let mut peer = server.dial_made(number);
        peer.write(b"first");
        server.journal.wait_bytes(number, 5);
        peer.write(&pattern(4, 20_000));
        server.act_on(number, |transport| {
            transport.lose_connection();
            transport.resume_producing();
        });
        assert_eq!(peer.read_to_end(), (Vec::new(), End::Fin));
        drop(peer);
        assert_eq!(server.journal.wait_lost(number), "Done");
        assert_eq!(server.journal.bytes(number), b"first");
    }
}

fn c6_a_write_after_the_loss_does_nothing(setup: &Setup) {
    let script = Script::new()
        .on_data(|cx, _, data| match data[0] {
            b'a' => cx.transport.abort_connection(),
            _ => cx.transport.lose_connection(),
        })
        .on_lost(|cx, conn, _| {
            let answers = [
                cx.transport.write(b"late"),
                cx.transport.write_sequence([b"la", b"te"]),
                cx.transport.write_with(|out| out.push(b"late")),
                cx.transport.write_shared(&crate::setups::shared(b"late")),
            ];
            assert_eq!(answers, [Write::Closed; 4]);
            cx.transport.lose_connection();
            cx.transport.lose_write_connection();
            cx.transport.abort_connection();
            cx.transport.pause_producing();
            cx.transport.resume_producing();
            conn.note(format!("wrote in vain {}", conn.number));
        });
    let server = script.serve(setup.reactor());
    let ends: [(&[u8], End); 2] = [(b"l", End::Fin), (b"a", End::Reset)];
    for (number, (word, end)) in ends.into_iter().enumerate() {
        let mut peer = server.dial_made(number);
        peer.write(word);
        assert_eq!(peer.read_to_end(), (Vec::new(), end));
        drop(peer);
        server.journal.wait_note(&format!("wrote in vain {number}"));
        let losses = |event: &Event| matches!(event, Event::Lost(n, _) if *n == number);
        assert_eq!(server.journal.count(losses), 1);
    }
}

/// Writes where nothing is taken any more; whether it was asked for the bytes nevertheless.
fn is_asked_in_vain(transport: &mut Transport<'_>) -> bool {
    let asked = Cell::new(false);
    let sequence = iter::once_with(|| {
        asked.set(true);
        b"late"
    });
    assert_eq!(transport.write_with(|_| asked.set(true)), Write::Closed);
    assert_eq!(transport.write_sequence(sequence), Write::Closed);
    asked.get()
}

fn c6_a_write_in_vain_asks_for_no_bytes(setup: &Setup) {
    let script = Script::new()
        .on_data(|cx, conn, data| {
            match data[0] {
                b'l' => cx.transport.lose_connection(),
                b'w' => cx.transport.lose_write_connection(),
                b'a' => cx.transport.abort_connection(),
                _ => cx.transport.fail("on purpose"),
            }
            conn.note(format!("asked {}", is_asked_in_vain(&mut cx.transport)));
        })
        .on_lost(|cx, conn, _| conn.note(format!("asked {}", is_asked_in_vain(&mut cx.transport))));
    let server = script.serve(setup.reactor());
    for (number, word) in [b"l", b"w", b"a", b"f"].into_iter().enumerate() {
        let mut peer = server.dial_made(number);
        peer.write(word);
        peer.read_to_end();
        drop(peer);
        server.journal.wait_lost(number);
        assert!(!server.act_on(number, is_asked_in_vain), "by a stale id");
    }
    let spared = Event::Note("asked false".to_owned());
    server.journal.wait("8 answers", |events| {
        assert!(!events.contains(&Event::Note("asked true".to_owned())));
        events.iter().filter(|event| **event == spared).count() == 8
    });
}

fn c6_no_two_reactors_give_the_same_id(setup: &Setup) {
    // One more than there are numbers for reactors, so that two of them have had the same.
    let ids: HashSet<ConnId> = (0..257)
        .map(|_| {
            let server = Script::new().serve(setup.reactor());
            let _peer = server.dial();
            server.journal.id(0)
        })
        .collect();
    assert_eq!(ids.len(), 257);
}

fn c6_a_stale_id_reaches_no_later_connection(setup: &Setup) {
    let script = Script::new()
        .on_made(move |cx, conn| {
            let _ = cx.transport.write(format!("{:04}", conn.number).as_bytes());
        })
        .on_data(|cx, _, data| ignore(cx.transport.write(data)))
        .on_lost(|cx, conn, _| {
            // Gone from here on, also for whoever has its id on another thread.
            let answer = cx.transport.set_tcp_no_delay(false);
            conn.note(format!("{:?}", answer.map_err(|error| error.kind())));
        });
    let server = script.serve(setup.reactor());
    for number in 0..60 {
        let mut peer = server.dial_made(number);
        assert_eq!(peer.read_exactly(4), format!("{number:04}").as_bytes());
        let stale: Vec<_> = (0..number).map(|earlier| server.journal.id(earlier)).collect();
        let answers = server.act(move |transport| {
            let write = |id| {
                let mut dead = transport.to(id);
                dead.abort_connection();
                dead.pause_producing();
                dead.lose_connection();
                assert_eq!(dead.unsent(), 0);
                assert!(dead.set_tcp_no_delay(false).is_err());
                dead.write(b"stale")
            };
            stale.into_iter().map(write).collect::<Vec<_>>()
        });
        assert!(answers.iter().all(|answer| *answer == Write::Closed), "{answers:?}");
        peer.ask(b"alive", b"alive");
        match number % 3 {
            0 => peer.reset(),
            1 => drop(peer),
            _ => {
                server.act_on(number, |transport| transport.abort_connection());
                peer.expect_reset();
            }
        }
        server.journal.wait_lost(number);
    }
    let gone = Event::Note("Err(NotConnected)".into());
    server.journal.wait("all answers", |events| events.iter().filter(|event| **event == gone).count() == 60);
}

fn c14_a_lost_connection_keeps_nothing_alive(setup: &Setup) {
    let drops = Drops::default();
    let (gate, waits) = (Gate::default(), Gate::default());
    let (inside, outside) = (waits.clone(), gate.clone());
    let script = Script::new()
        .on_made(move |cx, conn| {
            let [bound, cancelled, rearmed] = [(); 3].map(|()| conn.guard());
            cx.call_later(HOUR, move |_, _| drop(bound));
            cx.call_later(HOUR, move |_, _| drop(cancelled)).cancel().unwrap();
            cx.call_later(HOUR, move |_, _| drop(rearmed)).reset(2 * HOUR).unwrap();
        })
        .on_data(|cx, conn, data| match data[0] {
            b'l' => cx.transport.lose_connection(),
            b'a' => cx.transport.abort_connection(),
            b'p' => panic!("c14"),
            b'w' => ignore(cx.transport.write(&vec![0; 8 << 20])),
            _ => {
                // A post that finds its protocol gone, and a timer bound on the way out.
                let id = cx.transport.id();
                cx.transport.abort_connection();
                let guard = conn.guard();
                cx.post(id, move |_, _| drop(guard));
                let guard = conn.guard();
                cx.call_later(HOUR, move |_, _| drop(guard));
            }
        })
        .on_lost(move |cx, conn, _| {
            let guard = conn.guard();
            cx.call_later(HOUR, move |_, _| drop(guard));
            if conn.number == 0 {
                inside.open();
                outside.pass();
            }
        })
        .counting(&drops);
    let server = script.serve(setup.reactor());
    // Not before it was told: the first protocol is alive inside its connection_lost.
    drop(server.dial_made(0));
    waits.pass();
    assert!(drops.alive() >= 2, "the factory and the protocol that is being told");
    gate.open();
    drops.wait_for(1);
    for (index, word) in [b"l", b"a", b"p", b"w", b"x"].into_iter().enumerate() {
        let mut peer = server.dial_made(index + 1);
        peer.write(word);
        if word != b"w" {
            peer.read_to_end();
        }
        peer.reset();
        server.journal.wait_lost(index + 1);
        drops.wait_for(1);
    }
    server.port.stop_listening();
    drops.wait_for(0);
}

fn c14_a_stopped_reactor_keeps_nothing_alive(setup: &Setup) {
    let drops = Drops::default();
    let script = Script::new()
        .on_made(|cx, conn| {
            let [bound, free, called] = [(); 3].map(|()| conn.guard());
            cx.call_later(HOUR, move |_, _| drop(bound));
            cx.reactor.call_later(HOUR, move |_| drop(free));
            cx.reactor.call_later(Duration::ZERO, move |_| drop(called));
        })
        .on_lost(|cx, conn, _| {
            // Too late to run, yet not kept.
            let [timer, call] = [(); 2].map(|()| conn.guard());
            cx.reactor.call_later(HOUR, move |_| drop(timer));
            cx.reactor.call_from_thread(move |_| drop(call));
        })
        .counting(&drops);
    let mut server = script.serve(setup.reactor());
    let peers: Vec<Peer> = (0..10).map(|number| server.dial_made(number)).collect();
    let guard = drops.guard();
    server.running.reactor.call_later(HOUR, move |_| drop(guard));
    assert!(drops.alive() > 21);
    server.stop();
    drops.wait_for(0);
    drop(peers);
}

/// A reactor that serves `interface` and connects to itself; the journal of both ends.
fn talk_to_itself(setup: &Setup, interface: &str) -> (Server, SocketAddr) {
    let tells = |place: &'static str| {
        Script::new()
            .on_made(move |cx, conn| {
                let (peer, host) = (cx.transport.get_peer(), cx.transport.get_host());
                conn.note(format!("{place} {peer} {host}"));
            })
            .on_data(|cx, _, _| cx.transport.lose_connection())
    };
    let server = tells("other").serve(setup.reactor());
    let script = tells("server").journal(&server.journal).on_build(|peer, _| {
        let Address::Tcp(address) = peer.address() else { panic!("no address") };
        assert_eq!(peer.address(), Address::Tcp(address));
        true
    });
    let port = server.running.reactor.listen_tcp((interface, 0), script).unwrap();
    let address = port.get_host().socket_addr().unwrap();
    let client = tells("client").journal(&server.journal);
    server.running.reactor.connect_tcp(address, client);
    (server, address)
}

fn c16_both_ends_have_their_addresses(setup: &Setup) {
    for interface in ["127.0.0.1", "::1"] {
        let (server, address) = talk_to_itself(setup, interface);
        server.journal.wait("both ends", |events| {
            events.iter().filter(|event| matches!(event, Event::Note(_))).count() == 2
        });
        let notes = server.journal.all().into_iter().filter_map(|event| match event {
            Event::Note(text) => Some(text),
            _ => None,
        });
        let (mut at_server, mut at_client) = (String::new(), String::new());
        for note in notes {
            let words: Vec<&str> = note.split(' ').collect();
            let (peer, host) = (words[1].to_owned(), words[2].to_owned());
            if words[0] == "server" {
                assert_eq!(host, address.to_string());
                at_server = peer;
            } else {
                assert_eq!((words[0], &*peer), ("client", &*address.to_string()));
                at_client = host;
            }
        }
        assert_eq!(at_server, at_client, "the client's own address");
        assert!(at_client.parse::<SocketAddr>().unwrap().ip().is_loopback());
    }
}

fn c16_an_address_asked_for_once_stays(setup: &Setup) {
    let script = Script::new()
        .on_made(|cx, conn| {
            if conn.number == 0 {
                let ends = (cx.transport.get_peer(), cx.transport.get_host());
                conn.note(format!("made {ends:?}"));
            }
        })
        .on_lost(|cx, conn, _| {
            let ends = (cx.transport.get_peer(), cx.transport.get_host());
            conn.note(format!("lost {} {ends:?}", conn.number));
        });
    let server = script.serve(setup.reactor());
    let peer = server.dial_made(0);
    let ends = (Address::Tcp(peer.address()), server.port.get_host());
    server.journal.wait_note(&format!("made {ends:?}"));
    peer.reset();
    server.journal.wait_note(&format!("lost 0 {ends:?}"));
    // Never asked for, and a socket that was reset has no peer any more.
    server.dial_made(1).reset();
    server.journal.wait("the second loss", |events| {
        let unknown = format!("lost 1 ({:?}", Address::Unknown);
        events.iter().any(|event| matches!(event, Event::Note(text) if text.starts_with(&unknown)))
    });
}

fn c16_socket_options_can_be_set_and_read(setup: &Setup) {
    let script = Script::new().on_made(|cx, conn| {
        let transport = &mut cx.transport;
        assert!(transport.get_tcp_no_delay().unwrap(), "on from the start");
        assert!(!transport.get_tcp_keep_alive().unwrap());
        transport.set_tcp_no_delay(false).unwrap();
        transport.set_tcp_keep_alive(true).unwrap();
        assert!(!transport.get_tcp_no_delay().unwrap());
        assert!(transport.get_tcp_keep_alive().unwrap());
        conn.note("set");
    });
    let client = script.serve(setup.reactor());
    let peer = client.dial_made(0);
    client.journal.wait_note("set");
    drop(peer);
    assert_eq!(client.journal.wait_lost(0), "Done");
    let running = Running::start(setup.reactor());
    let connecting = Script::new().on_made(|cx, conn| {
        assert!(cx.transport.get_tcp_no_delay().unwrap());
        conn.note("client");
    });
    let journal = connecting.journal.clone();
    running.reactor.connect_tcp(client.address(), connecting);
    journal.wait_note("client");
}
