//! More idle connections than one process may have: several rings in the server, several client processes.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::common::{Run, assert_valid, children, eventually, finish, folder, lives};

/// A limit of descriptors that 600 connections need four clients for, and six rings of 114 on average.
const LIMIT: &str = "200";
const LINE: [&str; 7] = ["idle", "-c", "600", "-d", "100ms", "--backend", "io_uring"];

fn limited(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n \"$0\"; exec \"$@\"", LIMIT, env!("CARGO_BIN_EXE_loadgen")]);
    command.args(arguments).arg("-o").arg(folder).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(test: &str, arguments: &[&str]) -> Run {
    let folder = folder(test);
    finish(limited(&folder, arguments).spawn().expect("sh runs"), &folder)
}

/// The last cell: one that the neighbours have spoiled is there twice.
#[track_caller]
fn verified_cell(run: &Run) -> &Value {
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert_valid(run.document());
    let cell = run.document()["cells"].as_array().and_then(|cells| cells.last()).expect("a cell");
    assert_eq!(cell["client_processes"], 4, "{cell:#}");
    assert_eq!(cell["counts"]["connections_alive"], 600, "{cell:#}");
    assert_eq!(cell["counts"]["requests_all_phases"], 608, "each asks once, and two of each client again");
    assert_eq!((&cell["idle"]["pinged"], &cell["idle"]["answered"]), (&8.into(), &8.into()));
    assert!(cell["idle"]["server_bytes_per_connection"].is_number(), "{cell:#}");
    cell
}

#[test]
fn more_than_one_process_may_have_are_held_and_verified_at_both_ends() {
    for client in ["io_uring", "epoll"] {
        let run = run(&format!("crowd-{client}"), &[&LINE[..], &["--client", client]].concat());
        let cell = verified_cell(&run);
        assert_eq!(
            (&cell["server"]["reactors"], &cell["server"]["descriptors"]),
            (&6.into(), &"direct".into())
        );
        for name in ["server_accepted_all", "server_received_all", "connections_dealt_evenly"] {
            let checks = cell["checks"].as_array().expect("checks");
            assert!(checks.iter().any(|check| check["name"] == name && check["passed"] == true), "{cell:#}");
        }
        let told = "io_uring: 6 reactors in one process, direct descriptors; 4 client processes";
        assert!(run.stdout.contains(told), "{}", run.stdout);
    }
}

#[test]
fn another_program_may_hold_them_in_its_own_way() {
    let program = env!("CARGO_BIN_EXE_loadgen");
    let server = format!("mine={program} serve --backend io_uring:direct --reactors 6 --port {{port}}");
    let run = run("crowd-hired", &["idle", "-c", "600", "-d", "100ms", "--server", &server]);
    assert_eq!(verified_cell(&run)["server"]["reactors"], 1, "nobody has told how many it has");
}

#[test]
fn what_cannot_be_held_names_the_limit_and_the_remedy() {
    let refusals: [(&[&str], &[&str]); 4] = [
        (
            &["idle", "-c", "600", "--backend", "epoll"],
            &["epoll: 600 connections need 632", "--backend io_uring"],
        ),
        (
            &["idle", "-c", "600", "--backend", "raw-uring:direct"],
            &["raw-uring:direct: 600", "-c 168 at most"],
        ),
        (
            &["idle", "-c", "10k", "--backend", "io_uring"],
            &["need 88 rings", "`ulimit -Hn`", "-c 3762 at most"],
        ),
        (&["run", "-c", "600", "--backend", "io_uring"], &["600 connections need 632", "-c 168 at most"]),
    ];
    for (line, words) in refusals {
        let folder = folder("crowd-refused");
        let output = limited(&folder, line).output().expect("sh runs");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(3), 1), "{line:?}: {stderr}");
        for word in words.iter().chain(&["RLIMIT_NOFILE is 200"]) {
            assert!(stderr.contains(word), "'{word}' in {stderr}");
        }
        assert!(!folder.exists(), "nothing was measured, so nothing is kept");
    }
}

/// The client processes of a run.
fn clients_of(parent: u32) -> Vec<u32> {
    let is_client =
        |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(b"\0client\0"));
    children(parent).into_iter().filter(is_client).collect()
}

/// Starts a long run and waits for its clients; then does this to loadgen and the first client.
fn disturbed(test: &str, disturb: impl Fn(u32, u32)) -> (Run, Vec<u32>) {
    let folder = folder(test);
    let loadgen = limited(&folder, &[&LINE[..], &["-d", "1m"]].concat()).spawn().expect("sh runs");
    let clients = eventually("four clients", || {
        let clients = clients_of(loadgen.id());
        (clients.len() == 4).then_some(clients)
    });
    disturb(loadgen.id(), clients[0]);
    (finish(loadgen, &folder), clients)
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).expect("the process lives");
}

#[test]
fn a_killed_client_process_is_named_and_ends_the_others() {
    let (run, clients) = disturbed("crowd-killed-client", |_, client| signal(client, Signal::SIGKILL));
    let words = ["io_uring over 600 connections", "a client process (pid", "was killed by SIGKILL"];
    run.assert_failed(1, &words);
    assert!(clients.into_iter().all(|client| !lives(client)));
}

#[test]
fn a_killed_server_is_told_from_clients_that_err() {
    let (run, clients) = disturbed("crowd-killed-server", |loadgen, client| {
        let server = children(loadgen).into_iter().find(|child| !clients_of(loadgen).contains(child));
        assert_ne!(server, Some(client));
        signal(server.expect("it is there before the clients"), Signal::SIGKILL);
    });
    run.assert_failed(1, &["io_uring over 600 connections", "the server child", "was killed by SIGKILL"]);
    assert!(clients.into_iter().all(|client| !lives(client)));
}

#[test]
fn ctrl_c_ends_all_client_processes() {
    let (run, clients) = disturbed("crowd-interrupted", |loadgen, _| signal(loadgen, Signal::SIGINT));
    run.assert_failed(130, &["interrupted", "marked incomplete"]);
    assert!(clients.into_iter().all(|client| !lives(client)));
}

#[test]
fn a_killed_loadgen_leaves_no_client_process() {
    let (_, clients) = disturbed("crowd-orphans", |loadgen, _| signal(loadgen, Signal::SIGKILL));
    for client in clients {
        eventually("the client ends", || (!lives(client)).then_some(()));
    }
}
