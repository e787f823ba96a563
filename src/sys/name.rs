//! The names of sockets, between the kernel's form and ours.

use std::{
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use nix::sys::socket::{self, AddressFamily, SockaddrLike, SockaddrStorage, UnixAddr};

use crate::{
    address::{Address, UnixAddress},
    error::Errno,
};

/// A name in the kernel's form.
#[derive(Clone, Debug)]
pub(crate) enum Name {
    Ip(SockaddrStorage),
    Unix(UnixAddr),
}

impl Name {
    /// # Errors
    /// If a Unix name is longer than the kernel allows, holds a zero byte, or there is no name.
    pub(crate) fn of(address: &Address) -> Result<Self, Errno> {
        match address {
            Address::Tcp(address) | Address::Udp(address) => Ok((*address).into()),
            Address::Unix(address) => Self::of_unix(address),
            Address::Unknown => Err(Errno::from_raw(libc::EDESTADDRREQ)),
        }
    }

    pub(crate) fn of_unix(address: &UnixAddress) -> Result<Self, Errno> {
        Ok(Self::Unix(match address {
            // The empty path would have the kernel choose a name.
            UnixAddress::Path(path) if path.as_os_str().is_empty() => {
                return Err(Errno::from_raw(libc::ENOENT));
            }
            UnixAddress::Path(path) => UnixAddr::new(path)?,
            UnixAddress::Abstract(name) => UnixAddr::new_abstract(name)?,
            UnixAddress::Unnamed => return Err(Errno::from_raw(libc::EDESTADDRREQ)),
        }))
    }

    pub(crate) fn family(&self) -> AddressFamily {
        match self {
            Self::Ip(ip) => ip.family().unwrap_or(AddressFamily::Unspec),
            Self::Unix(_) => AddressFamily::Unix,
        }
    }

    /// For the calls that take any name.
    pub(crate) fn raw(&self) -> &dyn SockaddrLike {
        match self {
            Self::Ip(ip) => ip,
            Self::Unix(unix) => unix,
        }
    }
}

impl From<SocketAddr> for Name {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address.into())
    }
}

/// The address of a socket's peer, while it has one.
pub(crate) fn peer_address(fd: BorrowedFd<'_>) -> Option<Address> {
    address_of(&socket::getpeername(fd.as_raw_fd()).ok()?, Address::Tcp)
}

/// A socket's own address.
pub(crate) fn local_address(fd: BorrowedFd<'_>) -> Option<Address> {
    address_of(&socket::getsockname(fd.as_raw_fd()).ok()?, Address::Tcp)
}

/// What a datagram socket calls by this name.
pub(crate) fn socket_address(name: &Name) -> Option<Address> {
    match name {
        Name::Ip(ip) => address_of(ip, Address::Udp),
        Name::Unix(unix) => Some(Address::Unix(unix_address(unix))),
    }
}

/// What the kernel calls by this name; `ip` says whether an IP address has a TCP or a UDP port.
pub(crate) fn address_of(storage: &SockaddrStorage, ip: fn(SocketAddr) -> Address) -> Option<Address> {
    if let Some(v4) = storage.as_sockaddr_in() {
        return Some(ip(SocketAddr::V4((*v4).into())));
    }
    if let Some(v6) = storage.as_sockaddr_in6() {
        return Some(ip(SocketAddr::V6((*v6).into())));
    }
    Some(Address::Unix(unix_address(storage.as_unix_addr()?)))
}

fn unix_address(unix: &UnixAddr) -> UnixAddress {
    match (unix.path(), unix.as_abstract()) {
        (Some(path), _) => UnixAddress::Path(path.into()),
        (None, Some(name)) => UnixAddress::Abstract(name.into()),
        (None, None) => UnixAddress::Unnamed,
    }
}
