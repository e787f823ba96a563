//! The state machine in memory: one echoed message without a kernel, and whole lives.

use std::{hint::black_box, sync::Arc, time::Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringspun::{
    Limits,
    internals::{Arrival, Budget, Connection, Pool, Step},
};

const MESSAGE: [u8; 64] = [b'm'; 64];

/// What the loop shares among its connections.
struct Shared {
    now: Instant,
    limits: Limits,
    pool: Pool,
}

impl Shared {
    fn new() -> Self {
        let limits = Limits::default();
        let pool = Pool::new(&limits, &Arc::new(Budget::new(limits.output_total_max)));
        Self { now: Instant::now(), limits, pool }
    }

    /// A connection whose receiving is on.
    fn connection(&mut self) -> Connection {
        let mut connection = Connection::new(false);
        self.settle(&mut connection);
        connection
    }

    /// Does what the connection wants, with a kernel that takes everything at once.
    fn settle(&mut self, connection: &mut Connection) {
        loop {
            match connection.step(self.now, &self.limits, &mut self.pool, true) {
                Step::Idle | Step::Later | Step::Close { .. } => return,
                Step::Send(mut batch) => {
                    let bytes = batch.len();
                    batch.advance(bytes);
                    connection.sent(batch, bytes, None, &mut self.pool, &self.limits);
                }
                step => drop(black_box(step)),
            }
        }
    }

    fn echo(&mut self, connection: &mut Connection) {
        if connection.received(&MESSAGE, &self.limits) == Arrival::Deliver {
            connection.write(&mut self.pool, &self.limits, &MESSAGE);
        }
        self.settle(connection);
    }
}

/// Every connection receives and answers once: the time an element is that of one message.
fn echo(c: &mut Criterion) {
    let mut group = c.benchmark_group("connection/echo");
    for count in [1, 1_000] {
        let mut shared = Shared::new();
        let mut connections: Vec<_> = (0..count).map(|_| shared.connection()).collect();
        group.throughput(Throughput::Elements(count));
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| connections.iter_mut().for_each(|connection| shared.echo(connection)));
        });
    }
    group.finish();
}

/// Made, one message, closed by this side, lost.
fn life(c: &mut Criterion) {
    let mut shared = Shared::new();
    c.bench_function("connection/life", |b| {
        b.iter(|| {
            let mut connection = shared.connection();
            shared.echo(&mut connection);
            connection.lose();
            shared.settle(&mut connection);
            connection.read_ended(None);
            shared.settle(&mut connection);
            black_box(connection.reason());
        });
    });
}

criterion_group!(benches, echo, life);
criterion_main!(benches);
