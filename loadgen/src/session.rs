//! A whole measurement: the plan carried out cell by cell, kept on disk after each of them.

use std::{
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    cell::{self, Place},
    cli::{Format, Settings},
    error::{Error, Exit},
    interrupt::Interrupt,
    layout::Layout,
    machine::{Git, Machine},
    message::Verify,
    mode::Mode,
    output::Output,
    pinning::{self, Cpus},
    plan,
    point::Point,
    report::{self, text},
    result::{Cell, Check, Document, Found, Recorded, SCHEMA},
    search::Bisection,
    summary::{self, CLIENT_BOUND},
};

/// How much of a run may be lost to a sudden end.
const KEEP: Duration = Duration::from_secs(1);

/// Measures what the settings say, and says how the process should end.
pub(crate) fn measure(settings: &Settings) -> Result<Exit, Error> {
    settings.exports.check()?;
    let interrupt = Interrupt::watch()?;
    Layout::check(settings)?;
    let cpus = settings.pin.choose()?;
    let git = Git::describe();
    // Described before it is pinned, or it would seem to have one CPU.
    let machine = Machine::describe();
    let output = Output::create(settings.output.as_deref(), git.as_ref())?;
    if let Some(cpu) = cpus.client {
        pinning::pin(cpu)?;
    }
    let mut session = Session::new(settings, cpus, interrupt, output, git, machine);
    let error = session.carry_out().err();
    session.conclude(error)
}

struct Session<'a> {
    settings: &'a Settings,
    cpus: Cpus,
    interrupt: Interrupt,
    output: Output,
    plan: Vec<Vec<usize>>,
    document: Document,
    /// When the result was last written.
    kept: Option<Instant>,
}

impl<'a> Session<'a> {
    fn new(
        settings: &'a Settings,
        cpus: Cpus,
        interrupt: Interrupt,
        output: Output,
        git: Option<Git>,
        machine: Machine,
    ) -> Self {
        let plan = plan::rounds(settings.order, settings.rows.len(), settings.rounds, settings.seed);
        let named = |round: &Vec<usize>| round.iter().map(|row| settings.row_name(*row)).collect();
        let document = Document {
            schema: SCHEMA.into(),
            complete: false,
            interrupted: false,
            error: None,
            loadgen_version: env!("CARGO_PKG_VERSION").into(),
            command: command_line(),
            started: now(),
            finished: None,
            git,
            machine,
            settings: Recorded::of(settings, cpus),
            plan: plan.iter().map(named).collect(),
            cells: Vec::new(),
            found: Vec::new(),
            comparisons: Vec::new(),
            summary: None,
            merged_from: Vec::new(),
        };
        Self { settings, cpus, interrupt, output, plan, document, kept: None }
    }

    /// Rounds outside, points within: a drift of the machine meets all of them alike.
    fn carry_out(&mut self) -> Result<(), Error> {
        report::progress(&text::opening(self.settings, self.cpus));
        let names = self.settings.row_names();
        for (index, rows) in self.plan.clone().into_iter().enumerate() {
            for point in &self.settings.points {
                for row in &rows {
                    let place = Place { round: index + 1, row: *row, point: point.clone(), repeat: false };
                    if self.settings.is_search() {
                        self.search(place, &names[*row])?;
                    } else {
                        self.measure_cell(place)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// How fast a row answers at all, and then at which rate it meets the objectives.
    fn search(&mut self, place: Place, row: &str) -> Result<(), Error> {
        self.measure_cell(place.clone())?;
        let replies = self.document.cells.last().and_then(|cell| cell.rps).unwrap_or(0.0);
        // Each request of a push has as many replies as there are connections.
        let audience = if self.settings.manner.mode == Mode::Push { place.point.connections } else { 1 };
        let (peak, mut client_bound) = (replies / audience as f64, false);
        let mut bisection = Bisection::below(peak);
        while let Some(rate) = bisection.next() {
            let point = Point { rate: Some(rate), ..place.point.clone() };
            self.measure_cell(Place { point, ..place.clone() })?;
            let met = self.document.cells.last().is_some_and(|cell| {
                let objectives = &self.settings.objectives;
                cell.counts_as_probe() && objectives.iter().all(|objective| objective.is_met(cell.measured()))
            });
            if met {
                let last = self.document.cells.last();
                client_bound = last.is_some_and(|cell| summary::failed(cell, CLIENT_BOUND));
            }
            bisection.tell(rate, met);
        }
        let Place { round, point, .. } = place;
        let (slo_rate, at_ceiling) = (bisection.found(), bisection.is_at_ceiling());
        let found = Found { row: row.into(), round, point, peak, slo_rate, at_ceiling, client_bound };
        report::progress(&text::found(&found));
        self.document.found.push(found);
        Ok(())
    }

    fn measure_cell(&mut self, place: Place) -> Result<(), Error> {
        let (mut cell, error) = cell::run(self.settings, &place, self.cpus, &self.interrupt);
        cell.spoiled = cell.checks.iter().any(Check::has_spoiled);
        cell.probe = self.settings.is_search();
        let spoiled = cell.spoiled;
        report::progress(&text::progress(&cell, &self.document.settings));
        let error = error.or_else(|| self.another_page(&cell));
        self.document.cells.push(cell);
        // Whatever ends this process, its cells stay, marked as incomplete. Not after each of very many, as all are
        // written anew each time.
        if error.is_some() || self.kept.is_none_or(|kept| kept.elapsed() >= KEEP) {
            self.output.write_result(&self.document)?;
            self.kept = Some(Instant::now());
        }
        match error {
            Some(error) => Err(error),
            None if self.interrupt.came() => Err(Error::interrupted()),
            None if spoiled && !place.repeat => self.measure_cell(Place { repeat: true, ..place }),
            None => Ok(()),
        }
    }

    /// Rows are compared by what they do, so all must do the same.
    fn another_page(&self, cell: &Cell) -> Option<Error> {
        let got = cell.response.filter(|_| self.settings.verify != Verify::Off)?;
        let (other, first) = self.document.cells.iter().find_map(|cell| Some((&cell.row, cell.response?)))?;
        let row = &cell.row;
        (got != first).then(|| {
            Error::verification(format!(
                "{row} answers {got}, {other} answered {first}; let all rows serve the same page, or say --verify off"
            ))
        })
    }

    fn conclude(mut self, error: Option<Error>) -> Result<Exit, Error> {
        let complete = error.is_none();
        let document = &mut self.document;
        document.complete = complete;
        document.interrupted = error.as_ref().is_some_and(|error| error.exit == Exit::Interrupted);
        document.error = error.as_ref().map(ToString::to_string);
        document.finished = Some(now());
        summary::conclude(document);
        let met = document.summary.as_ref().is_none_or(|summary| summary.objectives_met);
        let passes = document.summary.as_ref().is_some_and(|summary| summary.conclusive_and_valid);
        let path = self.output.result_path();
        let json = self.output.write_result(document)?;
        let screen = text::screen(document, &path);
        self.output.write_screen(&screen)?;
        report::print(if self.settings.format == Format::Json { &json } else { &screen });
        if error.is_none() {
            self.settings.exports.write(document)?;
        }
        match error {
            Some(error) => Err(with_remains(error, &path)),
            None if !met => {
                report::progress("loadgen: an objective was not met, see the line SLO");
                Ok(Exit::Unmet)
            }
            None if self.settings.strict && !passes => {
                report::progress(
                    "loadgen: --strict: the run is invalid or inconclusive, see Verdict and Valid",
                );
                Ok(Exit::Inconclusive)
            }
            None => Ok(Exit::Done),
        }
    }
}

fn with_remains(error: Error, path: &Path) -> Error {
    Error::new(
        error.exit,
        format!("{error} (what was measured is kept in {}, marked incomplete)", path.display()),
    )
}

fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// The command line as given; absolute paths below the current folder become relative, because
/// results are published.
pub(crate) fn command_line() -> Vec<String> {
    let folder = std::env::current_dir().map(|folder| format!("{}/", folder.display())).unwrap_or_default();
    let arguments = std::env::args().skip(1);
    let relative = arguments.map(|argument| match argument.strip_prefix(&folder) {
        Some(rest) if !folder.is_empty() => rest.to_owned(),
        _ => argument,
    });
    std::iter::once("loadgen".to_owned()).chain(relative).collect()
}
