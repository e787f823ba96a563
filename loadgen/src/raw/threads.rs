//! A blocking thread for each connection: receive, send, and nothing between.
//!
//! Tricks tried: the smallest stack that std gives (memory only); a receive buffer on the heap of which
//! only the touched pages exist (memory only).
//!
//! Tried since, and what it did to the server's CPU a request (an interval that holds 1 is no effect):
//! * SCHED_BATCH, so that a woken thread preempts none: x 1.04 [0.94, 1.27] over 64 connections, x 1.02
//!   [0.99, 1.13] over 1,000. Not kept.

use std::{
    io::{self, Read, Write},
    net::TcpListener,
    os::unix::net::UnixListener,
    thread,
};

use super::tally::{Branch, Counted, Tallies};

const BUFFER_BYTES: usize = 64 << 10;
const STACK_BYTES: usize = 16 << 10;

/// Accepts for ever.
pub(super) fn serve_tcp(listener: &TcpListener, close_after: usize, tallies: &Tallies) -> io::Result<()> {
    serve(|| listener.accept().map(|(stream, _)| stream), close_after, tallies)
}

/// Accepts for ever.
pub(super) fn serve_unix(listener: &UnixListener, close_after: usize, tallies: &Tallies) -> io::Result<()> {
    serve(|| listener.accept().map(|(stream, _)| stream), close_after, tallies)
}

fn serve<S: Read + Write + Send + 'static>(
    accept: impl Fn() -> io::Result<S>,
    close_after: usize,
    tallies: &Tallies,
) -> io::Result<()> {
    let tally = tallies.branch();
    loop {
        tally.count(Counted::Accept);
        let stream = accept()?;
        tally.count(Counted::Accepted);
        let own = tallies.branch();
        thread::Builder::new().stack_size(STACK_BYTES).spawn(move || echo(stream, close_after, &own))?;
    }
}

/// Sends all of it, in as many calls as that takes.
fn send(stream: &mut impl Write, mut bytes: &[u8], tally: &Branch) -> io::Result<()> {
    while !bytes.is_empty() {
        tally.count(Counted::Send);
        match stream.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Ends with the connection, whoever ends that.
fn echo(mut stream: impl Read + Write, close_after: usize, tally: &Branch) {
    let mut echoed = 0;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        tally.count(Counted::Recv);
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                tally.add(Counted::BytesReceived, count as u64);
                if send(&mut stream, &buffer[..count], tally).is_err() {
                    break;
                }
                echoed += count;
                if close_after > 0 && echoed >= close_after {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    tally.count(Counted::Close);
}
