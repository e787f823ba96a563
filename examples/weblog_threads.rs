//! Serves the hits of a web server with a thread a client, each of which follows `access-log` for itself: it looks every five
//! seconds, and tells its client what is new. On port 8888 or the first argument.

mod common;
mod pace;
mod webloglib;

use std::process::ExitCode;

use log::LevelFilter;
use ringspun::{Backend, Cx, Factory, Peer, Protocol, Reactor, Reason};

use webloglib::Follower;

struct WebLog {
    hits: Follower,
}

impl WebLog {
    fn tell(&mut self, cx: &mut Cx<'_, WebLogFactory>) {
        match self.hits.new_hits() {
            Ok(hits) => {
                cx.transport.write(&hits);
            }
            Err(error) => return cx.transport.fail(error),
        }
        cx.call_later(pace::interval(5.0), Self::tell);
    }
}

struct WebLogFactory;

impl Factory for WebLogFactory {
    type Protocol = WebLog;

    fn build_protocol(&mut self, _peer: &mut Peer<'_>) -> Option<WebLog> {
        let hits = Follower::at_end(webloglib::LOG);
        hits.map(|hits| WebLog { hits }).inspect_err(|error| log::error!("{error}")).ok()
    }
}

impl Protocol<WebLogFactory> for WebLog {
    fn connection_made(&mut self, cx: &mut Cx<'_, WebLogFactory>) {
        log::info!("Connected from {}", cx.transport.get_peer());
        cx.transport.write(b"<hits>");
        self.tell(cx);
    }

    fn data_received(&mut self, _cx: &mut Cx<'_, WebLogFactory>, _data: &[u8]) {}

    fn connection_lost(&mut self, cx: &mut Cx<'_, WebLogFactory>, _reason: &Reason) {
        log::info!("Disconnected from {}", cx.transport.get_peer());
    }
}

fn main() -> ExitCode {
    common::run(8888, LevelFilter::Info, |port| {
        let reactor = Reactor::builder().backend(Backend::Threads).build()?;
        reactor.listen_tcp(port, WebLogFactory)?;
        reactor.run()
    })
}
