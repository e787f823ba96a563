//! The open loop: requests arrive by the clock, whether or not earlier ones have been answered, and
//! each counts from the moment it was meant to be sent.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

/// SplitMix64 (Steele, Lea and Flood 2014): the same numbers for the same seed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    /// From 0 to below 1.
    pub(super) fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// When requests arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Arrival {
    /// At random, as from many users who know nothing of each other
    Poisson,
    /// All at the same distance
    Constant,
}

/// How the client waits for the next arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Pace {
    /// Asleep in the kernel: late by what waking takes
    Sleep,
    /// Awake: on time, at the cost of a core
    Spin,
}

/// A rate and how to keep it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pacing {
    /// Requests a second over all connections.
    pub(crate) rate: f64,
    pub(crate) arrival: Arrival,
    pub(crate) pace: Pace,
}

/// What an open loop counts beside its replies; only of requests that arrived within the window.
#[derive(Clone, Debug)]
pub(crate) struct PacedCounts {
    /// Requests that arrived.
    pub(crate) offered: u64,
    /// Of these, those that found no free connection and had to wait for one.
    pub(crate) late: u64,
    /// Of these, those that were never sent.
    pub(crate) dropped: u64,
    /// From sent to answered.
    pub(crate) service: Histogram<u64>,
    /// From the intended moment to the one in which the request was written for the next enter, which sends those
    /// of its turn together. Waiting for a free connection is part of it.
    pub(crate) lag: Histogram<u64>,
}

/// The intended moments, one after another; the same ones for the same seed.
#[derive(Clone, Debug)]
struct Arrivals {
    start: Instant,
    pacing: Pacing,
    count: u64,
    /// Nanoseconds from the start to the next one.
    next_ns: f64,
    random: Random,
}

impl Arrivals {
    fn new(pacing: Pacing, random: Random, start: Instant) -> Self {
        let mut arrivals = Self { start, pacing, count: 0, next_ns: 0.0, random };
        arrivals.advance();
        arrivals
    }

    fn next(&self) -> Instant {
        self.start + Duration::from_nanos(self.next_ns as u64)
    }

    fn advance(&mut self) {
        let gap_ns = 1e9 / self.pacing.rate;
        self.count += 1;
        self.next_ns = match self.pacing.arrival {
            // Not a sum, which would drift.
            Arrival::Constant => self.count as f64 * gap_ns,
            Arrival::Poisson => self.next_ns - gap_ns * (1.0 - self.random.uniform()).ln(),
        };
    }
}

/// Requests that have arrived, and connections that are free for them.
#[derive(Debug)]
pub(crate) struct OpenLoop {
    /// The next request to arrive.
    arriving: Arrivals,
    /// The next one to be sent: all between the two wait for a connection.
    sending: Arrivals,
    /// In turn, so that all are used alike.
    free: VecDeque<usize>,
    window: Option<Instant>,
    pub(crate) counts: PacedCounts,
}

impl OpenLoop {
    pub(crate) fn new(pacing: Pacing, seed: u64, histogram: &Histogram<u64>) -> Self {
        let arrivals = Arrivals::new(pacing, Random(seed), Instant::now());
        let (service, lag) = (Histogram::new_from(histogram), Histogram::new_from(histogram));
        Self {
            sending: arrivals.clone(),
            arriving: arrivals,
            free: VecDeque::new(),
            window: None,
            counts: PacedCounts { offered: 0, late: 0, dropped: 0, service, lag },
        }
    }

    /// From here on requests arrive.
    pub(crate) fn begin(&mut self, now: Instant) {
        let Arrivals { pacing, random, .. } = self.arriving;
        self.arriving = Arrivals::new(pacing, random, now);
        self.sending = self.arriving.clone();
    }

    pub(crate) fn open_window(&mut self, now: Instant) {
        self.window = Some(now);
    }

    /// No more is sent: what still waits never will be.
    pub(crate) fn close_window(&mut self) {
        while self.waiting() > 0 {
            self.counts.dropped += u64::from(self.is_counted(self.sending.next()));
            self.sending.advance();
        }
    }

    /// A connection has nothing to do.
    pub(crate) fn free(&mut self, slot: usize) {
        self.free.push_back(slot);
    }

    /// The next request to be sent now: by which connection, and when it was meant to be.
    pub(crate) fn next(&mut self, now: Instant) -> Option<(usize, Instant)> {
        while self.arriving.next() <= now {
            if self.is_counted(self.arriving.next()) {
                self.counts.offered += 1;
                self.counts.late += u64::from(self.waiting() >= self.free.len() as u64);
            }
            self.arriving.advance();
        }
        let slot = (self.waiting() > 0).then(|| self.free.pop_front()).flatten()?;
        let intended = self.sending.next();
        self.sending.advance();
        Some((slot, intended))
    }

    /// How many have arrived and not been sent.
    fn waiting(&self) -> u64 {
        self.arriving.count - self.sending.count
    }

    /// How long the client may wait before it looks again.
    pub(crate) fn patience(&self, now: Instant) -> Duration {
        match self.arriving.pacing.pace {
            Pace::Spin => Duration::ZERO,
            Pace::Sleep => self.arriving.next().saturating_duration_since(now),
        }
    }

    /// Counts a reply; answers its response time if it counts.
    pub(crate) fn answered(&mut self, intended: Instant, sent: Instant, now: Instant) -> Option<Duration> {
        if !self.is_counted(intended) {
            return None;
        }
        self.counts.service.saturating_record((now - sent).as_nanos() as u64);
        self.counts.lag.saturating_record(sent.saturating_duration_since(intended).as_nanos() as u64);
        Some(now - intended)
    }

    fn is_counted(&self, intended: Instant) -> bool {
        self.window.is_some_and(|opened| intended >= opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: f64 = 10_000.0;
    const MS: Duration = Duration::from_millis(1);

    fn open_loop(arrival: Arrival) -> (OpenLoop, Instant) {
        let histogram = Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("valid bounds");
        let pacing = Pacing { rate: RATE, arrival, pace: Pace::Sleep };
        let (mut open, start) = (OpenLoop::new(pacing, 7, &histogram), Instant::now());
        open.begin(start);
        open.open_window(start);
        (open, start)
    }

    fn sent(open: &mut OpenLoop, now: Instant) -> Vec<(usize, Instant)> {
        std::iter::from_fn(|| open.next(now)).collect()
    }

    #[test]
    fn a_constant_rate_never_drifts() {
        let (mut open, start) = open_loop(Arrival::Constant);
        open.arriving.pacing.rate = 30_000.0;
        open.begin(start);
        (0..40_000).for_each(|slot| open.free(slot));
        let sent = sent(&mut open, start + 1_000 * MS);
        assert_eq!(sent.len(), 30_000);
        let last = sent.last().expect("many").1 - start;
        assert!(last.abs_diff(1_000 * MS) < Duration::from_micros(1), "{last:?}");
    }

    #[test]
    fn random_arrivals_have_the_mean_and_the_spread_of_their_kind() {
        let (mut open, start) = open_loop(Arrival::Poisson);
        (0..200_000).for_each(|slot| open.free(slot));
        let sent = sent(&mut open, start + 10_000 * MS);
        assert!((99_000..101_000).contains(&sent.len()), "{}", sent.len());
        let gaps: Vec<f64> =
            sent.windows(2).map(|pair| (pair[1].1 - pair[0].1).as_secs_f64() * RATE).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean - 1.0).abs() < 0.02 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
        let long = gaps.iter().filter(|gap| **gap > 3.0).count() as f64 / gaps.len() as f64;
        assert!((long - (-3.0_f64).exp()).abs() < 0.005, "{long} of the gaps are thrice the mean");
    }

    #[test]
    fn who_finds_no_free_connection_is_late_and_counts_from_the_intended_moment() {
        let (mut open, start) = open_loop(Arrival::Constant);
        open.free(0);
        let gap = Duration::from_micros(100);
        // Three have arrived: one is sent, two wait.
        let first = sent(&mut open, start + 3 * gap);
        assert_eq!(first, [(0, start + gap)]);
        assert_eq!((open.counts.offered, open.counts.late), (3, 2));
        assert_eq!(open.answered(start + gap, start + 3 * gap, start + 5 * gap), Some(4 * gap));
        open.free(0);
        assert_eq!(sent(&mut open, start + 3 * gap), [(0, start + 2 * gap)]);
        open.close_window();
        assert_eq!((open.counts.dropped, open.counts.service.len(), open.counts.lag.len()), (1, 1, 1));
        let lag = open.counts.lag.max();
        assert!((199_000..202_000).contains(&lag), "{lag} ns from the intended moment to the real one");
    }

    #[test]
    fn what_arrived_before_the_window_does_not_count() {
        let (mut open, start) = open_loop(Arrival::Constant);
        open.open_window(start + MS);
        open.free(0);
        let first = sent(&mut open, start + MS / 2);
        assert_eq!((first.len(), open.counts.offered), (1, 0));
        assert_eq!(open.answered(first[0].1, start + MS, start + 2 * MS), None);
        open.close_window();
        assert_eq!((open.counts.late, open.counts.dropped), (0, 0));
    }
}
