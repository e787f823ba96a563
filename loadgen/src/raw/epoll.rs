//! One thread on edge-triggered epoll: every event is followed by one receive and one send.
//!
//! Tricks tried, and kept for what they save: a short receive means that the socket is empty, so no second one
//! asks (one call a message); interest in everything from the first day, so it never changes (no
//! epoll_ctl a message); one buffer of 64 KiB for all connections, which stays in the cache; what could not be sent
//! gathers in one place and goes out in one call.
//!
//! Tried since, and what it did to the server's CPU a request (64 bytes, unless a size is named; an interval that
//! holds 1 is no effect):
//! * Fewer events a wait, so that the sockets looked at are still in the cache: over 1,000 connections 64
//!   x 1.01 [0.97, 1.02], 32 x 1.00 [0.99, 1.04], 16 x 1.04 [0.99, 1.14]. Not kept.
//! * Receiving from all that are ready, then sending to all: over 64 connections no different from fewer events,
//!   over 1,000 x 1.00 [0.95, 1.05], with 64 KiB x 1.14 [1.12, 1.57]. Not kept.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        epoll::{EpollEvent, EpollFlags},
        socket::{MsgFlags, SockFlag, accept4, recv, send},
    },
};

use super::{
    tally::{Counted, Tally},
    waiting::Waiting,
};

const BUFFER_BYTES: usize = 64 << 10;
const EVENTS: usize = 1024;
/// Connections taken in a row before others are served.
const ACCEPTS: usize = 64;

struct Connection {
    socket: OwnedFd,
    /// What the peer has yet to take.
    unsent: Vec<u8>,
    /// Bytes that came.
    received: usize,
}

struct Server<'a> {
    waiting: Waiting<'a>,
    listener: BorrowedFd<'a>,
    /// By descriptor.
    connections: Vec<Option<Connection>>,
    buffer: Vec<u8>,
    /// Bytes sent back that end a connection; 0 for none.
    close_after: usize,
    tally: &'a Tally,
}

/// Serves for ever.
pub(super) fn serve(
    listener: BorrowedFd<'_>,
    spin: Duration,
    close_after: usize,
    tally: &Tally,
) -> io::Result<()> {
    fcntl(listener, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let waiting = Waiting::new(spin, tally)?;
    waiting.add(listener, EpollFlags::EPOLLIN, listener.as_raw_fd() as u64)?;
    let buffer = vec![0; BUFFER_BYTES];
    Server { waiting, listener, connections: Vec::new(), buffer, close_after, tally }.run()
}

impl Server<'_> {
    fn run(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        loop {
            let count = self.waiting.wait(&mut events)?;
            for event in &events[..count] {
                if event.data() == self.listener.as_raw_fd() as u64 {
                    self.accept()?;
                } else {
                    self.serve(event.data() as usize, event.events());
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        for _ in 0..ACCEPTS {
            self.tally.count(Counted::Accept);
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let fd = match accept4(self.listener.as_raw_fd(), flags) {
                Ok(fd) => fd,
                Err(Errno::EAGAIN) => break,
                Err(Errno::ECONNABORTED | Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            self.tally.count(Counted::Accepted);
            // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
            self.add(unsafe { OwnedFd::from_raw_fd(fd) })?;
        }
        Ok(())
    }

    fn add(&mut self, socket: OwnedFd) -> io::Result<()> {
        let fd = socket.as_raw_fd() as usize;
        let all = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        self.tally.count(Counted::EpollCtl);
        self.waiting.add(&socket, all, fd as u64)?;
        if self.connections.len() <= fd {
            self.connections.resize_with(fd + 1, || None);
        }
        self.connections[fd] = Some(Connection { socket, unsent: Vec::new(), received: 0 });
        Ok(())
    }

    fn serve(&mut self, fd: usize, flags: EpollFlags) {
        // An event for a connection that an earlier one of this turn has ended.
        let Some(connection) = &mut self.connections[fd] else { return };
        let ending = flags.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        let readable = ending || flags.contains(EpollFlags::EPOLLIN) || !connection.unsent.is_empty();
        if readable
            && (connection.echo(&mut self.buffer, ending, self.tally).is_err()
                || connection.has_answered(self.close_after))
        {
            self.tally.count(Counted::Close);
            self.connections[fd] = None;
        }
    }
}

impl Connection {
    /// Echoes what there is; an error is the connection's end.
    fn echo(&mut self, buffer: &mut [u8], ending: bool, tally: &Tally) -> Result<(), Errno> {
        if !self.flush(tally)? {
            return Ok(());
        }
        loop {
            tally.count(Counted::Recv);
            let count = match recv(self.socket.as_raw_fd(), buffer, MsgFlags::empty()) {
                Ok(0) => return Err(Errno::ENOTCONN),
                Err(Errno::EAGAIN) => return Ok(()),
                count => count?,
            };
            tally.add(Counted::BytesReceived, count as u64);
            self.received += count;
            let sent = self.send(&buffer[..count], tally)?;
            if sent < count {
                self.unsent.extend_from_slice(&buffer[sent..count]);
                return Ok(());
            }
            if count < buffer.len() && !ending {
                return Ok(());
            }
        }
    }

    /// Whether so many bytes have gone back that the connection is to end; 0 is never.
    fn has_answered(&self, close_after: usize) -> bool {
        close_after > 0 && self.received >= close_after && self.unsent.is_empty()
    }

    /// Sends what has gathered; answers whether nothing is left.
    fn flush(&mut self, tally: &Tally) -> Result<bool, Errno> {
        if !self.unsent.is_empty() {
            let sent = self.send(&self.unsent, tally)?;
            self.unsent.drain(..sent);
        }
        Ok(self.unsent.is_empty())
    }

    fn send(&self, bytes: &[u8], tally: &Tally) -> Result<usize, Errno> {
        tally.count(Counted::Send);
        match send(self.socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
            Err(Errno::EAGAIN) => Ok(0),
            sent => sent,
        }
    }
}
