//! Submission entries that need more than one line, and what the kernel reads through them.

use std::{os::fd::IntoRawFd, ptr};

use io_uring::{opcode, squeue, types};

use crate::{
    output::Batch,
    sys::{Name, Rights, SLICES_MAX, Socket},
};

/// The kernel cuts longer sends itself (`MAX_RW_COUNT`); what is left goes next time.
const SEND_MAX: usize = 0x7fff_f000;
/// A send that waits for room is heard of only when all of it went, so it is no longer than this: a peer that reads slowly
/// still reads, and whoever asks what passes has to hear of it.
const PATIENT_MAX: usize = 256 << 10;

/// What the kernel reads while a `sendmsg` is in flight.
pub(super) struct Message {
    header: libc::msghdr,
    slices: [libc::iovec; SLICES_MAX],
    rights: Option<Rights>,
}

pub(super) fn close_entry(socket: Socket) -> squeue::Entry {
    match socket {
        Socket::Fd(fd) => opcode::Close::new(types::Fd(fd.into_raw_fd())).build(),
        Socket::Direct(place) => opcode::Close::new(types::Fixed(place)).build(),
    }
}

/// A receive that goes on by itself, or ends with what it has brought, of at most so many bytes.
pub(super) fn receive_entry(fd: impl Target, group: u16, once: Option<u32>) -> squeue::Entry {
    match once {
        None => fd.receive_many(group),
        Some(bytes) => fd.receive_once(group, bytes).flags(squeue::Flags::BUFFER_SELECT),
    }
}

/// The send of a datagram, to this name or to whom its socket is connected. Without the header of its
/// own that `sendmsg` wants for each (ARCHITECTURE).
pub(super) fn send_to_entry(fd: types::Fd, data: &[u8], to: Option<&Name>) -> squeue::Entry {
    let send = opcode::Send::new(fd, data.as_ptr(), data.len() as u32)
        .flags(libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT);
    match to.map(Name::raw) {
        Some(name) => send.dest_addr(name.as_ptr()).dest_addr_len(name.len()).build(),
        None => send.build(),
    }
}

/// One send of the whole batch, or of as much as one operation takes or waits for, and how much that is. `MSG_WAITALL` makes
/// the kernel go on after a short send; where it must not wait, a short send is a failure by it.
pub(super) fn send_entry(
    fd: impl Target,
    batch: &Batch,
    message: Option<&mut Message>,
    patient: bool,
) -> (squeue::Entry, u32) {
    let (wait, most) = if patient { (0, PATIENT_MAX) } else { (libc::MSG_DONTWAIT, SEND_MAX) };
    let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL | wait;
    match (message, batch.as_single()) {
        (Some(message), None) => {
            let bytes = message.point_to(batch, most) as u32;
            (fd.sendmsg(&raw const message.header, flags as u32), bytes)
        }
        (_, bytes) => {
            let bytes = bytes.unwrap_or_default();
            let length = bytes.len().min(most) as u32;
            (fd.send(bytes.as_ptr(), length, flags), length)
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
        Box::new(Self { header, slices: [nothing; SLICES_MAX], rights: None })
    }

    /// Points to the first pieces of a batch, in place, and to no more bytes than `most`; how many they have.
    fn point_to(&mut self, batch: &Batch, most: usize) -> usize {
        let (mut count, mut bytes) = (0, 0);
        for (to, from) in self.slices.iter_mut().zip(batch.slices()) {
            let len = from.len().min(most - bytes);
            *to = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: len };
            (count, bytes) = (count + 1, bytes + len);
            if bytes == most {
                break;
            }
        }
        self.header.msg_iovlen = count;
        self.header.msg_iov = self.slices.as_mut_ptr();
        (self.header.msg_control, self.header.msg_controllen) = (ptr::null_mut(), 0);
        self.rights = batch.along().and_then(Rights::of);
        if let Some(rights) = &mut self.rights {
            rights.add_to(&mut self.header);
        }
        bytes
    }
}

/// The two kinds of descriptors that the operations take.
pub(super) trait Target {
    fn send(self, start: *const u8, len: u32, flags: i32) -> squeue::Entry;
    fn sendmsg(self, header: *const libc::msghdr, flags: u32) -> squeue::Entry;
    fn receive_many(self, group: u16) -> squeue::Entry;
    fn receive_once(self, group: u16, bytes: u32) -> squeue::Entry;
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

            fn receive_many(self, group: u16) -> squeue::Entry {
                opcode::RecvMulti::new(self, group).build()
            }

            fn receive_once(self, group: u16, bytes: u32) -> squeue::Entry {
                opcode::Recv::new(self, ptr::null_mut(), bytes).buf_group(group).build()
            }
        }
    )*};
}

target!(types::Fd, types::Fixed);
