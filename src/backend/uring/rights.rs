//! Receives of connections that take descriptors: one message at a time, into memory of their own, since the kernel
//! gives descriptors only to those who ask for them message by message.

use std::os::fd::AsRawFd;

use io_uring::{opcode, types};

use super::{Ending, Found, Io, Kind, ring::Completion};
use crate::{
    backend::Event,
    error::Errno,
    id::ConnId,
    sys::{RECEIVE_FLAGS, RightsInbox, Socket},
};

/// Bytes of one message.
const MESSAGE_BYTES: usize = 4096;

/// Where the kernel puts the next message of a connection. What is in it when it goes is closed: a ring may end before its
/// completions are taken.
pub(super) struct MessageInbox {
    rights: Box<RightsInbox>,
    bytes: Vec<u8>,
}

impl Io {
    pub(super) fn receive_descriptors(&mut self, id: ConnId) {
        if let Some(slot) = self.slot(id) {
            slot.receiving.messages = true;
            let inbox = MessageInbox { rights: RightsInbox::boxed(), bytes: Vec::new() };
            self.messages_in.insert(id.slot(), inbox);
        }
    }

    pub(super) fn arm_message(&mut self, id: ConnId) {
        let Some(slot) = self.slots.get(id.slot()).and_then(Option::as_ref) else { return };
        let Some(inbox) = self.messages_in.get_mut(&id.slot()) else { return };
        inbox.bytes.resize(MESSAGE_BYTES, 0);
        let header = inbox.rights.point_to(&mut inbox.bytes);
        let flags = RECEIVE_FLAGS as u32;
        let entry = match &slot.socket {
            Some(Socket::Fd(fd)) => {
                opcode::RecvMsg::new(types::Fd(fd.as_raw_fd()), header).flags(flags).build()
            }
            Some(Socket::Direct(place)) => {
                opcode::RecvMsg::new(types::Fixed(*place), header).flags(flags).build()
            }
            None => return,
        };
        // SAFETY: header and bytes lie on the heap, belong to the connection's inbox, and are touched only after the
        // operation's one completion; the inbox is removed with the slot, which outlives the operation.
        unsafe { self.push(id, Kind::ReceiveMessage, entry) };
    }

    /// A message has come, or receiving is over.
    pub(super) fn message_received(&mut self, id: ConnId, completion: Completion) -> Option<Found> {
        let slot = self.slot(id)?;
        (slot.receiving.armed, slot.receiving.cancelling) = (None, false);
        let (ending, wanted) = (slot.ending != Ending::No, slot.receiving.wanted);
        let inbox = self.messages_in.get_mut(&id.slot())?;
        // Taken also where nobody wants them any more: they are closed by that.
        let descriptors = inbox.rights.take();
        if ending {
            return None;
        }
        match completion.outcome().map_err(Errno::raw) {
            Ok(len @ 1..) => {
                let mut bytes = std::mem::take(&mut inbox.bytes);
                bytes.truncate(len as usize);
                if wanted {
                    self.rearm.push(id);
                }
                let message = Found::Message { id, bytes };
                if descriptors.is_empty() {
                    return Some(message);
                }
                self.behind = Some(message);
                Some(Found::Other(Event::Descriptors { id, descriptors }))
            }
            Ok(0) => Some(Found::Other(Event::End { id, errno: None })),
            Err(libc::ECANCELED | libc::EINTR | libc::EAGAIN) => {
                if wanted {
                    self.rearm.push(id);
                }
                None
            }
            Err(raw) => Some(Found::Other(Event::End { id, errno: Some(Errno::from_raw(raw)) })),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        os::{fd::OwnedFd, unix::net::UnixStream},
        sync::Arc,
        time::Duration,
    };

    use super::*;
    use crate::{
        backend::{
            Proactor,
            uring::{Uring, prove},
        },
        options::UringOptions,
        output::Batch,
        sys::{Waker, send_now},
    };

    fn send_one(stream: &UnixStream) -> UnixStream {
        let (other, sent) = UnixStream::pair().unwrap();
        other.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut batch = Batch::default();
        batch.push_along(b"x", Arc::new(OwnedFd::from(sent)));
        assert_eq!(send_now(std::os::fd::AsFd::as_fd(stream), &batch).unwrap().bytes, 1);
        other
    }

    #[test]
    fn a_ring_that_ends_with_received_descriptors_closes_them() {
        let options = UringOptions::default().queues(2, 4);
        let tier = prove(&options).unwrap_or_else(|denial| panic!("{}", denial.into_error()));
        let waker = Arc::new(Waker::new().unwrap());
        let mut uring = Uring::open(&options, tier, Arc::default(), waker).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let id = ConnId::new(0, 1, 0);
        uring.io.adopt(id, Socket::Fd(ours.into()));
        uring.receive_descriptors(id);
        uring.read(id, true);
        uring.wait(Duration::ZERO).unwrap();
        let mut other = send_one(&theirs);
        uring.io.ring.submit().unwrap();
        assert!(uring.io.ring.ready() > 0, "the receive is complete, and nobody has taken it");
        drop(uring);
        assert_eq!(other.read(&mut [0]).unwrap(), 0, "nobody has its other end");
    }
}
