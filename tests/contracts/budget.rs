//! What all connections may have unsent together (P4).

use std::time::{Duration, Instant};

use ringspun::{Count, Limits, Write};

use crate::{
    kit::{Event, Script, Server, ignore},
    peers::{LIMIT, Peer, assert_same, pattern},
    setups::{Setup, on_every_backend, shared},
};

on_every_backend!(
    p4_past_the_budget_whoever_has_most_unsent_ends,
    p4_a_writer_with_as_much_as_any_ends_itself,
    p4_who_has_little_unsent_is_served_whatever_the_budget,
    p4_what_is_sent_or_lost_counts_no_more,
    p4_all_that_one_callback_writes_to_others_stays_in_the_budget,
    p4_producers_that_mind_the_marks_are_not_ended,
);

const MIB: usize = 1 << 20;

/// Echoes, with a budget of so many bytes.
fn serve(setup: &Setup, output_total_max: usize) -> Server {
    Script::echo().serve(setup.limited(Limits { output_total_max, ..Limits::default() }))
}

/// Peers that take next to nothing, in the order of their numbers.
fn dial_deaf(server: &Server, numbers: std::ops::Range<usize>) -> Vec<Peer> {
    let dial = |number| {
        let peer = Peer::dial_narrow(server.address(), 4096);
        server.journal.id(number);
        peer
    };
    numbers.map(dial).collect()
}

fn write(server: &Server, conn: usize, bytes: usize) -> Write {
    server.act_on(conn, move |transport| transport.write(&vec![conn as u8; bytes]))
}

fn losses(server: &Server) -> usize {
    server.journal.count(|event| matches!(event, Event::Lost(..)))
}

fn p4_past_the_budget_whoever_has_most_unsent_ends(setup: &Setup) {
    // The kernel holds up to some MiB of what is sent to a peer that does not read.
    let server = serve(setup, 44 * MIB);
    let mut peers = dial_deaf(&server, 0..4);
    assert_eq!(write(&server, 0, 2 * MIB), Write::Full);
    assert_eq!(write(&server, 1, 40 * MIB), Write::Full);
    assert_eq!(write(&server, 2, 2 * MIB), Write::Full);
    server.let_it_turn();
    assert_eq!(losses(&server), 0, "{:?} are unsent", server.running.reactor.stats().output_total());
    // It is the slow reader who has most, not the one who writes now, nor the one who came first.
    assert_eq!(write(&server, 3, 20 * MIB), Write::Full);
    assert_eq!(server.journal.wait_lost(1), "Limit(OutputTotal)");
    for conn in [0, 2, 3] {
        let bytes = [2, 40, 2, 20][conn] * MIB;
        assert_same(&peers[conn].read_exactly(bytes), &vec![conn as u8; bytes]);
    }
    assert_eq!(losses(&server), 1);
    peers[1].expect_reset();
}

fn p4_a_writer_with_as_much_as_any_ends_itself(setup: &Setup) {
    let server = serve(setup, 8 * MIB);
    let peers = dial_deaf(&server, 0..2);
    assert_eq!(write(&server, 0, 7 * MIB), Write::Full);
    // It has more than the other one then, and hears so at once.
    assert_eq!(write(&server, 1, 8 * MIB), Write::Closed);
    assert_eq!(server.journal.wait_lost(1), "Limit(OutputTotal)");
    // The same, by the other ways of writing.
    let more = dial_deaf(&server, 2..4);
    let closed = server.act_on(2, |transport| transport.write_shared(&shared(&[2; 8 * MIB])));
    assert_eq!(closed, Write::Closed, "a shared buffer counts in full");
    let closed = server.act_on(3, |transport| transport.write_with(|out| out.push(&[3; 8 * MIB])));
    assert_eq!(closed, Write::Closed);
    for number in [2, 3] {
        assert_eq!(server.journal.wait_lost(number), "Limit(OutputTotal)");
    }
    assert_eq!(losses(&server), 3);
    drop((peers, more));
}

fn p4_who_has_little_unsent_is_served_whatever_the_budget(setup: &Setup) {
    let server = serve(setup, 0);
    let mut calm = server.dial_made(0);
    for round in 0..50 {
        let question = pattern(round, 1 + 80 * round as usize);
        calm.ask(&question, &question);
        // Each of these passes the budget, and ends.
        let deaf = Peer::dial_narrow(server.address(), 4096);
        let number = 1 + round as usize;
        server.journal.id(number);
        assert_eq!(write(&server, number, 4097), Write::Closed);
        assert_eq!(server.journal.wait_lost(number), "Limit(OutputTotal)");
        drop(deaf);
    }
    assert_eq!(write(&server, 0, 4096), Write::Accepted);
    assert_eq!(calm.read_exactly(4096), [0; 4096]);
    assert_eq!(losses(&server), 50);
}

/// Waits until nothing is counted any more.
fn wait_for_none(server: &Server) {
    let deadline = Instant::now() + LIMIT;
    while server.running.reactor.stats().output_total() > 0 {
        assert!(Instant::now() < deadline, "{} left", server.running.reactor.stats().output_total());
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn p4_what_is_sent_or_lost_counts_no_more(setup: &Setup) {
    let server = serve(setup, 12 * MIB);
    let (mut reader, bytes) = (server.dial_made(0), pattern(7, 10 * MIB));
    for round in 0..6 {
        let copy = bytes.clone();
        assert_eq!(server.act_on(0, move |transport| transport.write(&copy)), Write::Full);
        assert_same(&reader.read_exactly(bytes.len()), &bytes);
        wait_for_none(&server);
        let deaf = dial_deaf(&server, 1 + round..2 + round);
        assert_eq!(write(&server, 1 + round, 11 * MIB), Write::Full);
        let way = round % 4;
        server.act_on(1 + round, move |transport| match way {
            0 => transport.abort_connection(),
            1 => transport.fail("on purpose"),
            2 => transport.lose_connection(),
            _ => {}
        });
        if way > 1 {
            deaf.into_iter().for_each(Peer::reset);
        }
        server.journal.wait_lost(1 + round);
        wait_for_none(&server);
    }
    let peak = server.running.reactor.stats().output_total_peak();
    assert!((11 * MIB..=12 * MIB).contains(&peak), "{peak} was the peak");
    assert_eq!(server.journal.count(|event| matches!(event, Event::Lost(0, _))), 0);
}

fn p4_all_that_one_callback_writes_to_others_stays_in_the_budget(setup: &Setup) {
    const PEERS: usize = 30;
    let server = serve(setup, 16 * MIB);
    let peers = dial_deaf(&server, 0..PEERS);
    let ids: Vec<_> = (0..PEERS).map(|number| server.journal.id(number)).collect();
    let closed = server.act(move |transport| {
        let write = |id: &_| transport.to(*id).write(&[b'.'; 4 * MIB]);
        ids.iter().map(write).filter(|answer| *answer == Write::Closed).count()
    });
    assert!(closed >= PEERS - 12, "{closed} were ended");
    server.journal.wait_losses(closed);
    let peak = server.running.reactor.stats().output_total_peak();
    assert!(peak <= (16 + 4) * MIB, "{peak} bytes were unsent at once");
    drop(peers);
}

fn p4_producers_that_mind_the_marks_are_not_ended(setup: &Setup) {
    const PEERS: usize = 30;
    let script = Script::new().on_made(|cx, _| {
        let endless = ringspun::FileSender::new(std::io::repeat(b'.'));
        ignore(cx.transport.register_producer(endless, ringspun::Production::Pull));
    });
    // As much as all may have that are full to the high mark.
    let high = Limits::default().output_high;
    let limits = Limits { output_total_max: PEERS * high, ..Limits::default() };
    let server = script.serve(setup.limited(limits));
    let peers = dial_deaf(&server, 0..PEERS);
    // Until as much as one mark is unsent, and the kernel takes no more of anybody's.
    let (deadline, mut sent) = (Instant::now() + LIMIT, 0);
    let peak = || server.running.reactor.stats().output_total_peak();
    while (peak() < high || sent < server.count(Count::BytesSent)) && Instant::now() < deadline {
        sent = server.count(Count::BytesSent);
        std::thread::sleep(Duration::from_millis(200));
    }
    let peak = peak();
    assert!((high..=PEERS * high).contains(&peak), "{peak} bytes were unsent at once");
    assert_eq!(losses(&server), 0);
    drop(peers);
}
