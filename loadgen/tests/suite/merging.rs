//! Results of machines that loaded one server at the same time become one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use hdrhistogram::{Histogram, serialization::Deserializer};
use serde_json::Value;

use crate::common::{answering, assert_valid, folder, loadgen, read_result, run};

/// Two results of one load. Their windows are set to the same moment: that two processes begin at once is
/// nothing that a test can rely on.
fn parts(test: &str, more: &[&str]) -> [(PathBuf, Value); 2] {
    let address = answering(|request, _| Some(request.to_vec()));
    let target = format!("tcp://{address}");
    let line = [&["run", &target, "-c", "2,4", "-d", "200ms", "--warmup", "0"], more].concat();
    let documents = ["first", "second"].map(|name| undisturbed(&format!("{test}-{name}"), &line));
    let opened: Vec<Value> =
        cells(&documents[0]).iter().map(|cell| cell["window_opened_unix_seconds"].clone()).collect();
    let mut number = 0;
    documents.map(|mut document| {
        number += 1;
        for (cell, opened) in document["cells"].as_array_mut().expect("cells").iter_mut().zip(&opened) {
            cell["window_opened_unix_seconds"] = opened.clone();
        }
        (keep(&format!("{test}-part-{number}"), &document), document)
    })
}

/// A run that did not have to repeat a cell, for else its plan is another one.
fn undisturbed(test: &str, line: &[&str]) -> Value {
    for attempt in 0..20 {
        let run = run(&format!("{test}-{attempt}"), line);
        assert_eq!(run.code, Some(0), "{run:#?}");
        if cells(run.document()).iter().all(|cell| cell["repeat"] == false) {
            return run.document().clone();
        }
    }
    panic!("neighbours spoil every run");
}

fn keep(test: &str, document: &Value) -> PathBuf {
    let folder = folder(test);
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("result.json"), document.to_string()).expect("written");
    folder
}

fn cells(document: &Value) -> &Vec<Value> {
    document["cells"].as_array().expect("cells")
}

fn merge(parts: &[&Path], into: &Path) -> Output {
    loadgen(&["merge"]).args(parts).arg("-o").arg(into).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

fn values(cell: &Value) -> u64 {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let bytes = STANDARD.decode(cell["histogram"].as_str().expect("text")).expect("base64");
    let histogram: Histogram<u64> =
        Deserializer::new().deserialize(&mut bytes.as_slice()).expect("V2 deflate");
    histogram.len()
}

#[test]
fn two_machines_are_one_load() {
    let [(first, one), (second, other)] = parts("merge", &[]);
    let into = folder("merged");
    let ended = merge(&[&first, &second], &into);
    assert_eq!((ended.status.code(), text(&ended.stderr)), (Some(0), String::new()), "{ended:?}");
    let merged = read_result(&into).expect("a result");
    assert_valid(&merged);
    assert_eq!(merged["command"][1], "merge");
    assert_eq!(merged["merged_from"].as_array().map(Vec::len), Some(1));
    assert_eq!(merged["merged_from"][0]["kernel"], one["machine"]["kernel"]);
    assert_eq!(cells(&merged).len(), 2);
    for (cell, (one, other)) in cells(&merged).iter().zip(cells(&one).iter().zip(cells(&other))) {
        for count in
            ["requests", "requests_all_phases", "bytes_each_way", "connections_asked", "connections_alive"]
        {
            let sum = one["counts"][count].as_u64().zip(other["counts"][count].as_u64()).map(|(a, b)| a + b);
            assert_eq!(cell["counts"][count].as_u64(), sum, "{count}");
        }
        let sum = one["rps"].as_f64().zip(other["rps"].as_f64()).map(|(a, b)| a + b);
        assert_eq!(cell["rps"].as_f64(), sum);
        assert_eq!(cell["connections"].as_u64(), one["connections"].as_u64().map(|count| 2 * count));
        assert_eq!(values(cell), values(one) + values(other));
        assert!(cell["costs"]["client_cpu_share"].is_null());
    }
    let screen = text(&ended.stdout);
    assert!(screen.contains("4 connections") && screen.contains("8 connections"), "{screen}");
    assert_eq!(screen, fs::read_to_string(into.join("report.txt")).expect("a report"));
    let again = loadgen(&["report"]).arg(&into).output().expect("the binary runs");
    assert_eq!(text(&again.stdout), screen, "a merged result is a result");
}

#[test]
fn objectives_are_those_of_the_whole_load() {
    let asking = |rate: f64, parts: &[(PathBuf, Value); 2]| {
        let parts = [0, 1].map(|index| {
            let mut document = parts[index].1.clone();
            document["settings"]["objectives"] = vec![format!("rps>{rate:.0}")].into();
            keep(&format!("asking-part-{index}"), &document)
        });
        merge(&[&parts[0], &parts[1]], &folder("asking")).status.code()
    };
    let parts = parts("asking", &[]);
    let rates = |part: usize| cells(&parts[part].1).iter().map(|cell| cell["rps"].as_f64().expect("a rate"));
    let least = rates(0).zip(rates(1)).map(|(a, b)| a + b).fold(f64::INFINITY, f64::min);
    assert_eq!(asking(least * 0.99, &parts), Some(0), "no machine alone has this rate");
    assert_eq!(asking(least * 1.01, &parts), Some(4));
}

#[test]
fn what_was_not_one_load_is_refused_before_anything_is_written() {
    let [(first, _), (_, other)] = parts("apart", &[]);
    let changed = |name: &str, change: fn(&mut Value)| {
        let mut document = other.clone();
        change(&mut document);
        keep(&format!("apart-{name}"), &document)
    };
    let late = changed("late", |document| {
        let opened = &mut document["cells"][1]["window_opened_unix_seconds"];
        *opened = (opened.as_f64().expect("a moment") + 0.1).into();
    });
    for (second, word) in [
        (first.clone(), "is named twice"),
        (late, "start the runs at the same moment"),
        (changed("partial", |document| document["complete"] = false.into()), "is not complete"),
        (changed("verify", |document| document["settings"]["verify"] = "off".into()), "settings (verify)"),
    ] {
        let into = folder("apart-merged");
        let ended = merge(&[&first, &second], &into);
        let complaint = text(&ended.stderr);
        assert_eq!((ended.status.code(), complaint.lines().count()), (Some(2), 1), "{ended:?}");
        assert!(complaint.contains(word), "'{word}' in {complaint}");
        assert!(!into.exists() && ended.stdout.is_empty());
    }
    let alone = merge(&[&first], &folder("apart-alone"));
    assert_eq!(alone.status.code(), Some(2), "{alone:?}");
}
