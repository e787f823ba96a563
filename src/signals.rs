//! SIGINT and SIGTERM: the first stops every reactor that asked, a second ends the process.

use std::{
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI32, AtomicUsize, Ordering::SeqCst},
    },
};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::sys::Waker;

const SIGNALS: [Signal; 2] = [Signal::SIGINT, Signal::SIGTERM];

/// The signal that was received, or 0.
static RECEIVED: AtomicI32 = AtomicI32::new(0);
/// The wake-up descriptors of the reactors that asked, or -1. A handler may touch only atomics.
static WAKERS: [AtomicI32; 256] = [const { AtomicI32::new(-1) }; 256];
/// Handlers that are looking at the descriptors right now.
static INSIDE: AtomicUsize = AtomicUsize::new(0);
/// The handlers that were there before the first reactor asked.
static BEFORE: Mutex<Handlers> = Mutex::new(Handlers { users: 0, before: None });

struct Handlers {
    users: usize,
    before: Option<[SigAction; 2]>,
}

/// Has the signals stop this reactor until dropped. The last to go puts the earlier handlers back.
#[derive(Debug)]
pub(crate) struct Subscription(u8);

impl Subscription {
    pub(crate) fn new(number: u8, waker: &Waker) -> io::Result<Self> {
        let mut handlers = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
        if handlers.users == 0 {
            RECEIVED.store(0, SeqCst);
            handlers.before = Some(install()?);
        }
        handlers.users += 1;
        WAKERS[number as usize].store(waker.raw(), SeqCst);
        Ok(Self(number))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        WAKERS[self.0 as usize].store(-1, SeqCst);
        // A handler on another thread may have read the descriptor just before; it is soon done.
        while INSIDE.load(SeqCst) > 0 {
            std::hint::spin_loop();
        }
        let mut handlers = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
        handlers.users -= 1;
        if handlers.users == 0
            && let Some(before) = handlers.before.take()
        {
            restore(&before);
        }
    }
}

/// The name of the signal that was received, if any.
pub(crate) fn received() -> Option<&'static str> {
    match RECEIVED.load(SeqCst) {
        0 => None,
        raw => Signal::try_from(raw).ok().map(Signal::as_str),
    }
}

fn install() -> io::Result<[SigAction; 2]> {
    let action = SigAction::new(SigHandler::Handler(on_signal), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: `on_signal` calls only what signal-safety(7) allows.
    let install = |signal| unsafe { sigaction(signal, &action) };
    let interrupt = install(SIGNALS[0])?;
    let terminate = install(SIGNALS[1])?;
    Ok([interrupt, terminate])
}

fn restore(before: &[SigAction; 2]) {
    for (signal, action) in SIGNALS.iter().zip(before) {
        // SAFETY: the action was in place before ours, so it is as sound as it was then.
        let _ = unsafe { sigaction(*signal, action) };
    }
}

extern "C" fn on_signal(raw: i32) {
    if RECEIVED.swap(raw, SeqCst) != 0 {
        // SAFETY: signal(2) and raise(3) are async-signal-safe; the default action ends the process.
        unsafe {
            libc::signal(raw, libc::SIG_DFL);
            libc::raise(raw);
        }
        return;
    }
    INSIDE.fetch_add(1, SeqCst);
    for waker in &WAKERS {
        let fd = waker.load(SeqCst);
        if fd >= 0 {
            wake(fd);
        }
    }
    INSIDE.fetch_sub(1, SeqCst);
}

fn wake(fd: i32) {
    let one = 1u64;
    // SAFETY: write(2) and errno are async-signal-safe once errno is put back; the buffer is 8
    // valid bytes; a subscription that is dropped waits for the handlers inside, and its
    // descriptor is closed only after that.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(fd, (&raw const one).cast(), size_of::<u64>());
        *libc::__errno_location() = errno;
    }
}
