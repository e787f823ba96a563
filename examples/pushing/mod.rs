//! The factory of weblog_push: what it does with each client, and when.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use ringspun::{ConnId, Cx, DelayedCall, Factory, FactoryCx, Peer, Protocol, Reason};

use super::webloglib::Follower;

pub(crate) struct WebLog;

pub(crate) struct WebLogFactory {
    log: PathBuf,
    interval: Duration,
    hits: Option<Follower>,
    update: Option<DelayedCall>,
}

impl WebLogFactory {
    /// Pushes what is appended to this log, at which it looks so often.
    pub(crate) fn new(log: impl Into<PathBuf>, interval: Duration) -> Self {
        Self { log: log.into(), interval, hits: None, update: None }
    }

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
        self.update = Some(cx.call_later(self.interval, Self::update_records));
    }
}

impl Factory for WebLogFactory {
    type Protocol = WebLog;

    fn build_protocol(&mut self, _peer: &mut Peer<'_>) -> Option<WebLog> {
        Some(WebLog)
    }

    fn start_factory(&mut self, cx: &mut FactoryCx<'_, Self>) -> io::Result<()> {
        self.hits = Some(Follower::at_end(&self.log)?);
        self.update_records(cx);
        Ok(())
    }

    fn stop_factory(&mut self, _cx: &mut FactoryCx<'_, Self>) {
        self.hits = None;
        // It has been made, if it is what stops the factory.
        self.update.take().map(|update| update.cancel());
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
