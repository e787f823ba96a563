//! Who is let in: accept policies, and the two that nearly everybody wants.

use std::{
    any::Any,
    collections::HashMap,
    fmt,
    net::IpAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use crate::factory::Peer;

/// Decides about each peer that comes to a port, before the factory is asked for a protocol.
///
/// It may be asked by several reactors at once, and had better be quick: nobody else is accepted meanwhile.
///
/// ```
/// use ringspun::{Peer, policies::{AcceptPolicy, Admission, Place}};
///
/// /// Lets in who comes from this machine.
/// struct Local;
///
/// impl AcceptPolicy for Local {
///     fn admit(&self, peer: &mut Peer<'_>) -> Admission {
///         match peer.address().socket_addr() {
///             Some(address) if !address.ip().is_loopback() => Admission::Refuse,
///             _ => Admission::Admit(Place::default()),
///         }
///     }
/// }
/// ```
pub trait AcceptPolicy: Send + Sync + 'static {
    /// What is to become of this peer. A panic refuses it.
    fn admit(&self, peer: &mut Peer<'_>) -> Admission;
}

/// What is to become of a peer.
#[derive(Debug)]
pub enum Admission {
    /// The port's factory is asked to serve it.
    Admit(Place),
    /// It is closed at once.
    Refuse,
    /// The [overflow](super::Policies::overflow) factory serves it; where there is none it is refused.
    Overflow(Place),
}

/// What a policy has taken for a connection. It is dropped when the connection has ended, or could not be made, whatever
/// the cause: in its `Drop` the policy is told.
#[derive(Default)]
pub struct Place(Option<Box<dyn Any + Send>>);

impl Place {
    /// A place that is given back when this is dropped.
    pub fn new(taken: impl Send + 'static) -> Self {
        Self(Some(Box::new(taken)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let taken = self.0.take();
        // It is the program's own; what it says has been said by the panic itself.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(taken)));
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Place")
    }
}

/// At most so many connections at the same time. Clones count together, so that one limit may hold for several ports and reactors.
#[derive(Clone, Debug)]
pub struct LimitTotalConnections {
    seats: Arc<Seats>,
    overflow: Arc<Seats>,
}

#[derive(Debug)]
struct Seats {
    limit: usize,
    taken: AtomicUsize,
}

impl LimitTotalConnections {
    /// Admits `limit` connections at the same time, and refuses those beyond.
    pub fn new(limit: usize) -> Self {
        Self { seats: Seats::new(limit), overflow: Seats::new(0) }
    }

    /// Has up to `limit` connections at the same time served by the overflow factory when all places are taken, so that they are told. They
    /// take no place of the others (≠ Twisted), but descriptors: so these are limited, too.
    pub fn overflow(mut self, limit: usize) -> Self {
        self.overflow = Seats::new(limit);
        self
    }

    /// How many are admitted now.
    pub fn count(&self) -> usize {
        self.seats.taken.load(SeqCst)
    }

    /// How many are served by the overflow factory now.
    pub fn overflow_count(&self) -> usize {
        self.overflow.taken.load(SeqCst)
    }
}

impl AcceptPolicy for LimitTotalConnections {
    fn admit(&self, _peer: &mut Peer<'_>) -> Admission {
        if let Some(place) = Seats::take(&self.seats) {
            return Admission::Admit(place);
        }
        Seats::take(&self.overflow).map_or(Admission::Refuse, Admission::Overflow)
    }
}

impl Seats {
    fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, taken: AtomicUsize::new(0) })
    }

    fn take(seats: &Arc<Self>) -> Option<Place> {
        let free = |taken| (taken < seats.limit).then_some(taken + 1);
        seats.taken.fetch_update(SeqCst, SeqCst, free).ok()?;
        Some(Place::new(Seat(Arc::clone(seats))))
    }
}

struct Seat(Arc<Seats>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, SeqCst);
    }
}

/// At most so many connections at the same time from one IP address; those beyond are refused. A peer without one, on a Unix socket or
/// already gone, is not limited. Clones count together.
#[derive(Clone, Debug)]
pub struct LimitConnectionsByPeer {
    limit: usize,
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl LimitConnectionsByPeer {
    /// Admits `limit` connections of each peer.
    pub fn new(limit: usize) -> Self {
        Self { limit, counts: Arc::default() }
    }

    /// How many of this peer are admitted now.
    pub fn count(&self, peer: IpAddr) -> usize {
        self.counts().get(&peer.to_canonical()).copied().unwrap_or(0)
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AcceptPolicy for LimitConnectionsByPeer {
    fn admit(&self, peer: &mut Peer<'_>) -> Admission {
        let Some(address) = peer.address().socket_addr() else { return Admission::Admit(Place::default()) };
        // One peer may come by both ways of spelling an IPv4 address.
        let ip = address.ip().to_canonical();
        let mut counts = self.counts();
        let count = counts.get(&ip).copied().unwrap_or(0);
        if count >= self.limit {
            return Admission::Refuse;
        }
        counts.insert(ip, count + 1);
        Admission::Admit(Place::new(OneOf { counts: Arc::clone(&self.counts), ip }))
    }
}

struct OneOf {
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
    ip: IpAddr,
}

impl Drop for OneOf {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.ip);
            }
        }
    }
}
