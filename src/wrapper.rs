//! Factories that wrap another factory and see its protocols.

use crate::{
    factory::{Factory, FactoryCall, FactoryCx, FactoryMut, FactorySource},
    protocol::{Cx, ErasedCall, ProtocolCall, Wrap},
};

/// A factory whose protocols each hold a protocol of another factory.
///
/// The wrapper's callbacks reach the inner ones through [`Cx::inner`] and [`FactoryCx::inner`];
/// what the inner ones schedule and post comes back to them, through the wrapper.
///
/// ```
/// use ringspun::{Cx, Factory, FactoryCx, Peer, Protocol, Reason, WrappingFactory};
///
/// /// Counts the bytes that any other factory's protocols receive, and is otherwise not there:
/// /// whatever it is told it passes on.
/// struct Counting<F> { inner: F, bytes: usize }
/// struct Counted<P>(P);
///
/// impl<F: Factory> Factory for Counting<F> {
///     type Protocol = Counted<F::Protocol>;
///     fn build_protocol(&mut self, peer: &mut Peer<'_>) -> Option<Self::Protocol> {
///         self.inner.build_protocol(peer).map(Counted)
///     }
///     fn start_factory(&mut self, cx: &mut FactoryCx<'_, Self>) -> std::io::Result<()> {
///         cx.inner(|cx| self.inner.start_factory(cx))
///     }
///     fn stop_factory(&mut self, cx: &mut FactoryCx<'_, Self>) {
///         cx.inner(|cx| self.inner.stop_factory(cx));
///     }
/// }
///
/// impl<F: Factory> WrappingFactory for Counting<F> {
///     type Inner = F;
///     fn inner(&self) -> &F { &self.inner }
///     fn inner_mut(&mut self) -> &mut F { &mut self.inner }
///     fn inner_protocol(protocol: &mut Counted<F::Protocol>) -> &mut F::Protocol { &mut protocol.0 }
/// }
///
/// impl<F: Factory> Protocol<Counting<F>> for Counted<F::Protocol> {
///     const HALF_CLOSEABLE: bool = <F::Protocol as Protocol<F>>::HALF_CLOSEABLE;
///
///     fn connection_made(&mut self, cx: &mut Cx<'_, Counting<F>>) {
///         cx.inner(|cx| self.0.connection_made(cx));
///     }
///     fn data_received(&mut self, cx: &mut Cx<'_, Counting<F>>, data: &[u8]) {
///         cx.factory.bytes += data.len();
///         cx.inner(|cx| self.0.data_received(cx, data));
///     }
///     fn read_connection_lost(&mut self, cx: &mut Cx<'_, Counting<F>>) {
///         cx.inner(|cx| self.0.read_connection_lost(cx));
///     }
///     fn pause_writing(&mut self, cx: &mut Cx<'_, Counting<F>>) {
///         cx.inner(|cx| self.0.pause_writing(cx));
///     }
///     fn resume_writing(&mut self, cx: &mut Cx<'_, Counting<F>>) {
///         cx.inner(|cx| self.0.resume_writing(cx));
///     }
///     fn timeout_connection(&mut self, cx: &mut Cx<'_, Counting<F>>) {
///         cx.inner(|cx| self.0.timeout_connection(cx));
///     }
///     fn connection_lost(&mut self, cx: &mut Cx<'_, Counting<F>>, reason: &Reason) {
///         cx.inner(|cx| self.0.connection_lost(cx, reason));
///     }
/// }
/// ```
pub trait WrappingFactory: Factory {
    /// What it wraps.
    type Inner: Factory;

    /// The wrapped factory.
    fn inner(&self) -> &Self::Inner;

    /// The wrapped factory, to be changed.
    fn inner_mut(&mut self) -> &mut Self::Inner;

    /// The wrapped protocol inside one of the wrapper's.
    fn inner_protocol(protocol: &mut Self::Protocol) -> &mut <Self::Inner as Factory>::Protocol;
}

impl<W: WrappingFactory> Cx<'_, W> {
    /// Calls `act` with the context that the wrapped protocol expects.
    pub fn inner<R>(&mut self, act: impl FnOnce(&mut Cx<'_, W::Inner>) -> R) -> R {
        let outer = self.wrap;
        let wrap = |call| apply(outer, wrap_call::<W>(call));
        let mut source = InnerFactory(self.factory.reborrow());
        act(&mut Cx {
            transport: self.transport.reborrow(),
            factory: FactoryMut::lent(&mut source),
            reactor: self.reactor,
            host: self.host,
            wrap: Some(&wrap),
        })
    }
}

impl<W: WrappingFactory> FactoryCx<'_, W> {
    /// Calls `act` with the context that the wrapped factory expects.
    pub fn inner<R>(&mut self, act: impl FnOnce(&mut FactoryCx<'_, W::Inner>) -> R) -> R {
        let outer = self.wrap;
        let wrap = |call| apply(outer, wrap_call::<W>(call));
        let (reactor, host) = (self.reactor, self.host);
        act(&mut FactoryCx::new(self.connections.link(), reactor, host, Some(&wrap)))
    }
}

struct InnerFactory<'a, W>(FactoryMut<'a, W>);

impl<W: WrappingFactory> FactorySource<W::Inner> for InnerFactory<'_, W> {
    fn get(&self) -> &W::Inner {
        self.0.inner()
    }

    fn get_mut(&mut self) -> &mut W::Inner {
        self.0.inner_mut()
    }

    fn release(&mut self) {
        self.0.release();
    }
}

fn apply(wrap: Option<&Wrap<'_>>, call: ErasedCall) -> ErasedCall {
    match wrap {
        Some(wrap) => wrap(call),
        None => call,
    }
}

/// A call for the inner protocol or factory becomes one for the wrapper's, which passes it on.
fn wrap_call<W: WrappingFactory>(call: ErasedCall) -> ErasedCall {
    let call = match call.downcast::<ProtocolCall<W::Inner>>() {
        Ok(inner) => {
            return Box::new(ProtocolCall::<W>(Box::new(move |protocol, cx| {
                cx.inner(|cx| (inner.0)(W::inner_protocol(protocol), cx));
            })));
        }
        Err(call) => call,
    };
    match call.downcast::<FactoryCall<W::Inner>>() {
        Ok(inner) => Box::new(FactoryCall::<W>(Box::new(move |factory, cx| {
            cx.inner(|cx| (inner.0)(factory.inner_mut(), cx));
        }))),
        Err(call) => call,
    }
}
