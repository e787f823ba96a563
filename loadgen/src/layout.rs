//! How many rings and how many client processes a cell of idle connections takes. A process, and the table of a ring,
//! hold no more than RLIMIT_NOFILE says; beyond it the server gets several rings and the client several processes.

use crate::{
    cli::{REACTORS_MAX, Settings},
    error::Error,
    machine::{self, DESCRIPTORS_OWN},
    point::Point,
    spec::{Kind, Row, Spec},
    units::{bytes, grouped},
};

/// What the kernel and both ends keep of an idle connection, as measured, rounded up.
pub(crate) const BYTES_A_CONNECTION: u64 = 13 << 10;
/// A reactor's ring, eventfd, listening socket and reserve, and one to spare.
const DESCRIPTORS_A_REACTOR: u64 = 5;
/// More places than this the library does not ask a ring for.
const PLACES_MAX: u64 = 1 << 20;
/// The kernel deals connections out by a hash: no ring gets more than the mean and so many standard deviations.
pub(crate) const DEVIATIONS: f64 = 8.0;

/// What a cell takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Reactors of the server process, each with a ring; 1 is a server as the row says it.
    pub(crate) reactors: usize,
    /// Client processes; 1 is this one.
    pub(crate) clients: usize,
}

/// What the machine allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowed {
    /// To one process, and to the table of one ring.
    pub(crate) descriptors: u64,
    /// In bytes, if it is known.
    pub(crate) memory: Option<u64>,
}

impl Allowed {
    /// To this process and its children, at this moment.
    pub(crate) fn here() -> Self {
        Self { descriptors: machine::raise_descriptor_limit(), memory: machine::available_memory() }
    }

    /// Connections that one client process has descriptors for.
    fn by_client(self) -> u64 {
        self.descriptors.saturating_sub(DESCRIPTORS_OWN).max(1)
    }

    /// Connections that a ring gets on average if none is to run out of places.
    fn by_ring(self) -> u64 {
        let places = self.descriptors.min(PLACES_MAX) as f64;
        let half = DEVIATIONS / 2.0;
        // Where mean + deviations * sqrt(mean) is all places.
        let mean = ((half * half + places).sqrt() - half).powi(2);
        (mean as u64).max(1)
    }

    /// Rings that one process has descriptors for.
    fn rings(self) -> u64 {
        (self.by_client() / DESCRIPTORS_A_REACTOR).min(REACTORS_MAX as u64)
    }
}

impl Layout {
    pub(crate) const ONE: Self = Self { reactors: 1, clients: 1 };

    /// Checks every cell of a run before the first one.
    pub(crate) fn check(settings: &Settings) -> Result<(), Error> {
        let allowed = Allowed::here();
        settings.points.iter().try_for_each(|point| {
            settings.rows.iter().try_for_each(|row| Self::of(settings, row, point, allowed).map(drop))
        })
    }

    /// What this row takes at this point.
    pub(crate) fn of(settings: &Settings, row: &Row, point: &Point, allowed: Allowed) -> Result<Self, Error> {
        let connections = point.connections as u64;
        if !Self::beyond_one(connections, allowed) {
            return Ok(Self::ONE);
        }
        let refused = || machine::too_few_descriptors(point.connections, allowed.descriptors);
        if !settings.is_idle() {
            return Err(refused());
        }
        if !spreads(row) {
            let remedy = "; or --backend io_uring, which takes several rings with tables of their own";
            return Err(refused().and(remedy).within(&row.to_string()));
        }
        let kept = BYTES_A_CONNECTION + (point.pipeline as u64 + 1) * point.size.largest() as u64;
        Self::for_idle(connections, kept, allowed)
    }

    /// Whether so many are more than one process can have.
    pub(crate) fn beyond_one(connections: u64, allowed: Allowed) -> bool {
        connections > allowed.by_client()
    }

    /// For idle connections that take so many bytes each, at both ends together.
    pub(crate) fn for_idle(connections: u64, kept: u64, allowed: Allowed) -> Result<Self, Error> {
        let (reactors, clients) =
            (connections.div_ceil(allowed.by_ring()), connections.div_ceil(allowed.by_client()));
        if reactors > allowed.rings() {
            return Err(Error::machine(format!(
                "{} idle connections need {} rings, RLIMIT_NOFILE is {}, which allows one process {} rings of {} \
                 connections; raise it with `ulimit -Hn` as root, or use -c {} at most",
                grouped(connections),
                grouped(reactors),
                grouped(allowed.descriptors),
                allowed.rings(),
                grouped(allowed.by_ring()),
                allowed.rings() * allowed.by_ring()
            )));
        }
        let needed = connections.saturating_mul(kept);
        match allowed.memory {
            Some(memory) if needed > memory => Err(Error::machine(format!(
                "{} idle connections take about {} of memory at both ends, {} are available; use a machine with \
                 more, or -c {} at most",
                grouped(connections),
                bytes(needed),
                bytes(memory),
                memory / kept
            ))),
            _ => Ok(Self { reactors: reactors as usize, clients: clients as usize }),
        }
    }

    /// The row as its server is started: several rings have tables of their own.
    pub(crate) fn served(self, row: &Row) -> Row {
        match row {
            Row::Backend(spec) if self.reactors > 1 => Row::Backend(Spec { direct: true, ..*spec }),
            row => row.clone(),
        }
    }

    /// The reactors that this row's server is told to have; another program is not told.
    pub(crate) fn reactors_of(self, row: &Row) -> usize {
        if matches!(row, Row::Backend(_)) { self.reactors } else { 1 }
    }
}

/// Whether a server of this row can hold more than one table of descriptors. Another program may.
fn spreads(row: &Row) -> bool {
    match row {
        Row::Backend(spec) => spec.kind == Kind::IoUring,
        Row::Hired(_) => true,
        Row::Remote(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Allowed = Allowed { descriptors: 20_000, memory: Some(20 << 30) };

    #[test]
    fn a_million_takes_53_rings_and_51_clients_of_20_000_descriptors() {
        let layout = Layout::for_idle(1_000_000, BYTES_A_CONNECTION, HERE).expect("it fits");
        assert_eq!(layout, Layout { reactors: 53, clients: 51 });
    }

    #[test]
    fn no_ring_is_dealt_more_than_it_has_places() {
        for descriptors in [100, 200, 1_024, 20_000, 1 << 20, u64::MAX] {
            let allowed = Allowed { descriptors, memory: None };
            let mean = allowed.by_ring() as f64;
            assert!(mean + DEVIATIONS * mean.sqrt() <= descriptors as f64, "{allowed:?}");
        }
    }

    #[test]
    fn what_cannot_be_names_the_limit_and_the_remedy() {
        let refused = |connections, allowed| {
            Layout::for_idle(connections, BYTES_A_CONNECTION, allowed).expect_err("too many").to_string()
        };
        let rings = refused(10_000_000, Allowed { memory: None, ..HERE });
        for part in ["10,000,000 idle", "530 rings", "RLIMIT_NOFILE is 20,000", "-c 4838400 at most"] {
            assert!(rings.contains(part), "{part}: {rings}");
        }
        let memory = refused(2_000_000, HERE);
        for part in ["24.8 GiB", "20 GiB are available", "-c 1613193 at most"] {
            assert!(memory.contains(part), "{part}: {memory}");
        }
    }

    #[test]
    fn only_io_uring_gets_more_rings() {
        let row = |text: &str| Row::Backend(text.parse().expect("valid"));
        assert!(
            spreads(&row("io_uring:latency"))
                && !spreads(&row("epoll"))
                && !spreads(&row("raw-uring:direct"))
        );
        let many = Layout { reactors: 2, clients: 2 };
        assert_eq!(many.served(&row("io_uring:latency")), row("io_uring:direct:latency"));
        assert_eq!(Layout::ONE.served(&row("io_uring")), row("io_uring"));
    }
}
