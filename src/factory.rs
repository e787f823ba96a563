//! What a user writes once for all connections: [`Factory`] and [`ClientFactory`].

use std::{
    fmt, io,
    ops::{Deref, DerefMut},
    time::Duration,
};

use crate::{
    address::Address,
    connector::Connector,
    delayed_call::DelayedCall,
    id::HostKey,
    protocol::{ErasedCall, Protocol, Wrap},
    reactor::{Reactor, TimerCall},
    reason::{ConnectError, Reason},
    transport::{Connections, Link},
};

/// Builds a protocol for each connection and holds what they share.
pub trait Factory: Sized + Send + 'static {
    /// What it builds.
    type Protocol: Protocol<Self>;

    /// A protocol for a new connection, or None to close that connection at once.
    fn build_protocol(&mut self, peer: &mut Peer<'_>) -> Option<Self::Protocol>;

    /// Runs on the reactor's thread before the first port or connector of this factory starts.
    ///
    /// # Errors
    /// An error keeps the port from opening; `run` returns it if the reactor was just starting.
    fn start_factory(&mut self, cx: &mut FactoryCx<'_, Self>) -> io::Result<()> {
        let _ = cx;
        Ok(())
    }

    /// Runs after the last port or connector of this factory has ended.
    fn stop_factory(&mut self, cx: &mut FactoryCx<'_, Self>) {
        let _ = cx;
    }
}

/// A factory for connections that this side makes.
pub trait ClientFactory: Factory {
    /// A connection attempt begins.
    fn started_connecting(&mut self, cx: &mut FactoryCx<'_, Self>, connector: &Connector) {
        let _ = (cx, connector);
    }

    /// The connection could not be made. `connector.connect()` tries again.
    fn client_connection_failed(
        &mut self,
        cx: &mut FactoryCx<'_, Self>,
        connector: &Connector,
        error: &ConnectError,
    ) {
        let _ = (cx, connector, error);
    }

    /// The connection was lost; the protocol's `connection_lost` has run. `connector.connect()`
    /// connects again.
    fn client_connection_lost(
        &mut self,
        cx: &mut FactoryCx<'_, Self>,
        connector: &Connector,
        reason: &Reason,
    ) {
        let _ = (cx, connector, reason);
    }
}

/// The factory for protocols that share nothing: calls its closure for each connection, as
/// Twisted's `factory.protocol = Echo` does.
///
/// ```
/// # use ringspun::{Cx, Protocol};
/// # struct Echo;
/// # impl<F> Protocol<F> for Echo { fn data_received(&mut self, _: &mut Cx<'_, F>, _: &[u8]) {} }
/// let factory = ringspun::Serve(|| Echo);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Serve<B>(pub B);

impl<B, P> Factory for Serve<B>
where
    B: FnMut() -> P + Send + 'static,
    P: Protocol<Self>,
{
    type Protocol = P;

    fn build_protocol(&mut self, _peer: &mut Peer<'_>) -> Option<P> {
        Some((self.0)())
    }
}

impl<B> ClientFactory for Serve<B> where Self: Factory {}

/// Who wants to connect. The kernel is asked only when the answer is wanted.
pub struct Peer<'a> {
    ask: &'a mut dyn FnMut() -> Address,
    answer: Option<Address>,
}

impl<'a> Peer<'a> {
    pub(crate) fn new(ask: &'a mut dyn FnMut() -> Address) -> Self {
        Self { ask, answer: None }
    }

    /// The peer's address.
    pub fn address(&mut self) -> Address {
        self.answer.get_or_insert_with(|| (self.ask)()).clone()
    }

    pub(crate) fn answer(&self) -> Option<Address> {
        self.answer.clone()
    }
}

impl fmt::Debug for Peer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("address", &self.answer).finish()
    }
}

/// The factory, as its protocols reach it: `&mut F` on a loop. On the threads backend a lock,
/// taken at the first use and let go when the callback ends or by [`release`](Self::release).
///
/// To borrow two fields at once, go through one reference: `let f = &mut *cx.factory;`.
pub struct FactoryMut<'a, F>(Source<'a, F>);

enum Source<'a, F> {
    Borrowed(&'a mut F),
    Lent(&'a mut dyn FactorySource<F>),
}

/// A factory that has to be fetched: from behind a lock, or from inside the one that wraps it.
pub(crate) trait FactorySource<F> {
    fn get(&self) -> &F;
    fn get_mut(&mut self) -> &mut F;
    fn release(&mut self);
}

impl<'a, F> FactoryMut<'a, F> {
    pub(crate) fn borrowed(factory: &'a mut F) -> Self {
        Self(Source::Borrowed(factory))
    }

    pub(crate) fn lent(source: &'a mut dyn FactorySource<F>) -> Self {
        Self(Source::Lent(source))
    }

    pub(crate) fn reborrow(&mut self) -> FactoryMut<'_, F> {
        FactoryMut(match &mut self.0 {
            Source::Borrowed(factory) => Source::Borrowed(factory),
            Source::Lent(source) => Source::Lent(&mut **source),
        })
    }

    /// Lets other threads have the factory before this callback ends. It is taken again at the
    /// next use. Does nothing on a loop, where there are no others.
    pub fn release(&mut self) {
        if let Source::Lent(source) = &mut self.0 {
            source.release();
        }
    }
}

impl<F> Deref for FactoryMut<'_, F> {
    type Target = F;

    fn deref(&self) -> &F {
        match &self.0 {
            Source::Borrowed(factory) => factory,
            Source::Lent(source) => source.get(),
        }
    }
}

impl<F> DerefMut for FactoryMut<'_, F> {
    fn deref_mut(&mut self) -> &mut F {
        match &mut self.0 {
            Source::Borrowed(factory) => factory,
            Source::Lent(source) => source.get_mut(),
        }
    }
}

impl<F> fmt::Debug for FactoryMut<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FactoryMut")
    }
}

/// What a factory's callback can reach: its connections and its reactor.
#[non_exhaustive]
pub struct FactoryCx<'a, F> {
    /// All made connections of this factory.
    pub connections: Connections<'a>,
    /// The reactor that runs this factory.
    pub reactor: &'a Reactor,
    pub(crate) host: HostKey,
    pub(crate) wrap: Option<&'a Wrap<'a>>,
    marker: std::marker::PhantomData<fn(&mut F)>,
}

/// A call that gets the factory back, as it is stored until it is due.
pub(crate) struct FactoryCall<F>(pub(crate) BoxedFactoryCall<F>);

type BoxedFactoryCall<F> = Box<dyn FnOnce(&mut F, &mut FactoryCx<'_, F>) + Send>;

impl<'a, F> FactoryCx<'a, F> {
    pub(crate) fn new(
        link: &'a mut dyn Link,
        reactor: &'a Reactor,
        host: HostKey,
        wrap: Option<&'a Wrap<'a>>,
    ) -> Self {
        let connections = Connections::new(link, host);
        Self { connections, reactor, host, wrap, marker: std::marker::PhantomData }
    }
}

impl<F: Factory> FactoryCx<'_, F> {
    /// Calls `call` with this factory after `delay`, never early.
    ///
    /// ```
    /// # use ringspun::{Factory, FactoryCx, Peer, Protocol};
    /// # use std::time::Duration;
    /// fn tick<F: Factory>(factory: &mut F, cx: &mut FactoryCx<'_, F>) {
    ///     cx.call_later(Duration::from_secs(1), tick);
    /// }
    /// ```
    pub fn call_later<C>(&mut self, delay: Duration, call: C) -> DelayedCall
    where
        C: FnOnce(&mut F, &mut FactoryCx<'_, F>) + Send + 'static,
    {
        self.reactor.schedule(delay, TimerCall::Factory(self.host, self.erase(call)))
    }

    pub(crate) fn erase<C>(&self, call: C) -> ErasedCall
    where
        C: FnOnce(&mut F, &mut FactoryCx<'_, F>) + Send + 'static,
    {
        let call: ErasedCall = Box::new(FactoryCall::<F>(Box::new(call)));
        match self.wrap {
            Some(wrap) => wrap(call),
            None => call,
        }
    }
}

impl<F> fmt::Debug for FactoryCx<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FactoryCx").field("connections", &self.connections).finish_non_exhaustive()
    }
}
