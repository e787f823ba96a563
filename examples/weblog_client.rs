//! Asks a weblog server on this machine for new hits every five seconds, with blocking calls and no reactor, and prints
//! what it says; on port 8888 or the first argument.

mod common;
mod pace;

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpStream},
    process::ExitCode,
    thread,
};

use log::LevelFilter;

fn follow(port: u16) -> io::Result<()> {
    let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    let mut buffer = [0; 8192];
    loop {
        let count = socket.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        println!("{}", String::from_utf8_lossy(&buffer[..count]));
        thread::sleep(pace::interval(5.0));
        socket.write_all(b"NEW?")?;
    }
}

fn main() -> ExitCode {
    common::run(8888, LevelFilter::Warn, follow)
}
