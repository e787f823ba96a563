//! A connection's unsent bytes: what `write` appends to, and what moves to a backend to be sent.

mod budget;
mod forgetting;
mod passing;

use std::{any::Any, fmt, io, sync::Arc};

use crate::limits::Limits;

pub use self::budget::Budget;
use self::budget::COUNTED_ABOVE;

/// A pooled batch keeps at most this much memory between two uses.
const KEPT_CAPACITY_MAX: usize = 64 << 10;
/// A pool keeps at most this many spare batches, and this many bytes in all of them.
const SPARE_BATCHES_MAX: usize = 1024;
const SPARE_BYTES_MAX: usize = 1 << 20;

/// Bytes to be sent in one go: copied ones, with shared buffers inserted between them.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    shared: Vec<Inserted>,
    shared_len: usize,
    sent: usize,
}

/// A shared buffer that comes before the byte at `at`, or something that goes along with that byte.
#[derive(Clone, Debug)]
struct Inserted {
    at: usize,
    data: Arc<[u8]>,
    along: Option<Along>,
}

/// What a send takes along with a byte: only the kernel side knows what it is.
pub(crate) type Along = Arc<dyn Any + Send + Sync>;

impl Batch {
    /// Appends a copy of `bytes`.
    #[inline(always)]
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends `data` without copying it.
    pub fn push_shared(&mut self, data: Arc<[u8]>) {
        self.shared_len += data.len();
        self.shared.push(Inserted { at: self.bytes.len(), data, along: None });
    }

    /// Appends a copy of `bytes`, the first of which takes something along.
    pub(crate) fn push_along(&mut self, bytes: &[u8], along: Along) {
        self.shared.push(Inserted { at: self.bytes.len(), data: Arc::from([]), along: Some(along) });
        self.push(bytes);
    }

    /// Bytes not yet sent.
    pub fn len(&self) -> usize {
        self.bytes.len() + self.shared_len - self.sent
    }

    /// Whether everything has been sent.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Notes that the kernel took `n` more bytes.
    pub fn advance(&mut self, n: usize) {
        self.sent += n.min(self.len());
    }

    /// All that is unsent, if it lies in one piece.
    pub fn as_single(&self) -> Option<&[u8]> {
        self.shared.is_empty().then(|| &self.bytes[self.sent..])
    }

    /// The unsent pieces in order, up to the next byte that takes something along; none is empty.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let end = self.all_along().map(|(at, _)| at).find(|at| *at > self.sent);
        let (mut skip, mut left) = (self.sent, end.map_or(usize::MAX, |end| end - self.sent));
        self.pieces().filter_map(move |piece| {
            let skipped = skip.min(piece.len());
            skip -= skipped;
            let rest = &piece[skipped..];
            let taken = rest.len().min(left);
            left -= taken;
            Some(&rest[..taken]).filter(|rest| !rest.is_empty())
        })
    }

    /// What the next byte takes along.
    pub(crate) fn along(&self) -> Option<&Along> {
        self.all_along().find(|(at, _)| *at == self.sent).map(|(_, along)| along)
    }

    /// What goes along with bytes, and how many bytes come before it.
    fn all_along(&self) -> impl Iterator<Item = (usize, &Along)> {
        let mut shared_before = 0;
        self.shared.iter().filter_map(move |inserted| {
            let at = inserted.at + shared_before;
            shared_before += inserted.data.len();
            inserted.along.as_ref().map(|along| (at, along))
        })
    }

    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let mut from = 0;
        let last = self.shared.last().map_or(0, |inserted| inserted.at);
        self.shared
            .iter()
            .flat_map(move |inserted| {
                let before = &self.bytes[from..inserted.at];
                from = inserted.at;
                [before, &inserted.data[..]]
            })
            .chain([&self.bytes[last..]])
    }

    #[inline]
    fn clear(&mut self) {
        self.bytes.clear();
        self.sent = 0;
        if self.bytes.capacity() > KEPT_CAPACITY_MAX || !self.shared.is_empty() {
            self.clear_rest();
        }
    }

    #[cold]
    fn clear_rest(&mut self) {
        self.bytes.shrink_to(KEPT_CAPACITY_MAX);
        self.shared.clear();
        self.shared_len = 0;
    }
}

/// What connections share for their output: spare batches, so that the steady state allocates nothing and an idle connection
/// owns none, and the budget.
#[derive(Debug)]
pub struct Pool {
    // Boxed because a batch moves over the seam and back with every message: a pointer, not 72 bytes.
    #[allow(clippy::vec_box)]
    spare: Vec<Box<Batch>>,
    bytes: usize,
    /// A connection with no more than this unsent is below its high mark, and the budget does not count it.
    calm_max: usize,
    /// A write has passed the budget, and nobody has looked since.
    passed: bool,
    budget: Arc<Budget>,
}

impl Pool {
    /// No spare batches yet.
    pub fn new(limits: &Limits, budget: &Arc<Budget>) -> Self {
        Self {
            spare: Vec::new(),
            bytes: 0,
            calm_max: limits.output_high.min(COUNTED_ABOVE),
            passed: false,
            budget: Arc::clone(budget),
        }
    }

    /// An empty batch.
    #[inline(always)]
    pub fn take(&mut self) -> Box<Batch> {
        let Some(batch) = self.spare.pop() else { return Self::new_batch() };
        self.bytes -= batch.bytes.capacity();
        batch
    }

    #[cold]
    fn new_batch() -> Box<Batch> {
        Box::default()
    }

    /// Takes a batch back; what was unsent is dropped.
    #[inline(always)]
    pub fn give(&mut self, mut batch: Box<Batch>) {
        batch.clear();
        let bytes = self.bytes + batch.bytes.capacity();
        if self.spare.len() < SPARE_BATCHES_MAX && bytes <= SPARE_BYTES_MAX {
            self.bytes = bytes;
            self.spare.push(batch);
        }
    }

    /// Whether a write has passed the budget since this was asked.
    #[inline]
    pub fn take_passed(&mut self) -> bool {
        self.passed && self.forget_passed()
    }

    #[cold]
    fn forget_passed(&mut self) -> bool {
        std::mem::take(&mut self.passed)
    }

    /// What all connections have unsent together.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    fn charge(&mut self, n: usize) {
        self.passed |= self.budget.charge(n);
    }
}

/// What `write` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// The bytes will be sent.
    Accepted,
    /// The bytes will be sent, and the unsent ones are above the high mark: `pause_writing` will
    /// be called, and `resume_writing` once they have drained.
    Full,
    /// The connection no longer takes output; the bytes were dropped.
    Closed,
}

/// Appends to a connection's output from inside [`Transport::write_with`](crate::Transport::write_with).
pub struct Writer<'a> {
    batch: &'a mut Batch,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(batch: &'a mut Batch) -> Self {
        Self { batch }
    }

    /// Makes `write!(out, ..)` work without importing a trait. Never fails unless a `Display` does.
    pub fn write_fmt(&mut self, arguments: fmt::Arguments<'_>) -> io::Result<()> {
        io::Write::write_fmt(&mut self.batch.bytes, arguments)
    }

    /// Appends a copy of `bytes`.
    pub fn push(&mut self, bytes: &[u8]) {
        self.batch.push(bytes);
    }
}

impl io::Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.batch.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Writer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("unsent", &self.batch.len()).finish()
    }
}

/// The unsent bytes of one connection with their watermarks. One batch gathers writes while
/// another one may be in flight.
#[derive(Debug, Default)]
pub struct Output {
    gathering: Option<Box<Batch>>,
    unsent: usize,
    in_flight: bool,
    /// The budget counts all that is unsent.
    counted: bool,
    full: bool,
    /// `pause_writing` is due. Every crossing of the high mark owes it, even if the output has
    /// drained by now: who was answered Full waits for both calls.
    pause_due: bool,
    /// `resume_writing` is due, after the pause.
    resume_due: bool,
}

impl Output {
    /// Bytes that the kernel has not taken.
    pub fn unsent(&self) -> usize {
        self.unsent
    }

    /// What the budget counts of it.
    pub fn counted(&self) -> usize {
        if self.counted { self.unsent } else { 0 }
    }

    /// Whether a batch is with the backend.
    pub fn in_flight(&self) -> bool {
        self.in_flight
    }

    /// Whether it has gone above the high mark and not come down to the low one.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Whether `pause_writing` is due.
    pub fn owes_pause(&self) -> bool {
        self.pause_due
    }

    /// Whether nothing is left to send and nothing is in flight.
    pub fn is_flushed(&self) -> bool {
        !self.in_flight && self.gathering.is_none()
    }

    /// Whether a batch gathers behind the one in flight, or its writer was told that it is full.
    pub fn is_waiting(&self) -> bool {
        self.gathering.is_some() | self.full
    }

    /// Whether it is below its marks and owes no callback.
    pub fn is_calm(&self) -> bool {
        !(self.full | self.pause_due | self.resume_due)
    }

    /// Appends a copy of `bytes`, and minds the high mark.
    #[inline(always)]
    pub fn append(&mut self, pool: &mut Pool, high: usize, bytes: &[u8]) -> Write {
        if !bytes.is_empty() {
            self.gathering.get_or_insert_with(|| pool.take()).push(bytes);
            self.unsent += bytes.len();
        }
        self.mind_marks(pool, high, bytes.len())
    }

    /// The same, with whatever `append` adds to the batch.
    pub fn append_with(&mut self, pool: &mut Pool, high: usize, append: &mut dyn FnMut(&mut Batch)) -> Write {
        let batch = self.gathering.get_or_insert_with(|| pool.take());
        let before = batch.len();
        append(Undo::new(batch).batch);
        let added = batch.len() - before;
        self.unsent += added;
        if batch.is_empty() {
            self.gathering.take().into_iter().for_each(|batch| pool.give(batch));
        }
        self.mind_marks(pool, high, added)
    }

    #[inline]
    fn mind_marks(&mut self, pool: &mut Pool, high: usize, added: usize) -> Write {
        if self.unsent <= pool.calm_max { Write::Accepted } else { self.above_calm(pool, high, added) }
    }

    #[cold]
    fn above_calm(&mut self, pool: &mut Pool, high: usize, added: usize) -> Write {
        let counted = std::mem::replace(&mut self.counted, true);
        pool.charge(if counted { added } else { self.unsent });
        if self.unsent <= high {
            return Write::Accepted;
        }
        if !std::mem::replace(&mut self.full, true) {
            // A resume that was not told yet need not be: the protocol still believes itself paused.
            self.pause_due |= !std::mem::take(&mut self.resume_due);
        }
        Write::Full
    }

    /// The next batch to send, unless one is in flight.
    #[inline]
    pub fn next_batch(&mut self) -> Option<Box<Batch>> {
        if self.in_flight {
            return None;
        }
        let batch = self.gathering.take()?;
        self.in_flight = true;
        Some(batch)
    }

    /// A batch came back from the backend, `n` bytes the lighter. What it still holds goes first next time.
    #[inline]
    pub fn came_back(&mut self, batch: Box<Batch>, n: usize, pool: &mut Pool, low: usize) {
        self.in_flight = false;
        if batch.is_empty() {
            pool.give(batch);
        } else {
            self.put_first(batch, pool);
        }
        self.went(n, pool, low);
    }

    /// The batch in flight is `n` bytes the lighter.
    #[inline(always)]
    pub fn went(&mut self, n: usize, pool: &Pool, low: usize) {
        let before = self.unsent;
        self.unsent = before.saturating_sub(n);
        if self.full | self.counted {
            self.came_down(before, pool, low);
        }
    }

    #[cold]
    fn came_down(&mut self, before: usize, pool: &Pool, low: usize) {
        if self.counted {
            self.counted = self.unsent > pool.calm_max;
            pool.budget.release(before - self.counted());
        }
        if self.full && self.unsent <= low {
            self.full = false;
            self.resume_due = true;
        }
    }

    /// A short send is rare, so the bytes behind it may be copied to keep one batch gathering.
    #[cold]
    fn put_first(&mut self, mut first: Box<Batch>, pool: &mut Pool) {
        first.forget_sent();
        if let Some(behind) = self.gathering.take() {
            let offset = first.bytes.len();
            first.bytes.extend_from_slice(&behind.bytes);
            first.shared_len += behind.shared_len;
            first.shared.extend(
                behind
                    .shared
                    .iter()
                    .map(|inserted| Inserted { at: offset + inserted.at, ..inserted.clone() }),
            );
            pool.give(behind);
        }
        self.gathering = Some(first);
    }

    /// Drops everything that is not in flight. It stays unsent, but counts no more.
    pub fn discard(&mut self, pool: &mut Pool) {
        pool.budget.release(self.counted());
        self.counted = false;
        self.gathering.take().into_iter().for_each(|batch| pool.give(batch));
        (self.full, self.pause_due, self.resume_due) = (false, false, false);
    }

    /// Whether `pause_writing` is due; asked once a crossing.
    pub fn take_pause(&mut self) -> bool {
        std::mem::take(&mut self.pause_due)
    }

    /// Whether `resume_writing` is due; asked once a crossing.
    pub fn take_resume(&mut self) -> bool {
        !self.pause_due && std::mem::take(&mut self.resume_due)
    }
}

/// Takes back what a panicking writer left half written.
struct Undo<'a> {
    batch: &'a mut Batch,
    bytes: usize,
    shared: usize,
    shared_len: usize,
}

impl<'a> Undo<'a> {
    fn new(batch: &'a mut Batch) -> Self {
        let (bytes, shared, shared_len) = (batch.bytes.len(), batch.shared.len(), batch.shared_len);
        Self { batch, bytes, shared, shared_len }
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.batch.bytes.truncate(self.bytes);
            self.batch.shared.truncate(self.shared);
            self.batch.shared_len = self.shared_len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a budget of 1,000 bytes, for connections with a high mark of `high`.
    fn pool_for(high: usize) -> Pool {
        Pool::new(&Limits { output_high: high, ..Limits::default() }, &Arc::new(Budget::new(1_000)))
    }

    fn pool() -> Pool {
        pool_for(4)
    }

    fn unsent(batch: &Batch) -> Vec<u8> {
        batch.slices().flatten().copied().collect()
    }

    fn mixed() -> Batch {
        let mut batch = Batch::default();
        batch.push_shared(Arc::from(*b"01"));
        batch.push(b"234");
        batch.push_shared(Arc::from(*b"56"));
        batch.push_shared(Arc::from(*b"7"));
        batch.push(b"89");
        batch
    }

    #[test]
    fn a_batch_keeps_the_order_from_every_offset() {
        for sent in 0..=10 {
            let mut batch = mixed();
            batch.advance(sent);
            assert_eq!(unsent(&batch), &b"0123456789"[sent..]);
            assert_eq!(batch.len(), 10 - sent);
        }
    }

    #[test]
    fn a_plain_batch_is_a_single_slice() {
        let mut batch = Batch::default();
        batch.push(b"hello");
        batch.advance(2);
        assert_eq!(batch.as_single(), Some(&b"llo"[..]));
        assert_eq!(mixed().as_single(), None);
    }

    #[test]
    fn a_short_send_goes_first_next_time() {
        let (mut output, mut pool) = (Output::default(), pool());
        let _ = output.append_with(&mut pool, 100, &mut |b| b.push(b"abc"));
        let mut batch = output.next_batch().unwrap();
        assert!(output.next_batch().is_none(), "one send in flight");
        let _ = output.append_with(&mut pool, 100, &mut |b| {
            b.push_shared(Arc::from(*b"de"));
            b.push(b"f");
        });
        batch.advance(1);
        output.came_back(batch, 1, &mut pool, 10);
        assert_eq!(output.unsent(), 5);
        assert_eq!(unsent(&output.next_batch().unwrap()), b"bcdef");
    }

    #[test]
    fn each_crossing_of_the_marks_is_told_once() {
        let (mut output, mut pool) = (Output::default(), pool());
        assert_eq!(output.append_with(&mut pool, 4, &mut |b| b.push(b"1234")), Write::Accepted);
        assert!(!output.take_pause());
        assert_eq!(output.append_with(&mut pool, 4, &mut |b| b.push(b"5")), Write::Full);
        assert_eq!(output.append_with(&mut pool, 4, &mut |b| b.push(b"6")), Write::Full);
        assert!(output.take_pause() && !output.take_pause());
        let mut batch = output.next_batch().unwrap();
        batch.advance(6);
        output.came_back(batch, 6, &mut pool, 2);
        assert!(output.take_resume() && !output.take_resume());
        assert!(output.is_flushed());
    }

    #[test]
    fn a_full_that_drains_at_once_still_owes_both_calls() {
        let (mut output, mut pool) = (Output::default(), pool());
        assert_eq!(fill(&mut output, &mut pool), Write::Full);
        drain(&mut output, &mut pool);
        assert!(!output.take_resume(), "the pause comes first");
        assert!(output.take_pause() && output.take_resume());
        assert!(!output.take_pause() && !output.take_resume());
    }

    #[test]
    fn a_crossing_before_the_resume_was_told_needs_no_second_pause() {
        let (mut output, mut pool) = (Output::default(), pool());
        assert_eq!(fill(&mut output, &mut pool), Write::Full);
        assert!(output.take_pause());
        drain(&mut output, &mut pool);
        assert_eq!(fill(&mut output, &mut pool), Write::Full);
        assert!(!output.take_pause() && !output.take_resume());
        drain(&mut output, &mut pool);
        assert!(!output.take_pause() && output.take_resume());
    }

    #[test]
    fn a_writer_that_panics_leaves_no_half_of_its_bytes() {
        let (mut output, mut pool) = (Output::default(), pool());
        let _ = output.append_with(&mut pool, 100, &mut |b| b.push(b"whole"));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            output.append_with(&mut pool, 100, &mut |b| {
                b.push(b"ha");
                b.push_shared(Arc::from(*b"lf"));
                panic!("on purpose");
            })
        }));
        assert!(panicked.is_err());
        assert_eq!(unsent(&output.next_batch().unwrap()), b"whole");
    }

    fn fill(output: &mut Output, pool: &mut Pool) -> Write {
        output.append_with(pool, 4, &mut |b| b.push(b"123456"))
    }

    fn drain(output: &mut Output, pool: &mut Pool) {
        let mut batch = output.next_batch().unwrap();
        let len = batch.len();
        batch.advance(len);
        output.came_back(batch, len, pool, 2);
    }

    #[test]
    fn the_budget_counts_all_of_what_is_above_the_calm_and_nothing_else() {
        let mut pool = pool_for(usize::MAX);
        let (mut calm, mut hog) = (Output::default(), Output::default());
        let _ = calm.append(&mut pool, usize::MAX, &[0; COUNTED_ABOVE]);
        assert_eq!((calm.counted(), pool.budget().counted()), (0, 0));
        for (bytes, counted) in [(COUNTED_ABOVE, 0), (1, COUNTED_ABOVE + 1), (500, COUNTED_ABOVE + 501)] {
            let _ = hog.append(&mut pool, usize::MAX, &vec![0; bytes]);
            assert_eq!((hog.counted(), pool.budget().counted()), (counted, counted));
        }
        // Half of what was counted goes, then so much that it is calm again, then all.
        for (taken, counted) in [(101, COUNTED_ABOVE + 400), (400, 0), (COUNTED_ABOVE, 0)] {
            let mut batch = hog.next_batch().unwrap();
            batch.advance(taken);
            hog.came_back(batch, taken, &mut pool, 0);
            assert_eq!((hog.counted(), pool.budget().counted()), (counted, counted));
        }
        assert!(hog.is_flushed());
        assert_eq!(pool.budget().peak(), COUNTED_ABOVE + 501);
    }

    #[test]
    fn passing_the_budget_is_told_once_and_what_is_discarded_counts_no_more() {
        let mut pool = pool_for(100);
        let (mut first, mut second) = (Output::default(), Output::default());
        let _ = first.append(&mut pool, 100, &[0; 1_000]);
        assert!(!pool.take_passed(), "at the budget is not past it");
        let _ = second.append_with(&mut pool, 100, &mut |batch| batch.push(&[0; 101]));
        assert!(pool.take_passed() && !pool.take_passed());
        assert!(pool.budget().is_passed());
        let in_flight = first.next_batch().unwrap();
        first.discard(&mut pool);
        assert_eq!((first.counted(), first.unsent()), (0, 1_000));
        assert_eq!(pool.budget().counted(), 101);
        // What comes back later is not given back twice.
        first.came_back(in_flight, 500, &mut pool, 0);
        assert_eq!((pool.budget().counted(), pool.budget().is_passed()), (101, false));
    }

    #[test]
    fn an_empty_write_leaves_nothing_to_send() {
        let (mut output, mut pool) = (Output::default(), pool());
        assert_eq!(output.append_with(&mut pool, 4, &mut |_| ()), Write::Accepted);
        assert!(output.is_flushed() && output.next_batch().is_none());
    }

    #[test]
    fn a_pool_gives_the_memory_back() {
        let mut pool = pool();
        let mut batch = pool.take();
        batch.push(&[0; KEPT_CAPACITY_MAX * 4]);
        pool.give(batch);
        let batch = pool.take();
        assert!(batch.is_empty() && batch.bytes.capacity() <= KEPT_CAPACITY_MAX);
    }
}
