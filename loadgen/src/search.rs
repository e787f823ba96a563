//! The search for the highest rate at which a row meets its objectives.

/// Below this share of what a row can answer at all, its objectives are out of reach.
const LEAST_SHARE: f64 = 1.0 / 64.0;
/// An open loop may get a little more than a closed one, which waits for its own replies.
const GREATEST_SHARE: f64 = 1.05;
/// How close the rates that do and do not meet the objectives come at the end.
const PRECISION: f64 = 1.02;

/// Rates to be tried, each halving the distance, as a factor, between one that is met and one that is not.
#[derive(Debug)]
pub(crate) struct Bisection {
    least: u64,
    most: f64,
    met: Option<u64>,
    unmet: f64,
}

impl Bisection {
    /// Between a part of this rate, which a row reaches at its best, and all of it.
    pub(crate) fn below(peak: f64) -> Self {
        let least = (peak * LEAST_SHARE).max(1.0) as u64;
        let most = (peak * GREATEST_SHARE).max(2.0);
        Self { least, most, met: None, unmet: most }
    }

    /// The next rate to be tried; None if enough is known.
    pub(crate) fn next(&self) -> Option<u64> {
        let met = self.met.unwrap_or(self.least) as f64;
        if self.unmet <= met * PRECISION {
            return None;
        }
        let middle = (met * self.unmet).sqrt() as u64;
        // Small rates have no whole number between them.
        (middle > met as u64).then_some(middle).or(self.met.is_none().then_some(self.least))
    }

    /// Notes whether the objectives are met at a rate.
    pub(crate) fn tell(&mut self, rate: u64, is_met: bool) {
        if is_met {
            self.met = Some(rate);
        } else {
            self.unmet = rate as f64;
        }
    }

    /// Whether they were met at every rate that was tried.
    pub(crate) fn is_at_ceiling(&self) -> bool {
        self.unmet == self.most && self.met.is_some()
    }

    /// The highest rate at which they were met.
    pub(crate) fn found(&self) -> Option<u64> {
        self.met
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(peak: f64, limit: u64) -> (Option<u64>, usize) {
        let (mut bisection, mut tried) = (Bisection::below(peak), 0);
        while let Some(rate) = bisection.next() {
            tried += 1;
            assert!(tried < 30, "it ends: {bisection:?}");
            bisection.tell(rate, rate <= limit);
        }
        (bisection.found(), tried)
    }

    #[test]
    fn the_rate_is_found_to_within_two_per_cent() {
        for limit in [2_000, 10_000, 54_321, 99_999] {
            let (found, tried) = search(100_000.0, limit);
            let found = found.expect("it is in reach");
            assert!(found <= limit && limit as f64 <= found as f64 * PRECISION + 1.0, "{found} of {limit}");
            assert!(tried <= 9, "{tried}");
        }
    }

    #[test]
    fn a_row_that_meets_them_at_any_rate_is_found_near_its_peak() {
        let (found, _) = search(100_000.0, u64::MAX);
        let mut bisection = Bisection::below(100.0);
        assert!(!bisection.is_at_ceiling(), "nothing was tried");
        bisection.tell(50, true);
        assert!(bisection.is_at_ceiling());
        bisection.tell(80, false);
        assert!(!bisection.is_at_ceiling());
        assert!(found.is_some_and(|found| (103_000..105_001).contains(&found)), "{found:?}");
    }

    #[test]
    fn what_is_out_of_reach_is_not_found() {
        assert_eq!(search(100_000.0, 1_000).0, None);
        assert_eq!(search(0.0, 0).0, None);
        assert_eq!(search(3.0, 1).0, Some(1));
    }
}
