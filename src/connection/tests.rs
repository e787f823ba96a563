//! The state machine against a kernel made of a random number generator, and by hand where a
//! contract names a case.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::*;
use crate::output::Budget;

/// A connection with a kernel that takes and gives what the test says.
struct Rig {
    connection: Connection,
    pool: Pool,
    limits: Limits,
    now: Instant,
    in_flight: Option<Box<Batch>>,
    reading: bool,
    fin_sent: bool,
    closed: Option<bool>,
    lost: Option<Reason>,
    delivered: Vec<u8>,
    sent: Vec<u8>,
    pauses: i32,
    read_lost: usize,
    produced: Vec<Produce>,
    timeouts: usize,
}

impl Rig {
    fn new() -> Self {
        Self::with(Connection::new(false))
    }

    fn with(connection: Connection) -> Self {
        let limits =
            Limits { output_high: 100, output_low: 20, output_max: 1000, drain_max: 50, ..Limits::default() };
        Self {
            connection,
            pool: Pool::new(&limits, &Arc::new(Budget::new(5_000))),
            limits,
            now: Instant::now(),
            in_flight: None,
            reading: false,
            fin_sent: false,
            closed: None,
            lost: None,
            delivered: Vec::new(),
            sent: Vec::new(),
            pauses: 0,
            read_lost: 0,
            produced: Vec::new(),
            timeouts: 0,
        }
    }

    /// One that calls itself calm is.
    fn look_how_calm(&self) {
        assert!(!self.connection.calm || self.is_calm_indeed(), "{:?}", self.connection);
        let clock = self.connection.rare.as_ref().and_then(|rare| rare.clock.as_ref());
        let is_known = clock.is_none_or(|clock| clock.driver_knows());
        assert!(!self.connection.calm || is_known, "a time-out that no driver waits for");
    }

    /// Without the flag that says so.
    fn is_calm_indeed(&self) -> bool {
        let Connection { phase, write_half, end, paused, reading, ref rare, .. } = self.connection;
        let open = (phase, write_half, end) == (Phase::Open, WriteHalf::Open, None);
        open && !paused && reading && rare.as_ref().is_none_or(|rare| !rare.is_needed())
    }

    fn write(&mut self, bytes: &[u8]) -> Write {
        self.look_how_calm();
        let Self { connection, pool, limits, .. } = self;
        connection.write(pool, limits, bytes)
    }

    fn arrives(&mut self, bytes: &[u8]) {
        self.look_how_calm();
        if self.connection.received(bytes, &self.limits) == Arrival::Deliver {
            self.deliver(bytes);
        }
    }

    fn deliver(&mut self, bytes: &[u8]) {
        assert!(self.lost.is_none(), "C4: data after connection_lost");
        assert!(self.connection.is_delivering(), "C4, C12: data while paused or closing");
        self.delivered.extend_from_slice(bytes);
    }

    /// The kernel takes `n` bytes of what is in flight, then fails if `errno` says so.
    fn takes(&mut self, n: usize, errno: Option<i32>) {
        let mut batch = self.in_flight.take().expect("something in flight");
        let n = n.min(batch.len());
        self.sent.extend(batch.slices().flatten().take(n));
        batch.advance(n);
        let errno = errno.map(Errno::from_raw);
        self.connection.sent(batch, n, errno, &mut self.pool, &self.limits);
    }

    /// Does what the connection wants until it wants nothing more.
    fn settle(&mut self) {
        for _ in 0..1000 {
            self.look_how_calm();
            match self.connection.step(self.now, &self.limits, &mut self.pool, true) {
                Step::Idle => {
                    self.connection.deadline();
                    assert_eq!(self.connection.calm, self.is_calm_indeed(), "{:?}", self.connection);
                    return;
                }
                Step::Later => return,
                Step::PauseWriting => self.crossed(1),
                Step::ResumeWriting => self.crossed(-1),
                Step::Deliver(bytes) => self.deliver(&bytes),
                Step::ReadLost => self.read_lost += 1,
                Step::TimedOut => self.timeouts += 1,
                Step::Filter(mut filters) => {
                    filters.run();
                    self.connection.filtered(filters, &mut self.pool, &self.limits);
                }
                Step::Produce(what, producer) => {
                    self.produced.push(what);
                    drop(self.connection.producer_told(producer));
                }
                Step::Send(batch) => {
                    assert!(self.in_flight.is_none(), "one send in flight");
                    assert!(!self.fin_sent, "a send after FIN");
                    self.in_flight = Some(batch);
                }
                Step::Read(on) => {
                    assert_ne!(self.reading, on, "asked for what is the case");
                    self.reading = on;
                }
                Step::ShutdownWrite => {
                    assert!(self.in_flight.is_none() && !self.fin_sent);
                    self.fin_sent = true;
                }
                Step::Lost => {
                    assert!(self.lost.is_none(), "C2: connection_lost twice");
                    self.lost = Some(self.connection.reason());
                    drop(self.connection.take_filters());
                }
                Step::Close { reset } => {
                    assert!(self.lost.is_some(), "told before it is closed");
                    assert!(self.closed.is_none(), "closed twice");
                    self.closed = Some(reset);
                }
            }
        }
        panic!("the connection never rests");
    }

    fn crossed(&mut self, change: i32) {
        self.pauses += change;
        assert!((0..=1).contains(&self.pauses), "C18: one resume a pause, one pause a crossing");
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.settle();
    }

    fn eof(&mut self) {
        self.reading = false;
        self.connection.read_ended(None);
        self.settle();
    }

    fn is_done(&self) -> bool {
        matches!(self.lost, Some(Reason::Done)) && self.closed == Some(false)
    }
}

#[test]
fn c7_lose_connection_flushes_sends_fin_and_drains_before_it_closes() {
    let mut rig = Rig::new();
    assert_eq!(rig.write(b"goodbye"), Write::Accepted);
    rig.connection.lose();
    rig.connection.lose();
    assert_eq!(rig.write(b"too late"), Write::Closed);
    rig.settle();
    rig.takes(3, None);
    rig.settle();
    assert!(!rig.fin_sent, "four bytes are left");
    rig.takes(4, None);
    rig.settle();
    assert_eq!(rig.sent, b"goodbye");
    assert!(rig.fin_sent && rig.reading && rig.lost.is_none());
    rig.arrives(b"still talking");
    rig.settle();
    assert!(rig.delivered.is_empty() && rig.closed.is_none());
    rig.eof();
    assert!(rig.is_done());
}

#[test]
fn c7_draining_ends_at_its_limits() {
    for by_bytes in [true, false] {
        let mut rig = Rig::new();
        rig.connection.lose();
        rig.settle();
        if by_bytes {
            rig.arrives(&[0; 51]);
            rig.settle();
        } else {
            rig.pass(rig.limits.drain_timeout);
        }
        assert!(rig.is_done(), "by bytes: {by_bytes}");
    }
}

#[test]
fn c7_a_close_that_cannot_finish_becomes_an_abort() {
    let mut rig = Rig::new();
    let _ = rig.write(b"nobody reads this");
    rig.connection.lose();
    rig.settle();
    rig.pass(rig.limits.close_timeout);
    assert!(matches!(rig.lost, Some(Reason::TimedOut(Timeout::Close))));
    assert_eq!(rig.closed, Some(true));
}

#[test]
fn c10_an_abort_drops_what_was_written() {
    let mut rig = Rig::new();
    let _ = rig.write(b"dropped");
    rig.connection.abort();
    rig.connection.abort();
    rig.settle();
    assert!(matches!(rig.lost, Some(Reason::Aborted)));
    assert!(rig.closed == Some(true) && rig.in_flight.is_none());
}

#[test]
fn c12_c13_what_comes_while_paused_is_told_in_order_after_resume() {
    let mut rig = Rig::new();
    rig.settle();
    rig.connection.pause();
    rig.settle();
    assert!(!rig.reading);
    rig.arrives(b"one ");
    rig.arrives(b"two");
    rig.eof();
    assert!(rig.delivered.is_empty() && rig.lost.is_none());
    rig.connection.resume();
    rig.settle();
    assert_eq!(rig.delivered, b"one two");
    assert!(rig.is_done());
}

#[test]
fn c13_a_failing_write_tells_a_paused_connection() {
    let mut rig = Rig::new();
    rig.connection.pause();
    let _ = rig.write(b"into the void");
    rig.settle();
    rig.takes(0, Some(libc::EPIPE));
    rig.settle();
    assert!(matches!(rig.lost, Some(Reason::Lost(Loss::Errno(errno))) if errno.raw() == libc::EPIPE));
}

#[test]
fn a_failing_write_waits_for_what_can_still_be_read() {
    let mut rig = Rig::new();
    rig.settle();
    let _ = rig.write(b"into the void");
    rig.settle();
    rig.takes(0, Some(libc::ECONNRESET));
    rig.settle();
    assert!(rig.lost.is_none());
    rig.arrives(b"last words");
    rig.eof();
    assert_eq!(rig.delivered, b"last words");
    assert!(matches!(rig.lost, Some(Reason::Lost(_))), "the write was lost: {:?}", rig.lost);
}

#[test]
fn c15_an_aware_protocol_goes_on_writing_after_the_peers_fin() {
    let mut rig = Rig::with(Connection::new(true));
    rig.settle();
    rig.eof();
    assert_eq!((rig.read_lost, rig.lost.is_none()), (1, true));
    let _ = rig.write(b"more");
    rig.settle();
    rig.takes(4, None);
    rig.connection.lose_write();
    rig.settle();
    assert!(rig.fin_sent && rig.is_done() && rig.read_lost == 1);
}

#[test]
fn c15_an_unaware_protocol_still_delivers_what_it_wrote() {
    let mut rig = Rig::new();
    rig.settle();
    let _ = rig.write(b"answer");
    rig.settle();
    rig.eof();
    assert!(rig.lost.is_none());
    rig.takes(6, None);
    rig.settle();
    assert!(rig.is_done() && !rig.fin_sent, "the close sends FIN: no shutdown needed");
}

#[test]
fn c18_passing_the_hard_limit_ends_the_connection_but_no_single_write_does() {
    let mut rig = Rig::new();
    assert_eq!(rig.write(&[0; 5000]), Write::Full);
    assert_eq!(rig.write(b"x"), Write::Closed);
    rig.settle();
    assert!(matches!(rig.lost, Some(Reason::Limit(LimitKind::Output))));
}

/// Any order of everything that can happen keeps the promises that `Rig` asserts, and ends.
#[test]
fn any_life_ends_once_and_loses_no_byte_on_the_way() {
    for seed in 0..3000u64 {
        live(seed, Rig::with(Connection::new(seed.is_multiple_of(2))), |sent, _| sent.to_vec());
    }
}

/// `read` tells what was written from what was sent, which is all of it if the second argument says so.
fn live(seed: u64, mut rig: Rig, read: fn(&[u8], bool) -> Vec<u8>) {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut random = move |n: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % n
    };
    let (mut arrived, mut written, mut ended) = (0u8, 0u8, false);
    let (mut expected_in, mut expected_out) = (Vec::new(), Vec::new());
    for _ in 0..80 {
        match random(16) {
            0..=3 => {
                let bytes: Vec<u8> = (0..random(20)).map(|_| next(&mut written)).collect();
                if rig.write(&bytes) != Write::Closed {
                    expected_out.extend(bytes);
                }
            }
            4..=7 if !ended && rig.closed.is_none() => {
                let bytes: Vec<u8> = (0..1 + random(20)).map(|_| next(&mut arrived)).collect();
                if rig.connection.is_open() {
                    expected_in.extend(&bytes);
                }
                rig.arrives(&bytes);
            }
            8 | 9 if rig.in_flight.is_some() => rig.takes(random(30) as usize, None),
            10 => rig.connection.pause(),
            11 | 12 => rig.connection.resume(),
            13 if random(6) == 0 => rig.connection.lose(),
            14 if random(6) == 0 => rig.connection.lose_write(),
            15 if random(8) == 0 && !ended && rig.closed.is_none() => {
                ended = true;
                rig.eof();
            }
            _ => rig.pass(Duration::from_millis(1)),
        }
    }
    assert!(expected_in.starts_with(&rig.delivered), "seed {seed}: C5, input");
    assert!(expected_out.starts_with(&read(&rig.sent, false)), "seed {seed}: C5, output");
    rig.connection.resume();
    rig.connection.lose();
    for _ in 0..200 {
        rig.pass(Duration::from_millis(10));
        if rig.in_flight.is_some() {
            rig.takes(50, None);
        }
    }
    assert_eq!(read(&rig.sent, true), expected_out, "seed {seed}: C7, all that was written");
    rig.pass(Duration::from_secs(3600));
    assert_eq!(rig.pool.budget().counted(), 0, "seed {seed}: P4, the budget");
    assert!(rig.is_done(), "seed {seed}: {:?} {:?}", rig.lost, rig.closed);
}

mod passing;
mod time;

fn next(byte: &mut u8) -> u8 {
    *byte = byte.wrapping_add(1);
    *byte
}

fn with_producer(streaming: bool) -> Rig {
    let mut rig = Rig::new();
    rig.settle();
    rig.connection.register_producer(Box::new("a producer"), streaming).unwrap();
    rig.settle();
    rig
}

#[test]
fn a_push_producer_hears_of_each_crossing_once() {
    let mut rig = with_producer(true);
    assert_eq!(rig.produced, []);
    for crossings in 1..4 {
        assert_eq!(rig.write(&[b'x'; 150]), Write::Full);
        rig.settle();
        rig.takes(100, None);
        rig.settle();
        assert_eq!(rig.produced.len(), 2 * crossings - 1, "50 bytes are above the low mark");
        rig.takes(50, None);
        rig.settle();
        assert_eq!(rig.produced, [Produce::Pause, Produce::Resume].repeat(crossings));
    }
}

#[test]
fn a_pull_producer_is_asked_when_all_is_sent_and_only_if_something_was() {
    let mut rig = with_producer(false);
    assert_eq!(rig.produced, [Produce::Resume]);
    rig.settle();
    assert_eq!(rig.produced.len(), 1, "it wrote nothing, so nothing was sent");
    let _ = rig.write(b"a piece");
    rig.settle();
    rig.takes(3, None);
    rig.settle();
    assert_eq!(rig.produced.len(), 1, "some of it is left");
    rig.takes(4, None);
    rig.settle();
    assert_eq!(rig.produced, [Produce::Resume; 2]);
}

#[test]
fn a_close_waits_for_the_producer() {
    let mut rig = with_producer(true);
    rig.connection.lose();
    rig.settle();
    assert_eq!(rig.write(b"more"), Write::Accepted);
    rig.settle();
    rig.takes(4, None);
    rig.pass(Duration::from_secs(3600));
    assert!(!rig.fin_sent && rig.lost.is_none());
    assert!(rig.connection.unregister_producer().is_some());
    assert_eq!(rig.write(b"too late"), Write::Closed);
    rig.settle();
    assert!(rig.fin_sent);
    assert_eq!((rig.sent.as_slice(), rig.produced.len()), (&b"more"[..], 0));
}

#[test]
fn a_producer_is_stopped_once_whatever_ends_the_connection() {
    type Ending = fn(&mut Rig);
    let endings: [Ending; 4] = [
        |rig| rig.connection.abort(),
        |rig| rig.eof(),
        |rig| rig.connection.finish(Reason::Aborted, true),
        |rig| {
            rig.connection.lose();
            rig.connection.read_ended(Some(Errno::from_raw(104)));
        },
    ];
    for (number, end) in endings.into_iter().enumerate() {
        let mut rig = with_producer(number % 2 == 0);
        rig.produced.clear();
        end(&mut rig);
        rig.settle();
        assert_eq!(rig.produced, [Produce::Stop], "{number}");
        assert!(rig.lost.is_some());
        let refused = rig.connection.register_producer(Box::new("another"), true);
        assert!(matches!(refused, Err(NotRegistered::Closed(_))));
    }
}
