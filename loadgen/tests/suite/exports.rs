//! The forms for other tools: each holds what the result holds.

use std::fs;

use hdrhistogram::{
    Histogram,
    serialization::{
        Deserializer,
        interval_log::{IntervalLogIterator, LogEntry},
    },
};
use serde_json::Value;

use crate::common::{folder, run};

const SHORT: [&str; 13] = [
    "compare",
    "--backend",
    "io_uring:direct,epoll",
    "-c",
    "2,8",
    "-d",
    "100ms",
    "--warmup",
    "20ms",
    "--rounds",
    "6",
    "--timeout",
    "20s",
];

#[test]
fn every_export_agrees_with_the_result() {
    let exports = folder("exported");
    fs::create_dir_all(&exports).expect("a folder");
    let path = |name: &str| exports.join(name).to_str().expect("text").to_owned();
    let (csv, github, bencher) = (path("cells.csv"), path("bench.json"), path("bencher.json"));
    let (hlog, hgrm) = (path("latency.hlog"), path("latency.hgrm"));
    let options = [
        ["--export-csv", &csv],
        ["--export-github", &github],
        ["--export-bencher", &bencher],
        ["--export-hlog", &hlog],
        ["--export-hgrm", &hgrm],
    ];
    let run = run("exports", &[&SHORT[..], options.as_flattened()].concat());
    assert_eq!(run.code, Some(0), "{run:#?}");
    let cells = run.document()["cells"].as_array().expect("cells");
    let comparisons = run.document()["comparisons"].as_array().expect("comparisons");
    let text = |name: &str| fs::read_to_string(exports.join(name)).expect(name);
    let json = |name: &str| -> Value { serde_json::from_str(&text(name)).expect(name) };

    let csv = text("cells.csv");
    assert_eq!(csv.lines().count(), cells.len() + 1);
    let widths: Vec<usize> = csv.lines().map(|line| line.split(',').count()).collect();
    assert!(widths.iter().all(|width| *width == widths[0]), "{csv}");

    let ratio =
        comparisons.iter().find(|comparison| comparison["metric"] == "rps").expect("a ratio of rates");
    let name = "io_uring:direct / epoll, 2 connections: requests/s";
    let bigger = json("bench-bigger.json");
    assert_eq!(bigger.as_array().map(Vec::len), Some(2 * 2), "two rows, twice: {bigger:#}");
    let ratios = json("bench-ratio.json");
    let entries = ratios.as_array().expect("a list");
    assert_eq!(entries.len(), 2, "one ratio, twice: {ratios:#}");
    let entry = entries.iter().find(|entry| entry["name"] == name).expect(name);
    assert_eq!((&entry["value"], &entry["unit"]), (&ratio["ratio"], &"ratio".into()));
    let smaller = json("bench-smaller.json");
    let smaller = smaller.as_array().expect("a list");
    assert!(smaller.iter().all(|entry| entry["value"].is_number() && entry["unit"] != "req/s"));

    let value = &json("bencher.json")["io_uring:direct-vs-epoll/2"]["throughput-ratio"];
    assert_eq!(
        [&value["value"], &value["lower_value"], &value["upper_value"]],
        [&ratio["ratio"], &ratio["low"], &ratio["high"]]
    );

    let counted: Vec<&Value> = cells.iter().filter(|cell| cell["spoiled"] == false).collect();
    let log = text("latency.hlog");
    assert!(log.starts_with("#[Histogram log format version 1.3]"), "{log}");
    let intervals: Vec<_> = IntervalLogIterator::new(log.as_bytes())
        .filter_map(|entry| match entry.expect("a line of the log") {
            LogEntry::Interval(interval) => Some(interval),
            _ => None,
        })
        .collect();
    assert_eq!(intervals.len(), counted.len());
    for (interval, cell) in intervals.iter().zip(&counted) {
        let tag = format!("{}/{}", cell["row"].as_str().expect("a name"), cell["connections"]);
        assert_eq!(interval.tag().expect("a tag").as_str(), tag);
        let bytes = base64(interval.encoded_histogram());
        let histogram: Histogram<u64> =
            Deserializer::new().deserialize(&mut bytes.as_slice()).expect("V2 deflate");
        assert!(histogram.len() >= cell["counts"]["requests"].as_u64().expect("a number"));
    }

    let percentiles = text("latency-epoll-8.hgrm");
    assert!(percentiles.contains("1/(1-Percentile)") && percentiles.contains("#[Mean"), "{percentiles}");
    assert!(exports.join("latency-io_uring+direct-2.hgrm").exists());
}

fn base64(text: &str) -> Vec<u8> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.decode(text).expect("base64")
}

#[test]
fn an_export_without_a_folder_is_refused_before_anything_is_measured() {
    let run = run("no-export", &["run", "--backend", "epoll", "--export-csv", "no/such/folder/cells.csv"]);
    assert_eq!(run.code, Some(3), "{run:#?}");
    for word in ["no/such/folder/cells.csv", "no such folder", "make it first"] {
        assert!(run.complaint().contains(word), "{run:#?}");
    }
    assert!(run.result.is_none(), "{run:#?}");
}
