//! Prints what happens to the files of a folder, this one or the first argument, until the folder is gone: file system events
//! are read from an inotify instance, when the reactor says that there are some.

use std::{
    env, io,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
    process::ExitCode,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent},
};
use ringspun::{Descriptor, DescriptorCx, DescriptorLost, Reactor};

/// What is told, and how it is called.
const EVENTS: [(AddWatchFlags, &str); 6] = [
    (AddWatchFlags::IN_CREATE, "created"),
    (AddWatchFlags::IN_CLOSE_WRITE, "written"),
    (AddWatchFlags::IN_ATTRIB, "changed"),
    (AddWatchFlags::IN_MOVED_FROM, "moved away"),
    (AddWatchFlags::IN_MOVED_TO, "moved here"),
    (AddWatchFlags::IN_DELETE, "deleted"),
];

struct Folder(Inotify);

impl Folder {
    fn open(path: &PathBuf) -> nix::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let told = EVENTS.into_iter().map(|(event, _)| event).collect::<AddWatchFlags>();
        inotify.add_watch(path, told | AddWatchFlags::IN_ONLYDIR)?;
        Ok(Self(inotify))
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Descriptor for Folder {
    /// As many events as one read gives. What is left is told again.
    fn do_read(&mut self, cx: &mut DescriptorCx<'_>) -> io::Result<()> {
        let events = match self.0.read_events() {
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
            read => read?,
        };
        for event in events {
            if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                println!("the folder is gone");
                cx.descriptor.remove();
                let _ = cx.reactor.stop();
            }
            print(&event);
        }
        Ok(())
    }

    fn connection_lost(&mut self, cx: &mut DescriptorCx<'_>, reason: &DescriptorLost) {
        println!("no more events: {reason}");
        let _ = cx.reactor.stop();
    }
}

fn print(event: &InotifyEvent) {
    if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
        println!("more has happened than the kernel has kept");
    }
    let Some(name) = &event.name else { return };
    for (_, word) in EVENTS.into_iter().filter(|(told, _)| event.mask.contains(*told)) {
        println!("{word} {}", name.display());
    }
}

fn main() -> ExitCode {
    let path = PathBuf::from(env::args_os().nth(1).unwrap_or_else(|| ".".into()));
    match run(&path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(complaint) => {
            eprintln!("inotify: {complaint}");
            ExitCode::FAILURE
        }
    }
}

fn run(path: &PathBuf) -> Result<(), String> {
    let folder = Folder::open(path).map_err(|errno| {
        format!("cannot watch {}: {}; usage: inotify [FOLDER]", path.display(), errno.desc())
    })?;
    let reactor = Reactor::builder().build().map_err(|error| error.to_string())?;
    reactor.add_reader(folder).map_err(|error| error.to_string())?;
    println!("watching {}", path.display());
    reactor.run().map_err(|error| error.to_string())
}
