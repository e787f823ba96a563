//! A connection's two time-outs: the one that its protocol sets and moves with each message, and the one that ends it when nothing
//! passes any more.
//!
//! Both are fields that a message moves or marks without a word to the driver, which goes on waiting for the moment that it
//! knows, and only there asks what is really due.

use std::time::{Duration, Instant};

use super::{Connection, Phase, Step};
use crate::{reason::Timeout, timer::deadline_after};

/// A quiet connection is looked at so often within its idle time-out: what is known of its last message is when somebody looked first after it.
const LOOKS: u32 = 4;

/// The time-outs that are set.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// What the protocol asked for, and when that is over.
    period: Option<Duration>,
    timeout: Option<Instant>,
    idle: Option<Idle>,
    /// When the driver is going to look at the latest.
    armed: Option<Instant>,
}

/// How long nothing may pass.
#[derive(Debug)]
struct Idle {
    limit: Duration,
    quiet_since: Instant,
    next_look: Instant,
}

impl Clock {
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.timeout.into_iter().chain(self.idle.as_ref().map(|idle| idle.next_look)).min()
    }

    pub(super) fn arm(&mut self, deadline: Option<Instant>) {
        self.armed = deadline;
    }

    /// Whether the driver is going to look in time.
    #[cfg(test)]
    pub(super) fn driver_knows(&self) -> bool {
        self.deadline().is_none_or(|deadline| self.armed.is_some_and(|armed| armed <= deadline))
    }
}

/// What the user asks.
impl Connection {
    /// Has the protocol told in `period`, unless this is called again before; None: not at all. What was asked for before.
    pub fn set_timeout(&mut self, now: Instant, period: Option<Duration>) -> Option<Duration> {
        if period.is_none() && self.clock_if_any().is_none() {
            return None;
        }
        let clock = self.clock();
        clock.timeout = period.map(|period| deadline_after(now, period));
        let sooner = clock.timeout.is_some_and(|timeout| clock.armed.is_none_or(|armed| timeout < armed));
        let before = std::mem::replace(&mut clock.period, period);
        // The driver has to hear of it, and does when it asks for the next step.
        self.calm &= !sooner;
        before
    }

    /// Begins the protocol's time-out anew, if one is running.
    pub fn reset_timeout(&mut self, now: Instant) {
        if let Some(clock) = self.clock_if_any()
            && let Some(period) = clock.period
        {
            // Never sooner than before, so the driver need not hear of it.
            clock.timeout = Some(deadline_after(now, period));
        }
    }

    /// Ends the connection once nothing has passed for so long.
    pub fn set_idle_timeout(&mut self, now: Instant, limit: Duration) {
        let next_look = deadline_after(now, limit / LOOKS);
        self.clock().idle = Some(Idle { limit, quiet_since: now, next_look });
        self.calm = false;
    }

    /// Closes as [`lose`](Self::lose) does, producer or not, because of this time-out.
    pub fn time_out(&mut self, timeout: Timeout) {
        if self.phase == Phase::Open {
            self.lose_producer_or_not();
            if matches!(self.phase, Phase::Flushing) {
                self.rare().reason = Some(crate::reason::Reason::TimedOut(timeout));
            }
        }
    }
}

/// For the driver, and for the other questions.
impl Connection {
    /// When [`step`](Self::step) is to be called even if nothing happens.
    #[inline]
    pub fn deadline(&mut self) -> Option<Instant> {
        if self.rare.is_none() { None } else { self.rare_deadline() }
    }

    fn rare_deadline(&mut self) -> Option<Instant> {
        let (open, passing) = (self.phase == Phase::Open, self.passing_deadline());
        let rare = self.rare.as_mut()?;
        let clock = rare.clock.as_deref().filter(|_| open).and_then(Clock::deadline);
        let deadline = rare.deadline.into_iter().chain(clock).chain(passing).min();
        rare.clock.iter_mut().for_each(|clock| clock.arm(deadline));
        deadline
    }

    /// The moment has come that [`deadline`](Self::deadline) has named: [`step`](Self::step) has to be asked, however calm all seems.
    pub fn deadline_passed(&mut self) {
        self.calm = false;
    }

    /// Whether the protocol's time is over; minds an idle one's, too.
    pub(super) fn step_clock(&mut self, now: Instant) -> Option<Step> {
        if self.phase != Phase::Open {
            return None;
        }
        // Who has to wait for a pace is not idle.
        let active = self.active || self.passing_deadline().is_some();
        let clock = self.clock_if_any()?;
        if let Some(idle) = clock.idle.as_mut().filter(|idle| idle.next_look <= now) {
            idle.next_look = deadline_after(now, idle.limit / LOOKS);
            if active {
                idle.quiet_since = now;
            }
            let over = now.saturating_duration_since(idle.quiet_since) >= idle.limit;
            self.active = false;
            if over {
                self.time_out(Timeout::Idle);
                return None;
            }
        }
        let clock = self.clock_if_any()?;
        clock.timeout.filter(|timeout| *timeout <= now)?;
        (clock.timeout, clock.period) = (None, None);
        Some(Step::TimedOut)
    }

    /// Until when it may close.
    pub(super) fn closing_deadline(&self) -> Option<Instant> {
        self.rare.as_ref()?.deadline
    }

    fn clock(&mut self) -> &mut Clock {
        // Not `rare()`: a connection with nothing but a clock is as calm as any.
        self.rare.get_or_insert_default().clock.get_or_insert_default()
    }

    fn clock_if_any(&mut self) -> Option<&mut Clock> {
        self.rare.as_mut()?.clock.as_deref_mut()
    }
}
