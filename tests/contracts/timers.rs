//! Time: what is called when, and what becomes of a call that fails or is bound (T1, T2).

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use ringspun::{DelayedCall, DelayedCallError, FactoryCx, Reactor};

use crate::{
    kit::{Drops, Event, Gate, Journal, Running, Script, Tally, ignore, logged},
    setups::{Setup, on_every_backend},
};

on_every_backend!(
    t1_no_call_is_early_and_all_come_by_deadline,
    t1_equal_delays_come_first_in_first_out,
    t1_a_delay_of_zero_means_the_next_turn,
    t1_zero_delays_without_end_do_not_starve_io,
    t1_cancel_reset_delay_and_active,
    t1_changing_a_dead_call_is_an_error_value,
    t1_pending_calls_are_those_that_are_still_to_come,
    t1_a_connections_call_that_comes_due_in_its_callback_can_be_changed_there,
    t1_a_factorys_call_that_comes_due_in_a_callback_that_has_it_can_be_changed_there,
    t1_a_call_can_cancel_another_that_is_due_with_it,
    t2_a_failing_call_is_logged_and_the_others_go_on,
    t2_a_million_calls_at_one_instant_do_not_starve_io,
    t2_a_bound_timer_dies_with_its_connection,
);

const HOUR: Duration = Duration::from_secs(3600);
const MS: Duration = Duration::from_millis(1);

/// What was called, by name, and when.
type Calls = Arc<Mutex<Vec<(u32, Instant)>>>;

fn note(calls: &Calls, name: u32) -> impl FnOnce(&Reactor) + Send + 'static {
    let calls = Arc::clone(calls);
    move |_| calls.lock().unwrap().push((name, Instant::now()))
}

fn names(calls: &Calls) -> Vec<u32> {
    calls.lock().unwrap().iter().map(|(name, _)| *name).collect()
}

/// Waits until everything that is due before `delay` from now has been called.
fn pass_time(running: &Running, delay: Duration) {
    let gate = Gate::default();
    let opened = gate.clone();
    running.reactor.call_later(delay, move |_| opened.open());
    gate.pass();
}

fn t1_no_call_is_early_and_all_come_by_deadline(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let calls = Calls::default();
    // Between which two moments each deadline lies: the clock runs on while a call is scheduled.
    let mut deadlines = vec![];
    for (name, micros) in [(0, 30_000), (1, 3_000), (2, 45_000), (3, 0), (4, 11_000), (5, 3_300), (6, 3_600)]
    {
        let delay = Duration::from_micros(micros);
        let earliest = Instant::now() + delay;
        running.reactor.call_later(delay, note(&calls, name));
        deadlines.push((earliest, Instant::now() + delay));
    }
    running.reactor.call_later(Duration::MAX, |_| panic!("the end of time"));
    pass_time(&running, 50 * MS);
    let calls = calls.lock().unwrap();
    assert_eq!(calls.len(), deadlines.len());
    for (place, (name, when)) in calls.iter().enumerate() {
        let (earliest, latest) = deadlines[*name as usize];
        assert!(*when >= earliest, "{name} was {:?} early", earliest - *when);
        for (earlier, _) in &calls[..place] {
            assert!(deadlines[*earlier as usize].0 <= latest, "{earlier} came before {name}");
        }
    }
}

fn t1_equal_delays_come_first_in_first_out(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let calls = Calls::default();
    let together = Arc::clone(&calls);
    running.call(move |reactor| {
        (0..200).for_each(|name| drop(reactor.call_later(100 * MS, note(&together, name))));
        (200..400).for_each(|name| drop(reactor.call_later(Duration::ZERO, note(&together, name))));
    });
    pass_time(&running, 105 * MS);
    assert_eq!(names(&calls), (200..400).chain(0..200).collect::<Vec<_>>());
}

fn t1_a_delay_of_zero_means_the_next_turn(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let calls = Calls::default();
    let outer = Arc::clone(&calls);
    running.call(move |reactor| {
        let inner = Arc::clone(&outer);
        // Both are due in one turn; what the first asks for comes in the turn after.
        reactor.call_later(Duration::ZERO, move |reactor| {
            note(&inner, 1)(reactor);
            reactor.call_later(Duration::ZERO, note(&inner, 3));
            note(&inner, 1)(reactor);
        });
        reactor.call_later(Duration::ZERO, note(&outer, 2));
    });
    pass_time(&running, 5 * MS);
    assert_eq!(names(&calls), [1, 1, 2, 3]);
}

fn t1_zero_delays_without_end_do_not_starve_io(setup: &Setup) {
    fn again(reactor: &Reactor, turns: Tally) {
        turns.up();
        reactor.call_later(Duration::ZERO, move |reactor| again(reactor, turns));
    }
    let server = Script::echo().serve(setup.reactor());
    let turns = Tally::default();
    again(&server.running.reactor, turns.clone());
    let mut peer = server.dial();
    for _ in 0..20 {
        peer.ask(b"and I?", b"and I?");
    }
    server.running.call(|_| ());
    assert!(turns.get() > 1);
}

fn t1_cancel_reset_delay_and_active(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let calls = Calls::default();
    let kept = Arc::clone(&calls);
    // In one callback, so that nothing is due before all is said.
    let start = running.call(move |reactor| {
        let cancelled = reactor.call_later(MS, note(&kept, 0));
        let sooner = reactor.call_later(HOUR, note(&kept, 1));
        let later = reactor.call_later(MS, note(&kept, 2));
        let delayed = reactor.call_later(30 * MS, note(&kept, 3));
        let left = reactor.call_later(30 * MS, note(&kept, 4));
        assert!([&cancelled, &sooner, &later, &delayed, &left].iter().all(|call| call.active()));
        cancelled.cancel().unwrap();
        assert!(!cancelled.active());
        let start = Instant::now();
        sooner.reset(MS).unwrap();
        later.reset(150 * MS).unwrap();
        delayed.delay(60 * MS).unwrap();
        assert!([&sooner, &later, &delayed, &left].iter().all(|call| call.active()));
        start
    });
    pass_time(&running, 170 * MS);
    assert_eq!(names(&calls), [1, 4, 3, 2]);
    let when =
        |name: u32| calls.lock().unwrap().iter().find(|(called, _)| *called == name).unwrap().1 - start;
    assert!(when(2) >= 150 * MS, "reset counts from the moment it is called: {:?}", when(2));
    let reactor = &running.reactor;
    let dropped = Tally::default();
    let count = dropped.clone();
    drop::<DelayedCall>(reactor.call_later(MS, move |_| ignore(count.up())));
    pass_time(&running, 2 * MS);
    assert_eq!(dropped.get(), 1, "dropping the handle leaves the call alone");
}

fn t1_changing_a_dead_call_is_an_error_value(setup: &Setup) {
    let mut running = Running::start(setup.reactor());
    let called = running.reactor.call_later(Duration::ZERO, |_| ());
    let cancelled = running.reactor.call_later(HOUR, |_| ());
    let left_over = running.reactor.call_later(HOUR, |_| ());
    cancelled.cancel().unwrap();
    pass_time(&running, MS);
    let dead = [(&called, DelayedCallError::AlreadyCalled), (&cancelled, DelayedCallError::AlreadyCancelled)];
    for (call, error) in dead {
        assert_eq!(call.cancel(), Err(error));
        assert_eq!(call.reset(MS), Err(error));
        assert_eq!(call.delay(MS), Err(error));
        assert!(!call.active());
        assert!(!error.to_string().is_empty());
    }
    // A call inside of itself is no longer to come.
    let own: Arc<Mutex<Option<DelayedCall>>> = Arc::default();
    let (place, gate) = (Arc::clone(&own), Gate::default());
    let opened = gate.clone();
    *own.lock().unwrap() = Some(running.reactor.call_later(5 * MS, move |_| {
        let own = place.lock().unwrap().take().unwrap();
        assert!(!own.active());
        assert_eq!(own.cancel(), Err(DelayedCallError::AlreadyCalled));
        opened.open();
    }));
    gate.pass();
    running.stop().unwrap();
    assert!(!left_over.active() && left_over.cancel().is_err());
}

/// Inside a callback: lets all that is due by now come due. On a loop nothing does before its end.
fn let_come_due(reactor: &Reactor, threads: bool) {
    if threads {
        let gate = Gate::default();
        let opened = gate.clone();
        reactor.call_later(Duration::ZERO, move |_| opened.open());
        gate.pass();
    }
}

/// What a callback can do with a call that is due. The last two let it come.
const CHANGES: [&str; 5] = ["cancel", "reset", "delay", "reset to now", "leave"];

/// Does that, and says what came of it.
fn change(call: &DelayedCall, change: &str) -> String {
    let before = call.active();
    let answer = match change {
        "cancel" => call.cancel(),
        "reset" => call.reset(HOUR),
        "delay" => call.delay(HOUR),
        "reset to now" => call.reset(Duration::ZERO),
        _ => Ok(()),
    };
    format!("{change}: {before} {answer:?} {}", call.active())
}

/// Waits until those have been called that were to be, and sees to it that no other was.
fn expect_changed(journal: &Journal) {
    ["reset to now", "leave"].iter().for_each(|change| journal.wait_note(&format!("{change} was called")));
    for change in CHANGES {
        let active = change != "cancel";
        assert!(journal.has(&Event::Note(format!("{change}: true Ok(()) {active}"))), "{:?}", journal.all());
        let calls = journal.count(|event| *event == Event::Note(format!("{change} was called")));
        assert_eq!(calls, usize::from(["reset to now", "leave"].contains(&change)), "{change}");
    }
}

fn t1_pending_calls_are_those_that_are_still_to_come(setup: &Setup) {
    let drops = Drops::default();
    let guards = drops.clone();
    let script = Script::new()
        .on_made(move |cx, conn| {
            let guard = guards.guard();
            cx.call_later(HOUR, |_, _| drop(guard));
            conn.note("asked for a call");
        })
        .on_data(|cx, _, _| cx.transport.lose_connection());
    let server = script.serve(setup.reactor());
    let reactor = &server.running.reactor;
    assert_eq!(reactor.pending_calls(), 0);
    let call = reactor.call_later(HOUR, |_| ());
    let mut peer = server.dial();
    server.journal.wait_note("asked for a call");
    assert_eq!(reactor.pending_calls(), 2);
    call.cancel().unwrap();
    assert_eq!(reactor.pending_calls(), 1);
    peer.write(b"x");
    peer.expect_fin();
    drop(peer);
    // It goes with the connection, on threads a moment after the loss was told.
    drops.wait_for(0);
    assert_eq!(reactor.pending_calls(), 0);
    let made = Gate::default();
    let opened = made.clone();
    reactor.call_later(MS, move |_| opened.open());
    made.pass();
    assert_eq!(reactor.pending_calls(), 0);
}

fn t1_a_connections_call_that_comes_due_in_its_callback_can_be_changed_there(setup: &Setup) {
    let threads = setup.is_threads();
    let script = Script::new().on_data(move |cx, conn, _| {
        let calls = CHANGES.map(|change| {
            cx.call_later(Duration::ZERO, move |recorder, _| {
                recorder.conn.note(format!("{change} was called"))
            })
        });
        let_come_due(cx.reactor, threads);
        CHANGES.iter().zip(&calls).for_each(|(way, call)| conn.note(change(call, way)));
    });
    let server = script.serve(setup.reactor());
    let mut peer = server.dial_made(0);
    peer.write(b"x");
    expect_changed(&server.journal);
}

fn t1_a_factorys_call_that_comes_due_in_a_callback_that_has_it_can_be_changed_there(setup: &Setup) {
    let threads = setup.is_threads();
    let calls: Arc<Mutex<Vec<DelayedCall>>> = Arc::default();
    let scheduled = Arc::clone(&calls);
    let script = Script::new()
        .on_start(move |cx, _| {
            let note = |change| {
                move |factory: &mut Script, _: &mut FactoryCx<'_, _>| {
                    factory.journal.note(format!("{change} was called"))
                }
            };
            scheduled.lock().unwrap().extend(CHANGES.map(|change| cx.call_later(HOUR, note(change))));
        })
        .on_data(move |cx, conn, _| {
            // From here on the factory is this callback's.
            cx.factory.counter += 1;
            let calls = calls.lock().unwrap();
            calls.iter().for_each(|call| call.reset(Duration::ZERO).unwrap());
            let_come_due(cx.reactor, threads);
            CHANGES.iter().zip(&*calls).for_each(|(way, call)| conn.note(change(call, way)));
        });
    let server = script.serve(setup.reactor());
    let mut peer = server.dial_made(0);
    peer.write(b"x");
    expect_changed(&server.journal);
}

fn t1_a_call_can_cancel_another_that_is_due_with_it(setup: &Setup) {
    let threads = setup.is_threads();
    let script = Script::new().on_data(move |cx, _, _| {
        let other: Arc<Mutex<Option<DelayedCall>>> = Arc::default();
        let place = Arc::clone(&other);
        cx.call_later(Duration::ZERO, move |recorder, _| {
            recorder.conn.note(change(other.lock().unwrap().as_ref().unwrap(), "cancel"));
        });
        let cancelled = cx.call_later(Duration::ZERO, |recorder, _| recorder.conn.note("cancel was called"));
        *place.lock().unwrap() = Some(cancelled);
        cx.call_later(Duration::ZERO, |recorder, _| recorder.conn.note("the third was called"));
        let_come_due(cx.reactor, threads);
    });
    let server = script.serve(setup.reactor());
    let mut peer = server.dial_made(0);
    peer.write(b"x");
    server.journal.wait_note("the third was called");
    assert!(
        server.journal.has(&Event::Note("cancel: true Ok(()) false".to_owned())),
        "{:?}",
        server.journal.all()
    );
    assert!(!server.journal.has(&Event::Note("cancel was called".to_owned())));
}

fn t2_a_failing_call_is_logged_and_the_others_go_on(setup: &Setup) {
    let text = format!("t2 of {}", setup.test);
    let server = Script::echo()
        .on_start({
            let text = text.clone();
            move |cx, _| {
                let text = text.clone();
                cx.call_later(Duration::ZERO, move |factory, _| {
                    factory.journal.note("fails");
                    panic!("{text} in a factory");
                });
                cx.call_later(MS, |factory, _| factory.journal.note("goes on"));
            }
        })
        .serve(setup.reactor());
    server.journal.wait_note("goes on");
    assert!(server.journal.has(&Event::Note("fails".to_owned())));
    let calls = Calls::default();
    let error = text.clone();
    server.running.reactor.call_later(Duration::ZERO, note(&calls, 1));
    server.running.reactor.call_later(Duration::ZERO, move |_| panic!("{error} in the reactor"));
    server.running.reactor.call_later(Duration::ZERO, note(&calls, 2));
    pass_time(&server.running, MS);
    assert_eq!(names(&calls), [1, 2]);
    server.dial().ask(b"alive?", b"alive?");
    assert_eq!(logged(&format!("{text} in a factory")), 1);
    assert_eq!(logged(&format!("{text} in the reactor")), 1);
}

fn t2_a_million_calls_at_one_instant_do_not_starve_io(setup: &Setup) {
    const CALLS: usize = 1_000_000;
    let reactor = setup.reactor();
    let called = Tally::default();
    for _ in 0..CALLS {
        let called = called.clone();
        reactor.call_later(Duration::ZERO, move |_| ignore(called.up()));
    }
    let server = Script::echo().serve(reactor);
    let mut peer = server.dial();
    for _ in 0..3 {
        peer.ask(b"and I?", b"and I?");
    }
    let meanwhile = called.get();
    assert!(meanwhile < CALLS, "all calls came before any data");
    pass_time(&server.running, Duration::ZERO);
    assert_eq!(called.get(), CALLS);
}

fn t2_a_bound_timer_dies_with_its_connection(setup: &Setup) {
    let drops = Drops::default();
    let guards = drops.clone();
    let script = Script::new()
        .on_made(move |cx, conn| {
            let guard = guards.guard();
            cx.call_later(150 * MS, move |recorder, _| {
                recorder.conn.note(format!("bound {}", recorder.conn.number));
                drop(guard);
            });
            conn.note("bound it");
        })
        .on_data(|cx, _, _| cx.transport.lose_connection())
        .on_lost(|cx, _, _| {
            cx.call_later(Duration::ZERO, |recorder, _| recorder.conn.note("bound too late"));
        });
    let server = script.serve(setup.reactor());
    let mut gone = server.dial_made(0);
    gone.write(b"x");
    gone.expect_fin();
    drop(gone);
    server.journal.wait_lost(0);
    drops.wait_for(0);
    let stays = server.dial_made(1);
    server.journal.wait_note("bound 1");
    pass_time(&server.running, 10 * MS);
    assert!(!server.journal.has(&Event::Note("bound 0".to_owned())));
    assert!(!server.journal.has(&Event::Note("bound too late".to_owned())));
    drop(stays);
}
