//! What has been sent of a batch is let go of, where more is added to it than it is ever rid of.

use super::Batch;

impl Batch {
    /// Lets go of what has been sent, once that is more than what is not: then moving the rest costs less than sending it has.
    ///
    /// Who writes as fast as his peer reads never sees his output empty, and his batch would keep all that he ever wrote.
    pub(super) fn forget_sent(&mut self) {
        if self.sent <= self.len() {
            return;
        }
        let (mut gone, mut shared_gone) = (0, 0);
        for inserted in &self.shared {
            let at = inserted.at + shared_gone;
            let waits = inserted.along.is_some() && at == self.sent;
            if waits || at + inserted.data.len() > self.sent {
                break;
            }
            (gone, shared_gone) = (gone + 1, shared_gone + inserted.data.len());
        }
        // All copied bytes before a shared buffer that has gone in part have gone.
        let next = self.shared.get(gone).map_or(usize::MAX, |inserted| inserted.at);
        let copied_gone = next.min(self.sent - shared_gone);
        self.shared.drain(..gone);
        self.shared.iter_mut().for_each(|inserted| inserted.at -= copied_gone);
        self.bytes.drain(..copied_gone);
        self.shared_len -= shared_gone;
        self.sent -= copied_gone + shared_gone;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::{
        limits::Limits,
        output::{Along, Batch, Budget, Output, Pool},
    };

    /// The unsent bytes, and before which of them something goes along.
    fn unsent(batch: &Batch) -> (Vec<u8>, Vec<usize>) {
        let mut rest = batch.clone_for_test();
        let (mut bytes, mut alongs) = (Vec::new(), Vec::new());
        while !rest.is_empty() {
            if rest.along().is_some() {
                alongs.push(bytes.len());
            }
            let piece: Vec<u8> = rest.slices().flatten().copied().collect();
            rest.advance(piece.len());
            bytes.extend(piece);
        }
        (bytes, alongs)
    }

    impl Batch {
        fn clone_for_test(&self) -> Self {
            let (bytes, shared) = (self.bytes.clone(), self.shared.clone());
            Self { bytes, shared, shared_len: self.shared_len, sent: self.sent }
        }
    }

    #[test]
    fn what_is_unsent_stays_as_it_is() {
        fastrand::seed(7);
        for _ in 0..300 {
            let mut batch = Batch::default();
            for number in 0..fastrand::u8(1..8) {
                let bytes = vec![number; fastrand::usize(1..5)];
                match fastrand::u8(..3) {
                    0 => batch.push(&bytes),
                    1 => batch.push_shared(Arc::from(bytes)),
                    _ => batch.push_along(&bytes, Arc::new(number) as Along),
                }
            }
            while !batch.is_empty() {
                batch.advance(fastrand::usize(1..4));
                let wanted = unsent(&batch);
                batch.forget_sent();
                assert_eq!(unsent(&batch), wanted);
                assert_eq!(batch.len(), wanted.0.len());
                assert!(batch.sent <= batch.len() || !batch.shared.is_empty(), "{batch:?}");
            }
        }
    }

    #[test]
    fn output_that_is_never_empty_keeps_little_of_what_was_sent() {
        let limits = Limits::default();
        let mut pool = Pool::new(&limits, &Arc::new(Budget::new(usize::MAX)));
        let mut output = Output::default();
        let _ = output.append(&mut pool, usize::MAX, &[0; 3000]);
        for _ in 0..1000 {
            let _ = output.append(&mut pool, usize::MAX, &[0; 1000]);
            let mut batch = output.next_batch().unwrap();
            let _ = output
                .append_with(&mut pool, usize::MAX, &mut |batch| batch.push_shared(Arc::from([0; 1000])));
            batch.advance(2000);
            assert!(batch.bytes.len() + batch.shared_len < 10_000, "{batch:?}");
            output.came_back(batch, 2000, &mut pool, 0);
        }
        assert_eq!(output.unsent(), 3000);
    }
}
