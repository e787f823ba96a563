//! A connection's output buffer: append, hand over, take back.

use std::{hint::black_box, sync::Arc};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringspun::{
    Limits,
    internals::{Batch, Budget, Output, Pool},
};

fn pool() -> Pool {
    Pool::new(&Limits::default(), &Arc::new(Budget::new(usize::MAX)))
}

/// Appends `writes` times by `append`, then lets the kernel have taken everything.
fn cycle(
    output: &mut Output,
    pool: &mut Pool,
    limits: &Limits,
    writes: usize,
    append: &mut dyn FnMut(&mut Batch),
) {
    for _ in 0..writes {
        black_box(output.append_with(pool, limits.output_high, append));
    }
    let mut batch = output.next_batch().expect("something was appended");
    let bytes = batch.len();
    black_box(batch.slices().map(<[u8]>::len).sum::<usize>());
    batch.advance(bytes);
    output.came_back(batch, bytes, pool, limits.output_low);
}

fn cycles(c: &mut Criterion) {
    let (mut output, mut pool, limits) = (Output::default(), pool(), Limits::default());
    let copied = [b'c'; 64];
    let shared: Arc<[u8]> = vec![b's'; 4096].into();
    let mut group = c.benchmark_group("output");
    for writes in [1, 16] {
        group.throughput(Throughput::Elements(writes as u64));
        group.bench_function(BenchmarkId::new("copied_64_bytes", writes), |b| {
            b.iter(|| cycle(&mut output, &mut pool, &limits, writes, &mut |batch| batch.push(&copied)));
        });
        group.bench_function(BenchmarkId::new("shared_4096_bytes", writes), |b| {
            let mut append = |batch: &mut Batch| batch.push_shared(Arc::clone(&shared));
            b.iter(|| cycle(&mut output, &mut pool, &limits, writes, &mut append));
        });
    }
    group.finish();
}

/// The kernel takes half, more is appended meanwhile, then it takes the rest.
fn short_send(c: &mut Criterion) {
    let (mut output, mut pool, limits) = (Output::default(), pool(), Limits::default());
    let data = [b'x'; 1024];
    c.bench_function("output/short_send_1024_bytes", |b| {
        b.iter(|| {
            output.append_with(&mut pool, limits.output_high, &mut |batch| batch.push(&data));
            let mut half = output.next_batch().expect("something was appended");
            output.append_with(&mut pool, limits.output_high, &mut |batch| batch.push(&data));
            half.advance(data.len() / 2);
            output.came_back(half, data.len() / 2, &mut pool, limits.output_low);
            let mut rest = output.next_batch().expect("the rest is left");
            let bytes = rest.len();
            rest.advance(bytes);
            output.came_back(rest, bytes, &mut pool, limits.output_low);
        });
    });
}

criterion_group!(benches, cycles, short_send);
criterion_main!(benches);
