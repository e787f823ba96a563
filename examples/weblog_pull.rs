//! Serves the hits of a web server, as they are appended to `access-log`, to clients that ask for them: whatever a client sends
//! is answered with all hits since anybody asked last, or `<none/>`. On port 8888 or the first argument.

mod common;
mod webloglib;

use std::{io, process::ExitCode};

use log::LevelFilter;
use ringspun::{Cx, Factory, Peer, Protocol, Reactor, Reason};

use webloglib::Follower;

struct WebLog;

struct WebLogFactory {
    hits: Follower,
}

impl Factory for WebLogFactory {
    type Protocol = WebLog;

    fn build_protocol(&mut self, _peer: &mut Peer<'_>) -> Option<WebLog> {
        Some(WebLog)
    }
}

impl Protocol<WebLogFactory> for WebLog {
    fn connection_made(&mut self, cx: &mut Cx<'_, WebLogFactory>) {
        log::info!("Connected from {}", cx.transport.get_peer());
        cx.transport.write(b"<hits>");
    }

    fn data_received(&mut self, cx: &mut Cx<'_, WebLogFactory>, _data: &[u8]) {
        let hits = cx.factory.hits.new_hits();
        match hits {
            Ok(hits) => {
                let answer = if hits.is_empty() { b"<none/>" } else { hits.as_slice() };
                cx.transport.write(answer);
            }
            Err(error) => cx.transport.fail(error),
        }
    }

    fn connection_lost(&mut self, cx: &mut Cx<'_, WebLogFactory>, _reason: &Reason) {
        log::info!("Disconnected from {}", cx.transport.get_peer());
    }
}

fn main() -> ExitCode {
    common::run(8888, LevelFilter::Info, |port| {
        let hits = Follower::at_end(webloglib::LOG)?;
        let reactor = Reactor::builder().build().map_err(io::Error::other)?;
        reactor.listen_tcp(port, WebLogFactory { hits }).map_err(io::Error::other)?;
        reactor.run().map_err(io::Error::other)
    })
}
