//! A reactor's timed calls. Any thread sets, moves and removes them, under a lock; when the next one is due can be
//! read without it, so that a turn in which none is costs none.

use std::{
    ops::{Deref, DerefMut},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::timer::TimerQueue;

/// The next deadline of a queue that has none.
const NEVER: u64 = u64::MAX;

/// See the top of this file.
pub(crate) struct Schedule<T> {
    queue: Mutex<TimerQueue<T>>,
    /// The next deadline, in nanoseconds since `begun`, as the last lock has left it.
    next: AtomicU64,
    begun: Instant,
}

/// The queue, for as long as it is locked.
pub(crate) struct Locked<'a, T> {
    queue: MutexGuard<'a, TimerQueue<T>>,
    schedule: &'a Schedule<T>,
}

impl<T> Schedule<T> {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self { queue: Mutex::default(), next: AtomicU64::new(NEVER), begun: Instant::now() }
    }

    pub(crate) fn lock(&self) -> Locked<'_, T> {
        Locked { queue: self.queue.lock().unwrap_or_else(PoisonError::into_inner), schedule: self }
    }

    /// The earliest deadline. A thread that sets one wakes the loop after it, so the loop asks again.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let next = self.next.load(Ordering::SeqCst);
        (next != NEVER).then(|| self.begun + Duration::from_nanos(next))
    }

    fn nanos(&self, deadline: Instant) -> u64 {
        let nanos = deadline.saturating_duration_since(self.begun).as_nanos();
        u64::try_from(nanos).unwrap_or(NEVER).min(NEVER - 1)
    }
}

impl<T> Deref for Locked<'_, T> {
    type Target = TimerQueue<T>;

    fn deref(&self) -> &TimerQueue<T> {
        &self.queue
    }
}

impl<T> DerefMut for Locked<'_, T> {
    fn deref_mut(&mut self) -> &mut TimerQueue<T> {
        &mut self.queue
    }
}

impl<T> Drop for Locked<'_, T> {
    fn drop(&mut self) {
        let next = self.queue.next_deadline().map_or(NEVER, |deadline| self.schedule.nanos(deadline));
        // Written only under the lock, so what is read here is what was written last.
        if self.schedule.next.load(Ordering::Relaxed) != next {
            self.schedule.next.store(next, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_deadline_is_known_without_the_lock() {
        let schedule = Schedule::new();
        assert_eq!(schedule.next_deadline(), None);
        let now = Instant::now();
        let (soon, late) = (now + Duration::from_millis(1), now + Duration::from_nanos(3_000_000_001));
        let key = schedule.lock().insert(late, "late");
        assert_eq!(schedule.next_deadline(), Some(late));
        schedule.lock().insert(soon, "soon");
        assert_eq!(schedule.next_deadline(), Some(soon));
        let mark = schedule.lock().mark();
        let due = schedule.lock().next_due(soon, mark).unwrap();
        assert_eq!(schedule.next_deadline(), Some(late), "one that was named as due is not named again");
        assert_eq!(schedule.lock().take(due), Some("soon"));
        schedule.lock().reschedule(key, soon);
        assert_eq!(schedule.next_deadline(), Some(soon));
        schedule.lock().remove(key);
        assert_eq!(schedule.next_deadline(), None);
    }

    #[test]
    fn a_deadline_before_all_time_and_one_beyond_it_are_deadlines() {
        let schedule = Schedule::new();
        let past = schedule.begun.checked_sub(Duration::from_secs(1)).unwrap_or(schedule.begun);
        let key = schedule.lock().insert(past, ());
        assert_eq!(schedule.next_deadline(), Some(schedule.begun));
        let centuries = Duration::from_secs(600 * 366 * 86_400);
        let Some(far) = schedule.begun.checked_add(centuries) else { return };
        schedule.lock().reschedule(key, far);
        assert!(schedule.next_deadline().is_some_and(|deadline| deadline <= far));
    }
}
