//! Twisted's programming model, spun on a ring.
//!
//! The same Transport, Protocol and Factory as Twisted's, on a completion core: socket reads and
//! writes are submitted through Linux's io_uring, and completions become callbacks. The same
//! program runs on edge-triggered epoll and on a thread per connection, so the three can be compared.
//!
//! A server in full:
//!
//! ```no_run
//! use ringspun::{Cx, Protocol, Reactor, Serve, Write};
//!
//! struct Echo;
//!
//! impl<F> Protocol<F> for Echo {
//!     fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
//!         if cx.transport.write(data) == Write::Full {
//!             cx.transport.pause_producing();
//!         }
//!     }
//!
//!     fn resume_writing(&mut self, cx: &mut Cx<'_, F>) {
//!         cx.transport.resume_producing();
//!     }
//! }
//!
//! fn main() -> Result<(), ringspun::Error> {
//!     let reactor = Reactor::builder().build()?;
//!     reactor.listen_tcp(8000, Serve(|| Echo))?;
//!     reactor.run()
//! }
//! ```
//!
//! # Where to find what
//!
//! * [`Reactor`]: runs everything on one thread; built by [`Reactor::builder`], with a [`Backend`].
//! * [`Protocol`] and [`Factory`] ([`ClientFactory`] for connections that this side makes): what a
//!   program implements. [`Cx`] and [`FactoryCx`] are what their callbacks can reach.
//! * [`Transport`]: what a protocol writes to and closes.
//! * [`ServerEndpoint`], [`ClientEndpoint`]: where to listen and to connect, in a string; [`Activation`] hands a port's socket to
//!   another process.
//! * [`Port`], [`Connector`], [`DelayedCall`]: what listening, connecting and scheduling return.
//! * [`DatagramProtocol`]: what a program implements for UDP and Unix datagrams, whose port is its transport.
//! * [`Descriptor`]: what a program reads and writes by itself when the reactor says that it is ready.
//! * [`testing`]: the reactor in memory, by a clock that a test moves.
//! * [`Limits`], [`Stats`], [`Reason`]: what protects a server, what it has done, why a connection ended.
//!
//! # Which backend am I on?
//!
//! [`Reactor::backend`] says which, why, and on which kernel; so does the first log line of `run`.
//! With [`Backend::Auto`] the variable `RINGSPUN_BACKEND` (`auto`, `io_uring`, `epoll`, `threads`)
//! may decide. An explicit choice that cannot be had is an error of `build`.
//!
//! # Twisted's names and ours
//!
//! | Twisted | ringspun |
//! |---|---|
//! | `reactor.run`, `stop` | [`Reactor::run`], [`Reactor::stop`] |
//! | `reactor.listenTCP(port, factory, backlog, interface)` | [`Reactor::listen_tcp`] with [`ListenOptions`] |
//! | `reactor.connectTCP(host, port, factory, timeout, bindAddress)` | [`Reactor::connect_tcp`] with [`ConnectOptions`] |
//! | `reactor.listenUNIX(address, factory, backlog, mode)`, `connectUNIX` | [`Reactor::listen_unix`] with [`UnixListenOptions`], [`Reactor::connect_unix`] with [`UnixConnectOptions`] |
//! | `reactor.listenUDP`, `listenMulticast` | [`Reactor::listen_udp`] with [`UdpOptions`] |
//! | `reactor.listenUNIXDatagram`, `connectUNIXDatagram` | [`Reactor::listen_unix_datagram`] with [`UnixDatagramOptions`], [`DatagramTransport::connect`] |
//! | `reactor.adoptStreamPort`, `adoptStreamConnection`, `adoptDatagramPort` | [`Reactor::adopt_stream_port`], [`Reactor::adopt_stream_connection`], [`Reactor::adopt_datagram_port`] |
//! | `DatagramProtocol.startProtocol`, `datagramReceived`, `connectionRefused`, `stopProtocol` | [`DatagramProtocol`] |
//! | a UDP `transport.write(datagram, addr)`, `connect`, `joinGroup`, `leaveGroup`, `setBroadcastAllowed` | [`DatagramTransport`] |
//! | `serverFromString(reactor, "tcp:8000").listen(factory)` | [`Reactor::listen`] with a [`ServerEndpoint`] |
//! | `clientFromString(reactor, "tcp:localhost:8000").connect(factory)` | [`Reactor::connect`] with a [`ClientEndpoint`] |
//! | `quoteStringArgument` | [`quote_string_argument`] |
//! | `reactor.callLater`, `IDelayedCall` | [`Reactor::call_later`], [`Cx::call_later`], [`FactoryCx::call_later`], [`DelayedCall`] |
//! | `reactor.addSystemEventTrigger`, `removeSystemEventTrigger`; a trigger's Deferred | [`Reactor::add_system_event_trigger`], [`SystemEventTrigger::remove`]; [`Reactor::hold_stop`] |
//! | a `before shutdown` trigger that waits for the last bytes | [`ReactorBuilder::drain_timeout`] |
//! | `reactor.callInThread`, `deferToThread`, `suggestThreadPoolSize` | [`Reactor::call_in_thread`], [`Cx::call_in_thread`], [`FactoryCx::call_in_thread`], [`ReactorBuilder::thread_pool_size`] |
//! | `reactor.addReader`, `addWriter`, `removeReader`, `removeWriter` | [`Reactor::add_reader`], [`Reactor::add_writer`]; [`WatchedDescriptor`] |
//! | `IReadDescriptor`, `IWriteDescriptor`, `fileno` | [`Descriptor`], `as_fd` |
//! | `ConnectionFdescWentAway` | [`DescriptorLost::WentAway`] |
//! | `reactor.seconds` | [`Reactor::now`] |
//! | `reactor.callWhenRunning`, `callFromThread` | [`Reactor::call_when_running`], [`Reactor::call_from_thread`] |
//! | `Protocol.makeConnection`, `connectionMade` | [`Protocol::connection_made`] |
//! | `Protocol.dataReceived`, `connectionLost` | [`Protocol::data_received`], [`Protocol::connection_lost`] |
//! | `IHalfCloseableProtocol.readConnectionLost` | [`Protocol::read_connection_lost`] with [`Protocol::HALF_CLOSEABLE`] |
//! | `IPushProducer.pauseProducing` called on a protocol's writer | [`Protocol::pause_writing`], [`Protocol::resume_writing`] |
//! | `LineReceiver`, `LineOnlyReceiver`, `Int8StringReceiver` and the like, `NetstringReceiver` | the traits of [`protocols`] |
//! | `Factory.buildProtocol`, `startFactory`, `stopFactory` | [`Factory`] |
//! | `ClientFactory.startedConnecting`, `clientConnectionFailed`, `clientConnectionLost` | [`ClientFactory`] |
//! | `ReconnectingClientFactory` | a [`Reconnector`] in the factory |
//! | `factory.protocol = Echo` | [`Serve`] |
//! | `WrappingFactory`, `ProtocolWrapper` | [`WrappingFactory`] |
//! | `twisted.protocols.policies`, `TimeoutMixin` | [`policies`], [`Transport::set_timeout`] |
//! | `self.transport`, `self.factory` | [`Cx::transport`], [`Cx::factory`] |
//! | `transport.write`, `writeSequence` | [`Transport::write`], [`Transport::write_sequence`] |
//! | `transport.loseConnection`, `loseWriteConnection`, `abortConnection` | [`Transport::lose_connection`], [`Transport::lose_write_connection`], [`Transport::abort_connection`] |
//! | `transport.pauseProducing`, `resumeProducing` | [`Transport::pause_producing`], [`Transport::resume_producing`] |
//! | `transport.registerProducer`, `unregisterProducer` | [`Transport::register_producer`], [`Transport::unregister_producer`] |
//! | `IPushProducer`, `IPullProducer`, `FileSender` | [`Producer`] with [`Production::Push`] or [`Production::Pull`], [`FileSender`] |
//! | `transport.getPeer`, `getHost` | [`Transport::get_peer`], [`Transport::get_host`] |
//! | `transport.setTcpNoDelay`, `setTcpKeepAlive` | [`Transport::set_tcp_no_delay`], [`Transport::set_tcp_keep_alive`] |
//! | `IUNIXTransport.sendFileDescriptor`, `IFileDescriptorReceiver` | [`Transport::send_file_descriptor`], [`Protocol::file_descriptor_received`] with [`Protocol::RECEIVES_DESCRIPTORS`] |
//! | an exception in a callback | a panic, or [`Transport::fail`] |
//! | `IListeningPort.stopListening`, `getHost` | [`Port::stop_listening`], [`Port::get_host`] |
//! | the `Deferred` of `stopListening` | [`Port::on_done`] |
//! | `IConnector.connect`, `stopConnecting`, `disconnect`, `getDestination` | [`Connector`] |
//! | `ConnectionDone`, `ConnectionLost`, `ConnectionAborted` | [`Reason::Done`], [`Reason::Lost`], [`Reason::Aborted`] |
//! | `ConnectionRefusedError`, `TimeoutError`, `DNSLookupError`, `UserError` | [`ConnectError`] |
//! | `IPv4Address`, `IPv6Address`, `UNIXAddress` | [`Address`], [`UnixAddress`] |
//! | `MemoryReactorClock`, `StringTransport`, `Clock.advance` | [`testing::MemoryReactor`], [`testing::MemoryPeer`] |
//! | `ReactorBuilder` of its tests | [`testing::on_every_backend!`] |

#![cfg(target_os = "linux")]

mod address;
mod backend;
mod builder;
mod call_in_thread;
mod clock;
mod connection;
mod connector;
mod crew;
mod datagram;
mod datagram_host;
mod datagram_options;
mod delayed_call;
mod descriptor;
mod driver;
mod endpoint;
mod error;
mod event_loop;
mod factory;
mod factory_handle;
mod host;
mod id;
mod limits;
mod network;
mod options;
mod output;
pub mod policies;
mod port;
mod producer;
mod protocol;
pub mod protocols;
mod reactor;
mod reason;
mod reconnector;
mod resolve;
mod run;
mod schedule;
mod signals;
mod stats;
mod sys;
mod system_event;
mod table;
pub mod testing;
mod thread_pool;
mod threaded;
mod timer;
mod transport;
mod unix_options;
mod watches;
mod wrapper;

pub use address::{Address, UnixAddress};
pub use builder::ReactorBuilder;
pub use call_in_thread::ThreadError;
pub use connector::{ConnectOptions, Connector, ConnectorError, ConnectorState};
pub use datagram::{DatagramCx, DatagramError, DatagramPort, DatagramProtocol, DatagramTransport};
pub use datagram_options::{UdpOptions, UnixDatagramOptions};
pub use delayed_call::{DelayedCall, DelayedCallError};
pub use descriptor::{Descriptor, DescriptorCx, DescriptorLost, WatchedDescriptor};
pub use endpoint::{ClientEndpoint, EndpointError, ServerEndpoint, quote_string_argument};
pub use error::{Errno, Error};
pub use factory::{ClientFactory, Factory, FactoryCx, FactoryMut, Peer, Serve};
pub use factory_handle::{FactoryHandle, IntoFactory};
pub use id::ConnId;
pub use limits::Limits;
pub use options::{Backend, BackendInfo, Tier, UringOptions, WaitPolicy};
pub use output::{Write, Writer};
pub use port::{ListenOptions, Port};
pub use producer::{AlreadyProducing, FileSender, Producer, Production};
pub use protocol::{Cx, Protocol};
pub use reactor::{Reactor, ReactorHandle};
pub use reason::{BoxError, ConnectError, LimitKind, Loss, Reason, Timeout};
pub use reconnector::Reconnector;
pub use stats::{Count, Stats, Syscall};
pub use sys::Activation;
pub use system_event::{Phase, StopHold, SystemEvent, SystemEventTrigger};
pub use transport::{Connections, Transport};
pub use unix_options::{UnixConnectOptions, UnixListenOptions};
pub use wrapper::WrappingFactory;

/// The pure rooms, for the benchmarks under `bench/`. No promise of stability covers them.
#[doc(hidden)]
pub mod internals {
    pub use crate::{
        connection::{
            AnyProducer, Arrival, Connection, Equipment, Filters, NotRegistered, Pace, Produce, Step, Way,
        },
        output::{Batch, Budget, Output, Pool},
        timer::{Mark, TimerKey, TimerQueue, deadline_after},
    };
}
