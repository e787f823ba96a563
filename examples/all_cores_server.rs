//! One reactor a core, all on port 8000 or the first argument. The kernel deals the connections out
//! (`SO_REUSEPORT`); each reactor says its number and echoes. Nothing is shared between them.

mod common;

use std::{
    error::Error,
    panic,
    process::ExitCode,
    thread::{self, Builder},
};

use log::LevelFilter;
use ringspun::{Cx, Factory, ListenOptions, Peer, Protocol, Reactor, Write};

struct Echo;

impl Protocol<CoreFactory> for Echo {
    fn connection_made(&mut self, cx: &mut Cx<'_, CoreFactory>) {
        let CoreFactory { core, cores } = *cx.factory;
        cx.transport.write_with(|out| write!(out, "reactor {core} of {cores}\r\n"));
    }

    fn data_received(&mut self, cx: &mut Cx<'_, CoreFactory>, data: &[u8]) {
        if cx.transport.write(data) == Write::Full {
            cx.transport.pause_producing();
        }
    }

    fn resume_writing(&mut self, cx: &mut Cx<'_, CoreFactory>) {
        cx.transport.resume_producing();
    }
}

struct CoreFactory {
    core: usize,
    cores: usize,
}

impl Factory for CoreFactory {
    type Protocol = Echo;

    fn build_protocol(&mut self, _peer: &mut Peer<'_>) -> Option<Echo> {
        Some(Echo)
    }
}

/// Reactors that all listen on one port. If that is 0, the kernel chooses for the first of them.
fn listen(mut port: u16) -> Result<Vec<Reactor>, Box<dyn Error>> {
    let cores = thread::available_parallelism()?.get();
    let mut reactors = Vec::new();
    for core in 0..cores {
        let reactor = Reactor::builder().build()?;
        let options = ListenOptions::from(port).reuse_port(true);
        let listening = reactor.listen_tcp(options, CoreFactory { core, cores })?;
        port = listening.get_host().port().unwrap_or(port);
        reactors.push(reactor);
    }
    Ok(reactors)
}

/// Runs one reactor. When it ends, for whatever reason, so do all others.
fn run(reactor: &Reactor, all: &[Reactor]) -> Result<(), ringspun::Error> {
    let ended = reactor.run();
    for other in all {
        // Asked from within, for one that is yet to start is not to be missed.
        other.call_when_running(|other| drop(other.stop()));
    }
    ended
}

fn serve(port: u16) -> Result<(), Box<dyn Error>> {
    let reactors = listen(port)?;
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for (core, reactor) in reactors.iter().enumerate() {
            let thread = Builder::new().name(format!("reactor {core}"));
            threads.push(thread.spawn_scoped(scope, || run(reactor, &reactors))?);
        }
        for thread in threads {
            thread.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked))?;
        }
        Ok(())
    })
}

fn main() -> ExitCode {
    common::run(8000, LevelFilter::Info, serve)
}
