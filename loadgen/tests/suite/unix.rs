//! Unix sockets: loadgen's own servers and others, by both of the client's wires.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    path::PathBuf,
    process::{Child, Stdio},
    thread,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    common::{PATIENCE, SIZE, eventually, folder, loadgen},
    modes::{CLIENTS, SERVERS, assert_agreed, assert_right, briefly, cell, count},
};

/// A path that nobody has, short enough for a socket.
fn free_path(test: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(folder(test).file_name().expect("it has one"));
    let _ = fs::remove_file(&folder);
    folder
}

fn in_every_mode(client: &str) {
    let manners: [(&str, &[&str]); 7] = [
        ("rr", &[]),
        ("mix", &["-p", "3", "-s", "64:9+40KiB:1+24:5"]),
        ("stream-large", &["--mode", "stream", "-s", "256KiB"]),
        ("push", &["--mode", "push", "-p", "4"]),
        ("paced", &["-R", "500"]),
        ("churn-fin", &["--mode", "churn"]),
        ("churn-server", &["--mode", "churn", "--close", "server", "-R", "300"]),
    ];
    for backend in SERVERS {
        for (name, line) in manners {
            if backend.starts_with("raw") && name == "push" {
                continue;
            }
            let test = format!("unix-{name}-{backend}");
            let run =
                briefly(client, &test, &[&["--transport", "unix", "--backend", backend], line].concat());
            assert_agreed(&run);
            let settings = &run.document()["settings"];
            assert_eq!((&settings["transport"], &settings["tcp_nodelay"]), (&"unix".into(), &false.into()));
            assert!(cell(&run)["tcp"].is_null() && cell(&run)["datagrams"].is_null(), "{run:#?}");
            assert!(run.stdout.starts_with("Unix sockets, "), "{}", run.stdout);
            if name.starts_with("churn") {
                assert_eq!(count(&run, "requests_all_phases"), count(&run, "connections_made"), "{run:#?}");
            }
        }
    }
}

#[test]
fn every_mode_is_right_over_unix_sockets_by_io_uring() {
    in_every_mode("io_uring");
}

#[test]
fn every_mode_is_right_over_unix_sockets_by_epoll() {
    in_every_mode("epoll");
}

/// More than wait in a backlog, so that some find it full.
#[test]
fn who_finds_the_backlog_full_tries_again() {
    for client in CLIENTS {
        let name = format!("loadgen-backlog-{client}-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let listener = UnixListener::bind_addr(&address).expect("nobody has it");
        // The standard library's backlog is larger than the client's attempts at once: nearly all of it is taken here.
        let others: Vec<UnixStream> = (0..).map_while(|_| try_connect(&address)).collect();
        let waiting = others.len();
        thread::spawn(move || {
            drop(others);
            for stream in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || echo(stream));
            }
        });
        let run = briefly(client, "unix-backlog", &[&format!("unix:@{name}"), "-c", "64"]);
        assert_right(&run);
        assert_eq!(cell(&run)["counts"]["connections_made"], 64, "after {waiting}");
    }
}

/// One that does not wait for room.
fn try_connect(address: &SocketAddr) -> Option<UnixStream> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).expect("descriptors are left");
    let name = UnixAddr::new_abstract(address.as_abstract_name()?).expect("a name");
    use std::os::fd::AsRawFd;
    connect(socket.as_raw_fd(), &name).ok().map(|()| socket.into())
}

fn echo(mut stream: UnixStream) {
    let mut request = [0; SIZE];
    while stream.read_exact(&mut request).is_ok() && stream.write_all(&request).is_ok() {}
}

#[test]
fn other_servers_are_named_by_path_or_abstract_name() {
    for client in CLIENTS {
        let path = free_path(&format!("unix-foreign-{client}"));
        let listener = UnixListener::bind(&path).expect("the path is free");
        thread::spawn(move || {
            listener.incoming().map_while(Result::ok).for_each(|stream| {
                thread::spawn(move || echo(stream));
            });
        });
        for target in [format!("unix:{}", path.display()), format!("unix://{}", path.display())] {
            let run = briefly(client, "unix-path", &[&target]);
            assert_right(&run);
            assert_eq!(cell(&run)["row"], format!("unix:{}", path.display()));
        }
        fs::remove_file(&path).expect("it is there");
    }
}

#[test]
fn a_reply_that_is_wrong_is_found_over_unix_sockets_too() {
    for client in CLIENTS {
        let name = format!("loadgen-wrong-{client}-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let listener = UnixListener::bind_addr(&address).expect("nobody has it");
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut request = [0; SIZE];
                while stream.read_exact(&mut request).is_ok() {
                    request[50] ^= 1;
                    let _ = stream.write_all(&request);
                }
            }
        });
        let run = briefly(client, "unix-wrong", &[&format!("unix:@{name}"), "-c", "1"]);
        run.assert_failed(5, &["sequence 0: reply corrupted at byte 50"]);
    }
}

#[test]
fn http_is_spoken_over_unix_sockets() {
    for client in CLIENTS {
        let name = format!("loadgen-http-{client}-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let listener = UnixListener::bind_addr(&address).expect("nobody has it");
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || {
                    let (mut lines, mut stream) = (BufReader::new(&stream).lines(), &stream);
                    while let Some(Ok(line)) = lines.next() {
                        if line.is_empty() {
                            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
                        }
                    }
                });
            }
        });
        assert_right(&briefly(client, "unix-http", &[&format!("unix:@{name}"), "--http", "/x"]));
    }
}

#[test]
fn a_unix_socket_that_is_not_there_is_named() {
    for client in CLIENTS {
        let path = free_path(&format!("unix-none-{client}"));
        let run = briefly(client, "unix-none", &[&format!("unix:{}", path.display())]);
        run.assert_failed(3, &["cannot connect to unix:", "is a server listening there?"]);
        drop(UnixListener::bind(&path).expect("the path is free"));
        let run = briefly(client, "unix-stale", &[&format!("unix:{}", path.display())]);
        run.assert_failed(3, &["cannot connect to unix:", "is a server listening there?"]);
        fs::remove_file(&path).expect("it is there");
    }
}

/// A `loadgen serve`, and what it says first.
fn serve(backend: &str, path: &str) -> (Child, String) {
    let mut command = loadgen(&["serve", "--transport", "unix", "--backend", backend, "--path", path]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    let mut greeting = String::new();
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    stdout.read_line(&mut greeting).expect("text");
    (child, greeting)
}

#[test]
fn servers_take_over_a_stale_file_refuse_a_live_one_and_leave_none() {
    for backend in SERVERS {
        let path = free_path(&format!("unix-serve-{backend}"));
        let name = path.to_str().expect("text");
        drop(UnixListener::bind(&path).expect("the path is free"));
        let (mut server, greeting) = serve(backend, name);
        assert!(greeting.starts_with(&format!("echo on unix:{name}, ")), "{backend}: {greeting}");
        let (second, nothing) = serve(backend, name);
        let refused = second.wait_with_output().expect("it ends");
        let text = String::from_utf8(refused.stderr).expect("text");
        assert_eq!((nothing.as_str(), refused.status.code()), ("", Some(3)), "{backend}: {text}");
        assert!(text.contains(name) && text.lines().count() == 1, "{backend}: {text}");
        let mut stream = UnixStream::connect(&path).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("longer than 0");
        stream.write_all(b"hello").expect("it reads");
        let mut heard = [0; 5];
        stream.read_exact(&mut heard).expect("it answers");
        assert_eq!(&heard, b"hello", "{backend}");
        kill(Pid::from_raw(server.id() as i32), Signal::SIGINT).expect("it runs");
        let status = eventually("it ends", || server.try_wait().expect("our child"));
        assert!(status.success() && !path.exists(), "{backend}: {status}");
    }
}
