//! Listening sockets that come with the start of a process, as `sd_listen_fds(3)` has it: taking those of this one, and giving some
//! to another.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    ffi::{CString, OsStr, OsString, c_char},
    io::{self, ErrorKind},
    iter,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            process::CommandExt,
        },
    },
    process::{Child, Command, id},
    ptr,
    sync::{Mutex, PoisonError},
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::endpoint::Passed;

/// The number of the first descriptor that is passed; the others follow.
const FIRST: RawFd = 3;
/// What a socket is called that was passed without names.
const UNNAMED: &str = "unknown";

/// The descriptors that were taken; their numbers may have become somebody else's since.
static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Takes one of the sockets that this process was started with, if it is what `check` expects.
pub(crate) fn take_passed(
    passed: &Passed,
    check: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
) -> io::Result<OwnedFd> {
    let names = passed_names(id(), |name| env::var(name).ok());
    let number = names.and_then(|names| find(&names, passed)).map_err(io::Error::other)?;
    take_descriptor(number, check)
}

/// Takes a descriptor that this process was started with, if it is what `check` expects. From here on no program that is
/// started inherits it.
pub(crate) fn take_descriptor(
    number: RawFd,
    check: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
) -> io::Result<OwnedFd> {
    let wrong = |cause: &str| Err(io::Error::new(ErrorKind::InvalidInput, cause));
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if taken.contains(&number) {
        return wrong("it has been taken already, which can be done once in a process");
    }
    // SAFETY: this asks about a number, whosoever it is, and changes nothing.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return wrong("there is no such descriptor; whoever starts this process has to pass it");
    }
    if flags & libc::FD_CLOEXEC != 0 {
        return wrong("it was opened by this process itself, not passed to it (it is close-on-exec)");
    }
    // SAFETY: it is open, and nobody here owns it, who could close it meanwhile: what std, nix and this library open
    // is close-on-exec from the beginning, so this came with the process, and nobody has taken it yet. Whoever else
    // takes it takes the lock first.
    let passed = unsafe { BorrowedFd::borrow_raw(number) };
    check(passed)?;
    fcntl(passed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    taken.insert(number);
    // SAFETY: as above; and as its number is noted, nobody takes it after us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The names of the sockets that were passed to the process of this number, in their order.
fn passed_names(process: u32, variable: impl Fn(&str) -> Option<String>) -> Result<Vec<String>, String> {
    let (Some(count), Some(meant)) = (variable("LISTEN_FDS"), variable("LISTEN_PID")) else {
        return Err("this process was started without sockets (LISTEN_FDS and LISTEN_PID are not both set); have a systemd .socket unit \
                    start it, or systemd-socket-activate, or an Activation"
            .to_owned());
    };
    if meant.parse() != Ok(process) {
        return Err(format!(
            "the sockets were passed to another process: LISTEN_PID is {meant}, and this is {process}"
        ));
    }
    let count = count.parse().ok().filter(|count| (0..=1 << 20).contains(count));
    let count: usize = count.ok_or("LISTEN_FDS is no number of sockets")?;
    let Some(names) = variable("LISTEN_FDNAMES") else { return Ok(vec![UNNAMED.to_owned(); count]) };
    let names: Vec<String> = names.split(':').map(str::to_owned).collect();
    if names.len() != count {
        return Err(format!("LISTEN_FDNAMES has {} names for {count} sockets", names.len()));
    }
    Ok(names)
}

/// The number of the socket that is meant: of several with one name, the first that has not been taken.
fn find(names: &[String], passed: &Passed) -> Result<RawFd, String> {
    let number = |index: usize| FIRST + index as RawFd;
    let there = || format!("{} passed: {}", names.len(), names.join(", "));
    match passed {
        Passed::Index(index) if *index < names.len() => Ok(number(*index)),
        Passed::Index(index) => {
            Err(format!("there is no socket {index}, counted from 0, among the {}", there()))
        }
        Passed::Name(name) => {
            let mut numbers =
                (0..names.len()).filter(|index| names[*index] == *name).map(number).collect::<Vec<_>>();
            let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
            let last =
                numbers.pop().ok_or_else(|| format!("no socket is called {name} among the {}", there()))?;
            Ok(numbers.into_iter().find(|number| !taken.contains(number)).unwrap_or(last))
        }
    }
}

/// Starts a program with listening sockets, as systemd does (`sd_listen_fds(3)`), so that it can listen on `systemd:name=..` or
/// `systemd:index=..`: a successor of this process, say, which is to take over its ports.
///
/// ```no_run
/// # fn hand_over(port: &ringspun::Port) -> std::io::Result<()> {
/// use {ringspun::Activation, std::process::Command};
///
/// let successor = Command::new(std::env::current_exe()?);
/// let process = Activation::new().socket("web", port.try_clone_socket()?).spawn(successor)?;
/// // Once it serves, nobody is refused if this port ends.
/// port.stop_listening();
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct Activation {
    sockets: Vec<(String, OwnedFd)>,
}

impl Activation {
    /// One without sockets.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the program one more socket, under this name. Its index, counted from 0, is how many came before.
    pub fn socket(mut self, name: impl Into<String>, socket: impl Into<OwnedFd>) -> Self {
        self.sockets.push((name.into(), socket.into()));
        self
    }

    /// Starts the program, with its arguments, folder, streams and changes of the environment. What a [`Command`] does not tell is
    /// not kept: `env_clear` and `arg0`. A program without a path is looked for in the `PATH` of this process.
    ///
    /// # Errors
    /// If the program cannot be started, or a name is empty, longer than 255 bytes, or has other than printable ASCII characters or a colon in it.
    pub fn spawn(self, mut command: Command) -> io::Result<Child> {
        if let Some((name, _)) = self.sockets.iter().find(|(name, _)| !is_name(name)) {
            let cause = format!("{name:?} cannot be the name of a socket; use up to 255 letters and digits");
            return Err(io::Error::new(ErrorKind::InvalidInput, cause));
        }
        let free = FIRST + self.sockets.len() as RawFd;
        let duplicate = |socket: &OwnedFd, least| {
            let number = fcntl(socket, FcntlArg::F_DUPFD_CLOEXEC(least))?;
            // SAFETY: fcntl has just made this descriptor, and nobody else knows it.
            io::Result::Ok(unsafe { OwnedFd::from_raw_fd(number) })
        };
        let sockets: Result<Vec<_>, _> =
            self.sockets.iter().map(|(_, socket)| duplicate(socket, free)).collect();
        let mut image = Image::new(&command, self.environment(&command), sockets?)?;
        // The numbers that the sockets get in the child are taken meanwhile, or the pipe through which it tells why it could not
        // start might have one of them.
        let mut placeholders = Vec::new();
        while let Some((_, socket)) = self.sockets.first() {
            let placeholder = duplicate(socket, FIRST)?;
            if placeholder.as_raw_fd() >= free {
                break;
            }
            placeholders.push(placeholder);
        }
        // SAFETY: `replace_this_process` does nothing but what is allowed in a child of a process with threads.
        unsafe { command.pre_exec(move || image.replace_this_process()) };
        command.spawn()
    }

    /// The environment of the program, but for `LISTEN_PID`.
    fn environment(&self, command: &Command) -> BTreeMap<OsString, OsString> {
        let mut variables: BTreeMap<_, _> = env::vars_os().collect();
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => variables.insert(name.to_owned(), value.to_owned()),
                None => variables.remove(name),
            };
        }
        let names: Vec<&str> = self.sockets.iter().map(|(name, _)| &**name).collect();
        variables.insert("LISTEN_FDS".into(), names.len().to_string().into());
        variables.insert("LISTEN_FDNAMES".into(), names.join(":").into());
        for foreign in ["LISTEN_PID", "LISTEN_PIDFDID"] {
            variables.remove(OsStr::new(foreign));
        }
        variables
    }
}

/// What systemd allows as a name.
fn is_name(name: &str) -> bool {
    let printable = name.bytes().all(|byte| (b' '..0x7f).contains(&byte) && byte != b':');
    printable && (1..=255).contains(&name.len())
}

const LISTEN_PID: &[u8] = b"LISTEN_PID=";

/// All that a child needs to become another program, made before the fork, after which nothing may be allocated.
///
/// `Command` has the environment ready before there is a child whose number could be told in it, so the child does
/// itself what `Command` would do last.
struct Image {
    sockets: Vec<OwnedFd>,
    arguments: Vec<CString>,
    variables: Vec<CString>,
    listen_pid: [u8; LISTEN_PID.len() + 11],
    /// Room for the pointers to the arguments, a null pointer, those to the variables and another one.
    pointers: Vec<*const c_char>,
}

// SAFETY: the pointers are null until the child, which has one thread, points them to what is in the same place.
unsafe impl Send for Image {}
// SAFETY: as above; and nothing of it can be reached through a shared reference.
unsafe impl Sync for Image {}

impl Image {
    fn new(
        command: &Command,
        environment: BTreeMap<OsString, OsString>,
        sockets: Vec<OwnedFd>,
    ) -> io::Result<Self> {
        let arguments = iter::once(command.get_program()).chain(command.get_args());
        let arguments: Result<Vec<_>, _> =
            arguments.map(|argument| CString::new(argument.as_bytes())).collect();
        let variables = environment.into_iter().map(|(mut text, value)| {
            text.push("=");
            text.push(value);
            CString::new(text.into_vec())
        });
        let (arguments, variables) = (arguments?, variables.collect::<Result<Vec<_>, _>>()?);
        let mut listen_pid = [0; LISTEN_PID.len() + 11];
        listen_pid[..LISTEN_PID.len()].copy_from_slice(LISTEN_PID);
        let pointers = vec![ptr::null(); arguments.len() + 1 + variables.len() + 2];
        Ok(Self { sockets, arguments, variables, listen_pid, pointers })
    }

    /// Gives the sockets their numbers and becomes the program; comes back only if that cannot be done.
    fn replace_this_process(&mut self) -> io::Result<()> {
        for (socket, number) in self.sockets.iter().zip(FIRST..) {
            // SAFETY: the child is about to become another program, and uses no descriptor of these numbers any more.
            if unsafe { libc::dup2(socket.as_raw_fd(), number) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        write_number(&mut self.listen_pid[LISTEN_PID.len()..], id());
        let (arguments, variables) = self.pointers.split_at_mut(self.arguments.len() + 1);
        let point = |(pointer, text): (&mut *const c_char, &CString)| *pointer = text.as_ptr();
        arguments.iter_mut().zip(&self.arguments).for_each(point);
        variables[0] = self.listen_pid.as_ptr().cast();
        variables[1..].iter_mut().zip(&self.variables).for_each(point);
        // SAFETY: both lists end with a null pointer and point to texts that end with a zero.
        unsafe { libc::execvpe(arguments[0], arguments.as_ptr(), variables.as_ptr()) };
        Err(io::Error::last_os_error())
    }
}

/// Writes a number without allocating; what follows it stays zero.
fn write_number(into: &mut [u8], number: u32) {
    let digits = number.checked_ilog10().map_or(1, |log| log as usize + 1);
    let mut rest = number;
    for digit in into[..digits].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(variables: &[(&str, &str)]) -> Result<Vec<String>, String> {
        passed_names(42, |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn n2_sockets_are_passed_to_one_process() {
        assert_eq!(names(&[("LISTEN_PID", "42"), ("LISTEN_FDS", "2")]).unwrap(), ["unknown", "unknown"]);
        let named = [("LISTEN_PID", "42"), ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "web:admin")];
        assert_eq!(names(&named).unwrap(), ["web", "admin"]);
        for (wrong, text) in [
            (&[][..], "started without sockets"),
            (&[("LISTEN_PID", "42")], "started without sockets"),
            (&[("LISTEN_FDS", "1")], "started without sockets"),
            (&[("LISTEN_PID", "41"), ("LISTEN_FDS", "1")], "LISTEN_PID is 41, and this is 42"),
            (&[("LISTEN_PID", "me"), ("LISTEN_FDS", "1")], "LISTEN_PID is me"),
            (&[("LISTEN_PID", "42"), ("LISTEN_FDS", "-1")], "no number"),
            (&[("LISTEN_PID", "42"), ("LISTEN_FDS", "99999999")], "no number"),
            (&[("LISTEN_PID", "42"), ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "a")], "1 names for 2"),
        ] {
            let error = names(wrong).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn numbers_are_written() {
        for number in [0, 7, 10, 4_194_304, u32::MAX] {
            let mut buffer = [0; 11];
            write_number(&mut buffer, number);
            assert_eq!(buffer.split(|byte| *byte == 0).next().unwrap(), number.to_string().as_bytes());
        }
    }
}
