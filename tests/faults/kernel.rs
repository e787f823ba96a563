//! What the kernel may do to a process that serves: interrupt it, fork it, deny it io_uring or threads (E9-E12, L4, A2, M4).

use std::{
    panic::catch_unwind,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{Pid, gettid},
};
use ringspun::{
    Backend, Count, Error, Reactor,
    policies::{LimitTotalConnections, Policies},
    testing::{Case, run_on},
};

use crate::{
    child::{Role, in_child, role_with},
    kit::{Event, Script, logged},
    peers::{Peer, assert_same, pattern},
    raw,
    setups::{Setup, on_every_backend},
};

on_every_backend!(
    e9_a_storm_of_signals_loses_nothing,
    e10_a_forked_child_that_leaves_takes_nothing_along,
    e10_a_forked_child_that_stays_is_not_in_the_way,
    e10_a_program_started_from_a_callback_inherits_nothing,
    l4_out_of_threads_peers_are_turned_away_and_the_others_served,
    a2_out_of_threads_no_place_is_lost,
);

fn e9_a_storm_of_signals_loses_nothing(setup: &Setup) {
    in_child(setup.test, || {
        raw::count_signals(Signal::SIGUSR1);
        let targets: Arc<Mutex<Vec<Pid>>> = Arc::default();
        let known = Arc::clone(&targets);
        let script = Script::new()
            .on_made(move |_, _| {
                let (thread, mut known) = (gettid(), known.lock().unwrap());
                if !known.contains(&thread) {
                    known.push(thread);
                }
            })
            .on_data(|cx, _, data| {
                let _ = cx.transport.write(data);
            });
        let server = script.serve(setup.reactor());
        let run_in = server.running.call(|_| gettid());
        targets.lock().unwrap().push(run_in);
        let calm = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&calm);
        let storm = thread::spawn(move || {
            while !over.load(SeqCst) {
                let threads = targets.lock().unwrap().clone();
                threads.into_iter().for_each(|thread| raw::signal_thread(thread, Signal::SIGUSR1));
                thread::sleep(Duration::from_micros(50));
            }
        });
        // On a fast machine twenty rounds are over before the storm has come to anything.
        for round in (0..10_000).take_while(|round| *round < 20 || raw::counted_signals() <= 100) {
            // Peers have the even numbers, connections of the reactor to itself the odd ones.
            let bytes = pattern(round as u64, 100_000);
            let mut peer = server.dial_made(2 * round);
            let (mut sender, source) = (peer.share(), bytes.clone());
            let sending = thread::spawn(move || sender.write(&source));
            assert_same(&peer.read_exactly(bytes.len()), &bytes);
            sending.join().unwrap();
            drop(peer);
            assert_eq!(server.journal.wait_lost(2 * round), "Done");
            let client = Script::new().on_made(|cx, _| cx.transport.lose_connection());
            let journal = client.journal.clone();
            server.running.reactor.connect_tcp(server.address(), client);
            journal.wait_for(Event::Stopped);
            assert!(journal.has(&Event::ClientLost("Done".to_owned())), "{:?}", journal.all());
            assert_eq!(server.journal.wait_lost(2 * round + 1), "Done");
        }
        calm.store(true, SeqCst);
        storm.join().unwrap();
    });
}

/// An echo server that does this in its own thread whenever it receives "!".
fn doing(act: impl Fn() + Send + Sync + 'static) -> Script {
    Script::new().on_data(move |cx, _, data| {
        if data == b"!" {
            act();
        }
        let _ = cx.transport.write(data);
    })
}

fn e10_a_forked_child_that_leaves_takes_nothing_along(setup: &Setup) {
    in_child(setup.test, || {
        let server = doing(raw::fork_and_leave).serve(setup.reactor());
        let mut peers: Vec<Peer> = (0..4).map(|number| server.dial_made(number)).collect();
        for round in 0..20 {
            let bytes = pattern(round, 50_000);
            let (asking, others) = peers.split_at_mut(1);
            others.iter_mut().for_each(|peer| peer.write(&bytes[..20_000]));
            asking[0].ask(b"!", b"!");
            for peer in others {
                assert_same(&peer.read_exactly(20_000), &bytes[..20_000]);
            }
        }
        server.running.reactor.call_from_thread(|_| raw::fork_and_leave());
        drop(peers);
        server.journal.wait_losses(4);
        server.dial().ask(b"alive?", b"alive?");
    });
}

fn e10_a_forked_child_that_stays_is_not_in_the_way(setup: &Setup) {
    in_child(setup.test, || {
        let forked: Arc<Mutex<Option<Pid>>> = Arc::default();
        let place = Arc::clone(&forked);
        let script = doing(move || *place.lock().unwrap() = Some(raw::fork_and_stay()));
        let mut server = script.serve(setup.reactor());
        let mut old = server.dial_made(0);
        old.ask(b"!", b"!");
        for number in 1..30 {
            let bytes = pattern(number as u64, 20_000);
            let mut peer = server.dial_made(number);
            peer.write(&bytes);
            assert_same(&peer.read_exactly(bytes.len()), &bytes);
            old.ask(b"alive?", b"alive?");
            drop(peer);
            assert_eq!(server.journal.wait_lost(number), "Done");
        }
        server.stop();
        let child = forked.lock().unwrap().take().unwrap();
        kill(child, Signal::SIGKILL).unwrap();
        waitpid(child, None).unwrap();
    });
}

fn e10_a_program_started_from_a_callback_inherits_nothing(setup: &Setup) {
    in_child(setup.test, || {
        let listing: Arc<Mutex<String>> = Arc::default();
        let place = Arc::clone(&listing);
        let script = doing(move || {
            let output = Command::new("ls").args(["-l", "/proc/self/fd"]).output().unwrap();
            assert!(output.status.success());
            *place.lock().unwrap() = String::from_utf8(output.stdout).unwrap();
        });
        let server = script.serve(setup.reactor());
        let mut peer = server.dial_made(0);
        peer.ask(b"!", b"!");
        peer.ask(b"alive?", b"alive?");
        let listing = listing.lock().unwrap();
        for kind in ["socket:", "io_uring", "eventpoll", "eventfd"] {
            assert!(!listing.contains(kind), "{kind} is inherited: {listing}");
        }
    });
}

fn l4_out_of_threads_peers_are_turned_away_and_the_others_served(setup: &Setup) {
    const PEERS: usize = 5;
    in_child(setup.test, || {
        let server = Script::echo().serve(setup.reactor());
        let mut made = server.dial_made(0);
        raw::deny_threads();
        for _ in 0..PEERS {
            let mut peer = server.dial();
            // Only where each of them needs a thread.
            match setup.is_threads() {
                true => peer.expect_fin(),
                false => peer.ask(b"me too?", b"me too?"),
            }
            made.ask(b"alive?", b"alive?");
        }
        let client = Script::new();
        let journal = client.journal.clone();
        server.running.reactor.connect_tcp(server.address(), client);
        journal.wait_for(match setup.is_threads() {
            true => Event::Failed("Errno(EAGAIN)".to_owned()),
            false => Event::Made(0),
        });
        let (refused, said) = if setup.is_threads() { (PEERS, 1) } else { (0, 0) };
        assert_eq!(server.count(Count::RefusedThreads), refused as u64);
        assert_eq!(logged("could not accept a connection"), said, "it is logged once");
        assert_eq!(logged("raise `ulimit -u`"), said, "with what to do about it");
        made.ask(b"alive?", b"alive?");
    });
}

fn a2_out_of_threads_no_place_is_lost(setup: &Setup) {
    in_child(setup.test, || {
        let limit = LimitTotalConnections::new(2);
        let server = Script::echo().serve_behind(&Policies::new().accept(limit.clone()), setup.reactor());
        let mut made = server.dial_made(0);
        raw::deny_threads();
        for _ in 0..3 {
            let mut peer = server.dial();
            if setup.is_threads() {
                peer.expect_fin();
            } else {
                peer.ask(b"me too?", b"me too?");
            }
            drop(peer);
            while limit.count() > 1 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        assert_eq!(server.count(Count::RefusedByPolicy), 0);
        made.ask(b"alive?", b"alive?");
    });
}

/// What a program sees whose kernel answers `errno` to io_uring_setup(2).
fn denied(errno: i32) {
    raw::deny_io_uring(errno);
    let error = Reactor::builder().backend(Backend::IoUring).build().unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Backend { backend: "io_uring", .. }), "{error:?}");
    assert!(text.contains("seccomp") && text.contains("io_uring_setup"), "{text}");
    let reactor = Reactor::builder().signals(false).build().unwrap();
    let info = reactor.backend().clone();
    assert_eq!(info.backend, Backend::Epoll);
    assert!(info.why.contains("seccomp"), "{}", info.why);
    let server = Script::echo().serve(reactor);
    server.dial().ask(b"alive?", b"alive?");
}

#[test]
fn e11_auto_falls_back_and_an_explicit_choice_fails_under_seccomp() {
    in_child("kernel::e11_auto_falls_back_and_an_explicit_choice_fails_under_seccomp", || {
        denied(libc::EPERM);
    });
}

#[test]
fn e11_a_filter_that_hides_the_call_is_named_too() {
    in_child("kernel::e11_a_filter_that_hides_the_call_is_named_too", || denied(libc::ENOSYS));
}

#[test]
fn e11_an_allowed_io_uring_is_what_auto_takes() {
    let reactor = Reactor::builder().signals(false).build().unwrap();
    assert_eq!(reactor.backend().backend, Backend::IoUring, "{}", reactor.backend());
}

/// What the public macro makes of a test on io_uring, which is denied.
#[test]
fn m4_a_backend_that_cannot_be_had_is_skipped_with_its_reason() {
    in_child("kernel::m4_a_backend_that_cannot_be_had_is_skipped_with_its_reason", || {
        raw::deny_io_uring(libc::EPERM);
        let mut ran = Vec::new();
        for setup in ["io_uring", "epoll", "threads"] {
            let case = Case::new("test", setup, "");
            run_on(case, |builder| ran.push(builder.build().unwrap().backend().backend.name()));
        }
        assert_eq!(ran, ["epoll", "threads"]);
    });
}

#[test]
fn m4_a_backend_that_must_be_had_fails_with_its_reason() {
    let test = "kernel::m4_a_backend_that_must_be_had_fails_with_its_reason";
    match role_with(test, &[("RINGSPUN_REQUIRE", "threads,io_uring")]) {
        Role::Parent(child) => child.expect_success(),
        Role::Child => {
            raw::deny_io_uring(libc::EPERM);
            let case = Case::new("test", "io_uring", "");
            let failed = catch_unwind(|| run_on(case, |_| panic!("it ran"))).unwrap_err();
            let text = failed.downcast_ref::<String>().expect("a text");
            assert!(text.contains("RINGSPUN_REQUIRE") && text.contains("seccomp"), "{text}");
        }
    }
}

#[test]
fn e12_the_environment_decides_where_the_program_said_auto() {
    let test = "kernel::e12_the_environment_decides_where_the_program_said_auto";
    match role_with(test, &[("RINGSPUN_BACKEND", "epoll")]) {
        Role::Parent(child) => child.expect_success(),
        Role::Child => {
            let auto = Reactor::builder().signals(false).build().unwrap();
            assert_eq!(auto.backend().backend, Backend::Epoll);
            assert!(auto.backend().why.contains("RINGSPUN_BACKEND"), "{}", auto.backend().why);
            for backend in [Backend::IoUring, Backend::Threads] {
                let chosen = Reactor::builder().backend(backend).signals(false).build().unwrap();
                assert_eq!(chosen.backend().backend, backend);
            }
        }
    }
}

#[test]
fn e12_a_word_that_names_no_backend_is_an_error() {
    let test = "kernel::e12_a_word_that_names_no_backend_is_an_error";
    match role_with(test, &[("RINGSPUN_BACKEND", "kqueue")]) {
        Role::Parent(child) => child.expect_success(),
        Role::Child => {
            let error = Reactor::builder().build().unwrap_err().to_string();
            assert!(error.contains("RINGSPUN_BACKEND=kqueue") && error.contains("epoll"), "{error}");
            assert!(Reactor::builder().backend(Backend::Epoll).build().is_ok());
        }
    }
}
