//! Which backend a reactor runs on and how that backend is set up.

use std::{fmt, str::FromStr, time::Duration};

use crate::{error::Error, limits::Limits};

/// What a program asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// io_uring where the kernel allows it, else epoll; [`BackendInfo::why`] says which and why. The
    /// only choice that the environment variable `RINGSPUN_BACKEND` may decide.
    #[default]
    Auto,
    /// A completion loop on io_uring.
    IoUring,
    /// A readiness loop on edge-triggered epoll.
    Epoll,
    /// One blocking thread a connection. A `data_received` that takes long holds up its own
    /// connection, and those who need the same factory once it has used `cx.factory`. Timers, posts,
    /// calls from threads and the factory's callbacks run on one thread for all connections, and so
    /// does `resume_writing`, on another.
    Threads,
    /// A network that is only memory, by a clock that stands still. It is there for [tests](crate::testing), which turn its loop; nobody else can choose it.
    Memory,
}

impl Backend {
    /// As `RINGSPUN_BACKEND` spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
            Self::Threads => "threads",
            Self::Memory => "memory",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Backend {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self, Error> {
        [Self::Auto, Self::IoUring, Self::Epoll, Self::Threads]
            .into_iter()
            .find(|backend| backend.name() == word)
            .ok_or_else(|| Error::UnknownBackend(word.to_owned()))
    }
}

/// How an io_uring instance is set up, best first. Each is proved by a round trip over a
/// socketpair before it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Tier {
    /// Linux 6.15: deferred task work, no submission array, a registered ring descriptor, and waits
    /// that monitoring tools do not count as I/O wait.
    Full,
    /// Linux 6.1: deferred task work (`IORING_SETUP_DEFER_TASKRUN`).
    Defer,
    /// Linux 6.0: cooperative task work (`IORING_SETUP_COOP_TASKRUN`), and one thread that submits (`IORING_SETUP_SINGLE_ISSUER`, as in the others). Receives from connections end with each piece, and
    /// datagrams are sent by `sendmmsg(2)`.
    Coop,
}

impl Tier {
    /// The tiers in the order in which they are tried.
    pub const ALL: [Self; 3] = [Self::Full, Self::Defer, Self::Coop];

    /// The name that reports use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Defer => "defer",
            Self::Coop => "coop",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How long the io_uring backend lets completions gather before it wakes up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitPolicy {
    /// Waits for about half of what the recent waits gave, for some tens of microseconds at most,
    /// and for one completion when there is little to do.
    #[default]
    Adaptive,
    /// Wakes at the first completion, after having looked for one for as long as `spin` before
    /// going to sleep. Costs a core while it spins.
    Latency {
        /// How long to spin; 0 sleeps at once.
        spin: Duration,
    },
}

/// Options of the io_uring backend.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UringOptions {
    /// Only this tier, instead of the best one that works.
    pub tier: Option<Tier>,
    /// Entries of the submission queue; a power of two from 2 to 32768.
    pub submissions: u32,
    /// Entries of the completion queue; a power of two, at least twice `submissions`, at most 65536.
    pub completions: u32,
    /// Whether accept and receive stay armed until the kernel ends them. Receives from connections never do in
    /// [`Tier::Coop`], where one that stays armed can miss urgent data.
    pub multishot: bool,
    /// Whether accepted connections live in the ring's own table and take no place among the
    /// process's descriptors. The table is as large as the descriptor limit.
    pub direct: bool,
    /// Receive buffers shared by all connections; a power of two from 1 to 32768. The kernel
    /// takes them in turn, so all of them are the working set.
    pub buffers: u16,
    /// Bytes of each receive buffer, at least 64.
    pub buffer_bytes: u32,
    /// When to wake up.
    pub wait: WaitPolicy,
}

impl Default for UringOptions {
    fn default() -> Self {
        Self {
            tier: None,
            submissions: 1024,
            completions: 8192,
            multishot: true,
            direct: false,
            buffers: 128,
            buffer_bytes: 4096,
            wait: WaitPolicy::Adaptive,
        }
    }
}

impl UringOptions {
    /// Only this tier, instead of the best one that works.
    pub fn tier(mut self, tier: Tier) -> Self {
        self.tier = Some(tier);
        self
    }

    /// Sizes of the two queues.
    pub fn queues(mut self, submissions: u32, completions: u32) -> Self {
        (self.submissions, self.completions) = (submissions, completions);
        self
    }

    /// Whether accept and receive stay armed until the kernel ends them; see the field of that name.
    pub fn multishot(mut self, multishot: bool) -> Self {
        self.multishot = multishot;
        self
    }

    /// Whether accepted connections take no place among the process's descriptors.
    pub fn direct(mut self, direct: bool) -> Self {
        self.direct = direct;
        self
    }

    /// Number and size of the receive buffers.
    pub fn buffers(mut self, buffers: u16, buffer_bytes: u32) -> Self {
        (self.buffers, self.buffer_bytes) = (buffers, buffer_bytes);
        self
    }

    /// When to wake up.
    pub fn wait(mut self, wait: WaitPolicy) -> Self {
        self.wait = wait;
        self
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let power = |n: u32, low: u32, high: u32| n.is_power_of_two() && (low..=high).contains(&n);
        let complain = |option, cause: &str| Err(Error::Option { option, cause: cause.to_owned() });
        if !power(self.submissions, 2, 32768) {
            return complain("submissions", "must be a power of two from 2 to 32768");
        }
        if !power(self.completions, 2 * self.submissions, 65536) {
            return complain(
                "completions",
                "must be a power of two, at least twice the submissions and at most 65536",
            );
        }
        if !power(self.buffers.into(), 1, 32768) {
            return complain("buffers", "must be a power of two from 1 to 32768");
        }
        if !(64..=1 << 24).contains(&self.buffer_bytes) {
            return complain("buffer_bytes", "must lie between 64 bytes and 16 MiB");
        }
        Ok(())
    }
}

/// Which backend a reactor runs on, and why that one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackendInfo {
    /// The backend; never `Auto`.
    pub backend: Backend,
    /// How the ring is set up, on io_uring.
    pub tier: Option<Tier>,
    /// Whether accepted connections are direct descriptors of the ring.
    pub direct: bool,
    /// Who chose the backend; and where `Auto` fell back, what stands in the way of io_uring and how
    /// to remove it.
    pub why: String,
    /// The kernel's release.
    pub kernel: String,
}

impl fmt::Display for BackendInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.backend)?;
        if let Some(tier) = self.tier {
            let descriptors = if self.direct { "direct" } else { "plain" };
            write!(f, " (tier {tier}, {descriptors} descriptors)")?;
        }
        write!(f, " on Linux {}: {}", self.kernel, self.why)
    }
}

/// Everything that a reactor was built with.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) limits: Limits,
    pub(crate) uring: UringOptions,
    pub(crate) signals: bool,
    pub(crate) thread_pool_size: usize,
    pub(crate) drain_timeout: Duration,
}
