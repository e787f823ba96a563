//! Counts and prints the ICMP messages that come to an address of this machine, 127.0.0.1 or the first argument: a raw
//! socket, which no factory serves, read when the reactor says so. It needs CAP_NET_RAW; try it with `ping 127.0.0.1`.

use std::{
    env, io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    process::ExitCode,
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, bind, recv, socket,
};
use ringspun::{Descriptor, DescriptorCx, DescriptorLost, Reactor};

/// The longest IP packet.
const PACKET_BYTES_MAX: usize = 65_535;

struct IcmpReader {
    socket: OwnedFd,
    packet: Box<[u8]>,
    seen: u64,
}

impl IcmpReader {
    fn open(address: Ipv4Addr) -> Result<Self, String> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let opened = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Icmp);
        let socket = opened.map_err(|errno| {
            let program = env::current_exe().unwrap_or_default();
            format!(
                "cannot open a raw socket: {}; run this as root, or allow it once by `sudo setcap cap_net_raw+ep {}`",
                errno.desc(),
                program.display()
            )
        })?;
        bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(address, 0))).map_err(|errno| {
            format!("cannot listen on {address}: {}; give one of this machine", errno.desc())
        })?;
        Ok(Self { socket, packet: vec![0; PACKET_BYTES_MAX].into(), seen: 0 })
    }
}

impl AsFd for IcmpReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Descriptor for IcmpReader {
    /// One packet a call: what is left is told again, and others have their turn.
    fn do_read(&mut self, _cx: &mut DescriptorCx<'_>) -> io::Result<()> {
        let length = match recv(self.socket.as_raw_fd(), &mut self.packet, MsgFlags::empty()) {
            // A packet with a wrong checksum is found out only when it is read.
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return Ok(()),
            received => received?,
        };
        self.seen += 1;
        println!("{}: {}", self.seen, describe(&self.packet[..length]));
        Ok(())
    }

    fn connection_lost(&mut self, cx: &mut DescriptorCx<'_>, reason: &DescriptorLost) {
        println!("{} seen; {reason}", self.seen);
        // There is nothing else to do here.
        let _ = cx.reactor.stop();
    }
}

/// An IP packet with an ICMP message in it, in words.
fn describe(packet: &[u8]) -> String {
    let header = packet.first().map_or(0, |byte| usize::from(byte & 15) * 4);
    let (Some(&[a, b, c, d]), Some([kind, code, ..])) = (packet.get(12..16), packet.get(header..)) else {
        return format!("{} bytes that are no ICMP message", packet.len());
    };
    let name = match kind {
        0 => "echo reply",
        3 => "destination unreachable",
        5 => "redirect",
        8 => "echo request",
        11 => "time exceeded",
        _ => "message",
    };
    let from = Ipv4Addr::new(a, b, c, d);
    format!("{name} (type {kind}, code {code}) of {} bytes from {from}", packet.len() - header)
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(complaint) => {
            eprintln!("raw_reader: {complaint}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let word = env::args().nth(1).unwrap_or_else(|| Ipv4Addr::LOCALHOST.to_string());
    let address =
        word.parse().map_err(|_| format!("{word:?} is no IPv4 address; usage: raw_reader [ADDRESS]"))?;
    let reader = IcmpReader::open(address)?;
    let reactor = Reactor::builder().build().map_err(|error| error.to_string())?;
    reactor.add_reader(reader).map_err(|error| error.to_string())?;
    println!("watching ICMP messages to {address}");
    reactor.run().map_err(|error| error.to_string())
}
