//! Which objectives were met, by which row, at which point.

use crate::{
    point::{Distinction, Point},
    result::{Document, Found},
    stats,
    summary::Line,
    units::grouped,
};

/// What became of an objective.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) is_met: bool,
    text: String,
}

/// Of a run or a comparison: each row at each point, all its rounds together.
pub(crate) fn of_rows(document: &Document) -> Vec<Outcome> {
    let settings = &document.settings;
    let mut outcomes = Vec::new();
    for point in &settings.points {
        for row in &settings.rows {
            let line = Line::of(&document.cells, row, point);
            outcomes.extend(settings.objectives.iter().map(|objective| {
                let is_met = objective.is_met(line.measured());
                let value = objective.told(objective.value(line.measured()));
                let not = if is_met { "" } else { "NOT " };
                Outcome {
                    is_met,
                    text: format!("{row}{}: {objective} {not}met ({value})", place(document, point)),
                }
            }));
        }
    }
    outcomes
}

/// Of a search: whether they were met at any rate, in every round.
pub(crate) fn of_search(document: &Document) -> Vec<Outcome> {
    let settings = &document.settings;
    let places = settings.points.iter().flat_map(|point| settings.rows.iter().map(move |row| (row, point)));
    places
        .map(|(row, point)| {
            let of_place = |found: &&Found| found.row == *row && found.point == *point;
            let rates: Vec<Option<u64>> =
                document.found.iter().filter(of_place).map(|found| found.slo_rate).collect();
            let is_met = !rates.is_empty() && rates.iter().all(Option::is_some);
            let median = stats::median(&rates.iter().flatten().map(|rate| *rate as f64).collect::<Vec<_>>());
            let place = place(document, point);
            let text = match median {
                Some(rate) if is_met => format!("{row}{place}: met up to {}/s", grouped(rate as u64)),
                _ => format!("{row}{place}: NOT met in some rounds, at any rate that was tried"),
            };
            Outcome { is_met, text }
        })
        .collect()
}

fn place(document: &Document, point: &Point) -> String {
    let suffix = Distinction::among(&document.settings.points).suffix(point);
    format!(" over {}{suffix}", grouped(point.connections as u64))
}

pub(crate) fn sentence(outcomes: &[Outcome]) -> String {
    let texts: Vec<&str> = outcomes.iter().map(|outcome| outcome.text.as_str()).collect();
    format!("{}.", texts.join("; "))
}
