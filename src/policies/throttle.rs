//! How fast connections may be: a budget of bytes a second for each way.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    connection::{Pace, Way},
    timer::deadline_after,
};

/// What passes at once, at most, so that many who share a budget take turns.
const PIECE_BYTES_MAX: usize = 64 << 10;
/// A budget that was not used may be used so much later: what a wake-up that comes late has cost.
const CREDIT: Duration = Duration::from_millis(100);

/// A budget of bytes a second, for reading, writing or both. Clones share it.
///
/// Bytes pass in pieces of up to a second's budget, 64 KiB at most. Whoever is next has to wait until the time of the pieces before is over: those who
/// share a budget take turns. So `t` seconds see no more than the budget of `t` + 0.1 seconds and a piece. What may not pass yet is neither received nor sent; it is never lost.
/// A connection that closes is given the time that its throttle takes.
///
/// ```
/// use ringspun::policies::{Policies, Throttle};
///
/// let all = Throttle::new().read(1_000_000).write(10_000_000);
/// let each = Throttle::new().read(50_000);
/// let policies = Policies::new().throttle(&all).throttle_each(&each);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Throttle {
    read: Option<Arc<Budget>>,
    write: Option<Arc<Budget>>,
}

#[derive(Debug)]
struct Budget {
    bytes_a_second: u64,
    /// When the time of all that may pass is over.
    spent_until: Mutex<Option<Instant>>,
}

impl Throttle {
    /// No limit yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// At most so many bytes a second from peers.
    ///
    /// # Panics
    /// If it is 0: nothing would ever pass.
    pub fn read(mut self, bytes_a_second: u64) -> Self {
        self.read = Some(Budget::new(bytes_a_second));
        self
    }

    /// At most so many bytes a second to peers.
    ///
    /// # Panics
    /// If it is 0: nothing would ever pass.
    pub fn write(mut self, bytes_a_second: u64) -> Self {
        self.write = Some(Budget::new(bytes_a_second));
        self
    }

    /// The same limits, shared with nobody.
    pub(super) fn with_own_budget(&self) -> Self {
        let own = |budget: &Option<Arc<Budget>>| budget.as_ref().map(|b| Budget::new(b.bytes_a_second));
        Self { read: own(&self.read), write: own(&self.write) }
    }

    fn budget(&self, way: Way) -> Option<&Budget> {
        match way {
            Way::In => self.read.as_deref(),
            Way::Out => self.write.as_deref(),
        }
    }
}

impl Pace for Throttle {
    fn piece(&self, way: Way) -> usize {
        let budget = self.budget(way);
        budget.map_or(usize::MAX, |budget| budget.bytes_a_second.min(PIECE_BYTES_MAX as u64) as usize)
    }

    fn reserve(&self, way: Way, bytes: usize, now: Instant) -> Instant {
        self.budget(way).map_or(now, |budget| budget.reserve(bytes, now))
    }
}

impl Budget {
    fn new(bytes_a_second: u64) -> Arc<Self> {
        assert!(bytes_a_second > 0, "a throttle of 0 bytes a second would let nothing pass");
        Arc::new(Self { bytes_a_second, spent_until: Mutex::new(None) })
    }

    fn reserve(&self, bytes: usize, now: Instant) -> Instant {
        let mut spent_until = self.spent_until.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        let begin = spent_until.map_or(now, |until| until.max(earliest));
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_a_second as f64);
        *spent_until = Some(deadline_after(begin, takes));
        begin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_share_a_budget_take_turns_and_keep_to_it() {
        let throttle = Throttle::new().write(1000);
        let (start, shared) = (Instant::now(), throttle.clone());
        assert_eq!((throttle.piece(Way::Out), throttle.piece(Way::In)), (1000, usize::MAX));
        let after = |at: Instant| at.saturating_duration_since(start).as_millis();
        assert_eq!(after(throttle.reserve(Way::Out, 500, start)), 0);
        assert_eq!(after(shared.reserve(Way::Out, 1000, start)), 500);
        assert_eq!(after(throttle.reserve(Way::Out, 1, start)), 1500);
        assert_eq!(after(throttle.with_own_budget().reserve(Way::Out, 1, start)), 0);
        assert_eq!(after(throttle.reserve(Way::In, 1 << 30, start)), 0);
        // A rest gives no more credit than a tenth of a second.
        let later = start + Duration::from_secs(60);
        assert_eq!(after(throttle.reserve(Way::Out, 100, later)), 59_900);
        assert_eq!(after(throttle.reserve(Way::Out, 100, later)), 60_000);
        assert_eq!(after(throttle.reserve(Way::Out, 100, later)), 60_100);
    }
}
