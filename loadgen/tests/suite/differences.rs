//! Two results against each other: what changed is shown, gates are judged, and what is not alike is told.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use serde_json::Value;

use crate::common::{folder, loadgen};

const PUBLISHED: &str = include_str!("../../../results/2026-11-21-6.18.44-fc-v669-d761dbcb95b4/result.json");

fn published() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../results/2026-11-21-6.18.44-fc-v669-d761dbcb95b4")
}

/// The published result, changed, in a folder of its own.
fn changed(test: &str, change: impl Fn(&mut Value)) -> PathBuf {
    let mut document: Value = serde_json::from_str(PUBLISHED).expect("JSON");
    change(&mut document);
    let folder = folder(test);
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("result.json"), document.to_string()).expect("written");
    folder
}

fn scale(value: &mut Value, factor: f64) {
    *value = (value.as_f64().expect("a number") * factor).into();
}

/// As if io_uring alone had become this much faster.
fn faster(document: &mut Value, factor: f64) {
    for cell in document["cells"].as_array_mut().expect("cells") {
        if cell["row"] == "io_uring" {
            scale(&mut cell["rps"], factor);
        }
    }
    for comparison in document["comparisons"].as_array_mut().expect("comparisons") {
        if comparison["metric"] == "rps" && comparison["a"] == "io_uring" {
            scale(&mut comparison["ratio"], factor);
            comparison["ratios"]
                .as_array_mut()
                .expect("ratios")
                .iter_mut()
                .for_each(|one| scale(one, factor));
        }
    }
}

fn diff(old: &Path, new: &Path, more: &[&str]) -> Output {
    loadgen(&["diff"]).args([old, new]).args(more).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

#[test]
fn a_result_does_not_differ_from_itself() {
    let same = diff(&published(), &published(), &["--gate", "rps>-3%", "--gate", "p99<+10%"]);
    assert_eq!((same.status.code(), text(&same.stderr)), (Some(0), String::new()), "{same:?}");
    let screen = text(&same.stdout);
    assert!(screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
    assert!(!screen.contains('*'), "nothing changed: {screen}");
    for part in
        ["64 connections", "1,000 connections", "io_uring / epoll", "rps>-3%: passed, 6 of 6", "cancels"]
    {
        assert!(screen.contains(part), "'{part}' in {screen}");
    }
    // Of threads over 1,000 connections no latency is told, since some of them starved.
    assert!(screen.contains("p99<+10%: passed, 5 of 5"), "{screen}");
}

#[test]
fn a_gate_that_fails_ends_with_4_and_says_which() {
    let slower = changed("diff-slower", |document| faster(document, 0.5));
    let gates = ["--gate", "rps>-3%", "--gate", "rps[io_uring/epoll]>-3%", "--gate", "rps[epoll]>-3%"];
    let failed = diff(&published(), &slower, &gates);
    assert_eq!(failed.status.code(), Some(4), "{failed:?}");
    let complaint = text(&failed.stderr);
    assert_eq!(complaint, "loadgen: 2 of 3 gates failed: rps>-3%, rps[io_uring/epoll]>-3%\n");
    let screen = text(&failed.stdout);
    for part in ["rps>-3%: FAILED by io_uring over 64", "rps[epoll]>-3%: passed, 2 of 2", "0.500 ["] {
        assert!(screen.contains(part), "'{part}' in {screen}");
    }
    let back = diff(&slower, &published(), &gates);
    assert_eq!(back.status.code(), Some(0), "faster passes: {back:?}");
}

#[test]
fn the_json_of_a_difference_holds_what_the_screen_shows() {
    let slower = changed("diff-json", |document| {
        faster(document, 0.5);
        document["machine"]["kernel"] = "1.2.3".into();
    });
    let ended = diff(&published(), &slower, &["--format", "json", "--gate", "rps>-3%"]);
    assert_eq!(ended.status.code(), Some(4));
    let warning = text(&ended.stderr);
    assert!(warning.starts_with("warning: the runs differ in more than time: kernel 6."), "{warning}");
    assert!(warning.contains("against 1.2.3"), "{warning}");
    let diff: Value = serde_json::from_slice(&ended.stdout).expect("JSON");
    assert_eq!((&diff["passed"], &diff["schema"]), (&false.into(), &"ringspun-loadgen-diff/1".into()));
    assert_eq!(diff["differences"].as_array().map(Vec::len), Some(1), "{diff:#}");
    let changes = diff["changes"].as_array().expect("changes");
    let halved = changes.iter().filter(|change| {
        change["metric"] == "rps" && change["series"].as_str().expect("a name").starts_with("io_uring")
    });
    for change in halved.clone() {
        assert!((change["ratio"].as_f64().expect("a number") - 0.5).abs() < 1e-9, "{change:#}");
        assert!(change["high"].as_f64() < Some(1.0) && change["p"].as_f64() < Some(0.05), "{change:#}");
        assert_eq!((&change["rounds_old"], &change["size"]), (&12.into(), &64.into()));
    }
    assert_eq!(halved.count(), 4, "a row and a ratio at two points");
    let failures = diff["gates"][0]["failures"].as_array().expect("failures");
    assert_eq!(failures.len(), 2, "{failures:#?}");
}

#[test]
fn what_cannot_be_compared_or_gated_is_refused() {
    let none = changed("diff-none", |document| {
        (document["cells"], document["comparisons"]) = (Value::Array(Vec::new()), Value::Array(Vec::new()));
    });
    for (new, gate, word) in [
        (published(), "rps", "has no bound"),
        (published(), "speed>-3%", "there are rps"),
        (published(), "rps[other]>-3%", "is about nothing that both results tell"),
        (none, "rps>-3%", "share no row"),
    ] {
        let ended = diff(&published(), &new, &["--gate", gate]);
        let complaint = text(&ended.stderr);
        assert_eq!((ended.status.code(), complaint.lines().count()), (Some(2), 1), "{ended:?}");
        assert!(complaint.contains(word), "'{word}' in {complaint}");
        assert_eq!(ended.stdout.len(), 0);
    }
}
