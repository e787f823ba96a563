//! Pushes the hits of a web server to all clients, as they are appended to `access-log`, which it looks at every second. Each client gets each hit
//! once, from the moment when it connects. On port 8888 or the first argument.

mod common;
mod pace;
mod webloglib;

use std::{io, process::ExitCode, sync::Arc};

use log::LevelFilter;
use ringspun::{ConnId, Cx, Factory, FactoryCx, Peer, Protocol, Reactor, Reason};

use webloglib::Follower;

struct WebLog;

#[derive(Default)]
struct WebLogFactory {
    hits: Option<Follower>,
}

impl WebLogFactory {
    /// What has been appended, to be written to many.
    fn new_hits(&mut self) -> Arc<[u8]> {
        let hits = self.hits.as_mut().map_or(Ok(Vec::new()), Follower::new_hits);
        hits.unwrap_or_else(|error| {
            log::error!("{error}");
            Vec::new()
        })
        .into()
    }

    fn update_records(&mut self, cx: &mut FactoryCx<'_, Self>) {
        let hits = self.new_hits();
        cx.connections.each(|mut transport| {
            let _ = transport.write_shared(&hits);
        });
        cx.call_later(pace::interval(1.0), Self::update_records);
    }
}

impl Factory for WebLogFactory {
    type Protocol = WebLog;

    fn build_protocol(&mut self, _peer: &mut Peer<'_>) -> Option<WebLog> {
        Some(WebLog)
    }

    fn start_factory(&mut self, cx: &mut FactoryCx<'_, Self>) -> io::Result<()> {
        self.hits = Some(Follower::at_end()?);
        self.update_records(cx);
        Ok(())
    }

    fn stop_factory(&mut self, _cx: &mut FactoryCx<'_, Self>) {
        self.hits = None;
    }
}

impl Protocol<WebLogFactory> for WebLog {
    fn connection_made(&mut self, cx: &mut Cx<'_, WebLogFactory>) {
        log::info!("Connected from {}", cx.transport.get_peer());
        // What was appended before this client came is for the others only.
        let (hits, own) = (cx.factory.new_hits(), cx.transport.id());
        push_to_others(cx, &hits, own);
        cx.transport.write(b"<hits>");
    }

    fn data_received(&mut self, _cx: &mut Cx<'_, WebLogFactory>, _data: &[u8]) {}

    fn connection_lost(&mut self, cx: &mut Cx<'_, WebLogFactory>, _reason: &Reason) {
        log::info!("Disconnected from {}", cx.transport.get_peer());
    }
}

fn push_to_others(cx: &mut Cx<'_, WebLogFactory>, hits: &Arc<[u8]>, own: ConnId) {
    cx.connections().each(|mut transport| {
        if transport.id() != own {
            let _ = transport.write_shared(hits);
        }
    });
}

fn main() -> ExitCode {
    common::run(8888, LevelFilter::Info, |port| {
        let reactor = Reactor::builder().build()?;
        reactor.listen_tcp(port, WebLogFactory::default())?;
        reactor.run()
    })
}
