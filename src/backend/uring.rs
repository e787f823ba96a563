//! The io_uring backend: multishot accept and, but on Linux 6.0, receive into shared buffers, one send in flight a
//! connection, one enter a turn.
//!
//! A slot (the place of a [`ConnId`]) is free again only when no operation of it is in flight, and
//! every completion carries the slot's generation, so that a late one is known as late.
//! [`ring`] holds the queues, [`buffers`] the receive buffers, [`wait`] the wait policy; [`receiving`] and
//! [`sending`] begin and end the two operations that carry bytes; `prove.rs` finds out what works here.

mod accepting;
mod buffers;
mod completing;
mod datagrams;
mod entries;
mod prove;
mod receiving;
mod rights;
mod ring;
mod sending;
pub(crate) mod wait;
mod watching;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use io_uring::{opcode, squeue, types};

use self::{
    accepting::{Accepting, close_stray},
    buffers::{Buffer, Buffers},
    datagrams::DatagramPorts,
    entries::{Message, close_entry},
    receiving::{Receiving, receives_may_stay_armed},
    rights::MessageInbox,
    ring::{Completion, Ring},
    sending::Sending,
    wait::{Recent, Wait},
    watching::Watching,
};
use super::{Datagram, DatagramBatch, Event, Proactor, Sent, Sockets};
use crate::{
    error::Error,
    id::{ConnId, PortKey, WatchKey},
    network::Listening,
    options::{Tier, UringOptions, WaitPolicy},
    output::Batch,
    stats::{Counters, Syscall},
    sys::{self, DatagramSocket, Name, Reserve, Socket, Waker},
};

pub(crate) use prove::prove;

/// Sheds at most this many peers at once when descriptors run out.
const SHED_MAX: usize = 64;

/// In the user data of a cancel; the rest names what it cancels.
const CANCEL: u64 = 1 << 62;

/// What a completion is for; the top byte of its user data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Receive = 1,
    ReceiveLarge,
    Send,
    Accept,
    Wake,
    Close,
    Shutdown,
    Connect,
    Linger,
    /// A socket that nobody wanted.
    Refuse,
    /// Lends a descriptor for a direct one; taken out of turn.
    Install,
    ReceiveDatagram,
    SendDatagram,
    ReceiveMessage,
    /// A poll of a foreign descriptor.
    Watch,
}

impl Kind {
    const ALL: [Self; 15] = [
        Self::Receive,
        Self::ReceiveLarge,
        Self::Send,
        Self::Accept,
        Self::Wake,
        Self::Close,
        Self::Shutdown,
        Self::Connect,
        Self::Linger,
        Self::Refuse,
        Self::Install,
        Self::ReceiveDatagram,
        Self::SendDatagram,
        Self::ReceiveMessage,
        Self::Watch,
    ];

    /// User data of an operation of a connection.
    fn of(self, id: ConnId) -> u64 {
        (self as u64) << 56 | u64::from(id.generation()) << 32 | id.slot() as u64
    }

    /// User data of an operation of a port or a foreign descriptor, or of none.
    fn of_port(self, key: u32) -> u64 {
        (self as u64) << 56 | u64::from(key)
    }

    /// None for a cancel.
    fn from(user_data: u64) -> Option<Self> {
        Self::ALL.get(((user_data >> 56) as usize).wrapping_sub(1)).copied()
    }
}

/// How far a connection's end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    No,
    /// The close waits for the operations in flight.
    Reaping,
    /// The close is in flight itself.
    Closing,
}

/// One slot.
struct Slot {
    id: ConnId,
    socket: Option<Socket>,
    in_flight: u32,
    receiving: Receiving,
    ending: Ending,
    sending: Sending,
    name: Option<Box<Name>>,
}

impl Slot {
    fn new(id: ConnId, socket: Socket) -> Self {
        Self {
            id,
            socket: Some(socket),
            in_flight: 0,
            receiving: Receiving::default(),
            ending: Ending::No,
            sending: Sending::default(),
            name: None,
        }
    }

    /// Whether an operation is in flight that has been cancelled.
    fn is_to_end(&self, kind: Kind) -> bool {
        let reaping = self.ending == Ending::Reaping;
        match kind {
            Kind::Send => reaping && self.sending.is_patient(),
            Kind::Connect => reaping && self.name.is_some(),
            _ => (reaping || self.receiving.cancelling) && self.receiving.kind() == Some(kind),
        }
    }
}

/// An event, without the loan of its data.
#[repr(u64)] // As `Event`.
enum Found {
    Data {
        id: ConnId,
        buffer: Buffer,
        len: u32,
    },
    /// The one that the ports for datagrams lend.
    Datagram(PortKey),
    Message {
        id: ConnId,
        bytes: Vec<u8>,
    },
    Other(Event<'static>),
}

/// What the last event lends, and the kernel gets back before the next one.
enum Lent {
    Nothing,
    Buffer(Buffer),
    Datagram,
}

/// Everything but the receive buffers, so that data can be lent from those while sockets are asked.
struct Io {
    ring: Ring,
    slots: Vec<Option<Slot>>,
    ports: BTreeMap<PortKey, Accepting>,
    watched: BTreeMap<WatchKey, Watching>,
    /// Foreign descriptors without a poll in flight.
    unarmed: VecDeque<WatchKey>,
    /// Events that need no completion.
    ready: VecDeque<Event<'static>>,
    /// Connections to be armed before the next wait.
    rearm: Vec<ConnId>,
    /// Connections in line for a small or a large buffer.
    parked: [VecDeque<ConnId>; 2],
    /// Sends that have been tried once the next enter is over, and those whose enter is over.
    trying: Vec<ConnId>,
    tried: VecDeque<ConnId>,
    /// The same for ports for datagrams, and the datagrams that were not taken.
    trying_datagrams: Vec<PortKey>,
    tried_datagrams: Vec<PortKey>,
    failed_datagrams: Vec<Completion>,
    /// The next wait is not to sleep: somebody waits for one of them, or stands in line.
    hurried: bool,
    /// Spare message headers, for sends in pieces.
    #[allow(clippy::vec_box)] // The kernel is given their addresses, so they must not move.
    messages: Vec<Box<Message>>,
    /// By slot, for connections that take descriptors.
    messages_in: BTreeMap<usize, MessageInbox>,
    /// What is to be told after its descriptors.
    behind: Option<Found>,
    direct: bool,
    multishot: bool,
    /// Receives from connections stay armed.
    armed_receives: bool,
    /// A send can say whom it is for.
    sends_to_names: bool,
    reserve: Reserve,
    waker: Arc<Waker>,
    waker_armed: bool,
    counters: Arc<Counters>,
}

/// See the top of this file.
pub(crate) struct Uring {
    // Declared, and so dropped, before the buffers that the kernel writes to through it.
    io: Io,
    buffers: Buffers,
    datagrams: DatagramPorts,
    lent: Lent,
    /// The message that was told last.
    message: Vec<u8>,
    recent: Recent,
    policy: WaitPolicy,
}

/// Opens the backend with a tier that was proved to work.
pub(crate) fn open(
    options: &UringOptions,
    tier: Tier,
    counters: Arc<Counters>,
    waker: Arc<Waker>,
) -> Result<Box<dyn Proactor>, Error> {
    let uring = Uring::open(options, tier, counters, waker)
        .map_err(|error| super::diagnosis::Denial::find(&error).into_error())?;
    Ok(Box::new(uring))
}

impl Uring {
    fn open(
        options: &UringOptions,
        tier: Tier,
        counters: Arc<Counters>,
        waker: Arc<Waker>,
    ) -> io::Result<Self> {
        let ring = Ring::open(options, tier, Arc::clone(&counters))?;
        if options.direct {
            let places = sys::descriptor_limit().min(1 << 20) as u32;
            ring.submitter().register_files_sparse(places)?;
        }
        let buffers = Buffers::register(&ring, options.buffers, options.buffer_bytes)?;
        let io = Io {
            ring,
            slots: Vec::new(),
            ports: BTreeMap::new(),
            watched: BTreeMap::new(),
            unarmed: VecDeque::new(),
            ready: VecDeque::new(),
            rearm: Vec::new(),
            parked: Default::default(),
            trying: Vec::new(),
            tried: VecDeque::new(),
            trying_datagrams: Vec::new(),
            tried_datagrams: Vec::new(),
            failed_datagrams: Vec::new(),
            hurried: false,
            messages: Vec::new(),
            messages_in: BTreeMap::new(),
            behind: None,
            direct: options.direct,
            multishot: options.multishot,
            armed_receives: options.multishot && receives_may_stay_armed(tier),
            // As rings with deferred task work, it is there since Linux 6.1.
            sends_to_names: tier != Tier::Coop,
            reserve: Reserve::new(),
            waker,
            waker_armed: false,
            counters,
        };
        let (datagrams, recent) = (DatagramPorts::default(), Recent::default());
        let message = Vec::new();
        Ok(Self { io, buffers, datagrams, lent: Lent::Nothing, message, recent, policy: options.wait })
    }

    fn recycle_lent(&mut self) {
        match std::mem::replace(&mut self.lent, Lent::Nothing) {
            Lent::Nothing => {}
            Lent::Buffer(buffer) => self.buffers.recycle(buffer),
            Lent::Datagram => self.datagrams.recycle_lent(),
        }
    }

    /// Waits by the policy, and learns from what came.
    fn wait_by_policy(&mut self, timeout: Duration) -> io::Result<()> {
        match self.policy {
            WaitPolicy::Adaptive => {
                let wait = if timeout.is_zero() { Wait::One } else { self.recent.wait() };
                self.io.ring.submit_and_wait(wait, timeout)?;
                self.recent = self.recent.after(wait, self.io.ring.ready());
                Ok(())
            }
            WaitPolicy::Latency { spin } => {
                self.spin(spin.min(timeout))?;
                if self.io.ring.ready() > 0 {
                    return Ok(());
                }
                self.io.ring.submit_and_wait(Wait::One, timeout.saturating_sub(spin))
            }
        }
    }

    /// Looks for completions without going to sleep.
    fn spin(&mut self, spin: Duration) -> io::Result<()> {
        let start = Instant::now();
        while !spin.is_zero() && self.io.ring.ready() == 0 && start.elapsed() < spin {
            self.io.ring.submit()?;
        }
        Ok(())
    }
}

impl Proactor for Uring {
    fn listen(&mut self, port: PortKey, listener: Listening) {
        let Some(listener) = listener.socket() else { return };
        self.io.ports.insert(port, Accepting { listener, armed: false, ending: false });
        self.io.arm_accept(port);
    }

    fn accept_again(&mut self, port: PortKey) {
        self.io.arm_accept(port);
    }

    fn shed(&mut self, port: PortKey) -> usize {
        let Some(accepting) = self.io.ports.get(&port) else { return 0 };
        self.io.reserve.shed(&accepting.listener, SHED_MAX, &mut |call| self.io.counters.call(call))
    }

    fn unlisten(&mut self, port: PortKey) {
        self.io.unlisten(port);
    }

    fn connect(&mut self, id: ConnId, socket: OwnedFd, name: &Name) {
        self.io.connect(id, socket, name);
    }

    fn adopt(&mut self, id: ConnId, socket: Socket) {
        self.io.adopt(id, socket);
    }

    fn refuse(&mut self, socket: Socket) {
        let close = close_entry(socket).user_data(Kind::Refuse.of_port(0));
        // SAFETY: a close points to nothing.
        unsafe { self.io.ring.push(close) };
    }

    fn receive_descriptors(&mut self, id: ConnId) {
        self.io.receive_descriptors(id);
    }

    fn read(&mut self, id: ConnId, on: bool) {
        self.io.read(id, on, &self.buffers);
    }

    fn queues_sends(&self) -> bool {
        true
    }

    fn send(&mut self, id: ConnId, batch: Box<Batch>) -> Option<Sent> {
        self.io.send(id, batch)
    }

    fn hurry(&mut self, id: ConnId) {
        self.io.hurry(id);
    }

    fn shutdown_write(&mut self, id: ConnId) {
        self.io.shutdown_write(id);
    }

    fn close(&mut self, id: ConnId, reset: bool) {
        self.io.close(id, reset);
    }

    fn open_datagrams(&mut self, port: PortKey, socket: Arc<DatagramSocket>, max_packet_size: usize) {
        self.datagrams.open(&mut self.io, port, socket, max_packet_size);
    }

    fn send_datagrams(&mut self, port: PortKey, batch: Box<DatagramBatch>) -> Option<Box<DatagramBatch>> {
        self.datagrams.send(&mut self.io, port, batch)
    }

    fn take_datagram(&mut self, _port: PortKey) -> Option<Datagram<'_>> {
        self.datagrams.read_lent()
    }

    fn close_datagrams(&mut self, port: PortKey) {
        self.datagrams.close(&mut self.io, port);
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.recycle_lent();
        self.buffers.publish();
        self.datagrams.prepare(&mut self.io);
        self.io.rearm(&self.buffers);
        self.io.arm_waker();
        self.io.arm_watches();
        if std::mem::take(&mut self.io.hurried) || !self.io.ready.is_empty() {
            self.io.ring.submit()?;
        } else {
            self.wait_by_policy(timeout)?;
        }
        self.io.ring.mind_overflow();
        self.io.take_tried();
        self.datagrams.take_tried(&mut self.io);
        Ok(())
    }

    fn next(&mut self) -> Option<(Event<'_>, &mut dyn Sockets)> {
        self.recycle_lent();
        if let Some(event) = self.io.next_ready() {
            return Some((event, &mut self.io));
        }
        let event = match self.io.next_completed(&mut self.buffers, &mut self.datagrams)? {
            Found::Data { id, buffer, len } => {
                self.lent = Lent::Buffer(buffer);
                Event::Data { id, data: self.buffers.slice(buffer, len) }
            }
            Found::Message { id, bytes } => {
                self.message = bytes;
                Event::Data { id, data: &self.message }
            }
            Found::Datagram(port) => {
                self.lent = Lent::Datagram;
                Event::Datagram { port }
            }
            Found::Other(event) => event,
        };
        Some((event, &mut self.io))
    }

    fn sockets(&mut self) -> &mut dyn Sockets {
        &mut self.io
    }
}

/// Starting operations.
impl Io {
    fn slot(&mut self, id: ConnId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(id.slot())?.as_mut()?;
        (slot.id == id).then_some(slot)
    }

    fn adopt(&mut self, id: ConnId, socket: Socket) {
        if self.slots.len() <= id.slot() {
            self.slots.resize_with(id.slot() + 1, || None);
        }
        self.slots[id.slot()] = Some(Slot::new(id, socket));
    }

    /// Queues an operation of a connection and counts it.
    ///
    /// # Safety
    /// As for [`Ring::push`].
    unsafe fn push(&mut self, id: ConnId, kind: Kind, entry: squeue::Entry) {
        if let Some(slot) = self.slot(id) {
            slot.in_flight += 1;
        }
        // SAFETY: as the caller promises.
        unsafe { self.ring.push(entry.user_data(kind.of(id))) };
    }

    /// Asks the kernel to end the operation of this user data, again and again if need be (`Io::cancelled`).
    fn cancel(&mut self, user_data: u64) {
        let cancel = opcode::AsyncCancel::new(user_data).build().user_data(CANCEL | user_data);
        // SAFETY: a cancel points to nothing.
        unsafe { self.ring.push(cancel) };
    }

    fn connect(&mut self, id: ConnId, socket: OwnedFd, name: &Name) {
        self.adopt(id, Socket::Fd(socket));
        let Some(slot) = self.slot(id) else { return };
        let Some(Socket::Fd(fd)) = &slot.socket else { return };
        let fd = types::Fd(fd.as_raw_fd());
        // Boxed, so that it stays where the kernel looks for it.
        let name = slot.name.insert(Box::new(name.clone())).raw();
        let entry = opcode::Connect::new(fd, name.as_ptr(), name.len()).build();
        // SAFETY: the name is dropped only with the slot, which outlives the operation.
        unsafe { self.push(id, Kind::Connect, entry) };
    }

    /// The eventfd is never read: each write wakes the poll, and a full counter stays readable.
    fn arm_waker(&mut self) {
        if !std::mem::replace(&mut self.waker_armed, true) {
            let fd = types::Fd(self.waker.raw());
            let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true).build();
            // SAFETY: a poll points to nothing.
            unsafe { self.ring.push(entry.user_data(Kind::Wake.of_port(0))) };
        }
    }

    fn shutdown_write(&mut self, id: ConnId) {
        let Some(slot) = self.slot(id) else { return };
        match &slot.socket {
            Some(Socket::Fd(fd)) => {
                sys::shutdown_write(fd.as_fd());
                self.counters.call(Syscall::Shutdown);
            }
            Some(Socket::Direct(place)) => {
                let entry = opcode::Shutdown::new(types::Fixed(*place), libc::SHUT_WR).build();
                // SAFETY: a shutdown points to nothing.
                unsafe { self.push(id, Kind::Shutdown, entry) };
            }
            None => {}
        }
    }
}

/// Ending connections.
impl Io {
    fn close(&mut self, id: ConnId, reset: bool) {
        let Some(slot) = self.slot(id).filter(|slot| slot.ending == Ending::No) else { return };
        slot.ending = Ending::Reaping;
        slot.receiving.wanted = false;
        let (armed, sending) = (slot.receiving.armed.is_some(), slot.sending.is_patient());
        let connecting = slot.name.is_some();
        match &slot.socket {
            Some(Socket::Fd(fd)) if reset => {
                sys::reset_on_close(fd.as_fd());
                // Ends the receive at once; a cancel would search for it. Only before a reset: a
                // socket in FIN_WAIT2 that was shut for reading opens its window no more, and
                // its peer would wait for a minute.
                if armed {
                    sys::shutdown_read(fd.as_fd());
                }
                self.count_reset_calls(armed);
            }
            Some(Socket::Direct(place)) if reset => {
                let place = *place;
                self.linger(id, place);
                self.cancel_receive(id);
            }
            _ => self.cancel_receive(id),
        }
        if sending {
            self.cancel(Kind::Send.of(id));
        }
        if connecting {
            self.cancel(Kind::Connect.of(id));
        }
        self.hurry(id);
        self.close_if_reaped(id);
    }

    fn count_reset_calls(&self, armed: bool) {
        self.counters.call(Syscall::Setsockopt);
        if armed {
            self.counters.call(Syscall::Shutdown);
        }
    }

    /// Makes the close of a direct descriptor send RST: there is no descriptor for setsockopt(2).
    fn linger(&mut self, id: ConnId, place: u32) {
        static LINGER: libc::linger = libc::linger { l_onoff: 1, l_linger: 0 };
        let entry = opcode::SetSockOpt::new(
            types::Fixed(place),
            libc::SOL_SOCKET as u32,
            libc::SO_LINGER as u32,
            (&raw const LINGER).cast(),
            size_of::<libc::linger>() as u32,
        );
        // SAFETY: the value is static.
        unsafe { self.push(id, Kind::Linger, entry.build()) };
    }

    /// Closes the socket once nothing else of the connection is in flight: until then close would
    /// send nothing, and the slot's memory is the kernel's.
    fn close_if_reaped(&mut self, id: ConnId) {
        let Some(slot) = self.slot(id) else { return };
        if slot.ending != Ending::Reaping || slot.in_flight > 0 {
            return;
        }
        slot.ending = Ending::Closing;
        if let Some(socket) = slot.socket.take() {
            // SAFETY: a close points to nothing.
            unsafe { self.push(id, Kind::Close, close_entry(socket)) };
        }
    }
}

impl Sockets for Io {
    fn lend(&mut self, id: ConnId, ask: &mut dyn FnMut(BorrowedFd<'_>)) -> io::Result<()> {
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        let slot = self.slot(id).ok_or_else(gone)?;
        let place = match &slot.socket {
            Some(Socket::Fd(fd)) => {
                ask(fd.as_fd());
                return Ok(());
            }
            Some(Socket::Direct(place)) => *place,
            None => return Err(gone()),
        };
        self.lend_direct(place, ask)
    }
}

impl Io {
    /// Installs a direct descriptor among the process's for as long as the question takes. Direct
    /// descriptors are for when those run out, so the reserved one is given up for it.
    fn lend_direct(&mut self, place: u32, ask: &mut dyn FnMut(BorrowedFd<'_>)) -> io::Result<()> {
        let entry = opcode::FixedFdInstall::new(types::Fixed(place), 0).build();
        let entry = entry.user_data(Kind::Install.of_port(0));
        let Self { ring, reserve, counters, .. } = self;
        reserve.without(|| {
            // SAFETY: an install points to nothing.
            let completion = unsafe { ring.call(entry)? };
            let raw = completion.outcome().map_err(io::Error::from)? as i32;
            // SAFETY: the install has just made this descriptor, and nobody else knows it.
            let fd = unsafe { OwnedFd::from_raw_fd(raw) };
            ask(fd.as_fd());
            counters.call(Syscall::Close);
            Ok(())
        })
    }
}

impl Drop for Uring {
    /// Nothing is freed while the kernel may touch it: what cannot be reaped is leaked.
    fn drop(&mut self) {
        let direct = self.io.direct;
        let leave = |completion: Completion| match Kind::from(completion.user_data()) {
            Some(Kind::Accept) if !direct => close_stray(completion),
            Some(Kind::Install) => close_stray(completion),
            _ => {}
        };
        if self.io.ring.is_ours() && (self.io.ring.in_flight() == 0 || self.io.ring.drain(leave)) {
            return;
        }
        std::mem::forget(std::mem::take(&mut self.io.slots));
        std::mem::forget(std::mem::take(&mut self.io.messages_in));
        self.buffers.leak();
        self.datagrams.leak();
    }
}
