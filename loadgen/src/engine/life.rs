//! A connection's beginning and end.

use std::time::Instant;

use nix::errno::Errno;

use super::{
    CONNECTING_MAX, Close, Dialogue, Engine, Load, Phase,
    connection::{Connection, Stage},
    failure::State,
    wire::{Farewell, Wire},
};
use crate::{error::Error, message::Finding};

impl<W: Wire> Engine<'_, W> {
    /// Lets as many connect as should have by now.
    pub(super) fn ramp_up(&mut self) {
        if self.phase != Phase::Ramp || self.load.churn.is_some() {
            return;
        }
        let (connections, ramp) = (self.load.connections, self.load.ramp);
        let share =
            if ramp.is_zero() { 1.0 } else { self.began.elapsed().as_secs_f64() / ramp.as_secs_f64() };
        let wanted = ((connections as f64 * share) as usize + 1).min(connections);
        self.opening.extend(self.ramped..wanted);
        self.ramped = self.ramped.max(wanted);
    }

    /// Makes a connection for one request.
    pub(super) fn begin(&mut self, slot: usize, intended: Option<Instant>) {
        self.connections[slot].intended = intended;
        self.under_way += 1;
        self.opening.push_back(slot);
    }

    pub(super) fn open_connections(&mut self) -> Result<(), Error> {
        while self.connecting < CONNECTING_MAX {
            let Some(slot) = self.opening.pop_front() else { break };
            let socket = self.sources.socket()?;
            self.connections[slot].enter(Stage::Connecting, Instant::now());
            self.wire.connect(slot, socket);
            self.connecting += 1;
        }
        Ok(())
    }

    /// What has not begun to connect when the window closes never will, unless it is for a request that has
    /// arrived within it: that one counts, and is late.
    pub(super) fn forget_unopened(&mut self) {
        match (self.load.churn, &self.open) {
            (Some(_), Some(_)) => return,
            (Some(_), None) => self.under_way -= self.opening.len(),
            (None, _) => {}
        }
        self.opening.clear();
    }

    pub(super) fn connected(&mut self, slot: usize) {
        self.connecting -= 1;
        self.connected += 1;
        self.counted.connections_made += 1;
        let connection = &mut self.connections[slot];
        let began = connection.since();
        connection.connected();
        self.wire.receive(slot);
        if self.load.churn.is_some() {
            // Its time counts from the beginning of the connection.
            self.ask(slot, self.connections[slot].intended, began.unwrap_or_else(Instant::now));
        } else if self.phase != Phase::Ramp {
            self.go_on(slot);
        }
    }

    /// The server says that nothing more will come.
    pub(super) fn ended(&mut self, slot: usize) {
        match self.connections[slot].stage {
            Stage::Closing => self.put_away(slot, Farewell::Close),
            // Once more if it is told again, by what becomes of the own send.
            Stage::Served | Stage::Ended => self.connections[slot].stage = Stage::Ended,
            Stage::Lost => {}
            _ => {
                match self.verdict(slot) {
                    Some(finding) => self.failures.wrong(slot, self.connections[slot].due, &finding),
                    None => self.failures.closed(slot, &state(self.load, &self.connections, slot)),
                }
                self.lost(slot);
            }
        }
    }

    /// Receiving has failed.
    pub(super) fn receive_failed(&mut self, slot: usize, errno: Errno) {
        if self.connections[slot].stage != Stage::Lost {
            self.broken("receive", slot, errno);
            self.lost(slot);
        }
    }

    fn lost(&mut self, slot: usize) {
        self.connected -= 1;
        self.connections[slot].stage = Stage::Lost;
    }

    pub(super) fn broken(&mut self, phase: &'static str, slot: usize, errno: Errno) {
        self.failures.broken(phase, slot, &state(self.load, &self.connections, slot), errno);
    }

    /// Whether the server has said that it closes here. If more was asked of it, which it has not read, it does so
    /// by RST.
    pub(super) fn is_told_to_part(&self, slot: usize) -> bool {
        self.load.may_be_cut_off()
            && matches!(self.connections[slot].stage, Stage::Served | Stage::Ended | Stage::Closing)
    }

    /// Ends a connection that is served, once its send is over as well.
    pub(super) fn part(&mut self, slot: usize) {
        if self.wire.outgoing_mut(slot).is_none() {
            return;
        }
        match (self.connections[slot].stage, self.load.churn) {
            (Stage::Ended, _) => self.put_away(slot, Farewell::Close),
            (Stage::Served, Some(Close::Rst)) => self.put_away(slot, Farewell::Reset),
            (Stage::Served, close) => {
                if close == Some(Close::Fin) {
                    self.wire.finish(slot);
                }
                self.connections[slot].enter(Stage::Closing, Instant::now());
            }
            _ => {}
        }
    }

    fn put_away(&mut self, slot: usize, farewell: Farewell) {
        self.wire.close(slot, farewell);
        self.connected -= 1;
        self.connections[slot].gone();
        if self.load.churn.is_some() {
            self.under_way -= 1;
            self.go_on(slot);
        } else if self.phase != Phase::Drain {
            self.opening.push_back(slot);
        }
    }

    /// Whose reply is missing when this one's request is late.
    pub(super) fn who_waits(&self, slot: usize) -> usize {
        let Connection { sequence, asked, .. } = &self.connections[slot];
        let oldest = sequence - asked.len() as u64;
        match self.load.dialogue {
            Dialogue::Push => self.connections.iter().position(|other| other.due <= oldest).unwrap_or(slot),
            _ => slot,
        }
    }

    /// What is known of a reply that differs and does not go on.
    pub(super) fn verdict(&self, slot: usize) -> Option<Finding> {
        let (sender, connection) = (self.load.sender_to(slot), &self.connections[slot]);
        let part = self.connections[sender].request(connection.due)?.part.clone();
        connection.verdict(self.load.number(sender), &self.wire.outgoing(sender)[part])
    }
}

impl Load {
    /// Whether a server may close although more was asked of it.
    pub(super) fn may_be_cut_off(&self) -> bool {
        self.churn.is_none() && matches!(self.dialogue, Dialogue::Http(_))
    }

    /// Whose messages come to this connection.
    pub(super) fn sender_to(&self, slot: usize) -> usize {
        if matches!(self.dialogue, Dialogue::Push) { 0 } else { slot }
    }
}

/// What is known of a connection at which something has gone wrong.
pub(super) fn state<'a>(load: &Load, connections: &'a [Connection], slot: usize) -> State<'a> {
    let connection = &connections[slot];
    let due = connections[load.sender_to(slot)].request(connection.due);
    let expected = due.map(|asked| asked.part.len());
    State { connection, expected: expected.filter(|_| !matches!(load.dialogue, Dialogue::Http(_))) }
}
