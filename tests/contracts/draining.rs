//! Stopping without losing what was written (R4).

use std::{
    io::{ErrorKind, Write as _},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use ringspun::{Count, Reactor, Write};

use crate::{
    kit::Script,
    peers::{End, Peer, assert_same, pattern},
    setups::{SETUPS, Setup, on_every_backend},
};

on_every_backend!(
    r4_what_was_written_is_sent_and_nobody_new_is_served,
    r4_what_has_not_gone_in_time_is_counted,
    r4_what_is_thrown_away_with_a_cut_drain_is_counted,
    r4_no_byte_is_lost_under_load,
);

fn draining(setup: &Setup, milliseconds: u64) -> Reactor {
    setup.build(setup.builder().drain_timeout(Duration::from_millis(milliseconds)))
}

fn r4_what_was_written_is_sent_and_nobody_new_is_served(setup: &Setup) {
    const MUCH: usize = 4 << 20;
    let script = Script::new().on_made(|cx, conn| {
        if conn.number < 5 {
            let _ = cx.transport.write(&pattern(conn.number as u64, MUCH));
        }
    });
    let mut server = script.serve(draining(setup, 20_000));
    let mut peers: Vec<_> = (0..5).map(|number| server.dial_made(number)).collect();
    // Until it has written.
    for number in 0..5 {
        server.journal.id(number);
    }
    // What was not read before is not delivered, and does not destroy the output (C7).
    peers.iter_mut().for_each(|peer| peer.write(b"unread"));
    let (address, begun) = (server.address(), Instant::now());
    server.running.reactor.stop().unwrap();
    loop {
        match TcpStream::connect(address) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => break,
            // The port is being closed just now.
            _ => assert!(begun.elapsed() < Duration::from_secs(10), "the port is still open"),
        }
        thread::sleep(Duration::from_millis(5));
    }
    for (number, peer) in peers.iter_mut().enumerate() {
        let (got, end) = peer.read_to_end();
        assert_same(&got, &pattern(number as u64, MUCH));
        assert_eq!(end, End::Fin);
    }
    drop(peers);
    server.running.wait().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(15), "it waited for nobody");
    for number in 0..5 {
        assert_eq!(server.journal.wait_lost(number), "Lost(Shutdown)");
    }
    assert_eq!(server.count(Count::BytesUnsent), 0);
}

fn r4_what_has_not_gone_in_time_is_counted(setup: &Setup) {
    const MUCH: usize = 8 << 20;
    let script = Script::new().on_made(|cx, _| {
        let _ = cx.transport.write(&[b'.'; MUCH]);
    });
    let mut server = script.serve(draining(setup, 200));
    let mut peer = Peer::dial_narrow(server.address(), 4096);
    server.journal.id(0);
    let begun = Instant::now();
    server.stop();
    assert!(begun.elapsed() >= Duration::from_millis(200), "it did not wait");
    assert_eq!(server.journal.wait_lost(0), "Lost(Shutdown)");
    let (sent, unsent) = (server.count(Count::BytesSent), server.count(Count::BytesUnsent));
    assert!(unsent > 0, "the kernel took it all");
    assert_eq!(sent + unsent, MUCH as u64);
    assert_eq!(peer.read_to_end().0.len() as u64, sent);
}

fn r4_what_is_thrown_away_with_a_cut_drain_is_counted(setup: &Setup) {
    const MUCH: usize = 8 << 20;
    let script = Script::new().on_made(|cx, _| {
        let _ = cx.transport.write(&[b'.'; MUCH]);
    });
    let mut server = script.serve(draining(setup, 200));
    let mut peer = Peer::dial_narrow(server.address(), 4096);
    server.journal.id(0);
    server.stop();
    // The kernel answers it with RST, and forgets what it had taken: nobody can receive it any more.
    peer.write(b"late");
    let (sent, unsent) = (server.count(Count::BytesSent), server.count(Count::BytesUnsent));
    assert_eq!(sent + unsent, MUCH as u64);
    let got = peer.read_to_end().0.len() as u64;
    let unacknowledged = server.count(Count::BytesUnacknowledged);
    assert!(got < sent, "nothing was thrown away");
    assert!(got + unacknowledged >= sent, "{got} came, {unacknowledged} are reported, {sent} were sent");
    assert!(unacknowledged <= sent, "{unacknowledged} of {sent}");
}

/// A thousand on all set-ups together.
const DRAINS: usize = 1000 / SETUPS.len();

fn r4_no_byte_is_lost_under_load(setup: &Setup) {
    let (mut whole, mut cut) = (0, 0);
    for round in 0..DRAINS {
        // Now and then the time is too short for all, and one of them does not read.
        let short = round % 3 == 0;
        let milliseconds = if short { 1 } else { 10_000 };
        let written = Arc::new(AtomicU64::new(0));
        let taken = Arc::clone(&written);
        let script = Script::new().on_data(move |cx, conn, data| {
            static MUCH: [u8; 8 << 20] = [0; 8 << 20];
            let answer = if data == b"!" { &MUCH } else { data };
            if cx.transport.write(answer) != Write::Closed {
                taken.fetch_add(answer.len() as u64, SeqCst);
            }
            if data == b"!" {
                conn.note("much is written");
            }
        });
        let mut server = script.serve(draining(setup, milliseconds));
        let clients: Vec<_> = (0..4).map(|number| thread::spawn(load(server.dial_made(number)))).collect();
        let deaf = short.then(|| Peer::dial_narrow(server.address(), 4096));
        if let Some(deaf) = &deaf {
            deaf.share().write(b"!");
            server.journal.wait_note("much is written");
        }
        while server.count(Count::BytesSent) < 300_000 {
            thread::yield_now();
        }
        server.stop();
        let ends: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        let got: usize = ends.iter().map(|(got, _)| got).sum();
        let (sent, unsent) = (server.count(Count::BytesSent), server.count(Count::BytesUnsent));
        assert_eq!(sent + unsent, written.load(SeqCst));
        assert!(got as u64 <= sent, "{got} bytes came back of {sent}");
        let heard = deaf.map_or(0, |mut deaf| deaf.read_to_end().0.len());
        let reported = server.count(Count::BytesUnacknowledged);
        assert!(
            (got + heard) as u64 + reported >= sent,
            "{got} and {heard} came, {reported} are reported, {sent} were sent"
        );
        if !short {
            assert!(ends.iter().all(|(_, end)| *end == End::Fin), "{ends:?}");
            assert_eq!((got as u64, unsent), (sent, 0), "all that the kernel took has arrived");
        }
        *(if unsent == 0 { &mut whole } else { &mut cut }) += 1;
        assert!(unsent > 0 || !short, "the kernel took it all");
    }
    println!("{DRAINS} drains on {}: {whole} sent everything, {cut} were cut", setup.name);
    assert_eq!(whole + cut, DRAINS);
    assert!(whole > 0, "none had time enough");
}

/// Asks again and again, and waits for each answer; how many bytes came back before the end.
fn load(mut peer: Peer) -> impl FnOnce() -> (usize, End) {
    move || {
        const QUESTION: usize = 20_000;
        let (mut writing, mut buffer, mut got) = (peer.share(), [0; QUESTION], 0);
        loop {
            // Whoever writes too late reads of it.
            let _ = writing.0.write_all(&[b'x'; QUESTION]);
            let all = got + QUESTION;
            while got < all {
                match peer.read_some(&mut buffer) {
                    Ok(0) => return (got, End::Fin),
                    Ok(count) => got += count,
                    Err(_) => return (got, End::Reset),
                }
            }
        }
    }
}
