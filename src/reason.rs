//! Why a connection ended, and why one could not be made.

use std::{error, fmt, io, net::SocketAddr};

use crate::error::Errno;

/// An error of the program itself, as it is handed to [`Transport::fail`](crate::Transport::fail).
pub type BoxError = Box<dyn error::Error + Send + Sync>;

/// Why a connection ended. `connection_lost` is told exactly one of these.
#[derive(Debug)]
#[non_exhaustive]
pub enum Reason {
    /// The peer sent FIN, or this side called `lose_connection` and all it wrote was handed over.
    Done,
    /// The connection broke, or the reactor was stopped.
    Lost(Loss),
    /// This side called `abort_connection`.
    Aborted,
    /// A limit of [`Limits`](crate::Limits) was passed.
    Limit(LimitKind),
    /// Something took longer than it may.
    TimedOut(Timeout),
    /// A callback gave this error to [`Transport::fail`](crate::Transport::fail).
    Callback(BoxError),
    /// A callback panicked with this text.
    Panicked(String),
}

/// How a connection was lost without either side having closed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Loss {
    /// The kernel reported this error, such as `ECONNRESET`.
    Errno(Errno),
    /// The reactor was stopped.
    Shutdown,
}

/// A limit that ends a connection when it is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitKind {
    /// [`Limits::output_max`](crate::Limits::output_max): too many unsent bytes.
    Output,
    /// [`Limits::output_total_max`](crate::Limits::output_total_max): too many unsent bytes of all connections together, of which this
    /// one had the most.
    OutputTotal,
}

/// A time limit that ends a connection when it runs out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Timeout {
    /// [`Limits::close_timeout`](crate::Limits::close_timeout): the output could not be flushed in time.
    Close,
    /// Nothing passed for as long as an idle time-out allows ([`Filters::idle_timeout`](crate::policies::Policies::idle_timeout)).
    Idle,
    /// The time that the protocol gave itself with [`Transport::set_timeout`](crate::Transport::set_timeout).
    Protocol,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("connection was closed cleanly"),
            Self::Lost(Loss::Errno(errno)) => write!(f, "connection was lost: {errno}"),
            Self::Lost(Loss::Shutdown) => f.write_str("connection was lost: the reactor was stopped"),
            Self::Aborted => f.write_str("connection was aborted"),
            Self::Limit(LimitKind::Output) => f.write_str("connection passed its limit of unsent output"),
            Self::Limit(LimitKind::OutputTotal) => f.write_str(
                "connection had the most unsent output when all together passed their limit of it",
            ),
            Self::TimedOut(Timeout::Close) => {
                f.write_str("connection could not be closed in time and was aborted")
            }
            Self::TimedOut(Timeout::Idle) => f.write_str("connection was idle for too long and was closed"),
            Self::TimedOut(Timeout::Protocol) => {
                f.write_str("connection took longer than its protocol allows")
            }
            Self::Callback(error) => write!(f, "a callback failed: {error}"),
            Self::Panicked(text) => write!(f, "a callback panicked: {text}"),
        }
    }
}

/// Why a connection could not be made. `client_connection_failed` is told one of these.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody listens there.
    Refused,
    /// No answer within the connector's timeout.
    TimedOut,
    /// No route to the host or its network.
    Unreachable(Errno),
    /// The name could not be resolved.
    Resolve(io::Error),
    /// The local address to connect from cannot be used.
    Bind(SocketAddr, Errno),
    /// The factory's `start_factory` failed, with this text.
    StartFactory(String),
    /// `stop_connecting` was called.
    User,
    /// The reactor was stopped.
    Shutdown,
    /// The kernel refused for another reason.
    Errno(Errno),
}

impl ConnectError {
    pub(crate) fn from_errno(errno: Errno) -> Self {
        match errno.raw() {
            libc::ECONNREFUSED => Self::Refused,
            libc::ETIMEDOUT => Self::TimedOut,
            libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN => Self::Unreachable(errno),
            _ => Self::Errno(errno),
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("connection refused: nobody listens there"),
            Self::TimedOut => f.write_str("connecting took longer than its timeout"),
            Self::Unreachable(errno) => write!(f, "the host cannot be reached: {errno}"),
            Self::Resolve(error) => write!(f, "the name could not be resolved: {error}"),
            Self::Bind(address, errno) => write!(f, "cannot connect from {address}: {errno}"),
            Self::StartFactory(text) => f.write_str(text),
            Self::User => f.write_str("connecting was stopped by stop_connecting"),
            Self::Shutdown => f.write_str("the reactor was stopped"),
            Self::Errno(errno) => write!(f, "connecting failed: {errno}"),
        }
    }
}

impl error::Error for ConnectError {}
