//! The opponents over UDP: every datagram goes back to where it came from. What cannot be sent is dropped, as
//! UDP does it.

mod epoll;
mod threads;
mod uring;

use std::{io, net::UdpSocket, os::fd::AsFd};

use super::{Prepared, tally::Tallies};
use crate::spec::{Kind, Spec};

/// Serves datagrams of at most so many bytes, until that cannot be done any longer.
pub(super) fn serve(
    prepared: Prepared,
    spec: Spec,
    longest: usize,
    socket: &UdpSocket,
    tallies: &Tallies,
) -> io::Result<()> {
    let tally = tallies.branch();
    match (prepared, spec.kind) {
        (Prepared::Uring(ring), _) => uring::serve(*ring, socket.as_fd(), spec.direct, longest, &tally),
        (_, Kind::RawEpoll) => epoll::serve(socket, spec.spin_time(), longest, &tally),
        _ => threads::serve(socket, longest, &tally),
    }
}
