//! A factory and its protocols among threads: each behind a lock of its own.

use std::{
    cell::{Cell, OnceCell},
    io,
    sync::{Arc, Mutex, MutexGuard, OnceLock, TryLockError},
};

use super::shared::lock;
use crate::{
    factory::{Factory, FactoryMut, FactorySource, Peer},
    host::{
        ClientHooks, Env, FactoryEvent, Panicked, ProtocolEvent, build, drop_quietly, tell_factory,
        tell_protocol,
    },
    id::ConnId,
    protocol::{ErasedCall, Protocol},
};

/// A factory, as the threads see it.
pub(crate) trait ThreadHost: Send + Sync {
    /// Builds a protocol, if a peer is still wanted when the factory's lock has been had.
    fn build(self: Arc<Self>, peer: &mut Peer<'_>, wanted: &dyn Fn() -> bool) -> Built;
    /// Whether its protocols understand half-closed connections.
    fn half_closeable(&self) -> bool;
    /// Whether its protocols take descriptors.
    fn receives_descriptors(&self) -> bool;
    /// Tells the factory.
    fn tell_factory(&self, env: Env<'_>, event: FactoryEvent<'_>) -> io::Result<()>;
    /// Makes calls of the factory's own, as `next` gives them (None is one that was cancelled), unless
    /// somebody holds the factory; answers whether nobody did.
    fn try_call(&self, env: Env<'_>, next: &mut dyn FnMut() -> Option<Option<ErasedCall>>) -> bool;
    /// The factory turns out to be a client factory.
    fn set_hooks(&self, hooks: ErasedCall);
}

/// What came of asking for a protocol.
pub(crate) enum Built {
    Protocol(Box<dyn ThreadProtocol>),
    /// The factory refuses this peer.
    Refused,
    /// The factory has not been asked.
    Unwanted,
}

/// A protocol, as the threads see it. Only one of them at a time calls it.
pub(crate) trait ThreadProtocol: Send + Sync {
    /// Tells the protocol, then calls `told`, before the factory is let go.
    fn tell(&self, id: ConnId, env: Env<'_>, event: ProtocolEvent<'_>, told: &dyn Fn()) -> Told;
    /// Drops the protocol.
    fn forget(&self);
}

/// What came of telling a protocol.
pub(crate) struct Told {
    pub(crate) result: Result<(), Panicked>,
    /// The factory was held meanwhile, so calls of its own may have been left to whoever held it.
    pub(crate) held_factory: bool,
}

/// A factory behind its lock.
pub(crate) struct ThreadedFactory<F> {
    factory: Mutex<F>,
    hooks: OnceLock<ClientHooks<F>>,
}

impl<F: Factory> ThreadedFactory<F> {
    pub(crate) fn new(factory: F) -> Self {
        Self { factory: Mutex::new(factory), hooks: OnceLock::new() }
    }
}

impl<F: Factory> ThreadHost for ThreadedFactory<F> {
    fn build(self: Arc<Self>, peer: &mut Peer<'_>, wanted: &dyn Fn() -> bool) -> Built {
        let mut factory = lock(&self.factory);
        if !wanted() {
            return Built::Unwanted;
        }
        let Some(protocol) = build(&mut *factory, peer) else { return Built::Refused };
        drop(factory);
        Built::Protocol(Box::new(Served { host: self, protocol: Mutex::new(Some(protocol)) }))
    }

    fn half_closeable(&self) -> bool {
        F::Protocol::HALF_CLOSEABLE
    }

    fn receives_descriptors(&self) -> bool {
        F::Protocol::RECEIVES_DESCRIPTORS
    }

    fn tell_factory(&self, env: Env<'_>, event: FactoryEvent<'_>) -> io::Result<()> {
        tell_factory(&mut *lock(&self.factory), self.hooks.get(), env, event)
    }

    fn try_call(&self, env: Env<'_>, next: &mut dyn FnMut() -> Option<Option<ErasedCall>>) -> bool {
        let mut factory = match self.factory.try_lock() {
            Ok(factory) => factory,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        let Env { link, reactor, host } = env;
        while let Some(call) = next() {
            let Some(call) = call else { continue };
            let env = Env { link: &mut *link, reactor, host };
            let _ = tell_factory(&mut *factory, self.hooks.get(), env, FactoryEvent::Call(call));
        }
        true
    }

    fn set_hooks(&self, hooks: ErasedCall) {
        if let Ok(hooks) = hooks.downcast::<ClientHooks<F>>() {
            let _ = self.hooks.set(*hooks);
        }
    }
}

/// A protocol with its factory.
struct Served<F: Factory> {
    host: Arc<ThreadedFactory<F>>,
    /// Never contended: the baton of its connection sees to that.
    protocol: Mutex<Option<F::Protocol>>,
}

impl<F: Factory> ThreadProtocol for Served<F> {
    fn tell(&self, id: ConnId, env: Env<'_>, event: ProtocolEvent<'_>, told: &dyn Fn()) -> Told {
        let mut protocol = lock(&self.protocol);
        let Some(protocol) = protocol.as_mut() else { return Told { result: Ok(()), held_factory: false } };
        let held = Cell::new(false);
        let mut factory = LockedWhenUsed { mutex: &self.host.factory, guard: OnceCell::new(), held: &held };
        // Taken apart, so that the loan of the link may be as short as that of the factory.
        let Env { link, reactor, host } = env;
        let factory = FactoryMut::lent(&mut factory);
        let result = tell_protocol(protocol, id, factory, Env { link, reactor, host }, event);
        told();
        Told { result, held_factory: held.get() }
    }

    fn forget(&self) {
        let protocol = lock(&self.protocol).take();
        drop_quietly(protocol);
    }
}

/// The factory inside a protocol's callback. A protocol that does not ask for it takes no lock.
struct LockedWhenUsed<'a, F> {
    mutex: &'a Mutex<F>,
    guard: OnceCell<MutexGuard<'a, F>>,
    /// It has been taken at least once.
    held: &'a Cell<bool>,
}

impl<F> FactorySource<F> for LockedWhenUsed<'_, F> {
    fn get(&self) -> &F {
        self.guard.get_or_init(|| {
            self.held.set(true);
            lock(self.mutex)
        })
    }

    fn get_mut(&mut self) -> &mut F {
        self.get();
        self.guard.get_mut().expect("`get` has just locked it")
    }

    fn release(&mut self) {
        self.guard.take();
    }
}
