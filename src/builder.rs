//! Choosing a backend before the reactor runs: asked for, by the environment, or by what works.

use std::{env, sync::Arc, time::Duration};

use crate::{
    backend::{diagnosis, uring},
    error::Error,
    limits::Limits,
    network::Network,
    options::{Backend, BackendInfo, Config, UringOptions},
    reactor::{Core, Reactor, take_number},
    sys,
    thread_pool::THREADS_MAX,
};

/// The environment variable that decides where the program said [`Backend::Auto`].
const VARIABLE: &str = "RINGSPUN_BACKEND";

/// Chooses backend, limits and options of a [`Reactor`].
#[derive(Clone, Debug)]
pub struct ReactorBuilder {
    backend: Backend,
    config: Config,
}

impl Default for ReactorBuilder {
    fn default() -> Self {
        let config = Config {
            limits: Limits::default(),
            uring: UringOptions::default(),
            signals: true,
            thread_pool_size: THREADS_MAX,
            drain_timeout: Duration::ZERO,
        };
        Self { backend: Backend::Auto, config }
    }
}

impl Reactor {
    /// Chooses backend, limits and options.
    pub fn builder() -> ReactorBuilder {
        ReactorBuilder::default()
    }
}

impl ReactorBuilder {
    /// The backend; `Auto` unless said otherwise. An explicit choice that cannot be had is an error
    /// of [`build`](Self::build).
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// The limits.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.config.limits = limits;
        self
    }

    /// Options of the io_uring backend, should it run.
    pub fn uring(mut self, uring: UringOptions) -> Self {
        self.config.uring = uring;
        self
    }

    /// Whether SIGINT and SIGTERM stop this reactor; they do unless an embedder says `false`.
    pub fn signals(mut self, signals: bool) -> Self {
        self.config.signals = signals;
        self
    }

    /// How many threads at most do the work of [`Reactor::call_in_thread`] (Twisted's `suggestThreadPoolSize`): 10, unless said
    /// otherwise, and at least one.
    pub fn thread_pool_size(mut self, threads: usize) -> Self {
        self.config.thread_pool_size = threads;
        self
    }

    /// How long a reactor that is being stopped, by `stop` or by a signal, goes on sending what was written before that; not at all, unless said
    /// otherwise. Ports close at once and nothing more is received. A producer goes on until it is unregistered or the time is over. Each
    /// connection ends when all of its output has gone, or when the time is over, with [`Loss::Shutdown`](crate::Loss::Shutdown) either way; what has not gone is counted as
    /// [`Count::BytesUnsent`](crate::Count::BytesUnsent). What has gone arrives, unless the peer does not stop sending: more than
    /// [`Limits::drain_max`](crate::Limits::drain_max) of that, or any of it after a cut, ends the connection with RST; so what its kernel has not
    /// acknowledged by then is counted as [`Count::BytesUnacknowledged`](crate::Count::BytesUnacknowledged). To finish more than that, such as requests under way, [hold the stop](Reactor::hold_stop).
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.config.drain_timeout = timeout;
        self
    }

    /// Builds the reactor, proving that its backend works.
    ///
    /// # Errors
    /// If an explicitly chosen backend cannot be had, with the cause and the remedy; if
    /// `RINGSPUN_BACKEND` names none; if an option is out of range.
    pub fn build(self) -> Result<Reactor, Error> {
        self.config.uring.check()?;
        self.config.limits.check()?;
        let info = self.choose_backend(
            env::var_os(VARIABLE).map(|word| word.to_string_lossy().into_owned()).as_deref(),
        )?;
        Ok(Reactor { core: Arc::new(self.core(info)?) })
    }

    /// Builds a reactor over a network that is only memory. Signals are not for it.
    pub(crate) fn build_in_memory(self, network: Arc<Network>) -> Result<Reactor, Error> {
        self.config.limits.check()?;
        let info = self.info(Backend::Memory, None, "chosen by the test".to_owned());
        let core = self.signals(false).core(info)?;
        Ok(Reactor { core: Arc::new(core.in_memory(network)) })
    }

    fn core(self, info: BackendInfo) -> Result<Core, Error> {
        let waker = sys::Waker::new().map_err(Error::system("making an eventfd to wake the loop"))?;
        Ok(Core::new(take_number()?, self.config, info, waker))
    }

    fn choose_backend(&self, variable: Option<&str>) -> Result<BackendInfo, Error> {
        match (self.backend, variable.filter(|word| !word.is_empty())) {
            (Backend::Auto, Some(word)) => {
                let backend = word.parse()?;
                self.take_backend(backend, &format!("chosen by {VARIABLE}={word}"))
            }
            (backend, _) => self.take_backend(backend, "chosen by the program"),
        }
    }

    fn take_backend(&self, backend: Backend, why: &str) -> Result<BackendInfo, Error> {
        match backend {
            Backend::IoUring => {
                let tier = uring::prove(&self.config.uring).map_err(diagnosis::Denial::into_error)?;
                Ok(self.info(backend, Some(tier), why.to_owned()))
            }
            Backend::Auto => Ok(match uring::prove(&self.config.uring) {
                Ok(tier) => self.info(Backend::IoUring, Some(tier), "the best that works here".to_owned()),
                Err(denial) => {
                    let why = format!("io_uring cannot be had: {denial}");
                    log::warn!("falling back to epoll: {why}");
                    self.info(Backend::Epoll, None, why)
                }
            }),
            Backend::Memory => Err(Error::Backend {
                backend: backend.name(),
                cause: "a program cannot run on it".to_owned(),
                remedy: "build a ringspun::testing::MemoryReactor, which a test turns".to_owned(),
            }),
            Backend::Epoll | Backend::Threads => Ok(self.info(backend, None, why.to_owned())),
        }
    }

    fn info(&self, backend: Backend, tier: Option<crate::options::Tier>, why: String) -> BackendInfo {
        let direct = tier.is_some() && self.config.uring.direct;
        BackendInfo { backend, tier, direct, why, kernel: sys::kernel_release() }
    }
}
