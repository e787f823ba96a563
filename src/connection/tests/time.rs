//! The two time-outs of a connection.

use std::time::Duration;

use super::Rig;
use crate::{connection::Equipment, reason::Reason, reason::Timeout};

const SECOND: Duration = Duration::from_secs(1);

/// A settled connection, as the driver sees it: with the deadline that it waits for.
fn settled(set: impl FnOnce(&mut Rig)) -> Rig {
    let mut rig = Rig::new();
    set(&mut rig);
    rig.settle();
    rig
}

fn idle(limit: Duration) -> Rig {
    settled(|rig| {
        let equipment = Equipment { idle_timeout: Some(limit), ..Equipment::default() };
        rig.connection.equip(rig.now, equipment);
    })
}

/// Goes on to the moment that the driver waits for.
fn at_deadline(rig: &mut Rig) {
    rig.now = rig.connection.deadline().expect("a deadline");
    rig.connection.deadline_passed();
    rig.settle();
}

#[test]
fn a_protocol_is_told_once_when_its_time_is_over() {
    let mut rig = settled(|rig| assert_eq!(rig.connection.set_timeout(rig.now, Some(SECOND)), None));
    let start = rig.now;
    assert_eq!(rig.connection.deadline(), Some(start + SECOND));
    at_deadline(&mut rig);
    assert_eq!((rig.timeouts, rig.connection.deadline()), (1, None));
    assert_eq!(rig.connection.set_timeout(rig.now, None), None, "it is over");
    rig.connection.reset_timeout(rig.now);
    assert_eq!(rig.connection.deadline(), None);
}

#[test]
fn a_connection_with_a_timeout_is_calm_and_its_driver_hears_only_of_what_comes_sooner() {
    let mut rig = settled(|_| ());
    assert_eq!(rig.connection.set_timeout(rig.now, Some(SECOND)), None);
    assert!(!rig.connection.is_calm(), "the driver has to be told");
    rig.settle();
    let first = rig.connection.deadline();
    assert!(rig.connection.is_calm());
    for _ in 0..10 {
        rig.now += SECOND / 2;
        rig.connection.reset_timeout(rig.now);
        assert!(rig.connection.set_timeout(rig.now, Some(2 * SECOND)).is_some());
        assert!(rig.connection.is_calm(), "later is not worth a word");
    }
    // The driver looks where it was told to, finds that it is too early, and is told the new moment.
    assert!(first < Some(rig.now));
    rig.connection.deadline_passed();
    rig.settle();
    assert_eq!((rig.timeouts, rig.connection.deadline()), (0, Some(rig.now + 2 * SECOND)));
    assert!(rig.connection.is_calm());
    assert_eq!(rig.connection.set_timeout(rig.now, Some(SECOND)), Some(2 * SECOND));
    assert!(!rig.connection.is_calm(), "sooner is");
    rig.settle();
    at_deadline(&mut rig);
    assert_eq!(rig.timeouts, 1);
}

#[test]
fn an_idle_connection_ends_after_its_limit_and_at_most_a_quarter_more() {
    let mut rig = idle(4 * SECOND);
    let mut last = rig.now;
    for round in 0..20 {
        assert!(rig.connection.is_calm());
        at_deadline(&mut rig);
        // Somebody speaks right after each second look.
        if round % 2 == 0 && round < 10 {
            rig.arrives(b"x");
            last = rig.now;
        } else if round % 2 == 1 && round < 10 {
            let _ = rig.write(b"x");
            rig.settle();
            rig.takes(1, None);
            last = rig.now;
        }
        if rig.lost.is_some() || !rig.connection.is_open() {
            break;
        }
    }
    let quiet = rig.now - last;
    assert!((4 * SECOND..=5 * SECOND).contains(&quiet), "{quiet:?}");
    rig.eof();
    assert!(matches!(rig.lost, Some(Reason::TimedOut(Timeout::Idle))), "{:?}", rig.lost);
    assert_eq!(rig.closed, Some(false));
}

#[test]
fn a_close_forgets_the_time_outs() {
    let mut rig = idle(SECOND);
    rig.connection.set_timeout(rig.now, Some(SECOND));
    rig.connection.lose();
    rig.settle();
    rig.now += Duration::from_secs(2);
    rig.connection.deadline_passed();
    rig.settle();
    rig.eof();
    assert_eq!(rig.timeouts, 0);
    assert!(rig.is_done(), "{:?}", rig.lost);
}
