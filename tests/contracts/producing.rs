//! Producers: asked, paused and stopped (P1-P3), and closes that wait for them (C8, C9).

use std::{
    fs::File,
    io::{self, Read, Seek as _, Write as _},
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    time::{Duration, Instant},
};

use ringspun::{AlreadyProducing, FileSender, Limits, Producer, Production, Transport, Write};

use crate::{
    kit::{Event, Journal, Script, ignore},
    peers::{End, Peer, assert_same, pattern},
    setups::{Setup, on_every_backend},
    standstill::unless_it_stood_still,
};

on_every_backend!(
    p1_a_push_producer_is_paused_and_resumed_at_the_marks,
    p1_a_pull_producer_is_asked_once_a_drained_buffer,
    p1_only_one_producer_at_a_time,
    p1_a_file_is_sent_whole_and_piece_by_piece,
    p1_a_file_that_cannot_be_read_ends_its_connection,
    p2_on_a_closed_connection_a_producer_is_stopped_at_once,
    p2_a_loss_stops_it_once_before_it_is_told,
    p2_the_peers_fin_stops_it,
    p3_writing_inside_resume_and_pause_does_not_recurse,
    c8_a_write_after_the_close_is_sent_while_a_producer_is_registered,
    c9_a_close_waits_until_the_producer_is_unregistered,
    c9_a_half_close_waits_too,
    c9_a_peer_that_does_not_read_is_not_waited_for,
);

/// Notes what it is told; on each resume it writes a piece, and unregisters itself where nothing is left.
struct Tape {
    journal: Journal,
    pieces: std::vec::IntoIter<Vec<u8>>,
    inside: AtomicBool,
}

impl Tape {
    fn new(journal: &Journal, pieces: Vec<Vec<u8>>) -> Self {
        Self { journal: journal.clone(), pieces: pieces.into_iter(), inside: AtomicBool::new(false) }
    }

    /// One that only notes.
    fn blank(journal: &Journal) -> Self {
        Self::new(journal, vec![Vec::new(); 1000])
    }

    fn note(&self, text: &str, transport: &mut Transport<'_>, piece: &[u8]) {
        assert!(!self.inside.swap(true, SeqCst), "told {text} while it was being told something");
        self.journal.note(text);
        if !piece.is_empty() {
            let _ = transport.write(piece);
        }
        self.inside.store(false, SeqCst);
    }
}

impl Producer for Tape {
    fn resume_producing(&mut self, transport: &mut Transport<'_>) {
        match self.pieces.next() {
            Some(piece) => self.note("resume", transport, &piece),
            None => {
                self.note("end", transport, &[]);
                transport.unregister_producer();
            }
        }
    }

    fn pause_producing(&mut self, transport: &mut Transport<'_>) {
        let piece = self.pieces.next().unwrap_or_default();
        self.note("pause", transport, &piece);
    }

    fn stop_producing(&mut self) {
        self.journal.note("stop");
    }
}

fn notes(journal: &Journal) -> Vec<String> {
    notes_of(&journal.all())
}

fn notes_of(events: &[Event]) -> Vec<String> {
    let text = |event: &Event| match event {
        Event::Note(text) => Some(text.clone()),
        _ => None,
    };
    events.iter().filter_map(text).collect()
}

fn register(transport: &mut Transport<'_>, tape: Tape, production: Production) {
    transport.register_producer(tape, production).expect("the first one");
}

fn p1_a_push_producer_is_paused_and_resumed_at_the_marks(setup: &Setup) {
    const MUCH: usize = 3 << 20;
    let script = Script::new()
        .on_made(|cx, conn| register(&mut cx.transport, Tape::blank(&conn.journal), Production::Push))
        .on_data(|cx, _, _| ignore(cx.transport.write(&pattern(1, MUCH))));
    let server = script.serve(setup.reactor());
    let mut peer = Peer::dial_narrow(server.address(), 4096);
    server.journal.id(0);
    assert_eq!(notes(&server.journal), [""; 0], "a push producer is not asked");
    for round in 1..=3 {
        peer.write(b"x");
        let paused = |events: &[Event]| {
            events.iter().filter(|event| **event == Event::Note("pause".to_owned())).count() == round
        };
        server.journal.wait("a pause", paused);
        server.let_it_turn();
        assert_eq!(notes(&server.journal), ["pause", "resume"].repeat(round)[..2 * round - 1]);
        assert_same(&peer.read_exactly(MUCH), &pattern(1, MUCH));
        server.journal.wait("the resume", |events| notes_of(events).len() == 2 * round);
    }
}

fn p1_a_pull_producer_is_asked_once_a_drained_buffer(setup: &Setup) {
    let pieces: Vec<Vec<u8>> = (0..50).map(|number| pattern(number, 10_000)).collect();
    let all = pieces.concat();
    let script = Script::new().on_made(move |cx, conn| {
        register(&mut cx.transport, Tape::new(&conn.journal, pieces.clone()), Production::Pull);
        assert_eq!(notes(&conn.journal), [""; 0], "not from inside the registration");
    });
    let server = script.serve(setup.reactor());
    let mut peer = server.dial_made(0);
    assert_same(&peer.read_exactly(all.len()), &all);
    server.journal.wait_note("end");
    server.let_it_turn();
    let told = notes(&server.journal);
    assert_eq!(told.len(), 51, "{told:?}");
    assert!(told[..50].iter().all(|text| text == "resume"));
    // It is gone now.
    server.act_on(0, |transport| transport.lose_connection());
    peer.expect_fin();
}

fn p1_only_one_producer_at_a_time(setup: &Setup) {
    let script = Script::new().on_made(|cx, conn| {
        let transport = &mut cx.transport;
        register(transport, Tape::blank(&conn.journal), Production::Push);
        let second = transport.register_producer(Tape::blank(&conn.journal), Production::Pull);
        assert_eq!(second, Err(AlreadyProducing));
        assert!(AlreadyProducing.to_string().contains("unregister"));
        transport.unregister_producer();
        transport.unregister_producer();
        register(transport, Tape::new(&conn.journal, vec![b"third".to_vec()]), Production::Pull);
    });
    let server = script.serve(setup.reactor());
    let mut peer = server.dial_made(0);
    assert_eq!(peer.read_exactly(5), b"third");
    server.journal.wait_note("end");
    assert_eq!(notes(&server.journal), ["resume", "end"]);
}

fn p1_a_file_is_sent_whole_and_piece_by_piece(setup: &Setup) {
    const BYTES: usize = 8 << 20;
    let bytes = pattern(7, BYTES);
    let mut file = temporary_file();
    file.write_all(&bytes).unwrap();
    let script = Script::new().on_made(move |cx, _| {
        let mut file = file.try_clone().unwrap();
        file.rewind().unwrap();
        cx.transport.register_producer(FileSender::new(file), Production::Pull).unwrap();
        cx.transport.lose_connection();
    });
    let server = script.serve(setup.reactor());
    let mut peer = Peer::dial_narrow(server.address(), 16 << 10);
    server.journal.id(0);
    server.let_it_turn();
    let unsent = server.act_on(0, |transport| transport.unsent());
    assert!(unsent <= 128 << 10, "{unsent} bytes of the file wait in memory");
    let (got, end) = peer.read_to_end();
    assert_same(&got, &bytes);
    assert_eq!(end, End::Fin);
    assert_eq!(server.journal.wait_lost(0), "Done");
}

/// Gives so many bytes, and then an error.
struct Failing(usize);

impl Read for Failing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.min(buffer.len());
        self.0 -= count;
        buffer[..count].fill(7);
        if count > 0 { Ok(count) } else { Err(io::Error::other("the disk is gone")) }
    }
}

fn p1_a_file_that_cannot_be_read_ends_its_connection(setup: &Setup) {
    let script = Script::new().on_made(|cx, _| {
        cx.transport.register_producer(FileSender::new(Failing(300_000)), Production::Pull).unwrap();
    });
    let server = script.serve(setup.reactor());
    let mut peer = server.dial_made(0);
    assert_eq!(peer.read_to_end().1, End::Reset, "half a file must not look like a whole one");
    let reason = server.journal.wait_lost(0);
    assert!(reason.contains("the disk is gone"), "{reason}");
}

/// An empty file without a name.
fn temporary_file() -> File {
    let folder = std::env::temp_dir();
    let flags = nix::fcntl::OFlag::O_TMPFILE | nix::fcntl::OFlag::O_RDWR;
    let fd = nix::fcntl::open(&folder, flags, nix::sys::stat::Mode::S_IRUSR).expect("a temporary file");
    File::from(fd)
}

fn p2_on_a_closed_connection_a_producer_is_stopped_at_once(setup: &Setup) {
    let script = Script::new()
        .on_data(|cx, conn, _| {
            cx.transport.lose_connection();
            register(&mut cx.transport, Tape::blank(&conn.journal), Production::Push);
            conn.note("registered");
        })
        .on_lost(|cx, conn, _| {
            register(&mut cx.transport, Tape::blank(&conn.journal), Production::Pull);
            conn.note("registered");
        });
    let server = script.serve(setup.reactor());
    let mut peer = server.dial_made(0);
    peer.ask(b"x", b"");
    peer.expect_fin();
    drop(peer);
    server.journal.wait("both", |events| notes_of(events).len() == 4);
    assert_eq!(notes(&server.journal), ["stop", "registered", "stop", "registered"]);
}

fn p2_a_loss_stops_it_once_before_it_is_told(setup: &Setup) {
    let script = Script::new()
        .on_made(|cx, conn| register(&mut cx.transport, Tape::blank(&conn.journal), Production::Push))
        .on_data(|cx, _, data| match data {
            b"abort" => cx.transport.abort_connection(),
            b"fail" => cx.transport.fail("on purpose"),
            b"panic" => panic!("on purpose"),
            _ => cx.transport.unregister_producer(),
        })
        .on_lost(|_, conn, _| conn.note(format!("lost {}", conn.number)));
    let server = script.serve(setup.reactor());
    for (number, how) in ["abort", "fail", "panic", "reset", "unregister"].into_iter().enumerate() {
        let mut peer = server.dial_made(number);
        server.journal.id(number);
        match how {
            "reset" => peer.reset(),
            "unregister" => {
                peer.write(b"unregister");
                server.journal.wait_bytes(number, 10);
                peer.reset();
            }
            _ => {
                peer.write(how.as_bytes());
                peer.expect_reset();
            }
        }
        server.journal.wait_note(&format!("lost {number}"));
    }
    let stopped = |number| ["stop".to_owned(), format!("lost {number}")];
    let wanted: Vec<_> = (0..4).flat_map(stopped).chain(["lost 4".to_owned()]).collect();
    assert_eq!(notes(&server.journal), wanted);
}

fn p2_the_peers_fin_stops_it(setup: &Setup) {
    let script = Script::new()
        .on_made(|cx, conn| {
            register(&mut cx.transport, Tape::blank(&conn.journal), Production::Push);
            let _ = cx.transport.write(b"written before");
        })
        .on_lost(|_, conn, _| conn.note("lost"));
    let server = script.serve(setup.reactor());
    let mut peer = server.dial_made(0);
    peer.finish_writing();
    assert_eq!(peer.read_to_end(), (b"written before".to_vec(), End::Fin));
    assert_eq!(server.journal.wait_lost(0), "Done");
    server.journal.wait_note("lost");
    assert_eq!(notes(&server.journal), ["stop", "lost"]);
}

fn p3_writing_inside_resume_and_pause_does_not_recurse(setup: &Setup) {
    let pieces: Vec<Vec<u8>> = (0..20).map(|number| pattern(number, 400_000)).collect();
    let all = pieces.concat();
    for production in [Production::Push, Production::Pull] {
        let pieces = pieces.clone();
        let script = Script::new()
            .on_made(move |cx, conn| {
                register(&mut cx.transport, Tape::new(&conn.journal, pieces.clone()), production);
            })
            .on_data(|cx, _, _| {
                // The first piece of a push producer, which goes on at the marks.
                let _ = cx.transport.write(&[b'.'; 200_000]);
            });
        let server = script.serve(setup.reactor());
        let mut peer = server.dial_made(0);
        if production == Production::Push {
            peer.ask(b"x", &[b'.'; 200_000]);
        }
        assert_same(&peer.read_exactly(all.len()), &all);
        server.journal.wait_note("end");
    }
}

fn c8_a_write_after_the_close_is_sent_while_a_producer_is_registered(setup: &Setup) {
    let script = Script::new().on_made(|cx, conn| {
        let transport = &mut cx.transport;
        register(transport, Tape::blank(&conn.journal), Production::Push);
        transport.lose_connection();
        assert_eq!(transport.write(b"sent"), Write::Accepted);
        transport.unregister_producer();
        assert_eq!(transport.write(b"dropped"), Write::Closed);
    });
    let server = script.serve(setup.reactor());
    let mut peer = server.dial();
    assert_eq!(peer.read_to_end(), (b"sent".to_vec(), End::Fin));
}

fn c9_a_close_waits_until_the_producer_is_unregistered(setup: &Setup) {
    let script = Script::new().on_made(|cx, conn| {
        register(&mut cx.transport, Tape::blank(&conn.journal), Production::Push);
        let _ = cx.transport.write(b"first");
        cx.transport.lose_connection();
    });
    let server = script.serve(setup.reactor());
    let mut peer = server.dial_made(0);
    assert_eq!(peer.read_exactly(5), b"first");
    // C4: what comes after `lose_connection` is not delivered, producer or not.
    peer.write(b"too late");
    server.let_it_turn();
    let answer = server.act_on(0, |transport| transport.write(b"last"));
    assert_eq!(answer, Write::Accepted, "it is closed already");
    server.act_on(0, |transport| transport.unregister_producer());
    assert_eq!(peer.read_to_end(), (b"last".to_vec(), End::Fin));
    drop(peer);
    assert_eq!(server.journal.wait_lost(0), "Done");
    assert_eq!(server.journal.bytes(0), b"");
    assert_eq!(notes(&server.journal), [""; 0], "an unregistered producer was told something");
}

fn c9_a_half_close_waits_too(setup: &Setup) {
    let script = Script::half_closeable().on_made(|cx, conn| {
        register(&mut cx.transport, Tape::new(&conn.journal, vec![b"all of it".to_vec()]), Production::Pull);
        cx.transport.lose_write_connection();
    });
    let server = script.serve(setup.reactor());
    let mut peer = server.dial();
    assert_eq!(peer.read_to_end(), (b"all of it".to_vec(), End::Fin));
    peer.write(b"heard");
    assert_eq!(server.journal.wait_bytes(0, 5), b"heard");
    drop(peer);
    assert_eq!(server.journal.wait_lost(0), "Done");
    assert_eq!(notes(&server.journal), ["resume", "end"]);
}

/// Has as much as anybody asks for.
struct Endless;

impl Producer for Endless {
    fn resume_producing(&mut self, transport: &mut Transport<'_>) {
        let _ = transport.write(&[b'.'; 60_000]);
    }
}

fn c9_a_peer_that_does_not_read_is_not_waited_for(setup: &Setup) {
    unless_it_stood_still(Duration::from_millis(300), |limit, pauses| {
        let script = Script::new().on_made(|cx, _| {
            cx.transport.register_producer(Endless, Production::Pull).unwrap();
            cx.transport.lose_connection();
        });
        let server = script.serve(setup.limited(Limits { close_timeout: limit, ..Limits::default() }));
        let mut peer = Peer::dial_narrow(server.address(), 4096);
        // For as long as it reads, it is. All that was written may have gone when the time is over, which begins anew then: not each time by chance.
        let (begun, mut buffer, mut is_served) = (Instant::now(), vec![0; 100_000], true);
        while is_served && begun.elapsed() < limit * 6 {
            is_served = peer.read_some(&mut buffer).is_ok_and(|count| count > 0);
            pauses.end();
        }
        assert_eq!(server.journal.wait_lost(0), "TimedOut(Close)");
        is_served
    });
}
