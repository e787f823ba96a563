//! A server that leaves its port to its successors while clients call.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use nix::{
    sys::{
        signal::{Signal, kill},
        socket::{setsockopt, sockopt},
    },
    unistd::Pid,
};

use crate::{
    on_every_backend,
    running::{LIMIT, Running, connect},
};

on_every_backend!(nobody_is_refused_while_successors_take_over, who_is_connected_stays_until_he_leaves);

/// Calls once; who answered.
fn call(port: u16) -> io::Result<Pid> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(LIMIT))?;
    // Goes away with RST, so that no port of this side stays taken.
    setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    stream.write_all(b"hello\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let number = line.strip_suffix(" answers: hello\n").and_then(|number| number.parse().ok());
    number.map(Pid::from_raw).ok_or_else(|| io::Error::other(format!("the answer was {line:?}")))
}

/// The process at the end of the line, which is no child of the test's.
struct Last(Pid);

impl Drop for Last {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = kill(self.0, Signal::SIGKILL);
        }
    }
}

fn nobody_is_refused_while_successors_take_over(backend: &str) {
    let (mut first, port) = Running::serve("handover", backend);
    let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..3)
        .map(|_| {
            let (stop, calls) = (Arc::clone(&stop), Arc::clone(&calls));
            thread::spawn(move || {
                while !stop.load(SeqCst) {
                    call(port).expect("an answer");
                    calls.fetch_add(1, SeqCst);
                }
            })
        })
        .collect();
    let mut last = Last(first.pid());
    for _ in 0..3 {
        let before = calls.load(SeqCst);
        kill(last.0, Signal::SIGHUP).unwrap();
        first.wait_for_log("has taken over");
        first.wait_for_log("Main loop terminated.");
        let successor = call(port).unwrap();
        assert_ne!(successor, last.0);
        last = Last(successor);
        while calls.load(SeqCst) < before + 100 {
            assert!(callers.iter().all(|caller| !caller.is_finished()), "a call was not answered");
            thread::yield_now();
        }
    }
    stop.store(true, SeqCst);
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    kill(last.0, Signal::SIGTERM).unwrap();
    let ended = first.wait();
    ended.exited_with(0);
    ended.logged("Received SIGTERM, shutting down.");
}

fn who_is_connected_stays_until_he_leaves(backend: &str) {
    let (mut server, port) = Running::serve("handover", backend);
    let mut stream = connect(port);
    stream.write_all(b"before\n").unwrap();
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer).unwrap();
    server.signal(Signal::SIGHUP);
    server.wait_for_log("has taken over");
    // The one that is connected is still served by the old one, until it leaves.
    stream.write_all(b"after\n").unwrap();
    let mut again = String::new();
    BufReader::new(&stream).read_line(&mut again).unwrap();
    assert_eq!(answer.replace("before", "after"), again);
    // Until its port has ended the old one may still be the one who answers.
    let mut callers = std::iter::repeat_with(|| call(port).unwrap());
    let successor = callers.find(|pid| *pid != server.pid()).unwrap();
    drop(stream);
    server.wait_for_log("Main loop terminated.");
    kill(successor, Signal::SIGTERM).unwrap();
    server.wait().exited_with(0);
}
