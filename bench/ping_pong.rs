//! Round trips over loopback on each backend. `loadgen` compares the backends; this only shows
//! whether one of them has changed.

mod common;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringspun::{Backend, Reactor};

use common::Server;

/// All connections ask, then all answers are read: the time an element is that of one message.
fn ping_pong(c: &mut Criterion) {
    let mut group = c.benchmark_group("ping_pong");
    group.sample_size(20);
    for backend in [Backend::IoUring, Backend::Epoll, Backend::Threads] {
        let server = Server::start(Reactor::builder().backend(backend));
        for connections in [1, 50] {
            let mut clients = server.connect(connections);
            group.throughput(Throughput::Elements(connections as u64));
            group.bench_function(BenchmarkId::new(backend.name(), connections), |b| {
                b.iter(|| {
                    clients.ask();
                    clients.answers();
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, ping_pong);
criterion_main!(benches);
