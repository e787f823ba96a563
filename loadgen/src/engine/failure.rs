//! What went wrong on connections: counted by phase and cause, the first one told in full.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::connection::Connection;
use crate::{error::Error, http::HttpFinding, message::Finding, target::Target};

/// How often one thing went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// connect, send, receive, reply or close.
    pub(crate) phase: Cow<'static, str>,
    /// The name of an errno, or of what is wrong with a reply.
    pub(crate) cause: String,
    pub(crate) count: u64,
}

/// The failures of a run. The first one ends it at the end of the turn, with those beside it counted.
#[derive(Debug, Default)]
pub(super) struct Failures {
    counts: BTreeMap<(&'static str, String), u64>,
    /// The number of the first slot's connection.
    offset: usize,
    first: Option<Error>,
}

/// What is known of a connection at which something went wrong.
#[derive(Debug)]
pub(super) struct State<'a> {
    pub(super) connection: &'a Connection,
    /// Bytes of the reply that is due, if that is known.
    pub(super) expected: Option<usize>,
}

impl State<'_> {
    fn arrived(&self) -> String {
        let Connection { due, asked, .. } = self.connection;
        let of = match self.expected {
            Some(bytes) => format!("{} of {bytes} bytes had come", self.connection.received()),
            None if asked.is_empty() => return "nothing was asked at that moment".into(),
            None => "the response was not whole".into(),
        };
        format!("{of}, after {due} whole replies")
    }
}

impl Failures {
    /// Of connections that are numbered from here.
    pub(super) fn new(offset: usize) -> Self {
        Self { offset, ..Self::default() }
    }

    pub(super) fn connect(&mut self, slot: usize, target: &Target, errno: Errno) {
        let remedy = match errno {
            Errno::ENOENT | Errno::ECONNREFUSED => "is a server listening there?",
            Errno::ETIMEDOUT => "is a firewall in between? raise --timeout if the server is only slow",
            Errno::EADDRNOTAVAIL => {
                "too few local ports; widen net.ipv4.ip_local_port_range with sysctl, or use a smaller -c"
            }
            Errno::EACCES | Errno::EPERM => "this user needs the right to write to the socket",
            _ if matches!(target, Target::Unix(_)) => "is that a socket of streams?",
            _ => "check the route to this address",
        };
        let text = format!("{}: cannot connect to {target}: {}; {remedy}", self.named(slot), errno.desc());
        self.add("connect", errno_name(errno), Error::machine(text));
    }

    /// What came back to a datagram instead of a reply, or why it could not go out.
    pub(super) fn unreachable(&mut self, phase: &'static str, slot: usize, target: &Target, errno: Errno) {
        let remedy = match errno {
            Errno::ECONNREFUSED => "is a server listening there?",
            Errno::EMSGSIZE => "use a smaller -s",
            _ => "check the route to this address",
        };
        let text = format!("{}: {phase} failed at {target}: {}; {remedy}", self.named(slot), errno.desc());
        self.add(phase, errno_name(errno), Error::machine(text));
    }

    /// Not one datagram was answered.
    pub(super) fn unanswered(&mut self, target: &Target, sent: u64, timeout: Duration) {
        let text = format!(
            "none of {sent} datagrams to {target} was answered, each within {}; is a server listening there, and a \
             firewall in between?",
            humantime::format_duration(timeout)
        );
        self.add("reply", "no_reply".into(), Error::machine(text));
    }

    pub(super) fn broken(&mut self, phase: &'static str, slot: usize, state: &State<'_>, errno: Errno) {
        let text = format!(
            "{}: {phase} failed: {} ({}); the server dropped the connection, see its log",
            self.place(slot, state.connection.due),
            errno.desc(),
            state.arrived()
        );
        self.add(phase, errno_name(errno), Error::verification(text));
    }

    pub(super) fn closed(&mut self, slot: usize, state: &State<'_>) {
        let text = format!(
            "{}: the server closed the connection early ({}); it must answer every request",
            self.place(slot, state.connection.due),
            state.arrived()
        );
        self.add("reply", "closed_early".into(), Error::verification(text));
    }

    pub(super) fn no_reply(&mut self, slot: usize, state: &State<'_>, timeout: Duration) {
        let text = format!(
            "{}: no reply within {} ({}); the reply is lost, or raise --timeout if the server is only slow",
            self.place(slot, state.connection.due),
            humantime::format_duration(timeout),
            state.arrived()
        );
        self.add("reply", "no_reply".into(), Error::verification(text));
    }

    pub(super) fn unheard(&mut self, slot: usize, timeout: Duration) {
        let text = format!(
            "{}: nothing of what connection 0 has sent came to it within {}; the server must send every message \
             to all connections, as `loadgen serve --as push` does",
            self.named(slot),
            humantime::format_duration(timeout)
        );
        self.add("reply", "no_reply".into(), Error::verification(text));
    }

    pub(super) fn not_closed(&mut self, slot: usize, timeout: Duration) {
        let text = format!(
            "{}: the server did not close it within {}; does it close after a reply, and when the client has? \
             --close rst does not wait for it",
            self.named(slot),
            humantime::format_duration(timeout)
        );
        self.add("close", "not_closed".into(), Error::verification(text));
    }

    /// What HTTP forbids, or what differs from the first response.
    pub(super) fn wrong_response(&mut self, slot: usize, sequence: u64, finding: &HttpFinding) {
        let text = format!("{}: {finding}", self.place(slot, sequence));
        self.add("reply", finding.name().into(), Error::verification(text));
    }

    pub(super) fn wrong(&mut self, slot: usize, sequence: u64, finding: &Finding) {
        let text = format!("{}: {finding}", self.place(slot, sequence));
        self.add("reply", finding.name().into(), Error::verification(text));
    }

    /// The failure that ends the run, if there is one.
    pub(super) fn first(&self) -> Option<Error> {
        self.first.clone()
    }

    pub(super) fn into_counts(self) -> Vec<Failure> {
        let counts = self.counts.into_iter();
        counts.map(|((phase, cause), count)| Failure { phase: phase.into(), cause, count }).collect()
    }

    fn add(&mut self, phase: &'static str, cause: String, error: Error) {
        *self.counts.entry((phase, cause)).or_insert(0) += 1;
        self.first.get_or_insert(error);
    }

    fn named(&self, slot: usize) -> String {
        format!("connection {}", self.offset + slot)
    }

    fn place(&self, slot: usize, sequence: u64) -> String {
        format!("{}, sequence {sequence}", self.named(slot))
    }
}

/// The symbolic name, such as ECONNRESET.
fn errno_name(errno: Errno) -> String {
    format!("{errno:?}")
}
