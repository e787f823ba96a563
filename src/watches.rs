//! The foreign descriptors of one driver: who is called when the kernel says that one is ready, and how it ends.
//!
//! Neither epoll nor io_uring tells that a descriptor was closed. So before each call, and once a second, a descriptor is asked whether it
//! still names the file that is watched for it.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use crate::{
    backend::watching::{Interest, Readiness, Watcher},
    descriptor::{Descriptor, DescriptorCx, DescriptorLost, NewWatch, WatchedDescriptor},
    error::Errno,
    host::{caught, drop_quietly},
    id::WatchKey,
    reactor::{Reactor, TimerCall},
    stats::Syscall,
    sys::watched_file::WatchedFile,
    timer::TimerKey,
};

/// How often all descriptors are asked what they name.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// All that are watched.
#[derive(Default)]
pub(crate) struct Watches {
    /// In the order in which they were added.
    open: BTreeMap<WatchKey, Watch>,
    /// The next check; there is none while nothing is watched.
    check: Option<TimerKey>,
}

struct Watch {
    // Let go before the program's own descriptor, so that what is dropped is closed.
    file: Arc<WatchedFile>,
    descriptor: Box<dyn Descriptor>,
    handle: WatchedDescriptor,
    /// What the backend watches it for.
    asked: Interest,
}

/// What a callback is to be told of.
type Callback = fn(&mut dyn Descriptor, &mut DescriptorCx<'_>) -> io::Result<()>;

impl Watches {
    /// Begins to watch.
    pub(crate) fn open(&mut self, new: NewWatch, reactor: &Reactor, watcher: &mut dyn Watcher) {
        let NewWatch { descriptor, file, handle } = new;
        let key = handle.key();
        self.open.insert(key, Watch { descriptor, file, handle, asked: Interest::NONE });
        if self.check.is_none() {
            self.check = Some(reactor.schedule_key(CHECK_INTERVAL, TimerCall::CheckDescriptors));
        }
        self.mind(key, reactor, watcher);
    }

    /// Does what the handle of a descriptor says.
    pub(crate) fn mind(&mut self, key: WatchKey, reactor: &Reactor, watcher: &mut dyn Watcher) {
        let Some(watch) = self.open.get_mut(&key) else { return };
        if watch.handle.is_over() {
            return drop_quietly(self.forget(key, reactor, watcher));
        }
        let wanted = Interest { read: watch.handle.wants_read(), write: watch.handle.wants_write() };
        if wanted != watch.asked {
            watch.asked = wanted;
            watcher.watch(key, &watch.file, wanted);
        }
    }

    /// Calls whom this concerns.
    pub(crate) fn ready(
        &mut self,
        key: WatchKey,
        readiness: Readiness,
        reactor: &Reactor,
        watcher: &mut dyn Watcher,
    ) {
        let Some(watch) = self.open.get_mut(&key) else { return };
        match watch.tell(readiness, reactor) {
            Ok(()) => self.mind(key, reactor, watcher),
            Err(reason) => self.lose(key, &reason, reactor, watcher),
        }
    }

    /// The kernel would not watch it.
    pub(crate) fn refused(
        &mut self,
        key: WatchKey,
        errno: Errno,
        reactor: &Reactor,
        watcher: &mut dyn Watcher,
    ) {
        self.lose(key, &DescriptorLost::Refused(errno), reactor, watcher);
    }

    /// Finds those that were closed behind the reactor's back though nothing happened to them.
    pub(crate) fn check(&mut self, reactor: &Reactor, watcher: &mut dyn Watcher) {
        self.check = Some(reactor.schedule_key(CHECK_INTERVAL, TimerCall::CheckDescriptors));
        let gone = self.open.iter().filter_map(|(key, watch)| Some((*key, watch.check(reactor).err()?)));
        for (key, reason) in gone.collect::<Vec<_>>() {
            self.lose(key, &reason, reactor, watcher);
        }
    }

    /// The reactor is being stopped.
    pub(crate) fn lose_all(&mut self, reactor: &Reactor, watcher: &mut dyn Watcher) {
        let keys: Vec<_> = self.open.keys().copied().collect();
        for key in keys {
            self.lose(key, &DescriptorLost::Shutdown, reactor, watcher);
        }
    }

    fn lose(&mut self, key: WatchKey, reason: &DescriptorLost, reactor: &Reactor, watcher: &mut dyn Watcher) {
        if let Some(watch) = self.forget(key, reactor, watcher) {
            watch.lose(reason, reactor);
        }
    }

    fn forget(&mut self, key: WatchKey, reactor: &Reactor, watcher: &mut dyn Watcher) -> Option<Watch> {
        let watch = self.open.remove(&key)?;
        if !watch.asked.is_none() {
            watcher.watch(key, &watch.file, Interest::NONE);
        }
        if self.open.is_empty()
            && let Some(check) = self.check.take()
        {
            reactor.core.timers().remove(check);
        }
        Some(watch)
    }
}

/// A descriptor for which there is no reactor to run any more.
pub(crate) fn lose_unwatched(new: NewWatch, reactor: &Reactor) {
    let NewWatch { descriptor, file, handle } = new;
    Watch { descriptor, file, handle, asked: Interest::NONE }.lose(&DescriptorLost::Shutdown, reactor);
}

impl Watch {
    /// Makes the calls that are due; an error ends the watch.
    fn tell(&mut self, readiness: Readiness, reactor: &Reactor) -> Result<(), DescriptorLost> {
        let (reads, writes) = (self.handle.wants_read(), self.handle.wants_write());
        // What is left to read comes first, as in Twisted.
        if readiness.hung_up && !(readiness.readable && reads) {
            self.check(reactor)?;
            let told = reads || writes;
            return if told { Err(DescriptorLost::HungUp(self.file.take_error())) } else { Ok(()) };
        }
        if readiness.readable && reads {
            self.call(reactor, |descriptor, cx| descriptor.do_read(cx))?;
        }
        if readiness.writable && self.handle.wants_write() {
            self.call(reactor, |descriptor, cx| descriptor.do_write(cx))?;
        }
        Ok(())
    }

    fn call(&mut self, reactor: &Reactor, callback: Callback) -> Result<(), DescriptorLost> {
        self.check(reactor)?;
        let mut cx = DescriptorCx { reactor, descriptor: &self.handle };
        match caught(|| callback(&mut *self.descriptor, &mut cx)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(DescriptorLost::Callback(error)),
            Err(text) => Err(DescriptorLost::Panicked(text)),
        }
    }

    /// Whether the program's descriptor still names what is watched.
    fn check(&self, reactor: &Reactor) -> Result<(), DescriptorLost> {
        reactor.core.counters.call_shared(Syscall::Fcntl);
        match caught(|| self.file.is_named_by(self.descriptor.as_fd())) {
            Ok(true) => Ok(()),
            Ok(false) => Err(DescriptorLost::WentAway),
            Err(text) => Err(DescriptorLost::Panicked(text)),
        }
    }

    fn lose(mut self, reason: &DescriptorLost, reactor: &Reactor) {
        if self.handle.end() {
            if matches!(reason, DescriptorLost::WentAway) {
                log::error!("{reason}");
            }
            let mut cx = DescriptorCx { reactor, descriptor: &self.handle };
            let _ = caught(|| self.descriptor.connection_lost(&mut cx, reason));
        }
        drop_quietly(self);
    }
}
