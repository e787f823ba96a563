//! The other side of the wire: plain sockets of the standard library, and what can be asked of them.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::Duration,
};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, getsockname, listen,
    setsockopt, socket, sockopt,
};

/// No wait of a test is longer: what has not come by then does not come.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// More bytes than any kernel takes for a peer who does not read.
pub(crate) const MORE_THAN_FITS: usize = 8 << 20;

/// Nobody listens there any more. The address must be the test's own, or another test may have been given the port since.
pub(crate) fn assert_refused(address: SocketAddr) {
    assert!(address.ip() != Ipv4Addr::LOCALHOST, "others are given ports of this address");
    let refused = TcpStream::connect(address).expect_err("the port is open");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

/// How a peer saw its connection end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Fin,
    Reset,
}

/// A client made of a blocking socket.
#[derive(Debug)]
pub(crate) struct Peer(pub(crate) TcpStream);

impl Peer {
    pub(crate) fn dial(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("dial {address}: {error}"));
        Self::new(stream)
    }

    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self::patient(stream)
    }

    /// A peer over a Unix socket. Reading and writing is the same for any stream socket, whatever the standard library calls it.
    pub(crate) fn dial_unix(path: &Path) -> Self {
        let stream =
            UnixStream::connect(path).unwrap_or_else(|error| panic!("dial {}: {error}", path.display()));
        Self::patient(TcpStream::from(OwnedFd::from(stream)))
    }

    fn patient(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        Self(stream)
    }

    /// A peer that takes little before the other side has to wait: a receive buffer of `bytes`.
    pub(crate) fn dial_narrow(address: SocketAddr, bytes: usize) -> Self {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd: OwnedFd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&fd, sockopt::RcvBuf, &bytes).unwrap();
        connect(fd.as_raw_fd(), &SockaddrStorage::from(address)).unwrap();
        Self::new(TcpStream::from(fd))
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    /// Another name for the same socket, for another thread.
    pub(crate) fn share(&self) -> Self {
        Self(self.0.try_clone().unwrap())
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("the peer's write");
    }

    pub(crate) fn read_exactly(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).expect("the peer's read");
        bytes
    }

    /// What one read gives; 0 bytes are the FIN.
    pub(crate) fn read_some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }

    /// Says this and expects exactly that.
    pub(crate) fn ask(&mut self, question: &[u8], answer: &[u8]) {
        self.write(question);
        assert_eq!(self.read_exactly(answer.len()), answer);
    }

    /// Everything until the connection ends, and how it ended.
    pub(crate) fn read_to_end(&mut self) -> (Vec<u8>, End) {
        let mut bytes = Vec::new();
        let mut buffer = [0; 64 << 10];
        loop {
            match self.read_some(&mut buffer) {
                Ok(0) => return (bytes, End::Fin),
                Ok(count) => bytes.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return (bytes, End::Reset),
                Err(error) => panic!("after {} bytes the peer's read failed: {error}", bytes.len()),
            }
        }
    }

    pub(crate) fn expect_fin(&mut self) {
        assert_eq!(self.read_to_end(), (Vec::new(), End::Fin));
    }

    pub(crate) fn expect_reset(&mut self) {
        assert_eq!(self.read_to_end().1, End::Reset);
    }

    /// Sends FIN and goes on reading.
    pub(crate) fn finish_writing(&self) {
        self.0.shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// Goes away with RST.
    pub(crate) fn reset(self) {
        set_linger0(&self.0);
    }

    /// Writes until the connection breaks or `bytes` are written; how many were.
    pub(crate) fn write_until_broken(&mut self, bytes: usize) -> usize {
        let (written, stuck) = self.write_on(bytes);
        assert!(!stuck, "after {written} bytes nobody read and nobody closed");
        written
    }

    /// Writes until nothing more fits for as long as `patience`; how much that was.
    pub(crate) fn write_until_stuck(&mut self, patience: Duration) -> usize {
        self.0.set_write_timeout(Some(patience)).unwrap();
        let (written, _) = self.write_on(usize::MAX);
        self.0.set_write_timeout(Some(LIMIT)).unwrap();
        written
    }

    /// Writes until an error, and whether that was for lack of room.
    fn write_on(&mut self, bytes: usize) -> (usize, bool) {
        let chunk = [b'.'; 16 << 10];
        let mut written = 0;
        while written < bytes {
            match self.0.write(&chunk[..chunk.len().min(bytes - written)]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return (written, error.kind() == ErrorKind::WouldBlock),
            }
        }
        (written, false)
    }
}

/// An address that is taken and where nobody listens: connecting to it is refused.
#[derive(Debug)]
pub(crate) struct Bound {
    fd: OwnedFd,
    pub(crate) address: SocketAddr,
}

impl Bound {
    pub(crate) fn new() -> Self {
        let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::from(([127, 0, 0, 1], 0)))).unwrap();
        let at: SockaddrStorage = getsockname(fd.as_raw_fd()).unwrap();
        let address = SocketAddr::V4((*at.as_sockaddr_in().unwrap()).into());
        Self { fd, address }
    }

    /// Listens after all, with room for so many that wait.
    pub(crate) fn listen(self, backlog: i32) -> TcpListener {
        listen(&self.fd, Backlog::new(backlog).unwrap()).unwrap();
        TcpListener::from(self.fd)
    }
}

/// Makes the close of this socket send RST.
pub(crate) fn set_linger0(stream: &TcpStream) {
    setsockopt(stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
}

/// Bytes that differ by seed and place, so that a lost, doubled or foreign one shows.
pub(crate) fn pattern(seed: u64, count: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes: Vec<u8> = (0..count.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).collect();
    bytes.truncate(count);
    bytes
}

/// A small generator of random numbers (xorshift64*), so that a failure can be repeated.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// From 0 to below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// Compares long byte strings without printing them.
pub(crate) fn assert_same(got: &[u8], wanted: &[u8]) {
    if got != wanted {
        let at = got.iter().zip(wanted).position(|(got, wanted)| got != wanted);
        panic!("{} bytes came, {} were sent; the first difference is at {at:?}", got.len(), wanted.len());
    }
}
