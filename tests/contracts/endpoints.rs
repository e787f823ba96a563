//! Endpoint strings (N2): each form serves, escapes come back as they were, mistakes are named. What a process is started with is in
//! `tests/faults/activation.rs`.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        linux::net::SocketAddrExt,
        unix::{
            fs::PermissionsExt,
            net::{SocketAddr, UnixListener, UnixStream},
        },
    },
    path::Path,
    sync::atomic::{AtomicI32, Ordering::SeqCst},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
};
use ringspun::{ClientEndpoint, Error, Port, ServerEndpoint, quote_string_argument};

use crate::{
    generations::ask_once,
    kit::{Event, Journal, Running, Script},
    peers::{Bound, LIMIT, Peer, Random},
    setups::{Setup, on_every_backend},
    unix::{Folder, full},
};

on_every_backend!(
    n2_a_tcp_string_serves,
    n2_a_unix_string_serves,
    n2_the_backlog_of_a_tcp_string_counts,
    n2_the_backlog_of_a_unix_string_counts,
    n2_a_descriptor_that_was_passed_serves_once,
    n2_what_was_not_passed_is_left_alone,
    n2_a_tcp_string_connects,
    n2_a_unix_string_connects,
    n2_a_string_with_escapes_connects_over_ipv6,
    n2_the_timeout_of_a_string_counts,
    n2_a_string_with_a_mistake_does_nothing,
);

fn listen(running: &Running, endpoint: &str) -> Port {
    running.reactor.listen(endpoint, Script::echo()).unwrap()
}

fn n2_a_tcp_string_serves(setup: &Setup) {
    let running = Running::start(setup.reactor());
    for (endpoint, ip) in [
        ("tcp:0:interface=127.0.0.1:backlog=50", "127.0.0.1"),
        ("tcp:port=0:interface=127.0.0.2", "127.0.0.2"),
        (r"tcp:0:\:\:1", "::1"),
        (r"tcp:interface=\:\:1:port=0", "::1"),
    ] {
        let address = listen(&running, endpoint).get_host().socket_addr().unwrap();
        assert_eq!(address.ip(), ip.parse::<IpAddr>().unwrap());
        Peer::dial(address).ask(b"hello", b"hello");
    }
    assert!(listen(&running, "tcp:0").get_host().socket_addr().unwrap().ip().is_unspecified());
    let shared = listen(&running, "tcp:0:interface=127.0.0.1:reusePort=yes").get_host();
    let again = format!("tcp:{}:127.0.0.1", shared.port().unwrap());
    listen(&running, &format!("{again}:reusePort=yes"));
    let error = running.reactor.listen(again, Script::echo()).unwrap_err().to_string();
    assert!(error.contains("in use"), "{error}");
    // One that was parsed before, for more than one reactor.
    let endpoint: ServerEndpoint = "tcp:0:interface=127.0.0.1".parse().unwrap();
    let port = running.reactor.listen(endpoint.clone(), Script::echo()).unwrap();
    Peer::dial(port.get_host().socket_addr().unwrap()).ask(b"hello", b"hello");
}

fn n2_a_unix_string_serves(setup: &Setup) {
    let (folder, running) = (Folder::new(), Running::start(setup.reactor()));
    for (name, mode) in [("plain", 0o640), (r"a:colon=and\more", 0o600)] {
        let path = folder.file(name);
        let quoted = quote_string_argument(path.to_str().unwrap());
        listen(&running, &format!("unix:{quoted}:mode={mode:o}:backlog=10"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        ask_once(UnixStream::connect(&path).unwrap()).unwrap();
    }
    let name = format!("ringspun-endpoint-{}-{}", std::process::id(), setup.name);
    listen(&running, &format!("unix:address=@{name}"));
    let address = SocketAddr::from_abstract_name(name).unwrap();
    ask_once(UnixStream::connect_addr(&address).unwrap()).unwrap();
}

/// Connects, unless that would have to wait.
fn knock(path: &Path) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let knocking = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(knocking.as_raw_fd(), &UnixAddr::new(path)?).map(|()| knocking)
}

// Reactors that do not run leave whoever comes in the backlog. The kernel lets one more wait than that says.

fn n2_the_backlog_of_a_tcp_string_counts(setup: &Setup) {
    let reactor = setup.reactor();
    let listen =
        |endpoint| reactor.listen(endpoint, Script::new()).unwrap().get_host().socket_addr().unwrap();
    let few = listen("tcp:0:interface=127.0.0.1:backlog=3");
    let dial = |address, patience| TcpStream::connect_timeout(&address, patience);
    let mut waiting: Vec<_> = (0..4).map(|_| dial(few, LIMIT).unwrap()).collect();
    // The fourth knows that it is connected an instant before the kernel has counted it, when another may slip in. And who has no answer soon may only
    // have stood still: the next waits until the kernel has asked twice, which it does again after a second.
    let mut is_left_outside = |milliseconds| match dial(few, Duration::from_millis(milliseconds)) {
        Ok(early) => {
            waiting.push(early);
            false
        }
        Err(error) => error.kind() == ErrorKind::TimedOut,
    };
    let all_are_left_outside = (0..9).any(|_| [200, 1500].into_iter().all(&mut is_left_outside));
    assert!(all_are_left_outside, "there was room for {}", waiting.len());
    let many = listen("tcp:0:interface=127.0.0.1");
    let _waiting: Vec<_> = (0..20).map(|_| dial(many, LIMIT).unwrap()).collect();
}

fn n2_the_backlog_of_a_unix_string_counts(setup: &Setup) {
    let (folder, reactor) = (Folder::new(), setup.reactor());
    let listen = |name, backlog| {
        let path = folder.file(name);
        let quoted = quote_string_argument(path.to_str().unwrap());
        let port = reactor.listen(format!("unix:{quoted}{backlog}"), Script::new()).unwrap();
        (path, port)
    };
    let (few, _port) = listen("few", ":backlog=3");
    let _waiting: Vec<_> = (0..4).map(|_| knock(&few).unwrap()).collect();
    assert_eq!(knock(&few).err(), Some(Errno::EAGAIN));
    let (many, _port) = listen("many", "");
    let _waiting: Vec<_> = (0..20).map(|_| knock(&many).unwrap()).collect();
}

/// Puts a descriptor where this process would have it had it been started with it: nobody here owns the number, and none is used
/// twice.
fn pass(descriptor: impl AsFd) -> RawFd {
    static NEXT: AtomicI32 = AtomicI32::new(700);
    fcntl(descriptor, FcntlArg::F_DUPFD(NEXT.fetch_add(1, SeqCst))).unwrap()
}

fn n2_a_descriptor_that_was_passed_serves_once(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let endpoint = format!("fd:{}", pass(listener));
    let port = listen(&running, &endpoint);
    Peer::dial(address).ask(b"passed", b"passed");
    let error = running.reactor.listen(&*endpoint, Script::echo()).unwrap_err().to_string();
    assert!(error.contains(&endpoint) && error.contains("taken already"), "{error}");
    port.stop_listening();
}

fn n2_what_was_not_passed_is_left_alone(setup: &Setup) {
    let reactor = setup.reactor();
    let refused = |number: RawFd, cause: &str| {
        let error = reactor.listen(format!("fd:{number}"), Script::echo()).unwrap_err().to_string();
        assert!(error.contains(&format!("fd:{number}")) && error.contains(cause), "{error}");
    };
    refused(1_000_000, "no such descriptor");
    let own = TcpListener::bind("127.0.0.1:0").unwrap();
    refused(own.as_raw_fd(), "close-on-exec");
    // What is no listening socket stays open, and its owner has it still.
    let (one, mut other) = UnixStream::pair().unwrap();
    for (descriptor, cause) in [
        (OwnedFd::from(one), "does not listen"),
        (fs::File::open("/dev/null").unwrap().into(), "not a socket"),
    ] {
        fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        refused(descriptor.as_raw_fd(), cause);
        fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        if cause == "does not listen" {
            UnixStream::from(descriptor).write_all(b"open").unwrap();
        }
    }
    other.read_exact(&mut [0; 4]).unwrap();
}

fn n2_a_tcp_string_connects(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for (endpoint, from) in [
        (format!("tcp:127.0.0.1:{port}"), "127.0.0.1"),
        (format!("tcp:localhost:{port}:timeout=15"), "127.0.0.1"),
        (format!("tcp:port={port}:host=127.0.0.1:bindAddress=127.0.0.3"), "127.0.0.3"),
    ] {
        let client = Script::new().on_made(|cx, _| _ = cx.transport.write(b"hello"));
        running.reactor.connect(&*endpoint, client).unwrap();
        let (stream, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip().to_string(), from);
        assert_eq!(Peer::new(stream).read_exactly(5), b"hello");
    }
}

fn n2_a_unix_string_connects(setup: &Setup) {
    let (folder, running) = (Folder::new(), Running::start(setup.reactor()));
    let path = folder.file("a:b");
    let listener = UnixListener::bind(&path).unwrap();
    let quoted = quote_string_argument(path.to_str().unwrap());
    let name = format!("ringspun-test-{}-{}", std::process::id(), setup.name);
    let nameless = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let destination = path.display().to_string();
    for (endpoint, listener, destination) in [
        (format!("unix:{quoted}"), &listener, &destination),
        (format!("unix:timeout=5:path={quoted}"), &listener, &destination),
        (format!("unix:@{name}"), &nameless, &format!("@{name}")),
    ] {
        let client = Script::new().on_made(|cx, _| _ = cx.transport.write(b"hello"));
        let connector = running.reactor.connect(endpoint, client).unwrap();
        let mut hello = [0; 5];
        listener.accept().unwrap().0.read_exact(&mut hello).unwrap();
        assert_eq!(&hello, b"hello");
        assert_eq!(connector.get_destination(), *destination);
    }
}

fn n2_a_string_with_escapes_connects_over_ipv6(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let endpoint = format!(r"tcp:\:\:1:{}", listener.local_addr().unwrap().port());
    let client = Script::new().on_made(|cx, _| _ = cx.transport.write(b"hello"));
    running.reactor.connect(endpoint, client).unwrap();
    assert_eq!(Peer::new(listener.accept().unwrap().0).read_exactly(5), b"hello");
}

fn n2_the_timeout_of_a_string_counts(setup: &Setup) {
    let (folder, running) = (Folder::new(), Running::start(setup.reactor()));
    // With room for one that waits, which is taken: who comes then is not answered.
    let listener = Bound::new().listen(0);
    let address = listener.local_addr().unwrap();
    let _first = TcpStream::connect(address).unwrap();
    let path = folder.file("full");
    let _full = full(&path);
    let quoted = quote_string_argument(path.to_str().unwrap());
    let attempts = [format!("tcp:127.0.0.1:{}", address.port()), format!("unix:{quoted}")].map(|where_to| {
        let (journal, begun) = (Journal::default(), Instant::now());
        running.reactor.connect(where_to + ":timeout=1", Script::new().journal(&journal)).unwrap();
        (journal, begun)
    });
    for (journal, begun) in attempts {
        journal.wait_for(Event::Failed("TimedOut".to_owned()));
        assert!(begun.elapsed() >= Duration::from_secs(1), "given up after {:?}", begun.elapsed());
    }
}

fn n2_a_string_with_a_mistake_does_nothing(setup: &Setup) {
    let reactor = setup.reactor();
    let error = reactor.listen("tcp:80x", Script::new()).unwrap_err();
    assert!(matches!(&error, Error::Endpoint(mistake) if mistake.position() == 5), "{error}");
    let error = reactor.connect("tcp:localhost", Script::new()).unwrap_err();
    assert!(matches!(&error, Error::Endpoint(mistake) if mistake.position() == 14), "{error}");
    let error = reactor.listen("unix:/missing/folder/x", Script::new()).unwrap_err().to_string();
    assert!(error.contains("/missing/folder/x") && error.contains("No such file"), "{error}");
    let error = reactor.listen("systemd:name=web", Script::new()).unwrap_err().to_string();
    assert!(error.contains("systemd:name=web") && error.contains("Activation"), "{error}");
}

/// String, character, what is said of it.
const SERVER_MISTAKES: &[(&str, usize, &str)] = &[
    ("", 1, "\"\" is no kind of server endpoint; there are tcp, unix, systemd and fd"),
    ("8080", 1, "\"8080\" is no kind"),
    ("tcp=80", 1, "\"tcp=80\" is no kind"),
    ("ssl:443", 1, "ssl is not there yet; use tcp"),
    ("tls:443", 1, "tls is not there yet"),
    ("tcp", 4, "tcp needs port=.."),
    ("tcp:", 5, "\"\" is no port; give a number from 0 to 65535"),
    ("tcp:80x80", 5, "\"80x80\" is no port"),
    ("tcp:65536", 5, "\"65536\" is no port"),
    ("tcp:-1", 5, "\"-1\" is no port"),
    ("tcp:+1", 5, "\"+1\" is no port"),
    ("tcp:port=99999999999999999999", 10, "is no port"),
    ("tcp:80:prot=80", 8, "tcp has no argument \"prot\"; it has port, interface, backlog and reusePort"),
    ("tcp:80:port=81", 8, "port is there twice; leave one out"),
    ("tcp:80:backlog=5:backlog=5", 18, "backlog is there twice"),
    ("tcp:80:127.0.0.1:5:no:more", 23, "no argument \"more\""),
    ("tcp:80:interface=lo", 18, "\"lo\" is no IP address; give one such as 127.0.0.1"),
    // Colons that should have been escaped.
    ("tcp:80:interface=::1", 19, "interface is there twice"),
    ("tcp:80:backlog=many", 16, "\"many\" is no backlog"),
    ("tcp:80:reusePort=1", 18, "\"1\" is neither yes nor no"),
    (r"tcp:80\", 7, "nothing follows the backslash"),
    ("unix:", 6, "\"\" is no path"),
    ("unix:/run/x:mode=668", 18, "\"668\" is no mode of a file; give an octal number from 0 to 777"),
    ("unix:/run/x:mode=4755", 18, "\"4755\" is no mode"),
    ("unix:/run/x:mode=rw", 18, "\"rw\" is no mode"),
    ("unix:@web:mode=660", 19, "a name without a file has no mode"),
    ("unix:/run/x:lockfile=0", 13, "unix has no argument \"lockfile\"; it has address, mode and backlog"),
    ("systemd:INET", 13, "systemd needs index=.. or name=.."),
    ("systemd:index=0:name=web", 25, "either index or name"),
    ("systemd:domain=AF_INET:index=0", 16, "\"AF_INET\" is no domain; give INET, INET6 or UNIX"),
    ("systemd:index=first", 15, "\"first\" is no index"),
    ("fd:2", 4, "\"2\" is no descriptor to adopt; give a number from 3 to 2147483647"),
    ("fd", 3, "fd needs number=.."),
];

const CLIENT_MISTAKES: &[(&str, usize, &str)] = &[
    ("systemd:name=web", 1, "\"systemd\" is no kind of client endpoint; there are tcp and unix"),
    ("tcp:example.com", 16, "tcp needs port=.."),
    ("tcp::80", 5, "\"\" names no host"),
    ("tcp:example.com:0", 17, "\"0\" is no port to connect to; give a number from 1 to 65535"),
    ("tcp:example.com:80:timeout=0", 28, "\"0\" is no timeout in whole seconds"),
    ("tcp:example.com:80:timeout=1.5", 28, "\"1.5\" is no timeout"),
    ("tcp:example.com:80:bindAddress=home", 32, "\"home\" is no IP address"),
    ("unix:/run/x:backlog=5", 13, "unix has no argument \"backlog\"; it has path and timeout"),
];

#[test]
fn n2_mistakes_are_named_with_their_place() {
    let judge = |text: &str, place: usize, said: &str, error: Option<ringspun::EndpointError>| {
        let error = error.unwrap_or_else(|| panic!("{text} has no mistake"));
        assert_eq!(error.position(), place, "{error}");
        let shown = error.to_string();
        assert!(shown.contains(said) && shown.contains(&format!("\"{text}\"")), "{shown}");
    };
    for (text, place, said) in SERVER_MISTAKES {
        judge(text, *place, said, text.parse::<ServerEndpoint>().err());
    }
    for (text, place, said) in CLIENT_MISTAKES {
        judge(text, *place, said, text.parse::<ClientEndpoint>().err());
    }
}

#[test]
fn n2_an_endpoint_is_written_as_it_is_read() {
    for (text, shortest) in [
        ("tcp:port=80:interface=0.0.0.0", "tcp:80"),
        (r"tcp:80:\:\:1:50:yes", r"tcp:80:interface=\:\:1:backlog=50:reusePort=yes"),
        ("tcp:80:reusePort=no", "tcp:80"),
        ("unix:mode=0660:address=/run/x", "unix:/run/x:mode=660"),
        // Behind a name, an equals sign needs no escape.
        ("unix:address=/run/a=b", r"unix:/run/a\=b"),
        (r"\unix:@a\\b", r"unix:@a\\b"),
        ("systemd:INET6:0", "systemd:domain=INET6:index=0"),
        ("systemd:name=web", "systemd:name=web"),
        ("fd:number=03", "fd:3"),
    ] {
        assert_eq!(text.parse::<ServerEndpoint>().unwrap().to_string(), shortest);
    }
    for (text, shortest) in [
        ("tcp:port=80:host=example.com", "tcp:example.com:80"),
        (r"tcp:\:\:1:80:15:\:\:", r"tcp:\:\:1:80:timeout=15:bindAddress=\:\:"),
        ("unix:timeout=5:path=/run/x", "unix:/run/x:timeout=5"),
    ] {
        assert_eq!(text.parse::<ClientEndpoint>().unwrap().to_string(), shortest);
    }
}

/// A text of the grammar's own characters and a few others.
fn any_text(random: &mut Random, longest: usize) -> String {
    const CHARACTERS: [char; 12] = [':', '=', '\\', '@', '/', '.', '0', '7', 'a', 'ü', ' ', '\n'];
    (0..random.below(longest) + 1).map(|_| CHARACTERS[random.below(CHARACTERS.len())]).collect()
}

#[test]
fn n2_any_text_can_be_quoted() {
    let mut random = Random::new(28);
    for _ in 0..20_000 {
        let text = any_text(&mut random, 12);
        let quoted = quote_string_argument(&text);
        for endpoint in [format!("unix:{quoted}:backlog=7"), format!("unix:backlog=7:address={quoted}")] {
            let endpoint: ServerEndpoint = endpoint.parse().unwrap();
            assert_eq!(endpoint.to_string(), format!("unix:{quoted}:backlog=7"));
        }
        let endpoint: ClientEndpoint = format!("tcp:host={quoted}:port=80").parse().unwrap();
        assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
    }
}

#[test]
fn n2_no_string_is_read_in_two_ways() {
    let (mut random, mut good) = (Random::new(7), 0);
    let words = ["tcp", "unix", "systemd", "fd", "port", "mode", "index", "timeout", "127.0.0.1", "80", "3"];
    for _ in 0..100_000 {
        let mut text = words[random.below(4)].to_owned();
        for _ in 0..random.below(5) {
            let word = words[random.below(words.len())];
            let glue = [":", ":", ":", "=", "\\", "\\:"][random.below(6)];
            text += &format!("{glue}{word}");
        }
        if let Ok(endpoint) = text.parse::<ServerEndpoint>() {
            assert_eq!(endpoint.to_string().parse(), Ok(endpoint), "{text}");
            good += 1;
        }
        if let Ok(endpoint) = text.parse::<ClientEndpoint>() {
            assert_eq!(endpoint.to_string().parse(), Ok(endpoint), "{text}");
        }
    }
    assert!(good > 1000, "{good} are good");
}
