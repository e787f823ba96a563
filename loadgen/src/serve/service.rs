//! What a server does with what comes in.

use clap::ValueEnum;

use crate::{error::Error, spec::Spec};

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
}

impl Service {
    /// The flags of `serve` that ask for it.
    pub(crate) fn flags(self) -> Vec<String> {
        let mut flags = Vec::new();
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
        match self.way {
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

    const PUSH: Service = Service { way: Way::Push, close_after: 0 };

    #[test]
    fn the_flags_say_what_is_not_the_default() {
        assert_eq!(Service::default().flags(), [""; 0]);
        assert_eq!(PUSH.flags(), ["--as", "push"]);
        assert_eq!(Service { close_after: 64, ..Service::default() }.flags(), ["--close-after", "64"]);
    }

    #[test]
    fn only_the_library_pushes_and_only_an_echo_counts() {
        for kind in [Kind::RawUring, Kind::RawEpoll, Kind::RawThreads] {
            assert!(PUSH.check(Spec::plain(kind)).is_err(), "{kind:?}");
            assert!(Service { close_after: 1, ..Service::default() }.check(Spec::plain(kind)).is_ok());
        }
        assert!(PUSH.check(Spec::plain(Kind::Epoll)).is_ok());
        assert!(Service { close_after: 1, ..PUSH }.check(Spec::plain(Kind::Epoll)).is_err());
    }
}
