//! What loadgen and its server child tell each other: JSON lines over the child's standard streams.

use std::{collections::BTreeMap, io};

use serde::{Deserialize, Serialize};

use crate::{measure, target::Target};

/// When a server's counters were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mark {
    WindowOpened,
    WindowClosed,
    Stopped,
}

/// From loadgen to the child. The end of the stream means the same as `Stop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub(crate) enum Command {
    Stats { mark: Mark },
    Stop,
}

/// From the child to loadgen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Report {
    /// The server listens.
    Ready {
        identity: Identity,
        target: Target,
    },
    /// The server cannot do what was asked.
    Failed {
        message: String,
    },
    Stats {
        mark: Mark,
        stats: ServerStats,
    },
}

/// What a server says it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) backend: String,
    /// How the ring is set up; only io_uring has tiers.
    pub(crate) tier: Option<String>,
    /// plain or direct.
    pub(crate) descriptors: String,
    /// How many share the port, each in a thread and, on io_uring, with a ring and a table of its own.
    #[serde(default = "one")]
    pub(crate) reactors: usize,
    pub(crate) why: String,
    pub(crate) pid: u32,
}

/// What a server has counted since it began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServerStats {
    pub(crate) syscalls: BTreeMap<String, u64>,
    pub(crate) counts: BTreeMap<String, u64>,
    pub(crate) voluntary_switches: u64,
    pub(crate) involuntary_switches: u64,
    pub(crate) peak_memory_bytes: Option<u64>,
    /// How the kernel has dealt the connections out; empty for what is not the library.
    #[serde(default)]
    pub(crate) accepted_by_reactor: Vec<u64>,
}

fn one() -> usize {
    1
}

impl ServerStats {
    /// What a server has counted, with what the kernel has counted for its process.
    pub(crate) fn of(syscalls: BTreeMap<String, u64>, counts: BTreeMap<String, u64>) -> Self {
        let (voluntary_switches, involuntary_switches) = measure::context_switches().unwrap_or_default();
        let peak_memory_bytes = measure::peak_memory_bytes();
        let accepted_by_reactor = Vec::new();
        Self {
            syscalls,
            counts,
            voluntary_switches,
            involuntary_switches,
            peak_memory_bytes,
            accepted_by_reactor,
        }
    }

    /// What was counted under this name of the library.
    pub(crate) fn count(&self, name: &str) -> Option<u64> {
        self.counts.get(name).copied()
    }

    pub(crate) fn syscalls_total(&self) -> u64 {
        self.syscalls.values().sum()
    }
}

/// Writes one message as a line.
pub(crate) fn write_line(mut stream: impl io::Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    stream.flush()
}
