//! What connections are for, and how the client works: each by both of its wires, against servers that do it right
//! and servers that do not.

use std::{
    collections::HashSet,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use serde_json::Value;

use crate::common::{Run, SIZE, answering, assert_valid, loadgen, run, server};

pub(crate) const CLIENTS: [&str; 2] = ["io_uring", "epoll"];
/// The size of a message that is nothing but a header, as a greeting.
const HEADER_BYTES: u64 = 24;
pub(crate) const SERVERS: [&str; 6] =
    ["io_uring", "epoll", "threads", "raw-uring", "raw-epoll", "raw-threads"];

/// Runs for a short while by this client; what comes later in a line wins, except that -c makes a list.
pub(crate) fn briefly(client: &str, test: &str, line: &[&str]) -> Run {
    let usual = ["-d", "250ms", "--warmup", "50ms", "--timeout", "10s", "--client", client];
    let connections: &[&str] = if line.contains(&"-c") { &[] } else { &["-c", "4"] };
    run(&format!("{test}-{client}"), &[&["run"], connections, &usual[..], line].concat())
}

fn against(client: &str, test: &str, address: SocketAddr, line: &[&str]) -> Run {
    briefly(client, test, &[&[format!("tcp://{address}").as_str()], line].concat())
}

/// The cell that counts: the last, if one was repeated.
#[track_caller]
pub(crate) fn cell(run: &Run) -> &Value {
    run.document()["cells"].as_array().and_then(|cells| cells.last()).expect("a cell")
}

/// Of all cells, should one have been repeated: a server counts them all.
#[track_caller]
pub(crate) fn count(run: &Run, name: &str) -> u64 {
    let cells = run.document()["cells"].as_array().expect("cells").iter();
    cells.map(|cell| cell["counts"][name].as_u64().unwrap_or_else(|| panic!("no {name}: {run:#?}"))).sum()
}

/// Whether a run ended well, with something counted and both accounts, where there are two, in agreement.
#[track_caller]
pub(crate) fn assert_right(run: &Run) {
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert_valid(run.document());
    assert_eq!(run.document()["complete"], true);
    let verified = run.document()["summary"]["verified"].as_str().expect("a sentence");
    assert!(verified.contains("none wrong or missing"), "{verified}");
    assert!(count(run, "requests") > 0, "{run:#?}");
    assert_eq!(cell(run)["errors"].as_array().map(Vec::len), Some(0));
    for check in cell(run)["checks"].as_array().expect("checks") {
        let weighty = check["spoils"] == true && check["name"] != "stolen_time";
        assert!(!weighty || check["passed"] == true, "{check:#}");
    }
}

/// Whether a server child gave its account, and it was that of the client.
#[track_caller]
pub(crate) fn assert_agreed(run: &Run) {
    assert_right(run);
    let checks = cell(run)["checks"].as_array().expect("checks");
    for name in ["server_accepted_all", "server_received_all"] {
        assert!(checks.iter().any(|check| check["name"] == name && check["passed"] == true), "{run:#?}");
    }
}

/// A message's length, by its header.
fn length(header: &[u8]) -> usize {
    u32::from_le_bytes(header[16..20].try_into().expect("four bytes")) as usize
}

/// The next message of any size; None at the end.
fn message(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut message = vec![0; 24];
    stream.read_exact(&mut message).ok()?;
    message.resize(length(&message), 0);
    stream.read_exact(&mut message[24..]).ok()?;
    Some(message)
}

/// Whether as many bytes were sent as the replies say, and what is pushed greets first, as often as it needs to.
#[track_caller]
fn assert_all_was_sent(run: &Run, pushed: bool) {
    let audience = if pushed { 4 } else { 1 };
    let (replies, sent) = (count(run, "requests_all_phases"), count(run, "bytes_sent_all_phases"));
    assert_eq!(replies % audience, 0, "{run:#?}");
    let greetings = sent.checked_sub(replies / audience * SIZE as u64);
    assert!(greetings.is_some_and(|bytes| bytes % HEADER_BYTES == 0), "{run:#?}");
    assert_eq!(greetings > Some(0), pushed, "{run:#?}");
}

fn in_every_mode(client: &str) {
    let manners: [(&str, &[&str]); 13] = [
        ("rr", &[]),
        ("pipeline", &["-p", "8"]),
        ("burst", &["--burst", "1"]),
        ("mix", &["-p", "3", "-s", "64:9+40KiB:1+24:5"]),
        ("stream", &["--mode", "stream"]),
        ("stream-large", &["--mode", "stream", "-s", "256KiB"]),
        ("push", &["--mode", "push"]),
        ("push-deep", &["--mode", "push", "-p", "16", "-s", "64:1+2KiB:1"]),
        ("push-paced", &["--mode", "push", "-R", "300"]),
        ("push-think", &["--mode", "push", "--think", "2ms"]),
        ("paced", &["-R", "500"]),
        ("think", &["--think", "5ms"]),
        ("ramp", &["--ramp", "50ms"]),
    ];
    for backend in ["io_uring", "epoll", "threads"] {
        for (name, line) in manners {
            let test = format!("mode-{name}-{backend}");
            let run = briefly(client, &test, &[&["--backend", backend], line].concat());
            assert_agreed(&run);
            let counts = &cell(&run)["counts"];
            assert_eq!((&counts["connections_made"], &counts["connections_alive"]), (&4.into(), &4.into()));
            if !line.contains(&"-s") {
                assert_all_was_sent(&run, name.starts_with("push"));
            }
        }
    }
}

#[test]
fn every_mode_is_right_by_io_uring() {
    in_every_mode("io_uring");
}

#[test]
fn every_mode_is_right_by_epoll() {
    in_every_mode("epoll");
}

fn in_every_end(client: &str) {
    for backend in SERVERS {
        for close in ["fin", "rst", "server"] {
            for (name, line) in [("closed", &[][..]), ("open", &["-R", "300"])] {
                let test = format!("churn-{close}-{backend}-{name}");
                let line = [&["--backend", backend, "--mode", "churn", "--close", close], line].concat();
                let run = briefly(client, &test, &line);
                assert_agreed(&run);
                let made = count(&run, "connections_made");
                assert_eq!(count(&run, "requests_all_phases"), made, "each asks once: {run:#?}");
                assert_eq!(count(&run, "bytes_sent_all_phases"), made * SIZE as u64);
                assert!(made > 4, "others have taken their places: {run:#?}");
            }
        }
    }
}

#[test]
fn churn_is_counted_alike_by_both_sides_by_io_uring() {
    in_every_end("io_uring");
}

#[test]
fn churn_is_counted_alike_by_both_sides_by_epoll() {
    in_every_end("epoll");
}

#[test]
fn as_many_requests_are_under_way_as_was_said() {
    const DEPTH: usize = 7;
    for client in CLIENTS {
        let most = Arc::new(AtomicUsize::new(0));
        let seen = most.clone();
        let address = server(move |mut stream, _| {
            // The first ones are answered only all together; a client that keeps fewer under way waits for ever.
            for _ in 0..3 {
                let mut requests = [0; DEPTH * SIZE];
                if stream.read_exact(&mut requests).is_err() {
                    return;
                }
                stream.set_nonblocking(true).expect("a socket");
                let surplus = stream.peek(&mut [0]).is_ok();
                stream.set_nonblocking(false).expect("a socket");
                seen.fetch_max(DEPTH + usize::from(surplus), SeqCst);
                if stream.write_all(&requests).is_err() {
                    return;
                }
            }
            while let Some(request) = message(&mut stream) {
                if stream.write_all(&request).is_err() {
                    return;
                }
            }
        });
        assert_right(&against(client, "depth", address, &["-p", "7"]));
        assert_eq!(most.load(SeqCst), DEPTH);
    }
}

#[test]
fn replies_of_a_pipeline_may_come_in_single_bytes() {
    for client in CLIENTS {
        let address = server(|mut stream, _| {
            stream.set_nodelay(true).expect("a TCP socket");
            while let Some(request) = message(&mut stream) {
                for byte in request {
                    if stream.write_all(&[byte]).is_err() {
                        return;
                    }
                }
            }
        });
        assert_right(&against(client, "pipeline-bytes", address, &["-p", "4", "-s", "24:1+64:1+100:1"]));
    }
}

/// An echo that does something else with one message, and says what goes out before it takes the next.
fn twisting(
    twisted: u64,
    twist: impl Fn(Vec<u8>, &mut TcpStream) -> Vec<u8> + Send + Sync + 'static,
) -> SocketAddr {
    server(move |mut stream, _| {
        while let Some(request) = message(&mut stream) {
            let sequence = u64::from_le_bytes(request[8..16].try_into().expect("eight bytes"));
            let reply = if sequence == twisted { twist(request, &mut stream) } else { request };
            if stream.write_all(&reply).is_err() {
                return;
            }
        }
    })
}

#[test]
fn a_reply_that_changes_places_with_the_next_is_found() {
    for client in CLIENTS {
        let address = twisting(4, |request, stream| {
            let next = message(stream).unwrap_or_default();
            [next, request].concat()
        });
        let run = against(client, "places", address, &["-p", "4"]);
        run.assert_failed(5, &["sequence 4: got the reply of sequence 5 instead", "in the order"]);
        assert!(run.failures("out_of_order_reply") > 0);
    }
}

#[test]
fn a_reply_that_is_lost_within_a_pipeline_is_found() {
    for client in CLIENTS {
        let address = twisting(5, |_, _| Vec::new());
        let run = against(client, "lost-within", address, &["-p", "4"]);
        run.assert_failed(5, &["sequence 5: got the reply of sequence 6 instead", "leave none out"]);
    }
}

#[test]
fn a_reply_that_comes_twice_within_a_pipeline_is_found() {
    for client in CLIENTS {
        let address = twisting(6, |request, _| [request.clone(), request].concat());
        let run = against(client, "twice-within", address, &["-p", "4"]);
        run.assert_failed(5, &["sequence 7: got the reply of sequence 6 once more"]);
        assert!(run.failures("repeated_reply") > 0);
    }
}

#[test]
fn sizes_come_in_the_shares_of_their_weights() {
    for client in CLIENTS {
        let lengths = Arc::new(Mutex::new(Vec::new()));
        let seen = lengths.clone();
        let address = server(move |mut stream, _| {
            while let Some(request) = message(&mut stream) {
                seen.lock().expect("no panic").push(request.len());
                if stream.write_all(&request).is_err() {
                    return;
                }
            }
        });
        let run = against(client, "shares", address, &["-s", "64:9+4KiB:1", "-p", "2"]);
        assert_right(&run);
        let lengths = lengths.lock().expect("no panic");
        let large = lengths.iter().filter(|length| **length == 4096).count();
        assert_eq!(lengths.iter().filter(|length| **length == 64).count() + large, lengths.len());
        let total = lengths.len() as f64;
        // Five standard deviations.
        let (share, chance) = (large as f64 / total, 5.0 * (0.09 / total).sqrt());
        assert!((share - 0.1).abs() <= chance, "{large} of {total}");
        assert_eq!(count(&run, "bytes_sent_all_phases"), lengths.iter().sum::<usize>() as u64);
    }
}

#[test]
fn a_server_that_is_to_close_and_does_not_is_named() {
    for client in CLIENTS {
        let address = answering(|request, _| Some(request.to_vec()));
        let line = ["--mode", "churn", "--close", "server", "--timeout", "400ms"];
        let run = against(client, "not-closing", address, &line);
        run.assert_failed(5, &["the server did not close it within 400ms"]);
        assert!(run.failures("not_closed") > 0);
    }
}

#[test]
fn a_server_that_closes_instead_of_answering_is_named() {
    for client in CLIENTS {
        let address = answering(|request, _| (request[8] != 3).then(|| request.to_vec()));
        let run = against(client, "closing-early", address, &["--mode", "churn", "-c", "1"]);
        run.assert_failed(5, &["sequence 3: the server closed the connection early", "0 of 64 bytes"]);
        assert!(run.failures("closed_early") > 0);
    }
}

#[test]
fn connections_that_come_and_go_come_from_many_addresses() {
    for client in CLIENTS {
        let sources = Arc::new(Mutex::new(HashSet::new()));
        let seen: Arc<Mutex<HashSet<IpAddr>>> = sources.clone();
        let address = server(move |mut stream, _| {
            seen.lock().expect("no panic").insert(stream.peer_addr().expect("connected").ip());
            while let Some(request) = message(&mut stream) {
                if stream.write_all(&request).is_err() {
                    return;
                }
            }
        });
        let run = against(client, "sources", address, &["--mode", "churn"]);
        assert_right(&run);
        let made = count(&run, "connections_made") as usize;
        let sources = sources.lock().expect("no panic").len();
        assert!(sources >= made.min(100), "{made} connections from {sources} addresses");
    }
}

/// As many as one address has ports for, each of which the close makes unusable for a minute.
#[test]
fn more_connections_than_an_address_has_ports_may_come_and_go() {
    let line = ["--backend", "raw-epoll", "--mode", "churn", "-c", "64", "-d", "6s"];
    let run = briefly("io_uring", "many-ports", &line);
    assert_agreed(&run);
    let made = count(&run, "connections_made");
    if made <= 28_232 {
        eprintln!("skipped: this machine makes only {made} connections meanwhile");
    }
}

/// A push server for so many connections, of which the first to come talks. What it does with a message is up to
/// `send`: sequence, receiver, message, and where it goes.
fn hub(
    members: usize,
    send: impl Fn(u64, usize, &[u8], &mut TcpStream) -> std::io::Result<()> + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        // Once more for a cell that is repeated.
        loop {
            let mut streams: Vec<TcpStream> =
                listener.incoming().take(members).map(|stream| stream.expect("it connects")).collect();
            push(&mut streams, &send);
        }
    });
    address
}

/// Until one of them is gone.
fn push(streams: &mut [TcpStream], send: &impl Fn(u64, usize, &[u8], &mut TcpStream) -> std::io::Result<()>) {
    for sequence in 0.. {
        let Some(pushed) = message(&mut streams[0]) else { return };
        for (receiver, stream) in streams.iter_mut().enumerate() {
            if send(sequence, receiver, &pushed, stream).is_err() {
                return;
            }
        }
    }
}

#[test]
fn what_is_pushed_comes_to_all() {
    for client in CLIENTS {
        for depth in ["1", "8"] {
            let address = hub(4, |_, _, message, stream| stream.write_all(message));
            let run = against(client, &format!("hub-{depth}"), address, &["--mode", "push", "-p", depth]);
            assert_right(&run);
            let messages = count(&run, "bytes_sent_all_phases") / SIZE as u64;
            assert_eq!(count(&run, "requests_all_phases"), 4 * messages);
        }
    }
}

#[test]
fn a_receiver_that_is_left_out_is_named() {
    for client in CLIENTS {
        for (depth, told) in
            [("1", "no reply within 800ms (0 of 64 bytes"), ("4", "got the reply of sequence 6")]
        {
            let address = hub(4, |sequence, receiver, message, stream| match (sequence, receiver) {
                (5, 2) => Ok(()),
                _ => stream.write_all(message),
            });
            let line = ["--mode", "push", "-p", depth, "--timeout", "800ms"];
            let run = against(client, &format!("left-out-{depth}"), address, &line);
            run.assert_failed(5, &["connection 2, sequence 5", told]);
        }
    }
}

#[test]
fn a_receiver_that_hears_twice_is_named() {
    for client in CLIENTS {
        for depth in ["1", "4"] {
            let address = hub(4, |sequence, receiver, message, stream| {
                let times = if (sequence, receiver) == (5, 3) { 2 } else { 1 };
                stream.write_all(&message.repeat(times))
            });
            let line = ["--mode", "push", "-p", depth];
            let run = against(client, &format!("heard-twice-{depth}"), address, &line);
            run.assert_failed(5, &["connection 3, sequence 6", "got the reply of sequence 5 once more"]);
        }
    }
}

#[test]
fn a_receiver_that_hears_in_another_order_is_named() {
    for client in CLIENTS {
        let held = Mutex::new(Vec::new());
        let address = hub(4, move |sequence, receiver, message, stream| {
            let mut held = held.lock().expect("no panic");
            match (sequence, receiver) {
                (5, 1) => held.extend_from_slice(message),
                (6, 1) => stream.write_all(&[message, &held].concat())?,
                _ => stream.write_all(message)?,
            }
            Ok(())
        });
        let run = against(client, "other-order", address, &["--mode", "push", "-p", "4"]);
        run.assert_failed(5, &["connection 1, sequence 5", "got the reply of sequence 6 instead"]);
    }
}

/// What an HTTP server does after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    GoOn,
    /// Says FIN, then reads whatever comes.
    Part,
    /// Waits for more and closes with that unread, so by RST.
    Reset,
}

const PAGE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
const LAST_PAGE: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello";

/// Takes one request and not a byte more.
fn request(stream: &mut TcpStream) -> Option<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        request.extend(byte);
    }
    request.starts_with(b"GET /page HTTP/1.1\r\n").then_some(())
}

/// An HTTP server that says this to the requests of each connection, counted from 0.
fn http(answer: impl Fn(usize) -> (Vec<u8>, Then) + Send + Sync + 'static) -> SocketAddr {
    server(move |mut stream, _| {
        stream.set_nodelay(true).expect("a TCP socket");
        for number in 0.. {
            if request(&mut stream).is_none() {
                return;
            }
            let (response, then) = answer(number);
            if stream.write_all(&response).is_err() {
                return;
            }
            match then {
                Then::GoOn => {}
                Then::Part => {
                    let _ = stream.shutdown(std::net::Shutdown::Write);
                    let _ = stream.read_to_end(&mut Vec::new());
                    return;
                }
                Then::Reset => {
                    // Unread requests make it an RST; but the client may have none under way.
                    stream
                        .set_read_timeout(Some(std::time::Duration::from_millis(20)))
                        .expect("longer than 0");
                    let _ = stream.peek(&mut [0]);
                    return;
                }
            }
        }
    })
}

fn get(client: &str, test: &str, address: SocketAddr, line: &[&str]) -> Run {
    briefly(client, test, &[&[format!("http://{address}/page").as_str()], line].concat())
}

#[test]
fn connections_are_kept_for_further_responses() {
    for client in CLIENTS {
        for depth in ["1", "4"] {
            let run =
                get(client, &format!("kept-{depth}"), http(|_| (PAGE.to_vec(), Then::GoOn)), &["-p", depth]);
            assert_right(&run);
            let counts = &cell(&run)["counts"];
            assert_eq!((&counts["connections_made"], &counts["connections_alive"]), (&4.into(), &4.into()));
        }
    }
}

#[test]
fn a_connection_that_the_server_ends_is_made_anew() {
    for client in CLIENTS {
        for (then, depth) in [(Then::Part, "1"), (Then::Part, "4"), (Then::Reset, "4")] {
            for pace in [&[][..], &["-R", "500"], &["--think", "1ms"]] {
                if depth != "1" && !pace.is_empty() {
                    continue;
                }
                let answered = Arc::new(AtomicU64::new(0));
                let counted = answered.clone();
                let address = http(move |number| {
                    counted.fetch_add(1, SeqCst);
                    if number % 10 == 9 { (LAST_PAGE.to_vec(), then) } else { (PAGE.to_vec(), Then::GoOn) }
                });
                let test = format!("anew-{then:?}-{depth}-{}", pace.first().unwrap_or(&""));
                let run = get(client, &test, address, &[&["-p", depth], pace].concat());
                assert_right(&run);
                let (all, made) = (count(&run, "requests_all_phases"), count(&run, "connections_made"));
                assert_eq!(all, answered.load(SeqCst), "every response counts once: {run:#?}");
                assert!(made > 4 && all <= 10 * made, "{made} connections for {all}");
            }
        }
    }
}

#[test]
fn a_page_that_is_not_there_is_named() {
    for client in CLIENTS {
        let address = http(|number| match number {
            3 => (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(), Then::GoOn),
            _ => (PAGE.to_vec(), Then::GoOn),
        });
        get(client, "not-there", address, &["-c", "1"]).assert_failed(5, &["sequence 3", "404"]);
    }
}

#[test]
fn a_page_that_differs_is_named() {
    for client in CLIENTS {
        let address =
            http(|number| (if number == 3 { PAGE.to_ascii_uppercase() } else { PAGE.to_vec() }, Then::GoOn));
        get(client, "differs", address, &["-c", "1", "-p", "2"]).assert_failed(5, &["sequence 3"]);
    }
}

#[test]
fn a_page_may_come_in_chunks() {
    for client in CLIENTS {
        let chunked =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n";
        let address = http(move |number| (if number % 2 == 0 { PAGE } else { chunked }.to_vec(), Then::GoOn));
        assert_right(&get(client, "chunks", address, &["-p", "3"]));
    }
}

#[test]
fn a_page_that_breaks_off_is_named() {
    for client in CLIENTS {
        let address = http(|number| match number {
            3 => (PAGE[..PAGE.len() - 2].to_vec(), Then::Part),
            _ => (PAGE.to_vec(), Then::GoOn),
        });
        let run = get(client, "breaks-off", address, &["-c", "1"]);
        run.assert_failed(5, &["sequence 3", "closed the connection early", "the response was not whole"]);
    }
}

#[test]
fn more_than_was_asked_for_is_found_also_behind_the_last_response() {
    for client in CLIENTS {
        let address = http(|_| ([LAST_PAGE, PAGE].concat(), Then::Part));
        get(client, "behind-last", address, &[]).assert_failed(5, &["answer no request"]);
    }
}

/// What the client still sends then is never over by itself.
#[test]
fn a_server_that_ends_but_neither_reads_nor_closes_is_named() {
    for client in CLIENTS {
        let address = server(|mut stream, _| {
            let mut first = [0; 4096];
            let _ = stream.read_exact(&mut first);
            let _ = stream.write_all(LAST_PAGE);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            loop {
                thread::park();
            }
        });
        let target = format!("http://{address}/{}", "x".repeat(32 << 10));
        let line = [&target, "-p", "1024", "-c", "1", "-d", "2s", "--timeout", "400ms"];
        let run = briefly(client, "neither", &line);
        run.assert_failed(5, &["the server did not close it within 400ms"]);
    }
}

#[test]
fn each_page_may_have_a_connection_of_its_own() {
    for client in CLIENTS {
        for close in ["fin", "rst", "server"] {
            let last = if close == "server" { (LAST_PAGE, Then::Part) } else { (PAGE, Then::GoOn) };
            let address = http(move |_| (last.0.to_vec(), last.1));
            let line = ["--mode", "churn", "--close", close];
            let run = get(client, &format!("own-{close}"), address, &line);
            assert_right(&run);
            assert_eq!(count(&run, "requests_all_phases"), count(&run, "connections_made"));
        }
    }
}

#[test]
fn nginx_is_measured() {
    let there = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join("nginx").exists()));
    if !there {
        return eprintln!("skipped: there is no nginx here");
    }
    for client in CLIENTS {
        let home = crate::common::folder(&format!("nginx-home-{client}"));
        std::fs::create_dir_all(&home).expect("a folder");
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|what| format!("{what}_temp_path {}/{what};", home.display()))
            .collect();
        let configuration = format!(
            "worker_processes 1; daemon off; pid {0}/pid; error_log {0}/log; events {{}} http {{ access_log off; \
             keepalive_requests 50; {temporary} server {{ listen 127.0.0.1:PORT; location / {{ return 200 hello; }} }} }}",
            home.display()
        );
        std::fs::write(home.join("conf"), configuration).expect("it can be written");
        let shown = home.display();
        let nginx = format!(
            "nginx=sed s/PORT/{{port}}/ {shown}/conf > {shown}/conf.{{port}} && \
             exec nginx -p {shown} -e {shown}/log -c {shown}/conf.{{port}}"
        );
        for (name, line) in [
            ("plain", &[][..]),
            ("deep", &["-p", "4"]),
            ("paced", &["-R", "1k"]),
            ("fin", &["--mode", "churn"]),
            ("server", &["--mode", "churn", "--close", "server"]),
        ] {
            let line = [&["--server", &nginx, "--http", "/page"], line].concat();
            assert_right(&briefly(client, &format!("nginx-{name}"), &line));
        }
    }
}

#[test]
fn contradictions_are_one_line() {
    let lines: [(&[&str], &str); 21] = [
        (&["--backend", "epoll", "--close", "rst"], "add --mode churn"),
        (&["--backend", "epoll", "--mode", "stream", "-R", "1k"], "leave out --rate"),
        (&["--backend", "epoll", "-p", "2", "-R", "1k"], "leave out -p"),
        (&["--backend", "epoll", "--think", "1ms", "-R", "1k"], "leave out one of them"),
        (&["--backend", "epoll", "--think", "1ms", "-p", "2"], "leave out -p"),
        (&["--backend", "epoll", "--think", "1ms", "--mode", "stream"], "leave out -p and --mode stream"),
        (&["--backend", "epoll", "--think", "300000000000y"], "the longest --think is 1h"),
        (&["--backend", "epoll", "--mode", "churn", "-p", "2"], "asks once"),
        (&["--backend", "epoll", "--mode", "churn", "--ramp", "1s"], "leave out --ramp"),
        (&["http://127.0.0.1:9/", "--mode", "push"], "HTTP has no push"),
        (&["http://127.0.0.1:9/", "--http", "/"], "leave out --http"),
        (&["http://127.0.0.1:9/", "-s", "64"], "leave out -s"),
        (&["tcp://127.0.0.1:9", "--http", "page"], "begins with /"),
        (&["--backend", "epoll", "--http", "/"], "does not speak HTTP"),
        (&["--backend", "raw-epoll", "--mode", "push"], "push needs io_uring, epoll or threads"),
        (&["--backend", "epoll", "--mode", "churn", "--close", "server", "-s", "24+64"], "use one size"),
        (&["--backend", "epoll", "--mode", "idle"], "rr, stream, churn, push"),
        (&["--backend", "epoll", "--client", "kqueue"], "io_uring, epoll"),
        (&["--backend", "epoll", "-p", "1025"], "the deepest pipeline is 1024"),
        (&["--backend", "epoll", "--think", "1"], "500ms"),
        (&["--backend", "epoll", "--burst", "0"], "at least 1"),
    ];
    for (line, word) in lines {
        assert_refused(&[&["run"], line].concat(), 2, word);
    }
    assert_refused(&["idle", "--mode", "churn"], 2, "have no meaning");
    assert_refused(&["idle", "--think", "1ms"], 2, "have no meaning");
}

#[track_caller]
fn assert_refused(line: &[&str], code: i32, word: &str) {
    let output = loadgen(line).output().expect("the binary runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{line:?}: {text}");
    assert_eq!(text.lines().count(), 1, "{line:?}: {text}");
    assert!(text.contains(word), "'{word}' in {text}");
}

#[test]
fn more_than_any_machine_has_is_refused_in_one_line() {
    let most = usize::MAX.to_string();
    let deep = ["run", "--backend", "epoll", "-c", &most, "-p", "1024", "-s", "64MiB"];
    assert_refused(&deep, 3, "use fewer");
    assert_refused(&["run", "--backend", "epoll", "-c", &most, "-s", "24"], 3, "use");
    let long = format!("http://127.0.0.1:9/{}", "x".repeat(100_000));
    assert_refused(&["run", &long, "-c", "10M", "-p", "1024"], 3, "use fewer");
}

#[test]
fn who_pauses_asks_no_more_often_than_that() {
    for client in CLIENTS {
        let address = answering(|request, _| Some(request.to_vec()));
        let run = against(client, "pauses", address, &["-c", "10", "-d", "1s", "--think", "50ms"]);
        assert_right(&run);
        let window = cell(&run)["window_seconds"].as_f64().expect("a figure");
        let most = 10.0 * (window / 0.05 + 1.0);
        let requests = cell(&run)["counts"]["requests"].as_f64().expect("a figure");
        assert!((most / 3.0..=most).contains(&requests), "{requests} of {most} at most");
    }
}

#[test]
fn the_ramp_takes_its_time() {
    for client in CLIENTS {
        let address = answering(|request, _| Some(request.to_vec()));
        let run = against(client, "ramp", address, &["-c", "30", "--ramp", "300ms"]);
        assert_right(&run);
        let ramp = cell(&run)["ramp_seconds"].as_f64().expect("a figure");
        assert!(ramp >= 0.28, "{ramp} s");
    }
}

/// An arrival in the last moment has its connection still to be made when the window closes.
#[test]
fn what_has_arrived_by_the_clock_is_answered_or_counted_as_dropped() {
    for client in CLIENTS {
        for turn in 0..3 {
            let line =
                ["-R", "500", "--arrival", "constant", "--mode", "churn", "--warmup", "0", "-d", "300ms"];
            let address = answering(|request, _| Some(request.to_vec()));
            let run = against(client, &format!("arrived-{turn}"), address, &line);
            assert_right(&run);
            let paced = |name: &str| cell(&run)["paced"][name].as_u64().expect("a figure");
            let sent = paced("offered") - paced("dropped");
            assert!(count(&run, "requests_all_phases") >= sent, "{sent} of them were sent: {run:#?}");
        }
    }
}

/// The kernel says so before the engine has asked for anything.
#[test]
fn a_target_that_is_refused_at_once_is_named() {
    for client in CLIENTS {
        let run = briefly(client, "refused", &["tcp://255.255.255.255:9"]);
        run.assert_failed(3, &["connection 0: cannot connect to tcp://255.255.255.255:9"]);
        assert_eq!(run.stderr.lines().filter(|line| line.contains("panicked")).count(), 0, "{run:#?}");
    }
}

/// Servers that always have more for one connection.
#[test]
fn who_always_has_more_keeps_nobody_from_their_turn() {
    for client in CLIENTS {
        let run = briefly(
            client,
            "always-more",
            &["--backend", "epoll", "--mode", "stream", "-p", "1024", "-s", "4KiB"],
        );
        assert_agreed(&run);
        let window = cell(&run)["window_seconds"].as_f64().expect("a figure");
        assert!(window < 2.0, "{window} s instead of 0.25");
    }
}
