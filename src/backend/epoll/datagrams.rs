//! Ports for datagrams: level-triggered, many datagrams to a call, one call a port and turn.

use std::{collections::BTreeMap, sync::Arc};

use nix::sys::epoll::EpollEvent;

use crate::{
    backend::{Datagram, DatagramBatch, Event},
    error::Errno,
    id::PortKey,
    stats::{Counters, Syscall},
    sys::{DatagramSocket, Inbox},
};

/// The ports, each with what it has received and not told yet.
#[derive(Default)]
pub(super) struct DatagramPorts {
    open: BTreeMap<PortKey, (Arc<DatagramSocket>, Inbox)>,
    /// The port whose inbox is being told.
    telling: Option<PortKey>,
}

impl DatagramPorts {
    pub(super) fn open(&mut self, port: PortKey, socket: Arc<DatagramSocket>, max_packet_size: usize) {
        self.open.insert(port, (socket, Inbox::new(max_packet_size)));
    }

    pub(super) fn close(&mut self, port: PortKey) -> Option<Arc<DatagramSocket>> {
        self.open.remove(&port).map(|(socket, _)| socket)
    }

    /// Receives what the port of this event has; answers what went wrong.
    pub(super) fn receive(&mut self, event: EpollEvent, counters: &Counters) -> Option<Event<'static>> {
        let port = PortKey(event.data() as u32);
        let (socket, inbox) = self.open.get_mut(&port)?;
        counters.call(Syscall::Recvmmsg);
        match socket.receive(inbox).map_err(Errno::raw) {
            Ok(()) => {
                self.telling = Some(port);
                None
            }
            Err(libc::EAGAIN | libc::EINTR) => None,
            Err(raw) => Some(Event::DatagramsFailed { port, errno: Errno::from_raw(raw) }),
        }
    }

    /// Whether something in an inbox is to be told.
    pub(super) fn next_event(&mut self) -> Option<Event<'static>> {
        let port = self.telling?;
        let waits = self.open.get(&port).is_some_and(|(_, inbox)| !inbox.is_empty());
        if !waits {
            self.telling = None;
        }
        waits.then_some(Event::Datagram { port })
    }

    pub(super) fn take(&mut self, port: PortKey) -> Option<Datagram<'_>> {
        self.open.get_mut(&port)?.1.take()
    }

    /// Sends these. Gives them back, with those that failed.
    pub(super) fn send(
        &self,
        port: PortKey,
        mut batch: Box<DatagramBatch>,
        counters: &Counters,
    ) -> Box<DatagramBatch> {
        if let Some((socket, _)) = self.open.get(&port) {
            let DatagramBatch { datagrams, failed } = &mut *batch;
            socket.send(datagrams, failed, || counters.call(Syscall::Sendmmsg));
        }
        batch
    }
}
