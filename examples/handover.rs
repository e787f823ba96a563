//! Says which process answers, and on SIGHUP leaves its port to a successor: the same program, started anew, as after an upgrade. While
//! one takes over from the other, nobody is refused and nobody goes without an answer. On port 8000 or the first argument, or on
//! the socket that systemd starts it with.

mod common;

use std::{
    env,
    io::{self, BufRead, BufReader, Write},
    process::{self, Command, ExitCode, Stdio},
    thread,
    time::Duration,
};

use log::LevelFilter;
use nix::sys::signal::{SigSet, Signal};
use ringspun::{
    Activation, Cx, Factory, FactoryCx, Peer, Phase, Port, Protocol, Reactor, ReactorHandle, StopHold,
    SystemEvent,
};

/// How long clients may stay when the process is about to end.
const PATIENCE: Duration = Duration::from_secs(5);

struct Answers {
    /// The reactor does not stop before the client has gone.
    _hold: StopHold,
}

impl<F> Protocol<F> for Answers {
    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        let _ = cx.transport.write_with(|out| {
            let _ = write!(out, "{} answers: ", process::id());
            out.write_all(data)
        });
    }
}

struct AnswersFactory {
    reactor: ReactorHandle,
}

impl Factory for AnswersFactory {
    type Protocol = Answers;

    fn build_protocol(&mut self, _peer: &mut Peer<'_>) -> Option<Answers> {
        Some(Answers { _hold: self.reactor.hold_stop() })
    }

    fn stop_factory(&mut self, cx: &mut FactoryCx<'_, Self>) {
        // The port has ended. Whoever is still here may stay for a while.
        cx.call_later(PATIENCE, |_, cx| cx.connections.each(|mut transport| transport.lose_connection()));
    }
}

/// A stop begins with the port, and holds until everybody whom that has accepted has got a protocol, which holds it from there.
fn stop_at_the_port(reactor: &Reactor, port: Port) {
    reactor.add_system_event_trigger(Phase::Before, SystemEvent::Shutdown, move |reactor| {
        let hold = reactor.hold_stop();
        port.on_done(|_, _| drop(hold));
        port.stop_listening();
    });
}

/// Starts this program once more, and waits until that serves.
fn start_successor(port: &Port) -> io::Result<()> {
    let mut arguments = env::args_os();
    let mut program = Command::new(arguments.next().unwrap_or_default());
    program.args(arguments).stdout(Stdio::piped());
    let mut successor = Activation::new().socket("port", port.try_clone_socket()?).spawn(program)?;
    let mut said = String::new();
    if let Some(stdout) = successor.stdout.take() {
        BufReader::new(stdout).read_line(&mut said)?;
    }
    if said != "serving\n" {
        successor.kill()?;
        return Err(io::Error::other(format!("it does not serve ({})", successor.wait()?)));
    }
    log::info!("process {} has taken over", successor.id());
    Ok(())
}

/// Waits for SIGHUP, which has to be blocked in all threads.
fn hand_over_on(hangup: SigSet, reactor: ReactorHandle, port: Port) {
    thread::spawn(move || {
        while hangup.wait().is_ok() {
            match start_successor(&port) {
                Ok(()) => return reactor.stop(),
                Err(error) => log::error!("no successor: {error}; process {} goes on", process::id()),
            }
        }
        Ok(())
    });
}

fn main() -> ExitCode {
    common::run(8000, LevelFilter::Info, |port| {
        let mut hangup = SigSet::empty();
        hangup.add(Signal::SIGHUP);
        // Before there are threads, so that none of them gets it.
        hangup.thread_block().map_err(io::Error::from)?;
        let endpoint = match env::var_os("LISTEN_FDS") {
            Some(_) => "systemd:index=0".to_owned(),
            None => format!("tcp:{port}"),
        };
        let reactor = Reactor::builder().build()?;
        let port = reactor.listen(endpoint, AnswersFactory { reactor: reactor.handle() })?;
        stop_at_the_port(&reactor, port.clone());
        // A signal that comes sooner waits until there is something to stop.
        reactor.call_when_running(move |reactor| {
            hand_over_on(hangup, reactor.handle(), port);
            println!("serving");
        });
        reactor.run()?;
        Ok::<_, Box<dyn std::error::Error>>(())
    })
}
