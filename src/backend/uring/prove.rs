//! Which set-up tier works here: shown by a round trip over a socketpair, not by a version number.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};

use super::Uring;
use crate::{
    backend::{Event, Proactor, Sockets, diagnosis::Denial},
    id::ConnId,
    options::{Tier, UringOptions},
    output::Batch,
    sys::{self, Socket, Waker},
};

/// How long a round trip may take before the tier counts as broken.
const PATIENCE: Duration = Duration::from_secs(2);
/// A socket's room in the proof, and more than fits into that.
const ROOM: usize = 4 << 10;
const TOO_MUCH: usize = 256 << 10;

/// The best tier that works with these options.
pub(crate) fn prove(options: &UringOptions) -> Result<Tier, Denial> {
    let mut failure = None;
    for tier in Tier::ALL.into_iter().filter(|tier| options.tier.is_none_or(|only| only == *tier)) {
        match round_trip(options, tier) {
            Ok(()) => return Ok(tier),
            Err(error) if is_denied(&error) => return Err(Denial::find(&error)),
            Err(error) => failure = Some(error),
        }
    }
    let error = failure.unwrap_or_else(|| io::Error::from_raw_os_error(libc::EINVAL));
    Err(Denial::find(&error))
}

/// Whether no other tier can do better.
fn is_denied(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EACCES))
}

/// Sends through the ring to itself with the very operations that a reactor uses.
fn round_trip(options: &UringOptions, tier: Tier) -> io::Result<()> {
    let waker = Arc::new(Waker::new()?);
    let mut uring = Uring::open(options, tier, Arc::default(), waker)?;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
    setsockopt(&ours, sockopt::SndBuf, &ROOM)?;
    let (sender, receiver) = (ConnId::new(0, 1, 0), ConnId::new(0, 2, 1));
    uring.adopt(sender, socket(&uring, options, ours, 0)?);
    uring.adopt(receiver, socket(&uring, options, theirs, 1)?);
    uring.read(receiver, true);
    let mut batch = Box::<Batch>::default();
    batch.push(b"ringspun");
    uring.send(sender, batch);
    let received = wait_for_data(&mut uring)?;
    prove_short_send(&mut uring, sender)?;
    if options.direct {
        prove_direct(&mut uring, sender)?;
    }
    uring.close(sender, false);
    uring.close(receiver, false);
    if received { Ok(()) } else { Err(io::Error::from(io::ErrorKind::TimedOut)) }
}

/// A send that is heard of only if it fails must be heard of where there is no room for all of it: what is not would be
/// lost.
fn prove_short_send(uring: &mut Uring, id: ConnId) -> io::Result<()> {
    let mut batch = Box::<Batch>::default();
    batch.push(&[0; TOO_MUCH]);
    uring.send(id, batch);
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        uring.hurry(id);
        uring.wait(PATIENCE)?;
        while let Some((event, _)) = uring.next() {
            if let Event::Sent { sent, .. } = event {
                let heard = sent.bytes < TOO_MUCH && sent.errno.is_none();
                return heard.then_some(()).ok_or_else(|| io::Error::from_raw_os_error(libc::EOPNOTSUPP));
            }
        }
    }
    Err(io::Error::from(io::ErrorKind::TimedOut))
}

/// Direct descriptors also need lending (Linux 6.8) and socket options through the ring (6.7): without
/// the latter an abort would send FIN.
fn prove_direct(uring: &mut Uring, id: ConnId) -> io::Result<()> {
    uring.io.linger(id, 0);
    uring.io.ring.submit()?;
    let mut lingers = false;
    uring.io.lend(id, &mut |fd| lingers = sys::resets_on_close(fd))?;
    lingers.then_some(()).ok_or_else(|| io::Error::from_raw_os_error(libc::EOPNOTSUPP))
}

/// With direct descriptors, the test socket takes a place in the ring's table, as accepted ones do.
fn socket(uring: &Uring, options: &UringOptions, fd: OwnedFd, place: u32) -> io::Result<Socket> {
    if !options.direct {
        return Ok(Socket::Fd(fd));
    }
    uring.io.ring.submitter().register_files_update(place, &[fd.as_raw_fd()])?;
    Ok(Socket::Direct(place))
}

fn wait_for_data(uring: &mut Uring) -> io::Result<bool> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        uring.wait(PATIENCE)?;
        while let Some((event, _)) = uring.next() {
            match event {
                Event::Data { data, .. } => return Ok(data == b"ringspun"),
                Event::End { errno: Some(errno), .. } => return Err(errno.into()),
                _ => {}
            }
        }
    }
    Ok(false)
}
