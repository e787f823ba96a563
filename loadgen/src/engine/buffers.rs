//! The provided-buffer ring: memory from which the kernel takes a buffer for every receive.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    io,
    ptr::NonNull,
    sync::atomic::{AtomicU16, Ordering},
};

use io_uring::{Submitter, types::BufRingEntry};

const PAGE_BYTES: usize = 4096;
const BUFFERS_SMALL: u16 = 512;
const BUFFERS_LARGE: u16 = 128;
const BUFFER_BYTES_MIN: usize = 1024;
const BUFFER_BYTES_MAX: usize = 64 << 10;
/// Buffers at a power-of-two stride would all fall into the same sets of the first-level cache.
const STAGGER_BYTES: usize = 64;

/// One received buffer, on loan from the kernel until it is given back.
#[derive(Debug)]
pub(crate) struct Lease {
    id: u16,
    length: usize,
}

impl Lease {
    /// Of a wire that has one buffer only.
    pub(crate) fn of_length(length: usize) -> Self {
        Self { id: 0, length }
    }

    pub(crate) fn length(&self) -> usize {
        self.length
    }
}

/// Zeroed memory at an address that stays.
#[derive(Debug)]
struct Region {
    start: NonNull<u8>,
    layout: Layout,
}

impl Region {
    fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes, PAGE_BYTES).expect("sizes are far below isize::MAX");
        // SAFETY: every caller asks for at least one buffer, so the layout is not of size zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, layout }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: `start` came from alloc_zeroed with this very layout and is freed only here.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// The buffers and the ring of entries through which they go back to the kernel.
#[derive(Debug)]
pub(crate) struct Buffers {
    group: u16,
    entries: Region,
    data: Region,
    count: u16,
    buffer_bytes: usize,
    tail: u16,
}

impl Buffers {
    /// Buffers that suit messages of this size.
    pub(crate) fn for_messages(group: u16, size: usize) -> Self {
        let buffer_bytes = size.next_power_of_two().clamp(BUFFER_BYTES_MIN, BUFFER_BYTES_MAX);
        let count = if buffer_bytes <= PAGE_BYTES { BUFFERS_SMALL } else { BUFFERS_LARGE };
        Self::new(group, count, buffer_bytes)
    }

    /// A group of buffers, a power of two, all of them the kernel's once registered.
    pub(crate) fn new(group: u16, count: u16, buffer_bytes: usize) -> Self {
        assert!(count.is_power_of_two(), "the kernel wraps by a mask");
        let mut buffers = Self {
            group,
            entries: Region::new(usize::from(count) * size_of::<BufRingEntry>()),
            data: Region::new(usize::from(count) * (buffer_bytes + STAGGER_BYTES)),
            count,
            buffer_bytes,
            tail: 0,
        };
        for id in 0..count {
            buffers.give_back(Lease { id, length: 0 });
        }
        buffers.publish();
        buffers
    }

    /// Registers the buffers with the ring.
    ///
    /// # Safety
    ///
    /// The buffers must live until the ring is gone and none of its receives is in flight.
    pub(crate) unsafe fn register(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        let address = self.entries.start.as_ptr() as u64;
        // SAFETY: `entries` is page-aligned, holds `count` entries, and lives as the caller promises.
        unsafe { submitter.register_buf_ring_with_flags(address, self.count, self.group, 0) }
    }

    /// How many receives can find a buffer at once.
    pub(crate) fn count(&self) -> usize {
        usize::from(self.count)
    }

    /// The lease that a completion announces.
    pub(crate) fn lease(&self, id: u16, length: usize) -> Lease {
        assert!(id < self.count && length <= self.buffer_bytes, "the kernel names buffers it was given");
        Lease { id, length }
    }

    /// What was received.
    pub(crate) fn bytes(&self, lease: &Lease) -> &[u8] {
        let start = self.address_of(lease.id);
        // SAFETY: the buffer lies within `data` (its id was checked when the lease was made), was
        // zeroed at first, and is not the kernel's until the lease is given back, which the borrow
        // of the lease forbids meanwhile.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), lease.length) }
    }

    /// Queues the buffer for the kernel; `publish` makes it visible.
    pub(crate) fn give_back(&mut self, lease: Lease) {
        let slot = usize::from(self.tail & (self.count - 1));
        let address = self.address_of(lease.id).as_ptr() as u64;
        let entry = self.entries.start.cast::<BufRingEntry>();
        // SAFETY: `count` is a power of two, so `slot` is one of the `count` entries; the kernel does
        // not read an entry beyond the published tail. The tail shares memory with the first entry
        // but lies in a field that these three setters do not touch.
        let entry = unsafe { entry.add(slot).as_mut() };
        entry.set_addr(address);
        entry.set_len(self.buffer_bytes as u32);
        entry.set_bid(lease.id);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the kernel everything that was given back.
    pub(crate) fn publish(&self) {
        // SAFETY: `entries` begins with an initialised entry, and the tail field of a registered
        // ring is u16-aligned memory that both sides access atomically.
        let tail = unsafe {
            let tail = BufRingEntry::tail(self.entries.start.cast::<BufRingEntry>().as_ptr());
            AtomicU16::from_ptr(tail.cast_mut())
        };
        tail.store(self.tail, Ordering::Release);
    }

    fn address_of(&self, id: u16) -> NonNull<u8> {
        let offset = usize::from(id) * (self.buffer_bytes + STAGGER_BYTES);
        // SAFETY: `id` is below `count`, so the offset lies within `data`.
        unsafe { self.data.start.add(offset) }
    }
}
