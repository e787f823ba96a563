//! The protocol of a port for datagrams, as the drivers see it: what an event becomes for it.

use std::sync::Arc;

use crate::{
    address::Address,
    datagram::{DatagramCall, DatagramCx, DatagramEnd, DatagramProtocol},
    error::Errno,
    host::{caught, drop_quietly},
    port::Port,
    protocol::ErasedCall,
    reactor::Reactor,
    sys::{DatagramSocket, Datagrams},
};

/// Something to tell a protocol.
pub(crate) enum DatagramEvent<'a> {
    Start,
    Received(&'a [u8], &'a Address),
    Refused,
    SendFailed(Option<&'a Address>, Errno),
    Stop,
    /// A timer or a post.
    Call(ErasedCall),
}

/// A protocol of any type.
trait DatagramHost: Send {
    /// Calls the protocol's method for this event; a panic is logged, and that is all.
    fn tell(&mut self, end: &mut DatagramEnd, reactor: &Reactor, event: DatagramEvent<'_>);
}

/// As it travels through the reactor's queue.
pub(crate) fn seed(protocol: impl DatagramProtocol) -> ErasedCall {
    let host: Box<dyn DatagramHost> = Box::new(Served(protocol));
    Box::new(host)
}

/// What [`seed`] made.
fn grow(seed: ErasedCall) -> Option<Box<dyn DatagramHost>> {
    seed.downcast().ok().map(|host| *host)
}

/// A port for datagrams that is open, as a driver keeps it.
pub(crate) struct OpenDatagrams {
    end: DatagramEnd,
    host: Box<dyn DatagramHost>,
    /// It has been logged that one was too long.
    told_too_long: bool,
}

impl OpenDatagrams {
    /// None if the port was stopped before.
    pub(crate) fn new(port: Port, seed: ErasedCall, outgoing_max: usize) -> Option<Self> {
        let Some(socket) = port.datagram_socket() else {
            drop_quietly(seed);
            return None;
        };
        let host = grow(seed)?;
        let (outgoing, timers) = (Datagrams::default(), Vec::new());
        let end = DatagramEnd { port, socket, outgoing, outgoing_max, timers };
        Some(Self { end, host, told_too_long: false })
    }

    pub(crate) fn port(&self) -> &Port {
        &self.end.port
    }

    pub(crate) fn socket(&self) -> &Arc<DatagramSocket> {
        &self.end.socket
    }

    pub(crate) fn tell(&mut self, reactor: &Reactor, event: DatagramEvent<'_>) {
        self.host.tell(&mut self.end, reactor, event);
    }

    /// A datagram has arrived, without its data if it was too long. A port that was stopped hears of none.
    pub(crate) fn received(&mut self, reactor: &Reactor, from: &Address, data: Option<&[u8]>) {
        match data {
            _ if self.end.port.is_stopped() => {}
            Some(data) => self.tell(reactor, DatagramEvent::Received(data, from)),
            None if std::mem::replace(&mut self.told_too_long, true) => {}
            None => log::warn!(
                "{} dropped a datagram of {from} that is longer than its max_packet_size; raise that (said once)",
                self.end.port.label()
            ),
        }
    }

    /// The socket holds an error.
    pub(crate) fn failed(&mut self, reactor: &Reactor, errno: Errno) {
        if self.end.port.is_stopped() {
            return;
        }
        if errno.raw() == libc::ECONNREFUSED {
            return self.tell(reactor, DatagramEvent::Refused);
        }
        log::error!("{} could not receive: {errno}", self.end.port.label());
    }

    /// These were sent, but for those that failed.
    pub(crate) fn sent(&mut self, reactor: &Reactor, sent: &Datagrams, failed: &[(u32, Errno)]) {
        for (at, errno) in failed {
            match sent.address(*at as usize) {
                // It is an earlier one that nobody was there for.
                None if errno.raw() == libc::ECONNREFUSED => self.tell(reactor, DatagramEvent::Refused),
                to => self.tell(reactor, DatagramEvent::SendFailed(to.as_ref(), *errno)),
            }
        }
    }

    /// Whether something waits to be sent.
    pub(crate) fn has_outgoing(&self) -> bool {
        !self.end.outgoing.is_empty()
    }

    /// Takes what waits to be sent, for which these, all empty, are left.
    pub(crate) fn swap_outgoing(&mut self, spare: &mut Datagrams) {
        std::mem::swap(&mut self.end.outgoing, spare);
    }

    /// Tells the protocol that the port has ended, and drops it with what it has scheduled.
    pub(crate) fn stop(mut self, reactor: &Reactor) -> Port {
        self.tell(reactor, DatagramEvent::Stop);
        for key in std::mem::take(&mut self.end.timers) {
            // The lock is let go before the call is dropped: what it captured may run any code.
            let call = reactor.core.timers().remove(key);
            drop_quietly(call);
        }
        let Self { end, host, .. } = self;
        log::info!("({} Closed)", end.port.label());
        drop_quietly(host);
        end.port
    }
}

struct Served<P>(P);

impl<P: DatagramProtocol> DatagramHost for Served<P> {
    fn tell(&mut self, end: &mut DatagramEnd, reactor: &Reactor, event: DatagramEvent<'_>) {
        let protocol = &mut self.0;
        let mut cx = DatagramCx::new(end, reactor);
        let _ = caught(|| match event {
            DatagramEvent::Start => protocol.start_protocol(&mut cx),
            DatagramEvent::Received(data, from) => protocol.datagram_received(&mut cx, data, from),
            DatagramEvent::Refused => protocol.connection_refused(&mut cx),
            DatagramEvent::SendFailed(to, errno) => protocol.send_failed(&mut cx, to, errno),
            DatagramEvent::Stop => protocol.stop_protocol(&mut cx),
            DatagramEvent::Call(call) => {
                if let Ok(call) = call.downcast::<DatagramCall<P>>() {
                    (call.0)(protocol, &mut cx);
                }
            }
        });
    }
}
