//! A cell, the unit of replication: a fresh server, fresh connections, one window.

use std::{
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    child::Server,
    cli::Settings,
    control::{Mark, ServerStats},
    crowd::Crowd,
    engine::{self, Close, Counted, DatagramCounts, Dialogue, Load, Watcher, open_loop::Pace},
    error::{Error, Exit},
    http,
    interrupt::Interrupt,
    layout::{Allowed, Layout},
    measure::{self, CpuClock, CpuTicks, Memory, TcpTrouble},
    mode::{Manner, Mode},
    pinning::Cpus,
    point::Point,
    result::{Cell, Costs, Counts, Idle, Latency, Paced},
    serve::{Service, Way},
    spec::{Remote, Row},
    target::{Target, Transport},
    validity,
};

/// The share of idle connections that must show at the end that they live.
const PINGED: f64 = 0.01;

/// What an HTTP server is called that has neither a name nor an address.
const UNIX_HOST: &str = "localhost";

/// Servers of datagrams have room for so many bytes at least, as those have of whom nobody asks more.
const PACKET_BYTES: usize = 8192;

/// Which cell of the plan this is.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// From 1.
    pub(crate) round: usize,
    pub(crate) row: usize,
    pub(crate) point: Point,
    /// Whether this repeats a spoiled cell.
    pub(crate) repeat: bool,
}

/// Runs a cell. The error is also in the cell, with what was counted until then.
pub(crate) fn run(
    settings: &Settings,
    place: &Place,
    cpus: Cpus,
    interrupt: &Interrupt,
) -> (Cell, Option<Error>) {
    let row = &settings.rows[place.row];
    let mut cell = Cell::new(settings.row_name(place.row), place);
    let outcome = match row {
        Row::Backend(_) | Row::Hired(_) => measure_child(settings, place, (cpus, interrupt), &mut cell),
        Row::Remote(remote) => resolve(remote, settings.timeout)
            .and_then(|target| measure_remote(settings, place, target, (cpus, interrupt), &mut cell)),
    };
    let error = outcome
        .err()
        .map(|error| error.within(&format!("{row} over {} connections", place.point.connections)));
    cell.error = error.as_ref().map(Error::to_string);
    (cell, error)
}

fn measure_child(
    settings: &Settings,
    place: &Place,
    (cpus, interrupt): (Cpus, &Interrupt),
    cell: &mut Cell,
) -> Result<(), Error> {
    let row = &settings.rows[place.row];
    let layout = Layout::of(settings, row, &place.point, Allowed::here())?;
    let (served, reactors) = (layout.served(row), layout.reactors_of(row));
    let mut server = Server::start(&served, service(settings, place), reactors, cpus.server)?;
    let crowd = (layout.clients > 1).then(|| Crowd::start(layout.clients)).transpose()?;
    let clients = crowd.as_ref().map(Crowd::pids).unwrap_or_default();
    (cell.server, cell.client_processes) = (Some(server.identity.clone()), layout.clients);
    let target = server.target.clone();
    let (clock, pid) = (CpuClock::of(server.pid()), server.pid());
    let hired = matches!(row, Row::Hired(_));
    let before = settings.is_idle().then(|| Memory::read(Some(pid), &clients));
    let mut meter = Meter::new(interrupt, cpus, clock, Some(&mut server));
    meter.memory_of = before.map(|_| pid);
    meter.family = hired.then_some(pid);
    meter.clients = clients;
    let load = load(settings, place, target)?;
    let counted = match crowd {
        None => engine::run(&load, &mut meter)?,
        Some(crowd) => crowd.run(&load, &mut meter)?,
    };
    let (opened, closed, after) = (meter.opened, meter.closed, meter.memory);
    let stats = closed
        .filter(|_| !hired)
        .and_then(|_| Some((server.stats(Mark::WindowOpened)?, server.stats(Mark::WindowClosed)?)));
    fill(cell, settings, &counted, opened.zip(closed));
    cell.idle =
        before.zip(after).map(|(before, after)| idle(&counted, place.point.connections, before, after));
    if let Some(error) = counted.error {
        fill_server_costs(cell, settings.manner.mode, stats, None);
        return Err(blame(error, &mut server));
    }
    let last = server.stop(place.point.connections);
    fill_server_costs(cell, settings.manner.mode, stats, last.as_ref());
    cell.checks.extend(validity::of_server(cell, last.as_ref()));
    Ok(())
}

fn measure_remote(
    settings: &Settings,
    place: &Place,
    target: Target,
    (cpus, interrupt): (Cpus, &Interrupt),
    cell: &mut Cell,
) -> Result<(), Error> {
    let mut meter = Meter::new(interrupt, cpus, None, None);
    let counted = engine::run(&load(settings, place, target)?, &mut meter)?;
    fill(cell, settings, &counted, meter.opened.zip(meter.closed));
    counted.error.map_or(Ok(()), Err)
}

fn load(settings: &Settings, place: &Place, target: Target) -> Result<Load, Error> {
    let Manner { close, think, ramp, client, burst, .. } = settings.manner;
    let dialogue = dialogue(settings, &settings.rows[place.row], &target)?;
    Ok(Load {
        target,
        connections: place.point.connections,
        first: 0,
        sizes: place.point.size.clone(),
        pipeline: place.point.pipeline,
        seed: settings.seed,
        round: place.round,
        verify: settings.verify,
        timeout: settings.timeout,
        ramp,
        warmup: settings.warmup,
        duration: settings.duration,
        think,
        dialogue,
        churn: close,
        pacing: settings.pacing(&place.point),
        idle: settings.is_idle().then_some(PINGED),
        client,
        burst,
        stall: settings.client_stall,
    })
}

/// What a server of the library or an opponent is to do.
fn service(settings: &Settings, place: &Place) -> Service {
    let way = if settings.manner.mode == Mode::Push { Way::Push } else { Way::Echo };
    let closes = settings.manner.close == Some(Close::Server);
    let close_after = if closes { place.point.size.largest() } else { 0 };
    let max_packet_size = place.point.size.largest().max(PACKET_BYTES);
    Service { way, close_after, transport: settings.manner.transport, max_packet_size }
}

fn dialogue(settings: &Settings, row: &Row, target: &Target) -> Result<Dialogue, Error> {
    let Some(path) = &settings.manner.http else {
        let push = settings.manner.mode == Mode::Push;
        return Ok(if push { Dialogue::Push } else { Dialogue::Echo });
    };
    let authority = match (row, target) {
        (_, Target::Unix(_)) => UNIX_HOST.into(),
        (Row::Remote(remote), _) => remote.authority.clone(),
        (_, Target::Tcp(address) | Target::Udp(address)) => address.to_string(),
    };
    let close = settings.manner.close == Some(Close::Server);
    http::Request::get(&authority, path, close).map(Dialogue::Http).map_err(Error::usage)
}

fn resolve(remote: &Remote, timeout: Duration) -> Result<Target, Error> {
    match remote.transport {
        Transport::Unix => remote.authority.parse().map(Target::Unix).map_err(Error::usage),
        transport => resolve_name(remote, timeout).map(|address| Target::by_ip(transport, address)),
    }
}

fn resolve_name(remote: &Remote, timeout: Duration) -> Result<SocketAddr, Error> {
    let wrong = |cause: String| Error::machine(format!("the host does not resolve: {cause}; check the name"));
    let addresses = remote.authority.to_socket_addrs().map_err(|error| wrong(error.to_string()))?;
    let addresses: Vec<SocketAddr> = addresses.collect();
    match addresses.as_slice() {
        [] => Err(wrong("it has no address".into())),
        [only] => Ok(*only),
        [first, ..] if remote.transport == Transport::Udp => Ok(*first),
        // A name such as localhost has addresses of two families, and often one of them answers.
        [first, ..] => {
            let answers = |address: &&SocketAddr| TcpStream::connect_timeout(address, timeout).is_ok();
            Ok(*addresses.iter().find(answers).unwrap_or(first))
        }
    }
}

/// What so many idle connections have added.
fn idle(counted: &Counted, connections: usize, before: Memory, after: Memory) -> Idle {
    let share =
        |before: Option<u64>, after: Option<u64>| Some((after? as f64 - before? as f64) / connections as f64);
    Idle {
        connections_per_second: connections as f64 / counted.ramp.as_secs_f64(),
        server_bytes_per_connection: share(before.server, after.server),
        client_bytes_per_connection: share(before.client, after.client),
        kernel_bytes_per_connection: share(before.kernel, after.kernel),
        pinged: counted.pinged,
        answered: if counted.error.is_none() { counted.pinged } else { 0 },
    }
}

/// Connections break when the server dies; then its death is the news.
fn blame(error: Error, server: &mut Server) -> Error {
    if error.exit == Exit::Interrupted {
        return error;
    }
    match server.death() {
        Some(how) => Error::internal(format!(
            "the server child (pid {}): {how}, while it was being measured; see its last words above, if any",
            server.pid()
        )),
        None => error,
    }
}

/// Readings of all clocks at one moment.
#[derive(Clone, Copy, Debug)]
struct Reading {
    at: SystemTime,
    client: Option<Duration>,
    server: Option<Duration>,
    ticks: Option<CpuTicks>,
    tcp: Option<TcpTrouble>,
    /// Datagrams that the kernel had no room for.
    udp: Option<u64>,
}

/// Reads the clocks when the window opens and closes.
struct Meter<'a> {
    interrupt: &'a Interrupt,
    clock: Option<CpuClock>,
    /// Whose CPU time is that of several processes, to be found once all connections are there.
    family: Option<u32>,
    server: Option<&'a mut Server>,
    opened: Option<Reading>,
    closed: Option<Reading>,
    /// Whose memory is read when the window closes, and what was read.
    memory_of: Option<u32>,
    memory: Option<Memory>,
    /// The processes that are the client instead of this one, if any.
    clients: Vec<u32>,
    cpus: Cpus,
}

impl<'a> Meter<'a> {
    fn new(
        interrupt: &'a Interrupt,
        cpus: Cpus,
        clock: Option<CpuClock>,
        server: Option<&'a mut Server>,
    ) -> Self {
        let (family, memory_of, clients) = (None, None, Vec::new());
        let (opened, closed, memory) = (None, None, None);
        Self { interrupt, clock, family, server, opened, closed, memory_of, memory, clients, cpus }
    }

    fn client_clock(&self) -> Option<Duration> {
        match self.clients.as_slice() {
            [] => CpuClock::own().read(),
            clients => CpuClock::of_all(clients)?.read(),
        }
    }

    fn read(&mut self, mark: Mark) -> Reading {
        // Another program has no account, and looking for one would cost it part of the window.
        if let Some(server) = self.server.as_mut().filter(|_| self.family.is_none()) {
            server.request_stats(mark);
        }
        Reading {
            at: SystemTime::now(),
            client: None,
            server: self.clock.as_ref().and_then(CpuClock::read),
            ticks: CpuTicks::read(self.cpus),
            tcp: TcpTrouble::read(),
            udp: measure::dropped_datagrams(),
        }
    }
}

impl Watcher for Meter<'_> {
    fn connected(&mut self) {
        self.clock = self.family.map_or(self.clock.take(), |pid| Some(CpuClock::of_descendants(pid)));
    }

    fn window_opened(&mut self) {
        let reading = self.read(Mark::WindowOpened);
        // Last, and first at the close: what the readings cost is not part of the window.
        self.opened = Some(Reading { client: self.client_clock(), ..reading });
    }

    fn window_closed(&mut self) {
        let client = self.client_clock();
        let reading = self.read(Mark::WindowClosed);
        let same_family = self.clock.as_ref().is_none_or(CpuClock::is_whole);
        let server = reading.server.filter(|_| same_family);
        self.closed = Some(Reading { client, server, ..reading });
        self.memory = self.memory_of.map(|pid| Memory::read(Some(pid), &self.clients));
    }

    fn interrupted(&self) -> bool {
        self.interrupt.came()
    }
}

fn fill(cell: &mut Cell, settings: &Settings, counted: &Counted, readings: Option<(Reading, Reading)>) {
    cell.ramp_seconds = counted.ramp.as_secs_f64();
    cell.window_seconds = counted.window.as_secs_f64();
    cell.counts = Counts {
        requests: counted.requests,
        requests_all_phases: counted.requests_total,
        bytes_each_way: counted.bytes,
        bytes_sent_all_phases: counted.bytes_sent_total,
        connections_made: counted.connections_made,
        connections_asked: cell.point.connections,
        connections_alive: counted.alive,
        connections_starved: counted.starved,
    };
    cell.rps = (cell.window_seconds > 0.0 && !settings.is_idle())
        .then(|| counted.requests as f64 / cell.window_seconds);
    cell.latency = Latency::of(&counted.latency);
    cell.histogram = Some(counted.latency.clone());
    cell.paced = counted.paced.as_ref().map(Paced::from);
    cell.response = counted.response;
    cell.series.clone_from(&counted.series);
    cell.errors.clone_from(&counted.failures);
    cell.datagrams = counted.datagrams;
    if let Some((opened, closed)) = readings {
        let opened_at = opened.at.duration_since(UNIX_EPOCH).ok();
        cell.window_opened_unix_seconds = opened_at.map(|at| at.as_secs_f64());
        fill_cpu(settings, cell, opened, closed);
        let tcp = opened.tcp.zip(closed.tcp).filter(|_| settings.manner.transport == Transport::Tcp);
        cell.tcp = tcp.map(|(opened, closed)| closed.since(opened));
        cell.datagrams = counted.datagrams.map(|counted| DatagramCounts {
            dropped_by_kernel: opened
                .udp
                .zip(closed.udp)
                .map(|(opened, closed)| closed.saturating_sub(opened)),
            ..counted
        });
    }
    if counted.error.is_none() {
        cell.checks = validity::of_client(settings, cell);
    }
}

fn fill_cpu(settings: &Settings, cell: &mut Cell, opened: Reading, closed: Reading) {
    let spent = |opened: Option<Duration>, closed: Option<Duration>| {
        Some(closed?.checked_sub(opened?)?.as_secs_f64())
    };
    // Who spins takes a whole core whatever the server does.
    let spins = settings.pacing(&cell.point).is_some_and(|pacing| pacing.pace == Pace::Spin);
    let client = if spins { None } else { spent(opened.client, closed.client) };
    let server = spent(opened.server, closed.server);
    let requests = cell.counts.requests as f64;
    let per_request = |seconds: f64| (requests > 0.0).then(|| seconds * 1e6 / requests);
    cell.costs = Costs {
        client_cpu_us_per_request: client.and_then(per_request),
        server_cpu_us_per_request: server.and_then(per_request),
        total_cpu_us_per_request: client
            .zip(server)
            .and_then(|(client, server)| per_request(client + server)),
        client_cpu_share: client.map(|seconds| seconds / cell.window_seconds),
        server_cpu_share: server.map(|seconds| seconds / cell.window_seconds),
        stolen_share: opened.ticks.zip(closed.ticks).and_then(|(opened, closed)| opened.stolen_share(closed)),
        ..Costs::default()
    };
}

/// The server's own counters. They are divided by the requests that the server had read between the
/// same two moments, since its answer may come later than the window's end.
fn fill_server_costs(
    cell: &mut Cell,
    mode: Mode,
    window: Option<(ServerStats, ServerStats)>,
    last: Option<&ServerStats>,
) {
    // Of a mix the sizes that were really sent: their mean may be off by per cents.
    let size = cell.counts.bytes_each_way as f64 / (cell.counts.requests as f64).max(1.0);
    let costs = &mut cell.costs;
    costs.server_peak_memory_bytes = last.and_then(|stats| stats.peak_memory_bytes);
    let Some((opened, closed)) = window else { return };
    costs.server_peak_memory_bytes = costs.server_peak_memory_bytes.or(closed.peak_memory_bytes);
    let between = |name: &str| Some(closed.count(name)?.saturating_sub(opened.count(name)?));
    // What is pushed comes in once and goes out to all.
    let (counter, size) = match mode {
        _ if cell.datagrams.is_some() => ("datagrams_received", 1.0),
        Mode::Push => ("bytes_sent", size),
        _ => ("bytes_received", size),
    };
    let requests =
        between(counter).filter(|_| size > 0.0).map(|bytes| bytes as f64 / size).filter(|count| *count > 0.0);
    let per_request = |count: u64| requests.map(|requests| count as f64 / requests);
    costs.syscalls_per_request = per_request(closed.syscalls_total() - opened.syscalls_total());
    costs.voluntary_switches_per_request = per_request(closed.voluntary_switches - opened.voluntary_switches);
    costs.involuntary_switches_per_request =
        per_request(closed.involuntary_switches - opened.involuntary_switches);
    let (events, waits) = (between("events").unwrap_or(0), between("waits").unwrap_or(0));
    costs.events_per_wait = (events > 0 && waits > 0).then(|| events as f64 / waits as f64);
    costs.syscalls_in_window = closed
        .syscalls
        .iter()
        .map(|(name, count)| (name.clone(), count - opened.syscalls.get(name).copied().unwrap_or(0)))
        .filter(|(_, count)| *count > 0)
        .collect();
}
