//! When how much may pass: pieces, each with a place in the line of every pace that has a say.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::timer::deadline_after;

/// Whoever waits in a line looks so often whether some of those before have gone, and moves up.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// One of the two ways through a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the peer.
    In,
    /// To the peer.
    Out,
}

/// Says how much may pass, and when.
pub trait Pace: Send + Sync {
    /// How many bytes may pass at once, at most.
    fn piece(&self, way: Way) -> usize;
    /// From when on so many bytes may pass, which are thereby counted.
    fn reserve(&self, way: Way, bytes: usize, now: Instant) -> Instant;
    /// So many bytes, which were to pass from then on, are not going to: they count no more.
    fn give_back(&self, way: Way, bytes: usize, at: Instant);
}

/// What may pass next on one way through a connection.
#[derive(Debug)]
pub(super) struct Grant {
    bytes: usize,
    reserved: Vec<Reservation>,
    /// When it may pass, or the next pace is to be asked.
    due: Instant,
    /// When the last pace is asked again, if that comes before.
    again: Instant,
}

/// A place in a pace's line, which goes back if it is not used.
struct Reservation {
    pace: Arc<dyn Pace>,
    way: Way,
    bytes: usize,
    at: Instant,
    used: bool,
}

impl Grant {
    /// Of a piece of so many bytes, or of fewer if a pace lets no more pass at once.
    pub(super) fn new(paces: &[Arc<dyn Pace>], way: Way, bytes: usize, now: Instant) -> Self {
        let bytes = paces.iter().map(|pace| pace.piece(way)).fold(bytes, usize::min).max(1);
        Self { bytes, reserved: Vec::new(), due: now, again: now }
    }

    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// When [`is_due`](Self::is_due) is to be asked.
    pub(super) fn ask_at(&self) -> Instant {
        self.due.min(self.again)
    }

    /// Whether it may pass. Each pace is asked when those before it agree: one that is shared counts nothing that the connection's own would
    /// still hold back.
    pub(super) fn is_due(&mut self, paces: &[Arc<dyn Pace>], way: Way, now: Instant) -> bool {
        if self.again <= now && self.reserved.pop_if(|last| last.at > now).is_some() {
            self.due = now;
        }
        while self.due <= now {
            let Some(pace) = paces.get(self.reserved.len()) else { return true };
            self.due = pace.reserve(way, self.bytes, now);
            self.again = deadline_after(now, ASK_AGAIN);
            let (pace, bytes, at) = (Arc::clone(pace), self.bytes, self.due);
            self.reserved.push(Reservation { pace, way, bytes, at, used: false });
        }
        false
    }

    /// So many bytes pass.
    pub(super) fn pass(mut self) -> usize {
        self.reserved.iter_mut().for_each(|reservation| reservation.used = true);
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.used {
            self.pace.give_back(self.way, self.bytes, self.at);
        }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation")
            .field("bytes", &self.bytes)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}
