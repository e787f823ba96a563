use std::{
    io::{self, ErrorKind},
    net::UdpSocket,
    os::unix::net::UnixDatagram,
};

use crate::{
    on_every_backend,
    running::{LIMIT, Running},
};

on_every_backend!(a_datagram_comes_back_over_udp_and_over_a_unix_socket);

fn a_datagram_comes_back_over_udp_and_over_a_unix_socket(backend: &str) {
    let mut server = Running::start("udp_echo", backend, &["0"]);
    let line = server.wait_for_out("receiving on ");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.connect(line.trim_start_matches("receiving on ")).unwrap();
    socket.send(b"over UDP").unwrap();
    let mut buffer = [0; 100];
    let len = patient(|| socket.recv(&mut buffer));
    assert_eq!(&buffer[..len], b"over UDP");
    let folder = std::env::temp_dir().join(format!("ringspun-udp-echo-{backend}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("echo");
    let mut server = Running::start("udp_echo", backend, &[path.to_str().unwrap()]);
    server.wait_for_out("receiving on ");
    let socket = UnixDatagram::bind(folder.join("peer")).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.send_to(b"over Unix", &path).unwrap();
    let len = patient(|| socket.recv(&mut buffer));
    assert_eq!(&buffer[..len], b"over Unix");
    drop(server);
    std::fs::remove_dir_all(folder).unwrap();
}

/// Receives again where the kernel has interrupted it.
fn patient(mut receive: impl FnMut() -> io::Result<usize>) -> usize {
    loop {
        match receive() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            received => return received.unwrap(),
        }
    }
}
