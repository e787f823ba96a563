//! Filters and paces between the machine's two ends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::{Rig, live};
use crate::connection::{Connection, Equipment, Filter, Pace, Way};
use crate::reason::BoxError;

/// Makes two bytes of each that is sent, turns around what arrives, and says a word of its own at the beginning and at the end.
struct Cipher;

const HELLO: &[u8] = b"hello";
const BYE: &[u8] = b"bye";

impl Filter for Cipher {
    fn made(&mut self, reply: &mut Vec<u8>) {
        reply.extend_from_slice(HELLO);
    }

    fn received(&mut self, data: &mut Vec<u8>, _reply: &mut Vec<u8>) -> Result<(), BoxError> {
        data.iter_mut().for_each(|byte| *byte = !*byte);
        Ok(())
    }

    fn sending(&mut self, data: &mut Vec<u8>) -> Result<(), BoxError> {
        *data = data.iter().flat_map(|byte| [*byte, !byte]).collect();
        Ok(())
    }

    fn closing(&mut self, reply: &mut Vec<u8>) -> bool {
        reply.extend_from_slice(BYE);
        true
    }
}

/// Turns around what arrives, as the peer of a `Cipher` would have.
struct Other;

impl Filter for Other {
    fn received(&mut self, data: &mut Vec<u8>, _reply: &mut Vec<u8>) -> Result<(), BoxError> {
        data.iter_mut().for_each(|byte| *byte = !*byte);
        Ok(())
    }
}

/// Lets `bytes` pass each `millis`.
struct Every {
    bytes: usize,
    millis: u64,
    passed: AtomicU64,
    given_back: AtomicU64,
    start: Instant,
}

impl Every {
    fn new(bytes: usize, millis: u64) -> Arc<Self> {
        let (passed, given_back) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { bytes, millis, passed, given_back, start: Instant::now() })
    }
}

impl Pace for Every {
    fn piece(&self, _way: Way) -> usize {
        self.bytes
    }

    fn reserve(&self, _way: Way, _bytes: usize, _now: Instant) -> Instant {
        self.start + Duration::from_millis(self.passed.fetch_add(self.millis, Relaxed))
    }

    fn give_back(&self, _way: Way, bytes: usize, _at: Instant) {
        self.passed.fetch_sub(self.millis, Relaxed);
        self.given_back.fetch_add(bytes as u64, Relaxed);
    }
}

fn equipped(seed: u64, equipment: Equipment) -> Rig {
    let mut rig = Rig::with(Connection::new(seed.is_multiple_of(2)));
    rig.connection.equip(rig.now, equipment);
    rig
}

fn plain(sent: &[u8], _all: bool) -> Vec<u8> {
    sent.to_vec()
}

/// What was written, of what a `Cipher` has sent.
fn deciphered(sent: &[u8], all: bool) -> Vec<u8> {
    if sent.len() < HELLO.len() {
        return Vec::new();
    }
    let sent = sent.strip_prefix(HELLO).expect("its hello goes first");
    assert!(!all || sent.ends_with(BYE), "it has the last word");
    let pairs = sent.chunks_exact(2).take_while(|pair| pair[1] == !pair[0]);
    let read: Vec<u8> = pairs.map(|pair| pair[0]).collect();
    assert!(!all || sent.len() == 2 * read.len() + BYE.len(), "nothing else comes between");
    read
}

#[test]
fn paces_lose_no_byte_and_double_none() {
    for seed in 0..2000 {
        let paces: Vec<Arc<dyn Pace>> = vec![Every::new(7, 3), Every::new(11, 1)];
        live(seed, equipped(seed, Equipment { paces, ..Equipment::default() }), plain);
    }
}

#[test]
fn filters_see_each_byte_once_and_have_the_first_and_the_last_word() {
    for seed in 0..2000 {
        let paces: Vec<Arc<dyn Pace>> = if seed % 3 == 0 { vec![Every::new(7, 2)] } else { Vec::new() };
        let filters: Vec<Box<dyn Filter>> = vec![Box::new(Cipher), Box::new(Other)];
        live(seed, equipped(seed, Equipment { paces, filters, ..Equipment::default() }), deciphered);
    }
}

#[test]
fn a_stream_that_never_ends_keeps_no_more_than_it_has_to_send() {
    let paces: Vec<Arc<dyn Pace>> = vec![Every::new(1000, 1)];
    let mut rig = equipped(0, Equipment { paces, ..Equipment::default() });
    rig.limits.output_max = 1 << 20;
    let _ = rig.write(&[b'x'; 3000]);
    for _ in 0..1000 {
        let _ = rig.write(&[b'x'; 1000]);
        rig.pass(Duration::from_millis(1));
        rig.takes(1000, None);
        rig.sent.clear();
    }
    assert_eq!(rig.connection.unsent(), 3000);
    let kept = rig.connection.output.kept_capacity();
    assert!(kept < 512 << 10, "{kept} bytes are kept for 3000");
}

/// Fails at the first byte in either way.
struct Failing;

impl Filter for Failing {
    fn received(&mut self, _data: &mut Vec<u8>, _reply: &mut Vec<u8>) -> Result<(), BoxError> {
        Err("no".into())
    }
}

#[test]
fn a_filter_that_fails_ends_the_connection() {
    let mut rig = equipped(0, Equipment { filters: vec![Box::new(Failing)], ..Equipment::default() });
    rig.settle();
    rig.arrives(b"x");
    rig.settle();
    assert!(matches!(rig.lost, Some(crate::reason::Reason::Callback(_))), "{:?}", rig.lost);
    assert_eq!((rig.closed, rig.delivered.len()), (Some(true), 0));
}

#[test]
fn what_may_not_pass_yet_is_not_asked_for_again_and_has_a_deadline() {
    let paces: Vec<Arc<dyn Pace>> = vec![Every::new(2, 10)];
    let mut rig = equipped(0, Equipment { paces, ..Equipment::default() });
    rig.settle();
    assert!(rig.reading);
    rig.arrives(b"abcde");
    rig.settle();
    assert_eq!(rig.delivered, b"ab");
    assert!(!rig.reading, "three bytes wait");
    for expected in [&b"abcd"[..], b"abcde"] {
        let deadline = rig.connection.deadline().expect("somebody has to come back");
        assert!(deadline > rig.now);
        rig.now = deadline;
        rig.settle();
        assert_eq!(rig.delivered, expected);
    }
    assert!(rig.reading && rig.connection.deadline().is_none());
}

#[test]
fn a_close_is_given_the_time_that_its_pace_takes() {
    let paces: Vec<Arc<dyn Pace>> = vec![Every::new(1, 100_000)];
    let mut rig = equipped(0, Equipment { paces, ..Equipment::default() });
    let _ = rig.write(b"abc");
    rig.connection.lose();
    for _ in 0..3 {
        rig.settle();
        while rig.in_flight.is_none() {
            rig.now = rig.connection.deadline().expect("the next byte");
            rig.settle();
        }
        rig.takes(1, None);
    }
    rig.settle();
    rig.now = rig.connection.deadline().expect("the end of the drain");
    rig.settle();
    assert!(rig.is_done(), "{:?}", rig.lost);
    assert_eq!(rig.sent, b"abc");
}

#[test]
fn who_ends_or_pauses_gives_its_place_in_the_line_back() {
    let pace = Every::new(2, 100_000);
    let given_back = || pace.given_back.load(Relaxed);
    let mut rig = equipped(0, Equipment { paces: vec![pace.clone()], ..Equipment::default() });
    rig.settle();
    rig.arrives(b"abc");
    rig.settle();
    assert_eq!((rig.delivered.as_slice(), given_back()), (&b"ab"[..], 0), "what was used is gone");
    rig.connection.pause();
    rig.settle();
    assert_eq!(given_back(), 1);
    assert!(rig.connection.deadline().is_none(), "nobody has to come back");
    let _ = rig.write(b"de");
    rig.settle();
    assert!(rig.in_flight.is_none());
    rig.connection.abort();
    rig.settle();
    assert_eq!(given_back(), 3);
}

#[test]
fn a_pace_is_asked_when_those_before_it_agree() {
    let (own, shared) = (Every::new(2, 50), Every::new(3, 1));
    let asked = || shared.passed.load(Relaxed);
    let mut rig = equipped(0, Equipment { paces: vec![own, shared.clone()], ..Equipment::default() });
    let _ = rig.write(b"abcd");
    rig.settle();
    rig.takes(2, None);
    rig.settle();
    assert_eq!(asked(), 1, "its own says that the next piece is to come later");
    rig.now = rig.connection.deadline().expect("that moment");
    rig.settle();
    assert_eq!(asked(), 2);
    rig.takes(2, None);
    assert_eq!(rig.sent, b"abcd");
}

/// Counts what it hears, answers, and never lets a connection close.
struct Hearing(Arc<AtomicU64>);

impl Filter for Hearing {
    fn received(&mut self, data: &mut Vec<u8>, reply: &mut Vec<u8>) -> Result<(), BoxError> {
        self.0.fetch_add(data.len() as u64, Relaxed);
        reply.extend_from_slice(b"heard");
        Ok(())
    }

    fn closing(&mut self, _reply: &mut Vec<u8>) -> bool {
        false
    }
}

#[test]
fn what_comes_while_a_filter_holds_back_the_close_is_not_kept() {
    let heard = Arc::new(AtomicU64::new(0));
    let equipment = Equipment {
        paces: vec![Every::new(7, 1000)],
        filters: vec![Box::new(Hearing(heard.clone()))],
        ..Equipment::default()
    };
    let mut rig = equipped(0, equipment);
    rig.connection.lose();
    rig.settle();
    for piece in 1..100 {
        rig.arrives(&[b'x'; 1000]);
        rig.settle();
        assert_eq!(heard.load(Relaxed), piece * 1000);
    }
    assert!(rig.delivered.is_empty(), "C4");
}

/// Answers, and has nothing to say before FIN.
struct Answering;

impl Filter for Answering {
    fn received(&mut self, _data: &mut Vec<u8>, reply: &mut Vec<u8>) -> Result<(), BoxError> {
        reply.extend_from_slice(b"heard");
        Ok(())
    }
}

#[test]
fn what_a_filter_says_after_fin_is_dropped() {
    let answering = || Equipment { filters: vec![Box::new(Answering)], ..Equipment::default() };
    for seed in 0..2 {
        let mut rig = equipped(seed, answering());
        rig.connection.lose_write();
        rig.settle();
        assert!(rig.fin_sent);
        rig.arrives(b"question");
        rig.settle();
        rig.eof();
        assert_eq!(rig.delivered, b"question");
        assert!(rig.is_done(), "{:?}", rig.lost);
    }
    // So it is where the peer takes nothing any more.
    let mut rig = equipped(0, answering());
    let _ = rig.write(b"into the void");
    rig.settle();
    rig.takes(0, Some(libc::EPIPE));
    rig.arrives(b"question");
    rig.settle();
    assert!(rig.in_flight.is_none() && rig.lost.is_none());
    rig.eof();
    assert_eq!(rig.delivered, b"question");
    assert!(matches!(rig.lost, Some(crate::reason::Reason::Lost(_))), "{:?}", rig.lost);
}

/// Keeps what is sent until the peer has said something, as a handshake does.
#[derive(Default)]
struct Handshake {
    kept: Vec<u8>,
    heard: bool,
}

impl Filter for Handshake {
    fn received(&mut self, _data: &mut Vec<u8>, reply: &mut Vec<u8>) -> Result<(), BoxError> {
        self.heard = true;
        reply.append(&mut self.kept);
        Ok(())
    }

    fn sending(&mut self, data: &mut Vec<u8>) -> Result<(), BoxError> {
        if !self.heard {
            self.kept.append(data);
        }
        Ok(())
    }

    fn closing(&mut self, reply: &mut Vec<u8>) -> bool {
        if self.heard {
            reply.extend_from_slice(BYE);
        }
        self.heard
    }
}

#[test]
fn a_filter_may_hold_back_what_is_sent_and_the_close_until_it_has_heard_of_the_peer() {
    let shake_hands = || Equipment {
        filters: vec![Box::new(Handshake::default()), Box::new(Cipher)],
        ..Equipment::default()
    };
    let mut rig = equipped(0, shake_hands());
    let _ = rig.write(b"early");
    rig.connection.lose();
    rig.settle();
    rig.takes(HELLO.len(), None);
    rig.settle();
    assert!(rig.in_flight.is_none() && !rig.fin_sent && rig.closed.is_none());
    assert_eq!(rig.connection.unsent(), 0, "what a filter keeps is its own");
    rig.arrives(b"hands");
    rig.settle();
    for _ in 0..3 {
        rig.takes(usize::MAX, None);
        rig.settle();
        if rig.in_flight.is_none() {
            break;
        }
    }
    assert!(rig.fin_sent);
    let ciphered: Vec<u8> = b"earlybye".iter().flat_map(|byte| [*byte, !byte]).collect();
    assert_eq!(rig.sent, [HELLO, &ciphered[..], BYE].concat());
    assert!(rig.delivered.is_empty(), "C4");
    rig.eof();
    assert!(rig.is_done());
    // A peer that goes without a word is waited for no longer.
    let mut rig = equipped(0, shake_hands());
    rig.settle();
    rig.takes(HELLO.len(), None);
    rig.connection.lose();
    rig.settle();
    assert!(rig.lost.is_none());
    rig.eof();
    assert!(rig.is_done(), "{:?}", rig.lost);
}
