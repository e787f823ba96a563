//! The life of one connection as a state machine: what the user asks and what the kernel tells go
//! in, and [`Connection::step`] gives out, one at a time, what has to be done next.
//!
//! No system calls, no clock and no unsafe here: the same machine runs under every backend.

mod clock;
mod filtering;
mod pacing;
mod producing;

use std::time::Instant;

use crate::{
    error::Errno,
    limits::Limits,
    output::{Batch, Output, Pool, Write},
    reason::{LimitKind, Loss, Reason, Timeout},
    timer::deadline_after,
};

pub use self::filtering::{Equipment, Filter, Filters};
pub use self::pacing::{Pace, Way};
pub use self::producing::{AnyProducer, NotRegistered, Produce};
use self::{clock::Clock, filtering::Filtering, producing::Producing};

/// What a driver has to do next for a connection.
#[derive(Debug)]
pub enum Step {
    /// Nothing, until something else happens.
    Idle,
    /// Output waits, but this turn's send has been used up: come back next turn.
    Later,
    /// Call `pause_writing`.
    PauseWriting,
    /// Call `resume_writing`.
    ResumeWriting,
    /// Call `data_received` with bytes that were held while the connection was paused.
    Deliver(Vec<u8>),
    /// Call `read_connection_lost`.
    ReadLost,
    /// Call `timeout_connection`.
    TimedOut,
    /// Let the filters do what they have to, and give them back by [`Connection::filtered`].
    Filter(Box<Filters>),
    /// Tell the producer, and give it back by [`Connection::producer_told`].
    Produce(Produce, AnyProducer),
    /// Send this.
    Send(Box<Batch>),
    /// Start or stop receiving.
    Read(bool),
    /// Send FIN, go on receiving.
    ShutdownWrite,
    /// Call `connection_lost`; the reason is asked by [`Connection::reason`].
    Lost,
    /// Close the socket: with RST if `reset`.
    Close {
        /// Whether unsent bytes are to be dropped and the peer is to get RST.
        reset: bool,
    },
}

/// What becomes of bytes that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// They are for `data_received`, now.
    Deliver,
    /// The connection is paused and has kept a copy.
    Held,
    /// The connection is closing; they are thrown away.
    Discarded,
}

/// How receiving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Eof,
    Errno(Errno),
}

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Both directions as the user left them.
    Open,
    /// To be closed once the producer is unregistered. Input is thrown away.
    Producing,
    /// To be closed once all output is handed over. Input is thrown away.
    Flushing,
    /// FIN is sent; input is thrown away until the peer's FIN or a limit, since closing a socket
    /// with unread input would send RST and destroy the output (C7).
    Draining,
    /// The end is decided; `connection_lost` is due, then the socket is closed.
    Ended { reset: bool },
    /// Nothing more will happen.
    Gone,
}

/// The writing half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteHalf {
    Open,
    /// `lose_write_connection` was called: FIN follows the last byte.
    Ending,
    /// FIN was sent.
    Shut,
    /// A send failed because the peer is gone; its last bytes may still wait to be read.
    Broken(Errno),
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    output: Output,
    end: Option<End>,
    rare: Option<Box<Rare>>,
    phase: Phase,
    write_half: WriteHalf,
    paused: bool,
    reading: bool,
    half_closeable: bool,
    read_lost_told: bool,
    lost_told: bool,
    /// Something passed since an idle time-out has looked.
    active: bool,
    /// Open both ways and receiving, with nothing rare about it but a clock that need not be looked at: what is asked with every message instead of
    /// all that it says. Whatever changes that ends it, and the last of the steps that follow restores it.
    calm: bool,
}

/// What a connection has only while it is paused, has a producer, filters or a time-out, or ends.
#[derive(Debug, Default)]
struct Rare {
    /// What arrived while it was paused.
    held: Vec<u8>,
    /// What is held was given back by a protocol that wants to see more of it.
    waits_for_more: bool,
    reason: Option<Reason>,
    deadline: Option<Instant>,
    drained: usize,
    producing: Option<Producing>,
    filtering: Option<Box<Filtering>>,
    clock: Option<Box<Clock>>,
    /// The reactor is being stopped, and waits no longer than until then.
    drain_until: Option<Instant>,
    /// It was asked to drain. Unlike `drain_until` this stays once the end is decided: the driver asks for it when it closes the socket.
    was_drained: bool,
}

impl Connection {
    /// A connection that has just been made. A `half_closeable` one outlives the peer's FIN.
    pub fn new(half_closeable: bool) -> Self {
        Self {
            output: Output::default(),
            end: None,
            rare: None,
            phase: Phase::Open,
            write_half: WriteHalf::Open,
            paused: false,
            reading: false,
            half_closeable,
            read_lost_told: false,
            lost_told: false,
            active: false,
            calm: false,
        }
    }

    fn rare(&mut self) -> &mut Rare {
        self.calm = false;
        self.rare.get_or_insert_default()
    }

    fn holds_data(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| !rare.held.is_empty())
    }

    /// Whether it holds what is to be delivered before anything else.
    fn owes_data(&self) -> bool {
        self.holds_data() && self.rare.as_ref().is_some_and(|rare| !rare.waits_for_more)
    }

    /// Is calm again if nothing is rare about it any more.
    fn calm_down(&mut self) {
        let holds = self.rare.as_ref().is_some_and(|rare| rare.is_needed());
        if self.phase == Phase::Open && !holds {
            self.rare.take_if(|rare| rare.clock.is_none());
        }
        let open = self.phase == Phase::Open && self.write_half == WriteHalf::Open && self.end.is_none();
        self.calm = open && !self.paused && self.reading && !holds;
    }
}

impl Rare {
    /// Whether there is more to it than a clock.
    fn is_needed(&self) -> bool {
        let passing = self.producing.is_some() || self.filtering.is_some();
        passing || !self.held.is_empty() || self.deadline.is_some() || self.drain_until.is_some()
    }
}

/// What the user asks.
impl Connection {
    /// Takes a copy of `bytes`, unless the connection no longer takes output.
    #[inline(always)]
    pub fn write(&mut self, pool: &mut Pool, limits: &Limits, bytes: &[u8]) -> Write {
        if !self.takes_output(limits) {
            return Write::Closed;
        }
        self.output.append(pool, limits.output_high, bytes)
    }

    /// Takes whatever `append` adds, unless the connection no longer takes output.
    pub fn write_with(
        &mut self,
        pool: &mut Pool,
        limits: &Limits,
        append: &mut dyn FnMut(&mut Batch),
    ) -> Write {
        if !self.takes_output(limits) {
            return Write::Closed;
        }
        self.output.append_with(pool, limits.output_high, append)
    }

    /// `lose_connection`: hand over what was written, then close.
    pub fn lose(&mut self) {
        if let WriteHalf::Broken(errno) = self.write_half {
            self.finish(Reason::Lost(Loss::Errno(errno)), false);
        } else if self.phase == Phase::Open {
            self.phase = if self.has_producer() { Phase::Producing } else { Phase::Flushing };
            let rare = self.rare();
            rare.held = Vec::new();
            rare.reason.get_or_insert(Reason::Done);
        }
    }

    /// The reactor is being stopped: as [`lose`](Self::lose), but until then at most, and lost because of that.
    pub fn drain(&mut self, until: Instant) {
        let open = self.phase == Phase::Open;
        self.lose();
        if matches!(self.phase, Phase::Ended { .. } | Phase::Gone) {
            return;
        }
        let rare = self.rare();
        rare.drain_until = Some(until);
        rare.was_drained = true;
        if open {
            rare.reason = Some(Reason::Lost(Loss::Shutdown));
        }
    }

    /// Whether it hands over the last of its output because the reactor is being stopped.
    pub fn is_draining(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.drain_until.is_some())
    }

    /// Whether it was [drained](Self::drain), from then on and also after `connection_lost`: what the peer has not acknowledged is counted then.
    pub fn was_drained(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.was_drained)
    }

    /// `lose_write_connection`: hand over what was written, then FIN.
    pub fn lose_write(&mut self) {
        if self.write_half == WriteHalf::Open {
            self.write_half = WriteHalf::Ending;
            self.calm = false;
        }
    }

    /// `abort_connection`: drop what was written, RST.
    pub fn abort(&mut self) {
        self.finish(Reason::Aborted, true);
    }

    /// Ends the connection for this reason: `fail`, a panic, the reactor's shutdown.
    pub fn finish(&mut self, reason: Reason, reset: bool) {
        if !matches!(self.phase, Phase::Ended { .. } | Phase::Gone) {
            self.phase = Phase::Ended { reset };
            let rare = self.rare();
            rare.reason = Some(reason);
            rare.held = Vec::new();
        }
    }

    /// `pause_producing`: deliver nothing until [`resume`](Self::resume).
    pub fn pause(&mut self) {
        self.paused = true;
        self.calm = false;
    }

    /// `resume_producing`.
    pub fn resume(&mut self) {
        self.paused = false;
        if let Some(rare) = &mut self.rare {
            rare.waits_for_more = false;
        }
    }

    /// Takes back bytes that were delivered: they come again, before all others, on resume or else with what arrives next.
    pub fn unread(&mut self, data: &[u8]) {
        if self.phase == Phase::Open && !data.is_empty() {
            let paused = self.paused;
            let rare = self.rare();
            rare.held.splice(..0, data.iter().copied());
            rare.waits_for_more = !paused;
        }
    }

    /// Bytes that the kernel has not taken.
    pub fn unsent(&self) -> usize {
        self.output.unsent()
    }

    /// How much of that the budget of all connections counts.
    pub fn counted(&self) -> usize {
        self.output.counted()
    }

    /// Ends the connection, which has the most unsent of all, since all together have too much. What is not with the backend is dropped at once.
    pub fn end_for_budget(&mut self, pool: &mut Pool) {
        self.finish(Reason::Limit(LimitKind::OutputTotal), true);
        self.output.discard(pool);
    }

    /// Whether `data_received` may be called: not paused, not closing.
    pub fn is_delivering(&self) -> bool {
        self.phase == Phase::Open && !self.paused
    }

    /// Whether `connection_lost` has begun: from there on there is nothing left to act upon.
    pub fn is_lost(&self) -> bool {
        self.lost_told
    }

    /// Whether `write` takes output. A connection that has too much of it already ends here.
    #[inline]
    pub fn takes_output(&mut self, limits: &Limits) -> bool {
        if !self.calm && !self.is_open_for_output() {
            return false;
        }
        if self.output.unsent() > limits.output_max {
            return self.output_too_long();
        }
        true
    }

    fn is_open_for_output(&self) -> bool {
        let open = self.phase == Phase::Open && self.write_half == WriteHalf::Open;
        open || self.takes_producers_output()
    }

    #[cold]
    fn output_too_long(&mut self) -> bool {
        self.finish(Reason::Limit(LimitKind::Output), true);
        false
    }

    /// Whether the end is neither decided nor asked for.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }
}

/// What the kernel tells.
impl Connection {
    /// Bytes arrived.
    #[inline]
    pub fn received(&mut self, data: &[u8], limits: &Limits) -> Arrival {
        self.active = true;
        if self.calm {
            return Arrival::Deliver;
        }
        self.received_rarely(data, limits)
    }

    #[cold]
    fn received_rarely(&mut self, data: &[u8], limits: &Limits) -> Arrival {
        if self.hold_to_filter(data) {
            return Arrival::Held;
        }
        match self.phase {
            Phase::Open if !self.paused && !self.holds_data() => Arrival::Deliver,
            Phase::Open => {
                let rare = self.rare();
                rare.held.extend_from_slice(data);
                rare.waits_for_more = false;
                Arrival::Held
            }
            Phase::Draining => {
                let rare = self.rare();
                rare.drained += data.len();
                if rare.drained > limits.drain_max {
                    self.phase = Phase::Ended { reset: false };
                }
                Arrival::Discarded
            }
            _ => Arrival::Discarded,
        }
    }

    /// Receiving ended: with the peer's FIN, or with an error.
    pub fn read_ended(&mut self, errno: Option<Errno>) {
        self.reading = false;
        self.calm = false;
        self.end.get_or_insert(errno.map_or(End::Eof, End::Errno));
    }

    /// A batch came back: `n` bytes of it were taken before `failed`, if anything did.
    #[inline]
    pub fn sent(
        &mut self,
        batch: Box<Batch>,
        n: usize,
        failed: Option<Errno>,
        pool: &mut Pool,
        limits: &Limits,
    ) {
        self.active = true;
        if !self.calm {
            return self.sent_rarely(batch, n, failed, pool, limits);
        }
        self.output.came_back(batch, n, pool, limits.output_low);
        if let Some(errno) = failed {
            self.send_failed(errno, pool);
        }
    }

    #[cold]
    fn sent_rarely(
        &mut self,
        batch: Box<Batch>,
        n: usize,
        failed: Option<Errno>,
        pool: &mut Pool,
        limits: &Limits,
    ) {
        if batch.is_empty() || failed.is_some() || self.filtering().is_none() {
            self.output.came_back(batch, n, pool, limits.output_low);
        } else {
            self.send_the_rest(batch);
            self.output.went(n, pool, limits.output_low);
        }
        self.mind_producer(n);
        if let Some(errno) = failed {
            self.send_failed(errno, pool);
        }
    }

    #[cold]
    fn send_failed(&mut self, errno: Errno, pool: &mut Pool) {
        self.output.discard(pool);
        match self.phase {
            Phase::Open if peer_is_gone(errno) && self.end.is_none() => {
                self.write_half = WriteHalf::Broken(errno);
                self.calm = false;
            }
            Phase::Open | Phase::Producing | Phase::Flushing => {
                self.finish(Reason::Lost(Loss::Errno(errno)), false);
            }
            _ => {}
        }
    }
}

/// What is to be done.
impl Connection {
    /// The one place that decides what a connection wants next. Call it until it answers
    /// [`Step::Idle`], [`Step::Later`] or [`Step::Close`]; each answer counts as done.
    pub fn step(&mut self, now: Instant, limits: &Limits, pool: &mut Pool, may_send: bool) -> Step {
        self.mind_deadline(now, limits);
        self.mind_broken();
        self.mind_end();
        self.mind_closing();
        if let Phase::Ended { reset } = self.phase {
            return self.step_ended(reset, pool);
        }
        if self.phase == Phase::Gone {
            return Step::Idle;
        }
        let step = self
            .step_callback()
            .or_else(|| self.step_clock(now))
            .or_else(|| self.step_passing_in(now))
            .or_else(|| self.step_producer())
            .or_else(|| self.step_output(now, limits, pool, may_send))
            .or_else(|| self.step_input());
        if step.is_none() {
            self.calm_down();
        }
        step.unwrap_or(Step::Idle)
    }

    /// Whether something is to happen as soon as the batch in flight comes back.
    pub fn waits_for_batch(&self) -> bool {
        let closing = self.phase != Phase::Open || self.write_half == WriteHalf::Ending;
        self.output.in_flight() && (closing || self.output.is_waiting() || self.pulls())
    }

    /// Why the connection ends, for `connection_lost`.
    pub fn reason(&mut self) -> Reason {
        self.rare.as_mut().and_then(|rare| rare.reason.take()).unwrap_or(Reason::Done)
    }

    /// Whether it does what nearly every connection does nearly always: receives, delivers and sends.
    pub fn is_calm(&self) -> bool {
        self.calm & self.output.is_calm()
    }

    /// All that a calm connection with nothing in flight wants: that what gathers, if anything does, goes out. None for any
    /// other connection, which [`step`](Self::step) decides about.
    pub fn next_batch_if_calm(&mut self) -> Option<Option<Box<Batch>>> {
        let calm = self.is_calm() & !self.output.in_flight();
        calm.then(|| self.output.next_batch())
    }

    /// Whether [`step`](Self::step) would find nothing to do, now and later.
    pub fn is_settled(&self) -> bool {
        self.is_calm() & !self.output.is_waiting()
    }

    fn mind_deadline(&mut self, now: Instant, limits: &Limits) {
        // A producer may take its time, but a peer that does not read what it has written may not.
        let flushing =
            self.phase == Phase::Flushing || (self.phase == Phase::Producing && !self.output.is_flushed());
        if flushing && self.closing_deadline().is_none() {
            self.rare().deadline = Some(deadline_after(now, limits.close_timeout));
        }
        let Some(rare) = &mut self.rare else { return };
        let cut = rare.drain_until.is_some_and(|until| until <= now);
        rare.deadline = rare.deadline.into_iter().chain(rare.drain_until).min();
        if rare.deadline.is_none_or(|deadline| deadline > now) {
            return;
        }
        match self.phase {
            Phase::Producing | Phase::Flushing if cut => self.finish(Reason::Lost(Loss::Shutdown), false),
            Phase::Producing if self.output.is_flushed() => self.rare().deadline = None,
            Phase::Producing | Phase::Flushing => self.finish(Reason::TimedOut(Timeout::Close), true),
            Phase::Draining => self.phase = Phase::Ended { reset: false },
            _ => {}
        }
    }

    /// A send failed because the peer is gone: told at once to a paused connection, else when the
    /// bytes that came before have been delivered.
    fn mind_broken(&mut self) {
        if let WriteHalf::Broken(errno) = self.write_half
            && self.phase == Phase::Open
            && (self.paused || (self.end.is_some() && !self.owes_data() && !self.owes_passing()))
        {
            self.finish(Reason::Lost(Loss::Errno(errno)), false);
        }
    }

    /// Acts on the end of receiving once all that came before it has been delivered.
    fn mind_end(&mut self) {
        if self.phase != Phase::Open || self.paused || self.owes_data() || self.owes_passing() {
            return;
        }
        match self.end {
            Some(End::Errno(errno)) => self.finish(Reason::Lost(Loss::Errno(errno)), false),
            Some(End::Eof) if self.half_closeable => self.mind_half_close(),
            // Once what was written by then has been handed over: producer or not.
            Some(End::Eof) => self.lose_producer_or_not(),
            None => {}
        }
    }

    /// A closing connection whose peer has closed too need not wait any longer.
    fn mind_closing(&mut self) {
        match (self.phase, self.end) {
            (Phase::Flushing | Phase::Draining, Some(_))
                if self.output.is_flushed() && !self.owes_last_words() =>
            {
                self.phase = Phase::Ended { reset: false };
            }
            (Phase::Producing | Phase::Flushing, Some(End::Errno(errno))) => {
                self.finish(Reason::Lost(Loss::Errno(errno)), false);
            }
            _ => {}
        }
    }

    /// As [`lose`](Self::lose), but waits for no producer.
    fn lose_producer_or_not(&mut self) {
        self.lose();
        if self.phase == Phase::Producing {
            self.phase = Phase::Flushing;
        }
    }

    /// Both halves closed and the protocol told of each: the connection is done.
    fn mind_half_close(&mut self) {
        if self.read_lost_told && self.write_half == WriteHalf::Shut {
            self.finish(Reason::Done, false);
        }
    }

    fn step_ended(&mut self, reset: bool, pool: &mut Pool) -> Step {
        if let Some(stop) = self.step_stop_producer() {
            return stop;
        }
        if !self.lost_told {
            self.lost_told = true;
            self.output.discard(pool);
            let rare = self.rare();
            (rare.deadline, rare.drain_until) = (None, None);
            return Step::Lost;
        }
        self.phase = Phase::Gone;
        Step::Close { reset }
    }

    fn step_callback(&mut self) -> Option<Step> {
        if self.output.take_pause() {
            self.owe_producer(Produce::Pause);
            return Some(Step::PauseWriting);
        }
        if self.output.take_resume() {
            self.owe_producer(Produce::Resume);
            return Some(Step::ResumeWriting);
        }
        if self.phase != Phase::Open || self.paused {
            return None;
        }
        if self.owes_data() {
            let held = std::mem::take(&mut self.rare().held);
            self.calm_down();
            return Some(Step::Deliver(held));
        }
        if self.end == Some(End::Eof) && self.half_closeable && !self.read_lost_told && !self.owes_passing() {
            self.read_lost_told = true;
            return Some(Step::ReadLost);
        }
        None
    }

    fn step_output(
        &mut self,
        now: Instant,
        limits: &Limits,
        pool: &mut Pool,
        may_send: bool,
    ) -> Option<Step> {
        if self.filtering().is_some() {
            let passing = self.step_passing_out(now, limits, pool, may_send);
            if passing.is_some() || !self.output.is_flushed() || (self.is_ending() && self.owes_last_words())
            {
                return passing;
            }
        } else if !self.output.is_flushed() {
            if !may_send && !self.output.in_flight() {
                // Whoever waits for room must hear the peer meanwhile: it may write before it reads.
                return self.step_input().or(Some(Step::Later));
            }
            return self.output.next_batch().map(Step::Send);
        }
        let shut = self.write_half == WriteHalf::Shut;
        match (self.phase, self.write_half) {
            (Phase::Flushing, _) => {
                self.phase = Phase::Draining;
                self.rare().deadline = Some(deadline_after(now, limits.drain_timeout));
            }
            (Phase::Open, WriteHalf::Ending) if !self.has_producer() => {}
            _ => return None,
        }
        self.write_half = WriteHalf::Shut;
        (!shut).then_some(Step::ShutdownWrite)
    }

    /// Whether FIN is to be sent once all else is.
    fn is_ending(&self) -> bool {
        match self.phase {
            Phase::Flushing => true,
            Phase::Open => self.write_half == WriteHalf::Ending && !self.has_producer(),
            _ => false,
        }
    }

    fn step_input(&mut self) -> Option<Step> {
        let wanted = self.end.is_none() && !(self.phase == Phase::Open && self.paused) && !self.is_held_up();
        if wanted == self.reading {
            return None;
        }
        self.reading = wanted;
        Some(Step::Read(wanted))
    }
}

/// Errors of a send after which what the peer sent before it went may still be read.
fn peer_is_gone(errno: Errno) -> bool {
    matches!(errno.raw(), libc::EPIPE | libc::ECONNRESET)
}

#[cfg(test)]
mod tests;
