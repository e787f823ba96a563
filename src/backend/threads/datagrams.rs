//! Where the thread of a port for datagrams sleeps: before its socket and the descriptor that wakes it.

use std::{io, os::fd::AsFd, sync::Arc};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{
    stats::{Branch, Syscall},
    sys::{DatagramSocket, Waker},
};

/// See the top of this file.
#[derive(Debug)]
pub(crate) struct DatagramDoor {
    socket: Arc<DatagramSocket>,
    waker: Waker,
}

impl DatagramDoor {
    pub(crate) fn new(socket: Arc<DatagramSocket>) -> io::Result<Self> {
        Ok(Self { socket, waker: Waker::new()? })
    }

    /// Makes the thread that waits come back.
    pub(crate) fn wake(&self) {
        self.waker.wake();
    }

    /// Waits for a datagram, or to be woken.
    pub(crate) fn wait(&self, counters: &Branch) {
        let descriptors = [self.socket.as_fd(), self.waker.as_fd()];
        let mut polled = descriptors.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        counters.call(Syscall::Poll);
        // An error ends the wait like anything else: the receive that follows tells what it is.
        let _ = poll(&mut polled, PollTimeout::NONE);
        if polled[1].any() == Some(true) {
            counters.call(Syscall::Read);
            self.waker.clear();
        }
    }
}
