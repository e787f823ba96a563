//! Completions of the ring, taken and turned into events.

use super::{
    CANCEL, Ending, Found, Io, Kind,
    accepting::{Accepting, close_stray},
    buffers::{Buffers, Size},
    datagrams::DatagramPorts,
    receiving::buffer,
    ring::Completion,
    watching::Watching,
};
use crate::{
    backend::Event,
    id::{ConnId, PortKey, WatchKey},
    stats::Count,
};

impl Io {
    /// The next event that needs no completion, or none any more.
    #[inline(always)] // What a call returns is copied right after it was stored (ARCHITECTURE, "loads that span").
    pub(super) fn next_ready(&mut self) -> Option<Event<'static>> {
        if let Some(event) = self.ready.pop_front() {
            return Some(event);
        }
        self.next_tried()
    }

    /// What the next completion tells, or one after it.
    pub(super) fn next_completed(
        &mut self,
        buffers: &mut Buffers,
        datagrams: &mut DatagramPorts,
    ) -> Option<Found> {
        if let Some(found) = self.behind.take() {
            return Some(found);
        }
        loop {
            let completion = self.ring.pop()?;
            self.counters.add(Count::Events, 1);
            if completion.is_quiet() {
                self.trial_failed(completion);
            } else if let Some(found) = self.complete(completion, buffers, datagrams) {
                return Some(found);
            }
            if let Some(event) = self.next_ready() {
                return Some(Found::Other(event));
            }
        }
    }

    fn complete(
        &mut self,
        completion: Completion,
        buffers: &mut Buffers,
        datagrams: &mut DatagramPorts,
    ) -> Option<Found> {
        let Some(kind) = Kind::from(completion.user_data()) else {
            self.cancelled(completion, datagrams);
            return None;
        };
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
            Kind::Refuse => return None,
            _ => {}
        }
        let id = self.owner(completion.user_data());
        let Some(id) = id else {
            let size = if kind == Kind::ReceiveLarge { Size::Large } else { Size::Small };
            buffer(completion, size).into_iter().for_each(|buffer| buffers.recycle(buffer));
            return None;
        };
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

    /// A cancel is over. If it has found nothing, the operation had ended, or was just on its way from one of the kernel's lists to another, as a
    /// send is that the kernel tries again: then it would go on for as long as the peer likes.
    fn cancelled(&mut self, completion: Completion, datagrams: &DatagramPorts) {
        let target = completion.user_data() & !CANCEL;
        let missed = completion.outcome().is_err_and(|errno| errno.raw() == libc::ENOENT);
        if missed && self.is_to_end(target, datagrams) {
            self.cancel(target);
        }
    }

    /// Whether the operation of this user data is in flight and has been cancelled.
    fn is_to_end(&self, target: u64, datagrams: &DatagramPorts) -> bool {
        let key = target as u32;
        match Kind::from(target) {
            Some(Kind::Accept) => self.ports.get(&PortKey(key)).is_some_and(Accepting::is_to_end),
            Some(Kind::ReceiveDatagram) => datagrams.is_to_end(PortKey(key)),
            Some(Kind::Watch) => self.watched.get(&WatchKey(key)).is_some_and(Watching::is_to_end),
            Some(kind) => {
                let slot = self.owner(target).and_then(|id| self.slots[id.slot()].as_ref());
                slot.is_some_and(|slot| slot.is_to_end(kind))
            }
            None => false,
        }
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

#[cfg(test)]
mod tests {
    use std::{
        os::unix::net::UnixStream,
        sync::Arc,
        time::{Duration, Instant},
    };

    use super::*;
    use crate::{
        backend::{
            Proactor,
            uring::{Uring, prove},
        },
        options::UringOptions,
        output::Batch,
        sys::{Socket, Waker},
    };

    const LIMIT: Duration = Duration::from_secs(20);

    fn open() -> Uring {
        let options = UringOptions::default();
        let tier = prove(&options).unwrap_or_else(|denial| panic!("{}", denial.into_error()));
        Uring::open(&options, tier, Arc::default(), Arc::new(Waker::new().unwrap())).unwrap()
    }

    /// A connection whose send waits for a peer who does not read.
    fn stuck(uring: &mut Uring, id: ConnId) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        uring.io.adopt(id, Socket::Fd(ours.into()));
        loop {
            let mut batch = Box::<Batch>::default();
            batch.push(&[0; 1 << 20]);
            assert!(uring.send(id, batch).is_none());
            uring.wait(Duration::ZERO).unwrap();
            while uring.next().is_some() {}
            if uring.io.slot(id).unwrap().sending.is_patient() {
                return theirs;
            }
        }
    }

    fn wait_for_close(uring: &mut Uring) {
        let begun = Instant::now();
        while begun.elapsed() < LIMIT {
            uring.wait(Duration::from_millis(10)).unwrap();
            while let Some((event, _)) = uring.next() {
                if matches!(event, Event::Closed { .. }) {
                    return;
                }
            }
        }
        panic!("the send goes on");
    }

    #[test]
    fn a_cancel_that_has_missed_is_made_again() {
        let (mut uring, id) = (open(), ConnId::new(0, 1, 0));
        let _peer = stuck(&mut uring, id);
        // The first cancel was on its way when the send was.
        uring.io.slot(id).unwrap().ending = Ending::Reaping;
        let missed = Completion::of(CANCEL | Kind::Send.of(id), -libc::ENOENT);
        uring.io.cancelled(missed, &uring.datagrams);
        wait_for_close(&mut uring);
    }

    #[test]
    fn nothing_is_cancelled_that_is_not_to_end() {
        let (mut uring, id) = (open(), ConnId::new(0, 1, 0));
        let _peer = stuck(&mut uring, id);
        let earlier = ConnId::new(0, 0, 0);
        let begun = uring.io.ring.in_flight();
        for (ending, cancelled, result) in [
            (Ending::No, id, -libc::ENOENT),
            (Ending::Reaping, earlier, -libc::ENOENT),
            (Ending::Reaping, id, 0),
            (Ending::Reaping, id, -libc::EALREADY),
        ] {
            uring.io.slot(id).unwrap().ending = ending;
            let completion = Completion::of(CANCEL | Kind::Send.of(cancelled), result);
            uring.io.cancelled(completion, &uring.datagrams);
            assert_eq!(uring.io.ring.in_flight(), begun, "{ending:?} {result}");
        }
    }
}
