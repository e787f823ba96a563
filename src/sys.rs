//! Sockets and descriptors: the system calls that the backends share, each of them safe to call.

mod activation;
mod datagram;
mod listener;
mod name;
mod rights;
mod send_queue;
pub(crate) mod watched_file;

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use nix::{
    errno::Errno as NixErrno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        eventfd::{EfdFlags, EventFd},
        resource::{Resource, getrlimit},
        socket::{
            self, AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, SockaddrStorage,
            sockopt,
        },
    },
};

use crate::{address::Address, error::Errno, output::Batch, stats::Syscall};

pub use self::activation::Activation;
pub(crate) use self::{
    activation::{take_descriptor, take_passed},
    datagram::{DatagramSocket, Datagrams, Inbox, address_from, send_header},
    listener::Listener,
    name::{Name, local_address, peer_address},
    rights::{RECEIVE_FLAGS, Rights, RightsInbox},
    send_queue::unacknowledged,
};

/// A send takes at most this many pieces at once; the rest follows.
pub(crate) const SLICES_MAX: usize = 64;

/// A connection's socket: a descriptor of the process, or a place in a ring's own table.
#[derive(Debug)]
pub(crate) enum Socket {
    Fd(OwnedFd),
    Direct(u32),
}

/// A new non-blocking socket.
fn new_socket(family: AddressFamily, kind: SockType) -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    Ok(socket::socket(family, kind, flags, None)?)
}

/// Whether a descriptor that came from elsewhere is a socket of this kind.
fn expect_socket(fd: &impl AsFd, kind: SockType) -> io::Result<()> {
    let wrong = |cause: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, cause));
    match socket::getsockopt(fd, sockopt::SockType) {
        Ok(found) if found == kind => Ok(()),
        Ok(_) if kind == SockType::Stream => wrong("it is not a stream socket"),
        Ok(_) => wrong("it is not a datagram socket"),
        Err(NixErrno::ENOTSOCK) => wrong("it is not a socket"),
        Err(errno) => Err(errno.into()),
    }
}

/// Sends small writes at once, and keeps urgent data in line, so that all bytes come (C5).
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

/// A socket for a connection attempt, bound to `bind` if that is given, and the name to connect it to.
pub(crate) fn client_socket(
    address: &Address,
    bind: Option<SocketAddr>,
) -> Result<(OwnedFd, Name), ClientSocketError> {
    let name = Name::of(address).map_err(ClientSocketError::Other)?;
    let fd = new_socket(name.family(), SockType::Stream).map_err(ClientSocketError::Other)?;
    if name.family() != AddressFamily::Unix {
        for_small_messages(&fd).map_err(ClientSocketError::Other)?;
    }
    if let Some(local) = bind {
        socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(local))
            .map_err(|errno| ClientSocketError::Bind(local, errno.into()))?;
    }
    Ok((fd, name))
}

/// Begins to connect. `Ok(true)` if that was done at once.
pub(crate) fn connect(fd: BorrowedFd<'_>, name: &Name) -> Result<bool, Errno> {
    match socket::connect(fd.as_raw_fd(), name.raw()) {
        Ok(()) => Ok(true),
        Err(NixErrno::EINPROGRESS | NixErrno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a descriptor that came from elsewhere is a connection; it answers EAGAIN instead of waiting from here on.
pub(crate) fn check_connected(fd: &OwnedFd) -> io::Result<()> {
    expect_socket(fd, SockType::Stream)?;
    if peer_address(fd.as_fd()).is_none() {
        return Err(io::Error::new(io::ErrorKind::NotConnected, "it is a socket that is not connected"));
    }
    keep_urgent_data_in_line(fd.as_fd());
    Ok(set_nonblocking(fd.as_fd())?)
}

/// Has urgent data come among all other, as on sockets of our own. Sockets that know none refuse.
fn keep_urgent_data_in_line(fd: BorrowedFd<'_>) {
    let _ = socket::setsockopt(&fd, sockopt::OobInline, &true);
}

/// How long a connection attempt rests when the server's backlog is full.
pub(crate) const FULL_BACKLOG_PAUSE: Duration = Duration::from_millis(10);

/// Whether an attempt failed only because too many wait before it: a Unix socket says so at once, where TCP would ask again.
pub(crate) fn is_full_backlog(address: &Address, errno: Errno) -> bool {
    matches!(address, Address::Unix(_)) && errno.raw() == libc::EAGAIN
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
    let descriptor = batch.along().and_then(|along| along.downcast_ref::<OwnedFd>()).map(OwnedFd::as_raw_fd);
    let control = descriptor.as_slice();
    let control = [ControlMessage::ScmRights(control)];
    let control = if descriptor.is_some() { &control[..] } else { &[] };
    let bytes = socket::sendmsg::<()>(fd.as_raw_fd(), slices, control, flags, None)?;
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
    change_flags(fd, |flags| flags.difference(OFlag::O_NONBLOCK))
}

/// Makes reads and writes of a descriptor answer EAGAIN instead of waiting.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    change_flags(fd, |flags| flags.union(OFlag::O_NONBLOCK))
}

fn change_flags(fd: BorrowedFd<'_>, change: impl Fn(OFlag) -> OFlag) -> Result<(), Errno> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(change(flags)))?;
    Ok(())
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
