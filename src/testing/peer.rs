//! The test's ends of connections in memory.

use std::{fmt, sync::Arc};

use crate::{
    address::Address,
    network::{Listener, Network, Place},
};

/// How a connection ended, as the other end of it sees that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The program closed it, or its writing half: everything it wrote has come before.
    Fin,
    /// The program reset it.
    Reset,
}

/// The test's end of a connection, which it made with [`connect`](super::MemoryReactor::connect) or [accepted](MemoryListener::accept). What it does reaches the
/// program in the next turn. Dropping it closes it.
pub struct MemoryPeer {
    network: Arc<Network>,
    place: Place,
    open: bool,
    shut: bool,
}

impl MemoryPeer {
    pub(super) fn new(network: &Arc<Network>, place: Place) -> Self {
        Self { network: Arc::clone(network), place, open: true, shut: false }
    }

    /// Sends all of it; what the program does not receive, because it pauses, waits. Once the program has closed the connection, it is lost and a reset comes
    /// back, as from a socket.
    ///
    /// # Panics
    /// After [`shutdown_write`](Self::shutdown_write) or [`close`](Self::close).
    pub fn send(&mut self, bytes: &[u8]) {
        assert!(self.open && !self.shut, "this peer has closed its writing half");
        // An error says that it is reset, which `end` tells.
        let _ = self.network.send_all(self.place, bytes);
    }

    /// All that has come since this was last asked.
    pub fn take_received(&mut self) -> Vec<u8> {
        self.network.take_received(self.place)
    }

    /// How the program has ended the connection, once all that it sent before has come; None as long as it has not.
    pub fn end(&self) -> Option<End> {
        self.network.end(self.place).map(|errno| if errno.is_some() { End::Reset } else { End::Fin })
    }

    /// Bytes sent that the program has not received.
    pub fn unsent(&self) -> usize {
        self.network.unsent(self.place)
    }

    /// Receives nothing more, so that the program's output waits: as much of it as [fits](super::MemoryReactor::set_buffer_bytes) here, the rest with the program.
    pub fn pause(&mut self) {
        self.network.set_reads(self.place, false);
    }

    /// Receives again, first what has waited here.
    pub fn resume(&mut self) {
        self.network.set_reads(self.place, true);
    }

    /// Sends FIN, and goes on receiving.
    pub fn shutdown_write(&mut self) {
        if !std::mem::replace(&mut self.shut, true) {
            self.network.shutdown_write(self.place);
        }
    }

    /// Closes the connection: with FIN, or with RST if something waits here that was not received. What the program sends from here on is answered with RST.
    pub fn close(&mut self) {
        self.end_with(false);
    }

    /// Resets the connection.
    pub fn reset(&mut self) {
        self.end_with(true);
    }

    fn end_with(&mut self, reset: bool) {
        if std::mem::replace(&mut self.open, false) {
            self.network.close(self.place, reset);
        }
    }

    /// This end's address, which the program knows as its peer's.
    pub fn address(&self) -> Address {
        self.network.addresses(self.place).map_or(Address::Unknown, |(local, _)| local)
    }
}

impl Drop for MemoryPeer {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for MemoryPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryPeer")
            .field("address", &self.address())
            .field("end", &self.end())
            .finish_non_exhaustive()
    }
}

/// Where the test waits for the program to connect. Dropping it ends listening, and resets who was not accepted.
pub struct MemoryListener {
    network: Arc<Network>,
    listener: Listener,
    address: Address,
}

impl MemoryListener {
    pub(super) fn new(network: &Arc<Network>, listener: Listener, address: Address) -> Self {
        Self { network: Arc::clone(network), listener, address }
    }

    /// The test's end of the next connection that the program has made here, if there is one.
    pub fn accept(&self) -> Option<MemoryPeer> {
        self.listener.accept().map(|place| MemoryPeer::new(&self.network, place))
    }

    /// The address, with the real port if 0 was asked for.
    pub fn address(&self) -> Address {
        self.address.clone()
    }
}

impl Drop for MemoryListener {
    fn drop(&mut self) {
        self.listener.stop();
    }
}

impl fmt::Debug for MemoryListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryListener").field("address", &self.address).finish_non_exhaustive()
    }
}
