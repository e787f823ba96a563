//! Work that blocks, in a thread of the reactor's pool: the answer comes back where it was asked for.

use std::{error, fmt, io, sync::Arc, sync::Mutex, sync::PoisonError, time::Duration};

use crate::{
    factory::{Factory, FactoryCx},
    host::{caught, drop_quietly},
    protocol::Cx,
    reactor::{Command, Reactor, State, TimerCall},
};

/// Why work in a thread has no result.
#[derive(Debug)]
#[non_exhaustive]
pub enum ThreadError {
    /// It panicked, with this text.
    Panicked(String),
    /// No thread could be had, and none of the pool's runs.
    NoThread(io::Error),
}

impl fmt::Display for ThreadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked(text) => write!(f, "the work in a thread panicked: {text}"),
            Self::NoThread(error) => {
                write!(f, "no thread could be started for the work: {error}; raise `ulimit -u` or have fewer")
            }
        }
    }
}

impl error::Error for ThreadError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Panicked(_) => None,
            Self::NoThread(error) => Some(error),
        }
    }
}

impl Reactor {
    /// Does `work` in a thread of the reactor's pool, then calls `answer` with its result on the reactor's thread.
    ///
    /// There are ten threads at most, unless [`ReactorBuilder::thread_pool_size`](crate::ReactorBuilder::thread_pool_size) says otherwise; more work
    /// waits its turn, and work asked for before `run` waits for that. When the reactor stops, `run` waits for the work that
    /// was begun; what was not is dropped, and so are all answers.
    ///
    /// ```
    /// # fn main() -> Result<(), ringspun::Error> {
    /// let reactor = ringspun::Reactor::builder().build()?;
    /// reactor.call_in_thread(
    ///     || std::fs::read("/proc/version"),
    ///     |reactor, read| {
    ///         println!("{} bytes", read.unwrap().unwrap().len());
    ///         let _ = reactor.stop();
    ///     },
    /// );
    /// reactor.run()
    /// # }
    /// ```
    pub fn call_in_thread<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
        answer: impl FnOnce(&Reactor, Result<R, ThreadError>) + Send + 'static,
    ) {
        self.work(work, |reactor, result| {
            reactor.push(Command::Call(Box::new(move |reactor| answer(reactor, result))));
        });
    }

    /// Does `work` in a thread, which then calls `done`.
    fn work<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
        done: impl FnOnce(&Reactor, Result<R, ThreadError>) + Send + 'static,
    ) {
        let core = Arc::downgrade(&self.core);
        let job = Box::new(move |thread: io::Result<()>| {
            let result = match thread {
                Ok(()) => caught(work).map_err(ThreadError::Panicked),
                Err(error) => Err(ThreadError::NoThread(error)),
            };
            match core.upgrade() {
                Some(core) => done(&Reactor { core }, result),
                None => drop_quietly((done, result)),
            }
        });
        if self.core.state() == State::New {
            self.push(Command::Call(Box::new(move |reactor| reactor.start(job))));
        } else {
            self.start(job);
        }
    }

    fn start(&self, job: crate::thread_pool::Job) {
        if let Err(job) = self.core.threads.start(job) {
            drop_quietly(job);
        }
    }
}

/// Where a result waits for the call that takes it.
type Slot<R> = Arc<Mutex<Option<Result<R, ThreadError>>>>;

fn take<R>(slot: &Slot<R>) -> Option<Result<R, ThreadError>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn put<R>(slot: &Slot<R>, result: Result<R, ThreadError>) {
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
}

impl<F: Factory> Cx<'_, F> {
    /// Does `work` in a thread of the [reactor's pool](Reactor::call_in_thread), then calls `answer` with this protocol and the result. If the
    /// connection is gone by then, nothing is called.
    pub fn call_in_thread<R, C>(&mut self, work: impl FnOnce() -> R + Send + 'static, answer: C)
    where
        R: Send + 'static,
        C: FnOnce(&mut F::Protocol, &mut Cx<'_, F>, Result<R, ThreadError>) + Send + 'static,
    {
        let slot = Slot::<R>::default();
        let (id, result) = (self.transport.id(), Arc::clone(&slot));
        let call = self.erase(move |protocol, cx| {
            if let Some(result) = take(&result) {
                answer(protocol, cx, result);
            }
        });
        self.reactor.work(work, move |reactor, result| {
            put(&slot, result);
            reactor.push(Command::Post(id, call));
        });
    }
}

impl<F: Factory> FactoryCx<'_, F> {
    /// Does `work` in a thread of the [reactor's pool](Reactor::call_in_thread), then calls `answer` with this factory and the result.
    pub fn call_in_thread<R, C>(&mut self, work: impl FnOnce() -> R + Send + 'static, answer: C)
    where
        R: Send + 'static,
        C: FnOnce(&mut F, &mut FactoryCx<'_, F>, Result<R, ThreadError>) + Send + 'static,
    {
        let slot = Slot::<R>::default();
        let (host, result) = (self.host, Arc::clone(&slot));
        let call = self.erase(move |factory, cx| {
            if let Some(result) = take(&result) {
                answer(factory, cx, result);
            }
        });
        self.reactor.work(work, move |reactor, result| {
            put(&slot, result);
            reactor.schedule_key(Duration::ZERO, TimerCall::Factory(host, call));
        });
    }
}
