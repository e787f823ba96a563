use std::{
    io::Write,
    net::{Ipv4Addr, TcpListener},
};

use crate::{on_every_backend, running::Running};

on_every_backend!(
    a_poem_is_printed_when_it_has_ended,
    a_poem_that_is_cut_off_has_no_end,
    nobody_who_serves_a_poem,
    dots_are_printed_while_a_thread_sleeps,
);

const POEM: &str = "so much depends\nupon how the bytes come in";

fn a_poem_is_printed_when_it_has_ended(backend: &str) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let client = Running::start("poetry_client", backend, &[&port.to_string()]);
    let (mut poet, _) = listener.accept().unwrap();
    for piece in POEM.as_bytes().chunks(7) {
        poet.write_all(piece).unwrap();
    }
    drop(poet);
    let ended = client.wait();
    ended.exited_with(0);
    let (told, poem): (Vec<_>, Vec<_>) = ended.out.iter().partition(|line| line.starts_with("got "));
    assert!(told[0].contains(&format!("bytes of poetry from 127.0.0.1:{port}")), "{told:?}");
    assert!(poem.iter().map(|line| line.as_str()).eq(POEM.lines()), "{poem:?}");
}

fn a_poem_that_is_cut_off_has_no_end(backend: &str) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut client = Running::start("poetry_client", backend, &[&port.to_string()]);
    let (mut poet, _) = listener.accept().unwrap();
    poet.write_all(b"so much").unwrap();
    client.wait_for_out("got 7 bytes");
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    nix::sys::socket::setsockopt(&poet, nix::sys::socket::sockopt::Linger, &linger).unwrap();
    drop(poet);
    let ended = client.wait();
    ended.exited_with(0);
    assert!(ended.out.iter().any(|line| line.starts_with("the poem has no end: ")), "{ended:?}");
}

fn nobody_who_serves_a_poem(backend: &str) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let ended = Running::start("poetry_client", backend, &[&port.to_string()]).wait();
    ended.exited_with(0);
    assert!(ended.out[0].starts_with("failed to connect to localhost:"), "{ended:?}");
}

fn dots_are_printed_while_a_thread_sleeps(backend: &str) {
    let ended = Running::start("dots", backend, &[]).wait();
    ended.exited_with(0);
    assert!(ended.out[0].len() >= 3 && ended.out[0].bytes().all(|byte| byte == b'.'), "{ended:?}");
    assert_eq!(ended.out[1], "slept for 1 s");
}
