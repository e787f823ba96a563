//! Where the main thread sleeps: before its listening ports and the descriptor that wakes it.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno as NixErrno,
    poll::{PollFd, PollFlags, poll},
};

use super::{round_up, watching::Watched};
use crate::{
    error::Errno,
    id::PortKey,
    stats::{Branch, Count, Syscall},
    sys::{Listener, Reserve, Waker},
};

/// Sheds at most this many peers at once when descriptors run out.
const SHED_MAX: usize = 64;

/// The listeners that accept, and the foreign descriptors.
#[derive(Debug)]
pub(crate) struct Doors {
    waker: Arc<Waker>,
    open: Vec<(PortKey, Arc<Listener>)>,
    pub(super) watched: Watched,
    reserve: Reserve,
}

impl Doors {
    pub(crate) fn new(waker: Arc<Waker>) -> Self {
        Self { waker, open: Vec::new(), watched: Watched::default(), reserve: Reserve::new() }
    }

    pub(crate) fn open(&mut self, port: PortKey, listener: Arc<Listener>) {
        self.open.push((port, listener));
    }

    pub(crate) fn close(&mut self, port: PortKey) {
        self.open.retain(|(open, _)| *open != port);
    }

    /// Sleeps until a peer waits, somebody wakes the reactor, or `timeout` has passed. The ports
    /// at which peers wait are added to `ready`; the foreign descriptors come from [`next_ready`](Self::next_ready).
    pub(crate) fn wait(
        &mut self,
        timeout: Duration,
        counters: &Branch,
        ready: &mut Vec<PortKey>,
    ) -> io::Result<()> {
        let descriptors = [self.waker.as_fd()].into_iter().chain(self.open.iter().map(|(_, l)| l.as_fd()));
        let doors = descriptors.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let mut polled: Vec<_> = doors.chain(self.watched.to_poll()).collect();
        counters.call(Syscall::Poll);
        match poll(&mut polled, round_up(timeout)) {
            Ok(_) => {}
            Err(NixErrno::EINTR) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
        let told: Vec<_> =
            polled.iter().map(|polled| polled.revents().unwrap_or(PollFlags::empty())).collect();
        let mut told = told.into_iter();
        if told.next().is_some_and(|flags| !flags.is_empty()) {
            counters.call(Syscall::Read);
            self.waker.clear();
        }
        let before = ready.len();
        let doors = self.open.iter().zip(&mut told).filter(|(_, flags)| !flags.is_empty());
        ready.extend(doors.map(|((port, _), _)| *port));
        let watched = self.watched.polled(told);
        counters.add(Count::Events, (ready.len() - before + watched) as u64);
        Ok(())
    }

    /// Accepts one peer; None when nobody waits.
    pub(crate) fn accept(&self, port: PortKey, counters: &Branch) -> Option<Result<OwnedFd, Errno>> {
        let listener = self.listener(port)?;
        counters.call(Syscall::Accept);
        match listener.accept_blocking().and_then(|socket| self.reserve.check(socket)) {
            Err(errno) if errno.raw() == libc::EAGAIN => None,
            accepted => Some(accepted),
        }
    }

    /// Accepts and closes the peers that wait, by means of a reserved descriptor; how many.
    pub(crate) fn shed(&self, port: PortKey, counters: &Branch) -> usize {
        let Some(listener) = self.listener(port) else { return 0 };
        self.reserve.shed(listener, SHED_MAX, &mut |call| counters.call(call))
    }

    fn listener(&self, port: PortKey) -> Option<&Listener> {
        self.open.iter().find(|(open, _)| *open == port).map(|(_, listener)| &**listener)
    }
}
