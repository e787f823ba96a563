//! Clocks and counters of processes. What the machine cannot give is None, never 0.

use std::{fs, ops::RangeInclusive, time::Duration};

use nix::{
    sys::{
        resource::{UsageWho, getrusage},
        time::TimeSpec,
    },
    time::{ClockId, clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::pinning::Cpus;

/// The CPU clock of a process, of several, or of all that descend from one. It keeps the time of threads that have
/// ended.
#[derive(Clone, Debug)]
pub(crate) enum CpuClock {
    Process(ClockId),
    All(Vec<ClockId>),
    Family { root: u32, members: Vec<u32>, clocks: Vec<ClockId> },
}

impl CpuClock {
    pub(crate) fn own() -> Self {
        Self::Process(ClockId::CLOCK_PROCESS_CPUTIME_ID)
    }

    pub(crate) fn of(pid: u32) -> Option<Self> {
        clock_of(pid).map(Self::Process)
    }

    /// Of processes that each have a clock; None if one of them has ended.
    pub(crate) fn of_all(pids: &[u32]) -> Option<Self> {
        let clocks = pids.iter().map(|pid| clock_of(*pid)).collect::<Option<_>>()?;
        Some(Self::All(clocks))
    }

    /// The clocks of those who are there now: finding them takes long, reading them does not.
    pub(crate) fn of_descendants(root: u32) -> Self {
        let members = descendants(root);
        let clocks = members.iter().filter_map(|pid| clock_of(*pid)).collect();
        Self::Family { root, members, clocks }
    }

    pub(crate) fn read(&self) -> Option<Duration> {
        let read = |clock: &ClockId| clock_gettime(*clock).ok().map(|time: TimeSpec| time.into());
        match self {
            Self::Process(clock) => read(clock),
            Self::All(clocks) => clocks.iter().map(read).sum(),
            Self::Family { members, clocks, .. } if members.len() == clocks.len() => {
                clocks.iter().map(read).sum()
            }
            Self::Family { .. } => None,
        }
    }

    /// Whether it still is the clock of all: nobody has come or gone.
    pub(crate) fn is_whole(&self) -> bool {
        match self {
            Self::Process(_) | Self::All(_) => true,
            Self::Family { root, members, .. } => descendants(*root) == *members,
        }
    }
}

fn clock_of(pid: u32) -> Option<ClockId> {
    clock_getcpuclockid(Pid::from_raw(pid as i32)).ok()
}

/// A process and all that descend from it.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let parents = parents();
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(child, _)| *child));
        next += 1;
    }
    family
}

/// All that descend from a process.
fn descendants(pid: u32) -> Vec<u32> {
    family(pid).split_off(1)
}

/// Whether a process is there and not only waiting to be reaped.
pub(crate) fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// The ports that the kernel gives to those who do not ask for one.
pub(crate) fn local_ports() -> Option<RangeInclusive<u16>> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ends = range.split_whitespace().map_while(|end| end.parse().ok());
    Some(ends.next()?..=ends.next()?)
}

/// Every process of this machine with its parent.
fn parents() -> Vec<(u32, u32)> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The name in the middle may hold anything, but ends with the last parenthesis.
            let (_, rest) = stat.rsplit_once(") ")?;
            Some((pid, rest.split(' ').nth(1)?.parse().ok()?))
        })
        .collect()
}

/// Context switches of this process so far: voluntary and involuntary.
pub(crate) fn context_switches() -> Option<(u64, u64)> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    Some((usage.voluntary_context_switches() as u64, usage.involuntary_context_switches() as u64))
}

/// The most memory that this process has had resident. The maximum that getrusage gives would
/// include the parent's at the moment of the fork.
pub(crate) fn peak_memory_bytes() -> Option<u64> {
    peak_memory_of(std::process::id())
}

pub(crate) fn peak_memory_of(pid: u32) -> Option<u64> {
    parse_peak(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn parse_peak(status: &str) -> Option<u64> {
    kibibytes(status, "VmHWM:")
}

/// What the kernel's TCP, of this network namespace, has had to send again or throw away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TcpTrouble {
    pub(crate) retransmitted_segments: u64,
    /// Connections that found the backlog full.
    pub(crate) dropped_connections: u64,
    /// Segments that found no room in a socket's receive queue or backlog.
    pub(crate) dropped_segments: u64,
}

impl TcpTrouble {
    pub(crate) fn read() -> Option<Self> {
        let (snmp, netstat) = ("/proc/self/net/snmp", "/proc/self/net/netstat");
        Self::parse(&fs::read_to_string(snmp).ok()?, &fs::read_to_string(netstat).ok()?)
    }

    fn parse(snmp: &str, netstat: &str) -> Option<Self> {
        let extended = |name| named(netstat, "TcpExt:", name);
        Some(Self {
            retransmitted_segments: named(snmp, "Tcp:", "RetransSegs")?,
            dropped_connections: extended("ListenDrops")?,
            dropped_segments: extended("TCPBacklogDrop")? + extended("TCPRcvQDrop")?,
        })
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            retransmitted_segments: self
                .retransmitted_segments
                .saturating_sub(earlier.retransmitted_segments),
            dropped_connections: self.dropped_connections.saturating_sub(earlier.dropped_connections),
            dropped_segments: self.dropped_segments.saturating_sub(earlier.dropped_segments),
        }
    }
}

/// Datagrams that found no room in a socket's receive queue, in this network namespace.
pub(crate) fn dropped_datagrams() -> Option<u64> {
    let snmp = fs::read_to_string("/proc/self/net/snmp").ok()?;
    let snmp6 = fs::read_to_string("/proc/self/net/snmp6").unwrap_or_default();
    let by_ipv6 = snmp6.lines().find_map(|line| line.strip_prefix("Udp6RcvbufErrors"));
    let by_ipv6 = by_ipv6.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0);
    Some(named(&snmp, "Udp:", "RcvbufErrors")? + by_ipv6)
}

/// A counter among lines of names, each followed by a line of values.
fn named(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(group));
    let (names, values) = (lines.next()?, lines.next()?);
    let place = names.split_whitespace().position(|word| word == name)?;
    values.split_whitespace().nth(place)?.parse().ok()
}

/// Memory of processes and of the kernel at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Private to the server's processes.
    pub(crate) server: Option<u64>,
    pub(crate) client: Option<u64>,
    /// The whole kernel's: slabs, stacks of threads, page tables.
    pub(crate) kernel: Option<u64>,
}

impl Memory {
    /// `clients` are the processes that are the client's beside this one.
    pub(crate) fn read(server: Option<u32>, clients: &[u32]) -> Self {
        let private = |pid| family(pid).into_iter().map(private_memory).sum();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kernel = ["Slab:", "KernelStack:", "PageTables:"];
        Self {
            server: server.and_then(private),
            client: [std::process::id()].iter().chain(clients).map(|pid| private_memory(*pid)).sum(),
            kernel: kernel.into_iter().map(|name| kibibytes(&meminfo, name)).sum(),
        }
    }
}

/// Memory that a process shares with no other one.
fn private_memory(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    Some(kibibytes(&rollup, "Private_Clean:")? + kibibytes(&rollup, "Private_Dirty:")?)
}

fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Time since boot, in ticks: of the CPUs of server and client, or of all if they have none of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CpuTicks {
    stolen: u64,
    all: u64,
}

impl CpuTicks {
    pub(crate) fn read(cpus: Cpus) -> Option<Self> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        match (cpus.server, cpus.client) {
            (Some(server), Some(client)) => {
                let one = Self::parse(&stat, &format!("cpu{server} "))?;
                let other = Self::parse(&stat, &format!("cpu{client} "))?;
                Some(Self { stolen: one.stolen + other.stolen, all: one.all + other.all })
            }
            _ => Self::parse(&stat, "cpu "),
        }
    }

    fn parse(stat: &str, name: &str) -> Option<Self> {
        // user nice system idle iowait irq softirq steal; guest time is part of user time.
        let ticks: Vec<u64> = stat
            .lines()
            .find_map(|line| line.strip_prefix(name))?
            .split_whitespace()
            .take(8)
            .map_while(|field| field.parse().ok())
            .collect();
        Some(Self { stolen: *ticks.get(7)?, all: ticks.iter().sum() })
    }

    /// The share of time between two readings that the hypervisor gave to others.
    pub(crate) fn stolen_share(self, later: Self) -> Option<f64> {
        let all = later.all.checked_sub(self.all).filter(|all| *all > 0)?;
        Some(later.stolen.checked_sub(self.stolen)? as f64 / all as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_tcp_are_found_by_their_names() {
        let snmp = "Ip: A\nIp: 1\nTcp: InSegs RetransSegs OutRsts\nTcp: 5 7 9\n";
        let netstat = "TcpExt: ListenDrops X TCPBacklogDrop TCPRcvQDrop\nTcpExt: 1 2 3 4\nIpExt: ListenDrops\nIpExt: 9\n";
        let read = TcpTrouble::parse(snmp, netstat).expect("all are there");
        let wanted = TcpTrouble { retransmitted_segments: 7, dropped_connections: 1, dropped_segments: 7 };
        assert_eq!(read, wanted);
        assert_eq!(read.since(wanted), TcpTrouble::default());
        assert!(TcpTrouble::read().is_some(), "this kernel has them");
        assert!(dropped_datagrams().is_some(), "and these");
    }

    #[test]
    fn stolen_time_is_a_share_of_all_time() {
        let before =
            CpuTicks::parse("cpu  10 0 10 70 0 0 0 10 5 5\ncpu0 1 1 1 1 1 1 1 1\n", "cpu ").expect("valid");
        let after = CpuTicks::parse("cpu  50 0 20 110 0 0 0 20 5 5\n", "cpu ").expect("valid");
        assert_eq!(before.stolen_share(after), Some(0.1));
        assert_eq!(before.stolen_share(before), None);
        assert_eq!(CpuTicks::parse("cpu 1 2 3\n", "cpu "), None);
        let one = CpuTicks::parse("cpu  9 9 9 9 9 9 9 9\ncpu1 1 1 1 1 1 1 1 2\n", "cpu1 ");
        assert_eq!(one, Some(CpuTicks { stolen: 2, all: 9 }));
    }

    #[test]
    fn peak_memory_is_read_from_the_status() {
        assert_eq!(parse_peak("Name:\tx\nVmHWM:\t    2048 kB\n"), Some(2 << 20));
        assert_eq!(parse_peak("Name:\tx\n"), None);
        assert!(peak_memory_bytes().is_some());
    }

    #[test]
    fn clocks_of_processes_go_forward() {
        let own = CpuClock::of(std::process::id()).expect("this process lives");
        let (first, second) = (own.read(), CpuClock::own().read());
        assert!(first.is_some() && first <= second);
    }
}
