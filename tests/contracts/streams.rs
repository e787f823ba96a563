//! Connections that are written to without end: what was taken of each is counted, and each byte tells where in its stream it belongs.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Instant,
};

use ringspun::{Producer, Production, Transport, Write};

use crate::{
    kit::{Conn, Script},
    peers::{End, LIMIT, MORE_THAN_FITS, Peer},
};

/// What is written at once: more than the high mark, so that whoever writes is told when there is room again.
const PIECE: usize = 256 << 10;
/// Byte `i` of a stream is `i % PERIOD`: no buffer's size is a multiple of that.
const PERIOD: usize = 251;

/// Streams to this many connections. The first of them are to peers that do not read for now.
#[derive(Clone)]
pub(crate) struct Streams {
    /// How much was taken, by the connection's number.
    taken: Arc<[AtomicUsize]>,
    deaf: usize,
    /// Producers are to write no more.
    ending: Arc<AtomicBool>,
    endless: bool,
}

impl Streams {
    pub(crate) fn new(connections: usize, deaf: usize) -> Self {
        let taken = (0..connections).map(|_| AtomicUsize::new(0)).collect();
        Self { taken, deaf, ending: Arc::default(), endless: false }
    }

    /// Producers go on, whatever [`end`](Self::end) says.
    pub(crate) fn without_end(self) -> Self {
        Self { endless: true, ..self }
    }

    /// Protocols that write from the beginning, and whenever there is room.
    pub(crate) fn script(&self) -> Script {
        let (begun, resumed) = (self.clone(), self.clone());
        Script::new()
            .on_made(move |cx, conn| begun.begin(conn.number, &mut cx.transport))
            .on_resume(move |cx, conn| resumed.write(conn.number, &mut cx.transport))
    }

    /// Producers that do, until [`end`](Self::end). One that is stopped makes a note of [`stopped`].
    pub(crate) fn script_of_producers(&self, production: Production) -> Script {
        let streams = self.clone();
        Script::new().on_made(move |cx, conn| {
            let source = Source { streams: streams.clone(), conn: conn.clone() };
            cx.transport.register_producer(source, production).unwrap();
            streams.begin(conn.number, &mut cx.transport);
        })
    }

    fn begin(&self, number: usize, transport: &mut Transport<'_>) {
        // What peers say is of no interest.
        transport.pause_producing();
        let pieces = if number < self.deaf { MORE_THAN_FITS / PIECE } else { 1 };
        (0..pieces).for_each(|_| self.write(number, transport));
    }

    fn write(&self, number: usize, transport: &mut Transport<'_>) {
        let piece = part(self.taken(number), PIECE);
        if transport.write(piece) != Write::Closed {
            self.taken[number].fetch_add(PIECE, SeqCst);
        }
    }

    /// Producers are to unregister themselves.
    pub(crate) fn end(&self) {
        self.ending.store(!self.endless, SeqCst);
    }

    pub(crate) fn taken(&self, number: usize) -> usize {
        self.taken[number].load(SeqCst)
    }

    pub(crate) fn all_taken(&self) -> usize {
        (0..self.taken.len()).map(|number| self.taken(number)).sum()
    }

    /// Waits until all who read have been written to more than once.
    pub(crate) fn wait_until_they_flow(&self) {
        let begun = Instant::now();
        while (self.deaf..self.taken.len()).any(|number| self.taken(number) <= PIECE) {
            assert!(begun.elapsed() < LIMIT, "whoever reads is not written to");
            thread::yield_now();
        }
    }
}

/// What is noted of a producer that is stopped.
pub(crate) fn stopped(number: usize) -> String {
    format!("producer {number} is stopped")
}

struct Source {
    streams: Streams,
    conn: Conn,
}

impl Producer for Source {
    fn resume_producing(&mut self, transport: &mut Transport<'_>) {
        if self.streams.ending.load(SeqCst) {
            return transport.unregister_producer();
        }
        self.streams.write(self.conn.number, transport);
    }

    fn stop_producing(&mut self) {
        self.conn.note(stopped(self.conn.number));
    }
}

fn part(at: usize, len: usize) -> &'static [u8] {
    static BYTES: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..PERIOD + PIECE).map(|i| (i % PERIOD) as u8).collect());
    &BYTES[at % PERIOD..][..len]
}

/// Reads a stream to its end, each byte of it changed by `change`; how much came, and how it ended.
pub(crate) fn read_stream(peer: &mut Peer, change: fn(u8) -> u8) -> (usize, End) {
    let (mut buffer, mut got) = (vec![0; PIECE], 0);
    loop {
        let count = match peer.read_some(&mut buffer) {
            Ok(0) => return (got, End::Fin),
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return (got, End::Reset),
            Err(error) => panic!("after {got} bytes the peer's read failed: {error}"),
        };
        buffer[..count].iter_mut().for_each(|byte| *byte = change(*byte));
        assert!(buffer[..count] == *part(got, count), "another byte than was written, after {got}");
        got += count;
    }
}
