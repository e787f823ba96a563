//! One thread on edge-triggered epoll: as many datagrams as a batch holds are received by one call and sent back by
//! another, from the same headers.
//!
//! Kept for what it saves: a batch that is not full has emptied the socket, so no call asks once more; the headers are
//! made once, and what one call has written is what the other one reads.

use std::{
    io, mem,
    net::UdpSocket,
    os::fd::{AsFd, AsRawFd, RawFd},
    ptr::null_mut,
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::epoll::{EpollEvent, EpollFlags},
};

use crate::raw::{
    tally::{Counted, Tally},
    waiting::Waiting,
};

const BATCH: usize = 64;
/// Buffers at a power-of-two stride would all fall into the same sets of the first-level cache.
const STAGGER_BYTES: usize = 192;

/// What one call receives and another one sends. The headers point into the other two, which never move.
struct Batch {
    longest: usize,
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    /// Only read and written by the kernel.
    _names: Vec<libc::sockaddr_storage>,
    _bytes: Vec<u8>,
}

pub(super) fn serve(socket: &UdpSocket, spin: Duration, longest: usize, tally: &Tally) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let waiting = Waiting::new(spin, tally)?;
    waiting.add(socket, EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0)?;
    let mut batch = Batch::new(longest);
    loop {
        if waiting.wait(&mut [EpollEvent::empty()])? == 0 {
            continue;
        }
        loop {
            let count = batch.receive(socket.as_raw_fd(), tally)?;
            batch.send(socket, count, tally)?;
            if count < BATCH {
                break;
            }
        }
    }
}

impl Batch {
    fn new(longest: usize) -> Self {
        let stride = longest + STAGGER_BYTES;
        let mut bytes = vec![0_u8; BATCH * stride];
        // SAFETY: a sockaddr_storage of zeros is one of no family.
        let mut names: Vec<libc::sockaddr_storage> = vec![unsafe { mem::zeroed() }; BATCH];
        let mut vectors: Vec<libc::iovec> = bytes
            .chunks_exact_mut(stride)
            .map(|chunk| libc::iovec { iov_base: chunk.as_mut_ptr().cast(), iov_len: longest })
            .collect();
        let header = |(name, vector): (&mut libc::sockaddr_storage, &mut libc::iovec)| {
            // SAFETY: zeros are null pointers and lengths of nothing.
            let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
            header.msg_hdr.msg_name = (&raw mut *name).cast();
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = null_mut();
            header
        };
        let headers = names.iter_mut().zip(&mut vectors).map(header).collect();
        Self { longest, headers, vectors, _names: names, _bytes: bytes }
    }

    /// Takes what has come, and says how many.
    fn receive(&mut self, socket: RawFd, tally: &Tally) -> io::Result<usize> {
        for (header, vector) in self.headers.iter_mut().zip(&mut self.vectors) {
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as u32;
            vector.iov_len = self.longest;
        }
        tally.count(Counted::RecvBatch);
        // SAFETY: there are BATCH headers, each with a name, a vector and a buffer of the lengths that it says, which
        // live as long as the batch and are used by nobody else meanwhile.
        let count = unsafe { libc::recvmmsg(socket, self.headers.as_mut_ptr(), BATCH as u32, 0, null_mut()) };
        let count = match Errno::result(count) {
            Ok(count) => count as usize,
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        tally.add(Counted::DatagramsReceived, count as u64);
        for (header, vector) in self.headers[..count].iter().zip(&mut self.vectors) {
            vector.iov_len = header.msg_len as usize;
        }
        Ok(count)
    }

    /// Sends the first so many back.
    fn send(&mut self, socket: &UdpSocket, count: usize, tally: &Tally) -> io::Result<()> {
        let mut from = 0;
        while from < count {
            let left = &mut self.headers[from..count];
            tally.count(Counted::SendBatch);
            // SAFETY: these headers, with all that they point to, are as `receive` has left them: names and lengths
            // are those of datagrams that came.
            let sent = unsafe {
                libc::sendmmsg(socket.as_raw_fd(), left.as_mut_ptr(), left.len() as u32, libc::MSG_NOSIGNAL)
            };
            match Errno::result(sent) {
                Ok(sent) => from += sent as usize,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    let _ = poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
                }
                // The first of them cannot be sent.
                Err(_) => from += 1,
            }
        }
        Ok(())
    }
}
