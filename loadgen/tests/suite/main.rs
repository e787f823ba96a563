//! Tests of the real binary: the comparison it is for, servers that misbehave, and bad days.

mod bad_days;
mod common;
mod comparison;
mod crowd;
mod differences;
mod exports;
mod idle;
mod merging;
mod modes;
mod open_loop;
mod reports;
mod search;
mod selftest;
mod serve;
mod sweeping;
mod udp;
mod unix;
mod wrong_servers;
