//! One thread on io_uring: multishot accept and receive, and every send straight out of the
//! buffer that was received into.
//!
//! Tricks tried, and kept for what they save: the echo is never copied while one buffer is all there is to send
//! (the lease goes back when its send completes); while a send is in flight what comes gathers, and
//! goes out in one piece; few and staggered buffers, published once a turn; one enter a turn with
//! the ring's descriptor registered; waiting for several completions for a bounded time, by what
//! the last turns gave; a connection that fills its buffers receives once at a time into large ones.

use std::{collections::VecDeque, io, mem::ManuallyDrop, net::TcpListener, os::fd::AsRawFd, ptr::null_mut};

use io_uring::{
    EnterFlags, IoUring, SubmissionQueue, Submitter, cqueue, opcode, squeue,
    types::{CancelBuilder, Fd, Fixed, SubmitArgs, Timespec},
};
use nix::sys::resource::{Resource, getrlimit};

use super::tally::{Counted, Tally};
use crate::engine::buffers::{Buffers, Lease};

const SUBMISSIONS: u32 = 4096;
const COMPLETIONS: u32 = 32_768;
/// Direct descriptors, if RLIMIT_NOFILE allows as many.
const FILES_MAX: u64 = 32_768;
const SMALL: u16 = 0;
const LARGE: u16 = 1;
const SMALL_COUNT: u16 = 128;
const SMALL_BYTES: usize = 4096;
const LARGE_COUNT: u16 = 16;
const LARGE_BYTES: usize = 64 << 10;
/// Small buffers on loan to sends; beyond it what is sent is copied, or a slow peer would keep
/// everybody's.
const LENT_MAX: u32 = 64;
/// More than this many bytes behind a send stop the receiving.
const GATHERED_MAX: usize = 1 << 20;
/// Receives that leave a large buffer mostly empty before small ones are used again.
const SHORT_MAX: u8 = 4;
const WAIT_MAX: u32 = 48;
const GATHER_US: u32 = 40;

const ACCEPT: u64 = 0;
/// Plus the buffer group.
const RECEIVE: u64 = 1;
const SEND: u64 = 3;
const CLOSE: u64 = 4;
const CANCEL: u64 = 5;

#[derive(Clone, Copy)]
enum File {
    Plain(Fd),
    Direct(Fixed),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// A multishot receive into small buffers.
    Many,
    /// One receive at a time into a large buffer, after so many that were short.
    Large { short: u8 },
}

struct Connection {
    file: File,
    mode: Mode,
    receiving: bool,
    /// A cancellation of the receive is under way.
    stopping: bool,
    sending: bool,
    /// What the present send reads, if not `outgoing`.
    lease: Option<(u16, Lease)>,
    outgoing: Vec<u8>,
    /// What came while the present send was in flight.
    gathered: Vec<u8>,
    /// Nothing more will be received.
    ended: bool,
    closing: bool,
}

struct Server<'a> {
    sq: SubmissionQueue<'a>,
    submitter: Submitter<'a>,
    small: &'static mut Buffers,
    large: &'static mut Buffers,
    lent: u32,
    connections: ManuallyDrop<Vec<Connection>>,
    free: Vec<usize>,
    /// Those that found no buffer.
    parked: VecDeque<usize>,
    listener: Fd,
    direct: bool,
    tally: &'a Tally,
}

/// Serves for ever.
pub(super) fn serve(listener: TcpListener, direct: bool, tally: &Tally) -> io::Result<()> {
    let mut ring = build()?;
    let (mut submitter, sq, mut cq) = ring.split();
    // Without it every enter looks the descriptor up, which is all.
    let _ = submitter.register_ring_fd();
    if direct {
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
        submitter.register_files_sparse(limit.min(FILES_MAX) as u32)?;
    }
    // Leaked, and so are the connections: operations may be in flight whenever this ends, and the
    // process ends with it.
    let small = Box::leak(Box::new(Buffers::new(SMALL, SMALL_COUNT, SMALL_BYTES)));
    let large = Box::leak(Box::new(Buffers::new(LARGE, LARGE_COUNT, LARGE_BYTES)));
    // SAFETY: the buffers have just been leaked, so they outlive the ring.
    unsafe { small.register(&submitter)? };
    // SAFETY: as above.
    unsafe { large.register(&submitter)? };
    let mut server = Server {
        sq,
        submitter,
        small,
        large,
        lent: 0,
        connections: ManuallyDrop::new(Vec::new()),
        free: Vec::new(),
        parked: VecDeque::new(),
        listener: Fd(listener.as_raw_fd()),
        direct,
        tally,
    };
    server.accept();
    server.run(&mut cq)
}

fn build() -> io::Result<IoUring> {
    IoUring::builder()
        .dontfork()
        .setup_clamp()
        .setup_cqsize(COMPLETIONS)
        .setup_submit_all()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(SUBMISSIONS)
}

/// How many completions to wait for, by what the last turns gave.
#[derive(Default)]
struct Pace {
    eighths: u32,
}

impl Pace {
    fn wanted(&self) -> u32 {
        (self.eighths / 16).clamp(1, WAIT_MAX)
    }

    fn learn(&mut self, got: u32) {
        let unfilled = got < self.wanted();
        let got = got.min(4 * WAIT_MAX) * 8;
        self.eighths = if unfilled { (self.eighths / 2).max(got) } else { (self.eighths * 3 + got) / 4 };
    }
}

impl Server<'_> {
    fn run(&mut self, cq: &mut cqueue::CompletionQueue<'_>) -> io::Result<()> {
        let mut pace = Pace::default();
        loop {
            self.unpark();
            self.small.publish();
            self.large.publish();
            self.enter(pace.wanted())?;
            cq.sync();
            let mut count = 0;
            for completion in &mut *cq {
                count += 1;
                let (kind, slot) = (completion.user_data() & 0xff, (completion.user_data() >> 8) as usize);
                let (result, flags) = (completion.result(), completion.flags());
                match kind {
                    ACCEPT => self.accepted(result, flags)?,
                    RECEIVE..SEND => self.received(slot, (kind - RECEIVE) as u16, result, flags),
                    SEND => self.sent(slot, result),
                    CLOSE => self.free.push(slot),
                    _ => {}
                }
            }
            self.tally.add(Counted::Events, count.into());
            pace.learn(count);
        }
    }

    /// Submits what was queued and waits.
    fn enter(&mut self, wanted: u32) -> io::Result<()> {
        self.tally.count(Counted::IoUringEnter);
        self.tally.count(Counted::Waits);
        self.sq.sync();
        let hour = Timespec::new().sec(3600);
        let gather = if wanted > 1 { GATHER_US } else { 0 };
        let args = SubmitArgs::new().timespec(&hour).min_wait_usec(gather);
        let flags = EnterFlags::EXT_ARG | EnterFlags::GETEVENTS | EnterFlags::NO_IOWAIT;
        // SAFETY: EXT_ARG says that the argument is a SubmitArgs, which it is; it and the time it
        // points to outlive the call.
        let entered =
            unsafe { self.submitter.enter(self.sq.len() as u32, wanted, flags.bits(), Some(&args)) };
        match entered {
            Err(error)
                if !matches!(
                    error.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
                ) =>
            {
                Err(error)
            }
            _ => {
                self.sq.sync();
                Ok(())
            }
        }
    }

    fn push(&mut self, entry: squeue::Entry) {
        loop {
            // SAFETY: what an entry points to, a buffer on loan or a connection's `outgoing`, is left
            // alone until the operation's completion: see `send`.
            if unsafe { self.sq.push(&entry) }.is_ok() {
                return;
            }
            self.sq.sync();
            self.tally.count(Counted::IoUringEnter);
            // It fails only for want of memory, and then the next attempt may succeed.
            let _ = self.submitter.submit();
            self.sq.sync();
        }
    }

    fn accept(&mut self) {
        let entry = opcode::AcceptMulti::new(self.listener).allocate_file_index(self.direct).build();
        self.push(entry.user_data(ACCEPT));
    }

    fn accepted(&mut self, result: i32, flags: u32) -> io::Result<()> {
        if !cqueue::more(flags) {
            self.accept();
        }
        match -result {
            libc::ECONNABORTED | libc::EINTR | libc::EAGAIN => return Ok(()),
            errno if errno > 0 => return Err(io::Error::from_raw_os_error(errno)),
            _ => {}
        }
        self.tally.count(Counted::Accepted);
        let file = if self.direct { File::Direct(Fixed(result as u32)) } else { File::Plain(Fd(result)) };
        let connection = Connection::new(file);
        let slot = self.free.pop().unwrap_or(self.connections.len());
        if slot == self.connections.len() {
            self.connections.push(connection);
        } else {
            self.connections[slot] = connection;
        }
        self.receive(slot);
        Ok(())
    }

    fn receive(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        (connection.receiving, connection.stopping) = (true, false);
        let (group, entry) = match (connection.mode, connection.file) {
            (Mode::Many, File::Plain(fd)) => (SMALL, opcode::RecvMulti::new(fd, SMALL).build()),
            (Mode::Many, File::Direct(fixed)) => (SMALL, opcode::RecvMulti::new(fixed, SMALL).build()),
            (_, File::Plain(fd)) => (LARGE, opcode::Recv::new(fd, null_mut(), 0).buf_group(LARGE).build()),
            (_, File::Direct(fixed)) => {
                (LARGE, opcode::Recv::new(fixed, null_mut(), 0).buf_group(LARGE).build())
            }
        };
        let entry = if group == LARGE { entry.flags(squeue::Flags::BUFFER_SELECT) } else { entry };
        self.push(entry.user_data(user_data(RECEIVE + u64::from(group), slot)));
    }

    /// A receive is over, or has given something and goes on.
    fn received(&mut self, slot: usize, group: u16, result: i32, flags: u32) {
        self.connections[slot].receiving = cqueue::more(flags);
        if let Some(id) = cqueue::buffer_select(flags) {
            let lease = self.buffers(group).lease(id, result.max(0) as usize);
            if result > 0 {
                self.tally.add(Counted::BytesReceived, result as u64);
                self.choose_mode(slot, result as usize);
                self.echo(slot, group, lease);
            } else {
                self.buffers(group).give_back(lease);
            }
        }
        match -result {
            libc::ENOBUFS => self.parked.push_back(slot),
            libc::ECANCELED | libc::EINTR => self.go_on(slot),
            errno => {
                self.connections[slot].ended |= errno >= 0;
                self.go_on(slot);
            }
        }
    }

    /// Large messages go through large buffers, one at a time.
    fn choose_mode(&mut self, slot: usize, length: usize) {
        let connection = &mut self.connections[slot];
        match &mut connection.mode {
            Mode::Many if length == SMALL_BYTES => {
                connection.mode = Mode::Large { short: 0 };
                if connection.receiving {
                    self.stop_receiving(slot);
                }
            }
            Mode::Large { short } if length >= SMALL_BYTES => *short = 0,
            Mode::Large { short: SHORT_MAX.. } => connection.mode = Mode::Many,
            Mode::Large { short } => *short += 1,
            Mode::Many => {}
        }
    }

    fn echo(&mut self, slot: usize, group: u16, lease: Lease) {
        let lend = group == LARGE || self.lent < LENT_MAX;
        let buffers = if group == SMALL { &mut *self.small } else { &mut *self.large };
        let connection = &mut self.connections[slot];
        if connection.sending {
            connection.gathered.extend_from_slice(buffers.bytes(&lease));
            buffers.give_back(lease);
            return;
        }
        if lend {
            connection.lease = Some((group, lease));
            self.lent += u32::from(group == SMALL);
        } else {
            connection.outgoing.clear();
            connection.outgoing.extend_from_slice(buffers.bytes(&lease));
            buffers.give_back(lease);
        }
        self.send(slot);
    }

    /// Sends the lease, or else `outgoing`; both stay as they are until `sent`.
    fn send(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        connection.sending = true;
        let bytes = match &connection.lease {
            Some((SMALL, lease)) => self.small.bytes(lease),
            Some((_, lease)) => self.large.bytes(lease),
            None => &connection.outgoing,
        };
        let (start, length) = (bytes.as_ptr(), bytes.len() as u32);
        let entry = match connection.file {
            File::Plain(fd) => opcode::Send::new(fd, start, length),
            File::Direct(fixed) => opcode::Send::new(fixed, start, length),
        };
        let entry = entry.flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL).build();
        self.push(entry.user_data(user_data(SEND, slot)));
    }

    fn sent(&mut self, slot: usize, result: i32) {
        let connection = &mut self.connections[slot];
        connection.sending = false;
        if let Some((group, lease)) = connection.lease.take() {
            self.lent -= u32::from(group == SMALL);
            self.buffers(group).give_back(lease);
        }
        let connection = &mut self.connections[slot];
        if result < 0 {
            // The peer is gone, and what it has not taken goes with it.
            connection.gathered.clear();
            connection.ended = true;
        }
        if !connection.gathered.is_empty() {
            std::mem::swap(&mut connection.outgoing, &mut connection.gathered);
            connection.gathered.clear();
            self.send(slot);
        }
        self.go_on(slot);
    }

    /// Receives, stops receiving, or closes, as the connection's state wants it.
    fn go_on(&mut self, slot: usize) {
        let connection = &self.connections[slot];
        let waits = connection.sending && (connection.mode != Mode::Many || connection.is_full());
        match (connection.ended, connection.receiving) {
            (true, false) if !connection.sending => self.close(slot),
            (true, true) => self.stop_receiving(slot),
            (false, false) if !waits && !self.parked.contains(&slot) => self.receive(slot),
            (false, true) if connection.is_full() => self.stop_receiving(slot),
            _ => {}
        }
    }

    fn stop_receiving(&mut self, slot: usize) {
        if !std::mem::replace(&mut self.connections[slot].stopping, true) {
            let target = CancelBuilder::user_data(user_data(RECEIVE + u64::from(SMALL), slot));
            self.push(opcode::AsyncCancel2::new(target).build().user_data(CANCEL));
        }
    }

    fn close(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        if !std::mem::replace(&mut connection.closing, true) {
            let entry = match connection.file {
                File::Plain(fd) => opcode::Close::new(fd),
                File::Direct(fixed) => opcode::Close::new(fixed),
            };
            self.push(entry.build().user_data(user_data(CLOSE, slot)));
        }
    }

    /// Lets those receive again for whom buffers have come back.
    fn unpark(&mut self) {
        let room = usize::from(SMALL_COUNT) - self.lent as usize;
        for _ in 0..room.min(self.parked.len()) {
            let Some(slot) = self.parked.pop_front() else { break };
            self.go_on(slot);
        }
    }

    fn buffers(&mut self, group: u16) -> &mut Buffers {
        if group == SMALL { self.small } else { self.large }
    }
}

impl Connection {
    fn new(file: File) -> Self {
        Self {
            file,
            mode: Mode::Many,
            receiving: false,
            stopping: false,
            sending: false,
            lease: None,
            outgoing: Vec::new(),
            gathered: Vec::new(),
            ended: false,
            closing: false,
        }
    }

    fn is_full(&self) -> bool {
        self.gathered.len() > GATHERED_MAX
    }
}

fn user_data(kind: u64, slot: usize) -> u64 {
    (slot as u64) << 8 | kind
}
