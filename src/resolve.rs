//! Names into addresses, off the reactor's thread: getaddrinfo(3) blocks.
//!
//! At most ten names of a process are resolved at once, as in Twisted's thread pool; others wait
//! their turn. The threads end when nobody waits.

use std::{
    collections::VecDeque,
    io,
    net::ToSocketAddrs,
    sync::{Arc, Mutex, PoisonError, Weak},
    thread,
};

use crate::{
    connector::{Attempt, Connector, WeakConnector},
    reactor::{Command, Core, Reactor},
};

const THREADS_MAX: usize = 10;

static WAITING: Mutex<Waiting> = Mutex::new(Waiting { jobs: VecDeque::new(), threads: 0 });

struct Waiting {
    jobs: VecDeque<Job>,
    threads: usize,
}

/// Holds on to nothing: getaddrinfo may take longer than the reactor lives.
struct Job {
    core: Weak<Core>,
    connector: WeakConnector,
    attempt: Attempt,
    name: String,
    port: u16,
}

impl Job {
    fn run(self) {
        let addresses = (self.name.as_str(), self.port).to_socket_addrs().map(Iterator::collect);
        self.answer(addresses);
    }

    fn answer(self, addresses: io::Result<Vec<std::net::SocketAddr>>) {
        if let (Some(core), Some(connector)) = (self.core.upgrade(), self.connector.upgrade()) {
            Reactor { core }.push(Command::Resolved(connector, self.attempt, addresses));
        }
    }
}

/// Resolves a name; the answer is a [`Command::Resolved`].
pub(crate) fn start(reactor: &Reactor, connector: &Connector, attempt: Attempt, name: String, port: u16) {
    let (core, connector) = (Arc::downgrade(&reactor.core), connector.downgrade());
    let job = Job { core, connector, attempt, name, port };
    let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    waiting.jobs.push_back(job);
    if waiting.threads == THREADS_MAX {
        return;
    }
    waiting.threads += 1;
    drop(waiting);
    let spawned = thread::Builder::new().name("ringspun-resolve".to_owned()).spawn(run_jobs);
    if let Err(error) = spawned {
        no_thread(&error);
    }
}

fn run_jobs() {
    while let Some(job) = next_job() {
        job.run();
    }
}

fn next_job() -> Option<Job> {
    let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    let job = waiting.jobs.pop_front();
    if job.is_none() {
        waiting.threads -= 1;
    }
    job
}

/// If no thread at all could be had, those who wait are told; else the others see to them.
fn no_thread(error: &io::Error) {
    let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    waiting.threads -= 1;
    let jobs = if waiting.threads == 0 { std::mem::take(&mut waiting.jobs) } else { VecDeque::new() };
    drop(waiting);
    for job in jobs {
        job.answer(Err(io::Error::new(error.kind(), error.to_string())));
    }
}
