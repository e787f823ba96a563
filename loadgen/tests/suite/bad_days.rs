//! What the outside world does to loadgen itself: signals, killed processes, wrong command lines,
//! machines that cannot.

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command},
};

use crate::common::{
    Run, assert_valid, children, eventually, finish, folder, lives, loadgen, read_result, run, sockets, start,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const LONG: [&str; 8] = ["run", "--backend", "epoll", "-c", "4", "-d", "1m", "--pin=off"];

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).expect("the process lives");
}

/// The server child of a run, once it serves four connections.
fn busy_child(parent: u32) -> u32 {
    eventually("a busy server child", || children(parent).into_iter().find(|child| sockets(*child) >= 5))
}

fn plain(arguments: &[&str]) -> Run {
    run(&format!("plain-{}", arguments.join("").replace(['/', ':', '.'], "")), arguments)
}

#[test]
fn a_killed_server_child_is_told_from_a_server_that_errs() {
    let folder = folder("killed-child");
    let loadgen = start(&folder, &LONG);
    let child = busy_child(loadgen.id());
    signal(child, Signal::SIGKILL);
    let run = finish(loadgen, &folder);
    run.assert_failed(1, &["epoll over 4 connections", &format!("(pid {child}): was killed by SIGKILL")]);
    assert!(!lives(child));
}

#[test]
fn a_killed_loadgen_leaves_no_orphan_and_keeps_its_cells() {
    let folder = folder("killed-loadgen");
    let many =
        ["compare", "--backend", "epoll,io_uring", "-c", "4", "-d", "100ms", "--rounds", "100", "--pin=off"];
    let mut loadgen = start(&folder, &many);
    eventually("a whole cell", || {
        let cells = read_result(&folder)?["cells"].as_array()?.len();
        (cells >= 2).then_some(())
    });
    let child = busy_child(loadgen.id());
    signal(loadgen.id(), Signal::SIGKILL);
    loadgen.wait().expect("it is ours");
    eventually("the child ends", || (!lives(child)).then_some(()));
    let document = read_result(&folder).expect("a result");
    assert_valid(&document);
    assert_eq!(document["complete"], false);
    assert!(document["cells"].as_array().is_some_and(|cells| cells.len() >= 2));
}

#[test]
fn ctrl_c_keeps_and_marks_what_was_measured() {
    let folder = folder("interrupted");
    let loadgen = start(&folder, &LONG);
    let child = busy_child(loadgen.id());
    signal(loadgen.id(), Signal::SIGINT);
    let run = finish(loadgen, &folder);
    run.assert_failed(130, &["interrupted", "result.json", "marked incomplete"]);
    assert_eq!(run.document()["interrupted"], true);
    assert_eq!(run.document()["cells"].as_array().map(Vec::len), Some(1));
    assert!(run.stdout.contains("Report"), "{run:#?}");
    assert!(!lives(child));
}

#[test]
fn a_terminated_run_ends_like_an_interrupted_one() {
    let folder = folder("terminated");
    let loadgen = start(&folder, &LONG);
    let child = busy_child(loadgen.id());
    signal(loadgen.id(), Signal::SIGTERM);
    let run = finish(loadgen, &folder);
    run.assert_failed(130, &["interrupted"]);
    assert!(!lives(child));
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = taken.local_addr().expect("bound").port().to_string();
    for backend in ["io_uring", "epoll", "threads", "raw-uring", "raw-epoll", "raw-threads"] {
        let output =
            loadgen(&["serve", "--backend", backend, "--port", &port]).output().expect("the binary runs");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        for word in ["loadgen: ", "127.0.0.1", &port, "in use"] {
            assert!(stderr.contains(word), "'{word}' in {stderr}");
        }
    }
}

#[test]
fn a_server_that_ends_before_it_listens_is_named() {
    let run = run("hired-ends", &["run", "--server", "mine=exit 7 # {port}", "-c", "1"]);
    run.assert_failed(3, &["mine over 1 connections", "`exit 7 # ", "ended by itself", "7"]);
}

/// A run against another program, and the process of that program.
fn hired(folder: &Path, mode: &str) -> (Child, u32) {
    let server = format!("mine={} serve --backend raw-epoll --port {{port}}", env!("CARGO_BIN_EXE_loadgen"));
    let loadgen = start(folder, &[mode, "--server", &server, "-c", "4", "-d", "60s"]);
    let only = |parent| children(parent).first().copied();
    let program = eventually("the program serves", || {
        let shell = only(only(loadgen.id())?)?;
        // A shell that has nothing else to do becomes the program.
        let program = only(shell).unwrap_or(shell);
        (sockets(program) >= 5).then_some(program)
    });
    (loadgen, program)
}

#[test]
fn another_program_that_dies_is_named() {
    // Also when nothing is asked of it.
    for mode in ["run", "idle"] {
        let folder = folder(&format!("hired-dies-{mode}"));
        let (loadgen, program) = hired(&folder, mode);
        signal(program, Signal::SIGKILL);
        let run = finish(loadgen, &folder);
        run.assert_failed(1, &["mine over 4 connections", "ended by itself", "while it was being measured"]);
    }
}

#[test]
fn what_another_program_leaves_behind_is_ended_too() {
    // In a session of its own, so that no signal to a group reaches it.
    let nap = format!("{}.25", 100_000 + std::process::id());
    let run = run(
        "hired-leaves",
        &["run", "--server", &format!("mine=setsid sleep {nap} & exit 7 # {{port}}"), "-c", "1"],
    );
    run.assert_failed(3, &["ended by itself", "7"]);
    eventually("the nap ends", || (!napping(&nap)).then_some(()));
}

/// Whether a process with this word in its command line runs.
fn napping(word: &str) -> bool {
    let processes = std::fs::read_dir("/proc").expect("procfs").filter_map(Result::ok);
    let mut lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.any(|line| String::from_utf8_lossy(&line).split('\0').any(|argument| argument == word))
}

#[test]
fn another_program_ends_with_a_killed_loadgen() {
    let folder = folder("hired-orphan");
    let (mut loadgen, program) = hired(&folder, "run");
    signal(loadgen.id(), Signal::SIGKILL);
    loadgen.wait().expect("a child");
    eventually("the program ends", || (!lives(program)).then_some(()));
}

#[test]
fn a_host_that_does_not_resolve_is_named() {
    let run = plain(&["run", "tcp://no-such-host.invalid:80", "-c", "1"]);
    run.assert_failed(3, &["tcp://no-such-host.invalid:80", "does not resolve", "check the name"]);
}

#[test]
fn a_target_that_refuses_is_named() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let target = format!("tcp://{}", free.local_addr().expect("bound"));
    drop(free);
    let run = plain(&["run", &target, "-c", "3"]);
    run.assert_failed(3, &["cannot connect to tcp://127.0.0.1:", "is a server listening there?"]);
    assert!(run.failures("ECONNREFUSED") > 0);
}

#[test]
fn a_wrong_command_line_is_one_line() {
    let lines: [(&[&str], &str); 15] = [
        (&["compare", "--bogus"], "--bogus"),
        (&["compare", "-s", "10"], "24 or more"),
        (&["compare", "-d", "5"], "500ms"),
        (&["compare", "--backend", "kqueue,epoll"], "io_uring, epoll, threads"),
        (&["compare", "--backend", "epoll"], "at least two rows"),
        (&["compare", "--baseline", "io_uring:direct"], "is no row"),
        (&["compare", "--backend", "epoll,threads,epoll"], "named twice"),
        (&["compare", "--server", "nginx"], "name=command"),
        (&["compare", "--server", "nginx=nginx -p 80"], "{port}"),
        (&["compare", "--pace", "spin"], "--rate"),
        (&["compare", "-R", "0"], "at least 1"),
        (&["idle", "-R", "1k"], "no meaning"),
        (&["idle", "--backend", "epoll,epoll"], "named twice"),
        (&["run"], "TARGET"),
        (&["run", "127.0.0.1:80"], "tcp://host:port"),
    ];
    for (arguments, word) in lines {
        let output = loadgen(arguments).output().expect("the binary runs");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
        assert!(stderr.contains(word), "'{word}' in {stderr}");
    }
}

#[test]
fn too_few_descriptors_name_the_limit_and_the_command() {
    let folder = folder("descriptors");
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 100; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_loadgen")])
        .args(["run", "--backend", "epoll", "-c", "80", "-o"])
        .arg(&folder)
        .output()
        .expect("sh runs");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    for word in ["80 connections need", "RLIMIT_NOFILE is 100", "`ulimit -Hn", "-c 68"] {
        assert!(stderr.contains(word), "'{word}' in {stderr}");
    }
    assert!(!Path::new(&folder).exists(), "nothing was measured, so nothing is kept");
}

#[test]
fn a_cpu_that_is_not_there_is_named() {
    let run = plain(&["run", "--backend", "epoll", "--pin", "0,9999"]);
    assert_eq!(run.code, Some(3), "{run:#?}");
    assert!(run.complaint().contains("CPU 9999 is not available"), "{run:#?}");
}

#[test]
fn strict_refuses_a_verdict_from_too_few_rounds() {
    let line =
        ["compare", "--backend", "io_uring,epoll", "-c", "2", "-d", "50ms", "--warmup", "0", "--rounds", "1"];
    assert_eq!(plain(&line).code, Some(0));
    let strict = run("strict", &[&line[..], &["--strict"]].concat());
    assert_eq!(strict.code, Some(6), "{strict:#?}");
    assert_eq!(strict.document()["complete"], true);
    assert!(strict.stdout.contains("6 are needed"), "{strict:#?}");
}

#[test]
fn the_doctor_names_each_limit_with_the_command_that_raises_it() {
    let doctor = |connections: &str| {
        let output = loadgen(&["doctor", "-c", connections]).output().expect("the binary runs");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, text) = doctor("1G");
    assert_eq!((code, text.as_str()), (Some(2), ""), "no such count");
    let (code, text) = doctor("500M");
    assert_eq!(code, Some(3), "{text}");
    for word in [
        "for 500,000,000 connections",
        "MISSING descriptors",
        "ulimit -Hn 500000032",
        "sysctl kernel.threads-max=",
    ] {
        assert!(text.contains(word), "'{word}' in {text}");
    }
    let (_, text) = doctor("30k");
    assert!(text.contains("loadgen idle --backend io_uring"), "{text}");
    let (_, text) = doctor("10");
    assert!(text.contains("ok      io_uring") && text.contains("ok      descriptors"), "{text}");
}
