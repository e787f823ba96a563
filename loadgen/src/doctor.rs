//! What this machine allows for so many connections: each limit with its value, what is needed, and
//! the command that changes it. It changes nothing itself.

use std::fs;

use clap::Args;
use nix::sys::resource::{Resource, getrlimit};

use crate::{
    engine,
    error::{Error, Exit},
    layout::{self, Allowed, Layout},
    machine::{self, DESCRIPTORS_OWN},
    pinning, report, serve,
    units::{self, grouped},
};

/// Kernel memory and buffers of both ends of a connection, as measured, rounded up.
const BYTES_A_CONNECTION: u64 = 20 << 10;
/// What a thread of the server adds: its stack in the kernel, its own, its receive buffer.
const BYTES_A_THREAD: u64 = 48 << 10;
/// What a small datagram that waits is counted as, by half: the kernel doubles what a receive queue is asked to hold.
const BYTES_A_DATAGRAM: u64 = 384;
/// A thread's stack and its guard page.
const MAPPINGS_A_THREAD: u64 = 2;
/// What the processes need beside their connections.
const SPARE: u64 = 1_000;

#[derive(Debug, Args)]
#[command(after_long_help = "Exits with 3 if something is missing.")]
pub(crate) struct DoctorArgs {
    /// Connections to be held at once
    #[arg(short, long, value_name = "N", default_value = "1k", value_parser = units::count)]
    connections: usize,
}

/// One limit.
struct Limit {
    what: &'static str,
    /// None if the machine does not tell.
    value: Option<u64>,
    needed: u64,
    remedy: String,
}

pub(crate) fn run(args: &DoctorArgs) -> Exit {
    let connections = args.connections as u64;
    let ring = engine::probe();
    let (ring_state, remedy) = match &ring {
        Ok(()) => ("ok", None),
        Err(error) => ("MISSING", Some(error.to_string())),
    };
    let mut text = format!("for {} connections:\n", grouped(connections));
    text.push_str(&line("io_uring, for the client and that backend", ring_state, "", ""));
    remedy.into_iter().for_each(|remedy| text.push_str(&format!("    {remedy}\n")));
    let limits = limits(connections);
    let (spread, idle) = idle(connections, Allowed::here());
    for limit in &limits {
        let value = limit.value.map_or("unknown".into(), shown);
        text.push_str(&line(limit.what, limit.state(), &value, &shown(limit.needed)));
        if limit.is_missing() {
            text.push_str(&format!("    {}\n", limit.remedy));
        }
    }
    text.push_str(&idle);
    report::print(&text);
    if ring.is_err() || spread.is_err() || limits.iter().any(Limit::is_missing) {
        Exit::Machine
    } else {
        Exit::Done
    }
}

impl Limit {
    fn is_missing(&self) -> bool {
        self.value.is_some_and(|value| value < self.needed)
    }

    fn state(&self) -> &'static str {
        match self.value {
            None => "?",
            Some(_) if self.is_missing() => "MISSING",
            Some(_) => "ok",
        }
    }
}

fn line(what: &str, state: &str, value: &str, needed: &str) -> String {
    let needed = if needed.is_empty() { String::new() } else { format!(", {needed} needed") };
    let line = format!("{state:<8}{what:<48}{value:>14}{needed}");
    format!("{}\n", line.trim_end())
}

/// What `loadgen idle` does about the limit of descriptors, or what it lacks.
fn idle(connections: u64, allowed: Allowed) -> (Result<Layout, Error>, String) {
    let what = "loadgen idle --backend io_uring";
    let layout = match Layout::beyond_one(connections, allowed) {
        true => Layout::for_idle(connections, layout::BYTES_A_CONNECTION, allowed),
        false => Ok(Layout::ONE),
    };
    let text = match &layout {
        Ok(Layout { reactors, clients }) => {
            let spread =
                format!("    by {reactors} rings in one server process and {clients} client processes\n");
            let spread = if *clients > 1 { spread } else { String::new() };
            line(what, "ok", "", "") + &spread
        }
        Err(error) => format!("{}    {error}\n", line(what, "MISSING", "", "")),
    };
    (layout, text)
}

fn limits(connections: u64) -> Vec<Limit> {
    let sysctl = |name: &str| number(&format!("/proc/sys/{}", name.replace('.', "/")));
    let descriptors = connections + DESCRIPTORS_OWN;
    let (threads, mappings) = (connections + SPARE, MAPPINGS_A_THREAD * connections + SPARE);
    let memory = connections * BYTES_A_CONNECTION;
    let set = |name: &str, value: u64| format!("sysctl {name}={value}");
    vec![
        Limit {
            what: "descriptors a process (RLIMIT_NOFILE, hard)",
            value: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(_, hard)| hard),
            needed: descriptors,
            remedy: format!(
                "ulimit -Hn {descriptors}    (as root); idle connections on io_uring do without, see below"
            ),
        },
        Limit {
            what: "CPUs, one for the server and one for the client",
            value: pinning::allowed_cpus().ok().map(|cpus| cpus.len() as u64),
            needed: 2,
            remedy: "taskset with two CPUs, or a larger machine; else both share one and nothing is pinned"
                .into(),
        },
        Limit {
            what: "connections that may wait (net.core.somaxconn)",
            value: sysctl("net.core.somaxconn"),
            needed: engine::CONNECTING_MAX as u64,
            remedy: set("net.core.somaxconn", 1_024),
        },
        Limit {
            what: "UDP: bytes that may wait (net.core.rmem_max)",
            value: sysctl("net.core.rmem_max"),
            needed: (connections * BYTES_A_DATAGRAM).min(serve::RECEIVE_QUEUE_BYTES as u64),
            remedy: set("net.core.rmem_max", serve::RECEIVE_QUEUE_BYTES as u64),
        },
        Limit {
            what: "memory that is available",
            value: machine::available_memory(),
            needed: memory,
            remedy: "a machine with more memory, or fewer connections".into(),
        },
        Limit {
            what: "threads: tasks (kernel.threads-max)",
            value: sysctl("kernel.threads-max"),
            needed: threads,
            remedy: set("kernel.threads-max", threads),
        },
        Limit {
            what: "threads: process ids (kernel.pid_max)",
            value: sysctl("kernel.pid_max"),
            needed: threads,
            remedy: set("kernel.pid_max", threads),
        },
        Limit {
            what: "threads: tasks of this user (RLIMIT_NPROC)",
            value: getrlimit(Resource::RLIMIT_NPROC).ok().map(|(soft, _)| soft),
            needed: threads,
            remedy: format!("ulimit -u {threads}"),
        },
        Limit {
            what: "threads: mappings (vm.max_map_count)",
            value: sysctl("vm.max_map_count"),
            needed: mappings,
            remedy: set("vm.max_map_count", mappings),
        },
        Limit {
            what: "threads: memory that is available",
            value: machine::available_memory(),
            needed: memory + connections * BYTES_A_THREAD,
            remedy: "a machine with more memory, or fewer connections".into(),
        },
    ]
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn shown(value: u64) -> String {
    if value == u64::MAX { "unlimited".into() } else { grouped(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_small_is_missing_and_what_is_not_told_is_not() {
        let limit = |value| Limit { what: "it", value, needed: 10, remedy: String::new() };
        let states = [Some(9), Some(10), None].map(|value| limit(value).state());
        assert_eq!(states, ["MISSING", "ok", "?"]);
    }
}
