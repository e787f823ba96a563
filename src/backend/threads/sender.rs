//! The one thread that waits for peers that do not read, so that nobody else has to.

use std::os::fd::AsFd;

use nix::{
    errno::Errno as NixErrno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};

use super::{Wire, list};
use crate::{
    error::Errno,
    id::ConnId,
    stats::{Branch, Syscall},
    sys::Waker,
};

/// Told of each connection that can be sent more.
pub(crate) type Writable = Box<dyn FnMut(ConnId) + Send>;

/// Descriptors taken by one wait.
const EVENTS_MAX: usize = 64;
/// Marks the event that ends the thread; no connection has this key.
const STOP: u64 = u64::MAX;

/// A list of the connections whose output waits. Each is watched for one event and then off the
/// list; a closed one leaves it by itself.
#[derive(Debug)]
pub(crate) struct Sender {
    epoll: Epoll,
    stop: Waker,
    reactor: u8,
}

impl Sender {
    /// Made when the reactor starts, and not when it is first needed: that may be the moment at
    /// which the process has no descriptors left.
    pub(crate) fn new(reactor: u8) -> std::io::Result<Self> {
        let (epoll, stop) = (Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, Waker::new()?);
        epoll.add(&stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
        Ok(Self { epoll, stop, reactor })
    }

    /// Has the thread tell, once, when this connection can be sent more.
    pub(crate) fn watch(&self, id: ConnId, wire: &Wire) -> Result<(), Errno> {
        wire.counters().call(Syscall::EpollCtl);
        let key = u64::from(id.generation()) << 32 | id.slot() as u64;
        let mut event = EpollEvent::new(EpollFlags::EPOLLOUT | EpollFlags::EPOLLONESHOT, key);
        if list(wire) {
            self.epoll.add(wire.as_fd(), event)?;
        } else {
            self.epoll.modify(wire.as_fd(), &mut event)?;
        }
        Ok(())
    }

    /// Runs the thread, until [`stop`](Self::stop).
    pub(crate) fn run(&self, counters: &Branch, mut writable: Writable) {
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        loop {
            counters.call(Syscall::EpollWait);
            let told = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(told) => told,
                Err(NixErrno::EINTR) => continue,
                Err(errno) => return log::error!("waiting for peers that do not read: {errno}"),
            };
            for event in &events[..told] {
                if event.data() == STOP {
                    return;
                }
                writable(ConnId::new(self.reactor, (event.data() >> 32) as u32, event.data() as u32));
            }
        }
    }

    /// Ends the thread.
    pub(crate) fn stop(&self, counters: &Branch) {
        counters.call(Syscall::Write);
        self.stop.wake();
    }
}
