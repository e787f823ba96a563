//! Sockets and descriptors: the system calls that the backends share, each of them safe to call.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    sync::{Mutex, PoisonError},
};

use nix::{
    errno::Errno as NixErrno,
    sys::{
        eventfd::{EfdFlags, EventFd},
        resource::{Resource, getrlimit},
        socket::{
            self, AddressFamily, Backlog, MsgFlags, Shutdown, SockFlag, SockType, SockaddrStorage, sockopt,
        },
    },
};

use crate::{error::Errno, output::Batch, stats::Syscall};

/// A send takes at most this many pieces at once; the rest follows.
pub(crate) const SLICES_MAX: usize = 64;

/// A connection's socket: a descriptor of the process, or a place in a ring's own table.
#[derive(Debug)]
pub(crate) enum Socket {
    Fd(OwnedFd),
    Direct(u32),
}

/// A bound and listening TCP socket.
#[derive(Debug)]
pub(crate) struct Listener(OwnedFd);

impl Listener {
    /// Binds and listens. Options set here are inherited by every accepted socket.
    pub(crate) fn bind(address: SocketAddr, backlog: u32, reuse_port: bool) -> io::Result<Self> {
        let fd = tcp_socket(address)?;
        socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        if reuse_port {
            socket::setsockopt(&fd, sockopt::ReusePort, &true)?;
        }
        if address.is_ipv6() {
            socket::setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
        }
        for_small_messages(&fd)?;
        socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
        socket::listen(&fd, Backlog::new(backlog.min(i32::MAX as u32) as i32)?)?;
        Ok(Self(fd))
    }

    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        local_address(self.0.as_fd()).ok_or_else(|| io::Error::other("getsockname gave no IP address"))
    }

    /// Accepts one connection as a non-blocking, close-on-exec descriptor.
    pub(crate) fn accept(&self) -> Result<OwnedFd, Errno> {
        let fd = socket::accept4(self.0.as_raw_fd(), SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: accept4 has just returned this descriptor, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Accepts one connection as a descriptor whose reads wait. The listener itself does not wait.
    pub(crate) fn accept_blocking(&self) -> Result<OwnedFd, Errno> {
        let fd = socket::accept4(self.0.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: accept4 has just returned this descriptor, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Stops accepting at once and frees the address, though the descriptor stays open.
    pub(crate) fn stop(&self) {
        let _ = socket::shutdown(self.0.as_raw_fd(), Shutdown::Read);
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A new non-blocking TCP socket of the address's family.
fn tcp_socket(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    Ok(socket::socket(family, SockType::Stream, flags, None)?)
}

/// Sends small writes at once, and keeps urgent data in line, so that a short read is the last one.
fn for_small_messages(fd: &OwnedFd) -> Result<(), Errno> {
    socket::setsockopt(fd, sockopt::TcpNoDelay, &true)?;
    Ok(socket::setsockopt(fd, sockopt::OobInline, &true)?)
}

/// Why a socket for a connection attempt could not be had.
#[derive(Debug)]
pub(crate) enum ClientSocketError {
    Bind(SocketAddr, Errno),
    Other(Errno),
}

/// A socket for a connection attempt, bound to `bind` if that is given.
pub(crate) fn client_socket(
    address: SocketAddr,
    bind: Option<SocketAddr>,
) -> Result<OwnedFd, ClientSocketError> {
    let fd = tcp_socket(address).map_err(ClientSocketError::Other)?;
    for_small_messages(&fd).map_err(ClientSocketError::Other)?;
    if let Some(local) = bind {
        socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(local))
            .map_err(|errno| ClientSocketError::Bind(local, errno.into()))?;
    }
    Ok(fd)
}

/// Begins to connect. `Ok(true)` if that was done at once.
pub(crate) fn connect(fd: BorrowedFd<'_>, address: SocketAddr) -> Result<bool, Errno> {
    match socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) => Ok(true),
        Err(NixErrno::EINPROGRESS | NixErrno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// The error that a socket holds, which is how an attempt to connect ends.
pub(crate) fn take_error(fd: BorrowedFd<'_>) -> Option<Errno> {
    match socket::getsockopt(&fd, sockopt::SocketError) {
        Ok(0) => None,
        Ok(raw) => Some(Errno::from_raw(raw)),
        Err(errno) => Some(errno.into()),
    }
}

/// Receives into `buffer`; 0 is the peer's FIN.
pub(crate) fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    Ok(socket::recv(fd.as_raw_fd(), buffer, MsgFlags::empty())?)
}

/// What one send came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SentNow {
    /// Bytes that the kernel took.
    pub(crate) bytes: usize,
    /// Whether it took less than it was given: the socket is full.
    pub(crate) short: bool,
}

/// Sends as much of a batch as goes without waiting, in one call.
pub(crate) fn send_now(fd: BorrowedFd<'_>, batch: &Batch) -> Result<SentNow, Errno> {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    if let Some(bytes) = batch.as_single() {
        let sent = socket::send(fd.as_raw_fd(), bytes, flags)?;
        return Ok(SentNow { bytes: sent, short: sent < bytes.len() });
    }
    let mut slices = [IoSlice::new(&[]); SLICES_MAX];
    let count = slices.iter_mut().zip(batch.slices()).map(|(to, from)| *to = IoSlice::new(from)).count();
    let slices = &slices[..count];
    let bytes = socket::sendmsg::<()>(fd.as_raw_fd(), slices, &[], flags, None)?;
    let short = bytes < slices.iter().map(|slice| slice.len()).sum();
    Ok(SentNow { bytes, short })
}

/// Sends FIN.
pub(crate) fn shutdown_write(fd: BorrowedFd<'_>) {
    let _ = socket::shutdown(fd.as_raw_fd(), Shutdown::Write);
}

/// Ends a receive that waits; the peer is sent nothing.
pub(crate) fn shutdown_read(fd: BorrowedFd<'_>) {
    let _ = socket::shutdown(fd.as_raw_fd(), Shutdown::Read);
}

/// Makes the close that follows send RST and drop what is unsent.
pub(crate) fn reset_on_close(fd: BorrowedFd<'_>) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let _ = socket::setsockopt(&fd, sockopt::Linger, &linger);
}

/// Whether [`reset_on_close`] is in force.
pub(crate) fn resets_on_close(fd: BorrowedFd<'_>) -> bool {
    socket::getsockopt(&fd, sockopt::Linger).is_ok_and(|linger| linger.l_onoff != 0 && linger.l_linger == 0)
}

/// Makes reads and writes of a descriptor wait.
pub(crate) fn set_blocking(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags.difference(OFlag::O_NONBLOCK)))?;
    Ok(())
}

/// The address of a socket's peer, while it has one.
pub(crate) fn peer_address(fd: BorrowedFd<'_>) -> Option<SocketAddr> {
    ip_address(&socket::getpeername::<SockaddrStorage>(fd.as_raw_fd()).ok()?)
}

/// A socket's own address.
pub(crate) fn local_address(fd: BorrowedFd<'_>) -> Option<SocketAddr> {
    ip_address(&socket::getsockname::<SockaddrStorage>(fd.as_raw_fd()).ok()?)
}

fn ip_address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| storage.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}

/// Reads `TCP_NODELAY`, after setting it if `set` says so.
pub(crate) fn no_delay(fd: BorrowedFd<'_>, set: Option<bool>) -> io::Result<bool> {
    if let Some(on) = set {
        socket::setsockopt(&fd, sockopt::TcpNoDelay, &on)?;
    }
    Ok(socket::getsockopt(&fd, sockopt::TcpNoDelay)?)
}

/// Reads `SO_KEEPALIVE`, after setting it if `set` says so.
pub(crate) fn keep_alive(fd: BorrowedFd<'_>, set: Option<bool>) -> io::Result<bool> {
    if let Some(on) = set {
        socket::setsockopt(&fd, sockopt::KeepAlive, &on)?;
    }
    Ok(socket::getsockopt(&fd, sockopt::KeepAlive)?)
}

/// How many descriptors this process may have.
pub(crate) fn descriptor_limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}

/// How many memory mappings this process may have.
pub(crate) fn mappings_limit() -> usize {
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count");
    limit.ok().and_then(|limit| limit.trim().parse().ok()).unwrap_or(65_530)
}

/// The kernel's release, such as `6.18.44`.
pub(crate) fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "of unknown release".to_owned(), |release| release.trim().to_owned())
}

/// Wakes a loop from another thread or from a signal handler.
#[derive(Debug)]
pub(crate) struct Waker(EventFd);

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Self(EventFd::from_value_and_flags(0, flags)?))
    }

    /// Makes the descriptor readable. A full counter means that it is readable already.
    pub(crate) fn wake(&self) {
        let _ = self.0.write(1);
    }

    /// Makes it unreadable again.
    pub(crate) fn clear(&self) {
        let _ = self.0.read();
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A descriptor held back for the moment when there are no others: given up for an instant, it
/// lets a waiting peer be accepted and closed, instead of waiting without an answer.
#[derive(Debug, Default)]
pub(crate) struct Reserve(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    descriptor: Option<EventFd>,
    /// Peers that were closed to have the descriptor again.
    closed: usize,
}

impl Reserve {
    pub(crate) fn new() -> Self {
        let reserve = Self::default();
        reserve.held().refill();
        reserve
    }

    /// Accepts and closes the peers that wait, up to `max`; answers how many.
    pub(crate) fn shed(&self, listener: &Listener, max: usize, count: &mut dyn FnMut(Syscall)) -> usize {
        let mut held = self.held();
        held.descriptor = None;
        let mut shed_one = || {
            count(Syscall::Accept);
            let shed = listener.accept().map(drop).is_ok();
            if shed {
                count(Syscall::Close);
            }
            shed
        };
        let shed = (0..max).take_while(|_| shed_one()).count();
        held.refill();
        shed + std::mem::take(&mut held.closed)
    }

    /// Lets a socket pass that has just been accepted, unless another thread has taken the
    /// descriptor while it was given up: then the socket is closed to have it again, as if there had
    /// been none for it.
    pub(crate) fn check(&self, socket: OwnedFd) -> Result<OwnedFd, Errno> {
        let mut held = self.held();
        if held.descriptor.is_some() || held.refill() {
            return Ok(socket);
        }
        drop(socket);
        held.refill();
        held.closed += 1;
        Err(Errno::from_raw(libc::EMFILE))
    }

    /// Gives the descriptor up for as long as `act` needs one.
    pub(crate) fn without<R>(&self, act: impl FnOnce() -> R) -> R {
        let mut held = self.held();
        held.descriptor = None;
        let done = act();
        held.refill();
        done
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn refill(&mut self) -> bool {
        self.descriptor = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).ok();
        self.descriptor.is_some()
    }
}
