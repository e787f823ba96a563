//! The server child of a cell: started afresh, asked over its control pipe, never left behind.

use std::{
    io::{BufRead, BufReader},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, ChildStdin, ChildStdout, Command as Process, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde::de::DeserializeOwned;

use crate::{
    control::{self, Command, Identity, Mark, Report, ServerStats},
    error::Error,
    serve::Service,
    spec::{Kind, Row, Spec},
    target::Target,
};

/// This program's own file, also when another one has taken its name meanwhile.
pub(crate) const OWN_PROGRAM: &str = "/proc/self/exe";
const START: Duration = Duration::from_secs(40);
const ANSWER: Duration = Duration::from_secs(5);
/// What closing a connection may take at most, on a machine that others need as well.
const PUTTING_AWAY: Duration = Duration::from_micros(200);
/// How long after a failed exchange the child's death is given to show.
const DEATH: Duration = Duration::from_millis(300);

/// A running server child. Dropping it ends the process.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    commands: Option<ChildStdin>,
    /// Whether the child only stands before another program.
    hired: bool,
    /// What it said when it could not go on.
    last_words: Option<String>,
    reports: Receiver<Report>,
    pub(crate) identity: Identity,
    pub(crate) target: Target,
}

impl Server {
    /// Starts the server of this row and waits until it listens. Another program knows what to do: it is not
    /// told.
    pub(crate) fn start(
        row: &Row,
        service: Service,
        reactors: usize,
        cpu: Option<usize>,
    ) -> Result<Self, Error> {
        let mut process = Process::new(OWN_PROGRAM);
        process.arg0("loadgen").args(["serve", "--control"]);
        match row {
            Row::Hired(hired) => process.args(["--port", "0", "--command", &hired.to_string()]),
            row => process.args(["--backend", &row.to_string()]).args(service.flags()),
        };
        if reactors > 1 {
            process.args(["--reactors", &reactors.to_string()]);
        }
        if let Some(cpu) = cpu {
            process.args(["--cpu", &cpu.to_string()]);
        }
        // A group of its own, or Ctrl-C would end the server before the drain.
        process.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = process.spawn().map_err(|error| {
            Error::machine(format!(
                "cannot start the {row} server child: {error}; is the process limit reached?"
            ))
        })?;
        let commands = child.stdin.take();
        let reports = child.stdout.take().map(read_lines).unwrap_or_else(|| mpsc::channel().1);
        let unknown = Identity {
            backend: String::new(),
            tier: None,
            descriptors: String::new(),
            reactors: 1,
            why: String::new(),
            pid: 0,
        };
        let nowhere = Target::Tcp(([127, 0, 0, 1], 0).into());
        let hired = matches!(row, Row::Hired(_));
        let mut server =
            Self { child, commands, hired, last_words: None, reports, identity: unknown, target: nowhere };
        server.await_ready(row)?;
        if let Row::Backend(spec) = row {
            check_identity(*spec, reactors, server.pid(), &server.identity)?;
        }
        Ok(server)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks for the counters without waiting; `stats` gives the answer.
    pub(crate) fn request_stats(&mut self, mark: Mark) {
        if let Some(commands) = &mut self.commands {
            // A child that is gone shows by its missing answer.
            let _ = control::write_line(commands, &Command::Stats { mark });
        }
    }

    /// The counters that were asked for under this mark.
    pub(crate) fn stats(&mut self, wanted: Mark) -> Option<ServerStats> {
        self.stats_within(wanted, ANSWER)
    }

    fn stats_within(&mut self, wanted: Mark, patience: Duration) -> Option<ServerStats> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.reports.recv_timeout(left).ok()? {
                Report::Stats { mark, stats } if mark == wanted => return Some(stats),
                Report::Failed { message } => self.last_words = Some(message),
                _ => {}
            }
        }
    }

    /// Stops the server and gives its last counters, once it has put away what is left of so many connections.
    pub(crate) fn stop(mut self, connections: usize) -> Option<ServerStats> {
        let patience = ANSWER + PUTTING_AWAY * connections.try_into().unwrap_or(u32::MAX);
        if let Some(mut commands) = self.commands.take() {
            let _ = control::write_line(&mut commands, &Command::Stop);
        }
        let stats = self.stats_within(Mark::Stopped, patience);
        if stats.is_some() {
            // The process ends right after this report; `Drop` would only shorten its exit.
            self.wait_for_end(patience);
        }
        stats
    }

    /// If the process has died, how.
    pub(crate) fn death(&mut self) -> Option<String> {
        let ended = self.wait_for_end(DEATH).map(how_it_ended);
        self.last_words.take().or(ended)
    }

    fn wait_for_end(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.reports.recv_timeout(left) {
                Ok(Report::Failed { message }) => self.last_words = Some(message),
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return self.child.wait().ok(),
                Err(RecvTimeoutError::Timeout) => return None,
            }
        }
    }

    fn await_ready(&mut self, row: &Row) -> Result<(), Error> {
        match self.reports.recv_timeout(START) {
            Ok(Report::Ready { identity, target }) => {
                (self.identity, self.target) = (identity, target);
                Ok(())
            }
            Ok(Report::Failed { message }) => Err(Error::machine(message)),
            Ok(Report::Stats { .. }) => {
                Err(Error::internal(format!("the {row} server child spoke out of turn")))
            }
            Err(_) => {
                let how = self.death().unwrap_or_else(|| "says nothing".into());
                Err(Error::internal(format!(
                    "the {row} server child (pid {}) {how} before it listened",
                    self.pid()
                )))
            }
        }
    }
}

/// A server that is not what its row says would make the row a lie.
fn check_identity(spec: Spec, reactors: usize, pid: u32, told: &Identity) -> Result<(), Error> {
    let backend_agrees = spec.kind == Kind::Auto || told.backend == spec.kind.name();
    let set_up_agrees = told.descriptors == spec.descriptors() && told.reactors == reactors;
    if backend_agrees && set_up_agrees && told.pid == pid {
        return Ok(());
    }
    Err(Error::verification(format!(
        "the row says {spec} with {reactors} reactors in process {pid}, the server says {} with {} descriptors and {} \
         reactors in process {} ({}); nothing was measured",
        told.backend, told.descriptors, told.reactors, told.pid, told.why
    )))
}

impl Drop for Server {
    fn drop(&mut self) {
        // The end of its input has the child end another program first, if it has started one.
        drop(self.commands.take());
        if self.hired {
            self.wait_for_end(ANSWER);
            // Whoever stood before the program may have died before it. Group 0 would be our own.
            if self.identity.pid > 0 {
                let _ = killpg(Pid::from_raw(self.identity.pid as i32), Signal::SIGKILL);
            }
        }
        // Both fail only if the child has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a child says, a line each, as it comes.
pub(crate) fn read_lines<T: DeserializeOwned + Send + 'static>(stream: ChildStdout) -> Receiver<T> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            // Not of the kind: something in the child wrote to standard output.
            let Ok(message) = serde_json::from_str(&line) else { continue };
            if sender.send(message).is_err() {
                break;
            }
        }
    });
    receiver
}

pub(crate) fn how_it_ended(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(number), _) => {
            let name = Signal::try_from(number)
                .map_or_else(|_| format!("signal {number}"), |signal| signal.to_string());
            format!("was killed by {name}")
        }
        (None, code) => format!("exited with code {}", code.unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(backend: &str, descriptors: &str) -> Identity {
        Identity {
            backend: backend.into(),
            tier: None,
            descriptors: descriptors.into(),
            reactors: 1,
            why: "a test".into(),
            pid: 7,
        }
    }

    #[test]
    fn a_server_must_be_what_its_row_says() {
        let direct: Spec = "io_uring:direct".parse().expect("valid");
        assert!(check_identity(direct, 1, 7, &identity("io_uring", "direct")).is_ok());
        for (pid, told) in [
            (7, identity("epoll", "direct")),
            (7, identity("io_uring", "plain")),
            (8, identity("io_uring", "direct")),
        ] {
            let error = check_identity(direct, 1, pid, &told).expect_err("they differ");
            assert_eq!(error.exit, crate::error::Exit::Verification);
            assert!(error.to_string().contains("the row says io_uring:direct"), "{error}");
        }
        assert!(check_identity(Spec::plain(Kind::Auto), 1, 7, &identity("epoll", "plain")).is_ok());
    }

    #[test]
    fn the_end_of_a_process_is_told_by_signal_or_code() {
        assert_eq!(how_it_ended(ExitStatus::from_raw(9)), "was killed by SIGKILL");
        assert_eq!(how_it_ended(ExitStatus::from_raw(3 << 8)), "exited with code 3");
    }
}
