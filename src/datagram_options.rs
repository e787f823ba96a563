//! Where and how to receive datagrams.

use std::path::{Path, PathBuf};

use crate::{address::UnixAddress, port::ListenOptions};

/// Twisted's `maxPacketSize`.
const LENGTH_MAX: usize = 8192;

/// Where and how to receive UDP.
///
/// ```
/// use ringspun::UdpOptions;
///
/// let everywhere = UdpOptions::from(8000);
/// let discovery = UdpOptions::from(("0.0.0.0", 1900)).share(true).max_packet_size(65_507);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpOptions {
    pub(crate) at: ListenOptions,
    pub(crate) share: bool,
    pub(crate) max_packet_size: usize,
}

impl UdpOptions {
    /// The longest datagram to be received, 8192 bytes by default as in Twisted; 0 is an error of `listen`. A longer one is dropped, and counted as
    /// [`Count::DatagramsTooLong`](crate::Count::DatagramsTooLong) (≠: cut off there).
    pub fn max_packet_size(mut self, bytes: usize) -> Self {
        self.max_packet_size = bytes;
        self
    }

    /// Lets several sockets have this address, as for multicast (`SO_REUSEADDR` and `SO_REUSEPORT`; Twisted's `listenMultiple`).
    pub fn share(mut self, share: bool) -> Self {
        self.share = share;
        self
    }
}

impl<T: Into<ListenOptions>> From<T> for UdpOptions {
    fn from(at: T) -> Self {
        let at = at.into();
        Self { share: at.reuse_port, at, max_packet_size: LENGTH_MAX }
    }
}

/// Where and how to receive datagrams on a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixDatagramOptions {
    pub(crate) address: UnixAddress,
    pub(crate) mode: Option<u32>,
    pub(crate) max_packet_size: usize,
}

impl UnixDatagramOptions {
    /// The permissions of the socket's file, such as `0o660`: who may write to it may send. By default what the
    /// process's umask leaves of `0o777`.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }

    /// The longest datagram to be received, 8192 bytes by default as in Twisted; 0 is an error of `listen`. A longer one is dropped, and counted as
    /// [`Count::DatagramsTooLong`](crate::Count::DatagramsTooLong) (≠: cut off there).
    pub fn max_packet_size(mut self, bytes: usize) -> Self {
        self.max_packet_size = bytes;
        self
    }
}

macro_rules! from_names {
    ($($name:ty),*) => {$(
        /// [`UnixAddress::Unnamed`] gives a socket that can send, but that nobody can answer.
        impl From<$name> for UnixDatagramOptions {
            fn from(address: $name) -> Self {
                Self { address: address.into(), mode: None, max_packet_size: LENGTH_MAX }
            }
        }
    )*};
}

from_names!(UnixAddress, &str, String, &Path, PathBuf);
