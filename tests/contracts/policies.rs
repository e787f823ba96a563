//! Who is let in (A1-A4).

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};
use ringspun::{
    Count, FactoryHandle, Peer as Asking, Serve,
    policies::{
        AcceptPolicy, Admission, LimitConnectionsByPeer, LimitTotalConnections, Place, Policed, Policies,
    },
};

use crate::{
    kit::{Drops, Event, Running, Script, Server, ignore, logged},
    peers::Peer,
    setups::{Setup, on_every_backend},
};

on_every_backend!(
    a1_who_is_refused_is_closed_before_a_protocol_is_built,
    a1_one_policy_of_several_is_enough_to_refuse,
    a1_a_policy_that_panics_refuses,
    a1_a_policy_may_ask_who_the_peer_is,
    a2_a_place_comes_back_however_the_connection_ends,
    a2_a_place_comes_back_if_no_connection_is_made,
    a2_a_place_comes_back_when_the_reactor_stops,
    a2_a_place_that_panics_ends_nothing,
    a3_who_is_too_much_is_told_by_the_overflow_factory,
    a3_without_an_overflow_factory_he_is_refused,
    a3_the_overflow_factory_starts_and_stops_with_the_port,
    a4_one_limit_holds_for_all_who_share_it,
    a4_a_limit_by_peer_counts_each_address_alone,
    a4_one_factory_has_different_policies_at_different_ports,
);

/// A policy made of a closure.
struct Asked<A>(A);

impl<A: Fn(&mut Asking<'_>) -> Admission + Send + Sync + 'static> AcceptPolicy for Asked<A> {
    fn admit(&self, peer: &mut Asking<'_>) -> Admission {
        (self.0)(peer)
    }
}

fn refusing_all() -> impl AcceptPolicy {
    Asked(|_: &mut Asking<'_>| Admission::Refuse)
}

fn counting(places: &Drops) -> impl AcceptPolicy {
    let places = places.clone();
    Asked(move |_: &mut Asking<'_>| Admission::Admit(Place::new(places.guard())))
}

/// Says "busy" and closes.
fn busy(script: Script) -> Script {
    script.on_made(|cx, _| {
        let _ = cx.transport.write(b"busy");
        cx.transport.lose_connection();
    })
}

fn expect_turned_away(peer: &mut Peer) {
    // FIN or RST: it depends on what it had said by then.
    assert_eq!(peer.read_to_end().0, b"");
}

fn built(server: &Server) -> usize {
    server.journal.count(|event| matches!(event, Event::Built(_)))
}

fn a1_who_is_refused_is_closed_before_a_protocol_is_built(setup: &Setup) {
    let server = Script::echo().serve_behind(&Policies::new().accept(refusing_all()), setup.reactor());
    for _ in 0..3 {
        expect_turned_away(&mut server.dial());
    }
    server.running.wait_count(Count::RefusedByPolicy, 3);
    assert_eq!((built(&server), server.count(Count::Accepted)), (0, 3));
    assert_eq!(server.count(Count::RefusedByFactory), 0);
}

fn a1_one_policy_of_several_is_enough_to_refuse(setup: &Setup) {
    let places = Drops::default();
    // Asked in turn: each peer is refused by another policy, the third by none.
    let refusing = |turn: usize| {
        let asked = AtomicUsize::new(0);
        Asked(move |_: &mut Asking<'_>| match asked.fetch_add(1, SeqCst) {
            n if n == turn => Admission::Refuse,
            _ => Admission::Admit(Place::default()),
        })
    };
    let policies = Policies::new()
        .accept(counting(&places))
        .accept(refusing(0))
        .accept(refusing(0))
        .accept(counting(&places));
    let server = Script::echo().serve_behind(&policies, setup.reactor());
    expect_turned_away(&mut server.dial());
    expect_turned_away(&mut server.dial());
    places.wait_for(0);
    server.dial().ask(b"third", b"third");
    assert_eq!(built(&server), 1);
}

fn a1_a_policy_that_panics_refuses(setup: &Setup) {
    let asked = AtomicUsize::new(0);
    let policy = Asked(move |_: &mut Asking<'_>| {
        assert!(asked.fetch_add(1, SeqCst) > 0, "a policy panics");
        Admission::Admit(Place::default())
    });
    let server = Script::echo().serve_behind(&Policies::new().accept(policy), setup.reactor());
    expect_turned_away(&mut server.dial());
    server.running.wait_count(Count::RefusedByPolicy, 1);
    server.dial().ask(b"second", b"second");
}

fn a1_a_policy_may_ask_who_the_peer_is(setup: &Setup) {
    let script = Script::echo();
    let journal = script.journal.clone();
    let policy = Asked(move |peer: &mut Asking<'_>| {
        journal.note(peer.address().to_string());
        Admission::Admit(Place::default())
    });
    let server = script.serve_behind(&Policies::new().accept(policy), setup.reactor());
    let mut peer = server.dial();
    peer.ask(b"x", b"x");
    server.journal.wait_note(&peer.address().to_string());
    assert!(matches!(server.journal.all()[1], Event::Note(_)), "before it is built");
}

fn a2_a_place_comes_back_however_the_connection_ends(setup: &Setup) {
    let places = Drops::default();
    let script = Script::new().on_data(|cx, _, data| match data {
        b"lose" => cx.transport.lose_connection(),
        b"abort" => cx.transport.abort_connection(),
        b"fail" => cx.transport.fail("on purpose"),
        b"panic" => panic!("on purpose"),
        _ => {}
    });
    let server = script.serve_behind(&Policies::new().accept(counting(&places)), setup.reactor());
    for (number, word) in [&b"lose"[..], b"abort", b"fail", b"panic"].into_iter().enumerate() {
        let mut peer = server.dial_made(number);
        assert_eq!(places.alive(), 1);
        peer.write(word);
        peer.read_to_end();
        drop(peer);
        places.wait_for(0);
    }
    drop(server.dial_made(4));
    places.wait_for(0);
    server.dial_made(5).reset();
    places.wait_for(0);
}

fn a2_a_place_comes_back_if_no_connection_is_made(setup: &Setup) {
    let places = Drops::default();
    let script = Script::new().on_build(|_, number| {
        assert_ne!(number, 1, "on purpose");
        number > 1
    });
    let server = script.serve_behind(&Policies::new().accept(counting(&places)), setup.reactor());
    for _ in 0..2 {
        expect_turned_away(&mut server.dial());
        places.wait_for(0);
    }
    server.running.wait_count(Count::RefusedByFactory, 2);
    // Gone before anybody looks at them, or just after.
    for _ in 0..20 {
        server.dial().reset();
    }
    server.running.wait_count(Count::Accepted, 22);
    places.wait_for(0);
}

fn a2_a_place_comes_back_when_the_reactor_stops(setup: &Setup) {
    let places = Drops::default();
    let mut server = Script::new().serve_behind(&Policies::new().accept(counting(&places)), setup.reactor());
    let _peers = [server.dial_made(0), server.dial_made(1)];
    server.stop();
    assert_eq!(places.alive(), 0);
}

fn a2_a_place_that_panics_ends_nothing(setup: &Setup) {
    struct Panics;

    impl Drop for Panics {
        fn drop(&mut self) {
            panic!("a place panics");
        }
    }

    let policy = Asked(|_: &mut Asking<'_>| Admission::Admit(Place::new(Panics)));
    let server = Script::echo().serve_behind(&Policies::new().accept(policy), setup.reactor());
    let mut other = server.dial_made(0);
    drop(server.dial_made(1));
    server.journal.wait_lost(1);
    server.let_it_turn();
    other.ask(b"alive?", b"alive?");
    server.dial_made(2).ask(b"and you?", b"and you?");
}

fn a3_who_is_too_much_is_told_by_the_overflow_factory(setup: &Setup) {
    let limit = LimitTotalConnections::new(1).overflow(1);
    let stay = Script::new().on_made(|cx, _| ignore(cx.transport.write(b"busy")));
    let journal = stay.journal.clone();
    let (stay, policies) = (std::sync::Mutex::new(Some(stay)), Policies::new().accept(limit.clone()));
    let policies = policies.overflow(move || stay.lock().unwrap().take().expect("one port"));
    let server = Script::echo().serve_behind(&policies, setup.reactor());
    let mut first = server.dial_made(0);
    let mut second = server.dial();
    assert_eq!(second.read_exactly(4), b"busy");
    assert_eq!((limit.count(), limit.overflow_count()), (1, 1));
    // Those who are told are limited, too.
    expect_turned_away(&mut server.dial());
    server.running.wait_count(Count::RefusedByPolicy, 1);
    assert_eq!(server.count(Count::Overflowed), 1);
    first.ask(b"still served", b"still served");
    // When there is room, the next one is served.
    drop((first, second));
    assert_eq!(journal.wait_lost(0), "Done");
    server.journal.wait_lost(0);
    wait_until("the places are free", || limit.count() + limit.overflow_count() == 0);
    server.dial_made(1).ask(b"me", b"me");
    assert_eq!(built(&server), 2);
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + crate::peers::LIMIT;
    while !done() {
        assert!(std::time::Instant::now() < deadline, "waited too long until {what}");
        std::thread::yield_now();
    }
}

fn a3_without_an_overflow_factory_he_is_refused(setup: &Setup) {
    let limit = LimitTotalConnections::new(0).overflow(10);
    let server = Script::echo().serve_behind(&Policies::new().accept(limit.clone()), setup.reactor());
    expect_turned_away(&mut server.dial());
    server.running.wait_count(Count::RefusedByPolicy, 1);
    wait_until("the place is free", || limit.overflow_count() == 0);
    assert_eq!(built(&server), 0);
}

fn a3_the_overflow_factory_starts_and_stops_with_the_port(setup: &Setup) {
    let script = Script::new();
    let journal = script.journal.clone();
    let overflow = std::sync::Mutex::new(Some(busy(script)));
    let policies = Policies::new()
        .accept(LimitTotalConnections::new(0).overflow(9))
        .overflow(move || overflow.lock().unwrap().take().expect("one port"));
    let server = Script::new().serve_behind(&policies, setup.reactor());
    journal.wait_for(Event::Started);
    let mut peer = server.dial();
    assert_eq!(peer.read_to_end().0, b"busy");
    drop(peer);
    journal.wait_lost(0);
    assert_eq!(journal.count(|event| *event == Event::Stopped), 0);
    server.port.stop_listening();
    journal.wait_for(Event::Stopped);
    server.journal.wait_for(Event::Stopped);
}

fn a4_one_limit_holds_for_all_who_share_it(setup: &Setup) {
    let limit = LimitTotalConnections::new(2);
    let policies = Policies::new().accept(limit.clone());
    let first = Script::echo().serve_behind(&policies, setup.reactor());
    let second = Script::echo().serve_behind(&policies, setup.reactor());
    let mut peers = [first.dial_made(0), second.dial_made(0)];
    peers.iter_mut().for_each(|peer| peer.ask(b"x", b"x"));
    for server in [&first, &second] {
        expect_turned_away(&mut server.dial());
    }
    let [of_first, of_second] = peers;
    drop(of_first);
    wait_until("a place is free", || limit.count() == 1);
    second.dial_made(1).ask(b"x", b"x");
    drop(of_second);
}

fn dial_from(from: &str, to: SocketAddr) -> Peer {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    use std::os::fd::AsRawFd;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from.parse().unwrap(), 0))).unwrap();
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to)).unwrap();
    Peer::new(std::net::TcpStream::from(fd))
}

fn a4_a_limit_by_peer_counts_each_address_alone(setup: &Setup) {
    let limit = LimitConnectionsByPeer::new(2);
    let server = Script::echo().serve_behind(&Policies::new().accept(limit.clone()), setup.reactor());
    let mut peers: Vec<_> = ["127.0.0.2", "127.0.0.3"]
        .into_iter()
        .flat_map(|ip| [dial_from(ip, server.address()), dial_from(ip, server.address())])
        .collect();
    peers.iter_mut().for_each(|peer| peer.ask(b"x", b"x"));
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    assert_eq!((limit.count(ip("127.0.0.2")), limit.count(ip("::ffff:127.0.0.3"))), (2, 2));
    expect_turned_away(&mut dial_from("127.0.0.2", server.address()));
    peers.remove(0);
    wait_until("a place is free", || limit.count(ip("127.0.0.2")) == 1);
    dial_from("127.0.0.2", server.address()).ask(b"x", b"x");
    expect_turned_away(&mut dial_from("127.0.0.3", server.address()));
    drop(peers);
    wait_until("all places are free", || {
        ["127.0.0.2", "127.0.0.3"].iter().all(|text| limit.count(ip(text)) == 0)
    });
}

fn a4_one_factory_has_different_policies_at_different_ports(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let handle = running.reactor.add_factory(Script::echo());
    let closed: Policed<FactoryHandle<Script>> = Policies::new().accept(refusing_all()).wrap(handle.clone());
    let ports = [
        running.reactor.listen_tcp(("127.0.0.1", 0), &handle).unwrap(),
        running.reactor.listen_tcp(("127.0.0.1", 0), closed).unwrap(),
    ];
    // A port that nobody guards, of a factory of its own, beside them.
    let other = running.reactor.listen_tcp(("127.0.0.1", 0), Policies::new().wrap(Serve(|| Silent))).unwrap();
    drop(handle);
    let [open, closed] = ports.map(|port| port.get_host().socket_addr().unwrap());
    Peer::dial(open).ask(b"x", b"x");
    expect_turned_away(&mut Peer::dial(closed));
    Peer::dial(open).ask(b"x", b"x");
    other.stop_listening();
    assert_eq!(logged("belongs to another reactor"), 0);
}

struct Silent;

impl<F> ringspun::Protocol<F> for Silent {
    fn data_received(&mut self, _: &mut ringspun::Cx<'_, F>, _: &[u8]) {}
}
