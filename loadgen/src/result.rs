//! The result as it is written: everything about a run, described by `result.schema.json`.

use std::collections::BTreeMap;

use clap::ValueEnum;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::{
    cell::Place,
    cli::Settings,
    control::Identity,
    engine::{DatagramCounts, Failure, open_loop::PacedCounts},
    error::Error,
    histogram, http,
    machine::{Git, Machine},
    measure::TcpTrouble,
    mode::{CHURN, IDLE, PUSH},
    pinning::Cpus,
    point::Point,
    slo::{Measured, Objective},
    stats::Estimate,
    target::Transport,
    verdict::{Metric, Verdict},
};

pub(crate) const SCHEMA: &str = "ringspun-loadgen/1";
const SWEEP: &str = "sweep";

/// A whole run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Document {
    pub(crate) schema: String,
    /// Whether every cell of the plan is there.
    pub(crate) complete: bool,
    pub(crate) interrupted: bool,
    /// What ended the run early.
    pub(crate) error: Option<String>,
    pub(crate) loadgen_version: String,
    pub(crate) command: Vec<String>,
    pub(crate) started: String,
    pub(crate) finished: Option<String>,
    pub(crate) git: Option<Git>,
    pub(crate) machine: Machine,
    /// The other machines whose results were merged into this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) merged_from: Vec<Origin>,
    pub(crate) settings: Recorded,
    /// Row names by round, in the order in which they ran.
    pub(crate) plan: Vec<Vec<String>>,
    pub(crate) cells: Vec<Cell>,
    /// What a search has found; empty for other commands.
    #[serde(default)]
    pub(crate) found: Vec<Found>,
    pub(crate) comparisons: Vec<Comparison>,
    pub(crate) summary: Option<Summary>,
}

/// A machine whose result became part of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    pub(crate) kernel: String,
    pub(crate) cpu_model: Option<String>,
}

impl Document {
    /// As it is written.
    pub(crate) fn to_json(&self) -> Result<String, Error> {
        let mut json = serde_json::to_string_pretty(self)
            .map_err(|error| Error::internal(format!("the result cannot be written as JSON: {error}")))?;
        json.push('\n');
        Ok(json)
    }
}

/// The settings as they applied, defaults included.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Recorded {
    pub(crate) mode: String,
    /// tcp, unix or udp.
    #[serde(default = "tcp")]
    pub(crate) transport: String,
    #[serde(default)]
    /// How connections end; null unless they come and go.
    pub(crate) close: Option<String>,
    #[serde(default)]
    /// The path of a GET; null unless HTTP is spoken.
    pub(crate) http: Option<String>,
    #[serde(default)]
    pub(crate) think_seconds: f64,
    #[serde(default)]
    pub(crate) ramp_seconds: f64,
    pub(crate) command: String,
    pub(crate) rows: Vec<String>,
    pub(crate) baseline: String,
    pub(crate) primary_metric: Metric,
    pub(crate) rounds: usize,
    pub(crate) order: String,
    pub(crate) min_effect: f64,
    /// The row that is the baseline again; null without one.
    #[serde(default)]
    pub(crate) control: Option<String>,
    /// What every row is to keep.
    #[serde(default)]
    pub(crate) objectives: Vec<Objective>,
    pub(crate) points: Vec<Point>,
    pub(crate) duration_seconds: f64,
    pub(crate) warmup_seconds: f64,
    pub(crate) timeout_seconds: f64,
    /// null in a closed loop, as is the one below.
    pub(crate) arrival: Option<String>,
    pub(crate) pace: Option<String>,
    /// The share of stolen time above which a cell is spoiled.
    #[serde(default = "usual_steal")]
    pub(crate) max_steal: f64,
    pub(crate) seed: u64,
    pub(crate) verify: String,
    pub(crate) client: String,
    /// Requests handed to the kernel at once; null for 8 in an open loop, all of a turn in a closed one.
    #[serde(default)]
    pub(crate) burst: Option<usize>,
    pub(crate) server_cpu: Option<usize>,
    pub(crate) client_cpu: Option<usize>,
    pub(crate) tcp_nodelay: bool,
}

impl Recorded {
    pub(crate) fn of(settings: &Settings, cpus: Cpus) -> Self {
        Self {
            mode: settings.manner.name().into(),
            transport: settings.manner.transport.name().into(),
            close: settings.manner.close.and_then(word),
            http: settings.manner.http.clone(),
            think_seconds: settings.manner.think.as_secs_f64(),
            ramp_seconds: settings.manner.ramp.as_secs_f64(),
            command: settings.command.into(),
            rows: settings.row_names(),
            baseline: settings.row_name(settings.baseline),
            primary_metric: settings.primary_metric(),
            rounds: settings.rounds,
            order: settings.order.name().into(),
            min_effect: settings.min_effect,
            control: settings.control.then(|| settings.row_name(settings.rows.len() - 1)),
            objectives: settings.objectives.clone(),
            points: settings.points.clone(),
            duration_seconds: settings.duration.as_secs_f64(),
            warmup_seconds: settings.warmup.as_secs_f64(),
            timeout_seconds: settings.timeout.as_secs_f64(),
            arrival: settings.has_arrivals().then(|| word(settings.arrival)).flatten(),
            pace: settings.has_arrivals().then(|| word(settings.pace)).flatten(),
            max_steal: settings.max_steal,
            seed: settings.seed,
            verify: settings.verify.name().into(),
            client: word(settings.manner.client).unwrap_or_default(),
            burst: settings.manner.burst,
            server_cpu: cpus.server,
            client_cpu: cpus.client,
            tcp_nodelay: settings.manner.transport == Transport::Tcp,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.mode == IDLE
    }

    /// What is counted, and how its rate is written.
    pub(crate) fn counted(&self) -> (&'static str, &'static str) {
        match self.mode.as_str() {
            CHURN => ("connection", "conn/s"),
            PUSH => ("delivery", "deliv/s"),
            _ => ("request", "req/s"),
        }
    }

    /// Whether it is the curve that matters, not each point.
    pub(crate) fn is_sweep(&self) -> bool {
        self.command == SWEEP
    }

    /// Whether rows are compared; idle ones are there once, which is no comparison.
    pub(crate) fn compares(&self) -> bool {
        self.rows.len() > 1 && !self.is_idle()
    }

    /// The rows of which a verdict is given: the control is there for their sake.
    pub(crate) fn judged(&self) -> impl Iterator<Item = &String> {
        self.others().filter(|row| self.control.as_ref() != Some(*row))
    }

    /// The rows that are compared with the baseline.
    pub(crate) fn others(&self) -> impl Iterator<Item = &String> {
        self.rows.iter().filter(|row| **row != self.baseline)
    }
}

/// The highest rate at which a row met the objectives, in one round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) row: String,
    pub(crate) round: usize,
    #[serde(flatten)]
    pub(crate) point: Point,
    /// Requests a second in a closed loop.
    pub(crate) peak: f64,
    /// null if they were not met at any rate that was tried.
    pub(crate) slo_rate: Option<u64>,
    /// Whether they were met at every rate that was tried: the row may do more.
    #[serde(default)]
    pub(crate) at_ceiling: bool,
    /// Whether the client was at its limit at that rate: the row may do more.
    #[serde(default)]
    pub(crate) client_bound: bool,
}

/// As the command line spells it.
fn word(value: impl ValueEnum) -> Option<String> {
    value.to_possible_value().map(|value| value.get_name().to_owned())
}

/// One cell. What was not measured is null.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cell {
    pub(crate) row: String,
    pub(crate) round: usize,
    #[serde(flatten)]
    pub(crate) point: Point,
    /// Whether it repeats a spoiled cell.
    pub(crate) repeat: bool,
    /// Whether it only asks what a rate does; what it tells is in `found`.
    #[serde(default)]
    pub(crate) probe: bool,
    /// Whether a check failed, so that it counts for nothing.
    pub(crate) spoiled: bool,
    pub(crate) server: Option<Identity>,
    /// Processes that the client was; more than one for more idle connections than one may have.
    #[serde(default = "one")]
    pub(crate) client_processes: usize,
    /// When the window opened, in seconds since 1970; null if it never did.
    pub(crate) window_opened_unix_seconds: Option<f64>,
    pub(crate) ramp_seconds: f64,
    pub(crate) window_seconds: f64,
    pub(crate) counts: Counts,
    pub(crate) rps: Option<f64>,
    pub(crate) latency: Option<Latency>,
    #[serde(default, with = "histogram")]
    pub(crate) histogram: Option<Histogram<u64>>,
    /// null in a closed loop.
    pub(crate) paced: Option<Paced>,
    /// What every response was like; null unless HTTP is spoken.
    #[serde(default)]
    pub(crate) response: Option<http::Response>,
    /// null unless the connections were idle.
    pub(crate) idle: Option<Idle>,
    /// Requests of each tenth of a second of the window.
    #[serde(default)]
    pub(crate) series: Vec<u64>,
    pub(crate) costs: Costs,
    /// What became of the datagrams; null over TCP and Unix sockets.
    #[serde(default)]
    pub(crate) datagrams: Option<DatagramCounts>,
    /// What the kernel's TCP had to repair within the window; null if it does not tell.
    pub(crate) tcp: Option<TcpTrouble>,
    pub(crate) errors: Vec<Failure>,
    pub(crate) checks: Vec<Check>,
    pub(crate) error: Option<String>,
}

impl Cell {
    pub(crate) fn new(row: String, place: &Place) -> Self {
        Self {
            row,
            round: place.round,
            point: place.point.clone(),
            repeat: place.repeat,
            probe: false,
            spoiled: false,
            server: None,
            client_processes: 1,
            window_opened_unix_seconds: None,
            ramp_seconds: 0.0,
            window_seconds: 0.0,
            counts: Counts { connections_asked: place.point.connections, ..Counts::default() },
            rps: None,
            latency: None,
            histogram: None,
            paced: None,
            response: None,
            idle: None,
            series: Vec::new(),
            costs: Costs::default(),
            datagrams: None,
            tcp: None,
            errors: Vec::new(),
            checks: Vec::new(),
            error: None,
        }
    }

    /// One over connections that ask 64 bytes of this row.
    #[cfg(test)]
    pub(crate) fn of_test(row: &str, round: usize, connections: usize) -> Self {
        let size = "64".parse().expect("a size");
        let point = Point { connections, size, pipeline: 1, rate: None };
        Self::new(row.into(), &Place { round, row: 0, point, repeat: false })
    }

    /// Whether its figures may be compared.
    pub(crate) fn counts_for_comparison(&self) -> bool {
        self.error.is_none() && !self.spoiled && !self.probe
    }

    /// Whether it tells what its rate does: it was not spoiled, and nothing was left unsent.
    pub(crate) fn counts_as_probe(&self) -> bool {
        self.error.is_none()
            && !self.spoiled
            && self.checks.iter().all(|check| check.passed || check.name != "rate_kept")
    }

    /// What objectives are about.
    pub(crate) fn measured(&self) -> Measured<'_> {
        let measured = Measured { rps: self.rps, latency: self.fair_latency(), ..Measured::default() };
        measured.with_paced(self.paced.as_ref())
    }

    /// Whether the latency leaves out the slowest: a server that lets some connections wait serves the
    /// others the sooner, and a request that was never sent has no latency.
    pub(crate) fn hides_latency(&self) -> bool {
        self.counts.connections_starved > 0 || self.paced.as_ref().is_some_and(|paced| paced.dropped > 0)
    }

    fn fair_latency(&self) -> Option<&Latency> {
        self.latency.as_ref().filter(|_| !self.hides_latency())
    }

    pub(crate) fn metric(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Rps => self.rps,
            Metric::P50 => Some(self.fair_latency()?.p50_us),
            Metric::P99 => Some(self.fair_latency()?.p99_us),
            Metric::ServerCpuPerRequest => self.costs.server_cpu_us_per_request,
            Metric::TotalCpuPerRequest => self.costs.total_cpu_us_per_request,
            Metric::SyscallsPerRequest => self.costs.syscalls_per_request,
            Metric::SloRate => None,
        }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) requests: u64,
    pub(crate) requests_all_phases: u64,
    pub(crate) bytes_each_way: u64,
    #[serde(default)]
    pub(crate) bytes_sent_all_phases: u64,
    #[serde(default)]
    pub(crate) connections_made: u64,
    pub(crate) connections_asked: usize,
    pub(crate) connections_alive: usize,
    pub(crate) connections_starved: usize,
}

/// Time from sending a request to its whole reply; in an open loop from the moment that was meant, with churn from
/// the beginning of the connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) mean_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
}

impl Latency {
    /// None if nothing was recorded.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let quantile = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        (!histogram.is_empty()).then(|| Self {
            mean_us: histogram.mean() / 1e3,
            p50_us: quantile(0.5),
            p90_us: quantile(0.9),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            max_us: histogram.max() as f64 / 1e3,
        })
    }
}

/// What idle connections cost. The bytes are what was added since the server listened, shared out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Idle {
    pub(crate) connections_per_second: f64,
    pub(crate) server_bytes_per_connection: Option<f64>,
    pub(crate) client_bytes_per_connection: Option<f64>,
    /// Of the whole machine, so of both ends if both are here.
    pub(crate) kernel_bytes_per_connection: Option<f64>,
    /// Connections, chosen at random, that were asked at the end.
    pub(crate) pinged: usize,
    pub(crate) answered: usize,
}

/// What an open loop counts beside its replies, of the requests that arrived within the window. The
/// latency of its cell is the response time: from the intended moment to the reply.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Paced {
    pub(crate) offered: u64,
    /// Found no free connection and had to wait for one.
    pub(crate) late: u64,
    /// Were never sent.
    pub(crate) dropped: u64,
    /// From the intended moment to the real one.
    pub(crate) lag: Option<Latency>,
    /// From sent to answered.
    pub(crate) service: Option<Latency>,
    #[serde(default, with = "histogram")]
    pub(crate) lag_histogram: Option<Histogram<u64>>,
    #[serde(default, with = "histogram")]
    pub(crate) service_histogram: Option<Histogram<u64>>,
}

impl From<&PacedCounts> for Paced {
    fn from(counts: &PacedCounts) -> Self {
        let PacedCounts { offered, late, dropped, lag, service } = counts;
        Self {
            offered: *offered,
            late: *late,
            dropped: *dropped,
            lag: Latency::of(lag),
            service: Latency::of(service),
            lag_histogram: Some(lag.clone()),
            service_histogram: Some(service.clone()),
        }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Costs {
    pub(crate) server_cpu_us_per_request: Option<f64>,
    pub(crate) client_cpu_us_per_request: Option<f64>,
    pub(crate) total_cpu_us_per_request: Option<f64>,
    pub(crate) syscalls_per_request: Option<f64>,
    pub(crate) syscalls_in_window: BTreeMap<String, u64>,
    /// Completions (io_uring) or ready descriptors (epoll) a wait.
    pub(crate) events_per_wait: Option<f64>,
    pub(crate) voluntary_switches_per_request: Option<f64>,
    pub(crate) involuntary_switches_per_request: Option<f64>,
    pub(crate) server_peak_memory_bytes: Option<u64>,
    /// CPU time over wall time; 1 is one whole CPU.
    pub(crate) server_cpu_share: Option<f64>,
    pub(crate) client_cpu_share: Option<f64>,
    pub(crate) stolen_share: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) passed: bool,
    /// Whether a cell that fails it counts for nothing; else it is only worth a note.
    pub(crate) spoils: bool,
    pub(crate) detail: String,
}

impl Check {
    /// A check without which the cell's figures mean nothing.
    pub(crate) fn required(name: &str, passed: bool, detail: String) -> Self {
        Self { name: name.into(), passed, spoils: true, detail }
    }

    /// A check that says how the figures are to be read.
    pub(crate) fn noted(name: &str, passed: bool, detail: String) -> Self {
        Self { name: name.into(), passed, spoils: false, detail }
    }

    pub(crate) fn has_spoiled(&self) -> bool {
        self.spoils && !self.passed
    }
}

/// A metric of row `a` over that of row `b`: one ratio a round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Comparison {
    pub(crate) metric: Metric,
    pub(crate) a: String,
    pub(crate) b: String,
    #[serde(flatten)]
    pub(crate) point: Point,
    /// Hodges-Lehmann estimate.
    pub(crate) ratio: f64,
    /// Ends of the 95 % interval; null with fewer than 6 rounds.
    pub(crate) low: Option<f64>,
    pub(crate) high: Option<f64>,
    pub(crate) p: f64,
    pub(crate) rounds: usize,
    pub(crate) ratios: Vec<f64>,
    pub(crate) verdict: Verdict,
    /// By how much the control seems to differ from the baseline at most; null without one.
    #[serde(default)]
    pub(crate) noise_floor: Option<f64>,
    /// Whether the run's verdict rests on it.
    #[serde(default)]
    pub(crate) primary: bool,
}

fn one() -> usize {
    1
}

/// What results of before were measured over.
fn tcp() -> String {
    Transport::Tcp.name().into()
}

/// What spoils a cell unless said otherwise, as it did before that could be said.
pub(crate) const MAX_STEAL: f64 = 0.05;

fn usual_steal() -> f64 {
    MAX_STEAL
}

fn yes() -> bool {
    true
}

impl Comparison {
    pub(crate) fn new(
        metric: Metric,
        (a, b): (&str, &str),
        point: &Point,
        estimate: &Estimate,
        ratios: Vec<f64>,
        verdict: Verdict,
        primary: bool,
    ) -> Self {
        Self {
            metric,
            a: a.into(),
            b: b.into(),
            point: point.clone(),
            ratio: estimate.ratio,
            low: estimate.interval.map(|(low, _)| low),
            high: estimate.interval.map(|(_, high)| high),
            p: estimate.p,
            rounds: ratios.len(),
            ratios,
            verdict,
            noise_floor: None,
            primary,
        }
    }

    pub(crate) fn estimate(&self) -> Estimate {
        Estimate { ratio: self.ratio, interval: self.low.zip(self.high), p: self.p }
    }
}

/// The lines below the table.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) verdict: Option<String>,
    /// null without objectives.
    #[serde(default)]
    pub(crate) objectives: Option<String>,
    #[serde(default = "yes")]
    pub(crate) objectives_met: bool,
    pub(crate) verified: String,
    pub(crate) valid: String,
    /// Whether `--strict` would pass.
    pub(crate) conclusive_and_valid: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_histogram_has_no_percentiles() {
        assert!(Latency::of(&Histogram::new(3).expect("3 digits")).is_none());
    }
}
