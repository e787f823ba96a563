//! Listening sockets: TCP and Unix, made here or taken over from whoever made them.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    net::SocketAddr,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU8, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno as NixErrno,
    fcntl::{AT_FDCWD, Flock, FlockArg},
    sys::{
        socket::{self, AddressFamily, Backlog, Shutdown, SockFlag, SockType, sockopt},
        stat::{FchmodatFlags, Mode, fchmod, fchmodat},
    },
};

use super::{for_small_messages, name, new_socket};
use crate::{
    address::{Address, UnixAddress},
    endpoint::Domain,
    error::Errno,
    sys::Name,
};

/// A bound and listening stream socket.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    file: Option<SocketFile>,
    /// One of the four below.
    standing: AtomicU8,
}

/// Nobody else has the socket.
const OURS: u8 = 0;
/// Others may have it. What `shutdown` does, it does to all of them, so from here on it is closed and nothing more.
const SHARED: u8 = 1;
/// It is left to the others: nobody is served here any more.
const LEFT: u8 = 2;
/// It listens no more.
const STOPPED: u8 = 3;

impl Listener {
    /// Binds and listens on TCP. Options set here are inherited by every accepted socket.
    pub(crate) fn bind_tcp(address: SocketAddr, backlog: u32, reuse_port: bool) -> io::Result<Self> {
        let name = Name::from(address);
        let socket = new_socket(name.family(), SockType::Stream)?;
        socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        if reuse_port {
            socket::setsockopt(&socket, sockopt::ReusePort, &true)?;
        }
        if address.is_ipv6() {
            socket::setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
        }
        for_small_messages(&socket)?;
        socket::bind(socket.as_raw_fd(), name.raw())?;
        Self::new(socket, None, OURS).listen(backlog)
    }

    /// Binds and listens on a Unix name. A socket file that nobody listens on is taken over.
    pub(crate) fn bind_unix(address: &UnixAddress, backlog: u32, mode: Option<u32>) -> io::Result<Self> {
        let socket = new_socket(AddressFamily::Unix, SockType::Stream)?;
        // Held until it listens: one that is bound and does not yet looks as if nobody had it any more.
        let _alone = lock_folder(address)?;
        let file = bind_unix(&socket, address, SockType::Stream, mode)?;
        Self::new(socket, file, OURS).listen(backlog)
    }

    /// Takes over a socket that listens already.
    ///
    /// # Errors
    /// If the descriptor is something else; the text says what.
    pub(crate) fn adopt(socket: OwnedFd) -> io::Result<Self> {
        Self::check(socket.as_fd(), None)?;
        super::set_nonblocking(socket.as_fd())?;
        super::keep_urgent_data_in_line(socket.as_fd());
        Ok(Self::new(socket, None, SHARED))
    }

    /// Whether a descriptor is what [`adopt`](Self::adopt) takes, and its address is of this domain.
    pub(crate) fn check(socket: BorrowedFd<'_>, domain: Option<Domain>) -> io::Result<()> {
        let wrong = |cause: String| Err(io::Error::new(ErrorKind::InvalidInput, cause));
        super::expect_socket(&socket, SockType::Stream)?;
        if !socket::getsockopt(&socket, sockopt::AcceptConn)? {
            return wrong("it is a socket that does not listen".to_owned());
        }
        let found = name::local_address(socket).and_then(|address| Domain::of(&address));
        match (domain, found) {
            (Some(wanted), Some(found)) if wanted != found => {
                wrong(format!("its domain is {}, not {}", found.name(), wanted.name()))
            }
            _ => Ok(()),
        }
    }

    fn new(socket: OwnedFd, file: Option<SocketFile>, standing: u8) -> Self {
        Self { socket, file, standing: AtomicU8::new(standing) }
    }

    fn listen(self, backlog: u32) -> io::Result<Self> {
        socket::listen(&self.socket, Backlog::new(backlog.min(i32::MAX as u32) as i32)?)?;
        Ok(self)
    }

    pub(crate) fn address(&self) -> io::Result<Address> {
        let unknown = || io::Error::other("it is neither a TCP nor a Unix socket");
        name::local_address(self.socket.as_fd()).ok_or_else(unknown)
    }

    /// Accepts one connection as a non-blocking, close-on-exec descriptor.
    pub(crate) fn accept(&self) -> Result<OwnedFd, Errno> {
        self.accept_with(SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC)
    }

    /// Accepts one connection as a descriptor whose reads wait. The listener itself does not wait.
    pub(crate) fn accept_blocking(&self) -> Result<OwnedFd, Errno> {
        self.accept_with(SockFlag::SOCK_CLOEXEC)
    }

    fn accept_with(&self, flags: SockFlag) -> Result<OwnedFd, Errno> {
        let fd = socket::accept4(self.socket.as_raw_fd(), flags)?;
        // SAFETY: accept4 has just returned this descriptor, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Another descriptor of the same socket, which may outlive this one. None if it has been stopped.
    pub(crate) fn share(&self) -> io::Result<Option<OwnedFd>> {
        match self.standing.compare_exchange(OURS, SHARED, SeqCst, SeqCst) {
            Ok(_) | Err(SHARED) => self.socket.try_clone().map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Leaves a shared socket to the others.
    pub(crate) fn leave(&self) {
        let _ = self.standing.compare_exchange(SHARED, LEFT, SeqCst, SeqCst);
    }

    /// Whether others may have the socket, and whoever is accepted here is served as by them.
    pub(crate) fn is_shared(&self) -> bool {
        self.standing.load(SeqCst) == SHARED
    }

    /// Stops accepting at once and frees the address, though the descriptor stays open; a shared socket is left to those who
    /// have it, with its file.
    pub(crate) fn stop(&self) {
        if self.standing.compare_exchange(OURS, STOPPED, SeqCst, SeqCst).is_ok() {
            let _ = socket::shutdown(self.socket.as_raw_fd(), Shutdown::Read);
            self.file.iter().for_each(SocketFile::remove);
        }
    }
}

impl Drop for Listener {
    /// One that never came to be a port leaves no file behind.
    fn drop(&mut self) {
        if *self.standing.get_mut() == OURS {
            self.file.iter().for_each(SocketFile::remove);
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The file of a Unix socket that this process has bound.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode: a file that somebody else has put there since is not ours to remove.
    identity: (u64, u64),
    /// A forked child has no part in it.
    process: u32,
}

impl SocketFile {
    fn find(path: &Path) -> io::Result<Self> {
        let file = fs::symlink_metadata(path)?;
        let identity = (file.dev(), file.ino());
        Ok(Self { path: path.into(), identity, process: std::process::id() })
    }

    /// Gives it what permissions the umask has taken.
    fn set_mode(&self, mode: u32) -> io::Result<()> {
        let mode = Mode::from_bits_truncate(mode);
        // What is a link by now is somebody else's, and is not followed.
        Ok(fchmodat(AT_FDCWD, &self.path, mode, FchmodatFlags::NoFollowSymlink)?)
    }

    pub(crate) fn remove(&self) {
        let is_ours = |file: fs::Metadata| (file.dev(), file.ino()) == self.identity;
        if self.process == std::process::id() && fs::symlink_metadata(&self.path).is_ok_and(is_ours) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// How long another process may take to bind a socket in the same folder.
const FOLDER_PATIENCE: Duration = Duration::from_secs(5);

/// Keeps others who bind Unix sockets in the same folder waiting, so that of several that find a file nobody listens on, one takes it over.
/// Where the folder cannot be opened there is nothing to lock, and none of them waits.
pub(crate) fn lock_folder(address: &UnixAddress) -> io::Result<Option<Flock<File>>> {
    let Some(path) = address.path() else { return Ok(None) };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(mut folder) = File::open(folder) else { return Ok(None) };
    let until = Instant::now() + FOLDER_PATIENCE;
    loop {
        match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(Some(locked)),
            Err((_, errno)) if errno != NixErrno::EWOULDBLOCK && errno != NixErrno::EINTR => return Ok(None),
            Err(_) if Instant::now() >= until => {
                let cause = "another process holds a lock on its folder; end that, or choose another folder";
                return Err(io::Error::new(ErrorKind::TimedOut, cause));
            }
            Err((back, _)) => folder = back,
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Gives a socket a Unix name; its file, if it has one, gets these permissions before anybody can use it.
pub(crate) fn bind_unix(
    socket: &OwnedFd,
    address: &UnixAddress,
    kind: SockType,
    mode: Option<u32>,
) -> io::Result<Option<SocketFile>> {
    let name = Name::of_unix(address)?;
    if let Some(mode) = mode {
        // The kernel gives the file those of the socket, less the process's umask.
        fchmod(socket, Mode::from_bits_truncate(mode))?;
    }
    let bind = || socket::bind(socket.as_raw_fd(), name.raw());
    if let Err(errno) = bind() {
        if errno != NixErrno::EADDRINUSE || !take_over(address, &name, kind)? {
            return Err(errno.into());
        }
        bind()?;
    }
    let Some(path) = address.path() else { return Ok(None) };
    let file = SocketFile::find(path)?;
    if let Some(mode) = mode
        && let Err(error) = file.set_mode(mode)
    {
        file.remove();
        return Err(error);
    }
    Ok(Some(file))
}

/// Removes a socket file that nobody listens on, as a process leaves it that was killed. Answers whether there was one.
fn take_over(address: &UnixAddress, name: &Name, kind: SockType) -> io::Result<bool> {
    let Some(path) = address.path() else { return Ok(false) };
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        let cause = "a file is there that is no socket; remove it, or choose another path";
        return Err(io::Error::new(ErrorKind::AlreadyExists, cause));
    }
    let probe = new_socket(name.family(), kind)?;
    let stale = socket::connect(probe.as_raw_fd(), name.raw()) == Err(NixErrno::ECONNREFUSED);
    if stale {
        fs::remove_file(path)?;
    }
    Ok(stale)
}
