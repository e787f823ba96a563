//! What the cells amount to: a line a row, and the comparisons.

use hdrhistogram::Histogram;

use crate::{
    histogram::sum,
    objectives,
    point::Point,
    result::{Cell, Comparison, Document, Found, Latency, Paced, Recorded, Summary},
    sentences,
    slo::Measured,
    stats,
    verdict::{Metric, Verdict},
};

pub(crate) const CLIENT_BOUND: &str = "client_not_saturated";
pub(crate) const RATE_KEPT: &str = "rate_kept";
/// Above this share of its core a server has none to spare.
const WHOLE_CORE: f64 = 0.95;

/// One row over its rounds at one point: medians over rounds, histograms added.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) row: String,
    /// The client was at its limit in most cells.
    pub(crate) client_bound: bool,
    pub(crate) rps: Option<f64>,
    /// Of replies, a second.
    pub(crate) megabytes: Option<f64>,
    pub(crate) latency: Option<Latency>,
    pub(crate) paced: Option<PacedLine>,
    pub(crate) server_cpu: Option<f64>,
    pub(crate) total_cpu: Option<f64>,
    pub(crate) syscalls: Option<f64>,
    pub(crate) switches: Option<f64>,
    pub(crate) memory_bytes: Option<u64>,
}

impl Line {
    pub(crate) fn of(cells: &[Cell], row: &str, point: &Point) -> Self {
        let client_bound = is_client_bound(cells, row, point);
        let cells: Vec<&Cell> = counted(cells, row, point).collect();
        let median = |value: &dyn Fn(&Cell) -> Option<f64>| {
            stats::median(&cells.iter().filter_map(|cell| value(cell)).collect::<Vec<_>>())
        };
        Self {
            row: row.into(),
            client_bound,
            rps: median(&|cell| cell.rps),
            megabytes: median(&|cell| {
                (cell.window_seconds > 0.0)
                    .then(|| cell.counts.bytes_each_way as f64 / cell.window_seconds / 1e6)
            }),
            latency: tells_latency(&cells).then(|| merged_latency(&cells)).flatten(),
            paced: PacedLine::of(&cells),
            server_cpu: median(&|cell| cell.costs.server_cpu_us_per_request),
            total_cpu: median(&|cell| cell.costs.total_cpu_us_per_request),
            syscalls: median(&|cell| cell.costs.syscalls_per_request),
            switches: median(&|cell| {
                let costs = &cell.costs;
                Some(costs.voluntary_switches_per_request? + costs.involuntary_switches_per_request?)
            }),
            memory_bytes: cells.iter().filter_map(|cell| cell.costs.server_peak_memory_bytes).max(),
        }
    }
}

impl Line {
    /// What objectives are about.
    pub(crate) fn measured(&self) -> Measured<'_> {
        let (service, lag) = match &self.paced {
            Some(paced) => (paced.service.as_ref(), paced.lag.as_ref()),
            None => (None, None),
        };
        Measured { rps: self.rps, latency: self.latency.as_ref(), service, lag }
    }
}

/// Whether no round leaves out the slowest: with those that do left out in turn, the rest would be a choice by
/// outcome.
fn tells_latency(cells: &[&Cell]) -> bool {
    !cells.iter().any(|cell| cell.hides_latency())
}

fn counted<'a>(cells: &'a [Cell], row: &'a str, point: &'a Point) -> impl Iterator<Item = &'a Cell> {
    cells.iter().filter(move |cell| cell.row == row && cell.point == *point && cell.counts_for_comparison())
}

/// What an open loop adds to a line: histograms and counts of all rounds together.
#[derive(Debug)]
pub(crate) struct PacedLine {
    pub(crate) lag: Option<Latency>,
    pub(crate) service: Option<Latency>,
    pub(crate) late: u64,
    pub(crate) dropped: u64,
}

impl PacedLine {
    fn of(cells: &[&Cell]) -> Option<Self> {
        let paced: Vec<&Paced> = cells.iter().filter_map(|cell| cell.paced.as_ref()).collect();
        let latency = |pick: fn(&Paced) -> Option<&Histogram<u64>>| {
            Latency::of(&sum(paced.iter().filter_map(|paced| pick(paced)))?)
        };
        (!paced.is_empty()).then(|| Self {
            lag: latency(|paced| paced.lag_histogram.as_ref()),
            service: latency(|paced| paced.service_histogram.as_ref()),
            late: paced.iter().map(|paced| paced.late).sum(),
            dropped: paced.iter().map(|paced| paced.dropped).sum(),
        })
    }
}

/// A metric of one row at one point, over its rounds.
#[derive(Debug)]
pub(crate) struct Spread {
    pub(crate) row: String,
    pub(crate) point: Point,
    pub(crate) metric: Metric,
    pub(crate) rounds: usize,
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) greatest: f64,
}

/// Every metric that is available, of every row at every point.
pub(crate) fn spreads(document: &Document) -> Vec<Spread> {
    let places = places(document).into_iter();
    places
        .flat_map(|(row, point)| Metric::ALL.map(|metric| (row.clone(), point.clone(), metric)))
        .filter_map(|(row, point, metric)| {
            let values = figures(document, &row, &point, metric);
            Spread::of(row, point, metric, &values)
        })
        .collect()
}

impl Spread {
    fn of(row: String, point: Point, metric: Metric, values: &[f64]) -> Option<Self> {
        let median = stats::median(values)?;
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Some(Self { row, point, metric, rounds: values.len(), median, least, greatest })
    }
}

/// A metric of one row at one point, one figure a round; empty if it is not available.
pub(crate) fn figures(document: &Document, row: &str, point: &Point, metric: Metric) -> Vec<f64> {
    if metric == Metric::SloRate {
        let of_place = document.found.iter().filter(|found| found.row == row && found.point == *point);
        let rates: Option<Vec<f64>> = of_place.map(|found| Some(found.slo_rate? as f64)).collect();
        return rates.unwrap_or_default();
    }
    let cells: Vec<&Cell> = counted(&document.cells, row, point).collect();
    if metric.is_latency() && !tells_latency(&cells) {
        return Vec::new();
    }
    cells.iter().filter_map(|cell| cell.metric(metric)).collect()
}

/// The latency of every row at every point, all rounds added.
pub(crate) fn merged_histograms(document: &Document) -> Vec<(String, Point, Histogram<u64>)> {
    let places = places(document).into_iter();
    places
        .filter_map(|(row, point)| {
            let cells: Vec<&Cell> = counted(&document.cells, &row, &point).collect();
            let merged = tells_latency(&cells).then(|| merged(&cells)).flatten()?;
            Some((row, point, merged))
        })
        .collect()
}

/// Rows and points, in the order in which they were measured first.
fn places(document: &Document) -> Vec<(String, Point)> {
    let mut places = Vec::new();
    for cell in &document.cells {
        let place = (cell.row.clone(), cell.point.clone());
        if !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

fn merged_latency(cells: &[&Cell]) -> Option<Latency> {
    Latency::of(&merged(cells)?)
}

fn merged(cells: &[&Cell]) -> Option<Histogram<u64>> {
    sum(cells.iter().filter_map(|cell| cell.histogram.as_ref()))
}

/// Every row against the baseline, in every metric, at every point.
pub(crate) fn comparisons(settings: &Recorded, cells: &[Cell]) -> Vec<Comparison> {
    if !settings.compares() {
        return Vec::new();
    }
    let pairs = settings.others().flat_map(|row| settings.points.iter().map(move |point| (row, point)));
    let mut comparisons: Vec<Comparison> = pairs
        .flat_map(|(row, point)| Metric::ALL.map(|metric| (row, point, metric)))
        .filter_map(|(row, point, metric)| compare(settings, cells, row, point, metric))
        .collect();
    raise_to_noise(&mut comparisons, settings);
    comparisons
}

/// What the control seems to differ by is noise: no effect counts that is not larger.
fn raise_to_noise(comparisons: &mut Vec<Comparison>, settings: &Recorded) {
    let Some(control) = &settings.control else { return };
    let floors: Vec<(Point, Metric, f64)> = comparisons
        .iter()
        .filter(|comparison| comparison.a == *control)
        .filter_map(|comparison| {
            let (low, high) = comparison.low.zip(comparison.high)?;
            Some((comparison.point.clone(), comparison.metric, (high - 1.0).max(1.0 / low - 1.0)))
        })
        .collect();
    for comparison in comparisons {
        let of_same = |(point, metric, _): &&(Point, Metric, f64)| {
            *point == comparison.point && *metric == comparison.metric
        };
        let Some((.., floor)) = floors.iter().find(of_same) else { continue };
        comparison.noise_floor = Some(*floor);
        // The control itself stays as it is: a false alarm of its own should show.
        if comparison.a != *control && comparison.verdict != Verdict::RateNotKept {
            comparison.verdict =
                Verdict::of(comparison.metric, &comparison.estimate(), settings.min_effect.max(*floor));
        }
    }
}

/// The rates that a search has found, against those of the baseline.
fn compare_found(settings: &Recorded, found: &[Found]) -> Vec<Comparison> {
    let pairs = settings.others().flat_map(|row| settings.points.iter().map(move |point| (row, point)));
    let mut comparisons =
        pairs.filter_map(|(row, point)| compare_rates(settings, found, row, point)).collect();
    raise_to_noise(&mut comparisons, settings);
    comparisons
}

fn compare_rates(settings: &Recorded, found: &[Found], a: &str, point: &Point) -> Option<Comparison> {
    let b = settings.baseline.as_str();
    let of_round = |row: &str, round| {
        let of_place = |found: &&Found| found.row == row && found.point == *point && found.round == round;
        found.iter().find(of_place)?.slo_rate.map(|rate| rate as f64)
    };
    // Of all rounds or none: those in which both rows met the objectives would be a choice by outcome.
    let ratios: Option<Vec<f64>> =
        (1..=settings.rounds).map(|round| Some(of_round(a, round)? / of_round(b, round)?)).collect();
    let ratios = ratios?;
    let estimate = stats::estimate(&ratios)?;
    // What the client, or the search itself, has bounded tells nothing of the server.
    let bounded = found.iter().filter(|found| found.point == *point && (found.row == a || found.row == b));
    let bounded =
        bounded.filter(|found| found.at_ceiling || found.client_bound).count() > settings.rounds / 2;
    let verdict = match Verdict::of(Metric::SloRate, &estimate, settings.min_effect) {
        _ if bounded => Verdict::Inconclusive,
        verdict => verdict,
    };
    let primary = settings.control.as_deref() != Some(a);
    Some(Comparison::new(Metric::SloRate, (a, b), point, &estimate, ratios, verdict, primary))
}

fn compare(
    settings: &Recorded,
    cells: &[Cell],
    a: &str,
    point: &Point,
    metric: Metric,
) -> Option<Comparison> {
    let b = settings.baseline.as_str();
    let of_row = |row| counted(cells, row, point).collect::<Vec<_>>();
    if metric.is_latency() && !(tells_latency(&of_row(a)) && tells_latency(&of_row(b))) {
        return None;
    }
    let of_round = |row, round| counted(cells, row, point).find(|cell| cell.round == round)?.metric(metric);
    let ratios: Vec<f64> =
        (1..=settings.rounds).filter_map(|round| Some(of_round(a, round)? / of_round(b, round)?)).collect();
    let estimate = stats::estimate(&ratios)?;
    let verdict = if mostly_fails(cells, a, point, RATE_KEPT) || mostly_fails(cells, b, point, RATE_KEPT) {
        Verdict::RateNotKept
    } else {
        Verdict::of(metric, &estimate, settings.min_effect)
    };
    // A control is there for the others' sake.
    let primary =
        settings.control.as_deref() != Some(a) && metric == primary_metric(settings, cells, a, point);
    Some(Comparison::new(metric, (a, b), point, &estimate, ratios, verdict, primary))
}

/// What the verdict rests on: the rate, unless the client was at its limit in most cells of the row or of the
/// baseline, for then the rate is the client's; or the servers of both were at theirs, for then the rate is
/// the inverse of what a request costs, which a clock tells better that stands still while others have the core.
fn primary_metric(settings: &Recorded, cells: &[Cell], row: &str, point: &Point) -> Metric {
    let rows = [row, &settings.baseline];
    // Without a core of their own servers have no such limit.
    let pinned = settings.server_cpu.is_some();
    if rows.iter().any(|row| is_client_bound(cells, row, point))
        || (pinned && rows.iter().all(|row| is_server_bound(cells, row, point)))
    {
        Metric::ServerCpuPerRequest
    } else {
        settings.primary_metric
    }
}

/// Whether the client was what limited a row's rate, in most of its cells.
fn is_client_bound(cells: &[Cell], row: &str, point: &Point) -> bool {
    mostly_fails(cells, row, point, CLIENT_BOUND)
}

/// Whether the server was, which is what a closed loop is for.
fn is_server_bound(cells: &[Cell], row: &str, point: &Point) -> bool {
    let shares: Vec<f64> =
        counted(cells, row, point).filter_map(|cell| cell.costs.server_cpu_share).collect();
    stats::median(&shares).is_some_and(|share| share > WHOLE_CORE)
}

fn mostly_fails(cells: &[Cell], row: &str, point: &Point, check: &str) -> bool {
    let all = counted(cells, row, point).count();
    let failing = counted(cells, row, point).filter(|cell| failed(cell, check)).count();
    2 * failing > all
}

pub(crate) fn failed(cell: &Cell, check: &str) -> bool {
    cell.checks.iter().any(|done| done.name == check && !done.passed)
}

/// Compares what there is and says what it amounts to.
pub(crate) fn conclude(document: &mut Document) {
    document.comparisons = match document.settings.primary_metric {
        Metric::SloRate => compare_found(&document.settings, &document.found),
        _ => comparisons(&document.settings, &document.cells),
    };
    document.summary = Some(summarise(document));
}

/// The sentences below the table.
fn summarise(document: &Document) -> Summary {
    let Document { settings, cells, complete, .. } = document;
    let primary: Vec<&Comparison> =
        document.comparisons.iter().filter(|comparison| comparison.primary).collect();
    let spoiled = sentences::unrepaired(cells);
    let conclusive = primary
        .iter()
        .all(|comparison| !matches!(comparison.verdict, Verdict::Inconclusive | Verdict::RateNotKept));
    let compared = settings.compares();
    let enough = !compared || primary.len() == settings.judged().count() * settings.points.len();
    let objectives = if settings.primary_metric == Metric::SloRate {
        objectives::of_search(document)
    } else {
        objectives::of_rows(document)
    };
    Summary {
        verdict: compared.then(|| sentences::verdict(document, &primary)),
        objectives_met: objectives.iter().all(|objective| objective.is_met),
        objectives: (!objectives.is_empty()).then(|| objectives::sentence(&objectives)),
        verified: sentences::verified(settings, cells),
        valid: sentences::valid(cells, &spoiled, *complete),
        conclusive_and_valid: *complete && spoiled.is_empty() && conclusive && enough,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{pinning::Cpus, result::Check};

    fn cell(row: &str, round: usize, bound: bool) -> Cell {
        let mut cell = Cell::of_test(row, round, 8);
        cell.checks.push(Check::noted(CLIENT_BOUND, !bound, String::new()));
        cell
    }

    #[test]
    fn where_the_client_is_the_limit_the_verdict_rests_on_cost() {
        let free: Vec<Cell> = (1..=6).map(|round| cell("epoll", round, round <= 3)).collect();
        assert!(!is_client_bound(&free, "epoll", &free[0].point), "half of them is not most of them");
        let mut cells: Vec<Cell> = (1..=6).map(|round| cell("io_uring", round, round <= 4)).collect();
        cells.extend(free);
        let settings = crate::cli::CompareArgs::quick().settings().expect("valid");
        let settings = Recorded::of(&settings, Cpus { server: Some(0), client: Some(1) });
        let primary = |row, point| primary_metric(&settings, &cells, row, point);
        let point = &cells[0].point.clone();
        assert_eq!(primary("io_uring", point), Metric::ServerCpuPerRequest);
        assert_eq!(primary("threads", point), Metric::Rps);
        cells.iter_mut().for_each(|cell| cell.costs.server_cpu_share = Some(0.99));
        let primary = |row, point| primary_metric(&settings, &cells, row, point);
        let point = &cells[0].point;
        assert_eq!(primary("epoll", point), Metric::ServerCpuPerRequest, "both servers are at their limit");
        assert_eq!(primary("threads", point), Metric::Rps, "of one nothing is known");
        let other = Point { pipeline: 2, ..point.clone() };
        assert_eq!(primary("io_uring", &other), Metric::Rps, "no cell is like this");
    }
}
