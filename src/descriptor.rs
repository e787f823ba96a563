//! Descriptors that the program reads and writes by itself, and that a reactor watches for it.

use std::{
    error, fmt, io,
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc, Weak,
        atomic::{AtomicU8, Ordering::SeqCst},
    },
};

use crate::{
    error::{Errno, Error},
    id::WatchKey,
    reactor::{Command, Core, Reactor},
    sys::watched_file::WatchedFile,
};

/// Something with a descriptor that a reactor watches: Twisted's `IReadDescriptor` and `IWriteDescriptor`.
///
/// A raw socket, an inotify instance, a terminal, the socket of a foreign library. The reactor calls [`do_read`](Self::do_read) and
/// [`do_write`](Self::do_write) on its thread, one at a time, once in each turn in which there is something to do, as long as there is (it is
/// level-triggered). Make the descriptor non-blocking, or do no more than one read or write in a call.
///
/// As long as it is watched, `as_fd` must name the file that it named at first. One that was closed, or whose number names something else,
/// is lost as [`DescriptorLost::WentAway`], within a second even if nothing happens. To close it in good order, have it
/// [removed](WatchedDescriptor::remove) first, or let the reactor drop it, which it does when the watch is over.
pub trait Descriptor: AsFd + Send + 'static {
    /// There is something to read, or the end of it. What it leaves is told again.
    ///
    /// # Errors
    /// Any error ends the watch, and comes back in [`connection_lost`](Self::connection_lost). At the end of a stream return one, or
    /// remove the descriptor: an end can be read for ever.
    fn do_read(&mut self, cx: &mut DescriptorCx<'_>) -> io::Result<()> {
        let _ = cx;
        Ok(())
    }

    /// There is room to write. It comes again until there is none, or [`remove_writer`](WatchedDescriptor::remove_writer).
    ///
    /// # Errors
    /// Any error ends the watch, and comes back in [`connection_lost`](Self::connection_lost).
    fn do_write(&mut self, cx: &mut DescriptorCx<'_>) -> io::Result<()> {
        let _ = cx;
        Ok(())
    }

    /// The watch is over, for this reason. Comes once, unless it was ended by [`remove`](WatchedDescriptor::remove); then this is dropped.
    fn connection_lost(&mut self, cx: &mut DescriptorCx<'_>, reason: &DescriptorLost) {
        let _ = (cx, reason);
    }
}

/// What a [`Descriptor`]'s callbacks can reach.
#[derive(Debug)]
#[non_exhaustive]
pub struct DescriptorCx<'a> {
    /// The reactor that watches it.
    pub reactor: &'a Reactor,
    /// The watch itself, to be changed or removed.
    pub descriptor: &'a WatchedDescriptor,
}

/// Why a descriptor is watched no more.
#[derive(Debug)]
#[non_exhaustive]
pub enum DescriptorLost {
    /// `do_read` or `do_write` returned this error.
    Callback(io::Error),
    /// A callback panicked with this text.
    Panicked(String),
    /// The other side is gone or the file has failed, and there is nothing left to read, or nobody who wants to. With the error that a socket held.
    HungUp(Option<Errno>),
    /// It was closed without being removed first, or its number names another file by now. If it is not the
    /// program's any more, do not close it again. (Before Linux 6.10 one eventfd, inotify instance or the like cannot be told from another.)
    WentAway,
    /// The kernel would not watch it.
    Refused(Errno),
    /// The reactor was stopped.
    Shutdown,
}

impl fmt::Display for DescriptorLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Callback(error) => write!(f, "a callback failed: {error}"),
            Self::Panicked(text) => write!(f, "a callback panicked: {text}"),
            Self::HungUp(None) => f.write_str("the other side has hung up"),
            Self::HungUp(Some(errno)) => write!(f, "the descriptor has failed: {errno}"),
            Self::WentAway => f.write_str(
                "the descriptor was closed or replaced while it was watched; remove it from the reactor first",
            ),
            Self::Refused(errno) => write!(f, "the kernel would not watch the descriptor: {errno}"),
            Self::Shutdown => f.write_str("the reactor was stopped"),
        }
    }
}

impl error::Error for DescriptorLost {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Callback(error) => Some(error),
            _ => None,
        }
    }
}

const READ: u8 = 1;
const WRITE: u8 = 2;
const OVER: u8 = 4;

/// A [`Descriptor`] that is watched. Dropping this leaves it watched; when the watch is over, all of this does nothing.
///
/// What is removed on the reactor's thread is called no more from then on. On another thread it may be, if it is being called just then.
#[derive(Clone)]
pub struct WatchedDescriptor {
    core: Weak<Core>,
    key: WatchKey,
    /// What is wanted, which counts from the moment at which it is said; the driver follows.
    wanted: Arc<AtomicU8>,
}

impl WatchedDescriptor {
    /// Has `do_read` called when there is something to read.
    pub fn add_reader(&self) {
        self.change(|wanted| wanted | READ);
    }

    /// Has `do_write` called when there is room to write.
    pub fn add_writer(&self) {
        self.change(|wanted| wanted | WRITE);
    }

    /// Has `do_read` called no more. A descriptor that is watched for nothing is kept, but not told of a hang-up.
    pub fn remove_reader(&self) {
        self.change(|wanted| wanted & !READ);
    }

    /// Has `do_write` called no more.
    pub fn remove_writer(&self) {
        self.change(|wanted| wanted & !WRITE);
    }

    /// Ends the watch and drops the descriptor, soon, without telling it. From inside a callback it is dropped when that returns.
    pub fn remove(&self) {
        self.change(|_| OVER);
    }

    /// Whether the watch is not over.
    pub fn active(&self) -> bool {
        !self.is_over()
    }

    fn change(&self, change: impl Fn(u8) -> u8) {
        let change = |wanted: u8| Some(change(wanted)).filter(|new| wanted & OVER == 0 && *new != wanted);
        if self.wanted.fetch_update(SeqCst, SeqCst, change).is_ok()
            && let Some(core) = self.core.upgrade()
        {
            Reactor { core }.push(Command::MindDescriptor(self.key));
        }
    }

    pub(crate) fn key(&self) -> WatchKey {
        self.key
    }

    pub(crate) fn wants_read(&self) -> bool {
        self.wanted.load(SeqCst) & READ != 0
    }

    pub(crate) fn wants_write(&self) -> bool {
        self.wanted.load(SeqCst) & WRITE != 0
    }

    pub(crate) fn is_over(&self) -> bool {
        self.wanted.load(SeqCst) & OVER != 0
    }

    /// Ends it for the driver. `false` if somebody has removed it.
    pub(crate) fn end(&self) -> bool {
        self.wanted.swap(OVER, SeqCst) & OVER == 0
    }
}

impl fmt::Debug for WatchedDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchedDescriptor")
            .field("key", &self.key.0)
            .field("read", &self.wants_read())
            .field("write", &self.wants_write())
            .field("active", &self.active())
            .finish()
    }
}

/// A descriptor on its way to the driver.
pub(crate) struct NewWatch {
    pub(crate) descriptor: Box<dyn Descriptor>,
    pub(crate) file: Arc<WatchedFile>,
    pub(crate) handle: WatchedDescriptor,
}

impl Reactor {
    /// Watches a descriptor and has its `do_read` called when there is something to read.
    ///
    /// The reactor watches a duplicate of its own, so one descriptor can be watched several times, and what is closed without
    /// being removed stays open to its other side until the reactor has noticed.
    ///
    /// ```
    /// use std::{io::{self, Read, Write, pipe}, os::fd::{AsFd, BorrowedFd}};
    /// use ringspun::{Descriptor, DescriptorCx, DescriptorLost, Reactor};
    ///
    /// struct Pipe(io::PipeReader);
    ///
    /// impl AsFd for Pipe {
    ///     fn as_fd(&self) -> BorrowedFd<'_> {
    ///         self.0.as_fd()
    ///     }
    /// }
    ///
    /// impl Descriptor for Pipe {
    ///     fn do_read(&mut self, cx: &mut DescriptorCx<'_>) -> io::Result<()> {
    ///         let mut buffer = [0; 1024];
    ///         println!("{} bytes", self.0.read(&mut buffer)?);
    ///         Ok(())
    ///     }
    ///
    ///     fn connection_lost(&mut self, cx: &mut DescriptorCx<'_>, reason: &DescriptorLost) {
    ///         println!("{reason}");
    ///         let _ = cx.reactor.stop();
    ///     }
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (reader, mut writer) = pipe()?;
    /// let reactor = Reactor::builder().build()?;
    /// reactor.add_reader(Pipe(reader))?;
    /// writer.write_all(b"hello")?;
    /// drop(writer);
    /// reactor.run()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::CannotWatch`] if it is not open, if it cannot be waited for, as a regular file, or if there is no descriptor left for the
    /// duplicate. [`Error::Stopped`] after the reactor's end.
    pub fn add_reader(&self, descriptor: impl Descriptor) -> Result<WatchedDescriptor, Error> {
        self.watch(Box::new(descriptor), READ)
    }

    /// Watches a descriptor and has its `do_write` called when there is room to write; else as [`add_reader`](Self::add_reader).
    ///
    /// # Errors
    /// As `add_reader`.
    pub fn add_writer(&self, descriptor: impl Descriptor) -> Result<WatchedDescriptor, Error> {
        self.watch(Box::new(descriptor), WRITE)
    }

    fn watch(&self, descriptor: Box<dyn Descriptor>, wanted: u8) -> Result<WatchedDescriptor, Error> {
        let fd = descriptor.as_fd();
        let file = self.in_kernel().and_then(|()| WatchedFile::of(fd));
        let file = file.map_err(|cause| Error::CannotWatch { descriptor: fd.as_raw_fd(), cause })?;
        let handle = WatchedDescriptor {
            core: Arc::downgrade(&self.core),
            key: WatchKey(self.core.next_key()),
            wanted: Arc::new(AtomicU8::new(wanted)),
        };
        let new = NewWatch { descriptor, file: Arc::new(file), handle: handle.clone() };
        // Dropped here if nobody will take it out any more.
        self.try_push(Command::AddDescriptor(new)).map_err(|_| Error::Stopped)?;
        Ok(handle)
    }
}
