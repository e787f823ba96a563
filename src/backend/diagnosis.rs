//! Why io_uring cannot be had on this machine, and what to do about it.

use std::{fmt, fs, io, path::Path};

use crate::error::Error;

/// What stands in the way of io_uring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Denial {
    cause: String,
    remedy: &'static str,
}

impl Denial {
    /// Finds the cause behind the error of `io_uring_setup` on this machine.
    pub(crate) fn find(error: &io::Error) -> Self {
        Self::find_in(error, Path::new("/proc"))
    }

    /// As [`find`](Self::find), with /proc wherever a test put it.
    fn find_in(error: &io::Error, proc: &Path) -> Self {
        let denied = matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES));
        let absent = error.raw_os_error() == Some(libc::ENOSYS);
        if (denied || absent)
            && let Some(denial) = sysctl(proc).or_else(|| seccomp(proc))
        {
            return denial;
        }
        match error.raw_os_error() {
            Some(libc::ENOSYS) => Self::new(
                "this kernel has no io_uring",
                "use Linux 6.1 or later with CONFIG_IO_URING, or the epoll backend",
            ),
            Some(libc::ENOMEM) => Self::new(
                "io_uring_setup is out of memory (ENOMEM)",
                "raise the memory limit (ulimit -l) or ask for smaller queues",
            ),
            Some(libc::EMFILE | libc::ENFILE) => {
                Self::new("no descriptor is left for a ring", "raise the limit of open files (ulimit -n)")
            }
            _ => Self::new(
                format!("setting up a ring failed: {error}"),
                "use Linux 6.1 or later, or the epoll backend",
            ),
        }
    }

    pub(crate) fn new(cause: impl Into<String>, remedy: &'static str) -> Self {
        Self { cause: cause.into(), remedy }
    }

    pub(crate) fn into_error(self) -> Error {
        Error::Backend { backend: "io_uring", cause: self.cause, remedy: self.remedy.to_owned() }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.cause, self.remedy)
    }
}

fn sysctl(proc: &Path) -> Option<Denial> {
    let value = fs::read_to_string(proc.join("sys/kernel/io_uring_disabled")).ok()?;
    match value.trim() {
        "1" => Some(Denial::new(
            "the sysctl kernel.io_uring_disabled is 1 and this process is not in the group kernel.io_uring_group",
            "run `sysctl kernel.io_uring_disabled=0` as root or join that group",
        )),
        "2" => Some(Denial::new(
            "the sysctl kernel.io_uring_disabled is 2",
            "run `sysctl kernel.io_uring_disabled=0` as root",
        )),
        _ => None,
    }
}

fn seccomp(proc: &Path) -> Option<Denial> {
    let status = fs::read_to_string(proc.join("self/status")).ok()?;
    let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:"))?.trim();
    (mode != "0").then(|| {
        Denial::new(
            "a seccomp filter denies io_uring, as container engines do by default",
            "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A /proc of our own, with the given sysctl and seccomp mode.
    fn proc_with(name: &str, sysctl: &str, seccomp: &str) -> std::path::PathBuf {
        let root = std::env::temp_dir().join(format!("ringspun-proc-{}-{name}", std::process::id()));
        fs::create_dir_all(root.join("sys/kernel")).unwrap();
        fs::create_dir_all(root.join("self")).unwrap();
        fs::write(root.join("sys/kernel/io_uring_disabled"), sysctl).unwrap();
        fs::write(root.join("self/status"), format!("Name:\tx\nSeccomp:\t{seccomp}\n")).unwrap();
        root
    }

    fn cause(name: &str, raw: i32, sysctl: &str, seccomp: &str) -> String {
        let root = proc_with(name, sysctl, seccomp);
        let denial = Denial::find_in(&io::Error::from_raw_os_error(raw), &root);
        fs::remove_dir_all(root).unwrap();
        denial.to_string()
    }

    #[test]
    fn the_sysctl_is_named_with_its_value() {
        assert!(cause("two", libc::EPERM, "2\n", "0").contains("io_uring_disabled is 2"));
        assert!(cause("one", libc::EPERM, "1\n", "0").contains("io_uring_group"));
    }

    #[test]
    fn a_seccomp_filter_is_named_when_the_sysctl_allows() {
        assert!(cause("filter", libc::EPERM, "0\n", "2").contains("seccomp"));
        assert!(cause("enosys", libc::ENOSYS, "0\n", "2").contains("seccomp"));
    }

    #[test]
    fn an_old_kernel_and_a_lack_of_memory_are_told_apart() {
        assert!(cause("old", libc::ENOSYS, "0\n", "0").contains("no io_uring"));
        assert!(cause("memory", libc::ENOMEM, "0\n", "0").contains("memory"));
        assert!(cause("other", libc::EINVAL, "0\n", "0").contains("Invalid argument"));
    }
}
