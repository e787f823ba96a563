//! Prints dots while a thread sleeps, to show that the reactor does not: it sleeps for a second, or as many as DOTS_SECONDS says.

mod common;

use std::{env, io::Write as _, process::ExitCode, thread, time::Duration};

use log::LevelFilter;
use ringspun::Reactor;

fn dot(reactor: &Reactor) {
    print!(".");
    let _ = std::io::stdout().flush();
    reactor.call_later(Duration::from_millis(100), dot);
}

fn main() -> ExitCode {
    common::run(0, LevelFilter::Warn, |_port| {
        let seconds = env::var("DOTS_SECONDS").ok().and_then(|word| word.parse().ok()).unwrap_or(1.0);
        let reactor = Reactor::builder().build()?;
        reactor.call_when_running(dot);
        reactor.call_in_thread(
            move || thread::sleep(Duration::from_secs_f64(seconds)),
            move |reactor, slept| {
                match slept {
                    Ok(()) => println!("\nslept for {seconds} s"),
                    Err(error) => println!("\n{error}"),
                }
                let _ = reactor.stop();
            },
        );
        reactor.run()
    })
}
