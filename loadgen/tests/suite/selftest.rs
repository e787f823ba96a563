//! The instrument measures itself.

use std::process::Output;

use crate::common::loadgen;

fn part(name: &str) -> (Output, String) {
    let output = loadgen(&["selftest", "--part", name]).output().expect("the binary runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output, text)
}

#[test]
fn every_planted_fault_is_found_as_what_it_is() {
    let (output, text) = part("faults");
    assert_eq!(output.status.code(), Some(0), "{output:#?}");
    let wanted = [
        ("flipped byte", "corrupted at byte 63"),
        ("swapped reply", "got the reply of connection"),
        ("lost reply", "no reply within 500ms"),
        ("repeated reply", "once more"),
        ("stalled server", "service up to"),
        ("slow client", "lag up to"),
    ];
    assert_eq!(text.lines().count(), wanted.len(), "{text}");
    for (line, (fault, told)) in text.lines().zip(wanted) {
        assert!(line.starts_with(&format!("planted {fault}: found: ")) && line.contains(told), "{line}");
    }
}

#[test]
fn the_floors_are_figures() {
    for (name, lines, words) in
        [("ceiling", 2, "requests a core and second"), ("lag", 2, "p99"), ("noise", 4, "against itself")]
    {
        let (output, text) = part(name);
        assert_eq!(output.status.code(), Some(0), "{output:#?}");
        assert_eq!(
            text.lines().filter(|line| line.contains(words) && !line.contains("not available")).count(),
            lines,
            "{text}"
        );
    }
}
