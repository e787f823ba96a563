//! Datagrams: loadgen's own servers and others, by both of the client's wires. None of these tests needs a datagram
//! to arrive: what always holds is that each one sent is answered, lost or outstanding.

use std::{
    fs,
    io::{BufRead, BufReader, Read as _},
    net::{SocketAddr, UdpSocket},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    common::{PATIENCE, Run, SIZE, assert_valid, eventually, finish, folder, loadgen, start},
    modes::{CLIENTS, briefly, cell},
    serve::ALL,
};

#[track_caller]
fn figure(cell: &Value, name: &str) -> u64 {
    cell["datagrams"][name].as_u64().unwrap_or_else(|| panic!("no {name}: {cell:#}"))
}

/// What holds of every cell, whatever was lost.
#[track_caller]
fn assert_accounts_agree(run: &Run) {
    assert_valid(run.document());
    for cell in run.document()["cells"].as_array().expect("cells") {
        let figure = |name| figure(cell, name);
        assert_eq!(figure("sent"), figure("answered") + figure("lost") + figure("outstanding"), "{cell:#}");
        assert_eq!(cell["counts"]["requests_all_phases"], figure("answered"), "{cell:#}");
        assert!(figure("late") <= figure("lost") && figure("lost_in_window") <= figure("lost"), "{cell:#}");
        assert!(cell["counts"]["requests"].as_u64() <= Some(figure("answered")), "{cell:#}");
    }
}

#[track_caller]
fn assert_right(run: &Run) {
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert_accounts_agree(run);
    assert_eq!(run.document()["complete"], true);
    let verified = run.document()["summary"]["verified"].as_str().expect("a sentence");
    assert!(verified.contains("none wrong, ") && verified.contains("requests lost"), "{verified}");
    assert_eq!(cell(run)["errors"].as_array().map(Vec::len), Some(0));
    assert_eq!(figure(cell(run), "outstanding"), 0, "{run:#?}");
    assert!(figure(cell(run), "answered") > 0, "{run:#?}");
}

fn in_every_manner(client: &str) {
    let manners: [(&str, &[&str]); 8] = [
        ("rr", &[]),
        ("pipeline", &["-p", "8"]),
        ("burst", &["--burst", "1"]),
        ("mix", &["-p", "3", "-s", "64:9+20KiB:1+24:5"]),
        ("largest", &["-s", "65507"]),
        ("paced", &["-R", "500"]),
        ("think", &["--think", "5ms"]),
        ("header", &["--verify", "header", "-s", "1000"]),
    ];
    for backend in ALL {
        for (name, line) in manners {
            let test = format!("udp-{name}-{backend}");
            let line = [&["--transport", "udp", "--backend", backend, "--timeout", "3s"], line].concat();
            let run = briefly(client, &test, &line);
            assert_right(&run);
            let settings = &run.document()["settings"];
            assert_eq!((&settings["transport"], &settings["tcp_nodelay"]), (&"udp".into(), &false.into()));
            assert!(run.stdout.starts_with("UDP, ") && cell(&run)["tcp"].is_null(), "{run:#?}");
            let counts = &cell(&run)["counts"];
            assert_eq!((&counts["connections_made"], &counts["connections_alive"]), (&4.into(), &4.into()));
            let checks = cell(&run)["checks"].as_array().expect("checks");
            let agreed = |check: &&Value| check["name"] == "server_received_all" && check["passed"] == true;
            assert!(checks.iter().any(|check| agreed(&check)), "{run:#?}");
        }
    }
}

#[test]
fn every_manner_is_right_over_udp_by_io_uring() {
    in_every_manner("io_uring");
}

#[test]
fn every_manner_is_right_over_udp_by_epoll() {
    in_every_manner("epoll");
}

/// A server that does so with each datagram; the number counts them.
fn server(treat: impl Fn(&UdpSocket, &[u8], SocketAddr, u64) + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
    let address = socket.local_addr().expect("bound");
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        for number in 0.. {
            let Ok((length, peer)) = socket.recv_from(&mut buffer) else { return };
            treat(&socket, &buffer[..length], peer, number);
        }
    });
    address
}

fn against(client: &str, test: &str, address: SocketAddr, line: &[&str]) -> Run {
    briefly(client, test, &[&[format!("udp://{address}").as_str()], line].concat())
}

/// It answers only if it is there.
fn send(socket: &UdpSocket, bytes: &[u8], peer: SocketAddr) {
    let _ = socket.send_to(bytes, peer);
}

#[test]
fn what_a_server_drops_is_counted_as_lost_and_is_no_error() {
    for client in CLIENTS {
        let (received, dropped) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (came, gone) = (received.clone(), dropped.clone());
        let address = server(move |socket, request, peer, number| {
            came.fetch_add(1, SeqCst);
            if number % 10 == 3 {
                gone.fetch_add(1, SeqCst);
            } else {
                send(socket, request, peer);
            }
        });
        let run = against(client, "udp-dropped", address, &["-p", "4", "--timeout", "50ms"]);
        assert_right(&run);
        let sum = |name| {
            run.document()["cells"].as_array().expect("cells").iter().map(|cell| figure(cell, name)).sum()
        };
        let (sent, answered, lost, late): (u64, u64, u64, u64) =
            (sum("sent"), sum("answered"), sum("lost"), sum("late"));
        let (received, dropped) = (received.load(SeqCst), dropped.load(SeqCst));
        assert!(dropped > 0 && lost >= dropped, "{dropped} dropped: {run:#?}");
        assert!(received <= sent && answered + late <= received - dropped, "{received}, {dropped}: {run:#?}");
        let few = cell(&run)["checks"]
            .as_array()
            .expect("checks")
            .iter()
            .find(|c| c["name"] == "few_datagrams_lost");
        let few = few.expect("it is checked");
        assert_eq!((&few["passed"], &few["spoils"]), (&false.into(), &true.into()), "{few}");
        assert_eq!(cell(&run)["spoiled"], true);
        // Only the first check that failed is named there, which on a disturbed machine is another one.
        let valid = run.document()["summary"]["valid"].as_str().expect("a sentence");
        assert!(valid.starts_with("no;") && valid.contains("stayed spoiled"), "{valid}");
    }
}

#[test]
fn replies_may_change_places() {
    for client in CLIENTS {
        let held = std::sync::Mutex::new(None::<(Vec<u8>, SocketAddr)>);
        let address = server(move |socket, request, peer, _| {
            let before = held.lock().expect("no panic").replace((request.to_vec(), peer));
            // Every second one goes out before the one that came before it.
            if let Some((bytes, to)) = before {
                send(socket, request, peer);
                send(socket, &bytes, to);
                *held.lock().expect("no panic") = None;
            }
        });
        assert_right(&against(client, "udp-places", address, &["-c", "1", "-p", "4", "--timeout", "300ms"]));
    }
}

#[test]
fn what_comes_late_is_told_apart_from_what_never_comes() {
    for client in CLIENTS {
        let late = std::sync::Mutex::new(Vec::<(Vec<u8>, SocketAddr)>::new());
        let address = server(move |socket, request, peer, number| {
            let mut late = late.lock().expect("no panic");
            match number {
                // Its place asks again only once it is given up.
                0..4 => late.push((request.to_vec(), peer)),
                4 => {
                    late.drain(..).for_each(|(bytes, to)| send(socket, &bytes, to));
                    send(socket, request, peer);
                }
                _ => send(socket, request, peer),
            }
        });
        let run = against(client, "udp-late", address, &["--timeout", "60ms", "-d", "400ms"]);
        assert_right(&run);
        let first = &run.document()["cells"][0];
        assert!(figure(first, "late") > 0 && figure(first, "lost") >= 4, "{run:#?}");
    }
}

#[test]
fn what_is_wrong_with_a_datagram_is_named() {
    type Treat = fn(&UdpSocket, &[u8], SocketAddr, u64);
    let faults: [(&str, Treat, &str); 5] = [
        (
            "udp-flipped",
            |socket, request, peer, _| {
                let mut reply = request.to_vec();
                reply[40] ^= 1;
                send(socket, &reply, peer);
            },
            "sequence 0: reply corrupted at byte 40",
        ),
        (
            "udp-short",
            |socket, request, peer, _| send(socket, &request[..30], peer),
            "a reply of 30 bytes came to a request of 64",
        ),
        (
            "udp-long",
            |socket, request, peer, _| send(socket, &[request, &[0; 2000]].concat(), peer),
            "bytes came to a request of 64",
        ),
        ("udp-empty", |socket, _, peer, _| send(socket, &[], peer), "0 bytes came that answer no request"),
        (
            "udp-twice",
            |socket, request, peer, _| {
                send(socket, request, peer);
                send(socket, request, peer);
            },
            "once more",
        ),
    ];
    for client in CLIENTS {
        for (test, treat, words) in faults {
            let run = against(client, test, server(treat), &["-c", "1"]);
            run.assert_failed(5, &["connection 0", words]);
            assert_accounts_agree(&run);
        }
    }
}

#[test]
fn a_server_that_mixes_up_its_clients_is_found() {
    for client in CLIENTS {
        let last = std::sync::Mutex::new(None::<SocketAddr>);
        let address = server(move |socket, request, peer, _| {
            let other = last.lock().expect("no panic").replace(peer).unwrap_or(peer);
            send(socket, request, other);
        });
        let run = against(client, "udp-foreign", address, &["-c", "2", "--timeout", "100ms"]);
        run.assert_failed(5, &["got the reply of connection", "mixes up"]);
    }
}

#[test]
fn who_is_not_there_and_who_never_answers_is_named() {
    for client in CLIENTS {
        let free = UdpSocket::bind("127.0.0.1:0").expect("a port is free").local_addr().expect("bound");
        let run = against(client, "udp-nobody", free, &[]);
        run.assert_failed(3, &["at udp://127.0.0.1:", "is a server listening there?"]);
        let deaf = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
        let run = against(client, "udp-deaf", deaf.local_addr().expect("bound"), &["--timeout", "50ms"]);
        run.assert_failed(3, &["none of ", " datagrams to udp://127.0.0.1:", "is a server listening there"]);
        assert_accounts_agree(&run);
    }
}

#[test]
fn what_is_outstanding_at_an_early_end_is_counted() {
    for client in CLIENTS {
        let received = Arc::new(AtomicU64::new(0));
        let seen = received.clone();
        let address = server(move |socket, request, peer, number| {
            if number < 100 {
                send(socket, request, peer);
            }
            seen.fetch_add(1, SeqCst);
        });
        let folder = folder(&format!("udp-early-{client}"));
        let line = [
            "run",
            &format!("udp://{address}"),
            "-c",
            "4",
            "-d",
            "60s",
            "--timeout",
            "60s",
            "--client",
            client,
        ];
        let child = start(&folder, &line);
        eventually("all of them wait", || (received.load(SeqCst) >= 104).then_some(()));
        kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("it runs");
        let run = finish(child, &folder);
        assert_eq!(run.code, Some(130), "{run:#?}");
        assert_accounts_agree(&run);
        assert_eq!(figure(cell(&run), "outstanding"), 4, "{run:#?}");
    }
}

#[test]
fn servers_answer_datagrams_of_every_length() {
    for backend in ALL {
        let mut command = loadgen(&["serve", "--transport", "udp", "--port", "0", "--backend", backend]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the binary runs");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut greeting = String::new();
        stdout.read_line(&mut greeting).expect("text");
        let address = greeting.strip_prefix("echo on udp://").and_then(|rest| rest.split(',').next());
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
        socket.connect(address.unwrap_or_else(|| panic!("{backend}: {greeting}"))).expect("an address");
        // Asked once more if it is lost.
        socket.set_read_timeout(Some(PATIENCE / 10)).expect("longer than 0");
        let mut heard = vec![0; 1 << 16];
        for length in [0, 1, SIZE, 8192, 8193, 65_507] {
            let sent: Vec<u8> = (0..length).map(|at| (at * 31 + length) as u8).collect();
            let length = eventually("it answers", || {
                socket.send(&sent).expect("it is there");
                socket.recv(&mut heard).ok()
            });
            assert!(heard[..length] == sent, "{backend}: {length} bytes of {}", sent.len());
        }
        kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("it runs");
        let status = eventually("it ends", || child.try_wait().expect("our child"));
        let mut account = String::new();
        stdout.read_to_string(&mut account).expect("text");
        assert!(
            status.success() && account.contains(" datagrams received"),
            "{backend}: {status}, {account}"
        );
    }
}

#[test]
fn what_a_transport_does_not_have_is_refused_in_one_line() {
    let lines: [(&[&str], &[&str]); 17] = [
        (&["--transport", "unix", "--mode", "churn", "--close", "rst"], &["no RST", "fin or server"]),
        (&["--transport", "udp", "--mode", "stream"], &["only --mode rr"]),
        (&["--transport", "udp", "--mode", "churn"], &["only --mode rr"]),
        (&["--transport", "udp", "--mode", "push"], &["only --mode rr"]),
        (&["--transport", "udp", "--ramp", "1s"], &["leave out --ramp"]),
        (&["--transport", "udp", "-s", "65508"], &["65507", "smaller -s"]),
        (&["--transport", "udp", "-s", "64:9+64KiB:1"], &["65507"]),
        (
            &["--transport", "udp", "--backend", "epoll", "--server", "mine=./mine {port}"],
            &["udp://host:port"],
        ),
        (&["--transport", "unix", "--backend", "epoll", "--server", "mine=./mine {port}"], &["unix:/path"]),
        (&["--transport", "sctp"], &["tcp, unix, udp"]),
        (&["run", "udp://127.0.0.1:9", "--transport", "udp"], &["leave out --transport"]),
        (&["run", "udp://127.0.0.1:9", "--http", "/"], &["HTTP/1.1 needs a stream"]),
        (&["run", "unix:"], &["a path, or @name"]),
        (&["idle", "--transport", "udp"], &["only --mode rr"]),
        (&["serve", "--transport", "udp", "--as", "push"], &["UDP does not have"]),
        (&["serve", "--transport", "unix", "--port", "1"], &["no host and no port"]),
        (&["serve", "--path", "/x"], &["--transport unix"]),
    ];
    for (line, words) in lines {
        let command: &[&str] = if line[0].starts_with('-') { &["compare"] } else { &[] };
        let output = loadgen(&[command, line].concat()).output().expect("the binary runs");
        let text = String::from_utf8(output.stderr).expect("text");
        assert_eq!((output.status.code(), text.lines().count()), (Some(2), 1), "{line:?}: {text}");
        for word in words {
            assert!(text.contains(word), "'{word}' in {text}");
        }
    }
}

#[test]
fn transports_are_not_compared_with_each_other() {
    let (udp, unix) = (folder("udp-against"), folder("udp-against-unix"));
    for (folder, transport) in [(&udp, "udp"), (&unix, "unix")] {
        let line = [
            "run",
            "--backend",
            "raw-epoll",
            "--transport",
            transport,
            "-c",
            "1",
            "-d",
            "100ms",
            "--warmup",
            "0",
        ];
        assert_eq!(finish(start(folder, &line), folder).code, Some(0));
    }
    let paths = [&udp, &unix].map(|folder| folder.to_str().expect("text"));
    let output = loadgen(&["diff", paths[0], paths[1]]).output().expect("the binary runs");
    let text = String::from_utf8(output.stderr).expect("text");
    assert!(output.status.code() == Some(2) && text.contains("compare runs over one transport"), "{text}");
    let csv = folder("udp-csv").with_extension("csv");
    let output = loadgen(&["report", paths[0], "--export-csv", csv.to_str().expect("text")]).output();
    assert!(output.expect("the binary runs").status.success());
    let csv = fs::read_to_string(csv).expect("it is written");
    assert!(csv.lines().nth(1).is_some_and(|line| line.contains(",udp,")), "{csv}");
}
