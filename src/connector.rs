//! A connection that this side makes, from the first attempt to the last.

use std::{
    error, fmt,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use crate::{
    address::Address,
    factory_handle::HostToken,
    id::{ConnId, HostKey},
    policies::Guard,
    reactor::{Command, Core, Reactor},
};

/// Whom to connect to, and how.
///
/// ```
/// use {ringspun::ConnectOptions, std::time::Duration};
///
/// let options = ConnectOptions::from(("localhost", 8000)).timeout(Duration::from_secs(5));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectOptions {
    pub(crate) destination: Destination,
    pub(crate) timeout: Duration,
    pub(crate) bind: Option<SocketAddr>,
}

/// Where a connector connects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    Address(Address),
    Name(String, u16),
    /// Nowhere: the socket came connected.
    Adopted,
}

impl ConnectOptions {
    /// How long one attempt may take, name resolution included. 30 s by default, as in Twisted.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The local address to connect from (Twisted's `bindAddress`); port 0 lets the kernel choose.
    pub fn bind(mut self, address: SocketAddr) -> Self {
        self.bind = Some(address);
        self
    }

    /// One address, whatever its kind.
    pub(crate) fn to(address: Address) -> Self {
        Self::new(Destination::Address(address))
    }

    fn new(destination: Destination) -> Self {
        Self { destination, timeout: Duration::from_secs(30), bind: None }
    }
}

impl From<SocketAddr> for ConnectOptions {
    fn from(address: SocketAddr) -> Self {
        Self::to(address.into())
    }
}

impl From<(IpAddr, u16)> for ConnectOptions {
    fn from(address: (IpAddr, u16)) -> Self {
        SocketAddr::from(address).into()
    }
}

/// A host by name or address. A name is resolved off the reactor's thread, and its addresses are
/// tried in turn.
impl From<(&str, u16)> for ConnectOptions {
    fn from((host, port): (&str, u16)) -> Self {
        match host.parse::<IpAddr>() {
            Ok(ip) => (ip, port).into(),
            Err(_) => Self::new(Destination::Name(host.to_owned(), port)),
        }
    }
}

impl From<(String, u16)> for ConnectOptions {
    fn from((host, port): (String, u16)) -> Self {
        (host.as_str(), port).into()
    }
}

/// Where a [`Connector`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectorState {
    /// An attempt is under way.
    Connecting,
    /// The connection is made.
    Connected,
    /// Neither; `connect` may be called.
    Disconnected,
}

/// A method of a [`Connector`] was called in the wrong state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectorError {
    wanted: &'static str,
    state: ConnectorState,
}

impl fmt::Display for ConnectorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: the connector is {:?}", self.wanted, self.state)
    }
}

impl error::Error for ConnectorError {}

/// Makes one connection at a time for a factory, as Twisted's connectors do. Clones name the same
/// connector.
#[derive(Clone)]
pub struct Connector {
    shared: Arc<Shared>,
}

/// A connector, as long as somebody else holds it.
#[derive(Debug)]
pub(crate) struct WeakConnector(Weak<Shared>);

impl WeakConnector {
    pub(crate) fn upgrade(&self) -> Option<Connector> {
        self.0.upgrade().map(|shared| Connector { shared })
    }
}

/// One attempt of a connector, so that what comes late is known as late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Attempt(u64);

struct Shared {
    core: Weak<Core>,
    host: Arc<HostToken>,
    options: ConnectOptions,
    /// The socket of a connection that somebody else has made, until it is used.
    adopted: Mutex<Option<OwnedFd>>,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    state: ConnectorState,
    attempt: Attempt,
    connection: Option<ConnId>,
    /// Whether it counts among the users of its factory.
    counted: bool,
    /// Whether the present attempt, or the connection that has no name yet, has been given up,
    /// though the reactor has not seen to it yet.
    told_to_stop: bool,
}

impl Connector {
    pub(crate) fn new(core: &Arc<Core>, host: Arc<HostToken>, options: ConnectOptions) -> Self {
        Self::with(core, host, options, None)
    }

    /// For a connection that somebody else has made.
    pub(crate) fn adopting(core: &Arc<Core>, host: Arc<HostToken>, socket: OwnedFd) -> Self {
        Self::with(core, host, ConnectOptions::new(Destination::Adopted), Some(socket))
    }

    fn with(
        core: &Arc<Core>,
        host: Arc<HostToken>,
        options: ConnectOptions,
        adopted: Option<OwnedFd>,
    ) -> Self {
        let current = Current {
            state: ConnectorState::Disconnected,
            attempt: Attempt(0),
            connection: None,
            counted: false,
            told_to_stop: false,
        };
        let core = Arc::downgrade(core);
        let (adopted, current) = (Mutex::new(adopted), Mutex::new(current));
        Self { shared: Arc::new(Shared { core, host, options, adopted, current }) }
    }

    /// Begins an attempt.
    ///
    /// # Errors
    /// Unless the connector is disconnected.
    pub fn connect(&self) -> Result<(), ConnectorError> {
        let mut current = self.current();
        if current.state != ConnectorState::Disconnected {
            return Err(ConnectorError { wanted: "connect", state: current.state });
        }
        current.state = ConnectorState::Connecting;
        current.attempt.0 += 1;
        current.told_to_stop = false;
        drop(current);
        self.push(Command::Connect(self.clone()));
        Ok(())
    }

    /// Gives up the present attempt: `client_connection_failed` gets `ConnectError::User`.
    ///
    /// # Errors
    /// Unless the connector is connecting.
    pub fn stop_connecting(&self) -> Result<(), ConnectorError> {
        let mut current = self.current();
        if current.state != ConnectorState::Connecting {
            return Err(ConnectorError { wanted: "stop connecting", state: current.state });
        }
        current.told_to_stop = true;
        let attempt = current.attempt;
        drop(current);
        self.push(Command::StopConnecting(self.clone(), attempt));
        Ok(())
    }

    /// Gives up the present attempt, or closes the connection as `lose_connection` does, or does nothing.
    pub fn disconnect(&self) {
        let mut current = self.current();
        match (current.state, current.connection) {
            (ConnectorState::Connecting, _) => {
                drop(current);
                // An error says that it has ended meanwhile, or is connected: then nothing, or this again.
                if self.stop_connecting().is_err_and(|error| error.state == ConnectorState::Connected) {
                    self.disconnect();
                }
            }
            (ConnectorState::Connected, Some(id)) => {
                drop(current);
                self.push(Command::Disconnect(id));
            }
            (ConnectorState::Connected, None) => current.told_to_stop = true,
            (ConnectorState::Disconnected, _) => {}
        }
    }

    /// Where it is.
    pub fn state(&self) -> ConnectorState {
        self.current().state
    }

    /// Whom it connects to: `host:port`, or the name of a Unix socket.
    pub fn get_destination(&self) -> String {
        match &self.shared.options.destination {
            Destination::Address(address) => address.to_string(),
            Destination::Name(name, port) => format!("{name}:{port}"),
            Destination::Adopted => "an adopted descriptor".to_owned(),
        }
    }

    fn push(&self, command: Command) {
        if let Some(core) = self.shared.core.upgrade() {
            Reactor { core }.push(command);
        }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.shared.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For the driver.
impl Connector {
    pub(crate) fn host(&self) -> HostKey {
        self.shared.host.key()
    }

    /// The socket of a connection that somebody else has made, once.
    pub(crate) fn take_adopted(&self) -> Option<OwnedFd> {
        self.shared.adopted.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether the factory hears of it: not of a connection that it has not asked for.
    pub(crate) fn concerns_factory(&self) -> bool {
        self.shared.options.destination != Destination::Adopted
    }

    /// The policies for its connections.
    pub(crate) fn guard(&self) -> Option<Arc<Guard>> {
        self.shared.host.guard()
    }

    pub(crate) fn downgrade(&self) -> WeakConnector {
        WeakConnector(Arc::downgrade(&self.shared))
    }

    /// Names this connector among those under way.
    pub(crate) fn key(&self) -> usize {
        Arc::as_ptr(&self.shared) as usize
    }

    /// Notes whether it counts among the users of its factory; what it was before.
    pub(crate) fn set_counted(&self, counted: bool) -> bool {
        std::mem::replace(&mut self.current().counted, counted)
    }

    pub(crate) fn options(&self) -> &ConnectOptions {
        &self.shared.options
    }

    pub(crate) fn attempt(&self) -> Attempt {
        self.current().attempt
    }

    /// The kernel has made the connection, whose name may come later. Answers whether it is still
    /// wanted: not if `stop_connecting` was called in this attempt.
    pub(crate) fn set_connected(&self, id: Option<ConnId>) -> bool {
        let mut current = self.current();
        if !current.told_to_stop {
            (current.state, current.connection) = (ConnectorState::Connected, id);
        }
        !current.told_to_stop
    }

    /// The connection has a name now. Answers whether it is still wanted.
    pub(crate) fn set_connection(&self, id: ConnId) -> bool {
        let mut current = self.current();
        current.connection = Some(id);
        !current.told_to_stop
    }

    pub(crate) fn set_disconnected(&self) {
        let mut current = self.current();
        (current.state, current.connection) = (ConnectorState::Disconnected, None);
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("destination", &self.get_destination())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
