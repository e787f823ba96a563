//! What a raw server counts, under the names that the library uses.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Something that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counted {
    Accepted,
    BytesReceived,
    DatagramsReceived,
    Events,
    Waits,
    IoUringEnter,
    EpollWait,
    EpollCtl,
    Accept,
    Recv,
    Send,
    Close,
    RecvBatch,
    SendBatch,
}

use Counted as C;

const COUNTS: [(C, &str); 5] = [
    (C::Accepted, "accepted"),
    (C::BytesReceived, "bytes_received"),
    (C::DatagramsReceived, "datagrams_received"),
    (C::Events, "events"),
    (C::Waits, "waits"),
];
const SYSCALLS: [(C, &str); 9] = [
    (C::IoUringEnter, "io_uring_enter"),
    (C::EpollWait, "epoll_wait"),
    (C::EpollCtl, "epoll_ctl"),
    (C::Accept, "accept4"),
    (C::Recv, "recvfrom"),
    (C::Send, "sendto"),
    (C::Close, "close"),
    (C::RecvBatch, "recvmmsg"),
    (C::SendBatch, "sendmmsg"),
];

/// The counters of one thread: only it adds, so no addition has to be atomic.
#[derive(Debug, Default)]
pub(crate) struct Tally([AtomicU64; COUNTS.len() + SYSCALLS.len()]);

impl Tally {
    pub(crate) fn add(&self, what: Counted, more: u64) {
        let counter = &self.0[what as usize];
        counter.store(counter.load(Relaxed) + more, Relaxed);
    }

    pub(crate) fn count(&self, what: Counted) {
        self.add(what, 1);
    }
}

/// The counters of all threads. What a thread has counted stays when it ends.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tallies(Arc<Mutex<Pool>>);

#[derive(Debug, Default)]
struct Pool {
    all: Vec<Arc<Tally>>,
    /// Those of threads that have ended: the next ones go on counting in them.
    free: Vec<Arc<Tally>>,
}

/// A tally in use.
#[derive(Debug)]
pub(crate) struct Branch {
    tally: Arc<Tally>,
    home: Tallies,
}

impl Tallies {
    pub(crate) fn branch(&self) -> Branch {
        let mut pool = self.pool();
        let tally = pool.free.pop().unwrap_or_else(|| {
            let tally = Arc::<Tally>::default();
            pool.all.push(Arc::clone(&tally));
            tally
        });
        Branch { tally, home: self.clone() }
    }

    pub(crate) fn syscalls(&self) -> BTreeMap<String, u64> {
        self.sums(&SYSCALLS)
    }

    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        self.sums(&COUNTS)
    }

    fn sums(&self, names: &[(Counted, &str)]) -> BTreeMap<String, u64> {
        let pool = self.pool();
        let sum = |what: Counted| pool.all.iter().map(|tally| tally.0[what as usize].load(Relaxed)).sum();
        names.iter().map(|(what, name)| ((*name).into(), sum(*what))).collect()
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::ops::Deref for Branch {
    type Target = Tally;

    fn deref(&self) -> &Tally {
        &self.tally
    }
}

impl Drop for Branch {
    fn drop(&mut self) {
        self.home.pool().free.push(Arc::clone(&self.tally));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_threads_have_counted_stays() {
        let tallies = Tallies::default();
        for _ in 0..3 {
            tallies.branch().add(Counted::Recv, 2);
        }
        let (first, second) = (tallies.branch(), tallies.branch());
        first.count(Counted::Recv);
        second.count(Counted::Accepted);
        assert_eq!(tallies.syscalls()["recvfrom"], 7);
        assert_eq!(tallies.counts()["accepted"], 1);
        assert_eq!(tallies.pool().all.len(), 2);
    }

    #[test]
    fn every_counter_has_one_name() {
        let named: Vec<usize> = COUNTS.iter().chain(&SYSCALLS).map(|(what, _)| *what as usize).collect();
        assert_eq!(named, (0..named.len()).collect::<Vec<_>>());
    }
}
