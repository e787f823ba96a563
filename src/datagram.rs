//! Datagrams, UDP's and those of Unix sockets: [`DatagramProtocol`] and what its callbacks get.

use std::{
    error, fmt, io,
    marker::PhantomData,
    net::IpAddr,
    ops::Deref,
    sync::{Arc, Weak},
    time::Duration,
};

use crate::{
    address::Address,
    delayed_call::DelayedCall,
    error::Errno,
    port::Port,
    protocol::ErasedCall,
    reactor::{Command, Core, Reactor, TimerCall},
    sys::{DatagramSocket, Datagrams, Name},
    timer::{TimerKey, keep_timer},
};

/// One end of a conversation in datagrams (Twisted's `DatagramProtocol`). All its callbacks run one at a time; one that panics
/// is logged, and the port goes on.
///
/// ```
/// use ringspun::{Address, DatagramCx, DatagramProtocol};
///
/// struct Echo;
///
/// impl DatagramProtocol for Echo {
///     fn datagram_received(&mut self, cx: &mut DatagramCx<'_, Self>, data: &[u8], from: &Address) {
///         let _ = cx.transport.write(data, from);
///     }
/// }
/// ```
pub trait DatagramProtocol: Sized + Send + 'static {
    /// The port is open. Runs once, before anything else.
    fn start_protocol(&mut self, cx: &mut DatagramCx<'_, Self>) {
        let _ = cx;
    }

    /// A datagram arrived, which may be empty. It is lent for the duration of the call.
    fn datagram_received(&mut self, cx: &mut DatagramCx<'_, Self>, data: &[u8], from: &Address);

    /// Nobody is where the port is [connected](DatagramTransport::connect) to. What was sent there is lost; the port goes on.
    fn connection_refused(&mut self, cx: &mut DatagramCx<'_, Self>) {
        let _ = cx;
    }

    /// A datagram was not sent, for this reason: `EMSGSIZE` if it is too long for the way, `EAGAIN` if there is no
    /// room. `to` is None if the port is connected.
    fn send_failed(&mut self, cx: &mut DatagramCx<'_, Self>, to: Option<&Address>, errno: Errno) {
        let _ = cx;
        match to {
            Some(to) => log::debug!("a datagram to {to} was not sent: {errno}"),
            None => log::debug!("a datagram was not sent: {errno}"),
        }
    }

    /// The port is closed. Runs once; the protocol is dropped after it.
    fn stop_protocol(&mut self, cx: &mut DatagramCx<'_, Self>) {
        let _ = cx;
    }
}

/// What the callback of a [`DatagramProtocol`] can reach.
#[non_exhaustive]
pub struct DatagramCx<'a, P> {
    /// The port.
    pub transport: DatagramTransport<'a>,
    /// The reactor that runs it.
    pub reactor: &'a Reactor,
    timers: &'a mut Vec<TimerKey>,
    marker: PhantomData<fn(&mut P)>,
}

/// A call that gets the protocol back, as it is stored until it is due.
pub(crate) struct DatagramCall<P>(pub(crate) BoxedCall<P>);

type BoxedCall<P> = Box<dyn FnOnce(&mut P, &mut DatagramCx<'_, P>) + Send>;

/// What belongs to one open port besides its protocol.
#[derive(Debug)]
pub(crate) struct DatagramEnd {
    pub(crate) port: Port,
    pub(crate) socket: Arc<DatagramSocket>,
    /// What gathers to be sent.
    pub(crate) outgoing: Datagrams,
    /// How many bytes may gather.
    pub(crate) outgoing_max: usize,
    pub(crate) timers: Vec<TimerKey>,
}

impl<'a, P: DatagramProtocol> DatagramCx<'a, P> {
    pub(crate) fn new(end: &'a mut DatagramEnd, reactor: &'a Reactor) -> Self {
        let DatagramEnd { port, socket, outgoing, outgoing_max, timers } = end;
        let transport = DatagramTransport { port, socket, outgoing, outgoing_max: *outgoing_max };
        Self { transport, reactor, timers, marker: PhantomData }
    }

    /// Calls `call` with this protocol after `delay`, never early. Dies with the port.
    pub fn call_later<C>(&mut self, delay: Duration, call: C) -> DelayedCall
    where
        C: FnOnce(&mut P, &mut DatagramCx<'_, P>) + Send + 'static,
    {
        let call = TimerCall::Datagrams(self.transport.port.key(), erase(call));
        let timer = self.reactor.schedule(delay, call);
        let core = &self.reactor.core;
        keep_timer(self.timers, timer.key(), &|key| core.timers().deadline(key).is_some());
        timer
    }
}

fn erase<P, C>(call: C) -> ErasedCall
where
    P: DatagramProtocol,
    C: FnOnce(&mut P, &mut DatagramCx<'_, P>) + Send + 'static,
{
    Box::new(DatagramCall::<P>(Box::new(call)))
}

impl<P> fmt::Debug for DatagramCx<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatagramCx").field("transport", &self.transport).finish_non_exhaustive()
    }
}

/// Why a datagram cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DatagramError {
    /// It is longer than any datagram to such an address.
    TooLong {
        /// Its length.
        len: usize,
        /// How long it may be.
        max: usize,
    },
    /// [`Limits::output_max`](crate::Limits::output_max) bytes were written in this turn already.
    Full,
    /// The port was stopped.
    Closed,
    /// The address is of another kind than the port's own, or names nobody.
    NoSuchPeer(Errno),
}

impl fmt::Display for DatagramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { len, max } => {
                write!(f, "a datagram of {len} bytes is too long: {max} go into one; send it in pieces")
            }
            Self::Full => f.write_str("too many datagrams wait to be sent; write the rest in a later turn"),
            Self::Closed => f.write_str("the port is closed"),
            Self::NoSuchPeer(errno) => write!(f, "the port cannot send to this address: {errno}"),
        }
    }
}

impl error::Error for DatagramError {}

/// The port of a [`DatagramProtocol`], inside its callbacks.
pub struct DatagramTransport<'a> {
    port: &'a Port,
    socket: &'a DatagramSocket,
    outgoing: &'a mut Datagrams,
    outgoing_max: usize,
}

impl DatagramTransport<'_> {
    /// Sends a copy of `data` when this callback has returned. One that cannot be sent then is told by
    /// [`send_failed`](DatagramProtocol::send_failed).
    ///
    /// # Errors
    /// If it is known at once that it cannot be sent.
    pub fn write(&mut self, data: &[u8], to: &Address) -> Result<(), DatagramError> {
        let name = Name::of(to).map_err(DatagramError::NoSuchPeer)?;
        if !self.socket.reaches(&name) {
            return Err(DatagramError::NoSuchPeer(Errno::from_raw(libc::EAFNOSUPPORT)));
        }
        self.queue(data, Some(name))
    }

    /// The same, to whom the port is [connected](Self::connect).
    ///
    /// # Errors
    /// If it is known at once that it cannot be sent.
    pub fn write_connected(&mut self, data: &[u8]) -> Result<(), DatagramError> {
        self.queue(data, None)
    }

    fn queue(&mut self, data: &[u8], to: Option<Name>) -> Result<(), DatagramError> {
        if self.port.is_stopped() {
            return Err(DatagramError::Closed);
        }
        let max = self.socket.payload_max();
        if data.len() > max {
            return Err(DatagramError::TooLong { len: data.len(), max });
        }
        // What is written is never refused for its own size, as on a connection.
        if self.outgoing.bytes() > self.outgoing_max || self.outgoing.len() >= COUNT_MAX {
            return Err(DatagramError::Full);
        }
        self.outgoing.push(data, to);
        Ok(())
    }

    /// Receives from nobody but `to` from here on, to whom [`write_connected`](Self::write_connected) sends;
    /// [`connection_refused`](DatagramProtocol::connection_refused) tells that nobody is there.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn connect(&mut self, to: &Address) -> io::Result<()> {
        let name = Name::of(to)?;
        Ok(self.socket.connect(&name)?)
    }

    /// The port's own address.
    pub fn get_host(&self) -> Address {
        self.socket.address().unwrap_or(Address::Unknown)
    }

    /// Closes the port; `stop_protocol` follows.
    pub fn stop_listening(&mut self) {
        self.port.stop_listening();
    }

    /// Becomes a member of a multicast group: at the interface with this address, or at one that the kernel chooses.
    ///
    /// # Errors
    /// If the group is no multicast address, if there is no such interface, or if an interface is named for an IPv6 group.
    pub fn join_group(&mut self, group: IpAddr, interface: Option<IpAddr>) -> io::Result<()> {
        self.socket.set_member(group, interface, true)
    }

    /// Leaves a multicast group.
    ///
    /// # Errors
    /// If the port is no member of it there.
    pub fn leave_group(&mut self, group: IpAddr, interface: Option<IpAddr>) -> io::Result<()> {
        self.socket.set_member(group, interface, false)
    }

    /// Whether the port hears itself what it sends to a group it is a member of; it does by default.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_loopback_mode(&mut self, enabled: bool) -> io::Result<()> {
        self.socket.set_multicast_loop(enabled)
    }

    /// How many routers what the port sends to a group may pass; 1 by default: none.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_ttl(&mut self, hops: u8) -> io::Result<()> {
        self.socket.set_multicast_ttl(hops)
    }

    /// Whether the port may send to broadcast addresses; it may not by default.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_broadcast_allowed(&mut self, allowed: bool) -> io::Result<()> {
        self.socket.set_broadcast(allowed)
    }
}

/// Datagrams that may gather; io_uring names each by its place.
const COUNT_MAX: usize = 1 << 16;

impl fmt::Debug for DatagramTransport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatagramTransport").field("port", &self.port).finish_non_exhaustive()
    }
}

/// A port for datagrams: a [`Port`], and a way to its protocol. Clones name the same port; dropping them leaves it open.
pub struct DatagramPort<P> {
    port: Port,
    core: Weak<Core>,
    marker: PhantomData<fn(&mut P)>,
}

impl<P: DatagramProtocol> DatagramPort<P> {
    pub(crate) fn new(core: &Arc<Core>, port: Port) -> Self {
        Self { port, core: Arc::downgrade(core), marker: PhantomData }
    }

    /// Calls `call` with the protocol, soon, where its callbacks run; from any thread. Does nothing once the port is closed.
    pub fn post<C>(&self, call: C)
    where
        C: FnOnce(&mut P, &mut DatagramCx<'_, P>) + Send + 'static,
    {
        if let Some(core) = self.core.upgrade() {
            Reactor { core }.push(Command::PostDatagrams(self.port.key(), erase(call)));
        }
    }
}

impl<P> Clone for DatagramPort<P> {
    fn clone(&self) -> Self {
        Self { port: self.port.clone(), core: Weak::clone(&self.core), marker: PhantomData }
    }
}

impl<P> Deref for DatagramPort<P> {
    type Target = Port;

    fn deref(&self) -> &Port {
        &self.port
    }
}

impl<P> fmt::Debug for DatagramPort<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.port.fmt(f)
    }
}
