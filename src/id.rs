//! Names for connections that are safe to keep: a stale one is inert.

use std::fmt;

/// Names one connection of one reactor, for as long as the program likes to keep it. When the
/// connection is gone, whatever is done by its id does nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(u64);

/// Generations take 24 bits: 16 million reuses of one slot before an id could repeat.
pub(crate) const GENERATION_MASK: u32 = (1 << 24) - 1;

impl ConnId {
    pub(crate) const fn new(reactor: u8, generation: u32, slot: u32) -> Self {
        Self((reactor as u64) << 56 | ((generation & GENERATION_MASK) as u64) << 32 | slot as u64)
    }

    pub(crate) const fn reactor(self) -> u8 {
        (self.0 >> 56) as u8
    }

    pub(crate) const fn generation(self) -> u32 {
        (self.0 >> 32) as u32 & GENERATION_MASK
    }

    pub(crate) const fn slot(self) -> usize {
        self.0 as u32 as usize
    }
}

impl fmt::Debug for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnId({}:{}:{})", self.reactor(), self.slot(), self.generation())
    }
}

/// Where the generations of a new reactor's slots begin: elsewhere than those of the reactors
/// before it, whose number it may have.
pub(crate) fn first_generation() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Odd, so that all 2^24 beginnings come before one comes again.
    NEXT.fetch_add(65_537, Relaxed) & GENERATION_MASK
}

/// Names a factory within its reactor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct HostKey(pub(crate) u32);

/// Names a listening port within its reactor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PortKey(pub(crate) u32);

/// Names a foreign descriptor within its reactor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct WatchKey(pub(crate) u32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_gives_back_its_parts() {
        let id = ConnId::new(255, GENERATION_MASK, u32::MAX);
        assert_eq!((id.reactor(), id.generation(), id.slot()), (255, GENERATION_MASK, u32::MAX as usize));
        assert_ne!(ConnId::new(1, 2, 3), ConnId::new(1, 3, 3));
        assert_eq!(ConnId::new(0, GENERATION_MASK + 1, 0).generation(), 0);
    }
}
