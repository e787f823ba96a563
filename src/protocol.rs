//! What a user writes for each connection: [`Protocol`], and the context its callbacks get.

use std::{any::Any, fmt, os::fd::OwnedFd, time::Duration};

use crate::{
    delayed_call::DelayedCall,
    factory::{Factory, FactoryMut},
    id::{ConnId, HostKey},
    reactor::{Command, Reactor, TimerCall},
    reason::Reason,
    transport::{Connections, Transport},
};

/// One end of a conversation. Its factory builds one for each connection; all its callbacks run
/// one at a time.
///
/// The parameter is the factory's type, so that `cx.factory` is typed. It has no bound, so that a
/// protocol which needs nothing of its factory can be written for all of them:
///
/// ```
/// use ringspun::{Cx, Protocol};
///
/// struct Echo;
///
/// impl<F> Protocol<F> for Echo {
///     fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
///         let _ = cx.transport.write(data);
///     }
/// }
/// ```
///
/// A protocol that sets timers or posts names its factory: `impl Protocol<ChatFactory> for Chat`.
pub trait Protocol<F>: Sized + Send + 'static {
    /// Whether this protocol understands half-closed connections (Twisted's
    /// `IHalfCloseableProtocol`). If so, the peer's FIN calls
    /// [`read_connection_lost`](Self::read_connection_lost) and writing may go on; if not, what
    /// was written is delivered and the connection ends with `Reason::Done`.
    const HALF_CLOSEABLE: bool = false;

    /// Whether this protocol takes descriptors that come along with bytes over a Unix socket (Twisted's
    /// `IFileDescriptorReceiver`). If not, they are closed.
    const RECEIVES_DESCRIPTORS: bool = false;

    /// The connection has been made. Runs once, before anything else.
    fn connection_made(&mut self, cx: &mut Cx<'_, F>) {
        let _ = cx;
    }

    /// Bytes arrived. They are lent for the duration of the call, straight from the backend's
    /// buffer; how the peer's writes were cut into pieces means nothing.
    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]);

    /// A descriptor arrived. The byte it came along with is delivered after it, maybe in one piece with bytes that
    /// were sent before it: who needs to know which byte it was says so in what he sends. Called only if
    /// [`RECEIVES_DESCRIPTORS`](Self::RECEIVES_DESCRIPTORS).
    fn file_descriptor_received(&mut self, cx: &mut Cx<'_, F>, descriptor: OwnedFd) {
        let _ = (cx, descriptor);
    }

    /// The connection is gone. Runs once; the protocol is dropped after it.
    fn connection_lost(&mut self, cx: &mut Cx<'_, F>, reason: &Reason) {
        let _ = (cx, reason);
    }

    /// The peer has sent FIN; called only if [`HALF_CLOSEABLE`](Self::HALF_CLOSEABLE).
    fn read_connection_lost(&mut self, cx: &mut Cx<'_, F>) {
        let _ = cx;
    }

    /// The unsent output has gone above [`Limits::output_high`](crate::Limits::output_high).
    fn pause_writing(&mut self, cx: &mut Cx<'_, F>) {
        let _ = cx;
    }

    /// The unsent output has drained to [`Limits::output_low`](crate::Limits::output_low).
    fn resume_writing(&mut self, cx: &mut Cx<'_, F>) {
        let _ = cx;
    }

    /// The time given by [`Transport::set_timeout`] is over. Unless a protocol says otherwise, that closes the connection with
    /// `Reason::TimedOut`.
    fn timeout_connection(&mut self, cx: &mut Cx<'_, F>) {
        cx.transport.time_out();
    }
}

/// What a protocol's callback can reach: its connection, its factory, its reactor.
#[non_exhaustive]
pub struct Cx<'a, F> {
    /// This connection.
    pub transport: Transport<'a>,
    /// The factory that built this protocol.
    pub factory: FactoryMut<'a, F>,
    /// The reactor that runs this connection.
    pub reactor: &'a Reactor,
    pub(crate) host: HostKey,
    pub(crate) wrap: Option<&'a Wrap<'a>>,
}

/// Turns a call for an inner protocol into one for the protocol that wraps it.
pub(crate) type Wrap<'a> = dyn Fn(ErasedCall) -> ErasedCall + 'a;

/// A [`ProtocolCall`] or a [`FactoryCall`](crate::factory::FactoryCall) on its way through the
/// reactor, which knows no protocol's type.
pub(crate) type ErasedCall = Box<dyn Any + Send>;

/// A call that gets the protocol back.
type BoxedProtocolCall<F> = Box<dyn FnOnce(&mut <F as Factory>::Protocol, &mut Cx<'_, F>) + Send>;

/// As it is stored until it is due.
pub(crate) struct ProtocolCall<F: Factory>(pub(crate) BoxedProtocolCall<F>);

impl<F> Cx<'_, F> {
    /// All made connections of this factory.
    pub fn connections(&mut self) -> Connections<'_> {
        Connections::new(self.transport.link(), self.host)
    }
}

impl<F: Factory> Cx<'_, F> {
    /// Calls `call` with this protocol after `delay`, never early. Dies with the connection.
    ///
    /// Twisted's `reactor.callLater` with a bound method.
    pub fn call_later<C>(&mut self, delay: Duration, call: C) -> DelayedCall
    where
        C: FnOnce(&mut F::Protocol, &mut Cx<'_, F>) + Send + 'static,
    {
        let id = self.transport.id();
        let call = TimerCall::Connection(id, self.erase(call));
        let timer = self.reactor.schedule(delay, call);
        let core = &self.reactor.core;
        let alive = |key| core.timers().deadline(key).is_some();
        if !self.transport.link().bind_timer(id, timer.key(), &alive) {
            let _ = timer.cancel();
        }
        timer
    }

    /// Calls `call` with the protocol of another connection of the same factory, soon after this
    /// callback has returned. Does nothing if that connection is gone by then.
    pub fn post<C>(&mut self, id: ConnId, call: C)
    where
        C: FnOnce(&mut F::Protocol, &mut Cx<'_, F>) + Send + 'static,
    {
        let call = self.erase(call);
        self.reactor.push(Command::Post(id, call));
    }

    pub(crate) fn erase<C>(&self, call: C) -> ErasedCall
    where
        C: FnOnce(&mut F::Protocol, &mut Cx<'_, F>) + Send + 'static,
    {
        let call: ErasedCall = Box::new(ProtocolCall::<F>(Box::new(call)));
        match self.wrap {
            Some(wrap) => wrap(call),
            None => call,
        }
    }
}

impl<F> fmt::Debug for Cx<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cx").field("transport", &self.transport).finish_non_exhaustive()
    }
}
