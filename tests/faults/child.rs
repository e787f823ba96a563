//! A test in a process of its own: the test binary runs itself, with this one test and a variable
//! that tells it which of the two it is.

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    process::{self, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::Instant,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use ringspun::Activation;

use crate::peers::LIMIT;

const VARIABLE: &str = "RINGSPUN_TEST_CHILD";
/// Marks what a child says, among what the test harness prints.
const MARK: &str = "child: ";

/// Which of the two processes this is.
pub(crate) enum Role {
    Parent(Child),
    Child,
}

/// Asked once, at the beginning of a test: starts the child, or is it.
pub(crate) fn role(test: &str) -> Role {
    role_with(test, &[])
}

/// As [`role`], with more variables for the child.
pub(crate) fn role_with(test: &str, variables: &[(&str, &str)]) -> Role {
    match is_child() {
        true => Role::Child,
        false => Role::Parent(Child::start(test, variables)),
    }
}

/// Whether this process is the child of a test that starts it itself.
pub(crate) fn is_child() -> bool {
    env::var_os(VARIABLE).is_some()
}

/// Runs all of a test in a child.
pub(crate) fn in_child(test: &str, body: impl FnOnce()) {
    match role(test) {
        Role::Child => body(),
        Role::Parent(child) => child.expect_success(),
    }
}

/// Says something to the parent.
pub(crate) fn tell_parent(text: impl std::fmt::Display) {
    println!("{MARK}{text}");
}

/// Waits for the parent to say something.
pub(crate) fn hear_parent() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim().to_owned()
}

/// A running child, as its parent sees it.
pub(crate) struct Child {
    process: process::Child,
    lines: Receiver<String>,
    test: String,
}

impl Child {
    fn start(test: &str, variables: &[(&str, &str)]) -> Self {
        let mut command = Self::command(test);
        Self::watch(command.envs(variables.iter().copied()).spawn().unwrap(), test)
    }

    /// Starts one with listening sockets.
    pub(crate) fn start_with(test: &str, sockets: Activation) -> Self {
        Self::watch(sockets.spawn(Self::command(test)).unwrap(), test)
    }

    fn command(test: &str) -> Command {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(VARIABLE, "1");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn watch(mut process: process::Child, test: &str) -> Self {
        let (tell, lines) = mpsc::channel();
        forward(process.stdout.take().unwrap(), tell.clone());
        forward(process.stderr.take().unwrap(), tell);
        Self { process, lines, test: test.to_owned() }
    }

    /// Waits for what the child says next.
    pub(crate) fn hear(&self) -> String {
        loop {
            let line = self.lines.recv_timeout(LIMIT).expect("a word of the child");
            if let Some((_, said)) = line.split_once(MARK) {
                return said.to_owned();
            }
        }
    }

    pub(crate) fn tell(&mut self, text: &str) {
        writeln!(self.process.stdin.as_mut().unwrap(), "{text}").unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id() as i32)
    }

    /// Waits for its end; all it printed, and how it ended.
    pub(crate) fn wait(mut self) -> (String, ExitStatus) {
        let (mut output, deadline) = (String::new(), Instant::now() + 3 * LIMIT);
        // The channel closes when the child's output does.
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            output = output + &line + "\n";
        }
        assert!(Instant::now() < deadline, "the child of {} does not end: {output}", self.test);
        let status = self.process.wait().unwrap();
        (output, status)
    }

    pub(crate) fn expect_success(self) {
        let test = self.test.clone();
        let (output, status) = self.wait();
        assert!(status.success(), "the child of {test} failed ({status}): {output}");
        assert!(output.contains("1 passed"), "the child of {test} ran no test: {output}");
    }
}

/// Passes on what a child prints, line by line, until it ends.
fn forward(output: impl Read + Send + 'static, tell: Sender<String>) {
    let mut lines = BufReader::new(output).lines().map_while(Result::ok);
    thread::spawn(move || lines.try_for_each(|line| tell.send(line)));
}

impl Drop for Child {
    fn drop(&mut self) {
        // Does nothing to one that has been waited for.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
