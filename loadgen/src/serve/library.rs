//! The library's server. The only file that uses ringspun's API.

use std::{net::SocketAddr, thread, time::Duration};

use ringspun::{
    Backend, Count, Cx, Protocol, Reactor, ReactorHandle, Serve, Syscall, UringOptions, WaitPolicy, Write,
};

use super::{Served, announce, conclude, obey, report};
use crate::{
    cli::ServeArgs,
    control::{Identity, Report, ServerStats},
    error::Error,
    spec::{Kind, Spec},
};

/// Sends back what comes, and reads no more while the peer takes nothing.
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

pub(super) fn serve(args: &ServeArgs) -> Result<(), Error> {
    let reactor = build(args.backend)?;
    let address = SocketAddr::new(args.host, args.port);
    let port =
        reactor.listen_tcp(address, Serve(|| Echo)).map_err(|error| Error::machine(error.to_string()))?;
    let port = port.get_host().port().unwrap_or(args.port);
    let handle = reactor.handle();
    if args.control {
        report(&Report::Ready { identity: identity(&handle), port });
        let handle = handle.clone();
        thread::spawn(move || obey(handle));
    } else {
        announce(&handle.backend().to_string(), SocketAddr::new(args.host, port));
    }
    reactor.run().map_err(|error| Error::internal(error.to_string()))?;
    conclude(args, handle.account());
    Ok(())
}

fn build(spec: Spec) -> Result<Reactor, Error> {
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
        .build()
        .map_err(|error| Error::machine(error.to_string()))
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
