//! What is to happen around the beginning and the end of `run`: Twisted's system event triggers.

use std::{
    fmt, mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use crate::reactor::{Core, Reactor, ReactorCall, State};

/// Something that happens to a reactor once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SystemEvent {
    /// `run` begins.
    Startup,
    /// The reactor is being stopped.
    Shutdown,
}

/// When in the course of a [`SystemEvent`].
///
/// A start-up does what was queued before `run` (ports open, connectors connect) in its `After`. A shutdown closes ports and
/// ends connections in its `During`; its `After` comes when nothing is left of them, nor of the work in threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Before it happens. Whoever takes a [`StopHold`] in this phase of a shutdown holds it up.
    Before,
    /// As it happens.
    During,
    /// When it has happened.
    After,
}

/// A trigger that can be removed as long as it was not called. Dropping this leaves it in place.
pub struct SystemEventTrigger {
    core: Weak<Core>,
    number: u64,
}

impl SystemEventTrigger {
    /// Forgets the trigger; `false` if it has been called or removed before.
    pub fn remove(&self) -> bool {
        let removed = self.core.upgrade().and_then(|core| core.system_events.remove(self.number));
        removed.is_some()
    }
}

impl fmt::Debug for SystemEventTrigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SystemEventTrigger").field("number", &self.number).finish_non_exhaustive()
    }
}

/// As long as one of these lives, a reactor that was told to stop goes on running, with all its ports and connections. This is
/// what a trigger that returns a Deferred is in Twisted.
pub struct StopHold {
    core: Weak<Core>,
}

impl Drop for StopHold {
    fn drop(&mut self) {
        if let Some(core) = self.core.upgrade() {
            core.system_events.holds.fetch_sub(1, SeqCst);
            core.wake();
        }
    }
}

impl fmt::Debug for StopHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StopHold")
    }
}

/// The triggers of a reactor, and who holds its stop.
#[derive(Default)]
pub(crate) struct SystemEvents {
    triggers: Mutex<Triggers>,
    holds: AtomicUsize,
    /// The kernel has failed the reactor: nothing can be waited for.
    hopeless: AtomicBool,
    /// The stop is past its `Before`.
    stop_begun: AtomicBool,
}

#[derive(Default)]
struct Triggers {
    next: u64,
    /// In the order in which they were added.
    waiting: Vec<Trigger>,
}

struct Trigger {
    number: u64,
    when: (SystemEvent, Phase),
    call: ReactorCall,
}

impl SystemEvents {
    fn triggers(&self) -> MutexGuard<'_, Triggers> {
        self.triggers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, number: u64) -> Option<ReactorCall> {
        let waiting = &mut self.triggers().waiting;
        let place = waiting.iter().position(|trigger| trigger.number == number)?;
        Some(waiting.remove(place).call)
    }

    /// Takes the triggers of this moment, to be called in order.
    pub(crate) fn take(&self, event: SystemEvent, phase: Phase) -> Vec<ReactorCall> {
        let mut triggers = self.triggers();
        let all = mem::take(&mut triggers.waiting);
        let (due, waiting): (Vec<_>, _) = all.into_iter().partition(|trigger| trigger.when == (event, phase));
        triggers.waiting = waiting;
        drop(triggers);
        due.into_iter().map(|trigger| trigger.call).collect()
    }

    /// Takes all that will never be called.
    pub(crate) fn take_rest(&self) -> Vec<ReactorCall> {
        let rest = mem::take(&mut self.triggers().waiting);
        rest.into_iter().map(|trigger| trigger.call).collect()
    }

    /// Whether somebody holds up the stop.
    pub(crate) fn is_stop_held(&self) -> bool {
        self.holds.load(SeqCst) > 0 && !self.hopeless.load(SeqCst)
    }

    /// Begins the stop, unless somebody holds it up; answers whether it has begun.
    pub(crate) fn begin_stop(&self) -> bool {
        let may = !self.is_stop_held();
        self.stop_begun.fetch_or(may, SeqCst);
        may
    }

    /// Whether the stop is past its `Before`: ports close, and connections end because of it.
    pub(crate) fn has_stop_begun(&self) -> bool {
        self.stop_begun.load(SeqCst)
    }

    /// From now on nobody can hold up the stop.
    pub(crate) fn give_up_hope(&self) {
        self.hopeless.store(true, SeqCst);
    }
}

impl Reactor {
    /// Calls `call` on the reactor's thread in this phase of this event. Triggers of one phase come in the order in which they were
    /// added; one that panics is logged, and the others come all the same. Each comes once.
    ///
    /// ```
    /// # fn main() -> Result<(), ringspun::Error> {
    /// use ringspun::{Phase, Reactor, SystemEvent};
    ///
    /// let reactor = Reactor::builder().build()?;
    /// reactor.add_system_event_trigger(Phase::After, SystemEvent::Startup, |reactor| {
    ///     let _ = reactor.stop();
    /// });
    /// reactor.add_system_event_trigger(Phase::Before, SystemEvent::Shutdown, |_| println!("so long"));
    /// reactor.run()
    /// # }
    /// ```
    pub fn add_system_event_trigger(
        &self,
        phase: Phase,
        event: SystemEvent,
        call: impl FnOnce(&Reactor) + Send + 'static,
    ) -> SystemEventTrigger {
        let mut triggers = self.core.system_events.triggers();
        let number = triggers.next;
        triggers.next += 1;
        triggers.waiting.push(Trigger { number, when: (event, phase), call: Box::new(call) });
        drop(triggers);
        if self.core.state() == State::Stopped {
            // Nothing happens any more, and what it captured may name this very reactor.
            drop(self.core.system_events.remove(number));
        }
        SystemEventTrigger { core: Arc::downgrade(&self.core), number }
    }

    /// Holds up the stop of this reactor until the answer is dropped. Too late once a shutdown is past its [`Phase::Before`].
    ///
    /// ```
    /// # use {ringspun::{Phase, Reactor, SystemEvent}, std::time::Duration};
    /// /// Gives what is under way another second.
    /// fn linger(reactor: &Reactor) {
    ///     reactor.add_system_event_trigger(Phase::Before, SystemEvent::Shutdown, |reactor| {
    ///         let hold = reactor.hold_stop();
    ///         reactor.call_later(Duration::from_secs(1), |_| drop(hold));
    ///     });
    /// }
    /// ```
    pub fn hold_stop(&self) -> StopHold {
        self.core.system_events.holds.fetch_add(1, SeqCst);
        StopHold { core: Arc::downgrade(&self.core) }
    }
}
