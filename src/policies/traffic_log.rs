//! What passes on each connection, written down.

use std::{
    ffi::OsStr,
    fmt,
    fs::{File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{
    address::Address,
    connection::Filter,
    factory::Peer,
    reason::{BoxError, Reason},
};

/// Writes down what passes, a line a piece: time (UTC), the connection's number, what happened, and the bytes, escaped as in a Rust string.
///
/// ```text
/// 2026-11-22T09:30:00.000125Z 1 made 127.0.0.1:50180
/// 2026-11-22T09:30:00.000871Z 1 received 7 "hello\r\n"
/// 2026-11-22T09:30:00.000902Z 1 sending 7 "hello\r\n"
/// 2026-11-22T09:30:02.120034Z 1 lost connection was closed cleanly
/// ```
///
/// Connections are numbered from 1 in the order in which they came; clones write to the same log. Each line is written at once, where the bytes pass: a slow sink
/// slows its connections down. One that fails is given up and that is logged, once; the connections go on.
#[derive(Clone)]
pub struct TrafficLog(Arc<Shared>);

struct Shared {
    sink: Sink,
    connections: AtomicU64,
    complained: AtomicBool,
}

enum Sink {
    /// For all connections; None once it has failed.
    Writer(Mutex<Option<Box<dyn Write + Send>>>),
    /// A file a connection.
    Files(PathBuf),
}

impl TrafficLog {
    /// Writes all connections to one sink.
    pub fn new(sink: impl Write + Send + 'static) -> Self {
        Self::with(Sink::Writer(Mutex::new(Some(Box::new(sink)))))
    }

    /// Writes each connection to a file of its own, `prefix-1` and so on, readable for their owner only. Files of that name are
    /// written over, and are for their owner only from then on. A symbolic link of that name is an error: it could lead anywhere.
    pub fn to_files(prefix: impl Into<PathBuf>) -> Self {
        Self::with(Sink::Files(prefix.into()))
    }

    fn with(sink: Sink) -> Self {
        let (connections, complained) = (AtomicU64::new(0), AtomicBool::new(false));
        Self(Arc::new(Shared { sink, connections, complained }))
    }

    /// The filter of a new connection.
    pub(super) fn connection(&self, peer: &mut Peer<'_>) -> Logged {
        Logged { log: self.clone(), number: 0, peer: peer.address(), file: None }
    }

    fn complain(&self, error: &io::Error) {
        if !self.0.complained.swap(true, Relaxed) {
            log::error!("cannot write a traffic log: {error}; it ends here, its connections go on");
        }
    }
}

impl fmt::Debug for TrafficLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrafficLog").field("connections", &self.0.connections).finish_non_exhaustive()
    }
}

/// One connection of a log.
pub(super) struct Logged {
    log: TrafficLog,
    number: u64,
    peer: Address,
    file: Option<File>,
}

impl Logged {
    fn write(&mut self, what: fmt::Arguments<'_>) {
        let line = format!("{} {} {what}\n", Utc(SystemTime::now()), self.number);
        let written = match &self.log.0.sink {
            Sink::Writer(sink) => {
                write_or_give_up(&mut sink.lock().unwrap_or_else(PoisonError::into_inner), &line)
            }
            Sink::Files(_) => write_or_give_up(&mut self.file, &line),
        };
        if let Err(error) = written {
            self.log.complain(&error);
        }
    }

    fn open(&mut self) {
        let Sink::Files(prefix) = &self.log.0.sink else { return };
        let mut name = prefix.clone().into_os_string();
        name.push(format!("-{}", self.number));
        match open_for_owner(&name) {
            Ok(file) => self.file = Some(file),
            Err(error) => {
                let text = format!("{}: {error}", PathBuf::from(name).display());
                self.log.complain(&io::Error::new(error.kind(), text));
            }
        }
    }
}

impl Filter for Logged {
    fn made(&mut self, _reply: &mut Vec<u8>) {
        self.number = self.log.0.connections.fetch_add(1, Relaxed) + 1;
        self.open();
        let peer = self.peer.clone();
        self.write(format_args!("made {peer}"));
    }

    fn received(&mut self, data: &mut Vec<u8>, _reply: &mut Vec<u8>) -> Result<(), BoxError> {
        self.write(format_args!("received {} \"{}\"", data.len(), data.escape_ascii()));
        Ok(())
    }

    fn sending(&mut self, data: &mut Vec<u8>) -> Result<(), BoxError> {
        self.write(format_args!("sending {} \"{}\"", data.len(), data.escape_ascii()));
        Ok(())
    }

    fn read_ended(&mut self, _data: &mut Vec<u8>) -> Result<(), BoxError> {
        self.write(format_args!("received FIN"));
        Ok(())
    }

    fn lost(&mut self, reason: &Reason) {
        // One that ended before it was told of its beginning has nothing to say.
        if self.number > 0 {
            self.write(format_args!("lost {reason}"));
        }
    }
}

/// The empty file of this name, which from now on only its owner may open.
fn open_for_owner(name: &OsStr) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.custom_flags(libc::O_NOFOLLOW).open(name)?;
    // One that was there keeps its mode, and is emptied only if it is ours.
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.set_len(0)?;
    Ok(file)
}

/// Writes a line, or drops the sink. It is the program's own, and may do anything.
fn write_or_give_up<W: Write>(sink: &mut Option<W>, line: &str) -> io::Result<()> {
    let Some(writer) = sink else { return Ok(()) };
    let written =
        catch_unwind(AssertUnwindSafe(|| writer.write_all(line.as_bytes()).and_then(|()| writer.flush())));
    let written = written.unwrap_or_else(|_| Err(io::Error::other("its sink panicked")));
    if written.is_err() {
        let sink = sink.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(sink)));
    }
    written
}

/// A time as RFC 3339 spells it.
struct Utc(SystemTime);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = date(days);
        let (hour, minute) = (second / 3600, second / 60 % 60);
        let (second, micros) = (second % 60, since.subsec_micros());
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }
}

/// The date so many days after 1970-01-01. Years are counted from March, so that the leap day is the last of one.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_spelt_as_everybody_spells_them() {
        let at = |micros| Utc(UNIX_EPOCH + Duration::from_micros(micros)).to_string();
        assert_eq!(at(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(at(951_782_399_999_999), "2000-02-28T23:59:59.999999Z");
        assert_eq!(at(951_782_400_000_000), "2000-02-29T00:00:00.000000Z");
        assert_eq!(at(1_795_314_600_000_125), "2026-11-22T02:30:00.000125Z");
        assert_eq!(at(4_107_542_400_000_000), "2100-03-01T00:00:00.000000Z");
    }
}
