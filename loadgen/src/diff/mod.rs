//! Two results against each other: what changed from the old one to the new one, and whether gates let it pass.

mod gate;
mod text;

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value};

use self::gate::{Gate, Outcome};
use crate::{
    cli::Format,
    document::{self, Loaded},
    error::{Error, Exit},
    point::Point,
    report,
    result::{Comparison, Document},
    stats::{self, Estimate},
    summary,
    verdict::Metric,
};

const SCHEMA: &str = "ringspun-loadgen-diff/1";

#[derive(Debug, Args)]
#[command(after_long_help = "Exits with 4 if a gate fails.\n\n\
    A gate fails if the estimate breaks its bound and the interval excludes that nothing changed, and by the \
    estimate alone if the rounds are too few for an interval or the bound asks for a change.")]
pub(crate) struct DiffArgs {
    /// The result to start from: a result.json, or the folder of a run
    #[arg(value_name = "OLD")]
    old: PathBuf,
    /// The result to compare with it
    #[arg(value_name = "NEW")]
    new: PathBuf,
    /// What must hold of new / old, for every row or the one in brackets, such as `rps>-3%`, `p99[epoll]<+10%` or
    /// `rps[io_uring/epoll]>-3%`; may be repeated
    #[arg(long = "gate", value_name = "METRIC[ROW]>CHANGE")]
    gates: Vec<Gate>,
    /// What goes to standard output
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// How one metric of one series changed at one point.
#[derive(Debug, Serialize)]
struct Change {
    /// A row, or the ratio of two as `a / b`.
    series: String,
    /// Whether it is the ratio of two rows, in which the noise of the machine cancels.
    is_ratio: bool,
    #[serde(flatten)]
    point: Point,
    metric: Metric,
    /// Median over rounds; of a ratio, its estimate.
    old: f64,
    new: f64,
    rounds_old: usize,
    rounds_new: usize,
    /// New over old: the two-sample Hodges-Lehmann estimate.
    ratio: f64,
    /// Ends of the 95 % interval; None if the rounds are too few.
    low: Option<f64>,
    high: Option<f64>,
    p: f64,
}

/// What OLD tells and NEW does not: a row that starves, fails its checks or is gone has no figures to be judged.
#[derive(Debug)]
struct Lost {
    series: String,
    is_ratio: bool,
    point: Point,
    metric: Metric,
}

impl Change {
    fn excludes_no_change(&self) -> bool {
        self.low.zip(self.high).is_some_and(|(low, high)| low > 1.0 || high < 1.0)
    }
}

/// Everything about two results.
#[derive(Debug, Serialize)]
struct Diff {
    schema: &'static str,
    old: PathBuf,
    new: PathBuf,
    /// In what machines and settings differ.
    differences: Vec<String>,
    changes: Vec<Change>,
    gates: Vec<Outcome>,
    passed: bool,
}

/// Compares two results; a gate that fails is an error.
pub(crate) fn run(args: DiffArgs) -> Result<Exit, Error> {
    let (old, new) = (document::load(&args.old)?, document::load(&args.new)?);
    let diff = diff(old, new, args.gates)?;
    if !diff.differences.is_empty() {
        report::progress(&format!(
            "warning: the runs differ in more than time: {}",
            diff.differences.join("; ")
        ));
    }
    report::print(&match args.format {
        Format::Text => text::screen(&diff),
        Format::Json => json(&diff)?,
    });
    let failed: Vec<&str> =
        diff.gates.iter().filter(|outcome| !outcome.passed).map(|outcome| outcome.gate.as_str()).collect();
    match failed.as_slice() {
        [] => Ok(Exit::Done),
        failed => Err(Error::new(
            Exit::Unmet,
            format!("{} of {} gates failed: {}", failed.len(), diff.gates.len(), failed.join(", ")),
        )),
    }
}

fn json(diff: &Diff) -> Result<String, Error> {
    let json = serde_json::to_string_pretty(diff)
        .map_err(|error| Error::internal(format!("the difference cannot be written as JSON: {error}")))?;
    Ok(json + "\n")
}

fn diff(old: Loaded, new: Loaded, gates: Vec<Gate>) -> Result<Diff, Error> {
    let (before, after) = (&old.document, &new.document);
    if before.settings.mode != after.settings.mode {
        return Err(Error::usage(format!(
            "{} measured in mode {}, {} in mode {}; compare runs of one mode",
            old.path.display(),
            before.settings.mode,
            new.path.display(),
            after.settings.mode
        )));
    }
    if before.settings.transport != after.settings.transport {
        return Err(Error::usage(format!(
            "{} measured over {}, {} over {}; compare runs over one transport",
            old.path.display(),
            before.settings.transport,
            new.path.display(),
            after.settings.transport
        )));
    }
    let changes = changes(before, after);
    if changes.is_empty() {
        let (old, new) = (old.path.display(), new.path.display());
        return Err(Error::usage(format!(
            "{old} and {new} share no row with figures at the same point; repeat the run with the same rows, -c, -s, -p \
             and -R"
        )));
    }
    if !gates.is_empty() && !after.complete {
        return Err(Error::usage(format!(
            "{} is not complete, so no gate can judge it; repeat the run",
            new.path.display()
        )));
    }
    let lost = lost(before, after);
    let gates = gates.iter().map(|gate| gate.judge(&changes, &lost)).collect::<Result<Vec<_>, _>>()?;
    Ok(Diff {
        schema: SCHEMA,
        differences: differences(before, after),
        passed: gates.iter().all(|outcome| outcome.passed),
        old: old.path,
        new: new.path,
        changes,
        gates,
    })
}

/// What both results hold, by point, rows before ratios.
fn changes(old: &Document, new: &Document) -> Vec<Change> {
    let points = old.settings.points.iter().filter(|point| new.settings.points.contains(point));
    points
        .flat_map(|point| {
            let rows = old.settings.rows.iter();
            let rows =
                rows.flat_map(move |row| Metric::ALL.map(|metric| row_changed(old, new, row, point, metric)));
            let ratios = old.comparisons.iter().filter(move |one| one.point == *point);
            rows.flatten().chain(ratios.filter_map(|one| ratio_changed(one, new)))
        })
        .collect()
}

fn lost(old: &Document, new: &Document) -> Vec<Lost> {
    let mut lost = Vec::new();
    for point in &old.settings.points {
        for (row, metric) in old.settings.rows.iter().flat_map(|row| Metric::ALL.map(|metric| (row, metric)))
        {
            let told = |document: &Document| !summary::figures(document, row, point, metric).is_empty();
            if told(old) && !told(new) {
                lost.push(Lost { series: row.clone(), is_ratio: false, point: point.clone(), metric });
            }
        }
    }
    let ratios = old.comparisons.iter().filter(|one| ratio_changed(one, new).is_none());
    lost.extend(ratios.map(|one| Lost {
        series: format!("{} / {}", one.a, one.b),
        is_ratio: true,
        point: one.point.clone(),
        metric: one.metric,
    }));
    lost
}

fn row_changed(old: &Document, new: &Document, row: &str, point: &Point, metric: Metric) -> Option<Change> {
    let figures = |document: &Document| summary::figures(document, row, point, metric);
    let (old, new) = (figures(old), figures(new));
    let medians = (stats::median(&old)?, stats::median(&new)?);
    Some(Change { is_ratio: false, ..Change::of(row.to_owned(), point, metric, medians, &old, &new)? })
}

fn ratio_changed(old: &Comparison, new: &Document) -> Option<Change> {
    let alike = |new: &&Comparison| {
        (new.metric, &new.a, &new.b, &new.point) == (old.metric, &old.a, &old.b, &old.point)
    };
    let new = new.comparisons.iter().find(alike)?;
    let series = format!("{} / {}", old.a, old.b);
    Change::of(series, &old.point, old.metric, (old.ratio, new.ratio), &old.ratios, &new.ratios)
}

impl Change {
    fn of(
        series: String,
        point: &Point,
        metric: Metric,
        (before, after): (f64, f64),
        old: &[f64],
        new: &[f64],
    ) -> Option<Self> {
        let Estimate { ratio, interval, p } = stats::estimate_unpaired(old, new)?;
        Some(Self {
            series,
            is_ratio: true,
            point: point.clone(),
            metric,
            old: before,
            new: after,
            rounds_old: old.len(),
            rounds_new: new.len(),
            ratio,
            low: interval.map(|(low, _)| low),
            high: interval.map(|(_, high)| high),
            p,
        })
    }
}

/// In what two runs differ that should be alike.
fn differences(old: &Document, new: &Document) -> Vec<String> {
    let mut differences = Vec::new();
    for (name, document) in [("OLD", old), ("NEW", new)] {
        if !document.complete {
            differences.push(format!("{name} is not complete"));
        }
    }
    let pairs =
        [(fields(&old.machine), fields(&new.machine)), (fields(&old.settings), fields(&new.settings))];
    pairs.iter().for_each(|(old, new)| differ(&mut differences, "", old, new));
    differences
}

fn fields(value: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

fn differ(differences: &mut Vec<String>, within: &str, old: &Map<String, Value>, new: &Map<String, Value>) {
    let names = old.keys().chain(new.keys().filter(|name| !old.contains_key(*name)));
    for name in names.filter(|name| *name != "command") {
        let (before, after) =
            (&old.get(name).unwrap_or(&Value::Null), &new.get(name).unwrap_or(&Value::Null));
        match (before, after) {
            (before, after) if before == after => {}
            (Value::Object(before), Value::Object(after)) => {
                differ(differences, &format!("{within}{name} "), before, after);
            }
            (Value::Array(_), _) => {
                differences.push(format!("{within}{name}, of which only those that both have are compared"));
            }
            _ => differences.push(format!("{within}{name} {} against {}", plain(before), plain(after))),
        }
    }
}

/// Without quotes, for people.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::String(text) => text.replace(char::is_control, " "),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLISHED: &str =
        include_str!("../../../results/2026-11-21-6.18.44-fc-v669-d761dbcb95b4/result.json");

    fn published(change: impl Fn(&mut Value)) -> Document {
        let mut value: Value = serde_json::from_str(PUBLISHED).expect("JSON");
        change(&mut value);
        document::parse(value.to_string().as_bytes()).expect("a result")
    }

    fn loaded(document: Document) -> Loaded {
        Loaded { document, path: "result.json".into() }
    }

    /// As if all rates of a row had been this much higher.
    fn faster(row: &str, factor: f64) -> Document {
        let mut document = published(|_| {});
        for cell in document.cells.iter_mut().filter(|cell| cell.row == row) {
            cell.rps = cell.rps.map(|rps| rps * factor);
        }
        summary::conclude(&mut document);
        document
    }

    fn find<'a>(changes: &'a [Change], series: &str, metric: Metric) -> &'a Change {
        changes.iter().find(|change| change.series == series && change.metric == metric).expect(series)
    }

    #[test]
    fn a_change_of_one_row_shows_in_it_and_in_its_ratio_alone() {
        let (old, new) = (faster("io_uring", 1.0), faster("io_uring", 1.5));
        let changes = changes(&old, &new);
        for (series, ratio) in
            [("io_uring", 1.5), ("epoll", 1.0), ("io_uring / epoll", 1.5), ("threads / epoll", 1.0)]
        {
            let change = find(&changes, series, Metric::Rps);
            assert!((change.ratio - ratio).abs() < 0.05, "{series}: {change:?}");
            assert_eq!(change.is_ratio, series.contains('/'));
        }
    }

    #[test]
    fn noise_of_the_whole_machine_cancels_in_the_ratio() {
        let old = published(|_| {});
        let mut new = old.clone();
        new.cells.iter_mut().for_each(|cell| cell.rps = cell.rps.map(|rps| rps * 0.5));
        summary::conclude(&mut new);
        let mut old = old;
        summary::conclude(&mut old);
        let changes = changes(&old, &new);
        assert!((find(&changes, "io_uring", Metric::Rps).ratio - 0.5).abs() < 0.05);
        assert!((find(&changes, "io_uring / epoll", Metric::Rps).ratio - 1.0).abs() < 1e-9);
    }

    #[test]
    fn what_differs_beside_time_is_told() {
        let old = published(|_| {});
        assert_eq!(differences(&old, &old), [""; 0]);
        let new = published(|value| {
            value["machine"]["kernel"] = "7.0".into();
            value["machine"]["limits"]["net.core.somaxconn"] = "1".into();
            value["settings"]["duration_seconds"] = 0.25.into();
            value["settings"]["command"] = "run".into();
            value["complete"] = false.into();
        });
        let told = differences(&old, &new).join("; ");
        for part in [
            "NEW is not complete",
            "kernel 6",
            "against 7.0",
            "limits net.core.somaxconn",
            "duration_seconds",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert_eq!(differences(&old, &new).len(), 4, "{told}");
    }

    #[test]
    fn other_modes_and_other_points_are_refused() {
        let other = |change: fn(&mut Value)| {
            diff(loaded(published(|_| {})), loaded(published(change)), Vec::new())
                .expect_err("not alike")
                .to_string()
        };
        assert!(other(|value| value["settings"]["mode"] = "idle".into()).contains("runs of one mode"));
        let told = other(|value| {
            value["settings"]["size_bytes"] = 100.into();
            for list in ["cells", "comparisons"] {
                for entry in value[list].as_array_mut().expect("a list") {
                    entry["size"] = 100.into();
                }
            }
        });
        assert!(told.contains("share no row"), "{told}");
    }
}
