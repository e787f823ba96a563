//! Writing against a peer that does not keep up: watermarks and limits (C18, P4).

use std::time::Duration;

use ringspun::{Count, Limits, Write};

use crate::{
    kit::{Event, Script, Server, Tally, ignore},
    peers::{End, Peer, assert_same, pattern},
    setups::{Setup, on_every_backend, shared},
};

on_every_backend!(
    c18_write_answers_accepted_full_or_closed,
    c18_each_crossing_of_the_marks_is_told_once,
    c18_the_hard_limit_counts_what_was_unsent_before,
    c18_a_write_past_the_hard_limit_asks_for_no_bytes,
    c18_a_protocol_that_writes_whenever_it_may_still_receives,
    c18_how_far_a_long_write_has_come_is_known,
    p4_a_peer_that_never_reads_costs_no_more_than_the_limit,
);

const CHUNK: usize = 8 << 10;

fn c18_write_answers_accepted_full_or_closed(setup: &Setup) {
    let limits = Limits { output_high: 10_000, output_low: 1_000, ..Limits::default() };
    let script = Script::new().on_made(|cx, conn| {
        assert_eq!(cx.transport.write(b""), Write::Accepted);
        assert_eq!(cx.transport.write(&[1; 10_000]), Write::Accepted, "at the mark is not above it");
        assert_eq!(cx.transport.unsent(), 10_000);
        assert_eq!(cx.transport.write(&[2; 1]), Write::Full);
        assert_eq!(cx.transport.write_with(|out| out.push(&[3; 5])), Write::Full);
        assert_eq!(cx.transport.write_sequence([[4; 2], [5; 2]]), Write::Full);
        assert_eq!(cx.transport.write_shared(&shared(&[6; 3])), Write::Full);
        assert_eq!(cx.transport.unsent(), 10_013);
        cx.transport.lose_connection();
        assert_eq!(cx.transport.write(b"late"), Write::Closed);
        conn.note("made");
    });
    let server = script.serve(setup.limited(limits));
    let (got, end) = server.dial().read_to_end();
    assert_eq!((got.len(), end), (10_013, End::Fin));
    server.journal.wait_note("made");
}

/// Writes until it is told to pause, and again when it is told to resume, `rounds` times.
fn writer(rounds: usize) -> (Script, Tally) {
    let written = Tally::default();
    let count = written.clone();
    let fill = move |transport: &mut ringspun::Transport<'_>| {
        while transport.write(&[count.up() as u8; CHUNK]) == Write::Accepted {}
        // Above the mark: these are taken, and told to nobody.
        assert_eq!(transport.write(&[count.up() as u8; CHUNK]), Write::Full);
    };
    let again = fill.clone();
    let script = Script::new().on_made(move |cx, _| fill(&mut cx.transport)).on_resume(move |cx, conn| {
        let resumed = conn.journal.count(|event| matches!(event, Event::ResumeWriting(_)));
        match resumed < rounds {
            true => again(&mut cx.transport),
            false => cx.transport.lose_connection(),
        }
    });
    (script, written)
}

fn c18_each_crossing_of_the_marks_is_told_once(setup: &Setup) {
    const ROUNDS: usize = 40;
    let (script, written) = writer(ROUNDS);
    let server = script.serve(setup.reactor());
    let mut peer = Peer::dial_narrow(server.address(), 4096);
    let (got, end) = peer.read_to_end();
    assert_eq!(end, End::Fin);
    let wanted: Vec<u8> = (0..written.get()).flat_map(|number| [number as u8; CHUNK]).collect();
    assert_same(&got, &wanted);
    drop(peer);
    server.journal.wait_lost(0);
    let told: Vec<Event> = server
        .journal
        .all()
        .into_iter()
        .filter(|event| matches!(event, Event::PauseWriting(_) | Event::ResumeWriting(_)))
        .collect();
    let pair = [Event::PauseWriting(0), Event::ResumeWriting(0)];
    let pairs: Vec<Event> = pair.into_iter().cycle().take(2 * ROUNDS).collect();
    assert_eq!(told, pairs);
}

fn c18_the_hard_limit_counts_what_was_unsent_before(setup: &Setup) {
    let limits = Limits { output_max: 256 << 10, ..Limits::default() };
    let script = Script::new().on_made(|cx, conn| {
        let more_than_allowed = vec![0; 12 << 20];
        assert_eq!(cx.transport.write(&[0; 256 << 10]), Write::Full, "at the limit is not above it");
        assert_eq!(cx.transport.write(&more_than_allowed), Write::Full, "never refused for its own size");
        assert_eq!(cx.transport.write(b"!"), Write::Closed);
        assert_eq!(cx.transport.write(b"!"), Write::Closed);
        conn.note("over");
    });
    let server = script.serve(setup.limited(limits));
    let mut peer = Peer::dial_narrow(server.address(), 4096);
    assert_eq!(server.journal.wait_lost(0), "Limit(Output)");
    peer.expect_reset();
    assert!(server.journal.has(&Event::Note("over".to_owned())));
    assert_eq!(server.count(Count::LostLimit), 1);
}

fn c18_a_write_past_the_hard_limit_asks_for_no_bytes(setup: &Setup) {
    let limits = Limits { output_max: 1 << 20, ..Limits::default() };
    let script = Script::new().on_made(|cx, conn| {
        assert_eq!(cx.transport.write(&vec![0; 2 << 20]), Write::Full);
        let mut asked = false;
        assert_eq!(cx.transport.write_with(|_| asked = true), Write::Closed);
        conn.note(format!("asked {asked}"));
    });
    let server = script.serve(setup.limited(limits));
    let mut peer = server.dial();
    assert_eq!(server.journal.wait_lost(0), "Limit(Output)");
    peer.expect_reset();
    assert!(server.journal.has(&Event::Note("asked false".to_owned())));
}

fn c18_a_protocol_that_writes_whenever_it_may_still_receives(setup: &Setup) {
    // Of many sizes: with some of them the last send of a turn is one that fills the kernel's buffer.
    let chunk = |number: usize| vec![0; 70_000 + number * 20_000];
    let script = Script::new()
        .on_made(move |cx, conn| ignore(cx.transport.write(&chunk(conn.number))))
        .on_resume(move |cx, conn| ignore(cx.transport.write(&chunk(conn.number))));
    let server = script.serve(setup.reactor());
    for number in 0..10 {
        let mut deaf = server.dial_made(number);
        deaf.write(b"heard?");
        assert_eq!(server.journal.wait_bytes(number, 6), b"heard?");
    }
}

fn c18_how_far_a_long_write_has_come_is_known(setup: &Setup) {
    // More than the kernel keeps of either half of it.
    const HALF: usize = 12 << 20;
    let script = Script::new().on_made(|cx, _| ignore(cx.transport.write(&vec![0; 2 * HALF])));
    let server = script.serve(setup.reactor());
    let mut peer = Peer::dial_narrow(server.address(), 64 << 10);
    assert_eq!(peer.read_exactly(HALF).len(), HALF);
    // What is told is behind what has gone by one send at most.
    server.running.wait_count(Count::BytesSent, (HALF - (256 << 10)) as u64);
    assert_eq!(server.journal.count(|event| matches!(event, Event::ResumeWriting(_))), 0);
}

/// Writes a chunk whenever the loop comes round, for as long as it may.
fn gusher(recorder: &mut crate::kit::Recorder<false>, cx: &mut ringspun::Cx<'_, Script>) {
    assert!(cx.transport.unsent() <= LIMIT_BYTES + (CHUNK << 5), "{} unsent", cx.transport.unsent());
    match cx.transport.write(&[0; CHUNK << 5]) {
        Write::Closed => recorder.conn.note("closed"),
        _ => drop(cx.call_later(Duration::ZERO, gusher)),
    }
}

const LIMIT_BYTES: usize = 1 << 20;

fn p4_a_peer_that_never_reads_costs_no_more_than_the_limit(setup: &Setup) {
    const PEERS: usize = 12;
    let limits = Limits { output_max: LIMIT_BYTES, ..Limits::default() };
    let script = Script::new()
        .on_made(move |cx, conn| {
            if conn.number > 0 {
                cx.call_later(Duration::ZERO, gusher);
            }
        })
        .on_data(|cx, _, data| ignore(cx.transport.write(data)));
    let server: Server = script.serve(setup.limited(limits));
    let mut reader = server.dial_made(0);
    let peers: Vec<Peer> = (0..PEERS).map(|_| Peer::dial_narrow(server.address(), 4096)).collect();
    for number in 1..=PEERS {
        assert_eq!(server.journal.wait_lost(number), "Limit(Output)");
        reader.ask(&pattern(4, 10), &pattern(4, 10));
    }
    drop(peers);
}
