//! One connection's side of the exchange, without any I/O: what was asked, and whether this answers it.

use std::{
    collections::VecDeque,
    ops::Range,
    time::{Duration, Instant},
};

use super::room;
use crate::{
    http,
    message::{Finding, diagnose},
};

/// What a chunk of received bytes amounts to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The reply goes on.
    Partial,
    /// The reply is whole after this many bytes of the chunk, and right.
    Complete { used: usize },
    /// Something differs; more bytes will tell what.
    Suspect,
    /// Something differs, and this is it.
    Wrong(Finding),
}

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    #[default]
    Absent,
    Connecting,
    Open,
    /// All is said and answered: it will be closed.
    Served,
    /// The same, and the peer has ended it before the own send was known to be over.
    Ended,
    /// The peer's end is awaited.
    Closing,
    /// It ended before that, which has been told. A reset may still be heard of behind the FIN.
    Lost,
}

/// A request under way.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// Where it lies in the outgoing memory.
    pub(super) part: Range<usize>,
    pub(super) sent_at: Instant,
    /// When it was meant to be sent, in an open loop.
    pub(super) intended: Option<Instant>,
    /// Replies that are still to come: one, or one of each connection.
    pub(super) awaited: usize,
}

/// What one connection has asked, and what it waits for.
#[derive(Debug, Default)]
pub(super) struct Connection {
    pub(super) stage: Stage,
    /// When it began to connect, or was served, or began to close.
    since: Option<Instant>,
    /// When the request that it is made for was meant to be sent.
    pub(super) intended: Option<Instant>,
    /// The sequence of the next request.
    pub(super) sequence: u64,
    /// Requests under way, the oldest first.
    pub(super) asked: VecDeque<Asked>,
    /// The sequence of the next reply.
    pub(super) due: u64,
    /// Whether a reply came within the window.
    pub(super) served: bool,
    received: usize,
    suspect: Vec<u8>,
    pub(super) http: http::Reader,
}

impl Connection {
    /// Notes a step of its life that must not take long.
    pub(super) fn enter(&mut self, stage: Stage, now: Instant) {
        self.stage = stage;
        self.since = Some(now);
    }

    /// Nothing is said yet.
    pub(super) fn connected(&mut self) {
        (self.stage, self.since, self.received) = (Stage::Open, None, 0);
        self.http = http::Reader::default();
    }

    /// Nothing is left of it.
    pub(super) fn gone(&mut self) {
        (self.stage, self.since) = (Stage::Absent, None);
    }

    /// When it began to connect, or was served, or began to close.
    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Whether what it waits for has taken longer than this.
    pub(super) fn is_late(&self, now: Instant, timeout: Duration) -> bool {
        let since = self.since.or(self.asked.front().map(|asked| asked.sent_at));
        since.is_some_and(|since| now.saturating_duration_since(since) > timeout)
    }

    /// The place for a request of so many bytes; None while none is free.
    pub(super) fn room_for(&self, bytes: usize, memory: usize) -> Option<Range<usize>> {
        let kept = self.asked.front().zip(self.asked.back());
        room::place(bytes, kept.map(|(oldest, newest)| (&oldest.part, &newest.part)), memory)
    }

    /// Notes that a request is sent.
    pub(super) fn ask(&mut self, asked: Asked) {
        self.asked.push_back(asked);
        self.sequence += 1;
    }

    /// The request of this sequence, if it is under way.
    pub(super) fn request(&self, sequence: u64) -> Option<&Asked> {
        let oldest = self.sequence - self.asked.len() as u64;
        self.asked.get(sequence.checked_sub(oldest)? as usize)
    }

    /// Notes a reply to the request of this sequence; answers its times.
    pub(super) fn answer(&mut self, sequence: u64) -> Option<(Instant, Option<Instant>)> {
        let oldest = self.sequence - self.asked.len() as u64;
        let asked = self.asked.get_mut(sequence.checked_sub(oldest)? as usize)?;
        asked.awaited -= 1;
        Some((asked.sent_at, asked.intended))
    }

    /// Forgets the requests that all have answered; says how many.
    pub(super) fn forget_answered(&mut self) -> usize {
        let answered = self.asked.iter().take_while(|asked| asked.awaited == 0).count();
        self.asked.drain(..answered);
        answered
    }

    /// Forgets all requests: whoever was asked will not answer. Says how many there were.
    pub(super) fn forget_all(&mut self) -> usize {
        self.due = self.sequence;
        self.asked.drain(..).count()
    }

    /// Keeps what has come for later.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        self.suspect.extend_from_slice(bytes);
    }

    /// So many bytes of what was kept, once they are there.
    pub(super) fn kept(&mut self, bytes: usize) -> Option<Vec<u8>> {
        (self.suspect.len() >= bytes).then(|| self.suspect.drain(..bytes).collect())
    }

    /// How many bytes of the reply are there.
    pub(super) fn received(&self) -> usize {
        self.received + self.suspect.len()
    }

    /// Compares a chunk with what is expected, in its first `compared` bytes. `sender` asked for it.
    pub(super) fn receive(
        &mut self,
        sender: u32,
        chunk: &[u8],
        expected: &[u8],
        compared: usize,
    ) -> Progress {
        if !self.suspect.is_empty() {
            return self.suspect(sender, chunk, expected);
        }
        let end = (self.received + chunk.len()).min(expected.len());
        let checked = end.min(compared).max(self.received);
        let wanted = &expected[self.received..checked];
        if chunk[..wanted.len()] != *wanted {
            self.suspect.extend_from_slice(&expected[..self.received]);
            self.received = 0;
            return self.suspect(sender, chunk, expected);
        }
        let used = end - self.received;
        self.received = end;
        if end < expected.len() {
            return Progress::Partial;
        }
        self.received = 0;
        self.due += 1;
        Progress::Complete { used }
    }

    /// What is known of a reply that differs and will not go on.
    pub(super) fn verdict(&self, sender: u32, expected: &[u8]) -> Option<Finding> {
        (!self.suspect.is_empty()).then(|| diagnose(sender, self.due, expected, &self.suspect))
    }

    // A whole message tells a foreign reply from a corrupted one, so wait for as much.
    fn suspect(&mut self, sender: u32, chunk: &[u8], expected: &[u8]) -> Progress {
        self.suspect.extend_from_slice(chunk);
        if self.suspect.len() < expected.len() {
            return Progress::Suspect;
        }
        Progress::Wrong(diagnose(sender, self.due, expected, &self.suspect))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::encode;

    const SIZE: usize = 64;

    fn message(connection: u32, sequence: u64) -> Vec<u8> {
        let mut bytes = vec![0; SIZE];
        encode(&mut bytes, 1, connection, sequence);
        bytes
    }

    fn asking(sequence: u64) -> Connection {
        let mut connection = Connection { sequence, due: sequence, ..Connection::default() };
        connection.ask(Asked { part: 0..SIZE, sent_at: Instant::now(), intended: None, awaited: 1 });
        connection
    }

    #[test]
    fn a_reply_may_come_in_any_chunks() {
        let expected = message(5, 0);
        for chunk_bytes in 1..=SIZE {
            let mut connection = asking(0);
            let mut last = Progress::Partial;
            for chunk in expected.chunks(chunk_bytes) {
                assert_eq!(last, Progress::Partial);
                last = connection.receive(5, chunk, &expected, SIZE);
            }
            assert!(matches!(last, Progress::Complete { .. }), "{chunk_bytes}: {last:?}");
        }
    }

    #[test]
    fn what_follows_a_reply_in_the_same_chunk_is_left() {
        let mut chunk = message(5, 0);
        let expected = chunk.clone();
        chunk.extend_from_slice(b"surplus");
        assert_eq!(asking(0).receive(5, &chunk, &expected, SIZE), Progress::Complete { used: SIZE });
    }

    #[test]
    fn a_foreign_reply_is_named_in_any_chunks() {
        let (expected, foreign) = (message(5, 3), message(6, 2));
        for chunk_bytes in 1..=SIZE {
            let mut connection = asking(3);
            let last =
                foreign.chunks(chunk_bytes).map(|chunk| connection.receive(5, chunk, &expected, SIZE)).last();
            assert_eq!(last, Some(Progress::Wrong(Finding::Foreign { connection: 6, sequence: 2 })));
        }
    }

    #[test]
    fn the_mode_says_how_much_is_compared() {
        let expected = message(5, 0);
        let mut flipped = expected.clone();
        flipped[40] ^= 0xff;
        assert!(matches!(asking(0).receive(5, &flipped, &expected, SIZE), Progress::Wrong(_)));
        assert!(matches!(asking(0).receive(5, &flipped, &expected, 24), Progress::Complete { .. }));
        assert!(matches!(asking(0).receive(5, &[0; SIZE], &expected, 0), Progress::Complete { .. }));
    }

    #[test]
    fn a_reply_cut_short_is_judged_by_what_there_is() {
        let expected = message(5, 0);
        let mut connection = asking(0);
        assert_eq!(connection.receive(5, b"HTTP/1.1 400", &expected, SIZE), Progress::Suspect);
        assert!(matches!(connection.verdict(5, &expected), Some(Finding::Corrupted { offset: 0, .. })));
        assert_eq!(connection.received(), 12);
    }

    #[test]
    fn requests_are_found_by_their_sequence_until_all_have_answered() {
        let mut connection = asking(7);
        connection.ask(Asked { part: 64..70, sent_at: Instant::now(), intended: None, awaited: 2 });
        assert_eq!(connection.request(8).map(|asked| asked.part.clone()), Some(64..70));
        assert!(connection.request(6).is_none() && connection.request(9).is_none());
        assert!(connection.answer(8).is_some());
        assert_eq!(connection.forget_answered(), 0, "the older one is not answered");
        assert!(connection.answer(7).is_some());
        assert_eq!(connection.forget_answered(), 1);
        assert!(connection.answer(8).is_some());
        assert_eq!((connection.forget_answered(), connection.request(8).is_none()), (1, true));
    }
}
