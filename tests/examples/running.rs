//! An example at work as a child process: started, listened to, ended, never left behind.

use std::{
    env,
    fmt::Debug,
    io::{BufRead, BufReader, Read},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How long anything may take. Nothing here takes that long unless it is broken.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// A running example. Dropping it, as a failing test does, kills it.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    output: Receiver<Line>,
    seen: Vec<Line>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    Out(String),
    Log(String),
}

/// What an example that has ended leaves.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// The lines of its standard output.
    pub(crate) out: Vec<String>,
    /// The lines of its standard error, without the time of day.
    pub(crate) log: Vec<String>,
}

impl Running {
    /// Starts an example on a backend.
    pub(crate) fn start(name: &str, backend: &str, arguments: &[&str]) -> Self {
        Self::start_in(name, backend, arguments, Path::new("."), &[])
    }

    /// The same in this folder, with these variables in its environment.
    pub(crate) fn start_in(
        name: &str,
        backend: &str,
        arguments: &[&str],
        folder: &Path,
        variables: &[(&str, &str)],
    ) -> Self {
        let mut child = Command::new(binary(name))
            .args(arguments)
            .current_dir(folder)
            .env("RINGSPUN_BACKEND", backend)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        let (sender, output) = channel();
        let log_sender = sender.clone();
        let (out, log) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        read_lines(out, move |line| drop(sender.send(Line::Out(line))));
        read_lines(log, move |line| drop(log_sender.send(Line::Log(line))));
        Self { child, output, seen: Vec::new() }
    }

    /// Starts a server on a port that the kernel chooses, and waits until it says which.
    pub(crate) fn serve(name: &str, backend: &str) -> (Self, u16) {
        Self::serve_in(name, backend, Path::new("."), &[])
    }

    /// The same in this folder, with these variables in its environment.
    pub(crate) fn serve_in(
        name: &str,
        backend: &str,
        folder: &Path,
        variables: &[(&str, &str)],
    ) -> (Self, u16) {
        let mut running = Self::start_in(name, backend, &["0"], folder, variables);
        let line = running.wait_for_log(" starting on ");
        let port = line.rsplit(' ').next().and_then(|word| word.parse().ok());
        (running, port.unwrap_or_else(|| panic!("no port in {line:?}")))
    }

    /// Waits for a line of the log that contains `text`.
    pub(crate) fn wait_for_log(&mut self, text: &str) -> String {
        self.wait_for(text, |line| match line {
            Line::Log(line) => Some(line),
            Line::Out(_) => None,
        })
    }

    /// Waits for a line of its output that contains `text`.
    pub(crate) fn wait_for_out(&mut self, text: &str) -> String {
        self.wait_for(text, |line| match line {
            Line::Out(line) => Some(line),
            Line::Log(_) => None,
        })
    }

    fn wait_for(&mut self, text: &str, of_kind: fn(Line) -> Option<String>) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            let line = match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => line,
                Err(error) => panic!("{error} while waiting for {text:?}; before it came {:#?}", self.seen),
            };
            self.seen.push(line.clone());
            if let Some(line) = of_kind(line)
                && line.contains(text)
            {
                return line;
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// The names of its threads.
    pub(crate) fn thread_names(&self) -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
        tasks.filter_map(|task| name(task.unwrap()).ok()).map(|name| name.trim().to_owned()).collect()
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(mut self) -> Ended {
        let deadline = Instant::now() + LIMIT;
        // Both pipes are closed when the process has ended, and then the channel is.
        loop {
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it goes on running; it said {:#?}", self.seen),
            }
        }
        let status = self.child.wait().unwrap();
        let mut ended = Ended { status, out: Vec::new(), log: Vec::new() };
        for line in self.seen.drain(..) {
            match line {
                Line::Out(line) => ended.out.push(line),
                Line::Log(line) => ended.log.push(without_time(line)),
            }
        }
        ended
    }

    /// Ends a server with SIGTERM and checks that it goes as it should.
    pub(crate) fn terminate(self, port: u16) {
        self.signal(Signal::SIGTERM);
        let ended = self.wait();
        ended.logged("Received SIGTERM, shutting down.");
        ended.logged(&format!("(TCP Port {port} Closed)"));
        ended.logged("Main loop terminated.");
        ended.exited_with(0);
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both do nothing but complain if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    pub(crate) fn logged(&self, line: &str) {
        assert!(self.log.iter().any(|logged| logged == line), "{line:?} is not in the log of {self:#?}");
    }

    pub(crate) fn exited_with(&self, code: i32) {
        assert_eq!(self.status.code(), Some(code), "{self:#?}");
    }
}

/// A client's socket that gives up rather than wait for ever.
pub(crate) fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    stream
}

/// Reads exactly what is expected.
pub(crate) fn expect(stream: &mut TcpStream, expected: impl AsRef<[u8]> + Debug) {
    let mut bytes = vec![0; expected.as_ref().len()];
    stream.read_exact(&mut bytes).unwrap_or_else(|error| panic!("{error} instead of {expected:?}"));
    let (bytes, expected) = (String::from_utf8_lossy(&bytes), String::from_utf8_lossy(expected.as_ref()));
    assert_eq!(bytes, expected);
}

/// Cargo puts the examples beside the folder of the test programs.
pub(crate) fn binary(name: &str) -> PathBuf {
    let test = env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is missing: `cargo build --examples` makes it", path.display());
    path
}

fn read_lines(from: impl Read + Send + 'static, take: impl Fn(String) + Send + 'static) {
    thread::spawn(move || BufReader::new(from).lines().map_while(Result::ok).for_each(take));
}

fn without_time(line: String) -> String {
    line.split_once(" [-] ").map(|(_, text)| text.to_owned()).unwrap_or(line)
}
