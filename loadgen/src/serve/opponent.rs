//! An opponent as a server: the same socket options as the library's, the same account of itself.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    process, thread,
};

use nix::sys::{
    signal::{SigSet, Signal},
    socket::{Backlog, SockFlag, bind, listen, setsockopt, socket, sockopt},
};

use super::{Served, Service, announce, cannot_listen, obey, open_udp, report};
use crate::{
    cli::ServeArgs,
    control::{Identity, Mark, Report, ServerStats},
    error::Error,
    raw::{self, Socket, Tallies},
    target::{Target, Transport, UnixName},
};

/// As many as the library lets wait.
const BACKLOG: i32 = 1024;

pub(super) fn serve(args: &ServeArgs, service: Service) -> Result<(), Error> {
    let wanted = args.target()?;
    let (socket, target) = open(&wanted).map_err(|error| cannot_listen(&wanted, &error))?;
    let prepared = raw::prepare(args.backend).map_err(|error| {
        Error::machine(format!(
            "{} is not available: {error}; it needs Linux 6.2 that allows io_uring",
            args.backend
        ))
    })?;
    let opponent = Opponent { tallies: Tallies::default(), file: file(&target) };
    let tallies = opponent.tallies.clone();
    if args.control {
        report(&Report::Ready { identity: identity(args), target });
        thread::spawn(move || obey(opponent));
    } else {
        announce(service.way, &format!("{}, written by hand", args.backend), &target);
        await_signal(opponent)?;
    }
    let error = raw::serve(prepared, args.backend, service, &socket, &tallies);
    Err(Error::internal(format!("the {} server ended: {error}", args.backend)))
}

/// A loop that knows nothing but its sockets: it ends with the process.
struct Opponent {
    tallies: Tallies,
    /// What its Unix socket leaves behind.
    file: Option<PathBuf>,
}

impl Opponent {
    fn leave(&self) -> ! {
        if let Some(file) = &self.file {
            // Somebody else may have taken it away.
            let _ = fs::remove_file(file);
        }
        process::exit(0)
    }
}

impl Served for Opponent {
    fn account(&self) -> ServerStats {
        ServerStats::of(self.tallies.syscalls(), self.tallies.counts())
    }

    fn end(self) {
        report(&Report::Stats { mark: Mark::Stopped, stats: self.account() });
        self.leave();
    }
}

/// Has a thread wait for Ctrl-C; no other thread gets the signal.
fn await_signal(opponent: Opponent) -> Result<(), Error> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block().map_err(|errno| Error::internal(format!("pthread_sigmask: {errno}")))?;
    thread::spawn(move || {
        if signals.wait().is_ok() {
            super::sum_up(&opponent.account());
            opponent.leave();
        }
    });
    Ok(())
}

fn file(target: &Target) -> Option<PathBuf> {
    match target {
        Target::Unix(name) => name.path().map(Into::into),
        _ => None,
    }
}

/// A socket to serve on, and where it really is.
fn open(target: &Target) -> io::Result<(Socket, Target)> {
    let socket = socket(target.family(), target.kind(), SockFlag::SOCK_CLOEXEC, None)?;
    let at = |transport: Transport, bound: io::Result<SocketAddr>| Ok(Target::by_ip(transport, bound?));
    match target {
        Target::Tcp(_) => {
            setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
            setsockopt(&socket, sockopt::OobInline, &true)?;
            bind(socket.as_raw_fd(), target.address().raw())?;
            listen(&socket, Backlog::new(BACKLOG)?)?;
            let listener = TcpListener::from(socket);
            at(Transport::Tcp, listener.local_addr()).map(|bound| (Socket::Tcp(listener), bound))
        }
        Target::Unix(name) => {
            bind_to(&socket, name)?;
            listen(&socket, Backlog::new(BACKLOG)?)?;
            Ok((Socket::Unix(UnixListener::from(socket)), target.clone()))
        }
        Target::Udp(address) => {
            let socket = open_udp(*address)?;
            at(Transport::Udp, socket.local_addr()).map(|bound| (Socket::Udp(socket), bound))
        }
    }
}

/// Takes the name, also from a file that a server of before has left.
fn bind_to(socket: &OwnedFd, name: &UnixName) -> io::Result<()> {
    let address = name.address()?;
    let taken = match bind(socket.as_fd().as_raw_fd(), &address) {
        Err(nix::errno::Errno::EADDRINUSE) => name.path(),
        bound => return Ok(bound?),
    };
    let stale = taken.filter(|path| {
        UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    });
    let Some(path) = stale else { return Err(io::ErrorKind::AddrInUse.into()) };
    fs::remove_file(path)?;
    Ok(bind(socket.as_raw_fd(), &address)?)
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
