//! Pushes the hits of a web server to all clients, as they are appended to `access-log`, which it looks at every second. Each client gets each hit
//! once, from the moment when it connects. On port 8888 or the first argument.

mod common;
mod pace;
mod pushing;
mod webloglib;

use std::process::ExitCode;

use log::LevelFilter;
use ringspun::Reactor;

use pushing::WebLogFactory;

fn main() -> ExitCode {
    common::run(8888, LevelFilter::Info, |port| {
        let reactor = Reactor::builder().build()?;
        reactor.listen_tcp(port, WebLogFactory::new(webloglib::LOG, pace::interval(1.0)))?;
        reactor.run()
    })
}
