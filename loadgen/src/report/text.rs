//! The final screen, 80 columns wide, and the lines of progress before it.

use std::{fmt::Write as _, path::Path, time::Duration};

use super::curves;
use crate::{
    cli::Settings,
    mode::{IDLE, RR, STREAM},
    pinning::Cpus,
    point::{Distinction, Point},
    result::{Cell, Comparison, Document, Found, Idle, Latency, MAX_STEAL, Recorded},
    stats,
    summary::Line,
    target::{UDP, UNIX},
    units::{bytes, grouped},
    verdict::Metric,
};

const WIDTH: usize = 80;
const NAME_WIDTH: usize = 18;
pub(super) const MISSING: &str = "-";
/// Marks a row whose rate is the client's.
pub(super) const BOUND: &str = "*";

/// What is about to happen.
pub(crate) fn opening(settings: &Settings, cpus: Cpus) -> String {
    let rows = settings.row_names();
    let cells = settings.rounds * settings.rows.len() * settings.points.len();
    let pinned = match (cpus.server, cpus.client) {
        (Some(server), Some(client)) => format!("server on CPU {server}, client on CPU {client}"),
        _ => "not pinned".into(),
    };
    // How many probes a search takes depends on what they find.
    let what = if settings.is_search() { "searches, each of some cells" } else { "cells" };
    format!(
        "{}: {cells} {what} of {}; {pinned}",
        rows.join(", "),
        humantime::format_duration(settings.duration)
    )
}

/// One cell that has ended.
pub(crate) fn progress(cell: &Cell, settings: &Recorded) -> String {
    let place = format!(
        "round {}/{}, {} over {} connections{}{}",
        cell.round,
        settings.rounds,
        cell.row,
        grouped(cell.point.connections as u64),
        Distinction::among(&settings.points).suffix(&cell.point),
        if cell.repeat { ", repeated" } else { "" }
    );
    if let (None, Some(idle)) = (&cell.error, &cell.idle) {
        return format!("{place}: {} idle ones answered", answered(idle));
    }
    match (&cell.error, cell.rps) {
        (Some(_), _) | (None, None) => format!("{place}: ended early"),
        (None, Some(rps)) => {
            let spoiled = cell.checks.iter().find(|check| check.has_spoiled());
            let spoiled = spoiled.map(|check| format!(" (spoiled: {})", check.detail)).unwrap_or_default();
            format!("{place}: {} {}{spoiled}", grouped(rps.round() as u64), settings.counted().1)
        }
    }
}

/// What a search has found in one round.
pub(crate) fn found(found: &Found) -> String {
    let rate =
        found.slo_rate.map_or("not met at any rate".into(), |rate| format!("met up to {}/s", grouped(rate)));
    format!("  {} over {} connections: {rate}", found.row, grouped(found.point.connections as u64))
}

/// Tables, then the four lines.
pub(crate) fn screen(document: &Document, path: &Path) -> String {
    let mut text = String::new();
    if document.settings.is_sweep() {
        curves::tables(&mut text, document);
    } else {
        document.settings.points.iter().for_each(|point| table(&mut text, document, point));
    }
    if text.lines().any(|line| line.split_whitespace().any(|word| word == MISSING)) {
        text.push_str("-: not available\n\n");
    }
    if text.split_whitespace().any(|word| word.ends_with(BOUND)) {
        let _ = writeln!(
            text,
            "{BOUND}: client-bound, so its rate is the client's, and the verdict rests on server\n   CPU a request; \
             {}\n",
            sending(&document.settings)
        );
    }
    if let Some(summary) = &document.summary {
        if let Some(verdict) = &summary.verdict {
            labelled(&mut text, "Verdict", verdict);
        }
        if let Some(objectives) = &summary.objectives {
            labelled(&mut text, "SLO", objectives);
        }
        labelled(&mut text, "Verified", &summary.verified);
        labelled(&mut text, "Valid", &summary.valid);
        if document.settings.max_steal > MAX_STEAL {
            let allowed = 100.0 * document.settings.max_steal;
            let told = format!("up to {allowed:.0} % of a cell's time may be the neighbours' (--max-steal)");
            labelled(&mut text, "Stolen", &told);
        }
    }
    labelled(&mut text, "Report", &path.display().to_string());
    text
}

fn table(text: &mut String, document: &Document, point: &Point) {
    let settings = &document.settings;
    let lines: Vec<Line> = settings.rows.iter().map(|row| Line::of(&document.cells, row, point)).collect();
    let compared = settings.rows.len() > 1;
    heading(text, settings, point);
    if settings.is_idle() {
        return idle(text, document, point);
    }
    if settings.primary_metric == Metric::SloRate {
        return searched(text, document, point);
    }
    speed_heading(text, settings);
    for line in &lines {
        let ratio = match compared {
            true if line.row == settings.baseline => "1 (baseline)".into(),
            true => interval_of(&document.comparisons, Metric::Rps, &line.row, point),
            false => String::new(),
        };
        speed(text, settings, line, &ratio);
    }
    cost_heading(text, settings);
    lines.iter().for_each(|line| cost(text, line));
    if lines.iter().any(|line| line.paced.is_some()) {
        pacing_heading(text);
        lines.iter().for_each(|line| pacing(text, line));
    }
    text.push('\n');
}

// Writing to a String cannot fail, so the results of `write!` below carry nothing.

fn heading(text: &mut String, settings: &Recorded, point: &Point) {
    let _ = writeln!(text, "{}{point}, {}\n", how(settings), rounds(settings));
}

/// How often and how long each row was measured at a point.
pub(super) fn rounds(settings: &Recorded) -> String {
    let plural = if settings.rounds == 1 { "" } else { "s" };
    // Nothing that was read can be too long or negative for a duration.
    let window = Duration::try_from_secs_f64(settings.duration_seconds).unwrap_or_default();
    format!("{} round{plural} of {}", settings.rounds, humantime::format_duration(window))
}

/// What was done on connections, if it was not to ask and to be answered.
pub(crate) fn how(settings: &Recorded) -> String {
    let over = match settings.transport.as_str() {
        UDP => "UDP, ",
        UNIX => "Unix sockets, ",
        _ => "",
    };
    over.to_owned() + &manner(settings)
}

fn manner(settings: &Recorded) -> String {
    match (settings.mode.as_str(), &settings.close, &settings.http) {
        (RR | IDLE, _, None) => String::new(),
        (RR, _, Some(path)) => format!("GET {path}, "),
        (mode, None, None) => format!("{mode}, "),
        (mode, Some(close), None) => format!("{mode} ({close}), "),
        (mode, close, Some(path)) => {
            let close = close.as_ref().map(|close| format!(" ({close})")).unwrap_or_default();
            format!("{mode}{close} of GET {path}, ")
        }
    }
}

/// How requests reach a server that is faster than the client, which decides how much it can do at once.
fn sending(settings: &Recorded) -> String {
    match (settings.burst, settings.arrival.is_some()) {
        (None, false) => "it sends in bursts, all of a turn (--burst 1: one by one)".into(),
        (None, true) => "it sends by the clock".into(),
        (Some(1), _) => "it sends one by one".into(),
        (Some(burst), _) => format!("it sends in bursts of {burst}"),
    }
}

fn speed_heading(text: &mut String, settings: &Recorded) {
    let ratio = if settings.rows.len() > 1 { "ratio [95 % interval]" } else { "" };
    let last = if settings.mode == STREAM { "MB/s" } else { "p99.9 us" };
    let _ = writeln!(
        text,
        "{:<NAME_WIDTH$}{:>10}{ratio:>22}{:>10}{:>10}{:>10}",
        "",
        settings.counted().1,
        "p50 us",
        "p99 us",
        last
    );
}

fn speed(text: &mut String, settings: &Recorded, line: &Line, ratio: &str) {
    let latency = |pick: fn(&Latency) -> f64| microseconds(line.latency.as_ref().map(pick));
    let last =
        if settings.mode == STREAM { number(line.megabytes, 0) } else { latency(|latency| latency.p999_us) };
    let _ = writeln!(
        text,
        "{}{:>10}{ratio:>22}{:>10}{:>10}{last:>10}",
        name(line),
        number(line.rps, 0),
        latency(|latency| latency.p50_us),
        latency(|latency| latency.p99_us)
    );
}

fn cost_heading(text: &mut String, settings: &Recorded) {
    let _ = writeln!(
        text,
        "\n{:<NAME_WIDTH$}{:>13}{:>13}{:>12}{:>11}{:>13}",
        format!("a {}:", settings.counted().0),
        "server us",
        "total us",
        "syscalls",
        "switches",
        "peak memory"
    );
}

fn cost(text: &mut String, line: &Line) {
    let _ = writeln!(
        text,
        "{}{:>13}{:>13}{:>12}{:>11}{:>13}",
        name(line),
        number(line.server_cpu, 2),
        number(line.total_cpu, 2),
        number(line.syscalls, 3),
        number(line.switches, 3),
        line.memory_bytes.map_or_else(|| MISSING.into(), bytes)
    );
}

fn searched(text: &mut String, document: &Document, point: &Point) {
    let settings = &document.settings;
    let _ = writeln!(
        text,
        "{:<NAME_WIDTH$}{:>14}{:>14}{:>24}",
        "", "most req/s", "within SLO", "ratio [95 % interval]"
    );
    for row in &settings.rows {
        let found = || document.found.iter().filter(|found| found.row == *row && found.point == *point);
        let median = |values: Vec<f64>| number(stats::median(&values), 0);
        let rates: Option<Vec<f64>> = found().map(|found| Some(found.slo_rate? as f64)).collect();
        // It may do more, which neither the search nor the client could show.
        let more = found().any(|found| found.at_ceiling || found.client_bound);
        let within = format!("{}{}", if more { ">= " } else { "" }, median(rates.unwrap_or_default()));
        let ratio = match settings.rows.len() > 1 {
            true if *row == settings.baseline => "1 (baseline)".into(),
            true => interval_of(&document.comparisons, Metric::SloRate, row, point),
            false => String::new(),
        };
        let _ = writeln!(
            text,
            "{}{:>14}{within:>14}{ratio:>24}",
            padded(row),
            median(found().map(|found| found.peak).collect())
        );
    }
    text.push('\n');
}

fn idle(text: &mut String, document: &Document, point: &Point) {
    let _ = writeln!(
        text,
        "{:<NAME_WIDTH$}{:>11}{:>11}{:>11}{:>12}{:>17}",
        "bytes each:", "server", "client", "kernel", "connects/s", "alive at end"
    );
    for row in &document.settings.rows {
        let mut cells = document.cells.iter().filter(|cell| cell.row == *row && cell.point == *point);
        let cost = cells.next_back().and_then(|cell| cell.idle.as_ref());
        let bytes = |pick: fn(&Idle) -> Option<f64>| {
            cost.and_then(pick).map_or_else(|| MISSING.into(), |bytes| format!("{bytes:.0}"))
        };
        let _ = writeln!(
            text,
            "{}{:>11}{:>11}{:>11}{:>12}{:>17}",
            padded(row),
            bytes(|idle| idle.server_bytes_per_connection),
            bytes(|idle| idle.client_bytes_per_connection),
            bytes(|idle| idle.kernel_bytes_per_connection),
            number(cost.map(|idle| idle.connections_per_second), 0),
            cost.map_or_else(|| MISSING.into(), answered)
        );
    }
    for row in &document.settings.rows {
        let mut cells = document.cells.iter().filter(|cell| cell.row == *row && cell.point == *point);
        cells.next_back().and_then(spread).into_iter().for_each(|line| text.push_str(&line));
    }
    text.push('\n');
}

fn answered(idle: &Idle) -> String {
    format!("{} of {}", grouped(idle.answered as u64), grouped(idle.pinged as u64))
}

/// Over how many rings and processes a cell's connections were spread, if there were several.
fn spread(cell: &Cell) -> Option<String> {
    let server = cell.server.as_ref().filter(|_| cell.client_processes > 1)?;
    let (descriptors, clients) = (&server.descriptors, cell.client_processes);
    let server = match server.reactors {
        1 => format!("{descriptors} descriptors"),
        reactors => format!("{reactors} reactors in one process, {descriptors} descriptors"),
    };
    Some(format!("{}: {server}; {clients} client processes\n", cell.row))
}

/// Of an open loop, whose latency above is counted from the intended moment.
fn pacing_heading(text: &mut String) {
    let _ = writeln!(
        text,
        "\n{:<NAME_WIDTH$}{:>13}{:>13}{:>14}{:>11}{:>11}",
        "pacing:", "lag p50 us", "lag p99 us", "service p99", "late", "dropped"
    );
}

fn pacing(text: &mut String, line: &Line) {
    let Some(paced) = &line.paced else { return };
    let (lag, service) = (paced.lag.as_ref(), paced.service.as_ref());
    let _ = writeln!(
        text,
        "{}{:>13}{:>13}{:>14}{:>11}{:>11}",
        name(line),
        microseconds(lag.map(|lag| lag.p50_us)),
        microseconds(lag.map(|lag| lag.p99_us)),
        microseconds(service.map(|service| service.p99_us)),
        grouped(paced.late),
        grouped(paced.dropped)
    );
}

/// A name that is too long for its column gets a line of its own.
fn name(line: &Line) -> String {
    padded(&format!("{}{}", line.row, if line.client_bound { BOUND } else { "" }))
}

pub(super) fn padded(row: &str) -> String {
    if row.len() < NAME_WIDTH {
        return format!("{row:<NAME_WIDTH$}");
    }
    format!("{row}\n{:<NAME_WIDTH$}", "")
}

pub(crate) fn number(value: Option<f64>, decimals: usize) -> String {
    match value {
        None => MISSING.into(),
        Some(value) if decimals == 0 => grouped(value.round() as u64),
        Some(value) => format!("{value:.decimals$}"),
    }
}

/// What is too long for its column in microseconds is written in seconds.
fn microseconds(value: Option<f64>) -> String {
    match value {
        Some(value) if value >= 1e7 => format!("{:.1} s", value / 1e6),
        value => number(value, 0),
    }
}

pub(super) fn interval_of(comparisons: &[Comparison], metric: Metric, row: &str, point: &Point) -> String {
    let comparison = comparisons
        .iter()
        .find(|comparison| comparison.metric == metric && comparison.a == row && comparison.point == *point);
    let Some(comparison) = comparison else { return MISSING.into() };
    interval(comparison.ratio, comparison.low.zip(comparison.high))
}

/// Four digits, whatever the ratio is, so that the column holds it.
pub(crate) fn interval(ratio: f64, ends: Option<(f64, f64)>) -> String {
    let digits = |value: f64| {
        format!(
            "{value:.*}",
            if value < 10.0 {
                3
            } else if value < 100.0 {
                2
            } else {
                1
            }
        )
    };
    match ends {
        Some((low, high)) => format!("{} [{}, {}]", digits(ratio), digits(low), digits(high)),
        None => format!("{} [too few]", digits(ratio)),
    }
}

/// A labelled paragraph, wrapped at the screen's width.
pub(crate) fn labelled(text: &mut String, label: &str, body: &str) {
    const INDENT: usize = 10;
    let mut column = INDENT;
    let _ = write!(text, "{label:<INDENT$}");
    for word in body.split_whitespace() {
        if column > INDENT && column + 1 + word.len() > WIDTH {
            let _ = write!(text, "\n{:<INDENT$}", "");
            column = INDENT;
        } else if column > INDENT {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += word.len();
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::PacedLine;

    #[test]
    fn paragraphs_keep_to_the_width() {
        let mut text = String::new();
        labelled(&mut text, "Verdict", &"word ".repeat(60));
        assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
        assert!(text.lines().skip(1).all(|line| line.starts_with("          word")), "{text}");
    }

    #[test]
    fn lines_of_the_tables_keep_to_the_width() {
        let latency = Latency {
            mean_us: 1e7,
            p50_us: 1e6,
            p90_us: 1e7,
            p99_us: 9_999_999.0,
            p999_us: 60_000_000.0,
            max_us: 1e7,
        };
        let settings = crate::cli::CompareArgs::quick().settings().expect("valid");
        let settings = Recorded::of(&settings, Cpus::default());
        let line = Line {
            row: "io_uring:no-multishot".into(),
            megabytes: None,
            client_bound: true,
            rps: Some(99_999_999.0),
            latency: Some(latency.clone()),
            paced: Some(PacedLine {
                lag: Some(latency.clone()),
                service: Some(latency),
                late: 9_999_999,
                dropped: 9_999_999,
            }),
            server_cpu: Some(1_234.567),
            total_cpu: Some(1_234.567),
            syscalls: Some(12.345),
            switches: None,
            memory_bytes: Some(123 << 20),
        };
        let mut text = String::new();
        speed_heading(&mut text, &settings);
        speed(&mut text, &settings, &line, &interval(10.123, Some((9.999, 100.123))));
        cost_heading(&mut text, &settings);
        cost(&mut text, &line);
        pacing_heading(&mut text);
        pacing(&mut text, &line);
        assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
        assert!(text.contains(" - "), "{text}");
    }
}
