//! Protocols that receive lines, over real sockets (H1). How lines are cut out of bytes is tested beside the receivers, in pieces of
//! every length.

use std::time::Duration;

use ringspun::{
    Cx, Protocol,
    protocols::{LineBuffer, LineOnlyReceiver, LineReceiver},
};

use crate::{
    kinds::{Kind, serve},
    kit::{Event, Journal, Server},
    peers::{End, assert_same, pattern},
    setups::{Setup, on_every_backend},
};

on_every_backend!(
    h1_lines_and_raw_bytes_in_any_pieces,
    h1_a_pause_between_two_lines_of_one_piece_holds_the_second,
    h1_no_line_comes_after_a_close_inside_one,
    h1_a_pause_in_raw_mode_holds_all_that_comes,
    h1_raw_mode_and_pauses_that_begin_inside_a_piece,
    h1_raw_mode_that_begins_inside_a_line_has_all_of_it,
    h1_a_line_too_long_ends_that_connection_only,
    h1_lines_only,
    h1_a_line_may_have_16384_bytes_unless_said_otherwise,
);

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
        let mut peer = served.dial();
        for bytes in said.chunks(piece) {
            peer.write(bytes);
        }
        let got = peer.read_exactly(wanted.len());
        assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(&wanted), "{piece}");
    }
}

fn h1_a_pause_between_two_lines_of_one_piece_holds_the_second(setup: &Setup) {
    let served = serve(setup, Lines::new);
    let mut peer = served.dial();
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
    let mut peer = served.dial();
    peer.write(b"first\r\nbye\r\nsecond\r\n");
    assert_eq!(peer.read_to_end(), (b"first\r\n".to_vec(), End::Fin));
    assert!(!served.journal.has(&Event::Note("second".to_owned())));
}

fn h1_a_line_too_long_ends_that_connection_only(setup: &Setup) {
    let served = serve(setup, Lines::new);
    let (mut other, mut peer) = (served.dial(), served.dial());
    peer.write(b"fine\r\n");
    peer.write(&[b'x'; 100]);
    assert_eq!(peer.read_to_end(), (b"fine\r\n".to_vec(), End::Fin));
    other.ask(b"still here\r\n", b"still here\r\n");
}

/// Pauses with every raw piece. "raw N" makes the N bytes after it raw, "hold N" pauses as well, and "later N" does so when what
/// has come is taken in.
struct Modes {
    lines: LineBuffer,
    raw: usize,
    journal: Journal,
}

impl Modes {
    fn new(journal: Journal) -> Self {
        Self { lines: LineBuffer::default(), raw: 0, journal }
    }
}

impl Protocol<Kind<Self>> for Modes {
    fn connection_made(&mut self, cx: &mut Cx<'_, Kind<Self>>) {
        self.journal.keep_id(0, cx.transport.id());
    }

    fn data_received(&mut self, cx: &mut Cx<'_, Kind<Self>>, data: &[u8]) {
        self.receive_lines(cx, data);
    }
}

impl LineReceiver<Kind<Self>> for Modes {
    fn line_buffer(&mut self) -> &mut LineBuffer {
        &mut self.lines
    }

    fn line_received(&mut self, cx: &mut Cx<'_, Kind<Self>>, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        if let Some((word, count)) = text.split_once(' ') {
            self.raw = count.parse().unwrap();
            match word {
                "raw" => self.lines.set_raw_mode(),
                "hold" => {
                    self.lines.set_raw_mode();
                    cx.transport.pause_producing();
                }
                _ => drop(cx.call_later(Duration::ZERO, |me, cx| {
                    me.lines.set_raw_mode();
                    cx.transport.pause_producing();
                    me.journal.note("held");
                })),
            }
        }
        self.journal.note(text);
    }

    fn raw_data_received(&mut self, cx: &mut Cx<'_, Kind<Self>>, data: &[u8]) {
        let (raw, lines) = data.split_at(self.raw.min(data.len()));
        self.raw -= raw.len();
        if self.raw == 0 {
            self.lines.set_line_mode(lines);
        }
        cx.transport.pause_producing();
        self.journal.add(Event::Data(0, raw.to_vec()));
    }
}

fn h1_a_pause_in_raw_mode_holds_all_that_comes(setup: &Setup) {
    let served = serve(setup, Modes::new);
    let bytes = pattern(3, 100_000);
    let mut peer = served.dial();
    peer.write(b"raw 100000\r\n");
    let (first, rest) = bytes.split_at(1000);
    peer.write(first);
    let pieces = |events: &[Event]| events.iter().filter(|event| matches!(event, Event::Data(..))).count();
    served.journal.wait_bytes(0, 1);
    peer.write(rest);
    peer.write(b"end\r\n");
    // Each resume brings one piece, which pauses.
    for resumes in 0.. {
        served.journal.wait("a piece", |events| pieces(events) > resumes);
        served.let_it_turn();
        assert_eq!(pieces(&served.journal.all()), resumes + 1);
        assert!(!served.journal.has(&Event::Note("end".to_owned())), "it came while paused");
        let all = served.journal.bytes(0).len() == bytes.len();
        served.act_on(0, |transport| transport.resume_producing());
        if all {
            break;
        }
    }
    served.journal.wait_note("end");
    assert_same(&served.journal.bytes(0), &bytes);
}

/// Lines and raw bytes in the order in which they came, a semicolon behind each line.
fn told(events: &[Event]) -> String {
    let text = |event: &Event| match event {
        Event::Note(line) => format!("{line};"),
        Event::Data(_, raw) => String::from_utf8_lossy(raw).into_owned(),
        other => unreachable!("{other:?}"),
    };
    events.iter().map(text).collect()
}

/// Expects this to come and no more, then resumes.
fn expect_and_resume(served: &Server, wanted: &str) {
    served.journal.wait(wanted, |events| told(events) == wanted);
    served.let_it_turn();
    assert_eq!(told(&served.journal.all()), wanted, "more came while paused");
    served.act_on(0, |transport| transport.resume_producing());
}

fn h1_raw_mode_and_pauses_that_begin_inside_a_piece(setup: &Setup) {
    let served = serve(setup, Modes::new);
    let mut peer = served.dial();
    peer.write(b"one\r\nhold 5\r\n12345two\r\nraw 3\r\nabcthree\r\nhold 2\r\nxyfour\r\n");
    served.journal.wait_note("hold 5");
    peer.write(b"five\r\n");
    let stages = ["one;hold 5;", "12345", "two;raw 3;abc", "three;hold 2;", "xy", "four;five;"];
    for stage in 0..stages.len() {
        expect_and_resume(&served, &stages[..=stage].concat());
    }
}

fn h1_raw_mode_that_begins_inside_a_line_has_all_of_it(setup: &Setup) {
    let served = serve(setup, Modes::new);
    let mut peer = served.dial();
    peer.write(b"later 6\r\nabc");
    served.journal.wait_note("held");
    peer.write(b"defend\r\n");
    expect_and_resume(&served, "later 6;held;");
    expect_and_resume(&served, "later 6;held;abcdef");
    served.journal.wait_note("end");
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
        let mut peer = served.dial();
        said.chunks(piece).for_each(|bytes| peer.write(bytes));
        assert_eq!(peer.read_exactly(said.len()), said, "{piece}");
    }
    let mut peer = served.dial();
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
        let mut peer = served.dial();
        peer.ask(&line(16_384), &line(16_384));
        peer.write(&line(16_385));
        peer.expect_fin();
    }
}
