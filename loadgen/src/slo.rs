//! Service-level objectives: `response.p99<2ms`, `rps>100k`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    result::{Latency, Paced},
    units,
};

/// Which time is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Time {
    /// Whatever the run counts as its latency.
    Latency,
    Response,
    Service,
    Lag,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Statistic {
    Mean,
    P50,
    P90,
    P99,
    P999,
    Max,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    /// Must stay below the bound, in microseconds.
    Time(Time, Statistic),
    /// Must stay above the bound.
    Rate,
}

/// What a server is to keep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Objective {
    subject: Subject,
    bound: f64,
    text: String,
}

const TIMES: [(&str, Time); 4] = [
    ("latency", Time::Latency),
    ("response", Time::Response),
    ("service", Time::Service),
    ("lag", Time::Lag),
];
const STATISTICS: [(&str, Statistic); 6] = [
    ("mean", Statistic::Mean),
    ("p50", Statistic::P50),
    ("p90", Statistic::P90),
    ("p99", Statistic::P99),
    ("p999", Statistic::P999),
    ("max", Statistic::Max),
];

impl FromStr for Objective {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no objective; write it as response.p99<2ms or rps>100k");
        if let Some(rate) = text.strip_prefix("rps>") {
            let bound = units::count(rate)? as f64;
            return Ok(Self { subject: Subject::Rate, bound, text: text.into() });
        }
        let (subject, bound) = text.split_once('<').ok_or_else(wrong)?;
        let (time, statistic) = subject.split_once('.').ok_or_else(wrong)?;
        let subject = Subject::Time(named(&TIMES, time)?, named(&STATISTICS, statistic)?);
        let bound = units::duration(bound)?.as_secs_f64() * 1e6;
        Ok(Self { subject, bound, text: text.into() })
    }
}

fn named<T: Copy>(all: &[(&str, T)], word: &str) -> Result<T, String> {
    let found = all.iter().find(|(name, _)| *name == word).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        format!("'{word}' is none of {}", names.join(", "))
    })
}

impl TryFrom<String> for Objective {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Objective> for String {
    fn from(objective: Objective) -> Self {
        objective.text
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The times that an objective may be about. None where slow ones are missing or nothing was measured.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Measured<'a> {
    pub(crate) rps: Option<f64>,
    /// The response time in an open loop.
    pub(crate) latency: Option<&'a Latency>,
    pub(crate) service: Option<&'a Latency>,
    pub(crate) lag: Option<&'a Latency>,
}

impl<'a> Measured<'a> {
    pub(crate) fn with_paced(self, paced: Option<&'a Paced>) -> Self {
        let service = paced.and_then(|paced| paced.service.as_ref());
        Self { service, lag: paced.and_then(|paced| paced.lag.as_ref()), ..self }
    }
}

impl Objective {
    /// Whether it is about what only an open loop knows.
    pub(crate) fn needs_rate(&self) -> bool {
        matches!(self.subject, Subject::Time(Time::Response | Time::Service | Time::Lag, _))
    }

    /// Whether it is about the rate itself.
    pub(crate) fn is_rate(&self) -> bool {
        self.subject == Subject::Rate
    }

    /// What was measured of it, in its own unit.
    pub(crate) fn value(&self, measured: Measured<'_>) -> Option<f64> {
        match self.subject {
            Subject::Rate => measured.rps,
            Subject::Time(time, statistic) => {
                let latency = match time {
                    Time::Latency | Time::Response => measured.latency,
                    Time::Service => measured.service,
                    Time::Lag => measured.lag,
                }?;
                Some(match statistic {
                    Statistic::Mean => latency.mean_us,
                    Statistic::P50 => latency.p50_us,
                    Statistic::P90 => latency.p90_us,
                    Statistic::P99 => latency.p99_us,
                    Statistic::P999 => latency.p999_us,
                    Statistic::Max => latency.max_us,
                })
            }
        }
    }

    /// Whether it is met; what was not measured is not.
    pub(crate) fn is_met(&self, measured: Measured<'_>) -> bool {
        let value = self.value(measured);
        match self.subject {
            Subject::Rate => value.is_some_and(|value| value > self.bound),
            Subject::Time(..) => value.is_some_and(|value| value < self.bound),
        }
    }

    /// The value as people read it.
    pub(crate) fn told(&self, value: Option<f64>) -> String {
        match (value, self.subject) {
            (None, _) => "not available, as some requests were never answered".into(),
            (Some(value), Subject::Rate) => format!("{value:.0}"),
            (Some(value), Subject::Time(..)) => format!("{value:.0} us"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latency(p99_us: f64) -> Latency {
        Latency { mean_us: 1.0, p50_us: 2.0, p90_us: 3.0, p99_us, p999_us: 5.0, max_us: 6.0 }
    }

    #[test]
    fn objectives_bound_times_from_above_and_rates_from_below() {
        let fast = latency(1_999.0);
        let slow = latency(2_000.0);
        let objective: Objective = "response.p99<2ms".parse().expect("valid");
        let of = |latency| Measured { latency: Some(latency), ..Measured::default() };
        assert!(objective.is_met(of(&fast)) && !objective.is_met(of(&slow)));
        assert!(!objective.is_met(Measured::default()), "what is not known is not met");
        let objective: Objective = "lag.max<10us".parse().expect("valid");
        assert!(objective.needs_rate());
        assert!(objective.is_met(Measured { lag: Some(&fast), ..Measured::default() }));
        let objective: Objective = "rps>100k".parse().expect("valid");
        assert!(!objective.needs_rate());
        let at = |rps| Measured { rps: Some(rps), ..Measured::default() };
        assert!(objective.is_met(at(100_001.0)) && !objective.is_met(at(100_000.0)));
    }

    #[test]
    fn wrong_objectives_say_what_there_is() {
        for (text, word) in [
            ("p99<2ms", "response.p99<2ms"),
            ("response.p95<2ms", "p50, p90, p99"),
            ("reply.p99<2ms", "latency, response"),
            ("response.p99<2", "500ms"),
            ("response.p99>2ms", "no objective"),
            ("rps>0", "at least 1"),
        ] {
            assert!(text.parse::<Objective>().unwrap_err().contains(word), "{text}");
        }
    }
}
