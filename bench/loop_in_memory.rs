//! What the loop itself costs a message: event, dispatch, the protocol's write, flush, and word that it was sent,
//! over a backend that is only memory.

use std::{
    sync::mpsc::{Sender, channel},
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringspun::{Backend, Cx, Factory, Peer, Protocol, Reactor};

const MESSAGE: [u8; 64] = [b'm'; 64];
const WARM_UP_TURNS: u64 = 20;

/// Echoes, and stops the reactor after so many messages; the first ones are not timed.
struct Counted {
    untimed: u64,
    left: u64,
    start: Option<Instant>,
    took: Sender<Duration>,
}

struct Echo;

impl Factory for Counted {
    type Protocol = Echo;

    fn build_protocol(&mut self, _peer: &mut Peer<'_>) -> Option<Echo> {
        Some(Echo)
    }
}

impl Protocol<Counted> for Echo {
    fn data_received(&mut self, cx: &mut Cx<'_, Counted>, data: &[u8]) {
        cx.transport.write(data);
        let counted = &mut *cx.factory;
        if counted.untimed > 0 {
            counted.untimed -= 1;
            return;
        }
        let start = *counted.start.get_or_insert_with(Instant::now);
        counted.left = counted.left.saturating_sub(1);
        if counted.left == 0 {
            // It has been told before if the reactor goes on for the rest of the turn.
            let _ = counted.took.send(start.elapsed());
            let _ = cx.reactor.stop();
        }
    }
}

/// The time that so many turns of all connections take.
fn turns(connections: u32, turns: u64) -> Duration {
    let reactor = Reactor::builder().backend(Backend::Epoll).signals(false).build().expect("epoll is there");
    let (took, told) = channel();
    let messages = |turns: u64| turns * u64::from(connections);
    let factory = Counted { untimed: messages(WARM_UP_TURNS), left: messages(turns), start: None, took };
    reactor.listen_tcp(("127.0.0.1", 0), factory).expect("some port is free");
    reactor.run_in_memory(connections, &MESSAGE).expect("it runs");
    told.recv().expect("it has told before it stopped")
}

fn loop_in_memory(c: &mut Criterion) {
    let mut group = c.benchmark_group("loop_in_memory");
    for connections in [1, 50, 1_000, 10_000] {
        group.throughput(Throughput::Elements(connections.into()));
        group.bench_function(BenchmarkId::from_parameter(connections), |b| {
            b.iter_custom(|iterations| turns(connections, iterations));
        });
    }
    group.finish();
}

criterion_group!(benches, loop_in_memory);
criterion_main!(benches);
