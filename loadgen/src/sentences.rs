//! What is said of a document: the verdict, how it was verified, and whether it is valid.

use crate::{
    engine::DatagramCounts,
    point::{Distinction, Point},
    result::{Cell, Comparison, Document, Recorded},
    summary::{CLIENT_BOUND, RATE_KEPT, failed},
    units::grouped,
    verdict::{Metric, Verdict},
};

/// Checks that say how figures are to be read, and what it means that one of them fails.
const NOTED: [(&str, &str); 5] = [
    (RATE_KEPT, "more than 1 % of what arrived was not sent, or not answered in time,"),
    (CLIENT_BOUND, "client-bound (the true ratio of rates may be larger)"),
    ("steady_rate", "the rate changed by more than a tenth"),
    ("littles_law", "rate and latency do not fit the number of connections"),
    ("no_tcp_trouble", "TCP dropped something or sent it again"),
];

pub(crate) fn verdict(document: &Document, primary: &[&Comparison]) -> String {
    if primary.is_empty() {
        return "none: no round of any two rows is whole.".into();
    }
    if document.settings.is_sweep() {
        return tally(primary);
    }
    let distinction = Distinction::among(&document.settings.points);
    let mut clauses: Vec<String> = primary.iter().map(|comparison| clause(comparison, distinction)).collect();
    clauses.extend(missing(document, primary));
    format!("{}.{}", clauses.join("; "), noise(primary).unwrap_or_default())
}

/// Rows of which nothing can be said at some point.
fn missing(document: &Document, primary: &[&Comparison]) -> Vec<String> {
    let settings = &document.settings;
    let places = settings.judged().flat_map(|row| settings.points.iter().map(move |point| (row, point)));
    let told = |(row, point): &(&String, &Point)| {
        primary.iter().any(|comparison| comparison.a == **row && comparison.point == **point)
    };
    let places = places.filter(|place| !told(place));
    let reason = if settings.primary_metric == Metric::SloRate {
        "the objectives were not met in every round"
    } else {
        "what it rests on is not available"
    };
    places
        .map(|(row, point)| format!("no verdict for {row} over {}: {reason}", place(settings, point)))
        .collect()
}

fn place(settings: &Recorded, point: &Point) -> String {
    let suffix = Distinction::among(&settings.points).suffix(point);
    format!("{}{suffix}", grouped(point.connections as u64))
}

/// Of a sweep: how often each verdict was given.
fn tally(primary: &[&Comparison]) -> String {
    let mut rows: Vec<(&str, &str)> = primary.iter().map(|one| (one.a.as_str(), one.b.as_str())).collect();
    rows.dedup();
    let told = rows.into_iter().map(|(a, b)| {
        let verdicts: Vec<Verdict> = primary.iter().filter(|one| one.a == a).map(|one| one.verdict).collect();
        let counts = Verdict::ALL.into_iter().filter_map(|verdict| {
            let count = verdicts.iter().filter(|given| **given == verdict).count();
            (count > 0).then(|| format!("{} at {count}", verdict.words()))
        });
        let counts: Vec<String> = counts.collect();
        format!("{a} against {b}, of {} points: {}", verdicts.len(), counts.join(", "))
    });
    let told: Vec<String> = told.collect();
    format!(
        "{}.{} Each interval stands for itself: of twenty, one misses the truth by chance.",
        told.join("; "),
        noise(primary).unwrap_or_default()
    )
}

/// How small an effect could have been told from noise, if a control says it.
fn noise(primary: &[&Comparison]) -> Option<String> {
    let floors = primary.iter().filter_map(|comparison| comparison.noise_floor);
    let greatest = floors.reduce(f64::max)?;
    Some(format!(" Effects below {:.1} % are noise here, as the control shows.", greatest * 100.0))
}

fn clause(comparison: &Comparison, distinction: Distinction) -> String {
    let Comparison { a, b, ratio, point, .. } = comparison;
    let (connections, suffix) = (grouped(point.connections as u64), distinction.suffix(point));
    let per_cent = (ratio - 1.0).abs() * 100.0;
    let metric = comparison.metric.title();
    match comparison.verdict {
        Verdict::Faster => {
            format!("{a} is {per_cent:.1} % faster than {b} over {connections} connections{suffix}")
        }
        Verdict::Slower => {
            format!("{a} is {per_cent:.1} % slower than {b} over {connections} connections{suffix}")
        }
        Verdict::Cheaper | Verdict::Costlier => {
            let less = if comparison.verdict == Verdict::Cheaper { "less" } else { "more" };
            let ends = comparison.low.zip(comparison.high).map(|(low, high)| {
                let mut ends = [low, high].map(|end| (end - 1.0).abs() * 100.0);
                ends.sort_by(f64::total_cmp);
                format!(" [{:.1}, {:.1}]", ends[0], ends[1])
            });
            format!(
                "{a} takes {per_cent:.1}{} % {less} server CPU a request than {b} over {connections} connections{suffix}",
                ends.unwrap_or_default()
            )
        }
        Verdict::RateNotKept => {
            format!("no verdict for {a} against {b} over {connections}{suffix}: the rate was not kept")
        }
        Verdict::NoDifferenceShown => {
            format!("no difference in {metric} shown between {a} and {b} over {connections}{suffix}")
        }
        _ if comparison.low.is_none() => {
            format!(
                "inconclusive for {a} over {connections}{suffix}: {} rounds, 6 are needed",
                comparison.rounds
            )
        }
        _ => format!(
            "inconclusive in {metric} for {a} against {b} over {connections}{suffix}: more rounds or longer windows \
             may tell"
        ),
    }
}

/// How many replies, and how they were verified.
pub(crate) fn verified(settings: &Recorded, cells: &[Cell]) -> String {
    let verify = settings.verify.as_str();
    let replies = grouped(cells.iter().map(|cell| cell.counts.requests_all_phases).sum());
    let wrong: u64 = cells.iter().flat_map(|cell| &cell.errors).map(|failure| failure.count).sum();
    let how = match verify {
        "full" if settings.http.is_some() => "compared with the first one",
        "full" => "compared byte by byte with their requests",
        "header" if settings.http.is_some() => "their status and length compared with those of the first one",
        "header" => "their headers compared, not their payloads, as --verify header says",
        _ => "counted, not compared, as --verify off says",
    };
    // A datagram may be lost, which is counted and no failure.
    if let Some(lost) = lost(cells) {
        let wrong = if wrong == 0 { "none wrong".into() } else { format!("failures: {}", grouped(wrong)) };
        return format!("{replies} replies, {how}; {wrong}, {}.", lost);
    }
    match wrong {
        0 if verify == "off" => format!("{replies} replies, {how}; none missing."),
        0 => format!("{replies} replies, {how}; none wrong or missing."),
        wrong => format!("{replies} replies, {how}; failures: {}.", grouped(wrong)),
    }
}

/// How many datagrams were lost, if there were any to lose.
fn lost(cells: &[Cell]) -> Option<String> {
    let counts: Vec<DatagramCounts> = cells.iter().filter_map(|cell| cell.datagrams).collect();
    let sum = |pick: fn(&DatagramCounts) -> u64| counts.iter().map(pick).sum::<u64>();
    let (sent, lost, late) = (sum(|one| one.sent), sum(|one| one.lost), sum(|one| one.late));
    let late = if late > 0 { format!(", {} of which came late", grouped(late)) } else { String::new() };
    (!counts.is_empty()).then(|| format!("{} of {} requests lost{late}", grouped(lost), grouped(sent)))
}

/// Places of the plan whose cell and repetition both failed a check.
pub(crate) fn unrepaired(cells: &[Cell]) -> Vec<&Cell> {
    cells.iter().filter(|cell| cell.spoiled && cell.repeat).collect()
}

/// What makes the figures doubtful, or how they are to be read.
pub(crate) fn valid(cells: &[Cell], spoiled: &[&Cell], complete: bool) -> String {
    let mut notes = Vec::new();
    if !complete {
        notes.push("the run is not complete".into());
    }
    if let Some(cell) = spoiled.first() {
        let check = cell.checks.iter().find(|check| check.has_spoiled());
        let detail = check.map_or("a check failed", |check| check.detail.as_str());
        notes.push(format!("{} cells stayed spoiled ({}: {detail})", spoiled.len(), cell.row));
    }
    let repaired = cells.iter().filter(|cell| cell.spoiled && !cell.repeat).count();
    if repaired > spoiled.len() {
        notes.push(format!("{} spoiled cells were repeated", repaired - spoiled.len()));
    }
    notes.extend(starvation(cells));
    // That probes go beyond what a row can do is their purpose.
    let noted = NOTED.iter().filter(|(check, _)| *check != RATE_KEPT || cells.iter().all(|cell| !cell.probe));
    for (check, what) in noted {
        let count = cells.iter().filter(|cell| failed(cell, check)).count();
        if count > 0 {
            notes.push(format!("{what} in {count} of {} cells", cells.len()));
        }
    }
    let valid = if complete && spoiled.is_empty() { "yes" } else { "no" };
    if notes.is_empty() { format!("{valid}.") } else { format!("{valid}; {}.", notes.join("; ")) }
}

/// The cell in which most connections waited through the whole window.
fn starvation(cells: &[Cell]) -> Option<String> {
    let starved = cells.iter().filter(|cell| failed(cell, "no_starved_connection"));
    let count = starved.clone().count();
    let worst = starved.max_by_key(|cell| cell.counts.connections_starved)?;
    Some(format!(
        "starved connections in {count} of {} cells, {} of {} in the worst ({}), so no latency of theirs is told",
        cells.len(),
        grouped(worst.counts.connections_starved as u64),
        grouped(worst.point.connections as u64),
        worst.row
    ))
}
