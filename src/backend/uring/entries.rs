//! Submission entries that need more than one line, and what the kernel reads through them.

use std::{os::fd::IntoRawFd, ptr};

use io_uring::{opcode, squeue, types};

use super::buffers;
use crate::{
    output::Batch,
    sys::{SLICES_MAX, Socket},
};

/// The kernel cuts longer sends itself (`MAX_RW_COUNT`); what is left goes next time.
const SEND_MAX: usize = 0x7fff_f000;

/// What the kernel reads while a `sendmsg` is in flight.
pub(super) struct Message {
    header: libc::msghdr,
    slices: [libc::iovec; SLICES_MAX],
}

pub(super) fn close_entry(socket: Socket) -> squeue::Entry {
    match socket {
        Socket::Fd(fd) => opcode::Close::new(types::Fd(fd.into_raw_fd())).build(),
        Socket::Direct(place) => opcode::Close::new(types::Fixed(place)).build(),
    }
}

pub(super) fn receive_once(receive: opcode::Recv) -> squeue::Entry {
    receive.buf_group(buffers::GROUP).build().flags(squeue::Flags::BUFFER_SELECT)
}

/// One send of the whole batch: `MSG_WAITALL` makes the kernel go on after a short one.
pub(super) fn send_entry(fd: impl Target, batch: &Batch, message: Option<&mut Message>) -> squeue::Entry {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
    match (message, batch.as_single()) {
        (Some(message), None) => {
            message.point_to(batch);
            fd.sendmsg(&raw const message.header, flags as u32)
        }
        (_, bytes) => {
            let bytes = bytes.unwrap_or_default();
            fd.send(bytes.as_ptr(), bytes.len().min(SEND_MAX) as u32, flags)
        }
    }
}

impl Message {
    pub(super) fn boxed() -> Box<Self> {
        let header = libc::msghdr {
            msg_name: ptr::null_mut(),
            msg_namelen: 0,
            msg_iov: ptr::null_mut(),
            msg_iovlen: 0,
            msg_control: ptr::null_mut(),
            msg_controllen: 0,
            msg_flags: 0,
        };
        let nothing = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        Box::new(Self { header, slices: [nothing; SLICES_MAX] })
    }

    /// Points to the first pieces of a batch, in place.
    fn point_to(&mut self, batch: &Batch) {
        let count = self.slices.iter_mut().zip(batch.slices()).map(|(to, from)| {
            *to = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: from.len() };
        });
        self.header.msg_iovlen = count.count();
        self.header.msg_iov = self.slices.as_mut_ptr();
    }
}

/// The two kinds of descriptors that the operations take.
pub(super) trait Target {
    fn send(self, start: *const u8, len: u32, flags: i32) -> squeue::Entry;
    fn sendmsg(self, header: *const libc::msghdr, flags: u32) -> squeue::Entry;
}

macro_rules! target {
    ($($Type:ty),*) => {$(
        impl Target for $Type {
            fn send(self, start: *const u8, len: u32, flags: i32) -> squeue::Entry {
                opcode::Send::new(self, start, len).flags(flags).build()
            }

            fn sendmsg(self, header: *const libc::msghdr, flags: u32) -> squeue::Entry {
                opcode::SendMsg::new(self, header).flags(flags).build()
            }
        }
    )*};
}

target!(types::Fd, types::Fixed);
