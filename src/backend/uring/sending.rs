//! Sends. Nearly all of them find room in the socket and are done within the enter that begins them, so
//! they are tried without waiting and heard of only if they fail: no completion is written, taken or
//! waited for, and what a wait gathers is work that has arrived.
//!
//! One that did not find enough room is told like any short send, and the connection is patient for
//! its next ones: the kernel waits for room, and one completion says that all of it went. A long batch
//! goes in several of those, so that it is known how far it has come.

use std::os::fd::AsRawFd;

use io_uring::types;

use super::{
    Io, Kind, Slot,
    entries::{Message, send_entry},
    ring::Completion,
};
use crate::{
    backend::{Event, Sent},
    error::Errno,
    id::ConnId,
    output::Batch,
    sys::Socket,
};

/// Batches that wait for room after one that found none.
const PATIENT_BATCHES: u8 = 16;
/// Spare message headers are a kilobyte each.
const MESSAGES_KEPT: usize = 256;

/// What a connection has of its send.
#[derive(Default)]
pub(super) struct Sending {
    batch: Option<Box<Batch>>,
    message: Option<Box<Message>>,
    trial: Trial,
    patient: u8,
}

/// A send that does not wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Trial {
    #[default]
    No,
    /// These bytes went, unless it is heard of.
    Begun(u32),
    /// The bytes that did go, or why none.
    Failed(Result<u32, Errno>),
}

impl Sending {
    /// Whether the kernel may still have it when its enter is over.
    pub(super) fn is_patient(&self) -> bool {
        self.batch.is_some() && self.trial == Trial::No
    }
}

impl Io {
    pub(super) fn send(&mut self, id: ConnId, batch: Box<Batch>) -> Option<Sent> {
        let gone = Errno::from_raw(libc::ENOTCONN);
        let Some(slot) = self.slots.get_mut(id.slot()).and_then(Option::as_mut) else {
            return Some(Sent { batch, bytes: 0, errno: Some(gone) });
        };
        let Slot { socket, sending, in_flight, .. } = slot;
        if batch.as_single().is_none() {
            sending.message = Some(self.messages.pop().unwrap_or_else(Message::boxed));
        }
        let (message, patient) = (sending.message.as_deref_mut(), sending.patient > 0);
        let (entry, bytes) = match socket {
            Some(Socket::Fd(fd)) => send_entry(types::Fd(fd.as_raw_fd()), &batch, message, patient),
            Some(Socket::Direct(place)) => send_entry(types::Fixed(*place), &batch, message, patient),
            None => return Some(Sent { batch, bytes: 0, errno: Some(gone) }),
        };
        let entry = entry.user_data(Kind::Send.of(id));
        *in_flight += 1;
        if patient {
            // What is left of it has to be waited for, too.
            sending.patient -= u8::from(bytes as usize == batch.len());
            sending.batch = Some(batch);
            // SAFETY: the batch and the message are boxed, stay in the slot, and are taken out or
            // changed only after the operation's one completion.
            unsafe { self.ring.push(entry) };
        } else {
            sending.batch = Some(batch);
            sending.trial = Trial::Begun(bytes);
            self.trying.push(id);
            // SAFETY: as above, or after all operations were seen to be taken (`take_tried`).
            unsafe { self.ring.push_quiet(entry) };
        }
        None
    }

    /// Makes the next wait end at once if this connection's send is one that would not be heard of.
    pub(super) fn hurry(&mut self, id: ConnId) {
        let trying = self.slot(id).is_some_and(|slot| slot.sending.trial != Trial::No);
        self.hurried |= trying;
    }

    /// After an enter: sends that were tried are over, unless entries of them are left.
    pub(super) fn take_tried(&mut self) {
        if self.trying.is_empty() & self.trying_datagrams.is_empty() {
            return;
        }
        let Self { ring, slots, failed_datagrams, .. } = self;
        let taken = ring.all_taken();
        ring.take_quiet(|completion| trial_failed(slots, failed_datagrams, completion));
        if taken {
            self.tried.extend(self.trying.drain(..));
            self.tried_datagrams.append(&mut self.trying_datagrams);
        }
    }

    /// A trial's completion that was found among the others.
    pub(super) fn trial_failed(&mut self, completion: Completion) {
        trial_failed(&mut self.slots, &mut self.failed_datagrams, completion);
    }

    /// The next send that was tried.
    #[inline(always)]
    pub(super) fn next_tried(&mut self) -> Option<Event<'static>> {
        loop {
            let id = self.tried.pop_front()?;
            let Some(slot) = self.slot(id) else { continue };
            let trial = std::mem::take(&mut slot.sending.trial);
            let outcome = match trial {
                Trial::Begun(bytes) => Ok(bytes),
                Trial::Failed(outcome) => {
                    slot.sending.patient = PATIENT_BATCHES;
                    outcome
                }
                Trial::No => continue,
            };
            slot.in_flight -= 1;
            self.close_if_reaped(id);
            if let Some(event) = self.came_back(id, outcome) {
                return Some(event);
            }
        }
    }

    /// A send's one completion. Most sends are tried, and have none.
    #[inline(never)]
    pub(super) fn sent(&mut self, id: ConnId, completion: Completion) -> Option<Event<'static>> {
        self.came_back(id, completion.outcome())
    }

    #[inline(always)]
    fn came_back(&mut self, id: ConnId, outcome: Result<u32, Errno>) -> Option<Event<'static>> {
        let slot = self.slot(id)?;
        let mut batch = slot.sending.batch.take()?;
        let (bytes, errno) = match outcome {
            Ok(bytes) => (bytes as usize, None),
            Err(errno) if matches!(errno.raw(), libc::EINTR | libc::EAGAIN) => (0, None),
            Err(errno) => (0, Some(errno)),
        };
        batch.advance(bytes);
        if let Some(message) = slot.sending.message.take()
            && self.messages.len() < MESSAGES_KEPT
        {
            self.messages.push(message);
        }
        Some(Event::Sent { id, sent: Sent { batch, bytes, errno } })
    }
}

/// Its slot has not moved on: the send counts as in flight until its trial is over.
fn trial_failed(slots: &mut [Option<Slot>], datagrams: &mut Vec<Completion>, completion: Completion) {
    if Kind::from(completion.user_data()) == Some(Kind::SendDatagram) {
        datagrams.push(completion);
    } else if let Some(Some(slot)) = slots.get_mut(completion.user_data() as u32 as usize) {
        slot.sending.trial = Trial::Failed(completion.outcome());
    }
}
