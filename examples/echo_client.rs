//! Says hello to the echo server on this machine, on port 8000 or the first argument, and leaves.

mod common;

use std::process::ExitCode;

use log::LevelFilter;
use ringspun::{
    ClientFactory, ConnectError, Connector, Cx, Factory, FactoryCx, Peer, Protocol, Reactor, Reason,
};

struct EchoClient;

impl<F> Protocol<F> for EchoClient {
    fn connection_made(&mut self, cx: &mut Cx<'_, F>) {
        cx.transport.write(b"hello, world!");
    }

    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        println!("Server said: {}", String::from_utf8_lossy(data));
        cx.transport.lose_connection();
    }

    fn connection_lost(&mut self, _cx: &mut Cx<'_, F>, _reason: &Reason) {
        println!("connection lost");
    }
}

struct EchoClientFactory;

impl Factory for EchoClientFactory {
    type Protocol = EchoClient;

    fn build_protocol(&mut self, _peer: &mut Peer<'_>) -> Option<EchoClient> {
        Some(EchoClient)
    }
}

impl ClientFactory for EchoClientFactory {
    fn client_connection_failed(
        &mut self,
        cx: &mut FactoryCx<'_, Self>,
        connector: &Connector,
        error: &ConnectError,
    ) {
        log::warn!("{}: {error}", connector.get_destination());
        println!("Connection failed - goodbye!");
        // It is an error only if something else has stopped the reactor already.
        let _ = cx.reactor.stop();
    }

    fn client_connection_lost(
        &mut self,
        cx: &mut FactoryCx<'_, Self>,
        _connector: &Connector,
        _reason: &Reason,
    ) {
        println!("Connection lost - goodbye!");
        let _ = cx.reactor.stop();
    }
}

fn main() -> ExitCode {
    common::run(8000, LevelFilter::Warn, |port| {
        let reactor = Reactor::builder().build()?;
        reactor.connect_tcp(("localhost", port), EchoClientFactory);
        reactor.run()
    })
}
