//! Serving protocols of one kind that keep a journal.

use ringspun::{Factory, Peer as Asking, Protocol};

use crate::{
    kit::{Journal, Server},
    setups::Setup,
};

/// A factory of one kind of protocol.
pub(crate) struct Kind<P>(Journal, fn(Journal) -> P);

impl<P: Protocol<Self>> Factory for Kind<P> {
    type Protocol = P;

    fn build_protocol(&mut self, _peer: &mut Asking<'_>) -> Option<P> {
        Some((self.1)(self.0.clone()))
    }
}

pub(crate) fn serve<P: Protocol<Kind<P>>>(setup: &Setup, new: fn(Journal) -> P) -> Server {
    let (journal, reactor) = (Journal::default(), setup.reactor());
    let port = reactor.listen_tcp(("127.0.0.1", 0), Kind(journal.clone(), new)).unwrap();
    Server::start(journal, port, reactor)
}
