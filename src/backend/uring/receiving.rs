//! Receives. One that stays armed and takes a small buffer for each piece is the cheapest there is while pieces
//! are small. A connection that fills its buffers receives once at a time into large ones instead, as
//! long as they are worth it: above some 8 KiB a piece that costs less.

use std::os::fd::AsRawFd;

use io_uring::types;

use super::{
    Ending, Found, Io, Kind,
    buffers::{Buffer, Buffers, Size},
    entries::receive_entry,
    ring::Completion,
};
use crate::{backend::Event, error::Errno, id::ConnId, options::Tier, stats::Count, sys::Socket};

/// Full small buffers one after another that call for large ones.
const FULL_MAX: u8 = 4;
/// Pieces one after another that would nearly have fitted into small buffers, and how long those are at most.
const SHORT_MAX: u8 = 8;
const SHORT_BYTES: u32 = 8 << 10;

/// Where a connection's receiving is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Receiving {
    /// The loop wants data.
    pub(super) wanted: bool,
    /// The kernel has the operation, which takes buffers of this size.
    pub(super) armed: Option<Size>,
    /// The kernel has been asked to give it back.
    pub(super) cancelling: bool,
    /// It found no buffer and stands in line for one.
    pub(super) parked: bool,
    /// It takes messages, with descriptors, rather than buffers.
    pub(super) messages: bool,
    /// What the next operation takes, and pieces one after another that were too long or too short for that.
    size: Size,
    misfits: u8,
}

impl Default for Receiving {
    fn default() -> Self {
        Self {
            wanted: false,
            armed: None,
            cancelling: false,
            parked: false,
            messages: false,
            size: Size::Small,
            misfits: 0,
        }
    }
}

impl Receiving {
    /// What is in flight, as user data calls it.
    pub(super) fn kind(&self) -> Option<Kind> {
        self.armed.map(|size| if self.messages { Kind::ReceiveMessage } else { kind(size) })
    }

    /// Learns from the length of a piece. Answers whether the other size is the better one from now on.
    fn learn(&mut self, came: Size, len: u32, small: u32) -> bool {
        if came != self.size {
            // It was armed before the change.
            return false;
        }
        let (misfits, most, other) = match came {
            Size::Small => (len >= small && small < SHORT_BYTES, FULL_MAX, Size::Large),
            Size::Large => (len < SHORT_BYTES, SHORT_MAX, Size::Small),
        };
        self.misfits = if misfits { self.misfits + 1 } else { 0 };
        if self.misfits < most {
            return false;
        }
        (self.size, self.misfits) = (other, 0);
        true
    }
}

/// Whether a receive may stay armed in a ring of this tier.
///
/// TCP answers `EAGAIN` before an urgent byte if a signal is pending, and task work that is not deferred counts as one. A
/// receive that stays armed then waits for bytes beyond those that are there, which may never come. One that is
/// armed anew looks again.
pub(super) fn receives_may_stay_armed(tier: Tier) -> bool {
    tier != Tier::Coop
}

/// What a receive of this size is called in user data.
fn kind(size: Size) -> Kind {
    match size {
        Size::Small => Kind::Receive,
        Size::Large => Kind::ReceiveLarge,
    }
}

impl Io {
    pub(super) fn read(&mut self, id: ConnId, on: bool, buffers: &Buffers) {
        let Some(slot) = self.slot(id) else { return };
        slot.receiving.wanted = on;
        let Receiving { armed, parked, .. } = slot.receiving;
        if on && armed.is_none() && !parked {
            self.arm_receive(id, buffers);
        } else if !on {
            self.take_back_receive(id);
        }
    }

    /// Asks the kernel to give an armed receive back.
    fn take_back_receive(&mut self, id: ConnId) {
        let Some(slot) = self.slot(id) else { return };
        if slot.receiving.armed.is_some() && !std::mem::replace(&mut slot.receiving.cancelling, true) {
            self.cancel_receive(id);
        }
    }

    pub(super) fn cancel_receive(&mut self, id: ConnId) {
        if let Some(kind) = self.slot(id).and_then(|slot| slot.receiving.kind()) {
            self.cancel(kind.of(id));
        }
    }

    fn arm_receive(&mut self, id: ConnId, buffers: &Buffers) {
        let armed_receives = self.armed_receives;
        let Some(slot) = self.slot(id).filter(|slot| slot.ending == Ending::No) else { return };
        let Some(socket) = &slot.socket else { return };
        let size = slot.receiving.size;
        let once = (size == Size::Large || !armed_receives).then(|| buffers.bytes(size));
        let entry = match socket {
            Socket::Fd(fd) => receive_entry(types::Fd(fd.as_raw_fd()), size.group(), once),
            Socket::Direct(place) => receive_entry(types::Fixed(*place), size.group(), once),
        };
        slot.receiving =
            Receiving { wanted: true, armed: Some(size), cancelling: false, parked: false, ..slot.receiving };
        if slot.receiving.messages {
            return self.arm_message(id);
        }
        // SAFETY: the kernel chooses among the registered buffers, which outlive the ring.
        unsafe { self.push(id, kind(size), entry) };
    }

    /// Arms what waits to be armed: those who lost their receive, then those in line for buffers,
    /// as many as there are buffers. While others are left in line there is no time to sleep.
    pub(super) fn rearm(&mut self, buffers: &Buffers) {
        let mut rearm = std::mem::take(&mut self.rearm);
        rearm.drain(..).for_each(|id| self.arm_receive_if_wanted(id, buffers));
        self.rearm = rearm;
        for size in [Size::Small, Size::Large] {
            for _ in 0..buffers.count(size) {
                let Some(id) = self.parked[size as usize].pop_front() else { break };
                if let Some(slot) = self.slot(id) {
                    slot.receiving.parked = false;
                    self.arm_receive_if_wanted(id, buffers);
                }
            }
            self.hurried |= !self.parked[size as usize].is_empty();
        }
    }

    fn arm_receive_if_wanted(&mut self, id: ConnId, buffers: &Buffers) {
        let wanted = self.slot(id).is_some_and(|slot| {
            slot.receiving.wanted && slot.receiving.armed.is_none() && !slot.receiving.parked
        });
        if wanted {
            self.arm_receive(id, buffers);
        }
    }

    /// A receive has brought something, or is over.
    #[inline(always)] // As a call it made a tenth of the library's time more.
    pub(super) fn received(
        &mut self,
        id: ConnId,
        size: Size,
        completion: Completion,
        buffers: &mut Buffers,
    ) -> Option<Found> {
        let (more, small) = (completion.more(), buffers.bytes(Size::Small));
        let slot = self.slot(id)?;
        if !more {
            slot.receiving.armed = None;
            slot.receiving.cancelling = false;
        }
        let (ending, wanted) = (slot.ending != Ending::No, slot.receiving.wanted);
        let (outcome, buffer) = (completion.outcome(), buffer(completion, size));
        if let (Ok(len @ 1..), Some(buffer), false) = (outcome, buffer, ending) {
            let other = slot.receiving.learn(size, len, small);
            if !more && wanted && size == Size::Large && len == buffers.bytes(size) {
                // There is more, very likely; but there are few buffers, and others wait for them.
                self.park(id);
            } else if !more && wanted {
                self.rearm.push(id);
            } else if more && other {
                self.take_back_receive(id);
            }
            return Some(Found::Data { id, buffer, len });
        }
        buffer.into_iter().for_each(|buffer| buffers.recycle(buffer));
        if ending {
            return None;
        }
        match outcome.map_err(Errno::raw) {
            Ok(_) => Some(Found::Other(Event::End { id, errno: None })),
            Err(libc::ENOBUFS) => {
                // Arming again at once would spin.
                self.counters.add(Count::NoBuffers, 1);
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

    /// Puts a connection at the end of the line for buffers.
    fn park(&mut self, id: ConnId) {
        if let Some(slot) = self.slot(id) {
            slot.receiving.parked = true;
            let size = slot.receiving.size;
            self.parked[size as usize].push_back(id);
        }
    }
}

/// The buffer that the kernel chose for a receive.
pub(super) fn buffer(completion: Completion, size: Size) -> Option<Buffer> {
    completion.buffer().map(|number| Buffer { size, number })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: u32 = 4096;

    #[test]
    fn a_connection_that_fills_its_buffers_turns_to_large_ones_and_back() {
        let mut receiving = Receiving::default();
        let mut learn = |size, len| receiving.learn(size, len, SMALL);
        for _ in 0..10 {
            assert!(!learn(Size::Small, SMALL) && !learn(Size::Small, SMALL) && !learn(Size::Small, SMALL));
            assert!(!learn(Size::Small, SMALL - 1), "one that is not full begins the count again");
        }
        let full: Vec<bool> = (0..4).map(|_| learn(Size::Small, SMALL)).collect();
        assert_eq!(full, [false, false, false, true]);
        assert!(
            !learn(Size::Small, SMALL),
            "what comes until the receive has been taken back says nothing new"
        );
        for _ in 0..10 {
            assert!(!(0..7).any(|_| learn(Size::Large, SHORT_BYTES - 1)));
            assert!(!learn(Size::Large, SHORT_BYTES), "one that is long enough begins the count again");
        }
        let short: Vec<bool> = (0..8).map(|_| learn(Size::Large, 100)).collect();
        assert_eq!(short.iter().position(|other| *other), Some(7));
    }

    #[test]
    fn buffers_that_are_large_already_are_never_left() {
        let mut receiving = Receiving::default();
        assert!(!(0..100).any(|_| receiving.learn(Size::Small, 64 << 10, 64 << 10)));
    }
}
