//! Answers each datagram with itself, over UDP or over a Unix socket: `udp_echo 8000` or `udp_echo /tmp/echo.sock`.

use std::process::ExitCode;

use ringspun::{Address, DatagramCx, DatagramProtocol, Reactor};

struct Echo;

impl DatagramProtocol for Echo {
    fn start_protocol(&mut self, cx: &mut DatagramCx<'_, Self>) {
        println!("receiving on {}", cx.transport.get_host());
    }

    fn datagram_received(&mut self, cx: &mut DatagramCx<'_, Self>, data: &[u8], from: &Address) {
        if let Err(error) = cx.transport.write(data, from) {
            eprintln!("no answer to {from}: {error}");
        }
    }
}

fn serve() -> Result<(), ringspun::Error> {
    let at = std::env::args().nth(1).unwrap_or_else(|| "8000".to_owned());
    let reactor = Reactor::builder().build()?;
    match at.parse::<u16>() {
        Ok(port) => _ = reactor.listen_udp(("127.0.0.1", port), Echo)?,
        Err(_) => _ = reactor.listen_unix_datagram(at, Echo)?,
    }
    reactor.run()
}

fn main() -> ExitCode {
    if let Err(error) = serve() {
        eprintln!("udp_echo: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
