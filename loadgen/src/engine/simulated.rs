//! The engine over a wire that exists in memory only, whose events come in every order that a kernel may choose:
//! cut anywhere, replies before the send that asked for them is known to be over, ends among all of it, receives
//! that find no buffer. It holds the engine to what `wire` says of slots, and panics if that is not kept.

use std::{
    cell::Cell,
    collections::VecDeque,
    io,
    ops::Range,
    os::fd::OwnedFd,
    rc::Rc,
    time::{Duration, Instant},
};

use nix::errno::Errno;

use super::{
    Client, Close, Counted, Dialogue, Load, Watcher,
    buffers::Lease,
    open_loop::{Arrival, Pace, Pacing},
    run_over,
    wire::{Event, Farewell, Plan, Wire},
};
use crate::{http, message::Verify, target::Target};

const CONNECTIONS: usize = 6;
const SEEDS: u64 = 25;
const EVENTS_A_TURN: usize = 40;
/// A run takes some milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// xorshift64*: the same choices for the same seed.
#[derive(Debug)]
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

/// What the server at the other end does.
#[derive(Clone, Copy, Debug)]
enum Server {
    /// Sends back what comes, and with a number closes after so many bytes.
    Echo(Option<usize>),
    Push,
    /// Answers each request; the last of so many on a connection is followed by its end, and by RST if more has
    /// come that it has not read.
    Pages(usize),
    /// Answers with half of what comes, and then with its end, behind which there is an RST.
    Torn,
}

/// A connection, seen from both ends.
#[derive(Debug, Default)]
struct Slot {
    connecting: bool,
    is_up: bool,
    armed: bool,
    outgoing: Box<[u8]>,
    /// What is left of the send, which may be empty before the engine is told.
    sending: Option<Range<usize>>,
    client_is_done: bool,
    to_server: VecDeque<u8>,
    to_client: VecDeque<u8>,
    /// What the server has read, in bytes or requests.
    read: usize,
    server_is_done: bool,
    reset: bool,
}

struct Simulated {
    dice: Dice,
    server: Server,
    slots: Vec<Slot>,
    single_receives: bool,
    /// As over epoll: who is connected is told whatever comes.
    always_armed: bool,
    chunk: Vec<u8>,
    events_left: usize,
    began: Instant,
    /// What the server has answered, counted by receiver.
    answered: Rc<Cell<u64>>,
}

impl Simulated {
    /// The step that the dice choose for one slot; often none.
    fn step(&mut self, index: usize) -> Option<Event> {
        match self.dice.below(5) {
            0 => self.connect_step(index),
            1 => self.send_step(index),
            2 => {
                self.serve(index);
                None
            }
            _ => self.receive_step(index),
        }
    }

    fn connect_step(&mut self, index: usize) -> Option<Event> {
        let slot = &mut self.slots[index];
        if !slot.connecting {
            return None;
        }
        (slot.connecting, slot.is_up, slot.armed) = (false, true, self.always_armed);
        Some(Event::Connected { slot: index, result: Ok(()) })
    }

    fn send_step(&mut self, index: usize) -> Option<Event> {
        let slot = &mut self.slots[index];
        let left = slot.sending.as_mut()?;
        if slot.reset {
            slot.sending = None;
            return Some(Event::Sent { slot: index, result: Err(Errno::EPIPE) });
        }
        let taken = self.dice.below(left.len() + 1);
        slot.to_server.extend(&slot.outgoing[left.start..left.start + taken]);
        left.start += taken;
        if left.start < left.end || self.dice.one_in(2) {
            return None;
        }
        slot.sending = None;
        Some(Event::Sent { slot: index, result: Ok(0) })
    }

    fn serve(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        if slot.server_is_done {
            slot.reset |= matches!(self.server, Server::Torn);
            slot.reset |= matches!(self.server, Server::Pages(_)) && !slot.to_server.is_empty();
            return;
        }
        match self.server {
            Server::Echo(close_after) => {
                slot.read += slot.to_server.len();
                slot.to_client.append(&mut slot.to_server);
                slot.server_is_done = close_after.is_some_and(|bytes| slot.read >= bytes);
            }
            Server::Push => {
                let bytes: Vec<u8> = slot.to_server.drain(..).collect();
                let members = self.slots.iter_mut().filter(|slot| slot.is_up);
                members.for_each(|member| member.to_client.extend(&bytes));
            }
            Server::Pages(most) => self.serve_pages(index, most),
            Server::Torn if slot.to_server.len() >= 64 => {
                slot.to_client.extend(slot.to_server.drain(..).take(32));
                slot.server_is_done = true;
            }
            Server::Torn => {}
        }
        let slot = &mut self.slots[index];
        slot.server_is_done |= slot.client_is_done && slot.to_server.is_empty() && slot.sending.is_none();
    }

    fn serve_pages(&mut self, index: usize, most: usize) {
        let slot = &mut self.slots[index];
        let bytes = slot.to_server.make_contiguous();
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return };
        slot.to_server.drain(..end + 4);
        slot.read += 1;
        slot.server_is_done = slot.read == most;
        let close = if slot.server_is_done { "Connection: close\r\n" } else { "" };
        slot.to_client.extend(format!("HTTP/1.1 200 OK\r\n{close}Content-Length: 5\r\n\r\nhello").bytes());
        self.answered.set(self.answered.get() + 1);
    }

    fn receive_step(&mut self, index: usize) -> Option<Event> {
        let no_buffer = !self.always_armed && self.dice.one_in(8);
        let stops = !self.always_armed && (self.single_receives || self.dice.one_in(4));
        let slot = &mut self.slots[index];
        if !slot.armed {
            return None;
        }
        let told = |result, more| Some(Event::Received { slot: index, result, more });
        if !slot.to_client.is_empty() && !no_buffer {
            let length = self.dice.below(slot.to_client.len().min(200)) + 1;
            self.chunk = slot.to_client.drain(..length).collect();
            slot.armed = !stops;
            return told(Ok(Some(Lease::of_length(length))), !stops);
        }
        if slot.to_client.is_empty() && !slot.server_is_done {
            return None;
        }
        // Over epoll an end may be told more than once.
        slot.armed = self.always_armed;
        if no_buffer {
            return told(Err(Errno::ENOBUFS), false);
        }
        if slot.reset {
            slot.armed = false;
            return told(Err(Errno::ECONNRESET), self.always_armed);
        }
        told(Ok(None), self.always_armed)
    }
}

impl Wire for Simulated {
    fn connect(&mut self, slot: usize, _socket: OwnedFd) {
        let slot = &mut self.slots[slot];
        assert!(!slot.is_up && !slot.connecting, "one connection a slot");
        slot.connecting = true;
    }

    fn receive(&mut self, slot: usize) {
        let slot = &mut self.slots[slot];
        assert!(slot.is_up, "there is nothing to receive from");
        assert!(!slot.armed || self.always_armed, "one receive a connection");
        slot.armed = true;
    }

    fn outgoing(&self, slot: usize) -> &[u8] {
        &self.slots[slot].outgoing
    }

    fn outgoing_mut(&mut self, slot: usize) -> Option<&mut [u8]> {
        let slot = &mut self.slots[slot];
        slot.sending.is_none().then_some(&mut slot.outgoing)
    }

    fn send(&mut self, slot: usize, part: Range<usize>) {
        let slot = &mut self.slots[slot];
        assert!(slot.is_up && slot.sending.is_none() && !slot.client_is_done && !part.is_empty());
        slot.sending = Some(part);
    }

    fn finish(&mut self, slot: usize) {
        assert!(self.slots[slot].is_up && self.slots[slot].sending.is_none());
        self.slots[slot].client_is_done = true;
    }

    fn close(&mut self, index: usize, _farewell: Farewell) {
        let slot = &mut self.slots[index];
        assert!(slot.is_up && slot.sending.is_none(), "something is under way");
        assert!(!slot.armed || self.always_armed, "a receive is under way");
        *slot = Slot { outgoing: std::mem::take(&mut slot.outgoing), ..Slot::default() };
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
            let slot = self.dice.below(self.slots.len());
            if let Some(event) = self.step(slot) {
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

fn echo() -> Load {
    let ms = Duration::from_millis(1);
    Load {
        target: Target::Tcp(([127, 0, 0, 1], 1).into()),
        connections: CONNECTIONS,
        first: 0,
        sizes: "64".parse().expect("valid"),
        pipeline: 1,
        seed: 1,
        round: 1,
        verify: Verify::Full,
        timeout: PATIENCE / 2,
        ramp: Duration::ZERO,
        warmup: ms,
        duration: 5 * ms,
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

fn get(close: bool) -> Dialogue {
    Dialogue::Http(http::Request::get("simulated", "/", close).expect("valid"))
}

fn paced() -> Option<Pacing> {
    Some(Pacing { rate: 20_000.0, arrival: Arrival::Poisson, pace: Pace::Sleep })
}

fn simulate(load: &Load, server: Server, seed: u64) -> (Counted, u64) {
    let Plan { outgoing_bytes, single_receives, .. } = load.plan();
    let slot = |bytes| Slot { outgoing: vec![0; bytes].into(), ..Slot::default() };
    let answered = Rc::new(Cell::new(0));
    let wire = Simulated {
        dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        server,
        slots: outgoing_bytes.into_iter().map(slot).collect(),
        single_receives,
        always_armed: seed.is_multiple_of(2),
        chunk: Vec::new(),
        events_left: 0,
        began: Instant::now(),
        answered: answered.clone(),
    };
    let counted = run_over(wire, load, &mut Nobody).expect("it begins");
    (counted, answered.get())
}

/// Runs in many orders; each must end well and leave nothing out of its account.
#[track_caller]
fn assert_right(load: &Load, server: Server) {
    for seed in 1..=SEEDS {
        let (counted, answered) = simulate(load, server, seed);
        assert!(counted.error.is_none(), "seed {seed}: {counted:#?}");
        assert!(counted.failures.is_empty() && counted.requests_total > 0, "seed {seed}: {counted:#?}");
        if load.churn.is_some() {
            assert_eq!(counted.requests_total, counted.connections_made, "seed {seed}");
        }
        match (server, &load.dialogue) {
            (Server::Pages(_), _) => assert_eq!(counted.requests_total, answered, "seed {seed}"),
            (_, Dialogue::Push) => {}
            _ if load.sizes.only().is_some() => {
                assert_eq!(counted.bytes_sent_total, 64 * counted.requests_total, "seed {seed}");
            }
            _ => {}
        }
        if let Some(paced) = &counted.paced {
            let audience = load.audience() as u64;
            assert_eq!(
                paced.service.len(),
                audience * (paced.offered - paced.dropped),
                "seed {seed}: {paced:?}"
            );
        }
    }
}

#[test]
fn replies_may_come_in_any_pieces_and_before_their_send_is_over() {
    assert_right(&echo(), Server::Echo(None));
    assert_right(&Load { pipeline: 5, ..echo() }, Server::Echo(None));
    let sizes = "24:3+64:2+500:1".parse().expect("valid");
    assert_right(&Load { pipeline: 3, sizes, ..echo() }, Server::Echo(None));
    assert_right(&Load { think: Duration::from_micros(50), ..echo() }, Server::Echo(None));
    assert_right(&Load { pacing: paced(), ..echo() }, Server::Echo(None));
    assert_right(&Load { ramp: Duration::from_millis(2), ..echo() }, Server::Echo(None));
}

#[test]
fn all_hear_what_is_pushed_each_at_its_own_pace() {
    let push = || Load { dialogue: Dialogue::Push, ..echo() };
    assert_right(&push(), Server::Push);
    assert_right(&Load { pipeline: 4, ..push() }, Server::Push);
    let sizes = "24:3+64:2+500:1".parse().expect("valid");
    assert_right(&Load { pipeline: 3, sizes, ..push() }, Server::Push);
    assert_right(&Load { think: Duration::from_micros(50), ..push() }, Server::Push);
    assert_right(&Load { pacing: paced(), ..push() }, Server::Push);
}

#[test]
fn connections_come_and_go_whoever_closes_first() {
    for (close, server) in [
        (Close::Fin, Server::Echo(None)),
        (Close::Rst, Server::Echo(None)),
        (Close::Server, Server::Echo(Some(64))),
    ] {
        let churn = || Load { churn: Some(close), ..echo() };
        assert_right(&churn(), server);
        assert_right(&Load { pacing: paced(), ..churn() }, server);
        assert_right(&Load { think: Duration::from_micros(50), ..churn() }, server);
        let pages = Server::Pages(if close == Close::Server { 1 } else { usize::MAX });
        assert_right(&Load { dialogue: get(close == Close::Server), ..churn() }, pages);
    }
}

#[test]
fn connections_are_made_anew_when_the_server_says_so() {
    let pages = || Load { dialogue: get(false), ..echo() };
    for most in [1, 2, 7] {
        assert_right(&pages(), Server::Pages(most));
        assert_right(&Load { pipeline: 4, ..pages() }, Server::Pages(most));
        assert_right(&Load { pacing: paced(), ..pages() }, Server::Pages(most));
        assert_right(&Load { think: Duration::from_micros(50), ..pages() }, Server::Pages(most));
    }
}

/// The end is told as a FIN, as an RST, or as one and then the other, which is no second end.
#[test]
fn a_connection_that_breaks_off_ends_once_though_a_reset_follows() {
    // One alone, so that a second end would be of none.
    let alone = Load { connections: 1, ..echo() };
    for seed in 1..=4 * SEEDS {
        let (counted, _) = simulate(&alone, Server::Torn, seed);
        assert!(!counted.failures.is_empty(), "seed {seed}: {counted:#?}");
        // What it sends may fail for the reset, too, before or beside that.
        let ends = counted.failures.iter().filter(|failure| failure.phase != "send");
        let ends: Vec<_> = ends.map(|failure| (&*failure.cause, failure.count)).collect();
        assert!(matches!(ends[..], [] | [("closed_early" | "ECONNRESET", 1)]), "seed {seed}: {ends:?}");
    }
}

#[test]
fn idle_connections_ask_once_and_some_of_them_once_more() {
    // So short that some connections are only being made anew when others are asked.
    let duration = Duration::from_micros(1);
    let idle = || Load { idle: Some(0.5), warmup: Duration::ZERO, duration, ..echo() };
    for (load, server) in [
        (idle(), Server::Echo(None)),
        (Load { dialogue: get(false), ..idle() }, Server::Pages(usize::MAX)),
        (Load { dialogue: get(false), ..idle() }, Server::Pages(1)),
    ] {
        for seed in 1..=SEEDS {
            let (counted, _) = simulate(&load, server, seed);
            assert!(counted.error.is_none(), "seed {seed}: {counted:#?}");
            assert_eq!(counted.requests_total, (CONNECTIONS + counted.pinged) as u64, "seed {seed}");
            assert!(counted.pinged <= CONNECTIONS / 2, "seed {seed}");
        }
    }
}
