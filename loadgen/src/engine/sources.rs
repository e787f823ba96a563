//! Sockets and where they come from: more connections than one source address has ports need several.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{self, AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, sockopt},
};

use crate::error::Error;

/// Below the 28,232 ports that a source address has by default.
const PER_SOURCE: usize = 24_000;

/// Gives each connection its socket, bound where that is needed.
#[derive(Debug)]
pub(crate) struct Sources {
    family: AddressFamily,
    spread: bool,
}

impl Sources {
    pub(crate) fn new(target: SocketAddr, connections: usize) -> Self {
        let loopback = matches!(target.ip(), IpAddr::V4(address) if address.is_loopback());
        Self {
            family: if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 },
            spread: loopback && connections > PER_SOURCE,
        }
    }

    /// A fresh socket for this connection.
    pub(crate) fn socket(&self, connection: usize) -> Result<OwnedFd, Error> {
        let socket = socket::socket(self.family, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp)
            .map_err(|errno| self.failed(connection, errno))?;
        socket::setsockopt(&socket, sockopt::TcpNoDelay, &true)
            .map_err(|errno| self.failed(connection, errno))?;
        if self.spread {
            self.bind(&socket, connection).map_err(|errno| self.failed(connection, errno))?;
        }
        Ok(socket)
    }

    fn bind(&self, socket: &OwnedFd, connection: usize) -> Result<(), Errno> {
        // The port is chosen at connect, so that one serves several destinations.
        socket::setsockopt(socket, sockopt::IpBindAddressNoPort, &true)?;
        let address = SocketAddrV4::new(source(connection), 0);
        socket::bind(socket.as_raw_fd(), &SockaddrIn::from(address))
    }

    fn failed(&self, connection: usize, errno: Errno) -> Error {
        Error::machine(format!(
            "connection {connection}: no socket: {}; raise the limit (`ulimit -n`) or use a smaller -c",
            errno.desc()
        ))
    }
}

fn source(connection: usize) -> Ipv4Addr {
    let first = u32::from(Ipv4Addr::LOCALHOST);
    Ipv4Addr::from(first + (connection / PER_SOURCE) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_spread_over_loopback_addresses() {
        assert_eq!(source(0), Ipv4Addr::new(127, 0, 0, 1));
        assert_eq!(source(PER_SOURCE), Ipv4Addr::new(127, 0, 0, 2));
        assert!(!Sources::new("127.0.0.1:1".parse().expect("valid"), PER_SOURCE).spread);
        assert!(Sources::new("127.0.0.1:1".parse().expect("valid"), PER_SOURCE + 1).spread);
        assert!(!Sources::new("192.0.2.1:1".parse().expect("valid"), PER_SOURCE + 1).spread);
    }

    #[test]
    fn a_bound_socket_has_its_source() {
        let sources = Sources { family: AddressFamily::Inet, spread: true };
        let socket = sources.socket(PER_SOURCE).expect("a socket");
        let bound: SockaddrIn = socket::getsockname(socket.as_raw_fd()).expect("bound");
        assert_eq!(bound.ip(), Ipv4Addr::new(127, 0, 0, 2));
    }
}
