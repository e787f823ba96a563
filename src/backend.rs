//! The seam between the loop and the kernel: connection operations go down, completions come up.
//!
//! The contract that io_uring, epoll and any later backend keep:
//!
//! * Operations name a connection by its [`ConnId`], which belongs to it from
//!   [`adopt`](Proactor::adopt) or [`connect`](Proactor::connect) until [`Event::Closed`]. After
//!   `close` the loop asks nothing more of it, and the only events that may still come for it are a
//!   `Sent` that brings its batch back and then the one `Closed`.
//! * Receiving is off after `adopt`; [`read`](Proactor::read) turns it on and off. While it is on,
//!   `Data` comes in order, then one `End`. Data that the kernel had completed before receiving was
//!   turned off may still come after it.
//! * At most one batch of a connection is with the backend. It moves over the seam, and comes back
//!   with [`Sent`], so that nothing is freed or changed while the kernel reads it. When it was
//!   sent without waiting, that may be as late as the next wait that ends for another reason, unless
//!   [`hurry`](Proactor::hurry) was asked.
//! * No operation blocks, fails or calls back. What goes wrong comes up as an event.
//! * [`wait`](Proactor::wait) is the one place that sleeps. [`next`](Proactor::next) lends what it
//!   found, one event at a time: data lives until the following call, and the sockets lent beside
//!   it can be asked for addresses and options meanwhile.
//! * A backend names no protocol, no factory and no other backend.

pub(crate) mod accept;
pub(crate) mod diagnosis;
pub(crate) mod epoll;
pub(crate) mod memory;
pub(crate) mod threads;
pub(crate) mod treadmill;
pub(crate) mod uring;
pub(crate) mod watching;

use std::{io, os::fd::BorrowedFd, os::fd::OwnedFd, sync::Arc, time::Duration};

use crate::{
    address::Address,
    error::Errno,
    id::{ConnId, PortKey, WatchKey},
    network::Listening,
    output::Batch,
    sys::{self, DatagramSocket, Datagrams, Name, Socket},
};

use self::watching::{Readiness, Watcher};

/// What happened.
#[derive(Debug)]
#[repr(u64)] // A tag of a word, so that it is moved by words (ARCHITECTURE, "loads that span").
pub(crate) enum Event<'a> {
    /// A port accepted a connection.
    Accepted { port: PortKey, socket: Socket },
    /// A port could not accept; it rests until [`Proactor::accept_again`].
    AcceptFailed { port: PortKey, errno: Errno },
    /// A port is closed.
    Unlistened { port: PortKey },
    /// An attempt to connect ended.
    Connected { id: ConnId, errno: Option<Errno> },
    /// Bytes arrived.
    Data { id: ConnId, data: &'a [u8] },
    /// Descriptors arrived, along with the bytes of the event that follows.
    Descriptors { id: ConnId, descriptors: Vec<OwnedFd> },
    /// Receiving ended: with FIN, or with an error.
    End { id: ConnId, errno: Option<Errno> },
    /// A batch came back.
    Sent { id: ConnId, sent: Sent },
    /// Nothing of a connection is left with the backend.
    Closed { id: ConnId },
    /// A datagram arrived, to be had by [`Proactor::take_datagram`].
    Datagram { port: PortKey },
    /// A port for datagrams could not receive.
    DatagramsFailed { port: PortKey, errno: Errno },
    /// Datagrams came back.
    DatagramsSent { port: PortKey, sent: Box<DatagramBatch> },
    /// A foreign descriptor is ready.
    Ready { key: WatchKey, readiness: Readiness },
    /// The kernel would not watch a foreign descriptor.
    WatchFailed { key: WatchKey, errno: Errno },
    /// Another thread woke the loop.
    Woken,
}

// It is handed on by value with every message; when it was larger, profiles showed it.
const _: () = assert!(size_of::<Event<'_>>() <= 40);

/// A batch that came back.
#[derive(Debug)]
pub(crate) struct Sent {
    /// With what was sent taken off.
    pub(crate) batch: Box<Batch>,
    /// Bytes that the kernel took.
    pub(crate) bytes: usize,
    /// Why it took no more.
    pub(crate) errno: Option<Errno>,
}

/// A datagram that arrived: who sent it, and its data, unless it was too long.
pub(crate) type Datagram<'a> = (Address, Option<&'a [u8]>);

/// Datagrams on their way out and back.
#[derive(Debug, Default)]
pub(crate) struct DatagramBatch {
    pub(crate) datagrams: Datagrams,
    /// The places of those that the kernel did not take, and why.
    pub(crate) failed: Vec<(u32, Errno)>,
}

/// Asks sockets for what only a descriptor answers.
pub(crate) trait Sockets {
    /// Lends the descriptor of an adopted connection.
    fn lend(&mut self, id: ConnId, ask: &mut dyn FnMut(BorrowedFd<'_>)) -> io::Result<()>;

    /// The other end's address.
    fn peer_address(&mut self, id: ConnId) -> Option<Address> {
        asked(|ask| self.lend(id, ask), sys::peer_address).ok().flatten()
    }

    /// This end's address.
    fn local_address(&mut self, id: ConnId) -> Option<Address> {
        asked(|ask| self.lend(id, ask), sys::local_address).ok().flatten()
    }

    /// Bytes of a connection that the kernel has taken and the peer's has not.
    fn unacknowledged(&mut self, id: ConnId) -> usize {
        asked(|ask| self.lend(id, ask), sys::unacknowledged).unwrap_or(0)
    }

    /// Reads TCP_NODELAY, after setting it if `set` says so.
    fn no_delay(&mut self, id: ConnId, set: Option<bool>) -> io::Result<bool> {
        asked(|ask| self.lend(id, ask), |fd| sys::no_delay(fd, set))?
    }

    /// Reads SO_KEEPALIVE, after setting it if `set` says so.
    fn keep_alive(&mut self, id: ConnId, set: Option<bool>) -> io::Result<bool> {
        asked(|ask| self.lend(id, ask), |fd| sys::keep_alive(fd, set))?
    }
}

/// What `ask` answers about the descriptor that `lend` lends.
fn asked<R>(
    lend: impl FnOnce(&mut dyn FnMut(BorrowedFd<'_>)) -> io::Result<()>,
    ask: impl Fn(BorrowedFd<'_>) -> R,
) -> io::Result<R> {
    let mut answer = None;
    lend(&mut |fd| answer = Some(ask(fd)))?;
    answer.ok_or_else(|| io::ErrorKind::NotConnected.into())
}

/// One way of having the kernel do network I/O. See the top of this file for the contract.
pub(crate) trait Proactor: Watcher {
    /// Starts accepting.
    fn listen(&mut self, port: PortKey, listener: Listening);
    /// Accepts again after [`Event::AcceptFailed`].
    fn accept_again(&mut self, port: PortKey);
    /// Accepts and closes the peers that wait, by means of a reserved descriptor; how many.
    fn shed(&mut self, port: PortKey) -> usize;
    /// Ends a port; [`Event::Unlistened`] follows.
    fn unlisten(&mut self, port: PortKey);
    /// Begins to connect a socket, which is adopted by it; [`Event::Connected`] follows.
    fn connect(&mut self, id: ConnId, socket: OwnedFd, name: &Name);
    /// Takes an accepted socket under this id.
    fn adopt(&mut self, id: ConnId, socket: Socket);
    /// Closes an accepted socket that nobody wants.
    fn refuse(&mut self, socket: Socket);
    /// Says that this is a Unix socket: a receive ends where a descriptor came along, though there is more.
    fn is_unix(&mut self, id: ConnId) {
        let _ = id;
    }
    /// From now on receives descriptors, too.
    fn receive_descriptors(&mut self, id: ConnId);
    /// Turns receiving on or off.
    fn read(&mut self, id: ConnId, on: bool);
    /// Whether a send is only queued until the next wait, and costs no call of its own.
    fn queues_sends(&self) -> bool;
    /// Sends a batch. It may be gone at once; else [`Event::Sent`] brings it back.
    fn send(&mut self, id: ConnId, batch: Box<Batch>) -> Option<Sent>;
    /// Says that somebody waits for this connection's batch, which a backend may otherwise bring back together with
    /// the next thing that happens.
    fn hurry(&mut self, id: ConnId);
    /// Sends FIN.
    fn shutdown_write(&mut self, id: ConnId);
    /// Ends every operation and closes the socket, with RST if `reset`; [`Event::Closed`] follows.
    fn close(&mut self, id: ConnId, reset: bool);
    /// Begins to receive datagrams of at most so many bytes; [`Event::DatagramsFailed`] does not end it.
    fn open_datagrams(&mut self, port: PortKey, socket: Arc<DatagramSocket>, max_packet_size: usize);
    /// Sends datagrams, none of which waits for room. They may come back at once; else [`Event::DatagramsSent`] brings
    /// them, before which no others are sent there.
    fn send_datagrams(&mut self, port: PortKey, batch: Box<DatagramBatch>) -> Option<Box<DatagramBatch>>;
    /// Takes the datagram that the last event told of; to be asked once. None if it cannot be read.
    fn take_datagram(&mut self, port: PortKey) -> Option<Datagram<'_>>;
    /// Ends a port for datagrams; [`Event::Unlistened`] follows, after all that it was to send.
    fn close_datagrams(&mut self, port: PortKey);
    /// Submits what was asked and sleeps until something happens or `timeout` has passed.
    fn wait(&mut self, timeout: Duration) -> io::Result<()>;
    /// The next thing that happened, and the sockets.
    fn next(&mut self) -> Option<(Event<'_>, &mut dyn Sockets)>;
    /// The sockets, between events.
    fn sockets(&mut self) -> &mut dyn Sockets;
}
