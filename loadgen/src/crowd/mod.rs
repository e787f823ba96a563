//! The client as several processes, for more idle connections than one has descriptors for. Each runs the engine on its
//! share; they connect, ask and close one after another, so the server meets no more at once than from one client, and
//! are idle and show that they live together.

mod member;
mod pipe;
mod worker;

use std::time::Instant;

pub(crate) use self::worker::work;
use self::{
    member::Member,
    pipe::{News, Order, Step},
};
use crate::{
    engine::{Counted, Failure, Load, Watcher},
    error::Error,
};

/// Client processes that wait for their shares. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Crowd {
    members: Vec<Member>,
}

impl Crowd {
    /// Starts so many, at least one.
    pub(crate) fn start(clients: usize) -> Result<Self, Error> {
        let members = (0..clients).map(|_| Member::start()).collect::<Result<_, _>>()?;
        Ok(Self { members })
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        self.members.iter().map(Member::pid).collect()
    }

    /// Runs the load once, as `engine::run` does in one process.
    pub(crate) fn run(mut self, load: &Load, watcher: &mut impl Watcher) -> Result<Counted, Error> {
        let mut sum = Counted::new(load)?;
        if let Err(error) = self.go_through(load, watcher, &mut sum) {
            sum.error = Some(error);
        }
        Ok(sum)
    }

    fn go_through(
        &mut self,
        load: &Load,
        watcher: &mut impl Watcher,
        sum: &mut Counted,
    ) -> Result<(), Error> {
        let began = Instant::now();
        let shares = shares(load, self.members.len());
        for (member, share) in self.members.iter_mut().zip(shares) {
            member.tell(&Order::Begin { load: Box::new(share) });
            reach(member, Step::Connected, watcher, sum)?;
        }
        sum.ramp = began.elapsed();
        watcher.connected();
        for member in &mut self.members {
            member.tell(&Order::GoOn);
            reach(member, Step::WindowOpened, watcher, sum)?;
        }
        watcher.window_opened();
        let opened = Instant::now();
        self.all_go_on();
        for member in &mut self.members {
            reach(member, Step::WindowClosed, watcher, sum)?;
        }
        watcher.window_closed();
        sum.window = opened.elapsed();
        self.all_go_on();
        for member in &mut self.members {
            reach(member, Step::Drained, watcher, sum)?;
        }
        for member in &mut self.members {
            member.tell(&Order::GoOn);
            conclude(member, watcher, sum)?;
        }
        Ok(())
    }

    fn all_go_on(&mut self) {
        self.members.iter_mut().for_each(|member| member.tell(&Order::GoOn));
    }
}

/// Waits until a client has come so far.
fn reach(member: &mut Member, wanted: Step, watcher: &impl Watcher, sum: &mut Counted) -> Result<(), Error> {
    match member.hear(watcher)? {
        News::Reached { step } if step == wanted => Ok(()),
        News::Counted { counted } => add(sum, *counted).and_then(|()| Err(out_of_turn(member))),
        News::Failed { error } => Err(error),
        News::Reached { .. } => Err(out_of_turn(member)),
    }
}

/// Waits until a client has ended.
fn conclude(member: &mut Member, watcher: &impl Watcher, sum: &mut Counted) -> Result<(), Error> {
    match member.hear(watcher)? {
        News::Counted { counted } => add(sum, *counted),
        News::Failed { error } => Err(error),
        News::Reached { .. } => Err(out_of_turn(member)),
    }
}

fn out_of_turn(member: &Member) -> Error {
    Error::internal(format!("the client process {} spoke out of turn", member.pid()))
}

/// The parts of a load, each with the numbers of its own connections.
fn shares(load: &Load, clients: usize) -> Vec<Load> {
    let (each, more) = (load.connections / clients, load.connections % clients);
    let mut first = load.first;
    let mut share = |client| {
        let connections = each + usize::from(client < more);
        let ramp = load.ramp.mul_f64(connections as f64 / load.connections as f64);
        let share = Load { connections, first, ramp, ..load.clone() };
        first += connections;
        share
    };
    (0..clients).map(&mut share).collect()
}

/// Adds what one client has counted; its error is the run's.
fn add(sum: &mut Counted, share: Counted) -> Result<(), Error> {
    sum.requests += share.requests;
    sum.bytes += share.bytes;
    sum.requests_total += share.requests_total;
    sum.bytes_sent_total += share.bytes_sent_total;
    sum.connections_made += share.connections_made;
    sum.alive += share.alive;
    sum.pinged += share.pinged;
    sum.starved += share.starved;
    share.failures.into_iter().for_each(|failure| add_failure(&mut sum.failures, failure));
    // All have the same bounds.
    sum.latency
        .add(&share.latency)
        .map_err(|error| Error::internal(format!("the latency histograms of two clients: {error:?}")))?;
    if let Some(error) = share.error {
        return Err(error);
    }
    match (sum.response, share.response) {
        (Some(one), Some(other)) if one != other => Err(Error::verification(format!(
            "some connections were answered {other}, others {one}; let all have the same page, or say --verify off"
        ))),
        (one, other) => {
            sum.response = one.or(other);
            Ok(())
        }
    }
}

fn add_failure(sum: &mut Vec<Failure>, failure: Failure) {
    match sum.iter_mut().find(|one| one.phase == failure.phase && one.cause == failure.cause) {
        Some(one) => one.count += failure.count,
        None => sum.push(failure),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        engine::{Client, Dialogue},
        message::Verify,
        point::Sizes,
    };

    fn load(connections: usize) -> Load {
        Load {
            target: crate::target::Target::Tcp(([127, 0, 0, 1], 1).into()),
            connections,
            first: 0,
            sizes: Sizes::one(64),
            pipeline: 1,
            seed: 1,
            round: 1,
            verify: Verify::Full,
            timeout: Duration::from_secs(1),
            ramp: Duration::from_secs(10),
            warmup: Duration::ZERO,
            duration: Duration::from_secs(1),
            think: Duration::ZERO,
            dialogue: Dialogue::Echo,
            churn: None,
            pacing: None,
            idle: Some(0.01),
            client: Client::IoUring,
            burst: None,
            stall: None,
        }
    }

    #[test]
    fn shares_have_every_number_once_and_all_of_the_ramp() {
        let shares = shares(&load(11), 4);
        let spans: Vec<_> = shares.iter().map(|share| (share.first, share.connections)).collect();
        assert_eq!(spans, [(0, 3), (3, 3), (6, 3), (9, 2)]);
        let ramps: Duration = shares.iter().map(|share| share.ramp).sum();
        assert!(ramps.abs_diff(Duration::from_secs(10)) < Duration::from_millis(1), "{ramps:?}");
    }

    #[test]
    fn a_share_reaches_its_process_whole() {
        let mut share = load(5);
        share.first = 7;
        let line = serde_json::to_string(&Order::Begin { load: Box::new(share.clone()) }).expect("JSON");
        let Ok(Order::Begin { load }) = serde_json::from_str(&line) else { panic!("{line}") };
        assert_eq!(format!("{load:?}"), format!("{share:?}"));
    }

    #[test]
    fn what_clients_count_is_added_up_to_the_first_error() {
        let mut sum = Counted::new(&load(4)).expect("a histogram");
        let refused = || Failure { phase: "connect".into(), cause: "ECONNREFUSED".into(), count: 2 };
        for error in [None, Some(Error::machine("refused"))] {
            let mut share = Counted::new(&load(2)).expect("a histogram");
            (share.alive, share.pinged, share.failures) = (2, 1, vec![refused()]);
            share.latency.saturating_record(1_000);
            share.error = error.clone();
            let line = serde_json::to_string(&News::Counted { counted: Box::new(share) }).expect("JSON");
            let Ok(News::Counted { counted }) = serde_json::from_str(&line) else { panic!("{line}") };
            assert_eq!(add(&mut sum, *counted).err(), error);
        }
        assert_eq!((sum.alive, sum.pinged, sum.latency.len()), (4, 2, 2));
        assert_eq!(sum.failures, [Failure { count: 4, ..refused() }]);
    }
}
