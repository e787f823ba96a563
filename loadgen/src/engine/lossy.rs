//! The engine of datagrams over a network that exists in memory only, which loses, delays and mixes up what is sent as
//! the dice say, and tells of sends before or after their replies. It holds the engine to what `wire` says of slots,
//! and panics if that is not kept.

use std::{
    cell::Cell,
    io,
    ops::Range,
    os::fd::OwnedFd,
    rc::Rc,
    time::{Duration, Instant},
};

use nix::errno::Errno;

use super::{
    Client, Counted, Dialogue, Load, Watcher,
    buffers::Lease,
    datagrams::{DatagramCounts, run_over},
    open_loop::{Arrival, Pace, Pacing},
    wire::{Event, Farewell, Plan, Wire},
};
use crate::{
    error::{Error, Exit},
    message::Verify,
    target::Target,
};

const SOCKETS: usize = 5;
const SEEDS: u64 = 25;
const EVENTS_A_TURN: usize = 40;
/// A run takes some milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);
const TIMEOUT: Duration = Duration::from_millis(2);

/// xorshift64*: the same choices for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }
}

/// What the network and the server at its end do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// One in four datagrams is lost.
    Loss,
    /// One in eight waits until its request has been given up.
    Delay,
    Deaf,
    Repeats,
    /// The same, of replies that come late.
    RepeatsLate,
    Shortens,
    Flips,
    /// Answers come to another socket.
    Misdelivers,
    /// Nobody is there, and the other machine says so.
    Refuses,
}

#[derive(Default)]
struct Slot {
    outgoing: Box<[u8]>,
    sending: bool,
    connecting: bool,
    is_up: bool,
    armed: bool,
}

struct Packet {
    socket: usize,
    bytes: Vec<u8>,
    /// Before which it does not come.
    due: Instant,
}

struct Network {
    dice: Dice,
    fault: Fault,
    sharing: usize,
    slots: Vec<Slot>,
    replies: Vec<Packet>,
    refused: Option<usize>,
    chunk: Vec<u8>,
    events_left: usize,
    began: Instant,
    /// Replies that were delivered.
    delivered: Rc<Cell<u64>>,
}

impl Network {
    fn owner(&self, slot: usize) -> usize {
        slot - slot % self.sharing
    }

    /// The server answers, unless the request or the reply is lost.
    fn answer(&mut self, socket: usize, mut bytes: Vec<u8>) {
        let now = Instant::now();
        let (mut due, mut copies, mut to) = (now, 1, socket);
        match self.fault {
            Fault::Loss if self.dice.one_in(4) => copies = 0,
            Fault::Deaf => copies = 0,
            Fault::Delay if self.dice.one_in(8) => due = now + 2 * TIMEOUT,
            Fault::Repeats if self.dice.one_in(8) => copies = 2,
            Fault::RepeatsLate if self.dice.one_in(8) => (due, copies) = (now + 2 * TIMEOUT, 2),
            Fault::Shortens if self.dice.one_in(8) => bytes.truncate(30),
            Fault::Flips if self.dice.one_in(8) => bytes[40] ^= 1,
            Fault::Misdelivers if self.dice.one_in(8) => to = (socket + self.sharing) % self.slots.len(),
            Fault::Refuses => {
                self.refused = Some(socket);
                copies = 0;
            }
            _ => {}
        }
        for _ in 0..copies {
            self.replies.push(Packet { socket: to, bytes: bytes.clone(), due });
        }
    }

    fn step(&mut self) -> Option<Event> {
        let slot = self.dice.below(self.slots.len());
        if self.slots[slot].connecting {
            (self.slots[slot].connecting, self.slots[slot].is_up) = (false, true);
            return Some(Event::Connected { slot, result: Ok(()) });
        }
        if self.slots[slot].sending && self.dice.one_in(2) {
            self.slots[slot].sending = false;
            return Some(Event::Sent { slot, result: Ok(0) });
        }
        if let Some(slot) = self.refused.take() {
            return Some(Event::Received { slot, result: Err(Errno::ECONNREFUSED), more: false });
        }
        self.deliver()
    }

    /// Any of those that are on their way, not the oldest.
    fn deliver(&mut self) -> Option<Event> {
        if self.replies.is_empty() {
            return None;
        }
        let chosen = self.dice.below(self.replies.len());
        let slot = self.replies[chosen].socket;
        if self.replies[chosen].due > Instant::now() || !self.slots[slot].armed {
            return None;
        }
        if self.dice.one_in(8) {
            self.slots[slot].armed = false;
            return Some(Event::Received { slot, result: Err(Errno::ENOBUFS), more: false });
        }
        let more = !self.dice.one_in(4);
        self.slots[slot].armed = more;
        self.chunk = self.replies.swap_remove(chosen).bytes;
        self.delivered.set(self.delivered.get() + 1);
        Some(Event::Received { slot, result: Ok(Some(Lease::of_length(self.chunk.len()))), more })
    }
}

impl Wire for Network {
    fn connect(&mut self, slot: usize, _socket: OwnedFd) {
        assert_eq!(slot, self.owner(slot), "a socket belongs to the first of its slots");
        assert!(!self.slots[slot].is_up && !self.slots[slot].connecting, "one connection a slot");
        self.slots[slot].connecting = true;
    }

    fn receive(&mut self, slot: usize) {
        assert!(self.slots[slot].is_up && !self.slots[slot].armed, "one receive a socket");
        self.slots[slot].armed = true;
    }

    fn outgoing(&self, slot: usize) -> &[u8] {
        &self.slots[slot].outgoing
    }

    fn outgoing_mut(&mut self, slot: usize) -> Option<&mut [u8]> {
        let slot = &mut self.slots[slot];
        (!slot.sending).then_some(&mut slot.outgoing)
    }

    fn send(&mut self, slot: usize, part: Range<usize>) {
        let owner = self.owner(slot);
        assert!(self.slots[owner].is_up && !self.slots[slot].sending && !part.is_empty());
        self.slots[slot].sending = true;
        let bytes = self.slots[slot].outgoing[part].to_vec();
        self.answer(owner, bytes);
    }

    fn finish(&mut self, _slot: usize) {
        unreachable!("datagrams have no end");
    }

    fn close(&mut self, _slot: usize, _farewell: Farewell) {
        unreachable!("sockets of datagrams end with the wire");
    }

    fn received(&self, lease: &Lease) -> &[u8] {
        &self.chunk[..lease.length()]
    }

    fn give_back(&mut self, _lease: Lease) {}

    fn buffer_count(&self) -> usize {
        2
    }

    fn wait(&mut self, _timeout: Duration) -> io::Result<()> {
        assert!(self.began.elapsed() < PATIENCE, "it waits for ever");
        self.events_left = self.dice.below(EVENTS_A_TURN);
        Ok(())
    }

    fn next_event(&mut self) -> Option<Event> {
        while self.events_left > 0 {
            self.events_left -= 1;
            if let Some(event) = self.step() {
                return Some(event);
            }
        }
        None
    }
}

/// Nobody watches.
struct Nobody;

impl Watcher for Nobody {
    fn connected(&mut self) {}
    fn window_opened(&mut self) {}
    fn window_closed(&mut self) {}
    fn interrupted(&self) -> bool {
        false
    }
}

fn load() -> Load {
    let ms = Duration::from_millis(1);
    Load {
        target: Target::Udp(([127, 0, 0, 1], 1).into()),
        connections: SOCKETS,
        first: 0,
        sizes: "64".parse().expect("valid"),
        pipeline: 1,
        seed: 1,
        round: 1,
        verify: Verify::Full,
        timeout: TIMEOUT,
        ramp: Duration::ZERO,
        warmup: ms,
        duration: 8 * ms,
        think: Duration::ZERO,
        dialogue: Dialogue::Echo,
        churn: None,
        pacing: None,
        idle: None,
        client: Client::Epoll,
        burst: None,
        stall: None,
    }
}

fn simulate(load: &Load, fault: Fault, seed: u64) -> (Counted, u64) {
    let Plan { outgoing_bytes, datagrams, .. } = load.plan();
    let slot = |bytes| Slot { outgoing: vec![0; bytes].into(), ..Slot::default() };
    let delivered = Rc::new(Cell::new(0));
    let network = Network {
        dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        fault,
        sharing: datagrams.expect("a load over UDP"),
        slots: outgoing_bytes.into_iter().map(slot).collect(),
        replies: Vec::new(),
        refused: None,
        chunk: Vec::new(),
        events_left: 0,
        began: Instant::now(),
        delivered: delivered.clone(),
    };
    let counted = run_over(network, load, &mut Nobody).expect("it begins");
    (counted, delivered.get())
}

/// Runs in many orders. Accounts must agree in each; what is answered in all.
#[track_caller]
fn assert_right(load: &Load, fault: Fault) -> DatagramCounts {
    let mut sum = DatagramCounts::default();
    for seed in 1..=SEEDS {
        let (counted, delivered) = simulate(load, fault, seed);
        assert!(counted.error.is_none() && counted.failures.is_empty(), "seed {seed}: {counted:#?}");
        let counts = counted.datagrams.expect("they are datagrams");
        let DatagramCounts { sent, answered, lost, late, outstanding, lost_in_window, .. } = counts;
        assert_eq!((sent, outstanding), (answered + lost, 0), "seed {seed}: {counts:?}");
        assert_eq!(
            (answered, answered + late),
            (counted.requests_total, delivered),
            "seed {seed}: {counts:?}"
        );
        assert!(late <= lost && lost_in_window <= lost, "seed {seed}: {counts:?}");
        if let Some(paced) = &counted.paced {
            assert_eq!(paced.service.len(), paced.offered - paced.dropped, "seed {seed}: {paced:?}");
        }
        sum.answered += answered;
        sum.lost += lost;
        sum.late += late;
    }
    assert!(sum.answered > 0, "{sum:?}");
    sum
}

/// The first error of any order.
fn first_error(load: &Load, fault: Fault) -> Error {
    let errors = (1..=SEEDS).filter_map(|seed| simulate(load, fault, seed).0.error);
    errors.into_iter().next().unwrap_or_else(|| panic!("nobody has noticed {fault:?}"))
}

#[test]
fn replies_may_come_in_any_order_and_before_their_send_is_over() {
    // However long this process stands still.
    let patient = || Load { timeout: PATIENCE / 2, ..load() };
    let paced = Some(Pacing { rate: 20_000.0, arrival: Arrival::Poisson, pace: Pace::Sleep });
    let sizes = "24:3+64:2+500:1".parse().expect("valid");
    for load in [
        patient(),
        Load { pipeline: 7, ..patient() },
        Load { pipeline: 3, sizes, ..patient() },
        Load { think: Duration::from_micros(50), ..patient() },
        Load { pacing: paced, ..patient() },
        Load { verify: Verify::Off, ..patient() },
    ] {
        let counts = assert_right(&load, Fault::None);
        assert_eq!((counts.lost, counts.late), (0, 0), "{load:?}");
    }
}

#[test]
fn what_is_lost_is_counted_and_its_place_asks_again() {
    let paced = Some(Pacing { rate: 20_000.0, arrival: Arrival::Poisson, pace: Pace::Sleep });
    for load in [load(), Load { pipeline: 7, ..load() }, Load { pacing: paced, ..load() }] {
        assert!(assert_right(&load, Fault::Loss).lost > 0, "{load:?}");
    }
}

#[test]
fn what_comes_late_is_verified_and_counted_as_late() {
    let sizes = "24:3+64:2+500:1".parse().expect("valid");
    for load in [load(), Load { pipeline: 4, sizes, ..load() }] {
        let counts = assert_right(&load, Fault::Delay);
        assert!(counts.late > 0 && counts.late <= counts.lost, "{counts:?}");
    }
}

#[test]
fn what_is_wrong_with_a_datagram_is_named() {
    let patient = || Load { timeout: PATIENCE / 2, ..load() };
    for (fault, exit, words) in [
        (Fault::Repeats, Exit::Verification, "once more"),
        (Fault::Shortens, Exit::Verification, "a reply of 30 bytes came to a request of 64"),
        (Fault::Flips, Exit::Verification, "reply corrupted at byte 40"),
        (Fault::Misdelivers, Exit::Verification, "got the reply of connection"),
        (Fault::Refuses, Exit::Machine, "is a server listening there?"),
    ] {
        for load in [patient(), Load { pipeline: 4, ..patient() }] {
            let error = first_error(&load, fault);
            assert_eq!(error.exit, exit, "{fault:?}: {error}");
            assert!(error.to_string().contains(words), "{fault:?}: {error}");
        }
    }
}

#[test]
fn what_comes_late_may_come_once_only() {
    let error = first_error(&load(), Fault::RepeatsLate);
    assert!(error.to_string().contains("once more"), "{error}");
    for seed in 1..=SEEDS {
        let counts = simulate(&load(), Fault::RepeatsLate, seed).0.datagrams.expect("they are datagrams");
        assert!(counts.late <= counts.lost, "seed {seed}: {counts:?}");
    }
}

#[test]
fn who_never_answers_is_told_apart_from_who_loses_some() {
    let error = first_error(&load(), Fault::Deaf);
    assert_eq!(error.exit, Exit::Machine);
    assert!(error.to_string().contains("none of"), "{error}");
}
