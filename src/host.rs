//! A factory and its protocols: what an event becomes for them.
//!
//! Everything inside a host is monomorphic; the drivers see it as one trait object, so that an
//! event costs one dynamic call. What a callback must not do to its neighbours, it cannot: a panic
//! is caught here, logged once, and handed back as text.

use std::{
    any::Any,
    cell::RefCell,
    io,
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
};

use slab::Slab;

use crate::{
    connection::Filters,
    connector::Connector,
    factory::{ClientFactory, Factory, FactoryCall, FactoryCx, FactoryMut, Peer},
    id::{ConnId, HostKey},
    protocol::{Cx, ErasedCall, Protocol, ProtocolCall},
    reactor::Reactor,
    reason::{ConnectError, Reason},
    threaded::{ThreadHost, ThreadedFactory},
    transport::{Link, Transport},
};

/// Something to tell a protocol.
pub(crate) enum ProtocolEvent<'a> {
    Made,
    Data(&'a [u8]),
    Descriptor(OwnedFd),
    ReadLost,
    PauseWriting,
    ResumeWriting,
    TimedOut,
    Lost(&'a Reason),
    /// A timer or a post.
    Call(ErasedCall),
}

/// Something to tell a factory.
pub(crate) enum FactoryEvent<'a> {
    Start,
    Stop,
    StartedConnecting(&'a Connector),
    ConnectFailed(&'a Connector, &'a ConnectError),
    ConnectLost(&'a Connector, &'a Reason),
    /// A timer.
    Call(ErasedCall),
}

/// What a callback can reach.
pub(crate) struct Env<'a> {
    pub(crate) link: &'a mut dyn Link,
    pub(crate) reactor: &'a Reactor,
    pub(crate) host: HostKey,
}

/// The text of a panic that was caught in a callback.
pub(crate) type Panicked = String;

/// Calls the protocol's method for this event.
pub(crate) fn tell_protocol<'a, F: Factory>(
    protocol: &mut F::Protocol,
    id: ConnId,
    factory: FactoryMut<'a, F>,
    env: Env<'a>,
    event: ProtocolEvent<'_>,
) -> Result<(), Panicked> {
    let mut cx = Cx {
        transport: Transport::new(env.link, id),
        factory,
        reactor: env.reactor,
        host: env.host,
        wrap: None,
    };
    caught(|| match event {
        ProtocolEvent::Made => protocol.connection_made(&mut cx),
        ProtocolEvent::Data(data) => protocol.data_received(&mut cx, data),
        ProtocolEvent::Descriptor(descriptor) => protocol.file_descriptor_received(&mut cx, descriptor),
        ProtocolEvent::ReadLost => protocol.read_connection_lost(&mut cx),
        ProtocolEvent::PauseWriting => protocol.pause_writing(&mut cx),
        ProtocolEvent::ResumeWriting => protocol.resume_writing(&mut cx),
        ProtocolEvent::TimedOut => protocol.timeout_connection(&mut cx),
        ProtocolEvent::Lost(reason) => protocol.connection_lost(&mut cx, reason),
        ProtocolEvent::Call(call) => match call.downcast::<ProtocolCall<F>>() {
            Ok(call) => (call.0)(protocol, &mut cx),
            Err(_) => log::warn!("post to {id:?} ignored: it belongs to another factory"),
        },
    })
}

/// Calls the factory's method for this event.
pub(crate) fn tell_factory<F: Factory>(
    factory: &mut F,
    hooks: Option<&ClientHooks<F>>,
    env: Env<'_>,
    event: FactoryEvent<'_>,
) -> io::Result<()> {
    let mut cx = FactoryCx::new(env.link, env.reactor, env.host, None);
    let told = caught(|| {
        match (event, hooks) {
            (FactoryEvent::Start, _) => return factory.start_factory(&mut cx),
            (FactoryEvent::Stop, _) => factory.stop_factory(&mut cx),
            (FactoryEvent::StartedConnecting(connector), Some(hooks)) if connector.concerns_factory() => {
                (hooks.started)(factory, &mut cx, connector);
            }
            (FactoryEvent::ConnectFailed(connector, error), Some(hooks)) if connector.concerns_factory() => {
                (hooks.failed)(factory, &mut cx, connector, error);
            }
            (FactoryEvent::ConnectLost(connector, reason), Some(hooks)) if connector.concerns_factory() => {
                (hooks.lost)(factory, &mut cx, connector, reason);
            }
            (FactoryEvent::Call(call), _) => {
                if let Ok(call) = call.downcast::<FactoryCall<F>>() {
                    (call.0)(factory, &mut cx);
                }
            }
            _ => {}
        }
        Ok(())
    });
    told.unwrap_or_else(|text| Err(io::Error::other(format!("it panicked: {text}"))))
}

/// Asks the factory for a protocol; None if it refuses or panics.
pub(crate) fn build<F: Factory>(factory: &mut F, peer: &mut Peer<'_>) -> Option<F::Protocol> {
    caught(|| factory.build_protocol(peer)).ok().flatten()
}

/// Runs user code; a panic is logged and becomes its text.
pub(crate) fn caught<R>(run: impl FnOnce() -> R) -> Result<R, Panicked> {
    // Unwind safe: the connection or call that was running is ended, and its factory is told by
    // Twisted's rule that a failing callback is the program's business, not the reactor's.
    catch_unwind(AssertUnwindSafe(run)).map_err(|payload| {
        let text = panic_text(&*payload);
        log::error!("a callback panicked: {text}");
        NOTED.with_borrow_mut(|noted| noted.iter_mut().for_each(|noted| noted.push(text.clone())));
        // The payload is the program's too, and so is its Drop.
        if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            std::mem::forget(second);
        }
        text
    })
}

thread_local! {
    /// The panics that were caught on this thread, while somebody wants to know them.
    static NOTED: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Notes what callbacks panic with while `run` runs, behind what is noted already.
pub(crate) fn note_panics(noted: &mut Vec<Panicked>, run: impl FnOnce()) {
    let outer = NOTED.replace(Some(std::mem::take(noted)));
    run();
    *noted = NOTED.replace(outer).unwrap_or_default();
}

/// Drops what belongs to the program: a panic in its Drop ends nothing but that.
pub(crate) fn drop_quietly<T>(value: T) {
    let _ = caught(|| drop(value));
}

/// Tells filters that their connection is lost, and drops them.
pub(crate) fn tell_filters_lost(filters: Option<Box<Filters>>, reason: &Reason) {
    let Some(mut filters) = filters else { return };
    filters.lost(reason, &mut |tell| drop(caught(tell)));
    drop_quietly(filters);
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned())
}

/// The hooks of a client factory, kept where only `Factory` is known.
pub(crate) struct ClientHooks<F> {
    started: fn(&mut F, &mut FactoryCx<'_, F>, &Connector),
    failed: fn(&mut F, &mut FactoryCx<'_, F>, &Connector, &ConnectError),
    lost: fn(&mut F, &mut FactoryCx<'_, F>, &Connector, &Reason),
}

impl<F: ClientFactory> ClientHooks<F> {
    pub(crate) fn new() -> Self {
        Self {
            started: F::started_connecting,
            failed: F::client_connection_failed,
            lost: F::client_connection_lost,
        }
    }
}

/// A factory on its way to the driver, which alone knows what kind of host it becomes.
pub(crate) trait Seed: Send {
    fn on_loop(self: Box<Self>) -> Box<dyn Host>;
    fn on_threads(self: Box<Self>) -> Box<dyn ThreadHost>;
}

/// As it travels through the reactor's queue.
pub(crate) struct HostSeed(pub(crate) Box<dyn Seed>);

impl<F: Factory> Seed for F {
    fn on_loop(self: Box<Self>) -> Box<dyn Host> {
        Box::new(LoopHost { factory: *self, hooks: None, protocols: Slab::new() })
    }

    fn on_threads(self: Box<Self>) -> Box<dyn ThreadHost> {
        Box::new(ThreadedFactory::new(*self))
    }
}

/// A factory and its protocols on a loop, as the loop sees them.
pub(crate) trait Host {
    /// Builds a protocol; its place among the host's protocols.
    fn build(&mut self, peer: &mut Peer<'_>) -> Option<u32>;
    /// Whether its protocols understand half-closed connections.
    fn half_closeable(&self) -> bool;
    /// Whether its protocols take descriptors.
    fn receives_descriptors(&self) -> bool;
    /// Tells one of its protocols.
    fn tell(
        &mut self,
        protocol: u32,
        id: ConnId,
        env: Env<'_>,
        event: ProtocolEvent<'_>,
    ) -> Result<(), Panicked>;
    /// The same for bytes that arrived, which nearly all calls are for. Not in an `Env`: ARCHITECTURE, "loads that span".
    fn tell_data(
        &mut self,
        protocol: u32,
        link: &mut dyn Link,
        id: ConnId,
        reactor: &Reactor,
        host: HostKey,
        data: &[u8],
    ) -> Result<(), Panicked>;
    /// Drops one of its protocols.
    fn drop_protocol(&mut self, protocol: u32);
    /// Tells the factory.
    fn tell_factory(&mut self, env: Env<'_>, event: FactoryEvent<'_>) -> io::Result<()>;
    /// The factory turns out to be a client factory.
    fn set_hooks(&mut self, hooks: ErasedCall);
}

struct LoopHost<F: Factory> {
    factory: F,
    hooks: Option<ClientHooks<F>>,
    protocols: Slab<F::Protocol>,
}

impl<F: Factory> Host for LoopHost<F> {
    fn build(&mut self, peer: &mut Peer<'_>) -> Option<u32> {
        let protocol = build(&mut self.factory, peer)?;
        Some(self.protocols.insert(protocol) as u32)
    }

    fn half_closeable(&self) -> bool {
        F::Protocol::HALF_CLOSEABLE
    }

    fn receives_descriptors(&self) -> bool {
        F::Protocol::RECEIVES_DESCRIPTORS
    }

    fn tell(
        &mut self,
        protocol: u32,
        id: ConnId,
        env: Env<'_>,
        event: ProtocolEvent<'_>,
    ) -> Result<(), Panicked> {
        let Some(protocol) = self.protocols.get_mut(protocol as usize) else { return Ok(()) };
        // Taken apart, so that the loan of the link may be as short as that of the factory.
        let Env { link, reactor, host } = env;
        let factory = FactoryMut::borrowed(&mut self.factory);
        tell_protocol(protocol, id, factory, Env { link, reactor, host }, event)
    }

    fn tell_data(
        &mut self,
        protocol: u32,
        link: &mut dyn Link,
        id: ConnId,
        reactor: &Reactor,
        host: HostKey,
        data: &[u8],
    ) -> Result<(), Panicked> {
        let Some(protocol) = self.protocols.get_mut(protocol as usize) else { return Ok(()) };
        let mut cx = Cx {
            transport: Transport::new(link, id),
            factory: FactoryMut::borrowed(&mut self.factory),
            reactor,
            host,
            wrap: None,
        };
        caught(|| protocol.data_received(&mut cx, data))
    }

    fn drop_protocol(&mut self, protocol: u32) {
        drop_quietly(self.protocols.try_remove(protocol as usize));
    }

    fn tell_factory(&mut self, env: Env<'_>, event: FactoryEvent<'_>) -> io::Result<()> {
        tell_factory(&mut self.factory, self.hooks.as_ref(), env, event)
    }

    fn set_hooks(&mut self, hooks: ErasedCall) {
        self.hooks = hooks.downcast::<ClientHooks<F>>().ok().map(|hooks| *hooks);
    }
}
