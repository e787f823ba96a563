//! The queue behind `call_later`: what a timer costs while few or many others wait.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringspun::internals::{TimerKey, TimerQueue};

const SIZES: [usize; 2] = [1_000, 100_000];

/// Deadlines all over the coming minute, in no order but always the same.
fn deadlines(start: Instant) -> impl FnMut() -> Instant {
    let mut random = 1u64;
    move || {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        start + Duration::from_nanos(random % 60_000_000_000)
    }
}

fn filled(size: usize, start: Instant) -> (TimerQueue<usize>, Vec<TimerKey>) {
    let (mut queue, mut deadline) = (TimerQueue::default(), deadlines(start));
    let keys = (0..size).map(|i| queue.insert(deadline(), i)).collect();
    (queue, keys)
}

fn fire_all(queue: &mut TimerQueue<usize>, now: Instant) {
    let mark = queue.mark();
    while let Some(due) = queue.pop_due(now, mark) {
        black_box(due);
    }
}

/// Whole lives of all timers: the time an element is that of one timer.
fn lives(c: &mut Criterion) {
    let start = Instant::now();
    let end = start + Duration::from_secs(3600);
    let mut group = c.benchmark_group("timers");
    for size in SIZES {
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(BenchmarkId::new("insert", size), |b| {
            b.iter_with_large_drop(|| filled(size, start));
        });
        group.bench_function(BenchmarkId::new("cancel", size), |b| {
            let cancel = |(mut queue, keys): (TimerQueue<usize>, Vec<TimerKey>)| {
                for key in keys {
                    black_box(queue.remove(key));
                }
                queue
            };
            b.iter_batched(|| filled(size, start), cancel, BatchSize::LargeInput);
        });
        group.bench_function(BenchmarkId::new("fire", size), |b| {
            let fire = |(mut queue, _): (TimerQueue<usize>, Vec<TimerKey>)| {
                fire_all(&mut queue, end);
                queue
            };
            b.iter_batched(|| filled(size, start), fire, BatchSize::LargeInput);
        });
    }
    group.finish();
}

/// One timer that is moved with each message, as a time-out is, among others that wait.
fn reschedule(c: &mut Criterion) {
    let start = Instant::now();
    let mut group = c.benchmark_group("timers/reschedule_one_among");
    for size in SIZES {
        let (mut queue, keys) = filled(size, start);
        let mut deadline = deadlines(start);
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| black_box(queue.reschedule(keys[size / 2], deadline())));
        });
    }
    group.finish();
}

criterion_group!(benches, lives, reschedule);
criterion_main!(benches);
