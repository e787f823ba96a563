//! Searches, objectives and controls.

use crate::common::{assert_valid, run};

/// Answers at once, and so meets any objective that is not absurd.
const EASY: &str = "response.p50<2s";

#[test]
fn a_search_finds_a_rate_for_each_row_in_each_round() {
    let line = ["search", "--backend", "epoll,raw-epoll", "--slo", EASY, "-c", "4", "-d", "40ms"];
    let run = run("search", &[&line[..], &["--warmup", "10ms", "--rounds", "2"]].concat());
    assert_eq!(run.code, Some(0), "{run:#?}");
    let document = run.document();
    assert_valid(document);
    let found = document["found"].as_array().expect("an array");
    assert_eq!(found.len(), 4, "two rows, two rounds");
    for one in found {
        let (rate, peak) = (one["slo_rate"].as_f64().expect("met"), one["peak"].as_f64().expect("a rate"));
        assert!(rate > 0.0 && rate <= 1.06 * peak, "{one}");
    }
    let cells = document["cells"].as_array().expect("an array");
    assert!(cells.iter().all(|cell| cell["probe"] == true));
    let comparisons = document["comparisons"].as_array().expect("an array");
    assert!(comparisons.iter().all(|one| one["metric"] == "slo_rate" && one["primary"] == true));
    assert_eq!(comparisons.len(), 1);
    assert!(run.stdout.contains("within SLO"), "{}", run.stdout);
}

#[test]
fn an_objective_out_of_reach_ends_a_search_with_4() {
    let line = ["search", "--backend", "epoll", "--slo", "response.p50<1ns", "-c", "2", "-d", "20ms"];
    let run = run("search-out-of-reach", &[&line[..], &["--warmup", "10ms", "--rounds", "1"]].concat());
    assert_eq!(run.code, Some(4), "{run:#?}");
    assert!(run.document()["found"][0]["slo_rate"].is_null());
    assert!(run.stdout.contains("NOT met"), "{}", run.stdout);
}

#[test]
fn objectives_of_a_run_decide_its_exit_code() {
    let line = |slo| ["run", "--backend", "epoll", "-c", "4", "-d", "50ms", "--warmup", "10ms", "--slo", slo];
    let met = run("slo-met", &line("latency.p50<2s"));
    assert_eq!((met.code, &met.document()["summary"]["objectives_met"]), (Some(0), &true.into()));
    let unmet = run("slo-unmet", &line("rps>10M"));
    assert_eq!(unmet.code, Some(4), "{unmet:#?}");
    assert!(unmet.complaint().contains("objective was not met"), "{}", unmet.complaint());
    assert!(unmet.stdout.contains("rps>10M NOT met"), "{}", unmet.stdout);
    assert_eq!(unmet.document()["complete"], true);
}

#[test]
fn wrong_searches_and_objectives_are_refused() {
    for (name, line, word) in [
        ("none", &["search", "--backend", "epoll"][..], "--slo 'response.p99<2ms'"),
        ("rate", &["search", "--slo", EASY, "-R", "1k"], "leave out --rate"),
        ("stream", &["search", "--slo", EASY, "--mode", "stream"], "leave out --rate"),
        ("closed", &["run", "--backend", "epoll", "--slo", EASY], "write it as latency"),
        ("grammar", &["run", "--backend", "epoll", "--slo", "p99"], "response.p99<2ms"),
    ] {
        let run = run(&format!("wrong-search-{name}"), line);
        assert_eq!(run.code, Some(2), "{run:#?}");
        assert!(run.complaint().contains(word), "{}", run.complaint());
    }
}

#[test]
fn a_control_is_the_baseline_again_and_sets_the_noise_floor() {
    let line = ["compare", "--backend", "io_uring,epoll", "--control", "-c", "4", "-d", "30ms"];
    let run = run("control", &[&line[..], &["--warmup", "10ms", "--rounds", "10"]].concat());
    assert_eq!(run.code, Some(0), "{run:#?}");
    let document = run.document();
    assert_valid(document);
    assert_eq!(document["settings"]["control"], "epoll again");
    let cells = document["cells"].as_array().expect("an array");
    let of_control = cells.iter().filter(|cell| cell["row"] == "epoll again" && cell["repeat"] == false);
    assert!(of_control.clone().all(|cell| cell["server"]["backend"] == "epoll"));
    assert_eq!(of_control.count(), 10);
    let comparisons = document["comparisons"].as_array().expect("an array");
    let rps = |row: &str| {
        comparisons.iter().find(|one| one["metric"] == "rps" && one["a"] == row).expect("compared")
    };
    let ends = rps("epoll again")["low"].as_f64().zip(rps("epoll again")["high"].as_f64());
    let floor = ends.map(|(low, high)| (high - 1.0).max(1.0 / low - 1.0));
    // Rounds that the neighbours have spoiled may leave too few for an interval, and so for a floor.
    let told = rps("io_uring")["noise_floor"].as_f64();
    assert!(floor.zip(told).map_or(floor == told, |(floor, told)| (floor - told).abs() < 1e-9), "{told:?}");
    assert!(comparisons.iter().all(|one| one["primary"] == false || one["a"] == "io_uring"));
    let primary = comparisons.iter().find(|one| one["primary"] == true);
    let of_primary = primary.is_some_and(|one| one["noise_floor"].is_number());
    let screen = run.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(screen.contains("are noise here"), of_primary, "{}", run.stdout);
}
