//! What the machine is and allows: recorded with every result, checked before a run.

use std::{collections::BTreeMap, fs};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::{error::Error, pinning, result::Origin, units};

/// Descriptors that loadgen itself needs: standard streams, pipes, the ring and files being written.
pub(crate) const DESCRIPTORS_OWN: u64 = 32;

/// The machine as results describe it. No host is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    kernel: String,
    architecture: String,
    cpu_model: Option<String>,
    cpus_allowed: usize,
    memory_bytes: Option<u64>,
    mitigations: BTreeMap<String, String>,
    limits: BTreeMap<String, String>,
}

/// The source that this binary was built from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Git {
    pub(crate) commit: String,
    /// Whether files differ from the commit.
    pub(crate) dirty: bool,
}

impl Machine {
    pub(crate) fn describe() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            kernel: kernel(),
            architecture: std::env::consts::ARCH.into(),
            cpu_model: field(&cpuinfo, "model name").map(str::to_owned),
            cpus_allowed: pinning::allowed_cpus().map_or(0, |cpus| cpus.len()),
            memory_bytes: field(&meminfo, "MemTotal").and_then(kibibytes),
            mitigations: mitigations(),
            limits: limits(),
        }
    }
}

impl Machine {
    /// What is kept of it when its result is merged into another's.
    pub(crate) fn origin(&self) -> Origin {
        Origin { kernel: self.kernel.clone(), cpu_model: self.cpu_model.clone() }
    }
}

impl Git {
    /// What this binary was built from; None if that was no clone.
    pub(crate) fn describe() -> Option<Self> {
        let commit = option_env!("LOADGEN_COMMIT")?.into();
        Some(Self { commit, dirty: option_env!("LOADGEN_DIRTY") != Some("false") })
    }
}

/// The kernel's release.
pub(crate) fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".into(), |release| release.trim().into())
}

/// Memory that processes can have without swapping.
pub(crate) fn available_memory() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    field(&meminfo, "MemAvailable").and_then(kibibytes)
}

/// Raises the soft limit of descriptors to the hard one, and says what it is now.
pub(crate) fn raise_descriptor_limit() -> u64 {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_err() => soft,
        Ok((_, hard)) => hard,
        // No limit is known, so none can be checked; socket(2) will tell.
        Err(_) => u64::MAX,
    }
}

/// That no process may hold that many connections.
pub(crate) fn too_few_descriptors(connections: usize, limit: u64) -> Error {
    let needed = (connections as u64).saturating_add(DESCRIPTORS_OWN);
    let grouped = units::grouped;
    Error::machine(format!(
        "{} connections need {} descriptors, RLIMIT_NOFILE is {}; raise it with `ulimit -Hn {needed}` as root, \
         or use -c {} at most",
        grouped(connections as u64),
        grouped(needed),
        grouped(limit),
        limit.saturating_sub(DESCRIPTORS_OWN)
    ))
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then_some(value.trim())
    })
}

fn kibibytes(value: &str) -> Option<u64> {
    Some(value.strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn mitigations() -> BTreeMap<String, String> {
    let Ok(folder) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") else { return BTreeMap::new() };
    folder
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let state = fs::read_to_string(entry.path()).ok()?;
            Some((entry.file_name().to_string_lossy().into_owned(), state.trim().to_owned()))
        })
        .filter(|(_, state)| state != "Not affected")
        .collect()
}

fn limits() -> BTreeMap<String, String> {
    const SETTINGS: [(&str, &str); 5] = [
        ("net.core.somaxconn", "/proc/sys/net/core/somaxconn"),
        ("net.ipv4.ip_local_port_range", "/proc/sys/net/ipv4/ip_local_port_range"),
        ("net.ipv4.tcp_congestion_control", "/proc/sys/net/ipv4/tcp_congestion_control"),
        ("kernel.io_uring_disabled", "/proc/sys/kernel/io_uring_disabled"),
        ("kernel.threads-max", "/proc/sys/kernel/threads-max"),
    ];
    let settings = SETTINGS.iter().filter_map(|(name, path)| {
        let value = fs::read_to_string(path).ok()?;
        Some(((*name).to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" ")))
    });
    let resources =
        [("RLIMIT_NOFILE", Resource::RLIMIT_NOFILE), ("RLIMIT_MEMLOCK", Resource::RLIMIT_MEMLOCK)];
    let resources = resources.iter().filter_map(|(name, resource)| {
        let (soft, hard) = getrlimit(*resource).ok()?;
        Some(((*name).to_owned(), format!("{soft} soft, {hard} hard")))
    });
    settings.chain(resources).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_descriptors_name_limit_value_and_command() {
        let error = too_few_descriptors(20_000, 20_000).to_string();
        for part in ["RLIMIT_NOFILE is 20,000", "20,032 descriptors", "`ulimit -Hn 20032`", "-c 19968"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn fields_are_read_by_name() {
        let text = "processor\t: 0\nmodel name\t: A CPU: fast\n";
        assert_eq!(field(text, "model name"), Some("A CPU: fast"));
        assert_eq!(kibibytes("16 kB"), Some(16_384));
    }
}
