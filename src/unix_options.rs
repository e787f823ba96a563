//! Where and how to listen or connect on Unix sockets.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    address::{Address, UnixAddress},
    connector::ConnectOptions,
};

/// Where and how to listen on a Unix stream socket.
///
/// ```
/// use ringspun::UnixListenOptions;
///
/// let for_the_group = UnixListenOptions::from("/run/web.sock").mode(0o660).backlog(50);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixListenOptions {
    pub(crate) address: UnixAddress,
    pub(crate) backlog: u32,
    pub(crate) mode: Option<u32>,
}

impl UnixListenOptions {
    /// How many connections may wait to be accepted; the kernel caps it at `net.core.somaxconn`. 1024 by default.
    pub fn backlog(mut self, backlog: u32) -> Self {
        self.backlog = backlog;
        self
    }

    /// The permissions of the socket's file, such as `0o660`: who may write to it may connect. By default what the
    /// process's umask leaves of `0o777`.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }
}

/// Whom to connect to on a Unix stream socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixConnectOptions {
    address: UnixAddress,
    timeout: Duration,
}

impl UnixConnectOptions {
    /// How long one attempt may take: a server whose backlog is full is tried until then. 30 s by default, as in Twisted.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

impl From<UnixConnectOptions> for ConnectOptions {
    fn from(options: UnixConnectOptions) -> Self {
        Self::to(Address::Unix(options.address)).timeout(options.timeout)
    }
}

macro_rules! from_names {
    ($($name:ty),*) => {$(
        impl From<$name> for UnixListenOptions {
            fn from(address: $name) -> Self {
                Self { address: address.into(), backlog: 1024, mode: None }
            }
        }

        impl From<$name> for UnixConnectOptions {
            fn from(address: $name) -> Self {
                Self { address: address.into(), timeout: Duration::from_secs(30) }
            }
        }
    )*};
}

from_names!(UnixAddress, &str, String, &Path, PathBuf);
