//! What a protocol writes to and closes: one end of one connection.

use std::{
    fmt, io,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    address::Address,
    connection::Connection,
    id::{ConnId, HostKey},
    limits::Limits,
    output::{Along, Batch, Pool, Write, Writer},
    reason::{BoxError, Reason, Timeout},
    timer::TimerKey,
};

/// How a [`Transport`] reaches the connections of its reactor. A loop implements it over its own
/// table, the threads backend over locked connections.
pub(crate) trait Link {
    /// Lets `act` change the connection and sees to what follows from it. A stale id is skipped.
    fn visit(&mut self, id: ConnId, act: &mut dyn FnMut(Visited<'_>));
    /// As [`visit`](Self::visit), for what writes to the connection. If that passes the budget of all, the connection with the most unsent output ends.
    fn append(&mut self, id: ConnId, append: &mut dyn FnMut(Visited<'_>) -> Write) -> Write;
    /// Appends a copy of `data`.
    fn write(&mut self, id: ConnId, data: &[u8]) -> Write {
        self.append(id, &mut |visited| {
            visited.connection.write_with(visited.pool, visited.limits, &mut |batch| batch.push(data))
        })
    }
    /// Appends what `fill` writes. It is user code: where `visit` holds a lock, it runs before that.
    fn fill(&mut self, id: ConnId, fill: &mut dyn FnMut(&mut Batch)) -> Write {
        self.append(id, &mut |visited| {
            visited.connection.write_with(visited.pool, visited.limits, &mut *fill)
        })
    }
    /// The time by which the reactor goes.
    fn now(&self) -> Instant;
    /// One of the two ends of the connection.
    fn address(&mut self, id: ConnId, end: Side) -> Address;
    /// Reads a flag of the socket, after setting it if `set` says so.
    fn flag(&mut self, id: ConnId, flag: SocketFlag, set: Option<bool>) -> io::Result<bool>;
    /// The made connections of a factory.
    fn ids(&mut self, host: HostKey) -> Vec<ConnId>;
    /// Lets a timer die with the connection; `false` if the connection is gone already. Timers that
    /// `alive` denies are forgotten on the way.
    fn bind_timer(&mut self, id: ConnId, timer: TimerKey, alive: &dyn Fn(TimerKey) -> bool) -> bool;
}

/// A connection with what it needs to take output.
pub(crate) struct Visited<'a> {
    pub(crate) connection: &'a mut Connection,
    pub(crate) pool: &'a mut Pool,
    pub(crate) limits: &'a Limits,
}

/// Which end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Side {
    Peer,
    Host,
}

/// Flags of a TCP socket.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SocketFlag {
    NoDelay,
    KeepAlive,
}

/// One end of a connection. None of its methods blocks, does I/O or calls back before it returns:
/// output is gathered and handed to the kernel after the callback or at the end of the turn, and everything else takes effect there too.
///
/// Once the connection is lost, every method does nothing.
pub struct Transport<'a> {
    link: &'a mut dyn Link,
    id: ConnId,
}

impl<'a> Transport<'a> {
    pub(crate) fn new(link: &'a mut dyn Link, id: ConnId) -> Self {
        Self { link, id }
    }

    pub(crate) fn reborrow(&mut self) -> Transport<'_> {
        Transport { link: &mut *self.link, id: self.id }
    }

    pub(crate) fn link(&mut self) -> &mut dyn Link {
        &mut *self.link
    }

    /// The connection's name, to be kept for [`to`](Self::to) and [`Cx::post`](crate::Cx::post).
    pub fn id(&self) -> ConnId {
        self.id
    }

    /// The transport of another connection of the same reactor; inert if it is gone.
    ///
    /// ```
    /// # use ringspun::{ConnId, Cx, Write};
    /// fn say_to<F>(cx: &mut Cx<'_, F>, other: ConnId, text: &[u8]) -> Write {
    ///     cx.transport.to(other).write(text)
    /// }
    /// ```
    pub fn to(&mut self, id: ConnId) -> Transport<'_> {
        Transport { link: &mut *self.link, id }
    }
}

/// Writing.
impl Transport<'_> {
    /// Appends a copy of `data` to the output.
    pub fn write(&mut self, data: &[u8]) -> Write {
        self.link.write(self.id, data)
    }

    /// Appends copies of all of `parts`, in order, as one write.
    pub fn write_sequence<T: AsRef<[u8]>>(&mut self, parts: impl IntoIterator<Item = T>) -> Write {
        let mut parts = parts.into_iter();
        self.write_with(|out| parts.by_ref().for_each(|part| out.push(part.as_ref())))
    }

    /// Lets `fill` format straight into the output: no string in between.
    ///
    /// ```
    /// # use ringspun::{Cx, Write};
    /// fn answer<F>(cx: &mut Cx<'_, F>, n: u64) -> Write {
    ///     cx.transport.write_with(|out| write!(out, "{n}\r\n"))
    /// }
    /// ```
    pub fn write_with<R>(&mut self, fill: impl FnOnce(&mut Writer<'_>) -> R) -> Write {
        let mut fill = Some(fill);
        self.link.fill(self.id, &mut |batch| {
            if let Some(fill) = fill.take() {
                fill(&mut Writer::new(batch));
            }
        })
    }

    /// Appends `data` without copying it: for one buffer that goes to many connections.
    pub fn write_shared(&mut self, data: &Arc<[u8]>) -> Write {
        self.link.append(self.id, &mut |visited| {
            visited.connection.write_with(visited.pool, visited.limits, &mut |batch| {
                batch.push_shared(Arc::clone(data));
            })
        })
    }

    /// Appends a copy of `data` with a descriptor, which the peer gets along with the first byte of it (Twisted's `sendFileDescriptor`; see
    /// unix(7)). Another process that gets it shares the file; this one's copy is closed when it has gone.
    /// The kernel counts what a user has under way to all peers together: one who is sent many and takes none can make the sends of others
    /// fail with ETOOMANYREFS, which ends their connections, so descriptors are for peers that are trusted to take them.
    ///
    /// # Errors
    /// If the connection's socket is no Unix socket, if it has filters (they may change, keep or drop the byte), or `data` is empty.
    pub fn send_file_descriptor(&mut self, descriptor: OwnedFd, data: &[u8]) -> io::Result<Write> {
        let invalid = |cause| Err(io::Error::new(io::ErrorKind::InvalidInput, cause));
        if data.is_empty() {
            return invalid("a descriptor needs a byte to go along with");
        }
        if !matches!(self.get_host(), Address::Unix(_) | Address::Unknown) {
            return invalid("descriptors can be sent over Unix sockets only");
        }
        let mut has_filters = false;
        self.link.visit(self.id, &mut |visited| has_filters = visited.connection.has_filters());
        if has_filters {
            return invalid("descriptors cannot be sent through filters: serve those who need them without");
        }
        let along: Along = Arc::new(descriptor);
        Ok(self.link.append(self.id, &mut |visited| {
            visited.connection.write_with(visited.pool, visited.limits, &mut |batch| {
                batch.push_along(data, Arc::clone(&along));
            })
        }))
    }

    /// Bytes written that the kernel has not taken yet.
    pub fn unsent(&mut self) -> usize {
        let mut unsent = 0;
        self.link.visit(self.id, &mut |visited| unsent = visited.connection.unsent());
        unsent
    }
}

/// Ending.
impl Transport<'_> {
    /// Closes the connection once everything written before has been delivered. No more data is
    /// received. `connection_lost` comes later, never from inside this call.
    pub fn lose_connection(&mut self) {
        self.change(Connection::lose);
    }

    /// Closes the writing half once everything written before has been delivered; receiving goes on.
    pub fn lose_write_connection(&mut self) {
        self.change(Connection::lose_write);
    }

    /// Drops what was written and resets the connection; works against a peer that never reads.
    pub fn abort_connection(&mut self) {
        self.change(Connection::abort);
    }

    /// Ends this connection, and only it, with `Reason::Callback(error)`; the error is logged.
    /// The peer gets RST, so that half an answer is not taken for a whole one.
    pub fn fail(&mut self, error: impl Into<BoxError>) {
        let error = error.into();
        log::error!("{:?} failed: {error}", self.id);
        let mut reason = Some(Reason::Callback(error));
        self.change(|connection| {
            if let Some(reason) = reason.take() {
                connection.finish(reason, true);
            }
        });
    }
}

/// Receiving.
impl Transport<'_> {
    /// Delivers nothing, neither data nor the peer's FIN, until [`resume_producing`](Self::resume_producing).
    pub fn pause_producing(&mut self) {
        self.change(Connection::pause);
    }

    /// Delivers again, first what arrived meanwhile.
    pub fn resume_producing(&mut self) {
        self.change(Connection::resume);
    }

    /// Whether data may be delivered: the connection is neither paused nor closing. Who finds several messages in one piece
    /// of data asks between them, since the callback of one may pause or close.
    pub fn is_producing(&mut self) -> bool {
        let mut producing = false;
        self.link.visit(self.id, &mut |visited| producing = visited.connection.is_delivering());
        producing
    }

    /// Gives back the end of what was delivered, which comes again before all that arrived later: on resume, if the connection is paused, else
    /// together with what arrives next. A connection that closes, or whose peer has nothing more to say, drops it.
    pub fn unread(&mut self, data: &[u8]) {
        self.change(|connection| connection.unread(data));
    }

    pub(crate) fn change(&mut self, mut change: impl FnMut(&mut Connection)) {
        self.link.visit(self.id, &mut |visited| change(visited.connection));
    }
}

/// Time-outs, as Twisted's `TimeoutMixin` has them. Setting one again with each message is cheap: it moves a field.
impl Transport<'_> {
    /// Has [`timeout_connection`](crate::Protocol::timeout_connection) called after `period`, in the place of what was asked for before,
    /// which is answered; None: not at all. It is called once, never early, and not on a connection that closes.
    ///
    /// ```
    /// # use {ringspun::Cx, std::time::Duration};
    /// fn wait_for_the_rest<F>(cx: &mut Cx<'_, F>) {
    ///     cx.transport.set_timeout(Some(Duration::from_secs(10)));
    /// }
    /// ```
    pub fn set_timeout(&mut self, period: Option<Duration>) -> Option<Duration> {
        let (mut before, now) = (None, self.link.now());
        self.change(|connection| before = connection.set_timeout(now, period));
        before
    }

    /// Begins the time-out anew, with the period that was set last. Does nothing where none is running.
    pub fn reset_timeout(&mut self) {
        let now = self.link.now();
        self.change(|connection| connection.reset_timeout(now));
    }

    /// Closes the connection as [`lose_connection`](Self::lose_connection) does, though not even for a producer does it wait, with
    /// `Reason::TimedOut`: what [`timeout_connection`](crate::Protocol::timeout_connection) does unless the protocol says otherwise.
    pub fn time_out(&mut self) {
        self.change(|connection| connection.time_out(Timeout::Protocol));
    }
}

/// Addresses and options.
impl Transport<'_> {
    /// The other end's address. The kernel is asked once, at the first call.
    pub fn get_peer(&mut self) -> Address {
        self.link.address(self.id, Side::Peer)
    }

    /// This end's address. The kernel is asked once, at the first call.
    pub fn get_host(&mut self) -> Address {
        self.link.address(self.id, Side::Host)
    }

    /// Sends small writes at once instead of waiting to fill a segment (`TCP_NODELAY`).
    ///
    /// # Errors
    /// What `setsockopt(2)` says, or `NotConnected` if the connection is gone.
    pub fn set_tcp_no_delay(&mut self, enabled: bool) -> io::Result<()> {
        self.link.flag(self.id, SocketFlag::NoDelay, Some(enabled)).map(drop)
    }

    /// Whether `TCP_NODELAY` is set. Connections of ringspun start with it.
    ///
    /// # Errors
    /// What `getsockopt(2)` says, or `NotConnected` if the connection is gone.
    pub fn get_tcp_no_delay(&mut self) -> io::Result<bool> {
        self.link.flag(self.id, SocketFlag::NoDelay, None)
    }

    /// Lets the kernel probe an idle peer (`SO_KEEPALIVE`).
    ///
    /// # Errors
    /// What `setsockopt(2)` says, or `NotConnected` if the connection is gone.
    pub fn set_tcp_keep_alive(&mut self, enabled: bool) -> io::Result<()> {
        self.link.flag(self.id, SocketFlag::KeepAlive, Some(enabled)).map(drop)
    }

    /// Whether `SO_KEEPALIVE` is set.
    ///
    /// # Errors
    /// What `getsockopt(2)` says, or `NotConnected` if the connection is gone.
    pub fn get_tcp_keep_alive(&mut self) -> io::Result<bool> {
        self.link.flag(self.id, SocketFlag::KeepAlive, None)
    }
}

impl fmt::Debug for Transport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("id", &self.id).finish_non_exhaustive()
    }
}

/// All made connections of one factory.
pub struct Connections<'a> {
    link: &'a mut dyn Link,
    host: HostKey,
}

impl<'a> Connections<'a> {
    pub(crate) fn new(link: &'a mut dyn Link, host: HostKey) -> Self {
        Self { link, host }
    }

    pub(crate) fn link(&mut self) -> &mut dyn Link {
        &mut *self.link
    }

    /// Calls `act` with the transport of each connection.
    ///
    /// ```
    /// # use {ringspun::Connections, std::sync::Arc};
    /// fn push(connections: &mut Connections<'_>, hit: &Arc<[u8]>) {
    ///     connections.each(|mut transport| { let _ = transport.write_shared(hit); });
    /// }
    /// ```
    pub fn each(&mut self, mut act: impl FnMut(Transport<'_>)) {
        for id in self.link.ids(self.host) {
            act(Transport::new(&mut *self.link, id));
        }
    }

    /// How many there are.
    pub fn count(&mut self) -> usize {
        self.link.ids(self.host).len()
    }

    /// The transport of one connection; inert if it is gone.
    pub fn to(&mut self, id: ConnId) -> Transport<'_> {
        Transport::new(&mut *self.link, id)
    }
}

impl fmt::Debug for Connections<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("host", &self.host).finish_non_exhaustive()
    }
}
