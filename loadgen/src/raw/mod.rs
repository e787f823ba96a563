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

pub(crate) use self::tally::Tallies;
use crate::spec::{Kind, Spec};

/// Serves until the process ends; returns only if that cannot be done, or no longer.
pub(crate) fn serve(spec: Spec, listener: TcpListener, tallies: &Tallies) -> io::Error {
    let ended = match spec.kind {
        Kind::RawUring => uring::serve(listener, spec.direct, &tallies.branch()),
        Kind::RawEpoll => epoll::serve(&listener, &tallies.branch()),
        _ => threads::serve(&listener, tallies),
    };
    ended.err().unwrap_or_else(|| io::Error::other("the server ended by itself"))
}
