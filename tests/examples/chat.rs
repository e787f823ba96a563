use std::{
    io::{Read, Write},
    net::TcpStream,
};

use crate::{
    on_every_backend,
    running::{Running, connect, expect},
};

on_every_backend!(
    lines_go_to_all_others,
    a_line_may_come_in_pieces_and_pieces_may_hold_several_lines,
    names_are_unique_and_free_again_after_their_bearer_has_left,
    a_line_without_end_ends_its_connection_only,
);

const QUESTION: &str = "What is your name?\r\n";

fn join(port: u16, name: &str, others: &str) -> TcpStream {
    let mut client = connect(port);
    expect(&mut client, QUESTION);
    say(&mut client, name);
    expect(&mut client, format!("Welcome, {name}! Here: {others}.\r\n"));
    client
}

fn say(client: &mut TcpStream, line: &str) {
    client.write_all(format!("{line}\r\n").as_bytes()).unwrap();
}

fn lines_go_to_all_others(backend: &str) {
    let (server, port) = Running::serve("chat_server", backend);
    let mut ann = join(port, "Ann", "Nobody else is");
    let mut bob = join(port, "Bob", "Ann");
    expect(&mut ann, "Bob has joined.\r\n");
    let mut eve = join(port, "Eve", "Ann, Bob");
    expect(&mut ann, "Eve has joined.\r\n");
    expect(&mut bob, "Eve has joined.\r\n");
    say(&mut ann, "Hello, all!");
    expect(&mut bob, "<Ann> Hello, all!\r\n");
    expect(&mut eve, "<Ann> Hello, all!\r\n");
    say(&mut bob, "Hello, Ann!\x1b[2J");
    // Ann's own line has not come back to her, and the escape does not reach a terminal.
    expect(&mut ann, "<Bob> Hello, Ann![2J\r\n");
    expect(&mut eve, "<Bob> Hello, Ann![2J\r\n");
    drop(bob);
    expect(&mut ann, "Bob has left.\r\n");
    expect(&mut eve, "Bob has left.\r\n");
    server.terminate(port);
}

fn a_line_may_come_in_pieces_and_pieces_may_hold_several_lines(backend: &str) {
    let (server, port) = Running::serve("chat_server", backend);
    let mut ann = join(port, "Ann", "Nobody else is");
    let mut bob = join(port, "Bob", "Ann");
    expect(&mut ann, "Bob has joined.\r\n");
    for piece in ["one\r\nt", "w", "o\nthr", "ee\r", "\n"] {
        bob.write_all(piece.as_bytes()).unwrap();
    }
    expect(&mut ann, "<Bob> one\r\n<Bob> two\r\n<Bob> three\r\n");
    server.terminate(port);
}

fn names_are_unique_and_free_again_after_their_bearer_has_left(backend: &str) {
    let (server, port) = Running::serve("chat_server", backend);
    let ann = join(port, "Ann", "Nobody else is");
    let mut second = connect(port);
    expect(&mut second, QUESTION);
    say(&mut second, "Ann");
    expect(&mut second, format!("That name is taken. {QUESTION}"));
    say(&mut second, "");
    expect(&mut second, format!("A name has 1 to 32 characters. {QUESTION}"));
    say(&mut second, "Bob");
    expect(&mut second, "Welcome, Bob! Here: Ann.\r\n");
    drop(ann);
    expect(&mut second, "Ann has left.\r\n");
    join(port, "Ann", "Bob");
    server.terminate(port);
}

fn a_line_without_end_ends_its_connection_only(backend: &str) {
    let (mut server, port) = Running::serve("chat_server", backend);
    let mut ann = join(port, "Ann", "Nobody else is");
    let mut bob = join(port, "Bob", "Ann");
    expect(&mut ann, "Bob has joined.\r\n");
    // It may be closed before all is sent.
    let _ = bob.write_all(&vec![b'x'; 20_000]);
    expect(&mut ann, "Bob has left.\r\n");
    assert!(bob.read(&mut [0; 64]).map_or(true, |n| n == 0), "Bob is still served");
    server.wait_for_log("a line is longer than 16384 bytes");
    join(port, "Eve", "Ann");
    server.terminate(port);
}
