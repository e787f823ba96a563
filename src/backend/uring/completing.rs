//! Completions of the ring, taken and turned into events.

use super::{
    Ending, Found, Io, Kind,
    accepting::close_stray,
    buffers::{Buffers, Size},
    datagrams::DatagramPorts,
    receiving::buffer,
    ring::Completion,
};
use crate::{backend::Event, id::ConnId, stats::Count};

impl Io {
    pub(super) fn next_found(
        &mut self,
        buffers: &mut Buffers,
        datagrams: &mut DatagramPorts,
    ) -> Option<Found> {
        loop {
            if let Some(event) = self.ready.pop_front().or_else(|| self.next_tried()) {
                return Some(Found::Other(event));
            }
            if let Some(found) = self.behind.take() {
                return Some(found);
            }
            let completion = self.ring.pop()?;
            self.counters.add(Count::Events, 1);
            if completion.is_quiet() {
                self.trial_failed(completion);
                continue;
            }
            if let Some(found) = self.complete(completion, buffers, datagrams) {
                return Some(found);
            }
        }
    }

    fn complete(
        &mut self,
        completion: Completion,
        buffers: &mut Buffers,
        datagrams: &mut DatagramPorts,
    ) -> Option<Found> {
        let kind = Kind::from(completion.user_data())?;
        match kind {
            Kind::Accept => return self.accepted(completion).map(Found::Other),
            Kind::Wake => {
                self.waker_armed = completion.more();
                return Some(Found::Other(Event::Woken));
            }
            Kind::Install => {
                close_stray(completion);
                return None;
            }
            Kind::ReceiveDatagram => return datagrams.received(self, completion),
            Kind::Watch => return self.watch_completed(completion).map(Found::Other),
            Kind::Cancel | Kind::Refuse => return None,
            _ => {}
        }
        let id = self.owner(completion.user_data());
        let Some(id) = id else {
            let size = if kind == Kind::ReceiveLarge { Size::Large } else { Size::Small };
            buffer(completion, size).into_iter().for_each(|buffer| buffers.recycle(buffer));
            return None;
        };
        if kind == Kind::CancelOf {
            if completion.outcome().is_err_and(|errno| errno.raw() == libc::ENOENT) {
                self.cancel_again(id);
            }
            return None;
        }
        // The way of nearly every message: the receive goes on, so nothing can be over.
        if kind == Kind::Receive && completion.more() {
            return self.received(id, Size::Small, completion, buffers);
        }
        if !completion.more()
            && let Some(slot) = self.slot(id)
        {
            slot.in_flight -= 1;
        }
        let found = match kind {
            Kind::Receive => self.received(id, Size::Small, completion, buffers),
            Kind::ReceiveLarge => self.received(id, Size::Large, completion, buffers),
            Kind::ReceiveMessage => self.message_received(id, completion),
            Kind::Send => self.sent(id, completion).map(Found::Other),
            Kind::Connect => self.connected(id, completion).map(Found::Other),
            Kind::Close => {
                self.slots[id.slot()] = None;
                self.messages_in.remove(&id.slot());
                Some(Found::Other(Event::Closed { id }))
            }
            _ => None,
        };
        self.close_if_reaped(id);
        found
    }

    /// Whose completion this is, unless its slot has moved on.
    fn owner(&self, user_data: u64) -> Option<ConnId> {
        let slot = self.slots.get(user_data as u32 as usize)?.as_ref()?;
        let generation = (user_data >> 32) as u32 & crate::id::GENERATION_MASK;
        (slot.id.generation() == generation).then_some(slot.id)
    }

    fn connected(&mut self, id: ConnId, completion: Completion) -> Option<Event<'static>> {
        let slot = self.slot(id)?;
        slot.name = None;
        let ending = slot.ending != Ending::No;
        (!ending).then(|| Event::Connected { id, errno: completion.outcome().err() })
    }
}
