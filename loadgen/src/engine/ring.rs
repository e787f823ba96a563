//! The client's io_uring: sockets and their buffers on one side, events on the other.
//!
//! Everything the kernel may touch is owned here, so the rest of the engine is safe code: an
//! outgoing message can be changed only while no send of it is in flight, and the ring's end waits
//! for the last completion before it frees anything.

use std::{
    collections::VecDeque,
    io,
    mem::ManuallyDrop,
    ops::Range,
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use io_uring::{
    EnterFlags, IoUring, cqueue, opcode, squeue,
    types::{CancelBuilder, Fd, SubmitArgs, Timespec},
};
use nix::{
    errno::Errno,
    sys::socket::{self, Shutdown, sockopt},
};

use super::{
    buffers::{Buffers, Lease},
    wire::{Event, Farewell, Plan, Wire},
};
use crate::{
    error::Error,
    target::{Address, Target},
};

/// The only buffer group of a ring.
const GROUP: u16 = 0;
const SUBMISSIONS: u32 = 4096;
const COMPLETIONS_MIN: u32 = 4096;
const COMPLETIONS_MAX: u32 = 65_536;
const SUBMISSIONS_MIN: u32 = 64;
const TEARDOWN: Duration = Duration::from_secs(1);
const TEARDOWN_TURN: Duration = Duration::from_millis(20);
const CONNECT: u64 = 0;
const SEND: u64 = 1;
const RECEIVE: u64 = 2;
const CANCEL: u64 = 3;

#[derive(Debug)]
struct Slot {
    socket: Option<OwnedFd>,
    outgoing: Box<[u8]>,
    /// How many bytes of it are being sent; 0 if none are.
    sending: usize,
    /// Operations that have not completed.
    in_flight: u32,
}

/// What the kernel reads and writes while operations are in flight.
#[derive(Debug)]
struct Shared {
    buffers: Buffers,
    slots: Vec<Slot>,
    target: Box<Address>,
}

/// The ring of one cell. A connection is put away only once all its operations have completed, so no
/// completion can come for the slot's next one.
pub(super) struct Ring {
    uring: IoUring,
    shared: ManuallyDrop<Shared>,
    single_receives: bool,
    /// A socket that is shut down ends its own receive, as one for datagrams does not.
    shutdown_ends: bool,
    /// Slots to a socket.
    sharing: usize,
    in_flight: usize,
    waiting: VecDeque<squeue::Entry>,
    burst: usize,
    /// Sends among those that wait.
    sends_waiting: usize,
    completed: VecDeque<(u64, i32, u32)>,
}

impl Ring {
    /// A ring for connections to one target.
    pub(super) fn new(plan: &Plan, target: &Target) -> Result<Self, Error> {
        let uring = build(plan.outgoing_bytes.len()).map_err(|error| unavailable(&error))?;
        let slot =
            |bytes: &usize| Slot { socket: None, outgoing: vec![0; *bytes].into(), sending: 0, in_flight: 0 };
        let shared = Shared {
            buffers: Buffers::for_messages(GROUP, plan.incoming_bytes),
            slots: plan.outgoing_bytes.iter().map(slot).collect(),
            target: Box::new(target.address()),
        };
        // SAFETY: `Drop` frees the buffers only after the last receive's completion, else never.
        unsafe { shared.buffers.register(&uring.submitter()) }.map_err(|error| {
            Error::machine(format!(
                "the client engine cannot register its buffer ring: {error}; it needs Linux 6.0 or newer"
            ))
        })?;
        Ok(Self {
            uring,
            shared: ManuallyDrop::new(shared),
            single_receives: plan.single_receives,
            shutdown_ends: plan.datagrams.is_none(),
            sharing: plan.sharing(),
            in_flight: 0,
            waiting: VecDeque::new(),
            burst: plan.burst,
            sends_waiting: 0,
            completed: VecDeque::new(),
        })
    }

    /// The socket of a slot that has a connection.
    fn socket(&self, slot: usize) -> Fd {
        // An operation on no descriptor completes with EBADF.
        let slot = if self.sharing == 1 { slot } else { slot - slot % self.sharing };
        Fd(self.shared.slots[slot].socket.as_ref().map_or(-1, AsRawFd::as_raw_fd))
    }

    fn wait_for(&mut self, completions: usize, timeout: Duration) -> io::Result<()> {
        self.shared.buffers.publish();
        let queued = self.fill_submissions();
        // With entries still waiting for a place the next turn must come at once; and to wait for no time would still
        // put the thread to sleep.
        let wanted = if self.waiting.is_empty() && !timeout.is_zero() { completions } else { 0 };
        self.enter(queued, wanted, timeout)?;
        for completion in self.uring.completion() {
            self.completed.push_back((completion.user_data(), completion.result(), completion.flags()));
        }
        Ok(())
    }

    fn lease(&mut self, result: Result<usize, Errno>, flags: u32) -> Result<Option<Lease>, Errno> {
        let lease = cqueue::buffer_select(flags).map(|id| self.shared.buffers.lease(id, result.unwrap_or(0)));
        match lease {
            Some(lease) if lease.length() == 0 => {
                self.shared.buffers.give_back(lease);
                result.map(|_| None)
            }
            lease => result.map(|_| lease),
        }
    }

    fn push(&mut self, kind: u64, slot: usize, entry: squeue::Entry) {
        self.in_flight += 1;
        if kind != CANCEL {
            self.shared.slots[slot].in_flight += 1;
        }
        self.waiting.push_back(entry.user_data((slot as u64) << 8 | kind));
    }

    /// Moves entries into the submission queue as far as there is room, and says how many it holds.
    fn fill_submissions(&mut self) -> usize {
        self.sends_waiting = 0;
        let mut submissions = self.uring.submission();
        while !submissions.is_full() {
            let Some(entry) = self.waiting.pop_front() else { break };
            // SAFETY: the entry points to a slot's socket and message or to the target, all of which
            // live in `shared`: a message is not changed while it is being sent, none of them is freed before
            // the operation's completion (see `Drop`).
            let pushed = unsafe { submissions.push(&entry) };
            debug_assert!(pushed.is_ok(), "there was room");
        }
        submissions.len()
    }

    fn enter(&self, queued: usize, wanted: usize, timeout: Duration) -> io::Result<()> {
        let timespec = Timespec::new().sec(timeout.as_secs()).nsec(timeout.subsec_nanos());
        let args = SubmitArgs::new().timespec(&timespec);
        // Without GETEVENTS deferred completions would stay in the kernel.
        let mut flags = EnterFlags::EXT_ARG | EnterFlags::GETEVENTS;
        flags.set(EnterFlags::NO_IOWAIT, self.uring.params().is_feature_no_iowait());
        // SAFETY: EXT_ARG says that the argument is a SubmitArgs, which it is; it and the timespec it
        // points to outlive the call.
        let entered =
            unsafe { self.uring.submitter().enter(queued as u32, wanted as u32, flags.bits(), Some(&args)) };
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // Time is up, a signal came, or completions must be taken first.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Ends every operation and takes its completion, so that nothing is left to the kernel.
    fn settle(&mut self) -> io::Result<()> {
        // A cancellation of everything searches all operations for each one that ends. A socket of a stream that is
        // shut down completes its own.
        if self.shutdown_ends {
            for socket in self.shared.slots.iter().filter_map(|slot| slot.socket.as_ref()) {
                // It fails if the connection is gone, which ends its operations as well.
                let _ = socket::shutdown(socket.as_raw_fd(), Shutdown::Both);
            }
            self.reap(TEARDOWN)?;
        }
        if self.in_flight > 0 {
            let cancel = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
            self.push(CANCEL, 0, cancel);
            self.reap(TEARDOWN)?;
        }
        Ok(())
    }

    /// Takes completions until none is missing, or none has come for so long.
    fn reap(&mut self, patience: Duration) -> io::Result<()> {
        let (mut deadline, mut missing) = (Instant::now() + patience, self.in_flight);
        loop {
            while let Some(event) = self.next_event() {
                if let Event::Received { result: Ok(Some(lease)), .. } = event {
                    self.give_back(lease);
                }
            }
            if self.in_flight < missing {
                (deadline, missing) = (Instant::now() + patience, self.in_flight);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if self.in_flight == 0 || left.is_zero() {
                return Ok(());
            }
            // The kernel finishes more in one pass when more is waited for.
            self.wait_for(self.in_flight.min(COMPLETIONS_MIN as usize), left.min(TEARDOWN_TURN))?;
        }
    }
}

impl Wire for Ring {
    fn connect(&mut self, index: usize, socket: OwnedFd) {
        let slot = &mut self.shared.slots[index];
        assert!(slot.socket.is_none(), "one connection a slot");
        let fd = Fd(slot.socket.insert(socket).as_raw_fd());
        let target = self.shared.target.raw();
        let entry = opcode::Connect::new(fd, target.as_ptr(), target.len()).build();
        self.push(CONNECT, index, entry);
    }

    fn receive(&mut self, slot: usize) {
        let fd = self.socket(slot);
        let entry = if self.single_receives {
            let receive = opcode::Recv::new(fd, std::ptr::null_mut(), 0).buf_group(GROUP).build();
            receive.flags(squeue::Flags::BUFFER_SELECT)
        } else {
            opcode::RecvMulti::new(fd, GROUP).build()
        };
        self.push(RECEIVE, slot, entry);
    }

    fn outgoing(&self, slot: usize) -> &[u8] {
        &self.shared.slots[slot].outgoing
    }

    fn outgoing_mut(&mut self, slot: usize) -> Option<&mut [u8]> {
        let slot = &mut self.shared.slots[slot];
        (slot.sending == 0).then_some(&mut slot.outgoing)
    }

    fn send(&mut self, index: usize, part: Range<usize>) {
        let fd = self.socket(index);
        let slot = &mut self.shared.slots[index];
        assert_eq!(slot.sending, 0, "one send a connection");
        slot.sending = part.len();
        let bytes = &slot.outgoing[part];
        let entry = opcode::Send::new(fd, bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build();
        self.push(SEND, index, entry);
        self.sends_waiting += 1;
        if self.sends_waiting >= self.burst {
            self.fill_submissions();
            // What it leaves goes out with the next wait, which tells an error.
            let _ = self.uring.submit();
        }
    }

    fn finish(&mut self, slot: usize) {
        // It fails if the connection is gone, which its receive will tell.
        let _ = socket::shutdown(self.socket(slot).0, Shutdown::Write);
    }

    fn close(&mut self, slot: usize, farewell: Farewell) {
        let slot = &mut self.shared.slots[slot];
        assert_eq!(slot.in_flight, 0, "the kernel still works on it");
        if let (Some(socket), Farewell::Reset) = (&slot.socket, farewell) {
            reset_on_close(socket);
        }
        slot.socket = None;
    }

    fn received(&self, lease: &Lease) -> &[u8] {
        self.shared.buffers.bytes(lease)
    }

    fn give_back(&mut self, lease: Lease) {
        self.shared.buffers.give_back(lease);
    }

    fn buffer_count(&self) -> usize {
        self.shared.buffers.count()
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.wait_for(1, timeout)
    }

    fn next_event(&mut self) -> Option<Event> {
        let (user_data, result, flags) = self.completed.pop_front()?;
        let (kind, slot) = (user_data & 0xff, (user_data >> 8) as usize);
        let more = cqueue::more(flags);
        if !more {
            self.in_flight -= 1;
            if kind != CANCEL {
                self.shared.slots[slot].in_flight -= 1;
            }
        }
        let result = if result < 0 { Err(Errno::from_raw(-result)) } else { Ok(result as usize) };
        Some(match kind {
            CONNECT => Event::Connected { slot, result: result.map(drop) },
            SEND => {
                let wanted = std::mem::take(&mut self.shared.slots[slot].sending);
                // With MSG_WAITALL only a connection that is gone takes less.
                let result =
                    result.and_then(|sent| if sent == wanted { Ok(sent) } else { Err(Errno::EPIPE) });
                Event::Sent { slot, result }
            }
            RECEIVE => Event::Received { slot, result: self.lease(result, flags), more },
            _ => Event::Cancelled,
        })
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let settled = self.settle();
        if settled.is_ok() && self.in_flight == 0 {
            // SAFETY: no operation is in flight, so the kernel reads and writes none of this memory
            // any more; it is not used after this.
            unsafe { ManuallyDrop::drop(&mut self.shared) }
        }
    }
}

/// The next close of this socket throws away what is under way and tells the peer by RST.
pub(super) fn reset_on_close(socket: &OwnedFd) {
    // It fails only on what is no socket.
    let _ = socket::setsockopt(socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
}

/// Builds the ring with the best flags that this kernel takes.
fn build(connections: usize) -> io::Result<IoUring> {
    let completions = (2 * connections as u32).next_power_of_two().clamp(COMPLETIONS_MIN, COMPLETIONS_MAX);
    let mut entries = SUBMISSIONS;
    loop {
        match build_with_flags(entries, completions.max(2 * entries)) {
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) && entries > SUBMISSIONS_MIN => {
                entries /= 2
            }
            outcome => return outcome,
        }
    }
}

fn build_with_flags(entries: u32, completions: u32) -> io::Result<IoUring> {
    let mut outcome = Err(io::Error::from_raw_os_error(libc::EINVAL));
    for tier in 0..4 {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_cqsize(completions).setup_clamp();
        if tier <= 1 {
            builder.setup_submit_all().setup_single_issuer().setup_defer_taskrun();
        }
        if tier == 0 {
            builder.setup_no_sqarray();
        }
        if tier == 2 {
            builder.setup_coop_taskrun();
        }
        outcome = builder.build(entries);
        if !matches!(&outcome, Err(error) if error.raw_os_error() == Some(libc::EINVAL)) {
            break;
        }
    }
    outcome
}

fn unavailable(error: &io::Error) -> Error {
    let cause = match error.raw_os_error() {
        Some(libc::ENOSYS | libc::EPERM | libc::EACCES) => denial(),
        Some(libc::ENOMEM) => {
            "not enough memory, or RLIMIT_MEMLOCK is too low; raise it with `ulimit -l`".into()
        }
        _ => "the client engine needs Linux 6.0 or newer".into(),
    };
    Error::machine(format!("the client engine cannot have io_uring: {error}; {cause}"))
}

/// Names what denies io_uring here, and what allows it.
fn denial() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    if let setting @ ("1" | "2") = read("/proc/sys/kernel/io_uring_disabled").trim() {
        return format!(
            "kernel.io_uring_disabled is {setting}; allow it with `sysctl kernel.io_uring_disabled=0`"
        );
    }
    if read("/proc/self/status")
        .lines()
        .any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
    {
        return "a seccomp filter denies it, as container engines do; run with a profile that allows io_uring".into();
    }
    "this kernel was built without it".into()
}
