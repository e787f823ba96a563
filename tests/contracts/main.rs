//! The contracts of `CONTRACTS.md`, each a test on every backend: one body, a case a setup.
//!
//! Tests that need a process of their own are in `tests/faults`.

mod budget;
mod bytes;
mod closing;
mod connecting;
mod datagrams;
mod draining;
mod endpoints;
mod endurance;
mod factories;
mod foreign;
mod generations;
mod handover;
mod kinds;
mod kit;
mod life;
mod lines;
mod listening;
mod page;
mod panics;
mod pausing;
mod peers;
mod policies;
mod policing;
mod producing;
mod reactor;
mod reconnecting;
mod rights;
mod setups;
mod standstill;
mod streams;
mod strings;
mod throttling;
mod timers;
mod unix;
mod working;
mod writing;
