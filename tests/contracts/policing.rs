//! What is imposed on connections whatever their protocol: time-outs, filters and traffic logs (O1, O2, O4, O5).

use std::{
    io::{self, Write as _},
    os::unix::fs::PermissionsExt,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use ringspun::{
    BoxError, Count, Cx, Factory, Peer as Asking, Producer, Production, Protocol, Reason, Serve, Transport,
    policies::{Filter, Policies, TrafficLog},
};

use crate::{
    kit::{Drops, Event, Guard, Journal, Running, Script, ignore, logged},
    peers::{End, LIMIT, Peer, assert_same, pattern},
    setups::{Setup, on_every_backend},
    standstill::unless_it_stood_still,
};

on_every_backend!(
    o1_a_time_out_moves_with_each_message_and_is_never_early,
    o1_a_protocol_that_says_nothing_is_closed,
    o1_a_time_out_that_was_taken_back_does_not_come,
    o1_a_time_out_cuts_a_producer_short,
    o1_a_time_out_comes_though_a_producer_is_let_go_after_it_was_set,
    o2_an_idle_connection_ends_and_a_busy_one_does_not,
    o2_a_connection_that_this_side_makes_is_idle_too,
    o2_who_reads_a_long_write_slowly_is_not_idle,
    o4_filters_at_both_ends_are_not_seen_by_the_protocols,
    o4_a_filter_has_the_first_and_the_last_word,
    o4_what_a_filter_says_after_fin_is_dropped,
    o4_a_filter_that_fails_or_panics_ends_that_connection_only,
    o4_filters_beside_one_that_panics_hear_of_the_end,
    o4_what_passes_a_filter_waits_for_the_resume,
    o5_all_that_passes_is_written_down,
    o5_each_connection_has_a_file,
    o5_a_file_is_for_its_owner_only_and_no_link_is_followed,
    o5_a_sink_that_fails_ends_nothing_but_the_log,
);

const PERIOD: Duration = Duration::from_millis(300);

/// Begins its time anew with each message, and says when it is over.
struct Impatient {
    journal: Journal,
    since: Instant,
}

struct ImpatientFactory(Journal);

impl Factory for ImpatientFactory {
    type Protocol = Impatient;

    fn build_protocol(&mut self, _peer: &mut Asking<'_>) -> Option<Impatient> {
        Some(Impatient { journal: self.0.clone(), since: Instant::now() })
    }
}

impl Protocol<ImpatientFactory> for Impatient {
    fn data_received(&mut self, cx: &mut Cx<'_, ImpatientFactory>, data: &[u8]) {
        self.since = Instant::now();
        match data[0] {
            b's' => drop(cx.transport.set_timeout(Some(PERIOD))),
            b'n' => assert!(cx.transport.set_timeout(None).is_some(), "one was set"),
            _ => cx.transport.reset_timeout(),
        }
        let _ = cx.transport.write(b".");
    }

    fn timeout_connection(&mut self, _cx: &mut Cx<'_, ImpatientFactory>) {
        assert!(self.since.elapsed() >= PERIOD, "too early");
        self.journal.note("too late");
    }

    fn connection_lost(&mut self, _cx: &mut Cx<'_, ImpatientFactory>, reason: &Reason) {
        self.journal.note(format!("{reason:?}"));
    }
}

fn impatient(setup: &Setup) -> (Journal, Running, Peer) {
    let journal = Journal::default();
    let running = Running::start(setup.reactor());
    let factory = ImpatientFactory(journal.clone());
    let port = running.reactor.listen_tcp(("127.0.0.1", 0), factory).unwrap();
    (journal, running, Peer::dial(port.get_host().socket_addr().unwrap()))
}

fn times_out(journal: &Journal) -> usize {
    journal.count(|event| *event == Event::Note("too late".to_owned()))
}

fn o1_a_time_out_moves_with_each_message_and_is_never_early(setup: &Setup) {
    let (journal, _running, mut peer) = impatient(setup);
    peer.ask(b"s", b".");
    for message in [b"s", b"r", b"s", b"r", b"r", b"r"] {
        thread::sleep(PERIOD / 5);
        peer.ask(message, b".");
    }
    journal.wait_note("too late");
    // It is over, and begins again only if that is said.
    let before = times_out(&journal);
    peer.ask(b"r", b".");
    thread::sleep(PERIOD * 2);
    assert_eq!(times_out(&journal), before);
    peer.ask(b"s", b".");
    let too_late = Event::Note("too late".to_owned());
    journal.wait("another one", |events| events.iter().filter(|event| **event == too_late).count() > before);
    drop(peer);
    journal.wait_note("Done");
}

fn o1_a_protocol_that_says_nothing_is_closed(setup: &Setup) {
    let script = Script::new().on_made(|cx, _| {
        let _ = cx.transport.write(b"last words");
        assert_eq!(cx.transport.set_timeout(Some(Duration::from_millis(50))), None);
    });
    let server = script.serve(setup.reactor());
    let mut peer = server.dial_made(0);
    assert_eq!(peer.read_to_end(), (b"last words".to_vec(), End::Fin));
    drop(peer);
    assert_eq!(server.journal.wait_lost(0), "TimedOut(Protocol)");
    assert_eq!(server.count(Count::LostTimedOut), 1);
}

fn o1_a_time_out_that_was_taken_back_does_not_come(setup: &Setup) {
    let (journal, _running, mut peer) = impatient(setup);
    peer.ask(b"s", b".");
    peer.ask(b"n", b".");
    let before = times_out(&journal);
    thread::sleep(PERIOD * 2);
    assert_eq!(times_out(&journal), before);
    peer.ask(b"r", b".");
}

fn o1_a_time_out_cuts_a_producer_short(setup: &Setup) {
    struct Never(Guard);

    impl Producer for Never {
        fn resume_producing(&mut self, _: &mut Transport<'_>) {
            let _ = &self.0;
        }
    }

    let producers = Drops::default();
    let made = producers.clone();
    let script = Script::new().on_made(move |cx, _| {
        cx.transport.register_producer(Never(made.guard()), Production::Push).unwrap();
        cx.transport.set_timeout(Some(Duration::from_millis(20)));
    });
    let server = script.serve(setup.reactor());
    let mut peer = server.dial_made(0);
    peer.expect_fin();
    drop(peer);
    assert_eq!(server.journal.wait_lost(0), "TimedOut(Protocol)");
    producers.wait_for(0);
}

fn o1_a_time_out_comes_though_a_producer_is_let_go_after_it_was_set(setup: &Setup) {
    struct Idler;

    impl Producer for Idler {
        fn resume_producing(&mut self, _: &mut Transport<'_>) {}
    }

    let script = Script::new().on_data(|cx, _, data| match data {
        b"produce" => {
            cx.transport.register_producer(Idler, Production::Push).unwrap();
            let _ = cx.transport.write(b".");
        }
        _ => {
            cx.transport.set_timeout(Some(Duration::from_millis(20)));
            cx.transport.unregister_producer();
        }
    });
    let server = script.serve(setup.reactor());
    let mut peer = server.dial_made(0);
    peer.ask(b"produce", b".");
    peer.write(b"let it go");
    peer.expect_fin();
    drop(peer);
    assert_eq!(server.journal.wait_lost(0), "TimedOut(Protocol)");
}

/// The time-out of a first attempt.
const IDLE: Duration = Duration::from_millis(800);

/// Whether it is still answered.
fn is_answered(peer: &mut Peer) -> bool {
    peer.0.write_all(b"x").is_ok() && peer.read_some(&mut [0; 8]).is_ok_and(|count| count == 1)
}

fn o2_an_idle_connection_ends_and_a_busy_one_does_not(setup: &Setup) {
    unless_it_stood_still(IDLE, |limit, pauses| {
        let server = Script::echo().serve_behind(&Policies::new().idle_timeout(limit), setup.reactor());
        let (mut idle, mut busy) = (server.dial_made(0), server.dial_made(1));
        let said = Instant::now();
        let mut answered = is_answered(&mut idle);
        pauses.end();
        if !answered {
            return false;
        }
        // The idle one closes, too, when it is told to.
        let closing = thread::spawn(move || {
            idle.expect_fin();
            assert!(said.elapsed() >= limit, "it was not idle for so long");
        });
        let lost = || server.journal.count(|event| matches!(event, Event::Lost(0, _))) > 0;
        while answered && (!lost() || said.elapsed() < 2 * limit) {
            assert!(said.elapsed() < limit + LIMIT, "nobody minds the idle one");
            answered = is_answered(&mut busy);
            pauses.end();
            thread::sleep(limit / 16);
        }
        closing.join().unwrap();
        assert_eq!(server.journal.wait_lost(0), "TimedOut(Idle)");
        answered
    });
}

fn o2_a_connection_that_this_side_makes_is_idle_too(setup: &Setup) {
    let server = Script::new().serve(setup.reactor());
    let client = Script::new();
    let journal = client.journal.clone();
    let policies = Policies::new().idle_timeout(Duration::from_millis(50));
    let _connector = server.running.reactor.connect_tcp(server.address(), policies.wrap(client));
    assert_eq!(journal.wait_lost(0), "TimedOut(Idle)");
    assert_eq!(server.journal.wait_lost(0), "Done");
}

fn o2_who_reads_a_long_write_slowly_is_not_idle(setup: &Setup) {
    const STEPS: usize = 24;
    const STEP: usize = 1 << 20;
    unless_it_stood_still(IDLE, |limit, pauses| {
        let script = Script::new().on_made(|cx, _| ignore(cx.transport.write(&vec![0; STEPS * STEP])));
        let server = script.serve_behind(&Policies::new().idle_timeout(limit), setup.reactor());
        let mut peer = Peer::dial_narrow(server.address(), 64 << 10);
        for _ in 0..STEPS {
            // What was written is delivered, even if the connection ends for its time-out.
            peer.read_exactly(STEP);
            pauses.end();
            thread::sleep(limit / 8);
        }
        drop(peer);
        let reason = server.journal.wait_lost(0);
        pauses.end();
        reason == "Done"
    });
}

/// Turns each byte around, begins with a word and ends with one, and keeps a journal.
struct Cipher {
    journal: Journal,
    greeted: bool,
}

const HELLO: &[u8] = b"hello ";
const BYE: &[u8] = b" bye";

fn turned(data: &[u8]) -> Vec<u8> {
    data.iter().map(|byte| !byte).collect()
}

impl Cipher {
    fn policies(journal: &Journal) -> Policies {
        let journal = journal.clone();
        Policies::new().filter(move |_| Self { journal: journal.clone(), greeted: false })
    }
}

impl Filter for Cipher {
    fn made(&mut self, reply: &mut Vec<u8>) {
        reply.extend(HELLO);
    }

    fn received(&mut self, data: &mut Vec<u8>, reply: &mut Vec<u8>) -> Result<(), BoxError> {
        if !std::mem::replace(&mut self.greeted, true) {
            // Whoever has not said so is no friend; a greeting is short enough to come in one piece.
            if data.strip_prefix(HELLO).is_none() {
                return Err("no greeting".into());
            }
            data.drain(..HELLO.len());
            reply.extend(b"(welcome)");
        }
        assert!(!data.contains(&b'!'), "a filter panics");
        if let Some(said) = data.strip_prefix(b"(welcome)") {
            *data = said.to_vec();
        }
        data.truncate(data.strip_suffix(BYE).map_or(data.len(), <[u8]>::len));
        *data = turned(data);
        Ok(())
    }

    fn sending(&mut self, data: &mut Vec<u8>) -> Result<(), BoxError> {
        *data = turned(data);
        Ok(())
    }

    fn closing(&mut self, reply: &mut Vec<u8>) -> bool {
        reply.extend(BYE);
        true
    }

    fn read_ended(&mut self, data: &mut Vec<u8>) -> Result<(), BoxError> {
        data.extend(b"(the end)");
        Ok(())
    }

    fn lost(&mut self, reason: &Reason) {
        self.journal.note(format!("filter: {reason:?}"));
    }
}

fn o4_filters_at_both_ends_are_not_seen_by_the_protocols(setup: &Setup) {
    let script = Script::echo();
    let (bytes, journal) = (pattern(41, 200_000), script.journal.clone());
    let server = script.serve_behind(&twice_turned(), setup.reactor());
    let said = bytes.clone();
    let client = Script::new().on_made(move |cx, _| ignore(cx.transport.write(&said)));
    let heard = client.journal.clone();
    let connector = server.running.reactor.connect_tcp(server.address(), twice_turned().wrap(client));
    assert_same(&heard.wait_bytes(0, bytes.len()), &bytes);
    connector.disconnect();
    assert_eq!(heard.wait_lost(0), "Done");
    assert_eq!(journal.wait_lost(0), "Done");
    assert_same(&journal.bytes(0), &bytes);
}

/// Two filters, which would not cancel out if one of them were left out anywhere or they came in another order.
fn twice_turned() -> Policies {
    struct Add(u8);

    impl Filter for Add {
        fn received(&mut self, data: &mut Vec<u8>, _: &mut Vec<u8>) -> Result<(), BoxError> {
            data.iter_mut().for_each(|byte| *byte = byte.wrapping_sub(self.0));
            Ok(())
        }

        fn sending(&mut self, data: &mut Vec<u8>) -> Result<(), BoxError> {
            data.iter_mut().for_each(|byte| *byte = byte.wrapping_add(self.0));
            Ok(())
        }
    }

    struct Turn;

    impl Filter for Turn {
        fn received(&mut self, data: &mut Vec<u8>, _: &mut Vec<u8>) -> Result<(), BoxError> {
            data.iter_mut().for_each(|byte| *byte = byte.rotate_left(3));
            Ok(())
        }

        fn sending(&mut self, data: &mut Vec<u8>) -> Result<(), BoxError> {
            data.iter_mut().for_each(|byte| *byte = byte.rotate_right(3));
            Ok(())
        }
    }

    Policies::new().filter(|_| Add(7)).filter(|_| Turn)
}

fn o4_a_filter_has_the_first_and_the_last_word(setup: &Setup) {
    let script = Script::new().on_data(|cx, conn, data| {
        let _ = cx.transport.write(data);
        match conn.number {
            0 => cx.transport.lose_connection(),
            1 => cx.transport.lose_write_connection(),
            _ => {}
        }
    });
    let journal = script.journal.clone();
    let server = script.serve_behind(&Cipher::policies(&journal), setup.reactor());
    let wanted = [HELLO, b"(welcome)", &turned(b"question")[..], BYE].concat();
    for number in 0..2 {
        let mut peer = server.dial_made(number);
        assert_eq!(peer.read_exactly(HELLO.len()), HELLO, "it goes first, and waits for nobody");
        peer.write(&[HELLO, &turned(b"question")[..]].concat());
        let (got, end) = peer.read_to_end();
        assert_eq!(([HELLO, &got[..]].concat(), end), (wanted.clone(), End::Fin));
        drop(peer);
        server.journal.wait_lost(number);
    }
    // What it has kept until the end comes before that.
    let mut peer = server.dial_made(2);
    peer.write(&[HELLO, &turned(b"question")[..]].concat());
    peer.finish_writing();
    assert_eq!(server.journal.wait_lost(2), "Done");
    assert_eq!(server.journal.bytes(2), b"question(the end)");
    server.journal.wait("each filter is told once", |events| {
        events.iter().filter(|event| **event == Event::Note("filter: Done".to_owned())).count() == 3
    });
}

fn o4_what_a_filter_says_after_fin_is_dropped(setup: &Setup) {
    let script = Script::new().on_made(|cx, _| cx.transport.lose_write_connection());
    let journal = script.journal.clone();
    let server = script.serve_behind(&Cipher::policies(&journal), setup.reactor());
    let mut peer = server.dial_made(0);
    assert_eq!(peer.read_to_end(), ([HELLO, BYE].concat(), End::Fin));
    // It would answer that.
    peer.write(&[HELLO, &turned(b"question")[..]].concat());
    server.journal.wait_bytes(0, b"question".len());
    server.let_it_turn();
    peer.finish_writing();
    assert_eq!(server.journal.wait_lost(0), "Done");
    assert_eq!(server.journal.bytes(0), b"question(the end)");
}

fn o4_filters_beside_one_that_panics_hear_of_the_end(setup: &Setup) {
    struct Panicking;

    impl Filter for Panicking {
        fn received(&mut self, _: &mut Vec<u8>, _: &mut Vec<u8>) -> Result<(), BoxError> {
            panic!("it always does");
        }
    }

    struct Witness(Journal, &'static str);

    impl Filter for Witness {
        fn lost(&mut self, reason: &Reason) {
            self.0.note(format!("{}: {reason:?}", self.1));
        }
    }

    let script = Script::new();
    let journals = (script.journal.clone(), script.journal.clone());
    let policies = Policies::new()
        .filter(move |_| Witness(journals.0.clone(), "before"))
        .filter(|_| Panicking)
        .filter(move |_| Witness(journals.1.clone(), "behind"));
    let server = script.serve_behind(&policies, setup.reactor());
    let mut peer = server.dial_made(0);
    peer.write(b"x");
    peer.expect_reset();
    assert_eq!(server.journal.wait_lost(0), "Panicked(\"it always does\")");
    for witness in ["before", "behind"] {
        server.journal.wait_note(&format!("{witness}: Panicked(\"it always does\")"));
    }
}

fn o4_a_filter_that_fails_or_panics_ends_that_connection_only(setup: &Setup) {
    let script = Script::echo();
    let journal = script.journal.clone();
    let server = script.serve_behind(&Cipher::policies(&journal), setup.reactor());
    let mut other = server.dial_made(0);
    other.write(HELLO);
    let (mut fails, mut panics) = (server.dial_made(1), server.dial_made(2));
    fails.write(b"no friend");
    fails.expect_reset();
    assert_eq!(server.journal.wait_lost(1), "Callback(\"no greeting\")");
    server.journal.wait_note("filter: Callback(\"no greeting\")");
    panics.write(HELLO);
    panics.write(b"!");
    panics.expect_reset();
    assert_eq!(server.journal.wait_lost(2), "Panicked(\"a filter panics\")");
    other.write(&turned(b"x"));
    assert_eq!(other.read_exactly(16), [HELLO, b"(welcome)", &turned(b"x")[..]].concat());
    // One that cannot be made is as good as one that refuses.
    let policies = Policies::new().filter(|_| -> Cipher { panic!("no filter") });
    let server = Script::echo().serve_behind(&policies, setup.reactor());
    assert_eq!(server.dial().read_to_end().0, b"");
    server.running.wait_count(Count::RefusedByFactory, 1);
}

fn o4_what_passes_a_filter_waits_for_the_resume(setup: &Setup) {
    let server = Script::new()
        .on_made(|cx, _| cx.transport.pause_producing())
        .serve_behind(&twice_turned(), setup.reactor());
    let mut peer = server.dial_made(0);
    let bytes = pattern(42, 20_000);
    peer.write(&bytes);
    peer.finish_writing();
    server.let_it_turn();
    assert_eq!(server.journal.bytes(0).len(), 0);
    server.act_on(0, |transport| transport.resume_producing());
    assert_eq!(server.journal.wait_lost(0), "Done");
    let wanted: Vec<u8> = bytes.iter().map(|byte| byte.rotate_left(3).wrapping_sub(7)).collect();
    assert_same(&server.journal.bytes(0), &wanted);
}

/// A sink that others can look into, and that breaks after so many lines.
#[derive(Clone, Default)]
struct Sink {
    text: Arc<Mutex<Vec<u8>>>,
    fails_after: Option<usize>,
    name: &'static str,
}

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut text = self.text.lock().unwrap();
        if self.fails_after.is_some_and(|lines| text.iter().filter(|byte| **byte == b'\n').count() >= lines) {
            return Err(io::Error::other(format!("the sink of {} is full", self.name)));
        }
        text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines without their times, which are checked.
fn lines(text: &str) -> Vec<String> {
    let timeless = |line: &str| {
        let (time, rest) = line.split_once(' ').expect("a time");
        assert!(time.len() == 27 && time.starts_with("20") && time.ends_with('Z'), "{line}");
        rest.to_owned()
    };
    text.lines().map(timeless).collect()
}

fn o5_all_that_passes_is_written_down(setup: &Setup) {
    let sink = Sink::default();
    let log = TrafficLog::new(sink.clone());
    let server = Script::echo().serve_behind(&Policies::new().log_traffic(&log), setup.reactor());
    let mut peer = server.dial_made(0);
    peer.ask(b"ask\r\n\x00", b"ask\r\n\x00");
    let address = peer.address();
    peer.finish_writing();
    peer.expect_fin();
    let done = || String::from_utf8(sink.text.lock().unwrap().clone()).unwrap();
    let deadline = Instant::now() + LIMIT;
    while !done().contains("lost") {
        assert!(Instant::now() < deadline, "so far: {}", done());
        thread::yield_now();
    }
    let wanted = [
        format!("1 made {address}"),
        "1 received 6 \"ask\\r\\n\\x00\"".to_owned(),
        "1 sending 6 \"ask\\r\\n\\x00\"".to_owned(),
        "1 received FIN".to_owned(),
        "1 lost connection was closed cleanly".to_owned(),
    ];
    assert_eq!(lines(&done()), wanted);
}

fn o5_each_connection_has_a_file(setup: &Setup) {
    let folder = std::env::temp_dir().join(format!("ringspun-{}-{}", std::process::id(), setup.name));
    std::fs::create_dir_all(&folder).unwrap();
    let log = TrafficLog::to_files(folder.join("traffic"));
    let server = Script::echo().serve_behind(&Policies::new().log_traffic(&log), setup.reactor());
    for number in 0..2 {
        let mut peer = server.dial_made(number);
        peer.ask(number.to_string().as_bytes(), number.to_string().as_bytes());
    }
    server.journal.wait_losses(2);
    drop(server);
    for number in 0..2 {
        let text = std::fs::read_to_string(folder.join(format!("traffic-{}", number + 1))).unwrap();
        let lines = lines(&text);
        assert_eq!(lines.len(), 5, "{text}");
        assert_eq!(lines[1], format!("{} received 1 \"{number}\"", number + 1));
    }
    std::fs::remove_dir_all(folder).unwrap();
}

fn o5_a_file_is_for_its_owner_only_and_no_link_is_followed(setup: &Setup) {
    let folder = std::env::temp_dir().join(format!("ringspun-{}-{}-owner", std::process::id(), setup.name));
    std::fs::create_dir_all(&folder).unwrap();
    let (old, other, link) = (folder.join("log-1"), folder.join("other"), folder.join("log-2"));
    for file in [&old, &other] {
        std::fs::write(file, "what was there").unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    std::os::unix::fs::symlink(&other, &link).unwrap();
    let log = TrafficLog::to_files(folder.join("log"));
    let server = Script::echo().serve_behind(&Policies::new().log_traffic(&log), setup.reactor());
    for number in 0..3 {
        server.dial_made(number).ask(b"x", b"x");
    }
    server.journal.wait_losses(3);
    drop(server);
    let mode = |file: &std::path::Path| std::fs::metadata(file).unwrap().permissions().mode() & 0o777;
    for file in [&old, &folder.join("log-3")] {
        assert_eq!(mode(file), 0o600);
        assert_eq!(lines(&std::fs::read_to_string(file).unwrap()).len(), 5);
    }
    assert_eq!((mode(&other), std::fs::read_to_string(&other).unwrap().as_str()), (0o644, "what was there"));
    assert_eq!(logged(&link.display().to_string()), 1, "the one without a file is told of");
    std::fs::remove_dir_all(folder).unwrap();
}

fn o5_a_sink_that_fails_ends_nothing_but_the_log(setup: &Setup) {
    let sink = Sink { fails_after: Some(2), name: setup.name, ..Sink::default() };
    let log = TrafficLog::new(sink.clone());
    // A folder that is not there cannot have files.
    let nowhere = TrafficLog::to_files(format!("not-there-{}/traffic", setup.name));
    let policies = Policies::new().log_traffic(&log).log_traffic(&nowhere);
    let server = Script::echo().serve_behind(&policies, setup.reactor());
    for number in 0..3 {
        let mut peer = server.dial_made(number);
        peer.ask(b"all", b"all");
        peer.ask(b"right", b"right");
    }
    server.journal.wait_losses(3);
    assert_eq!(server.count(Count::LostDone), 3);
    assert_eq!(sink.text.lock().unwrap().iter().filter(|byte| **byte == b'\n').count(), 2);
    assert_eq!(logged(&format!("the sink of {} is full", setup.name)), 1);
    assert_eq!(logged(&format!("not-there-{}/traffic", setup.name)), 1);
    // Nor does one that panics.
    struct Panics;

    impl io::Write for Panics {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            panic!("a sink panics");
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let policies = Policies::new().log_traffic(&TrafficLog::new(Panics));
    let port = server.running.reactor.listen_tcp(("127.0.0.1", 0), policies.wrap(Serve(|| Echo))).unwrap();
    Peer::dial(port.get_host().socket_addr().unwrap()).ask(b"x", b"x");
}

struct Echo;

impl<F> Protocol<F> for Echo {
    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        let _ = cx.transport.write(data);
    }
}
