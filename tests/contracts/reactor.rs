//! The reactor itself: run and stop, calls from callbacks and threads (R1-R3, X1). Signals need a
//! process of their own.

use std::{
    sync::{Arc, Barrier, Mutex},
    thread,
    time::Duration,
};

use ringspun::{Count, Error, Phase, Reactor, ReactorHandle, StopHold, SystemEvent};

use crate::{
    kit::{Drops, Event, Gate, Journal, Running, Script, Tally, ignore, logged},
    peers::{Bound, Peer, assert_refused},
    setups::{Setup, on_every_backend},
};

on_every_backend!(
    r1_stop_before_run_and_twice_are_errors,
    r1_run_while_running_and_again_are_errors,
    r2_calls_when_running_keep_their_order,
    r2_a_failing_call_does_not_stop_the_others,
    r2_triggers_come_in_their_phases,
    r2_a_trigger_can_be_removed_until_it_was_called,
    r2_what_is_never_called_is_dropped,
    r2_a_held_stop_goes_on_serving,
    r3_stop_ends_everything,
    r3_stop_works_from_any_callback,
    x1_calls_from_threads_keep_their_order,
    x1_a_call_wakes_a_sleeping_loop,
    x1_no_call_is_missed_by_a_loop_that_falls_asleep,
    x1_calls_made_before_run_come_after_its_start,
    x1_many_wake_ups_neither_block_nor_get_lost,
);

fn r1_stop_before_run_and_twice_are_errors(setup: &Setup) {
    let reactor = setup.reactor();
    let error = reactor.stop().unwrap_err();
    assert!(matches!(error, Error::NotRunning), "{error:?}");
    assert!(error.to_string().contains("not running"), "{error}");
    let mut running = Running::start(reactor);
    assert!(running.reactor.is_running());
    running.call(|reactor| {
        reactor.stop().unwrap();
        assert!(matches!(reactor.stop(), Err(Error::NotRunning)));
    });
    running.wait().unwrap();
    assert!(!running.reactor.is_running());
    assert!(matches!(running.reactor.stop(), Err(Error::NotRunning)));
}

fn r1_run_while_running_and_again_are_errors(setup: &Setup) {
    let mut running = Running::start(setup.reactor());
    let error = running.reactor.run().unwrap_err();
    assert!(matches!(error, Error::AlreadyRunning), "{error:?}");
    assert!(error.to_string().contains("running"), "{error}");
    assert!(running.call(|reactor| matches!(reactor.run(), Err(Error::AlreadyRunning))));
    running.stop().unwrap();
    assert!(matches!(running.reactor.run(), Err(Error::AlreadyRunning)));
}

fn r2_calls_when_running_keep_their_order(setup: &Setup) {
    let reactor = setup.reactor();
    let order: Arc<Mutex<Vec<usize>>> = Arc::default();
    let push = |number: usize| {
        let order = Arc::clone(&order);
        move |reactor: &Reactor| {
            assert!(reactor.is_running());
            order.lock().unwrap().push(number);
        }
    };
    (0..100).for_each(|number| reactor.call_when_running(push(number)));
    let inner = push(200);
    let outer = push(100);
    reactor.call_when_running(move |reactor| {
        outer(reactor);
        reactor.call_when_running(inner);
    });
    (101..200).for_each(|number| reactor.call_when_running(push(number)));
    let running = Running::start(reactor);
    running.call(|_| ());
    assert_eq!(*order.lock().unwrap(), (0..=200).collect::<Vec<_>>());
}

fn r2_a_failing_call_does_not_stop_the_others(setup: &Setup) {
    let reactor = setup.reactor();
    let text = format!("r2 of {}.", setup.test);
    let tally = Tally::default();
    for number in 0..10 {
        let (text, tally) = (text.clone(), tally.clone());
        reactor.call_when_running(move |_| {
            tally.up();
            assert!(number != 3, "{text}");
        });
    }
    let running = Running::start(reactor);
    running.call(|_| ());
    assert_eq!(tally.get(), 10);
    assert_eq!(logged(&text), 1);
}

fn r2_triggers_come_in_their_phases(setup: &Setup) {
    const PHASES: [Phase; 3] = [Phase::After, Phase::During, Phase::Before];
    let reactor = setup.reactor();
    let script = Script::new();
    let journal = script.journal.clone();
    let text = format!("trigger of {}.", setup.test);
    reactor.listen_tcp(("127.0.0.1", 0), script).unwrap();
    for phase in PHASES {
        for event in [SystemEvent::Shutdown, SystemEvent::Startup] {
            for number in 0..3 {
                let (journal, text) = (journal.clone(), text.clone());
                reactor.add_system_event_trigger(phase, event, move |_| {
                    journal.note(format!("{phase:?} {event:?} {number}"));
                    assert!(number != 1, "{text}");
                });
            }
        }
    }
    let mut running = Running::start(reactor);
    running.stop().unwrap();
    let phase = |phase, event| (0..3).map(move |number| Event::Note(format!("{phase:?} {event:?} {number}")));
    let wanted: Vec<_> = phase(Phase::Before, SystemEvent::Startup)
        .chain(phase(Phase::During, SystemEvent::Startup))
        .chain([Event::Started])
        .chain(phase(Phase::After, SystemEvent::Startup))
        .chain(phase(Phase::Before, SystemEvent::Shutdown))
        .chain(phase(Phase::During, SystemEvent::Shutdown))
        .chain([Event::Stopped])
        .chain(phase(Phase::After, SystemEvent::Shutdown))
        .collect();
    assert_eq!(journal.all(), wanted);
    assert_eq!(logged(&text), 6);
}

fn r2_a_trigger_can_be_removed_until_it_was_called(setup: &Setup) {
    let mut running = Running::start(setup.reactor());
    let journal = Journal::default();
    let trigger = |phase| {
        let journal = journal.clone();
        let call = move |_: &Reactor| journal.note(format!("{phase:?}"));
        running.reactor.add_system_event_trigger(phase, SystemEvent::Shutdown, call)
    };
    let (kept, removed) = (trigger(Phase::Before), trigger(Phase::During));
    assert!(removed.remove());
    assert!(!removed.remove());
    running.stop().unwrap();
    assert!(!kept.remove());
    assert_eq!(journal.all(), [Event::Note("Before".to_owned())]);
}

fn r2_what_is_never_called_is_dropped(setup: &Setup) {
    let drops = Drops::default();
    let mut running = Running::start(setup.reactor());
    let trigger = |reactor: &ReactorHandle, phase, event| {
        // What it captures names the reactor, which would otherwise keep itself.
        let captured = (drops.guard(), reactor.clone());
        reactor.add_system_event_trigger(phase, event, move |_| drop(captured));
    };
    let too_late = running.reactor.clone();
    trigger(&too_late, Phase::Before, SystemEvent::Startup);
    trigger(&too_late, Phase::After, SystemEvent::Startup);
    running.stop().unwrap();
    drops.wait_for(0);
    trigger(&too_late, Phase::After, SystemEvent::Shutdown);
    assert_eq!(drops.alive(), 0);
}

fn r2_a_held_stop_goes_on_serving(setup: &Setup) {
    let mut server = Script::echo().serve(setup.reactor());
    let mut peer = server.dial_made(0);
    let held: Arc<Mutex<Option<StopHold>>> = Arc::default();
    let (place, journal) = (Arc::clone(&held), server.journal.clone());
    let hold = move |reactor: &Reactor| {
        *place.lock().unwrap() = Some(reactor.hold_stop());
        journal.note("held");
    };
    server.running.reactor.add_system_event_trigger(Phase::Before, SystemEvent::Shutdown, hold);
    server.running.reactor.stop().unwrap();
    server.journal.wait_note("held");
    assert!(!server.running.reactor.is_running());
    peer.ask(b"still", b"still");
    let mut late = server.dial_made(1);
    late.ask(b"also", b"also");
    // One that ends meanwhile ends for its own reason.
    drop(late);
    assert_eq!(server.journal.wait_lost(1), "Done");
    let waits = server.count(Count::Waits);
    thread::sleep(Duration::from_millis(50));
    // What is left of the connection that has ended takes a few; a loop that spins takes thousands.
    assert!(server.count(Count::Waits) <= waits + 20, "a held stop spins");
    held.lock().unwrap().take();
    server.running.wait().unwrap();
    assert_eq!(server.journal.wait_lost(0), "Lost(Shutdown)");
}

fn r3_stop_ends_everything(setup: &Setup) {
    let mut server = Script::echo().serve_at(setup.own_address(), setup.reactor());
    let reactor = server.running.reactor.clone();
    let client = Script::new();
    let client_journal = client.journal.clone();
    reactor.connect_tcp(server.address(), client);
    client_journal.wait_for(Event::Made(0));
    let mut peers: Vec<Peer> = (1..5).map(|number| server.dial_made(number)).collect();
    let deaf = Bound::new();
    let address = deaf.address;
    let _listener = deaf.listen(0);
    let _filler = std::net::TcpStream::connect(address).unwrap();
    let waiting = Script::new();
    let waiting_journal = waiting.journal.clone();
    reactor.connect_tcp(address, waiting);
    waiting_journal.wait_for(Event::Connecting);
    server.stop();
    // `run` has returned: all of this has happened.
    for number in 0..5 {
        assert!(server.journal.has(&Event::Lost(number, "Lost(Shutdown)".to_owned())), "{number}");
    }
    assert_eq!(server.journal.all().last(), Some(&Event::Stopped));
    let told = client_journal.all();
    assert!(told.contains(&Event::ClientLost("Lost(Shutdown)".to_owned())), "{told:?}");
    assert!(waiting_journal.has(&Event::Failed("Shutdown".to_owned())));
    assert!(waiting_journal.has(&Event::Stopped) && client_journal.has(&Event::Stopped));
    assert_refused(server.address());
    peers.iter_mut().for_each(|peer| drop(peer.read_to_end()));
    // What is asked of it now does nothing, or says so.
    reactor.call_from_thread(|_| panic!("it does not run"));
    assert!(reactor.stop().is_err());
    assert_eq!(reactor.stats().connections(), 0);
}

fn r3_stop_works_from_any_callback(setup: &Setup) {
    for place in 0..6 {
        let script = Script::new()
            .on_start(move |cx, _| {
                if place == 0 {
                    cx.reactor.stop().unwrap();
                }
            })
            .on_build(|_, _| true)
            .on_made(move |cx, _| match place {
                1 => cx.reactor.stop().unwrap(),
                2 => cx.transport.lose_connection(),
                3 => drop(cx.call_later(Duration::ZERO, |_, cx| cx.reactor.stop().unwrap())),
                _ => ignore(cx.transport.write(b"hello")),
            })
            .on_data(move |cx, _, _| match place {
                4 => cx.reactor.stop().unwrap(),
                _ => drop(cx.reactor.call_later(Duration::ZERO, |reactor| reactor.stop().unwrap())),
            })
            .on_lost(move |cx, _, _| {
                if place == 2 {
                    cx.reactor.stop().unwrap();
                }
            });
        let reactor = setup.reactor();
        let port = reactor.listen_tcp(("127.0.0.1", 0), script).unwrap();
        let address = port.get_host().socket_addr().unwrap();
        let mut running = Running::start_unsure(reactor);
        let peer = (place > 0).then(|| Peer::dial(address));
        if let Some(mut peer) = peer {
            if place > 3 {
                peer.write(b"x");
            }
            peer.read_to_end();
        }
        running.wait().unwrap();
    }
}

fn x1_calls_from_threads_keep_their_order(setup: &Setup) {
    const CALLS: usize = 1000;
    let running = Running::start(setup.reactor());
    let order: Arc<Mutex<Vec<(usize, usize)>>> = Arc::default();
    let callers: Vec<_> = (0..4)
        .map(|caller| {
            let (reactor, order) = (running.reactor.clone(), Arc::clone(&order));
            thread::spawn(move || {
                for call in 0..CALLS {
                    let order = Arc::clone(&order);
                    reactor.call_from_thread(move |_| order.lock().unwrap().push((caller, call)));
                }
            })
        })
        .collect();
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    running.call(|_| ());
    let order = order.lock().unwrap();
    for caller in 0..4 {
        let calls: Vec<usize> = order.iter().filter(|(by, _)| *by == caller).map(|(_, call)| *call).collect();
        assert_eq!(calls, (0..CALLS).collect::<Vec<_>>(), "of thread {caller}");
    }
}

fn x1_a_call_wakes_a_sleeping_loop(setup: &Setup) {
    let running = Running::start(setup.reactor());
    for _ in 0..20 {
        // Long enough for the loop to be asleep, with no timer that would wake it.
        thread::sleep(Duration::from_millis(2));
        running.call(|reactor| assert!(reactor.is_running()));
    }
    // A timer set from outside does as well.
    let gate = Gate::default();
    let opened = gate.clone();
    running.reactor.call_later(Duration::from_millis(1), move |_| opened.open());
    gate.pass();
}

/// All ask at once, and none again before all were answered: a call that the loop has missed stays missed, since nobody else wakes it.
fn x1_no_call_is_missed_by_a_loop_that_falls_asleep(setup: &Setup) {
    const ASKERS: usize = 3;
    const ROUNDS: usize = 5_000;
    let running = Running::start(setup.reactor());
    let together = Barrier::new(ASKERS);
    let asks = |asker: usize, handle: ReactorHandle| {
        for round in 0..ROUNDS {
            together.wait();
            let gate = Gate::default();
            let opened = gate.clone();
            if (asker + round).is_multiple_of(2) {
                handle.call_from_thread(move |_| opened.open());
            } else {
                handle.call_later(Duration::ZERO, move |_| opened.open());
            }
            gate.pass();
        }
    };
    thread::scope(|scope| {
        for asker in 0..ASKERS {
            let (asks, handle) = (&asks, running.reactor.clone());
            scope.spawn(move || asks(asker, handle));
        }
    });
}

fn x1_calls_made_before_run_come_after_its_start(setup: &Setup) {
    let reactor = setup.reactor();
    let journal = Journal::default();
    let (handle, early) = (reactor.handle(), journal.clone());
    thread::spawn(move || handle.call_from_thread(move |r| early.note(format!("{}", r.is_running()))))
        .join()
        .unwrap();
    assert_eq!(journal.all(), [], "not before run");
    let script = Script::new().journal(&journal);
    reactor.listen_tcp(("127.0.0.1", 0), script).unwrap();
    let running = Running::start(reactor);
    running.call(|_| ());
    assert_eq!(journal.all(), [Event::Note("true".to_owned()), Event::Started]);
}

fn x1_many_wake_ups_neither_block_nor_get_lost(setup: &Setup) {
    const CALLS: usize = 100_000;
    let server = Script::echo().serve(setup.reactor());
    let mut peer = server.dial();
    let tally = Tally::default();
    // The loop is held meanwhile, so that nothing takes the wake-ups away.
    let gate = Gate::default();
    let wait = gate.clone();
    server.running.reactor.call_from_thread(move |_| wait.pass());
    for _ in 0..CALLS / 2 {
        let tally = tally.clone();
        server.running.reactor.call_from_thread(move |_| ignore(tally.up()));
    }
    gate.open();
    for _ in 0..CALLS / 2 {
        let tally = tally.clone();
        server.running.reactor.call_from_thread(move |_| ignore(tally.up()));
    }
    peer.ask(b"still there?", b"still there?");
    server.running.call(|_| ());
    assert_eq!(tally.get(), CALLS);
}
