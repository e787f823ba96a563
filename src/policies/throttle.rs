//! How fast connections may be: a budget of bytes a second for each way.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
/// share a budget take turns, and the turn of one that ends goes to others. So `t` seconds see no more than the budget of `t` + 0.1 seconds and a piece. What may not pass yet is neither received nor sent; it is never lost.
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
    line: Mutex<Line>,
}

/// The time that is spoken for, piece after piece.
#[derive(Debug, Default)]
struct Line {
    /// When the time of all that may pass is over.
    spent_until: Option<Instant>,
    /// What was given back of the time before, in order; no two of them touch.
    gaps: Vec<Range<Instant>>,
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
        self.budget(way).map_or(now, |budget| budget.line().reserve(budget.time(bytes), now))
    }

    fn give_back(&self, way: Way, bytes: usize, at: Instant) {
        if let Some(budget) = self.budget(way) {
            budget.line().give_back(budget.time(bytes), at);
        }
    }
}

impl Budget {
    fn new(bytes_a_second: u64) -> Arc<Self> {
        assert!(bytes_a_second > 0, "a throttle of 0 bytes a second would let nothing pass");
        Arc::new(Self { bytes_a_second, line: Mutex::default() })
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What so many bytes take of it.
    fn time(&self, bytes: usize) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.bytes_a_second as f64)
    }
}

impl Line {
    /// In the first gap that is long enough, or else behind all others.
    fn reserve(&mut self, takes: Duration, now: Instant) -> Instant {
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        self.gaps.retain(|gap| gap.end > gap.start.max(earliest));
        for gap in &mut self.gaps {
            let begin = gap.start.max(earliest);
            if gap.end - begin >= takes {
                gap.start = begin + takes;
                return begin;
            }
        }
        let begin = self.spent_until.map_or(now, |until| until.max(earliest));
        self.spent_until = Some(deadline_after(begin, takes));
        begin
    }

    fn give_back(&mut self, takes: Duration, at: Instant) {
        let place = self.gaps.partition_point(|gap| gap.start < at);
        self.gaps.insert(place, at..deadline_after(at, takes));
        self.gaps.dedup_by(|next, gap| {
            let touch = next.start <= gap.end;
            gap.end = if touch { gap.end.max(next.end) } else { gap.end };
            touch
        });
        // Behind the last piece there is no gap, only time that nobody has asked for.
        if let Some(last) = self.gaps.pop_if(|last| Some(last.end) >= self.spent_until) {
            self.spent_until = Some(last.start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        connection::{Connection, Equipment, Step},
        limits::Limits,
        output::{Budget as OutputBudget, Pool},
        policies::Policies,
    };

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

    #[test]
    fn what_is_given_back_is_for_whom_it_is_enough() {
        let throttle = Throttle::new().read(1000);
        let start = Instant::now();
        let moment = |millis| start + Duration::from_millis(millis);
        let reserve = |bytes| throttle.reserve(Way::In, bytes, start);
        for millis in [0, 500, 1000, 1500] {
            assert_eq!(reserve(500), moment(millis));
        }
        throttle.give_back(Way::In, 500, moment(500));
        assert_eq!(reserve(300), moment(500));
        assert_eq!(reserve(300), moment(2000), "200 are left there");
        assert_eq!(reserve(200), moment(800));
        // What lies side by side is one gap, and what was last has never been.
        throttle.give_back(Way::In, 500, moment(1000));
        throttle.give_back(Way::In, 200, moment(800));
        assert_eq!(reserve(700), moment(800));
        throttle.give_back(Way::In, 500, moment(1500));
        throttle.give_back(Way::In, 300, moment(2000));
        assert_eq!(reserve(1000), moment(1500));
        // Time that is over is nobody's.
        throttle.give_back(Way::In, 500, moment(0));
        assert_eq!(throttle.reserve(Way::In, 500, moment(400)), moment(2500));
        assert_eq!(throttle.reserve(Way::In, 200, moment(400)), moment(300));
        assert_eq!(throttle.reserve(Way::In, 200, moment(400)), moment(3000));
    }

    /// What passed, in order, keeps to a budget of so many bytes a second.
    fn keeps_to(passed: &[(Instant, usize)], bytes_a_second: f64) {
        for (first, (from, _)) in passed.iter().enumerate() {
            let mut sum = 0;
            for (until, bytes) in &passed[first..] {
                sum += bytes;
                let seconds = (*until - *from + CREDIT).as_secs_f64();
                let most = seconds * bytes_a_second + PIECE_BYTES_MAX as f64;
                assert!(sum as f64 <= most, "{sum} bytes in {:?}", *until - *from);
            }
        }
    }

    #[test]
    fn whoever_gives_back_the_budget_is_kept() {
        const RATE: u64 = 1_000_000;
        let throttle = Throttle::new().write(RATE);
        let (mut now, mut waiting, mut passed) = (Instant::now(), Vec::new(), Vec::new());
        let mut random = 7usize;
        for _ in 0..3000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let number = random >> 33;
            match number % 8 {
                0..=3 => {
                    let bytes = 1 + number % PIECE_BYTES_MAX;
                    let at = throttle.reserve(Way::Out, bytes, now);
                    if at > now { waiting.push((at, bytes)) } else { passed.push((now, bytes)) }
                }
                4 | 5 if !waiting.is_empty() => {
                    let (at, bytes) = waiting.swap_remove(number % waiting.len());
                    throttle.give_back(Way::Out, bytes, at);
                }
                _ => {
                    now += Duration::from_millis(number as u64 % 100);
                    passed.extend(waiting.extract_if(.., |(at, _)| *at <= now));
                }
            }
        }
        passed.sort();
        assert!(passed.len() > 500);
        keeps_to(&passed, RATE as f64);
    }

    /// A connection whose kernel takes all.
    struct Sender {
        connection: Connection,
        limits: Limits,
        pool: Pool,
    }

    impl Sender {
        fn new(policies: &Policies, bytes: usize, now: Instant) -> Self {
            let (mut connection, limits) = (Connection::new(false), Limits::default());
            let pool = Pool::new(&limits, &Arc::new(OutputBudget::new(usize::MAX)));
            connection.equip(now, Equipment { paces: policies.paces(), ..Equipment::default() });
            let mut sender = Self { connection, limits, pool };
            sender.write(bytes);
            sender
        }

        fn write(&mut self, bytes: usize) {
            let Self { connection, limits, pool } = self;
            let _ = connection.write(pool, limits, &vec![b'x'; bytes]);
        }

        /// How many bytes it sends now.
        fn send(&mut self, now: Instant) -> usize {
            let Self { connection, limits, pool } = self;
            let mut sent = 0;
            loop {
                match connection.step(now, limits, pool, true) {
                    Step::Idle => return sent,
                    Step::Send(mut batch) => {
                        let bytes = batch.len();
                        batch.advance(bytes);
                        connection.sent(batch, bytes, None, pool, limits);
                        sent += bytes;
                    }
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn those_whose_own_budgets_are_due_together_keep_to_the_shared_one() {
        let (all, each) = (Throttle::new().write(10_000_000), Throttle::new().write(50_000));
        let policies = Policies::new().throttle(&all).throttle_each(&each);
        let mut now = Instant::now();
        let (mut crowd, mut passed) = (Vec::new(), Vec::new());
        // The time of each one's first bytes is over at the same moment, when all have more to send.
        for number in 0..100 {
            let mut sender = Sender::new(&policies, 500 * (100 - number), now);
            passed.push((now, sender.send(now)));
            sender.write(150_000);
            assert_eq!(sender.send(now), 0);
            crowd.push(sender);
            now += Duration::from_millis(10);
        }
        loop {
            passed
                .extend(crowd.iter_mut().map(|sender| (now, sender.send(now))).filter(|(_, sent)| *sent > 0));
            let Some(next) = crowd.iter_mut().filter_map(|sender| sender.connection.deadline()).min() else {
                break;
            };
            now = next;
        }
        assert_eq!(passed.iter().map(|(_, bytes)| bytes).sum::<usize>(), 100 * 150_000 + 500 * 5050);
        keeps_to(&passed, 10_000_000.0);
    }

    #[test]
    fn those_who_end_cost_the_others_nothing() {
        let policies = Policies::new().throttle(&Throttle::new().write(1_000_000));
        let now = Instant::now();
        let mut crowd: Vec<_> = (0..1000).map(|_| Sender::new(&policies, 100_000, now)).collect();
        let sent: usize = crowd.iter_mut().map(|sender| sender.send(now)).sum();
        assert_eq!(sent, PIECE_BYTES_MAX, "the others wait");
        let mut last = crowd.pop().expect("the last of them");
        drop(crowd);
        let mut next = Sender::new(&policies, 10, now);
        assert_eq!(next.send(now), 0);
        let at = next.connection.deadline().expect("its turn");
        assert!(at - now < Duration::from_millis(66), "{:?}", at - now);
        assert_eq!(next.send(at), 10);
        // Who has waited behind them moves up.
        let mut later = now;
        while last.send(later) == 0 {
            later = last.connection.deadline().expect("its turn");
        }
        assert!(later - now < Duration::from_millis(1200), "{:?}", later - now);
    }
}
