//! The memory backend: the same seam over a network that is only memory (`network.rs`), under `ringspun::testing`.
//!
//! What happens there is noted by the network as an edge, which this looks into once a turn. It never sleeps: where it should, it
//! says for how long, and whoever turns the loop decides.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use super::{
    Datagram, DatagramBatch, Event, Proactor, Sent, Sockets,
    watching::{Interest, Watcher},
};
use crate::{
    address::Address,
    error::Errno,
    id::{ConnId, PortKey, WatchKey},
    network::{Attempt, Changed, Listener, Listening, Network, Place, Received},
    output::Batch,
    sys::{DatagramSocket, Name, Socket, watched_file::WatchedFile},
};

/// Bytes of the one receive buffer.
const BUFFER_BYTES: usize = 64 << 10;

struct Slot {
    place: Place,
    reading: bool,
    connecting: bool,
    /// What there was no room for, and how many bytes of its batch there was room for.
    batch: Option<(Box<Batch>, usize)>,
}

/// An event, without the loan of its data.
enum Found {
    Data { id: ConnId, len: usize },
    Other(Event<'static>),
}

/// Everything but the receive buffer.
struct Io {
    network: Arc<Network>,
    slots: HashMap<ConnId, Slot>,
    ids: HashMap<Place, ConnId>,
    ports: HashMap<PortKey, Arc<Listener>>,
    ready: VecDeque<Event<'static>>,
    /// What this turn has to look at, and what the next one has.
    edges: VecDeque<Changed>,
    again: VecDeque<Changed>,
}

/// See the top of this file.
pub(crate) struct Memory {
    io: Io,
    buffer: Vec<u8>,
}

/// Opens the backend over a network.
pub(crate) fn open(network: Arc<Network>) -> Box<dyn Proactor> {
    let io = Io {
        network,
        slots: HashMap::new(),
        ids: HashMap::new(),
        ports: HashMap::new(),
        ready: VecDeque::new(),
        edges: VecDeque::new(),
        again: VecDeque::new(),
    };
    Box::new(Memory { io, buffer: vec![0; BUFFER_BYTES] })
}

/// There is nothing to watch here: the reactor refuses to.
impl Watcher for Memory {
    fn watch(&mut self, _key: WatchKey, _file: &Arc<WatchedFile>, _interest: Interest) {}
}

impl Proactor for Memory {
    fn listen(&mut self, port: PortKey, listener: Listening) {
        if let Listening::Memory(listener) = listener {
            self.io.again.push_back(Changed::Listener(listener.place()));
            self.io.ports.insert(port, listener);
        }
    }

    /// Accepting does not fail here.
    fn accept_again(&mut self, _port: PortKey) {}

    fn shed(&mut self, _port: PortKey) -> usize {
        0
    }

    fn unlisten(&mut self, port: PortKey) {
        if let Some(listener) = self.io.ports.remove(&port) {
            listener.stop();
            self.io.ready.push_back(Event::Unlistened { port });
        }
    }

    /// A socket of the kernel's leads nowhere from here; one of the network is adopted.
    fn connect(&mut self, id: ConnId, _socket: OwnedFd, _name: &Name) {
        let errno = Some(Errno::from_raw(libc::ENETUNREACH));
        self.io.ready.push_back(Event::Connected { id, errno });
    }

    fn adopt(&mut self, id: ConnId, socket: Socket) {
        if let Socket::Direct(place) = socket {
            let connecting = self.io.network.attempt(place).is_some();
            self.io.slots.insert(id, Slot { place, reading: false, connecting, batch: None });
            self.io.ids.insert(place, id);
            self.io.again.push_back(Changed::Socket(place));
        }
    }

    fn refuse(&mut self, socket: Socket) {
        if let Socket::Direct(place) = socket {
            self.io.network.close(place, false);
        }
    }

    fn receive_descriptors(&mut self, _id: ConnId) {}

    fn read(&mut self, id: ConnId, on: bool) {
        let Some(slot) = self.io.slots.get_mut(&id) else { return };
        slot.reading = on;
        if on {
            self.io.again.push_back(Changed::Socket(slot.place));
        }
    }

    fn queues_sends(&self) -> bool {
        false
    }

    fn send(&mut self, id: ConnId, batch: Box<Batch>) -> Option<Sent> {
        self.io.send(id, batch, 0)
    }

    /// What goes at once comes back at once, and the rest as soon as there is room.
    fn hurry(&mut self, _id: ConnId) {}

    fn shutdown_write(&mut self, id: ConnId) {
        if let Some(slot) = self.io.slots.get(&id) {
            self.io.network.shutdown_write(slot.place);
        }
    }

    fn close(&mut self, id: ConnId, reset: bool) {
        if let Some(Slot { place, batch, .. }) = self.io.slots.remove(&id) {
            self.io.ids.remove(&place);
            self.io.network.close(place, reset);
            if let Some((batch, bytes)) = batch {
                self.io.ready.push_back(Event::Sent { id, sent: Sent { batch, bytes, errno: None } });
            }
        }
        self.io.ready.push_back(Event::Closed { id });
    }

    /// There are none here: the reactor refuses to open such a port.
    fn open_datagrams(&mut self, _port: PortKey, _socket: Arc<DatagramSocket>, _max_packet_size: usize) {}

    fn send_datagrams(&mut self, _port: PortKey, batch: Box<DatagramBatch>) -> Option<Box<DatagramBatch>> {
        Some(batch)
    }

    fn take_datagram(&mut self, _port: PortKey) -> Option<Datagram<'_>> {
        None
    }

    fn close_datagrams(&mut self, port: PortKey) {
        self.io.ready.push_back(Event::Unlistened { port });
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.io.edges.append(&mut self.io.again);
        self.io.network.take_changed(&mut self.io.edges);
        let sleeps = self.io.edges.is_empty() && self.io.ready.is_empty() && !timeout.is_zero();
        self.io.network.set_sleep(sleeps.then_some(timeout));
        Ok(())
    }

    fn next(&mut self) -> Option<(Event<'_>, &mut dyn Sockets)> {
        let found = loop {
            if let Some(event) = self.io.ready.pop_front() {
                break Found::Other(event);
            }
            let changed = self.io.edges.pop_front()?;
            let found = match changed {
                Changed::Listener(place) => self.io.accept(place),
                Changed::Socket(place) => self.io.look_at(place, &mut self.buffer),
            };
            if let Some(found) = found {
                break found;
            }
        };
        let event = match found {
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
    /// Accepts one peer, and looks for the next one after the rest of this turn.
    fn accept(&mut self, place: u32) -> Option<Found> {
        let (port, listener) = self.ports.iter().find(|(_, listener)| listener.place() == place)?;
        let socket = Socket::Direct(listener.accept()?);
        self.edges.push_back(Changed::Listener(place));
        Some(Found::Other(Event::Accepted { port: *port, socket }))
    }

    /// Goes on with whatever a socket was wanted for: to be connected, to send, to receive. One thing at a time, so it is looked at again
    /// in the next turn.
    fn look_at(&mut self, place: Place, buffer: &mut [u8]) -> Option<Found> {
        let id = *self.ids.get(&place)?;
        let slot = self.slots.get_mut(&id)?;
        if slot.connecting {
            let Some(Attempt::Over(errno)) = self.network.attempt(place) else { return None };
            slot.connecting = false;
            return Some(Found::Other(Event::Connected { id, errno }));
        }
        if let Some((batch, gone)) = slot.batch.take()
            && let Some(sent) = self.send(id, batch, gone)
        {
            self.again.push_back(Changed::Socket(place));
            return Some(Found::Other(Event::Sent { id, sent }));
        }
        let slot = self.slots.get_mut(&id).filter(|slot| slot.reading)?;
        match self.network.receive(place, buffer) {
            Received::Nothing => None,
            Received::Bytes(len) => {
                self.again.push_back(Changed::Socket(place));
                Some(Found::Data { id, len })
            }
            Received::End(errno) => {
                slot.reading = false;
                Some(Found::Other(Event::End { id, errno }))
            }
        }
    }

    /// Sends as much as there is room for. What is left stays here until there is more.
    fn send(&mut self, id: ConnId, mut batch: Box<Batch>, mut bytes: usize) -> Option<Sent> {
        let sent = loop {
            let sent = self.send_piece(id, &batch);
            let count = *sent.as_ref().unwrap_or(&0);
            batch.advance(count);
            bytes += count;
            if count == 0 || batch.is_empty() {
                break sent;
            }
        };
        if sent.is_ok() && !batch.is_empty() {
            self.slots.get_mut(&id)?.batch = Some((batch, bytes));
            return None;
        }
        Some(Sent { batch, bytes, errno: sent.err() })
    }

    /// Sends what lies before the next byte that a descriptor goes along with, for which there is no way here.
    fn send_piece(&self, id: ConnId, batch: &Batch) -> Result<usize, Errno> {
        let slot = self.slots.get(&id).ok_or(Errno::from_raw(libc::ENOTCONN))?;
        if batch.along().is_some() {
            return Err(Errno::from_raw(libc::EOPNOTSUPP));
        }
        self.network.send(slot.place, batch)
    }

    fn place(&self, id: ConnId) -> io::Result<Place> {
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        self.slots.get(&id).map(|slot| slot.place).ok_or_else(gone)
    }
}

/// There are no descriptors in memory, but what they would answer is known.
impl Sockets for Io {
    fn lend(&mut self, _id: ConnId, _ask: &mut dyn FnMut(BorrowedFd<'_>)) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a connection in memory has no descriptor"))
    }

    fn peer_address(&mut self, id: ConnId) -> Option<Address> {
        Some(self.network.addresses(self.place(id).ok()?)?.1)
    }

    fn local_address(&mut self, id: ConnId) -> Option<Address> {
        Some(self.network.addresses(self.place(id).ok()?)?.0)
    }

    fn no_delay(&mut self, id: ConnId, set: Option<bool>) -> io::Result<bool> {
        let place = self.place(id)?;
        self.network.no_delay(place, set)
    }

    fn keep_alive(&mut self, id: ConnId, set: Option<bool>) -> io::Result<bool> {
        let place = self.place(id)?;
        self.network.keep_alive(place, set)
    }
}
