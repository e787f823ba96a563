//! What filters and paces need of the output: batches by pieces, and their bytes to be changed.

use std::sync::Arc;

use super::{Batch, KEPT_CAPACITY_MAX, Output, Pool};

impl Batch {
    /// All that is unsent as plain bytes, to be changed. Nothing of it may have been sent yet.
    pub fn as_mut_vec(&mut self) -> &mut Vec<u8> {
        if !self.shared.is_empty() || self.sent > 0 {
            self.flatten();
        }
        &mut self.bytes
    }

    fn together(&self) -> usize {
        self.slices().map(<[u8]>::len).sum()
    }

    /// Copies what is unsent together, and lets go of the rest. What goes along with a byte stays with it.
    #[cold]
    fn flatten(&mut self) {
        let mut flat = Self::default();
        while !self.is_empty() {
            let bytes: Vec<u8> = self.slices().flatten().copied().collect();
            match self.along() {
                Some(along) => flat.push_along(&bytes, Arc::clone(along)),
                None => flat.push(&bytes),
            }
            self.advance(bytes.len());
        }
        *self = flat;
    }
}

impl Output {
    /// Bytes that gather behind what is in flight.
    pub fn gathered(&self) -> usize {
        self.gathering.as_ref().map_or(0, |batch| batch.len())
    }

    /// How many of them may go in one piece: up to the next one that takes something along.
    pub fn gathered_together(&self) -> usize {
        self.gathering.as_ref().map_or(0, |batch| batch.together())
    }

    /// The next batch, of so many bytes at most, unless one is in flight. What goes along with a byte goes along with the first one of its batch.
    pub fn next_piece(&mut self, bytes: usize, pool: &mut Pool) -> Option<Box<Batch>> {
        let rest = self.gathering.as_mut().filter(|_| !self.in_flight)?;
        if rest.together().min(bytes) == rest.len() {
            return self.next_batch();
        }
        let mut piece = pool.take();
        if let Some(along) = rest.along() {
            piece.push_along(&[], Arc::clone(along));
        }
        for slice in rest.slices() {
            piece.push(&slice[..slice.len().min(bytes - piece.len())]);
        }
        rest.advance(piece.len());
        // What is written for ever never gathers from nothing, so what has gone has to be let go here.
        if rest.sent > rest.len().max(KEPT_CAPACITY_MAX) {
            rest.flatten();
        }
        self.in_flight = true;
        Some(piece)
    }

    /// A batch of so many bytes, which nobody has written, is about to leave.
    pub fn launch(&mut self, bytes: usize, pool: &mut Pool) {
        self.in_flight = true;
        self.set_unsent(self.unsent + bytes, pool);
    }

    /// The batch in flight has become longer or shorter.
    pub fn resize(&mut self, from: usize, to: usize, pool: &mut Pool) {
        self.set_unsent((self.unsent + to).saturating_sub(from), pool);
    }

    fn set_unsent(&mut self, unsent: usize, pool: &mut Pool) {
        let before = self.counted();
        self.unsent = unsent;
        self.counted = unsent > pool.calm_max;
        let counted = self.counted();
        if counted > before {
            pool.charge(counted - before);
        } else {
            pool.budget.release(before - counted);
        }
    }

    /// Memory that the batch that gathers takes.
    #[cfg(test)]
    pub(crate) fn kept_capacity(&self) -> usize {
        self.gathering.as_ref().map_or(0, |batch| batch.bytes.capacity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{limits::Limits, output::Budget};

    fn along(batch: &Batch) -> Option<u32> {
        batch.along().map(|along| *along.downcast_ref::<u32>().expect("a number"))
    }

    #[test]
    fn what_goes_along_with_a_byte_goes_along_with_the_first_one_of_a_piece() {
        let mut pool = Pool::new(&Limits::default(), &Arc::new(Budget::new(1000)));
        let mut output = Output::default();
        let _ = output.append_with(&mut pool, 100, &mut |batch| {
            batch.push(b"ab");
            batch.push_along(b"cd", Arc::new(1u32));
            batch.push_shared(Arc::from(*b"ef"));
            batch.push_along(b"g", Arc::new(2u32));
        });
        for (bytes, number) in [(&b"ab"[..], None), (b"cde", Some(1)), (b"f", None), (b"g", Some(2))] {
            assert_eq!(output.gathered_together().min(3), bytes.len());
            let mut piece = output.next_piece(3, &mut pool).expect("more");
            assert_eq!(along(&piece), number);
            // Filters may change it, and what goes along stays.
            piece.as_mut_vec().insert(0, b'.');
            assert_eq!(piece.slices().flatten().copied().collect::<Vec<_>>(), [b".", bytes].concat());
            assert_eq!(along(&piece), number);
            let sent = piece.len() - 1;
            piece.advance(sent + 1);
            output.came_back(piece, sent, &mut pool, 10);
        }
        assert!(output.is_flushed() && output.unsent() == 0);
    }
}
