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
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::{Served, obey, report};
use crate::{
    cli::ServeArgs,
    control::{Identity, Mark, Report, ServerStats},
    error::Error,
    measure,
    spec::Hired,
};

/// Below the ports that the kernel gives to clients, which could take one that is free now.
const PORTS: std::ops::Range<u16> = 10_240..32_768;
const START: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(10);
/// How long SIGTERM is given before SIGKILL.
const END: Duration = Duration::from_secs(2);

/// Starts the program and stands between it and loadgen: when that is gone, so is the program.
pub(super) fn serve(args: &ServeArgs, hired: &Hired) -> Result<(), Error> {
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
    await_listening(SocketAddr::new(args.host, port), &line, &group)?;
    let identity = Identity {
        backend: hired.name.clone(),
        tier: None,
        descriptors: "plain".into(),
        why: format!("started as `{line}`"),
        pid: group.leader as u32,
    };
    report(&Report::Ready { identity, port });
    obey(group);
    Ok(())
}

/// A port that nobody has at the moment.
fn free_port(args: &ServeArgs) -> Result<u16, Error> {
    let start = process::id() % u32::from(PORTS.end - PORTS.start);
    let in_turn = PORTS.clone().cycle().skip(start as usize).take(PORTS.len());
    in_turn
        .into_iter()
        .find(|port| TcpListener::bind((args.host, *port)).is_ok())
        .ok_or_else(|| Error::machine(format!("no port of {PORTS:?} is free on {}", args.host)))
}

/// Ends this process when the program ends by itself.
fn watch(mut child: Child, line: &str, group: &Group) {
    let (line, ending) = (line.to_owned(), Arc::clone(&group.ending));
    thread::spawn(move || {
        let how = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        if !ending.load(SeqCst) {
            report(&Report::Failed { message: format!("`{line}` ended by itself: {how}") });
            process::exit(1);
        }
    });
}

fn await_listening(address: SocketAddr, line: &str, group: &Group) -> Result<(), Error> {
    let deadline = Instant::now() + START;
    while TcpStream::connect_timeout(&address, START).is_err() {
        if Instant::now() > deadline {
            group.kill();
            return Err(Error::machine(format!("`{line}` does not listen on {address} within {START:?}")));
        }
        thread::sleep(TICK);
    }
    Ok(())
}

/// The process group of the program.
struct Group {
    leader: i32,
    ending: Arc<AtomicBool>,
}

impl Group {
    fn kill(&self) {
        self.ending.store(true, SeqCst);
        let leader = Pid::from_raw(self.leader);
        // Each fails once nothing is left of the group.
        let _ = killpg(leader, Signal::SIGTERM);
        let deadline = Instant::now() + END;
        while killpg(leader, None).is_ok() && Instant::now() < deadline {
            thread::sleep(TICK);
        }
        let _ = killpg(leader, Signal::SIGKILL);
    }
}

impl Served for Group {
    /// Only what can be seen from outside.
    fn account(&self) -> ServerStats {
        let peak = measure::family(self.leader as u32).into_iter().map(measure::peak_memory_of);
        ServerStats { peak_memory_bytes: peak.sum(), ..ServerStats::default() }
    }

    fn end(self) {
        report(&Report::Stats { mark: Mark::Stopped, stats: self.account() });
        self.kill();
    }
}
