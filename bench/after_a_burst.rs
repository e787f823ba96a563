//! How soon three connections are answered right after 1,000 others were busy: what the adaptive
//! wait of io_uring costs when the load falls, beside its latency mode. The aim is 1 ms.

mod common;

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ringspun::{Backend, Reactor, UringOptions, WaitPolicy};

use common::{Clients, Server};

const BUSY: usize = 1_000;
const ACTIVE: usize = 3;
/// Both ends of each connection, and what the program needs beside them.
const DESCRIPTORS: u64 = 2 * (BUSY + ACTIVE) as u64 + 100;
/// Bursts before a measurement, so that the policy has come to expect them.
const BURSTS: usize = 3;

fn after_a_burst(c: &mut Criterion) {
    allow_descriptors();
    let latency = WaitPolicy::Latency { spin: Duration::ZERO };
    let mut group = c.benchmark_group("three_answers_after_a_burst_of_1000");
    group.sample_size(20);
    for (name, wait) in [("adaptive", WaitPolicy::Adaptive), ("latency", latency)] {
        let options = UringOptions::default().wait(wait);
        let server = Server::start(Reactor::builder().backend(Backend::IoUring).uring(options));
        let (mut busy, mut active) = (server.connect(BUSY), server.connect(ACTIVE));
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter_custom(|rounds| (0..rounds).map(|_| answered_in(&server, &mut busy, &mut active)).sum());
        });
    }
    group.finish();
}

/// The bursts, then the time until the three have their answers.
fn answered_in(server: &Server, busy: &mut Clients, active: &mut Clients) -> Duration {
    for _ in 0..BURSTS {
        server.hold(|| busy.ask());
        busy.answers();
    }
    let asked = Instant::now();
    active.ask();
    active.answers();
    asked.elapsed()
}

fn allow_descriptors() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit can be read");
    assert!(hard >= DESCRIPTORS, "{DESCRIPTORS} descriptors are needed, `ulimit -Hn` is {hard}");
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(DESCRIPTORS), hard).expect("below the hard limit");
}

criterion_group!(benches, after_a_burst);
criterion_main!(benches);
