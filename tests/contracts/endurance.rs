//! What a backend must survive: no buffers, no queue, no time, everything at once (E1-E9). What
//! needs a process of its own is in `tests/faults`.

use std::{thread, time::Duration};

use ringspun::{Count, Reactor, WaitPolicy, Write};

use crate::{
    kit::{Event, Gate, Script, ignore},
    peers::{End, Peer, assert_same, pattern},
    setups::{Setup, on_every_backend, shared},
};

on_every_backend!(
    e1_late_completions_reach_no_later_connection,
    e2_a_hundred_senders_share_four_buffers,
    e3_the_least_queues_serve_many,
    e4_an_overflowing_completion_queue_loses_nothing,
    e5_short_sends_lose_nothing,
    e6_closing_with_a_send_in_flight,
    e7_stopping_with_everything_in_flight,
    e8_an_idle_server_sleeps,
    e8_an_idle_server_with_the_latency_policy_sleeps_too,
);

fn e1_late_completions_reach_no_later_connection(setup: &Setup) {
    // Each connection is torn down with a send in flight and data under way, and the next one
    // takes its place at once.
    let script = Script::new().on_data(|cx, conn, data| {
        let _ = cx.transport.write(&[conn.number as u8; 64]);
        if data.starts_with(b"much") {
            let _ = cx.transport.write(&vec![conn.number as u8; 8 << 20]);
            // Two turns later the send is in flight.
            cx.call_later(Duration::ZERO, |_, cx| {
                cx.call_later(Duration::ZERO, |_, cx| cx.transport.abort_connection());
            });
        }
    });
    let server = script.serve(setup.reactor());
    for round in 0..20 {
        let doomed = 2 * round;
        let mut first = server.dial_made(doomed);
        first.ask(b"x", &[doomed as u8; 64]);
        let mut second = server.dial_made(doomed + 1);
        first.write(b"much, please");
        let broken = first.write_until_broken(100_000) < 100_000;
        let (rest, end) = first.read_to_end();
        assert!(rest.iter().all(|byte| *byte == doomed as u8));
        // A failing write takes the error that the read would have had.
        assert!(end == End::Reset || broken);
        for _ in 0..3 {
            second.ask(b"x", &[(doomed + 1) as u8; 64]);
        }
        assert_eq!(server.journal.wait_lost(doomed), "Aborted");
        assert_eq!(server.journal.bytes(doomed + 1), b"xxx");
    }
}

fn e2_a_hundred_senders_share_four_buffers(setup: &Setup) {
    const SENDERS: usize = 100;
    const BYTES: usize = 30_000;
    let (inside, all_sent) = (Gate::default(), Gate::default());
    let (tell, wait) = (inside.clone(), all_sent.clone());
    let script = Script::new().on_data(move |cx, conn, data| {
        if conn.number == 0 {
            // Holds a loop until every sender has something for it at once.
            tell.open();
            wait.pass();
        } else if conn.journal.bytes(conn.number).len() == BYTES {
            let _ = cx.transport.write(b"all");
        }
        assert!(!data.is_empty());
    });
    let builder = setup.builder().uring(setup.uring().buffers(4, 4096));
    let server = script.serve(setup.build(builder));
    let mut holder = server.dial_made(0);
    let mut senders: Vec<Peer> = (1..=SENDERS).map(|_| server.dial()).collect();
    server.journal.wait("all senders", |events| {
        events.iter().filter(|event| matches!(event, Event::Made(_))).count() == SENDERS + 1
    });
    holder.write(b"hold");
    inside.pass();
    let bytes = |sender: usize| [vec![sender as u8], pattern(sender as u64, BYTES - 1)].concat();
    for (number, sender) in senders.iter_mut().enumerate() {
        sender.write(&bytes(number));
    }
    all_sent.open();
    for sender in &mut senders {
        assert_eq!(sender.read_exactly(3), b"all");
    }
    // In which order they were accepted does not matter: the first byte says who it was.
    let mut heard: Vec<u8> = Vec::new();
    for number in 1..=SENDERS {
        let got = server.journal.bytes(number);
        assert_same(&got, &bytes(got[0].into()));
        heard.push(got[0]);
    }
    heard.sort_unstable();
    assert_eq!(heard, (0..SENDERS as u8).collect::<Vec<_>>());
    if setup.is_uring() {
        assert!(server.count(Count::NoBuffers) > 0, "the buffers never ran out");
    }
}

fn e3_the_least_queues_serve_many(setup: &Setup) {
    const CLIENTS: usize = 60;
    let builder = setup.builder().uring(setup.uring().queues(2, 4).buffers(1, 64));
    let server = Script::echo().serve(setup.build(builder));
    let mut clients: Vec<Peer> = (0..CLIENTS).map(|_| server.dial()).collect();
    for round in 0..5 {
        let bytes = |number: usize| pattern((round * CLIENTS + number) as u64, 500);
        clients.iter_mut().enumerate().for_each(|(number, client)| client.write(&bytes(number)));
        for (number, client) in clients.iter_mut().enumerate() {
            assert_same(&client.read_exactly(500), &bytes(number));
        }
    }
    clients.into_iter().enumerate().for_each(|(number, client)| match number % 2 {
        0 => drop(client),
        _ => client.reset(),
    });
    server.journal.wait_losses(CLIENTS);
}

fn e4_an_overflowing_completion_queue_loses_nothing(setup: &Setup) {
    const CLIENTS: usize = 100;
    let (inside, gate) = (Gate::default(), Gate::default());
    let (tell, wait) = (inside.clone(), gate.clone());
    let builder = setup.builder().uring(setup.uring().queues(2, 4).buffers(128, 4096));
    let server = Script::echo().serve(setup.build(builder));
    let mut clients: Vec<Peer> = (0..CLIENTS).map(|number| server.dial_made(number)).collect();
    server.running.reactor.call_from_thread(move |_| {
        tell.open();
        wait.pass();
    });
    // Else it may sleep in the kernel until all have written, and be told of them one by one.
    inside.pass();
    for (number, client) in clients.iter_mut().enumerate() {
        client.write(&pattern(number as u64, 100));
    }
    // As many completions at once as there are clients, for a queue of 4.
    gate.open();
    for (number, client) in clients.iter_mut().enumerate() {
        assert_same(&client.read_exactly(100), &pattern(number as u64, 100));
    }
    if setup.is_uring() {
        assert!(server.count(Count::CqOverflows) > 0, "the queue never overflowed");
    }
}

fn e5_short_sends_lose_nothing(setup: &Setup) {
    // More pieces than one sendmsg takes, and more bytes than the narrow peer does.
    let bytes = pattern(5, 700_000);
    let source = bytes.clone();
    let script = Script::new().on_made(move |cx, _| {
        for (number, piece) in source.chunks(2_500).enumerate() {
            let answer = match number % 3 {
                0 => cx.transport.write(piece),
                _ => cx.transport.write_shared(&shared(piece)),
            };
            assert_ne!(answer, Write::Closed);
        }
        cx.transport.lose_connection();
    });
    let server = script.serve(setup.reactor());
    for mut peer in [server.dial(), Peer::dial_narrow(server.address(), 2048)] {
        let (got, end) = peer.read_to_end();
        assert_same(&got, &bytes);
        assert_eq!(end, End::Fin);
    }
}

fn e6_closing_with_a_send_in_flight(setup: &Setup) {
    let script = Script::new().on_made(|cx, _| {
        let _ = cx.transport.write(&vec![0; 12 << 20]);
    });
    let mut server = script.serve(setup.reactor());
    for number in 0..9 {
        let peer = Peer::dial_narrow(server.address(), 4096);
        server.journal.id(number);
        server.let_it_turn();
        match number % 3 {
            0 => server.act_on(number, |transport| transport.abort_connection()),
            1 => peer.reset(),
            _ => {
                server.act_on(number, |transport| transport.lose_connection());
                drop(peer);
            }
        }
        let reason = server.journal.wait_lost(number);
        let wanted = ["Aborted", "Lost(Errno(E", "Lost(Errno(E"][number % 3];
        assert!(reason.starts_with(wanted), "{reason} ended connection {number}");
    }
    server.stop();
    assert_eq!(server.journal.count(|event| matches!(event, Event::Lost(..))), 9);
}

fn e7_stopping_with_everything_in_flight(setup: &Setup) {
    const CLIENTS: usize = 100;
    let deaf = crate::peers::Bound::new();
    let address = deaf.address;
    let _listener = deaf.listen(0);
    let _filler = std::net::TcpStream::connect(address).unwrap();
    let received = Gate::default();
    let told = received.clone();
    let script = Script::new()
        .on_made(|cx, _| ignore(cx.transport.write(&vec![1; 300_000])))
        .on_data(move |cx, _, data| {
            told.open();
            if cx.transport.write(data) == Write::Full {
                cx.transport.pause_producing();
            }
        })
        .on_resume(|cx, _| cx.transport.resume_producing());
    let mut server = script.serve(setup.reactor());
    let (at, reactor) = (server.address(), server.running.reactor.clone());
    reactor.connect_tcp(address, Script::new());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut peer = Peer::dial(at);
            let mut sender = peer.share();
            thread::spawn(move || sender.write_until_broken(usize::MAX));
            thread::spawn(move || {
                let mut buffer = [0; 10_000];
                while peer.read_some(&mut buffer).is_ok_and(|count| count > 0) {}
                let _ = peer.0.shutdown(std::net::Shutdown::Both);
            })
        })
        .collect();
    server.journal.wait("every client", |events| {
        events.iter().filter(|event| matches!(event, Event::Made(_))).count() == CLIENTS
    });
    received.pass();
    server.stop();
    clients.into_iter().for_each(|client| client.join().unwrap());
    let shutdown = |event: &Event| matches!(event, Event::Lost(_, reason) if reason == "Lost(Shutdown)");
    assert_eq!(server.journal.count(|event| matches!(event, Event::Lost(..))), CLIENTS);
    assert_eq!(server.journal.count(shutdown), CLIENTS);
}

fn e8_an_idle_server_sleeps(setup: &Setup) {
    sleeps(setup.reactor());
}

fn e8_an_idle_server_with_the_latency_policy_sleeps_too(setup: &Setup) {
    let latency = WaitPolicy::Latency { spin: Duration::from_micros(100) };
    sleeps(setup.build(setup.builder().uring(setup.uring().wait(latency))));
}

fn sleeps(reactor: Reactor) {
    let server = Script::echo().serve(reactor);
    let mut peers: Vec<Peer> = (0..10).map(|number| server.dial_made(number)).collect();
    peers.iter_mut().for_each(|peer| peer.ask(b"busy", b"busy"));
    thread::sleep(Duration::from_millis(50));
    let before = server.running.reactor.stats();
    thread::sleep(Duration::from_millis(500));
    let after = server.running.reactor.stats();
    let calls = after.syscalls_total() - before.syscalls_total();
    assert!(calls <= 1, "{calls} system calls in half a second of idleness");
}
