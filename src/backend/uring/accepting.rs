//! Listening ports of the ring: accept, armed until the kernel or the port ends it.

use std::{
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    ptr,
    sync::Arc,
};

use io_uring::{opcode, types};

use super::{Io, Kind, ring::Completion};
use crate::{
    backend::{
        Event,
        accept::{AcceptDecision, decide},
    },
    id::PortKey,
    stats::Syscall,
    sys::{Listener, Socket},
};

/// A listening port.
pub(super) struct Accepting {
    pub(super) listener: Arc<Listener>,
    pub(super) armed: bool,
    pub(super) ending: bool,
}

impl Accepting {
    /// Whether an accept is in flight that has been cancelled.
    pub(super) fn is_to_end(&self) -> bool {
        self.armed && self.ending
    }
}

impl Io {
    pub(super) fn arm_accept(&mut self, port: PortKey) {
        let (direct, multishot) = (self.direct, self.multishot);
        let Some(accepting) = self.ports.get_mut(&port) else { return };
        if accepting.armed || accepting.ending {
            return;
        }
        accepting.armed = true;
        let fd = types::Fd(accepting.listener.as_fd().as_raw_fd());
        // A direct descriptor is never inherited, and accept refuses the flag for it.
        let flags = if direct { 0 } else { libc::SOCK_CLOEXEC };
        let entry = if multishot {
            opcode::AcceptMulti::new(fd).flags(flags).allocate_file_index(direct).build()
        } else {
            let place = direct.then(types::DestinationSlot::auto_target);
            opcode::Accept::new(fd, ptr::null_mut(), ptr::null_mut()).flags(flags).file_index(place).build()
        };
        // SAFETY: no address is asked for, so the entry points to nothing; the listener is held
        // by the port until its last completion.
        unsafe { self.ring.push(entry.user_data(Kind::Accept.of_port(port.0))) };
    }

    pub(super) fn unlisten(&mut self, port: PortKey) {
        let Some(accepting) = self.ports.get_mut(&port) else { return };
        accepting.ending = true;
        accepting.listener.stop();
        if accepting.armed {
            self.cancel(Kind::Accept.of_port(port.0));
        } else {
            self.unlistened(port);
        }
    }

    /// A port is over. Of all who wait at a socket the kernel wakes one for a peer, so those it has woken us for are ours: whoever else
    /// accepts there has not heard of them, and may not before the next one comes.
    fn unlistened(&mut self, port: PortKey) {
        let Some(Accepting { listener, .. }) = self.ports.remove(&port) else { return };
        while listener.is_shared() {
            self.counters.call(Syscall::Accept);
            match listener.accept_blocking().and_then(|socket| self.reserve.check(socket)) {
                Ok(socket) => self.ready.push_back(Event::Accepted { port, socket: Socket::Fd(socket) }),
                Err(errno) if errno.raw() != libc::EAGAIN && decide(errno) == AcceptDecision::Next => {}
                Err(_) => break,
            }
        }
        self.ready.push_back(Event::Unlistened { port });
    }

    pub(super) fn accepted(&mut self, completion: Completion) -> Option<Event<'static>> {
        let port = PortKey(completion.user_data() as u32);
        let accepting = self.ports.get_mut(&port)?;
        accepting.armed = completion.more();
        let (armed, ending) = (accepting.armed, accepting.ending);
        if ending && !armed {
            self.unlistened(port);
        }
        match completion.outcome() {
            Ok(accepted) => {
                if !armed && !ending {
                    self.arm_accept(port);
                }
                if self.direct {
                    return Some(Event::Accepted { port, socket: Socket::Direct(accepted) });
                }
                // SAFETY: accept has just made this descriptor, and nobody else knows it.
                let socket = unsafe { OwnedFd::from_raw_fd(accepted as i32) };
                Some(match self.reserve.check(socket) {
                    Ok(socket) => Event::Accepted { port, socket: Socket::Fd(socket) },
                    Err(errno) => Event::AcceptFailed { port, errno },
                })
            }
            Err(_) if ending => None,
            Err(errno) => Some(Event::AcceptFailed { port, errno }),
        }
    }
}

/// Closes the descriptor that a completion made, if there is one, for nobody wants it any more.
pub(super) fn close_stray(completion: Completion) {
    if let Ok(raw) = completion.outcome() {
        // SAFETY: an accept or an install has just made this descriptor, and nobody else knows it.
        drop(unsafe { OwnedFd::from_raw_fd(raw as i32) });
    }
}
