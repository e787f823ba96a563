//! A listening port, as the program holds it.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use crate::{
    address::Address,
    error::Error,
    id::{HostKey, PortKey},
    network::Listening,
    policies::Guard,
    reactor::{Command, Core, Reactor},
    sys::DatagramSocket,
};

/// Where and how to listen.
///
/// ```
/// use ringspun::ListenOptions;
///
/// let everywhere = ListenOptions::from(8000);
/// let one_of_many = ListenOptions::from(("127.0.0.1", 0)).backlog(50).reuse_port(true);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenOptions {
    pub(crate) interface: Result<IpAddr, String>,
    pub(crate) port: u16,
    pub(crate) backlog: u32,
    pub(crate) reuse_port: bool,
}

impl ListenOptions {
    /// How many connections may wait to be accepted; the kernel caps it at `net.core.somaxconn`.
    /// 1024 by default, so that a burst of clients is not turned away.
    pub fn backlog(mut self, backlog: u32) -> Self {
        self.backlog = backlog;
        self
    }

    /// Lets several ports share one address, each with its own queue (`SO_REUSEPORT`): one reactor
    /// a core.
    pub fn reuse_port(mut self, reuse_port: bool) -> Self {
        self.reuse_port = reuse_port;
        self
    }

    fn new(interface: Result<IpAddr, String>, port: u16) -> Self {
        Self { interface, port, backlog: 1024, reuse_port: false }
    }

    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        let ip = self.interface.as_ref().copied().map_err(|word| {
            io::Error::other(format!("{word:?} is no IP address; give one such as 127.0.0.1 or ::1"))
        })?;
        Ok((ip, self.port).into())
    }

    pub(crate) fn describe(&self) -> String {
        match &self.interface {
            Ok(ip) => SocketAddr::new(*ip, self.port).to_string(),
            Err(word) => format!("{word}:{}", self.port),
        }
    }
}

/// A port on all IPv4 interfaces, as Twisted's `listenTCP(port, ..)`.
impl From<u16> for ListenOptions {
    fn from(port: u16) -> Self {
        Self::new(Ok(Ipv4Addr::UNSPECIFIED.into()), port)
    }
}

impl From<SocketAddr> for ListenOptions {
    fn from(address: SocketAddr) -> Self {
        Self::new(Ok(address.ip()), address.port())
    }
}

impl From<(IpAddr, u16)> for ListenOptions {
    fn from((ip, port): (IpAddr, u16)) -> Self {
        Self::new(Ok(ip), port)
    }
}

/// An interface by its address, such as `127.0.0.1` or `::1`. Anything else makes `listen_tcp` fail.
impl From<(&str, u16)> for ListenOptions {
    fn from((interface, port): (&str, u16)) -> Self {
        Self::new(interface.parse().map_err(|_| interface.to_owned()), port)
    }
}

/// Called when a port has ended: without an error after `stop_listening` or a shutdown.
pub(crate) type OnDone = Box<dyn FnOnce(&Reactor, Option<&Error>) + Send>;

/// A listening port. Clones name the same port; dropping them leaves it open.
#[derive(Clone)]
pub struct Port {
    shared: Arc<Shared>,
}

struct Shared {
    core: Weak<Core>,
    key: PortKey,
    host: HostKey,
    factory_name: &'static str,
    guard: Option<Arc<Guard>>,
    /// Until the port has ended: a handle that is kept must not keep the descriptor.
    socket: Mutex<Option<PortSocket>>,
    address: Address,
    stopped: AtomicBool,
    ending: Mutex<Ending>,
}

/// What a port receives by.
#[derive(Clone)]
pub(crate) enum PortSocket {
    Stream(Listening),
    Datagram(Arc<DatagramSocket>),
}

impl PortSocket {
    /// Frees the address, though the descriptor stays open.
    fn stop(&self) {
        match self {
            Self::Stream(listener) => listener.stop(),
            Self::Datagram(socket) => socket.stop(),
        }
    }
}

enum Ending {
    /// Who wants to be told.
    ToCome(Vec<OnDone>),
    /// How it ended.
    Done(Option<Error>),
}

impl Port {
    pub(crate) fn new(
        core: &Arc<Core>,
        host: HostKey,
        factory_name: &'static str,
        guard: Option<Arc<Guard>>,
        socket: PortSocket,
        address: Address,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                core: Arc::downgrade(core),
                key: PortKey(core.next_key()),
                host,
                factory_name,
                guard,
                socket: Mutex::new(Some(socket)),
                address,
                stopped: AtomicBool::new(false),
                ending: Mutex::new(Ending::ToCome(Vec::new())),
            }),
        }
    }

    /// The address that is listened on, with the real port if 0 was asked for.
    pub fn get_host(&self) -> Address {
        self.shared.address.clone()
    }

    /// Closes the port. From here on no connection is accepted, and the address may be listened on
    /// again, unless [others have the socket](Self::try_clone_socket); connections already made live on. Twice is fine.
    pub fn stop_listening(&self) {
        if self.mark_stopped()
            && let Some(core) = self.shared.core.upgrade()
        {
            Reactor { core }.push(Command::StopListening(self.shared.key));
        }
    }

    /// Another descriptor of the listening socket, for somebody who is to accept from it too, at the end instead of this port:
    /// a successor of this process ([`Activation`](crate::Activation) starts one with it) or another reactor
    /// ([`Reactor::adopt_stream_port`]). As they share one backlog, nobody is refused as long as one of them accepts, or is about to.
    ///
    /// A port whose socket others may have, as one that was adopted, ends otherwise: it is closed, but goes on listening where it is
    /// open elsewhere; the file of a Unix socket stays; and whoever this side has accepted is served, not turned away. When
    /// [`on_done`](Self::on_done) tells of its end, each of those has its protocol. Only a reactor that is being stopped turns away.
    ///
    /// # Errors
    /// If the port has been stopped, is one in memory, or there is no descriptor to be had.
    pub fn try_clone_socket(&self) -> io::Result<OwnedFd> {
        let ended = || io::Error::new(io::ErrorKind::NotConnected, "the port has been stopped");
        let listener = self.listener().filter(|_| !self.is_stopped()).ok_or_else(ended)?;
        let in_memory = || io::Error::new(io::ErrorKind::Unsupported, "a port in memory has no descriptor");
        listener.socket().ok_or_else(in_memory)?.share()?.ok_or_else(ended)
    }

    /// Calls `call` on the reactor's thread when the port has ended: with None after
    /// [`stop_listening`](Self::stop_listening) or a shutdown, with the error if it never opened.
    /// If it has ended already, in the next turn.
    pub fn on_done(&self, call: impl FnOnce(&Reactor, Option<&Error>) + Send + 'static) {
        let mut ending = self.shared.ending.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *ending {
            Ending::ToCome(calls) => calls.push(Box::new(call)),
            Ending::Done(error) => {
                let error = error.clone();
                if let Some(core) = self.shared.core.upgrade() {
                    Reactor { core }.call_from_thread(move |reactor| call(reactor, error.as_ref()));
                }
            }
        }
    }

    /// Whether this was the first to stop it. The kernel stops accepting at once.
    pub(crate) fn mark_stopped(&self) -> bool {
        let first = !self.shared.stopped.swap(true, SeqCst);
        if first {
            self.socket().iter().for_each(PortSocket::stop);
        }
        first
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.shared.stopped.load(SeqCst)
    }

    /// The reactor is being stopped, so it serves nobody new.
    pub(crate) fn shut(&self) -> bool {
        self.listener().into_iter().for_each(|listener| listener.leave());
        self.mark_stopped()
    }

    /// Whether a peer that was accepted before the port was stopped comes too late: not if the socket has others who accept,
    /// for nobody can tell who of them has accepted whom.
    pub(crate) fn turns_away(&self) -> bool {
        self.is_stopped() && !self.listener().is_some_and(|listener| listener.is_shared())
    }

    /// The port has ended: lets go of its descriptor and answers who is to be told.
    pub(crate) fn end(&self, error: Option<&Error>) -> Vec<OnDone> {
        self.mark_stopped();
        drop(self.shared.socket.lock().unwrap_or_else(PoisonError::into_inner).take());
        let mut ending = self.shared.ending.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *ending, Ending::Done(error.cloned())) {
            Ending::ToCome(calls) => calls,
            Ending::Done(_) => Vec::new(),
        }
    }

    pub(crate) fn key(&self) -> PortKey {
        self.shared.key
    }

    pub(crate) fn host(&self) -> HostKey {
        self.shared.host
    }

    pub(crate) fn factory_name(&self) -> &'static str {
        self.shared.factory_name
    }

    /// The policies for those who come to it.
    pub(crate) fn guard(&self) -> Option<&Arc<Guard>> {
        self.shared.guard.as_ref()
    }

    /// The factory for those who are too many, if it has one.
    pub(crate) fn overflow(&self) -> Option<HostKey> {
        self.guard()?.overflow()
    }

    /// What it listens with, until the port has ended.
    pub(crate) fn listener(&self) -> Option<Listening> {
        match self.socket()? {
            PortSocket::Stream(listener) => Some(listener),
            PortSocket::Datagram(_) => None,
        }
    }

    /// The socket for datagrams, until the port has ended.
    pub(crate) fn datagram_socket(&self) -> Option<Arc<DatagramSocket>> {
        match self.socket()? {
            PortSocket::Stream(_) => None,
            PortSocket::Datagram(socket) => Some(socket),
        }
    }

    fn socket(&self) -> Option<PortSocket> {
        self.shared.socket.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn is_unix(&self) -> bool {
        self.shared.address.unix().is_some()
    }

    /// Its number, or the name of its Unix socket.
    pub(crate) fn name(&self) -> String {
        name(&self.shared.address)
    }

    /// What the log calls it, as Twisted does: `TCP Port 8000`, `UNIX Port /run/web.sock`.
    pub(crate) fn label(&self) -> String {
        label(&self.shared.address)
    }
}

/// The number of a port, or the name of its Unix socket.
pub(crate) fn name(address: &Address) -> String {
    address.port().map_or_else(|| address.to_string(), |number| number.to_string())
}

/// What the log calls a port.
pub(crate) fn label(address: &Address) -> String {
    match address {
        Address::Tcp(address) => format!("TCP Port {}", address.port()),
        Address::Udp(address) => format!("UDP Port {}", address.port()),
        address => format!("UNIX Port {address}"),
    }
}

impl From<&Port> for Address {
    fn from(port: &Port) -> Self {
        port.get_host()
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port")
            .field("address", &self.shared.address)
            .field("stopped", &self.is_stopped())
            .finish_non_exhaustive()
    }
}
