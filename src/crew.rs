//! The threads of a reactor: each is joined, and none is kept much longer than until the next one ends.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{Builder, JoinHandle},
};

use crate::sys;

/// What the joint has a thread do.
pub(crate) type Work = Box<dyn FnOnce() + Send>;

/// Memory mappings that one thread takes: its stack and its signal stack, with a guard page each.
const MAPPINGS_A_THREAD: usize = 4;

/// The threads that run.
///
/// An ending thread joins those that ended before it, and leaves its own handle to the next, so
/// that stacks are given back without anybody being woken for it. It waits for none that is still ending: on a busy
/// processor each would wait for the one before it, in a line that grows.
pub(crate) struct Crew {
    /// A process that runs out of memory mappings cannot even report it, so threads take at most
    /// three quarters of them.
    max: usize,
    roll: Mutex<Roll>,
    /// The last thread has ended.
    ended: Condvar,
    left: Left,
}

/// Called after a thread has been struck off the roll.
pub(crate) type Left = Box<dyn Fn() + Send + Sync>;

#[derive(Debug, Default)]
struct Roll {
    next: u64,
    running: HashMap<u64, JoinHandle<()>>,
    /// Those that have ended, or are about to.
    ended: Vec<JoinHandle<()>>,
}

impl Crew {
    pub(crate) fn new(left: Left) -> Self {
        let max = sys::mappings_limit() / 4 * 3 / MAPPINGS_A_THREAD;
        Self { max, roll: Mutex::default(), ended: Condvar::new(), left }
    }

    /// Starts a thread, whose stack is as large as the standard library makes them.
    pub(crate) fn start(self: &Arc<Self>, name: &str, work: Work) -> io::Result<()> {
        // Held until the handle is on the roll, where the thread will look for it.
        let mut roll = self.roll();
        if roll.running.len() + roll.ended.len() >= self.max {
            return Err(io::Error::other("vm.max_map_count leaves no room for the stack of another thread"));
        }
        let number = roll.next;
        let crew = Arc::clone(self);
        let run = move || {
            let _leaving = Leaving { crew, number };
            work();
        };
        let handle = Builder::new().name(name.to_owned()).spawn(run)?;
        roll.next += 1;
        roll.running.insert(number, handle);
        Ok(())
    }

    /// Whether no thread runs any more, but for its very last instructions.
    pub(crate) fn is_empty(&self) -> bool {
        self.roll().running.is_empty()
    }

    /// Waits until all threads have ended.
    pub(crate) fn wait_until_empty(&self) {
        let mut roll = self.roll();
        while !roll.running.is_empty() {
            roll = self.ended.wait(roll).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until the last of the ended threads are gone.
    pub(crate) fn join(&self) {
        let ended = std::mem::take(&mut self.roll().ended);
        ended.into_iter().for_each(join);
    }

    fn leave(&self, number: u64) {
        let gone: Vec<_> = {
            let mut roll = self.roll();
            let own = roll.running.remove(&number);
            if roll.running.is_empty() {
                self.ended.notify_all();
            }
            let gone = roll.ended.extract_if(.., |thread| thread.is_finished()).collect();
            roll.ended.extend(own);
            gone
        };
        gone.into_iter().for_each(join);
        (self.left)();
    }

    fn roll(&self) -> MutexGuard<'_, Roll> {
        self.roll.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn join(handle: JoinHandle<()>) {
    // A panic that got here has been printed by the panic hook.
    drop(handle.join());
}

/// Strikes a thread off the roll, however it ends.
struct Leaving {
    crew: Arc<Crew>,
    number: u64,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.crew.leave(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;

    /// Where the processor is busy, threads that ended in line behind one another were more than there is room for.
    #[test]
    fn no_thread_that_ends_waits_for_one_that_has_not() {
        let (tell, told) = mpsc::channel();
        let (go, wait) = mpsc::channel();
        let (tell, wait) = (Mutex::new(tell), Mutex::new(Some(wait)));
        let crew = Arc::new(Crew::new(Box::new(move || {
            let first = wait.lock().unwrap().take();
            tell.lock().unwrap().send(()).unwrap();
            first.into_iter().for_each(|wait: mpsc::Receiver<()>| wait.recv().unwrap());
        })));
        for _ in 0..3 {
            crew.start("crew-test", Box::new(|| ())).unwrap();
            told.recv_timeout(Duration::from_secs(20)).expect("it waits for the first");
        }
        assert!(crew.is_empty());
        go.send(()).unwrap();
        crew.join();
    }
}
