//! What goes wrong ends in one clear line that names the thing, and in the right exit code.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener},
    os::fd::{AsRawFd, OwnedFd},
    panic::resume_unwind,
    thread,
};

use nix::{
    errno::Errno,
    sys::{
        signal::kill,
        socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, socket},
    },
};

use crate::{
    on_every_backend,
    running::{Ended, Running, connect},
};

const SERVERS: [&str; 4] = ["echo_server", "fibonacci_server", "chat_server", "all_cores_server"];

on_every_backend!(
    a_port_in_use_is_named,
    the_client_gives_up_without_a_server,
    the_client_survives_a_server_that_hangs_up,
    a_port_can_be_used_again_at_once,
);

fn one_line(ended: &Ended, code: i32, parts: &[&str]) {
    ended.exited_with(code);
    let [line] = &ended.log[..] else { panic!("not one line: {ended:#?}") };
    assert!(parts.iter().all(|part| line.contains(part)), "{parts:?} are not all in {line:?}");
}

fn a_port_in_use_is_named(backend: &str) {
    let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = holder.local_addr().unwrap().port().to_string();
    for name in SERVERS {
        let ended = Running::start(name, backend, &[&port]).wait();
        one_line(&ended, 1, &[name, &format!("0.0.0.0:{port}"), "Address already in use"]);
    }
}

fn the_client_gives_up_without_a_server(backend: &str) {
    let (_reserved, port) = port_without_listener();
    let ended = Running::start("echo_client", backend, &[&port.to_string()]).wait();
    assert_eq!(ended.out, ["Connection failed - goodbye!"]);
    one_line(&ended, 0, &[&format!("localhost:{port}"), "refused"]);
}

fn the_client_survives_a_server_that_hangs_up(backend: &str) {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = server.local_addr().unwrap().port().to_string();
    let client = Running::start("echo_client", backend, &[&port]);
    let (mut stream, _) = server.accept().unwrap();
    stream.read_exact(&mut [0; 13]).unwrap();
    drop(stream);
    let ended = client.wait();
    assert_eq!(ended.out, ["connection lost", "Connection lost - goodbye!"]);
    ended.exited_with(0);
}

/// A server that comes back on its port while old connections are still in TIME_WAIT.
fn a_port_can_be_used_again_at_once(backend: &str) {
    let (server, port) = Running::serve("echo_server", backend);
    let mut client = connect(port);
    client.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
    server.terminate(port);
    let mut again = Running::start("echo_server", backend, &[&port.to_string()]);
    again.wait_for_log("Starting factory EchoFactory");
    let mut client = connect(port);
    client.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
    again.terminate(port);
}

#[test]
fn an_argument_that_is_no_port_is_a_usage_error() {
    for name in SERVERS.into_iter().chain(["echo_client"]) {
        let default = if name == "fibonacci_server" { "8888 by default" } else { "8000 by default" };
        for word in ["http", "-1", "65536", ""] {
            let ended = Running::start(name, "epoll", &[word]).wait();
            one_line(&ended, 2, &[name, &format!("{word:?}"), "usage", "[PORT]", default]);
        }
        let ended = Running::start(name, "epoll", &["0", "0"]).wait();
        one_line(&ended, 2, &[name, "too many arguments", "usage"]);
    }
}

#[test]
fn a_backend_that_does_not_exist_is_named_with_those_that_do() {
    for name in SERVERS.into_iter().chain(["echo_client"]) {
        let ended = Running::start(name, "kqueue", &["0"]).wait();
        one_line(&ended, 1, &[name, "RINGSPUN_BACKEND=kqueue", "auto, io_uring, epoll or threads"]);
    }
}

#[test]
fn a_test_that_fails_leaves_no_process_behind() {
    let (server, _port) = Running::serve("echo_server", "epoll");
    let pid = server.pid();
    let failed = thread::spawn(move || {
        let _running = server;
        resume_unwind(Box::new("this test failed"));
    });
    assert!(failed.join().is_err());
    assert_eq!(kill(pid, None), Err(Errno::ESRCH), "the server lives on");
}

/// A port that is taken, so that nobody else can listen on it, and on which nobody listens.
fn port_without_listener() -> (OwnedFd, u16) {
    let taken = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(taken.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    let port = getsockname::<SockaddrIn>(taken.as_raw_fd()).unwrap().port();
    (taken, port)
}
