use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    thread::available_parallelism,
};

use crate::{
    on_every_backend,
    running::{Running, connect, expect},
};

on_every_backend!(every_core_has_a_reactor_and_takes_its_share);

/// So many that the chance of a reactor which is left out is that of 128 tosses all being heads,
/// where there are two cores.
const CONNECTIONS_A_CORE: usize = 64;

fn every_core_has_a_reactor_and_takes_its_share(backend: &str) {
    let cores = available_parallelism().unwrap().get();
    let (mut server, port) = Running::serve("all_cores_server", backend);
    for _ in 0..cores {
        server.wait_for_log("Starting factory CoreFactory");
    }
    let threads = server.thread_names();
    for core in 0..cores {
        assert!(threads.contains(&format!("reactor {core}")), "{threads:?}");
    }
    let mut clients: Vec<_> = (0..CONNECTIONS_A_CORE * cores).map(|_| connect(port)).collect();
    let mut shares = BTreeMap::<String, usize>::new();
    for client in &mut clients {
        *shares.entry(greeting(client)).or_default() += 1;
        client.write_all(b"hello").unwrap();
        expect(client, "hello");
    }
    let expected: Vec<_> = (0..cores).map(|core| format!("reactor {core} of {cores}\r\n")).collect();
    assert!(shares.keys().eq(&expected), "{shares:?}");
    server.terminate(port);
}

/// Nothing follows the greeting until the client speaks, so a buffer takes no more than it.
fn greeting(client: &mut TcpStream) -> String {
    let mut line = String::new();
    BufReader::new(client).read_line(&mut line).unwrap();
    line
}
