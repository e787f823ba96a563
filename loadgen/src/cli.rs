//! The command line.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    axes::{Axes, PointArgs},
    diff::DiffArgs,
    doctor::DoctorArgs,
    engine::open_loop::{Arrival, Pace, Pacing},
    error::Error,
    export::Exports,
    merge::MergeArgs,
    message::Verify,
    mode::{DATAGRAM_BYTES_MAX, Manner, Mode, ModeArgs},
    pinning::Pinning,
    plan::Order,
    point::Point,
    report::ReportArgs,
    rows::{ComparisonArgs, RowArgs},
    selftest::SelftestArgs,
    serve::{Service, Way},
    slo::Objective,
    spec::{Hired, Kind, Remote, Row, Spec, TARGETS},
    stats,
    sweep::SweepArgs,
    target::{Target, Transport, UnixName},
    units,
    verdict::{self, Metric},
};

pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    internal: loadgen or the server child it started failed
  2    usage: the command line was refused before anything was tried
  3    the machine or the network cannot: a limit, a port in use, a target out of reach
  4    an objective (--slo) was not met, or a gate of diff failed
  5    verification failed: a reply was corrupted, foreign, repeated, late or missing,
       or a server was not what its row says
  6    with --strict: a cell stayed spoiled, or the verdict is inconclusive
  130  interrupted: the partial result is written and marked";

const ROUNDS: usize = 12;
/// A disturbance of a shared machine lasts for a second or so: many short rounds feel it less than a few long ones.
const QUICK_ROUNDS: usize = 40;

/// A window, and the load before it.
pub(crate) type Length = (Duration, Duration);
const USUAL: Length = (Duration::from_secs(5), Duration::from_secs(1));
const QUICK: Length = (Duration::from_millis(100), Duration::from_millis(50));
/// Of searches and sweeps, which have many windows.
pub(crate) const SHORT: Length = (Duration::from_secs(1), Duration::from_millis(200));

/// How long a reply may take, and how long a datagram's.
const TIMEOUT: Duration = Duration::from_secs(30);
const LOST: Duration = Duration::from_millis(200);

/// Where a server listens unless it is told.
const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const PORT: u16 = 8000;

/// More rounds would only make the exact distribution slow to compute.
pub(crate) const ROUNDS_MAX: usize = 200;
#[derive(Debug, Parser)]
#[command(
    name = "loadgen",
    version,
    about = "Compares ringspun's backends under load, verifies every reply and judges its own validity",
    long_about = "Compares ringspun's backends under load, verifies every reply and judges its own validity.\n\n\
                  Without a command it runs `loadgen compare --quick`: all three backends over 64 and 1,000\n\
                  connections, in about a minute.",
    after_long_help = EXIT_CODES,
    after_help = "Exit codes: see --help"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Compare backends: paired rounds, ratios with intervals, a verdict
    Compare(CompareArgs),
    /// Measure one target: a backend, or a server that runs already
    Run(RunArgs),
    /// Compare at every combination of several connections, sizes, pipelines and rates: curves
    Sweep(SweepArgs),
    /// Find the highest rate at which each row meets --slo, and compare these rates
    Search(SearchArgs),
    /// Hold idle connections: what each costs server, client and kernel, and whether they still live
    Idle(IdleArgs),
    /// Measure the instrument: the client's ceiling and lag, the noise of comparing a server with itself, and
    /// whether planted faults are found
    Selftest(SelftestArgs),
    /// Say what this machine allows for so many connections, and the command that changes each limit
    Doctor(DoctorArgs),
    /// Show a result again, or export it
    Report(ReportArgs),
    /// Compare two results: what changed, and whether it passes gates
    Diff(DiffArgs),
    /// Make one result of those of several machines that loaded one server at the same time
    Merge(MergeArgs),
    /// Run a server on a chosen backend: an echo, or one that sends what comes to all
    Serve(ServeArgs),
    /// Hold a share of the connections of another loadgen, by its orders on standard input
    #[command(hide = true)]
    Client,
}

#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES, args_override_self = true)]
pub(crate) struct CompareArgs {
    #[command(flatten)]
    rows: RowArgs,
    /// About a minute in all: 40 rounds of 100 ms after 50 ms of warm-up, unless said otherwise
    #[arg(long)]
    quick: bool,
    /// Rounds, fixed beforehand; a verdict takes at least 6 [default: 12, quick: 40]
    #[arg(long, value_name = "N", value_parser = rounds)]
    rounds: Option<usize>,
    #[command(flatten)]
    comparison: ComparisonArgs,
    #[command(flatten)]
    points: PointArgs,
    #[command(flatten)]
    load: LoadArgs,
}

#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES, args_override_self = true)]
pub(crate) struct RunArgs {
    /// Server to measure, as tcp://host:port, unix:/path or unix:@name, which must echo every byte,
    /// udp://host:port, which must echo every datagram, or http://host:port/path
    #[arg(value_name = "TARGET", required_unless_present_any = ["backend", "server"], conflicts_with_all = ["backend", "server"])]
    target: Option<Remote>,
    /// Backend to measure instead, in a fresh server child
    #[arg(long, value_name = "BACKEND", conflicts_with = "server")]
    backend: Option<Spec>,
    /// Another program to measure instead, in a fresh process: 'name=command {port}'
    #[arg(long, value_name = "NAME=COMMAND")]
    server: Option<Hired>,
    #[command(flatten)]
    points: PointArgs,
    #[command(flatten)]
    load: LoadArgs,
}

#[derive(Debug, Args)]
#[command(
    after_long_help = EXIT_CODES,
    args_override_self = true,
    long_about = "Find the highest rate at which each row meets all of --slo, and compare these rates.\n\n\
                  In every round each row is asked as fast as it can answer, and then, by the clock, at rates\n\
                  between a 64th of that and all of it, halving the distance until it is 2 %."
)]
pub(crate) struct SearchArgs {
    #[command(flatten)]
    rows: RowArgs,
    /// Rounds, fixed beforehand; a verdict takes at least 6
    #[arg(long, value_name = "N", default_value_t = stats::ROUNDS_MIN, value_parser = rounds)]
    rounds: usize,
    #[command(flatten)]
    comparison: ComparisonArgs,
    #[command(flatten)]
    points: PointArgs,
    #[command(flatten)]
    load: LoadArgs,
}

#[derive(Debug, Args)]
#[command(
    after_long_help = EXIT_CODES,
    args_override_self = true,
    long_about = "Hold idle connections: what each costs server, client and kernel, and whether they still live.\n\n\
                  Each asks once, then all hold still, then 1 % of them, chosen at random, ask again. Bytes are what\n\
                  has been added since the server listened, shared out.\n\n\
                  For more connections than a process may have descriptors, io_uring rows get as many reactors in\n\
                  their one server process as it takes, with a ring and a table of direct descriptors each and one\n\
                  port for all, and the client is several processes. Other backends refuse; other programs\n\
                  (--server) may do as they can."
)]
pub(crate) struct IdleArgs {
    #[command(flatten)]
    rows: RowArgs,
    #[command(flatten)]
    points: PointArgs,
    #[command(flatten)]
    load: LoadArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Length of the window that counts, or in which connections are idle [default: 5s, quick: 100ms, search and
    /// sweep: 1s]
    #[arg(short, long, value_name = "TIME", value_parser = units::duration)]
    duration: Option<Duration>,
    /// Load before the window [default: 1s, quick: 50ms, search and sweep: 200ms]
    #[arg(long, value_name = "TIME", value_parser = units::duration_or_zero)]
    warmup: Option<Duration>,
    /// How requests arrive in an open loop [default: poisson]
    #[arg(long, value_enum)]
    arrival: Option<Arrival>,
    /// How the client waits for the next arrival in an open loop [default: sleep]
    #[arg(long, value_enum)]
    pace: Option<Pace>,
    #[command(flatten)]
    mode: ModeArgs,
    /// Seed of the payloads and of the order of rounds
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How long a connection or a reply may take before it is an error; over UDP, before it counts as lost
    /// [default: 30s, UDP: 200ms]
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    timeout: Option<Duration>,
    /// CPUs of server and client, as `0,1`; `off`; or `auto`: the first two allowed, if there are two
    #[arg(long, value_name = "CPUS", default_value = "auto")]
    pin: Pinning,
    /// How much of every reply is compared with what was sent
    #[arg(long, value_enum, default_value_t = Verify::Full)]
    verify: Verify,
    /// What every row is to keep, such as response.p99<2ms or rps>100k, else exit with 4; may be repeated.
    /// latency, response (of an open loop, like the two next), service or lag; mean, p50, p90, p99, p999 or max
    #[arg(long, value_name = "OBJECTIVE")]
    slo: Vec<Objective>,
    /// A cell of which the hypervisor took more than this of the CPUs' time, and two ticks of its clock (20 ms), is
    /// spoiled: it is repeated once, then left out. Where the neighbours never rest, more than the default lets a
    /// run have figures at all
    #[arg(long, value_name = "SHARE", default_value = "5%", value_parser = units::share)]
    max_steal: f64,
    /// Exit with 6 if a cell stayed spoiled or the verdict is inconclusive
    #[arg(long)]
    strict: bool,
    /// Folder for the result; one that holds something is not touched, a number is added instead. The
    /// default is `results/<date>-<kernel>-<commit>`
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// What goes to standard output
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    exports: Exports,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// The table and the verdict
    Text,
    /// The whole result
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Backend, as for compare; or auto
    #[arg(long, value_name = "BACKEND", default_value = "auto")]
    pub(crate) backend: Spec,
    /// Over what clients come
    #[arg(long, value_enum, default_value_t)]
    pub(crate) transport: Transport,
    /// Address to listen on, over tcp and udp [default: 127.0.0.1]
    #[arg(long, value_name = "IP")]
    host: Option<IpAddr>,
    /// Port to listen on, over tcp and udp; 0 lets the kernel choose [default: 8000]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Name to listen on, over unix: a path, or @name for an abstract one [default: an abstract one of its own]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["host", "port"])]
    path: Option<UnixName>,
    /// Longest datagram that is received, over udp [default: 65507]
    #[arg(long, value_name = "BYTES", value_parser = datagram)]
    max_packet_size: Option<usize>,
    /// CPU to run on
    #[arg(long, value_name = "N")]
    pub(crate) cpu: Option<usize>,
    /// Reactors that share the port (SO_REUSEPORT), each with a thread and, on io_uring, a ring and a table of
    /// direct descriptors of its own; io_uring and epoll only, and not with --as push
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = reactors)]
    pub(crate) reactors: usize,
    /// Where what comes in is sent
    #[arg(long = "as", value_enum, value_name = "WAY", default_value_t = Way::Echo)]
    way: Way,
    /// Close each connection, cleanly, once so many bytes have been sent back on it; echo only [default:
    /// never]
    #[arg(long, value_name = "BYTES", value_parser = close_after)]
    close_after: Option<usize>,
    /// A planted slow-down, to see whether a comparison finds it: so much CPU is burnt for whatever one
    /// receive brings, before it is answered; io_uring, epoll and threads only
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    pub(crate) spin_per_message: Option<Duration>,
    /// Take commands on standard input, report on standard output and end with the parent
    #[arg(long, hide = true)]
    pub(crate) control: bool,
    /// Serve by another program
    #[arg(long, hide = true, requires = "control")]
    pub(crate) command: Option<Hired>,
}

impl ServeArgs {
    /// Host and port, as far as they were said.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::new(self.host.unwrap_or(HOST), self.port.unwrap_or(PORT))
    }

    /// Where to listen. A port may be 0.
    pub(crate) fn target(&self) -> Result<Target, Error> {
        match (self.transport, &self.path) {
            (Transport::Unix, _) if self.host.or_else(|| self.port.map(|_| HOST)).is_some() => {
                Err(Error::usage("a Unix socket has no host and no port: leave out --host and --port"))
            }
            (Transport::Unix, Some(name)) => Ok(Target::Unix(name.clone())),
            (Transport::Unix, None) => own_name().parse().map(Target::Unix).map_err(Error::internal),
            (_, Some(_)) => Err(Error::usage("--path names a Unix socket: add --transport unix")),
            (transport, None) => Ok(Target::by_ip(transport, self.address())),
        }
    }

    /// What the server is to do, if it can.
    pub(crate) fn service(&self) -> Result<Service, Error> {
        let Self { way, transport, .. } = *self;
        let close_after = self.close_after.unwrap_or(0);
        let max_packet_size = self.max_packet_size.unwrap_or(DATAGRAM_BYTES_MAX);
        let service = Service { way, close_after, transport, max_packet_size };
        let spins = self.spin_per_message.is_some();
        let usual = (way, close_after, transport) == (Way::Echo, 0, Transport::Tcp);
        if self.command.is_some() && (spins || !usual) {
            return Err(Error::usage(
                "--as, --close-after, --transport and --spin-per-message tell loadgen's own servers what to do; leave \
                 them out with --command, whose program knows what it does",
            ));
        }
        if self.max_packet_size.is_some() && transport != Transport::Udp {
            return Err(Error::usage("--max-packet-size is for datagrams: add --transport udp"));
        }
        if spins && self.backend.kind.is_raw() {
            return Err(Error::usage(format!(
                "{} takes no --spin-per-message; choose --backend io_uring, epoll or threads",
                self.backend
            )));
        }
        self.check_reactors(service)?;
        service.check(self.backend).map(|()| service)
    }

    fn check_reactors(&self, service: Service) -> Result<(), Error> {
        let on_a_loop = matches!(self.backend.kind, Kind::Auto | Kind::IoUring | Kind::Epoll);
        let refused = match () {
            () if self.reactors == 1 => return Ok(()),
            () if self.command.is_some() => "--command has whatever threads its program makes",
            () if !on_a_loop => "only io_uring and epoll have --reactors; choose one of them as --backend",
            () if self.transport != Transport::Tcp => {
                "only a port of TCP is shared by several reactors here: leave out --reactors"
            }
            () if service.way == Way::Push => {
                "--as push sends to all connections of one reactor: leave out --reactors"
            }
            () => return Ok(()),
        };
        Err(Error::usage(refused))
    }
}

/// Everything that is fixed before a measurement begins.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) command: &'static str,
    pub(crate) rows: Vec<Row>,
    /// Index of the row that the others are compared with.
    pub(crate) baseline: usize,
    pub(crate) rounds: usize,
    pub(crate) order: Order,
    pub(crate) min_effect: f64,
    /// Whether the last row is the baseline again.
    pub(crate) control: bool,
    /// What every row is to keep.
    pub(crate) objectives: Vec<Objective>,
    pub(crate) points: Vec<Point>,
    pub(crate) duration: Duration,
    pub(crate) warmup: Duration,
    /// How requests arrive at points that have a rate, and how the client waits for them.
    pub(crate) arrival: Arrival,
    pub(crate) pace: Pace,
    pub(crate) manner: Manner,
    /// The client stands still for so long in the middle of the window: a fault that only selftest plants.
    pub(crate) client_stall: Option<Duration>,
    pub(crate) seed: u64,
    pub(crate) timeout: Duration,
    pub(crate) pin: Pinning,
    pub(crate) verify: Verify,
    /// The share of stolen time above which a cell is spoiled.
    pub(crate) max_steal: f64,
    pub(crate) strict: bool,
    pub(crate) output: Option<PathBuf>,
    pub(crate) format: Format,
    pub(crate) exports: Exports,
}

impl Settings {
    /// Whether connections ask once, then hold still.
    pub(crate) fn is_idle(&self) -> bool {
        self.manner.mode == Mode::Idle
    }

    /// An open loop, if the point has a rate.
    pub(crate) fn pacing(&self, point: &Point) -> Option<Pacing> {
        let Self { arrival, pace, .. } = *self;
        point.rate.map(|rate| Pacing { rate: rate as f64, arrival, pace })
    }

    /// Adds the baseline once more, as the last row.
    pub(crate) fn add_control(&mut self) {
        self.rows.push(self.rows[self.baseline].clone());
        self.control = true;
    }

    /// The name of a row. The control stands for the baseline, but is not it.
    pub(crate) fn row_name(&self, row: usize) -> String {
        let again = self.control && row + 1 == self.rows.len();
        format!("{}{}", self.rows[row], if again { " again" } else { "" })
    }

    pub(crate) fn row_names(&self) -> Vec<String> {
        (0..self.rows.len()).map(|row| self.row_name(row)).collect()
    }

    /// Whether the rate itself is what is looked for.
    pub(crate) fn is_search(&self) -> bool {
        self.command == "search"
    }

    /// Whether some of the points are open loops.
    pub(crate) fn is_paced(&self) -> bool {
        self.points.iter().any(|point| point.rate.is_some())
    }

    /// Whether requests arrive by the clock, at least in a search's probes.
    pub(crate) fn has_arrivals(&self) -> bool {
        self.is_paced() || self.is_search()
    }

    /// What the verdict rests on: at a given rate, what it costs.
    pub(crate) fn primary_metric(&self) -> Metric {
        match () {
            () if self.is_search() => Metric::SloRate,
            () if self.is_paced() => Metric::ServerCpuPerRequest,
            () => Metric::Rps,
        }
    }
}

impl CompareArgs {
    /// What `loadgen` alone does.
    pub(crate) fn quick() -> Self {
        let cli = Cli::parse_from(["loadgen", "compare", "--quick"]);
        match cli.command {
            Some(Command::Compare(args)) => args,
            _ => unreachable!("the line above says compare"),
        }
    }

    pub(crate) fn settings(self) -> Result<Settings, Error> {
        let rows = self.rows.rows()?;
        if rows.len() < 2 && !self.comparison.has_control() {
            return Err(Error::usage(
                "compare needs at least two rows of --backend and --server, or --control; use `loadgen run` for one",
            ));
        }
        let rounds = self.rounds.unwrap_or(if self.quick { QUICK_ROUNDS } else { ROUNDS });
        let length = if self.quick { QUICK } else { USUAL };
        let settings = self.load.settings("compare", rows, length, self.points.into())?;
        self.comparison.apply(rounds, settings)
    }
}

impl SearchArgs {
    pub(crate) fn settings(self) -> Result<Settings, Error> {
        if self.load.slo.is_empty() {
            return Err(Error::usage("search needs what is to be kept: --slo 'response.p99<2ms'"));
        }
        if self.points.rate.is_some() {
            return Err(Error::usage("search finds the rate itself: leave out --rate"));
        }
        if let Some(objective) = self.load.slo.iter().find(|objective| objective.is_rate()) {
            return Err(Error::usage(format!(
                "a search finds the rate itself: leave out --slo {objective}, and say what it is to keep"
            )));
        }
        let settings = self.load.settings("search", self.rows.rows()?, SHORT, self.points.into())?;
        self.comparison.apply(self.rounds, settings)
    }
}

impl IdleArgs {
    pub(crate) fn settings(mut self) -> Result<Settings, Error> {
        if self.points.rate.is_some() || self.load.warmup.is_some() {
            return Err(Error::usage(
                "idle connections ask nothing: --rate and --warmup have no meaning here",
            ));
        }
        if self.points.connections.is_empty() {
            self.points.connections = vec![1_000];
        }
        let mut settings = self.load.settings("idle", self.rows.rows()?, USUAL, self.points.into())?;
        settings.warmup = Duration::ZERO;
        Ok(settings)
    }
}

impl RunArgs {
    pub(crate) fn settings(self) -> Result<Settings, Error> {
        let row = match (self.target, self.backend, self.server) {
            (Some(remote), ..) => Row::Remote(remote),
            (_, Some(spec), _) => Row::Backend(spec),
            (.., Some(hired)) => Row::Hired(hired),
            _ => {
                return Err(Error::usage(format!("run needs --backend, --server or a target: {TARGETS}")));
            }
        };
        self.load.settings("run", vec![row], USUAL, self.points.into())
    }
}

impl LoadArgs {
    pub(crate) fn settings(
        self,
        command: &'static str,
        rows: Vec<Row>,
        length: Length,
        axes: Axes,
    ) -> Result<Settings, Error> {
        let (duration, warmup) = length;
        let manner = self.mode.settle(&rows, command == "idle")?;
        let points = axes.points(&manner)?;
        let usual = if manner.transport == Transport::Udp { LOST } else { TIMEOUT };
        let timeout = self.timeout.unwrap_or(usual);
        // A search makes open loops of them.
        let paced = points.iter().any(|point| point.rate.is_some()) || command == "search";
        if !paced && (self.arrival.is_some() || self.pace.is_some()) {
            return Err(Error::usage("--arrival and --pace are about an open loop: add --rate"));
        }
        if let Some(objective) = self.slo.iter().find(|objective| objective.needs_rate() && !paced) {
            return Err(Error::usage(format!(
                "--slo {objective} is about an open loop: add --rate, or write it as latency"
            )));
        }
        if command == "search" {
            // Whatever contradicts a rate contradicts a search.
            let paced = |point: &Point| manner.check(&Point { rate: Some(1), ..point.clone() });
            points.iter().try_for_each(paced)?;
        }
        Ok(Settings {
            command,
            rows,
            baseline: 0,
            rounds: 1,
            order: Order::Given,
            min_effect: verdict::MIN_EFFECT,
            control: false,
            objectives: self.slo,
            points,
            duration: self.duration.unwrap_or(duration),
            warmup: self.warmup.unwrap_or(warmup),
            arrival: self.arrival.unwrap_or(Arrival::Poisson),
            pace: self.pace.unwrap_or(Pace::Sleep),
            manner,
            client_stall: None,
            seed: self.seed,
            timeout,
            pin: self.pin,
            verify: self.verify,
            max_steal: self.max_steal,
            strict: self.strict,
            output: self.output,
            format: self.format,
            exports: self.exports,
        })
    }
}

/// A name that no other process of this machine takes.
fn own_name() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("@loadgen-{}-{}", std::process::id(), now.as_nanos())
}

fn datagram(text: &str) -> Result<usize, String> {
    match units::size(text)? {
        bytes if (1..=DATAGRAM_BYTES_MAX).contains(&bytes) => Ok(bytes),
        _ => Err(format!("a datagram has from 1 to {DATAGRAM_BYTES_MAX} bytes")),
    }
}

fn close_after(text: &str) -> Result<usize, String> {
    match units::size(text)? {
        0 => Err("the least is 1; leave it out to close never".into()),
        bytes => Ok(bytes),
    }
}

/// As many as the library has numbers for in one process.
pub(crate) const REACTORS_MAX: usize = 256;

fn reactors(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(reactors) if (1..=REACTORS_MAX).contains(&reactors) => Ok(reactors),
        _ => Err(format!("reactors are a number from 1 to {REACTORS_MAX}")),
    }
}

pub(crate) fn rounds(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(rounds) if (1..=ROUNDS_MAX).contains(&rounds) => Ok(rounds),
        _ => Err(format!("rounds are a number from 1 to {ROUNDS_MAX}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn compare(arguments: &[&str]) -> Result<Settings, Error> {
        let line = ["loadgen", "compare"].iter().chain(arguments);
        match Cli::try_parse_from(line).map_err(|error| Error::usage(error.to_string()))?.command {
            Some(Command::Compare(args)) => args.settings(),
            _ => unreachable!("the line says compare"),
        }
    }

    #[test]
    fn stolen_time_spoils_as_it_always_did() {
        assert_eq!(compare(&[]).expect("valid").max_steal, crate::result::MAX_STEAL);
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn quick_shortens_what_was_not_said() {
        let settings = CompareArgs::quick().settings().expect("valid");
        assert_eq!((settings.rounds, settings.duration), (40, Duration::from_millis(100)));
        let connections: Vec<usize> = settings.points.iter().map(|point| point.connections).collect();
        assert_eq!(connections, [64, 1000]);
        let settings = compare(&["--quick", "-d", "3s", "--rounds", "8"]).expect("valid");
        assert_eq!((settings.rounds, settings.duration), (8, Duration::from_secs(3)));
    }

    #[test]
    fn the_baseline_is_epoll_or_what_was_said() {
        assert_eq!(compare(&[]).expect("valid").baseline, 1);
        assert_eq!(compare(&["--backend", "io_uring,io_uring:direct"]).expect("valid").baseline, 1);
        assert_eq!(compare(&["--baseline", "threads"]).expect("valid").baseline, 2);
        assert!(compare(&["--baseline", "io_uring:direct"]).is_err());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            ["--backend", "epoll"],
            ["--backend", "epoll,epoll"],
            ["-s", "16"],
            ["-p", "0"],
            ["-p", "1025"],
            ["-c", "0"],
            ["-c", "8,8"],
        ] {
            assert!(compare(&line).is_err(), "{line:?}");
        }
        assert!(compare(&["--rounds", "0"]).is_err());
        assert!(compare(&["-d", "5"]).is_err());
    }
}
