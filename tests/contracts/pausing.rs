//! Pausing and sending at awkward moments: from another connection, in a timed call, little by little,
//! when the kernel takes only a part (C5, C12, C13).

use std::{
    io::Write as _,
    thread,
    time::{Duration, Instant},
};

use ringspun::Count;

use crate::{
    kit::{Event, Gate, Script, Server, ignore},
    peers::{End, assert_same, pattern},
    setups::{Setup, on_every_backend, shared},
};

on_every_backend!(
    c5_what_the_kernel_takes_in_part_goes_on_where_it_stopped,
    c12_a_pause_in_a_posted_call_holds_what_came_meanwhile,
    c12_a_resume_in_the_turn_of_the_pause_is_not_forgotten,
    c12_what_comes_little_by_little_is_bounded_too,
    c12_nobody_waits_behind_those_that_are_paused,
    c12_what_is_given_back_comes_first_again,
    c12_what_is_given_back_without_a_pause_comes_with_what_arrives_next,
    c13_an_end_while_paused_from_elsewhere_waits_for_the_resume,
);

fn data_of(server: &Server, conn: usize) -> usize {
    server.journal.count(|event| matches!(event, Event::Data(number, _) if *number == conn))
}

fn c5_what_the_kernel_takes_in_part_goes_on_where_it_stopped(setup: &Setup) {
    let bytes = pattern(51, 8 << 20);
    let source = bytes.clone();
    let script = Script::new().on_made(move |cx, conn| {
        for (number, piece) in source.chunks(60_000).enumerate() {
            // The first connection writes plain bytes only, the second one shared ones between them.
            ignore(match number % 2 * conn.number {
                0 => cx.transport.write(piece),
                _ => cx.transport.write_shared(&shared(piece)),
            });
        }
    });
    let server = script.serve(setup.reactor());
    for number in 0..2 {
        let mut peer = server.dial_made(number);
        server.journal.id(number);
        server.let_it_turn();
        // Nobody has read yet: it is more than the kernel takes at once.
        assert!(server.act_on(number, |transport| transport.unsent()) > 0, "the kernel took it all");
        server.act_on(number, |transport| transport.lose_connection());
        let (got, end) = peer.read_to_end();
        assert_same(&got, &bytes);
        assert_eq!(end, End::Fin);
    }
}

fn c12_a_pause_in_a_posted_call_holds_what_came_meanwhile(setup: &Setup) {
    let (inside, more_came) = (Gate::default(), Gate::default());
    let (tell, wait) = (inside.clone(), more_came.clone());
    let script = Script::new().on_data(move |cx, conn, _| {
        if conn.number == 1 {
            let (tell, wait) = (tell.clone(), wait.clone());
            cx.post(conn.journal.id(0), move |me, cx| {
                tell.open();
                wait.pass();
                cx.transport.pause_producing();
                me.conn.note("paused");
            });
        }
    });
    let server = script.serve(setup.reactor());
    server.let_it_turn();
    let (mut held_up, mut other) = (server.dial_made(0), server.dial_made(1));
    server.journal.id(0);
    other.write(b"x");
    inside.pass();
    let before = server.count(Count::BytesReceived);
    held_up.write(b"meanwhile");
    if setup.is_threads() {
        // Its own thread has the bytes, and has had the time to do something with them.
        let until = Instant::now() + Duration::from_secs(1);
        while server.count(Count::BytesReceived) < before + 9 && Instant::now() < until {
            thread::yield_now();
        }
        server.let_it_turn();
    } else {
        thread::sleep(Duration::from_millis(20));
    }
    more_came.open();
    server.journal.wait_note("paused");
    server.let_it_turn();
    assert_eq!(data_of(&server, 0), 0, "delivered while paused");
    server.act_on(0, |transport| transport.resume_producing());
    assert_eq!(server.journal.wait_bytes(0, 9), b"meanwhile");
    held_up.write(b" and after");
    assert_eq!(server.journal.wait_bytes(0, 19), b"meanwhile and after");
}

fn c12_a_resume_in_the_turn_of_the_pause_is_not_forgotten(setup: &Setup) {
    const ROUNDS: usize = 20;
    const MUCH: usize = 200_000;
    // The pause has gone to the kernel, and its answer is not there yet, when `pause_writing` of the
    // other connection resumes.
    let script = Script::new()
        .on_data(|cx, conn, _| {
            if conn.number == 1 {
                cx.transport.to(conn.journal.id(0)).pause_producing();
                let _ = cx.transport.write(&[0; MUCH]);
            }
        })
        .on_pause(|cx, conn| cx.transport.to(conn.journal.id(0)).resume_producing());
    let server = script.serve(setup.reactor());
    let (mut paused, mut other) = (server.dial_made(0), server.dial_made(1));
    server.journal.id(0);
    let bytes = pattern(124, ROUNDS * 10);
    for (round, piece) in bytes.chunks(10).enumerate() {
        other.ask(b"x", &[0; MUCH]);
        // Before that, another write would cross no mark.
        server.journal.wait("the mark", |events| {
            events.iter().filter(|event| **event == Event::ResumeWriting(1)).count() == round + 1
        });
        paused.write(piece);
        assert_same(&server.journal.wait_bytes(0, (round + 1) * 10), &bytes[..(round + 1) * 10]);
    }
}

fn c12_what_comes_little_by_little_is_bounded_too(setup: &Setup) {
    const STEPS: usize = 600;
    let server = Script::new().serve(setup.reactor());
    let mut peer = server.dial_made(0);
    server.act_on(0, |transport| transport.pause_producing());
    peer.0.set_write_timeout(Some(Duration::from_millis(150))).unwrap();
    // Never so much at once that buffers run out, up to where the kernel takes no more.
    for _ in 0..STEPS {
        if peer.0.write(&[b'.'; 4096]).is_err() {
            break;
        }
        server.act(|_| ());
    }
    let received = server.count(Count::BytesReceived);
    assert!(received <= 1 << 20, "{received} bytes were taken from the kernel for a paused connection");
    assert_eq!(data_of(&server, 0), 0, "delivered while paused");
    server.act_on(0, |transport| transport.abort_connection());
    assert_eq!(server.journal.wait_lost(0), "Aborted");
}

fn c12_nobody_waits_behind_those_that_are_paused(setup: &Setup) {
    const PAUSED: std::ops::RangeInclusive<usize> = 6..=16;
    const LAST: usize = 20;
    let (inside, more_came) = (Gate::default(), Gate::default());
    let (tell, wait) = (inside.clone(), more_came.clone());
    let script = Script::new().on_data(move |cx, conn, _| match conn.number {
        0 => {
            tell.open();
            wait.pass();
        }
        1 => PAUSED.for_each(|number| cx.transport.to(conn.journal.id(number)).pause_producing()),
        _ => {}
    });
    let few_buffers = setup.builder().uring(setup.uring().buffers(4, 4096));
    let server = script.serve(setup.build(few_buffers));
    let mut peers: Vec<_> = (0..=LAST).map(|number| server.dial_made(number)).collect();
    peers[0].write(b"x");
    inside.pass();
    // More than there are buffers, where those are few: the rest stands in line in this order.
    peers[1..].iter_mut().for_each(|peer| peer.write(b"x"));
    more_came.open();
    for number in (0..=LAST).filter(|number| !PAUSED.contains(number)) {
        assert_eq!(server.journal.wait_bytes(number, 1), b"x");
    }
    PAUSED.for_each(|number| server.act_on(number, |transport| transport.resume_producing()));
    PAUSED.for_each(|number| assert_eq!(server.journal.wait_bytes(number, 1), b"x"));
}

fn c12_what_is_given_back_comes_first_again(setup: &Setup) {
    // Each time it takes one byte, gives the rest back, and pauses; the last time it does not pause.
    let script = Script::new().on_data(|cx, conn, data| {
        assert!(cx.transport.is_producing());
        let rest = &data[1..];
        if data[0] != b'c' {
            cx.transport.pause_producing();
            assert!(!cx.transport.is_producing());
        }
        // What is given back later goes first.
        cx.transport.unread(&rest[rest.len() / 2..]);
        cx.transport.unread(&rest[..rest.len() / 2]);
        conn.note(format!("{}", data[0] as char));
    });
    let server = script.serve(setup.reactor());
    let mut peer = server.dial_made(0);
    peer.write(b"abcd");
    server.journal.wait_note("a");
    server.act_on(0, |transport| transport.resume_producing());
    server.journal.wait_note("b");
    peer.write(b"e");
    peer.finish_writing();
    server.act_on(0, |transport| transport.resume_producing());
    server.journal.wait_note("d");
    server.act_on(0, |transport| transport.resume_producing());
    server.journal.wait_note("e");
    assert_eq!(
        server.journal.count(|event| matches!(event, Event::Lost(..))),
        0,
        "the FIN was told while paused"
    );
    server.act_on(0, |transport| transport.resume_producing());
    assert_eq!(server.journal.wait_lost(0), "Done");
    let notes: Vec<_> =
        server.journal.all().into_iter().filter(|event| matches!(event, Event::Note(_))).collect();
    assert_eq!(notes, ["a", "b", "c", "d", "e"].map(|text| Event::Note(text.to_owned())));
}

fn c12_what_is_given_back_without_a_pause_comes_with_what_arrives_next(setup: &Setup) {
    let script = Script::new().on_data(|cx, conn, data| match data.ends_with(b".") {
        true => conn.note(String::from_utf8_lossy(data)),
        false => cx.transport.unread(data),
    });
    let server = script.serve(setup.reactor());
    let mut peer = server.dial_made(0);
    for (pieces, said) in ["half ", "a sentence."].into_iter().enumerate() {
        peer.write(said.as_bytes());
        server.journal.wait("the piece", |events| {
            events.iter().filter(|event| matches!(event, Event::Data(..))).count() == pieces + 1
        });
        server.let_it_turn();
    }
    server.journal.wait_note("half a sentence.");
    // The rest is told twice at most, and does not keep the end from being told.
    peer.write(b"the rest");
    peer.finish_writing();
    assert_eq!(server.journal.wait_lost(0), "Done");
    assert_eq!(data_of(&server, 0), 3);
}

fn c13_an_end_while_paused_from_elsewhere_waits_for_the_resume(setup: &Setup) {
    let server = Script::new().serve(setup.reactor());
    let (reset, mut fin) = (server.dial_made(0), server.dial_made(1));
    for number in 0..2 {
        server.act_on(number, |transport| transport.pause_producing());
    }
    reset.reset();
    fin.write(b"last words");
    drop(fin);
    server.let_it_turn();
    thread::sleep(Duration::from_millis(50));
    server.let_it_turn();
    assert_eq!(server.journal.count(|event| matches!(event, Event::Lost(..))), 0, "told while paused");
    assert_eq!(data_of(&server, 1), 0, "delivered while paused");
    for number in 0..2 {
        server.act_on(number, |transport| transport.resume_producing());
    }
    assert_eq!(server.journal.wait_lost(0), "Lost(Errno(ECONNRESET))");
    assert_eq!(server.journal.wait_lost(1), "Done");
    assert_eq!(server.journal.bytes(1), b"last words");
}
