//! One thread on io_uring: multishot accept and receive, and no completion for an echo that went out
//! whole.
//!
//! Tricks kept from the start, not measured one by one: few and staggered buffers, published once a turn;
//! one enter a turn with the ring's descriptor registered; waiting for several completions for a
//! bounded time, by what the last turns gave; what comes while a send is in flight goes out in one piece;
//! a connection that fills its buffers receives once at a time into large ones, which are lent to the send.
//!
//! Tricks tried since, and what they did to the server's CPU a request (64 bytes, unless a size is named; an
//! interval that holds 1 is no effect):
//! * Echoes are copied, buffers go back before the send, a whole echo gives no completion (so sends do
//!   not fill what is waited for, and small receives seldom lack a buffer): x 0.93 [0.83, 0.98] over 1,000
//!   connections, requests a second x 1.11 [1.03, 1.27]; over 64 x 1.01 [0.97, 1.11]. Kept.
//! * Waiting for 1 always, for half or one and a half times the share, 20 or 100 us: no effect. Not kept.
//! * At most 1, 16 or 24 completions waited for, so fewer a pass: no effect. Not kept.
//! * No submission array (NO_SQARRAY): x 1.01 [0.98, 1.06] over 64. Not kept.
//! * 64 or 256 small buffers, or small buffers of 1 KiB: no gain. Not kept.
//! * 64 KiB messages: 64 large buffers x 1.08 [1.05, 1.13], buffers of 32 KiB x 1.11 [1.06, 1.12], 4 of 256 KiB
//!   x 1.04 [1.02, 1.12]; 4 or 8 large ones, 128 KiB ones, POLL_FIRST on an empty socket: no effect. Not kept.
//!
//! How a connection ends (its peer's FIN, an error, or as many bytes as `close_after` says): the receive is cancelled if
//! it is still armed, sends that were begun end, and a turn must have shown that the last echo went out whole. Only
//! then is the close submitted, and only its completion frees the slot: nothing of it is in flight any more.

use std::{
    collections::VecDeque,
    io,
    mem::ManuallyDrop,
    ops::Range,
    os::fd::{AsRawFd, BorrowedFd},
    ptr::null_mut,
};

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
/// All that the small buffers can bring in one turn, since they are published once a turn.
const TURN_BYTES: usize = SMALL_COUNT as usize * SMALL_BYTES;
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
/// Only one that did not send everything is ever heard of.
const ECHO: u64 = 6;

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
    /// The turn that last echoed, and what of its bytes.
    echoed: u64,
    echo: Range<usize>,
    parked: bool,
    /// What the present send reads, if not `outgoing`.
    lease: Option<Lease>,
    outgoing: Vec<u8>,
    /// What came while the present send was in flight.
    gathered: Vec<u8>,
    /// Bytes that came; counted only where they can end the connection.
    received: usize,
    /// Nothing more is to be received.
    ended: bool,
    closing: bool,
}

struct Server<'a> {
    sq: SubmissionQueue<'a>,
    submitter: Submitter<'a>,
    small: &'static mut Buffers,
    large: &'static mut Buffers,
    /// Large buffers on loan to sends.
    lent: usize,
    turn: u64,
    /// What this turn's echoes read; it never grows, so it never moves.
    bytes: &'static mut Vec<u8>,
    /// Whoever has more to do when it is known that this turn's echo went out.
    later: Vec<usize>,
    connections: ManuallyDrop<Vec<Connection>>,
    free: Vec<usize>,
    /// Those that found no buffer.
    parked: VecDeque<usize>,
    listener: Fd,
    direct: bool,
    /// Bytes sent back that end a connection; 0 for none.
    close_after: usize,
    /// What this kernel can do while it waits.
    no_iowait: bool,
    min_wait: bool,
    tally: &'a Tally,
}

/// Serves for ever.
pub(super) fn serve(
    mut ring: IoUring,
    listener: BorrowedFd<'_>,
    direct: bool,
    close_after: usize,
    tally: &Tally,
) -> io::Result<()> {
    let (no_iowait, min_wait) =
        (ring.params().is_feature_no_iowait(), ring.params().is_feature_min_timeout());
    let (mut submitter, sq, mut cq) = ring.split();
    // Without it every enter looks the descriptor up, which is all.
    let _ = submitter.register_ring_fd();
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
        turn: 1,
        bytes: Box::leak(Box::new(Vec::with_capacity(TURN_BYTES))),
        later: Vec::new(),
        connections: ManuallyDrop::new(Vec::new()),
        free: Vec::new(),
        parked: VecDeque::new(),
        listener: Fd(listener.as_raw_fd()),
        direct,
        close_after,
        no_iowait,
        min_wait,
        tally,
    };
    server.accept();
    server.run(&mut cq)
}

/// A ring of the calling thread, which is the one to serve with it.
pub(super) fn build(direct: bool) -> io::Result<IoUring> {
    let ring = IoUring::builder()
        .dontfork()
        .setup_clamp()
        .setup_cqsize(COMPLETIONS)
        .setup_submit_all()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(SUBMISSIONS)?;
    if direct {
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
        ring.submitter().register_files_sparse(limit.min(FILES_MAX) as u32)?;
    }
    Ok(ring)
}

/// How many completions to wait for, by what the last turns gave.
#[derive(Default)]
pub(super) struct Pace {
    eighths: u32,
}

impl Pace {
    pub(super) fn wanted(&self) -> u32 {
        (self.eighths / 16).clamp(1, WAIT_MAX)
    }

    pub(super) fn learn(&mut self, got: u32) {
        let unfilled = got < self.wanted();
        let got = got.min(4 * WAIT_MAX) * 8;
        self.eighths = if unfilled { (self.eighths / 2).max(got) } else { (self.eighths * 3 + got) / 4 };
    }
}

impl Server<'_> {
    fn run(&mut self, cq: &mut cqueue::CompletionQueue<'_>) -> io::Result<()> {
        let mut pace = Pace::default();
        let mut batch = Vec::new();
        loop {
            self.unpark();
            self.small.publish();
            self.large.publish();
            self.enter(pace.wanted())?;
            self.settle(cq, &mut batch)?;
            let count = batch.len() as u32;
            for completion in batch.drain(..) {
                let (kind, slot) = split(&completion);
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

    /// Looks through everything that has completed for echoes that did not, before anything else is
    /// done: then the rest have, and their bytes are free.
    fn settle(
        &mut self,
        cq: &mut cqueue::CompletionQueue<'_>,
        batch: &mut Vec<cqueue::Entry>,
    ) -> io::Result<()> {
        loop {
            // What the kernel has not taken has not gone out; what overflowed may be an echo's failure.
            let unfinished = !self.sq.is_empty() || self.sq.cq_overflow();
            cq.sync();
            for completion in &mut *cq {
                match split(&completion) {
                    (ECHO, slot) => self.fell_short(slot, completion.result()),
                    _ => batch.push(completion),
                }
            }
            if !unfinished {
                break;
            }
            self.enter(0)?;
        }
        self.bytes.clear();
        self.turn += 1;
        for slot in std::mem::take(&mut self.later) {
            if !self.connections[slot].sending {
                self.send_gathered(slot);
                self.go_on(slot);
            }
        }
        Ok(())
    }

    /// Submits what was queued and waits.
    fn enter(&mut self, wanted: u32) -> io::Result<()> {
        self.tally.count(Counted::IoUringEnter);
        self.tally.count(Counted::Waits);
        self.sq.sync();
        let hour = Timespec::new().sec(3600);
        // To wait for several without a bound on it would be to wait for the last of them.
        let wanted = if self.min_wait { wanted } else { 1 };
        let gather = if wanted > 1 { GATHER_US } else { 0 };
        let args = SubmitArgs::new().timespec(&hour).min_wait_usec(gather);
        let mut flags = EnterFlags::EXT_ARG | EnterFlags::GETEVENTS;
        flags.set(EnterFlags::NO_IOWAIT, self.no_iowait);
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
            // SAFETY: what an entry points to is left alone until the operation is over: a lease and a
            // connection's `outgoing` until the completion (see `send`), `bytes` until `settle` has
            // seen that the kernel took every entry, which is all that a send with MSG_DONTWAIT lasts.
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
                if self.close_after > 0 {
                    self.mind_end(slot, result as usize);
                }
            } else {
                self.buffers(group).give_back(lease);
            }
        }
        match -result {
            libc::ENOBUFS => {
                self.connections[slot].parked = true;
                self.parked.push_back(slot);
            }
            libc::ECANCELED | libc::EINTR => self.go_on(slot),
            errno => {
                self.connections[slot].ended |= errno >= 0;
                self.go_on(slot);
            }
        }
    }

    /// Ends the receiving once so much came that the echo of it is the last; `go_on` sees to the rest.
    fn mind_end(&mut self, slot: usize, length: usize) {
        let connection = &mut self.connections[slot];
        connection.received += length;
        connection.ended |= connection.received >= self.close_after;
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

    /// A small message is copied, so that its buffer can take the next one in this very enter.
    fn echo(&mut self, slot: usize, group: u16, lease: Lease) {
        let buffers = if group == SMALL { &mut *self.small } else { &mut *self.large };
        let connection = &mut self.connections[slot];
        if connection.sending || connection.echoed == self.turn {
            if !connection.sending {
                self.later.push(slot);
            }
            connection.gathered.extend_from_slice(buffers.bytes(&lease));
            buffers.give_back(lease);
        } else if group == LARGE {
            connection.lease = Some(lease);
            self.lent += 1;
            self.send(slot);
        } else {
            let start = self.bytes.len();
            assert!(start + lease.length() <= TURN_BYTES, "it must not move");
            self.bytes.extend_from_slice(buffers.bytes(&lease));
            connection.echoed = self.turn;
            connection.echo = start..start + lease.length();
            let (start, length) = (self.bytes[start..].as_ptr(), lease.length() as u32);
            buffers.give_back(lease);
            let entry = match connection.file {
                File::Plain(fd) => opcode::Send::new(fd, start, length),
                File::Direct(fixed) => opcode::Send::new(fixed, start, length),
            };
            let entry = entry.flags(libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL).build();
            let entry = entry.flags(squeue::Flags::SKIP_SUCCESS);
            self.push(entry.user_data(user_data(ECHO, slot)));
        }
    }

    /// The peer has not taken the whole echo: the rest is sent as it takes it.
    fn fell_short(&mut self, slot: usize, result: i32) {
        let connection = &mut self.connections[slot];
        match -result {
            errno if errno > 0 && errno != libc::EAGAIN => {
                connection.gathered.clear();
                connection.ended = true;
                self.later.push(slot);
            }
            _ => {
                let mut rest = connection.echo.clone();
                rest.start += result.max(0) as usize;
                connection.outgoing.clear();
                connection.outgoing.extend_from_slice(&self.bytes[rest]);
                self.send(slot);
            }
        }
    }

    /// Sends the lease, or else `outgoing`; both stay as they are until `sent`.
    fn send(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        connection.sending = true;
        let bytes = match &connection.lease {
            Some(lease) => self.large.bytes(lease),
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
        if let Some(lease) = connection.lease.take() {
            self.lent -= 1;
            self.large.give_back(lease);
        }
        if result < 0 {
            // The peer is gone, and what it has not taken goes with it.
            connection.gathered.clear();
            connection.ended = true;
        }
        self.send_gathered(slot);
        self.go_on(slot);
    }

    fn send_gathered(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        if !connection.gathered.is_empty() {
            std::mem::swap(&mut connection.outgoing, &mut connection.gathered);
            connection.gathered.clear();
            self.send(slot);
        }
    }

    /// Receives, stops receiving, or closes, as the connection's state wants it.
    fn go_on(&mut self, slot: usize) {
        let connection = &self.connections[slot];
        let waits = connection.sending && (connection.mode != Mode::Many || connection.is_full());
        match (connection.ended, connection.receiving) {
            // Nobody knows yet whether the echo went out whole.
            (true, false) if connection.echoed == self.turn => self.later.push(slot),
            (true, false) if !connection.sending => self.close(slot),
            (true, true) => self.stop_receiving(slot),
            (false, false) if !waits && !connection.parked => self.receive(slot),
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

    /// Lets those receive again for whom buffers have come back: the small ones all have, every turn.
    fn unpark(&mut self) {
        for _ in 0..self.parked.len().min(usize::from(SMALL_COUNT)) {
            let Some(slot) = self.parked.pop_front() else { break };
            if self.connections[slot].mode != Mode::Many && self.lent == usize::from(LARGE_COUNT) {
                self.parked.push_back(slot);
                continue;
            }
            self.connections[slot].parked = false;
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
            echoed: 0,
            echo: 0..0,
            parked: false,
            lease: None,
            outgoing: Vec::new(),
            gathered: Vec::new(),
            received: 0,
            ended: false,
            closing: false,
        }
    }

    fn is_full(&self) -> bool {
        self.gathered.len() > GATHERED_MAX
    }
}

fn split(completion: &cqueue::Entry) -> (u64, usize) {
    (completion.user_data() & 0xff, (completion.user_data() >> 8) as usize)
}

fn user_data(kind: u64, slot: usize) -> u64 {
    (slot as u64) << 8 | kind
}
