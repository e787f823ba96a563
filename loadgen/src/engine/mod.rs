//! The client: connections that ask and verify what is answered, over a wire of its own.
//!
//! It shares no code with the library it measures. A run goes through four phases: ramp (connect
//! everything), warm-up, window (the only part that counts) and drain (every reply still owed must
//! come). The first failure ends the run; what was counted until then is kept.
//!
//! The phases are here; `life` has a connection's beginning and end, `exchange` what is said in between.

pub(crate) mod buffers;
mod connection;
mod datagrams;
mod exchange;
mod failure;
mod hello;
mod life;
#[cfg(test)]
mod lossy;
pub(crate) mod open_loop;
mod readiness;
mod ring;
mod room;
#[cfg(test)]
mod simulated;
mod sources;
mod wire;

use std::{
    collections::VecDeque,
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use nix::{errno::Errno, sys::prctl};
use serde::{Deserialize, Serialize};

use self::{
    connection::{Connection, Stage},
    failure::Failures,
    hello::Hello,
    open_loop::{OpenLoop, PacedCounts, Pacing, Random},
    readiness::Readiness,
    ring::Ring,
    sources::Sources,
    wire::{Event, Plan, Wire},
};
pub(crate) use self::{datagrams::DatagramCounts, failure::Failure};
use crate::{error::Error, histogram, http, message, message::Verify, point::Sizes, target::Target};

/// Connections being made at once: well below the backlog that listeners usually have.
pub(crate) const CONNECTING_MAX: usize = 128;
/// How often deadlines and signals are looked at when nothing happens.
const TICK: Duration = Duration::from_millis(50);
/// How often the ramp is looked at when it is spread over time.
const RAMP_TICK: Duration = Duration::from_millis(1);
/// Responses that are longer come in several pieces.
const RESPONSE_BYTES: usize = 16 << 10;
const MINUTE_NS: u64 = 60_000_000_000;
/// The window is cut into slices of this length, to see whether the rate holds.
pub(crate) const SLICE: Duration = Duration::from_millis(100);

/// What is said on connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Dialogue {
    /// Every message comes back to its sender.
    Echo,
    /// Every message of the first connection comes to all, itself included.
    Push,
    /// Every request has a response.
    Http(http::Request),
}

/// Who ends a connection that has its reply, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Close {
    /// The client, by FIN; it waits for the server's
    Fin,
    /// The client, by RST
    Rst,
    /// The server; the client waits for it
    Server,
}

/// By which interface of the kernel the client works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub(crate) enum Client {
    #[value(name = "io_uring")]
    IoUring,
    /// The independent check: other code, the same verdicts
    Epoll,
}

/// Arrivals that are sent together unless it is said. All of a turn would leave the first of them late, by the time that
/// the turn takes; one by one costs an enter each, and with it the time for the next ones.
const BURST_BY_CLOCK: usize = 8;

/// What to do to a server. A share for another process is told only what idle connections need.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Load {
    pub(crate) target: Target,
    pub(crate) connections: usize,
    /// The number of its first connection, where it is a share of a load that has others before it.
    pub(crate) first: usize,
    pub(crate) sizes: Sizes,
    /// Requests under way at once on a connection.
    pub(crate) pipeline: usize,
    pub(crate) seed: u64,
    /// From 1.
    pub(crate) round: usize,
    pub(crate) verify: Verify,
    pub(crate) timeout: Duration,
    /// Over what time connections are made.
    pub(crate) ramp: Duration,
    pub(crate) warmup: Duration,
    pub(crate) duration: Duration,
    /// Between a reply and the next request.
    pub(crate) think: Duration,
    pub(crate) dialogue: Dialogue,
    /// Each connection asks once, is closed so, and another one takes its place.
    #[serde(skip)]
    pub(crate) churn: Option<Close>,
    /// An open loop; None for a closed one.
    #[serde(skip)]
    pub(crate) pacing: Option<Pacing>,
    /// Each connection asks once before the window, none within it, and this share of them after it.
    pub(crate) idle: Option<f64>,
    pub(crate) client: Client,
    /// Requests that are handed to the kernel at once; None for as many as suit the loop.
    pub(crate) burst: Option<usize>,
    /// A planted fault: the client stands still for so long in the middle of the window.
    #[serde(skip)]
    pub(crate) stall: Option<Duration>,
}

impl Load {
    /// By which number messages and complaints name the connection of this slot.
    fn number(&self, slot: usize) -> u32 {
        (self.first + slot) as u32
    }

    fn plan(&self) -> Plan {
        let burst = self.burst.unwrap_or(if self.pacing.is_some() { BURST_BY_CLOCK } else { usize::MAX });
        if self.target.is_udp() {
            return datagrams::plan(self, burst);
        }
        let room = match &self.dialogue {
            Dialogue::Http(request) => request.bytes().len() * self.pipeline,
            _ => room::bytes_for(self.pipeline, self.sizes.largest()),
        };
        let outgoing = |slot| if self.asks(slot) { room } else { 0 };
        Plan {
            outgoing_bytes: (0..self.connections).map(outgoing).collect(),
            incoming_bytes: match &self.dialogue {
                Dialogue::Http(_) => RESPONSE_BYTES,
                _ => self.sizes.largest().saturating_mul(self.pipeline),
            },
            single_receives: self.churn.is_some(),
            burst,
            datagrams: None,
        }
    }

    /// The arrivals of an open loop: another sequence of them each round, the same for all rows of a round.
    fn open_loop(&self, histogram: &Histogram<u64>) -> Option<OpenLoop> {
        let seed = self.seed ^ (self.round as u64) << 32;
        self.pacing.map(|pacing| OpenLoop::new(pacing, seed, histogram))
    }

    /// The size of this connection's request of this sequence.
    fn message_bytes(&self, connection: u32, sequence: u64) -> usize {
        self.sizes.pick(message::random(self.seed, connection, sequence))
    }

    /// Whether this connection is one that asks.
    fn asks(&self, slot: usize) -> bool {
        slot == 0 || !matches!(self.dialogue, Dialogue::Push)
    }

    /// How many connections get a reply to each request.
    fn audience(&self) -> usize {
        if matches!(self.dialogue, Dialogue::Push) { self.connections } else { 1 }
    }
}

/// Who looks at the clocks when the window opens and closes, and knows whether to go on.
pub(crate) trait Watcher {
    /// All connections are there; nothing is measured yet.
    fn connected(&mut self);
    fn window_opened(&mut self);
    fn window_closed(&mut self);
    /// Every reply has come; the connections are still there.
    fn drained(&mut self) {}
    fn interrupted(&self) -> bool;
}

/// What was counted.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Counted {
    /// Requests answered rightly within the window.
    pub(crate) requests: u64,
    /// Bytes of these requests.
    pub(crate) bytes: u64,
    /// Requests answered rightly in all phases.
    pub(crate) requests_total: u64,
    /// Bytes that were sent, in all phases.
    pub(crate) bytes_sent_total: u64,
    /// Connections that were made, in all phases.
    pub(crate) connections_made: u64,
    pub(crate) ramp: Duration,
    /// How long the window was; zero if it never opened.
    pub(crate) window: Duration,
    /// Connections that were up when the window closed.
    pub(crate) alive: usize,
    /// Idle connections that were asked to show that they live.
    pub(crate) pinged: usize,
    /// Connections that got no reply within the window.
    pub(crate) starved: usize,
    /// Of the requests that were under way at any time within the window; in an open loop, of those that
    /// arrived within it, from the moment that was meant.
    #[serde(with = "histogram::whole")]
    pub(crate) latency: Histogram<u64>,
    /// None in a closed loop.
    #[serde(skip)]
    pub(crate) paced: Option<PacedCounts>,
    /// What became of datagrams; None where there are streams.
    #[serde(skip)]
    pub(crate) datagrams: Option<DatagramCounts>,
    /// Requests of each [`SLICE`] of the window.
    pub(crate) series: Vec<u64>,
    pub(crate) failures: Vec<Failure>,
    /// What every response was like, if HTTP was spoken.
    pub(crate) response: Option<http::Response>,
    /// The first failure, or what else ended the run early.
    pub(crate) error: Option<Error>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Ramp,
    Warmup,
    Window,
    /// Connections that were idle show that they live.
    Ping,
    Drain,
}

/// The kernel rounds a thread's waits up by so much, 50 us by default. Servers that are started later inherit it.
struct TimerSlack(Option<i32>);

impl TimerSlack {
    /// None at all, for as long as this lives. It is only a loss of precision if it fails.
    fn least() -> Self {
        let before = prctl::get_timerslack().ok();
        let _ = prctl::set_timerslack(1);
        Self(before)
    }
}

impl Drop for TimerSlack {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            let _ = prctl::set_timerslack(before as u64);
        }
    }
}

/// Whether the client can have its ring here; else why not, and what allows it.
pub(crate) fn probe() -> Result<(), Error> {
    let bytes = message::HEADER_BYTES;
    let plan = Plan {
        outgoing_bytes: vec![bytes],
        incoming_bytes: bytes,
        single_receives: false,
        burst: 1,
        datagrams: None,
    };
    Ring::new(&plan, &Target::Tcp(([127, 0, 0, 1], 1).into())).map(drop)
}

/// Runs the load once, over fresh connections.
pub(crate) fn run(load: &Load, watcher: &mut impl Watcher) -> Result<Counted, Error> {
    let (plan, target) = (load.plan(), &load.target);
    let _precise = (load.pacing.is_some() || !load.think.is_zero()).then(TimerSlack::least);
    match (load.client, target.is_udp()) {
        (Client::IoUring, false) => run_over(Ring::new(&plan, target)?, load, watcher),
        (Client::Epoll, false) => run_over(Readiness::new(&plan, target)?, load, watcher),
        (Client::IoUring, true) => datagrams::run_over(Ring::new(&plan, target)?, load, watcher),
        (Client::Epoll, true) => datagrams::run_over(Readiness::new(&plan, target)?, load, watcher),
    }
}

fn run_over(wire: impl Wire, load: &Load, watcher: &mut impl Watcher) -> Result<Counted, Error> {
    let counted = Counted::new(load)?;
    let open = load.open_loop(&counted.latency);
    let mut engine = Engine {
        load,
        open,
        stall: load.stall,
        wire,
        sources: Sources::new(&load.target, load.first..load.first + load.connections, load.churn.is_some()),
        connections: (0..load.connections).map(|_| Connection::default()).collect(),
        phase: Phase::Ramp,
        phase_began: Instant::now(),
        began: Instant::now(),
        ramped: 0,
        opening: VecDeque::new(),
        hello: Hello::new(),
        connecting: 0,
        connected: 0,
        under_way: 0,
        thinking: VecDeque::new(),
        parked: VecDeque::new(),
        responses: http::Responses::default(),
        counted,
        failures: Failures::new(load.first),
    };
    let ended = engine.run(watcher);
    Ok(engine.finish(ended, watcher))
}

impl Counted {
    /// Nothing so far.
    pub(crate) fn new(load: &Load) -> Result<Self, Error> {
        // Nothing can take longer: what is late ends the run.
        let longest = (load.warmup + load.duration + load.timeout).as_nanos() as u64;
        let latency = Histogram::new_with_bounds(1, longest.max(MINUTE_NS), 3)
            .map_err(|error| Error::internal(format!("the latency histogram: {error}")))?;
        Ok(Self {
            requests: 0,
            bytes: 0,
            requests_total: 0,
            bytes_sent_total: 0,
            connections_made: 0,
            ramp: Duration::ZERO,
            window: Duration::ZERO,
            alive: 0,
            pinged: 0,
            starved: 0,
            latency,
            paced: None,
            datagrams: None,
            series: Vec::new(),
            failures: Vec::new(),
            response: None,
            error: None,
        })
    }
}

impl Counted {
    /// A server that has gone quiet leaves slices that nobody has counted in.
    fn end_series(&mut self) {
        let slices = self.window.as_nanos().div_ceil(SLICE.as_nanos()) as usize;
        self.series.resize(slices.max(self.series.len()), 0);
    }

    fn count_in_slice(&mut self, since_opened: Duration) {
        let slice = (since_opened.as_nanos() / SLICE.as_nanos()) as usize;
        if self.series.len() <= slice {
            self.series.resize(slice + 1, 0);
        }
        self.series[slice] += 1;
    }
}

struct Engine<'a, W> {
    load: &'a Load,
    open: Option<OpenLoop>,
    stall: Option<Duration>,
    wire: W,
    sources: Sources,
    connections: Vec<Connection>,
    phase: Phase,
    phase_began: Instant,
    began: Instant,
    /// Connections that the ramp has come to.
    ramped: usize,
    hello: Hello,
    /// Slots that wait for their turn to connect.
    opening: VecDeque<usize>,
    connecting: usize,
    connected: usize,
    /// Requests, or with churn connections, that are not over.
    under_way: usize,
    /// When whose pause is over, in this order.
    thinking: VecDeque<(Instant, usize)>,
    /// Receives that found no buffer, in the order in which they did.
    parked: VecDeque<usize>,
    responses: http::Responses,
    counted: Counted,
    failures: Failures,
}

impl<W: Wire> Engine<'_, W> {
    fn run(&mut self, watcher: &mut impl Watcher) -> Result<(), Error> {
        let mut looked = Instant::now();
        loop {
            self.ramp_up();
            self.end_pauses();
            if self.phase == Phase::Ramp {
                self.greet(Instant::now());
            }
            self.send_arrived();
            self.open_connections()?;
            self.rearm_parked();
            self.wire
                .wait(self.patience())
                .map_err(|error| Error::internal(format!("the client's wait for events: {error}")))?;
            while let Some(event) = self.wire.next_event() {
                self.handle(event);
            }
            self.stall();
            let now = Instant::now();
            if now.duration_since(looked) >= TICK {
                looked = now;
                self.find_late(now);
            }
            if let Some(error) = self.failures.first() {
                return Err(error);
            }
            if watcher.interrupted() {
                return Err(Error::interrupted());
            }
            if self.advance(now, watcher) {
                watcher.drained();
                return Ok(());
            }
        }
    }

    fn stall(&mut self) {
        let Some(stall) = self.stall else { return };
        if self.phase == Phase::Window && self.phase_began.elapsed() >= self.load.duration / 2 {
            self.stall = None;
            thread::sleep(stall);
        }
    }

    /// Goes on to the next phase when this one is over; true at the end.
    fn advance(&mut self, now: Instant, watcher: &mut impl Watcher) -> bool {
        let spent = now.duration_since(self.phase_began);
        match self.phase {
            Phase::Ramp if self.is_ramped() => {
                self.counted.ramp = now.duration_since(self.began);
                watcher.connected();
                self.enter_phase(Phase::Warmup, now);
                self.begin_asking(now);
            }
            Phase::Warmup if self.load.idle.is_some() && self.under_way > 0 => {}
            Phase::Warmup if spent >= self.load.warmup => {
                watcher.window_opened();
                self.enter_phase(Phase::Window, Instant::now());
                self.open.iter_mut().for_each(|open| open.open_window(self.phase_began));
            }
            Phase::Window if spent >= self.load.duration => {
                self.close_window(watcher);
                self.begin_drain();
            }
            Phase::Ping | Phase::Drain => return self.under_way == 0,
            _ => {}
        }
        false
    }

    /// Whether all connections are there. With churn each is made when it is its turn to ask.
    fn is_ramped(&self) -> bool {
        let all = self.connected == self.load.connections && self.is_introduced();
        all || self.load.churn.is_some()
    }

    fn begin_asking(&mut self, now: Instant) {
        self.open.iter_mut().for_each(|open| open.begin(now));
        for slot in (0..self.load.connections).filter(|slot| self.load.asks(*slot)) {
            if self.load.think.is_zero() {
                self.go_on(slot);
            } else {
                // Apart from each other, or all would ask at once for ever.
                let share = slot as f64 / self.load.connections as f64;
                self.thinking.push_back((now + self.load.think.mul_f64(share), slot));
            }
        }
    }

    fn enter_phase(&mut self, phase: Phase, now: Instant) {
        self.phase = phase;
        self.phase_began = now;
    }

    fn close_window(&mut self, watcher: &mut impl Watcher) {
        // What has arrived until now still has its chance.
        self.send_arrived();
        let now = Instant::now();
        watcher.window_closed();
        self.counted.window = now.duration_since(self.phase_began);
        self.counted.end_series();
        // An HTTP server may end a connection for a fresh one, which is on its way then.
        let renewed = matches!(self.load.dialogue, Dialogue::Http(_));
        self.counted.alive = self.connected + if renewed { self.connecting + self.opening.len() } else { 0 };
        match &mut self.open {
            Some(open) => open.close_window(),
            // Who has not asked is not starved.
            None if self.load.idle.is_some() => {}
            None => {
                self.counted.starved =
                    self.connections.iter().filter(|connection| !connection.served).count();
            }
        }
    }

    fn begin_drain(&mut self) {
        self.thinking.clear();
        match self.load.idle {
            Some(share) => self.ping(share),
            None => {
                self.enter_phase(Phase::Drain, Instant::now());
                self.forget_unopened();
            }
        }
    }

    /// Asks connections that are chosen at random once more.
    fn ping(&mut self, share: f64) {
        self.enter_phase(Phase::Ping, Instant::now());
        let (connections, wire) = (&self.connections, &mut self.wire);
        let can_ask =
            |slot: &usize| connections[*slot].stage == Stage::Open && wire.outgoing_mut(*slot).is_some();
        let mut open: Vec<usize> = (0..self.load.connections).filter(can_ask).collect();
        let wanted = ((self.load.connections as f64 * share).ceil() as usize).min(open.len());
        let mut random = Random(self.load.seed ^ self.load.first as u64);
        for _ in 0..wanted {
            let chosen = open.swap_remove((random.uniform() * open.len() as f64) as usize);
            self.ask(chosen, None, Instant::now());
        }
        self.counted.pinged = wanted;
    }

    /// How long to sleep at most: to the end of the phase, the next pause or arrival, or a tick.
    fn patience(&self) -> Duration {
        let now = Instant::now();
        let planned = match self.phase {
            Phase::Warmup => self.load.warmup,
            Phase::Window => self.load.duration,
            Phase::Ramp if self.ramped < self.load.connections => return RAMP_TICK,
            Phase::Ramp | Phase::Ping | Phase::Drain => return TICK,
        };
        let planned = planned.saturating_sub(now - self.phase_began).clamp(Duration::from_micros(1), TICK);
        let pause = self.thinking.front().map(|(over, _)| over.saturating_duration_since(now));
        let arrival = self.open.as_ref().map(|open| open.patience(now));
        [Some(planned), pause, arrival].into_iter().flatten().min().unwrap_or(TICK)
    }

    /// Arms receives again, as many as there are buffers: more would fail at once and spin.
    fn rearm_parked(&mut self) {
        for _ in 0..self.parked.len().min(self.wire.buffer_count()) {
            let Some(slot) = self.parked.pop_front() else { return };
            self.wire.receive(slot);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Connected { slot, result: Ok(()) } => self.connected(slot),
            Event::Connected { slot, result: Err(errno) } => {
                self.failures.connect(slot, &self.load.target, errno);
            }
            Event::Sent { slot, result: Ok(_) } => self.sent(slot),
            Event::Sent { slot, result: Err(errno) } => self.send_failed(slot, errno),
            Event::Received { slot, result, more } => self.received(slot, result, more),
            Event::Cancelled => {}
        }
    }

    fn find_late(&mut self, now: Instant) {
        for slot in 0..self.connections.len() {
            if self.connections[slot].is_late(now, self.load.timeout) {
                self.complain_of_lateness(slot);
            }
        }
    }

    fn complain_of_lateness(&mut self, slot: usize) {
        let timeout = self.load.timeout;
        match self.connections[slot].stage {
            Stage::Connecting => self.failures.connect(slot, &self.load.target, Errno::ETIMEDOUT),
            Stage::Served | Stage::Ended | Stage::Closing => self.failures.not_closed(slot, timeout),
            _ => {
                let slot = self.who_waits(slot);
                match self.verdict(slot) {
                    Some(finding) => self.failures.wrong(slot, self.connections[slot].due, &finding),
                    None => self.failures.no_reply(
                        slot,
                        &life::state(self.load, &self.connections, slot),
                        timeout,
                    ),
                }
            }
        }
    }

    fn finish(mut self, ended: Result<(), Error>, watcher: &mut impl Watcher) -> Counted {
        if self.phase == Phase::Window {
            self.close_window(watcher);
        }
        self.counted.paced = self.open.map(|open| open.counts);
        self.counted.failures = self.failures.into_counts();
        self.counted.response = self.responses.first();
        self.counted.error = ended.err();
        self.counted
    }
}
