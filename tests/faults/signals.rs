//! SIGINT and SIGTERM (R3).

use std::{
    fs,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, raise},
    unistd::Pid,
};
use ringspun::{Count, Reactor};

use crate::{
    child::{Role, in_child, role, tell_parent},
    kit::{Event, Gate, Running, Script, Server, logged},
    peers::{End, LIMIT, Peer, assert_refused},
    raw::{count_signals, counted_signals},
    setups::{Setup, on_every_backend},
    streams::{Streams, read_stream},
};

on_every_backend!(
    r3_a_signal_shuts_down_in_order,
    r3_a_signal_stops_every_reactor_that_asked,
    r3_a_second_signal_ends_at_once,
    r3_earlier_handlers_are_restored,
    r4_a_signal_drains,
    r4_a_signal_waits_for_nobody_beyond_its_time_and_reports_what_is_unsent,
);

const SIGNALS: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

fn signalled(setup: &Setup) -> Reactor {
    setup.build(setup.builder().signals(true))
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

fn r3_a_signal_shuts_down_in_order(setup: &Setup) {
    in_child(setup.test, || {
        for signal in SIGNALS {
            let before = threads();
            let mut server = Script::echo().serve_at(setup.own_address(), signalled(setup));
            let mut peers: Vec<_> = (0..5).map(|number| server.dial_made(number)).collect();
            let port = server.address().port();
            raise(signal).unwrap();
            server.running.wait().unwrap();
            for number in 0..5 {
                assert_eq!(server.journal.wait_lost(number), "Lost(Shutdown)");
            }
            assert_eq!(server.journal.all().last(), Some(&Event::Stopped));
            peers.iter_mut().for_each(|peer| drop(peer.read_to_end()));
            assert_refused(server.address());
            assert_eq!(logged(&format!("Received {}, shutting down.", signal.as_str())), 1);
            assert_eq!(logged(&format!("(TCP Port {port} Closed)")), 1);
            settle_threads(before);
        }
    });
}

fn r4_a_signal_drains(setup: &Setup) {
    in_child(setup.test, || {
        const MUCH: usize = 4 << 20;
        let script = Script::new().on_made(|cx, _| {
            let _ = cx.transport.write(&[b'.'; MUCH]);
        });
        let reactor = setup.builder().signals(true).drain_timeout(LIMIT);
        let mut server = script.serve(setup.build(reactor));
        let mut peer = server.dial_made(0);
        server.journal.id(0);
        raise(Signal::SIGTERM).unwrap();
        assert_eq!(peer.read_to_end().0.len(), MUCH);
        drop(peer);
        server.running.wait().unwrap();
        assert_eq!(server.journal.wait_lost(0), "Lost(Shutdown)");
        assert_eq!(server.count(Count::BytesUnsent), 0);
    });
}

const READERS: usize = 4;
/// Who does not read takes all of it. Whether those who read meet it is for the tests of drains to say, which try again on a machine that stood still.
const DRAIN: Duration = Duration::from_secs(1);

fn r4_a_signal_waits_for_nobody_beyond_its_time_and_reports_what_is_unsent(setup: &Setup) {
    let child = match role(setup.test) {
        Role::Child => return stream_until_signalled(setup),
        Role::Parent(child) => child,
    };
    let address: SocketAddr = child.hear().parse().unwrap();
    let mut deaf = Peer::dial_narrow(address, 4096);
    assert_eq!(child.hear(), "the first one is written to");
    let dial = |_| {
        let mut peer = Peer::dial(address);
        thread::spawn(move || read_stream(&mut peer, |byte| byte))
    };
    let readers: Vec<_> = (0..READERS).map(dial).collect();
    assert_eq!(child.hear(), "all are");
    let signalled = Instant::now();
    child.signal(Signal::SIGTERM);
    let report = child.hear();
    assert!(signalled.elapsed() >= DRAIN, "it did not wait: {:?}", signalled.elapsed());
    let [taken, taken_for_deaf, unsent] =
        report.split(' ').map(|word| word.parse().unwrap()).collect::<Vec<usize>>()[..]
    else {
        panic!("{report}");
    };
    child.expect_success();
    let (heard, end) = read_stream(&mut deaf, |byte| byte);
    assert_eq!(end, End::Fin);
    assert!(heard < taken_for_deaf, "the kernel took it all");
    let mut got = 0;
    for reader in readers {
        let (count, end) = reader.join().unwrap();
        assert_eq!(end, End::Fin);
        got += count;
    }
    assert_eq!(heard + got + unsent, taken, "{heard} and {got} came");
}

/// Says where it is, and when its streams flow; in the end how much `write` took, how much of that for the first peer, and how much it reports as unsent.
fn stream_until_signalled(setup: &Setup) {
    let streams = Streams::new(1 + READERS, 1);
    let reactor = setup.build(setup.builder().signals(true).drain_timeout(DRAIN));
    let mut server = streams.script().serve(reactor);
    tell_parent(server.address());
    server.journal.id(0);
    tell_parent("the first one is written to");
    streams.wait_until_they_flow();
    tell_parent("all are");
    server.running.wait().unwrap();
    let unsent = server.count(Count::BytesUnsent);
    tell_parent(format!("{} {} {unsent}", streams.all_taken(), streams.taken(0)));
}

/// The thread that called `run` is the test's own and ends a moment after it.
fn settle_threads(before: usize) {
    let until = Instant::now() + LIMIT;
    while threads() > before {
        assert!(Instant::now() < until, "{} threads are left over", threads() - before);
        thread::yield_now();
    }
}

fn r3_a_signal_stops_every_reactor_that_asked(setup: &Setup) {
    in_child(setup.test, || {
        let mut asked: Vec<Server> =
            (0..3).map(|_| Script::echo().serve_at(setup.own_address(), signalled(setup))).collect();
        let not_asked = Script::echo().serve(setup.reactor());
        raise(Signal::SIGTERM).unwrap();
        for server in &mut asked {
            server.running.wait().unwrap();
            assert_refused(server.address());
        }
        not_asked.dial().ask(b"alive?", b"alive?");
        assert!(not_asked.running.reactor.is_running());
    });
}

fn r3_a_second_signal_ends_at_once(setup: &Setup) {
    let child = match role(setup.test) {
        Role::Child => return hang(setup),
        Role::Parent(child) => child,
    };
    assert_eq!(child.hear(), "hanging");
    child.signal(Signal::SIGTERM);
    wait_until_delivered(child.pid());
    child.signal(Signal::SIGTERM);
    let (output, status) = child.wait();
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(status.signal(), Some(Signal::SIGTERM as i32), "{status}: {output}");
}

/// A callback that never comes back.
fn hang(setup: &Setup) {
    let server = Script::new()
        .on_data(|_, _, _| {
            tell_parent("hanging");
            loop {
                thread::sleep(Duration::from_secs(1));
            }
        })
        .serve(signalled(setup));
    let mut peer = server.dial();
    peer.write(b"x");
    server.journal.wait_note("never written");
}

/// Two signals of a kind that are pending at once would be one.
fn wait_until_delivered(pid: Pid) {
    let pending = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        line("ShdPnd:") != "0000000000000000" || line("SigPnd:") != "0000000000000000"
    };
    let until = Instant::now() + LIMIT;
    while pending() {
        assert!(Instant::now() < until, "the signal is not delivered");
        thread::yield_now();
    }
}

fn r3_earlier_handlers_are_restored(setup: &Setup) {
    in_child(setup.test, || {
        SIGNALS.into_iter().for_each(count_signals);
        // Of two reactors, the last to go puts them back.
        let mut first = Running::start(signalled(setup));
        let mut second = Running::start(signalled(setup));
        first.stop().unwrap();
        let gate = Gate::default();
        second.reactor.call_from_thread({
            let gate = gate.clone();
            move |_| gate.open()
        });
        gate.pass();
        second.stop().unwrap();
        assert_eq!(counted_signals(), 0);
        SIGNALS.into_iter().for_each(|signal| raise(signal).unwrap());
        assert_eq!(counted_signals(), 2, "the earlier handler got them");
        // And a reactor that did not ask leaves them alone.
        let running = Running::start(setup.reactor());
        raise(Signal::SIGTERM).unwrap();
        assert_eq!(counted_signals(), 3);
        assert!(running.call(Reactor::is_running));
    });
}
