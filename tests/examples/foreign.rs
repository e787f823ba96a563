//! Programs that have the reactor watch descriptors of their own.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    os::unix::process::CommandExt,
    process::{Command, Output},
};

use nix::sys::{
    signal::Signal,
    socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket},
};

use crate::{
    on_every_backend,
    running::{Running, binary},
};

on_every_backend!(
    what_happens_in_a_folder_is_printed_until_it_is_gone,
    icmp_messages_are_counted,
    without_the_capability_the_remedy_is_named,
);

fn what_happens_in_a_folder_is_printed_until_it_is_gone(backend: &str) {
    let name = format!("ringspun-inotify-{}-{backend}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    fs::create_dir(&folder).unwrap();
    let mut watcher = Running::start("inotify", backend, &[folder.to_str().unwrap()]);
    watcher.wait_for_out("watching ");
    fs::write(folder.join("first"), "text").unwrap();
    watcher.wait_for_out("written first");
    fs::rename(folder.join("first"), folder.join("second")).unwrap();
    watcher.wait_for_out("moved here second");
    fs::remove_file(folder.join("second")).unwrap();
    watcher.wait_for_out("deleted second");
    fs::remove_dir(&folder).unwrap();
    let ended = watcher.wait();
    let told = ["created first", "written first", "moved away first", "moved here second", "deleted second"];
    assert_eq!(ended.out[1..6], told);
    assert_eq!(ended.out.last().unwrap(), "the folder is gone");
    ended.exited_with(0);
}

fn icmp_messages_are_counted(backend: &str) {
    // A machine of CI may not allow it; then the other test has to do.
    let allowed = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Icmp);
    if let Err(errno) = allowed {
        return println!(
            "icmp_messages_are_counted on {backend} is skipped: there is no CAP_NET_RAW here ({errno})"
        );
    }
    // An address of its own: a raw socket hears what others cause, too.
    let [.., high, low] = std::process::id().to_be_bytes();
    let address = Ipv4Addr::new(127, 100 + backend.len() as u8, high, low.clamp(1, 254));
    let mut reader = Running::start("raw_reader", backend, &[&address.to_string()]);
    reader.wait_for_out(&format!("watching ICMP messages to {address}"));
    // Nobody serves the port multiplexer, and the kernel tells us by ICMP, which the reader hears, too.
    let socket = UdpSocket::bind((address, 0)).unwrap();
    for number in 1..=3 {
        socket.send_to(b"anybody?", "127.0.0.1:1").unwrap();
        let line = reader.wait_for_out(&format!("{number}: "));
        let told = "destination unreachable (type 3, code 3) of 44 bytes from 127.0.0.1";
        assert_eq!(line, format!("{number}: {told}"));
    }
    reader.signal(Signal::SIGTERM);
    let ended = reader.wait();
    assert_eq!(ended.out.last().unwrap(), "3 seen; the reactor was stopped");
    ended.exited_with(0);
}

fn without_the_capability_the_remedy_is_named(backend: &str) {
    const CAP_NET_RAW: nix::libc::c_ulong = 13;
    let mut command = Command::new(binary("raw_reader"));
    let drop_capability = || {
        // It fails where the capability is not there in the first place.
        // SAFETY: it takes a number and points to nothing.
        unsafe { nix::libc::prctl(nix::libc::PR_CAPBSET_DROP, CAP_NET_RAW, 0, 0, 0) };
        Ok(())
    };
    // SAFETY: prctl is safe to call between fork and exec.
    unsafe { command.pre_exec(drop_capability) };
    let Output { status, stderr, .. } = command.env("RINGSPUN_BACKEND", backend).output().unwrap();
    let complaint = String::from_utf8(stderr).unwrap();
    assert!(
        complaint.starts_with("raw_reader: cannot open a raw socket: Operation not permitted"),
        "{complaint}"
    );
    assert!(
        complaint.contains("run this as root") && complaint.contains("setcap cap_net_raw+ep"),
        "{complaint}"
    );
    assert_eq!(status.code(), Some(1));
}
