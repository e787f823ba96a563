//! An opponent as a server: the same socket options as the library's, the same account of itself.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::AsRawFd,
    process, thread,
};

use nix::sys::{
    signal::{SigSet, Signal},
    socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
        sockopt,
    },
};

use super::{Served, Service, announce, obey, report};
use crate::{
    cli::ServeArgs,
    control::{Identity, Mark, Report, ServerStats},
    error::Error,
    raw::{self, Tallies},
};

/// As many as the library lets wait.
const BACKLOG: i32 = 1024;

pub(super) fn serve(args: &ServeArgs, service: Service) -> Result<(), Error> {
    let address = SocketAddr::new(args.host, args.port);
    let listener = open(address).map_err(|error| {
        Error::machine(format!("cannot listen on {address}: {error}; choose another port"))
    })?;
    let prepared = raw::prepare(args.backend).map_err(|error| {
        Error::machine(format!(
            "{} is not available: {error}; it needs Linux 6.1 that allows io_uring",
            args.backend
        ))
    })?;
    let bound = listener.local_addr().map_err(|error| Error::internal(error.to_string()))?;
    let opponent = Opponent { tallies: Tallies::default() };
    let tallies = opponent.tallies.clone();
    if args.control {
        report(&Report::Ready { identity: identity(args), port: bound.port() });
        thread::spawn(move || obey(opponent));
    } else {
        announce(service.way, &format!("{}, written by hand", args.backend), bound);
        await_signal(opponent)?;
    }
    let error = raw::serve(prepared, args.backend, service.close_after, listener, &tallies);
    Err(Error::internal(format!("the {} server ended: {error}", args.backend)))
}

/// A loop that knows nothing but its sockets: it ends with the process.
struct Opponent {
    tallies: Tallies,
}

impl Served for Opponent {
    fn account(&self) -> ServerStats {
        ServerStats::of(self.tallies.syscalls(), self.tallies.counts())
    }

    fn end(self) {
        report(&Report::Stats { mark: Mark::Stopped, stats: self.account() });
        process::exit(0);
    }
}

/// Has a thread wait for Ctrl-C; no other thread gets the signal.
fn await_signal(opponent: Opponent) -> Result<(), Error> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block().map_err(|errno| Error::internal(format!("pthread_sigmask: {errno}")))?;
    thread::spawn(move || {
        if signals.wait().is_ok() {
            super::sum_up(&opponent.account());
            process::exit(0);
        }
    });
    Ok(())
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
    setsockopt(&socket, sockopt::OobInline, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket.into())
}

fn identity(args: &ServeArgs) -> Identity {
    Identity {
        backend: args.backend.kind.name().into(),
        tier: None,
        descriptors: args.backend.descriptors().into(),
        reactors: 1,
        why: "written by hand, without the library".into(),
        pid: process::id(),
    }
}
