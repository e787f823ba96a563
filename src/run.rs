//! What a program asks of a reactor: run, listen, connect. Here the user's side meets the drivers.

use std::{
    any::type_name,
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

use crate::{
    address::Address,
    backend::{self, Proactor},
    connector::{ConnectOptions, Connector},
    datagram::{DatagramPort, DatagramProtocol},
    datagram_host,
    datagram_options::{UdpOptions, UnixDatagramOptions},
    driver::call_triggers,
    endpoint::{Client, ClientEndpoint, Server, ServerEndpoint},
    error::Error,
    event_loop,
    factory::{ClientFactory, Factory},
    factory_handle::{FactoryHandle, IntoFactory},
    host::{ClientHooks, HostSeed, caught, drop_quietly},
    id::HostKey,
    network::{Listening, Network, Owner},
    options::Backend,
    port::{ListenOptions, Port, PortSocket},
    reactor::{Command, Reactor, State},
    signals::Subscription,
    sys::{self, DatagramSocket, Listener},
    system_event::{Phase, SystemEvent},
    threaded,
    unix_options::{UnixConnectOptions, UnixListenOptions},
    watches,
};

impl Reactor {
    /// Runs until [`stop`](Self::stop) or a signal: accepts, connects, calls back, on this thread.
    ///
    /// # Errors
    /// If it runs or has run, if its backend cannot be had any more, or if a factory whose port
    /// was to be opened could not start.
    pub fn run(&self) -> Result<(), Error> {
        self.run_once(Self::run_backend)
    }

    /// Runs the loop over a backend that is only memory, for the benchmarks: so many connections, each of which sends this
    /// message once a turn.
    #[doc(hidden)]
    pub fn run_in_memory(&self, connections: u32, message: &[u8]) -> Result<(), Error> {
        self.run_once(|reactor| {
            event_loop::run(reactor.share(), backend::treadmill::open(connections, message))
        })
    }

    fn run_once(&self, run: impl FnOnce(&Self) -> Result<(), Error>) -> Result<(), Error> {
        self.begin_run()?;
        let ended = run(self);
        self.end_run();
        ended
    }

    /// What comes before a driver runs.
    pub(crate) fn begin_run(&self) -> Result<(), Error> {
        let core = &self.core;
        if !core.change_state(State::New, State::Running) {
            return Err(Error::AlreadyRunning);
        }
        call_triggers(self, SystemEvent::Startup, Phase::Before);
        call_triggers(self, SystemEvent::Startup, Phase::During);
        for call in core.system_events.take(SystemEvent::Startup, Phase::After) {
            self.push(Command::Call(call));
        }
        Ok(())
    }

    /// What comes when a driver has ended.
    pub(crate) fn end_run(&self) {
        let core = &self.core;
        core.threads.close().into_iter().for_each(drop_quietly);
        core.threads.join();
        if core.system_events.has_stop_begun() {
            call_triggers(self, SystemEvent::Shutdown, Phase::After);
        }
        core.change_state(State::Running, State::Stopping);
        core.change_state(State::Stopping, State::Stopped);
        end_the_rest(self);
        log::info!("Main loop terminated.");
    }

    fn run_backend(&self) -> Result<(), Error> {
        let core = &self.core;
        let _signals = if core.config.signals {
            let subscribed = Subscription::new(core.number, &core.waker);
            Some(subscribed.map_err(Error::system("installing the signal handlers"))?)
        } else {
            None
        };
        log::info!("reactor {}: {}", core.number, core.info);
        if core.info.backend == Backend::Threads {
            return threaded::run(self.share());
        }
        event_loop::run(self.share(), self.proactor()?)
    }

    fn proactor(&self) -> Result<Box<dyn Proactor>, Error> {
        let core = &self.core;
        let (counters, waker) = (Arc::clone(&core.counters), Arc::clone(&core.waker));
        match (core.info.backend, core.info.tier) {
            (Backend::IoUring, Some(tier)) => backend::uring::open(&core.config.uring, tier, counters, waker),
            _ => backend::epoll::open(counters, waker),
        }
    }

    /// Gives a factory to the reactor, to share it among several ports and connectors.
    pub fn add_factory<F: Factory>(&self, factory: F) -> FactoryHandle<F> {
        let key = HostKey(self.core.next_key());
        let seed = Box::new(HostSeed(Box::new(factory)));
        self.push(Command::AddHost(key, factory_name::<F>(), seed));
        FactoryHandle::new(&self.core, key)
    }

    /// Listens where a string says, and serves that with this factory: see [`ServerEndpoint`].
    ///
    /// ```no_run
    /// # use ringspun::{Cx, Error, Protocol, Reactor, Serve};
    /// # struct Echo;
    /// # impl<F> Protocol<F> for Echo { fn data_received(&mut self, _: &mut Cx<'_, F>, _: &[u8]) {} }
    /// # fn serve(reactor: &Reactor) -> Result<(), Error> {
    /// reactor.listen("tcp:8000:interface=127.0.0.1", Serve(|| Echo))?;
    /// reactor.listen("unix:/run/echo.sock:mode=660", Serve(|| Echo))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// At once, if the string has a mistake in it or the port cannot be had. A socket that this process was started with can be
    /// had once.
    ///
    /// # Panics
    /// If the factory's handle belongs to another reactor.
    pub fn listen<E: TryInto<ServerEndpoint>, F: Factory>(
        &self,
        endpoint: E,
        factory: impl IntoFactory<F>,
    ) -> Result<Port, Error>
    where
        Error: From<E::Error>,
    {
        let endpoint = endpoint.try_into()?;
        let kernel = self.in_kernel();
        let passed = match &endpoint.0 {
            Server::Tcp { port, interface, backlog, reuse_port } => {
                let mut options = ListenOptions::from((*interface, *port)).reuse_port(*reuse_port);
                options.backlog = backlog.unwrap_or(options.backlog);
                return self.listen_tcp(options, factory);
            }
            Server::Unix { address, mode, backlog } => {
                let mut options = UnixListenOptions::from(address.clone());
                options.backlog = backlog.unwrap_or(options.backlog);
                options.mode = *mode;
                return self.listen_unix(options, factory);
            }
            Server::Systemd { domain, socket } => {
                kernel.and_then(|()| sys::take_passed(socket, |socket| Listener::check(socket, *domain)))
            }
            Server::Fd(number) => {
                kernel.and_then(|()| sys::take_descriptor(*number, |socket| Listener::check(socket, None)))
            }
        };
        let listener = passed.and_then(Listener::adopt).and_then(with_address);
        self.serve(listener.map_err(|cause| cannot_listen(endpoint.to_string(), cause))?, factory)
    }

    /// Listens on a TCP port and serves it with this factory.
    ///
    /// ```no_run
    /// # use ringspun::{Cx, Protocol, Reactor, Serve};
    /// # struct Echo;
    /// # impl<F> Protocol<F> for Echo { fn data_received(&mut self, _: &mut Cx<'_, F>, _: &[u8]) {} }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let reactor = Reactor::builder().build()?;
    /// let port = reactor.listen_tcp(("127.0.0.1", 0), Serve(|| Echo))?;
    /// println!("listening on {}", port.get_host());
    /// reactor.run()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// At once, if the port cannot be had: it names interface, port and cause.
    ///
    /// # Panics
    /// If the factory's handle belongs to another reactor.
    pub fn listen_tcp<F: Factory>(
        &self,
        options: impl Into<ListenOptions>,
        factory: impl IntoFactory<F>,
    ) -> Result<Port, Error> {
        let options = options.into();
        let bound = options.address().and_then(|address| match &self.core.network {
            Some(network) => bind_in_memory(network, address.into(), options.backlog, options.reuse_port),
            None => with_address(Listener::bind_tcp(address, options.backlog, options.reuse_port)?),
        });
        self.serve(bound.map_err(|cause| cannot_listen(options.describe(), cause))?, factory)
    }

    /// Listens on a Unix stream socket and serves it with this factory. A socket file that a process has left behind is taken over;
    /// the port's end removes the file.
    ///
    /// ```no_run
    /// # use ringspun::{Cx, Error, Protocol, Reactor, Serve, UnixListenOptions};
    /// # struct Echo;
    /// # impl<F> Protocol<F> for Echo { fn data_received(&mut self, _: &mut Cx<'_, F>, _: &[u8]) {} }
    /// # fn serve(reactor: &Reactor) -> Result<(), Error> {
    /// reactor.listen_unix(UnixListenOptions::from("/run/echo.sock").mode(0o660), Serve(|| Echo))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// At once, if the name cannot be had: somebody listens there, the file is no socket, the name is too long.
    ///
    /// # Panics
    /// If the factory's handle belongs to another reactor.
    pub fn listen_unix<F: Factory>(
        &self,
        options: impl Into<UnixListenOptions>,
        factory: impl IntoFactory<F>,
    ) -> Result<Port, Error> {
        let UnixListenOptions { address, backlog, mode } = options.into();
        let bound = match &self.core.network {
            Some(network) => bind_in_memory(network, address.clone().into(), backlog, false),
            None => Listener::bind_unix(&address, backlog, mode).and_then(with_address),
        };
        self.serve(bound.map_err(|cause| cannot_listen(address.to_string(), cause))?, factory)
    }

    /// Serves a TCP or Unix socket that listens already, as another process has handed it over (Twisted's `adoptStreamPort`). What options it
    /// has are not touched, but for `O_NONBLOCK`, which all who share it share.
    ///
    /// # Errors
    /// If it is no stream socket, or does not listen.
    ///
    /// # Panics
    /// If the factory's handle belongs to another reactor.
    pub fn adopt_stream_port<F: Factory>(
        &self,
        socket: OwnedFd,
        factory: impl IntoFactory<F>,
    ) -> Result<Port, Error> {
        let descriptor = socket.as_raw_fd();
        let listener = self.in_kernel().and_then(|()| Listener::adopt(socket)).and_then(with_address);
        self.serve(listener.map_err(|cause| Error::CannotAdopt { descriptor, cause })?, factory)
    }

    /// Serves a TCP or Unix connection that has been made already, as another process has handed it over (Twisted's
    /// `adoptStreamConnection`). The factory builds its protocol as for one that a port has accepted.
    ///
    /// # Errors
    /// If it is no connected stream socket.
    ///
    /// # Panics
    /// If the factory's handle belongs to another reactor.
    pub fn adopt_stream_connection<F: Factory>(
        &self,
        socket: OwnedFd,
        factory: impl IntoFactory<F>,
    ) -> Result<(), Error> {
        self.in_kernel()
            .and_then(|()| sys::check_connected(&socket))
            .map_err(|cause| Error::CannotAdopt { descriptor: socket.as_raw_fd(), cause })?;
        let handle = self.own(factory.into_handle(self));
        // A connector that has just been made is disconnected, so it can connect.
        let _ = Connector::adopting(&self.core, handle.token(), socket).connect();
        Ok(())
    }

    fn serve<F: Factory>(
        &self,
        (listener, address): (Listening, Address),
        factory: impl IntoFactory<F>,
    ) -> Result<Port, Error> {
        let handle = self.own(factory.into_handle(self));
        let name = factory_name::<F>();
        let socket = PortSocket::Stream(listener);
        let port = Port::new(&self.core, handle.key(), name, handle.token().guard(), socket, address);
        log::info!("{name} starting on {}", port.name());
        self.push(Command::Listen(port.clone()));
        Ok(port)
    }

    /// Receives UDP on a port, for this protocol.
    ///
    /// ```no_run
    /// # use ringspun::{Address, DatagramCx, DatagramProtocol, Error, Reactor};
    /// # struct Echo;
    /// # impl DatagramProtocol for Echo { fn datagram_received(&mut self, _: &mut DatagramCx<'_, Self>, _: &[u8], _: &Address) {} }
    /// # fn serve(reactor: &Reactor) -> Result<(), Error> {
    /// let port = reactor.listen_udp(("127.0.0.1", 0), Echo)?;
    /// println!("receiving on {}", port.get_host());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// At once, if the port cannot be had: it names interface, port and cause.
    pub fn listen_udp<P: DatagramProtocol>(
        &self,
        options: impl Into<UdpOptions>,
        protocol: P,
    ) -> Result<DatagramPort<P>, Error> {
        let UdpOptions { at, share, max_packet_size } = options.into();
        let address = self.in_kernel().and_then(|()| at.address());
        let socket = address.and_then(|address| DatagramSocket::bind_udp(address, share));
        self.receive(socket, || at.describe(), max_packet_size, protocol)
    }

    /// Receives datagrams on a Unix socket, for this protocol. A socket file that a process has left behind is taken over; the
    /// port's end removes the file.
    ///
    /// # Errors
    /// At once, if the name cannot be had: somebody has it, the file is no socket, the name is too long.
    pub fn listen_unix_datagram<P: DatagramProtocol>(
        &self,
        options: impl Into<UnixDatagramOptions>,
        protocol: P,
    ) -> Result<DatagramPort<P>, Error> {
        let UnixDatagramOptions { address, mode, max_packet_size } = options.into();
        let socket = self.in_kernel().and_then(|()| DatagramSocket::bind_unix(&address, mode));
        self.receive(socket, || address.to_string(), max_packet_size, protocol)
    }

    /// Receives on a UDP or Unix datagram socket that somebody else has bound (Twisted's `adoptDatagramPort`), datagrams of
    /// at most so many bytes.
    ///
    /// # Errors
    /// If it is no datagram socket.
    pub fn adopt_datagram_port<P: DatagramProtocol>(
        &self,
        socket: OwnedFd,
        max_packet_size: usize,
        protocol: P,
    ) -> Result<DatagramPort<P>, Error> {
        let descriptor = socket.as_raw_fd();
        let socket = self.in_kernel().and_then(|()| DatagramSocket::adopt(socket));
        let socket = socket.map_err(|cause| Error::CannotAdopt { descriptor, cause })?;
        self.receive(Ok(socket), || format!("descriptor {descriptor}"), max_packet_size, protocol)
    }

    fn receive<P: DatagramProtocol>(
        &self,
        socket: io::Result<DatagramSocket>,
        describe: impl Fn() -> String,
        max_packet_size: usize,
        protocol: P,
    ) -> Result<DatagramPort<P>, Error> {
        if max_packet_size == 0 {
            return Err(Error::Option {
                option: "max_packet_size",
                cause: "must be 1 byte at least".to_owned(),
            });
        }
        let named = socket.and_then(|socket| Ok((socket.address()?, socket)));
        let (address, socket) = named.map_err(|cause| cannot_listen(describe(), cause))?;
        // Room for more than any datagram has would never be used.
        let max_packet_size = max_packet_size.min(socket.receive_max());
        let (name, socket) = (factory_name::<P>(), PortSocket::Datagram(Arc::new(socket)));
        // No factory stands behind it, so the key of one is nobody's.
        let port = Port::new(&self.core, HostKey(self.core.next_key()), name, None, socket, address);
        log::info!("{name} starting on {}", port.name());
        self.push(Command::OpenDatagrams(port.clone(), datagram_host::seed(protocol), max_packet_size));
        Ok(DatagramPort::new(&self.core, port))
    }

    /// Connects where a string says: see [`ClientEndpoint`]. The factory builds the protocol and is told how it goes.
    ///
    /// # Errors
    /// If the string has a mistake in it.
    ///
    /// # Panics
    /// If the factory's handle belongs to another reactor.
    pub fn connect<E: TryInto<ClientEndpoint>, F: ClientFactory>(
        &self,
        endpoint: E,
        factory: impl IntoFactory<F>,
    ) -> Result<Connector, Error>
    where
        Error: From<E::Error>,
    {
        let endpoint: ClientEndpoint = endpoint.try_into()?;
        let (mut options, timeout) = match endpoint.0 {
            Client::Tcp { host, port, timeout, bind } => {
                let mut options = ConnectOptions::from((host, port));
                options.bind = bind.map(|local| (local, 0).into());
                (options, timeout)
            }
            Client::Unix { path, timeout } => (UnixConnectOptions::from(path).into(), timeout),
        };
        options.timeout = timeout.unwrap_or(options.timeout);
        Ok(self.dial(options, factory))
    }

    /// Connects to a TCP port; the factory builds the protocol and is told how it goes.
    ///
    /// # Panics
    /// If the factory's handle belongs to another reactor.
    pub fn connect_tcp<F: ClientFactory>(
        &self,
        options: impl Into<ConnectOptions>,
        factory: impl IntoFactory<F>,
    ) -> Connector {
        self.dial(options.into(), factory)
    }

    /// Connects to a Unix stream socket; the factory builds the protocol and is told how it goes.
    ///
    /// # Panics
    /// If the factory's handle belongs to another reactor.
    pub fn connect_unix<F: ClientFactory>(
        &self,
        options: impl Into<UnixConnectOptions>,
        factory: impl IntoFactory<F>,
    ) -> Connector {
        self.dial(options.into().into(), factory)
    }

    fn dial<F: ClientFactory>(&self, options: ConnectOptions, factory: impl IntoFactory<F>) -> Connector {
        let handle = self.own(factory.into_handle(self));
        let hooks = Box::new(ClientHooks::<F>::new());
        self.push(Command::SetHooks(handle.key(), hooks));
        let connector = Connector::new(&self.core, handle.token(), options);
        // A connector that has just been made is disconnected, so it can connect.
        let _ = connector.connect();
        if self.core.state() == State::Stopped {
            connector.set_disconnected();
        }
        connector
    }

    /// A handle of another reactor would name a stranger's factory here.
    fn own<F>(&self, handle: FactoryHandle<F>) -> FactoryHandle<F> {
        assert!(handle.belongs_to(&self.core), "this FactoryHandle belongs to another reactor");
        handle
    }
}

/// Binds in a network that is only memory.
fn bind_in_memory(
    network: &Arc<Network>,
    address: Address,
    backlog: u32,
    share: bool,
) -> io::Result<(Listening, Address)> {
    let (listener, address) = network.bind(Owner::Reactor, address, backlog, share)?;
    Ok((Listening::Memory(Arc::new(listener)), address))
}

fn with_address(listener: Listener) -> io::Result<(Listening, Address)> {
    let address = listener.address()?;
    Ok((Listening::Socket(Arc::new(listener)), address))
}

fn cannot_listen(address: String, cause: io::Error) -> Error {
    Error::CannotListen { address, cause }
}

fn end_port(reactor: &Reactor, port: &Port) {
    port.end(None).into_iter().for_each(|call| {
        let _ = caught(|| call(reactor, None));
    });
}

/// Ends what was queued and will never run. Dropping it may queue more, which is dropped at once.
fn end_the_rest(reactor: &Reactor) {
    let core = &reactor.core;
    let timers = std::mem::take(&mut *core.timers());
    timers.into_values().for_each(drop_quietly);
    core.system_events.take_rest().into_iter().for_each(drop_quietly);
    let mut commands = Default::default();
    core.take_inbox(&mut commands);
    for command in commands {
        match command {
            Command::Listen(port) => end_port(reactor, &port),
            Command::OpenDatagrams(port, seed, _) => {
                drop_quietly(seed);
                end_port(reactor, &port);
            }
            Command::Connect(connector) => connector.set_disconnected(),
            Command::AddDescriptor(new) => watches::lose_unwatched(new, reactor),
            other => drop_quietly(other),
        }
    }
}

/// A factory's type without its path and parameters: `EchoFactory`.
fn factory_name<F>() -> &'static str {
    let name = type_name::<F>();
    let name = name.split_once('<').map_or(name, |(name, _)| name);
    name.rsplit_once("::").map_or(name, |(_, name)| name)
}
