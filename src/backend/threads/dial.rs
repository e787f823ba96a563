//! A connection attempt: one thread makes it, any other may end it.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use nix::poll::{PollFd, PollFlags, poll};

use super::round_up;
use crate::{
    address::Address,
    error::Errno,
    reason::ConnectError,
    stats::{Branch, Syscall},
    sys::{self, ClientSocketError},
};

/// A socket that was connected. Reads of it wait.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) socket: OwnedFd,
    /// The peer has reset the connection since. It was made nevertheless: whether this thread was
    /// quick enough to see it in time must make no difference.
    pub(crate) reset: Option<Errno>,
}

/// One attempt, which tries one address after the other.
#[derive(Debug, Default)]
pub(crate) struct Dial {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// What the resolver said.
    addresses: Option<io::Result<Vec<Address>>>,
    /// Why the attempt is to end before its time.
    given_up: Option<ConnectError>,
    /// What is being connected.
    socket: Option<Arc<OwnedFd>>,
    /// It has come to an end, whichever.
    over: bool,
}

/// For those who watch.
impl Dial {
    /// Gives the attempt the addresses that it waits for.
    pub(crate) fn resolved(&self, addresses: io::Result<Vec<Address>>) {
        self.state().addresses = Some(addresses);
        self.changed.notify_one();
    }

    /// Ends the attempt for this reason, unless it has ended.
    pub(crate) fn give_up(&self, error: ConnectError) {
        let mut state = self.state();
        if !state.over {
            state.given_up.get_or_insert(error);
        }
        // A socket that connects is taken back by this, and the thread that polls it wakes.
        state.socket.iter().for_each(|socket| sys::shutdown_read(socket.as_fd()));
        self.changed.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Fails, for good, if the attempt has been given up.
    fn check(&mut self) -> Result<(), ConnectError> {
        let given_up = self.given_up.take();
        self.over |= given_up.is_some();
        given_up.map_or(Ok(()), Err)
    }
}

/// For the thread that makes it.
impl Dial {
    /// Connects to the first address that answers.
    pub(crate) fn run(
        &self,
        bind: Option<SocketAddr>,
        deadline: Instant,
        counters: &Branch,
    ) -> Result<Connected, ConnectError> {
        let addresses = self.wait_for_addresses(deadline)?;
        let mut failure = ConnectError::Resolve(io::Error::other("the name has no address"));
        for address in addresses {
            match self.connect(&address, bind, deadline, counters) {
                Ok(connected) => return Ok(connected),
                Err(error) => failure = error,
            }
            let mut state = self.state();
            state.socket = None;
            // A socket that was taken back fails with an error of its own, which says nothing.
            state.check()?;
            if state.over {
                return Err(failure);
            }
        }
        self.state().over = true;
        Err(failure)
    }

    /// Takes a connection that somebody else has made.
    pub(crate) fn adopt(&self, socket: OwnedFd) -> Result<Connected, ConnectError> {
        sys::set_blocking(socket.as_fd()).map_err(ConnectError::from_errno)?;
        let socket = self.connected(Arc::new(socket))?;
        Ok(Connected { socket, reset: None })
    }

    fn wait_for_addresses(&self, deadline: Instant) -> Result<Vec<Address>, ConnectError> {
        let mut state = self.state();
        loop {
            state.check()?;
            if let Some(addresses) = state.addresses.take() {
                state.over = addresses.is_err();
                return addresses.map_err(ConnectError::Resolve);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.given_up = Some(ConnectError::TimedOut);
            } else {
                let waited = self.changed.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    fn connect(
        &self,
        address: &Address,
        bind: Option<SocketAddr>,
        deadline: Instant,
        counters: &Branch,
    ) -> Result<Connected, ConnectError> {
        let (socket, name) = sys::client_socket(address, bind).map_err(why)?;
        let socket = Arc::new(socket);
        counters.call(Syscall::Connect);
        let mut reset = None;
        let begun = loop {
            match sys::connect(socket.as_fd(), &name) {
                Err(errno) if sys::is_full_backlog(address, errno) => self.rest(deadline)?,
                begun => break begun.map_err(ConnectError::from_errno)?,
            }
        };
        if !begun {
            self.show(&socket)?;
            reset = self.wait(socket.as_fd(), deadline, counters).map_err(ConnectError::from_errno)?;
        }
        sys::set_blocking(socket.as_fd()).map_err(ConnectError::from_errno)?;
        let socket = self.connected(socket)?;
        Ok(Connected { socket, reset })
    }

    /// Lets a little time pass, unless the attempt's is over.
    fn rest(&self, deadline: Instant) -> Result<(), ConnectError> {
        let state = self.state();
        let waited = self.changed.wait_timeout(state, sys::FULL_BACKLOG_PAUSE);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        if Instant::now() >= deadline {
            state.given_up.get_or_insert(ConnectError::TimedOut);
        }
        state.check()
    }

    /// Lets others take the socket back, if none of them has given up before there was one.
    fn show(&self, socket: &Arc<OwnedFd>) -> Result<(), ConnectError> {
        let mut state = self.state();
        state.check()?;
        state.socket = Some(Arc::clone(socket));
        Ok(())
    }

    /// Waits for the socket to connect or to fail, until the attempt's time is over.
    fn wait(
        &self,
        socket: BorrowedFd<'_>,
        deadline: Instant,
        counters: &Branch,
    ) -> Result<Option<Errno>, Errno> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.give_up(ConnectError::TimedOut);
                return Ok(None);
            }
            counters.call(Syscall::Poll);
            match poll(&mut [PollFd::new(socket, PollFlags::POLLOUT)], round_up(left)) {
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) => return outcome(sys::take_error(socket)),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// The attempt has succeeded, unless somebody has given it up before.
    fn connected(&self, socket: Arc<OwnedFd>) -> Result<OwnedFd, ConnectError> {
        let mut state = self.state();
        state.socket = None;
        state.check()?;
        state.over = true;
        // That was the only other reference: those who give up borrow it under the lock.
        Arc::into_inner(socket).ok_or(ConnectError::User)
    }
}

/// Tells a connection that failed from one that was made and then reset: a peer that refuses is
/// reported as such, so these two errors come only after its agreement.
fn outcome(error: Option<Errno>) -> Result<Option<Errno>, Errno> {
    match error {
        Some(errno) if !matches!(errno.raw(), libc::ECONNRESET | libc::EPIPE) => Err(errno),
        reset => Ok(reset),
    }
}

fn why(error: ClientSocketError) -> ConnectError {
    match error {
        ClientSocketError::Bind(local, errno) => ConnectError::Bind(local, errno),
        ClientSocketError::Other(errno) => ConnectError::from_errno(errno),
    }
}
