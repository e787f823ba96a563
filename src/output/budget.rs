//! What all connections of a reactor have unsent together, and how much of it they may.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A connection with no more than this unsent is not counted: less than its socket costs the kernel, and what most connections never
/// pass, so that a message on a calm connection has nothing to do with the budget.
pub(super) const COUNTED_ABOVE: usize = 4 << 10;

/// Shared by all connections of a reactor, on threads by all threads.
#[derive(Debug)]
pub struct Budget {
    max: usize,
    counted: AtomicUsize,
    peak: AtomicUsize,
}

impl Budget {
    /// So many bytes at most.
    pub fn new(max: usize) -> Self {
        Self { max, counted: AtomicUsize::new(0), peak: AtomicUsize::new(0) }
    }

    /// What is counted now.
    pub fn counted(&self) -> usize {
        self.counted.load(Relaxed)
    }

    /// The most that was ever counted.
    pub fn peak(&self) -> usize {
        self.peak.load(Relaxed)
    }

    /// Whether more is counted than may be.
    pub fn is_passed(&self) -> bool {
        self.counted() > self.max
    }

    /// Counts `n` bytes more; answers whether that is too much.
    pub(super) fn charge(&self, n: usize) -> bool {
        let counted = self.counted.fetch_add(n, Relaxed) + n;
        if counted > self.peak() {
            self.peak.fetch_max(counted, Relaxed);
        }
        counted > self.max
    }

    pub(super) fn release(&self, n: usize) {
        self.counted.fetch_sub(n, Relaxed);
    }
}
