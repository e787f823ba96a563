//! Servers with a fault each, to see whether loadgen finds it. They live in threads of this process.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Barrier, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

/// The size of requests and replies.
pub(super) const SIZE: usize = 64;
/// How long a server, or the client, stands still.
pub(super) const STALL: Duration = Duration::from_millis(300);
/// The request, among those of all connections, that stalls the server.
const STALLS_AT: usize = 100;
/// The request of each connection that meets the fault.
const AT: u64 = 20;

/// What is wrong with a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    FlippedByte,
    /// Of two connections, each gets the other's.
    SwappedReply,
    LostReply,
    RepeatedReply,
    /// All connections wait, once.
    StalledServer,
    /// The fault is the client's.
    None,
}

/// What connections of one server share.
struct Shared {
    both: Barrier,
    requests: Mutex<[[u8; SIZE]; 2]>,
    gate: Mutex<()>,
    /// Requests that have come to the gate.
    came: AtomicUsize,
}

/// Starts a server; it lasts as long as the process.
pub(super) fn serve(fault: Fault) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let shared = Arc::new(Shared {
        both: Barrier::new(2),
        requests: Mutex::new([[0; SIZE]; 2]),
        gate: Mutex::default(),
        came: AtomicUsize::new(0),
    });
    thread::spawn(move || {
        for (number, stream) in listener.incoming().map_while(Result::ok).enumerate() {
            let shared = Arc::clone(&shared);
            // A connection that ends is the end of its thread, whatever the cause.
            thread::spawn(move || echo(stream, number, fault, &shared));
        }
    });
    Ok(address)
}

fn echo(mut stream: TcpStream, number: usize, fault: Fault, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = [0; SIZE];
    for sequence in 0.. {
        stream.read_exact(&mut request)?;
        match fault {
            Fault::FlippedByte if sequence == AT => {
                request[SIZE - 1] ^= 1;
                stream.write_all(&request)?;
            }
            Fault::SwappedReply if sequence == AT => stream.write_all(&shared.swap(number % 2, request))?,
            Fault::LostReply if sequence == AT => {}
            Fault::RepeatedReply if sequence == AT => stream.write_all(&[request, request].concat())?,
            Fault::StalledServer => {
                shared.pass_gate();
                stream.write_all(&request)?;
            }
            _ => stream.write_all(&request)?,
        }
    }
    Ok(())
}

impl Shared {
    fn swap(&self, own: usize, request: [u8; SIZE]) -> [u8; SIZE] {
        let requests = || self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests()[own] = request;
        self.both.wait();
        requests()[1 - own]
    }

    /// One request closes the gate behind it for a while.
    fn pass_gate(&self) {
        let _inside = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        if self.came.fetch_add(1, SeqCst) == STALLS_AT {
            thread::sleep(STALL);
        }
    }
}
