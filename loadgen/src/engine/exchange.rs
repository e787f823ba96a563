//! What is said on connections: requests, the replies that must answer them, and when to ask again.

use std::{ops::Range, time::Instant};

use nix::errno::Errno;

use super::{
    Close, Dialogue, Engine, Load, Phase,
    buffers::Lease,
    connection::{Asked, Connection, Progress, Stage},
    wire::Wire,
};
use crate::{http, message, message::Finding};

/// What lies beyond goes out with the next send: the kernel takes less than 2 GiB at once.
const SEND_BYTES: usize = 256 << 20;

impl<W: Wire> Engine<'_, W> {
    /// A connection has room to ask: it asks again, at once or after a pause, or in an open loop is free for the
    /// next arrival.
    pub(super) fn go_on(&mut self, slot: usize) {
        let asks = matches!(self.phase, Phase::Warmup | Phase::Window) && self.load.asks(slot);
        // Once it has asked, it is idle.
        let silent = self.load.idle.is_some() && self.connections[slot].sequence > 0;
        // One whose send is not over yet comes by here once more.
        if !asks || silent || self.wire.outgoing_mut(slot).is_none() {
            return;
        }
        match &mut self.open {
            Some(open) => open.free(slot),
            None if self.load.think.is_zero() => self.ask_again(slot),
            None => self.thinking.push_back((Instant::now() + self.load.think, slot)),
        }
    }

    /// The pauses that are over.
    pub(super) fn end_pauses(&mut self) {
        while self.thinking.front().is_some_and(|(over, _)| *over <= Instant::now()) {
            let Some((_, slot)) = self.thinking.pop_front() else { return };
            self.ask_again(slot);
        }
    }

    fn ask_again(&mut self, slot: usize) {
        match self.connections[slot].stage {
            Stage::Open => self.ask(slot, None, Instant::now()),
            Stage::Absent if self.load.churn.is_some() => self.begin(slot, None),
            // It asks once it is there.
            _ => {}
        }
    }

    /// Sends what has arrived by the clock.
    pub(super) fn send_arrived(&mut self) {
        if !matches!(self.phase, Phase::Warmup | Phase::Window) {
            return;
        }
        while let Some((slot, intended)) = self.open.as_mut().and_then(|open| open.next(Instant::now())) {
            if self.load.churn.is_some() {
                self.begin(slot, Some(intended));
            } else {
                self.ask(slot, Some(intended), Instant::now());
            }
        }
    }

    /// Sends as many requests as there is room for, unless the last ones are still being sent.
    pub(super) fn ask(&mut self, slot: usize, intended: Option<Instant>, sent_at: Instant) {
        let (load, connection) = (self.load, &mut self.connections[slot]);
        let Some(memory) = self.wire.outgoing_mut(slot) else { return };
        let mut whole: Option<Range<usize>> = None;
        let before = connection.asked.len();
        let fits = |whole: &Option<Range<usize>>| whole.as_ref().is_none_or(|whole| whole.len() < SEND_BYTES);
        while connection.asked.len() < load.pipeline && fits(&whole) {
            let part = compose(load, slot, connection, memory, whole.as_ref().map_or(0, |whole| whole.end));
            // What lies elsewhere goes out with the next send.
            let Some(part) = part.filter(|part| whole.as_ref().is_none_or(|whole| whole.end == part.start))
            else {
                break;
            };
            whole = Some(whole.map_or(part.start, |whole| whole.start)..part.end);
            connection.ask(Asked { part, sent_at, intended, awaited: load.audience() });
        }
        let Some(whole) = whole else { return };
        if load.churn.is_none() {
            self.under_way += connection.asked.len() - before;
        }
        self.counted.bytes_sent_total += whole.len() as u64;
        self.wire.send(slot, whole);
    }

    pub(super) fn sent(&mut self, slot: usize) {
        if matches!(self.connections[slot].stage, Stage::Served | Stage::Ended) {
            self.part(slot);
        } else if self.connections[slot].asked.len() < self.load.pipeline && self.load.churn.is_none() {
            self.go_on(slot);
        }
    }

    pub(super) fn send_failed(&mut self, slot: usize, errno: Errno) {
        if !self.load.may_be_cut_off() || !matches!(errno, Errno::EPIPE | Errno::ECONNRESET) {
            self.broken("send", slot, errno);
        } else if self.is_told_to_part(slot) {
            self.part(slot);
        }
        // Else what was received before tells whether the server had said that it closes.
    }

    pub(super) fn received(&mut self, slot: usize, result: Result<Option<Lease>, Errno>, more: bool) {
        match result {
            Ok(Some(lease)) => {
                self.take(slot, &lease);
                self.wire.give_back(lease);
                if !more && self.awaits_more(slot) {
                    self.wire.receive(slot);
                }
                self.go_on_after_replies(slot);
            }
            Err(Errno::ENOBUFS) => self.parked.push_back(slot),
            Err(Errno::EINTR | Errno::EAGAIN) => self.wire.receive(slot),
            Ok(None) => self.ended(slot),
            Err(Errno::ECONNRESET) if self.is_told_to_part(slot) => self.ended(slot),
            Err(errno) => self.receive_failed(slot, errno),
        }
    }

    /// Whether anything more may come, if only the end.
    fn awaits_more(&self, slot: usize) -> bool {
        self.connections[slot].stage != Stage::Served || self.load.churn != Some(Close::Rst)
    }

    fn go_on_after_replies(&mut self, slot: usize) {
        let asker = self.load.sender_to(slot);
        if self.connections[slot].stage == Stage::Served {
            self.part(slot);
        } else if self.load.churn.is_none() && self.connections[asker].asked.len() < self.load.pipeline {
            self.go_on(asker);
        }
    }

    fn take(&mut self, slot: usize, lease: &Lease) {
        let now = Instant::now();
        match self.load.dialogue {
            Dialogue::Http(_) => self.take_responses(slot, lease, now),
            Dialogue::Push if self.phase == Phase::Ramp => {
                let bytes = self.wire.received(lease).to_vec();
                self.hear(slot, &bytes);
            }
            Dialogue::Echo | Dialogue::Push => self.take_messages(slot, lease, now),
        }
        if self.load.churn.is_some() && self.connections[slot].asked.is_empty() {
            self.connections[slot].enter(Stage::Served, now);
        }
    }

    fn take_messages(&mut self, slot: usize, lease: &Lease, now: Instant) {
        let sender = self.load.sender_to(slot);
        let mut at = 0;
        while at < lease.length() {
            let chunk = &self.wire.received(lease)[at..];
            let due = self.connections[slot].due;
            let Some(asked) = self.connections[sender].request(due) else {
                let finding = message::diagnose(self.load.number(sender), due, &[], chunk);
                return self.failures.wrong(slot, due, &finding);
            };
            let expected = &self.wire.outgoing(sender)[asked.part.clone()];
            let compared = self.load.verify.compared(expected.len());
            let bytes = expected.len();
            match self.connections[slot].receive(self.load.number(sender), chunk, expected, compared) {
                Progress::Complete { used } => {
                    at += used;
                    self.answered(slot, sender, due, bytes, now);
                }
                Progress::Wrong(finding) => return self.failures.wrong(slot, due, &finding),
                Progress::Partial | Progress::Suspect => return,
            }
        }
    }

    fn take_responses(&mut self, slot: usize, lease: &Lease, now: Instant) {
        let mut at = 0;
        if self.phase == Phase::Window {
            self.counted.bytes += lease.length() as u64;
        }
        while at < lease.length() {
            let chunk = &self.wire.received(lease)[at..];
            let connection = &mut self.connections[slot];
            let due = connection.due;
            if connection.asked.is_empty() {
                let finding = Finding::Unsolicited { bytes: chunk.len() };
                return self.failures.wrong(slot, due, &finding);
            }
            match connection.http.receive(chunk, &mut self.responses, self.load.verify) {
                http::Progress::Partial => return,
                http::Progress::Wrong(finding) => return self.failures.wrong_response(slot, due, &finding),
                http::Progress::Complete { used, close } => {
                    at += used;
                    connection.due += 1;
                    self.answered(slot, slot, due, 0, now);
                    if close {
                        self.server_closes(slot, now);
                    }
                }
            }
        }
    }

    /// The response was the last one on its connection: what else was asked there is asked again on the next.
    fn server_closes(&mut self, slot: usize, now: Instant) {
        let unanswered = self.connections[slot].forget_all();
        if self.load.churn.is_none() {
            self.under_way -= unanswered;
        }
        self.connections[slot].enter(Stage::Served, now);
    }

    fn answered(&mut self, slot: usize, asker: usize, sequence: u64, bytes: usize, now: Instant) {
        let Some((sent_at, intended)) = self.connections[asker].answer(sequence) else { return };
        let over = self.connections[asker].forget_answered();
        if self.load.churn.is_none() {
            self.under_way -= over;
        }
        self.counted.requests_total += 1;
        if self.phase == Phase::Window {
            self.connections[slot].served = true;
            self.counted.requests += 1;
            self.counted.bytes += bytes as u64;
            self.counted.count_in_slice(now.saturating_duration_since(self.phase_began));
        }
        // What was under way when the window closed belongs to it: these are the slowest of all.
        let latency = match &mut self.open {
            Some(open) => open.answered(intended.unwrap_or(sent_at), sent_at, now),
            None => matches!(self.phase, Phase::Window | Phase::Ping | Phase::Drain).then(|| now - sent_at),
        };
        if let Some(latency) = latency {
            self.counted.latency.saturating_record(latency.as_nanos() as u64);
        }
    }
}

/// Writes the next request of this connection, if there is room for it, and says where; `behind` is where the last
/// one of the same send ends.
fn compose(
    load: &Load,
    slot: usize,
    connection: &Connection,
    memory: &mut [u8],
    behind: usize,
) -> Option<Range<usize>> {
    if let Dialogue::Http(request) = &load.dialogue {
        // Requests are all alike, and are not needed once they are sent.
        let part = behind..behind + request.bytes().len();
        memory.get_mut(part.clone())?.copy_from_slice(request.bytes());
        return Some(part);
    }
    let (owner, sequence) = (load.number(slot), connection.sequence);
    let bytes = load.message_bytes(owner, sequence);
    let part = connection.room_for(bytes, memory.len())?;
    message::encode(&mut memory[part.clone()], load.seed, owner, sequence);
    Some(part)
}
