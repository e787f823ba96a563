//! A kit for tests of programs that use ringspun: no sockets, no threads, no waiting.
//!
//! [`MemoryReactor`] runs the real reactor (the loop, the state machine of a connection, its output buffer, its timers) over a network
//! that is only memory, by a clock that moves when the test says so. It is to ringspun what `MemoryReactorClock` and `StringTransport`
//! are to Twisted, except that nothing is imitated: memory is one more backend.
//!
//! ```
//! use ringspun::{Cx, Factory, Peer, Protocol, testing::{End, MemoryReactor}};
//! use std::time::Duration;
//!
//! /// Echoes for half a minute.
//! struct Echo;
//! struct EchoFactory;
//!
//! impl Factory for EchoFactory {
//!     type Protocol = Echo;
//!
//!     fn build_protocol(&mut self, _peer: &mut Peer<'_>) -> Option<Echo> {
//!         Some(Echo)
//!     }
//! }
//!
//! impl Protocol<EchoFactory> for Echo {
//!     fn connection_made(&mut self, cx: &mut Cx<'_, EchoFactory>) {
//!         cx.call_later(Duration::from_secs(30), |_, cx| cx.transport.lose_connection());
//!     }
//!
//!     fn data_received(&mut self, cx: &mut Cx<'_, EchoFactory>, data: &[u8]) {
//!         cx.transport.write(data);
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut memory = MemoryReactor::new();
//! let port = memory.reactor().listen_tcp(("127.0.0.1", 0), EchoFactory)?;
//! let mut peer = memory.connect(&port)?;
//! peer.send(b"hello");
//! memory.turn();
//! assert_eq!(peer.take_received(), b"hello");
//!
//! memory.advance(Duration::from_secs(30));
//! assert_eq!(peer.end(), Some(End::Fin));
//! peer.close();
//! memory.turn();
//! assert_eq!(memory.pending_calls(), 0);
//! # Ok(())
//! # }
//! ```
//!
//! # Connecting outwards
//!
//! What the program connects to, the test [listens](MemoryReactor::listen) at, or the program itself. Elsewhere connections are refused, or as
//! [`answer`](MemoryReactor::answer) says. Names are those that [`add_host`](MemoryReactor::add_host) has been told, and `localhost`.
//!
//! ```
//! # use ringspun::{ClientFactory, Connector, Cx, Factory, FactoryCx, Peer, Protocol, Reason, Reconnector};
//! # use {ringspun::testing::MemoryReactor, std::time::Duration};
//! # struct Feed { again: Reconnector }
//! # struct Reader;
//! # impl Factory for Feed {
//! #     type Protocol = Reader;
//! #     fn build_protocol(&mut self, _peer: &mut Peer<'_>) -> Option<Reader> { Some(Reader) }
//! # }
//! # impl ClientFactory for Feed {
//! #     fn client_connection_failed(&mut self, cx: &mut FactoryCx<'_, Self>, connector: &Connector, _: &ringspun::ConnectError) {
//! #         self.again.retry(cx.reactor, connector);
//! #     }
//! # }
//! # impl Protocol<Feed> for Reader {
//! #     fn connection_made(&mut self, cx: &mut Cx<'_, Feed>) { cx.transport.write(b"NEW?"); }
//! #     fn data_received(&mut self, _: &mut Cx<'_, Feed>, _: &[u8]) {}
//! # }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut memory = MemoryReactor::new();
//! memory.add_host("feed.example", ["10.0.0.7".parse()?]);
//! let feed = Feed { again: Reconnector::new().jitter(0.0) };
//! memory.reactor().connect_tcp(("feed.example", 80), feed);
//! memory.turn(); // Refused: it tries again after e seconds.
//!
//! let server = memory.listen("10.0.0.7:80".parse::<std::net::SocketAddr>()?)?;
//! memory.advance(Duration::from_secs(3));
//! let mut peer = server.accept().expect("it has tried again");
//! assert_eq!(peer.take_received(), b"NEW?");
//! # Ok(())
//! # }
//! ```
//!
//! # What is not in memory
//!
//! Datagrams and descriptors that the program has from elsewhere belong to the kernel. Asking a reactor in memory for them, or to watch one, is an error that says so; a
//! connection that sends a descriptor is lost with `EOPNOTSUPP`.
//!
//! # The same test on every backend
//!
//! [`on_every_backend!`] makes a test for each backend that can be had, over the sockets of the machine.

mod every_backend;
mod peer;

use std::{
    fmt, io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    address::Address,
    backend::memory,
    builder::ReactorBuilder,
    error::Error,
    event_loop::EventLoop,
    host,
    network::{Attempt, Network, Owner},
    reactor::Reactor,
};

pub use self::{
    every_backend::{Case, run_on},
    peer::{End, MemoryListener, MemoryPeer},
};
#[doc(inline)]
pub use crate::__on_every_backend as on_every_backend;
pub use crate::network::Answer;

/// Bytes that a socket holds before its owner has received them, unless the test says otherwise.
const BUFFER_BYTES: usize = 64 << 10;
/// Whoever has something to do in more turns than this, while no time passes, never rests.
const TURNS_MAX: u32 = 1_000_000;

/// A reactor in memory, and the world around it: its network and its clock. See the [module](self) for an example.
///
/// Everything happens on the thread of the test, in [`turn`](Self::turn), [`step`](Self::step), [`advance`](Self::advance) and
/// [`stop`](Self::stop), which begin what `run` begins; but for work that the program gives to threads, which runs there, and is waited for.
///
/// Dropping it stops the reactor. If a callback has panicked, and the test has not [taken note](Self::take_panics) of it, the test fails there.
pub struct MemoryReactor {
    reactor: Reactor,
    network: Arc<Network>,
    life: Life,
    panics: Vec<String>,
}

enum Life {
    New,
    Running(Box<EventLoop>),
    Over(Result<(), Error>),
}

impl Default for MemoryReactor {
    fn default() -> Self {
        Self::new()
    }
}

/// Making one, and turning it.
impl MemoryReactor {
    /// A reactor with the default options.
    ///
    /// # Panics
    /// If 256 reactors exist in this process, or there is no descriptor for the eventfd that wakes one.
    pub fn new() -> Self {
        Self::build(Reactor::builder()).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A reactor with the options of this builder: limits, a `drain_timeout`, the size of the pool of threads. What it says of a backend and of
    /// signals does not count.
    ///
    /// # Errors
    /// If a limit is out of range, 256 reactors exist in this process, or there is no descriptor for the eventfd that wakes one.
    pub fn build(builder: ReactorBuilder) -> Result<Self, Error> {
        let network = Network::new(BUFFER_BYTES);
        let reactor = builder.build_in_memory(Arc::clone(&network))?;
        Ok(Self { reactor, network, life: Life::New, panics: Vec::new() })
    }

    /// The reactor, for the program that is tested. It runs from the first turn on.
    pub fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    /// Turns the loop until it has nothing more to do without more time or another event: until the real one would sleep.
    ///
    /// # Panics
    /// If it never rests, such as where a call schedules itself anew with no delay; [`step`](Self::step) is for these.
    pub fn turn(&mut self) {
        for _ in 0..TURNS_MAX {
            self.step();
            if self.rests() {
                return;
            }
        }
        panic!(
            "the reactor does not come to rest within {TURNS_MAX} turns at one moment; use step() where that is meant"
        );
    }

    /// Turns the loop once: due calls, commands, output, events.
    pub fn step(&mut self) {
        let Self { reactor, life, panics, .. } = self;
        host::note_panics(panics, || {
            let _here = reactor.core.run_here();
            life.step(reactor, &self.network);
        });
    }

    /// Lets time pass, and turns the loop at each moment on the way when something is due, then and at the end until it rests.
    ///
    /// # Panics
    /// As [`turn`](Self::turn).
    pub fn advance(&mut self, by: Duration) {
        self.turn();
        let mut left = by;
        loop {
            let next = self.network.sleep().unwrap_or(left).min(left);
            self.reactor.core.clock.advance(next);
            self.turn();
            left -= next;
            if left.is_zero() {
                return;
            }
        }
    }

    /// Stops the reactor, lets as much time pass as it takes to end, and answers what `run` would have returned. One that has not run yet begins before that.
    ///
    /// # Errors
    /// What `run` would have returned.
    ///
    /// # Panics
    /// If somebody holds the stop.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.turn();
        // An error says that it is on its way already.
        let _ = self.reactor.stop();
        self.turn();
        loop {
            if let Life::Over(ended) = &self.life {
                return ended.clone();
            }
            assert!(
                !self.reactor.core.system_events.is_stop_held(),
                "somebody holds the stop of the reactor"
            );
            let next = self.network.sleep().unwrap_or_default();
            self.reactor.core.clock.advance(next);
            self.turn();
        }
    }

    /// Whether it rests: it has ended, or would sleep, and no thread is at work for it.
    fn rests(&self) -> bool {
        if let Life::Over(_) = self.life {
            return true;
        }
        if self.network.sleep().is_none() {
            return false;
        }
        let core = &self.reactor.core;
        core.threads.join();
        let due = core.next_call().is_some_and(|deadline| deadline <= core.clock.now());
        !due && !core.has_commands()
    }
}

impl Life {
    fn step(&mut self, reactor: &Reactor, network: &Arc<Network>) {
        match self {
            Self::New => {
                // It has never run, and nobody but this could have begun.
                let _ = reactor.begin_run();
                let mut running =
                    Box::new(EventLoop::new(reactor.share(), memory::open(Arc::clone(network))));
                running.start();
                *self = Self::Running(running);
                self.step(reactor, network);
            }
            Self::Running(running) => {
                if !running.go_on() {
                    let ended = running.end();
                    reactor.end_run();
                    *self = Self::Over(ended);
                }
            }
            Self::Over(_) => {}
        }
    }
}

/// What there is to be asked.
impl MemoryReactor {
    /// The time by its clock.
    pub fn now(&self) -> Instant {
        self.reactor.now()
    }

    /// [`Reactor::pending_calls`], and with them the time-outs of connection attempts and of connections that close.
    pub fn pending_calls(&self) -> usize {
        match &self.life {
            Life::New => self.reactor.pending_calls(),
            Life::Running(running) => running.pending_calls(),
            Life::Over(_) => 0,
        }
    }

    /// What callbacks have panicked with since this was last asked. What nobody asks for fails the test when this is dropped.
    pub fn take_panics(&mut self) -> Vec<String> {
        std::mem::take(&mut self.panics)
    }
}

/// The network around it.
impl MemoryReactor {
    /// Connects a peer of the test's to a port of the program's, by the port or by its address, which may be a Unix socket's. It is accepted in the next turn.
    ///
    /// # Errors
    /// `ConnectionRefused` if nobody listens there, or as many as its backlog allows wait already.
    pub fn connect(&self, to: impl Into<Address>) -> io::Result<MemoryPeer> {
        self.dial(None, to.into())
    }

    /// As [`connect`](Self::connect), from this address.
    ///
    /// # Errors
    /// As there.
    pub fn connect_from(&self, from: impl Into<Address>, to: impl Into<Address>) -> io::Result<MemoryPeer> {
        self.dial(Some(from.into()), to.into())
    }

    fn dial(&self, from: Option<Address>, to: Address) -> io::Result<MemoryPeer> {
        let place = self.network.connect(Owner::Test, &to, from);
        let peer = MemoryPeer::new(&self.network, place);
        match self.network.attempt(place) {
            Some(Attempt::Over(Some(errno))) => Err(errno.into()),
            Some(Attempt::Pending) => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(peer),
        }
    }

    /// Listens at an address that the program connects to. Port 0 gives a free one.
    ///
    /// # Errors
    /// `EADDRINUSE` if somebody listens there.
    pub fn listen(&self, at: impl Into<Address>) -> io::Result<MemoryListener> {
        let (listener, address) = self.network.bind(Owner::Test, at.into(), u32::MAX, false)?;
        Ok(MemoryListener::new(&self.network, listener, address))
    }

    /// How connecting to an address ends at which nobody listens; it is refused unless this says otherwise.
    pub fn answer(&self, at: impl Into<Address>, answer: Answer) {
        self.network.set_answer(at.into(), answer);
    }

    /// Gives a host its addresses, in the order in which they are tried. Nobody else is asked for a name.
    pub fn add_host(&self, name: &str, addresses: impl IntoIterator<Item = IpAddr>) {
        self.network.set_host(name, addresses.into_iter().collect());
    }

    /// How many bytes wait at a socket whose owner does not receive them; more that the reactor sends waits on its side. 64 KiB unless this says otherwise.
    pub fn set_buffer_bytes(&self, bytes: usize) {
        self.network.set_buffer_bytes(bytes);
    }

    /// How many bytes arrive at the reactor at once; all that there are unless this says otherwise. 1 feeds a protocol byte by byte.
    ///
    /// # Panics
    /// If it is 0.
    pub fn set_segment_bytes(&self, bytes: usize) {
        assert!(bytes > 0, "a segment has at least one byte");
        self.network.set_segment_bytes(bytes);
    }
}

impl Drop for MemoryReactor {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            if !matches!(self.life, Life::New) {
                self.reactor.core.system_events.give_up_hope();
                let _ = self.stop();
            }
            assert!(self.panics.is_empty(), "callbacks have panicked: {:?}", self.panics);
        }
    }
}

impl fmt::Debug for MemoryReactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryReactor").field("reactor", &self.reactor).finish_non_exhaustive()
    }
}
