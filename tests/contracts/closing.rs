//! How connections are closed: with everything delivered, or with a reset (C7, C10, C15).

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use ringspun::{Limits, Write};

use crate::{
    kit::{Event, Script, Server, Tally, ignore},
    peers::{End, LIMIT, Peer, assert_same, pattern},
    setups::{Setup, on_every_backend, shared},
};

on_every_backend!(
    c7_lose_connection_flushes_then_closes,
    c7_lose_connection_flushes_to_a_slow_reader,
    c7_lose_connection_flushes_while_the_peer_is_sending,
    c7_lose_connection_works_from_every_callback,
    c7_draining_ends_at_its_limit_of_bytes,
    c7_draining_ends_at_its_limit_of_time,
    c7_a_close_that_cannot_finish_becomes_an_abort,
    c10_abort_resets_a_peer_that_never_reads,
    c10_abort_ends_many_long_sends_at_once,
    c10_abort_works_in_every_state,
    c15_lose_write_connection_flushes_then_shuts_one_half,
    c15_an_aware_protocol_goes_on_writing_after_the_fin,
    c15_an_unaware_protocol_still_delivers_what_it_wrote,
    c15_both_halves_closed_end_the_connection,
);

const MUCH: usize = 4 << 20;

/// Writes all of this, then loses the connection, twice, inside one callback.
fn write_and_lose(bytes: &Arc<[u8]>) -> Script {
    let bytes = Arc::clone(bytes);
    Script::new()
        .on_data(move |cx, conn, _| {
            let _ = cx.transport.write(&bytes[..100_000]);
            let _ = cx.transport.write_shared(&shared(&bytes[100_000..]));
            let before = Instant::now();
            cx.transport.lose_connection();
            cx.transport.lose_connection();
            assert!(before.elapsed() < Duration::from_secs(1), "it returns at once");
            assert_eq!(cx.transport.write(b"too late"), Write::Closed);
            conn.note("returned");
        })
        .on_lost(|_, conn, _| {
            assert!(conn.journal.has(&Event::Note("returned".to_owned())), "called from inside");
        })
}

fn c7_lose_connection_flushes_then_closes(setup: &Setup) {
    let bytes = shared(&pattern(7, MUCH));
    let server = write_and_lose(&bytes).serve(setup.reactor());
    let mut peer = server.dial_made(0);
    peer.write(b"go");
    let (got, end) = peer.read_to_end();
    assert_same(&got, &bytes);
    assert_eq!(end, End::Fin);
    drop(peer);
    assert_eq!(server.journal.wait_lost(0), "Done");
}

fn c7_lose_connection_flushes_to_a_slow_reader(setup: &Setup) {
    let bytes = shared(&pattern(77, 600_000));
    let server = write_and_lose(&bytes).serve(setup.reactor());
    let mut peer = Peer::dial_narrow(server.address(), 4096);
    peer.write(b"go");
    server.journal.wait_note("returned");
    let (mut got, mut buffer) = (Vec::new(), [0; 1500]);
    loop {
        match peer.read_some(&mut buffer).unwrap() {
            0 => break,
            count => got.extend_from_slice(&buffer[..count]),
        }
    }
    assert_same(&got, &bytes);
    drop(peer);
    assert_eq!(server.journal.wait_lost(0), "Done");
}

fn c7_lose_connection_flushes_while_the_peer_is_sending(setup: &Setup) {
    let bytes = shared(&pattern(777, MUCH));
    let limits = Limits { drain_max: 1 << 40, drain_timeout: LIMIT, ..Limits::default() };
    let server = write_and_lose(&bytes).serve(setup.limited(limits));
    let mut peer = server.dial_made(0);
    let mut sender = peer.share();
    // Sends without end; the peer's own shutdown is what stops it.
    let sending = thread::spawn(move || sender.write_until_broken(usize::MAX));
    server.journal.wait_note("returned");
    let (mut got, mut buffer) = (Vec::new(), vec![0; 200_000]);
    loop {
        match peer.read_some(&mut buffer).expect("no RST destroys the output") {
            0 => break,
            count => got.extend_from_slice(&buffer[..count]),
        }
        thread::yield_now();
    }
    assert_same(&got, &bytes);
    peer.finish_writing();
    assert!(sending.join().unwrap() > 0);
    assert_eq!(server.journal.wait_lost(0), "Done");
    assert!(server.journal.count(|event| matches!(event, Event::Data(..))) == 1, "input is thrown away");
}

fn c7_lose_connection_works_from_every_callback(setup: &Setup) {
    let script = Script::new()
        .on_made(move |cx, conn| match conn.number {
            0 => cx.transport.lose_connection(),
            1 => {
                let _ = cx.transport.write(b"bye");
                cx.transport.lose_connection();
            }
            2 => {
                let _ = cx.transport.write(b"bye");
                cx.transport.pause_producing();
                cx.transport.lose_connection();
            }
            3 => drop(cx.call_later(Duration::ZERO, |_, cx| {
                let _ = cx.transport.write(b"bye");
                cx.transport.lose_connection();
            })),
            _ => {}
        })
        .on_lost(|cx, _, _| cx.transport.lose_connection());
    let server = script.serve(setup.reactor());
    for number in 0..5 {
        let mut peer = server.dial_made(number);
        if number == 4 {
            server.act_on(number, |transport| {
                let _ = transport.write(b"bye");
                transport.lose_connection();
            });
        }
        let wanted: &[u8] = if number == 0 { b"" } else { b"bye" };
        assert_eq!(peer.read_to_end(), (wanted.to_vec(), End::Fin), "connection {number}");
        drop(peer);
        assert_eq!(server.journal.wait_lost(number), "Done", "connection {number}");
    }
}

fn c7_draining_ends_at_its_limit_of_bytes(setup: &Setup) {
    let limits = Limits { drain_max: 64 << 10, drain_timeout: 10 * LIMIT, ..Limits::default() };
    let script = Script::new().on_made(|cx, _| {
        let _ = cx.transport.write(b"bye");
        cx.transport.lose_connection();
    });
    let server = script.serve(setup.limited(limits));
    let mut peer = server.dial();
    assert_eq!(peer.read_to_end(), (b"bye".to_vec(), End::Fin));
    peer.write(&[0; 1000]);
    server.act(|_| ());
    assert_eq!(server.journal.count(|event| matches!(event, Event::Lost(..))), 0, "within the limit");
    // A socket that is closed answers with RST, which breaks the writing sooner or later.
    assert!(peer.write_until_broken(1 << 30) < 1 << 30);
    assert_eq!(server.journal.wait_lost(0), "Done");
}

fn c7_draining_ends_at_its_limit_of_time(setup: &Setup) {
    let limits = Limits { drain_timeout: Duration::from_millis(200), ..Limits::default() };
    let script = Script::new().on_made(|cx, _| cx.transport.lose_connection());
    let server = script.serve(setup.limited(limits));
    let before = Instant::now();
    let mut peer = server.dial();
    peer.expect_fin();
    assert_eq!(server.journal.wait_lost(0), "Done");
    assert!(before.elapsed() >= Duration::from_millis(200), "the peer had its time");
    assert!(before.elapsed() < Duration::from_secs(5), "and no more");
}

fn c7_a_close_that_cannot_finish_becomes_an_abort(setup: &Setup) {
    let limits = Limits { close_timeout: Duration::from_millis(200), ..Limits::default() };
    let much = shared(&pattern(70, 12 << 20));
    let server = write_and_lose(&much).serve(setup.limited(limits));
    let mut peer = Peer::dial_narrow(server.address(), 4096);
    let before = Instant::now();
    peer.write(b"go");
    assert_eq!(server.journal.wait_lost(0), "TimedOut(Close)");
    assert!(before.elapsed() >= Duration::from_millis(200));
    peer.expect_reset();
}

fn c10_abort_resets_a_peer_that_never_reads(setup: &Setup) {
    let much = pattern(10, 12 << 20);
    let script = Script::new()
        .on_data(move |cx, conn, data| {
            if data == b"fill" {
                let _ = cx.transport.write(&much);
                conn.note("filled");
            } else {
                cx.transport.abort_connection();
                cx.transport.abort_connection();
                assert_eq!(cx.transport.write(b"too late"), Write::Closed);
                conn.note("aborted");
            }
        })
        .on_lost(|cx, conn, _| {
            assert!(conn.journal.has(&Event::Note("aborted".to_owned())), "called from inside");
            cx.transport.abort_connection();
        });
    let mut server = script.serve(setup.reactor());
    let mut peer = Peer::dial_narrow(server.address(), 4096);
    peer.write(b"fill");
    server.journal.wait_note("filled");
    // A few turns, so that the send is in flight and stuck.
    server.let_it_turn();
    peer.write(b"abort");
    assert_eq!(server.journal.wait_lost(0), "Aborted");
    let (got, end) = peer.read_to_end();
    assert_eq!(end, End::Reset);
    assert!(got.len() < 12 << 20, "unsent bytes are dropped");
    server.stop();
    assert_eq!(server.journal.count(|event| matches!(event, Event::Lost(..))), 1);
}

fn c10_abort_ends_many_long_sends_at_once(setup: &Setup) {
    const PEERS: usize = 20;
    let much = shared(&[0; MUCH]);
    let script = Script::new().on_made(move |cx, _| ignore(cx.transport.write_shared(&much)));
    let mut server = script.serve(setup.reactor());
    let dial = |number| {
        let peer = Peer::dial_narrow(server.address(), 4096);
        (server.journal.id(number), peer)
    };
    let (ids, peers): (Vec<_>, Vec<_>) = (0..PEERS).map(dial).unzip();
    // A few turns, so that the sends are in flight and stuck.
    server.let_it_turn();
    server.act(move |transport| ids.iter().for_each(|id| transport.to(*id).abort_connection()));
    (0..PEERS).for_each(|number| assert_eq!(server.journal.wait_lost(number), "Aborted"));
    // Nobody has read anything, which would give a send room that goes on.
    server.stop();
    peers.into_iter().for_each(|mut peer| peer.expect_reset());
}

fn c10_abort_works_in_every_state(setup: &Setup) {
    const CASES: usize = 6;
    let script = Script::new().on_made(move |cx, conn| {
        match conn.number {
            0 => cx.transport.abort_connection(),
            1 => {
                let _ = cx.transport.write(b"never sent");
                cx.transport.abort_connection();
            }
            2 => cx.transport.pause_producing(),
            // Flushing to a peer that does not read.
            3 => {
                let _ = cx.transport.write(&vec![0; 12 << 20]);
                cx.transport.lose_connection();
            }
            // Draining.
            4 => cx.transport.lose_connection(),
            _ => {}
        }
    });
    let limits = Limits { drain_timeout: 10 * LIMIT, ..Limits::default() };
    let server = script.serve(setup.limited(limits));
    for number in 0..CASES {
        let mut peer = Peer::dial_narrow(server.address(), 4096);
        server.journal.wait_for(Event::Made(number));
        if number == 4 {
            peer.expect_fin();
        }
        server.act_on(number, |transport| transport.abort_connection());
        assert_eq!(server.journal.wait_lost(number), "Aborted", "case {number}");
        if number == 4 {
            // After the FIN a reader hears nothing of the RST; a writer does.
            assert!(peer.write_until_broken(1 << 30) < 1 << 30, "case {number}");
        } else {
            assert_eq!(peer.read_to_end().1, End::Reset, "case {number}");
        }
    }
}

fn c15_lose_write_connection_flushes_then_shuts_one_half(setup: &Setup) {
    let bytes = shared(&pattern(15, MUCH));
    let source = Arc::clone(&bytes);
    let script = Script::new().on_made(move |cx, _| {
        let _ = cx.transport.write_shared(&source);
        cx.transport.lose_write_connection();
        cx.transport.lose_write_connection();
        assert_eq!(cx.transport.write(b"too late"), Write::Closed);
    });
    let server = script.serve(setup.reactor());
    let mut peer = server.dial_made(0);
    let (got, end) = peer.read_to_end();
    assert_same(&got, &bytes);
    assert_eq!(end, End::Fin);
    peer.write(b"still listening?");
    assert_eq!(server.journal.wait_bytes(0, 16), b"still listening?");
    drop(peer);
    assert_eq!(server.journal.wait_lost(0), "Done");
}

fn c15_an_aware_protocol_goes_on_writing_after_the_fin(setup: &Setup) {
    let bytes = shared(&pattern(16, 1 << 20));
    let source = Arc::clone(&bytes);
    let turns = Tally::default();
    let script = Script::half_closeable().on_read_lost(move |cx, _| {
        let source = Arc::clone(&source);
        assert_eq!(turns.up(), 0, "told once");
        cx.call_later(Duration::from_millis(20), move |_, cx| {
            let _ = cx.transport.write_shared(&source);
            cx.call_later(Duration::from_millis(20), |_, cx| {
                let _ = cx.transport.write(b"the end");
                cx.transport.lose_connection();
            });
        });
    });
    let server = script.serve(setup.reactor());
    let mut peer = server.dial_made(0);
    peer.write(b"question");
    peer.finish_writing();
    let (got, end) = peer.read_to_end();
    assert_same(&got, &[&bytes[..], b"the end"].concat());
    assert_eq!(end, End::Fin);
    assert_eq!(server.journal.wait_lost(0), "Done");
    let order = |event: &Event| server.journal.all().iter().position(|e| e == event).unwrap();
    assert_eq!(server.journal.bytes(0), b"question");
    assert!(order(&Event::ReadLost(0)) > order(&Event::Made(0)));
    assert!(!matches!(server.journal.all()[order(&Event::ReadLost(0)) + 1], Event::Data(..)));
}

fn c15_an_unaware_protocol_still_delivers_what_it_wrote(setup: &Setup) {
    let bytes = shared(&pattern(17, MUCH));
    let source = Arc::clone(&bytes);
    let script = Script::new().on_data(move |cx, _, _| ignore(cx.transport.write_shared(&source)));
    let server = script.serve(setup.reactor());
    let mut peer = server.dial_made(0);
    peer.write(b"?");
    peer.finish_writing();
    let (got, end) = peer.read_to_end();
    assert_same(&got, &bytes);
    assert_eq!(end, End::Fin);
    assert_eq!(server.journal.wait_lost(0), "Done");
    assert_eq!(server.journal.count(|event| matches!(event, Event::ReadLost(_))), 0);
}

fn c15_both_halves_closed_end_the_connection(setup: &Setup) {
    let script = Script::half_closeable();
    let server = script.serve(setup.reactor());
    // This side first, then the peer; and the other way round.
    let mut first = server.dial_made(0);
    shut(&server, 0);
    first.expect_fin();
    lives(&server, 0);
    first.finish_writing();
    assert_eq!(server.journal.wait_lost(0), "Done");
    let mut second = server.dial_made(1);
    second.finish_writing();
    server.journal.wait_for(Event::ReadLost(1));
    lives(&server, 1);
    shut(&server, 1);
    second.expect_fin();
    assert_eq!(server.journal.wait_lost(1), "Done");
    assert!(server.journal.has(&Event::ReadLost(0)), "each half was told");
}

fn shut(server: &Server, number: usize) {
    server.act_on(number, |transport| transport.lose_write_connection());
}

fn lives(server: &Server, number: usize) {
    server.let_it_turn();
    assert_eq!(server.journal.count(|event| matches!(event, Event::Lost(n, _) if *n == number)), 0);
}
