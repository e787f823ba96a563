//! The screen of a sweep: for each row a line a point, so that what varies last reads as a curve.

use std::fmt::Write as _;

use super::text::{BOUND, MISSING, how, interval_of, number, padded, rounds};
use crate::{
    point::{Point, Sizes},
    result::{Document, Latency},
    summary::Line,
    units::grouped,
    verdict::Metric,
};

const NAME_WIDTH: usize = 18;

/// One of the things that points are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Axis {
    Connections,
    Size,
    Pipeline,
    Rate,
}

impl Axis {
    const ALL: [Self; 4] = [Self::Connections, Self::Size, Self::Pipeline, Self::Rate];

    fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Size => "size",
            Self::Pipeline => "pipeline",
            Self::Rate => "rate",
        }
    }

    /// Where a point lies on it, below its name.
    fn value(self, point: &Point) -> String {
        match self {
            Self::Connections => grouped(point.connections as u64),
            Self::Size => point.size.told(),
            Self::Pipeline => grouped(point.pipeline as u64),
            Self::Rate => point.rate.map_or_else(|| MISSING.into(), |rate| format!("{}/s", grouped(rate))),
        }
    }

    /// The same where its name is not at hand; None for what is a matter of course.
    fn told(self, point: &Point) -> Option<String> {
        let value = self.value(point);
        match self {
            Self::Connections if point.connections == 1 => Some(format!("{value} connection")),
            Self::Connections => Some(format!("{value} connections")),
            Self::Size => (point.size != Sizes::not_chosen()).then(|| format!("{value} requests")),
            Self::Pipeline => (point.pipeline > 1).then(|| format!("pipeline {value}")),
            Self::Rate => point.rate.map(|_| value),
        }
    }

    fn is_alike(self, a: &Point, b: &Point) -> bool {
        match self {
            Self::Connections => a.connections == b.connections,
            Self::Size => a.size == b.size,
            Self::Pipeline => a.pipeline == b.pipeline,
            Self::Rate => a.rate == b.rate,
        }
    }
}

/// A table for each combination of all that varies but the last.
pub(super) fn tables(text: &mut String, document: &Document) {
    let points = &document.settings.points;
    let varies = |axis: &Axis| points.iter().any(|point| !axis.is_alike(point, &points[0]));
    let (mut varying, fixed): (Vec<Axis>, Vec<Axis>) = Axis::ALL.into_iter().partition(varies);
    let last = varying.pop().unwrap_or(Axis::Connections);
    let fixed = fixed.into_iter().filter(|axis| *axis != last);
    let settings = &document.settings;
    let told: Vec<String> =
        fixed.filter_map(|axis| axis.told(&points[0])).chain([rounds(settings)]).collect();
    let _ = writeln!(text, "{}{}", how(settings), told.join(", "));
    let _ = writeln!(text, "server, total: CPU us a {}\n", settings.counted().0);
    for group in groups(points, &varying) {
        if !varying.is_empty() {
            let told: Vec<String> = varying.iter().map(|axis| named(*axis, group[0])).collect();
            let _ = writeln!(text, "{}\n", told.join(", "));
        }
        table(text, document, last, &group);
    }
}

/// What heads a table, where a pipeline of 1 is no matter of course.
fn named(axis: Axis, point: &Point) -> String {
    axis.told(point).unwrap_or_else(|| format!("{} {}", axis.name(), axis.value(point)))
}

/// Points that are alike in all of these, in the order in which they were measured.
fn groups<'a>(points: &'a [Point], axes: &[Axis]) -> Vec<Vec<&'a Point>> {
    let mut groups: Vec<Vec<&Point>> = Vec::new();
    for point in points {
        let alike = |group: &&mut Vec<&Point>| axes.iter().all(|axis| axis.is_alike(group[0], point));
        match groups.iter_mut().find(alike) {
            Some(group) => group.push(point),
            None => groups.push(vec![point]),
        }
    }
    groups
}

// Writing to a String cannot fail, so the results of `write!` below carry nothing.

fn table(text: &mut String, document: &Document, axis: Axis, points: &[&Point]) {
    let settings = &document.settings;
    heading(text, axis, settings.counted().1, settings.rows.len() > 1);
    for row in &settings.rows {
        let is_baseline = settings.rows.len() > 1 && *row == settings.baseline;
        let _ = writeln!(text, "{row}{}", if is_baseline { " (baseline)" } else { "" });
        for point in points {
            let ratio = match settings.rows.len() {
                1 => String::new(),
                _ if is_baseline => "1".into(),
                _ => interval_of(&document.comparisons, Metric::Rps, row, point),
            };
            line(text, &axis.value(point), &Line::of(&document.cells, row, point), &ratio);
        }
    }
    text.push('\n');
}

fn heading(text: &mut String, axis: Axis, rate: &str, compared: bool) {
    let ratio = if compared { "ratio [95 % interval]" } else { "" };
    let _ = writeln!(
        text,
        "{:<NAME_WIDTH$}{rate:>10}{ratio:>22}{:>8}{:>8}{:>7}{:>7}",
        axis.name(),
        "p50 us",
        "p99 us",
        "server",
        "total"
    );
}

fn line(text: &mut String, value: &str, line: &Line, ratio: &str) {
    let bound = if line.client_bound { BOUND } else { "" };
    let latency = |pick: fn(&Latency) -> f64| microseconds(line.latency.as_ref().map(pick));
    let _ = writeln!(
        text,
        "{}{:>10}{ratio:>22}{:>8}{:>8}{:>7}{:>7}",
        padded(&format!("  {value}{bound}")),
        number(line.rps, 0),
        latency(|latency| latency.p50_us),
        latency(|latency| latency.p99_us),
        cost(line.server_cpu),
        cost(line.total_cpu)
    );
}

/// What is too long for its column in microseconds is written in seconds.
fn microseconds(value: Option<f64>) -> String {
    match value {
        Some(value) if value >= 999_999.5 => format!("{:.1} s", value / 1e6),
        value => number(value, 0),
    }
}

fn cost(value: Option<f64>) -> String {
    match value {
        Some(value) if value >= 999.995 => format!("{value:.0}"),
        value => number(value, 2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(connections: usize, pipeline: usize) -> Point {
        Point { pipeline, ..crate::result::Cell::of_test("epoll", 1, connections).point }
    }

    #[test]
    fn what_varies_last_is_the_curve() {
        let points = [point(1, 1), point(1, 16), point(8, 1), point(8, 16)];
        let grouped = groups(&points, &[Axis::Connections]);
        assert_eq!(grouped, [[&points[0], &points[1]], [&points[2], &points[3]]]);
        assert_eq!(groups(&points, &[]), [[&points[0], &points[1], &points[2], &points[3]]]);
        assert_eq!(named(Axis::Pipeline, &points[0]), "pipeline 1");
        assert_eq!(named(Axis::Connections, &points[0]), "1 connection");
    }

    #[test]
    fn lines_keep_to_the_width() {
        let latency =
            |us| Latency { mean_us: us, p50_us: us, p90_us: us, p99_us: us, p999_us: us, max_us: us };
        for us in [999_999.4, 999_999.5, 59_999_999.0] {
            let widest = Line {
                row: "io_uring".into(),
                client_bound: true,
                rps: Some(9_999_999.0),
                megabytes: None,
                latency: Some(latency(us)),
                paced: None,
                server_cpu: Some(99_999.4),
                total_cpu: Some(999.99),
                syscalls: None,
                switches: None,
                memory_bytes: None,
            };
            let mut text = String::new();
            heading(&mut text, Axis::Connections, "req/s", true);
            line(&mut text, "10,000,000/s", &widest, "10.12 [9.999, 100.1]");
            line(&mut text, "24:1+100:2+200:3+300:4 B", &widest, "10.12 [9.999, 100.1]");
            assert!(text.lines().all(|line| line.len() <= 80), "{text}");
            assert!(text.lines().skip(1).all(|line| !line.contains(']') || line.contains("] ")), "{text}");
        }
    }
}
