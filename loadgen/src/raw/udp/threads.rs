//! A blocking thread: one datagram in, one datagram out. UDP has no connections, so there is one thread.

use std::{io, net::UdpSocket};

use crate::raw::tally::{Counted, Tally};

pub(super) fn serve(socket: &UdpSocket, longest: usize, tally: &Tally) -> io::Result<()> {
    let mut buffer = vec![0; longest];
    loop {
        tally.count(Counted::Recv);
        let (length, peer) = match socket.recv_from(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            received => received?,
        };
        tally.count(Counted::DatagramsReceived);
        tally.count(Counted::Send);
        // Whoever is not there any more misses nothing.
        let _ = socket.send_to(&buffer[..length], peer);
    }
}
