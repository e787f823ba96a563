//! Rows of a comparison: a backend with its variants, or a server that runs already.

use std::{fmt, str::FromStr};

/// A backend of the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Auto,
    IoUring,
    Epoll,
    Threads,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Auto, Self::IoUring, Self::Epoll, Self::Threads];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
            Self::Threads => "threads",
        }
    }
}

/// A backend with its variants, as `io_uring:direct:latency` spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) kind: Kind,
    pub(crate) direct: bool,
    pub(crate) multishot: bool,
    pub(crate) latency: bool,
}

impl Spec {
    pub(crate) const fn plain(kind: Kind) -> Self {
        Self { kind, direct: false, multishot: true, latency: false }
    }

    /// What the server must report as its descriptor mode.
    pub(crate) fn descriptors(self) -> &'static str {
        if self.direct { "direct" } else { "plain" }
    }
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(':');
        let name = words.next().unwrap_or_default();
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        let Some(kind) = kind else {
            return Err(format!("'{name}' is no backend; there are io_uring, epoll, threads and auto"));
        };
        let mut spec = Self::plain(kind);
        for word in words {
            if kind != Kind::IoUring {
                return Err(format!("{name} has no variants; '{word}' is one of io_uring"));
            }
            match word {
                "direct" => spec.direct = true,
                "no-multishot" => spec.multishot = false,
                "latency" => spec.latency = true,
                _ => {
                    return Err(format!(
                        "'{word}' is no variant of io_uring; there are direct, no-multishot and latency"
                    ));
                }
            }
        }
        Ok(spec)
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        let variants =
            [(self.direct, ":direct"), (!self.multishot, ":no-multishot"), (self.latency, ":latency")];
        variants.iter().filter(|(on, _)| *on).try_for_each(|(_, name)| f.write_str(name))
    }
}

/// A running server's address, as `tcp://host:port` spells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remote {
    pub(crate) authority: String,
}

impl FromStr for Remote {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let authority = text.strip_prefix("tcp://").and_then(|authority| {
            let (host, port) = authority.rsplit_once(':')?;
            (!host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)).then_some(authority)
        });
        match authority {
            Some(authority) => Ok(Self { authority: authority.into() }),
            None => Err(format!("'{text}' is no target; write it as tcp://host:port")),
        }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tcp://{}", self.authority)
    }
}

/// What is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    /// A fresh server child on this backend.
    Backend(Spec),
    /// A server that somebody else runs.
    Remote(Remote),
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Backend(spec) => spec.fmt(f),
            Self::Remote(remote) => remote.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_read_back_as_they_are_written() {
        for text in [
            "io_uring",
            "epoll",
            "threads",
            "auto",
            "io_uring:direct",
            "io_uring:direct:no-multishot:latency",
        ] {
            assert_eq!(text.parse::<Spec>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn wrong_specs_say_what_there_is() {
        assert!("uring".parse::<Spec>().unwrap_err().contains("io_uring, epoll, threads"));
        assert!("epoll:direct".parse::<Spec>().unwrap_err().contains("no variants"));
        assert!("io_uring:fast".parse::<Spec>().unwrap_err().contains("no-multishot"));
    }

    #[test]
    fn targets_need_scheme_host_and_port() {
        assert!("tcp://127.0.0.1:80".parse::<Remote>().is_ok());
        assert!("tcp://[::1]:80".parse::<Remote>().is_ok());
        for text in ["127.0.0.1:80", "tcp://:80", "tcp://host", "tcp://host:0", "tcp://host:http"] {
            assert!(text.parse::<Remote>().is_err(), "{text}");
        }
    }
}
