//! What every example needs around its reactor: a port from the command line, a log, an exit code.

use std::{
    env,
    fmt::Display,
    io::{self, Write},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use log::{LevelFilter, Log, Metadata, Record};

/// Runs an example with the port that is its first argument. Whatever fails ends in one line.
pub(crate) fn run<E: Display>(
    default_port: u16,
    level: LevelFilter,
    example: impl FnOnce(u16) -> Result<(), E>,
) -> ExitCode {
    // It fails only if there is a logger already, and there is none.
    let _ = log::set_logger(&StderrLog).map(|()| log::set_max_level(level));
    let name = env!("CARGO_CRATE_NAME");
    let port = match port(default_port) {
        Ok(port) => port,
        Err(complaint) => {
            eprintln!("{name}: {complaint}; usage: {name} [PORT], {default_port} by default");
            return ExitCode::from(2);
        }
    };
    match example(port) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn port(default: u16) -> Result<u16, String> {
    let mut arguments = env::args_os().skip(1);
    let Some(word) = arguments.next() else { return Ok(default) };
    if arguments.next().is_some() {
        return Err("too many arguments".to_owned());
    }
    let port = word.to_str().and_then(|word| word.parse().ok());
    port.ok_or_else(|| format!("{word:?} is no port, which is a number from 0 to 65535"))
}

/// A log in Twisted's manner: `22:23:07+0000 [-] EchoFactory starting on 8000`.
struct StderrLog;

impl Log for StderrLog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let second = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let (hour, minute, second) = (second / 3600 % 24, second / 60 % 60, second % 60);
        // A log that nobody reads any more is no reason to stop serving.
        let _ = writeln!(io::stderr(), "{hour:02}:{minute:02}:{second:02}+0000 [-] {}", record.args());
    }

    fn flush(&self) {}
}
