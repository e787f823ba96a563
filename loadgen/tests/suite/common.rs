//! Runs the real binary, against servers that behave as each test needs it.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// How long anything may take before the test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The size of the messages in these tests.
pub(crate) const SIZE: usize = 64;

/// What measures cells.
const MEASURES: [&str; 5] = ["compare", "run", "sweep", "search", "idle"];

/// The binary, with nothing in its environment that could change its output, and no cell that is spoiled for the
/// time that the hypervisor gives to others.
pub(crate) fn loadgen(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    command.env_remove("RINGSPUN_BACKEND").stdin(Stdio::null());
    match arguments {
        [name, rest @ ..] if MEASURES.contains(name) => {
            command.args([name, "--max-steal", "100%"]).args(rest)
        }
        _ => command.args(arguments),
    };
    command
}

/// A folder for one test's result, empty.
pub(crate) fn folder(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    folder
}

/// What a finished run left.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) result: Option<Value>,
}

impl Run {
    fn of(output: Output, folder: &Path) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("text"),
            stderr: String::from_utf8(output.stderr).expect("text"),
            result: read_result(folder),
        }
    }

    /// The one line that says what went wrong.
    #[track_caller]
    pub(crate) fn complaint(&self) -> &str {
        let mut lines = self.stderr.lines().filter(|line| line.starts_with("loadgen: "));
        let line = lines.next().unwrap_or_else(|| panic!("no complaint: {self:#?}"));
        assert_eq!(lines.next(), None, "one line: {self:#?}");
        assert_eq!(self.stderr.lines().last(), Some(line), "it comes last: {self:#?}");
        line
    }

    #[track_caller]
    pub(crate) fn document(&self) -> &Value {
        self.result.as_ref().unwrap_or_else(|| panic!("no result: {self:#?}"))
    }

    /// Whether the run ended as it should: this code, one line with all of these words, and a result
    /// that says that it is not complete.
    #[track_caller]
    pub(crate) fn assert_failed(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:#?}");
        let line = self.complaint();
        for word in words {
            assert!(line.contains(word), "'{word}' in {line}");
        }
        let document = self.document();
        assert_valid(document);
        assert_eq!(document["complete"], false);
        assert!(document["error"].is_string());
    }

    /// How often the result counts this cause.
    pub(crate) fn failures(&self, cause: &str) -> u64 {
        let cells = self.document()["cells"].as_array().expect("cells");
        let errors = cells.iter().flat_map(|cell| cell["errors"].as_array().expect("errors"));
        errors.filter(|error| error["cause"] == cause).filter_map(|error| error["count"].as_u64()).sum()
    }
}

/// Runs to the end, with the result in a folder of its own.
pub(crate) fn run(test: &str, arguments: &[&str]) -> Run {
    let folder = folder(test);
    let mut command = loadgen(arguments);
    command.args(["-o", folder.to_str().expect("text")]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    finish(command.spawn().expect("the binary runs"), &folder)
}

/// Starts without waiting for the end.
pub(crate) fn start(folder: &Path, arguments: &[&str]) -> Child {
    let mut command = loadgen(arguments);
    command.args(["-o", folder.to_str().expect("text")]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs")
}

/// Waits for what `start` began; one that hangs is killed and has no exit code.
pub(crate) fn finish(child: Child, folder: &Path) -> Run {
    let pid = Pid::from_raw(child.id() as i32);
    let (ended, end) = mpsc::channel::<()>();
    let watchdog = thread::spawn(move || {
        if end.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    });
    let output = child.wait_with_output().expect("the binary ends");
    drop(ended);
    watchdog.join().expect("it does not panic");
    Run::of(output, folder)
}

pub(crate) fn read_result(folder: &Path) -> Option<Value> {
    let text = fs::read_to_string(folder.join("result.json")).ok()?;
    Some(serde_json::from_str(&text).expect("a result is whole JSON at any moment"))
}

/// Compares a result with the schema that ships beside the source.
#[track_caller]
pub(crate) fn assert_valid(document: &Value) {
    let schema: Value =
        serde_json::from_str(include_str!("../../result.schema.json")).expect("the schema is JSON");
    let validator = jsonschema::validator_for(&schema).expect("the schema is sound");
    let errors: Vec<String> =
        validator.iter_errors(document).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}");
}

/// Waits until this gives something.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A server whose connections are all treated like this, each in a thread; the number counts them.
pub(crate) fn server(treat: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("bound");
    let treat = Arc::new(treat);
    thread::spawn(move || {
        for (number, stream) in listener.incoming().map_while(Result::ok).enumerate() {
            let treat = treat.clone();
            thread::spawn(move || treat(stream, number));
        }
    });
    address
}

/// A server that answers each request with what this makes of it; None ends the connection.
pub(crate) fn answering(
    answer: impl Fn(&[u8; SIZE], usize) -> Option<Vec<u8>> + Send + Sync + 'static,
) -> SocketAddr {
    server(move |mut stream, _| {
        let mut request = [0; SIZE];
        for sequence in 0.. {
            if stream.read_exact(&mut request).is_err() {
                return;
            }
            let Some(reply) = answer(&request, sequence) else { return };
            if stream.write_all(&reply).is_err() {
                return;
            }
        }
    })
}

/// The children of a process that live.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("procfs");
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| matches!(state_and_parent(*pid), Some((state, of)) if of == parent && state != 'Z'))
        .collect()
}

/// Whether a process is there and not just waiting to be reaped.
pub(crate) fn lives(pid: u32) -> bool {
    matches!(state_and_parent(pid), Some((state, _)) if state != 'Z' && state != 'X')
}

fn state_and_parent(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// How many sockets a process holds.
pub(crate) fn sockets(pid: u32) -> usize {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return 0 };
    let links = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
}
