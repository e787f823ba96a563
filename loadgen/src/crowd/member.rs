//! One client process, as loadgen sees it.

use std::{
    os::unix::process::CommandExt,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    time::Duration,
};

use super::pipe::{News, Order};
use crate::{
    child::{OWN_PROGRAM, how_it_ended, read_lines},
    control,
    engine::Watcher,
    error::Error,
};

/// How often a signal is looked for.
const TICK: Duration = Duration::from_millis(50);

/// A client process. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Member {
    child: Child,
    orders: Option<ChildStdin>,
    news: Receiver<News>,
}

impl Member {
    /// Starts it, on the CPUs of this process; it waits for its share.
    pub(super) fn start() -> Result<Self, Error> {
        let mut process = Command::new(OWN_PROGRAM);
        process.arg0("loadgen").arg("client");
        // A group of its own, or Ctrl-C would end it before loadgen has noted what it did.
        process.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = process.spawn().map_err(|error| {
            Error::machine(format!("cannot start a client process: {error}; is the process limit reached?"))
        })?;
        let orders = child.stdin.take();
        let news = child.stdout.take().map(read_lines).unwrap_or_else(|| mpsc::channel().1);
        Ok(Self { child, orders, news })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn tell(&mut self, order: &Order) {
        if let Some(orders) = &mut self.orders {
            // One that is gone shows by its missing answer.
            let _ = control::write_line(orders, order);
        }
    }

    /// What it says next, however long that takes: it has its own deadlines.
    pub(super) fn hear(&mut self, watcher: &impl Watcher) -> Result<News, Error> {
        loop {
            match self.news.recv_timeout(TICK) {
                Ok(news) => return Ok(news),
                Err(RecvTimeoutError::Timeout) if watcher.interrupted() => return Err(Error::interrupted()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(self.death()),
            }
        }
    }

    fn death(&mut self) -> Error {
        let how = self.child.wait().map_or_else(|error| error.to_string(), how_it_ended);
        Error::internal(format!(
            "a client process (pid {}) {how}; see its last words above, if any",
            self.child.id()
        ))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // Both fail only if it has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
