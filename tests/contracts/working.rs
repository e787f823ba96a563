//! Work that blocks, in threads (X2).

use std::{
    sync::{Arc, Mutex},
    thread,
};

use ringspun::ThreadError;

use crate::{
    kit::{Drops, Event, Gate, Journal, Running, Script, Tally},
    setups::{Setup, on_every_backend},
};

on_every_backend!(
    x2_work_is_done_elsewhere_and_answered_on_the_reactors_thread,
    x2_no_more_threads_work_than_allowed,
    x2_a_panic_in_work_is_an_answer,
    x2_a_protocol_gets_itself_back_while_its_connection_lives,
    x2_a_factory_gets_itself_back,
    x2_work_asked_for_before_run_waits_for_it,
    x2_run_waits_for_work_that_was_begun_and_for_no_other,
);

fn x2_work_is_done_elsewhere_and_answered_on_the_reactors_thread(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let here = running.call(|_| thread::current().id());
    let (done, gate) = (Gate::default(), Gate::default());
    let (open, wait) = (done.clone(), gate.clone());
    running.reactor.call_in_thread(
        move || {
            wait.pass();
            thread::current().id()
        },
        move |_, there| {
            assert_eq!(thread::current().id(), here);
            assert_ne!(there.unwrap(), here);
            open.open();
        },
    );
    // It holds up nobody.
    running.call(|_| ());
    gate.open();
    done.pass();
}

fn x2_no_more_threads_work_than_allowed(setup: &Setup) {
    const WORK: usize = 12;
    for (allowed, builder) in [(10, setup.builder()), (3, setup.builder().thread_pool_size(3))] {
        let running = Running::start(setup.build(builder));
        let (journal, gate, answered) = (Journal::default(), Gate::default(), Journal::default());
        for _ in 0..WORK {
            let (begun, wait, answered) = (journal.clone(), gate.clone(), answered.clone());
            let work = move || {
                begun.note("begun");
                wait.pass();
                begun.note("ended");
            };
            running.reactor.call_in_thread(work, move |_, _| answered.note("answered"));
        }
        journal.wait("all that may begin", |events| events.len() == allowed);
        gate.open();
        answered.wait("all answers", |events| events.len() == WORK);
        let begun = Event::Note("begun".to_owned());
        let mut at_once = 0_usize;
        for event in journal.all() {
            at_once = if event == begun { at_once + 1 } else { at_once - 1 };
            assert!(at_once <= allowed, "{at_once} at once");
        }
    }
}

fn x2_a_panic_in_work_is_an_answer(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let (told, done) = (Arc::new(Mutex::new(String::new())), Gate::default());
    let (text, open) = (Arc::clone(&told), done.clone());
    let panics = || -> u8 { panic!("on purpose") };
    running.reactor.call_in_thread(panics, move |_, result| {
        assert!(matches!(result, Err(ThreadError::Panicked(_))));
        *text.lock().unwrap() = result.unwrap_err().to_string();
        open.open();
    });
    done.pass();
    assert!(told.lock().unwrap().ends_with("panicked: on purpose"), "{told:?}");
}

fn x2_a_protocol_gets_itself_back_while_its_connection_lives(setup: &Setup) {
    let gate = Gate::default();
    let wait = gate.clone();
    let drops = Drops::default();
    let script = Script::new().counting(&drops).on_data(move |cx, conn, data| {
        let (wait, data, guard) = (wait.clone(), data.to_vec(), conn.guard());
        let work = move || {
            wait.pass();
            data.iter().rev().copied().collect::<Vec<_>>()
        };
        cx.call_in_thread(work, move |me, cx, reversed| {
            drop(guard);
            me.conn.note("answered");
            let _ = cx.transport.write(&reversed.unwrap());
        });
    });
    let server = script.serve(setup.reactor());
    let (mut gone, mut peer) = (server.dial_made(0), server.dial_made(1));
    gone.write(b"gone");
    peer.write(b"here");
    server.journal.wait_bytes(0, 4);
    server.journal.wait_bytes(1, 4);
    gone.reset();
    server.journal.wait_lost(0);
    gate.open();
    assert_eq!(peer.read_exactly(4), b"ereh");
    // The factory, and one protocol: nothing that the other's work has captured.
    drops.wait_for(2);
    assert_eq!(server.journal.count(|event| *event == Event::Note("answered".to_owned())), 1);
}

fn x2_a_factory_gets_itself_back(setup: &Setup) {
    let script = Script::new().on_start(|cx, journal| {
        let journal = journal.clone();
        cx.call_in_thread(
            || 42,
            move |factory, cx, answer| {
                factory.counter += answer.unwrap();
                journal.note(format!("{} and {} connections", factory.counter, cx.connections.count()));
            },
        );
    });
    let server = script.serve(setup.reactor());
    server.journal.wait_note("42 and 0 connections");
}

fn x2_work_asked_for_before_run_waits_for_it(setup: &Setup) {
    let reactor = setup.reactor();
    let journal = Journal::default();
    let (handle, early) = (reactor.handle(), journal.clone());
    let answered = journal.clone();
    reactor.call_in_thread(
        move || early.note(format!("running: {}", handle.is_running())),
        move |_, _| answered.note("answered"),
    );
    let _running = Running::start(reactor);
    journal.wait_note("answered");
    assert!(journal.has(&Event::Note("running: true".to_owned())));
}

fn x2_run_waits_for_work_that_was_begun_and_for_no_other(setup: &Setup) {
    let mut running = Running::start(setup.build(setup.builder().thread_pool_size(1)));
    let (begun, stopping, drops) = (Gate::default(), Gate::default(), Drops::default());
    let (tell, wait, ended) = (begun.clone(), stopping.clone(), Tally::default());
    let count = ended.clone();
    let guard = drops.guard();
    running.reactor.call_in_thread(
        move || {
            tell.open();
            wait.pass();
            count.up();
        },
        move |_, _| {
            drop(guard);
            unreachable!("the reactor has stopped");
        },
    );
    begun.pass();
    let guard = drops.guard();
    running.reactor.call_in_thread(move || drop(guard), |_, _| unreachable!("the reactor has stopped"));
    running.reactor.stop().unwrap();
    // Dropped without having been begun, while `run` waits for the other.
    drops.wait_for(1);
    assert_eq!(ended.get(), 0);
    stopping.open();
    running.wait().unwrap();
    assert_eq!(ended.get(), 1);
    assert_eq!(drops.alive(), 0, "an answer outlives the reactor");
    // What comes too late is dropped at once.
    let guard = drops.guard();
    running.reactor.call_in_thread(move || drop(guard), |_, _| unreachable!("the reactor has stopped"));
    assert_eq!(drops.alive(), 0);
}
