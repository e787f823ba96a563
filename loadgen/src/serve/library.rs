//! The library's servers. The only file that uses ringspun's API.

use std::{
    hint,
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use ringspun::{
    Backend, Count, Cx, Factory, Limits, Peer, Port, Protocol, Reactor, ReactorHandle, Syscall, UringOptions,
    WaitPolicy, Write,
};

use super::{Served, Service, Way, announce, conclude, obey, report};
use crate::{
    cli::ServeArgs,
    control::{Identity, Report, ServerStats},
    error::Error,
    spec::{Kind, Spec},
};

pub(super) fn serve(args: &ServeArgs, service: Service) -> Result<(), Error> {
    let reactor = build(args.backend, service.way)?;
    let port = listen(&reactor, args, service).map_err(|error| Error::machine(error.to_string()))?;
    let port = port.get_host().port().unwrap_or(args.port);
    let handle = reactor.handle();
    if args.control {
        report(&Report::Ready { identity: identity(&handle), port });
        let handle = handle.clone();
        thread::spawn(move || obey(handle));
    } else {
        announce(service.way, &handle.backend().to_string(), SocketAddr::new(args.host, port));
    }
    reactor.run().map_err(|error| Error::internal(error.to_string()))?;
    conclude(args, handle.account());
    Ok(())
}

fn listen(reactor: &Reactor, args: &ServeArgs, service: Service) -> Result<Port, ringspun::Error> {
    let address = SocketAddr::new(args.host, args.port);
    let spin = args.spin_per_message;
    match service {
        Service { way: Way::Push, .. } => listen_with(reactor, address, spin, Push),
        Service { close_after: 0, .. } => listen_with(reactor, address, spin, Echo),
        Service { close_after, .. } => listen_with(reactor, address, spin, ClosingEcho { left: close_after }),
    }
}

fn listen_with<P>(
    reactor: &Reactor,
    address: SocketAddr,
    spin: Option<Duration>,
    protocol: P,
) -> Result<Port, ringspun::Error>
where
    P: Protocol<Copies<P>> + Protocol<Copies<Slowed<P>>> + Clone,
{
    match spin {
        None => reactor.listen_tcp(address, Copies(protocol)),
        Some(spin) => reactor.listen_tcp(address, Copies(Slowed { protocol, spin })),
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

/// Burns CPU before it passes on what comes.
#[derive(Clone)]
struct Slowed<P> {
    protocol: P,
    spin: Duration,
}

impl<F, P: Protocol<F>> Protocol<F> for Slowed<P> {
    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        // By the clock on the wall: asking for the thread's own is a system call, longer than what is planted.
        let start = Instant::now();
        while start.elapsed() < self.spin {
            hint::spin_loop();
        }
        self.protocol.data_received(cx, data);
    }

    fn resume_writing(&mut self, cx: &mut Cx<'_, F>) {
        self.protocol.resume_writing(cx);
    }
}

fn build(spec: Spec, way: Way) -> Result<Reactor, Error> {
    let backend = match spec.kind {
        Kind::IoUring => Backend::IoUring,
        Kind::Epoll => Backend::Epoll,
        Kind::Threads => Backend::Threads,
        _ => Backend::Auto,
    };
    let wait = if spec.latency { WaitPolicy::Latency { spin: Duration::ZERO } } else { WaitPolicy::Adaptive };
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
        Way::Push => Limits { output_max: usize::MAX, ..Limits::default() },
    }
}

impl Served for ReactorHandle {
    fn account(&self) -> ServerStats {
        let stats = self.stats();
        ServerStats::of(
            Syscall::ALL.iter().map(|call| (call.name().into(), stats.syscall(*call))).collect(),
            Count::ALL.iter().map(|count| (count.name().into(), stats.count(*count))).collect(),
        )
    }

    /// By way of the reactor's queue, so that it also holds when the reactor is only about to run.
    fn end(self) {
        // It fails only if the reactor has stopped already.
        self.call_from_thread(|reactor| {
            let _ = reactor.stop();
        });
    }
}

fn identity(handle: &ReactorHandle) -> Identity {
    let info = handle.backend();
    Identity {
        backend: info.backend.name().into(),
        tier: info.tier.map(|tier| tier.name().into()),
        descriptors: if info.direct { "direct" } else { "plain" }.into(),
        why: info.why.clone(),
        pid: std::process::id(),
    }
}
