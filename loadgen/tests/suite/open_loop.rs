//! The open loop: latency counts from the intended moment, and what could not be sent is told.

use std::{
    io::{Read, Write},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::common::{Run, SIZE, answering, assert_valid, run, server};

fn paced(test: &str, address: std::net::SocketAddr, more: &[&str]) -> Run {
    let target = format!("tcp://{address}");
    let line = ["run", &target, "--warmup", "100ms", "-d", "1s"];
    let run = run(test, &[&line[..], more].concat());
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert_valid(run.document());
    run
}

fn cell(run: &Run) -> &Value {
    &run.document()["cells"][0]
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("a number: {value}"))
}

#[test]
fn requests_arrive_by_the_clock() {
    let address = answering(|request, _| Some(request.to_vec()));
    for pace in ["sleep", "spin"] {
        let more = ["-c", "8", "-R", "500", "--arrival", "constant", "--pace", pace];
        let run = paced(&format!("constant-{pace}"), address, &more);
        let cell = cell(&run);
        let offered = number(&cell["paced"]["offered"]) / number(&cell["window_seconds"]);
        assert!((offered - 500.0).abs() < 5.0, "{offered} a second: {cell:#}");
        assert_eq!(cell["counts"]["connections_starved"], 0, "nobody starves for want of requests");
        assert_eq!(run.document()["settings"]["pace"], pace);
        assert!(run.stdout.contains("500/s") && run.stdout.contains("lag p99"), "{}", run.stdout);
    }
}

#[test]
fn random_arrivals_are_the_default_and_the_cost_is_what_the_verdict_rests_on() {
    let line = ["compare", "--backend", "epoll,threads", "-c", "4", "-d", "200ms", "--warmup", "50ms"];
    let run = run("poisson", &[&line[..], &["--rounds", "6", "-R", "2k"]].concat());
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert_valid(run.document());
    let settings = &run.document()["settings"];
    assert_eq!((&settings["arrival"], &settings["pace"]), (&"poisson".into(), &"sleep".into()));
    assert_eq!(settings["primary_metric"], "server_cpu_per_request");
    let comparisons = run.document()["comparisons"].as_array().expect("comparisons");
    let primary: Vec<&Value> = comparisons.iter().filter(|one| one["primary"] == true).collect();
    assert_eq!(primary.len(), 1);
    assert_eq!(primary[0]["metric"], "server_cpu_per_request");
}

/// An echo that stops for a while, once, for all its connections.
fn stalling(stall: Duration) -> std::net::SocketAddr {
    let (count, gate) = (AtomicUsize::new(0), Mutex::new(()));
    server(move |mut stream, _| {
        let mut request = [0; SIZE];
        while stream.read_exact(&mut request).is_ok() {
            let held = gate.lock().expect("no panic");
            if count.fetch_add(1, SeqCst) == 300 {
                thread::sleep(stall);
            }
            drop(held);
            if stream.write_all(&request).is_err() {
                return;
            }
        }
    })
}

#[test]
fn a_stall_is_felt_by_all_who_arrive_meanwhile() {
    let stall = Duration::from_millis(500);
    let open = paced("stall-open", stalling(stall), &["-c", "4", "-R", "1k", "--arrival", "constant"]);
    let closed = paced("stall-closed", stalling(stall), &["-c", "4", "--warmup", "0"]);
    let (open, closed) = (cell(&open), cell(&closed));
    // Half of the second: of 1,000 who arrived in it, some 500 waited, most of them for a connection.
    assert!(number(&open["latency"]["p90_us"]) > 100_000.0, "{open:#}");
    assert!(number(&open["paced"]["late"]) > 100.0, "{open:#}");
    assert!(number(&open["paced"]["lag"]["max_us"]) > 200_000.0, "{open:#}");
    // The closed loop asks nothing meanwhile, and so feels it four times.
    assert!(number(&closed["latency"]["max_us"]) > 0.99 * stall.as_secs_f64() * 1e6, "{closed:#}");
    assert!(number(&closed["latency"]["p90_us"]) < 100_000.0, "{closed:#}");
}

#[test]
fn a_rate_that_cannot_be_kept_is_told() {
    let slow = server(|mut stream, _| {
        let mut request = [0; SIZE];
        while stream.read_exact(&mut request).is_ok() {
            thread::sleep(Duration::from_millis(10));
            if stream.write_all(&request).is_err() {
                return;
            }
        }
    });
    let run = paced("too-fast", slow, &["-c", "2", "-R", "1k"]);
    let paced = &cell(&run)["paced"];
    assert!(number(&paced["dropped"]) > 500.0 && number(&paced["late"]) > 500.0, "{paced:#}");
    let valid = run.document()["summary"]["valid"].as_str().expect("a sentence");
    assert!(valid.contains("was not sent, or not answered in time"), "{valid}");
    let row = run.stdout.lines().find(|line| line.trim_start().starts_with("tcp://")).expect("the row");
    let figures: Vec<&str> = run.stdout.lines().skip_while(|line| *line != row).take(2).collect();
    assert!(figures.concat().trim_end().ends_with("-         -         -"), "{}", run.stdout);
}
