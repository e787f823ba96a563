//! A client process: the engine on a share of the connections, which waits at each step for the others.

use std::{
    io::{self, BufRead},
    process,
};

use nix::sys::{prctl, signal::Signal};

use super::pipe::{News, Order, Step};
use crate::{
    control,
    engine::{self, Watcher},
    error::{Error, Exit},
    machine,
};

/// Does what loadgen says, and ends with it.
pub(crate) fn work() -> Result<Exit, Error> {
    prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|errno| Error::internal(format!("PR_SET_PDEATHSIG: {}", errno.desc())))?;
    machine::raise_descriptor_limit();
    if let Order::Begin { load } = next_order() {
        tell(&match engine::run(&load, &mut Worker) {
            Ok(counted) => News::Counted { counted: Box::new(counted) },
            Err(error) => News::Failed { error },
        });
    }
    Ok(Exit::Done)
}

struct Worker;

impl Worker {
    fn wait_at(&mut self, step: Step) {
        tell(&News::Reached { step });
        next_order();
    }
}

impl Watcher for Worker {
    fn connected(&mut self) {
        self.wait_at(Step::Connected);
    }

    fn window_opened(&mut self) {
        self.wait_at(Step::WindowOpened);
    }

    fn window_closed(&mut self) {
        self.wait_at(Step::WindowClosed);
    }

    fn drained(&mut self) {
        self.wait_at(Step::Drained);
    }

    /// Whoever wants the run to end ends loadgen, which ends this process.
    fn interrupted(&self) -> bool {
        false
    }
}

/// What comes next; nothing more comes once loadgen is gone or has no use for this process.
fn next_order() -> Order {
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    match read.ok().and_then(|_| serde_json::from_str(&line).ok()) {
        Some(order) => order,
        None => process::exit(Exit::Internal.code().into()),
    }
}

fn tell(news: &News) {
    // A loadgen that does not read any more is noticed by the end of standard input.
    let _ = control::write_line(io::stdout().lock(), news);
}
