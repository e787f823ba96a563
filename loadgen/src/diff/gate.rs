//! Gates: what must hold of a change, as `rps>-3%` spells it.

use std::{fmt, str::FromStr};

use serde::Serialize;

use super::{Change, Lost};
use crate::{error::Error, verdict::Metric};

/// A change beyond which nobody needs a gate.
const PER_CENT_MAX: f64 = 1e6;

/// A metric, the series it is of, and the bound of its ratio.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Gate {
    metric: Metric,
    /// A row, or two as `a/b`; None for every row.
    series: Option<String>,
    /// Whether the bound is the lowest ratio that is let pass; else it is the highest.
    is_floor: bool,
    per_cent: f64,
}

/// What a gate let pass, and what not.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    pub(super) gate: String,
    pub(super) passed: bool,
    /// How many changes it judged.
    pub(super) judged: usize,
    pub(super) failures: Vec<Failure>,
    /// What OLD tells and NEW does not, where it should have been judged.
    pub(super) lost: Vec<String>,
}

/// A change that a gate did not let pass.
#[derive(Debug, Serialize)]
pub(super) struct Failure {
    pub(super) series: String,
    pub(super) point: String,
    pub(super) ratio: f64,
    pub(super) low: Option<f64>,
    pub(super) high: Option<f64>,
    /// Why no interval had a say; None if it had.
    pub(super) by_estimate_alone: Option<String>,
}

impl FromStr for Gate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "write it as 'rps>-3%', 'p99[epoll]<+10%' or 'rps[io_uring/epoll]>-3%'";
        let at = text.find(['>', '<']).ok_or_else(|| format!("'{text}' has no bound; {form}"))?;
        let (what, bound) = (text[..at].trim(), text[at + 1..].trim());
        let (metric, series) = match what.split_once('[') {
            None => (what, None),
            Some((metric, rest)) => {
                let series = rest.strip_suffix(']').map(str::trim).filter(|series| !series.is_empty());
                (metric.trim(), Some(series.ok_or_else(|| format!("'{what}' names no row; {form}"))?))
            }
        };
        let metric = Metric::ALL.into_iter().find(|known| known.name() == metric).ok_or_else(|| {
            format!("'{metric}' is no metric; there are {}", Metric::ALL.map(Metric::name).join(", "))
        })?;
        let per_cent = bound.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
        match per_cent {
            Some(per_cent) if per_cent > -100.0 && per_cent <= PER_CENT_MAX => Ok(Self {
                metric,
                series: series.map(str::to_owned),
                is_floor: text[at..].starts_with('>'),
                per_cent,
            }),
            _ => Err(format!("'{bound}' is no change in per cent above -100%; {form}")),
        }
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let series = self.series.as_ref().map(|series| format!("[{series}]")).unwrap_or_default();
        let than = if self.is_floor { '>' } else { '<' };
        write!(f, "{}{series}{than}{:+}%", self.metric.name(), self.per_cent)
    }
}

impl Gate {
    /// Judges all changes that it is about; one that is about none was meant otherwise.
    pub(super) fn judge(&self, changes: &[Change], lost: &[Lost]) -> Result<Outcome, Error> {
        let about = |series: &str, is_ratio, metric| self.is_about(series, is_ratio, metric);
        let judged: Vec<&Change> =
            changes.iter().filter(|change| about(&change.series, change.is_ratio, change.metric)).collect();
        let lost = lost.iter().filter(|lost| about(&lost.series, lost.is_ratio, lost.metric));
        let lost: Vec<String> = lost.map(|lost| format!("{} over {}", lost.series, lost.point)).collect();
        if judged.is_empty() && lost.is_empty() {
            let mut there: Vec<String> =
                changes.iter().map(|change| change.series.replace(" / ", "/")).collect();
            there.dedup();
            there.sort();
            there.dedup();
            return Err(Error::usage(format!(
                "the gate {self} is about nothing that both results tell; there are {}",
                there.join(", ")
            )));
        }
        let failures: Vec<Failure> = judged.iter().filter_map(|change| self.failure(change)).collect();
        let passed = failures.is_empty() && lost.is_empty();
        Ok(Outcome { gate: self.to_string(), passed, judged: judged.len(), failures, lost })
    }

    fn is_about(&self, series: &str, is_ratio: bool, metric: Metric) -> bool {
        let named = match &self.series {
            None => !is_ratio,
            Some(named) => named == series || *named == series.replace(" / ", "/"),
        };
        named && self.metric == metric
    }

    fn failure(&self, change: &Change) -> Option<Failure> {
        let by_estimate_alone = if !self.lets_pass(1.0) {
            Some("no change would break it too".into())
        } else if change.low.is_none() {
            let (old, new) = (change.rounds_old, change.rounds_new);
            Some(format!("{old} and {new} rounds are too few for an interval"))
        } else {
            None
        };
        let decided = by_estimate_alone.is_some() || change.excludes_no_change();
        (!self.lets_pass(change.ratio) && decided).then(|| Failure {
            series: change.series.clone(),
            point: change.point.to_string(),
            ratio: change.ratio,
            low: change.low,
            high: change.high,
            by_estimate_alone,
        })
    }

    fn lets_pass(&self, ratio: f64) -> bool {
        let bound = 1.0 + self.per_cent / 100.0;
        if self.is_floor { ratio > bound } else { ratio < bound }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(text: &str) -> Gate {
        text.parse().expect(text)
    }

    fn change(series: &str, ratio: f64, interval: Option<(f64, f64)>) -> Change {
        let point = crate::result::Cell::of_test("epoll", 1, 64).point;
        let values = [1.0, 1.1];
        let change =
            Change::of(series.into(), &point, Metric::Rps, (1.0, 1.0), &values, &values).expect("valid");
        let (low, high) = (interval.map(|ends| ends.0), interval.map(|ends| ends.1));
        Change { is_ratio: series.contains(" / "), ratio, low, high, ..change }
    }

    fn passes(text: &str, ratio: f64, interval: Option<(f64, f64)>) -> bool {
        gate(text).judge(&[change("epoll", ratio, interval)], &[]).expect("it is about this").passed
    }

    #[test]
    fn gates_read_back_as_they_are_written() {
        for text in ["rps>-3%", "p99[epoll]<+10%", "rps[io_uring/epoll]>-2.5%", "server_cpu_per_request<+0%"]
        {
            assert_eq!(gate(text).to_string(), text);
        }
        assert_eq!(gate(" rps [ io_uring:direct ] > -3 % ").to_string(), "rps[io_uring:direct]>-3%");
        assert_eq!(gate("rps[tcp://[::1]:80]>-3%").series.as_deref(), Some("tcp://[::1]:80"));
    }

    #[test]
    fn wrong_gates_say_what_is_right() {
        for (text, word) in [
            ("rps", "no bound"),
            ("speed>-3%", "there are rps, p50, p99, server_cpu_per_request"),
            ("rps>-3", "no change in per cent"),
            ("rps>-100%", "above -100%"),
            ("rps>nan%", "no change"),
            ("rps>inf%", "no change"),
            ("rps>x%", "no change"),
            ("rps[]>-3%", "names no row"),
            ("rps[epoll>-3%", "names no row"),
            ("", "no bound"),
        ] {
            assert!(text.parse::<Gate>().unwrap_err().contains(word), "{text}");
        }
    }

    #[test]
    fn it_takes_a_broken_bound_and_an_interval_without_no_change() {
        assert!(!passes("rps>-3%", 0.9, Some((0.85, 0.95))));
        assert!(passes("rps>-3%", 0.9, Some((0.8, 1.01))), "it may be noise");
        assert!(passes("rps>-3%", 0.98, Some((0.97, 0.99))), "it is small");
        assert!(passes("rps>-3%", 1.5, Some((1.4, 1.6))));
        assert!(!passes("rps<+10%", 1.2, Some((1.1, 1.3))));
        assert!(passes("rps<+10%", 0.5, Some((0.4, 0.6))));
    }

    #[test]
    fn without_an_interval_the_estimate_decides() {
        assert!(!passes("rps>-3%", 0.9, None) && passes("rps>-3%", 0.98, None));
        let outcome = gate("rps>-3%").judge(&[change("epoll", 0.9, None)], &[]).expect("it is about this");
        let why = outcome.failures[0].by_estimate_alone.as_deref();
        assert_eq!(why, Some("2 and 2 rounds are too few for an interval"));
    }

    #[test]
    fn a_gate_that_asks_for_a_change_is_not_met_by_noise() {
        assert!(!passes("rps>+5%", 1.02, Some((0.9, 1.2))));
        assert!(passes("rps>+5%", 1.06, Some((0.9, 1.2))));
    }

    #[test]
    fn brackets_choose_a_row_or_a_ratio() {
        let changes = ["io_uring", "epoll", "io_uring / epoll"].map(|series| change(series, 0.5, None));
        let failing = |text: &str| -> Vec<String> {
            let failures = gate(text).judge(&changes, &[]).expect(text).failures;
            failures.into_iter().map(|failure| failure.series).collect()
        };
        assert_eq!(failing("rps>-3%"), ["io_uring", "epoll"]);
        assert_eq!(failing("rps[epoll]>-3%"), ["epoll"]);
        assert_eq!(failing("rps[io_uring/epoll]>-3%"), ["io_uring / epoll"]);
        assert_eq!(failing("rps[io_uring / epoll]>-3%"), ["io_uring / epoll"]);
        for nothing in ["rps[threads]>-3%", "p99>-3%", "rps[epoll/io_uring]>-3%"] {
            let error = gate(nothing).judge(&changes, &[]).expect_err(nothing);
            assert!(error.to_string().contains("epoll, io_uring, io_uring/epoll"), "{error}");
        }
    }

    #[test]
    fn what_new_tells_no_more_is_let_pass_by_no_gate_that_is_about_it() {
        let point = change("epoll", 1.0, None).point;
        let lost = |series: &str, is_ratio| {
            [Lost { series: series.into(), is_ratio, point: point.clone(), metric: Metric::Rps }]
        };
        let judge = |text, lost: &[Lost]| gate(text).judge(&[change("epoll", 1.0, None)], lost).expect(text);
        assert!(!judge("rps>-3%", &lost("io_uring", false)).passed);
        assert!(judge("rps[epoll]>-3%", &lost("io_uring", false)).passed, "it is about another row");
        assert!(
            !judge("rps[io_uring]>-3%", &lost("io_uring", false)).passed,
            "nothing else is there to judge"
        );
        assert!(!judge("rps[io_uring/epoll]>-3%", &lost("io_uring / epoll", true)).passed);
        assert!(judge("rps>-3%", &lost("io_uring / epoll", true)).passed, "no row is missing");
    }
}
