//! Answers whatever is sent with the next Fibonacci number, on port 8888 or the first argument.
//! All clients share one sequence, so no number is given twice.

mod common;

use std::{mem, process::ExitCode};

use log::LevelFilter;
use num_bigint::BigUint;
use ringspun::{Cx, Factory, Peer, Protocol, Reactor};

struct Fibonacci;

impl Protocol<FibonacciFactory> for Fibonacci {
    fn data_received(&mut self, cx: &mut Cx<'_, FibonacciFactory>, _data: &[u8]) {
        let number = cx.factory.next();
        cx.transport.write_with(|out| write!(out, "{number}"));
    }
}

/// The last two numbers. They outgrow 64 bits after 91 answers.
struct FibonacciFactory {
    a: BigUint,
    b: BigUint,
}

impl FibonacciFactory {
    fn new() -> Self {
        Self { a: 1u32.into(), b: 1u32.into() }
    }

    fn next(&mut self) -> &BigUint {
        let new = &self.a + &self.b;
        self.a = mem::replace(&mut self.b, new);
        &self.b
    }
}

impl Factory for FibonacciFactory {
    type Protocol = Fibonacci;

    fn build_protocol(&mut self, _peer: &mut Peer<'_>) -> Option<Fibonacci> {
        Some(Fibonacci)
    }
}

fn main() -> ExitCode {
    common::run(8888, LevelFilter::Info, |port| {
        let reactor = Reactor::builder().build()?;
        reactor.listen_tcp(port, FibonacciFactory::new())?;
        reactor.run()
    })
}
