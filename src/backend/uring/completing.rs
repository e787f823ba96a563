//! Completions of the ring, taken and turned into events.

use super::{Ending, Found, Io, Kind, accepting::close_stray, buffers::Buffers, ring::Completion};
use crate::{backend::Event, error::Errno, id::ConnId, stats::Count};

impl Io {
    pub(super) fn next_found(&mut self, buffers: &mut Buffers) -> Option<Found> {
        loop {
            if let Some(event) = self.ready.pop_front().or_else(|| self.next_tried()) {
                return Some(Found::Other(event));
            }
            let completion = self.ring.pop()?;
            self.counters.add(Count::Events, 1);
            if completion.quiet {
                self.trial_failed(completion);
                continue;
            }
            if let Some(found) = self.complete(completion, buffers) {
                return Some(found);
            }
        }
    }

    fn complete(&mut self, completion: Completion, buffers: &mut Buffers) -> Option<Found> {
        let kind = Kind::from(completion.user_data)?;
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
            Kind::Cancel | Kind::Refuse => return None,
            _ => {}
        }
        let id = self.owner(completion.user_data);
        let Some(id) = id else {
            completion.buffer().into_iter().for_each(|buffer| buffers.recycle(buffer));
            return None;
        };
        if !completion.more()
            && let Some(slot) = self.slot(id)
        {
            slot.in_flight -= 1;
        }
        let found = match kind {
            Kind::Receive => self.received(id, completion, buffers),
            Kind::Send => self.sent(id, completion).map(Found::Other),
            Kind::Connect => self.connected(id, completion).map(Found::Other),
            Kind::Close => {
                self.slots[id.slot()] = None;
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

    fn received(&mut self, id: ConnId, completion: Completion, buffers: &mut Buffers) -> Option<Found> {
        let more = completion.more();
        let slot = self.slot(id)?;
        if !more {
            slot.receiving.armed = false;
            slot.receiving.cancelling = false;
        }
        let (ending, wanted) = (slot.ending != Ending::No, slot.receiving.wanted);
        let outcome = completion.outcome();
        if let (Ok(len @ 1..), Some(buffer), false) = (outcome, completion.buffer(), ending) {
            if !more && wanted {
                self.rearm.push(id);
            }
            return Some(Found::Data { id, buffer, len });
        }
        completion.buffer().into_iter().for_each(|buffer| buffers.recycle(buffer));
        if ending {
            return None;
        }
        match outcome.map_err(Errno::raw) {
            Ok(_) => Some(Found::Other(Event::End { id, errno: None })),
            Err(libc::ENOBUFS) => {
                self.park(id);
                None
            }
            Err(libc::ECANCELED | libc::EINTR | libc::EAGAIN) => {
                if wanted {
                    self.rearm.push(id);
                }
                None
            }
            Err(raw) => Some(Found::Other(Event::End { id, errno: Some(Errno::from_raw(raw)) })),
        }
    }

    /// No buffer was free. Arming again at once would spin; so it stands in line.
    fn park(&mut self, id: ConnId) {
        self.counters.add(Count::NoBuffers, 1);
        if let Some(slot) = self.slot(id) {
            slot.receiving.parked = true;
            self.parked.push_back(id);
        }
    }

    fn connected(&mut self, id: ConnId, completion: Completion) -> Option<Event<'static>> {
        let slot = self.slot(id)?;
        slot.address = None;
        let ending = slot.ending != Ending::No;
        (!ending).then(|| Event::Connected { id, errno: completion.outcome().err() })
    }
}
