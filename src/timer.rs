//! The queue behind `call_later` and every deadline: a heap by deadline, first in first out among equals.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use slab::Slab;

/// Names an entry of a [`TimerQueue`]; stale once the entry has fired or was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerKey {
    slot: usize,
    id: u64,
}

/// Names an entry whose time has come; stale once that was taken, removed or given another deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    slot: usize,
    sequence: u64,
}

#[derive(Debug)]
struct Entry<T> {
    id: u64,
    sequence: u64,
    deadline: Instant,
    value: T,
}

/// Values with a deadline. Removing or moving one leaves its old heap entry behind, which is
/// skipped when it comes up and swept when such leftovers outnumber the living.
#[derive(Debug)]
pub struct TimerQueue<T> {
    heap: BinaryHeap<Reverse<(Instant, u64, usize)>>,
    entries: Slab<Entry<T>>,
    sequence: u64,
}

impl<T> Default for TimerQueue<T> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), entries: Slab::new(), sequence: 0 }
    }
}

impl<T> TimerQueue<T> {
    /// Adds a value that is due at `deadline`.
    pub fn insert(&mut self, deadline: Instant, value: T) -> TimerKey {
        let sequence = self.next_sequence();
        let slot = self.entries.insert(Entry { id: sequence, sequence, deadline, value });
        self.heap.push(Reverse((deadline, sequence, slot)));
        TimerKey { slot, id: sequence }
    }

    /// The deadline of an entry that has neither fired nor been removed.
    pub fn deadline(&self, key: TimerKey) -> Option<Instant> {
        self.entry(key).map(|entry| entry.deadline)
    }

    /// Removes an entry.
    pub fn remove(&mut self, key: TimerKey) -> Option<T> {
        self.entry(key)?;
        let entry = self.entries.remove(key.slot);
        self.sweep();
        Some(entry.value)
    }

    /// Gives an entry a new deadline, behind those that share it; answers whether the entry was there.
    pub fn reschedule(&mut self, key: TimerKey, deadline: Instant) -> bool {
        if self.entry(key).is_none() {
            return false;
        }
        let sequence = self.next_sequence();
        let entry = &mut self.entries[key.slot];
        (entry.sequence, entry.deadline) = (sequence, deadline);
        self.heap.push(Reverse((deadline, sequence, key.slot)));
        self.sweep();
        true
    }

    /// How many entries have neither fired nor been removed.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// The earliest deadline.
    pub fn next_deadline(&mut self) -> Option<Instant> {
        self.drop_leftovers();
        self.heap.peek().map(|Reverse((deadline, ..))| *deadline)
    }

    /// The next entry that is due at `now`, if it was added before `before`. It is named once, and
    /// stays, to be [taken](Self::take) by whoever can act on it, or to be removed or given another deadline until then.
    pub fn next_due(&mut self, now: Instant, before: Mark) -> Option<Due> {
        self.drop_leftovers();
        let Reverse((deadline, sequence, slot)) = *self.heap.peek()?;
        if deadline > now || sequence >= before.0 {
            return None;
        }
        self.heap.pop();
        Some(Due { slot, sequence })
    }

    /// The value of an entry that is due.
    pub fn get(&self, due: Due) -> Option<&T> {
        let entry = self.entries.get(due.slot).filter(|entry| entry.sequence == due.sequence)?;
        Some(&entry.value)
    }

    /// Takes an entry that is due.
    pub fn take(&mut self, due: Due) -> Option<T> {
        self.get(due)?;
        Some(self.entries.remove(due.slot).value)
    }

    /// [`next_due`](Self::next_due), taken at once.
    pub fn pop_due(&mut self, now: Instant, before: Mark) -> Option<T> {
        let due = self.next_due(now, before)?;
        self.take(due)
    }

    /// What is added from here on is not part of the present turn, however short its delay.
    pub fn mark(&self) -> Mark {
        Mark(self.sequence)
    }

    /// All values, in no order.
    pub fn into_values(self) -> impl Iterator<Item = T> {
        self.entries.into_iter().map(|(_, entry)| entry.value)
    }

    fn entry(&self, key: TimerKey) -> Option<&Entry<T>> {
        self.entries.get(key.slot).filter(|entry| entry.id == key.id)
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence - 1
    }

    fn drop_leftovers(&mut self) {
        while let Some(Reverse((_, sequence, slot))) = self.heap.peek() {
            if self.entries.get(*slot).is_some_and(|entry| entry.sequence == *sequence) {
                return;
            }
            self.heap.pop();
        }
    }

    fn sweep(&mut self) {
        if self.heap.len() > 2 * self.entries.len() + 64 {
            let entries = &self.entries;
            self.heap.retain(|Reverse((_, sequence, slot))| {
                entries.get(*slot).is_some_and(|entry| entry.sequence == *sequence)
            });
        }
    }
}

/// A point between two insertions.
#[derive(Clone, Copy, Debug)]
pub struct Mark(u64);

/// `now + delay`, or a century from now where that cannot be expressed.
pub fn deadline_after(now: Instant, delay: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
    now.checked_add(delay).unwrap_or_else(|| now + CENTURY)
}

/// Adds a timer to those that die with a connection. Each time the list is full, those that have
/// fired or were cancelled make room, so that re-arming with every message does not grow it; where
/// most are alive it doubles, so that they are not asked again soon.
pub(crate) fn keep_timer(timers: &mut Vec<TimerKey>, timer: TimerKey, alive: &dyn Fn(TimerKey) -> bool) {
    if timers.len() == timers.capacity() {
        timers.retain(|kept| alive(*kept));
        timers.reserve(timers.len().max(3) + 1);
    }
    timers.push(timer);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn due<T>(queue: &mut TimerQueue<T>, now: Instant) -> Vec<T> {
        let mark = queue.mark();
        std::iter::from_fn(|| queue.pop_due(now, mark)).collect()
    }

    #[test]
    fn never_early_and_by_deadline_and_first_in_first_out() {
        let (mut queue, start) = (TimerQueue::default(), Instant::now());
        for (name, seconds) in [("c", 3), ("a1", 1), ("b", 2), ("a2", 1), ("a3", 1)] {
            queue.insert(start + SECOND * seconds, name);
        }
        assert_eq!(due(&mut queue, start + SECOND - Duration::from_nanos(1)), [""; 0]);
        assert_eq!(due(&mut queue, start + SECOND), ["a1", "a2", "a3"]);
        assert_eq!(queue.next_deadline(), Some(start + 2 * SECOND));
        assert_eq!(due(&mut queue, start + 9 * SECOND), ["b", "c"]);
        assert_eq!(queue.next_deadline(), None);
    }

    #[test]
    fn a_key_is_stale_once_its_entry_is_gone() {
        let (mut queue, now) = (TimerQueue::default(), Instant::now());
        let first = queue.insert(now, 1);
        assert_eq!(queue.remove(first), Some(1));
        let second = queue.insert(now, 2);
        assert_eq!(queue.remove(first), None, "the slot was reused, the key was not");
        assert!(queue.reschedule(second, now + SECOND));
        assert_eq!(queue.deadline(second), Some(now + SECOND));
        assert_eq!(due(&mut queue, now), []);
        assert_eq!(due(&mut queue, now + SECOND), [2]);
        assert!(!queue.reschedule(second, now));
    }

    #[test]
    fn what_is_added_after_the_mark_waits_for_the_next_turn() {
        let (mut queue, now) = (TimerQueue::default(), Instant::now());
        queue.insert(now, 1);
        let mark = queue.mark();
        queue.insert(now, 2);
        assert_eq!(queue.pop_due(now, mark), Some(1));
        assert!(queue.pop_due(now, mark).is_none());
        assert_eq!(due(&mut queue, now), [2]);
    }

    #[test]
    fn what_is_due_can_be_removed_or_moved_until_it_is_taken() {
        let (mut queue, now) = (TimerQueue::default(), Instant::now());
        let keys = [1, 2, 3].map(|value| queue.insert(now, value));
        let mark = queue.mark();
        let [first, second, third] = [(); 3].map(|()| queue.next_due(now, mark).expect("three are due"));
        assert!(queue.next_due(now, mark).is_none(), "each is named once");
        assert_eq!(queue.next_deadline(), None);
        assert!(queue.deadline(keys[0]).is_some(), "it has not fired yet");
        assert_eq!(queue.remove(keys[0]), Some(1));
        assert!(queue.reschedule(keys[1], now + SECOND));
        assert_eq!((queue.take(first), queue.take(second)), (None, None));
        assert_eq!(queue.get(third), Some(&3));
        assert_eq!((queue.take(third), queue.take(third)), (Some(3), None));
        assert_eq!(due(&mut queue, now + SECOND), [2]);
    }

    #[test]
    fn rescheduling_for_ever_does_not_grow_the_heap() {
        let (mut queue, now) = (TimerQueue::default(), Instant::now());
        let key = queue.insert(now, ());
        for i in 0..10_000 {
            assert!(queue.reschedule(key, now + SECOND * i));
        }
        assert!(queue.heap.len() <= 70, "{} entries for one timer", queue.heap.len());
    }

    #[test]
    fn agrees_with_a_sorted_list() {
        let (mut queue, start) = (TimerQueue::default(), Instant::now());
        let mut expected = Vec::new();
        let mut random = 1u64;
        for i in 0..2_000u64 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let deadline = start + Duration::from_millis(random >> 56);
            let key = queue.insert(deadline, i);
            if random & 3 == 0 {
                queue.remove(key);
            } else {
                expected.push((deadline, i));
            }
        }
        expected.sort();
        assert_eq!(due(&mut queue, start + SECOND), expected.into_iter().map(|(_, i)| i).collect::<Vec<_>>());
    }
}
