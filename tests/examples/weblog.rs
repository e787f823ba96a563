use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use crate::{
    on_every_backend,
    running::{Running, connect, expect},
};

on_every_backend!(
    pulled_each_hit_goes_to_whoever_asks_first,
    pushed_each_hit_goes_once_to_each_client_that_is_there,
    the_blocking_client_prints_what_it_is_told,
);

/// A folder with a log of its own, gone with the test.
struct Log(PathBuf);

impl Log {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("ringspun-weblog-{}-{}", std::process::id(), NEXT.fetch_add(1, SeqCst));
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        let log = Self(folder);
        File::create(log.0.join("access-log")).unwrap();
        log.append(&line(999_999));
        log
    }

    fn append(&self, text: &str) {
        let mut file = OpenOptions::new().append(true).open(self.0.join("access-log")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn serve(&self, name: &str, backend: &str) -> (Running, u16) {
        Running::serve_in(name, backend, &self.0, &[("WEBLOG_SECONDS", "0.02")])
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn line(number: usize) -> String {
    format!("10.0.0.1 - - [13/Oct/2026:13:55:36 +0000] \"GET /{number}?a<b HTTP/1.1\" 200 {number}\n")
}

fn tag(number: usize) -> String {
    format!(
        "<hit><host>10.0.0.1</host><user>-</user><time>13/Oct/2026:13:55:36 +0000</time>\
         <request>GET /{number}?a&lt;b HTTP/1.1</request><status>200</status><bytes>{number}</bytes></hit>"
    )
}

fn tags(numbers: impl Iterator<Item = usize>) -> String {
    numbers.map(tag).collect()
}

fn pulled_each_hit_goes_to_whoever_asks_first(backend: &str) {
    let log = Log::new();
    let (server, port) = log.serve("weblog_pull", backend);
    let (mut first, mut second) = (connect(port), connect(port));
    for client in [&mut first, &mut second] {
        expect(client, "<hits>");
        client.write_all(b"NEW?").unwrap();
        expect(client, "<none/>");
    }
    let third = line(3);
    let (begun, rest) = third.split_at(20);
    log.append(&(line(1) + "no log line at all\n" + &line(2) + begun));
    first.write_all(b"NEW?").unwrap();
    expect(&mut first, tags(1..3));
    second.write_all(b"NEW?").unwrap();
    expect(&mut second, "<none/>");
    log.append(rest);
    second.write_all(b"NEW?").unwrap();
    expect(&mut second, tag(3));
    server.terminate(port);
}

fn pushed_each_hit_goes_once_to_each_client_that_is_there(backend: &str) {
    const HITS: usize = 1000;
    let log = Log::new();
    let (server, port) = log.serve("weblog_push", backend);
    let (mut steady, mut fickle) = (made(port), made(port));
    // One does not read until all is over; the other leaves in the middle and comes again.
    for number in 0..HITS / 2 {
        log.append(&line(number));
    }
    expect(&mut fickle, tags(0..HITS / 2));
    fickle.shutdown(Shutdown::Both).unwrap();
    // While it is away.
    log.append(&line(500_000));
    let mut again = made(port);
    for number in HITS / 2..HITS {
        log.append(&line(number));
    }
    expect(&mut again, tags(HITS / 2..HITS));
    expect(&mut steady, tags(0..HITS / 2) + &tag(500_000) + &tags(HITS / 2..HITS));
    // Nothing comes twice.
    log.append(&line(HITS));
    for client in [&mut steady, &mut again] {
        expect(client, tag(HITS));
    }
    server.terminate(port);
}

/// A client that has been greeted, and so is there.
fn made(port: u16) -> TcpStream {
    let mut client = connect(port);
    expect(&mut client, "<hits>");
    client
}

fn the_blocking_client_prints_what_it_is_told(backend: &str) {
    let log = Log::new();
    let (server, port) = log.serve("weblog_pull", backend);
    let mut client = Running::start_in(
        "weblog_client",
        backend,
        &[&port.to_string()],
        &log.0,
        &[("WEBLOG_SECONDS", "0.02")],
    );
    client.wait_for_out("<none/>");
    log.append(&line(7));
    client.wait_for_out(&tag(7));
    drop(client);
    server.terminate(port);
}

/// Its threads backend is not for the environment to choose.
#[test]
fn with_a_thread_a_client_each_follows_the_log_for_itself() {
    let log = Log::new();
    let (server, port) = log.serve("weblog_threads", "auto");
    let (mut first, mut second) = (made(port), made(port));
    log.append(&(line(1) + &line(2)));
    expect(&mut first, tags(1..3));
    expect(&mut second, tags(1..3));
    first.shutdown(Shutdown::Write).unwrap();
    assert_eq!(first.read(&mut [0; 10]).unwrap(), 0);
    log.append(&line(3));
    expect(&mut second, tag(3));
    server.terminate(port);
}
