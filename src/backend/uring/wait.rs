//! How many completions a wait is for: a pure function of what recent waits gave.
//!
//! Waiting for more than one lets the kernel gather completions without waking the thread, which
//! is where io_uring saves most under load. It is safe only with both a minimal wait and a
//! timeout: without the first the kernel sleeps until the last of them, without the second an idle
//! loop wakes every minimal wait. So [`Wait`] has no way to say one without the other.

use std::time::Duration;

/// More than this many gains nothing, and the receive buffers must hold twice as many.
pub(crate) const COUNT_MAX: u32 = 48;
/// How long completions may gather at most. A sleeping core takes about as long to wake.
const GATHER: Duration = Duration::from_micros(40);

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// The first completion.
    One,
    /// This many completions, or whatever has come after `gather`, or the first one after that.
    Many {
        /// More than 1.
        count: u32,
        /// How long they may gather; never 0.
        gather: Duration,
    },
}

/// What recent waits gave: a moving average of eighths of a completion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Recent {
    eighths: u32,
}

impl Recent {
    /// What the next wait should be for: half of what came lately.
    pub(crate) fn wait(self) -> Wait {
        match (self.eighths / 16).min(COUNT_MAX) {
            0 | 1 => Wait::One,
            count => Wait::Many { count, gather: GATHER },
        }
    }

    /// Learns from a wait that gave `got` completions. Slow to grow, quick to shrink: a wait that
    /// ran out before it was filled halves what is expected.
    pub(crate) fn after(self, waited: Wait, got: u32) -> Self {
        let got = got.min(2 * COUNT_MAX + 4) * 8;
        let unfilled = matches!(waited, Wait::Many { count, .. } if got < count * 8);
        let eighths = if unfilled {
            (self.eighths / 2).max(got)
        } else if got < self.eighths {
            (self.eighths + got) / 2
        } else {
            (self.eighths * 3 + got) / 4
        };
        Self { eighths }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The state after a series of waits that gave these numbers of completions.
    fn after(start: Recent, got: impl IntoIterator<Item = u32>) -> Recent {
        got.into_iter().fold(start, |recent, got| recent.after(recent.wait(), got))
    }

    #[test]
    fn a_quiet_loop_waits_for_one() {
        assert_eq!(Recent::default().wait(), Wait::One);
        assert_eq!(after(Recent::default(), [1; 100]).wait(), Wait::One);
        assert_eq!(after(Recent::default(), [3; 100]).wait(), Wait::One);
    }

    #[test]
    fn a_busy_loop_waits_for_half_of_what_comes_and_never_for_more_than_the_bound() {
        assert_eq!(after(Recent::default(), [20; 50]).wait(), Wait::Many { count: 9, gather: GATHER });
        let Wait::Many { count, .. } = after(Recent::default(), [1000; 50]).wait() else { panic!() };
        assert_eq!(count, COUNT_MAX);
    }

    #[test]
    fn after_a_burst_of_1000_three_connections_are_soon_waited_for_one_by_one() {
        let mut recent = after(Recent::default(), [1000; 20]);
        let mut turns = 0;
        while recent.wait() != Wait::One {
            recent = recent.after(recent.wait(), 3);
            turns += 1;
        }
        assert!(turns <= 6, "{turns} turns");
    }

    #[test]
    fn an_unfilled_wait_halves_the_next_one() {
        let recent = after(Recent::default(), [64; 50]);
        let Wait::Many { count: before, .. } = recent.wait() else { panic!() };
        let Wait::Many { count, .. } = recent.after(recent.wait(), before - 1).wait() else { panic!() };
        assert!(count <= before.div_ceil(2).max(before - 1), "{before} then {count}");
        assert!(count < before);
    }

    #[test]
    fn more_than_one_is_never_waited_for_without_a_bound_on_gathering() {
        let mut recent = Recent::default();
        let mut random = 7u32;
        for _ in 0..100_000 {
            random = random.wrapping_mul(1664525).wrapping_add(1013904223);
            recent = recent.after(recent.wait(), (random >> 8) % 200);
            if let Wait::Many { count, gather } = recent.wait() {
                assert!(count > 1 && count <= COUNT_MAX && !gather.is_zero());
            }
        }
    }
}
