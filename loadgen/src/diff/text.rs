//! The screen of a difference, 80 columns wide.

use std::fmt::Write as _;

use super::{Change, Diff, gate::Outcome};
use crate::{
    report::text::{interval, labelled, number},
    verdict::Metric,
};

const NAME_WIDTH: usize = 30;
/// Marks a change whose interval excludes that there is none.
const CHANGED: &str = "*";
const NOISE: &str = "The runs were not interleaved, so what a row shows may be the machine's own change; in a / b, the \
                     ratio of two rows, that cancels.";

pub(super) fn screen(diff: &Diff) -> String {
    let mut text = String::new();
    for (index, change) in diff.changes.iter().enumerate() {
        let before = index.checked_sub(1).map(|index| &diff.changes[index]);
        if before.is_none_or(|before| before.point != change.point) {
            heading(&mut text, change, index > 0);
        }
        if before.is_none_or(|before| (&before.point, &before.series) != (&change.point, &change.series)) {
            let _ = writeln!(text, "{}", change.series);
        }
        line(&mut text, change);
    }
    text.push('\n');
    if diff.changes.iter().any(Change::excludes_no_change) {
        let _ = writeln!(text, "{CHANGED}: the interval excludes that nothing changed\n");
    }
    labelled(&mut text, "Noise", NOISE);
    diff.gates.iter().for_each(|outcome| gate(&mut text, outcome));
    text
}

// Writing to a String cannot fail, so the results of `write!` below carry nothing.

fn heading(text: &mut String, change: &Change, again: bool) {
    let _ = writeln!(
        text,
        "{}{}\n\n{:<NAME_WIDTH$}{:>11}{:>11}{:>26}",
        if again { "\n" } else { "" },
        change.point,
        "",
        "old",
        "new",
        "new / old [95 % interval]"
    );
}

fn line(text: &mut String, change: &Change) {
    let decimals = match change.metric {
        _ if change.is_ratio => 3,
        Metric::ServerCpuPerRequest | Metric::TotalCpuPerRequest => 2,
        Metric::SyscallsPerRequest => 3,
        _ => 0,
    };
    let unit = if change.is_ratio { "" } else { change.metric.unit() };
    let _ = writeln!(
        text,
        "  {:<width$}{:>11}{:>11}{:>26}{}",
        format!("{} {unit}", change.metric.name()),
        number(Some(change.old), decimals),
        number(Some(change.new), decimals),
        interval(change.ratio, change.low.zip(change.high)),
        if change.excludes_no_change() { CHANGED } else { "" },
        width = NAME_WIDTH - 2
    );
}

fn gate(text: &mut String, outcome: &Outcome) {
    let Outcome { gate, judged, failures, lost, .. } = outcome;
    if outcome.passed {
        return labelled(text, "Gate", &format!("{gate}: passed, {judged} of {judged}"));
    }
    for place in lost {
        labelled(text, "Gate", &format!("{gate}: FAILED by {place}: NEW tells it no more"));
    }
    for failure in failures {
        let ratio = interval(failure.ratio, failure.low.zip(failure.high));
        let alone = failure.by_estimate_alone.as_ref();
        let alone = alone.map(|why| format!("; {why}, so the estimate decides")).unwrap_or_default();
        let place = format!("{} over {}", failure.series, failure.point);
        labelled(text, "Gate", &format!("{gate}: FAILED by {place}: {ratio}{alone}"));
    }
}
