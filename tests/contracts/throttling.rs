//! Throttles: budgets of bytes in each direction, and who shares them (O3).

use std::{
    io,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use ringspun::{
    FileSender, Producer, Production, Transport,
    policies::{Policies, Throttle},
};

use crate::{
    kit::{Conn, Event, Script, ignore},
    peers::{End, LIMIT, Peer, assert_same, pattern},
    setups::{Setup, on_every_backend},
};

on_every_backend!(
    o3_what_is_sent_keeps_to_the_budget_and_is_whole,
    o3_what_is_received_keeps_to_the_budget_and_is_whole,
    o3_a_budget_is_shared_and_nobody_starves,
    o3_nobody_is_sent_much_more_than_another,
    o3_nobody_is_heard_much_more_than_another,
    o3_a_producer_goes_at_the_throttles_pace,
    o3_a_connection_that_ends_while_it_is_held_up_ends_once,
    o3_those_who_end_leave_their_turns_to_others,
);

const RATE: u64 = 400_000;
const MUCH: usize = 300_000;

/// The least time that so many bytes take.
fn least(bytes: usize) -> Duration {
    let paid = bytes.saturating_sub(64 << 10) as f64 / RATE as f64;
    Duration::from_secs_f64(paid - 0.1)
}

fn o3_what_is_sent_keeps_to_the_budget_and_is_whole(setup: &Setup) {
    let bytes = pattern(31, MUCH);
    let source = bytes.clone();
    let script = Script::new().on_made(move |cx, _| {
        for piece in source.chunks(70_000) {
            let _ = cx.transport.write(piece);
        }
        cx.transport.lose_connection();
    });
    let policies = Policies::new().throttle(&Throttle::new().write(RATE));
    let server = script.serve_behind(&policies, setup.reactor());
    let start = Instant::now();
    let mut peer = server.dial();
    let (got, end) = peer.read_to_end();
    assert!(start.elapsed() >= least(MUCH), "{:?}", start.elapsed());
    assert_same(&got, &bytes);
    assert_eq!(end, End::Fin);
    drop(peer);
    assert_eq!(server.journal.wait_lost(0), "Done");
}

fn o3_what_is_received_keeps_to_the_budget_and_is_whole(setup: &Setup) {
    let bytes = pattern(32, MUCH);
    // It pauses at each piece, too, and goes on a little later.
    let script = Script::new().on_data(|cx, _, _| {
        cx.transport.pause_producing();
        cx.call_later(Duration::from_millis(1), |_, cx| cx.transport.resume_producing());
    });
    let policies =
        Policies::new().throttle(&Throttle::new().read(RATE)).throttle_each(&Throttle::new().read(2 * RATE));
    let server = script.serve_behind(&policies, setup.reactor());
    let mut peer = server.dial_made(0);
    let start = Instant::now();
    peer.write(&bytes);
    peer.finish_writing();
    assert_eq!(server.journal.wait_lost(0), "Done");
    assert!(start.elapsed() >= least(MUCH), "{:?}", start.elapsed());
    assert_same(&server.journal.bytes(0), &bytes);
}

fn o3_a_budget_is_shared_and_nobody_starves(setup: &Setup) {
    const PEERS: usize = 4;
    let script = Script::new().on_made(|cx, conn| {
        let _ = cx.transport.write(&pattern(conn.number as u64, MUCH / PEERS));
        cx.transport.lose_connection();
    });
    let throttle = Throttle::new().write(RATE);
    let server = script.serve_behind(&Policies::new().throttle(&throttle), setup.reactor());
    let start = Instant::now();
    let peers: Vec<_> = (0..PEERS).map(|number| server.dial_made(number)).collect();
    let readers: Vec<_> =
        peers.into_iter().map(|mut peer| thread::spawn(move || peer.read_to_end().0)).collect();
    for (number, reader) in readers.into_iter().enumerate() {
        assert_same(&reader.join().unwrap(), &pattern(number as u64, MUCH / PEERS));
    }
    assert!(start.elapsed() >= least(MUCH), "{:?}", start.elapsed());
}

/// How many share a budget and have no end.
const GREEDY: usize = 6;

/// What each of them has had.
struct Shares {
    had: Mutex<[usize; GREEDY]>,
    /// They are compared when all together have had so much each.
    average: usize,
}

impl Shares {
    /// Compares what each has had by then, in bytes and not in time. They take turns, so it is nearly the same, but for threads that stood still
    /// meanwhile: most attempts show it, and by chance hardly so many do where they do not take turns.
    fn are_alike(average: usize, attempt: impl Fn(&Arc<Self>)) {
        let (mut alike, mut unlike) = (0, Vec::new());
        while alike < 3 {
            let shares = Arc::new(Self { had: Mutex::default(), average });
            attempt(&shares);
            let had = *shares.had.lock().unwrap();
            assert!(had.iter().sum::<usize>() >= GREEDY * average);
            let (least, most) = (had.iter().min().unwrap(), had.iter().max().unwrap());
            if *most <= 2 * least {
                alike += 1;
            } else {
                unlike.push(had);
            }
            assert!(unlike.len() < 3, "some have had more than twice as much as others: {unlike:?}");
        }
    }

    /// Counts what has passed, until it is time to compare; whether it is.
    fn are_complete(&self, number: usize, bytes: usize) -> bool {
        let mut had = self.had.lock().unwrap();
        let complete = had.iter().sum::<usize>() >= GREEDY * self.average;
        if !complete {
            had[number] += bytes;
        }
        complete
    }
}

fn o3_nobody_is_sent_much_more_than_another(setup: &Setup) {
    /// Writes a little whenever what it wrote before has gone.
    struct Greedy {
        shares: Arc<Shares>,
        conn: Conn,
        gone: usize,
    }

    impl Producer for Greedy {
        fn resume_producing(&mut self, transport: &mut Transport<'_>) {
            if self.shares.are_complete(self.conn.number, self.gone) {
                self.conn.note("over");
                return transport.unregister_producer();
            }
            self.gone = 1 << 10;
            let _ = transport.write(&[b'.'; 1 << 10]);
        }
    }

    // So little that it fits into their sockets: nobody has to hurry to read it.
    Shares::are_alike(48 << 10, |shares| {
        let (throttle, shares) = (Throttle::new().write(RATE), Arc::clone(shares));
        let script = Script::new().on_data(move |cx, conn, _| {
            let greedy = Greedy { shares: Arc::clone(&shares), conn: conn.clone(), gone: 0 };
            cx.transport.register_producer(greedy, Production::Pull).unwrap();
        });
        let server = script.serve_behind(&Policies::new().throttle(&throttle), setup.reactor());
        let mut peers: Vec<_> = (0..GREEDY).map(|number| server.dial_made(number)).collect();
        peers.iter_mut().for_each(|peer| peer.write(b"!"));
        server.journal.wait_note("over");
    });
}

fn o3_nobody_is_heard_much_more_than_another(setup: &Setup) {
    /// So slow that a thread that has to wait for its processor does not miss its turn.
    const RATE: u64 = 4_000_000;
    /// Several pieces of 64 KiB.
    const AVERAGE: usize = 512 << 10;
    Shares::are_alike(AVERAGE, |shares| {
        let (throttle, shares) = (Throttle::new().read(RATE), Arc::clone(shares));
        let script =
            Script::new().on_made(|cx, _| cx.transport.pause_producing()).on_data(move |_, conn, data| {
                if shares.are_complete(conn.number, data.len()) {
                    conn.note("over");
                }
            });
        let server = script.serve_behind(&Policies::new().throttle(&throttle), setup.reactor());
        let mut peers: Vec<_> = (0..GREEDY).map(|number| server.dial_made(number)).collect();
        // All of it waits in their sockets before the first is heard: nobody has to hurry to write it.
        peers.iter_mut().for_each(|peer| peer.write(&[b'.'; 2 * AVERAGE]));
        let ids: Vec<_> = (0..GREEDY).map(|number| server.journal.id(number)).collect();
        server.act(move |transport| ids.into_iter().for_each(|id| transport.to(id).resume_producing()));
        server.journal.wait_note("over");
    });
}

fn o3_a_producer_goes_at_the_throttles_pace(setup: &Setup) {
    let bytes = pattern(33, MUCH);
    let source = bytes.clone();
    let script = Script::new().on_made(move |cx, _| {
        let from = FileSender::new(io::Cursor::new(source.clone()));
        cx.transport.register_producer(from, Production::Pull).unwrap();
        cx.transport.lose_connection();
    });
    let policies = Policies::new().throttle_each(&Throttle::new().write(RATE));
    let server = script.serve_behind(&policies, setup.reactor());
    let start = Instant::now();
    let (got, end) = server.dial().read_to_end();
    assert!(start.elapsed() >= least(MUCH), "{:?}", start.elapsed());
    assert_same(&got, &bytes);
    assert_eq!(end, End::Fin);
}

fn o3_a_connection_that_ends_while_it_is_held_up_ends_once(setup: &Setup) {
    let script = Script::new().on_made(|cx, _| ignore(cx.transport.write(&[b'.'; 1000])));
    let slow = Throttle::new().read(1).write(1);
    let server = script.serve_behind(&Policies::new().throttle_each(&slow), setup.reactor());
    let (mut reset, mut aborted) = (server.dial_made(0), server.dial_made(1));
    for peer in [&mut reset, &mut aborted] {
        peer.write(b"one by one");
        assert_eq!(peer.read_exactly(1), b".");
    }
    server.journal.wait_bytes(0, 1);
    server.journal.wait_bytes(1, 1);
    server.act_on(1, |transport| transport.abort_connection());
    assert_eq!(server.journal.wait_lost(1), "Aborted");
    aborted.expect_reset();
    // It is heard of when something is sent, since what came before has to pass first.
    reset.reset();
    assert_eq!(server.journal.wait_lost(0), "Lost(Errno(ECONNRESET))");
    let mut server = server;
    let _third = server.dial_made(2);
    server.stop();
    assert_eq!(server.journal.wait_lost(2), "Lost(Shutdown)");
    assert_eq!(server.journal.count(|event| matches!(event, Event::Lost(..))), 3);
}

fn o3_those_who_end_leave_their_turns_to_others(setup: &Setup) {
    const SLOW: u64 = 100_000;
    const PEERS: usize = 60;
    let throttle = Throttle::new().write(SLOW);
    let script = Script::new().on_made(|cx, _| ignore(cx.transport.write(&[b'.'; 64 << 10])));
    let server = script.serve_behind(&Policies::new().throttle(&throttle), setup.reactor());
    let peers: Vec<_> = (0..PEERS).map(|number| server.dial_made(number)).collect();
    server.let_it_turn();
    peers.into_iter().for_each(Peer::reset);
    server.journal.wait_losses(PEERS);
    // Their turns would take longer than it waits for its first byte.
    assert!((PEERS as u64) * (64 << 10) / SLOW > LIMIT.as_secs());
    assert_eq!(server.dial_made(PEERS).read_exactly(1), b".");
}
