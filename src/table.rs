//! The connections of one loop.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::fd::OwnedFd,
    sync::Arc,
    time::Instant,
};

use slab::Slab;

use crate::{
    address::Address,
    backend::{Sent, Sockets},
    connection::{Arrival, Connection, Filters, Step},
    connector::{Attempt, Connector},
    id::{ConnId, GENERATION_MASK, HostKey},
    limits::Limits,
    output::{Batch, Pool, Write},
    policies::Place,
    reactor::Core,
    timer::{TimerKey, keep_timer},
    transport::{Link, Side, SocketFlag, Visited},
};

/// Where a connection of the table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// A connector is making it.
    Connecting,
    /// Its protocol has been told, and has not been told of the loss.
    Made,
    /// The backend is taking it down; only its slot is left.
    Closing,
}

/// One connection of the table.
pub(crate) struct Entry {
    id: ConnId,
    pub(crate) connection: Connection,
    pub(crate) stage: Stage,
    pub(crate) host: HostKey,
    /// Where the host is, and where the protocol is inside it.
    pub(crate) host_slot: u32,
    pub(crate) protocol: u32,
    dirty: bool,
    /// Its place among the made connections of its host.
    member: u32,
    rare: Option<Box<Rare>>,
}

/// What most connections do without.
#[derive(Default)]
struct Rare {
    peer: Option<Address>,
    host: Option<Address>,
    timers: Vec<TimerKey>,
    deadline: Option<TimerKey>,
    connector: Option<(Connector, Attempt)>,
    /// Descriptors that came and were not told yet.
    descriptors: VecDeque<OwnedFd>,
    /// What accept policies have taken for it.
    places: Vec<Place>,
}

impl Entry {
    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// The connector that makes or made this connection, and in which attempt.
    pub(crate) fn connector(&self) -> Option<&(Connector, Attempt)> {
        self.rare.as_ref()?.connector.as_ref()
    }

    pub(crate) fn set_connector(&mut self, connector: Connector, attempt: Attempt) {
        self.rare().connector = Some((connector, attempt));
    }

    /// The connection gets its protocol, and keeps what the kernel was asked while it was built.
    pub(crate) fn become_made(&mut self, protocol: u32, half_closeable: bool, peer: Option<Address>) {
        self.protocol = protocol;
        self.connection = Connection::new(half_closeable);
        self.stage = Stage::Made;
        if peer.is_some() {
            self.rare().peer = peer;
        }
    }

    pub(crate) fn add_descriptors(&mut self, descriptors: Vec<OwnedFd>) {
        self.rare().descriptors.extend(descriptors);
    }

    /// The next descriptor to be told, if anything may be told now.
    pub(crate) fn next_descriptor(&mut self) -> Option<OwnedFd> {
        let descriptors = &mut self.rare.as_mut()?.descriptors;
        if !self.connection.is_open() {
            descriptors.clear();
        }
        if self.connection.is_delivering() { descriptors.pop_front() } else { None }
    }

    /// Keeps what accept policies have taken for it, until it is removed.
    pub(crate) fn keep_places(&mut self, places: Vec<Place>) {
        if !places.is_empty() {
            self.rare().places = places;
        }
    }

    /// The timer of its deadline.
    pub(crate) fn deadline(&self) -> Option<TimerKey> {
        self.rare.as_ref()?.deadline
    }

    pub(crate) fn set_deadline(&mut self, deadline: Option<TimerKey>) {
        if deadline != self.deadline() {
            self.rare().deadline = deadline;
        }
    }

    /// The timers that die with the connection.
    pub(crate) fn take_timers(&mut self) -> Vec<TimerKey> {
        self.rare.as_mut().map(|rare| std::mem::take(&mut rare.timers)).unwrap_or_default()
    }
}

/// All connections of a loop, with what they share.
pub(crate) struct Table {
    core: Arc<Core>,
    /// The latest generation of each slot, free ones included.
    generations: Vec<u32>,
    first_generation: u32,
    entries: Slab<Entry>,
    /// The made connections of each host, in no order.
    members: BTreeMap<HostKey, Vec<ConnId>>,
    dirty: Vec<ConnId>,
    pub(crate) pool: Pool,
    pub(crate) limits: Limits,
}

impl Table {
    pub(crate) fn new(core: &Arc<Core>) -> Self {
        let limits = core.config.limits.clone();
        Self {
            core: Arc::clone(core),
            generations: Vec::new(),
            first_generation: crate::id::first_generation(),
            entries: Slab::new(),
            members: BTreeMap::new(),
            dirty: Vec::new(),
            pool: Pool::new(&limits, &core.budget),
            limits,
        }
    }

    /// A place for a new connection. Each use of a slot has a generation of its own.
    pub(crate) fn insert(&mut self, host: HostKey, host_slot: u32, stage: Stage) -> ConnId {
        let slot = self.entries.vacant_key();
        if self.generations.len() <= slot {
            self.generations.resize(slot + 1, self.first_generation);
        }
        let generation = (self.generations[slot] + 1) & GENERATION_MASK;
        self.generations[slot] = generation;
        let id = ConnId::new(self.core.number, generation, slot as u32);
        self.entries.insert(Entry {
            id,
            connection: Connection::new(false),
            stage,
            host,
            host_slot,
            protocol: u32::MAX,
            dirty: false,
            member: 0,
            rare: None,
        });
        id
    }

    pub(crate) fn get(&mut self, id: ConnId) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(id.slot())?;
        (entry.id == id).then_some(entry)
    }

    pub(crate) fn remove(&mut self, id: ConnId) -> Option<Entry> {
        self.get(id)?;
        Some(self.entries.remove(id.slot()))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The ids of the connections that `wanted` chooses.
    pub(crate) fn ids(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<ConnId> {
        self.entries.iter().filter(|(_, entry)| wanted(entry)).map(|(_, entry)| entry.id).collect()
    }

    /// Counts a made connection among those of its host.
    pub(crate) fn join(&mut self, id: ConnId) {
        let Some(entry) = self.entries.get_mut(id.slot()) else { return };
        let members = self.members.entry(entry.host).or_default();
        entry.member = members.len() as u32;
        members.push(id);
    }

    /// The other end of [`join`](Self::join).
    pub(crate) fn leave(&mut self, id: ConnId) {
        let Some(entry) = self.entries.get(id.slot()) else { return };
        let (host, place) = (entry.host, entry.member as usize);
        let Some(members) = self.members.get_mut(&host) else { return };
        members.swap_remove(place);
        if let Some(moved) = members.get(place) {
            self.entries[moved.slot()].member = place as u32;
        } else if members.is_empty() {
            self.members.remove(&host);
        }
    }

    /// Has the loop settle this connection once it is through with the present events.
    pub(crate) fn mark_dirty(&mut self, id: ConnId) {
        let Some(entry) = self.get(id) else { return };
        if !std::mem::replace(&mut entry.dirty, true) {
            self.dirty.push(id);
        }
    }

    pub(crate) fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Moves the ids that have to be settled into `into`, which must be empty.
    pub(crate) fn take_dirty(&mut self, into: &mut Vec<ConnId>) {
        std::mem::swap(&mut self.dirty, into);
    }

    /// A batch of a connection came back. Answers whether the connection has to be settled after it.
    #[inline]
    pub(crate) fn sent(&mut self, id: ConnId, sent: Sent) -> bool {
        let Self { entries, pool, limits, .. } = self;
        let entry = entries.get_mut(id.slot()).filter(|entry| entry.id == id);
        let Some(entry) = entry else {
            pool.give(sent.batch);
            return false;
        };
        entry.connection.sent(sent.batch, sent.bytes, sent.errno, pool, limits);
        !entry.connection.is_settled()
    }

    /// Filters have done what they had to.
    pub(crate) fn filtered(&mut self, id: ConnId, filters: Box<Filters>) {
        let Self { entries, pool, limits, .. } = self;
        if let Some(entry) = entries.get_mut(id.slot()).filter(|entry| entry.id == id) {
            entry.connection.filtered(filters, pool, limits);
        }
    }

    /// Bytes of a made connection arrived: what becomes of them, and where its host and its protocol are.
    #[inline]
    pub(crate) fn received(&mut self, id: ConnId, data: &[u8]) -> Option<(Arrival, u32, u32)> {
        let Self { entries, limits, .. } = self;
        let entry = entries.get_mut(id.slot()).filter(|entry| entry.id == id)?;
        (entry.stage == Stage::Made)
            .then(|| (entry.connection.received(data, limits), entry.host_slot, entry.protocol))
    }

    /// The batch of a connection that wants nothing but to send it, if it has one; None if its steps must be asked for.
    pub(crate) fn next_batch_if_calm(&mut self, id: ConnId) -> Option<Option<Box<Batch>>> {
        let entry = self.entries.get_mut(id.slot())?;
        if entry.id != id || entry.stage != Stage::Made {
            return None;
        }
        let batch = entry.connection.next_batch_if_calm()?;
        entry.dirty = false;
        Some(batch)
    }

    /// The batch of a connection if it was the last to become dirty, and wants nothing but to send it.
    pub(crate) fn take_answer(&mut self, id: ConnId) -> Option<Box<Batch>> {
        if self.dirty.last() != Some(&id) {
            return None;
        }
        let batch = self.next_batch_if_calm(id)?;
        self.dirty.pop();
        batch
    }

    /// All connections together have too much unsent: ends the one that has the most, or `writer` if that has as much. Answers what its write
    /// comes to, which was answered so before.
    #[cold]
    fn end_fullest(&mut self, writer: ConnId, mut answer: Write) -> Write {
        while self.pool.budget().is_passed() {
            let counted = self.entries.iter_mut().map(|(_, entry)| entry);
            let fullest = counted.max_by_key(|entry| (entry.connection.counted(), entry.id == writer));
            let Some(entry) = fullest.filter(|entry| entry.connection.counted() > 0) else { break };
            let id = entry.id;
            entry.connection.end_for_budget(&mut self.pool);
            self.mark_dirty(id);
            if id == writer {
                answer = Write::Closed;
            }
        }
        answer
    }

    /// The next step of a connection.
    pub(crate) fn step(&mut self, id: ConnId, now: Instant, may_send: bool) -> Step {
        let Some(entry) = self.entries.get_mut(id.slot()) else { return Step::Idle };
        if entry.id != id {
            return Step::Idle;
        }
        entry.dirty = false;
        if entry.stage != Stage::Made {
            return Step::Idle;
        }
        entry.connection.step(now, &self.limits, &mut self.pool, may_send)
    }
}

/// How a transport reaches the connections of a loop, while one of its callbacks runs.
pub(crate) struct LoopLink<'a> {
    pub(crate) table: &'a mut Table,
    pub(crate) sockets: &'a mut dyn Sockets,
}

impl LoopLink<'_> {
    fn is_made(&mut self, id: ConnId) -> bool {
        self.table.get(id).is_some_and(|entry| entry.stage == Stage::Made)
    }
}

impl Link for LoopLink<'_> {
    fn write(&mut self, id: ConnId, data: &[u8]) -> Write {
        let Table { entries, pool, limits, dirty, .. } = &mut *self.table;
        let Some(entry) = entries.get_mut(id.slot()) else { return Write::Closed };
        if entry.id != id || entry.stage != Stage::Made {
            return Write::Closed;
        }
        if !std::mem::replace(&mut entry.dirty, true) {
            dirty.push(id);
        }
        let answer = entry.connection.write(pool, limits, data);
        if pool.take_passed() { self.table.end_fullest(id, answer) } else { answer }
    }

    fn append(&mut self, id: ConnId, append: &mut dyn FnMut(Visited<'_>) -> Write) -> Write {
        let mut answer = Write::Closed;
        self.visit(id, &mut |visited| answer = append(visited));
        if self.table.pool.take_passed() { self.table.end_fullest(id, answer) } else { answer }
    }

    fn visit(&mut self, id: ConnId, act: &mut dyn FnMut(Visited<'_>)) {
        let Table { entries, pool, limits, dirty, .. } = &mut *self.table;
        let Some(entry) = entries.get_mut(id.slot()) else { return };
        if entry.id != id || entry.stage != Stage::Made {
            return;
        }
        act(Visited { connection: &mut entry.connection, pool, limits });
        if !std::mem::replace(&mut entry.dirty, true) {
            dirty.push(id);
        }
    }

    fn now(&self) -> Instant {
        self.table.core.clock.now()
    }

    fn address(&mut self, id: ConnId, side: Side) -> Address {
        let Some(entry) = self.table.get(id) else { return Address::Unknown };
        let kept = entry.rare.as_ref().and_then(|rare| match side {
            Side::Peer => rare.peer.clone(),
            Side::Host => rare.host.clone(),
        });
        if let Some(address) = kept {
            return address;
        }
        let asked = match side {
            _ if !self.is_made(id) => None,
            Side::Peer => self.sockets.peer_address(id),
            Side::Host => self.sockets.local_address(id),
        };
        let Some(address) = asked else { return Address::Unknown };
        if let Some(entry) = self.table.get(id) {
            let rare = entry.rare();
            *match side {
                Side::Peer => &mut rare.peer,
                Side::Host => &mut rare.host,
            } = Some(address.clone());
        }
        address
    }

    fn flag(&mut self, id: ConnId, flag: SocketFlag, set: Option<bool>) -> io::Result<bool> {
        if !self.is_made(id) || self.table.get(id).is_none_or(|entry| entry.connection.is_lost()) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        match flag {
            SocketFlag::NoDelay => self.sockets.no_delay(id, set),
            SocketFlag::KeepAlive => self.sockets.keep_alive(id, set),
        }
    }

    fn ids(&mut self, host: HostKey) -> Vec<ConnId> {
        self.table.members.get(&host).cloned().unwrap_or_default()
    }

    fn bind_timer(&mut self, id: ConnId, timer: TimerKey, alive: &dyn Fn(TimerKey) -> bool) -> bool {
        let Some(entry) = self.table.get(id).filter(|entry| entry.stage == Stage::Made) else {
            return false;
        };
        keep_timer(&mut entry.rare().timers, timer, alive);
        true
    }
}
