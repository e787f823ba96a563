//! The main job: backends compared, every figure there, the result as its schema says.

use std::collections::BTreeSet;

use crate::common::{Run, answering, assert_valid, folder, lives, loadgen, run};
use serde_json::Value;

const SHORT: [&str; 10] =
    ["compare", "-c", "2,20", "-d", "100ms", "--warmup", "20ms", "--rounds", "6", "--pin=auto"];

fn cells(run: &Run) -> &Vec<Value> {
    run.document()["cells"].as_array().expect("cells")
}

fn all_there(cell: &Value) {
    for cost in ["server_cpu_us_per_request", "total_cpu_us_per_request", "syscalls_per_request"] {
        assert!(cell["costs"][cost].as_f64().is_some_and(|value| value > 0.0), "{cost}: {cell:#}");
    }
    assert!(
        cell["costs"]["server_peak_memory_bytes"].as_u64().is_some_and(|bytes| bytes > 100_000),
        "{cell:#}"
    );
    assert!(cell["rps"].as_f64().is_some_and(|rps| rps > 0.0), "{cell:#}");
    assert!(cell["histogram"].is_string() && cell["latency"]["p99_us"].is_number(), "{cell:#}");
    assert_eq!(cell["errors"], Value::Array(Vec::new()));
    assert_eq!(cell["server"]["backend"], cell["row"]);
}

#[test]
fn three_backends_are_compared_in_balanced_rounds() {
    let run = run("three", &SHORT);
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert_valid(run.document());
    assert_eq!(run.document()["complete"], true);
    let first_time: Vec<&Value> = cells(&run).iter().filter(|cell| cell["repeat"] == false).collect();
    assert_eq!(first_time.len(), 6 * 3 * 2);
    // On a machine that has no time for it a short window may see nothing.
    let busy = first_time.iter().filter(|cell| cell["counts"]["requests"].as_u64() > Some(100));
    busy.clone().for_each(|cell| all_there(cell));
    assert!(busy.count() > 18, "{run:#?}");
    let orders: BTreeSet<String> =
        run.document()["plan"].as_array().expect("plan").iter().map(ToString::to_string).collect();
    assert_eq!(orders.len(), 6, "all permutations");
}

#[test]
fn comparisons_hold_every_metric_with_ratio_interval_and_verdict() {
    let run = run("metrics", &[&SHORT[..], &["--backend", "io_uring,epoll", "--format", "json"]].concat());
    assert_eq!(run.code, Some(0), "{run:#?}");
    let printed: Value = serde_json::from_str(&run.stdout).expect("standard output is the result");
    assert_eq!(&printed, run.document());
    let comparisons = run.document()["comparisons"].as_array().expect("comparisons");
    let metrics: BTreeSet<&str> =
        comparisons.iter().filter_map(|comparison| comparison["metric"].as_str()).collect();
    assert_eq!(metrics.len(), 6, "{metrics:?}");
    for comparison in comparisons {
        assert_eq!((&comparison["a"], &comparison["b"]), (&"io_uring".into(), &"epoll".into()));
        let value = |name: &str| comparison[name].as_f64();
        if comparison["rounds"] == 6 {
            let (low, ratio, high) = (value("low"), value("ratio"), value("high"));
            assert!(low.is_some() && low <= ratio && ratio <= high, "{comparison:#}");
        }
    }
}

#[test]
fn the_screen_fits_80_columns_and_ends_with_four_lines() {
    let run = run(
        "screen",
        &[&SHORT[..], &["--rounds", "1", "--backend", "io_uring:direct,epoll,threads"]].concat(),
    );
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert!(!run.stdout.contains('\u{1b}'), "no colours");
    for line in run.stdout.lines().filter(|line| !line.starts_with("Report")) {
        assert!(line.chars().count() <= 80, "{line}");
    }
    let labels = run.stdout.lines().filter_map(|line| line.split_once("  "));
    let labels: Vec<&str> =
        labels.map(|(label, _)| label).filter(|label| label.starts_with(['V', 'R'])).collect();
    assert_eq!(labels, ["Verdict", "Verified", "Valid", "Report"], "{}", run.stdout);
}

#[test]
fn every_variant_runs_as_what_it_is() {
    for variant in [
        "io_uring",
        "io_uring:direct",
        "io_uring:no-multishot",
        "io_uring:latency",
        "io_uring:spin",
        "epoll",
        "threads",
        "raw-uring",
        "raw-uring:direct",
        "raw-epoll",
        "raw-epoll:spin",
        "raw-threads",
    ] {
        let line = ["run", "--backend", variant, "-c", "8", "-d", "100ms", "--warmup", "20ms"];
        let run = run(&format!("variant-{}", variant.replace(':', "-")), &line);
        assert_eq!(run.code, Some(0), "{variant}: {run:#?}");
        let cell = &cells(&run)[0];
        assert_eq!(cell["row"], variant);
        assert_eq!(
            cell["server"]["descriptors"],
            if variant.contains("direct") { "direct" } else { "plain" }
        );
        assert_eq!(cell["counts"]["connections_alive"], 8);
    }
}

#[test]
fn who_spins_looks_again_and_again_before_it_sleeps() {
    for transport in ["tcp", "udp"] {
        for (backend, spins) in [("raw-epoll", false), ("raw-epoll:spin", true), ("io_uring:spin", true)] {
            let line = ["run", "--backend", backend, "--transport", transport, "-c", "2", "-R", "500"];
            let line = [&line[..], &["-d", "300ms", "--warmup", "0"]].concat();
            let run = run(&format!("spins-{}-{transport}", backend.replace(':', "-")), &line);
            assert_eq!(run.code, Some(0), "{backend} over {transport}: {run:#?}");
            let calls = cells(&run)[0]["costs"]["syscalls_per_request"].as_f64().expect("a figure");
            assert_eq!(calls > 10.0, spins, "{backend} over {transport}: {calls} system calls a request");
        }
    }
}

#[test]
fn large_and_least_messages_are_verified_too() {
    for backend in
        ["io_uring", "epoll", "threads", "raw-uring", "raw-uring:direct", "raw-epoll", "raw-threads"]
    {
        for size in ["24", "100kB", "1MiB"] {
            let line = ["run", "--backend", backend, "-c", "3", "-s", size, "-d", "150ms", "--warmup", "0"];
            let run = run(&format!("size-{}-{size}", backend.replace(':', "-")), &line);
            assert_eq!(run.code, Some(0), "{backend}, {size}: {run:#?}");
            assert!(cells(&run)[0]["counts"]["requests"].as_u64() > Some(0), "{backend}, {size}");
        }
    }
}

#[test]
fn what_a_foreign_server_does_not_tell_is_not_available() {
    let address = answering(|request, _| Some(request.to_vec()));
    let line = ["run", &format!("tcp://{address}"), "-c", "2", "-d", "100ms", "--warmup", "0"];
    let run = run("foreign", &line);
    assert_eq!(run.code, Some(0), "{run:#?}");
    let costs = &cells(&run)[0]["costs"];
    for cost in ["server_cpu_us_per_request", "total_cpu_us_per_request", "syscalls_per_request"] {
        assert!(costs[cost].is_null(), "{costs:#}");
    }
    assert!(run.stdout.contains("-: not available"), "{}", run.stdout);
}

/// A server of another kind: the echo of this binary, without its control pipe.
fn hired(name: &str, backend: &str) -> String {
    format!("{name}={} serve --backend {backend} --port {{port}}", env!("CARGO_BIN_EXE_loadgen"))
}

#[test]
fn other_programs_are_rows_like_any() {
    let (base, new) = (hired("base", "raw-epoll"), hired("new", "raw-uring"));
    let line = ["compare", "--server", &base, "--server", &new, "--backend", "epoll", "--baseline", "base"];
    let more = ["-c", "4", "-d", "100ms", "--warmup", "20ms", "--rounds", "2"];
    let run = run("hired", &[&line[..], &more].concat());
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert_valid(run.document());
    for cell in cells(&run).iter().filter(|cell| cell["row"] != "epoll") {
        assert_eq!(cell["server"]["backend"], cell["row"]);
        assert!(cell["costs"]["server_cpu_us_per_request"].as_f64() > Some(0.0), "{cell:#}");
        assert!(cell["costs"]["server_peak_memory_bytes"].as_u64() > Some(100_000), "{cell:#}");
        assert!(cell["costs"]["syscalls_per_request"].is_null(), "it counts nothing for others: {cell:#}");
        assert!(!lives(cell["server"]["pid"].as_u64().expect("a number") as u32));
    }
    let comparisons = run.document()["comparisons"].as_array().expect("comparisons");
    assert!(comparisons.iter().all(|comparison| comparison["b"] == "base"), "{comparisons:#?}");
}

#[test]
fn results_are_never_overwritten() {
    let folder = folder("twice");
    let line = ["run", "--backend", "epoll", "-c", "1", "-d", "30ms", "--warmup", "0", "-o"];
    for _ in 0..2 {
        let output = loadgen(&line).arg(&folder).output().expect("the binary runs");
        assert!(output.status.success(), "{output:#?}");
    }
    assert!(folder.join("result.json").exists());
    let mut second = folder.into_os_string();
    second.push("-2");
    assert!(std::path::Path::new(&second).join("report.txt").exists());
}
