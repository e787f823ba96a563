//! The opponents: echo servers written by hand, each against one way of waiting and nothing else.
//!
//! They share no code with the library and have none of its promises: no limits, no timers, no
//! callbacks. So the library's distance to them is the price of the framework itself. Each lists
//! at its top the tricks that were tried and what they did, because an opponent is worth beating only if
//! it is as good as it can be made.
//!
//! Each can be told to close a connection once it has sent so many bytes back on it (`close_after`; 0 is
//! never): it reads on until then, and closes when the last byte has gone out. It is a plain close(2), so what
//! the peer sends beyond that and nobody has read makes the kernel answer with RST; with one request a
//! connection there is nothing, and the peer reads its reply and the end.

mod epoll;
mod tally;
mod threads;
mod udp;
mod uring;
mod waiting;

use std::{
    io,
    net::{TcpListener, UdpSocket},
    os::{fd::AsFd, unix::net::UnixListener},
};

use io_uring::IoUring;

pub(crate) use self::tally::Tallies;
use crate::{
    serve::Service,
    spec::{Kind, Spec},
};

/// What a server is given to serve on.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
    Udp(UdpSocket),
}

/// What a server needs of the machine before it can promise to serve.
pub(crate) enum Prepared {
    Uring(Box<IoUring>),
    Nothing,
}

/// Prepares a server on the thread that is to serve.
pub(crate) fn prepare(spec: Spec) -> io::Result<Prepared> {
    match spec.kind {
        Kind::RawUring => uring::build(spec.direct).map(Box::new).map(Prepared::Uring),
        _ => Ok(Prepared::Nothing),
    }
}

/// Serves until the process ends; returns only if that cannot be done, or no longer.
pub(crate) fn serve(
    prepared: Prepared,
    spec: Spec,
    service: Service,
    socket: &Socket,
    tallies: &Tallies,
) -> io::Error {
    let close_after = service.close_after;
    let ended = match socket {
        Socket::Udp(socket) => udp::serve(prepared, spec, service.max_packet_size, socket, tallies),
        Socket::Tcp(listener) => match (prepared, spec.kind) {
            (Prepared::Nothing, Kind::RawThreads) => threads::serve_tcp(listener, close_after, tallies),
            (prepared, _) => on_a_loop(prepared, spec, close_after, listener, tallies),
        },
        Socket::Unix(listener) => match (prepared, spec.kind) {
            (Prepared::Nothing, Kind::RawThreads) => threads::serve_unix(listener, close_after, tallies),
            (prepared, _) => on_a_loop(prepared, spec, close_after, listener, tallies),
        },
    };
    ended.err().unwrap_or_else(|| io::Error::other("the server ended by itself"))
}

fn on_a_loop(
    prepared: Prepared,
    spec: Spec,
    close_after: usize,
    listener: impl AsFd,
    tallies: &Tallies,
) -> io::Result<()> {
    let (listener, tally) = (listener.as_fd(), tallies.branch());
    match prepared {
        Prepared::Uring(ring) => uring::serve(*ring, listener, spec.direct, close_after, &tally),
        Prepared::Nothing => epoll::serve(listener, spec.spin_time(), close_after, &tally),
    }
}
