//! The epoll backend: edge-triggered, one `epoll_ctl` in a connection's life, one `recv` and one
//! `send` a message.
//!
//! Each socket is registered once, for everything. What an edge told is remembered in its slot, so
//! a paused connection costs no wake-ups, not even when its peer is gone (C13): a level-triggered
//! interest would report the hang-up for ever. Listeners are level-triggered: a port with a
//! backlog is simply reported again in the next turn.

mod datagrams;
mod watching;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use self::datagrams::DatagramPorts;
use super::{Datagram, DatagramBatch, Event, Proactor, Sent, Sockets};
use crate::{
    error::{Errno, Error},
    id::{ConnId, PortKey, WatchKey},
    network::Listening,
    output::Batch,
    stats::{Count, Counters, Syscall},
    sys::{self, DatagramSocket, Listener, Name, Reserve, RightsInbox, Socket, Waker},
};

/// Bytes of the loop's one receive buffer: it stays in the cache, and a fast peer fills it.
const BUFFER_BYTES: usize = 64 << 10;
/// Ready descriptors taken by one wait.
const EVENTS_MAX: usize = 256;
/// Connections that one port accepts before others get their turn.
const ACCEPTS_A_TURN: u32 = 64;
/// Sheds at most this many peers at once when descriptors run out.
const SHED_MAX: usize = 64;

/// Marks the data of an event that is a port's or the waker's.
const PORT: u64 = 1 << 63;
const WAKER: u64 = 1 << 62;
const DATAGRAMS: u64 = 1 << 61;
const MARKS: u64 = PORT | WAKER | DATAGRAMS;
/// Marks a foreign descriptor's, which is a port's otherwise, so that connections' events are not asked for it.
const WATCHED: u64 = PORT | WAKER;

/// One slot.
struct Slot {
    id: ConnId,
    socket: OwnedFd,
    /// The loop wants data.
    reading: bool,
    /// There may be something to receive: an edge said so, and no receive has come up empty since.
    readable: bool,
    /// The peer sent FIN or the socket failed: even after a short read there is more to learn.
    hung_up: bool,
    /// It stands in the line of those to be read again.
    queued: bool,
    connecting: bool,
    /// Urgent data has come, before which a receive ends, in line or not.
    urgent: bool,
    /// A receive ends where a descriptor came along, so a short one need not be the last.
    unix: bool,
    /// Descriptors are received, too.
    rights: bool,
    /// What did not go at once, and how many bytes of it did.
    batch: Option<Box<Batch>>,
    gone: usize,
}

impl Slot {
    /// Learns what a receive into so much room came to, and answers whether there may be more. One that was cut is short because
    /// of something else than that there was no more.
    #[inline]
    fn learn(&mut self, outcome: Result<usize, Errno>, room: usize, cut: bool) -> bool {
        self.readable = match outcome {
            Ok(len) => len == room || ((self.hung_up | self.urgent | cut) && len > 0),
            Err(errno) => errno.raw() == libc::EINTR,
        };
        self.readable
    }
}

/// An event, without the loan of its data.
enum Found {
    Data { id: ConnId, len: usize },
    Other(Event<'static>),
}

/// Everything but the receive buffer, so that data can be lent from that while sockets are asked.
struct Io {
    epoll: Epoll,
    slots: Vec<Option<Slot>>,
    ports: BTreeMap<PortKey, Arc<Listener>>,
    watched: BTreeSet<WatchKey>,
    /// Events that need no system call.
    ready: VecDeque<Event<'static>>,
    /// Connections that have more than they were given a turn for.
    readers: VecDeque<ConnId>,
    /// The port that accepts now, and how many more it may.
    accepting: Option<(PortKey, u32)>,
    /// Data that is to be told after its descriptors.
    behind: Option<(ConnId, usize)>,
    rights: Box<RightsInbox>,
    reserve: Reserve,
    counters: Arc<Counters>,
}

/// See the top of this file.
pub(crate) struct EpollLoop {
    io: Io,
    events: Vec<EpollEvent>,
    /// The part of `events` that the last wait filled and that was not looked at yet.
    unseen: std::ops::Range<usize>,
    datagrams: DatagramPorts,
    /// How many readers' turn it is.
    readers_left: usize,
    buffer: Vec<u8>,
    /// Keeps the descriptor that the interest list names.
    _waker: Arc<Waker>,
}

/// Opens the backend.
pub(crate) fn open(counters: Arc<Counters>, waker: Arc<Waker>) -> Result<Box<dyn Proactor>, Error> {
    let opened = EpollLoop::open(counters, waker);
    Ok(Box::new(opened.map_err(Error::system("making an epoll instance"))?))
}

impl EpollLoop {
    fn open(counters: Arc<Counters>, waker: Arc<Waker>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        // Edge-triggered, so that the counter need never be read: each write is a new edge.
        epoll.add(&*waker, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, WAKER))?;
        let io = Io {
            epoll,
            slots: Vec::new(),
            ports: BTreeMap::new(),
            watched: BTreeSet::new(),
            ready: VecDeque::new(),
            readers: VecDeque::new(),
            accepting: None,
            behind: None,
            rights: RightsInbox::boxed(),
            reserve: Reserve::new(),
            counters,
        };
        Ok(Self {
            io,
            events: vec![EpollEvent::empty(); EVENTS_MAX],
            unseen: 0..0,
            datagrams: DatagramPorts::default(),
            readers_left: 0,
            buffer: vec![0; BUFFER_BYTES],
            _waker: waker,
        })
    }

    fn next_found(&mut self) -> Option<Found> {
        loop {
            if let Some(event) = self.io.ready.pop_front().or_else(|| self.io.accept_next()) {
                return Some(Found::Other(event));
            }
            if let Some((id, len)) = self.io.behind.take() {
                return Some(Found::Data { id, len });
            }
            if let Some(event) = self.datagrams.next_event() {
                return Some(Found::Other(event));
            }
            let id = match self.unseen.next() {
                Some(index) if self.events[index].data() & MARKS == DATAGRAMS => {
                    let failed = self.datagrams.receive(self.events[index], &self.io.counters);
                    self.io.ready.extend(failed);
                    continue;
                }
                Some(index) => self.io.edge(self.events[index]),
                None => Some(self.next_reader()?),
            };
            if let Some(found) = id.and_then(|id| self.io.receive(id, &mut self.buffer)) {
                return Some(found);
            }
        }
    }

    fn next_reader(&mut self) -> Option<ConnId> {
        self.readers_left = self.readers_left.checked_sub(1)?;
        let id = self.io.readers.pop_front()?;
        if let Some(slot) = self.io.slot(id) {
            slot.queued = false;
        }
        Some(id)
    }
}

impl Proactor for EpollLoop {
    fn listen(&mut self, port: PortKey, listener: Listening) {
        let Some(listener) = listener.socket() else { return };
        self.io.counters.call(Syscall::EpollCtl);
        let interest = EpollEvent::new(EpollFlags::EPOLLIN, PORT | u64::from(port.0));
        let added = self.io.epoll.add(&*listener, interest);
        self.io.ports.insert(port, listener);
        if let Err(errno) = added {
            self.io.ready.push_back(Event::AcceptFailed { port, errno: errno.into() });
        }
    }

    fn accept_again(&mut self, port: PortKey) {
        self.io.set_interest(port, EpollFlags::EPOLLIN);
    }

    fn shed(&mut self, port: PortKey) -> usize {
        let Some(listener) = self.io.ports.get(&port) else { return 0 };
        self.io.reserve.shed(listener, SHED_MAX, &mut |call| self.io.counters.call(call))
    }

    fn unlisten(&mut self, port: PortKey) {
        if let Some(listener) = self.io.ports.remove(&port) {
            listener.stop();
            self.io.counters.call(Syscall::EpollCtl);
            let _ = self.io.epoll.delete(&*listener);
            self.io.ready.push_back(Event::Unlistened { port });
        }
    }

    fn connect(&mut self, id: ConnId, socket: OwnedFd, name: &Name) {
        self.io.counters.call(Syscall::Connect);
        let begun = sys::connect(socket.as_fd(), name);
        self.io.adopt(id, socket);
        match begun {
            Ok(false) => self.io.slot(id).into_iter().for_each(|slot| slot.connecting = true),
            Ok(true) => self.io.ready.push_back(Event::Connected { id, errno: None }),
            Err(errno) => self.io.ready.push_back(Event::Connected { id, errno: Some(errno) }),
        }
    }

    fn adopt(&mut self, id: ConnId, socket: Socket) {
        if let Socket::Fd(socket) = socket {
            self.io.adopt(id, socket);
        }
    }

    fn refuse(&mut self, socket: Socket) {
        self.io.counters.call(Syscall::Close);
        drop(socket);
    }

    fn is_unix(&mut self, id: ConnId) {
        self.io.slot(id).into_iter().for_each(|slot| slot.unix = true);
    }

    fn receive_descriptors(&mut self, id: ConnId) {
        self.io.slot(id).into_iter().for_each(|slot| slot.rights = true);
    }

    fn read(&mut self, id: ConnId, on: bool) {
        let Some(slot) = self.io.slot(id) else { return };
        slot.reading = on;
        if on && slot.readable {
            self.io.read_again(id);
        }
    }

    /// Each is a system call. Made one after another, once all of a turn has been read, they cost less.
    fn queues_sends(&self) -> bool {
        false
    }

    fn send(&mut self, id: ConnId, mut batch: Box<Batch>) -> Option<Sent> {
        let (bytes, errno) = self.io.send(id, &mut batch);
        if errno.is_none() && !batch.is_empty() {
            let slot = self.io.slot(id)?;
            (slot.batch, slot.gone) = (Some(batch), bytes);
            return None;
        }
        Some(Sent { batch, bytes, errno })
    }

    /// What is sent at once comes back at once, and for the rest an event is waited for.
    fn hurry(&mut self, _id: ConnId) {}

    fn shutdown_write(&mut self, id: ConnId) {
        if let Some(slot) = self.io.slot(id) {
            sys::shutdown_write(slot.socket.as_fd());
            self.io.counters.call(Syscall::Shutdown);
        }
    }

    fn close(&mut self, id: ConnId, reset: bool) {
        self.io.close(id, reset);
    }

    fn open_datagrams(&mut self, port: PortKey, socket: Arc<DatagramSocket>, max_packet_size: usize) {
        self.io.counters.call(Syscall::EpollCtl);
        let interest = EpollEvent::new(EpollFlags::EPOLLIN, DATAGRAMS | u64::from(port.0));
        let added = self.io.epoll.add(&*socket, interest);
        self.datagrams.open(port, socket, max_packet_size);
        if let Err(errno) = added {
            self.io.ready.push_back(Event::DatagramsFailed { port, errno: errno.into() });
        }
    }

    fn send_datagrams(&mut self, port: PortKey, batch: Box<DatagramBatch>) -> Option<Box<DatagramBatch>> {
        Some(self.datagrams.send(port, batch, &self.io.counters))
    }

    fn take_datagram(&mut self, port: PortKey) -> Option<Datagram<'_>> {
        self.datagrams.take(port)
    }

    fn close_datagrams(&mut self, port: PortKey) {
        if let Some(socket) = self.datagrams.close(port) {
            self.io.counters.call(Syscall::EpollCtl);
            let _ = self.io.epoll.delete(&*socket);
            self.io.ready.push_back(Event::Unlistened { port });
        }
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.readers_left = self.io.readers.len();
        let busy = self.readers_left > 0 || !self.io.ready.is_empty();
        let timeout = if busy { Duration::ZERO } else { timeout };
        self.io.counters.call(Syscall::EpollWait);
        self.unseen = 0..0;
        match self.io.epoll.wait(&mut self.events, round_up(timeout)) {
            Ok(filled) => self.unseen = 0..filled,
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        self.io.counters.add(Count::Events, self.unseen.len() as u64);
        Ok(())
    }

    fn next(&mut self) -> Option<(Event<'_>, &mut dyn Sockets)> {
        let event = match self.next_found()? {
            Found::Data { id, len } => Event::Data { id, data: &self.buffer[..len] },
            Found::Other(event) => event,
        };
        Some((event, &mut self.io))
    }

    fn sockets(&mut self) -> &mut dyn Sockets {
        &mut self.io
    }
}

impl Io {
    fn slot(&mut self, id: ConnId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(id.slot())?.as_mut()?;
        (slot.id == id).then_some(slot)
    }

    fn adopt(&mut self, id: ConnId, socket: OwnedFd) {
        self.counters.call(Syscall::EpollCtl);
        let arrivals = EpollFlags::EPOLLIN | EpollFlags::EPOLLPRI | EpollFlags::EPOLLRDHUP;
        let flags = arrivals | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        let data = u64::from(id.generation()) << 32 | id.slot() as u64;
        if let Err(errno) = self.epoll.add(&socket, EpollEvent::new(flags, data)) {
            self.ready.push_back(Event::End { id, errno: Some(errno.into()) });
        }
        if self.slots.len() <= id.slot() {
            self.slots.resize_with(id.slot() + 1, || None);
        }
        self.slots[id.slot()] = Some(Slot {
            id,
            socket,
            reading: false,
            readable: false,
            hung_up: false,
            queued: false,
            connecting: false,
            urgent: false,
            unix: false,
            rights: false,
            batch: None,
            gone: 0,
        });
    }

    /// Notes what an edge tells; answers which connection may be read.
    fn edge(&mut self, event: EpollEvent) -> Option<ConnId> {
        let (data, flags) = (event.data(), event.events());
        if data & PORT != 0 {
            if data & WATCHED == WATCHED {
                self.ready.push_back(watching::ready(event));
                return None;
            }
            self.accepting = Some((PortKey(data as u32), ACCEPTS_A_TURN));
            return None;
        }
        if data == WAKER {
            self.ready.push_back(Event::Woken);
            return None;
        }
        let slot = self.slots.get_mut(data as u32 as usize)?.as_mut()?;
        if slot.id.generation() != (data >> 32) as u32 {
            return None;
        }
        let (id, connecting) = (slot.id, slot.connecting);
        let ending = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        slot.hung_up |= flags.intersects(ending);
        slot.urgent |= flags.contains(EpollFlags::EPOLLPRI);
        slot.readable |= flags.intersects(ending | EpollFlags::EPOLLIN);
        if connecting {
            return self.connected(id, flags);
        }
        if flags.intersects(EpollFlags::EPOLLOUT | EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
            self.send_rest(id);
        }
        Some(id)
    }

    fn connected(&mut self, id: ConnId, flags: EpollFlags) -> Option<ConnId> {
        let slot = self.slot(id)?;
        if flags.intersects(EpollFlags::EPOLLOUT | EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
            slot.connecting = false;
            let errno = sys::take_error(slot.socket.as_fd());
            self.ready.push_back(Event::Connected { id, errno });
        }
        None
    }

    /// Receives once, if the connection wants it and may have something.
    fn receive(&mut self, id: ConnId, buffer: &mut [u8]) -> Option<Found> {
        let slot = self.slots.get_mut(id.slot())?.as_mut().filter(|slot| slot.id == id)?;
        if !slot.reading || !slot.readable || slot.queued {
            return None;
        }
        if slot.unix | slot.rights {
            return self.receive_message(id, buffer);
        }
        let outcome = sys::receive(slot.socket.as_fd(), buffer);
        let more = slot.learn(outcome, buffer.len(), false);
        self.received(id, outcome, more)
    }

    /// The same where descriptors may come along: those whom the protocol wants are told first.
    fn receive_message(&mut self, id: ConnId, buffer: &mut [u8]) -> Option<Found> {
        let Self { slots, rights: inbox, .. } = self;
        let slot = slots.get_mut(id.slot())?.as_mut()?;
        let wanted = slot.rights;
        let fd = slot.socket.as_fd();
        let outcome = if wanted { inbox.receive(fd, buffer) } else { inbox.receive_bytes(fd, buffer) };
        let cut = slot.unix && inbox.ended_at_descriptor();
        let more = slot.learn(outcome, buffer.len(), cut);
        let descriptors = if wanted { inbox.take() } else { Vec::new() };
        match self.received(id, outcome, more) {
            Some(Found::Data { id, len }) if !descriptors.is_empty() => {
                self.behind = Some((id, len));
                Some(Found::Other(Event::Descriptors { id, descriptors }))
            }
            found => found,
        }
    }

    fn received(&mut self, id: ConnId, outcome: Result<usize, Errno>, more: bool) -> Option<Found> {
        if more {
            self.read_again(id);
        }
        self.counters.call(Syscall::Recv);
        match outcome.map_err(Errno::raw) {
            Ok(0) => Some(Found::Other(Event::End { id, errno: None })),
            Ok(len) => Some(Found::Data { id, len }),
            Err(libc::EAGAIN | libc::EINTR) => None,
            Err(raw) => Some(Found::Other(Event::End { id, errno: Some(Errno::from_raw(raw)) })),
        }
    }

    /// Reads this connection once more, after the others have had their turn.
    fn read_again(&mut self, id: ConnId) {
        let Some(slot) = self.slot(id) else { return };
        if !std::mem::replace(&mut slot.queued, true) {
            self.readers.push_back(id);
        }
    }

    /// Sends until the batch is gone or the socket is full: only then will an edge come.
    fn send(&mut self, id: ConnId, batch: &mut Batch) -> (usize, Option<Errno>) {
        let Some(slot) = self.slots.get_mut(id.slot()).and_then(Option::as_mut) else {
            return (0, Some(Errno::from_raw(libc::ENOTCONN)));
        };
        let mut bytes = 0;
        loop {
            self.counters.call(if batch.as_single().is_some() { Syscall::Send } else { Syscall::Sendmsg });
            match sys::send_now(slot.socket.as_fd(), batch) {
                Ok(now) => {
                    batch.advance(now.bytes);
                    bytes += now.bytes;
                    if batch.is_empty() || now.short {
                        return (bytes, None);
                    }
                }
                Err(errno) if errno.raw() == libc::EINTR => {}
                Err(errno) => return (bytes, (errno.raw() != libc::EAGAIN).then_some(errno)),
            }
        }
    }

    /// Goes on with what did not go at once.
    fn send_rest(&mut self, id: ConnId) {
        let Some(slot) = self.slot(id) else { return };
        let (Some(mut batch), gone) = (slot.batch.take(), std::mem::take(&mut slot.gone)) else {
            return;
        };
        let (bytes, errno) = self.send(id, &mut batch);
        let bytes = gone + bytes;
        self.ready.push_back(Event::Sent { id, sent: Sent { batch, bytes, errno } });
    }

    fn close(&mut self, id: ConnId, reset: bool) {
        if self.slot(id).is_none() {
            return;
        }
        if let Some(slot) = self.slots[id.slot()].take() {
            if reset {
                self.counters.call(Syscall::Setsockopt);
                sys::reset_on_close(slot.socket.as_fd());
            }
            self.counters.call(Syscall::Close);
            let Slot { socket, batch, gone, .. } = slot;
            drop(socket);
            if let Some(batch) = batch {
                let sent = Sent { batch, bytes: gone, errno: None };
                self.ready.push_back(Event::Sent { id, sent });
            }
        }
        self.ready.push_back(Event::Closed { id });
    }

    fn set_interest(&mut self, port: PortKey, flags: EpollFlags) {
        let Some(listener) = self.ports.get(&port) else { return };
        self.counters.call(Syscall::EpollCtl);
        let mut interest = EpollEvent::new(flags, PORT | u64::from(port.0));
        let changed = match self.epoll.modify(&**listener, &mut interest) {
            // The first attempt to add it had failed.
            Err(nix::errno::Errno::ENOENT) => self.epoll.add(&**listener, interest),
            changed => changed,
        };
        if let Err(errno) = changed {
            self.ready.push_back(Event::AcceptFailed { port, errno: errno.into() });
        }
    }

    /// Accepts one connection for the port whose turn it is. After an error the port is muted until
    /// [`Proactor::accept_again`], or a full descriptor table would spin.
    fn accept_next(&mut self) -> Option<Event<'static>> {
        let (port, left) = self.accepting.take()?;
        let listener = self.ports.get(&port)?;
        self.counters.call(Syscall::Accept);
        match listener.accept().and_then(|socket| self.reserve.check(socket)) {
            Ok(socket) => {
                self.accepting = left.checked_sub(1).map(|left| (port, left));
                Some(Event::Accepted { port, socket: Socket::Fd(socket) })
            }
            Err(errno) if errno.raw() == libc::EAGAIN => None,
            Err(errno) => {
                self.set_interest(port, EpollFlags::empty());
                Some(Event::AcceptFailed { port, errno })
            }
        }
    }
}

impl Sockets for Io {
    fn lend(&mut self, id: ConnId, ask: &mut dyn FnMut(BorrowedFd<'_>)) -> io::Result<()> {
        let slot = self.slot(id).ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        ask(slot.socket.as_fd());
        Ok(())
    }
}

/// Whole milliseconds, upwards: a timer is never early, and never makes the loop spin.
fn round_up(timeout: Duration) -> EpollTimeout {
    let millis = timeout.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as i32;
    EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::ZERO)
}
