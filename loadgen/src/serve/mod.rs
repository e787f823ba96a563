//! Servers to be measured: one on the library, an opponent of it, or any other program.

mod foreign;
mod library;
mod opponent;
mod service;

use std::{
    io::{self, BufRead, Write as _},
    net::{SocketAddr, UdpSocket},
};

use nix::sys::{
    prctl,
    signal::Signal,
    socket::{setsockopt, sockopt},
};

pub(crate) use self::service::{Service, Way};
use crate::{
    cli::ServeArgs,
    control::{self, Command, Mark, Report, ServerStats},
    error::Error,
    machine, pinning,
    target::Target,
};

/// What datagrams may wait in at most before a server: 1,000 clients that ask at once fill the usual queue. The kernel
/// allows less where net.core.rmem_max is smaller.
pub(crate) const RECEIVE_QUEUE_BYTES: usize = 4 << 20;

/// A server that runs, as another thread of its process sees it.
trait Served: Send + 'static {
    /// What it has counted so far.
    fn account(&self) -> ServerStats;
    /// Ends it.
    fn end(self);
}

/// A socket that receives datagrams at this address.
fn open_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_QUEUE_BYTES)?;
    Ok(socket)
}

fn cannot_listen(target: &Target, error: &io::Error) -> Error {
    Error::machine(format!("cannot listen on {target}: {error}; choose another address"))
}

/// Serves until a signal, or as a child until the parent says stop or ends.
pub(crate) fn serve(args: &ServeArgs) -> Result<(), Error> {
    // Whoever has started another program must outlive the parent, to end that.
    if args.control && args.command.is_none() {
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
    let service = args.service()?;
    if let Some(cpu) = args.cpu {
        pinning::pin(cpu)?;
    }
    machine::raise_descriptor_limit();
    match &args.command {
        Some(hired) => foreign::serve(args, hired),
        None if args.backend.kind.is_raw() => opponent::serve(args, service),
        None => library::serve(args, service),
    }
}

/// Carries out the parent's commands; their end is the parent's end.
fn obey(server: impl Served) {
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        match serde_json::from_str(&line) {
            Ok(Command::Stats { mark }) => report(&Report::Stats { mark, stats: server.account() }),
            Ok(Command::Stop) | Err(_) => break,
        }
    }
    server.end();
}

/// Tells the last account, to the parent or to whoever looks.
fn conclude(args: &ServeArgs, stats: ServerStats) {
    if args.control {
        report(&Report::Stats { mark: Mark::Stopped, stats });
    } else {
        sum_up(&stats);
    }
}

fn announce(way: Way, server: &str, target: &Target) {
    let text = format!("{} on {target}, {server}\nStop it with Ctrl-C.\n", way.name());
    // Nobody may be reading, which is no reason not to serve.
    let _ = io::stdout().write_all(text.as_bytes());
}

/// What the server counted, a line for each system call that it made.
fn sum_up(stats: &ServerStats) {
    let count = |name| stats.count(name).unwrap_or(0);
    let mut text = format!("{} connections, {} bytes received\n", count("accepted"), count("bytes_received"));
    if count("datagrams_received") > 0 {
        text = format!("{} datagrams received\n", count("datagrams_received"));
    }
    for (name, count) in stats.syscalls.iter().filter(|(_, count)| **count > 0) {
        text.push_str(&format!("{name} {count}\n"));
    }
    let _ = io::stdout().write_all(text.as_bytes());
}

fn report(report: &Report) {
    // A parent that does not read any more is noticed by the end of standard input.
    let _ = control::write_line(io::stdout().lock(), report);
}
