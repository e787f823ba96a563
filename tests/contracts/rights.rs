//! Descriptors that travel along with bytes over Unix sockets (U3).

use std::{
    io::{IoSlice, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex},
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::socket::{ControlMessage, MsgFlags, sendmsg},
};
use ringspun::{
    Cx, Factory, IntoFactory, Peer as Asking, Protocol,
    policies::{Filter, Policies, Throttle},
};

use crate::{
    kit::{Gate, Journal, Running, Script},
    peers::{LIMIT, pattern},
    setups::{Setup, on_every_backend},
    unix::Folder,
};

on_every_backend!(
    u3_a_descriptor_comes_before_the_byte_it_came_along_with,
    u3_a_descriptor_goes_along_with_its_byte,
    u3_descriptors_pass_between_two_protocols,
    u3_many_descriptors_keep_their_places_among_much_data,
    u3_who_pauses_gets_descriptors_after_the_resume,
    u3_who_takes_none_leaves_none_open,
    u3_who_takes_none_gets_all_bytes,
    u3_over_tcp_or_without_a_byte_there_are_none,
    u3_through_filters_there_are_none_and_throttles_leave_them_alone,
);

/// What a [`Taker`] does with what it takes.
type Take = Arc<dyn Fn(&mut Cx<'_, Takers>, OwnedFd) + Send + Sync>;

/// Protocols that take descriptors, and keep a journal.
struct Takers {
    journal: Journal,
    take: Take,
}

struct Taker;

impl Factory for Takers {
    type Protocol = Taker;

    fn build_protocol(&mut self, _peer: &mut Asking<'_>) -> Option<Taker> {
        Some(Taker)
    }
}

impl Protocol<Takers> for Taker {
    const RECEIVES_DESCRIPTORS: bool = true;

    fn data_received(&mut self, cx: &mut Cx<'_, Takers>, data: &[u8]) {
        for byte in data {
            cx.factory.journal.note(format!("byte {byte}"));
        }
    }

    fn file_descriptor_received(&mut self, cx: &mut Cx<'_, Takers>, descriptor: OwnedFd) {
        let flags = fcntl(&descriptor, FcntlArg::F_GETFD).unwrap();
        assert!(FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC), "no child inherits it");
        let take = Arc::clone(&cx.factory.take);
        take(cx, descriptor);
    }

    fn connection_lost(&mut self, cx: &mut Cx<'_, Takers>, reason: &ringspun::Reason) {
        cx.factory.journal.note(format!("lost: {reason:?}"));
    }
}

fn takers(journal: &Journal, take: impl Fn(&mut Cx<'_, Takers>, OwnedFd) + Send + Sync + 'static) -> Takers {
    Takers { journal: journal.clone(), take: Arc::new(take) }
}

/// The other end of a connection that this factory serves.
fn serve<F: Factory>(running: &Running, factory: impl IntoFactory<F>) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    running.reactor.adopt_stream_connection(ours.into(), factory).unwrap();
    theirs.set_read_timeout(Some(LIMIT)).unwrap();
    theirs
}

/// Sends bytes with descriptors from outside of the reactor.
pub(crate) fn send_along(stream: &impl AsRawFd, bytes: &[u8], descriptors: &[&dyn AsRawFd]) {
    let raw: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
    let control = [ControlMessage::ScmRights(&raw)];
    let sent = sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(bytes)], &control, MsgFlags::empty(), None);
    assert_eq!(sent.unwrap(), bytes.len());
}

/// The file that holds this text, to be read from its beginning.
fn text(words: &str) -> OwnedFd {
    let (mut write, read) = UnixStream::pair().unwrap();
    write.write_all(words.as_bytes()).unwrap();
    read.into()
}

fn read(descriptor: OwnedFd) -> String {
    let mut words = String::new();
    UnixStream::from(descriptor).read_to_string(&mut words).unwrap();
    words
}

fn notes_all(journal: &Journal, wanted: &[&str]) {
    let texts = |events: &[crate::kit::Event]| -> Vec<String> {
        let note = |event: &crate::kit::Event| match event {
            crate::kit::Event::Note(text) => Some(text.clone()),
            _ => None,
        };
        events.iter().filter_map(note).collect()
    };
    journal.wait("all notes", |events| texts(events).len() >= wanted.len());
    assert_eq!(texts(&journal.all()), wanted);
}

/// Notes what a descriptor's file says.
fn note(cx: &mut Cx<'_, Takers>, descriptor: OwnedFd) {
    let words = read(descriptor);
    cx.factory.journal.note(words);
}

fn u3_a_descriptor_comes_before_the_byte_it_came_along_with(setup: &Setup) {
    let (journal, running) = (Journal::default(), Running::start(setup.reactor()));
    let peer = serve(&running, takers(&journal, note));
    send_along(&peer, &[1, 2], &[&text("one"), &text("two")]);
    journal.wait_note("byte 2");
    send_along(&peer, &[3], &[&text("three")]);
    notes_all(&journal, &["one", "two", "byte 1", "byte 2", "three", "byte 3"]);
    drop(peer);
    journal.wait_note("lost: Done");
}

/// A script whose protocols send these one after another once they are made.
fn sender(parts: Vec<(Option<OwnedFd>, Vec<u8>)>) -> Script {
    let parts = Mutex::new(parts);
    Script::new().on_made(move |cx, _| {
        for (descriptor, bytes) in parts.lock().unwrap().drain(..) {
            match descriptor {
                Some(descriptor) => _ = cx.transport.send_file_descriptor(descriptor, &bytes).unwrap(),
                None => _ = cx.transport.write(&bytes),
            }
        }
        cx.transport.lose_connection();
    })
}

fn u3_a_descriptor_goes_along_with_its_byte(setup: &Setup) {
    let running = Running::start(setup.reactor());
    let parts = vec![
        (None, b"before ".to_vec()),
        (Some(text("the file")), b"along ".to_vec()),
        (None, b"after".to_vec()),
    ];
    let peer = serve(&running, sender(parts));
    let mut received = (Vec::new(), Vec::new());
    loop {
        let mut buffer = [0; 100];
        let mut slices = [std::io::IoSliceMut::new(&mut buffer)];
        let mut space = nix::cmsg_space!([i32; 4]);
        let message = nix::sys::socket::recvmsg::<()>(
            peer.as_raw_fd(),
            &mut slices,
            Some(&mut space),
            MsgFlags::empty(),
        );
        let message = match message {
            Err(nix::errno::Errno::EINTR) => continue,
            message => message.unwrap(),
        };
        let before = received.0.len();
        for control in message.cmsgs().unwrap() {
            if let nix::sys::socket::ControlMessageOwned::ScmRights(raw) = control {
                received.1.extend(raw.into_iter().map(|raw| (before, raw)));
            }
        }
        let len = message.bytes;
        if len == 0 {
            break;
        }
        received.0.extend_from_slice(&buffer[..len]);
    }
    assert_eq!(received.0, b"before along after");
    assert_eq!(received.1.len(), 1);
    let (at, raw) = received.1[0];
    // The kernel gives it with the piece that its byte is in, which may begin before.
    assert!(at <= b"before ".len());
    nix::unistd::close(raw).unwrap();
}

fn u3_descriptors_pass_between_two_protocols(setup: &Setup) {
    let (journal, running) = (Journal::default(), Running::start(setup.reactor()));
    let (one, other) = UnixStream::pair().unwrap();
    running.reactor.adopt_stream_connection(one.into(), takers(&journal, note)).unwrap();
    let parts = vec![(Some(text("first")), vec![1]), (None, vec![2]), (Some(text("second")), vec![3])];
    running.reactor.adopt_stream_connection(other.into(), sender(parts)).unwrap();
    notes_all(&journal, &["first", "byte 1", "byte 2", "second", "byte 3", "lost: Done"]);
}

fn u3_many_descriptors_keep_their_places_among_much_data(setup: &Setup) {
    let (journal, running) = (Journal::default(), Running::start(setup.reactor()));
    let counted = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&counted);
    // Each file says after how many bytes it comes.
    let factory = Counting { seen: 0, files: seen, journal: journal.clone() };
    let (one, other) = UnixStream::pair().unwrap();
    let mut at = 0;
    let mut wanted = Vec::new();
    let mut parts = Vec::new();
    for n in 0..60 {
        let bytes = pattern(n, 1 + (n as usize * 977) % 9000);
        let descriptor = (n % 3 != 1).then(|| {
            wanted.push((at, at.to_string()));
            text(&at.to_string())
        });
        at += bytes.len();
        parts.push((descriptor, bytes));
    }
    running.reactor.adopt_stream_connection(one.into(), factory).unwrap();
    running.reactor.adopt_stream_connection(other.into(), sender(parts)).unwrap();
    journal.wait_note(&format!("{at} bytes"));
    let counted = counted.lock().unwrap();
    assert!(
        counted.iter().map(|(_, words)| words).eq(wanted.iter().map(|(_, words)| words)),
        "each in its turn"
    );
    // With the piece that its byte is in.
    assert!(counted.iter().zip(&wanted).all(|((came, _), (along, _))| came <= along), "{counted:?}");
    assert!(counted.iter().zip(&wanted[1..]).all(|((came, _), (next, _))| came < next), "{counted:?}");
}

/// Notes after how many bytes each descriptor came.
struct Counting {
    seen: usize,
    files: Arc<Mutex<Vec<(usize, String)>>>,
    journal: Journal,
}

struct Counter;

impl Factory for Counting {
    type Protocol = Counter;

    fn build_protocol(&mut self, _peer: &mut Asking<'_>) -> Option<Counter> {
        Some(Counter)
    }
}

impl Protocol<Counting> for Counter {
    const RECEIVES_DESCRIPTORS: bool = true;

    fn data_received(&mut self, cx: &mut Cx<'_, Counting>, data: &[u8]) {
        cx.factory.seen += data.len();
    }

    fn file_descriptor_received(&mut self, cx: &mut Cx<'_, Counting>, descriptor: OwnedFd) {
        let at = cx.factory.seen;
        cx.factory.files.lock().unwrap().push((at, read(descriptor)));
    }

    fn connection_lost(&mut self, cx: &mut Cx<'_, Counting>, _reason: &ringspun::Reason) {
        let seen = cx.factory.seen;
        cx.factory.journal.note(format!("{seen} bytes"));
    }
}

fn u3_who_pauses_gets_descriptors_after_the_resume(setup: &Setup) {
    let (journal, running) = (Journal::default(), Running::start(setup.reactor()));
    let factory = takers(&journal, |cx, descriptor| {
        note(cx, descriptor);
        cx.transport.pause_producing();
        cx.factory.journal.note("paused");
        let id = cx.transport.id();
        cx.post(id, |_, cx| {
            cx.factory.journal.note("resumed");
            cx.transport.resume_producing();
        });
    });
    let peer = serve(&running, factory);
    send_along(&peer, &[1], &[&text("one"), &text("two")]);
    notes_all(&journal, &["one", "paused", "resumed", "two", "paused", "resumed", "byte 1"]);
}

fn u3_who_takes_none_leaves_none_open(setup: &Setup) {
    let (journal, running) = (Journal::default(), Running::start(setup.reactor()));
    let mut peer = serve(&running, Script::echo().journal(&journal));
    let (mut watched, theirs) = UnixStream::pair().unwrap();
    watched.set_read_timeout(Some(LIMIT)).unwrap();
    send_along(&peer, b"x", &[&theirs]);
    drop(theirs);
    let mut byte = [0];
    peer.read_exact(&mut byte).unwrap();
    assert_eq!(watched.read(&mut byte).unwrap(), 0, "nobody has the other end");
}

fn u3_who_takes_none_gets_all_bytes(setup: &Setup) {
    let (folder, running) = (Folder::new(), Running::start(setup.reactor()));
    let path = folder.file("echo");
    let journal = Journal::default();
    running.reactor.listen_unix(path.as_path(), Script::new().journal(&journal)).unwrap();
    let peer = UnixStream::connect(&path).unwrap();
    // A receive ends at each descriptor, though more lies behind it: all of it is there before the reactor looks.
    let gate = Gate::default();
    let held = gate.clone();
    running.reactor.call_from_thread(move |_| held.pass());
    for n in 0..50 {
        send_along(&peer, &[n, n, n], &[&peer]);
    }
    gate.open();
    let bytes = journal.wait_bytes(0, 150);
    assert!(bytes.chunks(3).enumerate().all(|(n, three)| three == [n as u8; 3]));
}

fn u3_over_tcp_or_without_a_byte_there_are_none(setup: &Setup) {
    let factory = Script::new().on_made(|cx, conn| {
        let refused = |error: std::io::Error| error.to_string();
        let over_tcp = cx.transport.send_file_descriptor(text("no"), b"x").unwrap_err();
        conn.note(refused(over_tcp));
    });
    let server = factory.serve(setup.reactor());
    let _peer = server.dial();
    server.journal.wait_note("descriptors can be sent over Unix sockets only");
    let empty = Script::new().on_made(|cx, conn| {
        let error = cx.transport.send_file_descriptor(text("no"), b"").unwrap_err();
        conn.note(error.to_string());
    });
    let (journal, running) = (Journal::default(), Running::start(setup.reactor()));
    let _peer = serve(&running, empty.journal(&journal));
    journal.wait_note("a descriptor needs a byte to go along with");
}

fn u3_through_filters_there_are_none_and_throttles_leave_them_alone(setup: &Setup) {
    struct Nothing;

    impl Filter for Nothing {}

    let (journal, running) = (Journal::default(), Running::start(setup.reactor()));
    let refused = Script::new().on_made(|cx, conn| {
        let error = cx.transport.send_file_descriptor(text("no"), b"x").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        conn.note(error.to_string());
    });
    let filtered = Policies::new().filter(|_| Nothing).wrap(refused.journal(&journal));
    let _peer = serve(&running, filtered);
    journal.wait_note("descriptors cannot be sent through filters: serve those who need them without");
    // Each goes with its byte, however slowly; its file says after how many bytes.
    let (files, journal) = (Arc::new(Mutex::new(Vec::new())), Journal::default());
    let factory = Counting { seen: 0, files: Arc::clone(&files), journal: journal.clone() };
    let throttled = Policies::new().throttle_each(&Throttle::new().write(10));
    let parts = vec![(None, vec![1]), (Some(text("1")), vec![2; 11]), (Some(text("12")), vec![3])];
    let (one, other) = UnixStream::pair().unwrap();
    running.reactor.adopt_stream_connection(one.into(), factory).unwrap();
    running.reactor.adopt_stream_connection(other.into(), throttled.wrap(sender(parts))).unwrap();
    journal.wait_note("13 bytes");
    let files = files.lock().unwrap();
    assert_eq!(files.iter().map(|(_, words)| words).collect::<Vec<_>>(), ["1", "12"]);
    assert!(files.iter().all(|(came, words)| *came <= words.parse().unwrap()), "{files:?}");
}
