//! What the two drivers, the event loop and the main thread of the threads backend, do alike.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant},
};

use crate::{
    connection::{Connection, Equipment},
    connector::{Connector, ConnectorState},
    error::{Errno, Error},
    factory::Peer,
    host::caught,
    id::HostKey,
    policies::{Guard, Verdict},
    port::Port,
    reactor::{Command, Reactor, ReactorCall, State},
    reason::{Loss, Reason},
    signals,
    system_event::{Phase, SystemEvent},
    timer::{Due, deadline_after},
};

/// Timed calls in one turn, so that a million due at one instant do not starve I/O (T2).
const TIMED_CALLS_A_TURN: usize = 256;
/// How long a driver with nothing to do sleeps at most.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(3600);
/// A failing accept is logged once, and again only after this long.
const QUIET: Duration = Duration::from_secs(60);
/// What to do where peers are turned away for want of descriptors.
pub(crate) const MORE_DESCRIPTORS: &str = "peers that wait are turned away; raise `ulimit -n` or serve fewer";

/// What takes commands and timed calls out of a reactor and carries them out.
pub(crate) trait Driver {
    fn reactor(&self) -> &Reactor;
    /// When the present turn began.
    fn now(&self) -> Instant;
    fn is_stopping(&self) -> bool;
    /// An empty queue, kept so that none is made each turn.
    fn spare_queue(&mut self) -> &mut VecDeque<Command>;
    /// Carries out a command.
    fn carry_out(&mut self, command: Command);
    /// Makes a timed call whose time has come.
    fn call_due(&mut self, due: Due);
    /// Sees to the connections whose deadline has passed.
    fn run_deadlines(&mut self);
    /// Counts a port or connector of a factory; the first one starts the factory.
    fn use_host(&mut self, host: HostKey) -> Result<(), Error>;
    /// A port or connector of this factory has ended.
    fn release_host(&mut self, host: HostKey);
    /// Minds what its other threads, if it has any, have left for it.
    fn run_notes(&mut self) {}

    /// Whether a stop was asked for, and nobody holds it up.
    fn stop_is_due(&self) -> bool {
        let core = &self.reactor().core;
        core.state() == State::Stopping && !core.system_events.is_stop_held()
    }

    /// Calls all that is to come before a stop that was asked for, and begins the stop, unless somebody holds it up.
    fn begin_stop(&self) -> bool {
        let core = &self.reactor().core;
        if core.state() != State::Stopping {
            return false;
        }
        call_triggers(self.reactor(), SystemEvent::Shutdown, Phase::Before);
        core.system_events.begin_stop()
    }

    /// Until when a stop that begins now waits for output; None if it does not.
    fn drain_until(&self) -> Option<Instant> {
        let timeout = self.reactor().core.config.drain_timeout;
        (!timeout.is_zero()).then(|| deadline_after(self.now(), timeout))
    }

    /// Runs what is due; answers whether more is.
    fn run_timers(&mut self) -> bool {
        if self.reactor().core.next_call().is_none_or(|next| next > self.now()) {
            self.run_deadlines();
            return false;
        }
        let mark = self.reactor().core.timers().mark();
        for _ in 0..TIMED_CALLS_A_TURN {
            let due = self.reactor().core.timers().next_due(self.now(), mark);
            let Some(due) = due else {
                self.run_deadlines();
                return false;
            };
            self.call_due(due);
        }
        self.run_deadlines();
        true
    }

    /// Carries out what was queued until now.
    fn run_commands(&mut self) {
        let core = &self.reactor().core;
        core.listen_for_wake_ups();
        if !core.has_commands() {
            return self.run_notes();
        }
        let mut commands = std::mem::take(self.spare_queue());
        self.reactor().core.take_inbox(&mut commands);
        // After the commands were taken: what was noted before one of them was queued goes first.
        self.run_notes();
        for command in commands.drain(..) {
            self.carry_out(command);
        }
        *self.spare_queue() = commands;
    }

    /// Begins to stop if a signal has said so.
    fn mind_signals(&mut self) {
        let core = &self.reactor().core;
        if core.config.signals
            && let Some(name) = signals::received()
            && core.change_state(State::Running, State::Stopping)
        {
            log::info!("Received {name}, shutting down.");
        }
    }

    /// Counts the port among the users of its factory, and of the one for those who are too many.
    fn use_hosts(&mut self, port: &Port) -> Result<(), Error> {
        self.use_host(port.host())?;
        let Some(overflow) = port.overflow() else { return Ok(()) };
        let used = self.use_host(overflow);
        if used.is_err() {
            self.release_host(port.host());
        }
        used
    }

    /// Counts a connector off its factory, unless that has told it to connect again: then it keeps
    /// its place for the next attempt.
    fn release_connector(&mut self, connector: &Connector) {
        if self.is_stopping() {
            connector.set_disconnected();
        }
        if connector.state() == ConnectorState::Disconnected && connector.set_counted(false) {
            self.release_host(connector.host());
        }
    }
}

/// A port that listens, or whose end has yet to be reported.
pub(crate) struct OpenPort {
    pub(crate) port: Port,
    quiet_until: Option<Instant>,
    /// Peers that were let in and have no protocol yet, where it takes a thread to build one.
    pub(crate) guests: Arc<AtomicUsize>,
    /// Why it is about to end, if not because somebody stopped it.
    failure: Option<Error>,
}

impl OpenPort {
    pub(crate) fn new(port: Port) -> Self {
        Self { port, quiet_until: None, guests: Arc::default(), failure: None }
    }

    /// Logs that accepting failed, unless that has been said lately.
    pub(crate) fn log_failure(&mut self, now: Instant, cause: &str, remedy: &str) {
        if self.quiet_until.is_none_or(|until| now >= until) {
            let (factory, port) = (self.port.factory_name(), self.port.name());
            log::error!("{factory} on {port} could not accept a connection: {cause}; {remedy}");
        }
        self.quiet_until = Some(now + QUIET);
    }

    /// The listening socket itself has failed.
    pub(crate) fn fail(&mut self, errno: Errno) {
        self.failure = Some(Error::System { doing: "accepting", cause: errno.into() });
    }

    /// Tells everybody that the port has ended, for `error` or for what it failed of.
    pub(crate) fn end(self, reactor: &Reactor, error: Option<&Error>) {
        tell_done(&self.port, reactor, error.or(self.failure.as_ref()));
    }
}

/// Asks a port's accept policies about a peer; one that panics refuses it.
pub(crate) fn admit(guard: &Guard, peer: &mut Peer<'_>) -> Verdict {
    caught(|| guard.admit(peer)).unwrap_or(Verdict::Refused)
}

/// What is to stand between a connection and its protocol; None if that panics.
pub(crate) fn equip(guard: Option<&Guard>, peer: &mut Peer<'_>) -> Option<Equipment> {
    let Some(guard) = guard else { return Some(Equipment::default()) };
    caught(|| guard.equip(peer)).ok()
}

/// Makes a call that concerns nobody but the reactor.
pub(crate) fn make_call(reactor: &Reactor, call: ReactorCall) {
    let _ = caught(|| call(reactor));
}

/// Ends a connection of a reactor that is being stopped: at once, or when its output has gone, until then at most.
pub(crate) fn end_by_stop(connection: &mut Connection, drain_until: Option<Instant>) {
    match drain_until {
        Some(until) => connection.drain(until),
        None => connection.finish(Reason::Lost(Loss::Shutdown), false),
    }
}

/// Calls the triggers of this moment.
pub(crate) fn call_triggers(reactor: &Reactor, event: SystemEvent, phase: Phase) {
    for call in reactor.core.system_events.take(event, phase) {
        make_call(reactor, call);
    }
}

/// Tells everybody who wants to know that a port has ended, or has never opened.
pub(crate) fn tell_done(port: &Port, reactor: &Reactor, error: Option<&Error>) {
    for call in port.end(error) {
        let _ = caught(|| call(reactor, error));
    }
}
