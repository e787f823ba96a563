use std::{
    io::{Read, Write},
    net::TcpStream,
};

use num_bigint::BigUint;

use crate::{
    on_every_backend,
    running::{Running, connect, expect},
};

on_every_backend!(
    the_sequence_starts_with_2_and_outgrows_64_bits,
    clients_share_one_sequence,
    a_client_that_comes_later_goes_on,
);

fn ask(stream: &mut TcpStream) {
    stream.write_all(b"?").unwrap();
}

/// The numbers as they are to come, without end.
fn expected() -> impl Iterator<Item = String> {
    let mut pair = (BigUint::from(1u32), BigUint::from(1u32));
    std::iter::from_fn(move || {
        let next = &pair.0 + &pair.1;
        pair = (std::mem::take(&mut pair.1), next.clone());
        Some(next.to_string())
    })
}

fn the_sequence_starts_with_2_and_outgrows_64_bits(backend: &str) {
    let (server, port) = Running::serve("fibonacci_server", backend);
    let mut stream = connect(port);
    for (i, number) in expected().take(400).enumerate() {
        ask(&mut stream);
        expect(&mut stream, &number);
        match i + 1 {
            1 => assert_eq!(number, "2"),
            98 => assert_eq!(number, "354224848179261915075"),
            _ => {}
        }
    }
    server.terminate(port);
}

fn clients_share_one_sequence(backend: &str) {
    let (server, port) = Running::serve("fibonacci_server", backend);
    let mut clients = [connect(port), connect(port), connect(port)];
    for (i, number) in expected().take(99).enumerate() {
        let client = &mut clients[i % 3];
        ask(client);
        expect(client, &number);
    }
    server.terminate(port);
}

fn a_client_that_comes_later_goes_on(backend: &str) {
    let (server, port) = Running::serve("fibonacci_server", backend);
    for number in expected().take(20) {
        let mut client = connect(port);
        ask(&mut client);
        expect(&mut client, &number);
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "one answer a received chunk, not more");
    }
    server.terminate(port);
}
