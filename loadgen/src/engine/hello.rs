//! Before anything is pushed: a client whose connect has returned is not known to the server's program yet, so
//! the first connection's messages come to all only once each of them has been heard of there.
//!
//! Small messages are sent until one of them has come to all. None of them is counted.

use std::time::{Duration, Instant};

use super::{Dialogue, Engine, wire::Wire};
use crate::message::{self, HEADER_BYTES};

/// How long a greeting is given before the next one.
const PATIENCE: Duration = Duration::from_millis(50);

/// The greeting that was sent last.
#[derive(Debug)]
pub(super) struct Hello {
    /// When the first one could be sent.
    began: Option<Instant>,
    sent_at: Option<Instant>,
    /// Connections that it has not come to.
    unheard: usize,
}

impl Hello {
    pub(super) fn new() -> Self {
        Self { began: None, sent_at: None, unheard: 0 }
    }
}

impl<W: Wire> Engine<'_, W> {
    /// Whether all that are to hear what is pushed are known to do so.
    pub(super) fn is_introduced(&self) -> bool {
        let heard = self.hello.sent_at.is_some() && self.hello.unheard == 0;
        !matches!(self.load.dialogue, Dialogue::Push) || heard
    }

    /// Sends a greeting, unless the last one may still come.
    pub(super) fn greet(&mut self, now: Instant) {
        let ready = self.connected == self.load.connections && !self.is_introduced();
        // One for many connections takes long.
        let patience = PATIENCE + Duration::from_micros(20) * self.load.connections as u32;
        let recent = self.hello.sent_at.is_some_and(|sent_at| now - sent_at < patience);
        if !ready || recent {
            return;
        }
        let began = *self.hello.began.get_or_insert(now);
        if now - began > self.load.timeout {
            let slot = self.connections.iter().position(|other| other.due < self.connections[0].sequence);
            self.failures.unheard(slot.unwrap_or(0), self.load.timeout);
        }
        let Some(memory) = self.wire.outgoing_mut(0) else { return };
        let publisher = &mut self.connections[0];
        message::encode(&mut memory[..HEADER_BYTES], self.load.seed, 0, publisher.sequence);
        publisher.sequence += 1;
        self.wire.send(0, 0..HEADER_BYTES);
        self.counted.bytes_sent_total += HEADER_BYTES as u64;
        self.hello.sent_at = Some(now);
        self.hello.unheard = self.load.connections;
    }

    /// Takes greetings, the first of which may be any.
    pub(super) fn hear(&mut self, slot: usize, bytes: &[u8]) {
        let sent = self.connections[0].sequence;
        let connection = &mut self.connections[slot];
        connection.keep(bytes);
        while let Some(greeting) = connection.kept(HEADER_BYTES) {
            let intact = message::intact(&greeting).filter(|(sender, _)| *sender == 0);
            let Some((_, sequence)) = intact.filter(|(_, sequence)| *sequence >= connection.due) else {
                let finding = message::diagnose(0, connection.due, &[], &greeting);
                return self.failures.wrong(slot, connection.due, &finding);
            };
            connection.due = sequence + 1;
            if connection.due == sent {
                self.hello.unheard -= 1;
            }
        }
    }
}
