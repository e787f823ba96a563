//! What the instrument itself can do on this machine: the client's ceiling, its lag, the noise of
//! comparing a server with itself, and whether planted faults are found.

mod faults;

use std::time::Duration;

use clap::Parser;

use self::faults::{Fault, STALL};
use crate::{
    cell::{self, Place},
    cli::{Cli, Command, Settings},
    error::{Error, Exit},
    interrupt::Interrupt,
    machine,
    pinning::{self, Cpus},
    plan::{self, Order},
    report,
    result::{Cell, Comparison, Latency, Recorded},
    spec::{Remote, Row},
    summary,
    units::grouped,
    verdict::Metric,
};

const CONNECTIONS: [&str; 2] = ["64", "1k"];
/// Connections for the faults that show as latency: enough for a free one at every arrival.
const MANY: &str = "512";

/// What is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// How much the client can ask of a server
    Ceiling,
    /// How late it sends in an open loop
    Lag,
    /// What a comparison says of a server and itself
    Noise,
    /// Whether planted faults are found
    Faults,
}

#[derive(Debug, clap::Args)]
pub(crate) struct SelftestArgs {
    /// Only this part
    #[arg(long, value_enum)]
    part: Option<Part>,
}

/// Runs the parts, a line each; a fault that is not found is an error.
pub(crate) fn run(args: &SelftestArgs) -> Result<Exit, Error> {
    let interrupt = Interrupt::watch()?;
    machine::raise_descriptor_limit();
    let bench = Bench { cpus: pinning::Pinning::Auto.choose()?, interrupt };
    if let Some(cpu) = bench.cpus.client {
        pinning::pin(cpu)?;
    }
    let wanted = |part| args.part.is_none_or(|only| only == part);
    if wanted(Part::Ceiling) {
        CONNECTIONS.iter().try_for_each(|connections| bench.ceiling(connections))?;
    }
    if wanted(Part::Lag) {
        ["sleep", "spin"].iter().try_for_each(|pace| bench.lag_floor(pace))?;
    }
    if wanted(Part::Noise) {
        CONNECTIONS.iter().try_for_each(|connections| bench.noise_floor(connections))?;
    }
    if wanted(Part::Faults) { bench.planted_faults() } else { Ok(Exit::Done) }
}

struct Bench {
    cpus: Cpus,
    interrupt: Interrupt,
}

impl Bench {
    /// How many requests a second would take the whole of the client's core.
    fn ceiling(&self, connections: &str) -> Result<(), Error> {
        let settings = settings(&["--backend", "raw-uring", "-c", connections, "-d", "1s"])?;
        let cell = self.cell(&settings, 0, 1)?;
        let ceiling = cell.costs.client_cpu_us_per_request.map(|us| 1e6 / us);
        let ceiling = ceiling.map_or("not available".into(), |rate| grouped(rate as u64));
        say(&format!("client's ceiling, {connections} connections: {ceiling} requests a core and second"));
        Ok(())
    }

    /// How late the client sends when nothing else is in its way.
    fn lag_floor(&self, pace: &str) -> Result<(), Error> {
        let line = ["--backend", "raw-epoll", "-c", "64", "-d", "1s", "-R", "1k", "--pace", pace];
        let cell = self.cell(&settings(&line)?, 0, 1)?;
        let lag = cell.paced.as_ref().and_then(|paced| paced.lag.as_ref());
        let lag = lag.map_or("not available".into(), |lag| {
            format!("p50 {:.0} us, p99 {:.0} us", lag.p50_us, lag.p99_us)
        });
        say(&format!("lag floor, --pace {pace}: {lag}"));
        Ok(())
    }

    /// What a comparison says of a server and itself.
    fn noise_floor(&self, connections: &str) -> Result<(), Error> {
        let mut settings = settings(&["--backend", "raw-epoll", "-c", connections, "-d", "500ms"])?;
        (settings.rounds, settings.order) = (crate::stats::ROUNDS_MIN, Order::Balanced);
        settings.add_control();
        let mut cells = Vec::new();
        for (index, rows) in plan::rounds(settings.order, 2, settings.rounds, 1).into_iter().enumerate() {
            for row in rows {
                cells.push(self.cell(&settings, row, index + 1)?);
            }
        }
        let comparisons = summary::comparisons(&Recorded::of(&settings, self.cpus), &cells);
        for metric in [Metric::Rps, Metric::ServerCpuPerRequest] {
            let comparison = comparisons.iter().find(|comparison| comparison.metric == metric);
            let text = comparison.map_or("not available".into(), noise);
            say(&format!("noise floor, {connections} connections, {}: {text}", metric.title()));
        }
        Ok(())
    }

    fn planted_faults(&self) -> Result<Exit, Error> {
        let mut missed = Vec::new();
        for (fault, cause) in [
            (Fault::FlippedByte, "corrupted_reply"),
            (Fault::SwappedReply, "foreign_reply"),
            (Fault::LostReply, "no_reply"),
            (Fault::RepeatedReply, "repeated_reply"),
        ] {
            let line = ["tcp://127.0.0.1:1", "-c", "2", "-d", "1s", "--timeout", "500ms"];
            let cell = self.against(fault, &line, None)?;
            let told = cell.errors.iter().any(|error| error.cause == cause);
            tell(&format!("{fault:?}"), told, &cell.error.unwrap_or_default(), &mut missed);
        }
        let line = ["tcp://127.0.0.1:1", "-c", MANY, "-d", "1s", "-R", "500", "--arrival", "constant"];
        let cell = self.against(Fault::StalledServer, &line, None)?;
        let (service, lag) = times(&cell);
        tell("StalledServer", stands_out(service, lag), &detail(service, lag), &mut missed);
        let cell = self.against(Fault::None, &line, Some(STALL))?;
        let (service, lag) = times(&cell);
        tell("SlowClient", stands_out(lag, service), &detail(service, lag), &mut missed);
        if missed.is_empty() {
            return Ok(Exit::Done);
        }
        Err(Error::internal(format!("planted faults were not found: {}", missed.join(", "))))
    }

    fn against(&self, fault: Fault, line: &[&str], stall: Option<Duration>) -> Result<Cell, Error> {
        let address = faults::serve(fault)
            .map_err(|error| Error::machine(format!("cannot serve the planted fault: {error}")))?;
        let mut settings = settings(line)?;
        let remote: Remote = format!("tcp://{address}").parse().map_err(Error::internal)?;
        (settings.rows, settings.client_stall) = (vec![Row::Remote(remote)], stall);
        settings.warmup = Duration::ZERO;
        settings.points[0].size = faults::SIZE.to_string().parse().map_err(Error::internal)?;
        let place = Place { round: 1, row: 0, point: settings.points[0].clone(), repeat: false };
        let (cell, error) = cell::run(&settings, &place, self.cpus, &self.interrupt);
        match error {
            Some(error) if error.exit != Exit::Verification => Err(error),
            _ => Ok(cell),
        }
    }

    fn cell(&self, settings: &Settings, row: usize, round: usize) -> Result<Cell, Error> {
        let place = Place { round, row, point: settings.points[0].clone(), repeat: false };
        let (cell, error) = cell::run(settings, &place, self.cpus, &self.interrupt);
        match error {
            Some(error) => Err(error),
            None if self.interrupt.came() => Err(Error::interrupted()),
            None => Ok(cell),
        }
    }
}

/// The settings of a `run` with these arguments.
fn settings(line: &[&str]) -> Result<Settings, Error> {
    let line = ["loadgen", "run", "--warmup", "200ms"].iter().chain(line);
    match Cli::try_parse_from(line).map(|cli| cli.command) {
        Ok(Some(Command::Run(args))) => args.settings(),
        Ok(_) => Err(Error::internal("the line above says run")),
        Err(error) => Err(Error::internal(error.to_string())),
    }
}

fn noise(comparison: &Comparison) -> String {
    let ends = comparison.low.zip(comparison.high);
    let Some((low, high)) = ends else { return format!("ratio {:.3}", comparison.ratio) };
    let floor = (high - 1.0).max(1.0 / low - 1.0) * 100.0;
    format!(
        "a server against itself is {:.3} [{low:.3}, {high:.3}]; effects below {floor:.1} % are noise in {} rounds of \
         500 ms",
        comparison.ratio, comparison.rounds
    )
}

/// What a stall does to one of the two times of a request, in microseconds.
#[derive(Clone, Copy, Debug)]
struct Times {
    p90: f64,
    greatest: f64,
}

/// Of all requests of a cell: service, and lag.
fn times(cell: &Cell) -> (Times, Times) {
    let of = |latency: Option<&Latency>| {
        latency.map_or(Times { p90: 0.0, greatest: 0.0 }, |latency| Times {
            p90: latency.p90_us,
            greatest: latency.max_us,
        })
    };
    let paced = cell.paced.as_ref();
    (of(paced.and_then(|paced| paced.service.as_ref())), of(paced.and_then(|paced| paced.lag.as_ref())))
}

/// Whether the stall is in this time, and not in the other. It lasts for three in ten requests, so a tenth of them meet two thirds of
/// it. The greatest of either says nothing of the other: a request that is under way when the client stands still is answered late as well, and
/// on a machine that is shared there nearly always is one.
fn stands_out(time: Times, other: Times) -> bool {
    time.greatest >= 0.9 * us(STALL) && time.p90 >= us(STALL) / 3.0 && other.p90 < time.p90 / 2.0
}

fn detail(service: Times, lag: Times) -> String {
    format!(
        "service up to {:.0} us (p90 {:.0} us), lag up to {:.0} us (p90 {:.0} us)",
        service.greatest, service.p90, lag.greatest, lag.p90
    )
}

fn us(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn tell(fault: &str, told: bool, detail: &str, missed: &mut Vec<String>) {
    let name = words(fault);
    say(&format!("planted {name}: {}: {detail}", if told { "found" } else { "NOT FOUND" }));
    if !told {
        missed.push(name);
    }
}

/// `FlippedByte` is a flipped byte.
fn words(name: &str) -> String {
    let mut words = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.extend(letter.to_lowercase());
    }
    words
}

fn say(line: &str) {
    report::print(&format!("{line}\n"));
}
