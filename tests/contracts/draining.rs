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

use ringspun::{
    BoxError, Count, Phase, Production, Reactor, SystemEvent, Write,
    policies::{Filter, Policies, Throttle},
};

use crate::{
    kit::{Event, Script, Server},
    peers::{End, MORE_THAN_FITS, Peer, assert_same, pattern},
    setups::{SETUPS, Setup, on_every_backend},
    streams::{Streams, read_stream, stopped},
    unix::Folder,
};

on_every_backend!(
    r4_what_was_written_is_sent_and_nobody_new_is_served,
    r4_what_has_not_gone_in_time_is_counted,
    r4_what_is_thrown_away_with_a_cut_drain_is_counted,
    r4_no_byte_is_lost_under_load,
    r4_some_miss_the_time_and_others_do_not,
    r4_a_producer_that_ends_in_time_has_sent_everything,
    r4_a_producer_that_does_not_end_in_time_is_stopped,
    r4_no_byte_is_lost_behind_filters_and_throttles,
    r4_no_byte_is_lost_over_unix_sockets,
);

fn draining(setup: &Setup, milliseconds: u64) -> Reactor {
    setup.build(setup.builder().drain_timeout(Duration::from_millis(milliseconds)))
}

fn r4_what_was_written_is_sent_and_nobody_new_is_served(setup: &Setup) {
    const ALL: usize = 4 << 20;
    let script = Script::new().on_made(|cx, conn| {
        if conn.number < 5 {
            let _ = cx.transport.write(&pattern(conn.number as u64, ALL));
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
        assert_same(&got, &pattern(number as u64, ALL));
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

/// A drain that a peer who does not read has cut, and that peer.
fn cut(setup: &Setup) -> (Server, Peer) {
    let script = Script::new().on_made(|cx, _| {
        let _ = cx.transport.write(&[b'.'; MORE_THAN_FITS]);
    });
    let mut server = script.serve(draining(setup, 200));
    let peer = Peer::dial_narrow(server.address(), 4096);
    server.journal.id(0);
    let begun = Instant::now();
    server.stop();
    assert!(begun.elapsed() >= Duration::from_millis(200), "it did not wait");
    assert_eq!(server.journal.wait_lost(0), "Lost(Shutdown)");
    (server, peer)
}

fn r4_what_has_not_gone_in_time_is_counted(setup: &Setup) {
    let (server, mut peer) = cut(setup);
    let (sent, unsent) = (server.count(Count::BytesSent), server.count(Count::BytesUnsent));
    assert!(unsent > 0, "the kernel took it all");
    assert_eq!(sent + unsent, MORE_THAN_FITS as u64);
    assert_eq!(peer.read_to_end().0.len() as u64, sent);
}

fn r4_what_is_thrown_away_with_a_cut_drain_is_counted(setup: &Setup) {
    let (server, mut peer) = cut(setup);
    // The kernel answers it with RST, and forgets what it had taken: nobody can receive it any more.
    peer.write(b"late");
    let (sent, unsent) = (server.count(Count::BytesSent), server.count(Count::BytesUnsent));
    assert_eq!(sent + unsent, MORE_THAN_FITS as u64);
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
            static LONG: [u8; MORE_THAN_FITS] = [0; MORE_THAN_FITS];
            let answer = if data == b"!" { &LONG } else { data };
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

/// Those who read in a drain of streams.
const READERS: usize = 3;

/// What has come of a drain of streams.
struct Drained {
    server: Server,
    /// How much each peer got, those first who did not read until it was over.
    got: Vec<usize>,
    ends: Vec<End>,
    unsent: u64,
}

/// Stops a server while it writes to these, and compares: all that `write` took was sent or is reported, and all that was sent has come, which
/// TCP promises to peers that send nothing.
fn drain(
    mut server: Server,
    streams: &Streams,
    mut deaf: Vec<Peer>,
    readers: Vec<Peer>,
    change: Change,
) -> Drained {
    let reading = |mut peer: Peer| thread::spawn(move || read_stream(&mut peer, change));
    let readers: Vec<_> = readers.into_iter().map(reading).collect();
    streams.wait_until_they_flow();
    // All connections drain by then. A producer that has unregistered itself before would show an ordinary close.
    let ending = streams.clone();
    let end = move |_: &Reactor| ending.end();
    server.running.reactor.add_system_event_trigger(Phase::During, SystemEvent::Shutdown, end);
    server.stop();
    let deaf = deaf.iter_mut().map(|peer| read_stream(peer, change));
    let ends: Vec<_> = deaf.chain(readers.into_iter().map(|reader| reader.join().unwrap())).collect();
    let (sent, unsent) = (server.count(Count::BytesSent), server.count(Count::BytesUnsent));
    assert_eq!(sent + unsent, streams.all_taken() as u64, "{unsent} are reported");
    let (got, ends): (Vec<_>, Vec<_>) = ends.into_iter().unzip();
    for (number, got) in got.iter().enumerate() {
        assert!(*got <= streams.taken(number), "{got} of {}", streams.taken(number));
        assert_eq!(server.journal.wait_lost(number), "Lost(Shutdown)");
    }
    assert_eq!(got.iter().sum::<usize>() as u64, sent, "{got:?}");
    Drained { server, got, ends, unsent }
}

/// Over TCP: those who do not read, and those who do.
fn dial(server: &Server, deaf: usize) -> (Vec<Peer>, Vec<Peer>) {
    let narrow = |number| {
        let peer = Peer::dial_narrow(server.address(), 4096);
        server.journal.id(number);
        peer
    };
    let deaf_peers = (0..deaf).map(narrow).collect();
    (deaf_peers, (deaf..deaf + READERS).map(|number| server.dial_made(number)).collect())
}

/// What the reader of a stream undoes with each byte.
type Change = fn(u8) -> u8;

fn same(byte: u8) -> u8 {
    byte
}

fn r4_some_miss_the_time_and_others_do_not(setup: &Setup) {
    const DEAF: usize = 2;
    // Where the machine stands still for so long, nobody meets it.
    for milliseconds in [200, 800, 3200, 12_800] {
        let streams = Streams::new(DEAF + READERS, DEAF);
        let server = streams.script().serve(draining(setup, milliseconds));
        let (deaf, readers) = dial(&server, DEAF);
        let Drained { got, ends, unsent, .. } = drain(server, &streams, deaf, readers, same);
        assert!(ends.iter().all(|end| *end == End::Fin), "{ends:?}");
        let missing: Vec<_> = (0..got.len()).map(|number| streams.taken(number) - got[number]).collect();
        assert_eq!(missing.iter().sum::<usize>() as u64, unsent);
        assert!(missing[..DEAF].iter().all(|missing| *missing > 0), "the kernel took it all: {missing:?}");
        if missing[DEAF..].iter().all(|missing| *missing == 0) {
            return;
        }
    }
    panic!("those who read have missed it, too");
}

/// Drains of each kind, on each set-up.
const ROUNDS: usize = 6;

fn r4_a_producer_that_ends_in_time_has_sent_everything(setup: &Setup) {
    for production in [Production::Push, Production::Pull].repeat(ROUNDS) {
        let streams = Streams::new(READERS, 0);
        let server = streams.script_of_producers(production).serve(draining(setup, 10_000));
        let (deaf, readers) = dial(&server, 0);
        let Drained { server, ends, unsent, .. } = drain(server, &streams, deaf, readers, same);
        assert!(ends.iter().all(|end| *end == End::Fin), "{ends:?}");
        assert_eq!(unsent, 0);
        let notes = server.journal.count(|event| matches!(event, Event::Note(_)));
        assert_eq!(notes, 0, "one that has unregistered itself is stopped");
    }
}

fn r4_a_producer_that_does_not_end_in_time_is_stopped(setup: &Setup) {
    for production in [Production::Push, Production::Pull].repeat(ROUNDS) {
        let streams = Streams::new(1 + READERS, 1).without_end();
        let server = streams.script_of_producers(production).serve(draining(setup, 20));
        let (deaf, readers) = dial(&server, 1);
        let Drained { server, ends, unsent, .. } = drain(server, &streams, deaf, readers, same);
        assert!(ends.iter().all(|end| *end == End::Fin), "{ends:?}");
        assert!(unsent > 0, "the kernel took it all");
        let events = server.journal.all();
        for number in 0..1 + READERS {
            let told = |event: &&Event| **event == Event::Note(stopped(number));
            assert_eq!(events.iter().filter(told).count(), 1, "{production:?} {number}");
            let stop = events.iter().position(|event| told(&event)).unwrap();
            let lost = |event: &Event| matches!(event, Event::Lost(lost, _) if *lost == number);
            assert!(events[stop..].iter().any(lost), "{production:?} {number} hears of the loss first");
        }
    }
}

/// Turns each bit around on its way out.
struct Turning;

impl Filter for Turning {
    fn sending(&mut self, data: &mut Vec<u8>) -> Result<(), BoxError> {
        data.iter_mut().for_each(|byte| *byte = !*byte);
        Ok(())
    }
}

fn turned(byte: u8) -> u8 {
    !byte
}

fn r4_no_byte_is_lost_behind_filters_and_throttles(setup: &Setup) {
    const RATE: u64 = 16_000_000;
    let throttle = || Throttle::new().write(RATE);
    let turning = || Policies::new().filter(|_| Turning);
    let kinds = [
        (turning(), turned as Change),
        (Policies::new().throttle(&throttle()), same),
        (Policies::new().throttle_each(&throttle()), same),
        (turning().throttle(&throttle()), turned),
    ];
    for round in 0..ROUNDS {
        for (policies, change) in &kinds {
            let short = round % 2 == 0;
            let (milliseconds, deaf) = if short { (5, 1) } else { (10_000, 0) };
            let streams = Streams::new(deaf + READERS, deaf);
            let server = streams.script().serve_behind(policies, draining(setup, milliseconds));
            let (deaf, readers) = dial(&server, deaf);
            let Drained { ends, unsent, .. } = drain(server, &streams, deaf, readers, *change);
            assert!(ends.iter().all(|end| *end == End::Fin), "{ends:?}");
            assert_eq!(unsent > 0, short, "{unsent} in {milliseconds} ms behind {policies:?}");
        }
    }
}

fn r4_no_byte_is_lost_over_unix_sockets(setup: &Setup) {
    for round in 0..2 * ROUNDS {
        let short = round % 2 == 0;
        let (milliseconds, deaf) = if short { (5, 1) } else { (10_000, 0) };
        let (folder, streams) = (Folder::new(), Streams::new(deaf + READERS, deaf));
        let (path, mut talkers) = (folder.file("stream"), Vec::new());
        let server = streams.script().serve_unix(&path, draining(setup, milliseconds));
        let dial = |number| {
            let peer = Peer::dial_unix(&path);
            server.journal.id(number);
            // Over TCP this would destroy what is on its way when the time is over.
            let mut writing = peer.share();
            talkers.push(thread::spawn(move || writing.write_until_broken(usize::MAX)));
            peer
        };
        let mut peers: Vec<_> = (0..deaf + READERS).map(dial).collect();
        let readers = peers.split_off(deaf);
        let Drained { server, unsent, .. } = drain(server, &streams, peers, readers, same);
        assert_eq!(unsent > 0, short, "{unsent} in {milliseconds} ms");
        assert_eq!(server.count(Count::BytesUnacknowledged), 0, "what was sent is the peer's");
        for talker in talkers {
            talker.join().unwrap();
        }
    }
}
