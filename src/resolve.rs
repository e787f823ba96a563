//! Names into addresses, off the reactor's thread: getaddrinfo(3) blocks.

use std::{net::ToSocketAddrs, thread};

use crate::{
    connector::{Attempt, Connector},
    reactor::{Command, Reactor},
};

/// Resolves a name in a thread of its own, which lasts as long as that takes.
pub(crate) fn spawn(reactor: &Reactor, connector: Connector, attempt: Attempt, name: String, port: u16) {
    let answer = {
        let (reactor, connector) = (reactor.handle(), connector.clone());
        move || {
            let addresses = (name.as_str(), port).to_socket_addrs().map(Iterator::collect);
            reactor.push(Command::Resolved(connector, attempt, addresses));
        }
    };
    let spawned = thread::Builder::new().name("ringspun-resolve".to_owned()).spawn(answer);
    if let Err(error) = spawned {
        reactor.push(Command::Resolved(connector, attempt, Err(error)));
    }
}
