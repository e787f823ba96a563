//! Servers that follow one another at one address, and the clients that must not notice (N3).

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ringspun::{Count, Cx, Error, Port, Protocol, Reactor, Serve};

use crate::{
    kit::{Gate, Running},
    peers::{LIMIT, set_linger0},
};

struct Echo;

impl<F> Protocol<F> for Echo {
    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        let _ = cx.transport.write(data);
    }
}

/// One server. It keeps no journal, which would grow with all that is said.
pub(crate) struct Generation {
    pub(crate) port: Port,
    pub(crate) running: Running,
}

impl Generation {
    pub(crate) fn serve(reactor: Reactor, endpoint: &str) -> Self {
        Self::with(reactor, |reactor| reactor.listen(endpoint, Serve(|| Echo)))
    }

    /// The one that follows in this process.
    pub(crate) fn successor(&self, reactor: Reactor) -> Self {
        let socket = self.port.try_clone_socket().unwrap();
        Self::with(reactor, |reactor| reactor.adopt_stream_port(socket, Serve(|| Echo)))
    }

    fn with(reactor: Reactor, listen: impl FnOnce(&Reactor) -> Result<Port, Error>) -> Self {
        let running = Running::start(reactor);
        let port = listen(&running.reactor).unwrap();
        Self { port, running }
    }

    /// Ends as a server does that has a successor: the port, then those it has let in, then the reactor.
    pub(crate) fn retire(mut self) {
        let done = Gate::default();
        let told = done.clone();
        self.port.on_done(move |_, _| told.open());
        self.port.stop_listening();
        done.pass();
        let until = Instant::now() + LIMIT;
        while self.lost() < self.running.count(Count::Accepted) {
            assert!(Instant::now() < until, "those it has let in do not leave");
            thread::sleep(Duration::from_millis(1));
        }
        let [accepted, made, refused] =
            [Count::Accepted, Count::Made, Count::RefusedStopped].map(|count| self.running.count(count));
        assert!(accepted > 0, "it was never asked");
        assert_eq!((made, refused), (accepted, 0), "each has got its protocol");
        self.running.stop().unwrap();
    }

    fn lost(&self) -> u64 {
        [Count::LostDone, Count::LostErrno].map(|count| self.running.count(count)).iter().sum()
    }
}

/// Clients that call again and again, from threads of their own, until they are told to stop.
pub(crate) struct Callers {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Callers {
    /// One error ends a client, and is what [`stop`](Self::stop) fails of.
    pub(crate) fn start(count: usize, call: impl Fn() -> io::Result<()> + Clone + Send + 'static) -> Self {
        let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let run = |_| {
            let (stop, calls, call) = (Arc::clone(&stop), Arc::clone(&calls), call.clone());
            thread::spawn(move || {
                while !stop.load(SeqCst) {
                    call()?;
                    calls.fetch_add(1, SeqCst);
                }
                Ok(())
            })
        };
        let threads = (0..count).map(run).collect();
        Self { stop, calls, threads }
    }

    /// Waits until so many calls more have been answered.
    pub(crate) fn wait_for(&self, more: usize) {
        let (wanted, until) = (self.calls.load(SeqCst) + more, Instant::now() + LIMIT);
        while self.calls.load(SeqCst) < wanted && self.threads.iter().any(|thread| !thread.is_finished()) {
            assert!(Instant::now() < until, "calls are not answered any more");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends them; how many calls were answered, which is all that were made.
    pub(crate) fn stop(self) -> usize {
        self.stop.store(true, SeqCst);
        for thread in self.threads {
            thread.join().unwrap().expect("a call that is answered");
        }
        self.calls.load(SeqCst)
    }
}

/// Connects, asks once, and goes away at once, so that no port of this side stays taken.
pub(crate) fn call(address: SocketAddr) -> io::Result<()> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(LIMIT))?;
    set_linger0(&stream);
    ask_once(stream)
}

/// Expects one echo.
pub(crate) fn ask_once(mut stream: impl Read + Write) -> io::Result<()> {
    stream.write_all(b"who is there?")?;
    let mut answer = [0; 13];
    stream.read_exact(&mut answer)?;
    assert_eq!(&answer, b"who is there?");
    Ok(())
}
