//! Datagrams: UDP (U1) and Unix (U2).

use std::{
    fs,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    sync::Arc,
    time::{Duration, Instant},
};

use ringspun::{
    Address, Count, DatagramCx, DatagramError, DatagramPort, DatagramProtocol, Errno, Error, Limits,
    UdpOptions, UnixAddress, UnixDatagramOptions,
};

use crate::{
    kit::{Drops, Event, Gate, Guard, Journal, Running},
    peers::{LIMIT, pattern},
    setups::{Setup, on_every_backend},
    unix::Folder,
};

on_every_backend!(
    u1_a_datagram_is_answered,
    u1_an_empty_datagram_is_data,
    u1_ipv6_works_alike,
    u1_datagrams_keep_their_bounds_and_all_arrive,
    u1_those_that_wait_come_together,
    u1_a_large_datagram_comes_whole,
    u1_one_that_is_too_long_to_be_received_is_dropped_and_counted,
    u1_one_that_is_too_long_to_be_sent_is_an_error,
    u1_too_many_in_one_turn_are_an_error,
    u1_an_address_of_another_kind_is_an_error,
    u1_what_the_kernel_does_not_take_is_told,
    u1_a_connected_port_hears_that_nobody_is_there,
    u1_a_connected_port_hears_its_peer_only,
    u1_members_of_a_group_hear_what_is_sent_to_it,
    u1_a_group_that_is_none_is_an_error,
    u1_a_callback_that_panics_is_logged_and_the_port_lives,
    u1_a_protocol_starts_and_stops_once,
    u1_a_port_can_be_closed_inside_its_callback_and_had_again,
    u1_the_end_of_the_reactor_stops_the_protocol,
    u1_a_port_that_cannot_be_had_is_an_error,
    u1_timers_give_the_protocol_back_and_die_with_it,
    u1_posts_reach_the_protocol_from_any_thread,
    u1_what_is_written_before_the_close_is_sent,
    u1_many_ports_serve_at_once,
    u1_an_adopted_port_serves,
    u1_who_never_gives_up_keeps_nobody_from_stopping,
    u1_room_for_longer_ones_than_there_are_is_not_taken,
    u1_a_call_that_comes_too_late_is_dropped_quietly,
    u2_unix_datagrams_come_and_go,
    u2_a_datagram_file_has_its_mode_is_taken_over_and_goes,
    u2_a_live_datagram_socket_is_refused,
    u2_a_peer_that_is_gone_or_does_not_read_is_told,
    u2_without_a_name_it_can_send_only,
);

type OnStart = Arc<dyn Fn(&mut DatagramCx<'_, Talker>) + Send + Sync>;
type OnData = Arc<dyn Fn(&mut DatagramCx<'_, Talker>, &[u8], &Address) + Send + Sync>;

/// A protocol of closures that keeps a journal.
struct Talker {
    journal: Journal,
    on_start: OnStart,
    on_data: OnData,
    _guard: Option<Guard>,
}

impl Talker {
    fn new(journal: &Journal) -> Self {
        Self {
            journal: journal.clone(),
            on_start: Arc::new(|_| ()),
            on_data: Arc::new(|_, _, _| ()),
            _guard: None,
        }
    }

    fn echo(journal: &Journal) -> Self {
        Self::new(journal).on_data(|cx, data, from| cx.transport.write(data, from).unwrap())
    }

    fn on_start(self, hook: impl Fn(&mut DatagramCx<'_, Self>) + Send + Sync + 'static) -> Self {
        Self { on_start: Arc::new(hook), ..self }
    }

    fn on_data(
        self,
        hook: impl Fn(&mut DatagramCx<'_, Self>, &[u8], &Address) + Send + Sync + 'static,
    ) -> Self {
        Self { on_data: Arc::new(hook), ..self }
    }
}

impl DatagramProtocol for Talker {
    fn start_protocol(&mut self, cx: &mut DatagramCx<'_, Self>) {
        self.journal.add(Event::Started);
        self.on_start.clone()(cx);
    }

    fn datagram_received(&mut self, cx: &mut DatagramCx<'_, Self>, data: &[u8], from: &Address) {
        self.journal.add(Event::Data(0, data.to_vec()));
        self.on_data.clone()(cx, data, from);
    }

    fn connection_refused(&mut self, _cx: &mut DatagramCx<'_, Self>) {
        self.journal.note("refused");
    }

    fn send_failed(&mut self, _cx: &mut DatagramCx<'_, Self>, to: Option<&Address>, errno: Errno) {
        let to = to.map_or("nobody".to_owned(), ToString::to_string);
        self.journal.note(format!("not sent to {to}: {errno:?}"));
    }

    fn stop_protocol(&mut self, _cx: &mut DatagramCx<'_, Self>) {
        self.journal.add(Event::Stopped);
    }
}

pub(crate) fn udp() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

/// Calls again what a signal has interrupted: with a timeout the kernel does not do that itself.
pub(crate) fn patient<T>(mut call: impl FnMut() -> io::Result<T>) -> T {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done.unwrap(),
        }
    }
}

/// The next datagram.
fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 1 << 16];
    let len = patient(|| socket.recv(&mut buffer));
    buffer.truncate(len);
    buffer
}

fn address(port: &DatagramPort<Talker>) -> SocketAddr {
    port.get_host().socket_addr().unwrap()
}

fn ask(socket: &UdpSocket, to: SocketAddr, question: &[u8]) -> Vec<u8> {
    socket.send_to(question, to).unwrap();
    let mut answer = vec![0; 1 << 16];
    let (len, from) = patient(|| socket.recv_from(&mut answer));
    assert_eq!(from, to);
    answer.truncate(len);
    answer
}

/// A port that echoes.
fn echo(running: &Running) -> (DatagramPort<Talker>, Journal) {
    let journal = Journal::default();
    let port = running.reactor.listen_udp(("127.0.0.1", 0), Talker::echo(&journal)).unwrap();
    (port, journal)
}

fn u1_a_datagram_is_answered(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let (port, journal) = echo(&running);
    assert!(matches!(port.get_host(), Address::Udp(address) if address.port() != 0));
    let peers: Vec<_> = (0..3).map(|_| udp()).collect();
    for (number, peer) in peers.iter().enumerate() {
        let question = format!("from peer {number}");
        assert_eq!(ask(peer, address(&port), question.as_bytes()), question.as_bytes());
    }
    assert_eq!(journal.count(|event| matches!(event, Event::Data(..))), 3);
    running.wait_count(Count::DatagramsReceived, 3);
    running.call(|_| ());
    running.wait_count(Count::DatagramsSent, 3);
}

fn u1_an_empty_datagram_is_data(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let (port, journal) = echo(&running);
    assert_eq!(ask(&udp(), address(&port), b""), b"");
    assert!(journal.has(&Event::Data(0, Vec::new())));
    assert_eq!(ask(&udp(), address(&port), b"more"), b"more");
}

fn u1_ipv6_works_alike(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let journal = Journal::default();
    let port = running.reactor.listen_udp(("::1", 0), Talker::echo(&journal)).unwrap();
    let peer = UdpSocket::bind("[::1]:0").unwrap();
    peer.set_read_timeout(Some(LIMIT)).unwrap();
    assert_eq!(ask(&peer, address(&port), b"six"), b"six");
}

fn u1_datagrams_keep_their_bounds_and_all_arrive(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let (port, _) = echo(&running);
    let peer = udp();
    // As many at once as a socket has room for, whatever their length: several fill a turn's receive.
    let sizes = [0, 1, 7, 63, 64, 65, 500, 1400, 1500, 3000];
    for round in 0..20u64 {
        let sent: Vec<_> =
            (0..40).map(|n| pattern(round * 100 + n, sizes[n as usize % sizes.len()])).collect();
        for datagram in &sent {
            peer.send_to(datagram, address(&port)).unwrap();
        }
        for datagram in &sent {
            let back = receive(&peer);
            assert!(back == *datagram, "{} bytes of {}", back.len(), datagram.len());
        }
    }
}

fn u1_those_that_wait_come_together(setup: &Setup) {
    const COUNT: usize = 60;
    let (reactor, journal) = (setup.reactor(), Journal::default());
    let port = reactor.listen_udp(("127.0.0.1", 0), Talker::new(&journal)).unwrap();
    let peer = udp();
    (0..COUNT).for_each(|n| _ = peer.send_to(&[n as u8], address(&port)).unwrap());
    let running = Running::start(reactor);
    let came = |events: &[Event]| events.iter().filter(|event| matches!(event, Event::Data(..))).count();
    journal.wait("all of them", |events| came(events) == COUNT);
    let calls = running.reactor.stats().syscalls_total();
    if setup.is_uring() && !setup.uring().multishot {
        assert!(calls >= COUNT as u64, "{calls}: a receive that ends with each does not bring more than one");
    } else {
        // Where few completions fit into the ring, fewer come together, and how many is the kernel's affair.
        let most = if setup.name == "io_uring_least" { COUNT - 1 } else { COUNT / 2 };
        assert!(calls <= most as u64, "{calls} system calls for {COUNT} datagrams");
    }
}

fn u1_a_large_datagram_comes_whole(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let journal = Journal::default();
    let options = UdpOptions::from(("127.0.0.1", 0)).max_packet_size(65_507);
    let port = running.reactor.listen_udp(options, Talker::echo(&journal)).unwrap();
    let bytes = pattern(3, 65_507);
    assert!(ask(&udp(), address(&port), &bytes) == bytes);
}

fn u1_one_that_is_too_long_to_be_received_is_dropped_and_counted(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let journal = Journal::default();
    let options = UdpOptions::from(("127.0.0.1", 0)).max_packet_size(100);
    let port = running.reactor.listen_udp(options, Talker::echo(&journal)).unwrap();
    let peer = udp();
    for len in [101, 5000] {
        peer.send_to(&pattern(1, len), address(&port)).unwrap();
    }
    assert_eq!(ask(&peer, address(&port), &[7; 100]), [7; 100]);
    assert_eq!(journal.count(|event| matches!(event, Event::Data(..))), 1);
    running.wait_count(Count::DatagramsTooLong, 2);
}

fn u1_one_that_is_too_long_to_be_sent_is_an_error(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let (port, journal) = echo(&running);
    let (note, to) = (journal.clone(), Address::Udp(udp().local_addr().unwrap()));
    port.post(move |_, cx| {
        let error = cx.transport.write(&[0; 65_508], &to).unwrap_err();
        assert_eq!(error, DatagramError::TooLong { len: 65_508, max: 65_507 });
        note.note(error.to_string());
    });
    journal.wait_note("a datagram of 65508 bytes is too long: 65507 go into one; send it in pieces");
}

fn u1_too_many_in_one_turn_are_an_error(setup: &Setup) {
    let limits = Limits { output_max: 10_000, ..Limits::default() };
    let running = Running::start(setup.limited(limits));
    let (port, journal) = echo(&running);
    let (note, peer) = (journal.clone(), udp());
    let to = Address::Udp(peer.local_addr().unwrap());
    port.post(move |_, cx| {
        let written = (0..100).take_while(|_| cx.transport.write(&[1; 1000], &to).is_ok()).count();
        assert_eq!(cx.transport.write(b"one more", &to), Err(DatagramError::Full));
        note.note(format!("{written} written"));
    });
    journal.wait_note("11 written");
    for _ in 0..11 {
        assert_eq!(receive(&peer).len(), 1000);
    }
    assert_eq!(ask(&peer, address(&port), b"and again"), b"and again");
}

fn u1_an_address_of_another_kind_is_an_error(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let (port, journal) = echo(&running);
    let note = journal.clone();
    port.post(move |_, cx| {
        for to in
            [Address::Udp("[::1]:9".parse().unwrap()), Address::Unix("/nowhere".into()), Address::Unknown]
        {
            assert!(matches!(cx.transport.write(b"?", &to), Err(DatagramError::NoSuchPeer(_))));
        }
        note.note("all refused");
    });
    journal.wait_note("all refused");
}

fn u1_what_the_kernel_does_not_take_is_told(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let (port, journal) = echo(&running);
    let peer = udp();
    let (nobody, to) =
        (Address::Udp("127.0.0.1:0".parse().unwrap()), Address::Udp(peer.local_addr().unwrap()));
    let broadcast = Address::Udp("255.255.255.255:9".parse().unwrap());
    port.post(move |_, cx| {
        cx.transport.write(b"first", &to).unwrap();
        cx.transport.write(b"port 0", &nobody).unwrap();
        cx.transport.write(b"not allowed", &broadcast).unwrap();
        cx.transport.write(b"last", &to).unwrap();
    });
    journal.wait_note("not sent to 127.0.0.1:0: EINVAL");
    journal.wait_note("not sent to 255.255.255.255:9: EACCES");
    for wanted in [&b"first"[..], b"last"] {
        assert_eq!(receive(&peer), wanted, "those around it were sent");
    }
}

/// A UDP port at which nobody is: its socket hears one peer only, who says nothing, and the kernel answers everybody else as if there were none. As long as it is
/// held, nobody else is given the port.
pub(crate) fn nobody() -> UdpSocket {
    let socket = udp();
    socket.connect(("127.0.0.1", 9)).unwrap();
    socket
}

fn u1_a_connected_port_hears_that_nobody_is_there(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let (journal, held) = (Journal::default(), nobody());
    let gone = Address::Udp(held.local_addr().unwrap());
    let talker = Talker::echo(&journal).on_start(move |cx| {
        cx.transport.connect(&gone).unwrap();
        cx.transport.write_connected(b"anybody?").unwrap();
    });
    let port = running.reactor.listen_udp(("127.0.0.1", 0), talker).unwrap();
    journal.wait_note("refused");
    // The port lives, and may turn to somebody else.
    let peer = udp();
    let to = Address::Udp(peer.local_addr().unwrap());
    port.post(move |_, cx| {
        cx.transport.connect(&to).unwrap();
        cx.transport.write_connected(b"you?").unwrap();
    });
    assert_eq!(receive(&peer), b"you?");
}

fn u1_a_connected_port_hears_its_peer_only(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let (journal, peer, stranger) = (Journal::default(), udp(), udp());
    let to = Address::Udp(peer.local_addr().unwrap());
    let note = journal.clone();
    let talker = Talker::echo(&journal).on_start(move |cx| {
        cx.transport.connect(&to).unwrap();
        note.note("connected");
    });
    let port = running.reactor.listen_udp(("127.0.0.1", 0), talker).unwrap();
    journal.wait_note("connected");
    let _ = stranger.send_to(b"stranger", address(&port));
    assert_eq!(ask(&peer, address(&port), b"friend"), b"friend");
    assert!(!journal.has(&Event::Data(0, b"stranger".to_vec())));
}

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn u1_members_of_a_group_hear_what_is_sent_to_it(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let group: IpAddr = "239.1.2.3".parse().unwrap();
    let journals = [Journal::default(), Journal::default()];
    // The second one shares the address that the first one was given.
    let mut at = SocketAddr::from((group, 0));
    let mut ports = Vec::new();
    for journal in &journals {
        let options = UdpOptions::from((at.ip(), at.port())).share(true);
        let joined = journal.clone();
        let talker = Talker::new(journal).on_start(move |cx| {
            cx.transport.join_group(group, Some(LOCAL)).unwrap();
            joined.note("joined");
        });
        ports.push(running.reactor.listen_udp(options, talker).unwrap());
        at = address(ports.last().unwrap());
        journal.wait_note("joined");
    }
    let journal = Journal::default();
    let sender = Talker::new(&journal).on_start(|cx| {
        cx.transport.set_ttl(0).unwrap();
        cx.transport.set_loopback_mode(true).unwrap();
    });
    let sender = running.reactor.listen_udp(("127.0.0.1", 0), sender).unwrap();
    let send = |text: &'static [u8]| {
        sender.post(move |_, cx| cx.transport.write(text, &Address::Udp(at)).unwrap());
    };
    send(b"to all");
    for journal in &journals {
        journal.wait_for(Event::Data(0, b"to all".to_vec()));
    }
    let left = journals[1].clone();
    ports[1].post(move |_, cx| {
        cx.transport.leave_group(group, Some(LOCAL)).unwrap();
        left.note("left");
        assert!(cx.transport.leave_group(group, Some(LOCAL)).is_err(), "it is no member any more");
        left.note("told");
    });
    journals[1].wait_note("told");
    send(b"to one");
    journals[0].wait_for(Event::Data(0, b"to one".to_vec()));
    let back = journals[1].clone();
    ports[1].post(move |_, cx| {
        cx.transport.join_group(group, Some(LOCAL)).unwrap();
        back.note("back");
    });
    journals[1].wait_note("back");
    send(b"to all again");
    journals[1].wait_for(Event::Data(0, b"to all again".to_vec()));
    assert!(!journals[1].has(&Event::Data(0, b"to one".to_vec())), "it was no member");
}

fn u1_a_group_that_is_none_is_an_error(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let (port, journal) = echo(&running);
    let note = journal.clone();
    port.post(move |_, cx| {
        assert!(cx.transport.join_group("10.0.0.1".parse().unwrap(), Some(LOCAL)).is_err());
        let error = cx.transport.join_group("ff02::1".parse().unwrap(), Some(LOCAL)).unwrap_err().to_string();
        assert!(error.contains("IPv4"), "{error}");
        note.note("refused");
    });
    journal.wait_note("refused");
}

fn u1_a_callback_that_panics_is_logged_and_the_port_lives(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let journal = Journal::default();
    let text = format!("datagrams must not say this ({})", setup.name);
    let panicking = text.clone();
    let talker = Talker::new(&journal).on_data(move |cx, data, from| {
        assert_ne!(data, b"panic", "{panicking}");
        cx.transport.write(data, from).unwrap();
    });
    let port = running.reactor.listen_udp(("127.0.0.1", 0), talker).unwrap();
    let peer = udp();
    peer.send_to(b"panic", address(&port)).unwrap();
    assert_eq!(ask(&peer, address(&port), b"alive?"), b"alive?");
    assert_eq!(crate::kit::logged(&text), 1);
}

fn life(journal: &Journal) -> Vec<Event> {
    journal.all().into_iter().filter(|event| matches!(event, Event::Started | Event::Stopped)).collect()
}

fn u1_a_protocol_starts_and_stops_once(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let (port, journal) = echo(&running);
    assert_eq!(ask(&udp(), address(&port), b"up?"), b"up?");
    let done = Gate::default();
    let told = done.clone();
    let seen = journal.clone();
    port.on_done(move |_, error| {
        assert!(error.is_none());
        assert_eq!(life(&seen), [Event::Started, Event::Stopped], "the protocol hears of it first");
        told.open();
    });
    port.stop_listening();
    port.stop_listening();
    done.pass();
    assert_eq!(journal.all().first(), Some(&Event::Started));
    // A port that is stopped before the reactor runs has never started.
    let reactor = setup.reactor();
    let journal = Journal::default();
    let port = reactor.listen_udp(("127.0.0.1", 0), Talker::new(&journal)).unwrap();
    port.stop_listening();
    let running = Running::start(reactor);
    running.call(|_| ());
    assert_eq!(life(&journal), []);
}

fn u1_a_port_can_be_closed_inside_its_callback_and_had_again(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let journal = Journal::default();
    let talker = Talker::echo(&journal).on_data(|cx, data, from| {
        cx.transport.write(data, from).unwrap();
        cx.transport.stop_listening();
    });
    let port = running.reactor.listen_udp(("127.0.0.1", 0), talker).unwrap();
    let (peer, at) = (udp(), address(&port));
    for _ in 0..3 {
        peer.send_to(b"close", at).unwrap();
    }
    assert_eq!(receive(&peer), b"close", "what it wrote before is sent");
    journal.wait_for(Event::Stopped);
    assert_eq!(journal.count(|event| matches!(event, Event::Data(..))), 1, "a closed port hears of no more");
    let done = Gate::default();
    let told = done.clone();
    port.on_done(move |_, _| told.open());
    done.pass();
    let again = running.reactor.listen_udp(at, Talker::echo(&journal)).unwrap();
    assert_eq!(ask(&peer, address(&again), b"again"), b"again");
}

fn u1_the_end_of_the_reactor_stops_the_protocol(setup: &Setup) {
    let mut running = Running::start(setup.reactor());
    let (drops, journal) = (Drops::default(), Journal::default());
    let talker = Talker { _guard: Some(drops.guard()), ..Talker::echo(&journal) };
    let port = running.reactor.listen_udp(("127.0.0.1", 0), talker).unwrap();
    assert_eq!(ask(&udp(), address(&port), b"up?"), b"up?");
    running.stop().unwrap();
    assert_eq!(life(&journal), [Event::Started, Event::Stopped]);
    assert_eq!(drops.alive(), 0, "nothing of it is kept");
}

fn u1_a_port_that_cannot_be_had_is_an_error(setup: &Setup) {
    let (reactor, taken) = (setup.reactor(), udp());
    let at = taken.local_addr().unwrap();
    let text = reactor.listen_udp(at, Talker::new(&Journal::default())).unwrap_err().to_string();
    assert!(text.contains(&at.to_string()) && text.contains("in use"), "{text}");
    let text = reactor.listen_udp(("lo", 1), Talker::new(&Journal::default())).unwrap_err().to_string();
    assert!(text.contains("IP address"), "{text}");
}

fn u1_timers_give_the_protocol_back_and_die_with_it(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let (journal, drops) = (Journal::default(), Drops::default());
    let kept = drops.clone();
    let talker = Talker::new(&journal).on_start(move |cx| {
        let begun = Instant::now();
        let cancelled =
            cx.call_later(Duration::from_millis(5), |protocol, _| protocol.journal.note("cancelled"));
        cancelled.cancel().unwrap();
        cx.call_later(Duration::from_millis(10), move |protocol, _| {
            assert!(begun.elapsed() >= Duration::from_millis(10));
            protocol.journal.note("called");
        });
        let guard = kept.guard();
        cx.call_later(Duration::from_secs(3600), move |_, _| drop(guard));
    });
    let port = running.reactor.listen_udp(("127.0.0.1", 0), talker).unwrap();
    journal.wait_note("called");
    assert!(!journal.has(&Event::Note("cancelled".to_owned())));
    assert_eq!(drops.alive(), 1);
    port.stop_listening();
    drops.wait_for(0);
}

fn u1_posts_reach_the_protocol_from_any_thread(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let (port, journal) = echo(&running);
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let port = port.clone();
            std::thread::spawn(move || {
                for n in 0..50 {
                    port.post(move |protocol, _| protocol.journal.note(format!("{thread} {n}")));
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    journal.wait("all posts", |events| events.iter().filter(|e| matches!(e, Event::Note(_))).count() == 200);
    for thread in 0..4 {
        let mut next = 0;
        for event in journal.all() {
            if event == Event::Note(format!("{thread} {next}")) {
                next += 1;
            }
        }
        assert_eq!(next, 50, "each thread's in order");
    }
    port.stop_listening();
    journal.wait_for(Event::Stopped);
    port.post(|_, _| unreachable!("the port is closed"));
    running.call(|_| ());
}

fn u1_what_is_written_before_the_close_is_sent(setup: &Setup) {
    let mut running = Running::start(setup.reactor());
    let (port, _) = echo(&running);
    let peer = udp();
    let to = Address::Udp(peer.local_addr().unwrap());
    let (reactor, written) = (running.reactor.clone(), Gate::default());
    let done = written.clone();
    port.post(move |_, cx| {
        for n in 0..100u8 {
            cx.transport.write(&[n], &to).unwrap();
        }
        reactor.stop().unwrap();
        done.open();
    });
    written.pass();
    running.wait().unwrap();
    for n in 0..100 {
        assert_eq!(receive(&peer), [n]);
    }
}

fn u1_many_ports_serve_at_once(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let ports: Vec<_> = (0..40).map(|_| echo(&running).0).collect();
    let peer = udp();
    for round in 0..3u8 {
        for port in &ports {
            assert_eq!(ask(&peer, address(port), &[round; 30]), [round; 30]);
        }
    }
    // Those that are closed give back what they had: buffers of the ring, threads.
    for round in 0..40u8 {
        let (port, journal) = echo(&running);
        assert_eq!(ask(&peer, address(&port), &[round]), [round]);
        port.stop_listening();
        journal.wait_for(Event::Stopped);
    }
    assert_eq!(ask(&peer, address(&ports[7]), b"still"), b"still");
}

fn u1_an_adopted_port_serves(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let (socket, journal) = (udp(), Journal::default());
    let at = socket.local_addr().unwrap();
    let port = running.reactor.adopt_datagram_port(socket.into(), 1000, Talker::echo(&journal)).unwrap();
    assert_eq!(address(&port), at);
    assert_eq!(ask(&udp(), at, b"adopted"), b"adopted");
    let stream = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let error = running.reactor.adopt_datagram_port(stream.into(), 1000, Talker::echo(&journal)).unwrap_err();
    assert!(matches!(&error, Error::CannotAdopt { .. }), "{error}");
    assert!(error.to_string().contains("not a datagram socket"), "{error}");
}

fn unix(folder: &Folder, name: &str) -> UnixDatagram {
    let socket = UnixDatagram::bind(folder.file(name)).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

fn u2_unix_datagrams_come_and_go(setup: &Setup) {
    let (folder, running) = (Folder::new(), Running::start(setup.reactor()));
    let (path, journal) = (folder.file("echo"), Journal::default());
    let port = running.reactor.listen_unix_datagram(path.as_path(), Talker::echo(&journal)).unwrap();
    assert_eq!(port.get_host(), Address::Unix(UnixAddress::Path(path.clone())));
    let peer = unix(&folder, "peer");
    for question in [&b"hello"[..], b"", &pattern(1, 8192)] {
        peer.send_to(question, &path).unwrap();
        let mut answer = vec![0; 10_000];
        let (len, from) = patient(|| peer.recv_from(&mut answer));
        assert_eq!((&answer[..len], from.as_pathname()), (question, Some(path.as_path())));
    }
}

fn u2_a_datagram_file_has_its_mode_is_taken_over_and_goes(setup: &Setup) {
    let (folder, running) = (Folder::new(), Running::start(setup.reactor()));
    let (path, journal) = (folder.file("echo"), Journal::default());
    drop(UnixDatagram::bind(&path).unwrap());
    let options = UnixDatagramOptions::from(path.as_path()).mode(0o620);
    let port = running.reactor.listen_unix_datagram(options, Talker::echo(&journal)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o620);
    port.stop_listening();
    assert!(!path.exists());
}

fn u2_a_live_datagram_socket_is_refused(setup: &Setup) {
    let (folder, reactor) = (Folder::new(), setup.reactor());
    let _live = unix(&folder, "live");
    let talker = || Talker::new(&Journal::default());
    let text = reactor.listen_unix_datagram(folder.file("live"), talker()).unwrap_err().to_string();
    assert!(text.contains("in use"), "{text}");
    fs::write(folder.file("notes"), "keep me").unwrap();
    let text = reactor.listen_unix_datagram(folder.file("notes"), talker()).unwrap_err().to_string();
    assert!(text.contains("no socket"), "{text}");
}

fn u2_a_peer_that_is_gone_or_does_not_read_is_told(setup: &Setup) {
    let (folder, running) = (Folder::new(), Running::start(setup.reactor()));
    let journal = Journal::default();
    let port = running.reactor.listen_unix_datagram(folder.file("port"), Talker::echo(&journal)).unwrap();
    let (gone, deaf) = (folder.file("gone"), folder.file("deaf"));
    let _deaf = unix(&folder, "deaf");
    let (to_gone, to_deaf) = (Address::Unix(gone.clone().into()), Address::Unix(deaf.clone().into()));
    port.post(move |_, cx| cx.transport.write(b"gone?", &to_gone).unwrap());
    journal.wait_note(&format!("not sent to {}: ENOENT", gone.display()));
    // More than any queue holds.
    port.post(move |_, cx| (0..5000).for_each(|_| cx.transport.write(b"deaf?", &to_deaf).unwrap()));
    journal.wait_note(&format!("not sent to {}: EAGAIN", deaf.display()));
    let peer = unix(&folder, "peer");
    peer.send_to(b"others?", folder.file("port")).unwrap();
    assert_eq!(patient(|| peer.recv(&mut [0; 10])), 7, "nobody waits for it");
}

fn u2_without_a_name_it_can_send_only(setup: &Setup) {
    let (folder, running) = (Folder::new(), Running::start(setup.reactor()));
    let (peer, journal) = (unix(&folder, "peer"), Journal::default());
    let to = Address::Unix(folder.file("peer").into());
    let talker = Talker::new(&journal).on_start(move |cx| {
        cx.transport.connect(&to).unwrap();
        cx.transport.write_connected(b"unnamed").unwrap();
    });
    running.reactor.listen_unix_datagram(UnixAddress::Unnamed, talker).unwrap();
    let mut buffer = [0; 10];
    let (len, from) = patient(|| peer.recv_from(&mut buffer));
    assert!(from.is_unnamed());
    assert_eq!(&buffer[..len], b"unnamed");
}

/// Writes again whenever it hears that it could not.
struct Stubborn(Address);

impl DatagramProtocol for Stubborn {
    fn start_protocol(&mut self, cx: &mut DatagramCx<'_, Self>) {
        cx.transport.write(b"there?", &self.0).unwrap();
    }

    fn datagram_received(&mut self, _cx: &mut DatagramCx<'_, Self>, _data: &[u8], _from: &Address) {}

    fn send_failed(&mut self, cx: &mut DatagramCx<'_, Self>, _to: Option<&Address>, _errno: Errno) {
        let _ = cx.transport.write(b"and now?", &self.0);
    }
}

fn u1_who_never_gives_up_keeps_nobody_from_stopping(setup: &Setup) {
    let (folder, mut running) = (Folder::new(), Running::start(setup.reactor()));
    let stubborn = || Stubborn(Address::Unix(folder.file("nobody").into()));
    let port = running.reactor.listen_unix_datagram(folder.file("one"), stubborn()).unwrap();
    running.reactor.listen_unix_datagram(folder.file("other"), stubborn()).unwrap();
    let done = Gate::default();
    let told = done.clone();
    port.on_done(move |_, _| told.open());
    port.stop_listening();
    done.pass();
    running.stop().unwrap();
}

fn u1_room_for_longer_ones_than_there_are_is_not_taken(setup: &Setup) {
    let (folder, running) = (Folder::new(), Running::start(setup.reactor()));
    let journal = Journal::default();
    let none = UdpOptions::from(("127.0.0.1", 0)).max_packet_size(0);
    let text = running.reactor.listen_udp(none, Talker::new(&journal)).unwrap_err().to_string();
    assert!(text.contains("max_packet_size") && text.contains("1 byte"), "{text}");
    let all = UdpOptions::from(("127.0.0.1", 0)).max_packet_size(usize::MAX);
    let port = running.reactor.listen_udp(all, Talker::echo(&journal)).unwrap();
    let bytes = pattern(9, 65_507);
    assert!(ask(&udp(), address(&port), &bytes) == bytes);
    let all = UnixDatagramOptions::from(folder.file("port")).max_packet_size(usize::MAX);
    running.reactor.listen_unix_datagram(all, Talker::echo(&journal)).unwrap();
    let peer = unix(&folder, "peer");
    peer.send_to(b"small", folder.file("port")).unwrap();
    assert_eq!(patient(|| peer.recv(&mut [0; 10])), 5);
}

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("dropped on purpose");
        }
    }
}

fn u1_a_call_that_comes_too_late_is_dropped_quietly(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let (port, journal) = echo(&running);
    journal.wait_for(Event::Started);
    port.stop_listening();
    journal.wait_for(Event::Stopped);
    let bomb = Bomb;
    port.post(move |_, _| drop(bomb));
    running.call(|_| ());
    let (port, _) = echo(&running);
    assert_eq!(ask(&udp(), address(&port), b"alive?"), b"alive?");
}
