//! Bencher Metric Format: benchmark, measure, value with its lower and upper bound. The bounds of a
//! row are its least and greatest round, those of a ratio its 95 % interval.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{point::Distinction, report::text, result::Document, summary, verdict::Metric};

#[derive(Serialize)]
struct Value {
    value: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    lower_value: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upper_value: Option<f64>,
}

pub(super) fn render(document: &Document) -> String {
    let mut benchmarks: BTreeMap<String, BTreeMap<String, Value>> = BTreeMap::new();
    let distinction = Distinction::among(&document.settings.points);
    let how = text::how(&document.settings).replace(", ", "/");
    for spread in summary::spreads(document) {
        let (measure, scale) = measure(spread.metric);
        let value = Value {
            value: spread.median * scale,
            lower_value: Some(spread.least * scale),
            upper_value: Some(spread.greatest * scale),
        };
        let name = format!("{how}{}/{}", spread.row, distinction.tag(&spread.point, '/'));
        benchmarks.entry(name).or_default().insert(measure.into(), value);
    }
    for comparison in &document.comparisons {
        let (measure, _) = measure(comparison.metric);
        let value =
            Value { value: comparison.ratio, lower_value: comparison.low, upper_value: comparison.high };
        let tag = distinction.tag(&comparison.point, '/');
        let name = format!("{how}{}-vs-{}/{tag}", comparison.a, comparison.b);
        benchmarks.entry(name).or_default().insert(format!("{measure}-ratio"), value);
    }
    // Texts and finite numbers always serialise.
    let mut text = serde_json::to_string_pretty(&benchmarks).unwrap_or_default();
    text.push('\n');
    text
}

/// The measure's name, and what its unit takes: Bencher's own latency is in nanoseconds.
fn measure(metric: Metric) -> (&'static str, f64) {
    match metric {
        Metric::Rps => ("throughput", 1.0),
        Metric::P50 => ("latency", 1e3),
        Metric::P99 => ("latency-p99", 1e3),
        Metric::ServerCpuPerRequest => ("server-cpu-per-request", 1e3),
        Metric::TotalCpuPerRequest => ("total-cpu-per-request", 1e3),
        Metric::SyscallsPerRequest => ("syscalls-per-request", 1.0),
        Metric::SloRate => ("throughput-within-slo", 1.0),
    }
}
