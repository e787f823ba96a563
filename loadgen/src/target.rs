//! Over what client and server talk, and where a server is to be found.

use std::{fmt, net::SocketAddr, path::Path, str::FromStr};

use clap::ValueEnum;
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockType, SockaddrLike, SockaddrStorage, UnixAddr},
};
use serde::{Deserialize, Serialize};

/// Over what client and server talk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    /// Streams of bytes by IP
    #[default]
    Tcp,
    /// Streams of bytes between processes of one machine
    Unix,
    /// Datagrams by IP, some of which may be lost
    Udp,
}

/// As results and addresses spell them.
pub(crate) const TCP: &str = "tcp";
pub(crate) const UNIX: &str = "unix";
pub(crate) const UDP: &str = "udp";

impl Transport {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => TCP,
            Self::Unix => UNIX,
            Self::Udp => UDP,
        }
    }
}

/// The name of a Unix socket: a path, or with @ in front one in the abstract namespace, which leaves no file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct UnixName(String);

impl UnixName {
    /// The file, unless the name is abstract.
    pub(crate) fn path(&self) -> Option<&Path> {
        (!self.0.starts_with('@')).then(|| Path::new(&self.0))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn address(&self) -> Result<UnixAddr, Errno> {
        match self.0.strip_prefix('@') {
            Some(name) => UnixAddr::new_abstract(name.as_bytes()),
            None => UnixAddr::new(self.0.as_str()),
        }
    }
}

impl FromStr for UnixName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = Self(text.into());
        match text {
            "" | "@" => Err("a Unix socket has a name: a path, or @name for an abstract one".into()),
            _ if text.contains('\0') => Err("the name of a Unix socket holds no NUL".into()),
            _ if name.address().is_err() => {
                Err(format!("'{text}' is too long for a Unix socket: the kernel takes 107 bytes"))
            }
            _ => Ok(name),
        }
    }
}

impl TryFrom<String> for UnixName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<UnixName> for String {
    fn from(name: UnixName) -> Self {
        name.0
    }
}

impl fmt::Display for UnixName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a server listens, with nothing left to resolve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    Tcp(SocketAddr),
    Unix(UnixName),
    Udp(SocketAddr),
}

impl Target {
    /// Of a transport that has ports.
    pub(crate) fn by_ip(transport: Transport, address: SocketAddr) -> Self {
        if transport == Transport::Udp { Self::Udp(address) } else { Self::Tcp(address) }
    }

    pub(crate) fn is_udp(&self) -> bool {
        matches!(self, Self::Udp(_))
    }

    pub(crate) fn family(&self) -> AddressFamily {
        match self {
            Self::Unix(_) => AddressFamily::Unix,
            Self::Tcp(address) | Self::Udp(address) if address.is_ipv4() => AddressFamily::Inet,
            _ => AddressFamily::Inet6,
        }
    }

    pub(crate) fn kind(&self) -> SockType {
        if self.is_udp() { SockType::Datagram } else { SockType::Stream }
    }

    /// As the kernel takes it.
    pub(crate) fn address(&self) -> Address {
        match self {
            Self::Tcp(address) | Self::Udp(address) => Address::Ip((*address).into()),
            // A name that was read is one that the kernel takes.
            Self::Unix(name) => Address::Unix(name.address().unwrap_or_else(|_| UnixAddr::new_unnamed())),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Udp(address) => write!(f, "udp://{address}"),
            Self::Unix(name) => write!(f, "unix:{name}"),
        }
    }
}

/// An address in the kernel's own form.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Address {
    Ip(SockaddrStorage),
    Unix(UnixAddr),
}

impl Address {
    pub(crate) fn raw(&self) -> &dyn SockaddrLike {
        match self {
            Self::Ip(address) => address,
            Self::Unix(address) => address,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_unix_sockets_are_what_the_kernel_takes() {
        let longest = "x".repeat(107);
        for text in ["/run/x.sock", "relative", "@abstract", &longest] {
            assert_eq!(text.parse::<UnixName>().expect(text).to_string(), text);
        }
        for (text, word) in [
            ("", "has a name"),
            ("@", "has a name"),
            (&*"x".repeat(108), "too long"),
            (&*format!("@{longest}x"), "too long"),
            ("a\0b", "no NUL"),
        ] {
            assert!(text.parse::<UnixName>().unwrap_err().contains(word), "{text}");
        }
        assert!("@abstract".parse::<UnixName>().expect("valid").path().is_none());
    }

    #[test]
    fn targets_survive_their_serialisation() {
        let address = SocketAddr::from(([127, 0, 0, 1], 80));
        for target in [Target::Tcp(address), Target::Udp(address), Target::Unix("@x".parse().expect("valid"))]
        {
            let json = serde_json::to_string(&target).expect("serialises");
            assert_eq!(serde_json::from_str::<Target>(&json).expect("reads back"), target);
        }
        assert!(serde_json::from_str::<Target>(r#"{"unix":""}"#).is_err());
    }
}
