//! What stands between a connection's protocol and its peer: filters, which see and change what passes, and paces, which say
//! when it may.
//!
//! The machine keeps them, gives the filters out with [`Step::Filter`] whenever they have something to do, and takes them back, as a
//! batch moves over the seam: they are the program's code, and run where no lock is held.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Connection, End, Phase, Step, WriteHalf,
    pacing::{Grant, Pace, Way},
};
use crate::{
    limits::Limits,
    output::{Batch, Pool},
    reason::{BoxError, Reason},
    timer::deadline_after,
};

/// Sees and may change all that passes on one connection, between the socket and the protocol, which knows nothing of it.
///
/// Its methods run one at a time and never inside a callback. An error, and a panic, ends the connection. A filter that is asked for a
/// `reply` sends it to the peer before anything else that waits; filters nearer to the socket see it, those nearer to the protocol do not. After
/// FIN was sent it is dropped.
///
/// Filters know nothing of descriptors: where there are some, [`send_file_descriptor`](crate::Transport::send_file_descriptor) is an error, and a descriptor
/// that comes is told at once, before bytes that wait to pass.
pub trait Filter: Send + 'static {
    /// The connection is made.
    fn made(&mut self, reply: &mut Vec<u8>) {
        let _ = reply;
    }

    /// Bytes came from the peer. What is left in `data` goes on towards the protocol.
    ///
    /// # Errors
    /// Ends the connection with `Reason::Callback`.
    fn received(&mut self, data: &mut Vec<u8>, reply: &mut Vec<u8>) -> Result<(), BoxError> {
        let _ = (data, reply);
        Ok(())
    }

    /// Bytes go to the peer. What is left in `data` goes on towards the socket.
    ///
    /// # Errors
    /// Ends the connection with `Reason::Callback`.
    fn sending(&mut self, data: &mut Vec<u8>) -> Result<(), BoxError> {
        let _ = data;
        Ok(())
    }

    /// All that was written has been sent, and FIN follows the `reply`, the filter's last bytes. One that needs to hear of the peer first answers
    /// `false` and is asked again when something was received; the close waits for it, `close_timeout` at most. Filters nearer to the socket are
    /// asked after it.
    fn closing(&mut self, reply: &mut Vec<u8>) -> bool {
        let _ = reply;
        true
    }

    /// The peer's FIN came. What is put into `data` goes on towards the protocol, before the end does.
    ///
    /// # Errors
    /// Ends the connection with `Reason::Callback`.
    fn read_ended(&mut self, data: &mut Vec<u8>) -> Result<(), BoxError> {
        let _ = data;
        Ok(())
    }

    /// The connection is lost. Comes once, after the protocol was told, even if this filter or another one has panicked.
    fn lost(&mut self, reason: &Reason) {
        let _ = reason;
    }
}

/// All that stands between one connection's protocol and its peer.
#[derive(Default)]
pub struct Equipment {
    /// Ends the connection when nothing has passed for so long.
    pub idle_timeout: Option<Duration>,
    /// All of these have to agree; each is asked when those before it have, so what is shared with others comes last.
    pub paces: Vec<Arc<dyn Pace>>,
    /// The nearest to the protocol comes first.
    pub filters: Vec<Box<dyn Filter>>,
}

impl fmt::Debug for Equipment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (paces, filters) = (self.paces.len(), self.filters.len());
        f.debug_struct("Equipment").field("paces", &paces).field("filters", &filters).finish_non_exhaustive()
    }
}

/// A connection's filters with what they have to do, on their way to somebody who lets them do it.
pub struct Filters {
    chain: Vec<Box<dyn Filter>>,
    work: Work,
    /// What they say by themselves, as the peer is to get it.
    reply: Vec<u8>,
    /// How many of them have had their last word.
    done: usize,
    failed: Option<BoxError>,
}

/// Lets a filter say something of its own.
type Speak<'a> = dyn FnMut(&mut dyn Filter, &mut Vec<u8>) -> Result<(), BoxError> + 'a;

/// What filters have to do; afterwards, what came of it.
#[derive(Debug)]
enum Work {
    None,
    Made,
    In(Vec<u8>),
    /// With its length before.
    Out(Box<Batch>, usize),
    Closing,
    ReadEnded(Vec<u8>),
}

impl Filters {
    /// Does it. This calls user code.
    pub fn run(&mut self) {
        if let Err(error) = self.work() {
            self.failed = Some(error);
        }
    }

    /// Tells all of them, each whatever becomes of the others, that the connection is lost.
    pub fn lost(&mut self, reason: &Reason, call: &mut dyn FnMut(&mut dyn FnMut())) {
        self.chain.iter_mut().for_each(|filter| call(&mut || filter.lost(reason)));
    }

    fn work(&mut self) -> Result<(), BoxError> {
        let Self { chain, work, reply, done, .. } = self;
        let from_socket = (0..chain.len()).rev();
        match work {
            Work::None => {}
            Work::Made => {
                for place in from_socket {
                    Self::reply(chain, place, reply, &mut |filter, own| {
                        filter.made(own);
                        Ok(())
                    })?;
                }
            }
            Work::In(data) => {
                for place in from_socket {
                    Self::reply(chain, place, reply, &mut |filter, own| filter.received(data, own))?;
                }
            }
            Work::ReadEnded(data) => {
                for place in from_socket {
                    if !data.is_empty() {
                        Self::reply(chain, place, reply, &mut |filter, own| filter.received(data, own))?;
                    }
                    chain[place].read_ended(data)?;
                }
            }
            Work::Out(batch, _) => {
                let bytes = batch.as_mut_vec();
                for filter in chain {
                    filter.sending(bytes)?;
                }
            }
            // The nearest to the protocol speaks first, through all others.
            Work::Closing => {
                let mut said = true;
                while said && *done < chain.len() {
                    Self::reply(chain, *done, reply, &mut |filter, own| {
                        said = filter.closing(own);
                        Ok(())
                    })?;
                    *done += usize::from(said);
                }
            }
        }
        Ok(())
    }

    /// Lets one filter speak; those nearer to the socket see what it says.
    fn reply(
        chain: &mut [Box<dyn Filter>],
        place: usize,
        reply: &mut Vec<u8>,
        speak: &mut Speak<'_>,
    ) -> Result<(), BoxError> {
        let mut own = Vec::new();
        speak(&mut *chain[place], &mut own)?;
        if !own.is_empty() {
            for nearer in &mut chain[place + 1..] {
                nearer.sending(&mut own)?;
            }
            reply.append(&mut own);
        }
        Ok(())
    }
}

impl fmt::Debug for Filters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filters").field("filters", &self.chain.len()).finish_non_exhaustive()
    }
}

/// The place of all that in the state machine.
pub(super) struct Filtering {
    paces: Vec<Arc<dyn Pace>>,
    /// None while they have something to do, and where there are none.
    filters: Option<Box<Filters>>,
    has_filters: bool,
    /// What arrived and has not passed.
    arrived: Vec<u8>,
    /// What the filters have to say by themselves.
    own: Vec<u8>,
    /// What has passed and is to be sent next. The output counts it as in flight.
    ready: Option<Box<Batch>>,
    /// What may pass next, and when.
    granted_in: Option<Grant>,
    granted_out: Option<Grant>,
    made_told: bool,
    end_told: bool,
    last_words: LastWords,
}

/// What filters have to say before FIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LastWords {
    /// They are to be asked, once all else is sent.
    Ask,
    /// They need to hear of the peer first.
    Wait,
    Said,
}

impl fmt::Debug for Filtering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filtering").field("arrived", &self.arrived.len()).finish_non_exhaustive()
    }
}

impl Filtering {
    /// How much of `bytes` may pass now. If nothing may yet, it is noted when.
    fn grant(&mut self, way: Way, bytes: usize, now: Instant) -> Option<usize> {
        let Self { paces, granted_in, granted_out, .. } = self;
        if paces.is_empty() {
            return Some(bytes);
        }
        let granted = if way == Way::In { granted_in } else { granted_out };
        let grant = granted.get_or_insert_with(|| Grant::new(paces, way, bytes, now));
        let due = grant.is_due(paces, way, now);
        granted.take_if(|_| due).map(|grant| grant.pass().min(bytes))
    }

    /// What is to be done by the filters.
    fn give(&mut self, work: Work) -> Option<Step> {
        let mut filters = self.filters.take()?;
        filters.work = work;
        Some(Step::Filter(filters))
    }

    fn deadline(&self, receives: bool, sends: bool) -> Option<Instant> {
        let granted_in = self.granted_in.as_ref().filter(|_| receives && !self.arrived.is_empty());
        let granted_out = self.granted_out.as_ref().filter(|_| sends && self.ready.is_none());
        granted_in.into_iter().chain(granted_out).map(Grant::ask_at).min()
    }
}

/// For the driver.
impl Connection {
    /// Puts these between the protocol and the peer, before anything passes.
    pub fn equip(&mut self, now: Instant, equipment: Equipment) {
        let Equipment { idle_timeout, paces, filters: chain } = equipment;
        if let Some(limit) = idle_timeout {
            self.set_idle_timeout(now, limit);
        }
        if paces.is_empty() && chain.is_empty() {
            return;
        }
        let has_filters = !chain.is_empty();
        let filters = Filters { chain, work: Work::None, reply: Vec::new(), done: 0, failed: None };
        self.rare().filtering = Some(Box::new(Filtering {
            paces,
            filters: has_filters.then(|| Box::new(filters)),
            has_filters,
            arrived: Vec::new(),
            own: Vec::new(),
            ready: None,
            granted_in: None,
            granted_out: None,
            made_told: false,
            end_told: false,
            last_words: if has_filters { LastWords::Ask } else { LastWords::Said },
        }));
    }

    /// Takes filters back that have done what they had to; gives away what is not wanted any more.
    pub fn filtered(&mut self, mut filters: Box<Filters>, pool: &mut Pool, limits: &Limits) {
        let work = std::mem::replace(&mut filters.work, Work::None);
        let (reply, failed) = (std::mem::take(&mut filters.reply), filters.failed.take());
        let all_done = filters.done == filters.chain.len();
        let Some(filtering) = self.filtering() else { return };
        filtering.filters = Some(filters);
        filtering.own.extend(reply);
        if matches!(self.phase, Phase::Ended { .. } | Phase::Gone) {
            // It has ended while they were away, and nothing of it counts any more.
            return;
        }
        let Some(filtering) = self.filtering() else { return };
        match work {
            Work::Closing => filtering.last_words = if all_done { LastWords::Said } else { LastWords::Wait },
            Work::In(_) if filtering.last_words == LastWords::Wait => filtering.last_words = LastWords::Ask,
            _ => {}
        }
        match work {
            Work::In(data) | Work::ReadEnded(data) if !data.is_empty() => self.passed(data),
            Work::Out(batch, before) => {
                self.output.resize(before, batch.len(), pool);
                self.may_leave(batch, pool, limits);
            }
            _ => {}
        }
        if let Some(error) = failed {
            self.finish(Reason::Callback(error), true);
        }
    }

    /// The filters, to be told of the loss and dropped.
    pub fn take_filters(&mut self) -> Option<Box<Filters>> {
        self.rare.as_mut()?.filtering.take()?.filters
    }
}

/// For the other questions.
impl Connection {
    /// Whether filters see what passes.
    pub(crate) fn has_filters(&self) -> bool {
        self.rare.as_ref().and_then(|rare| rare.filtering.as_ref()).is_some_and(|f| f.has_filters)
    }

    pub(super) fn filtering(&mut self) -> Option<&mut Filtering> {
        self.rare.as_mut()?.filtering.as_deref_mut()
    }

    /// Bytes arrived that have to pass first.
    pub(super) fn hold_to_filter(&mut self, data: &[u8]) -> bool {
        if !self.filters_hear() {
            return false;
        }
        let Some(filtering) = self.filtering() else { return false };
        filtering.arrived.extend_from_slice(data);
        true
    }

    /// What is left of a batch has passed already, and is still in flight as far as the output knows.
    pub(super) fn send_the_rest(&mut self, batch: Box<Batch>) {
        if let Some(filtering) = self.filtering() {
            filtering.ready = Some(batch);
        }
    }

    /// Whether something that came from the peer, its FIN maybe, has not passed yet.
    pub(super) fn owes_passing(&self) -> bool {
        let Some(filtering) = self.rare.as_ref().and_then(|rare| rare.filtering.as_ref()) else {
            return false;
        };
        let end_owed = self.end == Some(End::Eof) && filtering.has_filters && !filtering.end_told;
        !filtering.arrived.is_empty() || end_owed
    }

    /// Whether filters have something to send before FIN.
    pub(super) fn owes_last_words(&self) -> bool {
        let Some(filtering) = self.rare.as_ref().and_then(|rare| rare.filtering.as_ref()) else {
            return false;
        };
        match filtering.last_words {
            LastWords::Ask => true,
            // Nothing more will come that they could wait for.
            LastWords::Wait => self.end.is_none() || !filtering.own.is_empty(),
            LastWords::Said => !filtering.own.is_empty(),
        }
    }

    /// Whether what arrives is for filters: for the protocol's sake, or because they cannot let the connection close without.
    fn filters_hear(&self) -> bool {
        let filtering = self.rare.as_ref().and_then(|rare| rare.filtering.as_ref());
        let closing =
            self.phase == Phase::Flushing && filtering.is_some_and(|f| f.last_words != LastWords::Said);
        self.phase == Phase::Open || closing
    }

    /// When something may pass that may not yet.
    pub(super) fn passing_deadline(&self) -> Option<Instant> {
        let open = matches!(self.phase, Phase::Open | Phase::Producing | Phase::Flushing);
        let sends = open && !self.output.in_flight() && self.output.gathered() > 0;
        self.rare.as_ref()?.filtering.as_ref()?.deadline(self.is_delivering(), sends)
    }

    /// Whether bytes that arrived wait to pass: until then no more are received.
    pub(super) fn is_held_up(&self) -> bool {
        let filtering = self.rare.as_ref().and_then(|rare| rare.filtering.as_ref());
        self.phase == Phase::Open && filtering.is_some_and(|filtering| !filtering.arrived.is_empty())
    }

    /// What is to be done with what came from the peer.
    pub(super) fn step_passing_in(&mut self, now: Instant) -> Option<Step> {
        let delivers = self.is_delivering();
        let receives = if self.is_open() { delivers } else { self.filters_hear() };
        let ended = self.end == Some(End::Eof);
        let filtering = self.filtering()?;
        if !delivers {
            // Whoever cannot use a place in the line leaves it to others.
            filtering.granted_in = None;
        }
        if filtering.has_filters && !std::mem::replace(&mut filtering.made_told, true) {
            return filtering.give(Work::Made);
        }
        if !receives {
            return None;
        }
        if filtering.arrived.is_empty() {
            let owed = ended && filtering.has_filters && !std::mem::replace(&mut filtering.end_told, true);
            return if owed { filtering.give(Work::ReadEnded(Vec::new())) } else { None };
        }
        let mut bytes = filtering.arrived.len();
        if delivers {
            bytes = filtering.grant(Way::In, bytes, now)?;
        }
        // While it closes no pace is asked: the protocol gets nothing of it, and nothing stops the peer from sending more than may pass.
        let rest = filtering.arrived.split_off(bytes);
        let data = std::mem::replace(&mut filtering.arrived, rest);
        if filtering.has_filters {
            return filtering.give(Work::In(data));
        }
        self.passed(data);
        self.step_callback()
    }

    /// What is to be sent, if it may pass.
    pub(super) fn step_passing_out(
        &mut self,
        now: Instant,
        limits: &Limits,
        pool: &mut Pool,
        may_send: bool,
    ) -> Option<Step> {
        if let Some(step) = self.send_what_passed(pool, may_send) {
            return Some(step);
        }
        let gathered = self.output.gathered();
        let flushing = self.phase == Phase::Flushing;
        let filtering = self.rare.as_mut()?.filtering.as_deref_mut()?;
        if self.output.in_flight() {
            return None;
        }
        if gathered == 0 {
            filtering.granted_out = None;
            return self.step_last_words();
        }
        // Asked for once, since it looks at each buffer that waits.
        let bytes = if filtering.granted_out.is_some() { gathered } else { self.output.gathered_together() };
        let Some(bytes) = filtering.grant(Way::Out, bytes, now) else {
            let due = filtering.granted_out.as_ref().map_or(now, Grant::due);
            if flushing {
                // That it has to wait is not the peer's fault.
                self.rare().deadline = Some(deadline_after(due, limits.close_timeout));
            }
            return None;
        };
        let batch = self.output.next_piece(bytes, pool)?;
        let filtering = self.filtering()?;
        if filtering.has_filters {
            let bytes = batch.len();
            return filtering.give(Work::Out(batch, bytes));
        }
        filtering.ready = Some(batch);
        self.send_what_passed(pool, may_send)
    }

    /// What has passed, or the filters have to say, goes before anything else.
    fn send_what_passed(&mut self, pool: &mut Pool, may_send: bool) -> Option<Step> {
        let silent = matches!(self.write_half, WriteHalf::Shut | WriteHalf::Broken(_));
        let filtering = self.rare.as_mut()?.filtering.as_deref_mut()?;
        if silent {
            // Nobody would hear what filters still say.
            filtering.own.clear();
        }
        if filtering.ready.is_none() && !filtering.own.is_empty() && !self.output.in_flight() {
            let mut batch = pool.take();
            batch.push(&std::mem::take(&mut filtering.own));
            self.output.launch(batch.len(), pool);
            filtering.ready = Some(batch);
        }
        filtering.ready.as_ref()?;
        if !may_send {
            // Whoever waits for room must hear the peer meanwhile.
            return self.step_input().or(Some(Step::Later));
        }
        self.filtering()?.ready.take().map(Step::Send)
    }

    /// All is sent: filters have the last word before FIN.
    fn step_last_words(&mut self) -> Option<Step> {
        let ending = self.is_ending();
        let filtering = self.filtering()?;
        let ask = ending && filtering.last_words == LastWords::Ask;
        if ask { filtering.give(Work::Closing) } else { None }
    }

    /// Bytes have passed: they are for the protocol, behind what it has not taken yet.
    fn passed(&mut self, data: Vec<u8>) {
        if self.phase != Phase::Open {
            return;
        }
        let rare = self.rare();
        rare.waits_for_more = false;
        if rare.held.is_empty() {
            rare.held = data;
        } else {
            rare.held.extend_from_slice(&data);
        }
    }

    /// A batch has passed the filters, which may have made it longer or shorter, or kept it for later.
    fn may_leave(&mut self, batch: Box<Batch>, pool: &mut Pool, limits: &Limits) {
        if batch.is_empty() {
            self.output.came_back(batch, 0, pool, limits.output_low);
        } else if let Some(filtering) = self.filtering() {
            filtering.ready = Some(batch);
        }
    }
}
