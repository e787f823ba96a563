//! Descriptors that travel along with bytes over a Unix socket (`SCM_RIGHTS`, see unix(7)).

use std::{
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
    sync::Once,
};

use nix::errno::Errno as NixErrno;

use crate::{error::Errno, output::Along};

/// As many as one message can carry (`SCM_MAX_FD`).
const DESCRIPTORS_MAX: usize = 253;
/// What they and their header take, in words, so that it is aligned.
const CONTROL_WORDS: usize = (size_of::<libc::cmsghdr>() + DESCRIPTORS_MAX * size_of::<i32>()).div_ceil(8);
const HEADER_WORDS: usize = size_of::<libc::cmsghdr>().div_ceil(8);
/// A message with a descriptor of the process that sent it; see <linux/socket.h>.
const SCM_PIDFD: libc::c_int = 4;
/// Flags of a receive: what a program starts does not inherit them.
pub(crate) const RECEIVE_FLAGS: libc::c_int = libc::MSG_CMSG_CLOEXEC;

/// One descriptor on its way out, as the kernel reads it.
#[repr(C)]
pub(crate) struct Rights {
    header: libc::cmsghdr,
    descriptor: i32,
}

impl Rights {
    /// What goes along with a byte, if that is a descriptor.
    pub(crate) fn of(along: &Along) -> Option<Self> {
        let descriptor = along.downcast_ref::<OwnedFd>()?.as_raw_fd();
        let header = libc::cmsghdr {
            cmsg_len: size_of::<libc::cmsghdr>() + size_of::<i32>(),
            cmsg_level: libc::SOL_SOCKET,
            cmsg_type: libc::SCM_RIGHTS,
        };
        Some(Self { header, descriptor })
    }

    /// Has a message carry it.
    pub(crate) fn add_to(&mut self, header: &mut libc::msghdr) {
        header.msg_control = ptr::from_mut(self).cast();
        header.msg_controllen = size_of::<Self>();
    }
}

/// Where a message with descriptors is received.
pub(crate) struct RightsInbox {
    header: libc::msghdr,
    slice: libc::iovec,
    control: [u64; CONTROL_WORDS],
}

impl RightsInbox {
    pub(crate) fn boxed() -> Box<Self> {
        // SAFETY: all zeroes are a value of each of its types.
        unsafe { Box::new(std::mem::zeroed()) }
    }

    /// A header by which the kernel writes into `buffer` and this. It is good as long as both stay where they are.
    pub(crate) fn point_to(&mut self, buffer: &mut [u8]) -> *mut libc::msghdr {
        self.slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        self.header.msg_iov = &raw mut self.slice;
        self.header.msg_iovlen = 1;
        // The kernel writes nothing where a receive fails: then no descriptors of an earlier one may be found here.
        self.control[..HEADER_WORDS].fill(0);
        self.header.msg_control = self.control.as_mut_ptr().cast();
        self.header.msg_controllen = size_of_val(&self.control);
        self.header.msg_flags = 0;
        &raw mut self.header
    }

    /// Receives into `buffer`; 0 is the peer's end.
    pub(crate) fn receive(&mut self, fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
        let header = self.point_to(buffer);
        // SAFETY: what the header points to lives until the call returns, and nothing else uses it meanwhile.
        let received = unsafe { libc::recvmsg(fd.as_raw_fd(), header, RECEIVE_FLAGS) };
        Ok(NixErrno::result(received)? as usize)
    }

    /// Receives into `buffer`, and closes what descriptors come along; 0 is the peer's end.
    pub(crate) fn receive_bytes(&mut self, fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
        let header = self.point_to(buffer);
        (self.header.msg_control, self.header.msg_controllen) = (ptr::null_mut(), 0);
        // SAFETY: what the header points to lives until the call returns, and nothing else uses it meanwhile.
        let received = unsafe { libc::recvmsg(fd.as_raw_fd(), header, 0) };
        Ok(NixErrno::result(received)? as usize)
    }

    /// Whether the last receive was cut short by a descriptor, behind which there may be more. Asked before [`take`](Self::take).
    pub(crate) fn ended_at_descriptor(&self) -> bool {
        self.header.msg_controllen > 0 || self.header.msg_flags & libc::MSG_CTRUNC != 0
    }

    /// The descriptors that came with the last message, once.
    ///
    /// One of the sender itself (`SCM_PIDFD`), which only the socket's former owner can have asked for, is closed.
    pub(crate) fn take(&mut self) -> Vec<OwnedFd> {
        let mut taken = Vec::new();
        let header = &raw const self.header;
        // SAFETY: the header says how much of the control buffer the kernel has filled, or, where it has filled nothing, all of it,
        // which begins with an empty message then; after this it says nothing.
        let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
        while !message.is_null() {
            // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give headers that lie in the filled part as a whole.
            let (level, kind, len) =
                unsafe { ((*message).cmsg_level, (*message).cmsg_type, (*message).cmsg_len) };
            if level == libc::SOL_SOCKET && matches!(kind, libc::SCM_RIGHTS | SCM_PIDFD) {
                let count = len.saturating_sub(size_of::<libc::cmsghdr>()) / size_of::<i32>();
                // SAFETY: the data of this message are so many numbers.
                let numbers = (0..count)
                    .map(|at| unsafe { libc::CMSG_DATA(message).cast::<i32>().add(at).read_unaligned() });
                // A negative one says why there is none.
                // SAFETY: the kernel has just put these among this process's descriptors, and nobody else knows them.
                let owned = numbers.filter(|raw| *raw >= 0).map(|raw| unsafe { OwnedFd::from_raw_fd(raw) });
                match kind {
                    libc::SCM_RIGHTS => taken.extend(owned),
                    _ => owned.for_each(drop),
                }
            }
            // SAFETY: as for CMSG_FIRSTHDR.
            message = unsafe { libc::CMSG_NXTHDR(header, message) };
        }
        if self.header.msg_flags & libc::MSG_CTRUNC != 0 {
            // Any peer can bring this about with each message.
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                log::error!(
                    "descriptors that came over a Unix socket were lost; raise `ulimit -n` (this is said once)"
                );
            });
        }
        (self.header.msg_controllen, self.header.msg_flags) = (0, 0);
        taken
    }
}

impl Drop for RightsInbox {
    /// Descriptors that have come and that nobody took would stay open for ever.
    fn drop(&mut self) {
        drop(self.take());
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{Read, Write},
        os::{fd::AsFd, unix::net::UnixStream},
        time::Duration,
    };

    use super::*;

    /// Sends a descriptor with a byte; the other end of what it belongs to.
    fn send_one(stream: &UnixStream) -> UnixStream {
        let (other, sent) = UnixStream::pair().unwrap();
        other.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let along: Along = std::sync::Arc::new(OwnedFd::from(sent));
        let mut batch = crate::output::Batch::default();
        batch.push_along(b"x", along);
        assert_eq!(crate::sys::send_now(stream.as_fd(), &batch).unwrap().bytes, 1);
        other
    }

    #[test]
    fn what_nobody_takes_is_closed() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut other = send_one(&theirs);
        let mut inbox = RightsInbox::boxed();
        assert_eq!(inbox.receive(ours.as_fd(), &mut [0; 8]), Ok(1));
        drop(inbox);
        assert_eq!(other.read(&mut [0]).unwrap(), 0, "nobody has its other end");
    }

    #[test]
    fn a_descriptor_of_the_sender_is_closed() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let on = 1_i32;
        // SAFETY: the value is so long, and lives until the call returns.
        let set = unsafe {
            libc::setsockopt(
                ours.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PASSPIDFD,
                (&raw const on).cast(),
                size_of::<i32>() as u32,
            )
        };
        if set < 0 {
            return println!("this kernel tells no sender: {}", std::io::Error::last_os_error());
        }
        // Nothing else in this process has one.
        let of_processes = || {
            let open = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| entry.ok());
            let links = open.filter_map(|entry| fs::read_link(entry.path()).ok());
            links.filter(|link| link.to_string_lossy().contains("pidfd")).count()
        };
        theirs.write_all(b"x").unwrap();
        let mut inbox = RightsInbox::boxed();
        assert_eq!(inbox.receive(ours.as_fd(), &mut [0; 8]), Ok(1));
        assert_eq!(of_processes(), 1);
        assert!(inbox.take().is_empty());
        assert_eq!(of_processes(), 0);
        // They come in one message, too.
        let mut other = send_one(&theirs);
        assert_eq!(inbox.receive(ours.as_fd(), &mut [0; 8]), Ok(1));
        let taken = inbox.take();
        assert_eq!((taken.len(), of_processes()), (1, 0));
        drop(taken);
        assert_eq!(other.read(&mut [0]).unwrap(), 0);
    }
}
