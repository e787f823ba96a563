//! The examples as a user runs them: the real programs over real sockets, on every backend.
//!
//! `cargo test` builds the examples first; for this file alone it is
//! `cargo build --examples && cargo test --test examples`.

mod all_cores;
mod bad_days;
mod chat;
mod clients;
mod datagrams;
mod echo;
mod fibonacci;
mod foreign;
mod handover;
mod running;
mod weblog;

/// Makes each function a test on each backend: `io_uring::name`, `epoll::name`, `threads::name`.
macro_rules! on_every_backend {
    ($($test:ident),+ $(,)?) => {
        on_every_backend!(@backend io_uring: $($test),+);
        on_every_backend!(@backend epoll: $($test),+);
        on_every_backend!(@backend threads: $($test),+);
    };
    (@backend $backend:ident: $($test:ident),+) => {
        mod $backend {
            $(#[test] fn $test() { super::$test(stringify!($backend)); })+
        }
    };
}

pub(crate) use on_every_backend;
