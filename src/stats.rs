//! What a reactor has done so far, counted where it happens.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

macro_rules! named {
    ($(#[$doc:meta])* $vis:vis enum $Name:ident { $($(#[$vdoc:meta])* $Variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        $vis enum $Name { $($(#[$vdoc])* $Variant,)+ }

        impl $Name {
            /// All of them, in the order in which they are declared.
            pub const ALL: &'static [Self] = &[$(Self::$Variant,)+];

            /// The name that reports use.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$Variant => $text,)+ }
            }
        }

        impl fmt::Display for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

named! {
    /// The system calls that a reactor makes while it runs, by the names that `strace -c` prints.
    ///
    /// Not counted: what sets a reactor, a port or the watch of a foreign descriptor up, what the program asks of a connection
    /// (addresses, TCP_NODELAY, keep-alive), the resolver's, and the C library's own for memory,
    /// threads and locks.
    pub enum Syscall {
        /// One submission and wait of the io_uring backend.
        IoUringEnter = "io_uring_enter",
        /// One wait of the epoll backend, or of the threads backend's sender.
        EpollWait = "epoll_wait",
        /// One change of an interest list, of the epoll backend or of the threads backend's sender.
        EpollCtl = "epoll_ctl",
        /// One wait of the threads backend's main thread, or for a connection attempt.
        Poll = "poll",
        /// One accepted connection, or the attempt.
        Accept = "accept4",
        /// One receive.
        Recv = "recvfrom",
        /// One send of one slice.
        Send = "sendto",
        /// One send of several slices.
        Sendmsg = "sendmsg",
        /// One receive of datagrams, of as many as wait.
        Recvmmsg = "recvmmsg",
        /// One send of datagrams, of as many as wait.
        Sendmmsg = "sendmmsg",
        /// One half-close.
        Shutdown = "shutdown",
        /// One change of a socket option, before a reset.
        Setsockopt = "setsockopt",
        /// One connection attempt.
        Connect = "connect",
        /// One closed descriptor of a connection.
        Close = "close",
        /// One read of the wake-up descriptor.
        Read = "read",
        /// One write to the wake-up descriptor.
        Write = "write",
        /// One question whether a foreign descriptor still names its file.
        Fcntl = "fcntl",
    }
}

named! {
    /// What a reactor counts beside system calls.
    pub enum Count {
        /// Connections that a port accepted, refused ones included.
        Accepted = "accepted",
        /// Connections that a connector made.
        Connected = "connected",
        /// Connections whose `connection_made` ran.
        Made = "made",
        /// Bytes handed to protocols, held or thrown away: all that was received.
        BytesReceived = "bytes_received",
        /// Bytes that the kernel took, as far as the loop has heard: on io_uring, up to the latest wait that has ended.
        BytesSent = "bytes_sent",
        /// Bytes written to connections that ended before the kernel took them.
        BytesUnsent = "bytes_unsent",
        /// Bytes that the kernel had taken of connections that were drained at a stop, and that the peer's kernel had not
        /// acknowledged when they ended. They arrive, unless the peer goes on sending. A FIN counts as one. Of Unix sockets there are none.
        BytesUnacknowledged = "bytes_unacknowledged",
        /// Waits of the loop.
        Waits = "waits",
        /// Completions (io_uring) or ready descriptors (epoll) that the waits gave.
        Events = "events",
        /// Receives that found no free buffer and were parked (io_uring).
        NoBuffers = "no_buffers",
        /// Times the completion queue overflowed into the kernel's memory (io_uring).
        CqOverflows = "cq_overflows",
        /// Connection attempts that failed.
        ConnectFailed = "connect_failed",
        /// Peers shed because the process, the system or the ring was out of descriptors.
        RefusedDescriptors = "refused_descriptors",
        /// Peers refused because no thread could be started for them (threads).
        RefusedThreads = "refused_threads",
        /// Peers that a port had accepted when it was stopped.
        RefusedStopped = "refused_stopped",
        /// Peers for which `build_protocol` answered None, or panicked, or whose filters could not be made.
        RefusedByFactory = "refused_by_factory",
        /// Peers that an accept policy refused, or could not make up its mind about: it panicked.
        RefusedByPolicy = "refused_by_policy",
        /// Peers that an accept policy had served by the overflow factory.
        Overflowed = "overflowed",
        /// Datagrams that arrived, those that were too long included.
        DatagramsReceived = "datagrams_received",
        /// Datagrams that the kernel took.
        DatagramsSent = "datagrams_sent",
        /// Datagrams dropped because they were longer than their port's `max_packet_size`.
        DatagramsTooLong = "datagrams_too_long",
        /// Connections lost with `Reason::Done`.
        LostDone = "lost_done",
        /// Connections lost to an error of the kernel.
        LostErrno = "lost_errno",
        /// Connections lost because the reactor was stopped.
        LostShutdown = "lost_shutdown",
        /// Connections aborted by this side.
        LostAborted = "lost_aborted",
        /// Connections that passed a limit.
        LostLimit = "lost_limit",
        /// Connections that ran out of time.
        LostTimedOut = "lost_timed_out",
        /// Connections ended by an error of a callback.
        LostCallback = "lost_callback",
        /// Connections ended by a panic of a callback.
        LostPanicked = "lost_panicked",
    }
}

impl Count {
    const LOSSES: [Self; 8] = [
        Self::LostDone,
        Self::LostErrno,
        Self::LostShutdown,
        Self::LostAborted,
        Self::LostLimit,
        Self::LostTimedOut,
        Self::LostCallback,
        Self::LostPanicked,
    ];
}

/// A snapshot of everything that a reactor has counted since it was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    syscalls: [u64; Syscall::ALL.len()],
    counts: [u64; Count::ALL.len()],
    output_total: usize,
    output_total_peak: usize,
}

impl Stats {
    pub(crate) fn with_output_total(self, output_total: usize, output_total_peak: usize) -> Self {
        Self { output_total, output_total_peak, ..self }
    }

    /// Unsent bytes, now, of all connections with more than 4 KiB of them: what
    /// [`Limits::output_total_max`](crate::Limits::output_total_max) limits.
    pub fn output_total(&self) -> usize {
        self.output_total
    }

    /// The most that [`output_total`](Self::output_total) has ever been, which is above the limit by the writes that passed it.
    pub fn output_total_peak(&self) -> usize {
        self.output_total_peak
    }

    /// How often this was counted.
    pub fn count(&self, count: Count) -> u64 {
        self.counts[count as usize]
    }

    /// How often this system call was made.
    pub fn syscall(&self, call: Syscall) -> u64 {
        self.syscalls[call as usize]
    }

    /// All system calls together.
    pub fn syscalls_total(&self) -> u64 {
        self.syscalls.iter().sum()
    }

    /// Connections that are made and not yet lost.
    pub fn connections(&self) -> u64 {
        let lost: u64 = Count::LOSSES.iter().map(|loss| self.count(*loss)).sum();
        self.count(Count::Made).saturating_sub(lost)
    }
}

/// The counters themselves. Atomic so that any thread can take a snapshot while the loop counts.
#[derive(Debug)]
pub(crate) struct Counters {
    syscalls: [AtomicU64; Syscall::ALL.len()],
    counts: [AtomicU64; Count::ALL.len()],
    branches: Mutex<Branches>,
}

/// Counters that are counted on apart from the trunk's, by their numbers.
#[derive(Debug, Default)]
struct Branches {
    next: u64,
    living: BTreeMap<u64, Arc<Counters>>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            syscalls: [const { AtomicU64::new(0) }; Syscall::ALL.len()],
            counts: [const { AtomicU64::new(0) }; Count::ALL.len()],
            branches: Mutex::default(),
        }
    }
}

impl Counters {
    /// Counts from the one thread that writes these counters: a load and a store, no locked instruction.
    pub(crate) fn add(&self, count: Count, n: u64) {
        bump(&self.counts[count as usize], n);
    }

    /// As [`add`](Self::add), for a system call.
    pub(crate) fn call(&self, call: Syscall) {
        bump(&self.syscalls[call as usize], 1);
    }

    /// Counts a system call from any thread.
    pub(crate) fn call_shared(&self, call: Syscall) {
        self.syscalls[call as usize].fetch_add(1, Relaxed);
    }

    /// Counters for one thread, so that many threads do not fight over these. A snapshot of these
    /// includes them; what they have counted passes to these when the branch is dropped.
    pub(crate) fn branch(self: &Arc<Self>) -> Branch {
        let counters = Arc::<Self>::default();
        let mut branches = self.branches();
        let number = branches.next;
        branches.next += 1;
        branches.living.insert(number, Arc::clone(&counters));
        Branch { trunk: Arc::clone(self), number, counters }
    }

    pub(crate) fn snapshot(&self) -> Stats {
        // Held throughout, so that a branch which ends meanwhile is counted once.
        let branches = self.branches();
        let all = || branches.living.values().map(|branch| &**branch).chain([self]);
        Stats {
            syscalls: std::array::from_fn(|i| all().map(|c| c.syscalls[i].load(Relaxed)).sum()),
            counts: std::array::from_fn(|i| all().map(|c| c.counts[i].load(Relaxed)).sum()),
            output_total: 0,
            output_total_peak: 0,
        }
    }

    fn branches(&self) -> MutexGuard<'_, Branches> {
        self.branches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn absorb(&self, branch: &Self) {
        let pairs = self.syscalls.iter().zip(&branch.syscalls);
        for (own, theirs) in pairs.chain(self.counts.iter().zip(&branch.counts)) {
            own.fetch_add(theirs.load(Relaxed), Relaxed);
        }
    }
}

/// See [`Counters::branch`]. While there are branches, nobody may [`add`](Counters::add) to the trunk.
#[derive(Debug)]
pub(crate) struct Branch {
    trunk: Arc<Counters>,
    number: u64,
    counters: Arc<Counters>,
}

impl Deref for Branch {
    type Target = Counters;

    fn deref(&self) -> &Counters {
        &self.counters
    }
}

impl Drop for Branch {
    fn drop(&mut self) {
        let mut branches = self.trunk.branches();
        branches.living.remove(&self.number);
        self.trunk.absorb(&self.counters);
    }
}

fn bump(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed) + n, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_branch_counts_is_counted_once_during_its_life_and_after() {
        let trunk = Arc::new(Counters::default());
        trunk.call_shared(Syscall::Recv);
        let (first, second) = (trunk.branch(), trunk.branch());
        first.add(Count::Made, 2);
        second.add(Count::Made, 4);
        second.call(Syscall::Recv);
        assert_eq!(trunk.snapshot().count(Count::Made), 6);
        drop(first);
        assert_eq!(trunk.snapshot().count(Count::Made), 6);
        drop(second);
        assert_eq!(trunk.snapshot().count(Count::Made), 6);
        assert_eq!(trunk.snapshot().syscall(Syscall::Recv), 2);
        assert!(trunk.branches().living.is_empty());
    }
}
