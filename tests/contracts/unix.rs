//! Unix stream sockets: names, files, modes, connections both ways (U2), and sockets taken over from elsewhere (N1).

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::{SocketAddr, UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use nix::sys::socket::{MsgFlags, send};

use ringspun::{Address, Error, Reason, UnixAddress, UnixConnectOptions, UnixListenOptions};

use crate::{
    kit::{Event, Gate, Journal, Running, Script},
    peers::{LIMIT, Peer, pattern},
    setups::{Setup, on_every_backend},
};

on_every_backend!(
    u2_bytes_come_and_go_over_a_path,
    u2_an_abstract_name_has_no_file,
    u2_the_file_gets_its_mode_and_goes_with_the_port,
    u2_a_stale_file_is_taken_over,
    u2_of_many_who_find_a_stale_file_one_takes_it_over,
    u2_a_port_that_never_opens_leaves_no_file,
    u2_a_live_socket_is_refused,
    u2_what_is_no_socket_is_refused,
    u2_a_name_too_long_is_refused,
    u2_much_is_sent_and_received_in_order,
    u2_connect_unix_connects,
    u2_nobody_there_is_refused,
    u2_a_full_backlog_is_waited_for,
    u2_a_full_backlog_is_given_up_in_time,
    u2_an_abort_ends_the_connection_at_once,
    u2_the_end_of_the_reactor_removes_the_file,
    n1_an_adopted_port_serves,
    n1_an_adopted_unix_port_keeps_its_file,
    n1_an_adopted_connection_is_served,
    n1_a_factory_starts_for_an_adopted_connection_and_stops_after_it,
    n1_urgent_data_comes_among_all_other,
    n1_what_cannot_be_adopted_is_refused,
);

/// A folder of this test's own, gone with it.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("ringspun-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn dial(path: &Path) -> UnixStream {
    patient(UnixStream::connect(path).unwrap())
}

fn patient(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    stream
}

fn ask(stream: &mut UnixStream, question: &[u8]) {
    stream.write_all(question).unwrap();
    let mut answer = vec![0; question.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, question);
}

fn u2_bytes_come_and_go_over_a_path(setup: &Setup) {
    let (folder, running) = (Folder::new(), Running::start(setup.reactor()));
    let path = folder.file("echo");
    let factory = Script::echo().on_made(|cx, conn| {
        conn.note(format!("{} <- {}", cx.transport.get_host(), cx.transport.get_peer()));
        assert!(cx.transport.set_tcp_no_delay(true).is_err(), "there is no TCP below");
    });
    let journal = Journal::default();
    let port = running.reactor.listen_unix(path.as_path(), factory.journal(&journal)).unwrap();
    assert_eq!(port.get_host(), Address::Unix(UnixAddress::Path(path.clone())));
    let mut peer = dial(&path);
    ask(&mut peer, b"hello");
    journal.wait_note(&format!("{} <- unnamed", path.display()));
    drop(peer);
    assert_eq!(journal.wait_lost(0), "Done");
}

fn u2_an_abstract_name_has_no_file(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let name = format!("@ringspun-{}-{}", std::process::id(), setup.name);
    let port = running.reactor.listen_unix(name.as_str(), Script::echo()).unwrap();
    assert_eq!(port.get_host().to_string(), name);
    assert!(!Path::new(&name).exists());
    let address = SocketAddr::from_abstract_name(&name[1..]).unwrap();
    ask(&mut patient(UnixStream::connect_addr(&address).unwrap()), b"hello");
    let error = running.reactor.listen_unix(name.as_str(), Script::echo()).unwrap_err().to_string();
    assert!(error.contains(&name) && error.contains("in use"), "{error}");
}

fn u2_the_file_gets_its_mode_and_goes_with_the_port(setup: &Setup) {
    let (folder, running) = (Folder::new(), Running::start(setup.reactor()));
    let path = folder.file("echo");
    for mode in [0o600, 0o666] {
        let options = UnixListenOptions::from(path.as_path()).mode(mode).backlog(5);
        let port = running.reactor.listen_unix(options, Script::echo()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        let mut made = dial(&path);
        ask(&mut made, b"made");
        let done = Gate::default();
        let told = done.clone();
        port.on_done(move |_, _| told.open());
        port.stop_listening();
        assert!(!path.exists(), "the file goes at once");
        done.pass();
        ask(&mut made, b"still there?");
    }
}

fn u2_a_stale_file_is_taken_over(setup: &Setup) {
    let (folder, running) = (Folder::new(), Running::start(setup.reactor()));
    let path = folder.file("echo");
    drop(UnixListener::bind(&path).unwrap());
    assert!(fs::metadata(&path).unwrap().file_type().is_socket());
    running.reactor.listen_unix(path.as_path(), Script::echo()).unwrap();
    ask(&mut dial(&path), b"taken over");
}

fn u2_of_many_who_find_a_stale_file_one_takes_it_over(setup: &Setup) {
    for _ in 0..20 {
        let folder = Folder::new();
        let path = folder.file("echo");
        drop(UnixListener::bind(&path).unwrap());
        let (running, journal) = (Running::start(setup.reactor()), Journal::default());
        let start = Arc::new(Barrier::new(4));
        let claimants: Vec<_> = (0..4)
            .map(|_| {
                let (reactor, journal) = (running.reactor.clone(), journal.clone());
                let (path, start) = (path.clone(), Arc::clone(&start));
                thread::spawn(move || {
                    start.wait();
                    reactor.listen_unix(path, Script::echo().journal(&journal)).is_ok()
                })
            })
            .collect();
        let had = claimants.into_iter().map(|claimant| claimant.join().unwrap()).filter(|had| *had).count();
        assert_eq!(had, 1, "the others find it live");
        ask(&mut dial(&path), b"the one");
    }
}

fn u2_a_port_that_never_opens_leaves_no_file(setup: &Setup) {
    let folder = Folder::new();
    let path = folder.file("echo");
    drop({
        let reactor = setup.reactor();
        let port = reactor.listen_unix(path.as_path(), Script::echo()).unwrap();
        assert!(path.exists());
        (reactor, port)
    });
    assert!(!path.exists());
}

fn u2_a_live_socket_is_refused(setup: &Setup) {
    let (folder, reactor) = (Folder::new(), setup.reactor());
    let path = folder.file("echo");
    let live = UnixListener::bind(&path).unwrap();
    let error = reactor.listen_unix(path.as_path(), Script::new()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(path.to_str().unwrap()) && text.contains("in use"), "{text}");
    assert!(matches!(error, Error::CannotListen { cause, .. } if cause.kind() == ErrorKind::AddrInUse));
    // The one that was there goes on.
    live.set_nonblocking(true).unwrap();
    let _probe = live.accept().unwrap();
    let _peer = UnixStream::connect(&path).unwrap();
    live.accept().unwrap();
}

fn u2_what_is_no_socket_is_refused(setup: &Setup) {
    let (folder, reactor) = (Folder::new(), setup.reactor());
    let path = folder.file("notes");
    fs::write(&path, "keep me").unwrap();
    let text = reactor.listen_unix(path.as_path(), Script::new()).unwrap_err().to_string();
    assert!(text.contains("no socket") && text.contains("another path"), "{text}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "keep me");
    let nowhere = folder.file("missing/echo");
    let text = reactor.listen_unix(nowhere, Script::new()).unwrap_err().to_string();
    assert!(text.contains("missing/echo") && text.contains("No such file"), "{text}");
}

fn u2_a_name_too_long_is_refused(setup: &Setup) {
    let reactor = setup.reactor();
    for name in ["/".to_owned() + &"x".repeat(107), "@".to_owned() + &"x".repeat(108)] {
        let text = reactor.listen_unix(name, Script::new()).unwrap_err().to_string();
        assert!(text.contains("too long"), "{text}");
    }
    assert!(reactor.listen_unix("", Script::new()).is_err());
    assert!(reactor.listen_unix(UnixAddress::Unnamed, Script::new()).is_err());
}

fn u2_much_is_sent_and_received_in_order(setup: &Setup) {
    let (folder, running) = (Folder::new(), Running::start(setup.reactor()));
    let path = folder.file("echo");
    running.reactor.listen_unix(path.as_path(), Script::echo()).unwrap();
    let bytes = pattern(7, 3 << 20);
    let mut peer = dial(&path);
    let (mut out, sent) = (peer.try_clone().unwrap(), bytes.clone());
    let sender = std::thread::spawn(move || {
        out.write_all(&sent).unwrap();
        out.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    peer.read_to_end(&mut back).unwrap();
    sender.join().unwrap();
    assert!(back == bytes, "{} of {} bytes", back.len(), bytes.len());
}

fn u2_connect_unix_connects(setup: &Setup) {
    let (folder, running) = (Folder::new(), Running::start(setup.reactor()));
    let path = folder.file("echo");
    let journal = Journal::default();
    running.reactor.listen_unix(path.as_path(), Script::echo()).unwrap();
    let client = Script::new()
        .on_made(|cx, conn| {
            conn.note(format!("to {}", cx.transport.get_peer()));
            cx.transport.write(b"question");
        })
        .on_data(|cx, _, _| cx.transport.lose_connection());
    let connector = running.reactor.connect_unix(path.as_path(), client.journal(&journal));
    assert_eq!(connector.get_destination(), path.display().to_string());
    journal.wait_note(&format!("to {}", path.display()));
    journal.wait_for(Event::ClientLost("Done".to_owned()));
}

fn failure(journal: &Journal) -> String {
    let find = |events: &[Event]| {
        events.iter().find_map(|event| match event {
            Event::Failed(text) => Some(text.clone()),
            _ => None,
        })
    };
    journal.wait("a failure", |events| find(events).is_some());
    find(&journal.all()).unwrap()
}

fn u2_nobody_there_is_refused(setup: &Setup) {
    let (folder, running) = (Folder::new(), Running::start(setup.reactor()));
    let stale = folder.file("stale");
    drop(UnixListener::bind(&stale).unwrap());
    for (path, wanted) in [(stale, "Refused"), (folder.file("none"), "ENOENT")] {
        let journal = Journal::default();
        running.reactor.connect_unix(path, Script::new().journal(&journal));
        assert!(failure(&journal).contains(wanted), "{:?}", journal.all());
    }
}

/// A listener with room for one, which is taken.
pub(crate) fn full(path: &Path) -> (UnixListener, UnixStream) {
    let listener = UnixListener::bind(path).unwrap();
    let backlog = nix::sys::socket::Backlog::new(0).unwrap();
    nix::sys::socket::listen(&listener, backlog).unwrap();
    let first = UnixStream::connect(path).unwrap();
    (listener, first)
}

fn u2_a_full_backlog_is_waited_for(setup: &Setup) {
    let (folder, running) = (Folder::new(), Running::start(setup.reactor()));
    let path = folder.file("full");
    let (listener, _first) = full(&path);
    let journal = Journal::default();
    let client = Script::new().on_made(|cx, _| _ = cx.transport.write(b"at last"));
    running.reactor.connect_unix(path.as_path(), client.journal(&journal));
    journal.wait_for(Event::Connecting);
    // Two rounds of the loop: the attempt has met the full backlog.
    running.call(|_| ());
    running.call(|_| ());
    assert!(!journal.has(&Event::Made(0)), "there is no room");
    drop(listener.accept().unwrap());
    let mut peer = patient(listener.accept().unwrap().0);
    let mut said = [0; 7];
    peer.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"at last");
}

fn u2_a_full_backlog_is_given_up_in_time(setup: &Setup) {
    let (folder, running) = (Folder::new(), Running::start(setup.reactor()));
    let path = folder.file("full");
    let _full = full(&path);
    let journal = Journal::default();
    let options = UnixConnectOptions::from(path.as_path()).timeout(Duration::from_millis(60));
    running.reactor.connect_unix(options, Script::new().journal(&journal));
    assert!(failure(&journal).contains("TimedOut"), "{:?}", journal.all());
    let stopped = Journal::default();
    let connector = running.reactor.connect_unix(path.as_path(), Script::new().journal(&stopped));
    stopped.wait_for(Event::Connecting);
    connector.stop_connecting().unwrap();
    assert!(failure(&stopped).contains("User"), "{:?}", stopped.all());
}

fn u2_an_abort_ends_the_connection_at_once(setup: &Setup) {
    let (folder, running) = (Folder::new(), Running::start(setup.reactor()));
    let (path, journal) = (folder.file("echo"), Journal::default());
    let factory = Script::new().on_data(|cx, _, _| cx.transport.abort_connection()).journal(&journal);
    running.reactor.listen_unix(path.as_path(), factory).unwrap();
    let mut peer = dial(&path);
    peer.write_all(b"abort").unwrap();
    assert_eq!(journal.wait_lost(0), "Aborted");
    // There is no RST here: the peer is told of the end, and of an error where something of its own was left unread.
    let end = peer.read(&mut [0; 8]);
    assert!(
        matches!(&end, Ok(0)) || end.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionReset),
        "{end:?}"
    );
}

fn u2_the_end_of_the_reactor_removes_the_file(setup: &Setup) {
    let folder = Folder::new();
    let (path, journal) = (folder.file("echo"), Journal::default());
    let mut running = Running::start(setup.reactor());
    running.reactor.listen_unix(path.as_path(), Script::echo().journal(&journal)).unwrap();
    let mut peer = dial(&path);
    ask(&mut peer, b"here?");
    running.stop().unwrap();
    assert!(!path.exists());
    assert_eq!(journal.wait_lost(0), "Lost(Shutdown)");
    // What somebody else has put there meanwhile is left alone.
    let mut running = Running::start(setup.reactor());
    running.reactor.listen_unix(path.as_path(), Script::echo()).unwrap();
    fs::rename(&path, folder.file("moved")).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    running.stop().unwrap();
    assert!(path.exists());
}

fn n1_an_adopted_port_serves(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let kept = listener.try_clone().unwrap();
    let port = running.reactor.adopt_stream_port(listener.into(), Script::echo()).unwrap();
    assert_eq!(port.get_host(), Address::Tcp(address));
    Peer::dial(address).ask(b"adopted", b"adopted");
    drop(kept);
    port.stop_listening();
}

fn n1_an_adopted_unix_port_keeps_its_file(setup: &Setup) {
    let (folder, running) = (Folder::new(), Running::start(setup.reactor()));
    let path = folder.file("echo");
    let listener = UnixListener::bind(&path).unwrap();
    let port = running.reactor.adopt_stream_port(listener.into(), Script::echo()).unwrap();
    ask(&mut dial(&path), b"adopted");
    port.stop_listening();
    assert!(path.exists(), "who made it removes it");
}

fn n1_an_adopted_connection_is_served(setup: &Setup) {
    let (journal, running) = (Journal::default(), Running::start(setup.reactor()));
    let factory = running.reactor.add_factory(Script::echo().journal(&journal));
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    running.reactor.adopt_stream_connection(ours.into(), &factory).unwrap();
    ask(&mut theirs, b"over a pair");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut peer = Peer::dial(listener.local_addr().unwrap());
    let (accepted, _) = listener.accept().unwrap();
    running.reactor.adopt_stream_connection(accepted.into(), &factory).unwrap();
    peer.ask(b"over TCP", b"over TCP");
    drop((peer, theirs));
    journal.wait_losses(2);
}

fn n1_a_factory_starts_for_an_adopted_connection_and_stops_after_it(setup: &Setup) {
    let (journal, running) = (Journal::default(), Running::start(setup.reactor()));
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let factory = Script::echo()
        .on_failed(|_, _, _| unreachable!("nobody asked for a connector"))
        .on_client_lost(|_, _, _: &Reason| unreachable!("nobody asked for a connector"));
    running.reactor.adopt_stream_connection(ours.into(), factory.journal(&journal)).unwrap();
    ask(&mut theirs, b"served");
    drop(theirs);
    journal.wait_for(Event::Stopped);
    let life = journal.all().into_iter().filter(|event| !matches!(event, Event::Data(..)));
    let lost = Event::Lost(0, "Done".to_owned());
    assert_eq!(
        life.collect::<Vec<_>>(),
        [Event::Started, Event::Built(0), Event::Made(0), lost, Event::Stopped]
    );
}

fn n1_urgent_data_comes_among_all_other(setup: &Setup) {
    const ROUNDS: usize = 50;
    let running = Running::start(setup.reactor());
    let (listener, other) =
        (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let (at, other_at) = (listener.local_addr().unwrap(), other.local_addr().unwrap());
    let journal = Journal::default();
    let factory = running.reactor.add_factory(Script::new().journal(&journal));
    running.reactor.adopt_stream_port(listener.into(), &factory).unwrap();
    // Many, so that some of it comes while the reactor is at others.
    let mut peers = Vec::new();
    for _ in 0..8 {
        peers.push(TcpStream::connect(at).unwrap());
        peers.push(TcpStream::connect(other_at).unwrap());
        running.reactor.adopt_stream_connection(other.accept().unwrap().0.into(), &factory).unwrap();
    }
    let is_made = |event: &&Event| matches!(event, Event::Made(_));
    journal.wait("all", |events| events.iter().filter(is_made).count() == peers.len());
    let pieces = [(&b"abc"[..], MsgFlags::empty()), (b"X", MsgFlags::MSG_OOB), (b"def", MsgFlags::empty())];
    for round in 1..=ROUNDS {
        // The first time all of it is there before the reactor looks.
        let gate = Gate::default();
        if round == 1 {
            let held = gate.clone();
            running.reactor.call_from_thread(move |_| held.pass());
        }
        for peer in &peers {
            for (piece, flags) in pieces {
                assert_eq!(send(peer.as_raw_fd(), piece, flags), Ok(piece.len()));
            }
        }
        gate.open();
        for conn in 0..peers.len() {
            assert_eq!(journal.wait_bytes(conn, 7 * round), b"abcXdef".repeat(round));
        }
    }
}

fn n1_what_cannot_be_adopted_is_refused(setup: &Setup) {
    let reactor = setup.reactor();
    let file = || OwnedFd::from(fs::File::open("/dev/null").unwrap());
    let datagram = || OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    let listener = || OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
    let connected = || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        OwnedFd::from(TcpStream::connect(listener.local_addr().unwrap()).unwrap())
    };
    let refused = |wanted: &str, error: Option<Error>| {
        let text = error.expect("it cannot be adopted").to_string();
        assert!(text.starts_with("cannot adopt descriptor ") && text.contains(wanted), "{text}");
    };
    refused("not a socket", reactor.adopt_stream_port(file(), Script::new()).err());
    refused("not a stream socket", reactor.adopt_stream_port(datagram(), Script::new()).err());
    refused("does not listen", reactor.adopt_stream_port(connected(), Script::new()).err());
    refused("not a socket", reactor.adopt_stream_connection(file(), Script::new()).err());
    refused("not a stream socket", reactor.adopt_stream_connection(datagram(), Script::new()).err());
    refused("not connected", reactor.adopt_stream_connection(listener(), Script::new()).err());
}
