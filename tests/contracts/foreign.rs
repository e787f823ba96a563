//! Descriptors that are the program's own (I1).

use std::{
    fs::File,
    io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write, pipe},
    mem::ManuallyDrop,
    net::UdpSocket,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::net::UnixStream,
    },
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::sys::eventfd::EventFd;
use ringspun::{
    Count, Descriptor, DescriptorCx, DescriptorLost, Error, Phase, Reactor, SystemEvent, WatchedDescriptor,
};

use crate::{
    kit::{Drops, Event, Guard, Journal, Running, Script, Tally, ignore},
    peers::LIMIT,
    setups::{Setup, on_every_backend},
};

on_every_backend!(
    i1_a_reader_is_called_as_long_as_there_is_something_to_read,
    i1_a_writer_is_called_as_long_as_there_is_room,
    i1_what_is_wanted_can_change_at_any_time,
    i1_reading_comes_before_writing,
    i1_a_descriptor_may_be_watched_twice,
    i1_an_error_or_a_panic_ends_that_watch_only,
    i1_a_hang_up_is_told_after_what_is_left_to_read,
    i1_a_hang_up_is_told_to_who_only_writes,
    i1_a_hang_up_waits_for_the_last_process_that_has_the_other_end,
    i1_an_error_that_a_socket_holds_is_named,
    i1_one_closed_behind_our_back_is_told_of_though_nothing_happens,
    i1_one_closed_behind_our_back_is_not_spun_on_where_its_file_lives_on,
    i1_a_number_that_names_another_file_is_not_ours,
    i1_what_is_removed_is_called_no_more_and_told_nothing,
    i1_what_removes_another_in_the_same_turn_is_obeyed,
    i1_what_cannot_be_watched_is_an_error_at_once,
    i1_a_stop_is_told_once,
    i1_many_that_are_always_ready_starve_nobody,
    i1_a_watch_that_is_over_costs_no_wake_ups,
);

type Hook<T> = Box<dyn FnMut(&mut T, &mut DescriptorCx<'_>) -> io::Result<()> + Send>;

/// A descriptor that keeps a journal under its name and does what its hooks say.
struct Probe<T> {
    file: T,
    name: &'static str,
    journal: Journal,
    read: Hook<T>,
    write: Hook<T>,
    _guard: Option<Guard>,
}

impl<T> Probe<T> {
    fn new(name: &'static str, file: T, journal: &Journal) -> Self {
        let nothing = || -> Hook<T> { Box::new(|_, _| Ok(())) };
        Self { file, name, journal: journal.clone(), read: nothing(), write: nothing(), _guard: None }
    }

    fn on_read(
        self,
        hook: impl FnMut(&mut T, &mut DescriptorCx<'_>) -> io::Result<()> + Send + 'static,
    ) -> Self {
        Self { read: Box::new(hook), ..self }
    }

    fn on_write(
        self,
        hook: impl FnMut(&mut T, &mut DescriptorCx<'_>) -> io::Result<()> + Send + 'static,
    ) -> Self {
        Self { write: Box::new(hook), ..self }
    }

    fn guarded(self, drops: &Drops) -> Self {
        Self { _guard: Some(drops.guard()), ..self }
    }
}

impl<T: AsFd> AsFd for Probe<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl<T: AsFd + Send + 'static> Descriptor for Probe<T> {
    fn do_read(&mut self, cx: &mut DescriptorCx<'_>) -> io::Result<()> {
        self.journal.note(format!("{} reads", self.name));
        (self.read)(&mut self.file, cx)
    }

    fn do_write(&mut self, cx: &mut DescriptorCx<'_>) -> io::Result<()> {
        self.journal.note(format!("{} writes", self.name));
        (self.write)(&mut self.file, cx)
    }

    fn connection_lost(&mut self, cx: &mut DescriptorCx<'_>, reason: &DescriptorLost) {
        assert!(!cx.descriptor.active());
        self.journal.note(format!("{} lost: {reason:?}", self.name));
    }
}

impl Journal {
    fn notes(&self, text: &str) -> usize {
        self.count(|event| is_note(event, text))
    }

    /// Waits until this has been noted so many times.
    fn wait_notes(&self, text: &str, count: usize) {
        self.wait(text, |events| events.iter().filter(|event| is_note(event, text)).count() >= count);
    }

    /// Waits for the end of a watch and makes sure that it was told once.
    fn wait_end(&self, name: &str, reason: &str) {
        self.wait_note(&format!("{name} lost: {reason}"));
        let start = format!("{name} lost: ");
        let told = |event: &Event| matches!(event, Event::Note(note) if note.starts_with(&start));
        assert_eq!(self.count(told), 1);
    }
}

fn is_note(event: &Event, text: &str) -> bool {
    matches!(event, Event::Note(note) if note == text)
}

/// Reads one byte, not minding that there may be more.
fn sip(mut from: impl Read) -> io::Result<()> {
    from.read_exact(&mut [0])
}

/// Has the reactor turn a few times, so that what was about to happen has happened.
fn let_it_turn(running: &Running) {
    (0..5).for_each(|_| running.call(|_| ()));
}

/// Counts the waits of a while in which nothing is to happen.
fn waits_in(running: &Running, time: Duration) -> u64 {
    let before = running.count(Count::Waits);
    thread::sleep(time);
    running.count(Count::Waits) - before
}

/// Waits until nobody has the other end open: io_uring lets a file go when its poll is cancelled, and a child of another test
/// when it has begun its program.
fn wait_until_broken(writer: &mut PipeWriter) {
    let deadline = Instant::now() + LIMIT;
    while let Ok(()) = writer.write_all(b"1") {
        assert!(Instant::now() < deadline, "the reactor keeps the file open");
    }
}

/// Two connected sockets, whose reads do not wait for ever.
fn pair() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(LIMIT)).unwrap();
    theirs.set_read_timeout(Some(LIMIT)).unwrap();
    (ours, theirs)
}

fn reader(journal: &Journal) -> (Probe<PipeReader>, PipeWriter) {
    let (reader, writer) = pipe().unwrap();
    (Probe::new("pipe", reader, journal).on_read(|pipe, _| sip(pipe)), writer)
}

fn i1_a_reader_is_called_as_long_as_there_is_something_to_read(setup: &Setup) {
    let journal = Journal::default();
    let reactor = setup.reactor();
    let (probe, mut writer) = reader(&journal);
    // What is added before `run` is watched from its start.
    writer.write_all(b"12345").unwrap();
    let watch = reactor.add_reader(probe).unwrap();
    let running = Running::start(reactor);
    let reads = |count: usize| {
        journal.wait("reads", |events| events.len() >= count);
        let_it_turn(&running);
        assert_eq!(journal.notes("pipe reads"), count);
    };
    reads(5);
    writer.write_all(b"678").unwrap();
    reads(8);
    assert!(watch.active());
}

fn i1_a_writer_is_called_as_long_as_there_is_room(setup: &Setup) {
    let journal = Journal::default();
    let running = Running::start(setup.reactor());
    let (ours, mut theirs) = pair();
    ours.set_nonblocking(true).unwrap();
    let (told, written) = (journal.clone(), Tally::default());
    let total = written.clone();
    let probe = Probe::new("socket", ours, &journal).on_write(move |socket, _| {
        loop {
            match socket.write(&[7; 4096]) {
                Ok(bytes) => (0..bytes).for_each(|_| ignore(written.up())),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    told.note("full");
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    });
    let watch = running.reactor.add_writer(probe).unwrap();
    journal.wait_note("full");
    let_it_turn(&running);
    assert_eq!(journal.notes("socket writes"), 1, "a full socket has no room");
    // Twice over: whoever makes room has it called again.
    let mut read = 0;
    for round in 2..4 {
        // What is written meanwhile is read the next time.
        let now = total.get();
        theirs.read_exact(&mut vec![0; now - read]).unwrap();
        read = now;
        journal.wait_notes("full", round);
    }
    watch.remove_writer();
    running.call(|_| ());
    let calls = journal.notes("socket writes");
    theirs.read_exact(&mut vec![0; total.get() - read]).unwrap();
    let_it_turn(&running);
    assert_eq!(journal.notes("socket writes"), calls);
    // One that does not fill it is called in every turn.
    let once_more = calls + 3;
    watch.add_writer();
    journal.wait_notes("socket writes", calls + 1);
    let steady = Probe::new("steady", theirs, &journal);
    let steady = running.reactor.add_writer(steady).unwrap();
    journal.wait_notes("steady writes", once_more);
    steady.remove();
}

fn i1_what_is_wanted_can_change_at_any_time(setup: &Setup) {
    let journal = Journal::default();
    let running = Running::start(setup.reactor());
    let (ours, mut theirs) = pair();
    let probe = Probe::new("socket", ours, &journal)
        .on_read(|socket, cx| {
            cx.descriptor.remove_reader();
            cx.descriptor.add_writer();
            sip(socket)
        })
        .on_write(|socket, cx| {
            cx.descriptor.remove_writer();
            socket.write_all(b"!")
        });
    let watch = running.reactor.add_reader(probe).unwrap();
    theirs.write_all(b"123").unwrap();
    for round in 1..=3 {
        journal.wait_notes("socket writes", round);
        let_it_turn(&running);
        assert_eq!(journal.notes("socket reads"), round, "nobody wants to read");
        // From another thread, which wakes the reactor.
        watch.add_reader();
    }
    sip(&theirs).unwrap();
    // Watched for nothing it is kept, and not told of the hang-up that it could not act on.
    watch.remove_reader();
    drop(theirs);
    let_it_turn(&running);
    assert!(watch.active() && waits_in(&running, Duration::from_millis(300)) < 50);
    watch.add_reader();
    journal.wait("the end", |_| !watch.active());
}

fn i1_reading_comes_before_writing(setup: &Setup) {
    let journal = Journal::default();
    let running = Running::start(setup.reactor());
    let (ours, mut theirs) = pair();
    theirs.write_all(b"1").unwrap();
    let probe = Probe::new("socket", ours, &journal).on_read(|socket, _| sip(socket)).on_write(|_, cx| {
        cx.descriptor.remove_writer();
        Ok(())
    });
    running.call(move |reactor| reactor.add_reader(probe).unwrap().add_writer());
    journal.wait("both", |events| events.len() == 2);
    assert_eq!(journal.all(), ["socket reads", "socket writes"].map(|text| Event::Note(text.to_owned())));
}

fn i1_a_descriptor_may_be_watched_twice(setup: &Setup) {
    let journal = Journal::default();
    let running = Running::start(setup.reactor());
    let (ours, mut theirs) = pair();
    let ours = Arc::new(ours);
    let first = Probe::new("first", Arc::clone(&ours), &journal).on_read(|_, cx| {
        cx.descriptor.remove();
        Ok(())
    });
    let second = Probe::new("second", ours, &journal).on_read(|socket, _| sip(&**socket));
    running.call(move |reactor| {
        reactor.add_reader(first).unwrap();
        reactor.add_reader(second).unwrap();
        theirs.write_all(b"12").unwrap();
        // Left open, to be lost with the reactor.
        std::mem::forget(theirs);
    });
    journal.wait_notes("second reads", 2);
    assert_eq!(journal.notes("first reads"), 1);
}

fn i1_an_error_or_a_panic_ends_that_watch_only(setup: &Setup) {
    let (journal, drops) = (Journal::default(), Drops::default());
    let server = Script::echo().serve(setup.reactor());
    let reactor = &server.running.reactor;
    let (failing, mut to_failing) = reader(&journal);
    let failing = Probe { name: "failing", ..failing }
        .guarded(&drops)
        .on_read(|_, _| Err(io::Error::new(ErrorKind::InvalidData, "nonsense")));
    let (panicking, mut to_panicking) = reader(&journal);
    let panicking =
        Probe { name: "panicking", ..panicking }.guarded(&drops).on_read(|_, _| panic!("no sense at all"));
    let (living, mut to_living) = reader(&journal);
    let watches: Vec<WatchedDescriptor> =
        vec![reactor.add_reader(failing).unwrap(), reactor.add_reader(panicking).unwrap()];
    reactor.add_reader(living).unwrap();
    to_failing.write_all(b"1").unwrap();
    to_panicking.write_all(b"1").unwrap();
    journal.wait_end("failing", "Callback(Custom { kind: InvalidData, error: \"nonsense\" })");
    journal.wait_end("panicking", "Panicked(\"no sense at all\")");
    drops.wait_for(0);
    // The file was let go, too.
    wait_until_broken(&mut to_failing);
    for watch in watches {
        assert!(!watch.active());
        watch.add_reader();
        watch.add_writer();
        watch.remove();
    }
    server.dial().ask(b"alive?", b"alive?");
    to_living.write_all(b"1").unwrap();
    journal.wait_note("pipe reads");
}

fn i1_a_hang_up_is_told_after_what_is_left_to_read(setup: &Setup) {
    let (journal, drops) = (Journal::default(), Drops::default());
    let running = Running::start(setup.reactor());
    let (probe, mut writer) = reader(&journal);
    writer.write_all(b"123").unwrap();
    drop(writer);
    running.reactor.add_reader(probe.guarded(&drops)).unwrap();
    journal.wait_end("pipe", "HungUp(None)");
    assert_eq!(journal.notes("pipe reads"), 3);
    drops.wait_for(0);
}

fn i1_a_hang_up_is_told_to_who_only_writes(setup: &Setup) {
    let journal = Journal::default();
    let running = Running::start(setup.reactor());
    let (reader, writer) = pipe().unwrap();
    // It is always called, for it writes nothing; slowly, for the sake of its journal.
    let probe = Probe::new("pipe", writer, &journal).on_write(|_, _| {
        thread::sleep(Duration::from_millis(1));
        Ok(())
    });
    running.reactor.add_writer(probe).unwrap();
    journal.wait_notes("pipe writes", 3);
    drop(reader);
    journal.wait_end("pipe", "HungUp(None)");
}

fn i1_a_hang_up_waits_for_the_last_process_that_has_the_other_end(setup: &Setup) {
    let journal = Journal::default();
    let running = Running::start(setup.reactor());
    let (probe, writer) = reader(&journal);
    // It has the writing end as its output, for as long as we do not close its input.
    let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(writer).spawn().unwrap();
    let watch = running.reactor.add_reader(probe).unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"1").unwrap();
    journal.wait_note("pipe reads");
    let_it_turn(&running);
    assert!(watch.active());
    drop(input);
    journal.wait_end("pipe", "HungUp(None)");
    child.wait().unwrap();
}

fn i1_an_error_that_a_socket_holds_is_named(setup: &Setup) {
    let journal = Journal::default();
    let running = Running::start(setup.reactor());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    // Nobody serves the port multiplexer.
    socket.connect("127.0.0.1:1").unwrap();
    let shared = Arc::new(socket);
    running.reactor.add_reader(Probe::new("udp", Arc::clone(&shared), &journal)).unwrap();
    // Nobody is there, and the kernel says so.
    shared.send(b"hello?").unwrap();
    journal.wait_end("udp", "HungUp(Some(ECONNREFUSED))");
}

/// A descriptor that somebody else closes: dropping it closes nothing.
struct Borrowed(ManuallyDrop<UnixStream>);

impl Borrowed {
    /// With what closes it.
    fn new(socket: UnixStream) -> (Self, impl FnOnce()) {
        let raw = socket.as_raw_fd();
        (Self(ManuallyDrop::new(socket)), move || nix::unistd::close(raw).unwrap())
    }
}

impl AsFd for Borrowed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn i1_one_closed_behind_our_back_is_told_of_though_nothing_happens(setup: &Setup) {
    let (journal, drops) = (Journal::default(), Drops::default());
    let running = Running::start(setup.reactor());
    let (ours, mut theirs) = pair();
    let (ours, close) = Borrowed::new(ours);
    running.reactor.add_reader(Probe::new("socket", ours, &journal).guarded(&drops)).unwrap();
    let_it_turn(&running);
    close();
    journal.wait_end("socket", "WentAway");
    assert_eq!(journal.notes("socket reads"), 0);
    drops.wait_for(0);
    // The reactor keeps it open for nobody.
    assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
}

fn i1_one_closed_behind_our_back_is_not_spun_on_where_its_file_lives_on(setup: &Setup) {
    let journal = Journal::default();
    let running = Running::start(setup.reactor());
    let (ours, mut theirs) = pair();
    let twin = ours.try_clone().unwrap();
    let (ours, close) = Borrowed::new(ours);
    let watch = running.reactor.add_reader(Probe::new("socket", ours, &journal)).unwrap();
    let_it_turn(&running);
    // All on the reactor's thread: it cannot find the one without the other.
    running.call(move |_| {
        close();
        theirs.write_all(b"1").unwrap();
        std::mem::forget(theirs);
    });
    journal.wait_end("socket", "WentAway");
    assert!(!watch.active());
    assert_eq!(journal.notes("socket reads"), 0, "the file is readable, but it is not ours any more");
    let_it_turn(&running);
    let waits = waits_in(&running, Duration::from_millis(300));
    assert!(waits < 20, "{waits} waits for nothing");
    drop(twin);
}

fn i1_a_number_that_names_another_file_is_not_ours(setup: &Setup) {
    let journal = Journal::default();
    let running = Running::start(setup.reactor());
    let (ours, mut theirs) = pair();
    let (other, mut to_other) = pair();
    let number = ours.as_raw_fd();
    running.reactor.add_reader(Probe::new("quiet", ours, &journal)).unwrap();
    let (loud, mut to_loud) = pair();
    let loud_number = loud.as_raw_fd();
    running.reactor.add_reader(Probe::new("loud", loud, &journal)).unwrap();
    let_it_turn(&running);
    running.call(move |_| {
        to_other.write_all(b"for somebody else").unwrap();
        to_loud.write_all(b"late").unwrap();
        for number in [number, loud_number] {
            // SAFETY: both numbers are open, and the probes that own them are asked nothing meanwhile.
            assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), number) }, number);
        }
        std::mem::forget((to_other, to_loud));
    });
    journal.wait_end("loud", "WentAway");
    journal.wait_end("quiet", "WentAway");
    assert_eq!(journal.notes("quiet reads") + journal.notes("loud reads"), 0);
    assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
}

fn i1_what_is_removed_is_called_no_more_and_told_nothing(setup: &Setup) {
    let (journal, drops) = (Journal::default(), Drops::default());
    let running = Running::start(setup.reactor());
    let (itself, mut to_itself) = reader(&journal);
    let itself = Probe { name: "itself", ..itself }.guarded(&drops).on_read(|_, cx| {
        cx.descriptor.remove();
        // It was removed first, so this is told to nobody.
        Err(io::Error::other("too late"))
    });
    let watch = running.reactor.add_reader(itself).unwrap();
    to_itself.write_all(b"12").unwrap();
    drops.wait_for(0);
    assert!(!watch.active());
    let (probe, mut writer) = reader(&journal);
    let watch = running.reactor.add_reader(probe.guarded(&drops)).unwrap();
    let_it_turn(&running);
    watch.remove();
    // Before it has been added, too.
    let (early, mut to_early) = reader(&journal);
    to_early.write_all(b"1").unwrap();
    running.call({
        let early = early.guarded(&drops);
        move |reactor| reactor.add_reader(early).unwrap().remove()
    });
    drops.wait_for(0);
    wait_until_broken(&mut writer);
    assert_eq!(journal.all(), [Event::Note("itself reads".to_owned())]);
}

fn i1_what_removes_another_in_the_same_turn_is_obeyed(setup: &Setup) {
    for whole in [true, false] {
        let journal = Journal::default();
        let running = Running::start(setup.reactor());
        let watches: Arc<std::sync::Mutex<Vec<WatchedDescriptor>>> = Arc::default();
        let ends = running.call({
            let (journal, watches) = (journal.clone(), Arc::clone(&watches));
            move |reactor| {
                let ends: Vec<_> = (0..2)
                    .map(|number: usize| {
                        let (probe, mut writer) = reader(&journal);
                        writer.write_all(b"1").unwrap();
                        let watches = Arc::clone(&watches);
                        let probe = probe.on_read(move |_, _| {
                            let other = &watches.lock().unwrap()[1 - number];
                            if whole {
                                other.remove()
                            } else {
                                other.remove_reader()
                            }
                            Ok(())
                        });
                        (reactor.add_reader(probe).unwrap(), writer)
                    })
                    .collect();
                watches.lock().unwrap().extend(ends.iter().map(|(watch, _)| watch.clone()));
                ends
            }
        });
        // One of them goes on being called, for it reads nothing; the other never was.
        journal.wait_notes("pipe reads", 5);
        let active = ends.iter().filter(|(watch, _)| watch.active()).count();
        assert_eq!(active, if whole { 1 } else { 2 });
        let survivor = ends.iter().map(|(watch, _)| watch).find(|watch| watch.active()).unwrap();
        survivor.remove();
        assert_eq!(journal.count(|event| *event != Event::Note("pipe reads".to_owned())), 0);
    }
}

fn i1_what_cannot_be_watched_is_an_error_at_once(setup: &Setup) {
    let (journal, drops) = (Journal::default(), Drops::default());
    let mut running = Running::start(setup.reactor());
    let file = File::open("/proc/self/exe").unwrap();
    let refused = running.reactor.add_reader(Probe::new("file", file, &journal)).unwrap_err();
    assert!(matches!(refused, Error::CannotWatch { .. }));
    let text = refused.to_string();
    assert!(text.contains("a regular file is always ready") && text.contains("call_in_thread"), "{text}");
    // SAFETY: nothing is done to a number that nobody has.
    let closed = unsafe { BorrowedFd::borrow_raw(1 << 24) };
    let refused = running.reactor.add_writer(Probe::new("closed", closed, &journal)).unwrap_err();
    assert!(refused.to_string().starts_with("cannot watch the descriptor 16777216: Bad file descriptor"));
    running.stop().unwrap();
    let (probe, _writer) = reader(&journal);
    let refused = running.reactor.add_reader(probe.guarded(&drops)).unwrap_err();
    assert!(matches!(refused, Error::Stopped));
    drops.wait_for(0);
    assert!(journal.all().is_empty());
}

fn i1_a_stop_is_told_once(setup: &Setup) {
    let (journal, drops) = (Journal::default(), Drops::default());
    let mut running = Running::start(setup.reactor());
    let (probe, writer) = reader(&journal);
    let watch = running.reactor.add_reader(probe.guarded(&drops)).unwrap();
    let_it_turn(&running);
    // What comes while the reactor stops is told the same.
    let (late, late_writer) = reader(&journal);
    let late = Probe { name: "late", ..late }.guarded(&drops);
    running.reactor.add_system_event_trigger(
        Phase::During,
        SystemEvent::Shutdown,
        move |reactor: &Reactor| {
            reactor.add_reader(late).unwrap();
        },
    );
    running.stop().unwrap();
    journal.wait_end("pipe", "Shutdown");
    journal.wait_end("late", "Shutdown");
    drops.wait_for(0);
    assert!(!watch.active());
    drop((writer, late_writer));
}

fn i1_many_that_are_always_ready_starve_nobody(setup: &Setup) {
    const MANY: usize = 64;
    const CALLS: usize = 20;
    let server = Script::echo().serve(setup.reactor());
    let tallies: Vec<Tally> = (0..MANY).map(|_| Tally::default()).collect();
    let watches: Vec<WatchedDescriptor> = tallies
        .iter()
        .map(|tally| {
            let counted = tally.clone();
            let always = Always(EventFd::from_value(1).unwrap(), counted);
            server.running.reactor.add_reader(always).unwrap()
        })
        .collect();
    let mut peer = server.dial_made(0);
    for _ in 0..100 {
        peer.ask(b"and I?", b"and I?");
    }
    // Nor do they starve each other.
    let deadline = Instant::now() + LIMIT;
    while tallies.iter().any(|tally| tally.get() < CALLS) {
        assert!(Instant::now() < deadline, "one of them starves");
        thread::yield_now();
    }
    watches.iter().for_each(WatchedDescriptor::remove);
    server.running.call(|_| ());
    let calls = || tallies.iter().map(Tally::get).sum::<usize>();
    let before = calls();
    let_it_turn(&server.running);
    assert_eq!(calls(), before);
}

/// Readable for ever, since nobody reads it; it keeps no journal, which would grow with it.
struct Always(EventFd, Tally);

impl AsFd for Always {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Descriptor for Always {
    fn do_read(&mut self, _cx: &mut DescriptorCx<'_>) -> io::Result<()> {
        self.1.up();
        Ok(())
    }
}

fn i1_a_watch_that_is_over_costs_no_wake_ups(setup: &Setup) {
    let (journal, drops) = (Journal::default(), Drops::default());
    let running = Running::start(setup.reactor());
    let (probe, _writer) = reader(&journal);
    let watch = running.reactor.add_reader(probe.guarded(&drops)).unwrap();
    let_it_turn(&running);
    let quiet = Duration::from_millis(1500);
    let waits = waits_in(&running, quiet);
    assert!((1..=6).contains(&waits), "{waits} waits with a descriptor that is looked at once a second");
    watch.remove();
    drops.wait_for(0);
    let_it_turn(&running);
    let waits = waits_in(&running, quiet);
    assert!(waits <= 1, "{waits} waits with none");
}
