//! github-action-benchmark: a file of what is better if bigger, and one of what is better if
//! smaller. The ratios of rows are series of their own: the noise of a shared machine cancels in
//! them, so that a gate of a few per cent holds where absolute figures need 200 %.

use serde::Serialize;

use crate::{
    result::{Comparison, Document},
    summary::{self, Spread},
    verdict::Metric,
};

#[derive(Serialize)]
struct Entry {
    name: String,
    unit: &'static str,
    value: f64,
    range: String,
    extra: String,
}

pub(super) fn bigger(document: &Document) -> String {
    render(document, &[Metric::Rps])
}

pub(super) fn smaller(document: &Document) -> String {
    render(
        document,
        &[
            Metric::P50,
            Metric::P99,
            Metric::ServerCpuPerRequest,
            Metric::TotalCpuPerRequest,
            Metric::SyscallsPerRequest,
        ],
    )
}

fn render(document: &Document, metrics: &[Metric]) -> String {
    let spreads = summary::spreads(document);
    let figures = spreads.iter().filter(|spread| metrics.contains(&spread.metric)).map(figure);
    let ratios =
        document.comparisons.iter().filter(|comparison| metrics.contains(&comparison.metric)).map(ratio);
    let entries: Vec<Entry> = figures.chain(ratios).collect();
    // Texts and finite numbers always serialise.
    let mut text = serde_json::to_string_pretty(&entries).unwrap_or_default();
    text.push('\n');
    text
}

fn figure(spread: &Spread) -> Entry {
    Entry {
        name: format!("{}, {} connections: {}", spread.row, spread.connections, spread.metric.title()),
        unit: spread.metric.unit(),
        value: spread.median,
        range: format!("± {}", (spread.greatest - spread.least) / 2.0),
        extra: format!("median of {} rounds", spread.rounds),
    }
}

fn ratio(comparison: &Comparison) -> Entry {
    let Comparison { a, b, connections, metric, .. } = comparison;
    let half = comparison.low.zip(comparison.high).map(|(low, high)| (high - low) / 2.0);
    Entry {
        name: format!("{a} / {b}, {connections} connections: {}", metric.title()),
        unit: "ratio",
        value: comparison.ratio,
        range: half.map(|half| format!("± {half}")).unwrap_or_default(),
        extra: format!("Hodges-Lehmann over {} rounds, p = {}", comparison.rounds, comparison.p),
    }
}
