//! In the steady state a message costs no heap allocation, on io_uring and on epoll, and neither does a datagram.
//!
//! The allocator of this program counts what the reactor's thread allocates, and nothing else.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    backtrace::Backtrace,
    cell::Cell,
    io::{ErrorKind, Read, Write as _},
    net::{Ipv4Addr, TcpStream, UdpSocket},
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
        mpsc::channel,
    },
    thread,
    time::Duration,
};

use ringspun::{Address, Backend, Cx, DatagramCx, DatagramProtocol, Protocol, Reactor, ReactorHandle, Serve};

/// So few that all they ask fits into one turn, also as datagrams, of which 32 are received in a row.
const CONNECTIONS: usize = 25;
const MESSAGE: &[u8; 64] = &[b'm'; 64];
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn no_message_costs_an_allocation_on_io_uring() {
    assert_steady(steady_state(Backend::IoUring, listen_tcp(|| Echo), connect));
}

#[test]
fn no_message_costs_an_allocation_on_epoll() {
    assert_steady(steady_state(Backend::Epoll, listen_tcp(|| Echo), connect));
}

#[test]
fn no_datagram_costs_an_allocation_on_io_uring() {
    assert_steady(steady_state(Backend::IoUring, listen_udp, connect_udp));
}

#[test]
fn no_datagram_costs_an_allocation_on_epoll() {
    assert_steady(steady_state(Backend::Epoll, listen_udp, connect_udp));
}

/// The measurement itself is worth something only if it sees an allocation where there is one.
#[test]
fn a_protocol_that_allocates_is_seen() {
    let (counted, counter) = steady_state(Backend::Epoll, listen_tcp(|| WastefulEcho), connect);
    assert_eq!(counted, [20_000, 40_000]);
    assert!(counter.first().contains("WastefulEcho"), "{}", counter.first());
}

struct Echo;

impl<F> Protocol<F> for Echo {
    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        cx.transport.write(data);
    }
}

impl DatagramProtocol for Echo {
    fn datagram_received(&mut self, cx: &mut DatagramCx<'_, Self>, data: &[u8], from: &Address) {
        cx.transport.write(data, from).unwrap();
    }
}

struct WastefulEcho;

impl<F> Protocol<F> for WastefulEcho {
    fn data_received(&mut self, cx: &mut Cx<'_, F>, data: &[u8]) {
        cx.transport.write(&std::hint::black_box(data.to_vec()));
    }
}

/// Whether nothing was allocated, but for what a loop that is stalled at an unlucky moment needs once: a second batch for some connection.
fn assert_steady((counted, counter): ([u64; 2], &Counter)) {
    let once = counted.contains(&0) && counted.iter().sum::<u64>() <= CONNECTIONS as u64;
    assert!(once, "{counted:?}; the first was made at\n{}", counter.first());
}

/// What the reactor's thread allocates over 20,000 and over another 40,000 echoed messages.
fn steady_state<C: Client>(
    backend: Backend,
    listen: impl FnOnce(&Reactor) -> u16,
    connect: fn(u16) -> C,
) -> ([u64; 2], &'static Counter) {
    let counter: &'static Counter = Box::leak(Box::default());
    let reactor = Reactor::builder().backend(backend).signals(false).build().unwrap();
    let port = listen(&reactor);
    let handle = reactor.handle();
    let running = thread::spawn(move || {
        COUNTER.set(Some(counter));
        let ended = reactor.run();
        COUNTER.set(None);
        ended
    });
    let mut clients: Vec<_> = (0..CONNECTIONS).map(|_| connect(port)).collect();
    warm_up(&handle, &mut clients);
    let counted = [20_000, 40_000].map(|messages| {
        let before = counter.allocations.load(SeqCst);
        counter.looking.store(true, SeqCst);
        exchange(&mut clients, messages / CONNECTIONS);
        counter.looking.store(false, SeqCst);
        counter.allocations.load(SeqCst) - before
    });
    handle.stop().unwrap();
    running.join().unwrap().unwrap();
    (counted, counter)
}

fn listen_tcp<P>(build: fn() -> P) -> impl FnOnce(&Reactor) -> u16
where
    P: Protocol<Serve<fn() -> P>>,
{
    move |reactor| {
        let port = reactor.listen_tcp(("127.0.0.1", 0), Serve(build)).unwrap();
        port.get_host().port().unwrap()
    }
}

fn listen_udp(reactor: &Reactor) -> u16 {
    reactor.listen_udp(("127.0.0.1", 0), Echo).unwrap().get_host().port().unwrap()
}

/// One end of a conversation in messages.
trait Client {
    fn ask(&mut self);

    fn answer(&mut self) -> [u8; MESSAGE.len()];
}

impl Client for TcpStream {
    fn ask(&mut self) {
        self.write_all(MESSAGE).unwrap();
    }

    fn answer(&mut self) -> [u8; MESSAGE.len()] {
        let mut answer = [0; MESSAGE.len()];
        self.read_exact(&mut answer).unwrap();
        answer
    }
}

impl Client for UdpSocket {
    fn ask(&mut self) {
        self.send(MESSAGE).unwrap();
    }

    fn answer(&mut self) -> [u8; MESSAGE.len()] {
        let mut answer = [0; MESSAGE.len()];
        // Unlike `read_exact`, it is not asked again where the kernel has interrupted it.
        let received = loop {
            match self.recv(&mut answer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                received => break received,
            }
        };
        assert_eq!(received.unwrap(), MESSAGE.len());
        answer
    }
}

fn connect_udp(port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Every buffer and list of the reactor grows to what it will ever need: it is held until all
/// clients have written, so that it meets all of their messages in one turn.
fn warm_up(handle: &ReactorHandle, clients: &mut [impl Client]) {
    for _ in 0..8 {
        let (held, written) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
        let (holding, until) = (Arc::clone(&held), Arc::clone(&written));
        handle.call_from_thread(move |_| {
            holding.wait();
            until.wait();
        });
        held.wait();
        ask(clients);
        written.wait();
        answers(clients);
    }
    exchange(clients, 100);
    // The calls above were the reactor's business too; it is through with them after this one.
    let (sender, receiver) = channel();
    handle.call_from_thread(move |_| sender.send(()).unwrap());
    receiver.recv_timeout(LIMIT).unwrap();
    exchange(clients, 1);
}

fn exchange(clients: &mut [impl Client], rounds: usize) {
    for _ in 0..rounds {
        ask(clients);
        answers(clients);
    }
}

fn ask(clients: &mut [impl Client]) {
    clients.iter_mut().for_each(Client::ask);
}

fn answers(clients: &mut [impl Client]) {
    for client in clients {
        assert_eq!(&client.answer(), MESSAGE);
    }
}

/// What one thread has allocated.
#[derive(Default)]
struct Counter {
    allocations: AtomicU64,
    /// Whether the next allocation is to be written down.
    looking: AtomicBool,
    /// Where the first one came from.
    first: Mutex<Option<String>>,
}

impl Counter {
    fn allocated(&'static self) {
        self.allocations.fetch_add(1, SeqCst);
        if self.looking.swap(false, SeqCst) {
            // Writing it down allocates too.
            COUNTER.set(None);
            let first = Backtrace::force_capture().to_string();
            self.first.lock().unwrap().get_or_insert(first);
            COUNTER.set(Some(self));
        }
    }

    fn first(&self) -> String {
        self.first.lock().unwrap().clone().unwrap_or_default()
    }
}

thread_local! {
    /// Who counts the allocations of this thread. Without a destructor, so an allocator may use it.
    static COUNTER: Cell<Option<&'static Counter>> = const { Cell::new(None) };
}

struct CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

impl CountingAllocator {
    fn count() {
        if let Some(counter) = COUNTER.get() {
            counter.allocated();
        }
    }
}

// SAFETY: every call goes to the system's allocator unchanged, so its promises are kept; counting
// touches no memory that is handed out, and allocates only while this thread does not count.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: the caller keeps the contract of `alloc`, which is the same one.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: the caller keeps the contract of `alloc_zeroed`, which is the same one.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::count();
        // SAFETY: the caller keeps the contract of `realloc`, and `pointer` came from `System`.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, and `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}
