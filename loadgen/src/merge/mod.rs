//! Results of several machines that loaded one server at the same time, made one.

mod join;

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use crate::{
    cli::Format,
    document::{self, Loaded},
    error::{Error, Exit},
    export::Exports,
    output::Output,
    point::Point,
    report::{self, text},
    result::{Cell, Document, Origin},
    session, summary,
    verdict::Metric,
};

/// The share of the shortest window that all must have in common.
const OVERLAP_MIN: f64 = 0.9;
/// Settings in which machines may differ: none of them changes what is asked of the server.
const OWN_SETTINGS: [&str; 5] = ["seed", "client", "client_cpu", "server_cpu", "max_steal"];

#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    /// Results of runs that loaded one server at the same time: files, or folders of runs
    #[arg(value_name = "RESULT", num_args = 2.., required = true)]
    results: Vec<PathBuf>,
    /// Folder for the merged result; one that holds something is not touched, a number is added instead.
    /// The default is `results/<date>-<kernel>-<commit>`
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// What goes to standard output
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    exports: Exports,
}

/// Merges what belongs together, and refuses all else before anything is written.
pub(crate) fn run(args: &MergeArgs) -> Result<Exit, Error> {
    args.exports.check()?;
    let parts = args.results.iter().map(|path| document::load(path)).collect::<Result<Vec<_>, _>>()?;
    let merged = merge(&parts)?;
    let output = Output::create(args.output.as_deref(), merged.git.as_ref())?;
    let json = output.write_result(&merged)?;
    let screen = text::screen(&merged, &output.result_path());
    output.write_screen(&screen)?;
    report::print(if args.format == Format::Json { &json } else { &screen });
    args.exports.write(&merged)?;
    match &merged.summary {
        Some(summary) if !summary.objectives_met => {
            Err(Error::new(Exit::Unmet, "an objective was not met, see the line SLO"))
        }
        _ => Ok(Exit::Done),
    }
}

fn merge(parts: &[Loaded]) -> Result<Document, Error> {
    let Some((first, others)) = parts.split_first() else {
        return Err(Error::usage("merge needs results; name at least two"));
    };
    for (index, part) in parts.iter().enumerate() {
        let alone = parts[..index].iter().all(|other| !is_same_file(&other.path, &part.path));
        if !alone {
            return Err(refusal(part, "is named twice; name the result of each machine once"));
        }
        if !part.document.complete {
            return Err(refusal(part, "is not complete; merge runs that ended well"));
        }
        if part.document.settings.primary_metric == Metric::SloRate {
            return Err(refusal(
                part,
                "is of a search, which chose rates of its own; merge runs at a given --rate",
            ));
        }
    }
    others.iter().try_for_each(|other| suits(first, other))?;
    let cells = (0..first.document.cells.len()).map(|index| join_cells(parts, index));
    let mut merged = frame(parts, &first.document);
    merged.cells = cells.collect::<Result<_, _>>()?;
    summary::conclude(&mut merged);
    Ok(merged)
}

fn refusal(part: &Loaded, why: &str) -> Error {
    Error::usage(format!("cannot merge: {} {why}", part.path.display()))
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

/// Whether two results are of the same plan, cell by cell.
fn suits(first: &Loaded, other: &Loaded) -> Result<(), Error> {
    let refuse = |what: &str| {
        let first = first.path.display();
        Err(refusal(
            other,
            &format!("differs from {first} in its {what}; run the same command line on each machine"),
        ))
    };
    let settings = |part: &Loaded| match serde_json::to_value(&part.document.settings) {
        Ok(Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (ours, theirs) = (settings(first), settings(other));
    let differs = |name: &&String| !OWN_SETTINGS.contains(&name.as_str()) && ours[*name] != theirs[*name];
    if let Some(name) = ours.keys().find(differs) {
        return refuse(&format!("settings ({name})"));
    }
    if first.document.plan != other.document.plan {
        return refuse("plan (the order of rows)");
    }
    let (ours, theirs) = (&first.document.cells, &other.document.cells);
    if ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(a, b)| place(a) == place(b)) {
        return Ok(());
    }
    Err(refusal(
        other,
        &format!(
            "and {} do not hold the same cells, as when one repeated a spoiled cell and so lost step; repeat the run",
            first.path.display()
        ),
    ))
}

fn place(cell: &Cell) -> (&str, usize, &Point, bool) {
    (&cell.row, cell.round, &cell.point, cell.repeat)
}

fn join_cells(parts: &[Loaded], index: usize) -> Result<Cell, Error> {
    let cells: Vec<&Cell> = parts.iter().map(|part| &part.document.cells[index]).collect();
    let common =
        parts.iter().zip(&cells).map(|(part, cell)| window(part, cell)).collect::<Result<Vec<_>, _>>()?;
    let opened = common.iter().map(|(opened, _)| *opened).fold(f64::NEG_INFINITY, f64::max);
    let closed = common.iter().map(|(opened, length)| opened + length).fold(f64::INFINITY, f64::min);
    let shortest = common.iter().map(|(_, length)| *length).fold(f64::INFINITY, f64::min);
    let share = ((closed - opened) / shortest).max(0.0);
    if share >= OVERLAP_MIN {
        return Ok(join::cells(&cells));
    }
    let files: Vec<String> = parts.iter().map(|part| part.path.display().to_string()).collect();
    Err(Error::usage(format!(
        "cannot merge: the windows of {} overlap by {:.0} % of the shortest in round {} of {} over {}; start the runs at \
         the same moment, by clocks that agree",
        files.join(" and "),
        share * 100.0,
        cells[0].round,
        cells[0].row,
        cells[0].point
    )))
}

/// When a window opened and how long it was.
fn window(part: &Loaded, cell: &Cell) -> Result<(f64, f64), Error> {
    let opened = cell.window_opened_unix_seconds.filter(|_| cell.window_seconds > 0.0);
    opened.map(|opened| (opened, cell.window_seconds)).ok_or_else(|| {
        refusal(part, "does not tell when its windows opened; repeat the run with this version of loadgen")
    })
}

/// All of the merged result but its cells and what follows from them.
fn frame(parts: &[Loaded], first: &Document) -> Document {
    let documents = || parts.iter().map(|part| &part.document);
    let mut settings = first.settings.clone();
    settings.points.iter_mut().for_each(|point| *point = join::point(point, parts.len()));
    let alike = |pick: fn(&Document) -> Option<usize>| {
        pick(first).filter(|_| documents().all(|d| pick(d) == pick(first)))
    };
    settings.client_cpu = alike(|document| document.settings.client_cpu);
    settings.server_cpu = alike(|document| document.settings.server_cpu);
    settings.max_steal = documents().map(|document| document.settings.max_steal).fold(0.0, f64::max);
    let others = documents().enumerate().flat_map(|(index, document)| {
        let own = (index > 0).then(|| document.machine.origin());
        own.into_iter().chain(document.merged_from.iter().cloned())
    });
    let others: Vec<Origin> = others.collect();
    Document {
        command: session::command_line(),
        loadgen_version: env!("CARGO_PKG_VERSION").into(),
        // Times of one form: the order of the texts is that of the moments.
        started: documents().map(|document| document.started.clone()).min().unwrap_or_default(),
        finished: documents().map(|document| document.finished.clone()).max().flatten(),
        settings,
        merged_from: others,
        cells: Vec::new(),
        comparisons: Vec::new(),
        summary: None,
        ..first.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::Check;

    const PUBLISHED: &str =
        include_str!("../../../results/2026-11-21-6.18.44-fc-v669-d761dbcb95b4/result.json");

    /// A complete result with windows one second apart, this much later.
    fn part(path: &str, later: f64) -> Loaded {
        let mut document = document::parse(PUBLISHED.as_bytes()).expect("a result");
        document.cells.truncate(6);
        for (index, cell) in document.cells.iter_mut().enumerate() {
            cell.window_seconds = 5.0;
            cell.window_opened_unix_seconds = Some(1e9 + 10.0 * index as f64 + later);
        }
        Loaded { document, path: path.into() }
    }

    fn refused(change: impl Fn(&mut Document)) -> String {
        let (first, mut second) = (part("a", 0.0), part("b", 0.0));
        change(&mut second.document);
        let error = merge(&[first, second]).expect_err("not alike");
        assert_eq!(error.exit, Exit::Usage);
        error.to_string()
    }

    #[test]
    fn what_was_not_one_load_is_refused() {
        for (told, word) in [
            (refused(|d| d.complete = false), "cannot merge: b is not complete"),
            (refused(|d| d.settings.primary_metric = Metric::SloRate), "b is of a search"),
            (refused(|d| d.settings.mode = "idle".into()), "in its settings (mode)"),
            (refused(|d| d.settings.points[0].connections += 1), "in its settings (points)"),
            (refused(|d| d.settings.duration_seconds = 1.0), "settings (duration_seconds)"),
            (refused(|d| d.plan.reverse()), "in its plan"),
            (refused(|d| d.cells[1].repeat = true), "do not hold the same cells"),
            (refused(|d| d.cells.truncate(5)), "do not hold the same cells"),
            (refused(|d| d.cells[3].window_opened_unix_seconds = None), "b does not tell when"),
            (refused(|d| d.cells[3].window_opened_unix_seconds = Some(0.0)), "a and b overlap by 0 %"),
        ] {
            assert!(told.contains(word), "'{word}' in {told}");
        }
        let twice = merge(&[part("a", 0.0), part("a", 0.0)]).expect_err("the same").to_string();
        assert!(twice.contains("a is named twice"), "{twice}");
    }

    #[test]
    fn windows_must_overlap_by_nine_tenths_of_the_shortest() {
        assert!(merge(&[part("a", 0.0), part("b", 0.49)]).is_ok());
        assert!(merge(&[part("a", 0.0), part("b", -0.49)]).is_ok());
        let told = merge(&[part("a", 0.0), part("b", 0.51)]).expect_err("too late").to_string();
        assert!(told.contains("overlap by 90 %") && told.contains("round 1 of"), "{told}");
        let third =
            merge(&[part("a", 0.0), part("b", 0.3), part("c", -0.3)]).expect_err("all three").to_string();
        assert!(third.contains("a and b and c overlap by 88 %"), "{third}");
    }

    #[test]
    fn own_settings_may_differ() {
        let (first, mut second) = (part("a", 0.0), part("b", 0.0));
        (second.document.settings.seed, second.document.settings.client_cpu) = (7, None);
        second.document.settings.max_steal = 0.5;
        let merged = merge(&[first, second]).expect("alike in what matters");
        assert_eq!((merged.settings.client_cpu, merged.settings.max_steal), (None, 0.5));
    }

    #[test]
    fn the_merged_result_is_a_result() {
        let parts = [part("a", 0.0), part("b", 0.1), part("c", 0.2)];
        let merged = merge(&parts).expect("alike");
        assert_eq!(merged.merged_from.len(), 2);
        assert!(merged.complete && merged.summary.is_some() && !merged.comparisons.is_empty());
        let connections: Vec<usize> = merged.settings.points.iter().map(|point| point.connections).collect();
        assert_eq!(connections, [3 * 64, 3 * 1_000]);
        let json = merged.to_json().expect("JSON");
        let back = document::parse(json.as_bytes()).expect("it reads back");
        assert_eq!(back.to_json().expect("JSON"), json);
        let again = merge(&[
            Loaded { document: merged, path: "ab".into() },
            Loaded { document: back, path: "cd".into() },
        ]);
        assert_eq!(again.expect("alike").merged_from.len(), 5, "of six parts the first is the machine");
    }

    #[test]
    fn what_spoils_a_part_spoils_the_whole() {
        let (first, mut second) = (part("a", 0.0), part("b", 0.0));
        let cell = &mut second.document.cells[2];
        (cell.spoiled, cell.checks) = (true, vec![Check::required("stolen_time", false, "too much".into())]);
        let merged = merge(&[first, second]).expect("alike");
        let spoiled: Vec<bool> = merged.cells.iter().map(|cell| cell.spoiled).collect();
        assert_eq!(spoiled, [false, false, true, false, false, false]);
    }
}
