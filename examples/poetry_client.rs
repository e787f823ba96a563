//! Reads a poem from whoever serves one on this machine, on port 10000 or the first argument, says how it comes in, and
//! prints it when it has ended.

mod common;

use std::process::ExitCode;

use log::LevelFilter;
use ringspun::{
    ClientFactory, ConnectError, Connector, Cx, Factory, FactoryCx, Peer, Protocol, Reactor, Reason,
};

#[derive(Default)]
struct Poetry {
    poem: Vec<u8>,
}

impl Protocol<PoetryFactory> for Poetry {
    fn data_received(&mut self, cx: &mut Cx<'_, PoetryFactory>, data: &[u8]) {
        self.poem.extend_from_slice(data);
        println!("got {} bytes of poetry from {}", data.len(), cx.transport.get_peer());
    }

    fn connection_lost(&mut self, cx: &mut Cx<'_, PoetryFactory>, reason: &Reason) {
        if matches!(reason, Reason::Done) {
            cx.factory.poem = Some(String::from_utf8_lossy(&self.poem).into_owned());
        }
    }
}

#[derive(Default)]
struct PoetryFactory {
    poem: Option<String>,
}

impl Factory for PoetryFactory {
    type Protocol = Poetry;

    fn build_protocol(&mut self, _peer: &mut Peer<'_>) -> Option<Poetry> {
        Some(Poetry::default())
    }
}

impl ClientFactory for PoetryFactory {
    fn client_connection_failed(
        &mut self,
        cx: &mut FactoryCx<'_, Self>,
        connector: &Connector,
        error: &ConnectError,
    ) {
        println!("failed to connect to {}: {error}", connector.get_destination());
        let _ = cx.reactor.stop();
    }

    fn client_connection_lost(
        &mut self,
        cx: &mut FactoryCx<'_, Self>,
        _connector: &Connector,
        reason: &Reason,
    ) {
        match self.poem.take() {
            Some(poem) => println!("{poem}"),
            None => println!("the poem has no end: {reason}"),
        }
        let _ = cx.reactor.stop();
    }
}

fn main() -> ExitCode {
    common::run(10_000, LevelFilter::Warn, |port| {
        let reactor = Reactor::builder().build()?;
        reactor.connect_tcp(("localhost", port), PoetryFactory::default());
        reactor.run()
    })
}
