//! The page of contracts and the suite name the same statements, and the suite says what it ran on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::Path,
};

use crate::setups::{SETUPS, SKIPS};

/// Statements for which the table of skips must stay empty: C1-C7, C10-C14, L1-L4.
fn allows_no_skip(statement: &str) -> bool {
    let (letter, number) = statement.split_at(1);
    let number: u32 = number.parse().unwrap();
    match letter {
        "C" => number <= 7 || (10..=14).contains(&number),
        "L" => number <= 4,
        _ => false,
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The statement that a test's name begins with: `c7_lose_..` belongs to C7.
fn statement_of(name: &str) -> Option<String> {
    let (id, _) = name.split_once('_')?;
    let (letter, number) = id.split_at_checked(1)?;
    let is_id = letter.chars().all(|c| c.is_ascii_lowercase()) && number.parse::<u32>().is_ok();
    is_id.then(|| id.to_uppercase())
}

/// All functions of the suite that are named after a statement, by statement.
fn tests_by_statement() -> BTreeMap<String, Vec<String>> {
    let mut tests: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for folder in ["tests/contracts", "tests/faults", "tests/testing"] {
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            let source = fs::read_to_string(entry.unwrap().path()).unwrap();
            for line in source.lines() {
                let name = line.strip_prefix("fn ").and_then(|rest| rest.split(['(', '<']).next());
                let Some(name) = name else { continue };
                if let Some(statement) = statement_of(name) {
                    tests.entry(statement).or_default().push(name.to_owned());
                }
            }
        }
    }
    tests
}

/// The ids at the head of the page's list items: `* **C7** ..`.
fn statements_of_the_page() -> Vec<String> {
    let page = fs::read_to_string(root().join("CONTRACTS.md")).unwrap();
    let head = |line: &str| Some(line.strip_prefix("* **")?.split_once("**")?.0.to_owned());
    page.lines().filter_map(head).collect()
}

#[test]
fn every_statement_has_a_test_and_every_test_a_statement() {
    let page = statements_of_the_page();
    let stated: BTreeSet<String> = page.iter().cloned().collect();
    assert_eq!(stated.len(), page.len(), "a statement is there twice");
    let tested: BTreeSet<String> = tests_by_statement().into_keys().collect();
    let untested: Vec<_> = stated.difference(&tested).collect();
    let unstated: Vec<_> = tested.difference(&stated).collect();
    assert!(untested.is_empty(), "without a test: {untested:?}");
    assert!(unstated.is_empty(), "not on the page: {unstated:?}");
}

#[test]
fn skips_name_a_test_a_setup_and_a_reason() {
    let tests = tests_by_statement();
    for (test, setup, reason) in SKIPS {
        let statement = statement_of(test).expect("a test's name");
        assert!(tests[&statement].iter().any(|known| known == test), "{test} is no test");
        assert!(SETUPS.iter().any(|known| known.name == setup), "{setup} is no setup");
        assert!(!reason.is_empty());
        assert!(!allows_no_skip(&statement), "{test} may not be skipped");
    }
}

#[test]
fn every_setup_runs_on_the_backend_it_names() {
    let mut report = String::from("\nthe contracts run on:\n");
    for setup in SETUPS {
        let reactor = setup.reactor();
        let info = reactor.backend();
        assert_eq!(info.backend, setup.backend, "{} runs on another backend", setup.name);
        assert_eq!(info.tier.is_some(), setup.is_uring());
        assert_eq!(info.direct, setup.is_uring() && setup.uring().direct);
        if let Some(tier) = setup.uring().tier {
            assert_eq!(info.tier, Some(tier), "{} runs on another tier", setup.name);
        }
        report += &format!("  {:<17} {info}\n", setup.name);
    }
    // Past the test harness, which would keep it to itself, and not into what it prints.
    std::io::stderr().write_all(report.as_bytes()).unwrap();
}
