//! The test kit, tested by what users do with it. `same.rs` compares memory with the sockets of every backend.

mod peers;
mod same;
mod time;
mod uses;
mod weblog;
mod world;

use std::sync::{Arc, Mutex};

use ringspun::{Cx, Factory, Peer, Protocol, Reason};

/// What was told, in order.
#[derive(Clone, Default)]
pub(crate) struct Journal(Arc<Mutex<Vec<String>>>);

impl Journal {
    pub(crate) fn note(&self, text: impl Into<String>) {
        self.0.lock().unwrap().push(text.into());
    }

    /// All that was noted since this was last asked.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// What a [`Noter`] does to data.
type OnData = fn(&mut Cx<'_, Noting>, &[u8]);

/// A factory of protocols that note what they are told, and do to data what they were made with.
pub(crate) struct Noting {
    journal: Journal,
    greeting: &'static [u8],
    on_data: OnData,
}

pub(crate) struct Noter {
    journal: Journal,
    on_data: OnData,
}

pub(crate) fn noting(journal: &Journal, on_data: OnData) -> Noting {
    Noting { journal: journal.clone(), greeting: b"", on_data }
}

impl Noting {
    /// Has its protocols begin with this.
    pub(crate) fn greeting(mut self, greeting: &'static [u8]) -> Self {
        self.greeting = greeting;
        self
    }
}

/// One that only echoes.
pub(crate) fn echoing(journal: &Journal) -> Noting {
    noting(journal, |cx, data| {
        let _ = cx.transport.write(data);
    })
}

impl Factory for Noting {
    type Protocol = Noter;

    fn build_protocol(&mut self, _peer: &mut Peer<'_>) -> Option<Noter> {
        Some(Noter { journal: self.journal.clone(), on_data: self.on_data })
    }

    fn start_factory(&mut self, _cx: &mut ringspun::FactoryCx<'_, Self>) -> std::io::Result<()> {
        self.journal.note("started");
        Ok(())
    }

    fn stop_factory(&mut self, _cx: &mut ringspun::FactoryCx<'_, Self>) {
        self.journal.note("stopped");
    }
}

impl ringspun::ClientFactory for Noting {
    fn client_connection_failed(
        &mut self,
        _cx: &mut ringspun::FactoryCx<'_, Self>,
        _connector: &ringspun::Connector,
        error: &ringspun::ConnectError,
    ) {
        self.journal.note(format!("failed {error:?}"));
    }
}

impl Protocol<Noting> for Noter {
    fn connection_made(&mut self, cx: &mut Cx<'_, Noting>) {
        self.journal.note("made");
        cx.transport.write(cx.factory.greeting);
    }

    fn data_received(&mut self, cx: &mut Cx<'_, Noting>, data: &[u8]) {
        self.journal.note(format!("data {}", data.escape_ascii()));
        (self.on_data)(cx, data);
    }

    fn pause_writing(&mut self, _cx: &mut Cx<'_, Noting>) {
        self.journal.note("pause writing");
    }

    fn resume_writing(&mut self, _cx: &mut Cx<'_, Noting>) {
        self.journal.note("resume writing");
    }

    fn connection_lost(&mut self, _cx: &mut Cx<'_, Noting>, reason: &Reason) {
        self.journal.note(format!("lost {reason:?}"));
    }
}
