//! Connecting again, later and later (K5). The delays themselves are tested beside `Reconnector`, without a clock.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use ringspun::{Connector, ConnectorState, Reactor, Reconnector};

use crate::{
    kit::{Event, Gate, Running, Script},
    peers::Bound,
    setups::{Setup, on_every_backend},
};

on_every_backend!(
    k5_no_retry_comes_early_and_none_after_the_last,
    k5_a_lost_connection_is_made_again,
    k5_stop_trying_cancels_the_retry_that_waits,
    k5_stop_trying_ends_the_attempt_under_way,
);

/// A reconnector for the hooks of a script.
#[derive(Clone)]
struct Again(Arc<Mutex<Reconnector>>);

impl Again {
    fn new(reconnector: Reconnector) -> Self {
        Self(Arc::new(Mutex::new(reconnector)))
    }

    fn retry(&self, reactor: &Reactor, connector: &Connector) -> Option<Duration> {
        self.0.lock().unwrap().retry(reactor, connector)
    }
}

/// When a failure was told, and after what delay it is tried again.
type Told = (Instant, Option<Duration>);

fn milliseconds(initial: u64) -> Reconnector {
    Reconnector::new().initial_delay(Duration::from_millis(initial)).factor(2.0).jitter(0.0)
}

fn connecting(event: &Event) -> bool {
    *event == Event::Connecting
}

fn k5_no_retry_comes_early_and_none_after_the_last(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let taken = Bound::new();
    let told: Arc<Mutex<Vec<Told>>> = Arc::default();
    let (again, times) = (Again::new(milliseconds(5).max_retries(4)), Arc::clone(&told));
    let script = Script::new().on_failed(move |cx, connector, _| {
        times.lock().unwrap().push((Instant::now(), again.retry(cx.reactor, connector)));
    });
    let journal = script.journal.clone();
    let connector = running.reactor.connect_tcp(taken.address, script);
    journal.wait("the last failure", |events| {
        events.iter().filter(|event| matches!(event, Event::Failed(_))).count() == 5
            && events.last() == Some(&Event::Stopped)
    });
    let told = told.lock().unwrap();
    let delays: Vec<_> = told.iter().map(|(_, delay)| delay.map(|delay| delay.as_millis())).collect();
    assert_eq!(delays, [Some(10), Some(20), Some(40), Some(80), None]);
    for pair in told.windows(2) {
        assert!(pair[1].0 - pair[0].0 >= pair[0].1.unwrap(), "early: {told:?}");
    }
    assert_eq!(connector.state(), ConnectorState::Disconnected);
}

fn k5_a_lost_connection_is_made_again(setup: &Setup) {
    let server = Script::new().on_made(|cx, _| cx.transport.lose_connection()).serve(setup.reactor());
    let again = Again::new(milliseconds(1));
    let good = again.clone();
    let script = Script::new()
        .on_made(move |_, conn| {
            if conn.number == 2 {
                good.0.lock().unwrap().reset_delay();
            }
        })
        .on_client_lost(move |cx, connector, _| {
            let delay = again.retry(cx.reactor, connector);
            assert!(delay.is_some());
        });
    let journal = script.journal.clone();
    let connector = server.running.reactor.connect_tcp(server.address(), script);
    journal.wait_for(Event::Made(5));
    assert_eq!(connector.get_destination(), server.address().to_string());
}

fn k5_stop_trying_cancels_the_retry_that_waits(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let taken = Bound::new();
    let again = Again::new(milliseconds(50));
    let hook = again.clone();
    let script = Script::new().on_failed(move |cx, connector, _| {
        let _ = hook.retry(cx.reactor, connector);
    });
    let journal = script.journal.clone();
    let _connector = running.reactor.connect_tcp(taken.address, script);
    journal.wait("a failure", |events| events.last() == Some(&Event::Stopped));
    running.call(move |_| again.0.lock().unwrap().stop_trying());
    let later = Gate::default();
    let open = later.clone();
    // Calls come in the order of their deadlines, and the retry's would have been before this one's.
    running.reactor.call_later(Duration::from_millis(150), move |_| open.open());
    later.pass();
    running.call(|_| ());
    assert_eq!(journal.count(connecting), 1, "it was tried again: {:?}", journal.all());
}

fn k5_stop_trying_ends_the_attempt_under_way(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let deaf = crate::connecting::Deaf::new();
    let again = Again::new(milliseconds(1));
    let hook = again.clone();
    let script = Script::new().on_failed(move |cx, connector, _| {
        assert_eq!(hook.retry(cx.reactor, connector), None);
    });
    let journal = script.journal.clone();
    let connector = running.reactor.connect_tcp(deaf.address, script);
    journal.wait_for(Event::Connecting);
    let mut again = again.0.lock().unwrap();
    again.started_connecting(&connector);
    again.stop_trying();
    drop(again);
    journal.wait_for(Event::Stopped);
    assert!(journal.has(&Event::Failed("User".to_owned())), "{:?}", journal.all());
    assert_eq!(journal.count(connecting), 1);
}
