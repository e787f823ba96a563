//! What the kernel has taken of a connection's output and the peer's has not.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::{errno::Errno as NixErrno, libc};

use super::local_address;
use crate::address::Address;

/// Bytes that went into this socket and that the peer's kernel has not acknowledged (`SIOCOUTQ`, tcp(7)); a FIN counts as one. What goes into a
/// Unix socket is the peer's at once, and stays his after the close.
pub(crate) fn unacknowledged(fd: BorrowedFd<'_>) -> usize {
    if matches!(local_address(fd), None | Some(Address::Unix(_))) {
        return 0;
    }
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int, which lives until the call returns.
    let asked = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    NixErrno::result(asked).map_or(0, |_| bytes.max(0) as usize)
}
