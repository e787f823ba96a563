//! Ports for datagrams of a loop: opening, telling, sending, closing.

use std::collections::BTreeMap;

use super::EventLoop;
use crate::{
    backend::{Datagram, DatagramBatch},
    datagram_host::{DatagramEvent, OpenDatagrams},
    driver::tell_done,
    error::{Errno, Error},
    host::drop_quietly,
    id::PortKey,
    port::Port,
    protocol::ErasedCall,
    reactor::Reactor,
    stats::Count,
};

/// The ports that are open.
#[derive(Default)]
pub(super) struct DatagramPorts {
    /// By a tree, as the backends have them: the few ports there mostly are lie in one node, and to hash a key took 1 % of a
    /// server's time over 1,000 sockets.
    open: BTreeMap<PortKey, Entry>,
    /// Those that have something to send, or are to be closed.
    dirty: Vec<PortKey>,
    /// Kept, so that none is made with every turn.
    #[allow(clippy::vec_box)] // They travel as boxes.
    spare: Vec<Box<DatagramBatch>>,
}

struct Entry {
    served: OpenDatagrams,
    dirty: bool,
    /// The backend has datagrams of it.
    sending: bool,
    closing: bool,
}

impl DatagramPorts {
    pub(super) fn are_closed(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn have_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Calls the port's protocol, and notes what that has written.
    fn visit(&mut self, port: PortKey, act: impl FnOnce(&mut Entry)) {
        let Some(entry) = self.open.get_mut(&port) else { return };
        act(entry);
        if (entry.served.has_outgoing() || entry.closing) && !std::mem::replace(&mut entry.dirty, true) {
            self.dirty.push(port);
        }
    }

    pub(super) fn received(&mut self, reactor: &Reactor, port: PortKey, datagram: Option<Datagram<'_>>) {
        let Some((from, data)) = datagram else {
            return self.failed(reactor, port, Errno::from_raw(libc::EBADMSG));
        };
        let counters = &reactor.core.counters;
        counters.add(Count::DatagramsReceived, 1);
        counters.add(Count::DatagramsTooLong, data.is_none().into());
        self.visit(port, |entry| entry.served.received(reactor, &from, data));
    }

    pub(super) fn failed(&mut self, reactor: &Reactor, port: PortKey, errno: Errno) {
        self.visit(port, |entry| entry.served.failed(reactor, errno));
    }

    pub(super) fn sent(&mut self, reactor: &Reactor, port: PortKey, mut sent: Box<DatagramBatch>) {
        let DatagramBatch { datagrams, failed } = &mut *sent;
        let gone = datagrams.len() - failed.len();
        reactor.core.counters.add(Count::DatagramsSent, gone as u64);
        self.visit(port, |entry| {
            entry.sending = false;
            entry.served.sent(reactor, datagrams, failed);
        });
        datagrams.clear();
        failed.clear();
        self.spare.push(sent);
    }

    /// Closes a port once it has sent what it has.
    pub(super) fn close(&mut self, port: PortKey) {
        self.visit(port, |entry| entry.closing = true);
    }
}

impl EventLoop {
    pub(super) fn open_datagrams(&mut self, port: Port, seed: ErasedCall, max_packet_size: usize) {
        if self.stopping || port.is_stopped() {
            drop_quietly(seed);
            return tell_done(&port, &self.reactor, None);
        }
        let key = port.key();
        let Some(served) = OpenDatagrams::new(port, seed, self.table.limits.output_max) else { return };
        self.backend.open_datagrams(key, served.socket().clone(), max_packet_size);
        let entry = Entry { served, dirty: false, sending: false, closing: false };
        self.datagrams.open.insert(key, entry);
        self.tell_datagrams(key, DatagramEvent::Start);
    }

    fn tell_datagrams(&mut self, key: PortKey, event: DatagramEvent<'_>) {
        self.datagrams.visit(key, |entry| entry.served.tell(&self.reactor, event));
    }

    pub(super) fn call_datagrams(&mut self, key: PortKey, call: ErasedCall) {
        if self.datagrams.open.contains_key(&key) {
            self.tell_datagrams(key, DatagramEvent::Call(call));
        } else {
            drop_quietly(call);
        }
    }

    /// Sends what was written since the last time. A port whose last datagrams are still with the backend has its turn
    /// when they are back.
    pub(super) fn send_datagrams(&mut self) {
        let mut dirty = std::mem::take(&mut self.datagrams.dirty);
        for key in dirty.drain(..) {
            let DatagramPorts { open, spare, .. } = &mut self.datagrams;
            let Some(entry) = open.get_mut(&key) else { continue };
            if entry.sending {
                self.datagrams.dirty.push(key);
                continue;
            }
            entry.dirty = false;
            if entry.served.has_outgoing() {
                entry.sending = true;
                let mut batch = spare.pop().unwrap_or_default();
                entry.served.swap_outgoing(&mut batch.datagrams);
                debug_assert!(batch.failed.is_empty(), "it was told and cleared when it came back");
                if let Some(sent) = self.backend.send_datagrams(key, batch) {
                    self.datagrams.sent(&self.reactor, key, sent);
                }
            }
            self.close_datagrams_if_idle(key);
        }
        dirty.append(&mut self.datagrams.dirty);
        self.datagrams.dirty = dirty;
    }

    fn close_datagrams_if_idle(&mut self, key: PortKey) {
        let closing = |entry: &mut Entry| entry.closing && !entry.served.has_outgoing() && !entry.sending;
        if self.datagrams.open.get_mut(&key).is_some_and(closing) {
            self.backend.close_datagrams(key);
        } else {
            // What is with the backend brings its port here again.
            self.datagrams.visit(key, |_| ());
        }
    }

    pub(super) fn close_all_datagrams(&mut self) {
        let ports: Vec<_> = self.datagrams.open.keys().copied().collect();
        for key in ports {
            self.datagrams.visit(key, |entry| {
                entry.closing |= entry.served.port().mark_stopped();
            });
        }
    }

    pub(super) fn datagrams_closed(&mut self, key: PortKey, error: Option<&Error>) {
        if let Some(entry) = self.datagrams.open.remove(&key) {
            let port = entry.served.stop(&self.reactor);
            tell_done(&port, &self.reactor, error);
        }
    }

    /// The kernel has failed the loop itself.
    pub(super) fn collapse_datagrams(&mut self, error: &Error) {
        let ports: Vec<_> = self.datagrams.open.keys().copied().collect();
        ports.into_iter().for_each(|key| self.datagrams_closed(key, Some(error)));
    }
}
