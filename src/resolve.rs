//! Names into addresses, off the reactor's thread: getaddrinfo(3) blocks.
//!
//! All reactors of a process share one pool for it, which is not theirs: a name server that does not answer takes no
//! thread from a program's own work, and `run` does not wait for it.

use std::{
    io,
    net::ToSocketAddrs,
    sync::{Arc, LazyLock, Weak},
};

use crate::{
    address::Address,
    connector::{Attempt, Connector, WeakConnector},
    reactor::{Command, Core, Reactor},
    thread_pool::{THREADS_MAX, ThreadPool},
};

static THREADS: LazyLock<ThreadPool> = LazyLock::new(|| ThreadPool::new("ringspun-resolve", THREADS_MAX));

/// Holds on to nothing: getaddrinfo may take longer than the reactor lives.
struct Question {
    core: Weak<Core>,
    connector: WeakConnector,
    attempt: Attempt,
}

impl Question {
    fn answer(self, addresses: io::Result<Vec<Address>>) {
        if let (Some(core), Some(connector)) = (self.core.upgrade(), self.connector.upgrade()) {
            Reactor { core }.push(Command::Resolved(connector, self.attempt, addresses));
        }
    }
}

/// Resolves a name; the answer is a [`Command::Resolved`].
pub(crate) fn start(reactor: &Reactor, connector: &Connector, attempt: Attempt, name: String, port: u16) {
    if let Some(network) = &reactor.core.network {
        let addresses = network.resolve(&name, port);
        return reactor.push(Command::Resolved(connector.clone(), attempt, addresses));
    }
    let (core, connector) = (Arc::downgrade(&reactor.core), connector.downgrade());
    let question = Question { core, connector, attempt };
    let job = Box::new(move |thread: io::Result<()>| {
        let addresses = thread.and_then(|()| (name.as_str(), port).to_socket_addrs());
        question.answer(addresses.map(|found| found.map(Address::Tcp).collect()));
    });
    // This pool is never closed.
    let _ = THREADS.start(job);
}
