//! The threads backend: one blocking `recv` and one `send` a message, one descriptor a connection,
//! and no call at all while idle.
//!
//! It is the mirror image of the loops. Those keep all connections in one thread and ask the
//! kernel for whatever comes next; here each connection has a thread, which asks for nothing but
//! its own. So there is no stream of events to pull: the joint hands each thread what to run, and
//! this room holds what is between the threads and the kernel:
//!
//! * [`Wire`], the socket of a connection;
//! * [`doors`], where the main thread sleeps and accepts;
//! * [`datagrams`], where the thread of a port for datagrams sleeps;
//! * [`dial`], a connection attempt that another thread can end;
//! * [`sender`], which waits for the peers that do not read;
//! * `watching.rs`, the foreign descriptors, at which the main thread waits, too.

pub(crate) mod datagrams;
pub(crate) mod dial;
pub(crate) mod doors;
pub(crate) mod sender;
mod watching;

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use nix::poll::PollTimeout;

use crate::{
    error::Errno,
    output::Batch,
    stats::{Branch, Count, Syscall},
    sys::{self, RightsInbox},
};

/// What one send came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gone {
    /// Bytes that the kernel took.
    pub(crate) bytes: usize,
    /// It will take no more for now.
    pub(crate) full: bool,
}

/// The socket of one connection, closed when the last thread that works on it lets go: so no
/// thread ever asks a descriptor that has become somebody else's.
///
/// Its own thread receives; at most one thread at a time sends or shuts down, which the joint sees
/// to. That is why plain loads and stores are enough for the counters.
#[derive(Debug)]
pub(crate) struct Wire {
    socket: OwnedFd,
    counters: Branch,
    /// The sender has it on its list.
    listed: AtomicBool,
}

impl Wire {
    /// Takes a socket whose reads wait.
    pub(crate) fn new(socket: OwnedFd, counters: Branch) -> Self {
        Self { socket, counters, listed: AtomicBool::new(false) }
    }

    /// What this connection has counted.
    pub(crate) fn counters(&self) -> &Branch {
        &self.counters
    }

    /// Waits for bytes, and for descriptors if there is somewhere to put them; 0 is the peer's FIN, or the work of [`wake`](Self::wake).
    pub(crate) fn receive(
        &self,
        buffer: &mut [u8],
        rights: Option<&mut RightsInbox>,
    ) -> Result<usize, Errno> {
        self.counters.call(Syscall::Recv);
        let received = match rights {
            Some(rights) => rights.receive(self.socket.as_fd(), buffer),
            None => sys::receive(self.socket.as_fd(), buffer),
        };
        if let Ok(n) = received {
            self.counters.add(Count::BytesReceived, n as u64);
        }
        received
    }

    /// Sends what goes without waiting, and takes it off the batch.
    pub(crate) fn send(&self, batch: &mut Batch) -> Result<Gone, Errno> {
        let call = if batch.as_single().is_some() { Syscall::Send } else { Syscall::Sendmsg };
        self.counters.call(call);
        match sys::send_now(self.socket.as_fd(), batch) {
            Ok(sent) => {
                self.counters.add(Count::BytesSent, sent.bytes as u64);
                batch.advance(sent.bytes);
                Ok(Gone { bytes: sent.bytes, full: sent.short })
            }
            Err(errno) => match errno.raw() {
                libc::EAGAIN => Ok(Gone { bytes: 0, full: true }),
                libc::EINTR => Ok(Gone { bytes: 0, full: false }),
                _ => Err(errno),
            },
        }
    }

    /// Sends FIN.
    pub(crate) fn shutdown_write(&self) {
        self.counters.call(Syscall::Shutdown);
        sys::shutdown_write(self.socket.as_fd());
    }

    /// Makes the thread that receives come back, now and ever after; the peer is sent nothing. Only
    /// for a connection that is over: were it still to be flushed, what arrives after this would be
    /// answered with RST and the output destroyed (C7).
    pub(crate) fn wake(&self) {
        self.counters.call(Syscall::Shutdown);
        sys::shutdown_read(self.socket.as_fd());
    }

    /// Makes the close that follows send RST.
    pub(crate) fn reset_on_close(&self) {
        self.counters.call(Syscall::Setsockopt);
        sys::reset_on_close(self.socket.as_fd());
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.counters.call(Syscall::Close);
    }
}

/// Whether the sender has to be told of this wire for the first time.
fn list(wire: &Wire) -> bool {
    !wire.listed.swap(true, Relaxed)
}

/// Whole milliseconds, upwards: a timer is never early, and never makes its thread spin.
fn round_up(timeout: std::time::Duration) -> PollTimeout {
    let millis = timeout.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as i32;
    PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
}
