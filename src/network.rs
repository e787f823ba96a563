//! A network that is only memory: what the kernel is to the other backends, this is to `backend/memory.rs`, and to the peers
//! of a test.
//!
//! Each socket belongs to a reactor or to a test. What a reactor sends waits for room at the other end; what a test sends is
//! there at once. A socket that is closed before all was received sends RST, as the kernel's do.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    address::{Address, UnixAddress},
    error::Errno,
    output::Batch,
    sys,
};

/// What a port listens with: a socket of the kernel's, or a place in a network that is only memory.
#[derive(Clone, Debug)]
pub(crate) enum Listening {
    Socket(Arc<sys::Listener>),
    Memory(Arc<Listener>),
}

impl Listening {
    /// Stops accepting at once and frees the address.
    pub(crate) fn stop(&self) {
        match self {
            Self::Socket(listener) => listener.stop(),
            Self::Memory(listener) => listener.stop(),
        }
    }

    /// Leaves what others have, too, to those.
    pub(crate) fn leave(&self) {
        if let Self::Socket(listener) = self {
            listener.leave();
        }
    }

    /// Whether others may accept here, too.
    pub(crate) fn is_shared(&self) -> bool {
        match self {
            Self::Socket(listener) => listener.is_shared(),
            Self::Memory(_) => false,
        }
    }

    /// The kernel's socket, if it is one.
    pub(crate) fn socket(self) -> Option<Arc<sys::Listener>> {
        match self {
            Self::Socket(listener) => Some(listener),
            Self::Memory(_) => None,
        }
    }
}

/// Names a socket of a network. None is used twice.
pub(crate) type Place = u32;

/// How a network answers an attempt to connect to an address at which nobody listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer {
    /// Connection refused.
    #[default]
    Refuse,
    /// Nothing comes back: the attempt lasts until it is given up.
    Silence,
    /// This error of the kernel's.
    Error(Errno),
}

/// Who receives what arrives at a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Reactor,
    Test,
}

/// Something that a reactor has to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    Socket(Place),
    Listener(u32),
}

/// What there is to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    Nothing,
    Bytes(usize),
    End(Option<Errno>),
}

/// How an attempt to connect stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    Pending,
    Over(Option<Errno>),
}

/// One end of a connection.
#[derive(Debug)]
struct Socket {
    owner: Owner,
    local: Address,
    remote: Address,
    /// If it connects or has connected to somebody.
    attempt: Option<Attempt>,
    /// The other end, until that is closed.
    other: Option<Place>,
    /// What has arrived and was not received.
    input: VecDeque<u8>,
    /// What a test has received.
    taken: Vec<u8>,
    /// Whether a test receives all that arrives.
    reads: bool,
    /// The other end has sent FIN.
    fin: bool,
    /// This end has.
    shut: bool,
    broken: Option<Errno>,
    no_delay: bool,
    keep_alive: bool,
}

#[derive(Debug)]
struct Bound {
    owner: Owner,
    address: Address,
    shared: bool,
    waiting: VecDeque<Place>,
    waiting_max: usize,
}

#[derive(Debug)]
struct State {
    next_place: Place,
    next_port: u16,
    sockets: HashMap<Place, Socket>,
    listeners: HashMap<u32, Bound>,
    answers: HashMap<Address, Answer>,
    hosts: HashMap<String, Vec<IpAddr>>,
    changed: VecDeque<Changed>,
    buffer_bytes: usize,
    segment_bytes: usize,
    sleep: Option<Duration>,
}

/// See the top of this file.
#[derive(Debug)]
pub(crate) struct Network(Mutex<State>);

/// A bound and listening place.
#[derive(Debug)]
pub(crate) struct Listener {
    network: Arc<Network>,
    place: u32,
}

impl Listener {
    pub(crate) fn place(&self) -> u32 {
        self.place
    }

    pub(crate) fn accept(&self) -> Option<Place> {
        let mut state = self.network.state();
        let place = state.listeners.get_mut(&self.place)?.waiting.pop_front()?;
        Some(place)
    }

    /// Frees the address, and turns away who waits.
    pub(crate) fn stop(&self) {
        let mut state = self.network.state();
        if let Some(bound) = state.listeners.remove(&self.place) {
            bound.waiting.into_iter().for_each(|place| state.close(place, true));
        }
    }
}

impl Network {
    /// An empty network, whose sockets hold so many bytes that nobody has received.
    pub(crate) fn new(buffer_bytes: usize) -> Arc<Self> {
        let localhost = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        Arc::new(Self(Mutex::new(State {
            next_place: 0,
            next_port: FIRST_PORT,
            sockets: HashMap::new(),
            listeners: HashMap::new(),
            answers: HashMap::new(),
            hosts: HashMap::from([("localhost".to_owned(), localhost)]),
            changed: VecDeque::new(),
            buffer_bytes,
            segment_bytes: usize::MAX,
            sleep: None,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_buffer_bytes(&self, bytes: usize) {
        self.state().buffer_bytes = bytes;
    }

    pub(crate) fn set_segment_bytes(&self, bytes: usize) {
        self.state().segment_bytes = bytes;
    }

    pub(crate) fn set_answer(&self, address: Address, answer: Answer) {
        self.state().answers.insert(address, answer);
    }

    pub(crate) fn set_host(&self, name: &str, addresses: Vec<IpAddr>) {
        self.state().hosts.insert(name.to_owned(), addresses);
    }

    /// The addresses of a host.
    pub(crate) fn resolve(&self, name: &str, port: u16) -> io::Result<Vec<Address>> {
        let state = self.state();
        let unknown =
            || io::Error::new(io::ErrorKind::NotFound, format!("{name} is no host of this network"));
        let addresses = state.hosts.get(name).ok_or_else(unknown)?;
        Ok(addresses.iter().map(|ip| SocketAddr::new(*ip, port).into()).collect())
    }

    /// Binds an address and listens; port 0 gives a free one. Answers with the address as well.
    pub(crate) fn bind(
        self: &Arc<Self>,
        owner: Owner,
        address: Address,
        waiting_max: u32,
        shared: bool,
    ) -> io::Result<(Listener, Address)> {
        let mut state = self.state();
        let address = state.with_port(address);
        let collides = |bound: &Bound| overlap(&bound.address, &address) && !(bound.shared && shared);
        if state.listeners.values().any(collides) {
            return Err(io::Error::from_raw_os_error(libc::EADDRINUSE));
        }
        let place = state.place();
        let waiting_max = waiting_max as usize;
        let bound = Bound { owner, address: address.clone(), shared, waiting: VecDeque::new(), waiting_max };
        state.listeners.insert(place, bound);
        drop(state);
        Ok((Listener { network: Arc::clone(self), place }, address))
    }

    /// A socket that connects; how far that got is told by [`attempt`](Self::attempt).
    pub(crate) fn connect(&self, owner: Owner, to: &Address, from: Option<Address>) -> Place {
        let mut state = self.state();
        let remote = reachable(to);
        let local = from.unwrap_or_else(|| any_address(&remote));
        let local = state.with_port(local);
        let client = state.add(Socket::new(owner, local, remote.clone()));
        let attempt = state.meet(client, &remote);
        if let Some(socket) = state.sockets.get_mut(&client) {
            socket.attempt = Some(attempt);
        }
        state.has_changed(client);
        client
    }

    /// How the attempt to connect stands; None if it was accepted.
    pub(crate) fn attempt(&self, place: Place) -> Option<Attempt> {
        self.state().sockets.get(&place)?.attempt
    }

    /// What reactors have to look at since they were last asked.
    pub(crate) fn take_changed(&self, into: &mut VecDeque<Changed>) {
        into.append(&mut self.state().changed);
    }

    /// Notes for how long the reactor would sleep now; None if it has something to do.
    pub(crate) fn set_sleep(&self, sleep: Option<Duration>) {
        self.state().sleep = sleep;
    }

    pub(crate) fn sleep(&self) -> Option<Duration> {
        self.state().sleep
    }
}

/// What can be done with a socket.
impl Network {
    /// Sends what there is room for; how many bytes.
    pub(crate) fn send(&self, place: Place, batch: &Batch) -> Result<usize, Errno> {
        self.state().send(place, batch.slices(), true)
    }

    /// Sends all of it, as a test does, which need not wait for room.
    pub(crate) fn send_all(&self, place: Place, bytes: &[u8]) -> Result<usize, Errno> {
        self.state().send(place, [bytes].into_iter(), false)
    }

    /// Receives a segment at most.
    pub(crate) fn receive(&self, place: Place, buffer: &mut [u8]) -> Received {
        self.state().receive(place, buffer)
    }

    /// Sends FIN.
    pub(crate) fn shutdown_write(&self, place: Place) {
        let mut state = self.state();
        let Some(socket) = state.sockets.get_mut(&place) else { return };
        socket.shut = true;
        if let Some(other) = socket.other {
            state.change(other, |other| other.fin = true);
        }
    }

    /// Closes it, with RST if `reset` or if not all was received.
    pub(crate) fn close(&self, place: Place, reset: bool) {
        self.state().close(place, reset);
    }

    /// Its own address and the other end's.
    pub(crate) fn addresses(&self, place: Place) -> Option<(Address, Address)> {
        let state = self.state();
        let socket = state.sockets.get(&place)?;
        Some((socket.local.clone(), socket.remote.clone()))
    }

    /// Reads TCP_NODELAY, after setting it if `set` says so.
    pub(crate) fn no_delay(&self, place: Place, set: Option<bool>) -> io::Result<bool> {
        let mut state = self.state();
        let socket = state.sockets.get_mut(&place).ok_or(io::ErrorKind::NotConnected)?;
        if !matches!(socket.local, Address::Tcp(_)) {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        socket.no_delay = set.unwrap_or(socket.no_delay);
        Ok(socket.no_delay)
    }

    /// Reads SO_KEEPALIVE, after setting it if `set` says so.
    pub(crate) fn keep_alive(&self, place: Place, set: Option<bool>) -> io::Result<bool> {
        let mut state = self.state();
        let socket = state.sockets.get_mut(&place).ok_or(io::ErrorKind::NotConnected)?;
        socket.keep_alive = set.unwrap_or(socket.keep_alive);
        Ok(socket.keep_alive)
    }
}

/// What only a test does with a socket of its own.
impl Network {
    /// Whether all that arrives is received at once.
    pub(crate) fn set_reads(&self, place: Place, reads: bool) {
        let mut state = self.state();
        let Some(socket) = state.sockets.get_mut(&place) else { return };
        socket.reads = reads;
        if reads {
            let input = std::mem::take(&mut socket.input);
            socket.taken.extend(input);
            if let Some(other) = socket.other {
                state.has_changed(other);
            }
        }
    }

    pub(crate) fn take_received(&self, place: Place) -> Vec<u8> {
        let mut state = self.state();
        state.sockets.get_mut(&place).map(|socket| std::mem::take(&mut socket.taken)).unwrap_or_default()
    }

    /// How receiving has ended, if it has: with FIN, or with an error.
    pub(crate) fn end(&self, place: Place) -> Option<Option<Errno>> {
        let state = self.state();
        let socket = state.sockets.get(&place)?;
        let ended = socket.fin && socket.input.is_empty();
        socket.broken.map(Some).or(ended.then_some(None))
    }

    /// Bytes that the other end has not received yet.
    pub(crate) fn unsent(&self, place: Place) -> usize {
        let state = self.state();
        let other = state.sockets.get(&place).and_then(|socket| socket.other);
        other.and_then(|other| state.sockets.get(&other)).map_or(0, |other| other.input.len())
    }
}

impl State {
    fn place(&mut self) -> Place {
        self.next_place += 1;
        self.next_place
    }

    fn add(&mut self, socket: Socket) -> Place {
        let place = self.place();
        self.sockets.insert(place, socket);
        place
    }

    /// The address with a port that nobody has, if it asks for any.
    fn with_port(&mut self, address: Address) -> Address {
        match address {
            Address::Tcp(mut tcp) if tcp.port() == 0 => {
                tcp.set_port(self.free_port());
                Address::Tcp(tcp)
            }
            other => other,
        }
    }

    /// Given in turn, so that a port rests long before it is used again.
    fn free_port(&mut self) -> u16 {
        loop {
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
            let taken = |bound: &Bound| bound.address.port() == Some(self.next_port);
            if !self.listeners.values().any(taken) {
                return self.next_port;
            }
        }
    }

    /// Joins a client to whoever listens, the one with the shortest line, and says what came of it.
    fn meet(&mut self, client: Place, to: &Address) -> Attempt {
        let listening = self.listeners.iter().filter(|(_, bound)| overlap(&bound.address, to));
        let Some((&place, bound)) = listening.min_by_key(|(place, bound)| (bound.waiting.len(), **place))
        else {
            return match self.answers.get(to).copied().unwrap_or_default() {
                Answer::Refuse => Attempt::Over(Some(Errno::from_raw(libc::ECONNREFUSED))),
                Answer::Silence => Attempt::Pending,
                Answer::Error(errno) => Attempt::Over(Some(errno)),
            };
        };
        if bound.waiting.len() >= bound.waiting_max {
            return Attempt::Over(Some(Errno::from_raw(libc::ECONNREFUSED)));
        }
        let owner = bound.owner;
        let Some(local) = self.sockets.get(&client).map(|client| client.local.clone()) else {
            return Attempt::Pending;
        };
        let mut server = Socket::new(owner, to.clone(), local);
        server.other = Some(client);
        let server = self.add(server);
        self.change(client, |client| client.other = Some(server));
        if let Some(bound) = self.listeners.get_mut(&place) {
            bound.waiting.push_back(server);
        }
        if owner == Owner::Reactor {
            self.changed.push_back(Changed::Listener(place));
        }
        Attempt::Over(None)
    }

    fn change(&mut self, place: Place, change: impl FnOnce(&mut Socket)) {
        if let Some(socket) = self.sockets.get_mut(&place) {
            change(socket);
            self.has_changed(place);
        }
    }

    fn has_changed(&mut self, place: Place) {
        let changed = Changed::Socket(place);
        if self.sockets.get(&place).is_some_and(|socket| socket.owner == Owner::Reactor)
            && self.changed.back() != Some(&changed)
        {
            self.changed.push_back(changed);
        }
    }

    fn send<'a>(
        &mut self,
        place: Place,
        slices: impl Iterator<Item = &'a [u8]>,
        waits_for_room: bool,
    ) -> Result<usize, Errno> {
        let Some(socket) = self.sockets.get_mut(&place) else { return Err(Errno::from_raw(libc::ENOTCONN)) };
        if let Some(errno) = socket.broken {
            return Err(errno);
        }
        if socket.shut {
            return Err(Errno::from_raw(libc::EPIPE));
        }
        let Some(place_of_other) = socket.other else {
            // Nobody is there: this goes on its way, and RST comes back.
            socket.broken = Some(Errno::from_raw(libc::EPIPE));
            self.has_changed(place);
            return Ok(slices.map(<[u8]>::len).sum());
        };
        let Some(other) = self.sockets.get_mut(&place_of_other) else { return Ok(0) };
        let mut room = match waits_for_room && !other.reads {
            true => self.buffer_bytes.saturating_sub(other.input.len()),
            false => usize::MAX,
        };
        let mut sent = 0;
        for slice in slices {
            let slice = &slice[..slice.len().min(room)];
            match other.reads {
                true => other.taken.extend_from_slice(slice),
                false => other.input.extend(slice),
            }
            (sent, room) = (sent + slice.len(), room - slice.len());
        }
        self.has_changed(place_of_other);
        Ok(sent)
    }

    fn receive(&mut self, place: Place, buffer: &mut [u8]) -> Received {
        let Some(socket) = self.sockets.get_mut(&place) else { return Received::Nothing };
        if socket.input.is_empty() {
            return match (socket.broken, socket.fin) {
                (None, false) => Received::Nothing,
                (errno, _) => Received::End(errno),
            };
        }
        let count = socket.input.len().min(buffer.len()).min(self.segment_bytes);
        let bytes = socket.input.drain(..count);
        buffer.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
        if let Some(other) = socket.other {
            self.has_changed(other);
        }
        Received::Bytes(count)
    }

    fn close(&mut self, place: Place, reset: bool) {
        let Some(socket) = self.sockets.remove(&place) else { return };
        let reset = reset || !socket.input.is_empty();
        let Some(other) = socket.other else { return };
        self.change(other, |other| {
            other.other = None;
            if !reset {
                other.fin = true;
                return;
            }
            other.broken.get_or_insert(Errno::from_raw(libc::ECONNRESET));
            if other.owner == Owner::Test {
                // RST overtakes what its sender had sent, as far as nobody has received it.
                other.input.clear();
            }
        });
    }
}

impl Socket {
    fn new(owner: Owner, local: Address, remote: Address) -> Self {
        Self {
            owner,
            local,
            remote,
            attempt: None,
            other: None,
            input: VecDeque::new(),
            taken: Vec::new(),
            reads: owner == Owner::Test,
            fin: false,
            shut: false,
            broken: None,
            no_delay: true,
            keep_alive: false,
        }
    }
}

/// Where ports that nobody asked for by number begin, as on Linux.
const FIRST_PORT: u16 = 32_768;

/// Whether who listens at one of these is there for who connects to the other.
fn overlap(one: &Address, other: &Address) -> bool {
    match (one.socket_addr(), other.socket_addr()) {
        (Some(one), Some(other)) => {
            let any = one.ip().is_unspecified() || other.ip().is_unspecified();
            one.port() == other.port() && one.is_ipv4() == other.is_ipv4() && (any || one.ip() == other.ip())
        }
        _ => one == other,
    }
}

/// Whoever connects to any address connects to this machine.
fn reachable(address: &Address) -> Address {
    match address {
        Address::Tcp(tcp) if tcp.ip().is_unspecified() => Address::Tcp((loopback(tcp), tcp.port()).into()),
        other => other.clone(),
    }
}

/// Where a client's end of a connection to this address is.
fn any_address(remote: &Address) -> Address {
    match remote {
        Address::Tcp(tcp) => Address::Tcp((loopback(tcp), 0).into()),
        _ => Address::Unix(UnixAddress::Unnamed),
    }
}

fn loopback(address: &SocketAddr) -> IpAddr {
    match address {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}
