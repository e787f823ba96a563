//! What a ratio with its interval means.

use serde::{Deserialize, Serialize};

use crate::stats::Estimate;

/// The smallest effect that counts as a difference, unless the command line says otherwise.
pub(crate) const MIN_EFFECT: f64 = 0.02;

/// What is compared; every ratio is the row's value over the baseline's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    Rps,
    P50,
    P99,
    ServerCpuPerRequest,
    TotalCpuPerRequest,
    SyscallsPerRequest,
    /// The highest rate at which the objectives are met.
    SloRate,
}

impl Metric {
    pub(crate) const ALL: [Self; 7] = [
        Self::Rps,
        Self::P50,
        Self::P99,
        Self::ServerCpuPerRequest,
        Self::TotalCpuPerRequest,
        Self::SyscallsPerRequest,
        Self::SloRate,
    ];

    /// As results and gates spell it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rps => "rps",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::ServerCpuPerRequest => "server_cpu_per_request",
            Self::TotalCpuPerRequest => "total_cpu_per_request",
            Self::SyscallsPerRequest => "syscalls_per_request",
            Self::SloRate => "slo_rate",
        }
    }

    /// What it is, for other tools.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Rps => "requests/s",
            Self::P50 => "p50 latency",
            Self::P99 => "p99 latency",
            Self::ServerCpuPerRequest => "server CPU a request",
            Self::TotalCpuPerRequest => "server and client CPU a request",
            Self::SyscallsPerRequest => "system calls a request",
            Self::SloRate => "requests/s within the objectives",
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Rps | Self::SloRate => "req/s",
            Self::SyscallsPerRequest => "calls",
            _ => "us",
        }
    }

    /// Whether more of it is better.
    pub(crate) fn is_rate(self) -> bool {
        matches!(self, Self::Rps | Self::SloRate)
    }

    pub(crate) fn is_latency(self) -> bool {
        matches!(self, Self::P50 | Self::P99)
    }

    fn verdicts(self) -> (Verdict, Verdict) {
        match self {
            _ if self.is_rate() => (Verdict::Faster, Verdict::Slower),
            Self::P50 | Self::P99 => (Verdict::Slower, Verdict::Faster),
            _ => (Verdict::Costlier, Verdict::Cheaper),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    Faster,
    Slower,
    Cheaper,
    Costlier,
    NoDifferenceShown,
    /// An open loop in which a row did not keep up: the two did not do the same.
    RateNotKept,
    Inconclusive,
}

impl Verdict {
    pub(crate) const ALL: [Self; 7] = [
        Self::Faster,
        Self::Slower,
        Self::Cheaper,
        Self::Costlier,
        Self::NoDifferenceShown,
        Self::RateNotKept,
        Self::Inconclusive,
    ];

    /// For people.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Faster => "faster",
            Self::Slower => "slower",
            Self::Cheaper => "cheaper",
            Self::Costlier => "costlier",
            Self::NoDifferenceShown => "no difference shown",
            Self::RateNotKept => "the rate not kept",
            Self::Inconclusive => "inconclusive",
        }
    }

    /// Judges a metric: a difference counts if the interval excludes 1 and the effect reaches
    /// `min_effect`, and is denied if the whole interval lies within it.
    pub(crate) fn of(metric: Metric, estimate: &Estimate, min_effect: f64) -> Self {
        let Some((low, high)) = estimate.interval else {
            return Self::Inconclusive;
        };
        let (above, below) = metric.verdicts();
        let upper = 1.0 + min_effect;
        let lower = 1.0 / upper;
        if low > 1.0 && estimate.ratio >= upper {
            above
        } else if high < 1.0 && estimate.ratio <= lower {
            below
        } else if low >= lower && high <= upper {
            Self::NoDifferenceShown
        } else {
            Self::Inconclusive
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(metric: Metric, ratio: f64, low: f64, high: f64) -> Verdict {
        let estimate = Estimate { ratio, interval: Some((low, high)), p: 0.01 };
        Verdict::of(metric, &estimate, 0.02)
    }

    #[test]
    fn a_clear_effect_has_the_direction_of_its_metric() {
        assert_eq!(verdict(Metric::Rps, 1.07, 1.05, 1.09), Verdict::Faster);
        assert_eq!(verdict(Metric::Rps, 0.93, 0.9, 0.95), Verdict::Slower);
        assert_eq!(verdict(Metric::P99, 1.07, 1.05, 1.09), Verdict::Slower);
        assert_eq!(verdict(Metric::P50, 0.9, 0.8, 0.95), Verdict::Faster);
        assert_eq!(verdict(Metric::SyscallsPerRequest, 0.1, 0.08, 0.12), Verdict::Cheaper);
        assert_eq!(verdict(Metric::TotalCpuPerRequest, 1.2, 1.1, 1.3), Verdict::Costlier);
    }

    #[test]
    fn names_are_those_of_results() {
        for metric in Metric::ALL {
            assert_eq!(serde_json::to_value(metric).expect("serialises"), metric.name());
        }
    }

    #[test]
    fn an_interval_within_the_margin_shows_no_difference() {
        assert_eq!(verdict(Metric::Rps, 1.001, 0.99, 1.01), Verdict::NoDifferenceShown);
        assert_eq!(verdict(Metric::Rps, 1.01, 1.005, 1.015), Verdict::NoDifferenceShown);
    }

    #[test]
    fn everything_else_is_inconclusive() {
        assert_eq!(verdict(Metric::Rps, 1.05, 0.97, 1.12), Verdict::Inconclusive);
        assert_eq!(verdict(Metric::Rps, 1.015, 1.005, 1.04), Verdict::Inconclusive);
        let few = Estimate { ratio: 2.0, interval: None, p: 0.0625 };
        assert_eq!(Verdict::of(Metric::Rps, &few, 0.02), Verdict::Inconclusive);
    }
}
