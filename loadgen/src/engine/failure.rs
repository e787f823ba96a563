//! What went wrong on connections: counted by phase and cause, the first one told in full.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use nix::errno::Errno;
use serde::Serialize;

use super::connection::Connection;
use crate::{error::Error, message::Finding};

/// How often one thing went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Failure {
    /// connect, send, receive or reply.
    pub(crate) phase: &'static str,
    /// The name of an errno, or of what is wrong with a reply.
    pub(crate) cause: String,
    pub(crate) count: u64,
}

/// The failures of a run. The first one ends it at the end of the turn, with those beside it counted.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    counts: BTreeMap<(&'static str, String), u64>,
    first: Option<Error>,
}

impl Failures {
    pub(crate) fn connect(&mut self, slot: usize, target: SocketAddr, errno: Errno) {
        let remedy = match errno {
            Errno::ECONNREFUSED => "is a server listening there?",
            Errno::ETIMEDOUT => "is a firewall in between? raise --timeout if the server is only slow",
            Errno::EADDRNOTAVAIL => {
                "too few local ports; widen net.ipv4.ip_local_port_range with sysctl, or use a smaller -c"
            }
            _ => "check the route to this address",
        };
        let text = format!("connection {slot}: cannot connect to {target}: {}; {remedy}", errno.desc());
        self.add("connect", errno_name(errno), Error::machine(text));
    }

    pub(crate) fn broken(
        &mut self,
        phase: &'static str,
        slot: usize,
        connection: &Connection,
        size: usize,
        errno: Errno,
    ) {
        let text = format!(
            "{}: {phase} failed: {} ({}); the server dropped the connection, see its log",
            place(slot, connection.sequence),
            errno.desc(),
            arrived(connection, size)
        );
        self.add(phase, errno_name(errno), Error::verification(text));
    }

    pub(crate) fn closed(&mut self, slot: usize, connection: &Connection, size: usize) {
        let text = format!(
            "{}: the server closed the connection early ({}); it must answer every request",
            place(slot, connection.sequence),
            arrived(connection, size)
        );
        self.add("reply", "closed_early".into(), Error::verification(text));
    }

    pub(crate) fn no_reply(&mut self, slot: usize, connection: &Connection, size: usize, timeout: Duration) {
        let text = format!(
            "{}: no reply within {} ({}); the reply is lost, or raise --timeout if the server is only slow",
            place(slot, connection.sequence),
            humantime::format_duration(timeout),
            arrived(connection, size)
        );
        self.add("reply", "no_reply".into(), Error::verification(text));
    }

    pub(crate) fn wrong(&mut self, slot: usize, sequence: u64, finding: &Finding) {
        let text = format!("{}: {finding}", place(slot, sequence));
        self.add("reply", finding.name().into(), Error::verification(text));
    }

    /// The failure that ends the run, if there is one.
    pub(crate) fn first(&self) -> Option<Error> {
        self.first.clone()
    }

    pub(crate) fn into_counts(self) -> Vec<Failure> {
        let counts = self.counts.into_iter();
        counts.map(|((phase, cause), count)| Failure { phase, cause, count }).collect()
    }

    fn add(&mut self, phase: &'static str, cause: String, error: Error) {
        *self.counts.entry((phase, cause)).or_insert(0) += 1;
        self.first.get_or_insert(error);
    }
}

fn place(slot: usize, sequence: u64) -> String {
    format!("connection {slot}, sequence {sequence}")
}

fn arrived(connection: &Connection, size: usize) -> String {
    if connection.sent_at.is_none() {
        return "nothing was asked at that moment".into();
    }
    format!("{} of {size} bytes had come, after {} whole replies", connection.received(), connection.sequence)
}

/// The symbolic name, such as ECONNRESET.
fn errno_name(errno: Errno) -> String {
    format!("{errno:?}")
}
