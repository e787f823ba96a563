//! Any other program as a server: started on a port of its own, watched from outside, and ended
//! with all that it has started.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    process::{self, Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
    },
    unistd::Pid,
};

use super::{Served, obey, report};
use crate::{
    cli::ServeArgs,
    control::{Identity, Mark, Report, ServerStats},
    error::Error,
    measure,
    spec::Hired,
    target::Target,
};

/// Below the ports that the kernel gives to clients, which could take one that is free now.
const PORTS: std::ops::Range<u16> = 10_240..32_768;
const START: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(10);
/// How long SIGTERM is given before SIGKILL.
const END: Duration = Duration::from_secs(2);

/// Starts the program and stands between it and loadgen: when that is gone, so is the program.
pub(super) fn serve(args: &ServeArgs, hired: &Hired) -> Result<(), Error> {
    // Whatever the program starts and leaves becomes this process's own child, and so stays of its family.
    prctl::set_child_subreaper(true)
        .map_err(|errno| Error::internal(format!("PR_SET_CHILD_SUBREAPER: {}", errno.desc())))?;
    let port = free_port(args)?;
    let line = hired.command.replace("{port}", &port.to_string());
    let child = Command::new("sh")
        .args(["-c", &line])
        .process_group(0)
        .stdin(Stdio::null())
        // Standard output is loadgen's control pipe.
        .stdout(io::stderr())
        .spawn()
        .map_err(|error| Error::machine(format!("cannot start sh for `{line}`: {error}")))?;
    let group = Group { leader: child.id() as i32, ending: Arc::default() };
    watch(child, &line, &group);
    let address = SocketAddr::new(args.address().ip(), port);
    await_listening(address, &line, &group)?;
    let identity = Identity {
        backend: hired.name.clone(),
        tier: None,
        descriptors: "plain".into(),
        reactors: 1,
        why: format!("started as `{line}`"),
        pid: group.leader as u32,
    };
    report(&Report::Ready { identity, target: Target::Tcp(address) });
    obey(group);
    Ok(())
}

/// A port that nobody has at the moment.
fn free_port(args: &ServeArgs) -> Result<u16, Error> {
    let ports = PORTS.start..PORTS.end.min(measure::local_ports().map_or(PORTS.end, |ports| *ports.start()));
    // Where the kernel gives all of them to clients there is no better choice.
    let ports = if ports.is_empty() { PORTS } else { ports };
    let start = process::id() as usize % ports.len().max(1);
    let mut in_turn = ports.clone().cycle().skip(start).take(ports.len());
    in_turn
        .find(|port| TcpListener::bind((args.address().ip(), *port)).is_ok())
        .ok_or_else(|| Error::machine(format!("no port of {ports:?} is free on {}", args.address().ip())))
}

/// Ends this process when the program ends by itself.
fn watch(mut child: Child, line: &str, group: &Group) {
    let (line, group) = (line.to_owned(), group.clone());
    thread::spawn(move || {
        let how = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        if !group.ending.load(SeqCst) {
            // It may have left others behind.
            group.kill();
            report(&Report::Failed { message: format!("`{line}` ended by itself: {how}") });
            process::exit(1);
        }
    });
}

fn await_listening(address: SocketAddr, line: &str, group: &Group) -> Result<(), Error> {
    let deadline = Instant::now() + START;
    while !listens(address) {
        if Instant::now() > deadline {
            group.kill();
            return Err(Error::machine(format!("`{line}` does not listen on {address} within {START:?}")));
        }
        thread::sleep(TICK);
    }
    Ok(())
}

/// Whether somebody else listens there: a socket can also connect to itself.
fn listens(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, START)
        .is_ok_and(|stream| stream.local_addr().is_ok_and(|own| own != address))
}

/// The process group of the program.
#[derive(Clone)]
struct Group {
    leader: i32,
    ending: Arc<AtomicBool>,
}

impl Group {
    fn kill(&self) {
        self.ending.store(true, SeqCst);
        signal_all(Signal::SIGTERM);
        let deadline = Instant::now() + END;
        while !descendants().is_empty() && Instant::now() < deadline {
            thread::sleep(TICK);
        }
        signal_all(Signal::SIGKILL);
    }
}

/// All that descend from this process and still run, those in sessions of their own included.
fn descendants() -> Vec<u32> {
    let mut family = measure::family(process::id());
    family.retain(|pid| *pid != process::id() && measure::runs(*pid));
    family
}

fn signal_all(signal: Signal) {
    for pid in descendants() {
        // It fails for one that has just ended.
        let _ = kill(Pid::from_raw(pid as i32), signal);
    }
}

impl Served for Group {
    /// Only what can be seen from outside.
    fn account(&self) -> ServerStats {
        let peak = descendants().into_iter().map(measure::peak_memory_of);
        ServerStats { peak_memory_bytes: peak.sum(), ..ServerStats::default() }
    }

    fn end(self) {
        report(&Report::Stats { mark: Mark::Stopped, stats: self.account() });
        self.kill();
    }
}
