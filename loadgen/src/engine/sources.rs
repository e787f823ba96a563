//! Sockets and where they come from: more connections than one source address has ports need several.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    ops::Range,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, sockopt},
};

use crate::{error::Error, measure, target::Target};

/// Where the kernel does not tell its range of local ports.
const PORTS_USUAL: usize = 28_232;
/// Sources of connections that come and go: the ports of those that have gone are taken for a minute.
const SOURCES_OF_MANY: usize = 250;

/// How connections are spread over source addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spread {
    /// The kernel chooses.
    None,
    /// As many from each address as it has ports for.
    InBlocks,
    /// Each from the next address.
    InTurn,
}

/// Gives each connection its socket, bound where that is needed.
#[derive(Debug)]
pub(super) struct Sources {
    family: AddressFamily,
    kind: SockType,
    spread: Spread,
    /// The number of the first connection.
    first: usize,
    per_source: usize,
    /// Sockets given so far.
    pub(super) given: usize,
}

impl Sources {
    /// For connections of these numbers at once; those of `churn` are replaced all the time.
    pub(super) fn new(target: &Target, numbers: Range<usize>, churn: bool) -> Self {
        let per_source = per_source(measure::local_ports().map_or(PORTS_USUAL, |ports| ports.len()));
        Self::with(target, numbers, churn, per_source)
    }

    fn with(target: &Target, numbers: Range<usize>, churn: bool, per_source: usize) -> Self {
        let by_ipv4 = |address: &SocketAddr| address.is_ipv4() && address.ip().is_loopback();
        let loopback = match target {
            Target::Tcp(address) | Target::Udp(address) => by_ipv4(address),
            Target::Unix(_) => false,
        };
        Self {
            family: target.family(),
            kind: target.kind(),
            spread: match () {
                () if !loopback => Spread::None,
                () if churn => Spread::InTurn,
                () if numbers.end > per_source => Spread::InBlocks,
                () => Spread::None,
            },
            first: numbers.start,
            per_source,
            given: 0,
        }
    }

    /// A fresh socket.
    pub(super) fn socket(&mut self) -> Result<OwnedFd, Error> {
        let socket = self.open().map_err(|errno| self.failed(errno))?;
        self.given += 1;
        Ok(socket)
    }

    fn open(&self) -> Result<OwnedFd, Errno> {
        let socket = socket::socket(self.family, self.kind, SockFlag::SOCK_CLOEXEC, None)?;
        if self.family != AddressFamily::Unix && self.kind == SockType::Stream {
            socket::setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
        }
        if let Some(source) = self.source() {
            // The port is chosen at connect, so that one serves several destinations.
            socket::setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
            socket::bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(source, 0)))?;
        }
        Ok(socket)
    }

    /// Where the next connection comes from.
    fn source(&self) -> Option<Ipv4Addr> {
        let number = match self.spread {
            Spread::None => return None,
            Spread::InBlocks => (self.first + self.given) / self.per_source,
            Spread::InTurn => self.given % SOURCES_OF_MANY,
        };
        Some(Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + number as u32))
    }

    fn failed(&self, errno: Errno) -> Error {
        Error::machine(format!(
            "connection {}: no socket: {}; raise the limit (`ulimit -n`) or use a smaller -c",
            self.first + self.given,
            errno.desc()
        ))
    }
}

/// How many connections to give one source address: the kernel tries every other port, and goes through all of
/// them again for each connection once these are taken.
fn per_source(ports: usize) -> usize {
    (ports / 2).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PER_SOURCE: usize = 14_000;

    fn sources(target: &str, numbers: Range<usize>, churn: bool) -> Sources {
        Sources::with(&Target::Tcp(target.parse().expect("valid")), numbers, churn, PER_SOURCE)
    }

    #[test]
    fn connections_spread_over_loopback_addresses() {
        let source = |given| Sources { given, ..sources("127.0.0.1:1", 0..PER_SOURCE + 1, false) }.source();
        assert_eq!(source(0), Some(Ipv4Addr::new(127, 0, 0, 1)));
        assert_eq!(source(PER_SOURCE), Some(Ipv4Addr::new(127, 0, 0, 2)));
        assert_eq!(sources("127.0.0.1:1", 0..PER_SOURCE, false).source(), None);
        assert_eq!(sources("192.0.2.1:1", 0..PER_SOURCE + 1, true).source(), None);
    }

    #[test]
    fn shares_of_a_load_do_not_take_each_others_ports() {
        let later = sources("127.0.0.1:1", 300 * PER_SOURCE..301 * PER_SOURCE, false);
        assert_eq!(later.source(), Some(Ipv4Addr::new(127, 0, 1, 45)));
        assert_eq!((per_source(28_232), per_source(1)), (14_116, 1));
    }

    #[test]
    fn those_that_come_and_go_take_the_sources_in_turn() {
        let source = |given| Sources { given, ..sources("127.0.0.1:1", 0..1, true) }.source();
        assert_eq!(source(1), Some(Ipv4Addr::new(127, 0, 0, 2)));
        assert_eq!(source(SOURCES_OF_MANY), source(0));
    }

    #[test]
    fn a_bound_socket_has_its_source() {
        let mut sources = Sources { given: PER_SOURCE, ..sources("127.0.0.1:1", 0..PER_SOURCE + 1, false) };
        let socket = sources.socket().expect("a socket");
        let bound: SockaddrIn = socket::getsockname(socket.as_raw_fd()).expect("bound");
        assert_eq!(bound.ip(), Ipv4Addr::new(127, 0, 0, 2));
    }
}
