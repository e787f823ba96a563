//! Which CPU the server and the client run on.

use std::str::FromStr;

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

use crate::error::Error;

/// What the command line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pinning {
    Auto,
    Off,
    Cpus { server: usize, client: usize },
}

/// The CPUs that were chosen, if any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cpus {
    pub(crate) server: Option<usize>,
    pub(crate) client: Option<usize>,
}

impl FromStr for Pinning {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            _ => text
                .split_once(',')
                .and_then(|(server, client)| Some((server.parse().ok()?, client.parse().ok()?)))
                .map(|(server, client)| Self::Cpus { server, client })
                .ok_or_else(|| format!("'{text}' is no pinning; write auto, off, or two CPUs such as 0,1")),
        }
    }
}

impl Pinning {
    /// Chooses the CPUs among those this process may run on.
    pub(crate) fn choose(self) -> Result<Cpus, Error> {
        let allowed = allowed_cpus()?;
        match (self, allowed.as_slice()) {
            (Self::Auto, [server, client, ..]) => Ok(Cpus { server: Some(*server), client: Some(*client) }),
            (Self::Auto | Self::Off, _) => Ok(Cpus::default()),
            (Self::Cpus { server, client }, _) => {
                for cpu in [server, client] {
                    if !allowed.contains(&cpu) {
                        return Err(no_such_cpu(cpu, &allowed));
                    }
                }
                Ok(Cpus { server: Some(server), client: Some(client) })
            }
        }
    }
}

/// Binds the calling thread, and those it starts later, to one CPU.
pub(crate) fn pin(cpu: usize) -> Result<(), Error> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .map_err(|_| no_such_cpu(cpu, &allowed_cpus().unwrap_or_default()))
}

/// The CPUs that this process may run on.
pub(crate) fn allowed_cpus() -> Result<Vec<usize>, Error> {
    let set = sched_getaffinity(Pid::from_raw(0))
        .map_err(|errno| Error::internal(format!("sched_getaffinity: {}", errno.desc())))?;
    Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect())
}

fn no_such_cpu(cpu: usize, allowed: &[usize]) -> Error {
    let list: Vec<String> = allowed.iter().map(usize::to_string).collect();
    Error::machine(format!("CPU {cpu} is not available here; choose among {}", list.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinnings_are_words_or_two_cpus() {
        assert_eq!("auto".parse(), Ok(Pinning::Auto));
        assert_eq!("off".parse(), Ok(Pinning::Off));
        assert_eq!("0,3".parse(), Ok(Pinning::Cpus { server: 0, client: 3 }));
        assert!("0".parse::<Pinning>().is_err());
    }

    #[test]
    fn a_cpu_that_is_not_there_is_refused() {
        let error = Pinning::Cpus { server: 0, client: 1_000_000 }.choose().expect_err("no such CPU");
        assert!(error.to_string().contains("is not available here; choose among"));
    }
}
