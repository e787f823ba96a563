//! Ports for datagrams: a receive that stays armed and takes a buffer of the port's own for each datagram, and sends
//! that are tried without waiting, as those of connections are. Rings of Linux 6.0 do not know whom a send is for, so there
//! they are made by `sendmmsg(2)`.

use std::{collections::BTreeMap, sync::Arc};

use io_uring::{
    opcode,
    types::{self, RecvMsgOut},
};

use super::{Found, Io, Kind, buffers::Group, entries::send_to_entry, ring::Completion};
use crate::{
    address::Address,
    backend::{Datagram, DatagramBatch, Event},
    error::Errno,
    id::PortKey,
    stats::Syscall,
    sys::{DatagramSocket, address_from, send_header},
};

/// Datagrams that a port can have received and not told yet.
const BUFFERS: u16 = 64;
/// Bytes before a datagram in its buffer, besides the name: `struct io_uring_recvmsg_out`.
const OUT_BYTES: usize = 16;
/// The groups of small and large buffers come first.
const FIRST_GROUP: u16 = 2;
const NAME_BYTES: u32 = size_of::<libc::sockaddr_storage>() as u32;

/// The ports that are open.
#[derive(Default)]
pub(super) struct DatagramPorts {
    open: BTreeMap<PortKey, DatagramPort>,
    /// What was told last, whose buffer is the kernel's again after that.
    lent: Option<(PortKey, Arrived)>,
    rearm: Vec<PortKey>,
    /// Numbers of groups that were used and are free.
    free_groups: Vec<u16>,
    next_group: u16,
}

struct DatagramPort {
    socket: Arc<DatagramSocket>,
    receiving: Receiving,
    armed: bool,
    ending: bool,
    /// What the kernel reads while it sends.
    sending: Option<Box<DatagramBatch>>,
}

/// What the kernel has while a receive is armed.
enum Receiving {
    Many { header: Box<libc::msghdr>, group: Group, number: u16 },
    Once(Box<Once>),
}

/// A receive that ends with its first datagram, and where that goes.
struct Once {
    header: libc::msghdr,
    slice: libc::iovec,
    name: libc::sockaddr_storage,
    bytes: Vec<u8>,
}

/// A completion of a receive: how many bytes, and in which buffer if there are several.
#[derive(Clone, Copy)]
struct Arrived {
    len: u32,
    buffer: Option<u16>,
}

impl Receiving {
    fn once(max_packet_size: usize) -> Self {
        // SAFETY: all zeroes are a value of each of these types.
        let (header, name) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let slice = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self::Once(Box::new(Once { header, slice, name, bytes: vec![0; max_packet_size.max(1)] }))
    }
}

impl Once {
    /// The header, pointing to where the next datagram goes.
    fn point(&mut self) -> *mut libc::msghdr {
        let base = self.bytes.as_mut_ptr().cast();
        self.slice = libc::iovec { iov_base: base, iov_len: self.bytes.len() };
        self.header = send_header(&mut self.slice, None);
        self.header.msg_name = (&raw mut self.name).cast();
        self.header.msg_namelen = NAME_BYTES;
        &raw mut self.header
    }
}

impl DatagramPorts {
    pub(super) fn open(
        &mut self,
        io: &mut Io,
        port: PortKey,
        socket: Arc<DatagramSocket>,
        max_packet_size: usize,
    ) {
        let many = if io.multishot { self.register(io, max_packet_size) } else { None };
        let receiving = many.unwrap_or_else(|| Receiving::once(max_packet_size));
        let open = DatagramPort { socket, receiving, armed: false, ending: false, sending: None };
        self.open.insert(port, open);
        self.arm(io, port);
    }

    /// Buffers for a receive that stays armed; None if there is no memory for them.
    fn register(&mut self, io: &Io, max_packet_size: usize) -> Option<Receiving> {
        let number = self.free_groups.pop().unwrap_or_else(|| {
            self.next_group += 1;
            FIRST_GROUP + self.next_group - 1
        });
        let bytes = OUT_BYTES + NAME_BYTES as usize + max_packet_size;
        let Ok(group) = Group::register(&io.ring, number, BUFFERS, bytes as u32) else {
            self.free_groups.push(number);
            return None;
        };
        let nothing = &mut libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut header = Box::new(send_header(nothing, None));
        // Only the lengths count here: what arrives goes into the buffer, name and all.
        (header.msg_iov, header.msg_iovlen, header.msg_namelen) = (std::ptr::null_mut(), 0, NAME_BYTES);
        Some(Receiving::Many { header, group, number })
    }

    fn arm(&mut self, io: &mut Io, port: PortKey) {
        let Some(open) = self.open.get_mut(&port).filter(|open| !open.armed && !open.ending) else { return };
        let fd = types::Fd(open.socket.as_raw_fd());
        let entry = match &mut open.receiving {
            Receiving::Many { header, number, .. } => {
                opcode::RecvMsgMulti::new(fd, &raw const **header, *number).build()
            }
            Receiving::Once(once) => opcode::RecvMsg::new(fd, once.point()).build(),
        };
        open.armed = true;
        // SAFETY: what the entry points to is boxed and stays in the port, which is removed only after the receive's
        // last completion; registered buffers stay registered as long.
        unsafe { io.ring.push(entry.user_data(Kind::ReceiveDatagram.of_port(port.0))) };
    }

    /// Before a wait: receives that have ended are armed again.
    pub(super) fn prepare(&mut self, io: &mut Io) {
        let mut rearm = std::mem::take(&mut self.rearm);
        rearm.drain(..).for_each(|port| self.arm(io, port));
        self.rearm = rearm;
    }

    pub(super) fn recycle_lent(&mut self) {
        let Some((port, arrived)) = self.lent.take() else { return };
        if let Some(open) = self.open.get_mut(&port)
            && let (Receiving::Many { group, .. }, Some(buffer)) = (&mut open.receiving, arrived.buffer)
        {
            group.recycle(buffer);
            group.publish();
        }
    }

    /// A receive has brought a datagram, or is over.
    pub(super) fn received(&mut self, io: &mut Io, completion: Completion) -> Option<Found> {
        let port = PortKey(completion.user_data() as u32);
        let open = self.open.get_mut(&port)?;
        open.armed = completion.more();
        let ending = open.ending;
        if !open.armed {
            self.rearm.push(port);
        }
        let outcome = completion.outcome();
        if let Ok(len) = outcome
            && !ending
        {
            self.lent = Some((port, Arrived { len, buffer: completion.buffer() }));
            return Some(Found::Datagram(port));
        }
        self.close_if_idle(io, port);
        match outcome.map_err(Errno::raw) {
            _ if ending => None,
            // Those who took all buffers have been told by the next wait.
            Ok(_) | Err(libc::ENOBUFS | libc::ECANCELED | libc::EINTR | libc::EAGAIN) => None,
            Err(raw) => Some(Found::Other(Event::DatagramsFailed { port, errno: Errno::from_raw(raw) })),
        }
    }

    /// What was found last, read where the kernel has put it.
    pub(super) fn read_lent(&self) -> Option<Datagram<'_>> {
        let (port, Arrived { len, buffer }) = self.lent?;
        match (&self.open.get(&port)?.receiving, buffer) {
            (Receiving::Many { header, group, .. }, Some(buffer)) => {
                let out = RecvMsgOut::parse(group.slice(buffer, len), header).ok()?;
                let name = out.name_data();
                // SAFETY: the name is that many bytes of the buffer, which the kernel has written.
                let from = unsafe { address_from(name.as_ptr().cast(), name.len() as u32) };
                let whole = !out.is_payload_truncated();
                let start = OUT_BYTES + header.msg_namelen as usize;
                Some((from, whole.then(|| &group.slice(buffer, len)[start..])))
            }
            (Receiving::Once(once), _) => Some((once.from(), once.data(len))),
            _ => None,
        }
    }

    /// Sends these, unless others are still on their way. Gives them back if nothing of them is left to the kernel.
    pub(super) fn send(
        &mut self,
        io: &mut Io,
        port: PortKey,
        mut batch: Box<DatagramBatch>,
    ) -> Option<Box<DatagramBatch>> {
        let Some(open) = self.open.get_mut(&port) else { return Some(batch) };
        if !io.sends_to_names {
            let DatagramBatch { datagrams, failed } = &mut *batch;
            open.socket.send(datagrams, failed, || io.counters.call(Syscall::Sendmmsg));
            return Some(batch);
        }
        let datagrams = &open.sending.insert(batch).datagrams;
        let fd = types::Fd(open.socket.as_raw_fd());
        for at in 0..datagrams.len() {
            let (data, to) = datagrams.get(at);
            let user_data = Kind::SendDatagram.of_port(port.0) | (at as u64) << 32;
            // SAFETY: the data and the name stay in the port until all operations were seen to be taken
            // (`take_tried`).
            unsafe { io.ring.push_quiet(send_to_entry(fd, data, to).user_data(user_data)) };
        }
        io.trying_datagrams.push(port);
        None
    }

    /// After an enter: datagrams that were tried are gone, but for those that were heard of.
    pub(super) fn take_tried(&mut self, io: &mut Io) {
        for completion in io.failed_datagrams.drain(..) {
            let (port, at) = (PortKey(completion.user_data() as u32), (completion.user_data() >> 32) as u16);
            let sending = self.open.get_mut(&port).and_then(|open| open.sending.as_mut());
            if let (Some(sending), Err(errno)) = (sending, completion.outcome()) {
                sending.failed.push((at.into(), errno));
            }
        }
        let mut tried = std::mem::take(&mut io.tried_datagrams);
        for port in tried.drain(..) {
            let sending = self.open.get_mut(&port).and_then(|open| open.sending.take());
            if let Some(sent) = sending {
                io.ready.push_back(Event::DatagramsSent { port, sent });
            }
            self.close_if_idle(io, port);
        }
        io.tried_datagrams = tried;
    }

    pub(super) fn close(&mut self, io: &mut Io, port: PortKey) {
        let Some(open) = self.open.get_mut(&port).filter(|open| !open.ending) else { return };
        open.ending = true;
        if open.armed {
            io.cancel(Kind::ReceiveDatagram.of_port(port.0));
            io.hurried = true;
        }
        self.close_if_idle(io, port);
    }

    /// Whether a receive is in flight that has been cancelled.
    pub(super) fn is_to_end(&self, port: PortKey) -> bool {
        self.open.get(&port).is_some_and(|open| open.armed && open.ending)
    }

    /// Lets go of a port of which the kernel has nothing any more.
    fn close_if_idle(&mut self, io: &mut Io, port: PortKey) {
        let idle = |open: &DatagramPort| open.ending && !open.armed && open.sending.is_none();
        if !self.open.get(&port).is_some_and(idle) {
            return;
        }
        if let Some(DatagramPort { receiving: Receiving::Many { group, number, .. }, .. }) =
            self.open.remove(&port)
        {
            self.free(io, number, group);
        }
        io.ready.push_back(Event::Unlistened { port });
    }

    fn free(&mut self, io: &Io, number: u16, mut group: Group) {
        match io.ring.submitter().unregister_buf_ring(number) {
            Ok(()) => self.free_groups.push(number),
            // The kernel keeps it until the ring ends, and this thread may not take its memory away.
            Err(_) => group.leak(),
        }
    }

    /// Leaves all memory to a kernel that may still write to it.
    pub(super) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.open));
    }
}

impl Once {
    fn from(&self) -> Address {
        // SAFETY: the kernel has written so many bytes of the name.
        unsafe { address_from((&raw const self.name).cast(), self.header.msg_namelen) }
    }

    fn data(&self, len: u32) -> Option<&[u8]> {
        (self.header.msg_flags & libc::MSG_TRUNC == 0).then(|| &self.bytes[..len as usize])
    }
}
