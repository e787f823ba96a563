//! github-action-benchmark: a file of what is better if bigger, one of what is better if smaller, and one of
//! the ratios of rates. The noise of a shared machine cancels in these, so that a gate of a few per cent
//! holds for them where absolute figures need 200 %; a gate goes by file.

use serde::Serialize;

use crate::{
    point::{Distinction, Point},
    report::text,
    result::{Comparison, Document, Recorded},
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
    render(figures(document, Metric::is_rate))
}

pub(super) fn smaller(document: &Document) -> String {
    render(figures(document, |metric| !metric.is_rate()))
}

/// The ratios of rates, of rows over their baseline.
pub(super) fn ratios(document: &Document) -> String {
    let comparisons = document.comparisons.iter().filter(|comparison| comparison.metric.is_rate());
    render(comparisons.map(|comparison| ratio(comparison, &document.settings)).collect())
}

fn figures(document: &Document, wanted: fn(Metric) -> bool) -> Vec<Entry> {
    let spreads = summary::spreads(document).into_iter().filter(|spread| wanted(spread.metric));
    spreads.map(|spread| figure(&spread, &document.settings)).collect()
}

fn render(entries: Vec<Entry>) -> String {
    // Texts and finite numbers always serialise.
    let mut text = serde_json::to_string_pretty(&entries).unwrap_or_default();
    text.push('\n');
    text
}

/// Where in a run a figure belongs; of a plain one nothing is said of its mode.
fn place(settings: &Recorded, point: &Point) -> String {
    let suffix = Distinction::among(&settings.points).suffix(point);
    format!("{}{} connections{suffix}", text::how(settings), point.connections)
}

fn figure(spread: &Spread, settings: &Recorded) -> Entry {
    let Spread { row, point, metric, .. } = spread;
    Entry {
        name: format!("{row}, {}: {}", place(settings, point), metric.title()),
        unit: if *metric == Metric::Rps { settings.counted().1 } else { metric.unit() },
        value: spread.median,
        range: format!("± {}", (spread.greatest - spread.least) / 2.0),
        extra: format!("median of {} rounds", spread.rounds),
    }
}

fn ratio(comparison: &Comparison, settings: &Recorded) -> Entry {
    let Comparison { a, b, point, metric, .. } = comparison;
    let half = comparison.low.zip(comparison.high).map(|(low, high)| (high - low) / 2.0);
    Entry {
        name: format!("{a} / {b}, {}: {}", place(settings, point), metric.title()),
        unit: "ratio",
        value: comparison.ratio,
        range: half.map(|half| format!("± {half}")).unwrap_or_default(),
        extra: format!("Hodges-Lehmann over {} rounds, p = {}", comparison.rounds, comparison.p),
    }
}
