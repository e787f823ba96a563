//! Processes that are started with listening sockets (N2), and hand them on to their successors (N3).

use std::{
    fs,
    io::ErrorKind,
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixSocketAddr, UnixListener, UnixStream},
    },
    process::{Command, Stdio},
};

use ringspun::Activation;

use crate::{
    child::{Child, Role, hear_parent, in_child, is_child, role_with, tell_parent},
    generations::{Callers, Generation, ask_once, call},
    kit::{Running, Script},
    peers::Peer,
    setups::{Setup, on_every_backend},
};

on_every_backend!(
    n2_systemd_sockets_are_had_by_name_and_index,
    n2_sockets_for_another_process_are_left_alone,
    n3_successors_take_over_under_load,
);

fn n2_systemd_sockets_are_had_by_name_and_index(setup: &Setup) {
    if is_child() {
        return listen_on_what_was_passed(setup);
    }
    let tcp = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let name = UnixSocketAddr::from_abstract_name(format!("ringspun-{}-{}", std::process::id(), setup.name))
        .unwrap();
    let unix = UnixListener::bind_addr(&name).unwrap();
    let [first, second] = [&tcp[0], &tcp[1]].map(|socket| socket.local_addr().unwrap());
    let sockets = Activation::new()
        .socket("web", tcp[0].try_clone().unwrap())
        .socket("web", tcp[1].try_clone().unwrap())
        .socket("local", unix.try_clone().unwrap())
        .socket("none", UnixStream::pair().unwrap().0);
    let mut child = Child::start_with(setup.test, sockets);
    assert_eq!(child.hear(), format!("{first} {second}"));
    for address in [first, second] {
        Peer::dial(address).ask(b"activated", b"activated");
    }
    ask_once(UnixStream::connect_addr(&name).unwrap()).unwrap();
    child.tell("finish");
    child.expect_success();
    // The child has closed its own, and the sockets listen here as before.
    let _peer = Peer::dial(first);
    tcp[0].accept().unwrap();
}

fn listen_on_what_was_passed(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let listen = |endpoint: &str| running.reactor.listen(endpoint, Script::echo());
    let refused = |endpoint: &str, cause: &str| {
        let error = listen(endpoint).unwrap_err().to_string();
        assert!(error.contains(endpoint) && error.contains(cause), "{error}");
    };
    refused("systemd:name=wab", "no socket is called wab among the 4 passed: web, web, local, none");
    refused("systemd:index=4", "no socket 4, counted from 0, among the 4 passed");
    refused("systemd:domain=INET6:name=web", "its domain is INET, not INET6");
    refused("systemd:name=none", "does not listen");
    // What was refused was not taken. Of two with one name, the next that is left.
    let first = listen("systemd:domain=INET:name=web").unwrap();
    let second = listen("systemd:name=web").unwrap();
    let third = listen("systemd:UNIX:2").unwrap();
    refused("systemd:name=web", "taken already");
    refused("systemd:index=0", "taken already");
    refused("fd:5", "taken already");
    for number in [3, 4, 5] {
        let flags = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
        let flags = flags.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim().to_owned();
        let flags = i32::from_str_radix(&flags, 8).unwrap();
        assert!(flags & libc::O_CLOEXEC != 0, "programs started from here would inherit {number}");
    }
    tell_parent(format!("{} {}", first.get_host(), second.get_host()));
    assert_eq!(hear_parent(), "finish");
    third.stop_listening();
}

fn n2_sockets_for_another_process_are_left_alone(setup: &Setup) {
    match role_with(setup.test, &[("LISTEN_PID", "1"), ("LISTEN_FDS", "1")]) {
        Role::Child => {
            let error = setup.reactor().listen("systemd:index=0", Script::new()).unwrap_err().to_string();
            assert!(error.contains("LISTEN_PID is 1, and this is"), "{error}");
        }
        Role::Parent(child) => child.expect_success(),
    }
}

/// From process to process, four times, while four clients call: each answer is had.
fn n3_successors_take_over_under_load(setup: &Setup) {
    if is_child() {
        let serving = Generation::serve(setup.reactor(), "systemd:name=web");
        tell_parent("serving");
        assert_eq!(hear_parent(), "retire");
        return serving.retire();
    }
    let first = Generation::serve(setup.reactor(), "tcp:0:interface=127.0.0.1");
    let address: SocketAddr = first.port.get_host().socket_addr().unwrap();
    let socket = first.port.try_clone_socket().unwrap();
    let succeed = || {
        let sockets = Activation::new().socket("web", socket.try_clone().unwrap());
        let successor = Child::start_with(setup.test, sockets);
        assert_eq!(successor.hear(), "serving");
        successor
    };
    let retire = |mut child: Child| {
        child.tell("retire");
        child.expect_success();
    };
    let callers = Callers::start(4, move || call(address));
    callers.wait_for(50);
    let mut serving = succeed();
    first.retire();
    for _ in 0..3 {
        callers.wait_for(50);
        let successor = succeed();
        callers.wait_for(10);
        retire(serving);
        serving = successor;
    }
    callers.wait_for(50);
    assert!(callers.stop() >= 200);
    drop(socket);
    retire(serving);
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

fn say(sockets: Activation, script: &str, change: impl FnOnce(&mut Command)) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", "an argument"]).stdout(Stdio::piped());
    change(&mut command);
    let output = sockets.spawn(command).unwrap().wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn any_socket() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

#[test]
fn n2_a_program_is_started_as_systemd_does_it() {
    let sockets = || Activation::new().socket("web", any_socket()).socket("an other", any_socket());
    let said = say(
        sockets(),
        "test $LISTEN_PID = $$ && echo $LISTEN_FDS:$LISTEN_FDNAMES; echo $1 $OWN $HOME$LISTEN_PIDFDID; \
         for n in 3 4; do readlink /proc/$$/fd/$n | cut -d: -f1; done",
        |command| {
            command.env("OWN", "variable").env_remove("HOME").env("LISTEN_PIDFDID", "7");
        },
    );
    assert_eq!(said, "2:web:an other\nan argument variable\nsocket\nsocket\n");
    assert_eq!(say(Activation::new(), "echo $LISTEN_FDS", |_| ()), "0\n");
    assert_eq!(say(sockets(), "pwd", |command| _ = command.current_dir("/")), "/\n");
}

#[test]
fn n2_a_program_that_cannot_be_started_is_an_error() {
    in_child("activation::n2_a_program_that_cannot_be_started_is_an_error", || {
        // The numbers that the sockets are to have are free, and what is opened to tell of the failure would have one of them.
        let low: Vec<_> = (0..10).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let sockets = Activation::new().socket("web", any_socket()).socket("web", any_socket());
        drop(low);
        let error = sockets.spawn(Command::new("/nowhere/at all")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    });
    for name in ["", "a:b", "ü", "a\nb", &"x".repeat(256)] {
        let error = Activation::new().socket(name, any_socket()).spawn(Command::new("sh")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("cannot be the name"), "{error}");
    }
}
