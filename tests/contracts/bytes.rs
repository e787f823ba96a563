//! Bytes on their way: in order, none lost, none doubled, whatever is paused (C5, C12, C13).

use std::{
    os::fd::AsRawFd,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use ringspun::{Count, Limits};

use crate::{
    kit::{Event, Gate, Script, Server, ignore},
    peers::{End, Peer, Random, assert_same, pattern},
    setups::{Setup, on_every_backend, shared},
};

on_every_backend!(
    c5_urgent_data_comes_in_its_place,
    c5_received_bytes_survive_any_chunking_and_pausing,
    c5_sent_bytes_survive_any_chunking,
    c5_every_connection_keeps_its_own_bytes,
    c12_nothing_is_delivered_while_paused,
    c12_completed_data_waits_for_the_resume,
    c12_pausing_and_resuming_at_once_loses_nothing,
    c12_what_a_paused_connection_holds_is_bounded,
    c13_a_fin_while_paused_is_told_after_all_bytes,
    c13_a_reset_while_paused_is_told_after_the_resume,
    c13_a_reset_while_paused_is_told_by_a_failing_write,
    c13_a_paused_connection_without_a_peer_costs_no_wake_ups,
    c13_bytes_before_the_fin_come_before_it,
    c18_a_peer_that_does_not_read_costs_no_wake_ups,
);

/// For how long a test watches that something does not happen.
const WATCH: Duration = Duration::from_millis(300);

/// Writes in pieces of random size, with pauses of a random kind in between.
fn write_in_pieces(mut peer: Peer, bytes: Vec<u8>, mut random: Random) {
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let ceiling = [10, 2_000, 60_000][random.below(3)];
        let piece = rest.len().min(1 + random.below(ceiling));
        peer.write(&rest[..piece]);
        rest = &rest[piece..];
        if random.below(16) == 0 {
            thread::yield_now();
        }
    }
    peer.finish_writing();
}

fn c5_received_bytes_survive_any_chunking_and_pausing(setup: &Setup) {
    let dice = Mutex::new(Random::new(5));
    let script = Script::new().on_data(move |cx, _, _| {
        let mut dice = dice.lock().unwrap();
        match dice.below(6) {
            0 => {
                cx.transport.pause_producing();
                let delay = Duration::from_micros(dice.below(1500) as u64);
                cx.call_later(delay, |_, cx| cx.transport.resume_producing());
            }
            1 => {
                cx.transport.pause_producing();
                cx.transport.resume_producing();
            }
            2 => {
                cx.transport.pause_producing();
                let id = cx.transport.id();
                cx.post(id, |_, cx| cx.transport.resume_producing());
            }
            _ => {}
        }
    });
    let server = script.serve(setup.reactor());
    let senders: Vec<_> = (0..4)
        .map(|number| {
            let peer = server.dial_made(number);
            let random = Random::new(number as u64 + 50);
            thread::spawn(move || write_in_pieces(peer, pattern(number as u64, 400_000), random))
        })
        .collect();
    for (number, sender) in senders.into_iter().enumerate() {
        sender.join().unwrap();
        assert_eq!(server.journal.wait_lost(number), "Done");
        assert_same(&server.journal.bytes(number), &pattern(number as u64, 400_000));
    }
}

fn c5_sent_bytes_survive_any_chunking(setup: &Setup) {
    let bytes: Arc<[u8]> = shared(&pattern(55, 1_500_000));
    let source = Arc::clone(&bytes);
    let script = Script::new()
        .on_made(move |cx, conn| {
            let mut random = Random::new(conn.number as u64);
            let mut rest = &source[..];
            while !rest.is_empty() {
                let ceiling = [5, 500, 30_000][random.below(3)];
                let (piece, behind) = rest.split_at(rest.len().min(1 + random.below(ceiling)));
                let _ = match random.below(4) {
                    0 => cx.transport.write_shared(&shared(piece)),
                    1 => cx.transport.write_sequence(piece.chunks(1 + random.below(1000))),
                    2 => cx.transport.write_with(|out| out.push(piece)),
                    _ => cx.transport.write(piece),
                };
                rest = behind;
            }
        })
        .on_data(|cx, _, _| cx.transport.lose_connection());
    let server = script.serve(setup.reactor());
    // One reads as fast as it can, one has a narrow window and reads little at a time.
    let mut random = Random::new(9);
    for mut peer in [server.dial(), Peer::dial_narrow(server.address(), 4096)] {
        let mut got = Vec::new();
        let mut buffer = [0; 50_000];
        while got.len() < bytes.len() {
            let ceiling = 1 + random.below(buffer.len());
            let count = peer.read_some(&mut buffer[..ceiling]).unwrap();
            assert!(count > 0, "FIN after {} bytes", got.len());
            got.extend_from_slice(&buffer[..count]);
        }
        assert_same(&got, &bytes);
        peer.write(b"that was all");
        peer.expect_fin();
    }
}

fn c5_every_connection_keeps_its_own_bytes(setup: &Setup) {
    let server = Script::echo().serve(setup.reactor());
    let address = server.address();
    let clients: Vec<_> = (0..24)
        .map(|number| {
            thread::spawn(move || {
                let mut peer = Peer::dial(address);
                let bytes = pattern(1000 + number, 60_000);
                let mut random = Random::new(number);
                let mut sent = 0;
                while sent < bytes.len() {
                    let piece = (bytes.len() - sent).min(1 + random.below(9_000));
                    peer.write(&bytes[sent..sent + piece]);
                    assert_same(&peer.read_exactly(piece), &bytes[sent..sent + piece]);
                    sent += piece;
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
}

/// Pauses when it is made or, if `at_once` is false, at the first data.
fn paused(at_once: bool) -> Script {
    Script::new()
        .on_made(move |cx, conn| {
            if at_once {
                cx.transport.pause_producing();
                conn.note("paused");
            }
        })
        .on_data(|cx, conn, _| {
            if !conn.journal.has(&Event::Note("paused".to_owned())) {
                cx.transport.pause_producing();
                conn.note("paused");
            }
        })
}

fn resume(server: &Server, number: usize) {
    server.act_on(number, |transport| transport.resume_producing());
}

fn c12_nothing_is_delivered_while_paused(setup: &Setup) {
    for at_once in [true, false] {
        let script = paused(at_once);
        let server = script.serve(setup.reactor());
        let mut peer = server.dial_made(0);
        let bytes = pattern(12, 100_000);
        let first = if at_once { 0 } else { 10 };
        peer.write(&bytes[..first]);
        server.journal.wait_bytes(0, first);
        server.journal.wait_note("paused");
        let before = server.journal.bytes(0).len();
        peer.write(&bytes[first..]);
        server.let_it_turn();
        thread::sleep(Duration::from_millis(50));
        server.let_it_turn();
        assert_eq!(server.journal.bytes(0).len(), before, "at once: {at_once}");
        resume(&server, 0);
        assert_same(&server.journal.wait_bytes(0, bytes.len()), &bytes);
    }
}

fn c12_completed_data_waits_for_the_resume(setup: &Setup) {
    // The loop is held inside the first delivery while much more arrives, so that the kernel has
    // completed it, or could have, when the pause is asked for.
    let (inside, more_came) = (Gate::default(), Gate::default());
    let (tell, wait) = (inside.clone(), more_came.clone());
    let script = Script::new().on_data(move |cx, conn, _| {
        if !conn.journal.has(&Event::Note("paused".to_owned())) {
            tell.open();
            wait.pass();
            cx.transport.pause_producing();
            conn.note("paused");
        }
    });
    let server = script.serve(setup.reactor());
    let mut peer = server.dial_made(0);
    let bytes = pattern(122, 40_000);
    peer.write(&bytes[..100]);
    inside.pass();
    for piece in bytes[100..].chunks(700) {
        peer.write(piece);
    }
    more_came.open();
    server.journal.wait_note("paused");
    server.let_it_turn();
    thread::sleep(Duration::from_millis(50));
    server.let_it_turn();
    assert_eq!(server.journal.count(|event| matches!(event, Event::Data(..))), 1);
    resume(&server, 0);
    assert_same(&server.journal.wait_bytes(0, bytes.len()), &bytes);
}

fn c12_pausing_and_resuming_at_once_loses_nothing(setup: &Setup) {
    let script = Script::new()
        .on_made(|cx, _| {
            cx.transport.pause_producing();
            cx.transport.resume_producing();
        })
        .on_data(|cx, _, _| {
            for _ in 0..3 {
                cx.transport.pause_producing();
                cx.transport.resume_producing();
            }
        });
    let server = script.serve(setup.reactor());
    let mut peer = server.dial_made(0);
    let bytes = pattern(123, 300_000);
    peer.write(&bytes);
    assert_same(&server.journal.wait_bytes(0, bytes.len()), &bytes);
    drop(peer);
    assert_eq!(server.journal.wait_lost(0), "Done");
}

fn c12_what_a_paused_connection_holds_is_bounded(setup: &Setup) {
    let script = paused(false);
    let server = script.serve(setup.reactor());
    let mut peer = server.dial_made(0);
    peer.write(b"x");
    server.journal.wait_note("paused");
    // Until the kernel's buffers are full, too.
    let written = peer.write_until_stuck(Duration::from_millis(150));
    assert!(written > 100_000);
    let received = server.count(Count::BytesReceived);
    assert!(received <= 1 << 20, "{received} bytes were taken from the kernel for a paused connection");
    let rest = peer.share();
    server.act_on(0, |transport| transport.abort_connection());
    drop((peer, rest));
    assert_eq!(server.journal.wait_lost(0), "Aborted");
}

fn c13_a_fin_while_paused_is_told_after_all_bytes(setup: &Setup) {
    for at_once in [true, false] {
        let script = paused(at_once);
        let server = script.serve(setup.reactor());
        let mut peer = server.dial_made(0);
        let bytes = pattern(13, 50_000);
        peer.write(&bytes[..10]);
        server.journal.wait_note("paused");
        peer.write(&bytes[10..]);
        drop(peer);
        server.let_it_turn();
        thread::sleep(Duration::from_millis(50));
        server.let_it_turn();
        let lost = |event: &Event| matches!(event, Event::Lost(0, _));
        assert_eq!(server.journal.count(lost), 0, "told while paused; at once: {at_once}");
        resume(&server, 0);
        assert_eq!(server.journal.wait_lost(0), "Done");
        assert_same(&server.journal.bytes(0), &bytes);
    }
}

fn c13_a_reset_while_paused_is_told_after_the_resume(setup: &Setup) {
    let script = paused(true);
    let server = script.serve(setup.reactor());
    let mut peer = server.dial_made(0);
    peer.write(b"last words");
    server.let_it_turn();
    peer.reset();
    server.let_it_turn();
    thread::sleep(Duration::from_millis(50));
    server.let_it_turn();
    assert_eq!(server.journal.count(|event| matches!(event, Event::Lost(0, _))), 0, "told while paused");
    resume(&server, 0);
    assert_eq!(server.journal.wait_lost(0), "Lost(Errno(ECONNRESET))");
    // Linux keeps what came before the RST for the reader.
    assert_eq!(server.journal.bytes(0), b"last words");
}

fn c13_a_reset_while_paused_is_told_by_a_failing_write(setup: &Setup) {
    let script = paused(true);
    let server = script.serve(setup.reactor());
    server.dial_made(0).reset();
    server.let_it_turn();
    server.act_on(0, |transport| ignore(transport.write(b"anybody there?")));
    let reason = server.journal.wait_lost(0);
    assert!(["Lost(Errno(ECONNRESET))", "Lost(Errno(EPIPE))"].contains(&&*reason), "{reason}");
}

fn c13_a_paused_connection_without_a_peer_costs_no_wake_ups(setup: &Setup) {
    let limits = Limits { accept_backoff: Duration::from_secs(60), ..Limits::default() };
    for at_once in [true, false] {
        let script = paused(at_once);
        let server = script.serve(setup.limited(limits.clone()));
        let mut fin = server.dial_made(0);
        fin.write(b"one");
        server.journal.wait_note("paused");
        drop(fin);
        server.dial_made(1).reset();
        server.let_it_turn();
        thread::sleep(Duration::from_millis(20));
        let before = server.running.reactor.stats();
        thread::sleep(WATCH);
        let after = server.running.reactor.stats();
        let waits = after.count(Count::Waits) - before.count(Count::Waits);
        let calls = after.syscalls_total() - before.syscalls_total();
        assert!(
            waits <= 2 && calls <= 4,
            "{waits} waits and {calls} calls for dead peers; at once: {at_once}"
        );
        resume(&server, 0);
        assert_eq!(server.journal.wait_lost(0), "Done");
    }
}

/// Its socket is full, so each send would fail at once.
fn c18_a_peer_that_does_not_read_costs_no_wake_ups(setup: &Setup) {
    let server = Script::new().serve(setup.reactor());
    let peer = server.dial_made(0);
    let (writes, bytes) = (40, 256 << 10);
    for _ in 0..writes {
        server.act_on(0, move |transport| ignore(transport.write(&vec![7; bytes])));
    }
    server.let_it_turn();
    let before = server.running.reactor.stats();
    thread::sleep(WATCH);
    let after = server.running.reactor.stats();
    let waits = after.count(Count::Waits) - before.count(Count::Waits);
    let calls = after.syscalls_total() - before.syscalls_total();
    assert!(waits <= 20 && calls <= 40, "{waits} waits and {calls} calls for a peer that does not read");
    assert!(after.count(Count::BytesSent) < writes * bytes as u64, "all found room, so nothing was shown");
    peer.reset();
    let reason = server.journal.wait_lost(0);
    assert!(["Lost(Errno(ECONNRESET))", "Lost(Errno(EPIPE))"].contains(&&*reason), "{reason}");
}

fn c13_bytes_before_the_fin_come_before_it(setup: &Setup) {
    let server = Script::new().serve(setup.reactor());
    for number in 0..10 {
        let mut peer = server.dial_made(number);
        let bytes = pattern(number as u64, 1 + number * 30_000);
        peer.write(&bytes);
        peer.finish_writing();
        assert_eq!(peer.read_to_end(), (Vec::new(), End::Fin));
        assert_eq!(server.journal.wait_lost(number), "Done");
        assert_same(&server.journal.bytes(number), &bytes);
    }
}

fn c5_urgent_data_comes_in_its_place(setup: &Setup) {
    let server = Script::new().serve(setup.reactor());
    let mut peer = server.dial_made(0);
    // A receive ends before it, though all of it is there before the reactor looks.
    let gate = Gate::default();
    let held = gate.clone();
    server.running.reactor.call_from_thread(move |_| held.pass());
    peer.write(b"abc");
    let urgent = nix::sys::socket::MsgFlags::MSG_OOB;
    assert_eq!(nix::sys::socket::send(peer.0.as_raw_fd(), b"X", urgent), Ok(1));
    peer.write(b"def");
    gate.open();
    assert_eq!(server.journal.wait_bytes(0, 7), b"abcXdef");
}
