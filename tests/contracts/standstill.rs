//! Time limits that must leave somebody alone who is never idle for so long, on machines that stand still now and then.

use std::time::{Duration, Instant};

/// For how long somebody has done nothing, at most.
pub(crate) struct Pauses {
    last: Instant,
    longest: Duration,
}

impl Pauses {
    /// To be made before the limit can begin to count.
    pub(crate) fn new() -> Self {
        Self { last: Instant::now(), longest: Duration::ZERO }
    }

    /// Something is done, or could not be done any more.
    pub(crate) fn end(&mut self) {
        self.longest = self.longest.max(self.last.elapsed());
        self.last = Instant::now();
    }
}

/// Makes attempts to show that a limit leaves somebody alone, each with twice the time, until one does. An attempt says whether it did: a peer that stood
/// still with its machine may have been idle, any other must not.
pub(crate) fn unless_it_stood_still(first: Duration, attempt: impl Fn(Duration, &mut Pauses) -> bool) {
    for doubled in 0..5 {
        let (limit, mut pauses) = (first * (1 << doubled), Pauses::new());
        if attempt(limit, &mut pauses) {
            return;
        }
        let longest = pauses.longest;
        assert!(
            longest >= limit / 2,
            "who was never idle for longer than {longest:?} was ended after {limit:?}"
        );
    }
    panic!("the machine stands still");
}
