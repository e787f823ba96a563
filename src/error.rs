//! What can go wrong when a program sets ringspun up: each error names the thing, the cause and the remedy.

use std::{convert::Infallible, error, fmt, io};

use crate::endpoint::EndpointError;

/// An error number of the kernel, as `errno(3)` lists them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

impl Errno {
    /// Wraps a raw, positive error number such as `libc::ECONNRESET`.
    pub const fn from_raw(raw: i32) -> Self {
        Self(raw)
    }

    /// The raw, positive number.
    pub const fn raw(self) -> i32 {
        self.0
    }

    /// The portable kind that the standard library gives this number.
    pub fn kind(self) -> io::ErrorKind {
        io::Error::from(self).kind()
    }
}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        io::Error::from_raw_os_error(errno.0)
    }
}

impl From<nix::errno::Errno> for Errno {
    fn from(errno: nix::errno::Errno) -> Self {
        Self(errno as i32)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from(*self).fmt(f)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", nix::errno::Errno::from_raw(self.0))
    }
}

/// Why a reactor could not be built, run, stopped, or given something to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The asked-for backend cannot be had here.
    Backend {
        /// The backend's name, as `RINGSPUN_BACKEND` spells it.
        backend: &'static str,
        /// What stands in the way.
        cause: String,
        /// What to do about it.
        remedy: String,
    },
    /// `RINGSPUN_BACKEND` holds a word that names no backend.
    UnknownBackend(String),
    /// An option of the builder is outside of its range.
    Option {
        /// The option's name.
        option: &'static str,
        /// What is wrong with it and what is allowed.
        cause: String,
    },
    /// A port cannot be listened on.
    CannotListen {
        /// Interface and port, as they were asked for.
        address: String,
        /// What the kernel, or the name resolver, said.
        cause: io::Error,
    },
    /// An endpoint string has a mistake in it.
    Endpoint(EndpointError),
    /// A descriptor that came from elsewhere is not what it is said to be.
    CannotAdopt {
        /// Its number.
        descriptor: i32,
        /// What it is, or what the kernel said.
        cause: io::Error,
    },
    /// A descriptor cannot be watched.
    CannotWatch {
        /// Its number.
        descriptor: i32,
        /// What the kernel said.
        cause: io::Error,
    },
    /// `start_factory` returned an error, so its port was never opened.
    StartFactory {
        /// The factory's type name.
        factory: &'static str,
        /// What `start_factory` returned.
        cause: io::Error,
    },
    /// `run` on a reactor that is running, or that has already run.
    AlreadyRunning,
    /// `stop` on a reactor that is not running.
    NotRunning,
    /// `listen_tcp`, `add_reader` or `add_writer` on a reactor that has stopped.
    Stopped,
    /// All 256 places for reactors of this process are taken.
    TooManyReactors,
    /// A system call that the reactor cannot go on without failed.
    System {
        /// What the reactor was doing.
        doing: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
}

impl Error {
    pub(crate) fn system(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::System { doing, cause }
    }
}

impl Clone for Error {
    fn clone(&self) -> Self {
        match self {
            Self::Backend { backend, cause, remedy } => {
                Self::Backend { backend, cause: cause.clone(), remedy: remedy.clone() }
            }
            Self::UnknownBackend(word) => Self::UnknownBackend(word.clone()),
            Self::Option { option, cause } => Self::Option { option, cause: cause.clone() },
            Self::CannotListen { address, cause } => {
                Self::CannotListen { address: address.clone(), cause: same(cause) }
            }
            Self::Endpoint(mistake) => Self::Endpoint(mistake.clone()),
            Self::CannotAdopt { descriptor, cause } => {
                Self::CannotAdopt { descriptor: *descriptor, cause: same(cause) }
            }
            Self::CannotWatch { descriptor, cause } => {
                Self::CannotWatch { descriptor: *descriptor, cause: same(cause) }
            }
            Self::StartFactory { factory, cause } => Self::StartFactory { factory, cause: same(cause) },
            Self::AlreadyRunning => Self::AlreadyRunning,
            Self::NotRunning => Self::NotRunning,
            Self::Stopped => Self::Stopped,
            Self::TooManyReactors => Self::TooManyReactors,
            Self::System { doing, cause } => Self::System { doing, cause: same(cause) },
        }
    }
}

impl From<EndpointError> for Error {
    fn from(mistake: EndpointError) -> Self {
        Self::Endpoint(mistake)
    }
}

/// For an endpoint that is none that has to be parsed.
impl From<Infallible> for Error {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// The same number, or the same kind and text.
fn same(error: &io::Error) -> io::Error {
    let text = || io::Error::new(error.kind(), error.to_string());
    error.raw_os_error().map_or_else(text, io::Error::from_raw_os_error)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Backend { backend, cause, remedy } => {
                write!(f, "the {backend} backend cannot be had: {cause}; {remedy}")
            }
            Self::UnknownBackend(word) => {
                write!(f, "RINGSPUN_BACKEND={word} names no backend; use auto, io_uring, epoll or threads")
            }
            Self::Option { option, cause } => write!(f, "the option {option} {cause}"),
            Self::CannotListen { address, cause } if cause.kind() == io::ErrorKind::AddrInUse => write!(
                f,
                "cannot listen on {address}: {cause}; stop the program that holds the port, or choose another (0 lets the kernel choose)"
            ),
            Self::CannotListen { address, cause } => write!(f, "cannot listen on {address}: {cause}"),
            Self::Endpoint(mistake) => mistake.fmt(f),
            Self::CannotAdopt { descriptor, cause } => {
                write!(f, "cannot adopt descriptor {descriptor}: {cause}")
            }
            Self::CannotWatch { descriptor, cause } => {
                write!(f, "cannot watch the descriptor {descriptor}: {cause}; {}", remedy_of_watching(cause))
            }
            Self::StartFactory { factory, cause } => {
                write!(f, "start_factory of {factory} failed: {cause}")
            }
            Self::AlreadyRunning => {
                f.write_str("the reactor is running or has run; build a new one to run again")
            }
            Self::NotRunning => f.write_str("the reactor is not running; call run() before stop()"),
            Self::Stopped => f.write_str("the reactor has stopped; build a new one"),
            Self::TooManyReactors => {
                f.write_str("256 reactors exist in this process; drop one before building another")
            }
            Self::System { doing, cause } => write!(f, "{doing}: {cause}"),
        }
    }
}

/// What to do about a descriptor that cannot be watched.
fn remedy_of_watching(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::EPERM) => "a regular file is always ready: read and write it in call_in_thread",
        Some(libc::EMFILE | libc::ENFILE) => {
            "watching takes a duplicate of it: raise `ulimit -n` or close others"
        }
        Some(libc::EBADF) => "add it while it is open",
        _ => "watch a socket, a pipe or another file that can be waited for",
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::CannotListen { cause, .. }
            | Self::CannotAdopt { cause, .. }
            | Self::CannotWatch { cause, .. }
            | Self::StartFactory { cause, .. }
            | Self::System { cause, .. } => Some(cause),
            Self::Endpoint(mistake) => Some(mistake),
            _ => None,
        }
    }
}
