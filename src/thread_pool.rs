//! A few threads for work that blocks. One is started when work comes and none is free, and ends when none is left.

use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::crew::Crew;

/// How many threads a pool has at most, unless its program says otherwise; as in Twisted.
pub(crate) const THREADS_MAX: usize = 10;

/// A piece of work. It is told if there is no thread to do it in.
pub(crate) type Job = Box<dyn FnOnce(io::Result<()>) + Send>;

/// See the top of this file.
pub(crate) struct ThreadPool {
    name: &'static str,
    max: usize,
    crew: Arc<Crew>,
    waiting: Arc<Waiting>,
}

#[derive(Default)]
struct Waiting(Mutex<Line>);

#[derive(Default)]
struct Line {
    jobs: VecDeque<Job>,
    threads: usize,
    closed: bool,
}

impl ThreadPool {
    /// A pool whose threads have this name.
    pub(crate) fn new(name: &'static str, max: usize) -> Self {
        Self { name, max: max.max(1), crew: Arc::new(Crew::new(Box::new(|| ()))), waiting: Arc::default() }
    }

    /// Has a thread do this, in its turn. A closed pool gives it back.
    pub(crate) fn start(&self, job: Job) -> Result<(), Job> {
        let mut line = self.waiting.line();
        if line.closed {
            return Err(job);
        }
        line.jobs.push_back(job);
        if line.threads == self.max {
            return Ok(());
        }
        let waiting = Arc::clone(&self.waiting);
        // Still under the lock: who closes the pool and then waits for its threads must find this one.
        let started = self.crew.start(self.name, Box::new(move || waiting.work()));
        match started {
            Ok(()) => line.threads += 1,
            Err(error) => no_thread(line, &error),
        }
        Ok(())
    }

    /// Takes no more work. Answers with what has not been begun, which is nobody's now.
    pub(crate) fn close(&self) -> VecDeque<Job> {
        let mut line = self.waiting.line();
        line.closed = true;
        std::mem::take(&mut line.jobs)
    }

    /// Waits until all threads have ended.
    pub(crate) fn join(&self) {
        self.crew.wait_until_empty();
        self.crew.join();
    }
}

impl Waiting {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some(job) = self.next_job() {
            // What it leaves behind may still panic when it is dropped, and the next one is not to suffer for it.
            let _ = catch_unwind(AssertUnwindSafe(|| job(Ok(()))));
        }
    }

    fn next_job(&self) -> Option<Job> {
        let mut line = self.line();
        let job = line.jobs.pop_front();
        if job.is_none() {
            line.threads -= 1;
        }
        job
    }
}

/// If no thread at all could be had, those who wait are told; else the others see to them.
fn no_thread(mut line: MutexGuard<'_, Line>, error: &io::Error) {
    let jobs = if line.threads == 0 { std::mem::take(&mut line.jobs) } else { VecDeque::new() };
    drop(line);
    for job in jobs {
        job(Err(io::Error::new(error.kind(), error.to_string())));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn no_more_threads_than_allowed_do_all_the_work() {
        let pool = ThreadPool::new("test", 3);
        let (tell, told) = mpsc::channel();
        let (go, wait) = mpsc::channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        for number in 0..20 {
            let (tell, wait) = (tell.clone(), Arc::clone(&wait));
            let job: Job = Box::new(move |_| {
                tell.send((number, std::thread::current().id())).unwrap();
                let _ = wait.lock().unwrap().recv();
            });
            assert!(pool.start(job).is_ok());
        }
        let first: Vec<_> = (0..3).map(|_| told.recv().unwrap()).collect();
        assert!(told.try_recv().is_err(), "a fourth runs");
        drop(go);
        let mut all: Vec<_> = first.into_iter().chain((3..20).map(|_| told.recv().unwrap())).collect();
        let threads: std::collections::HashSet<_> = all.iter().map(|(_, thread)| *thread).collect();
        assert!(threads.len() <= 3, "{threads:?}");
        all.sort_by_key(|(number, _)| *number);
        assert!(all.iter().map(|(number, _)| *number).eq(0..20));
        assert!(pool.close().is_empty());
        pool.join();
    }

    #[test]
    fn what_was_not_begun_comes_back_when_it_is_closed() {
        let pool = ThreadPool::new("test", 1);
        let (go, wait) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        assert!(pool.start(Box::new(move |_| tell.send(wait.recv().is_err()).unwrap())).is_ok());
        while pool.waiting.line().jobs.front().is_some() {
            std::thread::yield_now();
        }
        assert!(pool.start(Box::new(|_| panic!("it was never begun"))).is_ok());
        assert_eq!(pool.close().len(), 1);
        assert!(pool.start(Box::new(|_| ())).is_err());
        drop(go);
        pool.join();
        assert!(told.recv().unwrap());
    }
}
