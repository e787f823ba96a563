//! Protocols built on `ringspun::protocols`, over real sockets (H1, H2). How messages are cut out of bytes is tested beside each
//! of them, in pieces of every length.

use std::{net::SocketAddr, time::Duration};

use ringspun::{
    Cx, Factory, Peer as Asking, Protocol, Reason,
    protocols::{
        IntNStringReceiver, IntPrefix, LineBuffer, LineOnlyReceiver, LineReceiver, NetstringError,
        NetstringReceiver, StringBuffer,
    },
};

use crate::{
    kit::{Event, Journal, Running},
    peers::{End, Peer},
    setups::{Setup, on_every_backend},
};

on_every_backend!(
    h1_lines_and_raw_bytes_in_any_pieces,
    h1_a_pause_between_two_lines_of_one_piece_holds_the_second,
    h1_no_line_comes_after_a_close_inside_one,
    h1_a_line_too_long_ends_that_connection_only,
    h1_lines_only,
    h1_a_line_may_have_16384_bytes_unless_said_otherwise,
    h2_strings_come_back_as_they_went,
    h2_a_bad_string_ends_that_connection_only,
);

/// A factory of one kind of protocol.
struct Kind<P>(Journal, fn(Journal) -> P);

impl<P: Protocol<Self>> Factory for Kind<P> {
    type Protocol = P;

    fn build_protocol(&mut self, _peer: &mut Asking<'_>) -> Option<P> {
        Some((self.1)(self.0.clone()))
    }
}

struct Served {
    journal: Journal,
    address: SocketAddr,
    _running: Running,
}

fn serve<P: Protocol<Kind<P>>>(setup: &Setup, new: fn(Journal) -> P) -> Served {
    let journal = Journal::default();
    let running = Running::start(setup.reactor());
    let port = running.reactor.listen_tcp(("127.0.0.1", 0), Kind(journal.clone(), new)).unwrap();
    Served { journal, address: port.get_host().socket_addr().unwrap(), _running: running }
}

/// Echoes lines. "raw N" has the N bytes after it echoed as they are, "pause" pauses, "bye" closes.
struct Lines {
    lines: LineBuffer,
    raw: usize,
    journal: Journal,
}

impl Lines {
    fn new(journal: Journal) -> Self {
        Self { lines: LineBuffer::default(), raw: 0, journal }
    }
}

impl Protocol<Kind<Self>> for Lines {
    fn data_received(&mut self, cx: &mut Cx<'_, Kind<Self>>, data: &[u8]) {
        self.receive_lines(cx, data);
    }
}

impl LineReceiver<Kind<Self>> for Lines {
    const MAX_LENGTH: usize = 64;

    fn line_buffer(&mut self) -> &mut LineBuffer {
        &mut self.lines
    }

    fn line_received(&mut self, cx: &mut Cx<'_, Kind<Self>>, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        self.journal.note(text.clone());
        if let Some(count) = text.strip_prefix("raw ") {
            self.raw = count.parse().unwrap();
            self.lines.set_raw_mode();
        } else if text == "pause" {
            cx.transport.pause_producing();
            cx.call_later(Duration::from_millis(50), |me, cx| {
                me.journal.note("resumed");
                cx.transport.resume_producing();
            });
        } else if text == "bye" {
            cx.transport.lose_connection();
        } else {
            let _ = self.send_line(cx, line);
        }
    }

    fn raw_data_received(&mut self, cx: &mut Cx<'_, Kind<Self>>, data: &[u8]) {
        let (raw, lines) = data.split_at(self.raw.min(data.len()));
        let _ = cx.transport.write(raw);
        self.raw -= raw.len();
        if self.raw == 0 {
            self.lines.set_line_mode(lines);
        }
    }
}

fn h1_lines_and_raw_bytes_in_any_pieces(setup: &Setup) {
    let served = serve(setup, Lines::new);
    let said = b"one\r\nraw 9\r\nraw\r\nbyte\r\n\r\nraw 1\r\n.last\r\n".repeat(20);
    let wanted = b"one\r\nraw\r\nbyte\r\n\r\n.last\r\n".repeat(20);
    for piece in (1..=9).chain([said.len()]) {
        let mut peer = Peer::dial(served.address);
        for bytes in said.chunks(piece) {
            peer.write(bytes);
        }
        let got = peer.read_exactly(wanted.len());
        assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(&wanted), "{piece}");
    }
}

fn h1_a_pause_between_two_lines_of_one_piece_holds_the_second(setup: &Setup) {
    let served = serve(setup, Lines::new);
    let mut peer = Peer::dial(served.address);
    peer.write(b"first\r\npause\r\nsecond\r\nthi");
    assert_eq!(peer.read_exactly(7), b"first\r\n");
    served.journal.wait_note("pause");
    peer.write(b"rd\r\n");
    assert_eq!(peer.read_exactly(15), b"second\r\nthird\r\n");
    let told: Vec<_> =
        ["first", "pause", "resumed", "second", "third"].map(|text| Event::Note(text.to_owned())).into();
    assert_eq!(served.journal.all(), told);
}

fn h1_no_line_comes_after_a_close_inside_one(setup: &Setup) {
    let served = serve(setup, Lines::new);
    let mut peer = Peer::dial(served.address);
    peer.write(b"first\r\nbye\r\nsecond\r\n");
    assert_eq!(peer.read_to_end(), (b"first\r\n".to_vec(), End::Fin));
    assert!(!served.journal.has(&Event::Note("second".to_owned())));
}

fn h1_a_line_too_long_ends_that_connection_only(setup: &Setup) {
    let served = serve(setup, Lines::new);
    let (mut other, mut peer) = (Peer::dial(served.address), Peer::dial(served.address));
    peer.write(b"fine\r\n");
    peer.write(&[b'x'; 100]);
    assert_eq!(peer.read_to_end(), (b"fine\r\n".to_vec(), End::Fin));
    other.ask(b"still here\r\n", b"still here\r\n");
}

/// Echoes lines, and knows no raw mode.
#[derive(Default)]
struct LinesOnly(LineBuffer);

impl<F> Protocol<F> for LinesOnly {
    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        self.receive_lines(cx, data);
    }
}

impl<F> LineOnlyReceiver<F> for LinesOnly {
    const DELIMITER: &'static [u8] = b"\n";

    fn line_buffer(&mut self) -> &mut LineBuffer {
        &mut self.0
    }

    fn line_received(&mut self, cx: &mut Cx<'_, F>, line: &[u8]) {
        let _ = self.send_line(cx, line);
    }
}

fn h1_lines_only(setup: &Setup) {
    let served = serve(setup, |_| LinesOnly::default());
    let said = b"one\n\ntwo\r\nthree\n".repeat(10);
    for piece in 1..=9 {
        let mut peer = Peer::dial(served.address);
        said.chunks(piece).for_each(|bytes| peer.write(bytes));
        assert_eq!(peer.read_exactly(said.len()), said, "{piece}");
    }
    let mut peer = Peer::dial(served.address);
    peer.write(&[b'x'; 16_385]);
    peer.write(b"\n");
    peer.expect_fin();
}

/// Echoes lines of any length that the helper takes.
#[derive(Default)]
struct LongLines(LineBuffer);

impl<F> Protocol<F> for LongLines {
    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        self.receive_lines(cx, data);
    }
}

impl<F> LineReceiver<F> for LongLines {
    fn line_buffer(&mut self) -> &mut LineBuffer {
        &mut self.0
    }

    fn line_received(&mut self, cx: &mut Cx<'_, F>, line: &[u8]) {
        let _ = self.send_line(cx, line);
    }

    fn raw_data_received(&mut self, _cx: &mut Cx<'_, F>, _data: &[u8]) {
        unreachable!("nobody has set raw mode")
    }
}

fn h1_a_line_may_have_16384_bytes_unless_said_otherwise(setup: &Setup) {
    let (any, only) = (serve(setup, |_| LongLines::default()), serve(setup, |_| LinesOnly::default()));
    for (served, delimiter) in [(&any, &b"\r\n"[..]), (&only, b"\n")] {
        let line = |length| [&vec![b'x'; length][..], delimiter].concat();
        let mut peer = Peer::dial(served.address);
        peer.ask(&line(16_384), &line(16_384));
        peer.write(&line(16_385));
        peer.expect_fin();
    }
}

/// Echoes strings behind a length of `N` bytes.
#[derive(Default)]
struct Strings<const N: usize>(StringBuffer);

impl<F, const N: usize> Protocol<F> for Strings<N> {
    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        self.receive_strings(cx, data);
    }
}

impl<F, const N: usize> IntNStringReceiver<F> for Strings<N> {
    const PREFIX: IntPrefix = match N {
        1 => IntPrefix::Int8,
        2 => IntPrefix::Int16,
        _ => IntPrefix::Int32,
    };
    const MAX_LENGTH: usize = 250;

    fn string_buffer(&mut self) -> &mut StringBuffer {
        &mut self.0
    }

    fn string_received(&mut self, cx: &mut Cx<'_, F>, string: &[u8]) {
        let too_long = [string, &[0; 251]].concat();
        assert!(
            self.send_string(cx, &too_long).is_err_and(|error| error.to_string().contains("at most 250"))
        );
        let _ = self.send_string(cx, string).expect("as long as what came");
    }
}

/// Echoes netstrings, and tells what was none.
struct Netstrings(StringBuffer, Journal);

impl<F> Protocol<F> for Netstrings {
    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        self.receive_strings(cx, data);
    }

    fn connection_lost(&mut self, _cx: &mut Cx<'_, F>, reason: &Reason) {
        self.1.note(format!("{reason:?}"));
    }
}

impl<F> NetstringReceiver<F> for Netstrings {
    fn string_buffer(&mut self) -> &mut StringBuffer {
        &mut self.0
    }

    fn string_received(&mut self, cx: &mut Cx<'_, F>, string: &[u8]) {
        let _ = self.send_string(cx, string).expect("as long as what came");
    }
}

/// Each string behind its length, as `N` bytes.
fn prefixed<const N: usize>(strings: &[Vec<u8>]) -> Vec<u8> {
    let said = |string: &Vec<u8>| [&(string.len() as u32).to_be_bytes()[4 - N..], string].concat();
    strings.iter().flat_map(said).collect()
}

fn h2_strings_come_back_as_they_went(setup: &Setup) {
    let strings = [b"first".to_vec(), Vec::new(), vec![b','; 250], b"5:a,".to_vec()];
    let netstrings = strings.iter().flat_map(|s| [format!("{}:", s.len()).as_bytes(), s, b","].concat());
    let servers = [
        (serve(setup, |_| Strings::<1>::default()), prefixed::<1>(&strings)),
        (serve(setup, |_| Strings::<2>::default()), prefixed::<2>(&strings)),
        (serve(setup, |_| Strings::<4>::default()), prefixed::<4>(&strings)),
        (serve(setup, |journal| Netstrings(StringBuffer::default(), journal)), netstrings.collect()),
    ];
    for (served, said) in servers {
        for piece in (1..=9).chain([said.len()]) {
            let mut peer = Peer::dial(served.address);
            said.chunks(piece).for_each(|bytes| peer.write(bytes));
            assert_eq!(peer.read_exactly(said.len()), said, "{piece}");
        }
    }
}

fn h2_a_bad_string_ends_that_connection_only(setup: &Setup) {
    let served = serve(setup, |_| Strings::<4>::default());
    let (mut other, mut peer) = (Peer::dial(served.address), Peer::dial(served.address));
    peer.write(b"\0\0\0\x02ok\0\0\0\xfb");
    assert_eq!(peer.read_to_end(), (b"\0\0\0\x02ok".to_vec(), End::Fin));
    other.ask(b"\0\0\0\x02ok", b"\0\0\0\x02ok");
    let served = serve(setup, |journal| Netstrings(StringBuffer::default(), journal));
    let (mut other, mut peer) = (Peer::dial(served.address), Peer::dial(served.address));
    peer.write(b"02:no,");
    peer.expect_reset();
    served.journal.wait_note(&format!("{:?}", Reason::Callback(Box::new(NetstringError::Length))));
    other.ask(b"2:ok,", b"2:ok,");
}
