//! The receive buffers that all connections of a ring share, and the ring that hands them to the kernel.

use std::{
    io,
    num::NonZeroUsize,
    ptr::NonNull,
    sync::atomic::{AtomicU16, Ordering},
};

use io_uring::types::BufRingEntry;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

use super::ring::Ring;

/// The large buffers of a ring: so few that what is received is still in the cache when it is sent on.
const LARGE_COUNT: u16 = 2;
const LARGE_BYTES: u32 = 64 << 10;
/// Keeps the buffers from falling into the same set of the first-level cache, as strides of a
/// page would.
const STAGGER: usize = 64;

/// Memory of its own, which a forked child does not get: a copy-on-write fault after a fork would
/// part the kernel's pinned pages from ours.
struct Mapping {
    start: NonNull<libc::c_void>,
    len: NonZeroUsize,
    leaked: bool,
}

impl Mapping {
    fn new(len: usize) -> io::Result<Self> {
        let len = NonZeroUsize::new(len).unwrap_or(NonZeroUsize::MIN);
        let (protection, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing else.
        let start = unsafe { mmap_anonymous(None, len, protection, flags)? };
        let mapping = Self { start, len, leaked: false };
        // SAFETY: the range is exactly the mapping made above.
        unsafe { madvise(start, len.get(), MmapAdvise::MADV_DONTFORK)? };
        Ok(mapping)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.leaked {
            return;
        }
        // SAFETY: the mapping was made by `new`, and nothing borrows from it any more.
        let _ = unsafe { munmap(self.start, self.len.get()) };
    }
}

/// Which buffers an operation is given one of: those that all connections share by default, or the large ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Size {
    Small,
    Large,
}

impl Size {
    /// As the kernel knows it.
    pub(super) fn group(self) -> u16 {
        self as u16
    }
}

/// One that the kernel has filled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffer {
    pub(super) size: Size,
    pub(super) number: u16,
}

/// See the top of this file.
pub(super) struct Buffers {
    small: Group,
    large: Group,
}

impl Buffers {
    /// `count` (a power of two) small buffers of `bytes` each, and the large ones, registered with the ring.
    pub(super) fn register(ring: &Ring, count: u16, bytes: u32) -> io::Result<Self> {
        let small = Group::register(ring, Size::Small.group(), count, bytes)?;
        let large = Group::register(ring, Size::Large.group(), LARGE_COUNT, LARGE_BYTES)?;
        Ok(Self { small, large })
    }

    /// How many of this size there are.
    pub(super) fn count(&self, size: Size) -> u16 {
        self.group(size).count
    }

    /// Bytes of one of this size.
    pub(super) fn bytes(&self, size: Size) -> u32 {
        self.group(size).bytes as u32
    }

    /// The first `len` bytes of a buffer that a completion named and that was not recycled since.
    pub(super) fn slice(&self, buffer: Buffer, len: u32) -> &[u8] {
        self.group(buffer.size).slice(buffer.number, len)
    }

    /// Gives a buffer back; the kernel sees it after [`publish`](Self::publish).
    pub(super) fn recycle(&mut self, buffer: Buffer) {
        match buffer.size {
            Size::Small => self.small.recycle(buffer.number),
            Size::Large => self.large.recycle(buffer.number),
        }
    }

    /// Shows the kernel what was recycled; once a turn.
    pub(super) fn publish(&mut self) {
        self.small.publish();
        self.large.publish();
    }

    /// Leaves the memory mapped for good, for a kernel that may still write to it.
    pub(super) fn leak(&mut self) {
        self.small.leak();
        self.large.leak();
    }

    fn group(&self, size: Size) -> &Group {
        match size {
            Size::Small => &self.small,
            Size::Large => &self.large,
        }
    }
}

/// Buffers of one size, which the kernel takes first in, first out.
pub(super) struct Group {
    ring: Mapping,
    memory: Mapping,
    count: u16,
    bytes: usize,
    tail: u16,
    published: u16,
}

impl Group {
    /// `count` (a power of two) buffers of `bytes` each, registered with the ring under this number.
    pub(super) fn register(ring: &Ring, number: u16, count: u16, bytes: u32) -> io::Result<Self> {
        let bytes = bytes as usize;
        let mut buffers = Self {
            ring: Mapping::new(count as usize * size_of::<BufRingEntry>())?,
            memory: Mapping::new(count as usize * (bytes + STAGGER))?,
            count,
            bytes,
            tail: 0,
            published: 0,
        };
        let start = buffers.ring.start.as_ptr() as u64;
        // SAFETY: the mapping holds `count` entries and is freed only by `Drop`, which its owner
        // runs after the ring has let go of it.
        unsafe { ring.submitter().register_buf_ring_with_flags(start, count, number, 0)? };
        (0..count).for_each(|buffer| buffers.recycle(buffer));
        buffers.publish();
        Ok(buffers)
    }

    pub(super) fn slice(&self, buffer: u16, len: u32) -> &[u8] {
        let len = (len as usize).min(self.bytes);
        // SAFETY: `address` lies `bytes` before the end of the mapping at least; anonymous memory
        // is initialised; the kernel writes a buffer only between `publish` and its completion, and
        // recycling takes `&mut self`.
        unsafe { std::slice::from_raw_parts(self.address(buffer), len) }
    }

    pub(super) fn recycle(&mut self, buffer: u16) {
        let (address, bytes) = (self.address(buffer) as u64, self.bytes as u32);
        let index = self.tail & (self.count - 1);
        // SAFETY: `index` is below `count`, so the entry lies in the mapping; only this thread
        // writes entries beyond the published tail, and the kernel reads none of those.
        let entry = unsafe { &mut *self.entries().add(index as usize) };
        entry.set_addr(address);
        entry.set_len(bytes);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
    }

    pub(super) fn publish(&mut self) {
        if self.tail == self.published {
            return;
        }
        // SAFETY: the tail lies in the first entry's reserved field, as the kernel lays it out,
        // aligned to two bytes; it is shared with the kernel, so it is written as an atomic.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries()).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
        self.published = self.tail;
    }

    pub(super) fn leak(&mut self) {
        for mapping in [&mut self.ring, &mut self.memory] {
            mapping.leaked = true;
        }
    }

    fn entries(&self) -> *mut BufRingEntry {
        self.ring.start.as_ptr().cast()
    }

    fn address(&self, buffer: u16) -> *const u8 {
        let offset = usize::from(buffer & (self.count - 1)) * (self.bytes + STAGGER);
        // SAFETY: a buffer's number is below `count`, so the offset lies in the mapping.
        unsafe { self.memory.start.as_ptr().cast::<u8>().add(offset) }
    }
}
