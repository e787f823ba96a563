//! The contracts of `CONTRACTS.md` that need a process of their own: no descriptors left, signals,
//! forks, system calls denied. Each test runs its own binary once more and lets that fail.

mod activation;
mod child;
mod crowd;
mod descriptors;
mod kernel;
mod raw;
mod signals;

// The same kit as the other suite's, of which this one needs only a part.
#[allow(dead_code)]
#[path = "../contracts/generations.rs"]
mod generations;
#[allow(dead_code)]
#[path = "../contracts/kit.rs"]
mod kit;
#[allow(dead_code)]
#[path = "../contracts/peers.rs"]
mod peers;
#[allow(dead_code)]
#[path = "../contracts/setups.rs"]
mod setups;
#[allow(dead_code)]
#[path = "../contracts/streams.rs"]
mod streams;
