//! What is done on connections, beside how many there are, how large messages are and how often they come.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::{
    engine::{Client, Close},
    error::Error,
    http, machine,
    point::{Point, Sizes},
    spec::Row,
    target::Transport,
    units,
};

/// What connections are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Request and reply
    Rr,
    /// Messages one after another, without waiting for their replies
    Stream,
    /// Connect, ask once, close; then the next connection
    Churn,
    /// One connection's messages go to all: replies count by receiver
    Push,
    /// Connections ask once, then hold still; the command `idle`
    #[value(skip)]
    Idle,
}

/// As results spell them.
pub(crate) const RR: &str = "rr";
pub(crate) const STREAM: &str = "stream";
pub(crate) const CHURN: &str = "churn";
pub(crate) const PUSH: &str = "push";
pub(crate) const IDLE: &str = "idle";

/// A stream has at least so many messages under way, and at least so many bytes.
const STREAM_MESSAGES: usize = 2;
const STREAM_BYTES: usize = 128 << 10;
/// A deeper pipeline only fills the sockets' buffers.
pub(crate) const PIPELINE_MAX: usize = 1024;

/// About what a GET has beside its path.
const HTTP_BYTES: usize = 64;
/// What an IPv4 packet has room for.
pub(crate) const DATAGRAM_BYTES_MAX: usize = 65_507;
/// A longer pause outlasts the window.
const THINK_MAX: Duration = Duration::from_secs(3600);

#[derive(Debug, Args)]
pub(crate) struct ModeArgs {
    /// What connections are for
    #[arg(long, value_enum, default_value_t = Mode::Rr)]
    mode: Mode,
    /// Over what loadgen's own servers and the client talk; over udp requests and replies are datagrams, and those
    /// that are lost are counted [default: tcp, or what the target says]
    #[arg(long, value_enum)]
    transport: Option<Transport>,
    /// How --mode churn ends connections [default: fin]
    #[arg(long, value_enum)]
    close: Option<Close>,
    /// Pause of a connection between a reply and its next request
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = units::duration_or_zero)]
    think: Duration,
    /// Time over which connections are made [default: as fast as they can be]
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = units::duration_or_zero)]
    ramp: Duration,
    /// Ask by HTTP/1.1 GET of this path; every response must equal the first one
    #[arg(long, value_name = "PATH")]
    http: Option<String>,
    /// Interface of the kernel that the client uses; epoll is an independent check of the other
    #[arg(long, value_enum, default_value_t = Client::IoUring)]
    client: Client,
    /// Requests that are held until there are so many, or the turn ends; the server gets them as a burst [default: 8 with
    /// --rate, else all of a turn]
    #[arg(long, value_name = "N", value_parser = units::count)]
    burst: Option<usize>,
}

/// The same, with what was not said filled in and contradictions refused.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    pub(crate) mode: Mode,
    pub(crate) transport: Transport,
    /// With churn only.
    pub(crate) close: Option<Close>,
    pub(crate) think: Duration,
    pub(crate) ramp: Duration,
    /// The path of a GET.
    pub(crate) http: Option<String>,
    pub(crate) client: Client,
    /// None for as many as suit the loop.
    pub(crate) burst: Option<usize>,
}

impl ModeArgs {
    /// `idle` is another command, and knows neither requests nor their pauses.
    pub(crate) fn settle(self, rows: &[Row], idle: bool) -> Result<Manner, Error> {
        let target = rows.iter().find_map(|row| match row {
            Row::Remote(remote) => Some(remote),
            _ => None,
        });
        if target.is_some() && self.transport.is_some() {
            return Err(Error::usage("the target says over what it is reached: leave out --transport"));
        }
        let from_target = target.and_then(|remote| remote.path.clone());
        if from_target.is_some() && self.http.is_some() {
            return Err(Error::usage("the path is in the target: leave out --http"));
        }
        if self.close.is_some() && self.mode != Mode::Churn {
            return Err(Error::usage("--close is for connections that end: add --mode churn"));
        }
        if idle && (self.mode != Mode::Rr || !self.think.is_zero()) {
            return Err(Error::usage(
                "idle connections ask nothing: --mode and --think have no meaning here",
            ));
        }
        let close = (self.mode == Mode::Churn).then(|| self.close.unwrap_or(Close::Fin));
        let manner = Manner {
            mode: if idle { Mode::Idle } else { self.mode },
            transport: target.map(|remote| remote.transport).or(self.transport).unwrap_or_default(),
            close,
            think: self.think,
            ramp: self.ramp,
            http: from_target.or(self.http),
            client: self.client,
            burst: self.burst,
        };
        if let Some(path) = &manner.http {
            http::Request::get("localhost", path, false).map_err(Error::usage)?;
        }
        manner.check_transport()?;
        rows.iter().try_for_each(|row| manner.suits(row))?;
        Ok(manner)
    }
}

impl Manner {
    /// One request at a time, without pauses.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        let (think, ramp) = (Duration::ZERO, Duration::ZERO);
        let (transport, client) = (Transport::Tcp, Client::IoUring);
        Self { mode: Mode::Rr, transport, close: None, think, ramp, http: None, client, burst: None }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self.mode {
            Mode::Rr => RR,
            Mode::Stream => STREAM,
            Mode::Churn => CHURN,
            Mode::Push => PUSH,
            Mode::Idle => IDLE,
        }
    }

    /// How many requests are under way on a connection unless -p says it.
    pub(crate) fn usual_pipeline(&self, sizes: &Sizes) -> usize {
        match self.mode {
            Mode::Stream => (STREAM_BYTES / sizes.largest().max(1)).clamp(STREAM_MESSAGES, PIPELINE_MAX),
            _ => 1,
        }
    }

    /// What a transport does not have.
    fn check_transport(&self) -> Result<(), Error> {
        let datagrams = self.transport == Transport::Udp;
        let contradictions = [
            (
                self.transport == Transport::Unix && self.close == Some(Close::Rst),
                "a Unix socket has no RST: --close fin or server",
            ),
            (
                datagrams && self.mode != Mode::Rr,
                "UDP has no streams and no connections to open or to hold: over it there is only --mode rr",
            ),
            (datagrams && self.http.is_some(), "HTTP/1.1 needs a stream: leave out one of --http and UDP"),
            (datagrams && !self.ramp.is_zero(), "UDP has no connections to be made: leave out --ramp"),
        ];
        match contradictions.iter().find(|(contradicts, _)| *contradicts) {
            Some((_, text)) => Err(Error::usage(*text)),
            None => Ok(()),
        }
    }

    /// Whether a row can serve this.
    fn suits(&self, row: &Row) -> Result<(), Error> {
        if matches!(row, Row::Hired(_)) && self.transport != Transport::Tcp {
            return Err(Error::usage(format!(
                "--server is given a port of TCP; start {row} yourself, and name it as {}",
                if self.transport == Transport::Unix { "unix:/path" } else { "udp://host:port" }
            )));
        }
        let Row::Backend(spec) = row else { return Ok(()) };
        if self.http.is_some() {
            return Err(Error::usage(format!(
                "{spec} does not speak HTTP; name a server that does: --server 'name=command {{port}}'"
            )));
        }
        if self.mode == Mode::Push && spec.kind.is_raw() {
            return Err(Error::usage(format!("{spec} only echoes; push needs io_uring, epoll or threads")));
        }
        Ok(())
    }

    /// Refuses what contradicts itself, and what has no room in memory.
    pub(crate) fn check(&self, point: &Point) -> Result<(), Error> {
        let contradictions = [
            (self.think > THINK_MAX, "the longest --think is 1h"),
            (self.mode == Mode::Idle && point.pipeline > 1, "idle connections ask nothing: leave out -p"),
            (
                point.rate.is_some() && self.mode == Mode::Stream,
                "--mode stream sends as fast as it can: leave out --rate",
            ),
            (
                point.rate.is_some() && point.pipeline > 1,
                "with --rate each connection has one request under way: leave out -p, or use more connections",
            ),
            (
                point.rate.is_some() && !self.think.is_zero(),
                "--rate says when to ask, and so does --think: leave out one of them",
            ),
            (
                !self.think.is_zero() && point.pipeline > 1,
                "--think is a pause after each reply: leave out -p and --mode stream",
            ),
            (
                self.mode == Mode::Churn && point.pipeline > 1,
                "--mode churn asks once on each connection: leave out -p",
            ),
            (
                self.mode == Mode::Churn && !self.ramp.is_zero(),
                "--mode churn makes connections all the time: leave out --ramp",
            ),
            (
                self.mode == Mode::Stream && self.http.is_some(),
                "--mode stream is for messages: ask by --http as fast as it can be with a deep -p",
            ),
            (
                self.mode == Mode::Push && self.http.is_some(),
                "HTTP has no push: leave out one of --mode push and --http",
            ),
            (
                self.transport == Transport::Udp && point.size.largest() > DATAGRAM_BYTES_MAX,
                "the largest datagram has 65507 bytes: use a smaller -s",
            ),
            (
                self.close == Some(Close::Server) && self.http.is_none() && point.size.only().is_none(),
                "--close server tells the server after how many bytes to close: use one size",
            ),
        ];
        if let Some((_, text)) = contradictions.iter().find(|(contradicts, _)| *contradicts) {
            return Err(Error::usage(*text));
        }
        self.check_memory(point)
    }

    /// Every connection keeps what it has sent until it is answered.
    fn check_memory(&self, point: &Point) -> Result<(), Error> {
        let senders = if self.mode == Mode::Push { 1 } else { point.connections };
        let largest = self.http.as_ref().map_or(point.size.largest(), |path| path.len() + HTTP_BYTES) as u64;
        let needed = (point.pipeline as u64 + 1).saturating_mul(largest).saturating_mul(senders as u64);
        match machine::available_memory() {
            Some(available) if needed > available / 2 => Err(Error::machine(format!(
                "{senders} connections with {} requests of {} under way take {} of the {} that are available; use \
                 fewer, or a smaller -s or -p",
                point.pipeline,
                units::bytes(largest),
                units::bytes(needed),
                units::bytes(available)
            ))),
            _ => Ok(()),
        }
    }
}
