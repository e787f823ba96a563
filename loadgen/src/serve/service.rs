//! What a server does with what comes in.

use clap::ValueEnum;

use crate::{error::Error, spec::Spec, target::Transport};

/// Where a server sends what comes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Way {
    /// Back to its sender
    #[default]
    Echo,
    /// To all connections, the sender's included; whoever does not read is buffered without a bound
    Push,
}

impl Way {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Push => "push",
        }
    }
}

/// What a server is to do; by default it echoes and lets its clients close.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) way: Way,
    /// An echo closes a connection once it has sent so many bytes back on it; 0 is never.
    pub(crate) close_after: usize,
    pub(crate) transport: Transport,
    /// Bytes of the longest datagram that is received; of no meaning to streams.
    pub(crate) max_packet_size: usize,
}

impl Service {
    /// The flags of `serve` that ask for it, at an address of the server's own choice.
    pub(crate) fn flags(self) -> Vec<String> {
        let mut flags = vec!["--transport".to_owned(), self.transport.name().to_owned()];
        if self.transport != Transport::Unix {
            flags.extend(["--port".to_owned(), "0".to_owned()]);
        }
        if self.transport == Transport::Udp {
            flags.extend(["--max-packet-size".to_owned(), self.max_packet_size.to_string()]);
        }
        if self.way != Way::default() {
            flags.extend(["--as".to_owned(), self.way.name().to_owned()]);
        }
        if self.close_after > 0 {
            flags.extend(["--close-after".to_owned(), self.close_after.to_string()]);
        }
        flags
    }

    /// Whether it makes sense, and the server of this backend can do it.
    pub(crate) fn check(self, spec: Spec) -> Result<(), Error> {
        let datagrams = self.transport == Transport::Udp;
        match self.way {
            Way::Push if datagrams => {
                Err(Error::usage("--as push sends to connections, which UDP does not have; leave it out"))
            }
            Way::Echo if datagrams && self.close_after > 0 => {
                Err(Error::usage("--close-after ends connections, which UDP does not have; leave it out"))
            }
            Way::Push if spec.kind.is_raw() => Err(Error::usage(format!(
                "{spec} can only echo; for --as push choose --backend io_uring, epoll or threads"
            ))),
            Way::Push if self.close_after > 0 => Err(Error::usage(
                "--close-after counts what an echo sends back; leave it out with --as push, or use --as echo",
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Kind;

    const PUSH: Service =
        Service { way: Way::Push, close_after: 0, transport: Transport::Tcp, max_packet_size: 0 };

    #[test]
    fn the_flags_say_what_is_not_the_default() {
        let tcp = ["--transport", "tcp", "--port", "0"];
        assert_eq!(Service::default().flags(), tcp);
        assert_eq!(PUSH.flags(), [&tcp[..], &["--as", "push"]].concat());
        let closing = Service { close_after: 64, ..Service::default() };
        assert_eq!(closing.flags(), [&tcp[..], &["--close-after", "64"]].concat());
        let unix = Service { transport: Transport::Unix, ..Service::default() };
        assert_eq!(unix.flags(), ["--transport", "unix"], "it takes a name of its own");
        let udp = Service { transport: Transport::Udp, max_packet_size: 8192, ..Service::default() };
        assert_eq!(udp.flags(), ["--transport", "udp", "--port", "0", "--max-packet-size", "8192"]);
    }

    #[test]
    fn only_the_library_pushes_and_only_an_echo_counts() {
        for kind in [Kind::RawUring, Kind::RawEpoll, Kind::RawThreads] {
            assert!(PUSH.check(Spec::plain(kind)).is_err(), "{kind:?}");
            assert!(Service { close_after: 1, ..Service::default() }.check(Spec::plain(kind)).is_ok());
        }
        assert!(PUSH.check(Spec::plain(Kind::Epoll)).is_ok());
        assert!(Service { close_after: 1, ..PUSH }.check(Spec::plain(Kind::Epoll)).is_err());
        for service in [PUSH, Service { close_after: 1, ..Service::default() }] {
            let over_udp = Service { transport: Transport::Udp, ..service };
            assert!(over_udp.check(Spec::plain(Kind::Epoll)).is_err(), "{service:?}");
        }
    }
}
