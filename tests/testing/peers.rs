//! What a test's end of a connection can do, and sees.

use ringspun::{
    Address, DatagramCx, Errno, Limits, Reactor, Write,
    testing::{Answer, End, MemoryReactor},
};

use crate::{Journal, echoing, noting};

const ANY: (&str, u16) = ("127.0.0.1", 0);

#[test]
fn m1_bytes_go_both_ways_and_each_end_has_an_address() {
    let (mut memory, journal) = (MemoryReactor::new(), Journal::default());
    let factory = noting(&journal, |cx, _| {
        let (peer, host) = (cx.transport.get_peer(), cx.transport.get_host());
        cx.transport.write_with(|out| write!(out, "{peer} {host}"));
        cx.transport.set_tcp_no_delay(false).unwrap();
        assert!(!cx.transport.get_tcp_no_delay().unwrap() && !cx.transport.get_tcp_keep_alive().unwrap());
    });
    let port = memory.reactor().listen_tcp(8000, factory).unwrap();
    let from: std::net::SocketAddr = "10.0.0.3:4711".parse().unwrap();
    let mut peer = memory.connect_from(from, &port).unwrap();
    peer.send(b"who?");
    assert_eq!((peer.unsent(), peer.take_received().len()), (4, 0), "nothing happens without a turn");
    memory.turn();
    assert_eq!(peer.unsent(), 0);
    assert_eq!(peer.take_received(), b"10.0.0.3:4711 127.0.0.1:8000");
    assert_eq!(journal.take(), ["started", "made", "data who?"]);
    drop(peer);
    memory.turn();
    assert_eq!(journal.take(), ["lost Done"]);
}

#[test]
fn m1_a_peer_that_does_not_read_makes_the_program_wait() {
    let (mut memory, journal) = (MemoryReactor::new(), Journal::default());
    memory.set_buffer_bytes(1000);
    let factory = noting(&journal, |cx, _| {
        let piece: Vec<u8> = (0..100_000u32).map(|number| (number % 251) as u8).collect();
        assert_eq!(cx.transport.write(&piece), Write::Full);
    });
    let port = memory.reactor().listen_tcp(ANY, factory).unwrap();
    let mut peer = memory.connect(&port).unwrap();
    peer.pause();
    peer.send(b"!");
    memory.turn();
    assert_eq!(journal.take(), ["started", "made", "data !", "pause writing"]);
    assert_eq!(peer.take_received(), b"", "it is paused");
    let mut received = Vec::new();
    while journal.take().is_empty() {
        peer.resume();
        received.extend(peer.take_received());
        peer.pause();
        memory.turn();
    }
    assert!(
        received.len() > 80_000 && received.len() < 100_000,
        "{}: resumed at the low mark",
        received.len()
    );
    peer.resume();
    memory.turn();
    received.extend(peer.take_received());
    assert!(received.iter().copied().eq((0..100_000u32).map(|number| (number % 251) as u8)));
}

#[test]
fn m1_a_limit_ends_a_connection_whose_peer_does_not_read() {
    let journal = Journal::default();
    let limits = Limits { output_max: 200_000, ..Limits::default() };
    let mut memory = MemoryReactor::build(Reactor::builder().limits(limits)).unwrap();
    let factory = noting(&journal, |cx, _| {
        let _ = cx.transport.write(&[0; 100_000]);
    });
    let port = memory.reactor().listen_tcp(ANY, factory).unwrap();
    let mut peer = memory.connect(&port).unwrap();
    peer.pause();
    for _ in 0..5 {
        peer.send(b"m");
        memory.turn();
    }
    assert_eq!(journal.take().last().unwrap(), "lost Limit(Output)");
    assert_eq!(peer.end(), Some(End::Reset));
    peer.resume();
    assert_eq!(peer.take_received(), b"", "RST overtakes what was not received");
}

#[test]
fn m1_what_a_closed_peer_is_sent_comes_back_as_a_reset() {
    let (mut memory, journal) = (MemoryReactor::new(), Journal::default());
    let factory = noting(&journal, |cx, _| {
        cx.transport.pause_producing();
        cx.transport.write(b"one");
        cx.call_later(std::time::Duration::from_secs(1), |_, cx| {
            let _ = cx.transport.write(b"two");
        });
        cx.call_later(std::time::Duration::from_secs(2), |_, cx| {
            let _ = cx.transport.write(b"three");
        });
    });
    let port = memory.reactor().listen_tcp(ANY, factory).unwrap();
    let mut peer = memory.connect(&port).unwrap();
    peer.send(b"go");
    memory.turn();
    peer.close();
    memory.advance(std::time::Duration::from_secs(1));
    assert_eq!(journal.take(), ["started", "made", "data go"]);
    memory.advance(std::time::Duration::from_secs(1));
    assert_eq!(journal.take(), ["lost Lost(Errno(EPIPE))"]);
    assert_eq!(memory.pending_calls(), 0);
}

#[test]
fn m1_a_close_before_all_was_received_is_a_reset() {
    let (mut memory, journal) = (MemoryReactor::new(), Journal::default());
    let port = memory.reactor().listen_tcp(ANY, echoing(&journal)).unwrap();
    let mut peer = memory.connect(&port).unwrap();
    peer.pause();
    peer.send(b"echo");
    memory.turn();
    peer.close();
    memory.turn();
    assert_eq!(journal.take(), ["started", "made", "data echo", "lost Lost(Errno(ECONNRESET))"]);
}

#[test]
fn m1_data_comes_in_segments_of_any_size() {
    let (mut memory, journal) = (MemoryReactor::new(), Journal::default());
    memory.set_segment_bytes(2);
    let port = memory.reactor().listen_tcp(ANY, echoing(&journal)).unwrap();
    let mut peer = memory.connect(&port).unwrap();
    peer.send(b"abcde");
    memory.turn();
    assert_eq!(journal.take(), ["started", "made", "data ab", "data cd", "data e"]);
    assert_eq!(peer.take_received(), b"abcde");
}

#[test]
fn m1_a_port_is_had_once_and_stopped_turns_away() {
    let (mut memory, journal) = (MemoryReactor::new(), Journal::default());
    let port = memory.reactor().listen_tcp(("127.0.0.1", 80), echoing(&journal)).unwrap();
    let error = memory.reactor().listen_tcp(80, echoing(&journal)).unwrap_err().to_string();
    assert!(error.starts_with("cannot listen on 0.0.0.0:80: Address already in use"), "{error}");
    let early = memory.connect(&port).unwrap();
    port.stop_listening();
    assert_eq!(early.end(), Some(End::Reset), "it waited");
    let refused = memory.connect(&port).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    memory.reactor().listen_tcp(80, echoing(&journal)).unwrap();
    assert!(memory.connect(&port).is_ok(), "on all interfaces, so on that one, too");
    memory.turn();
    assert_eq!(journal.take(), ["started", "made", "lost Done"]);
    // A line that is full takes nobody.
    let options = ringspun::ListenOptions::from(("::1", 0)).backlog(1);
    let narrow = memory.reactor().listen_tcp(options, echoing(&journal)).unwrap();
    let _first = memory.connect(&narrow).unwrap();
    assert!(memory.connect(&narrow).is_err());
    memory.turn();
    assert!(memory.connect(&narrow).is_ok());
}

#[test]
fn m1_connections_outwards_find_whoever_listens() {
    let (mut memory, journal) = (MemoryReactor::new(), Journal::default());
    let address: std::net::SocketAddr = "10.1.1.1:25".parse().unwrap();
    let connector = memory.reactor().connect_tcp(address, echoing(&journal));
    memory.turn();
    assert_eq!(journal.take(), ["started", "failed Refused", "stopped"]);
    memory.answer(address, Answer::Error(Errno::from_raw(nix::libc::ENETUNREACH)));
    connector.connect().unwrap();
    memory.turn();
    assert_eq!(journal.take()[1], "failed Unreachable(ENETUNREACH)");
    let server = memory.listen(address).unwrap();
    assert!(server.accept().is_none());
    connector.connect().unwrap();
    memory.turn();
    let mut peer = server.accept().unwrap();
    peer.send(b"220");
    memory.turn();
    assert_eq!((peer.take_received(), server.address()), (b"220".to_vec(), address.into()));
    assert_eq!(journal.take(), ["started", "made", "data 220"]);
    let named = memory.reactor().connect_tcp(("nobody.example", 25), echoing(&journal));
    memory.turn();
    assert!(journal.take()[1].contains("nobody.example is no host of this network"));
    memory.add_host("nobody.example", [address.ip()]);
    named.connect().unwrap();
    memory.turn();
    assert!(server.accept().is_some());
    assert_eq!(journal.take()[1], "made");
}

#[test]
fn m1_a_program_can_connect_to_itself() {
    let (mut memory, served, asked) = (MemoryReactor::new(), Journal::default(), Journal::default());
    memory.set_buffer_bytes(4);
    let port = memory.reactor().listen_tcp(ANY, echoing(&served)).unwrap();
    let client = noting(&asked, |cx, data| {
        if data == b".." {
            cx.transport.lose_connection();
        }
    });
    memory.reactor().connect_tcp(port.get_host().socket_addr().unwrap(), client.greeting(b"small steps..."));
    memory.turn();
    // No more than four bytes fit on their way.
    let pieces = ["started", "made", "data smal", "data l st", "data eps.", "data .."];
    assert_eq!(served.take(), [&pieces[..], &["lost Done"]].concat());
    assert_eq!(asked.take(), [&pieces[..], &["lost Done", "stopped"]].concat());
    assert_eq!(memory.pending_calls(), 0);
}

#[test]
fn m1_unix_sockets_have_their_names() {
    let (mut memory, journal) = (MemoryReactor::new(), Journal::default());
    let factory = noting(&journal, |cx, _| {
        let (peer, host) = (cx.transport.get_peer(), cx.transport.get_host());
        cx.transport.write_with(|out| write!(out, "{peer} {host}"));
        assert!(cx.transport.get_tcp_no_delay().is_err());
    });
    let port = memory.reactor().listen_unix("/run/web.sock", factory).unwrap();
    assert!(memory.reactor().listen_unix("/run/web.sock", echoing(&journal)).is_err());
    assert!(!std::path::Path::new("/run/web.sock").exists(), "it is only memory");
    let mut peer = memory.connect(&port).unwrap();
    peer.send(b"who?");
    memory.reactor().connect_unix("/run/web.sock", noting(&journal, |_, _| ()).greeting(b"me"));
    memory.turn();
    assert_eq!(peer.take_received(), b"unnamed /run/web.sock");
    assert!(journal.take().contains(&"data unnamed /run/web.sock".to_owned()));
    memory.reactor().connect_unix("@elsewhere", echoing(&journal));
    memory.turn();
    assert!(journal.take().contains(&"failed Refused".to_owned()));
}

#[test]
fn m1_what_is_not_in_memory_is_an_error_that_says_so() {
    struct Deaf;
    impl ringspun::DatagramProtocol for Deaf {
        fn datagram_received(&mut self, _: &mut DatagramCx<'_, Self>, _: &[u8], _: &Address) {}
    }
    struct Pipe(std::io::PipeReader);
    impl std::os::fd::AsFd for Pipe {
        fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
    impl ringspun::Descriptor for Pipe {}
    let (memory, journal) = (MemoryReactor::new(), Journal::default());
    let reactor = memory.reactor();
    let listener = || std::os::fd::OwnedFd::from(std::net::TcpListener::bind(ANY).unwrap());
    let errors = [
        reactor.listen_udp(ANY, Deaf).unwrap_err(),
        reactor.listen_unix_datagram("@nobody", Deaf).unwrap_err(),
        reactor.adopt_stream_port(listener(), echoing(&journal)).unwrap_err(),
        reactor.adopt_stream_connection(listener(), echoing(&journal)).unwrap_err(),
        reactor.listen("systemd:index=0", echoing(&journal)).unwrap_err(),
        reactor.listen("fd:3", echoing(&journal)).unwrap_err(),
        reactor.add_reader(Pipe(std::io::pipe().unwrap().0)).unwrap_err(),
    ];
    for error in errors {
        assert!(
            error.to_string().contains("a reactor in memory has neither descriptors nor datagrams"),
            "{error}"
        );
    }
    let port = reactor.listen("tcp:0:127.0.0.1", echoing(&journal)).unwrap();
    assert!(port.try_clone_socket().unwrap_err().to_string().contains("in memory"));
}

#[test]
fn m1_a_connection_that_sends_a_descriptor_says_that_it_cannot() {
    let (mut memory, journal) = (MemoryReactor::new(), Journal::default());
    let factory = noting(&journal, |cx, _| {
        let descriptor = std::fs::File::open("/dev/null").unwrap().into();
        cx.transport.write(b"before");
        cx.transport.send_file_descriptor(descriptor, b"with it").unwrap();
    });
    let port = memory.reactor().listen_unix("@rights", factory).unwrap();
    let mut peer = memory.connect(&port).unwrap();
    peer.send(b"go");
    memory.turn();
    assert_eq!(peer.take_received(), b"before");
    assert_eq!(journal.take().last().unwrap(), "lost Lost(Errno(EOPNOTSUPP))");
}
