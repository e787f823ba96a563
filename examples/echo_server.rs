//! Echoes everything back, on port 8000 or the first argument.

mod common;

use std::process::ExitCode;

use log::LevelFilter;
use ringspun::{Cx, Factory, Peer, Protocol, Reactor, Write};

struct Echo;

impl<F> Protocol<F> for Echo {
    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        // As soon as any data is received, write it back. A peer that does not read what we write
        // is not read either.
        if cx.transport.write(data) == Write::Full {
            cx.transport.pause_producing();
        }
    }

    fn resume_writing(&mut self, cx: &mut Cx<'_, F>) {
        cx.transport.resume_producing();
    }
}

struct EchoFactory;

impl Factory for EchoFactory {
    type Protocol = Echo;

    fn build_protocol(&mut self, _peer: &mut Peer<'_>) -> Option<Echo> {
        Some(Echo)
    }
}

fn main() -> ExitCode {
    common::run(8000, LevelFilter::Info, |port| {
        let reactor = Reactor::builder().build()?;
        reactor.listen_tcp(port, EchoFactory)?;
        reactor.run()
    })
}
