//! The opponents: echo servers written by hand, each against one way of waiting and nothing else.
//!
//! They share no code with the library and have none of its promises: no limits, no timers, no
//! callbacks. So the library's distance to them is the price of the framework itself. Each lists
//! at its top the tricks that were tried and what they did, because an opponent is worth beating only if
//! it is as good as it can be made.

mod epoll;
mod tally;
mod threads;
mod uring;

use std::{io, net::TcpListener};

use io_uring::IoUring;

pub(crate) use self::tally::Tallies;
use crate::spec::{Kind, Spec};

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
pub(crate) fn serve(prepared: Prepared, spec: Spec, listener: TcpListener, tallies: &Tallies) -> io::Error {
    let ended = match (prepared, spec.kind) {
        (Prepared::Uring(ring), _) => uring::serve(*ring, listener, spec.direct, &tallies.branch()),
        (_, Kind::RawEpoll) => epoll::serve(&listener, &tallies.branch()),
        _ => threads::serve(&listener, tallies),
    };
    ended.err().unwrap_or_else(|| io::Error::other("the server ended by itself"))
}
