//! One connection's side of the exchange, without any I/O: what was asked, and whether this answers it.

use std::time::{Duration, Instant};

use crate::message::{Finding, diagnose};

/// What a chunk of received bytes amounts to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The reply goes on.
    Partial,
    /// The reply is whole after this many bytes of the chunk, and right.
    Complete { used: usize },
    /// Something differs; more bytes will tell what.
    Suspect,
    /// Something differs, and this is it.
    Wrong(Finding),
}

/// What one connection waits for.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    /// The sequence of the request on the way, or of the next one.
    pub(crate) sequence: u64,
    /// When the request on the way was sent; None while nothing is asked.
    pub(crate) sent_at: Option<Instant>,
    /// When it was meant to be sent, in an open loop.
    pub(crate) intended: Option<Instant>,
    /// Whether a reply came within the window.
    pub(crate) served: bool,
    connecting: Option<Instant>,
    received: usize,
    suspect: Vec<u8>,
}

impl Connection {
    pub(crate) fn connecting_since(&mut self, now: Instant) {
        self.connecting = Some(now);
    }

    pub(crate) fn connected(&mut self) {
        self.connecting = None;
    }

    /// Whether the connection or the reply on the way has taken longer than this.
    pub(crate) fn is_late(&self, now: Instant, timeout: Duration) -> bool {
        let since = self.connecting.or(self.sent_at);
        since.is_some_and(|since| now.saturating_duration_since(since) > timeout)
    }

    /// Notes that a request was sent.
    pub(crate) fn ask(&mut self, now: Instant, intended: Option<Instant>) {
        self.sent_at = Some(now);
        self.intended = intended;
        self.received = 0;
    }

    /// How many bytes of the reply are there.
    pub(crate) fn received(&self) -> usize {
        self.received + self.suspect.len()
    }

    /// Compares a chunk with the request that `expected` holds, in its first `compared` bytes.
    pub(crate) fn receive(&mut self, chunk: &[u8], expected: &[u8], compared: usize) -> Progress {
        if self.sent_at.is_none() {
            return Progress::Wrong(Finding::Unsolicited { bytes: chunk.len() });
        }
        if !self.suspect.is_empty() {
            return self.suspect(chunk, expected);
        }
        let end = (self.received + chunk.len()).min(expected.len());
        let checked = end.min(compared).max(self.received);
        let wanted = &expected[self.received..checked];
        if chunk[..wanted.len()] != *wanted {
            self.suspect.extend_from_slice(&expected[..self.received]);
            self.received = 0;
            return self.suspect(chunk, expected);
        }
        let used = end - self.received;
        self.received = end;
        if end < expected.len() { Progress::Partial } else { Progress::Complete { used } }
    }

    /// Notes that the reply is whole: the next request has the next sequence.
    pub(crate) fn answered(&mut self) -> Option<Instant> {
        self.sequence += 1;
        self.received = 0;
        self.sent_at.take()
    }

    /// What is known of a reply that differs and will not go on.
    pub(crate) fn verdict(&self, expected: &[u8]) -> Option<Finding> {
        (!self.suspect.is_empty()).then(|| diagnose(expected, &self.suspect))
    }

    // A whole message tells a foreign reply from a corrupted one, so wait for as much.
    fn suspect(&mut self, chunk: &[u8], expected: &[u8]) -> Progress {
        self.suspect.extend_from_slice(chunk);
        if self.suspect.len() < expected.len() {
            return Progress::Suspect;
        }
        Progress::Wrong(diagnose(expected, &self.suspect))
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
        let mut connection = Connection { sequence, ..Connection::default() };
        connection.ask(Instant::now(), None);
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
                last = connection.receive(chunk, &expected, SIZE);
            }
            assert!(matches!(last, Progress::Complete { .. }), "{chunk_bytes}: {last:?}");
        }
    }

    #[test]
    fn what_follows_a_reply_in_the_same_chunk_is_left() {
        let mut chunk = message(5, 0);
        let expected = chunk.clone();
        chunk.extend_from_slice(b"surplus");
        assert_eq!(asking(0).receive(&chunk, &expected, SIZE), Progress::Complete { used: SIZE });
    }

    #[test]
    fn a_foreign_reply_is_named_in_any_chunks() {
        let (expected, foreign) = (message(5, 3), message(6, 2));
        for chunk_bytes in 1..=SIZE {
            let mut connection = asking(3);
            let last =
                foreign.chunks(chunk_bytes).map(|chunk| connection.receive(chunk, &expected, SIZE)).last();
            assert_eq!(last, Some(Progress::Wrong(Finding::Foreign { connection: 6, sequence: 2 })));
        }
    }

    #[test]
    fn the_mode_says_how_much_is_compared() {
        let expected = message(5, 0);
        let mut flipped = expected.clone();
        flipped[40] ^= 0xff;
        assert!(matches!(asking(0).receive(&flipped, &expected, SIZE), Progress::Wrong(_)));
        assert!(matches!(asking(0).receive(&flipped, &expected, 24), Progress::Complete { .. }));
        assert!(matches!(asking(0).receive(&[0; SIZE], &expected, 0), Progress::Complete { .. }));
    }

    #[test]
    fn bytes_that_nobody_asked_for_are_wrong() {
        let expected = message(5, 0);
        let progress = Connection::default().receive(b"hello", &expected, SIZE);
        assert_eq!(progress, Progress::Wrong(Finding::Unsolicited { bytes: 5 }));
    }

    #[test]
    fn a_reply_cut_short_is_judged_by_what_there_is() {
        let expected = message(5, 0);
        let mut connection = asking(0);
        assert_eq!(connection.receive(b"HTTP/1.1 400", &expected, SIZE), Progress::Suspect);
        assert!(matches!(connection.verdict(&expected), Some(Finding::Corrupted { offset: 0, .. })));
        assert_eq!(connection.received(), 12);
    }
}
