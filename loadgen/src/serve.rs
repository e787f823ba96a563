//! The server: an echo on a chosen backend. The only file that uses ringspun's API.

use std::{
    io::{self, BufRead, Write as _},
    net::SocketAddr,
    thread,
    time::Duration,
};

use nix::sys::{prctl, signal::Signal};
use ringspun::{
    Backend, Count, Cx, Protocol, Reactor, ReactorHandle, Serve, Syscall, UringOptions, WaitPolicy, Write,
};

use crate::{
    cli::ServeArgs,
    control::{self, Command, Identity, Mark, Report, ServerStats},
    error::Error,
    machine, measure, pinning,
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

/// Serves until a signal, or as a child until the parent says stop or ends.
pub(crate) fn serve(args: &ServeArgs) -> Result<(), Error> {
    if args.control {
        // The kernel ends this process when the parent is killed; a parent that was gone before this
        // line shows as the end of standard input.
        prctl::set_pdeathsig(Signal::SIGKILL)
            .map_err(|errno| Error::internal(format!("PR_SET_PDEATHSIG: {}", errno.desc())))?;
    }
    let outcome = listen_and_run(args);
    if let (true, Err(error)) = (args.control, &outcome) {
        report(&Report::Failed { message: error.to_string() });
    }
    outcome
}

fn listen_and_run(args: &ServeArgs) -> Result<(), Error> {
    if let Some(cpu) = args.cpu {
        pinning::pin(cpu)?;
    }
    machine::raise_descriptor_limit();
    let reactor = build(args.backend)?;
    let address = SocketAddr::new(args.host, args.port);
    let port =
        reactor.listen_tcp(address, Serve(|| Echo)).map_err(|error| Error::machine(error.to_string()))?;
    let port = port.get_host().port().unwrap_or(args.port);
    let handle = reactor.handle();
    if args.control {
        report(&Report::Ready { identity: identity(&handle), port });
        let handle = handle.clone();
        thread::spawn(move || obey(&handle));
    } else {
        announce(&handle, SocketAddr::new(args.host, port));
    }
    reactor.run().map_err(|error| Error::internal(error.to_string()))?;
    if args.control {
        report(&Report::Stats { mark: Mark::Stopped, stats: stats(&handle) });
    } else {
        sum_up(&handle);
    }
    Ok(())
}

fn build(spec: Spec) -> Result<Reactor, Error> {
    let backend = match spec.kind {
        Kind::Auto => Backend::Auto,
        Kind::IoUring => Backend::IoUring,
        Kind::Epoll => Backend::Epoll,
        Kind::Threads => Backend::Threads,
    };
    let wait = if spec.latency { WaitPolicy::Latency { spin: Duration::ZERO } } else { WaitPolicy::Adaptive };
    let uring = UringOptions::default().direct(spec.direct).multishot(spec.multishot).wait(wait);
    Reactor::builder()
        .backend(backend)
        .uring(uring)
        .build()
        .map_err(|error| Error::machine(error.to_string()))
}

/// Carries out the parent's commands; their end is the parent's end.
fn obey(handle: &ReactorHandle) {
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        match serde_json::from_str(&line) {
            Ok(Command::Stats { mark }) => report(&Report::Stats { mark, stats: stats(handle) }),
            Ok(Command::Stop) | Err(_) => break,
        }
    }
    // By way of the reactor's queue, so that it also holds when the reactor is only about to run. It
    // fails only if the reactor has stopped already.
    handle.call_from_thread(|reactor| {
        let _ = reactor.stop();
    });
}

fn stats(handle: &ReactorHandle) -> ServerStats {
    let stats = handle.stats();
    let (voluntary_switches, involuntary_switches) = measure::context_switches().unwrap_or_default();
    ServerStats {
        syscalls: Syscall::ALL.iter().map(|call| (call.name().into(), stats.syscall(*call))).collect(),
        counts: Count::ALL.iter().map(|count| (count.name().into(), stats.count(*count))).collect(),
        voluntary_switches,
        involuntary_switches,
        peak_memory_bytes: measure::peak_memory_bytes(),
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

fn announce(handle: &ReactorHandle, address: SocketAddr) {
    let text = format!("echo on tcp://{address}, {}\nStop it with Ctrl-C.\n", handle.backend());
    // Nobody may be reading, which is no reason not to serve.
    let _ = io::stdout().write_all(text.as_bytes());
}

/// What the reactor counted, a line for each system call that it made.
fn sum_up(handle: &ReactorHandle) {
    let stats = handle.stats();
    let received = stats.count(Count::BytesReceived);
    let mut text = format!("{} connections, {received} bytes received\n", stats.count(Count::Made));
    for call in Syscall::ALL.iter().filter(|call| stats.syscall(**call) > 0) {
        text.push_str(&format!("{call} {}\n", stats.syscall(*call)));
    }
    let _ = io::stdout().write_all(text.as_bytes());
}

fn report(report: &Report) {
    // A parent that does not read any more is noticed by the end of standard input.
    let _ = control::write_line(io::stdout().lock(), report);
}
