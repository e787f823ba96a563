//! The wire over epoll, for the independent check: another interface of the kernel, other code, the
//! same engine. Edge-triggered, with one receive a message and one send, as good as such a client can be.

use std::{
    collections::VecDeque,
    io,
    ops::Range,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        socket::{self, MsgFlags, Shutdown, sockopt},
        time::TimeSpec,
    },
};

use super::{
    buffers::Lease,
    ring::reset_on_close,
    wire::{Event, Farewell, Plan, Wire},
};
use crate::{
    error::Error,
    target::{Address, Target},
};

const BUFFER_BYTES: usize = 64 << 10;
const EVENTS: usize = 1024;
/// How soon tries again what found no room, where nothing tells of it.
const AGAIN: Duration = Duration::from_millis(1);

#[derive(Debug)]
struct Slot {
    socket: Option<OwnedFd>,
    /// How many connections the slot has had: an event of an earlier one says nothing.
    generation: u32,
    outgoing: Box<[u8]>,
    connecting: bool,
    /// What is left of the part that is being sent, and how long that was.
    sending: Option<(Range<usize>, usize)>,
    /// Whether the peer's end, or an error, is to be found behind what there is to receive.
    ending: bool,
}

/// The epoll instance of one cell.
pub(super) struct Readiness {
    epoll: Epoll,
    slots: Vec<Slot>,
    target: Address,
    buffer: Vec<u8>,
    /// Slots, with their generation, that may have something to receive.
    due: VecDeque<(usize, u32)>,
    /// The same, of those that had their turn: who always has more must not keep the others from theirs.
    due_next: VecDeque<(usize, u32)>,
    told: VecDeque<Event>,
    events: Vec<EpollEvent>,
    burst: usize,
    /// Slots with something to send that has waited for others.
    held: Vec<usize>,
    /// Slots to a socket, if it is one of datagrams.
    datagrams: Option<usize>,
    /// Sockets that have found the server's backlog full, and try again.
    refused: Vec<(usize, OwnedFd)>,
}

impl Readiness {
    /// An instance for connections to one target.
    pub(super) fn new(plan: &Plan, target: &Target) -> Result<Self, Error> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|errno| {
            Error::machine(format!(
                "the client engine cannot have epoll: {}; raise `ulimit -n`",
                errno.desc()
            ))
        })?;
        let slot = |bytes: &usize| Slot {
            socket: None,
            generation: 0,
            outgoing: vec![0; *bytes].into(),
            connecting: false,
            sending: None,
            ending: false,
        };
        Ok(Self {
            epoll,
            slots: plan.outgoing_bytes.iter().map(slot).collect(),
            target: target.address(),
            buffer: vec![0; BUFFER_BYTES],
            due: VecDeque::new(),
            due_next: VecDeque::new(),
            told: VecDeque::new(),
            events: vec![EpollEvent::empty(); EVENTS],
            burst: plan.burst,
            held: Vec::new(),
            datagrams: plan.datagrams,
            refused: Vec::new(),
        })
    }

    /// One after another, with nothing in between, so that the server gets them as close together as a system call each allows.
    fn send_held(&mut self) {
        let mut held = std::mem::take(&mut self.held);
        for slot in held.drain(..) {
            self.go_on_sending(slot);
        }
        held.append(&mut self.held);
        self.held = held;
    }

    fn start_connecting(&mut self, index: usize, socket: OwnedFd) -> Result<(), Errno> {
        fcntl(socket.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        match socket::connect(socket.as_raw_fd(), self.target.raw()) {
            // It is told by the socket's becoming writable, as when it takes longer.
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            // A Unix socket whose backlog is full does not wait, and nothing tells when there is room.
            Err(Errno::EAGAIN) => {
                self.refused.push((index, socket));
                return Ok(());
            }
            Err(errno) => return Err(errno),
        }
        let slot = &mut self.slots[index];
        slot.generation = slot.generation.wrapping_add(1);
        (slot.connecting, slot.sending, slot.ending) = (true, None, false);
        let socket = &*slot.socket.insert(socket);
        let all = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        // One datagram is taken an event, and more may lie behind it.
        let all = if self.datagrams.is_some() { EpollFlags::EPOLLIN } else { all };
        self.epoll.add(socket, EpollEvent::new(all, u64::from(slot.generation) << 32 | index as u64))?;
        if self.datagrams.is_some() {
            slot.connecting = false;
            self.told.push_back(Event::Connected { slot: index, result: Ok(()) });
        }
        Ok(())
    }

    fn take_event(&mut self, event: EpollEvent) {
        let (index, generation) = ((event.data() & 0xffff_ffff) as usize, (event.data() >> 32) as u32);
        let slot = &mut self.slots[index];
        if slot.generation != generation || slot.socket.is_none() {
            return;
        }
        let flags = event.events();
        if slot.connecting && !self.end_connecting(index, flags) {
            return;
        }
        let slot = &mut self.slots[index];
        let over = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        slot.ending |= flags.intersects(over);
        if flags.contains(EpollFlags::EPOLLIN) || slot.ending {
            self.due.push_back((index, generation));
        }
        if flags.contains(EpollFlags::EPOLLOUT) && slot.sending.is_some() {
            self.go_on_sending(index);
        }
    }

    /// Answers whether the slot is connected now.
    fn end_connecting(&mut self, index: usize, flags: EpollFlags) -> bool {
        let slot = &mut self.slots[index];
        let Some(socket) = &slot.socket else { return false };
        let error = socket::getsockopt(socket, sockopt::SocketError).unwrap_or(libc::EBADF);
        if error == 0 && !flags.contains(EpollFlags::EPOLLOUT) {
            return false;
        }
        slot.connecting = false;
        let result = if error == 0 { Ok(()) } else { Err(Errno::from_raw(error)) };
        if result.is_err() {
            slot.socket = None;
        }
        self.told.push_back(Event::Connected { slot: index, result });
        error == 0
    }

    fn go_on_sending(&mut self, index: usize) {
        let owner = self.datagrams.map_or(index, |sharing| index - index % sharing);
        let Some(fd) = self.slots[owner].socket.as_ref().map(AsRawFd::as_raw_fd) else { return };
        let slot = &mut self.slots[index];
        let Some((left, whole)) = &mut slot.sending else { return };
        let flags = MsgFlags::MSG_NOSIGNAL;
        let result = loop {
            match socket::send(fd, &slot.outgoing[left.clone()], flags) {
                Ok(sent) if sent < left.len() => left.start += sent,
                Ok(_) => break Ok(*whole),
                Err(Errno::EINTR) => {}
                // Nothing tells when a datagram has room.
                Err(Errno::EAGAIN) if self.datagrams.is_some() => return self.held.push(index),
                Err(Errno::EAGAIN) => return,
                Err(errno) => break Err(errno),
            }
        };
        slot.sending = None;
        self.told.push_back(Event::Sent { slot: index, result });
    }

    /// Receives once; None if there is nothing.
    fn take(&mut self, index: usize, generation: u32) -> Option<Event> {
        let slot = &self.slots[index];
        let socket = slot.socket.as_ref().filter(|_| slot.generation == generation && !slot.connecting)?;
        let result = match socket::recv(socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
            Err(Errno::EAGAIN) => return None,
            Err(errno) => Err(errno),
            Ok(0) => Ok(None),
            Ok(length) => {
                // A short receive has emptied the socket, unless its end is behind it; a datagram says nothing of the next.
                let pipelined = self.datagrams.is_some_and(|sharing| sharing > 1);
                if length == self.buffer.len() || slot.ending || pipelined {
                    self.due_next.push_back((index, generation));
                }
                Ok(Some(Lease::of_length(length)))
            }
        };
        Some(Event::Received { slot: index, result, more: true })
    }
}

impl Wire for Readiness {
    fn connect(&mut self, slot: usize, socket: OwnedFd) {
        if let Err(errno) = self.start_connecting(slot, socket) {
            // Nothing more is to be heard of it.
            self.slots[slot].socket = None;
            self.told.push_back(Event::Connected { slot, result: Err(errno) });
        }
    }

    /// Receives are always armed.
    fn receive(&mut self, _slot: usize) {}

    fn outgoing(&self, slot: usize) -> &[u8] {
        &self.slots[slot].outgoing
    }

    fn outgoing_mut(&mut self, slot: usize) -> Option<&mut [u8]> {
        let slot = &mut self.slots[slot];
        slot.sending.is_none().then_some(&mut slot.outgoing)
    }

    fn send(&mut self, slot: usize, part: Range<usize>) {
        let whole = part.len();
        self.slots[slot].sending = Some((part, whole));
        self.held.push(slot);
        if self.held.len() >= self.burst {
            self.send_held();
        }
    }

    fn finish(&mut self, slot: usize) {
        if let Some(socket) = &self.slots[slot].socket {
            // It fails if the connection is gone, which its receive will tell.
            let _ = socket::shutdown(socket.as_raw_fd(), Shutdown::Write);
        }
    }

    fn close(&mut self, slot: usize, farewell: Farewell) {
        let slot = &mut self.slots[slot];
        if let (Some(socket), Farewell::Reset) = (&slot.socket, farewell) {
            reset_on_close(socket);
        }
        slot.socket = None;
    }

    fn received(&self, lease: &Lease) -> &[u8] {
        &self.buffer[..lease.length()]
    }

    fn give_back(&mut self, _lease: Lease) {}

    fn buffer_count(&self) -> usize {
        usize::MAX
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.send_held();
        for (slot, socket) in std::mem::take(&mut self.refused) {
            self.connect(slot, socket);
        }
        let patient = self.refused.is_empty() && self.held.is_empty();
        let timeout = if patient { timeout } else { timeout.min(AGAIN) };
        self.due.append(&mut self.due_next);
        let mut count = self.epoll.wait(&mut self.events, EpollTimeout::ZERO).or_else(interrupted)?;
        if count == 0 && self.told.is_empty() && self.due.is_empty() && !timeout.is_zero() {
            // Its own waits are in milliseconds, which is too long between arrivals.
            let mut ready = [PollFd::new(self.epoll.0.as_fd(), PollFlags::POLLIN)];
            ppoll(&mut ready, Some(TimeSpec::from_duration(timeout)), None)
                .or_else(|errno| interrupted(errno).map(|_| 0))?;
            count = self.epoll.wait(&mut self.events, EpollTimeout::ZERO).or_else(interrupted)?;
        }
        for place in 0..count {
            self.take_event(self.events[place]);
        }
        Ok(())
    }

    fn next_event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.told.pop_front() {
                return Some(event);
            }
            let (slot, generation) = self.due.pop_front()?;
            if let Some(event) = self.take(slot, generation) {
                return Some(event);
            }
        }
    }
}

/// A signal is no error, and brings nothing.
fn interrupted(errno: Errno) -> Result<usize, Errno> {
    if errno == Errno::EINTR { Ok(0) } else { Err(errno) }
}
