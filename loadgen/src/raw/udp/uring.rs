//! One thread on io_uring: a multishot receive into provided buffers, and a send from the same buffer that no completion
//! tells of.
//!
//! Kept for what it saves: nothing is copied. Sends do not wait, so the enter that submits them also ends them, and
//! the buffers go back to the kernel right after it; one enter a turn; waiting for several completions
//! for a bounded time, by what the last turns gave.

use std::{
    io, mem,
    os::fd::{AsRawFd, BorrowedFd},
};

use io_uring::{
    EnterFlags, IoUring, SubmissionQueue, Submitter, cqueue, opcode, squeue,
    types::{Fd, Fixed, RecvMsgOut, SubmitArgs, Timespec},
};

use crate::{
    engine::buffers::{Buffers, Lease},
    raw::{
        tally::{Counted, Tally},
        uring::Pace,
    },
};

const GROUP: u16 = 0;
const BUFFERS: u16 = 256;
/// An address of either family.
const NAME_BYTES: usize = size_of::<libc::sockaddr_in6>();
/// In front of a datagram lie the kernel's header of four numbers and the address that it came from.
const HEAD_BYTES: usize = 16 + NAME_BYTES;
const GATHER_US: u32 = 40;
const HOUR: Timespec = Timespec::new().sec(3600);

const RECEIVE: u64 = 0;
/// Only one that failed is ever heard of.
const SEND: u64 = 1;

struct Server<'a> {
    sq: SubmissionQueue<'a>,
    submitter: Submitter<'a>,
    buffers: &'static mut Buffers,
    /// Says how long a name is; the kernel reads nothing else of it.
    header: &'static libc::msghdr,
    /// What the queued sends read.
    lent: Vec<Lease>,
    socket: Fd,
    direct: bool,
    no_iowait: bool,
    min_wait: bool,
    tally: &'a Tally,
}

/// Serves for ever.
pub(super) fn serve(
    mut ring: IoUring,
    socket: BorrowedFd<'_>,
    direct: bool,
    longest: usize,
    tally: &Tally,
) -> io::Result<()> {
    let (no_iowait, min_wait) =
        (ring.params().is_feature_no_iowait(), ring.params().is_feature_min_timeout());
    let (mut submitter, sq, mut cq) = ring.split();
    // Without it every enter looks the descriptor up, which is all.
    let _ = submitter.register_ring_fd();
    let socket = Fd(socket.as_raw_fd());
    if direct {
        submitter.register_files_update(0, &[socket.0])?;
    }
    // Leaked: operations may be in flight whenever this ends, and the process ends with it.
    let buffers = Box::leak(Box::new(Buffers::new(GROUP, BUFFERS, HEAD_BYTES + longest)));
    // SAFETY: the buffers have just been leaked, so they outlive the ring.
    unsafe { buffers.register(&submitter)? };
    // SAFETY: zeros are null pointers and lengths of nothing.
    let header = Box::leak(Box::new(unsafe { mem::zeroed::<libc::msghdr>() }));
    header.msg_namelen = NAME_BYTES as u32;
    let lent = Vec::new();
    let mut server =
        Server { sq, submitter, buffers, header, lent, socket, direct, no_iowait, min_wait, tally };
    server.receive()?;
    server.run(&mut cq)
}

impl Server<'_> {
    fn run(&mut self, cq: &mut cqueue::CompletionQueue<'_>) -> io::Result<()> {
        let mut pace = Pace::default();
        loop {
            self.enter(pace.wanted())?;
            cq.sync();
            let mut count = 0;
            for completion in &mut *cq {
                if completion.user_data() == RECEIVE {
                    count += 1;
                    self.received(completion.result(), completion.flags())?;
                }
            }
            self.tally.add(Counted::Events, count.into());
            pace.learn(count);
        }
    }

    /// Submits what was queued and waits. What was sent is then sent, and its buffers are free.
    fn enter(&mut self, wanted: u32) -> io::Result<()> {
        self.tally.count(Counted::IoUringEnter);
        self.tally.count(Counted::Waits);
        self.sq.sync();
        // To wait for several without a bound on it would be to wait for the last of them.
        let wanted = if self.min_wait { wanted } else { 1 };
        let gather = if wanted > 1 { GATHER_US } else { 0 };
        let args = SubmitArgs::new().timespec(&HOUR).min_wait_usec(gather);
        let mut flags = EnterFlags::EXT_ARG | EnterFlags::GETEVENTS;
        flags.set(EnterFlags::NO_IOWAIT, self.no_iowait);
        // SAFETY: EXT_ARG says that the argument is a SubmitArgs, which it is; it and the time it points to outlive
        // the call.
        let entered =
            unsafe { self.submitter.enter(self.sq.len() as u32, wanted, flags.bits(), Some(&args)) };
        if let Err(error) = entered {
            let passing = [libc::ETIME, libc::EINTR, libc::EBUSY, libc::EAGAIN];
            if !error.raw_os_error().is_some_and(|errno| passing.contains(&errno)) {
                return Err(error);
            }
        }
        self.sq.sync();
        // Else the kernel has yet to read some of them.
        if self.sq.is_empty() {
            self.lent.drain(..).for_each(|lease| self.buffers.give_back(lease));
            self.buffers.publish();
        }
        Ok(())
    }

    fn receive(&mut self) -> io::Result<()> {
        let entry = if self.direct {
            opcode::RecvMsgMulti::new(Fixed(0), self.header, GROUP).build()
        } else {
            opcode::RecvMsgMulti::new(self.socket, self.header, GROUP).build()
        };
        self.push(&entry.user_data(RECEIVE))
    }

    /// A datagram goes back from the buffer in which it came.
    fn received(&mut self, result: i32, flags: u32) -> io::Result<()> {
        if let Some(id) = cqueue::buffer_select(flags) {
            let lease = self.buffers.lease(id, result.max(0) as usize);
            if let Ok(datagram) = RecvMsgOut::parse(self.buffers.bytes(&lease), self.header) {
                let (name, bytes) = (datagram.name_data(), datagram.payload_data());
                self.tally.count(Counted::DatagramsReceived);
                let (start, length) = (bytes.as_ptr(), bytes.len() as u32);
                let send = |send: opcode::Send| {
                    let send = send.flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
                    let send = send.dest_addr(name.as_ptr().cast()).dest_addr_len(name.len() as u32);
                    send.build().flags(squeue::Flags::SKIP_SUCCESS).user_data(SEND)
                };
                let entry = if self.direct {
                    send(opcode::Send::new(Fixed(0), start, length))
                } else {
                    send(opcode::Send::new(self.socket, start, length))
                };
                self.push(&entry)?;
            }
            self.lent.push(lease);
        }
        match -result {
            libc::ENOBUFS | libc::EINTR | libc::EAGAIN | libc::ECANCELED => self.receive(),
            errno if errno > 0 => Err(io::Error::from_raw_os_error(errno)),
            _ if !cqueue::more(flags) => self.receive(),
            _ => Ok(()),
        }
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // There are as many sends as buffers at most, and one receive: far fewer than the queue has places for.
        // SAFETY: the header and the buffers are leaked; a buffer that a send reads is lent until an enter has left
        // nothing in the queue, which is all that a send with MSG_DONTWAIT lasts.
        unsafe { self.sq.push(entry) }.map_err(io::Error::other)
    }
}
