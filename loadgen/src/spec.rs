//! Rows of a comparison: a backend with its variants, or a server that runs already.

use std::{fmt, str::FromStr, time::Duration};

use crate::target::{Transport, UnixName};

/// A backend of the library, or an opponent of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Auto,
    IoUring,
    Epoll,
    Threads,
    RawUring,
    RawEpoll,
    RawThreads,
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::Auto,
        Self::IoUring,
        Self::Epoll,
        Self::Threads,
        Self::RawUring,
        Self::RawEpoll,
        Self::RawThreads,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
            Self::Threads => "threads",
            Self::RawUring => "raw-uring",
            Self::RawEpoll => "raw-epoll",
            Self::RawThreads => "raw-threads",
        }
    }

    /// Whether it is written by hand, without the library.
    pub(crate) fn is_raw(self) -> bool {
        matches!(self, Self::RawUring | Self::RawEpoll | Self::RawThreads)
    }

    /// The variants that it has.
    fn variants(self) -> &'static [&'static str] {
        match self {
            Self::IoUring => &["direct", "no-multishot", "latency", "spin"],
            Self::RawUring => &["direct"],
            Self::RawEpoll => &["spin"],
            _ => &[],
        }
    }
}

/// How long the variant `spin` looks before it sleeps: for as long as requests are at most so far apart it never does.
const SPIN: Duration = Duration::from_millis(1);

/// A backend with its variants, as `io_uring:direct:latency` spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) kind: Kind,
    pub(crate) direct: bool,
    pub(crate) multishot: bool,
    /// It wakes at the first completion; with `spin`, it looks for one before it sleeps.
    pub(crate) latency: bool,
    pub(crate) spin: bool,
}

impl Spec {
    pub(crate) const fn plain(kind: Kind) -> Self {
        Self { kind, direct: false, multishot: true, latency: false, spin: false }
    }

    /// How long it looks for something to do before it sleeps.
    pub(crate) fn spin_time(self) -> Duration {
        if self.spin { SPIN } else { Duration::ZERO }
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
            let names = Kind::ALL.map(Kind::name).join(", ");
            return Err(format!("'{name}' is no backend; there are {names}"));
        };
        let mut spec = Self::plain(kind);
        for word in words {
            match word {
                _ if !kind.variants().contains(&word) => return Err(no_variant(kind, word)),
                "direct" => spec.direct = true,
                "no-multishot" => spec.multishot = false,
                "spin" => spec.spin = true,
                _ => spec.latency = true,
            }
        }
        Ok(spec)
    }
}

fn no_variant(kind: Kind, word: &str) -> String {
    let name = kind.name();
    match kind.variants() {
        [] => format!("'{word}' is no variant of {name}, which has none"),
        variants => format!("'{word}' is no variant of {name}; there are {}", variants.join(", ")),
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        let variants = [
            (self.direct, ":direct"),
            (!self.multishot, ":no-multishot"),
            (self.latency, ":latency"),
            (self.spin, ":spin"),
        ];
        variants.iter().filter(|(on, _)| *on).try_for_each(|(_, name)| f.write_str(name))
    }
}

/// A running server's address, as `tcp://host:port`, `udp://host:port`, `unix:/path` or `http://host:port/path` spells
/// it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remote {
    pub(crate) transport: Transport,
    /// Host and port, or the name of a Unix socket.
    pub(crate) authority: String,
    /// What to get there, if it speaks HTTP.
    pub(crate) path: Option<String>,
}

/// How targets are written.
pub(crate) const TARGETS: &str =
    "tcp://host:port, unix:/path, unix:@name, udp://host:port or http://host:port/path";

impl FromStr for Remote {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no target; write it as {TARGETS}");
        if let Some(name) = text.strip_prefix("unix:") {
            let name: UnixName = name.strip_prefix("//").unwrap_or(name).parse()?;
            return Ok(Self { transport: Transport::Unix, authority: name.into(), path: None });
        }
        let (transport, authority, path) = match text.split_once("://").ok_or_else(wrong)? {
            ("tcp", authority) => (Transport::Tcp, authority, None),
            ("udp", authority) => (Transport::Udp, authority, None),
            ("http", rest) => {
                let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
                (Transport::Tcp, authority, Some(format!("/{path}")))
            }
            _ => return Err(wrong()),
        };
        let (host, port) = authority.rsplit_once(':').ok_or_else(wrong)?;
        if host.is_empty() || !port.parse::<u16>().is_ok_and(|port| port > 0) {
            return Err(wrong());
        }
        Ok(Self { transport, authority: authority.into(), path })
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { transport, authority, path } = self;
        match (path, transport) {
            (Some(path), _) => write!(f, "http://{authority}{path}"),
            (None, Transport::Unix) => write!(f, "unix:{authority}"),
            (None, transport) => write!(f, "{}://{authority}", transport.name()),
        }
    }
}

/// Any other program as a server, as `name=command {port}` spells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hired {
    pub(crate) name: String,
    /// A line for the shell.
    pub(crate) command: String,
}

/// Rows are aligned for names of this length.
const NAME_MAX: usize = 16;

impl FromStr for Hired {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, command) = text
            .split_once('=')
            .ok_or_else(|| format!("'{text}' is no server; write it as 'name=command {{port}}'"))?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(plain) {
            return Err(format!(
                "'{name}' is no name for a row; take at most {NAME_MAX} letters, digits, . _ -"
            ));
        }
        if name.parse::<Spec>().is_ok() {
            return Err(format!("'{name}' is a backend; give the server another name"));
        }
        if !command.contains("{port}") {
            return Err(format!("'{command}' names no {{port}}; write it where the port belongs"));
        }
        Ok(Self { name: name.into(), command: command.into() })
    }
}

impl fmt::Display for Hired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.command)
    }
}

/// What is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    /// A fresh server child on this backend.
    Backend(Spec),
    /// A fresh process of another program.
    Hired(Hired),
    /// A server that somebody else runs.
    Remote(Remote),
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Backend(spec) => spec.fmt(f),
            Self::Hired(hired) => f.write_str(&hired.name),
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
            "io_uring:spin",
            "raw-uring:direct",
            "raw-epoll",
            "raw-epoll:spin",
            "raw-threads",
        ] {
            assert_eq!(text.parse::<Spec>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn wrong_specs_say_what_there_is() {
        assert!("uring".parse::<Spec>().unwrap_err().contains("io_uring, epoll, threads, raw-uring"));
        assert!("epoll:direct".parse::<Spec>().unwrap_err().contains("has none"));
        assert!("raw-uring:latency".parse::<Spec>().unwrap_err().contains("there are direct"));
        assert!("io_uring:fast".parse::<Spec>().unwrap_err().contains("no-multishot"));
    }

    #[test]
    fn servers_need_a_name_and_a_place_for_the_port() {
        let hired: Hired = "nginx-1.2=nginx -c x=y -p {port}".parse().expect("valid");
        assert_eq!((&*hired.name, &*hired.command), ("nginx-1.2", "nginx -c x=y -p {port}"));
        for (text, word) in [
            ("nginx {port}", "name=command"),
            ("=nginx {port}", "no name"),
            ("a b=nginx {port}", "no name"),
            ("epoll=nginx {port}", "is a backend"),
            ("nginx=nginx -p 80", "names no {port}"),
        ] {
            assert!(text.parse::<Hired>().unwrap_err().contains(word), "{text}");
        }
    }

    #[test]
    fn targets_need_scheme_host_and_port() {
        assert!("tcp://127.0.0.1:80".parse::<Remote>().is_ok());
        assert!("tcp://[::1]:80".parse::<Remote>().is_ok());
        let target: Remote = "http://[::1]:80/a?b".parse().expect("valid");
        assert_eq!((&*target.authority, target.path.as_deref()), ("[::1]:80", Some("/a?b")));
        let target: Remote = "http://host:80".parse().expect("valid");
        assert_eq!(target.to_string(), "http://host:80/");
        for (text, spelled) in [
            ("unix:/run/x.sock", "unix:/run/x.sock"),
            ("unix:///run/x.sock", "unix:/run/x.sock"),
            ("unix:@x:y", "unix:@x:y"),
            ("udp://[::1]:53", "udp://[::1]:53"),
        ] {
            assert_eq!(text.parse::<Remote>().expect(text).to_string(), spelled);
        }
        for text in [
            "127.0.0.1:80",
            "tcp://:80",
            "tcp://host",
            "tcp://host:0",
            "udp://host:x",
            "unix:",
            "https://host:1/",
        ] {
            assert!(text.parse::<Remote>().is_err(), "{text}");
        }
    }
}
