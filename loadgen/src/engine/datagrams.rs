//! The load over datagrams. Each connection is a connected socket, on which as many requests may be under way as the
//! pipeline is deep. Replies may come in any order, late, or never: a request that is not answered in time is
//! counted as lost, and its place asks the next one. A reply that comes is verified as any other.
//!
//! A place is a request's part of a socket: a slot of the wire, with outgoing memory of its own. Of sequences each place
//! has its share, so a reply's header tells its place.

use std::{
    collections::{HashSet, VecDeque},
    time::{Duration, Instant},
};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::{
    Counted, Load, Phase, RAMP_TICK, TICK, Watcher,
    buffers::Lease,
    failure::Failures,
    open_loop::OpenLoop,
    sources::Sources,
    wire::{Event, Plan, Wire},
};
use crate::{
    error::Error,
    message::{self, Finding},
};

/// What connecting may take, which asks nobody else.
const CONNECTING: Duration = Duration::from_secs(30);

/// What became of datagrams, in all phases unless it says otherwise. Sent are as many as were answered, lost or
/// outstanding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DatagramCounts {
    pub(crate) sent: u64,
    /// In time.
    pub(crate) answered: u64,
    /// Not answered in time.
    pub(crate) lost: u64,
    /// Replies to those that were counted as lost.
    pub(crate) late: u64,
    /// Neither answered nor lost when the run ended, which only an early end leaves.
    pub(crate) outstanding: u64,
    /// Those of the lost that were sent within the window.
    pub(crate) lost_in_window: u64,
    /// Datagrams, of anybody's, that found no room within the window, in the whole network namespace; null if that is
    /// not known.
    pub(crate) dropped_by_kernel: Option<u64>,
}

/// A request under way.
#[derive(Clone, Copy, Debug)]
struct Asked {
    bytes: usize,
    sent_at: Instant,
    intended: Option<Instant>,
    /// Whether it was sent within the window.
    in_window: bool,
}

#[derive(Debug, Default)]
struct Place {
    /// Requests of this place before the present one.
    turn: u64,
    asked: Option<Asked>,
}

#[derive(Debug, Default)]
struct Socket {
    /// Whether a reply came within the window.
    served: bool,
    /// Sequences that were given up, and may still be answered.
    given_up: HashSet<u64>,
}

pub(super) struct Datagrams<'a, W> {
    load: &'a Load,
    wire: W,
    open: Option<OpenLoop>,
    /// Places by socket, as many of each as the pipeline is deep.
    places: Vec<Place>,
    sockets: Vec<Socket>,
    connected: usize,
    under_way: u64,
    thinking: VecDeque<(Instant, usize)>,
    /// Sockets whose receive found no buffer.
    parked: VecDeque<usize>,
    phase: Phase,
    phase_began: Instant,
    counts: DatagramCounts,
    counted: Counted,
    failures: Failures,
}

/// What the wires are told: places share sockets, and a reply that is too long must show.
pub(super) fn plan(load: &Load, burst: usize) -> Plan {
    Plan {
        outgoing_bytes: vec![load.sizes.largest(); load.connections * load.pipeline],
        incoming_bytes: load.sizes.largest() + 1,
        single_receives: false,
        burst,
        datagrams: Some(load.pipeline),
    }
}

/// Runs the load once, over fresh sockets.
pub(super) fn run_over(wire: impl Wire, load: &Load, watcher: &mut impl Watcher) -> Result<Counted, Error> {
    let counted = Counted::new(load)?;
    let places = load.connections * load.pipeline;
    let mut engine = Datagrams {
        load,
        wire,
        open: load.open_loop(&counted.latency),
        places: (0..places).map(|_| Place::default()).collect(),
        sockets: (0..load.connections).map(|_| Socket::default()).collect(),
        connected: 0,
        under_way: 0,
        thinking: VecDeque::new(),
        parked: VecDeque::new(),
        phase: Phase::Ramp,
        phase_began: Instant::now(),
        counts: DatagramCounts::default(),
        counted,
        failures: Failures::new(load.first),
    };
    let ended = engine.run(watcher);
    Ok(engine.finish(ended, watcher))
}

impl<W: Wire> Datagrams<'_, W> {
    fn run(&mut self, watcher: &mut impl Watcher) -> Result<(), Error> {
        let mut sources = Sources::new(&self.load.target, 0..self.load.connections, false);
        for socket in 0..self.load.connections {
            self.wire.connect(socket * self.load.pipeline, sources.socket()?);
        }
        let mut looked = Instant::now();
        loop {
            self.end_pauses();
            self.send_arrived();
            self.rearm_parked();
            self.wire
                .wait(self.patience())
                .map_err(|error| Error::internal(format!("the client's wait for events: {error}")))?;
            // Before anything is given up: it may have come while this process stood still.
            while let Some(event) = self.wire.next_event() {
                self.handle(event);
            }
            let now = Instant::now();
            if now.duration_since(looked) >= self.look_interval() {
                looked = now;
                self.give_up_late(now);
            }
            if let Some(error) = self.failures.first() {
                return Err(error);
            }
            if watcher.interrupted() {
                return Err(Error::interrupted());
            }
            if self.advance(now, watcher) {
                watcher.drained();
                return self.failures.first().map_or(Ok(()), Err);
            }
        }
    }

    /// Goes on to the next phase when this one is over; true at the end.
    fn advance(&mut self, now: Instant, watcher: &mut impl Watcher) -> bool {
        let spent = now.duration_since(self.phase_began);
        match self.phase {
            Phase::Ramp if self.connected == self.load.connections => {
                self.counted.ramp = spent;
                watcher.connected();
                self.enter_phase(Phase::Warmup, now);
                self.begin_asking(now);
            }
            Phase::Ramp if spent > CONNECTING => {
                self.failures.connect(self.connected, &self.load.target, Errno::ETIMEDOUT);
            }
            Phase::Warmup if spent >= self.load.warmup => {
                watcher.window_opened();
                self.enter_phase(Phase::Window, Instant::now());
                self.open.iter_mut().for_each(|open| open.open_window(self.phase_began));
            }
            Phase::Window if spent >= self.load.duration => {
                self.close_window(watcher);
                self.thinking.clear();
                self.enter_phase(Phase::Drain, Instant::now());
            }
            Phase::Drain if self.under_way == 0 => {
                let DatagramCounts { sent, answered, late, .. } = self.counts;
                if sent > 0 && answered + late == 0 {
                    self.failures.unanswered(&self.load.target, sent, self.load.timeout);
                }
                return true;
            }
            _ => {}
        }
        false
    }

    fn enter_phase(&mut self, phase: Phase, now: Instant) {
        (self.phase, self.phase_began) = (phase, now);
    }

    fn begin_asking(&mut self, now: Instant) {
        self.open.iter_mut().for_each(|open| open.begin(now));
        for place in 0..self.places.len() {
            if self.load.think.is_zero() {
                self.go_on(place);
            } else {
                // Apart from each other, or all would ask at once for ever.
                let share = place as f64 / self.places.len() as f64;
                self.thinking.push_back((now + self.load.think.mul_f64(share), place));
            }
        }
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
            None => self.counted.starved = self.sockets.iter().filter(|socket| !socket.served).count(),
        }
    }

    /// How long to sleep at most.
    fn patience(&self) -> Duration {
        let now = Instant::now();
        let planned = match self.phase {
            Phase::Warmup => self.load.warmup,
            Phase::Window => self.load.duration,
            Phase::Ramp | Phase::Ping | Phase::Drain => return self.look_interval(),
        };
        let planned = planned.saturating_sub(now - self.phase_began).max(Duration::from_micros(1));
        let pause = self.thinking.front().map(|(over, _)| over.saturating_duration_since(now));
        let arrival = self.open.as_ref().map(|open| open.patience(now));
        [pause, arrival].into_iter().flatten().fold(planned.min(self.look_interval()), Duration::min)
    }

    /// How often it is looked for what is late: that is how exact the time-out is.
    fn look_interval(&self) -> Duration {
        (self.load.timeout / 8).clamp(RAMP_TICK, TICK)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Connected { slot, result: Ok(()) } => {
                self.connected += 1;
                self.counted.connections_made += 1;
                self.wire.receive(slot);
            }
            Event::Connected { slot, result: Err(errno) } => {
                self.failures.connect(self.socket_of(slot), &self.load.target, errno);
            }
            // What is answered before its send is known to be over goes on here.
            Event::Sent { slot, result: Ok(_) } if self.places[slot].asked.is_none() => self.go_on(slot),
            Event::Sent { result: Ok(_), .. } | Event::Cancelled => {}
            Event::Sent { slot, result: Err(errno) } => self.broken("send", slot, errno),
            Event::Received { slot, result, more } => self.received(slot, result, more),
        }
    }

    fn received(&mut self, slot: usize, result: Result<Option<Lease>, Errno>, more: bool) {
        match result {
            Ok(lease) => {
                self.take(slot, lease.as_ref());
                lease.into_iter().for_each(|lease| self.wire.give_back(lease));
                if !more {
                    self.wire.receive(slot);
                }
            }
            Err(Errno::ENOBUFS) => self.parked.push_back(slot),
            Err(Errno::EINTR | Errno::EAGAIN) => self.wire.receive(slot),
            Err(errno) => self.broken("receive", slot, errno),
        }
    }

    fn broken(&mut self, phase: &'static str, slot: usize, errno: Errno) {
        self.failures.unreachable(phase, self.socket_of(slot), &self.load.target, errno);
    }

    /// Takes what one datagram has brought; none is one that holds nothing.
    fn take(&mut self, slot: usize, lease: Option<&Lease>) {
        let now = Instant::now();
        let socket = self.socket_of(slot);
        let number = self.load.number(socket);
        let got = lease.map_or(&[][..], |lease| self.wire.received(lease));
        let sequence =
            message::header(got).filter(|(owner, _)| *owner == number).map(|(_, sequence)| sequence);
        let waiting = sequence.and_then(|sequence| self.waiting(socket, sequence));
        let given_up = sequence.filter(|sequence| self.sockets[socket].given_up.contains(sequence));
        let finding = match (waiting, given_up) {
            (Some((place, asked)), _) => self.differs(number, &self.wire.outgoing(place)[..asked.bytes], got),
            (None, Some(sequence)) => self.differs(number, &self.request(number, sequence), got),
            (None, None) => Some(message::diagnose(number, u64::MAX, self.any_request(socket), got)),
        };
        match (finding, waiting, given_up) {
            (Some(finding), ..) => self.failures.wrong(socket, sequence.unwrap_or(0), &finding),
            (None, Some((place, asked)), _) => self.answered(place, asked, now),
            (None, None, Some(sequence)) => {
                self.sockets[socket].given_up.remove(&sequence);
                self.counts.late += 1;
            }
            (None, None, None) => {}
        }
    }

    /// What is wrong with this reply.
    fn differs(&self, number: u32, expected: &[u8], got: &[u8]) -> Option<Finding> {
        if expected.len() != got.len() {
            return Some(Finding::Resized { expected: expected.len(), got: got.len() });
        }
        let compared = self.load.verify.compared(expected.len());
        (expected[..compared] != got[..compared]).then(|| message::diagnose(number, 0, expected, got))
    }

    fn answered(&mut self, place: usize, asked: Asked, now: Instant) {
        let socket = self.socket_of(place);
        self.counts.answered += 1;
        self.counted.requests_total += 1;
        if self.phase == Phase::Window {
            self.sockets[socket].served = true;
            self.counted.requests += 1;
            self.counted.bytes += asked.bytes as u64;
            self.counted.count_in_slice(now.saturating_duration_since(self.phase_began));
        }
        self.end(place, asked, now);
    }

    /// A request is over, and has taken until now at least.
    fn end(&mut self, place: usize, asked: Asked, now: Instant) {
        self.under_way -= 1;
        self.places[place].asked = None;
        self.places[place].turn += 1;
        let latency = match &mut self.open {
            Some(open) => open.answered(asked.intended.unwrap_or(asked.sent_at), asked.sent_at, now),
            None => matches!(self.phase, Phase::Window | Phase::Drain).then(|| now - asked.sent_at),
        };
        if let Some(latency) = latency {
            self.counted.latency.saturating_record(latency.as_nanos() as u64);
        }
        self.go_on(place);
    }

    /// Counts as lost what should have been answered by now.
    fn give_up_late(&mut self, now: Instant) {
        for place in 0..self.places.len() {
            let Some(asked) = self.places[place].asked else { continue };
            if now.saturating_duration_since(asked.sent_at) < self.load.timeout {
                continue;
            }
            let (socket, sequence) = (self.socket_of(place), self.sequence(place));
            self.sockets[socket].given_up.insert(sequence);
            self.counts.lost += 1;
            self.counts.lost_in_window += u64::from(asked.in_window);
            self.end(place, asked, now);
        }
    }

    /// A place is free: it asks again, at once or after a pause, or in an open loop waits for the next arrival.
    fn go_on(&mut self, place: usize) {
        let asks = matches!(self.phase, Phase::Warmup | Phase::Window);
        // One whose send is not over yet comes by here once more.
        if !asks || self.wire.outgoing_mut(place).is_none() {
            return;
        }
        match &mut self.open {
            Some(open) => open.free(place),
            None if self.load.think.is_zero() => self.ask(place, None),
            None => self.thinking.push_back((Instant::now() + self.load.think, place)),
        }
    }

    fn end_pauses(&mut self) {
        while self.thinking.front().is_some_and(|(over, _)| *over <= Instant::now()) {
            let Some((_, place)) = self.thinking.pop_front() else { return };
            self.ask(place, None);
        }
    }

    /// Sends what has arrived by the clock.
    fn send_arrived(&mut self) {
        if !matches!(self.phase, Phase::Warmup | Phase::Window) {
            return;
        }
        while let Some((place, intended)) = self.open.as_mut().and_then(|open| open.next(Instant::now())) {
            self.ask(place, Some(intended));
        }
    }

    fn ask(&mut self, place: usize, intended: Option<Instant>) {
        let (number, sequence) = (self.load.number(self.socket_of(place)), self.sequence(place));
        let bytes = self.load.message_bytes(number, sequence);
        let Some(memory) = self.wire.outgoing_mut(place) else { return };
        message::encode(&mut memory[..bytes], self.load.seed, number, sequence);
        let in_window = self.phase == Phase::Window;
        self.places[place].asked = Some(Asked { bytes, sent_at: Instant::now(), intended, in_window });
        self.under_way += 1;
        self.counts.sent += 1;
        self.counted.bytes_sent_total += bytes as u64;
        self.wire.send(place, 0..bytes);
    }

    fn rearm_parked(&mut self) {
        for _ in 0..self.parked.len().min(self.wire.buffer_count()) {
            let Some(slot) = self.parked.pop_front() else { return };
            self.wire.receive(slot);
        }
    }

    fn socket_of(&self, place: usize) -> usize {
        place / self.load.pipeline
    }

    /// The sequence of this place's present or next request.
    fn sequence(&self, place: usize) -> u64 {
        let depth = self.load.pipeline;
        self.places[place].turn * depth as u64 + (place % depth) as u64
    }

    /// The place where a request of this sequence is under way.
    fn waiting(&self, socket: usize, sequence: u64) -> Option<(usize, Asked)> {
        let depth = self.load.pipeline;
        let place = socket * depth + (sequence % depth as u64) as usize;
        let asked = self.places[place].asked.filter(|_| self.sequence(place) == sequence)?;
        Some((place, asked))
    }

    /// A request that is gone from its place.
    fn request(&self, number: u32, sequence: u64) -> Vec<u8> {
        let mut request = vec![0; self.load.message_bytes(number, sequence)];
        message::encode(&mut request, self.load.seed, number, sequence);
        request
    }

    /// One of those under way on a socket, to say in what something else differs from it.
    fn any_request(&self, socket: usize) -> &[u8] {
        let depth = self.load.pipeline;
        let mut places = socket * depth..(socket + 1) * depth;
        let asked = places.find_map(|place| Some((place, self.places[place].asked?)));
        asked.map_or(&[], |(place, asked)| &self.wire.outgoing(place)[..asked.bytes])
    }

    fn finish(mut self, ended: Result<(), Error>, watcher: &mut impl Watcher) -> Counted {
        if self.phase == Phase::Window {
            self.close_window(watcher);
        }
        self.counted.paced = self.open.map(|open| open.counts);
        self.counted.failures = self.failures.into_counts();
        self.counted.datagrams = Some(DatagramCounts { outstanding: self.under_way, ..self.counts });
        self.counted.error = ended.err();
        self.counted
    }
}
