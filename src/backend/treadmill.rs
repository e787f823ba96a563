//! A kernel of which only the motions are left: every connection of the first port sends the same message once a turn, and
//! takes whatever it gets. What a reactor spends over it is the loop alone, which `bench/loop_in_memory.rs` measures.

use std::{collections::VecDeque, io, os::fd::BorrowedFd, os::fd::OwnedFd, sync::Arc, time::Duration};

use super::{
    Datagram, DatagramBatch, Event, Proactor, Sent, Sockets,
    watching::{Interest, Watcher},
};
use crate::{
    error::Errno,
    id::{ConnId, PortKey, WatchKey},
    network::Listening,
    output::Batch,
    sys::{DatagramSocket, Name, Socket, watched_file::WatchedFile},
};

/// See the top of this file.
pub(crate) struct Treadmill {
    connections: u32,
    message: Vec<u8>,
    reading: Vec<ConnId>,
    /// The connections that send in this turn and have not been heard yet.
    speaking: usize,
    sent: Vec<(ConnId, Box<Batch>)>,
    ready: VecDeque<Event<'static>>,
    sockets: Nowhere,
}

/// There are no descriptors in memory.
struct Nowhere;

impl Sockets for Nowhere {
    fn lend(&mut self, _id: ConnId, _ask: &mut dyn FnMut(BorrowedFd<'_>)) -> io::Result<()> {
        Err(io::ErrorKind::NotConnected.into())
    }
}

/// So many connections, and what each of them says once a turn.
pub(crate) fn open(connections: u32, message: &[u8]) -> Box<dyn Proactor> {
    Box::new(Treadmill {
        connections,
        message: message.to_vec(),
        reading: Vec::new(),
        speaking: 0,
        sent: Vec::new(),
        ready: VecDeque::new(),
        sockets: Nowhere,
    })
}

/// Nothing outside of the memory is ever ready.
impl Watcher for Treadmill {
    fn watch(&mut self, _key: WatchKey, _file: &Arc<WatchedFile>, _interest: Interest) {}
}

impl Proactor for Treadmill {
    fn listen(&mut self, port: PortKey, _listener: Listening) {
        for place in 0..std::mem::take(&mut self.connections) {
            self.ready.push_back(Event::Accepted { port, socket: Socket::Direct(place) });
        }
    }

    fn accept_again(&mut self, _port: PortKey) {}

    fn shed(&mut self, _port: PortKey) -> usize {
        0
    }

    fn unlisten(&mut self, port: PortKey) {
        self.ready.push_back(Event::Unlistened { port });
    }

    fn connect(&mut self, id: ConnId, _socket: OwnedFd, _name: &Name) {
        let errno = Some(Errno::from_raw(libc::ENETUNREACH));
        self.ready.push_back(Event::Connected { id, errno });
    }

    fn adopt(&mut self, _id: ConnId, _socket: Socket) {}

    fn refuse(&mut self, _socket: Socket) {}

    fn receive_descriptors(&mut self, _id: ConnId) {}

    fn read(&mut self, id: ConnId, on: bool) {
        if on {
            self.reading.push(id);
        } else {
            self.reading.retain(|reading| *reading != id);
        }
    }

    fn queues_sends(&self) -> bool {
        true
    }

    fn send(&mut self, id: ConnId, batch: Box<Batch>) -> Option<Sent> {
        self.sent.push((id, batch));
        None
    }

    fn hurry(&mut self, _id: ConnId) {}

    fn shutdown_write(&mut self, id: ConnId) {
        self.ready.push_back(Event::End { id, errno: None });
    }

    fn close(&mut self, id: ConnId, _reset: bool) {
        self.read(id, false);
        self.sent.retain(|(sent, _)| *sent != id);
        self.ready.push_back(Event::Closed { id });
    }

    fn open_datagrams(&mut self, _port: PortKey, _socket: Arc<DatagramSocket>, _max_packet_size: usize) {}

    fn send_datagrams(&mut self, _port: PortKey, batch: Box<DatagramBatch>) -> Option<Box<DatagramBatch>> {
        Some(batch)
    }

    fn take_datagram(&mut self, _port: PortKey) -> Option<Datagram<'_>> {
        None
    }

    fn close_datagrams(&mut self, port: PortKey) {
        self.ready.push_back(Event::Unlistened { port });
    }

    fn wait(&mut self, _timeout: Duration) -> io::Result<()> {
        self.speaking = self.reading.len();
        Ok(())
    }

    fn next(&mut self) -> Option<(Event<'_>, &mut dyn Sockets)> {
        let event = if let Some(event) = self.ready.pop_front() {
            event
        } else if let Some((id, mut batch)) = self.sent.pop() {
            let bytes = batch.len();
            batch.advance(bytes);
            Event::Sent { id, sent: Sent { batch, bytes, errno: None } }
        } else {
            self.speaking = self.speaking.min(self.reading.len()).checked_sub(1)?;
            Event::Data { id: self.reading[self.speaking], data: &self.message }
        };
        Some((event, &mut self.sockets))
    }

    fn sockets(&mut self) -> &mut dyn Sockets {
        &mut self.sockets
    }
}
