//! How a loop on epoll waits: asleep, or looking again and again for a while before it sleeps.

use std::{
    io,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};

use super::tally::{Counted, Tally};

pub(super) struct Waiting<'a> {
    epoll: Epoll,
    /// For so long it looks before it sleeps.
    spin: Duration,
    tally: &'a Tally,
}

impl<'a> Waiting<'a> {
    pub(super) fn new(spin: Duration, tally: &'a Tally) -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, spin, tally })
    }

    pub(super) fn add(&self, socket: impl AsFd, interest: EpollFlags, data: u64) -> io::Result<()> {
        Ok(self.epoll.add(socket, EpollEvent::new(interest, data))?)
    }

    /// Waits for events; 0 of them if it was interrupted.
    pub(super) fn wait(&self, events: &mut [EpollEvent]) -> io::Result<usize> {
        self.tally.count(Counted::Waits);
        if !self.spin.is_zero() {
            let begun = Instant::now();
            while begun.elapsed() < self.spin {
                match self.look(events, EpollTimeout::ZERO)? {
                    0 => {}
                    count => return Ok(count),
                }
            }
        }
        self.look(events, EpollTimeout::NONE)
    }

    fn look(&self, events: &mut [EpollEvent], timeout: EpollTimeout) -> io::Result<usize> {
        self.tally.count(Counted::EpollWait);
        match self.epoll.wait(events, timeout) {
            Err(Errno::EINTR) => Ok(0),
            count => {
                let count = count?;
                self.tally.add(Counted::Events, count as u64);
                Ok(count)
            }
        }
    }
}
