//! Passes each line of a client on to all others, on port 8000 or the first argument.
//! Try it with two terminals and `nc localhost 8000`.

mod common;

use std::{collections::BTreeMap, process::ExitCode, sync::Arc};

use log::LevelFilter;
use ringspun::{ConnId, Cx, Factory, Peer, Protocol, Reactor, Reason};

/// A client that sends more than this without a line's end is dropped.
const LINE_BYTES_MAX: usize = 16 << 10;
const NAME_CHARS_MAX: usize = 32;
const QUESTION: &str = "What is your name?\r\n";

/// Who is here, by name. The ids reach their connections from any other one's callbacks.
#[derive(Default)]
struct ChatFactory {
    present: BTreeMap<String, ConnId>,
}

/// One client: nameless until its first line.
#[derive(Default)]
struct Chat {
    name: Option<String>,
    unfinished_line: Vec<u8>,
}

impl Protocol<ChatFactory> for Chat {
    fn connection_made(&mut self, cx: &mut Cx<'_, ChatFactory>) {
        cx.transport.write(QUESTION.as_bytes());
    }

    fn data_received(&mut self, cx: &mut Cx<'_, ChatFactory>, data: &[u8]) {
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            self.unfinished_line.extend_from_slice(piece);
            if self.unfinished_line.len() > LINE_BYTES_MAX {
                return cx.transport.fail(format!("a line is longer than {LINE_BYTES_MAX} bytes"));
            }
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.unfinished_line);
                self.line_received(cx, &printable(&line));
            }
        }
    }

    fn connection_lost(&mut self, cx: &mut Cx<'_, ChatFactory>, _reason: &Reason) {
        if let Some(name) = &self.name {
            cx.factory.present.remove(name);
            tell_others(cx, &format!("{name} has left."));
        }
    }
}

impl Chat {
    fn line_received(&mut self, cx: &mut Cx<'_, ChatFactory>, line: &str) {
        match &self.name {
            Some(name) => tell_others(cx, &format!("<{name}> {line}")),
            None => self.choose_name(cx, line.trim()),
        }
    }

    fn choose_name(&mut self, cx: &mut Cx<'_, ChatFactory>, name: &str) {
        if let Some(objection) = objection(&cx.factory, name) {
            cx.transport.write_with(|out| write!(out, "{objection} {QUESTION}"));
            return;
        }
        let others: Vec<_> = cx.factory.present.keys().map(String::as_str).collect();
        let others = if others.is_empty() { "Nobody else is".to_owned() } else { others.join(", ") };
        cx.transport.write_with(|out| write!(out, "Welcome, {name}! Here: {others}.\r\n"));
        tell_others(cx, &format!("{name} has joined."));
        cx.factory.present.insert(name.to_owned(), cx.transport.id());
        self.name = Some(name.to_owned());
    }
}

/// What speaks against a name.
fn objection(factory: &ChatFactory, name: &str) -> Option<String> {
    if name.is_empty() || name.chars().count() > NAME_CHARS_MAX {
        return Some(format!("A name has 1 to {NAME_CHARS_MAX} characters."));
    }
    factory.present.contains_key(name).then(|| "That name is taken.".to_owned())
}

/// Writes one line, shared instead of copied, to everybody but this connection.
fn tell_others(cx: &mut Cx<'_, ChatFactory>, line: &str) {
    let line: Arc<[u8]> = format!("{line}\r\n").into_bytes().into();
    let me = cx.transport.id();
    for other in cx.factory.present.values().filter(|id| **id != me) {
        // Nothing to do if it is full: one who never reads is ended by `Limits::output_max`.
        cx.transport.to(*other).write_shared(&line);
    }
}

/// A line without what could play tricks on the others' terminals.
fn printable(line: &[u8]) -> String {
    String::from_utf8_lossy(line).chars().filter(|c| !c.is_control()).collect()
}

impl Factory for ChatFactory {
    type Protocol = Chat;

    fn build_protocol(&mut self, _peer: &mut Peer<'_>) -> Option<Chat> {
        Some(Chat::default())
    }
}

fn main() -> ExitCode {
    common::run(8000, LevelFilter::Info, |port| {
        let reactor = Reactor::builder().build()?;
        reactor.listen_tcp(port, ChatFactory::default())?;
        reactor.run()
    })
}
