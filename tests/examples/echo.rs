use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::{
    on_every_backend,
    running::{LIMIT, Running, connect, expect},
};

on_every_backend!(
    what_is_sent_comes_back,
    a_peer_that_sends_before_it_reads_gets_everything,
    the_client_says_hello_and_leaves,
    sigterm_ends_the_server_under_an_open_connection,
    sigint_ends_the_server,
    the_log_names_the_backend,
);

fn what_is_sent_comes_back(backend: &str) {
    let (server, port) = Running::serve("echo_server", backend);
    let (mut one, mut other) = (connect(port), connect(port));
    for i in 0..100 {
        one.write_all(format!("one {i}").as_bytes()).unwrap();
        other.write_all(format!("other {i}").as_bytes()).unwrap();
        expect(&mut other, format!("other {i}"));
        expect(&mut one, format!("one {i}"));
    }
    server.terminate(port);
}

/// More than all buffers between the two hold and `Limits::output_max` allows: a server that did not
/// stop reading would end the connection.
fn a_peer_that_sends_before_it_reads_gets_everything(backend: &str) {
    let (server, port) = Running::serve("echo_server", backend);
    let mut stream = connect(port);
    // A prime number of bytes, so that a block that is lost or doubled shows.
    let block: Vec<u8> = (0..65_521u32).map(|i| ((i * 7) ^ (i >> 8)) as u8).collect();
    let sent = block.repeat(1000);
    let taken = send_until_stuck(&mut stream, &sent);
    let mut sender = stream.try_clone().unwrap();
    let rest = sent[taken..].to_vec();
    let sending = thread::spawn(move || {
        sender.write_all(&rest).unwrap();
        sender.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::with_capacity(sent.len());
    stream.read_to_end(&mut received).unwrap();
    sending.join().unwrap();
    assert_eq!(received.len(), sent.len());
    assert!(received == sent, "bytes were changed on the way");
    server.terminate(port);
}

/// Sends until the server has taken nothing for a while; how many bytes it took.
fn send_until_stuck(stream: &mut TcpStream, bytes: &[u8]) -> usize {
    stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut taken = 0;
    loop {
        match stream.write(&bytes[taken..]) {
            Ok(n) => taken += n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error} after {taken} bytes"),
        }
        assert!(taken < bytes.len(), "the server does not stop reading");
    }
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    taken
}

fn the_client_says_hello_and_leaves(backend: &str) {
    let (server, port) = Running::serve("echo_server", backend);
    let client = Running::start("echo_client", backend, &[&port.to_string()]).wait();
    client.exited_with(0);
    assert_eq!(
        client.out,
        ["Server said: hello, world!", "connection lost", "Connection lost - goodbye!"],
        "{client:#?}"
    );
    assert_eq!(client.log, [""; 0], "nothing to complain about");
    server.terminate(port);
}

fn sigterm_ends_the_server_under_an_open_connection(backend: &str) {
    let (server, port) = Running::serve("echo_server", backend);
    let mut stream = connect(port);
    stream.write_all(b"are you there?").unwrap();
    expect(&mut stream, "are you there?");
    server.terminate(port);
    // FIN or RST, but nothing that was not asked for.
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
}

fn sigint_ends_the_server(backend: &str) {
    let (mut server, port) = Running::serve("echo_server", backend);
    server.wait_for_log("Starting factory EchoFactory");
    server.signal(Signal::SIGINT);
    let ended = server.wait();
    ended.logged("Received SIGINT, shutting down.");
    ended.logged(&format!("(TCP Port {port} Closed)"));
    ended.logged("Stopping factory EchoFactory");
    ended.exited_with(0);
}

fn the_log_names_the_backend(backend: &str) {
    let (mut server, port) = Running::serve("echo_server", backend);
    let line = server.wait_for_log("reactor 0: ");
    assert!(line.contains(&format!("reactor 0: {backend}")), "{line}");
    assert!(line.contains(&format!("RINGSPUN_BACKEND={backend}")), "{line}");
    server.terminate(port);
}
