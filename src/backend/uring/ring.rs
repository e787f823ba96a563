//! One io_uring instance: set-up by tier, submission, the one enter of a turn, completions.
//!
//! What the kernel may touch until an operation's last
//! completion is kept by the caller ([`Ring::push`]); the ring counts the operations in flight, so
//! that nothing is freed before they are over.

use std::{collections::VecDeque, io, mem::ManuallyDrop, os::fd::AsRawFd, sync::Arc, time::Duration};

use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue, types};

use super::wait::Wait;
use crate::{
    error::Errno,
    options::{Tier, UringOptions},
    stats::{Count, Counters, Syscall},
};

/// `IORING_REGISTER_RING_FDS` and its opposite, which the crate does for one borrowed submitter only.
const REGISTER_RING_FDS: libc::c_uint = 20;
const UNREGISTER_RING_FDS: libc::c_uint = 21;

/// So many enters at most fetch what found no place in the completion queue. What is left waits for the next turn.
const FETCHES_MAX: usize = 256;

/// In the user data of operations that are heard of only if they fail.
const QUIET: u64 = 1 << 63;

/// `struct io_uring_rsrc_update` of <linux/io_uring.h>.
#[repr(C)]
struct RingFdUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// `struct io_uring_getevents_arg` of <linux/io_uring.h>.
#[repr(C)]
struct GetEventsArg {
    sigmask: u64,
    sigmask_size: u32,
    min_wait_usec: u32,
    timeout: u64,
}

/// `struct __kernel_timespec` of <linux/time_types.h>.
#[repr(C)]
struct KernelTimespec {
    seconds: i64,
    nanoseconds: i64,
}

/// A completion.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    /// With `QUIET`, if it was pushed so.
    marked: u64,
    pub(super) result: i32,
    flags: u32,
}

impl Completion {
    #[cfg(test)]
    pub(super) fn of(user_data: u64, result: i32) -> Self {
        Self { marked: user_data, result, flags: 0 }
    }

    pub(super) fn user_data(self) -> u64 {
        self.marked & !QUIET
    }

    /// Whether it was pushed by [`Ring::push_quiet`], and has failed.
    pub(super) fn is_quiet(self) -> bool {
        self.marked & QUIET != 0
    }

    /// The result, or the error that a negative one stands for.
    pub(super) fn outcome(self) -> Result<u32, Errno> {
        u32::try_from(self.result).map_err(|_| Errno::from_raw(-self.result))
    }

    /// Whether the operation goes on and will complete again.
    pub(super) fn more(self) -> bool {
        cqueue::more(self.flags)
    }

    /// The buffer that the kernel chose for this completion.
    pub(super) fn buffer(self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }
}

/// See the top of this file.
pub(super) struct Ring {
    // Not dropped in a forked child, where its memory is not mapped.
    ring: ManuallyDrop<IoUring>,
    /// The process that made it.
    process: u32,
    /// Index of the registered ring descriptor; saves a look-up with every enter.
    registered: Option<u32>,
    flags: EnterFlags,
    can_gather: bool,
    /// Entries that found the submission queue full. A lost one would hang a connection for ever.
    backlog: VecDeque<squeue::Entry>,
    /// Completions taken out of order, while one of them was waited for.
    stash: VecDeque<Completion>,
    in_flight: usize,
    counters: Arc<Counters>,
}

impl Ring {
    /// Sets up a ring of this tier. Queues that do not fit into memory are halved.
    pub(super) fn open(options: &UringOptions, tier: Tier, counters: Arc<Counters>) -> io::Result<Self> {
        let (mut submissions, mut completions) = (options.submissions, options.completions);
        let ring = loop {
            match builder(tier, completions).build(submissions) {
                Err(error) if error.raw_os_error() == Some(libc::ENOMEM) && submissions > 2 => {
                    (submissions, completions) = (submissions / 2, completions / 2);
                }
                built => break built?,
            }
        };
        let (no_iowait, can_gather) =
            (ring.params().is_feature_no_iowait(), ring.params().is_feature_min_timeout());
        if tier == Tier::Full && !no_iowait {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut ring = Self {
            ring: ManuallyDrop::new(ring),
            process: std::process::id(),
            registered: None,
            flags: EnterFlags::GETEVENTS | EnterFlags::EXT_ARG,
            can_gather,
            backlog: VecDeque::new(),
            stash: VecDeque::new(),
            in_flight: 0,
            counters,
        };
        if tier == Tier::Full {
            ring.flags |= EnterFlags::NO_IOWAIT | EnterFlags::REGISTERED_RING;
            ring.register_ring_fd()?;
        }
        Ok(ring)
    }

    /// Whether this process made the ring; a forked child has no part in it.
    pub(super) fn is_ours(&self) -> bool {
        std::process::id() == self.process
    }

    /// For registering buffers and files.
    pub(super) fn submitter(&self) -> io_uring::Submitter<'_> {
        self.ring.submitter()
    }

    /// How many completions the queue holds.
    pub(super) fn completions(&self) -> u32 {
        self.ring.params().cq_entries()
    }

    /// Operations whose last completion has not been taken yet.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Queues an operation.
    ///
    /// # Safety
    /// Whatever the entry points to stays valid and untouched until its last completion was taken.
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry) {
        self.in_flight += 1;
        // SAFETY: as the caller promises.
        if self.backlog.is_empty() && unsafe { self.ring.submission().push(&entry) }.is_ok() {
            return;
        }
        self.backlog.push_back(entry);
        // What does not fit now waits in the backlog for the next enter.
        let _ = self.submit();
    }

    /// Queues an operation that never stays with the kernel and that only a failure is heard of: once
    /// [`all_taken`](Self::all_taken) has been seen after it, no completion of it means that it is done.
    ///
    /// # Safety
    /// As for [`push`](Self::push), until then.
    pub(super) unsafe fn push_quiet(&mut self, entry: squeue::Entry) {
        let user_data = entry.get_user_data() | QUIET;
        let entry = entry.flags(squeue::Flags::SKIP_SUCCESS).user_data(user_data);
        // SAFETY: as the caller promises.
        unsafe { self.push(entry) };
        self.in_flight -= 1;
    }

    /// Whether the kernel has begun every operation, and every completion that it has posted can be seen. Those that found no
    /// place in the queue are fetched first: a queue that overflows with every turn would never show all of them.
    pub(super) fn all_taken(&mut self) -> bool {
        for _ in 0..FETCHES_MAX {
            let queue = self.ring.submission();
            let (begun, overflow) = (queue.is_empty(), queue.cq_overflow());
            drop(queue);
            if !overflow {
                return begun && self.backlog.is_empty();
            }
            self.stash_queue();
            // An error comes again with the next wait, which tells it.
            if self.submit().is_err() {
                break;
            }
        }
        false
    }

    /// Hands over everything queued, without waiting.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        self.enter(0, None, Duration::ZERO)
    }

    /// The one enter of a turn: submits everything and waits.
    pub(super) fn submit_and_wait(&mut self, wait: Wait, timeout: Duration) -> io::Result<()> {
        match wait {
            // To wait for no time would still put the thread to sleep.
            _ if timeout.is_zero() || !self.stash.is_empty() => self.submit(),
            Wait::Many { count, gather } if self.can_gather => self.enter(count, Some(gather), timeout),
            _ => self.enter(1, None, timeout),
        }
    }

    /// Enters until the backlog is gone too, or the kernel will take no more before completions are
    /// taken; only the last enter waits.
    fn enter(&mut self, count: u32, gather: Option<Duration>, timeout: Duration) -> io::Result<()> {
        loop {
            self.refill();
            let last = self.backlog.is_empty();
            let (count, gather, timeout) =
                if last { (count, gather, timeout) } else { (0, None, Duration::ZERO) };
            let queued = self.ring.submission().len() as u32;
            match self.enter_once(queued, count, gather, timeout) {
                Ok(taken) if last || taken == 0 => return Ok(()),
                Ok(_) => {}
                Err(error) => return after_enter(error),
            }
        }
    }

    fn refill(&mut self) {
        while let Some(entry) = self.backlog.front() {
            // SAFETY: the caller of `push` made the promise for this entry.
            if unsafe { self.ring.submission().push(entry) }.is_err() {
                return;
            }
            self.backlog.pop_front();
        }
    }

    /// The raw system call: the crate's own wrapper cannot set `NO_IOWAIT` together with a timeout,
    /// and leaves out `GETEVENTS` where deferred completions would strand without it.
    fn enter_once(
        &mut self,
        submit: u32,
        count: u32,
        gather: Option<Duration>,
        timeout: Duration,
    ) -> io::Result<u32> {
        let timeout = KernelTimespec {
            seconds: timeout.as_secs().min(i64::MAX as u64) as i64,
            nanoseconds: timeout.subsec_nanos().into(),
        };
        let arg = GetEventsArg {
            sigmask: 0,
            sigmask_size: 0,
            min_wait_usec: gather.map_or(0, |gather| gather.as_micros() as u32),
            timeout: (&raw const timeout) as u64,
        };
        let fd = self.registered.map_or(self.ring.as_raw_fd(), |index| index as i32);
        self.counters.call(Syscall::IoUringEnter);
        // SAFETY: the descriptor, or the registered index, is this ring's; the argument and the
        // time it points to live until the call returns; `submit` entries are filled.
        let taken = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                fd,
                submit,
                count,
                self.flags.bits(),
                &raw const arg,
                size_of::<GetEventsArg>(),
            )
        };
        if taken < 0 { Err(io::Error::last_os_error()) } else { Ok(taken as u32) }
    }

    /// The next completion.
    pub(super) fn pop(&mut self) -> Option<Completion> {
        self.stash.pop_front().or_else(|| self.pop_queue())
    }

    fn pop_queue(&mut self) -> Option<Completion> {
        let entry = self.ring.completion().next()?;
        let completion =
            Completion { marked: entry.user_data(), result: entry.result(), flags: entry.flags() };
        if !completion.more() && !completion.is_quiet() {
            self.in_flight -= 1;
        }
        Some(completion)
    }

    /// Gives the completions of quiet operations, ahead of all others, which can be popped later.
    pub(super) fn take_quiet(&mut self, mut failed: impl FnMut(Completion)) {
        if self.stash.is_empty() && !self.queue_has_quiet() {
            return;
        }
        self.stash_queue();
        self.stash.retain(|completion| {
            if completion.is_quiet() {
                failed(*completion);
            }
            !completion.is_quiet()
        });
    }

    /// Whether a quiet operation has failed. Mostly none has, and then everything stays in the queue.
    fn queue_has_quiet(&mut self) -> bool {
        let mut queue = self.ring.completion();
        let found = queue.any(|entry| entry.user_data() & QUIET != 0);
        // To drop it would be to tell the kernel that what was looked at has been taken.
        std::mem::forget(queue);
        found
    }

    fn stash_queue(&mut self) {
        while let Some(completion) = self.pop_queue() {
            self.stash.push_back(completion);
        }
    }

    /// Completions that wait to be taken.
    pub(super) fn ready(&mut self) -> u32 {
        (self.ring.completion().len() + self.stash.len()) as u32
    }

    /// Notes when the kernel had to keep completions that found no place in the queue.
    pub(super) fn mind_overflow(&mut self) {
        if self.ring.submission().cq_overflow() {
            self.counters.add(Count::CqOverflows, 1);
        }
    }

    /// Does an operation that completes at once, and gives its completion out of turn.
    ///
    /// # Safety
    /// As for [`push`](Self::push).
    pub(super) unsafe fn call(&mut self, entry: squeue::Entry) -> io::Result<Completion> {
        let wanted = entry.get_user_data();
        // SAFETY: as the caller promises.
        unsafe { self.push(entry) };
        loop {
            self.submit()?;
            while let Some(completion) = self.pop_queue() {
                if completion.user_data() == wanted {
                    return Ok(completion);
                }
                self.stash.push_back(completion);
            }
        }
    }

    fn register_ring_fd(&mut self) -> io::Result<()> {
        let mut update = RingFdUpdate { offset: u32::MAX, reserved: 0, data: self.ring.as_raw_fd() as u64 };
        self.register(REGISTER_RING_FDS, &mut update)?;
        self.registered = Some(update.offset);
        Ok(())
    }

    fn register(&self, operation: libc::c_uint, update: &mut RingFdUpdate) -> io::Result<()> {
        // SAFETY: the descriptor is this ring's, and the update is valid for one entry.
        let done = unsafe {
            libc::syscall(libc::SYS_io_uring_register, self.ring.as_raw_fd(), operation, update, 1)
        };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Cancels everything and takes completions until nothing is in flight; `false` if the kernel
    /// would not let go.
    pub(super) fn drain(&mut self, mut leave: impl FnMut(Completion)) -> bool {
        let mut stuck = true;
        for _ in 0..1000 {
            // What is on its way from one of the kernel's lists to another is missed by the first.
            if stuck {
                let cancel = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build();
                // SAFETY: a cancel points to nothing.
                unsafe { self.push(cancel) };
            }
            let _ = self.submit_and_wait(Wait::One, Duration::from_millis(10));
            let before = self.in_flight;
            while let Some(completion) = self.pop() {
                leave(completion);
            }
            if self.in_flight == 0 {
                return true;
            }
            stuck = self.in_flight == before;
        }
        false
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if !self.is_ours() {
            return;
        }
        if let Some(index) = self.registered {
            let mut update = RingFdUpdate { offset: index, reserved: 0, data: 0 };
            let _ = self.register(UNREGISTER_RING_FDS, &mut update);
        }
        // SAFETY: this is the one place that drops it, and nothing uses it afterwards.
        unsafe { ManuallyDrop::drop(&mut self.ring) };
    }
}

fn builder(tier: Tier, completions: u32) -> io_uring::Builder {
    let mut builder = IoUring::builder();
    builder.dontfork().setup_clamp().setup_submit_all().setup_cqsize(completions);
    match tier {
        Tier::Full => {
            builder.setup_single_issuer().setup_defer_taskrun().setup_no_sqarray();
        }
        Tier::Defer => {
            builder.setup_single_issuer().setup_defer_taskrun();
        }
        Tier::Coop => {
            // A single issuer is what Linux 6.0 has and 5.19 has not, whose datagrams no receive stays armed for.
            builder.setup_single_issuer().setup_coop_taskrun();
        }
    }
    builder
}

/// Errors of `io_uring_enter` that are part of a turn's normal life.
fn after_enter(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        // The timeout passed; a signal came; completions have to be taken before more is submitted.
        Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_looked_at_for_failures_stays_in_the_queue() {
        let mut ring = Ring::open(&UringOptions::default(), Tier::Coop, Arc::default()).unwrap();
        for failing in [false, true] {
            for number in 1..=3 {
                // SAFETY: a nop points to nothing.
                unsafe { ring.push(opcode::Nop::new().build().user_data(number)) };
            }
            let (wrong, right) = (opcode::Close::new(types::Fd(-1)).build(), opcode::Nop::new().build());
            let quiet = if failing { wrong } else { right }.user_data(4);
            // SAFETY: neither points to anything.
            unsafe { ring.push_quiet(quiet) };
            ring.submit().unwrap();
            assert!(ring.all_taken());
            let mut failed = Vec::new();
            ring.take_quiet(|completion| failed.push(completion.user_data()));
            assert_eq!(failed, if failing { vec![4] } else { vec![] });
            let others: Vec<u64> = std::iter::from_fn(|| ring.pop()).map(|other| other.user_data()).collect();
            assert_eq!(others, [1, 2, 3]);
            assert_eq!(ring.in_flight(), 0);
        }
    }

    #[test]
    fn a_queue_that_overflows_hides_no_failure_of_a_quiet_operation() {
        const MANY: u64 = 50;
        let options = UringOptions::default().queues(2, 4);
        let mut ring = Ring::open(&options, Tier::Coop, Arc::default()).unwrap();
        for number in 1..=MANY {
            // SAFETY: a nop points to nothing.
            unsafe { ring.push(opcode::Nop::new().build().user_data(number)) };
        }
        let failing = opcode::Close::new(types::Fd(-1)).build().user_data(MANY + 1);
        let fine = opcode::Nop::new().build().user_data(MANY + 2);
        // SAFETY: they point to nothing.
        unsafe {
            ring.push_quiet(failing);
            ring.push_quiet(fine);
        }
        ring.submit().unwrap();
        assert!(ring.ring.submission().cq_overflow(), "the queue never overflowed");
        assert!(ring.all_taken());
        let mut failed = Vec::new();
        ring.take_quiet(|completion| failed.push((completion.user_data(), completion.outcome())));
        assert_eq!(failed, [(MANY + 1, Err(Errno::from_raw(libc::EBADF)))]);
        let others: Vec<u64> = std::iter::from_fn(|| ring.pop()).map(|other| other.user_data()).collect();
        assert_eq!(others, (1..=MANY).collect::<Vec<_>>());
        assert_eq!(ring.in_flight(), 0);
    }
}
