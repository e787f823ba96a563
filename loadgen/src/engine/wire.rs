//! What the engine needs of the kernel: connections with a message to send each, and events that
//! tell what has become of them. `ring` has it from io_uring, `readiness` from epoll.

use std::{io, ops::Range, os::fd::OwnedFd, time::Duration};

use nix::errno::Errno;

use super::buffers::Lease;

/// What has happened on one connection.
#[derive(Debug)]
pub(super) enum Event {
    Connected {
        slot: usize,
        result: Result<(), Errno>,
    },
    /// How much was sent of what was asked for.
    Sent {
        slot: usize,
        result: Result<usize, Errno>,
    },
    /// `more` says that the receive goes on by itself. No lease means no data: the end, or an error.
    Received {
        slot: usize,
        result: Result<Option<Lease>, Errno>,
        more: bool,
    },
    /// Everything was cancelled, which only the end asks for.
    Cancelled,
}

/// How a connection is put away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Farewell {
    /// As it stands: both sides have said that they are done.
    Close,
    /// By RST, whatever is under way.
    Reset,
}

/// What every wire is told at its beginning.
#[derive(Debug)]
pub(super) struct Plan {
    /// Bytes of outgoing messages that each slot has room for.
    pub(super) outgoing_bytes: Vec<usize>,
    /// Bytes that often come at once.
    pub(super) incoming_bytes: usize,
    /// Whether a receive ends with what it has brought, so that nothing is armed in between.
    pub(super) single_receives: bool,
    /// How many sends go to the kernel at once, unless it takes each as it comes.
    pub(super) burst: usize,
}

/// Connections by slots. A slot has one connection at a time, and one send of it under way.
pub(super) trait Wire {
    /// Starts to connect this slot, which must have no connection.
    fn connect(&mut self, slot: usize, socket: OwnedFd);

    /// Arms the slot's receive.
    fn receive(&mut self, slot: usize);

    /// The outgoing memory of this slot.
    fn outgoing(&self, slot: usize) -> &[u8];

    /// The same, to be changed; None while some of it is being sent.
    fn outgoing_mut(&mut self, slot: usize) -> Option<&mut [u8]>;

    /// Sends this part of the outgoing memory, all of it.
    fn send(&mut self, slot: usize, part: Range<usize>);

    /// Says that nothing more will be sent.
    fn finish(&mut self, slot: usize);

    /// Puts the connection away. Nothing of it may be under way: no send, and no receive.
    fn close(&mut self, slot: usize, farewell: Farewell);

    fn received(&self, lease: &Lease) -> &[u8];

    fn give_back(&mut self, lease: Lease);

    /// How many receives can find a buffer at once.
    fn buffer_count(&self) -> usize;

    /// Starts what was asked for, and waits until something happens, at most this long.
    fn wait(&mut self, timeout: Duration) -> io::Result<()>;

    /// The next event of those that the last wait brought.
    fn next_event(&mut self) -> Option<Event>;
}
