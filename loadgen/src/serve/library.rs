//! The library's servers. The only file that uses ringspun's API.

use std::{
    hint,
    panic::resume_unwind,
    sync::Arc,
    thread::{self, Builder},
    time::{Duration, Instant},
};

use ringspun::{
    Address, Backend, Count, Cx, DatagramCx, DatagramProtocol, Factory, Limits, ListenOptions, Peer, Port,
    Protocol, Reactor, ReactorHandle, Stats, Syscall, UringOptions, WaitPolicy, Write,
};

use super::{Served, Service, Way, announce, cannot_listen, conclude, obey, open_udp, report};
use crate::{
    cli::ServeArgs,
    control::{Identity, Report, ServerStats},
    error::Error,
    spec::{Kind, Spec},
    target::Target,
};

pub(super) fn serve(args: &ServeArgs, service: Service) -> Result<(), Error> {
    let (reactors, target) = listen(args, service)?;
    let all = Reactors(reactors.iter().map(Reactor::handle).collect());
    if args.control {
        report(&Report::Ready { identity: identity(&all.0), target });
        let all = all.clone();
        thread::spawn(move || obey(all));
    } else {
        announce(service.way, &described(&all.0), &target);
    }
    run(reactors, &all)?;
    conclude(args, all.account());
    Ok(())
}

/// Reactors that listen, and where. Several share it: the kernel deals the connections out, each to the
/// reactor that a hash of its addresses names.
fn listen(args: &ServeArgs, service: Service) -> Result<(Vec<Reactor>, Target), Error> {
    let mut target = args.target()?;
    let mut reactors = Vec::new();
    for _ in 0..args.reactors {
        let reactor = build(args.backend, service.way)?;
        let place = Place { target: &target, shared: args.reactors > 1, spin: args.spin_per_message };
        let host = listen_to(&reactor, place, service)?;
        if let (Target::Tcp(address) | Target::Udp(address), Some(bound)) = (&mut target, host.socket_addr())
        {
            *address = bound;
        }
        reactors.push(reactor);
    }
    Ok((reactors, target))
}

/// Runs the first reactor here and each of the others in a thread of its own, until all have ended.
fn run(reactors: Vec<Reactor>, all: &Reactors) -> Result<(), Error> {
    let mut reactors = reactors.into_iter().enumerate();
    let first = reactors.next();
    let mut threads = Vec::new();
    for (number, reactor) in reactors {
        let (others, name) = (all.clone(), format!("reactor {number}"));
        match Builder::new().name(name).spawn(move || run_one(&reactor, others)) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                return Err(Error::machine(format!(
                    "no thread for reactor {number}: {error}; raise the limit (`ulimit -u`) or use fewer --reactors"
                )));
            }
        }
    }
    let here = first.map_or(Ok(()), |(_, reactor)| run_one(&reactor, all.clone()));
    let ended = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
    ended.fold(here, Result::and)
}

/// Runs one reactor; when it ends, for whatever reason, so do all others.
fn run_one(reactor: &Reactor, all: Reactors) -> Result<(), Error> {
    let ended = reactor.run();
    all.end();
    ended.map_err(|error| Error::internal(error.to_string()))
}

/// Where to listen, and how long to burn CPU for what comes there.
#[derive(Clone, Copy)]
struct Place<'a> {
    target: &'a Target,
    /// Whether other reactors listen there too.
    shared: bool,
    spin: Option<Duration>,
}

/// Listens, and says where that really is.
fn listen_to(reactor: &Reactor, place: Place<'_>, service: Service) -> Result<Address, Error> {
    let told = |error: ringspun::Error| Error::machine(error.to_string());
    if let Target::Udp(address) = place.target {
        // Bound here, for the receive queue that the opponents have.
        let socket = open_udp(*address).map_err(|error| cannot_listen(place.target, &error))?;
        let echo = DatagramEcho { spin: place.spin };
        let port = reactor.adopt_datagram_port(socket.into(), service.max_packet_size, echo);
        return port.map(|port| port.get_host()).map_err(told);
    }
    let port = match service {
        Service { way: Way::Push, .. } => listen_with(reactor, place, Push),
        Service { close_after: 0, .. } => listen_with(reactor, place, Echo),
        Service { close_after, .. } => listen_with(reactor, place, ClosingEcho { left: close_after }),
    };
    port.map(|port| port.get_host()).map_err(told)
}

fn listen_with<P>(reactor: &Reactor, place: Place<'_>, protocol: P) -> Result<Port, ringspun::Error>
where
    P: Protocol<Copies<P>> + Protocol<Copies<Slowed<P>>> + Clone,
{
    match place.spin {
        None => listen_at(reactor, place, Copies(protocol)),
        Some(spin) => listen_at(reactor, place, Copies(Slowed { protocol, spin })),
    }
}

fn listen_at<F: Factory>(reactor: &Reactor, place: Place<'_>, factory: F) -> Result<Port, ringspun::Error> {
    match place.target {
        Target::Unix(name) => reactor.listen_unix(name.as_str(), factory),
        Target::Tcp(address) | Target::Udp(address) => {
            reactor.listen_tcp(ListenOptions::from(*address).reuse_port(place.shared), factory)
        }
    }
}

/// Gives each connection a copy of its protocol.
struct Copies<P>(P);

impl<P: Protocol<Self> + Clone> Factory for Copies<P> {
    type Protocol = P;

    fn build_protocol(&mut self, _peer: &mut Peer<'_>) -> Option<P> {
        Some(self.0.clone())
    }
}

/// Sends back what comes, and reads no more while the peer takes nothing.
#[derive(Clone)]
struct Echo;

impl<F> Protocol<F> for Echo {
    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        if cx.transport.write(data) == Write::Full {
            cx.transport.pause_producing();
        }
    }

    fn resume_writing(&mut self, cx: &mut Cx<'_, F>) {
        cx.transport.resume_producing();
    }
}

/// An echo that closes once it has sent back as many bytes as are left.
#[derive(Clone)]
struct ClosingEcho {
    left: usize,
}

impl<F> Protocol<F> for ClosingEcho {
    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        Echo.data_received(cx, data);
        self.left = self.left.saturating_sub(data.len());
        if self.left == 0 {
            cx.transport.lose_connection();
        }
    }

    fn resume_writing(&mut self, cx: &mut Cx<'_, F>) {
        Echo.resume_writing(cx);
    }
}

/// Sends what comes to all, from one buffer.
#[derive(Clone)]
struct Push;

impl<F> Protocol<F> for Push {
    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        // On threads the factory is held until this returns, so that all see the same order.
        let _held = &*cx.factory;
        let data: Arc<[u8]> = data.into();
        cx.connections().each(|mut transport| {
            // One that does not read is buffered, see `limits`; one that is gone misses nothing.
            let _ = transport.write_shared(&data);
        });
    }
}

/// Sends every datagram back to where it came from.
struct DatagramEcho {
    spin: Option<Duration>,
}

impl DatagramProtocol for DatagramEcho {
    fn datagram_received(&mut self, cx: &mut DatagramCx<'_, Self>, data: &[u8], from: &Address) {
        self.spin.into_iter().for_each(burn);
        // What has no room is lost, as datagrams are.
        let _ = cx.transport.write(data, from);
    }
}

/// Burns CPU before it passes on what comes.
#[derive(Clone)]
struct Slowed<P> {
    protocol: P,
    spin: Duration,
}

impl<F, P: Protocol<F>> Protocol<F> for Slowed<P> {
    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        burn(self.spin);
        self.protocol.data_received(cx, data);
    }

    fn resume_writing(&mut self, cx: &mut Cx<'_, F>) {
        self.protocol.resume_writing(cx);
    }
}

/// By the clock on the wall: asking for the thread's own is a system call, longer than what is planted.
fn burn(spin: Duration) {
    let start = Instant::now();
    while start.elapsed() < spin {
        hint::spin_loop();
    }
}

fn build(spec: Spec, way: Way) -> Result<Reactor, Error> {
    let backend = match spec.kind {
        Kind::IoUring => Backend::IoUring,
        Kind::Epoll => Backend::Epoll,
        Kind::Threads => Backend::Threads,
        _ => Backend::Auto,
    };
    let wait = if spec.latency || spec.spin {
        WaitPolicy::Latency { spin: spec.spin_time() }
    } else {
        WaitPolicy::Adaptive
    };
    let uring = UringOptions::default().direct(spec.direct).multishot(spec.multishot).wait(wait);
    Reactor::builder()
        .backend(backend)
        .uring(uring)
        .limits(limits(way))
        .build()
        .map_err(|error| Error::machine(error.to_string()))
}

/// An echo can stop reading; what is pushed was asked for by others, so none of it may be dropped.
fn limits(way: Way) -> Limits {
    match way {
        Way::Echo => Limits::default(),
        Way::Push => Limits { output_max: usize::MAX, output_total_max: usize::MAX, ..Limits::default() },
    }
}

/// All reactors of this server.
#[derive(Clone)]
struct Reactors(Vec<ReactorHandle>);

impl Served for Reactors {
    fn account(&self) -> ServerStats {
        let stats: Vec<Stats> = self.0.iter().map(|reactor| reactor.stats()).collect();
        let calls = |call: Syscall| stats.iter().map(|stats| stats.syscall(call)).sum();
        let counts = |count: Count| stats.iter().map(|stats| stats.count(count)).sum();
        let sums = ServerStats::of(
            Syscall::ALL.iter().map(|call| (call.name().into(), calls(*call))).collect(),
            Count::ALL.iter().map(|count| (count.name().into(), counts(*count))).collect(),
        );
        let accepted_by_reactor = stats.iter().map(|stats| stats.count(Count::Accepted)).collect();
        ServerStats { accepted_by_reactor, ..sums }
    }

    /// By way of the reactors' queues, so that it also holds when one is only about to run.
    fn end(self) {
        for reactor in self.0 {
            // It fails only if the reactor has stopped already.
            reactor.call_from_thread(|reactor| {
                let _ = reactor.stop();
            });
        }
    }
}

/// All reactors are alike, so one speaks for them.
fn identity(reactors: &[ReactorHandle]) -> Identity {
    let info = reactors[0].backend();
    Identity {
        backend: info.backend.name().into(),
        tier: info.tier.map(|tier| tier.name().into()),
        descriptors: if info.direct { "direct" } else { "plain" }.into(),
        reactors: reactors.len(),
        why: info.why.clone(),
        pid: std::process::id(),
    }
}

fn described(reactors: &[ReactorHandle]) -> String {
    match reactors {
        [only] => only.backend().to_string(),
        [first, ..] => format!("{} reactors, each {}", reactors.len(), first.backend()),
        [] => String::new(),
    }
}
