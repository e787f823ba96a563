//! One factory under several ports and connectors.

use std::{
    fmt,
    marker::PhantomData,
    sync::{Arc, Weak},
};

use crate::{
    factory::Factory,
    id::HostKey,
    policies::Guard,
    reactor::{Command, Core, Reactor},
};

/// A factory that belongs to a reactor, to be given to several `listen_tcp` and `connect_tcp`: it
/// starts before the first of them and stops after the last.
pub struct FactoryHandle<F> {
    token: Arc<HostToken>,
    factory: PhantomData<fn(F)>,
}

impl<F> FactoryHandle<F> {
    pub(crate) fn new(core: &Arc<Core>, key: HostKey) -> Self {
        let token = HostToken { core: Arc::downgrade(core), key, guard: None, stands_for: None };
        Self { token: Arc::new(token), factory: PhantomData }
    }

    /// The same factory behind a guard.
    pub(crate) fn guarded(self, guard: Guard) -> Self {
        let (core, key) = (self.token.core.clone(), self.token.key);
        let token = HostToken { core, key, guard: Some(Arc::new(guard)), stands_for: Some(self.token) };
        Self { token: Arc::new(token), factory: PhantomData }
    }

    pub(crate) fn key(&self) -> HostKey {
        self.token.key
    }

    pub(crate) fn belongs_to(&self, core: &Arc<Core>) -> bool {
        std::ptr::eq(self.token.core.as_ptr(), Arc::as_ptr(core))
    }

    pub(crate) fn token(&self) -> Arc<HostToken> {
        Arc::clone(&self.token)
    }
}

impl<F> Clone for FactoryHandle<F> {
    fn clone(&self) -> Self {
        Self { token: self.token(), factory: PhantomData }
    }
}

impl<F> fmt::Debug for FactoryHandle<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FactoryHandle").field(&self.token.key.0).finish()
    }
}

/// Keeps a factory in its reactor for as long as something may still name it.
pub(crate) struct HostToken {
    core: Weak<Core>,
    key: HostKey,
    guard: Option<Arc<Guard>>,
    /// The token that keeps the factory, if this one only puts a guard before it.
    stands_for: Option<Arc<HostToken>>,
}

impl HostToken {
    pub(crate) fn key(&self) -> HostKey {
        self.key
    }

    /// The policies for those who come by this token.
    pub(crate) fn guard(&self) -> Option<Arc<Guard>> {
        self.guard.clone()
    }
}

impl Drop for HostToken {
    fn drop(&mut self) {
        if self.stands_for.is_none()
            && let Some(core) = self.core.upgrade()
        {
            Reactor { core }.push(Command::ForgetHost(self.key));
        }
    }
}

/// What `listen_tcp` and `connect_tcp` take: a factory of their own, or the handle of a shared one.
pub trait IntoFactory<F: Factory> {
    /// The handle, after giving the factory to the reactor if it is not there yet.
    fn into_handle(self, reactor: &Reactor) -> FactoryHandle<F>;
}

impl<F: Factory> IntoFactory<F> for F {
    fn into_handle(self, reactor: &Reactor) -> FactoryHandle<F> {
        reactor.add_factory(self)
    }
}

impl<F: Factory> IntoFactory<F> for FactoryHandle<F> {
    fn into_handle(self, _reactor: &Reactor) -> FactoryHandle<F> {
        self
    }
}

impl<F: Factory> IntoFactory<F> for &FactoryHandle<F> {
    fn into_handle(self, _reactor: &Reactor) -> FactoryHandle<F> {
        self.clone()
    }
}
