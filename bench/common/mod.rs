//! An echo server in a thread, and blocking clients.

use std::{
    io::{Read, Write as _},
    net::{Ipv4Addr, TcpStream},
    sync::{Arc, Barrier},
    thread::{self, JoinHandle},
    time::Duration,
};

use ringspun::{Cx, Error, Protocol, ReactorBuilder, ReactorHandle, Serve, Write};

pub(crate) const MESSAGE: [u8; 64] = [b'm'; 64];

struct Echo;

impl<F> Protocol<F> for Echo {
    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        if cx.transport.write(data) == Write::Full {
            cx.transport.pause_producing();
        }
    }

    fn resume_writing(&mut self, cx: &mut Cx<'_, F>) {
        cx.transport.resume_producing();
    }
}

/// A server at work; it ends when dropped.
pub(crate) struct Server {
    pub(crate) reactor: ReactorHandle,
    port: u16,
    running: Option<JoinHandle<Result<(), Error>>>,
}

impl Server {
    pub(crate) fn start(builder: ReactorBuilder) -> Self {
        let reactor = builder.signals(false).build().expect("this backend works here");
        let port = reactor.listen_tcp(("127.0.0.1", 0), Serve(|| Echo)).expect("some port is free");
        let port = port.get_host().port().expect("a TCP port has a number");
        let handle = reactor.handle();
        let running = Some(thread::spawn(move || reactor.run()));
        Self { reactor: handle, port, running }
    }

    pub(crate) fn connect(&self, connections: usize) -> Clients {
        Clients((0..connections).map(|_| connect(self.port)).collect())
    }

    /// Has the reactor stand still while `act` runs, so that it meets all of it at once.
    #[allow(dead_code, reason = "each benchmark compiles this module for itself")]
    pub(crate) fn hold(&self, act: impl FnOnce()) {
        let (held, over) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
        let (holding, until) = (Arc::clone(&held), Arc::clone(&over));
        self.reactor.call_from_thread(move |_| {
            holding.wait();
            until.wait();
        });
        held.wait();
        act();
        over.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let stopped = self.reactor.stop();
        let ended = self.running.take().map(JoinHandle::join);
        let well = stopped.is_ok() && matches!(ended, Some(Ok(Ok(()))));
        assert!(well || thread::panicking(), "the server ended badly: {ended:?}");
    }
}

/// Connections that ask one after the other and then read the answers.
pub(crate) struct Clients(Vec<TcpStream>);

impl Clients {
    pub(crate) fn ask(&mut self) {
        self.0.iter_mut().for_each(|client| client.write_all(&MESSAGE).expect("the server takes it"));
    }

    pub(crate) fn answers(&mut self) {
        let mut answer = [0; MESSAGE.len()];
        self.0.iter_mut().for_each(|client| client.read_exact(&mut answer).expect("the server answers"));
    }
}

fn connect(port: u16) -> TcpStream {
    let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the server listens");
    client.set_nodelay(true).expect("TCP has this option");
    client.set_read_timeout(Some(Duration::from_secs(20))).expect("sockets have this option");
    client
}
