//! A result that was written can be read: it shows as its run did, and what is none is refused in one line.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use serde_json::Value;

use crate::common::{folder, loadgen, read_result, run};

fn report(path: &Path, more: &[&str]) -> Output {
    loadgen(&["report"]).arg(path).args(more).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// Writes this into a new folder.
fn file(test: &str, name: &str, bytes: &[u8]) -> PathBuf {
    let folder = folder(test);
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join(name), bytes).expect("written");
    folder.join(name)
}

#[test]
fn a_report_is_what_its_run_showed() {
    for (test, line) in [
        ("again", &["compare", "--backend", "io_uring,epoll", "-c", "2,8", "--rounds", "6"][..]),
        ("again-paced", &["run", "--backend", "epoll", "-c", "4", "-R", "2k", "-s", "4KiB"]),
    ] {
        let run = run(test, &[line, &["-d", "100ms", "--warmup", "20ms"]].concat());
        assert_eq!(run.code, Some(0), "{run:#?}");
        // Where `run` has put it, and nothing is removed by asking again.
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}", std::process::id()));
        let kept = fs::read(folder.join("report.txt")).expect("a report");
        for path in [folder.clone(), folder.join("result.json")] {
            let again = report(&path, &[]);
            assert_eq!((again.status.code(), text(&again.stdout)), (Some(0), text(&kept)));
            assert_eq!(text(&again.stderr), "");
        }
        let json = report(&folder, &["--format", "json"]);
        let written = fs::read_to_string(folder.join("result.json")).expect("a result");
        assert!(text(&json.stdout) == written, "the JSON is the same, byte for byte");
    }
}

#[test]
fn an_export_of_a_result_is_the_export_of_its_run() {
    let own = file("export-own", "own.csv", b"");
    let line = ["run", "--backend", "epoll", "-c", "2", "-d", "100ms", "--warmup", "0", "--export-csv"];
    let run = run("export-again", &[&line[..], &[own.to_str().expect("text")]].concat());
    assert_eq!(run.code, Some(0), "{run:#?}");
    let result = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("export-again-{}", std::process::id()));
    let later = own.with_file_name("later.csv");
    let again = report(&result, &["--export-csv", later.to_str().expect("text")]);
    assert_eq!(again.status.code(), Some(0), "{again:?}");
    assert_eq!(fs::read_to_string(own).expect("exported"), fs::read_to_string(later).expect("exported"));
    let itself = result.join("../").join(result.file_name().expect("a name")).join("result.json");
    let refused = report(&result, &["--export-csv", itself.to_str().expect("text")]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(text(&refused.stderr).contains("that is the result itself"), "{refused:?}");
    assert!(read_result(&result).is_some(), "it is still there");
}

/// The folders of runs in this one, at any depth.
fn runs_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let below = entries
        .filter(|path| path.is_dir())
        .flat_map(|path| if path.join("result.json").exists() { vec![path] } else { runs_below(&path) });
    below.collect()
}

#[test]
fn published_results_can_be_read() {
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("../results");
    let folders = runs_below(&results);
    assert!(!folders.is_empty());
    for folder in folders {
        let again = report(&folder, &[]);
        assert_eq!(again.status.code(), Some(0), "{again:?}");
        let sentences = |report: &str| -> String {
            let lines = report.lines().skip_while(|line| !line.starts_with("Verdict"));
            lines.take_while(|line| !line.starts_with("Report")).collect::<Vec<_>>().join("\n")
        };
        let published = fs::read_to_string(folder.join("report.txt")).expect("a report");
        assert_eq!(sentences(&text(&again.stdout)), sentences(&published));
    }
}

#[test]
fn the_remains_of_a_killed_run_are_shown_and_not_exported() {
    let run = run("killed", &["run", "--backend", "epoll", "-c", "2", "-d", "100ms", "--warmup", "0"]);
    let mut document = run.document().clone();
    // As it stands on the disk while the run goes on.
    document["complete"] = false.into();
    (document["summary"], document["finished"]) = (Value::Null, Value::Null);
    let path = file("killed-copy", "result.json", document.to_string().as_bytes());
    let again = report(&path, &[]);
    assert_eq!(again.status.code(), Some(0), "{again:?}");
    assert!(text(&again.stdout).contains("no; the run is not complete"), "{}", text(&again.stdout));
    let csv = path.with_file_name("out.csv");
    let refused = report(&path, &["--export-csv", csv.to_str().expect("text")]);
    assert_eq!((refused.status.code(), refused.stdout.len(), csv.exists()), (Some(2), 0, false));
    assert!(text(&refused.stderr).contains("not complete"), "{refused:?}");
}

#[test]
fn what_is_no_result_ends_in_one_line() {
    let older = include_str!("../../../results/2026-11-21-6.18.44-fc-v669-8622a687090f/result.json");
    let newer = older.replace("ringspun-loadgen/1", "ringspun-loadgen/2");
    let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
    let nowhere = folder("nowhere");
    let empty = folder("empty-folder");
    fs::create_dir_all(&empty).expect("a folder");
    for (path, code, words) in [
        (nowhere, 3, ["cannot read", "name a result.json"]),
        (empty, 3, ["cannot read", "result.json"]),
        ("/dev/zero".into(), 3, ["/dev/zero", "no file"]),
        (file("r-text", "a", b"hello"), 2, ["no result of loadgen", "name a result.json"]),
        (file("r-bytes", "a", &[0xff, 0xfe, 0]), 2, ["no result of loadgen", "JSON"]),
        (file("r-nothing", "a", b""), 2, ["no result of loadgen", "JSON"]),
        (file("r-foreign", "a", br#"{"schema":"other"}"#), 2, ["no result of loadgen", "name a"]),
        (file("r-deep", "a", &deep), 2, ["no result of loadgen", "recursion"]),
        (file("r-cut", "a", &older.as_bytes()[..older.len() / 2]), 2, ["no result of loadgen", "JSON"]),
        (file("r-newer", "a", newer.as_bytes()), 2, ["ringspun-loadgen/2", "use the one that wrote it"]),
        (file("r-bare", "a", br#"{"schema":"ringspun-loadgen/1"}"#), 2, ["broken", "missing field"]),
    ] {
        let ended = report(&path, &[]);
        let complaint = text(&ended.stderr);
        assert_eq!((ended.status.code(), complaint.lines().count()), (Some(code), 1), "{ended:?}");
        assert_eq!(ended.stdout.len(), 0);
        for word in words {
            assert!(complaint.contains(word), "'{word}' in {complaint}");
        }
    }
}
