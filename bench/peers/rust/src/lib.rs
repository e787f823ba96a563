//! What all the echo servers have in common: nothing of how they echo.

use std::net::{Ipv4Addr, SocketAddr};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The most that a connection reads at once: monoio's example has 8 KiB, and the others have less.
pub const BUFFER_BYTES: usize = 8 * 1024;

/// As many as may wait to be accepted with monoio, tokio-uring, glommio and ringline.
pub const BACKLOG: u32 = 1_024;

/// As deep as the rings of monoio and compio are without being told. Those of tokio-uring (256) and glommio
/// (128) are full several times in a turn over 1,000 connections.
pub const RING_ENTRIES: u32 = 1_024;

/// The address to listen on, whose port is the first argument; descriptors are as many as may be had.
pub fn address() -> SocketAddr {
    let port = std::env::args().nth(1).and_then(|word| word.parse().ok());
    let Some(port) = port else {
        eprintln!("no port to listen on; name one as the first argument");
        std::process::exit(2);
    };
    raise_descriptors();
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Most systems give a program 1,024 descriptors until it asks for more.
fn raise_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(errno) = raised {
        eprintln!("descriptors stay as few as they are: {}", errno.desc());
    }
}
