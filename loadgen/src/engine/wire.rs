//! What the engine needs of the kernel: connections with a message to send each, and events that
//! tell what has become of them. `ring` has it from io_uring, `readiness` from epoll.

use std::{io, ops::Range, os::fd::OwnedFd, time::Duration};

use nix::errno::Errno;

use super::buffers::Lease;

/// What has happened on one connection.
#[derive(Debug)]
pub(super) enum Event {
    Connected {
        slot: usize,
        result: Result<(), Errno>,
    },
    /// How much was sent of what was asked for.
    Sent {
        slot: usize,
        result: Result<usize, Errno>,
    },
    /// `more` says that the receive goes on by itself. No lease means no data: the end, or an error.
    Received {
        slot: usize,
        result: Result<Option<Lease>, Errno>,
        more: bool,
    },
    /// Everything was cancelled, which only the end asks for.
    Cancelled,
}

/// How a connection is put away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Farewell {
    /// As it stands: both sides have said that they are done.
    Close,
    /// By RST, whatever is under way.
    Reset,
}

/// What every wire is told at its beginning.
#[derive(Debug)]
pub(super) struct Plan {
    /// Bytes of outgoing messages that each slot has room for.
    pub(super) outgoing_bytes: Vec<usize>,
    /// Bytes that often come at once.
    pub(super) incoming_bytes: usize,
    /// Whether a receive ends with what it has brought, so that nothing is armed in between.
    pub(super) single_receives: bool,
    /// How many sends are held until they go to the kernel together; what is left goes with the next wait.
    pub(super) burst: usize,
    /// Where sockets are of datagrams: how many slots share each, that of the first of them. Only that one connects and
    /// receives, a datagram at a time.
    pub(super) datagrams: Option<usize>,
}

impl Plan {
    /// How many slots share a socket.
    pub(super) fn sharing(&self) -> usize {
        self.datagrams.unwrap_or(1)
    }
}

/// Connections by slots. A slot has one connection at a time, and one send of it under way.
pub(super) trait Wire {
    /// Starts to connect this slot, which must have no connection.
    fn connect(&mut self, slot: usize, socket: OwnedFd);

    /// Arms the slot's receive.
    fn receive(&mut self, slot: usize);

    /// The outgoing memory of this slot.
    fn outgoing(&self, slot: usize) -> &[u8];

    /// The same, to be changed; None while some of it is being sent.
    fn outgoing_mut(&mut self, slot: usize) -> Option<&mut [u8]>;

    /// Sends this part of the outgoing memory, all of it, when the burst is full or with the next wait.
    fn send(&mut self, slot: usize, part: Range<usize>);

    /// Says that nothing more will be sent.
    fn finish(&mut self, slot: usize);

    /// Puts the connection away. Nothing of it may be under way: no send, and no receive.
    fn close(&mut self, slot: usize, farewell: Farewell);

    fn received(&self, lease: &Lease) -> &[u8];

    fn give_back(&mut self, lease: Lease);

    /// How many receives can find a buffer at once.
    fn buffer_count(&self) -> usize;

    /// Starts what was asked for, and waits until something happens, at most this long.
    fn wait(&mut self, timeout: Duration) -> io::Result<()>;

    /// The next event of those that the last wait brought.
    fn next_event(&mut self) -> Option<Event>;
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read as _},
        net::{TcpListener, TcpStream, UdpSocket},
        time::Instant,
    };

    use super::*;
    use crate::{
        engine::{readiness::Readiness, ring::Ring, sources::Sources},
        error::Error,
        target::Target,
    };

    const BYTES: usize = 8;
    const PATIENCE: Duration = Duration::from_secs(10);

    fn plan(burst: usize, connections: usize) -> Plan {
        Plan {
            outgoing_bytes: vec![BYTES; connections],
            incoming_bytes: BYTES,
            single_receives: false,
            burst,
            datagrams: None,
        }
    }

    /// A wire with connections, and their peers.
    fn connected<W: Wire>(
        make: fn(&Plan, &Target) -> Result<W, Error>,
        burst: usize,
        connections: usize,
    ) -> (W, Vec<TcpStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let target = Target::Tcp(listener.local_addr().expect("bound"));
        let plan = plan(burst, connections);
        let mut wire = make(&plan, &target).expect("this kernel has it");
        let mut sources = Sources::new(&target, 0..connections, false);
        let peer = |slot| {
            wire.connect(slot, sources.socket().expect("a socket"));
            wire.wait(PATIENCE).expect("it waits");
            let event = wire.next_event();
            assert!(matches!(event, Some(Event::Connected { result: Ok(()), .. })), "{event:?}");
            listener.accept().expect("it has connected").0
        };
        let peers = (0..connections).map(peer).collect();
        (wire, peers)
    }

    fn has_arrived(peer: &mut TcpStream, patience: Option<Duration>) -> bool {
        peer.set_nonblocking(patience.is_none()).expect("a socket");
        peer.set_read_timeout(patience).expect("longer than 0");
        match peer.read(&mut [1; BYTES]) {
            Ok(length) => length > 0,
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => panic!("{error}"),
        }
    }

    fn a_burst_is_held_until_it_is_full<W: Wire>(make: fn(&Plan, &Target) -> Result<W, Error>) {
        let (mut wire, mut peers) = connected(make, 2, 2);
        wire.send(0, 0..BYTES);
        assert!(!has_arrived(&mut peers[0], None), "it waits for the second one");
        wire.send(1, 0..BYTES);
        for peer in &mut peers {
            assert!(has_arrived(peer, Some(PATIENCE)), "nobody has waited, and it is there");
        }
    }

    fn what_is_no_full_burst_goes_out_with_the_next_wait<W: Wire>(
        make: fn(&Plan, &Target) -> Result<W, Error>,
    ) {
        let (mut wire, mut peers) = connected(make, 2, 1);
        wire.send(0, 0..BYTES);
        wire.wait(PATIENCE).expect("it waits");
        assert!(has_arrived(&mut peers[0], Some(PATIENCE)));
    }

    /// How long it takes to end a ring with a socket of datagrams that has had an answer and waits for another.
    fn end_of_datagrams() -> Duration {
        let peer = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
        peer.set_read_timeout(Some(PATIENCE)).expect("longer than 0");
        let target = Target::Udp(peer.local_addr().expect("bound"));
        let plan = Plan { datagrams: Some(1), ..plan(1, 1) };
        let mut wire = Ring::new(&plan, &target).expect("this kernel has it");
        wire.connect(0, Sources::new(&target, 0..1, false).socket().expect("a socket"));
        wire.receive(0);
        wire.send(0, 0..BYTES);
        wire.wait(Duration::ZERO).expect("it waits");
        let asker = loop {
            match peer.recv_from(&mut [0; BYTES]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                received => break received.expect("it has sent").1,
            }
        };
        peer.send_to(&[1; BYTES], asker).expect("somebody is there");
        let start = Instant::now();
        let has_come = |event| matches!(event, Event::Received { result: Ok(Some(_)), more: true, .. });
        while !std::iter::from_fn(|| wire.next_event()).any(has_come) {
            assert!(start.elapsed() < PATIENCE, "the answer does not come");
            wire.wait(PATIENCE).expect("it waits");
        }
        let start = Instant::now();
        drop(wire);
        start.elapsed()
    }

    #[test]
    fn sockets_of_datagrams_are_ended_at_once() {
        // The quickest of some: a machine may stall.
        let quickest = (0..5).map(|_| end_of_datagrams()).min();
        assert!(quickest < Some(Duration::from_millis(500)), "{quickest:?}");
    }

    #[test]
    fn bursts_over_io_uring() {
        a_burst_is_held_until_it_is_full(Ring::new);
        what_is_no_full_burst_goes_out_with_the_next_wait(Ring::new);
    }

    #[test]
    fn bursts_over_epoll() {
        a_burst_is_held_until_it_is_full(Readiness::new);
        what_is_no_full_burst_goes_out_with_the_next_wait(Readiness::new);
    }
}
