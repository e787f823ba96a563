//! The example `weblog_push`, by the clock: a second takes no time.

#[path = "../../examples/pace/mod.rs"]
mod pace;
#[path = "../../examples/pushing/mod.rs"]
mod pushing;
#[allow(dead_code)]
#[path = "../../examples/webloglib/mod.rs"]
mod webloglib;

use std::{
    fs::{self, OpenOptions},
    io::Write,
    ops::Range,
    path::PathBuf,
    time::Duration,
};

use ringspun::testing::{MemoryPeer, MemoryReactor};

use self::pushing::WebLogFactory;

const RECORDS: usize = 1000;
const SECOND: Duration = Duration::from_secs(1);

/// A log of the test's own, gone with it.
struct Log(PathBuf);

impl Log {
    fn new() -> Self {
        let log = Self(std::env::temp_dir().join(format!("ringspun-pushed-{}", std::process::id())));
        fs::write(&log.0, line(999_999)).unwrap();
        log
    }

    fn append(&self, number: usize) {
        let mut file = OpenOptions::new().append(true).open(&self.0).unwrap();
        file.write_all(line(number).as_bytes()).unwrap();
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn line(number: usize) -> String {
    format!("10.0.0.1 - - [13/Oct/2026:13:55:36 +0000] \"GET /{number} HTTP/1.1\" 200 {number}\n")
}

/// What a client was told, to its end.
#[derive(Default)]
struct Told(String);

impl Told {
    fn take(&mut self, peer: &mut MemoryPeer) {
        self.0 += std::str::from_utf8(&peer.take_received()).unwrap();
    }

    /// The greeting, and then each of these records once.
    fn expect(&self, numbers: Range<usize>) {
        let told = self.0.strip_prefix("<hits>").expect("the greeting comes first");
        let told: Vec<_> = told.split_inclusive("</hit>").map(number).collect();
        assert!(
            told.iter().copied().eq(numbers.clone()),
            "{} records, {:?} to {:?}, in place of {numbers:?}",
            told.len(),
            told.first(),
            told.last(),
        );
    }
}

fn number(hit: &str) -> usize {
    let hit = hit.strip_suffix("</bytes></hit>").unwrap_or_else(|| panic!("no whole hit: {hit}"));
    hit.rsplit_once("<bytes>").unwrap().1.parse().unwrap()
}

#[test]
fn weblog_by_push_tells_each_connected_client_each_record_once() {
    let (log, mut memory) = (Log::new(), MemoryReactor::new());
    memory.set_buffer_bytes(1000);
    let port = memory.reactor().listen_tcp(("127.0.0.1", 0), WebLogFactory::new(&log.0)).unwrap();
    let (mut steady, mut fickle) = (memory.connect(&port).unwrap(), memory.connect(&port).unwrap());
    let [mut to_steady, mut to_fickle, mut to_fickle_again] = [(); 3].map(|()| Told::default());
    for number in 0..RECORDS {
        match number {
            200 => steady.pause(),
            // Five records are not pushed yet.
            305 => {
                to_fickle.take(&mut fickle);
                fickle.close();
            }
            // And five more are not, which are for the other one only.
            455 => fickle = memory.connect(&port).unwrap(),
            800 => {
                to_steady.take(&mut steady);
                to_steady.expect(0..200);
                steady.resume();
            }
            _ => {}
        }
        memory.turn();
        log.append(number);
        if number % 10 == 9 {
            memory.advance(SECOND);
        }
    }
    // Nobody is told anything twice, or late.
    memory.advance(60 * SECOND);
    to_steady.take(&mut steady);
    to_fickle_again.take(&mut fickle);
    to_steady.expect(0..RECORDS);
    to_fickle.expect(0..300);
    to_fickle_again.expect(455..RECORDS);
    assert_eq!(memory.pending_calls(), 1, "the next look at the log");
    port.stop_listening();
    drop(steady);
    drop(fickle);
    memory.turn();
    assert_eq!(memory.pending_calls(), 0);
    memory.stop().unwrap();
}

#[test]
fn a_line_becomes_a_record_whatever_stands_in_it() {
    let hit = |user, request, bytes| {
        Some(format!(
            "<hit><host>10.0.0.1</host><user>{user}</user><time>22/Nov/2026:10:00:00 +0000</time>\
             <request>{request}</request><status>200</status><bytes>{bytes}</bytes></hit>"
        ))
    };
    let line = |user: &str, rest: &str| {
        webloglib::hit_tag(&format!("10.0.0.1 - {user} [22/Nov/2026:10:00:00 +0000] {rest}"))
    };
    assert_eq!(line("-", "\"GET / HTTP/1.1\" 200 17"), hit("-", "GET / HTTP/1.1", "17"));
    assert_eq!(line("-", "\"GET / HTTP/1.1\" 200 -"), hit("-", "GET / HTTP/1.1", "-"));
    let combined = "\"GET / HTTP/1.1\" 200 17 \"http://from.example/\" \"an agent\"";
    assert_eq!(line("-", combined), hit("-", "GET / HTTP/1.1", "17"));
    assert_eq!(
        line("a b", "\"GET /?a=1&b=<2> HTTP/1.1\" 200 1"),
        hit("a b", "GET /?a=1&amp;b=&lt;2&gt; HTTP/1.1", "1")
    );
    assert_eq!(line("-", r#""GET /\" 5 HTTP/1.1" 200 1"#), hit("-", r"GET /\&quot; 5 HTTP/1.1", "1"));
    assert_eq!(line("-", "\"GET /\u{7}\" 200 1"), hit("-", "GET /\u{fffd}", "1"));
    for wrong in ["", "\"GET /", "\"GET /\" ok 1", "\"GET /\" 200", "\"GET /\" 200 many", "GET / 200 1"] {
        assert_eq!(line("-", wrong), None, "{wrong}");
    }
    assert_eq!(webloglib::hit_tag("nothing of the kind"), None);
}
