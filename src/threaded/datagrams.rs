//! Ports for datagrams: each has a thread, on which all its callbacks run.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use super::{
    Main,
    shared::{Note, Shared, lock},
};
use crate::{
    backend::threads::datagrams::DatagramDoor,
    datagram_host::{DatagramEvent, OpenDatagrams},
    driver::{Driver, tell_done},
    error::{Errno, Error},
    host::drop_quietly,
    id::PortKey,
    port::Port,
    protocol::ErasedCall,
    reactor::TimerCall,
    stats::{Branch, Count, Syscall},
    sys::{Datagrams, Inbox},
    timer::Due,
};

/// A port, as the main thread reaches it.
pub(super) struct DatagramPort {
    port: Port,
    door: DatagramDoor,
    mail: Mutex<VecDeque<Mail>>,
}

/// Something for the thread of a port.
enum Mail {
    Call(ErasedCall),
    /// A timed call, which can be cancelled until it is made.
    Timer(Due),
    Stop,
}

impl DatagramPort {
    fn send(&self, mail: Mail) {
        lock(&self.mail).push_back(mail);
        self.door.wake();
    }
}

impl Main {
    pub(super) fn open_datagrams(&mut self, port: Port, seed: ErasedCall, max_packet_size: usize) {
        if self.stopping || port.is_stopped() {
            drop_quietly(seed);
            return tell_done(&port, &self.shared.reactor, None);
        }
        let Some(served) = OpenDatagrams::new(port.clone(), seed, self.shared.limits().output_max) else {
            return;
        };
        let started = DatagramDoor::new(served.socket().clone()).and_then(|door| {
            let open = Arc::new(DatagramPort { port: port.clone(), door, mail: Mutex::default() });
            let (shared, on_thread) = (Arc::clone(&self.shared), Arc::clone(&open));
            let work = Box::new(move || Serving::new(shared, on_thread, served, max_packet_size).run());
            self.shared.crew.start("ringspun-datagrams", work).map(|()| open)
        });
        match started {
            Ok(open) => _ = self.datagrams.insert(port.key(), open),
            Err(cause) => {
                let error = Error::System { doing: "starting the thread of a port for datagrams", cause };
                log::error!("{error}; ({} Closed)", port.label());
                tell_done(&port, &self.shared.reactor, Some(&error));
            }
        }
    }

    pub(super) fn call_datagrams(&mut self, key: PortKey, call: ErasedCall) {
        match self.datagrams.get(&key) {
            Some(open) => open.send(Mail::Call(call)),
            None => drop_quietly(call),
        }
    }

    pub(super) fn call_datagrams_later(&mut self, key: PortKey, due: Due) {
        match self.datagrams.get(&key) {
            Some(open) => open.send(Mail::Timer(due)),
            None => {
                let call = self.core().timers().take(due);
                drop_quietly(call);
            }
        }
    }

    pub(super) fn close_datagrams(&self, key: PortKey) {
        if let Some(open) = self.datagrams.get(&key) {
            open.send(Mail::Stop);
        }
    }

    pub(super) fn close_all_datagrams(&self) {
        for open in self.datagrams.values() {
            if open.port.mark_stopped() {
                open.send(Mail::Stop);
            }
        }
    }

    pub(super) fn datagrams_closed(&mut self, port: &Port) {
        if let Some(open) = self.datagrams.remove(&port.key()) {
            // What came too late for its thread.
            drop_quietly(std::mem::take(&mut *lock(&open.mail)));
        }
        tell_done(port, self.reactor(), None);
    }
}

/// A port, on its thread.
struct Serving {
    shared: Arc<Shared>,
    open: Arc<DatagramPort>,
    served: OpenDatagrams,
    inbox: Inbox,
    spare: Datagrams,
    counters: Branch,
}

impl Serving {
    fn new(
        shared: Arc<Shared>,
        open: Arc<DatagramPort>,
        served: OpenDatagrams,
        max_packet_size: usize,
    ) -> Self {
        let counters = shared.reactor.core.counters.branch();
        Self {
            shared,
            open,
            served,
            inbox: Inbox::new(max_packet_size),
            spare: Datagrams::default(),
            counters,
        }
    }

    fn run(mut self) {
        self.served.tell(&self.shared.reactor, DatagramEvent::Start);
        loop {
            let stopped = self.read_mail();
            self.send();
            if stopped {
                // What callbacks add now is refused.
                break self.send();
            }
            if !self.receive() && !self.served.has_outgoing() {
                self.open.door.wait(&self.counters);
            }
        }
        // Taken before the end, so that what a call holds goes with the protocol.
        let unread = std::mem::take(&mut *lock(&self.open.mail));
        for mail in unread {
            self.drop_mail(mail);
        }
        let Self { shared, open, served, .. } = self;
        let port = served.stop(&shared.reactor);
        // Who is told of the end may want the address again, so the socket goes first.
        drop(open);
        shared.note(Note::DatagramsClosed(port));
    }

    /// Makes the calls that are due; answers whether the port was stopped.
    fn read_mail(&mut self) -> bool {
        loop {
            // The lock is let go before the call, which may send more.
            let mail = lock(&self.open.mail).pop_front();
            let call = match mail {
                None => return false,
                Some(Mail::Stop) => return true,
                Some(Mail::Call(call)) => Some(call),
                Some(Mail::Timer(due)) => self.timed_call(due),
            };
            if let Some(call) = call {
                self.served.tell(&self.shared.reactor, DatagramEvent::Call(call));
            }
        }
    }

    /// None if it was cancelled.
    fn timed_call(&self, due: Due) -> Option<ErasedCall> {
        match self.shared.reactor.core.timers().take(due) {
            Some(TimerCall::Datagrams(_, call)) => Some(call),
            _ => None,
        }
    }

    fn drop_mail(&self, mail: Mail) {
        match mail {
            Mail::Call(call) => drop_quietly(call),
            Mail::Timer(due) => drop_quietly(self.timed_call(due)),
            Mail::Stop => {}
        }
    }

    /// Receives once; answers whether there may be more.
    fn receive(&mut self) -> bool {
        self.counters.call(Syscall::Recvmmsg);
        let reactor = &self.shared.reactor;
        match self.served.socket().receive(&mut self.inbox).map_err(Errno::raw) {
            Ok(()) => {}
            Err(libc::EAGAIN) => return false,
            Err(libc::EINTR) => return true,
            Err(raw) => {
                self.served.failed(reactor, Errno::from_raw(raw));
                return false;
            }
        }
        while let Some((from, data)) = self.inbox.take() {
            self.counters.add(Count::DatagramsReceived, 1);
            self.counters.add(Count::DatagramsTooLong, data.is_none().into());
            self.served.received(reactor, &from, data);
        }
        true
    }

    /// Sends what the callbacks have written. What they write when they hear what became of that goes next time.
    fn send(&mut self) {
        if !self.served.has_outgoing() {
            return;
        }
        let mut outgoing = std::mem::take(&mut self.spare);
        self.served.swap_outgoing(&mut outgoing);
        let mut failed = Vec::new();
        self.served.socket().send(&outgoing, &mut failed, || self.counters.call(Syscall::Sendmmsg));
        self.counters.add(Count::DatagramsSent, (outgoing.len() - failed.len()) as u64);
        self.served.sent(&self.shared.reactor, &outgoing, &failed);
        outgoing.clear();
        self.spare = outgoing;
    }
}
