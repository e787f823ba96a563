//! Datagram sockets: UDP and Unix. Datagrams go out and come in many to a system call.

use std::{
    io,
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    ptr,
};

use nix::{
    errno::Errno as NixErrno,
    sys::socket::{
        self, AddressFamily, IpMembershipRequest, Ipv6MembershipRequest, SockType, SockaddrLike,
        SockaddrStorage, sockopt,
    },
};

use super::{
    Name, expect_socket,
    listener::{SocketFile, bind_unix, lock_folder},
    name::{address_of, socket_address},
    new_socket, set_nonblocking,
};
use crate::{
    address::{Address, UnixAddress},
    error::Errno,
};

/// Datagrams that one call sends or receives at most.
const DATAGRAMS_A_CALL: usize = 32;
/// The longest payloads that an IP packet has room for.
const PAYLOAD_MAX_V4: usize = 65_507;
const PAYLOAD_MAX_V6: usize = 65_527;
/// <linux/in6.h>, since Linux 4.20.
const IPV6_MULTICAST_ALL: libc::c_int = 29;
/// Far beyond what a Unix socket sends unless it is told to.
const UNIX_RECEIVE_MAX: usize = 16 << 20;

/// A bound datagram socket that answers EAGAIN instead of waiting.
#[derive(Debug)]
pub(crate) struct DatagramSocket {
    socket: OwnedFd,
    family: AddressFamily,
    file: Option<SocketFile>,
}

impl DatagramSocket {
    /// Binds a UDP socket. A shared one lets others have the same address.
    pub(crate) fn bind_udp(address: SocketAddr, share: bool) -> io::Result<Self> {
        let name = Name::from(address);
        let socket = new_socket(name.family(), SockType::Datagram)?;
        if share {
            socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            socket::setsockopt(&socket, sockopt::ReusePort, &true)?;
        }
        // What other sockets of this machine are members of is not for this one.
        if address.is_ipv6() {
            socket::setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            set_int(&socket, libc::IPPROTO_IPV6, IPV6_MULTICAST_ALL, 0)?;
        } else {
            set_int(&socket, libc::IPPROTO_IP, libc::IP_MULTICAST_ALL, 0)?;
        }
        socket::bind(socket.as_raw_fd(), name.raw())?;
        Ok(Self { socket, family: name.family(), file: None })
    }

    /// Binds a Unix socket, unless it is to have no name. A socket file that nobody has open is taken over.
    pub(crate) fn bind_unix(address: &UnixAddress, mode: Option<u32>) -> io::Result<Self> {
        let socket = new_socket(AddressFamily::Unix, SockType::Datagram)?;
        let _alone = lock_folder(address)?;
        let file = match address {
            UnixAddress::Unnamed => None,
            address => bind_unix(&socket, address, SockType::Datagram, mode)?,
        };
        Ok(Self { socket, family: AddressFamily::Unix, file })
    }

    /// Takes over a socket that somebody else has bound.
    ///
    /// # Errors
    /// If the descriptor is something else; the text says what.
    pub(crate) fn adopt(socket: OwnedFd) -> io::Result<Self> {
        expect_socket(&socket, SockType::Datagram)?;
        set_nonblocking(socket.as_fd())?;
        let own: SockaddrStorage = socket::getsockname(socket.as_raw_fd())?;
        let family = own.family().unwrap_or(AddressFamily::Unspec);
        // Nobody reads a queue of errors here, and one that is not empty would be ready for ever.
        let _ = match family {
            AddressFamily::Inet => set_int(&socket, libc::IPPROTO_IP, libc::IP_RECVERR, 0),
            AddressFamily::Inet6 => set_int(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 0),
            _ => Ok(()),
        };
        Ok(Self { socket, family, file: None })
    }

    pub(crate) fn address(&self) -> io::Result<Address> {
        let own = socket::getsockname(self.socket.as_raw_fd())?;
        address_of(&own, Address::Udp)
            .ok_or_else(|| io::Error::other("it is neither a UDP nor a Unix socket"))
    }

    /// Whether datagrams can be sent to such a name.
    pub(crate) fn reaches(&self, name: &Name) -> bool {
        name.family() == self.family
    }

    /// The longest datagram that can be sent, as far as that is known before.
    pub(crate) fn payload_max(&self) -> usize {
        match self.family {
            AddressFamily::Inet => PAYLOAD_MAX_V4,
            AddressFamily::Inet6 => PAYLOAD_MAX_V6,
            _ => usize::MAX,
        }
    }

    /// Sends to, and receives from, nobody else from here on.
    pub(crate) fn connect(&self, name: &Name) -> Result<(), Errno> {
        Ok(socket::connect(self.socket.as_raw_fd(), name.raw())?)
    }

    /// Becomes, or ceases to be, a member of a multicast group, at this interface or at one that the kernel chooses.
    pub(crate) fn set_member(&self, group: IpAddr, at: Option<IpAddr>, member: bool) -> io::Result<()> {
        let fd = &self.socket;
        match (group, at) {
            (IpAddr::V4(group), None | Some(IpAddr::V4(_))) => {
                let at = at.and_then(|at| if let IpAddr::V4(at) = at { Some(at) } else { None });
                let request = IpMembershipRequest::new(group, at);
                match member {
                    true => socket::setsockopt(fd, sockopt::IpAddMembership, &request)?,
                    false => socket::setsockopt(fd, sockopt::IpDropMembership, &request)?,
                }
            }
            (IpAddr::V6(group), None) => {
                let request = Ipv6MembershipRequest::new(group);
                match member {
                    true => socket::setsockopt(fd, sockopt::Ipv6AddMembership, &request)?,
                    false => socket::setsockopt(fd, sockopt::Ipv6DropMembership, &request)?,
                }
            }
            _ => {
                let cause = "an interface is named by an IPv4 address, for an IPv4 group";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, cause));
            }
        }
        Ok(())
    }

    /// Whether it hears itself what it sends to a group.
    pub(crate) fn set_multicast_loop(&self, on: bool) -> io::Result<()> {
        match self.family {
            AddressFamily::Inet6 => {
                set_int(&self.socket, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP, on.into())?
            }
            _ => socket::setsockopt(&self.socket, sockopt::IpMulticastLoop, &on)?,
        }
        Ok(())
    }

    /// How many routers what it sends to a group may pass.
    pub(crate) fn set_multicast_ttl(&self, hops: u8) -> io::Result<()> {
        match self.family {
            AddressFamily::Inet6 => {
                set_int(&self.socket, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, hops.into())?
            }
            _ => socket::setsockopt(&self.socket, sockopt::IpMulticastTtl, &hops)?,
        }
        Ok(())
    }

    pub(crate) fn set_broadcast(&self, on: bool) -> io::Result<()> {
        Ok(socket::setsockopt(&self.socket, sockopt::Broadcast, &on)?)
    }

    /// The longest datagram that can be received.
    pub(crate) fn receive_max(&self) -> usize {
        if self.family == AddressFamily::Unix { UNIX_RECEIVE_MAX } else { usize::from(u16::MAX) }
    }

    /// Sends all of these, and appends the places of those that the kernel did not take, and why.
    pub(crate) fn send(
        &self,
        datagrams: &Datagrams,
        failed: &mut Vec<(u32, Errno)>,
        mut count_call: impl FnMut(),
    ) {
        let mut from = 0;
        while from < datagrams.len() {
            count_call();
            match self.send_some(datagrams, from) {
                Ok(sent) => from += sent,
                Err(NixErrno::EINTR) => {}
                // The socket itself is full, and not only the queue of one peer.
                Err(NixErrno::EAGAIN) if self.family != AddressFamily::Unix => {
                    failed.extend((from..datagrams.len()).map(|at| (at as u32, NixErrno::EAGAIN.into())));
                    return;
                }
                Err(errno) => {
                    failed.push((from as u32, errno.into()));
                    from += 1;
                }
            }
        }
    }

    fn send_some(&self, datagrams: &Datagrams, from: usize) -> Result<usize, NixErrno> {
        let mut slices = [EMPTY_SLICE; DATAGRAMS_A_CALL];
        let mut headers = [EMPTY_HEADER; DATAGRAMS_A_CALL];
        let mut count = 0;
        for ((slice, header), (data, to)) in
            slices.iter_mut().zip(&mut headers).zip((from..datagrams.len()).map(|at| datagrams.get(at)))
        {
            *slice = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
            header.msg_hdr = send_header(slice, to);
            count += 1;
        }
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: the first `count` headers point to slices and names that live until the call returns, and
        // the kernel only reads through them.
        let sent =
            unsafe { libc::sendmmsg(self.socket.as_raw_fd(), headers.as_mut_ptr(), count, flags as _) };
        NixErrno::result(sent).map(|sent| sent as usize)
    }

    /// Receives as many as wait, up to what the inbox has room for.
    pub(crate) fn receive(&self, inbox: &mut Inbox) -> Result<(), Errno> {
        inbox.empty();
        let mut slices = [EMPTY_SLICE; DATAGRAMS_A_CALL];
        let mut headers = [EMPTY_HEADER; DATAGRAMS_A_CALL];
        let rows = inbox.bytes.chunks_exact_mut(inbox.room);
        for (((row, name), slice), header) in rows.zip(&mut inbox.names).zip(&mut slices).zip(&mut headers) {
            *slice = libc::iovec { iov_base: row.as_mut_ptr().cast(), iov_len: row.len() };
            header.msg_hdr = libc::msghdr {
                msg_name: name.as_mut_ptr().cast(),
                msg_namelen: size_of::<libc::sockaddr_storage>() as u32,
                msg_iov: slice,
                msg_iovlen: 1,
                ..EMPTY_HEADER.msg_hdr
            };
        }
        // SAFETY: every header points to a row and a name of the inbox, which live until the call returns and which
        // nothing else uses meanwhile.
        let received = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                headers.as_mut_ptr(),
                DATAGRAMS_A_CALL as u32,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        let received = NixErrno::result(received)? as usize;
        for (header, name) in headers[..received].iter().zip(&inbox.names) {
            let truncated = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            // SAFETY: the kernel has written so many bytes of this name.
            let from = unsafe { address_from(name.as_ptr().cast(), header.msg_hdr.msg_namelen) };
            inbox.arrived.push(Arrived { len: (!truncated).then_some(header.msg_len as usize), from });
        }
        Ok(())
    }

    pub(crate) fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Its file, if it has one, goes at once, though the descriptor stays open.
    pub(crate) fn stop(&self) {
        self.file.iter().for_each(SocketFile::remove);
    }
}

impl Drop for DatagramSocket {
    /// One that never came to be a port leaves no file behind.
    fn drop(&mut self) {
        self.stop();
    }
}

impl AsFd for DatagramSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

const EMPTY_SLICE: libc::iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
const EMPTY_HEADER: libc::mmsghdr = libc::mmsghdr {
    msg_hdr: libc::msghdr {
        msg_name: ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: ptr::null_mut(),
        msg_iovlen: 0,
        msg_control: ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    },
    msg_len: 0,
};

/// What the kernel reads to send one datagram.
pub(crate) fn send_header(slice: &mut libc::iovec, to: Option<&Name>) -> libc::msghdr {
    let (name, len) = to.map_or((ptr::null(), 0), |to| (to.raw().as_ptr(), to.raw().len()));
    libc::msghdr {
        msg_name: name.cast_mut().cast(),
        msg_namelen: len,
        msg_iov: slice,
        msg_iovlen: 1,
        ..EMPTY_HEADER.msg_hdr
    }
}

/// Who sent a datagram, from the name that the kernel wrote.
///
/// # Safety
/// `len` bytes can be read there, and they are initialised.
pub(crate) unsafe fn address_from(name: *const libc::sockaddr, len: u32) -> Address {
    // SAFETY: as the caller promises.
    let name = unsafe { SockaddrStorage::from_raw(name, Some(len)) };
    // A Unix socket that was never bound has no name, not even an empty one.
    name.and_then(|name| address_of(&name, Address::Udp)).unwrap_or(Address::Unix(UnixAddress::Unnamed))
}

fn set_int(
    fd: &OwnedFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> Result<(), NixErrno> {
    let len = size_of::<libc::c_int>() as u32;
    // SAFETY: the value lives until the call returns, and its length is right.
    let done = unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), len) };
    NixErrno::result(done).map(drop)
}

/// Datagrams on their way out, in one piece of memory.
#[derive(Debug, Default)]
pub(crate) struct Datagrams {
    bytes: Vec<u8>,
    list: Vec<Datagram>,
}

#[derive(Debug)]
struct Datagram {
    start: usize,
    to: Option<Name>,
}

impl Datagrams {
    pub(crate) fn push(&mut self, data: &[u8], to: Option<Name>) {
        self.list.push(Datagram { start: self.bytes.len(), to });
        self.bytes.extend_from_slice(data);
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Bytes of all of them.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn get(&self, at: usize) -> (&[u8], Option<&Name>) {
        let datagram = &self.list[at];
        let end = self.list.get(at + 1).map_or(self.bytes.len(), |next| next.start);
        (&self.bytes[datagram.start..end], datagram.to.as_ref())
    }

    /// Whom this one is for, unless its socket is connected.
    pub(crate) fn address(&self, at: usize) -> Option<Address> {
        self.list.get(at)?.to.as_ref().and_then(socket_address)
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.list.clear();
    }
}

/// Room for the datagrams of one receive.
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    names: [MaybeUninit<libc::sockaddr_storage>; DATAGRAMS_A_CALL],
    /// Bytes that each of them may have.
    room: usize,
    arrived: Vec<Arrived>,
    /// How many of them have been taken out.
    taken: usize,
}

struct Arrived {
    /// None if it was longer than there was room.
    len: Option<usize>,
    from: Address,
}

impl Inbox {
    pub(crate) fn new(room: usize) -> Self {
        let room = room.max(1);
        Self {
            bytes: vec![0; room * DATAGRAMS_A_CALL],
            names: [MaybeUninit::zeroed(); DATAGRAMS_A_CALL],
            room,
            arrived: Vec::with_capacity(DATAGRAMS_A_CALL),
            taken: 0,
        }
    }

    fn empty(&mut self) {
        self.arrived.clear();
        self.taken = 0;
    }

    /// Whether all that arrived has been taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.taken == self.arrived.len()
    }

    /// Who sent the next datagram, and its data unless that was too long.
    pub(crate) fn take(&mut self) -> Option<(Address, Option<&[u8]>)> {
        let arrived = self.arrived.get_mut(self.taken)?;
        let start = self.taken * self.room;
        self.taken += 1;
        let from = std::mem::replace(&mut arrived.from, Address::Unknown);
        Some((from, arrived.len.map(|len| &self.bytes[start..start + len])))
    }
}
