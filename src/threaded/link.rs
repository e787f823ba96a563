//! How a transport reaches the connections of the threads backend.

use std::{io, os::fd::AsFd, sync::Arc, time::Instant};

use super::{
    connection::{State, ThreadConnection},
    shared::{Duty, Shared},
};
use crate::{
    address::Address,
    id::{ConnId, HostKey},
    output::{Batch, Write},
    sys,
    timer::{TimerKey, keep_timer},
    transport::{Link, Side, SocketFlag, Visited},
};

/// While a callback runs: its own connection by reference, all others through the table.
pub(super) struct ThreadLink<'a> {
    shared: &'a Shared,
    own: Option<&'a ThreadConnection>,
    duty: &'a mut Duty,
}

impl<'a> ThreadLink<'a> {
    pub(super) fn new(shared: &'a Shared, own: Option<&'a ThreadConnection>, duty: &'a mut Duty) -> Self {
        Self { shared, own, duty }
    }

    fn with<R>(&self, id: ConnId, act: impl FnOnce(&ThreadConnection) -> R) -> Option<R> {
        if let Some(own) = self.own.filter(|own| own.id() == id) {
            return Some(act(own));
        }
        let other: Arc<ThreadConnection> = self.shared.table.get(id)?;
        Some(act(&other))
    }

    /// What a write comes to, now that it has passed the budget of all or has not.
    fn appended(&mut self, id: ConnId, answer: Write, passed: bool) -> Write {
        let ended = passed && self.shared.end_fullest(id, self.duty);
        if ended { Write::Closed } else { answer }
    }
}

impl Link for ThreadLink<'_> {
    fn visit(&mut self, id: ConnId, act: &mut dyn FnMut(Visited<'_>)) {
        let limits = self.shared.limits();
        let visited = self.with(id, |connection| {
            let State { connection, pool, .. } = &mut *connection.lock();
            act(Visited { connection, pool, limits });
        });
        // Its own connection is worked on when the callback returns; so are the others, that no
        // callback of theirs runs inside this one.
        if visited.is_some() && self.own.is_none_or(|own| own.id() != id) {
            self.duty.touch(id);
        }
    }

    fn append(&mut self, id: ConnId, append: &mut dyn FnMut(Visited<'_>) -> Write) -> Write {
        let (mut answer, mut passed) = (Write::Closed, false);
        self.visit(id, &mut |Visited { connection, pool, limits }| {
            answer = append(Visited { connection, pool, limits });
            passed = pool.take_passed();
        });
        self.appended(id, answer, passed)
    }

    fn write(&mut self, id: ConnId, data: &[u8]) -> Write {
        // The usual way is a short one: to its own connection.
        if let Some(own) = self.own.filter(|own| own.id() == id) {
            let (answer, passed) = own.lock().write(self.shared.limits(), data);
            return self.appended(id, answer, passed);
        }
        self.append(id, &mut |Visited { connection, pool, limits }| connection.write(pool, limits, data))
    }

    /// What `fill` does is the user's business, so it runs before the lock is taken.
    fn fill(&mut self, id: ConnId, fill: &mut dyn FnMut(&mut Batch)) -> Write {
        let mut takes = false;
        self.visit(id, &mut |visited| takes = visited.connection.takes_output(visited.limits));
        if !takes {
            return Write::Closed;
        }
        let mut filled = self.duty.pool.take();
        fill(&mut filled);
        let answer = filled.as_single().map_or(Write::Closed, |bytes| self.write(id, bytes));
        self.duty.pool.give(filled);
        answer
    }

    fn now(&self) -> Instant {
        self.shared.reactor.core.clock.now()
    }

    fn address(&mut self, id: ConnId, side: Side) -> Address {
        let ask = |connection: &ThreadConnection| {
            let mut state = connection.lock();
            let State { peer, host, .. } = &mut *state;
            let fd = connection.wire().as_fd();
            let (kept, asked): (_, fn(_) -> _) = match side {
                Side::Peer => (peer, sys::peer_address),
                Side::Host => (host, sys::local_address),
            };
            if kept.is_none() {
                *kept = asked(fd);
            }
            kept.clone().unwrap_or(Address::Unknown)
        };
        self.with(id, ask).unwrap_or(Address::Unknown)
    }

    fn flag(&mut self, id: ConnId, flag: SocketFlag, set: Option<bool>) -> io::Result<bool> {
        let gone = || Err(io::ErrorKind::NotConnected.into());
        let ask = |connection: &ThreadConnection| match flag {
            _ if connection.lock().connection.is_lost() => gone(),
            SocketFlag::NoDelay => sys::no_delay(connection.wire().as_fd(), set),
            SocketFlag::KeepAlive => sys::keep_alive(connection.wire().as_fd(), set),
        };
        self.with(id, ask).unwrap_or_else(gone)
    }

    fn ids(&mut self, host: HostKey) -> Vec<ConnId> {
        self.shared.table.ids(host, self.own.map(ThreadConnection::id))
    }

    fn bind_timer(&mut self, id: ConnId, timer: TimerKey, alive: &dyn Fn(TimerKey) -> bool) -> bool {
        let bind = |connection: &ThreadConnection| {
            let mut state = connection.lock();
            if !state.lost {
                keep_timer(&mut state.timers, timer, alive);
            }
            !state.lost
        };
        self.with(id, bind).unwrap_or(false)
    }
}
