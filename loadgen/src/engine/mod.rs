//! The client: a closed loop of one request and one reply on each connection, over its own io_uring.
//!
//! It shares no code with the library it measures. A run goes through four phases: ramp (connect
//! everything), warm-up, window (the only part that counts) and drain (every reply still owed must
//! come). The first failure ends the run; what was counted until then is kept.

pub(crate) mod buffers;
mod connection;
mod failure;
pub(crate) mod open_loop;
mod ring;
mod sources;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use nix::{
    errno::Errno,
    sys::{prctl, socket::SockaddrStorage},
};

pub(crate) use self::failure::Failure;
use self::{
    buffers::Lease,
    connection::{Connection, Progress},
    failure::Failures,
    open_loop::{OpenLoop, PacedCounts, Pacing, Random},
    ring::{Event, Ring},
    sources::Sources,
};
use crate::{
    error::Error,
    message::{self, Finding, Verify},
    point::Sizes,
};

/// Connections being made at once: well below the backlog that listeners usually have.
pub(crate) const CONNECTING_MAX: usize = 128;
/// How often deadlines and signals are looked at when nothing happens.
const TICK: Duration = Duration::from_millis(50);
const MINUTE_NS: u64 = 60_000_000_000;
/// The window is cut into slices of this length, to see whether the rate holds.
pub(crate) const SLICE: Duration = Duration::from_millis(100);

/// What to do to a server.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) target: SocketAddr,
    pub(crate) connections: usize,
    pub(crate) sizes: Sizes,
    /// Requests under way at once on each connection.
    #[expect(dead_code, reason = "until the client pipelines")]
    pub(crate) pipeline: usize,
    pub(crate) seed: u64,
    /// From 1.
    pub(crate) round: usize,
    pub(crate) verify: Verify,
    pub(crate) timeout: Duration,
    pub(crate) warmup: Duration,
    pub(crate) duration: Duration,
    /// An open loop; None for a closed one.
    pub(crate) pacing: Option<Pacing>,
    /// Each connection asks once before the window, none within it, and this share of them after it.
    pub(crate) idle: Option<f64>,
    /// A planted fault: the client stands still for so long in the middle of the window.
    pub(crate) stall: Option<Duration>,
}

/// Who looks at the clocks when the window opens and closes, and knows whether to go on.
pub(crate) trait Watcher {
    /// All connections are there; nothing is measured yet.
    fn connected(&mut self);
    fn window_opened(&mut self);
    fn window_closed(&mut self);
    fn interrupted(&self) -> bool;
}

/// What was counted.
#[derive(Debug)]
pub(crate) struct Counted {
    /// Requests answered rightly within the window.
    pub(crate) requests: u64,
    /// Requests answered rightly in all phases.
    pub(crate) requests_total: u64,
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
    pub(crate) latency: Histogram<u64>,
    /// None in a closed loop.
    pub(crate) paced: Option<PacedCounts>,
    /// Requests of each [`SLICE`] of the window.
    pub(crate) series: Vec<u64>,
    pub(crate) failures: Vec<Failure>,
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
    Ring::new(1, message::HEADER_BYTES, SockaddrStorage::from(SocketAddr::from(([127, 0, 0, 1], 1))))
        .map(drop)
}

/// Runs the load once, over fresh connections.
pub(crate) fn run(load: &Load, watcher: &mut impl Watcher) -> Result<Counted, Error> {
    let sources = Sources::new(load.target, load.connections);
    let ring = Ring::new(load.connections, load.sizes.largest(), load.target.into())?;
    let counted = Counted::new()?;
    // Another sequence of arrivals each round, the same for all rows of a round.
    let seed = load.seed ^ (load.round as u64) << 32;
    let open = load.pacing.map(|pacing| OpenLoop::new(pacing, seed, &counted.latency));
    let _precise = open.is_some().then(TimerSlack::least);
    let mut engine = Engine {
        load,
        open,
        stall: load.stall,
        ring,
        sources,
        connections: (0..load.connections).map(|_| Connection::default()).collect(),
        phase: Phase::Ramp,
        phase_began: Instant::now(),
        began: Instant::now(),
        opened: 0,
        connected: 0,
        outstanding: 0,
        parked: VecDeque::new(),
        counted,
        failures: Failures::default(),
    };
    let ended = engine.run(watcher);
    Ok(engine.finish(ended, watcher))
}

impl Counted {
    fn new() -> Result<Self, Error> {
        let latency = Histogram::new_with_bounds(1, MINUTE_NS, 3)
            .map_err(|error| Error::internal(format!("the latency histogram: {error}")))?;
        Ok(Self {
            requests: 0,
            requests_total: 0,
            ramp: Duration::ZERO,
            window: Duration::ZERO,
            alive: 0,
            pinged: 0,
            starved: 0,
            latency,
            paced: None,
            series: Vec::new(),
            failures: Vec::new(),
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

struct Engine<'a> {
    load: &'a Load,
    open: Option<OpenLoop>,
    stall: Option<Duration>,
    ring: Ring,
    sources: Sources,
    connections: Vec<Connection>,
    phase: Phase,
    phase_began: Instant,
    began: Instant,
    opened: usize,
    connected: usize,
    outstanding: usize,
    /// Receives that found no buffer, in the order in which they did.
    parked: VecDeque<usize>,
    counted: Counted,
    failures: Failures,
}

impl Engine<'_> {
    fn run(&mut self, watcher: &mut impl Watcher) -> Result<(), Error> {
        let mut looked = Instant::now();
        loop {
            self.open_connections()?;
            self.rearm_parked();
            self.send_arrived();
            self.ring
                .wait(self.patience())
                .map_err(|error| Error::internal(format!("io_uring_enter: {error}")))?;
            while let Some(event) = self.ring.next_event() {
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
            Phase::Ramp if self.connected == self.load.connections => {
                self.counted.ramp = now.duration_since(self.began);
                watcher.connected();
                self.enter_phase(Phase::Warmup, now);
                self.open.iter_mut().for_each(|open| open.begin(now));
                (0..self.load.connections).for_each(|slot| self.go_on(slot));
            }
            Phase::Warmup if self.load.idle.is_some() && self.outstanding > 0 => {}
            Phase::Warmup if spent >= self.load.warmup => {
                watcher.window_opened();
                self.enter_phase(Phase::Window, Instant::now());
                self.open.iter_mut().for_each(|open| open.open_window(self.phase_began));
            }
            Phase::Window if spent >= self.load.duration => self.close_window(watcher),
            Phase::Ping | Phase::Drain => return self.outstanding == 0,
            _ => {}
        }
        false
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
        self.counted.alive = self.connected;
        match &mut self.open {
            Some(open) => open.close_window(),
            // Who has not asked is not starved.
            None if self.load.idle.is_some() => {}
            None => {
                self.counted.starved =
                    self.connections.iter().filter(|connection| !connection.served).count();
            }
        }
        match self.load.idle {
            Some(share) => self.ping(share),
            None => self.enter_phase(Phase::Drain, now),
        }
    }

    /// Asks connections that are chosen at random once more.
    fn ping(&mut self, share: f64) {
        self.enter_phase(Phase::Ping, Instant::now());
        let wanted = ((self.load.connections as f64 * share) as usize).clamp(1, self.load.connections);
        let mut random = Random(self.load.seed);
        while self.counted.pinged < wanted {
            let slot = (random.uniform() * self.load.connections as f64) as usize;
            if self.connections[slot].sent_at.is_none() {
                self.ask(slot, None);
                self.counted.pinged += 1;
            }
        }
    }

    /// How long to sleep at most: to the end of the phase, or a tick.
    fn patience(&self) -> Duration {
        let planned = match self.phase {
            Phase::Warmup => self.load.warmup,
            Phase::Window => self.load.duration,
            Phase::Ramp | Phase::Ping | Phase::Drain => return TICK,
        };
        let planned =
            planned.saturating_sub(self.phase_began.elapsed()).clamp(Duration::from_micros(1), TICK);
        self.open.as_ref().map_or(planned, |open| planned.min(open.patience(Instant::now())))
    }

    fn open_connections(&mut self) -> Result<(), Error> {
        while self.opened < self.load.connections && self.opened - self.connected < CONNECTING_MAX {
            let socket = self.sources.socket(self.opened)?;
            self.connections[self.opened].connecting_since(Instant::now());
            self.ring.connect(socket, self.load.sizes.largest());
            self.opened += 1;
        }
        Ok(())
    }

    /// Arms receives again, as many as there are buffers: more would fail at once and spin.
    fn rearm_parked(&mut self) {
        for _ in 0..self.parked.len().min(self.ring.buffer_count()) {
            let Some(slot) = self.parked.pop_front() else { return };
            self.ring.receive(slot);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Connected { slot, result: Ok(()) } => {
                self.connected += 1;
                self.connections[slot].connected();
                self.ring.receive(slot);
            }
            Event::Connected { slot, result: Err(errno) } => {
                self.failures.connect(slot, self.load.target, errno);
            }
            Event::Sent { slot, result: Ok(sent) } if sent == self.load.sizes.largest() => self.sent(slot),
            Event::Sent { slot, result } => {
                let errno = result.err().unwrap_or(Errno::EPIPE);
                self.failures.broken("send", slot, &self.connections[slot], self.load.sizes.largest(), errno);
            }
            Event::Received { slot, result, more } => self.received(slot, result, more),
            Event::Cancelled => {}
        }
    }

    /// A reply can be whole before the send of its request is told; then the next one waits for this.
    fn sent(&mut self, slot: usize) {
        if self.connections[slot].sent_at.is_none() {
            self.go_on(slot);
        }
    }

    fn received(&mut self, slot: usize, result: Result<Option<Lease>, Errno>, more: bool) {
        match result {
            Ok(Some(lease)) => {
                self.reply(slot, &lease);
                self.ring.give_back(lease);
                if !more {
                    self.ring.receive(slot);
                }
            }
            Err(Errno::ENOBUFS) => self.parked.push_back(slot),
            Err(Errno::EINTR | Errno::EAGAIN) => self.ring.receive(slot),
            Ok(None) => self.closed(slot),
            Err(errno) => {
                self.connected -= 1;
                self.failures.broken(
                    "receive",
                    slot,
                    &self.connections[slot],
                    self.load.sizes.largest(),
                    errno,
                );
            }
        }
    }

    fn closed(&mut self, slot: usize) {
        self.connected -= 1;
        let connection = &self.connections[slot];
        match connection.verdict(self.ring.outgoing(slot)) {
            Some(finding) => self.failures.wrong(slot, connection.sequence, &finding),
            None => self.failures.closed(slot, connection, self.load.sizes.largest()),
        }
    }

    fn reply(&mut self, slot: usize, lease: &Lease) {
        let compared = self.load.verify.compared(self.load.sizes.largest());
        let mut at = 0;
        while at < lease.length() {
            let expected = self.ring.outgoing(slot);
            let chunk = &self.ring.received(lease)[at..];
            match self.connections[slot].receive(chunk, expected, compared) {
                Progress::Complete { used } => {
                    at += used;
                    self.answered(slot);
                }
                Progress::Wrong(finding) => return self.wrong(slot, &finding),
                Progress::Partial | Progress::Suspect => return,
            }
        }
    }

    fn wrong(&mut self, slot: usize, finding: &Finding) {
        self.failures.wrong(slot, self.connections[slot].sequence, finding);
    }

    fn answered(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        let Some(sent_at) = connection.answered() else { return };
        self.outstanding -= 1;
        self.counted.requests_total += 1;
        let now = Instant::now();
        if self.phase == Phase::Window {
            connection.served = true;
            self.counted.requests += 1;
            self.counted.count_in_slice(now.duration_since(self.phase_began));
        }
        // What was under way when the window closed belongs to it: these are the slowest of all.
        let latency = match &mut self.open {
            Some(open) => open.answered(connection.intended.unwrap_or(sent_at), sent_at, now),
            None => matches!(self.phase, Phase::Window | Phase::Ping | Phase::Drain).then(|| now - sent_at),
        };
        if let Some(latency) = latency {
            self.counted.latency.saturating_record(latency.as_nanos() as u64);
        }
        self.go_on(slot);
    }

    /// A connection has its reply: it asks again, or in an open loop is free for the next arrival.
    fn go_on(&mut self, slot: usize) {
        match &mut self.open {
            // Once it has asked, it is idle.
            None if self.load.idle.is_some() && self.connections[slot].sequence > 0 => {}
            None => self.ask(slot, None),
            // One whose send is not over yet comes by here once more.
            Some(open) if self.ring.outgoing_mut(slot).is_some() => open.free(slot),
            Some(_) => {}
        }
    }

    /// Sends what has arrived by the clock.
    fn send_arrived(&mut self) {
        if !matches!(self.phase, Phase::Warmup | Phase::Window) {
            return;
        }
        while let Some((slot, intended)) = self.open.as_mut().and_then(|open| open.next(Instant::now())) {
            self.ask(slot, Some(intended));
        }
    }

    /// Sends the next request, unless the run drains or the last one is still being sent.
    fn ask(&mut self, slot: usize, intended: Option<Instant>) {
        if self.phase == Phase::Drain {
            return;
        }
        let connection = &mut self.connections[slot];
        let Some(message) = self.ring.outgoing_mut(slot) else { return };
        message::encode(message, self.load.seed, slot as u32, connection.sequence);
        connection.ask(Instant::now(), intended);
        self.outstanding += 1;
        self.ring.send(slot);
    }

    fn find_late(&mut self, now: Instant) {
        let timeout = self.load.timeout;
        for (slot, connection) in self.connections.iter().enumerate() {
            if !connection.is_late(now, timeout) {
                continue;
            }
            let partial = if connection.sent_at.is_some() {
                connection.verdict(self.ring.outgoing(slot))
            } else {
                None
            };
            match partial {
                Some(finding) => self.failures.wrong(slot, connection.sequence, &finding),
                None if connection.sent_at.is_some() => {
                    self.failures.no_reply(slot, connection, self.load.sizes.largest(), timeout);
                }
                None => self.failures.connect(slot, self.load.target, Errno::ETIMEDOUT),
            }
        }
    }

    fn finish(mut self, ended: Result<(), Error>, watcher: &mut impl Watcher) -> Counted {
        if self.phase == Phase::Window {
            self.close_window(watcher);
        }
        self.counted.paced = self.open.map(|open| open.counts);
        self.counted.failures = self.failures.into_counts();
        self.counted.error = ended.err();
        self.counted
    }
}
