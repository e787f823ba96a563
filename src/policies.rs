//! What a port or a connector imposes on its connections, whatever their protocol: who is let in, how long they may be idle, how
//! fast they may be, and what is written down of them.
//!
//! [`Policies`] are put around a factory, as Twisted's wrapping factories are. But they wrap no protocol: its type, its timers and its posts
//! stay what they are.
//!
//! ```no_run
//! use std::time::Duration;
//! use ringspun::{Cx, Protocol, Reactor, Serve, policies::{LimitConnectionsByPeer, LimitTotalConnections, Policies, Throttle}};
//! # struct Echo;
//! # impl<F> Protocol<F> for Echo { fn data_received(&mut self, _: &mut Cx<'_, F>, _: &[u8]) {} }
//!
//! struct Busy;
//!
//! impl<F> Protocol<F> for Busy {
//!     fn connection_made(&mut self, cx: &mut Cx<'_, F>) {
//!         let _ = cx.transport.write(b"busy, try later\r\n");
//!         cx.transport.lose_connection();
//!     }
//!     fn data_received(&mut self, _: &mut Cx<'_, F>, _: &[u8]) {}
//! }
//!
//! # fn main() -> Result<(), ringspun::Error> {
//! let policies = Policies::new()
//!     .accept(LimitConnectionsByPeer::new(20))
//!     .accept(LimitTotalConnections::new(1000).overflow(50))
//!     .overflow(|| Serve(|| Busy))
//!     .idle_timeout(Duration::from_secs(60))
//!     .throttle(&Throttle::new().read(1_000_000));
//! let reactor = Reactor::builder().build()?;
//! reactor.listen_tcp(8000, policies.wrap(Serve(|| Echo)))?;
//! reactor.run()
//! # }
//! ```
//!
//! | Twisted's `twisted.protocols.policies` | here |
//! |---|---|
//! | `LimitTotalConnectionsFactory`, `overflowProtocol` | [`LimitTotalConnections`], [`Policies::overflow`] |
//! | `LimitConnectionsByPeer` | [`LimitConnectionsByPeer`] |
//! | `TimeoutFactory` | [`Policies::idle_timeout`] |
//! | `TimeoutMixin` | [`Transport::set_timeout`](crate::Transport::set_timeout), [`Protocol::timeout_connection`](crate::Protocol::timeout_connection) |
//! | `ThrottlingFactory` | [`Throttle`] |
//! | `TrafficLoggingFactory` | [`TrafficLog`] |

mod accept;
mod throttle;
mod traffic_log;

use std::{fmt, sync::Arc, time::Duration};

pub use self::{
    accept::{AcceptPolicy, Admission, LimitConnectionsByPeer, LimitTotalConnections, Place},
    throttle::Throttle,
    traffic_log::TrafficLog,
};
pub use crate::connection::Filter;
use crate::{
    connection::{Equipment, Pace},
    factory::{Factory, Peer},
    factory_handle::{FactoryHandle, HostToken, IntoFactory},
    id::HostKey,
    reactor::Reactor,
};

type MakeFilter = Arc<dyn Fn(&mut Peer<'_>) -> Box<dyn Filter> + Send + Sync>;
type MakeOverflow = Arc<dyn Fn(&Reactor) -> Arc<HostToken> + Send + Sync>;

/// What is imposed on the connections of a port or a connector. See [the module](self).
#[derive(Clone, Default)]
pub struct Policies {
    accept: Vec<Arc<dyn AcceptPolicy>>,
    overflow: Option<MakeOverflow>,
    idle_timeout: Option<Duration>,
    throttles: Vec<Throttle>,
    throttles_each: Vec<Throttle>,
    filters: Vec<MakeFilter>,
}

impl Policies {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks this before a peer that came to a port gets a protocol. All that were added are asked: one is enough to refuse it, else one to have it served by the
    /// [overflow](Self::overflow) factory. Connections that this side makes are not asked about.
    pub fn accept(mut self, policy: impl AcceptPolicy) -> Self {
        self.accept.push(Arc::new(policy));
        self
    }

    /// The factory for those whom an accept policy does not admit but would have told why: one is made for each port. It starts
    /// and stops with the port. Without it they are refused.
    pub fn overflow<O: Factory>(mut self, make: impl Fn() -> O + Send + Sync + 'static) -> Self {
        self.overflow = Some(Arc::new(move |reactor| reactor.add_factory(make()).token()));
        self
    }

    /// Closes a connection, as `lose_connection` does, when nothing was received and nothing was sent for `limit`, or for up to a
    /// quarter longer: it is looked at four times within the limit, and a message costs nothing. The reason is `Reason::TimedOut(Timeout::Idle)`.
    /// Bytes are sent when the kernel has taken them. Of a long write it takes more when about a third of the socket's send buffer has gone: a
    /// peer that takes less than that within `limit` may count as idle.
    pub fn idle_timeout(mut self, limit: Duration) -> Self {
        self.idle_timeout = Some(limit);
        self
    }

    /// Holds all connections together to one budget, which those of other ports may share.
    pub fn throttle(mut self, throttle: &Throttle) -> Self {
        self.throttles.push(throttle.clone());
        self
    }

    /// Holds each connection to a budget of its own, with the limits of this one.
    pub fn throttle_each(mut self, throttle: &Throttle) -> Self {
        self.throttles_each.push(throttle.clone());
        self
    }

    /// Writes down what passes.
    pub fn log_traffic(self, log: &TrafficLog) -> Self {
        let log = log.clone();
        self.filter(move |peer| log.connection(peer))
    }

    /// Puts a filter between each connection's socket and its protocol. Of several, the first is the nearest to the protocol. It is
    /// made before the factory is asked for a protocol.
    pub fn filter<T: Filter>(mut self, make: impl Fn(&mut Peer<'_>) -> T + Send + Sync + 'static) -> Self {
        self.filters.push(Arc::new(move |peer| Box::new(make(peer))));
        self
    }

    /// Puts all this around a factory, or the handle of one, to be given to a `listen_..` or `connect_..` of the reactor. Connections that the factory has
    /// elsewhere are not concerned.
    pub fn wrap<T>(&self, factory: T) -> Policed<T> {
        Policed { policies: self.clone(), factory }
    }

    /// For one connection, its own first: what is shared counts only what these let pass.
    fn paces(&self) -> Vec<Arc<dyn Pace>> {
        let own = self.throttles_each.iter().map(Throttle::with_own_budget);
        own.chain(self.throttles.iter().cloned())
            .map(|throttle| Arc::new(throttle) as Arc<dyn Pace>)
            .collect()
    }
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policies")
            .field("accept", &self.accept.len())
            .field("overflow", &self.overflow.is_some())
            .field("idle_timeout", &self.idle_timeout)
            .field("throttles", &self.throttles)
            .field("throttles_each", &self.throttles_each)
            .field("filters", &self.filters.len())
            .finish()
    }
}

/// A factory with [`Policies`] around it.
#[derive(Debug)]
pub struct Policed<T> {
    policies: Policies,
    factory: T,
}

impl<F: Factory> IntoFactory<F> for Policed<F> {
    fn into_handle(self, reactor: &Reactor) -> FactoryHandle<F> {
        reactor.add_factory(self.factory).guarded(Guard::new(self.policies, reactor))
    }
}

impl<F: Factory> IntoFactory<F> for Policed<FactoryHandle<F>> {
    fn into_handle(self, reactor: &Reactor) -> FactoryHandle<F> {
        self.factory.guarded(Guard::new(self.policies, reactor))
    }
}

/// The policies of one port or connector, as the drivers ask them.
pub(crate) struct Guard {
    policies: Policies,
    overflow: Option<Arc<HostToken>>,
}

/// What becomes of a peer that came to a port.
pub(crate) enum Verdict {
    Admitted(Vec<Place>),
    Overflow(HostKey, Vec<Place>),
    Refused,
}

impl Guard {
    fn new(policies: Policies, reactor: &Reactor) -> Self {
        let overflow = policies.overflow.as_ref().map(|make| make(reactor));
        Self { policies, overflow }
    }

    /// The factory for those who are too many.
    pub(crate) fn overflow(&self) -> Option<HostKey> {
        self.overflow.as_ref().map(|token| token.key())
    }

    /// Asks all accept policies, which are user code. What they have counted counts until the places are dropped.
    pub(crate) fn admit(&self, peer: &mut Peer<'_>) -> Verdict {
        let (mut places, mut overflows) = (Vec::new(), false);
        for policy in &self.policies.accept {
            match policy.admit(peer) {
                Admission::Admit(place) => places.push(place),
                Admission::Overflow(place) => {
                    overflows = true;
                    places.push(place);
                }
                Admission::Refuse => return Verdict::Refused,
            }
        }
        match self.overflow() {
            _ if !overflows => Verdict::Admitted(places),
            Some(host) => Verdict::Overflow(host, places),
            None => Verdict::Refused,
        }
    }

    /// What is to stand between a connection and its protocol. It is user code that makes the filters.
    pub(crate) fn equip(&self, peer: &mut Peer<'_>) -> Equipment {
        let policies = &self.policies;
        Equipment {
            idle_timeout: policies.idle_timeout,
            paces: policies.paces(),
            filters: policies.filters.iter().map(|make| make(peer)).collect(),
        }
    }
}
