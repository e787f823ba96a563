//! A sweep: every combination is a point, and its screen shows curves.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::common::{assert_valid, folder, loadgen, run};

const SHORT: [&str; 5] = ["-d", "50ms", "--warmup", "10ms", "--pin=auto"];

#[test]
fn every_combination_is_measured_and_shown() {
    let csv = folder("sweep-csv").with_extension("csv");
    let lists = ["sweep", "--backend", "io_uring,epoll", "-c", "1,8", "-s", "64,24:1+4KiB:1", "-p", "1,16"];
    let more = ["--rounds", "1", "--export-csv", csv.to_str().expect("text")];
    let run = run("sweep", &[&lists[..], &SHORT, &more].concat());
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert_valid(run.document());
    assert_eq!(run.document()["settings"]["command"], "sweep");
    let points = run.document()["settings"]["points"].as_array().expect("points");
    assert_eq!(points.len(), 8);
    let cells = run.document()["cells"].as_array().expect("cells");
    let place = |cell: &Value| ["row", "connections", "size", "pipeline"].map(|name| cell[name].to_string());
    assert_eq!(cells.iter().map(place).collect::<BTreeSet<_>>().len(), 16);

    assert!(
        run.stdout.lines().all(|line| line.chars().count() <= 80 || line.starts_with("Report")),
        "{}",
        run.stdout
    );
    let tables: Vec<&str> = run.stdout.lines().filter(|line| line.starts_with("pipeline ")).collect();
    assert_eq!(tables.len(), 4, "what varies last heads the columns, once a table: {}", run.stdout);
    for part in
        ["1 connection, 64 B requests\n", "8 connections, 24:1+4096:1 B requests\n", "epoll (baseline)\n"]
    {
        assert!(run.stdout.contains(part), "'{part}' in {}", run.stdout);
    }
    let of_pipeline = |depth: &str| {
        // Paragraphs below the tables are set in further.
        let lines = run.stdout.lines().filter_map(|line| line.strip_prefix("  "));
        let values = lines.filter_map(|line| line.split(' ').next());
        values.filter(|value| value.trim_end_matches('*') == depth).count()
    };
    assert_eq!((of_pipeline("1"), of_pipeline("16")), (8, 8), "{}", run.stdout);
    assert!(run.stdout.starts_with("1 round of 50ms\n"), "nothing is the same at all points: {}", run.stdout);
    // A busy machine may spoil a cell twice, which leaves out its point.
    let verdict = run.document()["summary"]["verdict"].as_str().expect("a sentence");
    assert!(
        verdict.starts_with("io_uring against epoll, of ") && verdict.contains("points: inconclusive at"),
        "{verdict}"
    );

    let exported = std::fs::read_to_string(csv).expect("exported");
    assert_eq!(exported.lines().count(), 1 + cells.len());
    let folder =
        std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("sweep-{}", std::process::id()));
    let again = loadgen(&["report"]).arg(folder).output().expect("the binary runs");
    assert_eq!(String::from_utf8(again.stdout).expect("text"), run.stdout);
}

#[test]
fn one_row_over_rates_is_a_curve_without_ratios() {
    let line =
        ["sweep", "--backend", "epoll", "-R", "200,400", "--rounds", "1", "-d", "100ms", "--warmup", "0"];
    let run = run("sweep-rates", &line);
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert_valid(run.document());
    assert!(run.stdout.starts_with("64 connections, 64 B requests, 1 round of 100ms\n"), "{}", run.stdout);
    assert!(run.stdout.contains("\nrate ") && run.stdout.contains("\n  400/s"), "{}", run.stdout);
    for word in ["ratio", "baseline", "Verdict"] {
        assert!(!run.stdout.contains(word), "{}", run.stdout);
    }
}

#[test]
fn lists_that_make_no_sense_are_refused() {
    let long = (1..=300).map(|count| count.to_string()).collect::<Vec<_>>().join(",");
    for (line, words) in [
        (["sweep", "-p", "0"], "count must be at least 1"),
        (["sweep", "-p", "1,1025"], "deepest pipeline is 1024"),
        (["sweep", "-s", "64,64"], "-s names 64 twice"),
        (["sweep", "-c", &long], "300 combinations, at most 256"),
        (["compare", "-p", "1,16"], "'1,16' is not a count"),
        (["compare", "-R", "1k,2k"], "'1k,2k' is not a count"),
    ] {
        let run = run("sweep-refused", &line);
        assert_eq!(run.code, Some(2), "{run:#?}");
        assert!(run.complaint().contains(words), "'{words}' in {run:#?}");
        assert!(run.result.is_none(), "{run:#?}");
    }
}
