//! Time as the test lets it pass.

use std::time::Duration;

use ringspun::{
    Reactor,
    testing::{Answer, End, MemoryReactor},
};

use crate::{Journal, echoing, noting};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn m2_time_stands_still_until_it_is_advanced() {
    let (mut memory, journal) = (MemoryReactor::new(), Journal::default());
    let (start, noted) = (memory.now(), journal.clone());
    memory.reactor().call_later(3 * SECOND, move |_| noted.note("called"));
    assert_eq!(memory.pending_calls(), 1);
    std::thread::sleep(Duration::from_millis(1));
    memory.turn();
    assert_eq!(memory.now(), start);
    memory.advance(3 * SECOND - Duration::from_nanos(1));
    assert_eq!((journal.take().len(), memory.pending_calls()), (0, 1), "never early");
    memory.advance(Duration::from_nanos(1));
    assert_eq!((journal.take().len(), memory.pending_calls()), (1, 0));
    assert_eq!(memory.now(), start + 3 * SECOND);
}

/// Schedules itself anew each second, and notes when it was called.
fn tick(reactor: &Reactor, start: std::time::Instant, journal: Journal) {
    reactor.call_later(SECOND, move |reactor| {
        journal.note(format!("{:?}", reactor.now() - start));
        tick(reactor, start, journal);
    });
}

#[test]
fn m2_each_call_is_made_at_its_own_moment_on_the_way() {
    let (mut memory, journal) = (MemoryReactor::new(), Journal::default());
    tick(memory.reactor(), memory.now(), journal.clone());
    memory.advance(4 * SECOND + SECOND / 2);
    assert_eq!(journal.take(), ["1s", "2s", "3s", "4s"]);
    memory.advance(SECOND / 2);
    assert_eq!(journal.take(), ["5s"]);
    assert_eq!(memory.pending_calls(), 1);
    // A week of sleeps that are cut at an hour.
    let noted = journal.clone();
    let far = memory.reactor().call_later(7 * 24 * 3600 * SECOND, move |_| noted.note("a week"));
    memory.advance(SECOND);
    far.reset(7200 * SECOND).unwrap();
    memory.advance(7199 * SECOND);
    assert_eq!(journal.take().len(), 7200);
    memory.advance(SECOND);
    assert!(journal.take().contains(&"a week".to_owned()));
}

#[test]
fn m2_deadlines_of_connections_pass_by_the_same_clock() {
    let (mut memory, journal) = (MemoryReactor::new(), Journal::default());
    let factory = noting(&journal, |cx, _| {
        cx.transport.write(&[0; 100_000]);
        cx.transport.lose_connection();
    });
    let port = memory.reactor().listen_tcp(("127.0.0.1", 0), factory).unwrap();
    let mut deaf = memory.connect(&port).unwrap();
    deaf.pause();
    deaf.send(b"go");
    memory.turn();
    assert_eq!(memory.pending_calls(), 1, "the time-out of the close");
    memory.advance(59 * SECOND);
    assert_eq!((deaf.end(), journal.take().len()), (None, 4));
    memory.advance(SECOND);
    assert_eq!((deaf.end(), journal.take()), (Some(End::Reset), vec!["lost TimedOut(Close)".to_owned()]));
    assert_eq!(memory.pending_calls(), 0);
}

#[test]
fn m2_an_attempt_without_an_answer_ends_after_its_time() {
    let (mut memory, journal) = (MemoryReactor::new(), Journal::default());
    let address: std::net::SocketAddr = "10.9.9.9:9".parse().unwrap();
    memory.answer(address, Answer::Silence);
    assert!(memory.connect(address).is_err(), "a test does not wait");
    memory.reactor().connect_tcp(address, echoing(&journal));
    memory.advance(29 * SECOND);
    assert_eq!((journal.take(), memory.pending_calls()), (vec!["started".to_owned()], 1));
    memory.advance(SECOND);
    assert_eq!(journal.take(), ["failed TimedOut", "stopped"]);
    assert_eq!(memory.pending_calls(), 0);
}

#[test]
fn m2_a_stop_that_drains_takes_as_long_as_it_may() {
    let journal = Journal::default();
    let mut memory = MemoryReactor::build(Reactor::builder().drain_timeout(10 * SECOND)).unwrap();
    let start = memory.now();
    let factory = noting(&journal, |cx, _| {
        let _ = cx.transport.write(&[0; 100_000]);
    });
    let port = memory.reactor().listen_tcp(("127.0.0.1", 0), factory).unwrap();
    let mut deaf = memory.connect(&port).unwrap();
    deaf.pause();
    deaf.send(b"go");
    memory.stop().unwrap();
    assert_eq!(memory.now() - start, 10 * SECOND);
    assert_eq!(journal.take()[4..], ["stopped", "lost Lost(Shutdown)"], "the port closes at once");
}
