//! The life of a reactor in memory: from its first turn to its end.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use ringspun::{
    Backend, Cx, Error, Factory, FactoryCx, Peer, Phase, Protocol, Reactor, SystemEvent,
    testing::MemoryReactor,
};

use crate::{Journal, echoing, noting};

#[test]
fn m3_dropping_it_ends_everything() {
    let journal = Journal::default();
    let mut memory = MemoryReactor::new();
    for (event, phase) in [
        (SystemEvent::Startup, Phase::Before),
        (SystemEvent::Startup, Phase::After),
        (SystemEvent::Shutdown, Phase::Before),
        (SystemEvent::Shutdown, Phase::After),
    ] {
        let noted = journal.clone();
        memory
            .reactor()
            .add_system_event_trigger(phase, event, move |_| noted.note(format!("{event:?} {phase:?}")));
    }
    let port = memory.reactor().listen_tcp(("127.0.0.1", 0), echoing(&journal)).unwrap();
    assert!(matches!(memory.reactor().stop(), Err(Error::NotRunning)));
    memory.turn();
    assert_eq!(memory.reactor().backend().backend, Backend::Memory);
    assert!(matches!(memory.reactor().run(), Err(Error::AlreadyRunning)));
    let peer = memory.connect(&port).unwrap();
    memory.turn();
    drop(memory);
    assert_eq!(peer.end(), Some(ringspun::testing::End::Fin));
    let told = journal.take();
    assert_eq!(told[..4], ["Startup Before", "started", "Startup After", "made"]);
    assert_eq!(told[4..], ["Shutdown Before", "lost Lost(Shutdown)", "stopped", "Shutdown After"]);
    let error = Reactor::builder().backend(Backend::Memory).build().unwrap_err().to_string();
    assert!(error.contains("testing::MemoryReactor"), "{error}");
}

/// A factory that cannot start.
struct Broken;

struct Nobody;

impl Factory for Broken {
    type Protocol = Nobody;

    fn build_protocol(&mut self, _peer: &mut Peer<'_>) -> Option<Nobody> {
        None
    }

    fn start_factory(&mut self, _cx: &mut FactoryCx<'_, Self>) -> std::io::Result<()> {
        Err(std::io::Error::other("not today"))
    }
}

impl Protocol<Broken> for Nobody {
    fn data_received(&mut self, _cx: &mut Cx<'_, Broken>, _data: &[u8]) {}
}

#[test]
fn m3_a_stop_answers_what_run_would() {
    let mut memory = MemoryReactor::new();
    memory.reactor().listen_tcp(8000, Broken).unwrap();
    let error = memory.stop().unwrap_err().to_string();
    assert_eq!(error, "start_factory of Broken failed: not today");
    assert_eq!(memory.stop().unwrap_err().to_string(), error, "it has ended once");
    let mut idle = MemoryReactor::new();
    idle.stop().unwrap();
}

#[test]
#[should_panic(expected = "callbacks have panicked: [\"not this\"]")]
fn m3_a_panic_that_nobody_expects_fails_the_test() {
    let mut memory = MemoryReactor::new();
    memory.reactor().call_when_running(|_| panic!("not this"));
    memory.turn();
}

#[test]
fn m3_a_panic_that_is_expected_ends_what_it_ends() {
    let (mut memory, journal) = (MemoryReactor::new(), Journal::default());
    let factory = noting(&journal, |_, data| assert_eq!(data, b"good", "this is bad"));
    let port = memory.reactor().listen_tcp(("127.0.0.1", 0), factory).unwrap();
    let mut peers = [memory.connect(&port).unwrap(), memory.connect(&port).unwrap()];
    peers[0].send(b"good");
    peers[1].send(b"evil");
    memory.turn();
    let panics = memory.take_panics();
    assert!(panics.len() == 1 && panics[0].contains("this is bad"), "{panics:?}");
    assert_eq!((peers[0].end(), peers[1].end()), (None, Some(ringspun::testing::End::Reset)));
}

#[test]
fn m3_work_in_threads_is_waited_for() {
    let mut memory = MemoryReactor::new();
    let answers = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&answers);
    memory.reactor().call_in_thread(
        || std::thread::sleep(Duration::from_millis(30)),
        move |reactor, done| {
            kept.lock().unwrap().push(done.is_ok());
            let kept = Arc::clone(&kept);
            reactor.call_in_thread(|| (), move |_, done| kept.lock().unwrap().push(done.is_ok()));
        },
    );
    memory.turn();
    assert_eq!(*answers.lock().unwrap(), [true, true]);
}

#[test]
fn m3_other_threads_reach_it_too() {
    let mut memory = MemoryReactor::new();
    let (tell, told) = mpsc::channel();
    let handle = memory.reactor().handle();
    std::thread::spawn(move || handle.call_from_thread(move |_| tell.send(1).unwrap())).join().unwrap();
    memory.turn();
    assert_eq!(told.try_recv(), Ok(1));
}

fn for_ever(reactor: &Reactor) {
    reactor.call_later(Duration::ZERO, for_ever);
}

#[test]
#[should_panic(expected = "the reactor does not come to rest")]
fn m3_what_never_rests_is_found_out() {
    let mut memory = MemoryReactor::new();
    for_ever(memory.reactor());
    memory.step();
    memory.turn();
}

#[test]
#[should_panic(expected = "somebody holds the stop")]
fn m3_a_stop_that_is_held_is_found_out() {
    let mut memory = MemoryReactor::new();
    memory.turn();
    let _hold = memory.reactor().hold_stop();
    let _ = memory.stop();
}
