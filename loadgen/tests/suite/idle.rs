//! Idle connections: what each costs, and that they still live.

use serde_json::Value;

use crate::common::{assert_valid, run};

#[test]
fn idle_connections_are_counted_weighed_and_pinged() {
    let line = ["idle", "--backend", "io_uring:direct,epoll,threads,raw-threads", "-c", "300", "-d", "200ms"];
    let run = run("idle", &line);
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert_valid(run.document());
    assert_eq!(run.document()["settings"]["mode"], "idle");
    let cells = run.document()["cells"].as_array().expect("cells");
    // One that the neighbours have spoiled is there twice.
    assert_eq!(cells.iter().filter(|cell| cell["repeat"] == false).count(), 4);
    for cell in cells {
        let idle = &cell["idle"];
        assert_eq!((&idle["pinged"], &idle["answered"]), (&3.into(), &3.into()), "{cell:#}");
        assert!(idle["connections_per_second"].as_f64() > Some(0.0), "{cell:#}");
        assert!(idle["server_bytes_per_connection"].is_number(), "{cell:#}");
        assert_eq!(cell["counts"]["requests_all_phases"], 303, "each asks once, and three once more");
        assert_eq!(cell["counts"]["requests"], 0, "none within the window");
        assert!(cell["rps"].is_null());
    }
    let bytes = |row: &str| -> f64 {
        let cell = cells.iter().find(|cell| cell["row"] == row).expect(row);
        cell["idle"]["server_bytes_per_connection"].as_f64().expect("a figure")
    };
    assert!(bytes("threads") > 4.0 * bytes("epoll"), "a thread has a stack: {}", run.stdout);
    assert!(run.stdout.contains("3 of 3"), "{}", run.stdout);
    assert!(run.document()["summary"]["verdict"].is_null());
    assert_eq!(run.document()["comparisons"], Value::Array(Vec::new()));
}
