//! The opponents over UDP: every datagram goes back to where it came from. What cannot be sent is dropped, as
//! UDP does it.

mod epoll;
mod threads;
mod uring;

use std::{io, net::UdpSocket, os::fd::AsFd};

use super::{Prepared, tally::Tallies};
use crate::spec::{Kind, Spec};

/// What a datagram has room for at most, and one byte more.
const DATAGRAM_BYTES: usize = 64 << 10;

/// Serves until that cannot be done any longer.
pub(super) fn serve(prepared: Prepared, spec: Spec, socket: &UdpSocket, tallies: &Tallies) -> io::Result<()> {
    let tally = tallies.branch();
    match (prepared, spec.kind) {
        (Prepared::Uring(ring), _) => uring::serve(*ring, socket.as_fd(), spec.direct, &tally),
        (_, Kind::RawEpoll) => epoll::serve(socket, &tally),
        _ => threads::serve(socket, &tally),
    }
}
