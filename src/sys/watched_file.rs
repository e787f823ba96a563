//! The reactor's own name for a file that a program has it watch.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno as NixErrno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
        stat::fstat,
    },
};

use super::take_error;
use crate::error::Errno;

/// `F_DUPFD_QUERY` of <linux/fcntl.h>, since Linux 6.10: whether two descriptors name one open file.
const DUPFD_QUERY: libc::c_int = 1024 + 3;

/// A duplicate of a program's descriptor. The program may close its own at any time, and the number may come to name
/// something else: what is watched under this one stays the same file, and can always be taken off a list again.
#[derive(Debug)]
pub(crate) struct WatchedFile(OwnedFd);

impl WatchedFile {
    /// Fails with EPERM for what cannot be waited for, such as a regular file.
    pub(crate) fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let file = Self(fd.try_clone_to_owned()?);
        // epoll is the one that asks: poll(2) and io_uring call such a file ready for ever.
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&file, EpollEvent::new(EpollFlags::empty(), 0))?;
        Ok(file)
    }

    /// Whether this descriptor still names the same file.
    pub(crate) fn is_named_by(&self, fd: BorrowedFd<'_>) -> bool {
        self.query(fd).unwrap_or_else(|| self.has_inode_of(fd))
    }

    /// The error that a socket holds.
    pub(crate) fn take_error(&self) -> Option<Errno> {
        take_error(self.0.as_fd()).filter(|errno| errno.raw() != libc::ENOTSOCK)
    }

    /// None where the kernel cannot tell.
    fn query(&self, fd: BorrowedFd<'_>) -> Option<bool> {
        // SAFETY: this command takes two numbers and changes nothing, whatever they name.
        match unsafe { libc::fcntl(self.0.as_raw_fd(), DUPFD_QUERY, fd.as_raw_fd()) } {
            -1 if NixErrno::last() == NixErrno::EINVAL => None,
            same => Some(same == 1),
        }
    }

    /// The second best answer: each socket and each pipe has an inode of its own, but eventfds and their like share one.
    fn has_inode_of(&self, fd: BorrowedFd<'_>) -> bool {
        match (fstat(&self.0), fstat(fd)) {
            (Ok(ours), Ok(other)) => (ours.st_dev, ours.st_ino) == (other.st_dev, other.st_ino),
            _ => false,
        }
    }
}

impl AsFd for WatchedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::pipe, os::unix::net::UnixStream};

    use nix::sys::eventfd::EventFd;

    use super::*;

    #[test]
    fn a_file_is_known_by_any_of_its_descriptors_and_by_no_others() {
        let (mut socket, other) = UnixStream::pair().unwrap();
        let file = WatchedFile::of(socket.as_fd()).unwrap();
        let twin = socket.try_clone().unwrap();
        let (reader, _writer) = pipe().unwrap();
        for known in [socket.as_fd(), twin.as_fd()] {
            assert!(file.is_named_by(known) && file.has_inode_of(known));
        }
        for stranger in [other.as_fd(), reader.as_fd()] {
            assert!(!file.is_named_by(stranger) && !file.has_inode_of(stranger));
        }
        let before = socket.as_raw_fd();
        socket = other;
        assert!(socket.as_raw_fd() != before && !file.is_named_by(socket.as_fd()));
    }

    #[test]
    fn eventfds_are_told_apart_where_the_kernel_can() {
        let (first, second) = (EventFd::new().unwrap(), EventFd::new().unwrap());
        let file = WatchedFile::of(first.as_fd()).unwrap();
        assert!(file.is_named_by(first.as_fd()));
        assert_ne!(file.query(second.as_fd()), Some(true));
    }

    #[test]
    fn what_is_always_ready_cannot_be_watched() {
        for path in ["/proc/self/exe", "/", "/dev/null"] {
            let file = File::open(path).unwrap();
            let refused = WatchedFile::of(file.as_fd()).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EPERM), "{path}");
        }
    }
}
