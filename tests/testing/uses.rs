//! The kit as programs use it: a protocol of lines, a time-out, a client that connects again.

use std::time::Duration;

use ringspun::{
    ClientFactory, ConnectError, Connector, Cx, DelayedCall, Factory, FactoryCx, Peer, Protocol, Reason,
    Reconnector, Serve,
    policies::{Policies, Throttle},
    protocols::{LineBuffer, LineReceiver},
    testing::{End, MemoryReactor},
};

use crate::Journal;

/// How long a client may say nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// What follows the line "raw" is no lines for so many bytes.
const RAW: usize = 6;

/// Answers each line with its length, and closes where none comes for too long.
#[derive(Default)]
struct Lengths {
    lines: LineBuffer,
    raw: usize,
    timeout: Option<DelayedCall>,
}

struct LengthsFactory;

impl Factory for LengthsFactory {
    type Protocol = Lengths;

    fn build_protocol(&mut self, _peer: &mut Peer<'_>) -> Option<Lengths> {
        Some(Lengths::default())
    }
}

impl Protocol<LengthsFactory> for Lengths {
    fn connection_made(&mut self, cx: &mut Cx<'_, LengthsFactory>) {
        self.timeout = Some(cx.call_later(PATIENCE, |_, cx| cx.transport.abort_connection()));
    }

    fn data_received(&mut self, cx: &mut Cx<'_, LengthsFactory>, data: &[u8]) {
        self.receive_lines(cx, data);
    }
}

impl LineReceiver<LengthsFactory> for Lengths {
    fn line_buffer(&mut self) -> &mut LineBuffer {
        &mut self.lines
    }

    fn line_received(&mut self, cx: &mut Cx<'_, LengthsFactory>, line: &[u8]) {
        if line == b"raw" {
            self.raw = RAW;
            self.lines.set_raw_mode();
        }
        self.timeout.as_ref().map_or(Ok(()), |timeout| timeout.reset(PATIENCE)).unwrap();
        cx.transport.write_with(|out| write!(out, "{}\r\n", line.len()));
    }

    fn raw_data_received(&mut self, cx: &mut Cx<'_, LengthsFactory>, data: &[u8]) {
        let (raw, lines) = data.split_at(self.raw.min(data.len()));
        let _ = cx.transport.write(raw);
        self.raw -= raw.len();
        if self.raw == 0 {
            self.lines.set_line_mode(lines);
        }
    }
}

#[test]
fn m1_a_protocol_of_lines_is_fed_byte_by_byte() {
    let mut memory = MemoryReactor::new();
    let port = memory.reactor().listen_tcp(8000, LengthsFactory).unwrap();
    for segment in 1..10 {
        memory.set_segment_bytes(segment);
        let mut peer = memory.connect(&port).unwrap();
        peer.send(b"one\r\n\r\nthree and \r a half\r\nraw\r\na\r\nb\r\nlast\r\nunfinished");
        memory.turn();
        assert_eq!(peer.take_received(), b"3\r\n0\r\n18\r\n3\r\na\r\nb\r\n4\r\n", "{segment} at once");
    }
}

#[test]
fn m2_a_client_that_says_nothing_is_cut_off_without_waiting() {
    let mut memory = MemoryReactor::new();
    let port = memory.reactor().listen_tcp(8000, LengthsFactory).unwrap();
    let (mut talker, silent) = (memory.connect(&port).unwrap(), memory.connect(&port).unwrap());
    memory.advance(PATIENCE / 2);
    talker.send(b"still here\r\n");
    memory.advance(PATIENCE / 2 - Duration::from_nanos(1));
    assert_eq!((talker.end(), silent.end()), (None, None));
    memory.advance(Duration::from_nanos(1));
    assert_eq!((talker.end(), silent.end()), (None, Some(End::Reset)));
    memory.advance(PATIENCE / 2);
    assert_eq!(talker.end(), Some(End::Reset));
    assert_eq!(memory.pending_calls(), 0);
}

/// Connects again, with the delays of a `Reconnector`, which it notes.
struct Again {
    reconnector: Reconnector,
    journal: Journal,
}

struct Quiet;

impl Factory for Again {
    type Protocol = Quiet;

    fn build_protocol(&mut self, _peer: &mut Peer<'_>) -> Option<Quiet> {
        self.reconnector.reset_delay();
        Some(Quiet)
    }
}

impl Again {
    fn retry(&mut self, cx: &FactoryCx<'_, Self>, connector: &Connector) {
        let delay = self.reconnector.retry(cx.reactor, connector);
        self.journal.note(delay.map_or("given up".to_owned(), |delay| format!("{:.0}", delay.as_secs_f64())));
    }
}

impl ClientFactory for Again {
    fn client_connection_failed(
        &mut self,
        cx: &mut FactoryCx<'_, Self>,
        connector: &Connector,
        _: &ConnectError,
    ) {
        self.retry(cx, connector);
    }

    fn client_connection_lost(&mut self, cx: &mut FactoryCx<'_, Self>, connector: &Connector, _: &Reason) {
        self.retry(cx, connector);
    }
}

impl Protocol<Again> for Quiet {
    fn data_received(&mut self, _cx: &mut Cx<'_, Again>, _data: &[u8]) {}
}

#[test]
fn m2_a_reconnector_goes_through_hours_of_delays_at_once() {
    let (mut memory, journal) = (MemoryReactor::new(), Journal::default());
    let address: std::net::SocketAddr = "10.0.0.7:80".parse().unwrap();
    let again = Again { reconnector: Reconnector::new().jitter(0.0), journal: journal.clone() };
    memory.reactor().connect_tcp(address, again);
    memory.advance(Duration::from_secs(3 * 3600));
    assert_eq!(journal.take(), ["3", "7", "20", "55", "148", "403", "1097", "2981", "3600", "3600"]);
    let server = memory.listen(address).unwrap();
    memory.advance(Duration::from_secs(3600));
    let mut peer = server.accept().expect("it has come again");
    assert_eq!((journal.take().len(), memory.pending_calls()), (0, 0));
    peer.reset();
    memory.turn();
    assert_eq!(journal.take(), ["3"], "it begins anew");
    memory.advance(Duration::from_secs(3));
    assert!(server.accept().is_some());
}

/// Ends itself where no second byte comes in time.
struct Hasty;

impl<F> Protocol<F> for Hasty {
    fn connection_made(&mut self, cx: &mut Cx<'_, F>) {
        cx.transport.set_timeout(Some(PATIENCE));
    }

    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        cx.transport.reset_timeout();
        cx.transport.write(data);
    }
}

#[test]
fn m2_time_outs_and_policies_go_by_the_clock() {
    let mut memory = MemoryReactor::new();
    let port = memory.reactor().listen_tcp(8000, Serve(|| Hasty)).unwrap();
    let mut peer = memory.connect(&port).unwrap();
    memory.advance(PATIENCE / 2);
    peer.send(b"1");
    memory.advance(PATIENCE - Duration::from_nanos(1));
    assert_eq!((peer.take_received(), peer.end()), (b"1".to_vec(), None));
    memory.advance(Duration::from_nanos(1));
    assert_eq!(peer.end(), Some(End::Fin));

    let idle = Policies::new().idle_timeout(PATIENCE);
    let port = memory.reactor().listen_tcp(8001, idle.wrap(Serve(|| Echo))).unwrap();
    let mut peer = memory.connect(&port).unwrap();
    memory.advance(PATIENCE - Duration::from_nanos(1));
    assert_eq!(peer.end(), None, "never early");
    peer.send(b"2");
    memory.advance(PATIENCE - Duration::from_nanos(1));
    assert_eq!((peer.take_received(), peer.end()), (b"2".to_vec(), None));
    memory.advance(PATIENCE / 4 + Duration::from_nanos(1));
    assert_eq!(peer.end(), Some(End::Fin), "a quarter late at most");

    let slow = Policies::new().throttle_each(&Throttle::new().read(1_000));
    let port = memory.reactor().listen_tcp(8002, slow.wrap(Serve(|| Echo))).unwrap();
    let mut peer = memory.connect(&port).unwrap();
    peer.send(&[7; 10_000]);
    memory.turn();
    let at_once = peer.take_received().len();
    memory.advance(Duration::from_secs(5));
    let in_five = at_once + peer.take_received().len();
    memory.advance(Duration::from_secs(6));
    assert_eq!(in_five + peer.take_received().len(), 10_000);
    assert!((4_000..7_000).contains(&in_five), "{at_once}, then {in_five}");
}

struct Echo;

impl<F> Protocol<F> for Echo {
    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        cx.transport.write(data);
    }
}
