//! The two ends of a connection.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// One end of a connection, as `get_peer` and `get_host` answer it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// An IPv4 or IPv6 address and a TCP port.
    Tcp(SocketAddr),
    /// An IPv4 or IPv6 address and a UDP port.
    Udp(SocketAddr),
    /// The name of a Unix socket.
    Unix(UnixAddress),
    /// Never asked for while the connection lived, and no longer to be had.
    Unknown,
}

/// The name of a Unix socket. A text that begins with `@` names one without a file, as `ss` and systemd write it;
/// any other is a path (so a file whose name begins with `@` is `./@name`).
///
/// ```
/// use ringspun::UnixAddress;
///
/// assert_eq!(UnixAddress::from("/run/web.sock"), UnixAddress::Path("/run/web.sock".into()));
/// assert_eq!(UnixAddress::from("@web"), UnixAddress::Abstract(b"web".to_vec()));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum UnixAddress {
    /// A socket file, of at most 107 bytes.
    Path(PathBuf),
    /// A name in the kernel's abstract namespace, of at most 107 bytes. It has no file and no mode, and is gone with its socket.
    Abstract(Vec<u8>),
    /// No name, as the socket of a client has none, nor have those of a pair.
    Unnamed,
}

impl Address {
    /// The IP address and port, if this end has one.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) | Self::Udp(address) => Some(*address),
            Self::Unix(_) | Self::Unknown => None,
        }
    }

    /// The port number, if this end has one.
    pub fn port(&self) -> Option<u16> {
        self.socket_addr().map(|address| address.port())
    }

    /// The name of the Unix socket, if this end is one.
    pub fn unix(&self) -> Option<&UnixAddress> {
        match self {
            Self::Unix(address) => Some(address),
            _ => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) | Self::Udp(address) => address.fmt(f),
            Self::Unix(address) => address.fmt(f),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl From<UnixAddress> for Address {
    fn from(address: UnixAddress) -> Self {
        Self::Unix(address)
    }
}

impl From<Option<Address>> for Address {
    fn from(address: Option<Address>) -> Self {
        address.unwrap_or(Self::Unknown)
    }
}

impl UnixAddress {
    /// The socket's file, if it has one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Abstract(_) | Self::Unnamed => None,
        }
    }
}

impl fmt::Display for UnixAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Abstract(name) => write!(f, "@{}", name.escape_ascii()),
            Self::Unnamed => f.write_str("unnamed"),
        }
    }
}

impl From<&str> for UnixAddress {
    fn from(name: &str) -> Self {
        match name.strip_prefix('@') {
            Some(name) => Self::Abstract(name.as_bytes().to_vec()),
            None => Self::Path(name.into()),
        }
    }
}

impl From<String> for UnixAddress {
    fn from(name: String) -> Self {
        name.as_str().into()
    }
}

impl From<&Path> for UnixAddress {
    fn from(path: &Path) -> Self {
        Self::Path(path.into())
    }
}

impl From<PathBuf> for UnixAddress {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}
