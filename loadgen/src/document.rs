//! Reading a result. Anybody can write one, so nothing in it is believed: what does not hold together ends
//! in one line.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{
    cli::ROUNDS_MAX,
    error::Error,
    output::RESULT,
    point::Point,
    result::{Cell, Document, SCHEMA},
    verdict::Metric,
};

/// Many times what the longest run writes.
const BYTES_MAX: u64 = 512 << 20;
/// Beyond it no number of a result is exact in every reader, and sums could overflow.
const INTEGER_MAX: u64 = 1 << 53;
/// Some three thousand years after 1970.
const SECONDS_MAX: f64 = 1e11;
/// Far beyond what anybody compares at once.
const ROWS_MAX: usize = 256;
const POINTS_MAX: usize = 4096;
const DETAIL_MAX: usize = 200;

/// A result and where it was read.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) document: Document,
    pub(crate) path: PathBuf,
}

/// Reads a result, or that of a run's folder.
pub(crate) fn load(path: &Path) -> Result<Loaded, Error> {
    let path = if path.is_dir() { path.join(RESULT) } else { path.to_path_buf() };
    let bytes = read(&path)?;
    match parse(&bytes) {
        Ok(document) => Ok(Loaded { document, path }),
        Err(why) => Err(Error::usage(format!("{}: {}", path.display(), printable(&why)))),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let unreadable = |why: String| {
        let remedy = "name a result.json of loadgen, or the folder of a run";
        Error::machine(format!("cannot read {}: {why}; {remedy}", path.display()))
    };
    // Anything else could block, or never end.
    let is_file = path.metadata().map_err(|error| unreadable(error.to_string()))?.is_file();
    if !is_file {
        return Err(unreadable("it is no file".into()));
    }
    let file = File::open(path).map_err(|error| unreadable(error.to_string()))?;
    let mut bytes = Vec::new();
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| unreadable(error.to_string()))?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(unreadable("it is larger than any result".into()));
    }
    Ok(bytes)
}

/// Reads the text of a result.
pub(crate) fn parse(bytes: &[u8]) -> Result<Document, String> {
    let foreign = "no result of loadgen; name a result.json that it wrote, or the folder of a run";
    let mut value: Value =
        serde_json::from_slice(bytes).map_err(|error| format!("{foreign} (no whole JSON: {error})"))?;
    match value.get("schema").and_then(Value::as_str) {
        Some(SCHEMA) => {}
        Some(other) if other.starts_with("ringspun-loadgen/") => {
            return Err(format!(
                "its schema is {other}, this loadgen reads {SCHEMA}; use the one that wrote it"
            ));
        }
        _ => return Err(foreign.into()),
    }
    upgrade(&mut value);
    // What is shown on a screen must not be able to take it over.
    if let Some(text) =
        ["settings", "summary", "loadgen_version"].iter().find_map(|part| unprintable(&value[part]))
    {
        return Err(broken(&format!("{text:?} is no text that loadgen writes")));
    }
    if let Some(integer) = too_large(&value) {
        return Err(broken(&format!("{integer} is larger than anything that loadgen counts")));
    }
    let document: Document = serde_json::from_value(value).map_err(|error| broken(&error.to_string()))?;
    match contradiction(&document) {
        None => Ok(document),
        Some(why) => Err(broken(&why)),
    }
}

fn broken(why: &str) -> String {
    format!("a broken result: {why}; it is not as loadgen wrote it, so take the original or repeat the run")
}

/// Before they had points, results had one size and one rate for the whole run, and each connection was made once.
fn upgrade(document: &mut Value) -> Option<()> {
    let settings = document.get_mut("settings")?.as_object_mut()?;
    if settings.contains_key("points") {
        return None;
    }
    let size = settings.get("size_bytes")?.clone();
    let rate = settings.get("rate").and_then(Value::as_f64).map(|rate| rate as u64);
    let connections = settings.get("connections")?.as_array()?.iter();
    let point = |connections| json!({"connections": connections, "size": size, "pipeline": 1, "rate": rate});
    let points: Vec<Value> = connections.map(point).collect();
    settings.insert("points".into(), points.into());
    for list in ["cells", "comparisons"] {
        for entry in document.get_mut(list)?.as_array_mut()? {
            let entry = entry.as_object_mut()?;
            entry.insert("rate".into(), rate.into());
            if let Some(counts) = entry.get_mut("counts").and_then(Value::as_object_mut) {
                let sent = counts.get("requests_all_phases")?.as_u64()?.checked_mul(size.as_u64()?)?;
                let made = counts.get("connections_asked")?.clone();
                counts.insert("bytes_sent_all_phases".into(), sent.into());
                counts.insert("connections_made".into(), made);
            }
        }
    }
    Some(())
}

/// The first text that holds what no screen should be sent.
fn unprintable(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => text.chars().any(char::is_control).then(|| text.clone()),
        Value::Array(values) => values.iter().find_map(unprintable),
        Value::Object(fields) => fields.values().find_map(unprintable),
        _ => None,
    }
}

/// The first integer that is too large, except that a seed may be any.
fn too_large(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64().filter(|integer| *integer > INTEGER_MAX),
        Value::Array(values) => values.iter().find_map(too_large),
        Value::Object(fields) => {
            let counted = fields.iter().filter(|(name, _)| *name != "seed");
            counted.map(|(_, value)| value).find_map(too_large)
        }
        _ => None,
    }
}

/// What in a result does not fit together.
fn contradiction(document: &Document) -> Option<String> {
    let Document { settings, cells, comparisons, .. } = document;
    if !settings.rows.contains(&settings.baseline) {
        return Some("its baseline is none of its rows".into());
    }
    // A search tries rates of its own.
    let search = settings.primary_metric == Metric::SloRate;
    let known = |point: &Point| {
        let plain = Point { rate: point.rate.filter(|_| !search), ..point.clone() };
        settings.points.contains(&plain)
    };
    if settings.points.is_empty()
        || settings.points.iter().any(|point| point.connections == 0 || point.pipeline == 0)
    {
        return Some("it has a point without connections or requests, or none at all".into());
    }
    if !(1..=ROUNDS_MAX).contains(&settings.rounds) {
        return Some(format!("{} rounds are none that loadgen runs", settings.rounds));
    }
    let stray = cells.iter().find(|cell| !settings.rows.contains(&cell.row) || !known(&cell.point));
    if let Some(cell) = stray {
        return Some(format!("a cell of {} over {} is not in its plan", cell.row, cell.point));
    }
    if settings.rows.len() > ROWS_MAX || settings.points.len() > POINTS_MAX {
        return Some(format!(
            "{} rows at {} points are more than any run has",
            settings.rows.len(),
            settings.points.len()
        ));
    }
    if comparisons.iter().any(|one| one.ratios.len() > ROUNDS_MAX) {
        return Some("a comparison has more ratios than a run has rounds".into());
    }
    // Each may be there twice, if it was spoiled; a search has many probes.
    let most = 2 * settings.rows.len() * settings.points.len() * settings.rounds;
    if !search && cells.len() > most {
        return Some(format!("{} cells are more than its plan has", cells.len()));
    }
    if let Some(seconds) = cells.iter().find_map(impossible_time) {
        return Some(format!("{seconds} seconds is no time of a window"));
    }
    let stray = comparisons.iter().find(|one| {
        ![&one.a, &one.b].into_iter().all(|row| settings.rows.contains(row)) || !known(&one.point)
    });
    stray.map(|one| format!("a comparison of {} with {} over {} is not in its plan", one.a, one.b, one.point))
}

/// A time that no clock shows, and that no duration can hold.
fn impossible_time(cell: &Cell) -> Option<f64> {
    let times = [cell.window_opened_unix_seconds.unwrap_or(0.0), cell.window_seconds, cell.ramp_seconds];
    times.into_iter().find(|seconds| !(0.0..=SECONDS_MAX).contains(seconds))
}

/// One line, of a length that can be read.
fn printable(text: &str) -> String {
    let escaped: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match escaped.char_indices().nth(3 * DETAIL_MAX) {
        None => escaped,
        Some(_) => {
            let start: String = escaped.chars().take(2 * DETAIL_MAX).collect();
            let rest: Vec<char> = escaped.chars().rev().take(DETAIL_MAX).collect();
            format!("{start} ... {}", rest.into_iter().rev().collect::<String>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A published result, made before results had points.
    const OLDER: &str = include_str!("../../results/2026-11-21-6.18.44-fc-v669-8622a687090f/result.json");

    fn changed(pointer: &str, to: Value) -> Result<Document, String> {
        let mut value: Value = serde_json::from_str(OLDER).expect("JSON");
        *value.pointer_mut(pointer).expect(pointer) = to;
        parse(value.to_string().as_bytes())
    }

    #[test]
    fn older_results_get_points() {
        let document = parse(OLDER.as_bytes()).expect("a result");
        assert_eq!(document.settings.points[0].to_string(), document.cells[0].point.to_string());
        assert!(document.cells.iter().all(|cell| cell.histogram.is_some() && cell.series.is_empty()));
        let paced = {
            let mut value: Value = serde_json::from_str(OLDER).expect("JSON");
            value["settings"]["rate"] = json!(50_000.0);
            parse(value.to_string().as_bytes()).expect("a result")
        };
        assert_eq!((paced.settings.points[0].rate, paced.cells[0].point.rate), (Some(50_000), Some(50_000)));
    }

    #[test]
    fn what_is_read_is_written_the_same() {
        let first = parse(OLDER.as_bytes()).expect("a result").to_json().expect("JSON");
        let second = parse(first.as_bytes()).expect("a result").to_json().expect("JSON");
        assert_eq!(first, second);
        let (old, new): (Value, Value) =
            (serde_json::from_str(OLDER).expect("JSON"), serde_json::from_str(&first).expect("JSON"));
        for (old, new) in
            old["cells"].as_array().expect("cells").iter().zip(new["cells"].as_array().expect("cells"))
        {
            let grown = ["counts", "server"];
            for (name, value) in old.as_object().expect("a cell") {
                assert!(value == &new[name] || grown.contains(&name.as_str()), "{name}");
            }
            for part in grown {
                let (old, new) = (old[part].as_object().expect(part), &new[part]);
                assert!(old.iter().all(|(name, value)| *value == new[name]), "{part}");
            }
            let (old, new) = (&old["counts"], &new["counts"]);
            assert_eq!(
                new["bytes_sent_all_phases"].as_u64(),
                old["requests_all_phases"].as_u64().map(|sent| sent * 64)
            );
            assert_eq!(new["connections_made"], old["connections_asked"]);
        }
    }

    #[test]
    fn what_does_not_hold_together_is_broken() {
        for (pointer, to, word) in [
            ("/schema", json!("ringspun-loadgen/2"), "this loadgen reads ringspun-loadgen/1"),
            ("/schema", json!("other/1"), "no result of loadgen"),
            ("/schema", json!(1), "no result of loadgen"),
            ("/cells/0/row", json!("other"), "not in its plan"),
            ("/cells/0/connections", json!(12_345), "not in its plan"),
            ("/cells/0/size", json!("64:1+x"), "is not a size"),
            ("/cells/0/histogram", json!("#"), "a histogram is no base64"),
            ("/cells/0/counts/requests", json!(u64::MAX), "larger than anything"),
            ("/cells/0/counts/requests", json!(-1), "invalid value"),
            ("/cells/0/window_seconds", json!(-1), "no time of a window"),
            ("/cells/0/ramp_seconds", json!(1e12), "no time of a window"),
            ("/settings/baseline", json!("other"), "none of its rows"),
            ("/settings/rows/0", json!("a\u{1b}[2J"), "no text that loadgen writes"),
            ("/settings/rounds", json!(1_000_000), "rounds are none"),
            ("/settings/connections", json!([]), "none at all"),
            ("/settings/connections/0", json!(0), "without connections"),
            ("/comparisons/0/a", json!("other"), "a comparison of other"),
            ("/comparisons/0/metric", json!("x".repeat(10_000)), "unknown variant"),
        ] {
            let why = changed(pointer, to).expect_err(pointer);
            assert!(why.contains(word), "{pointer}: {why}");
            let line = printable(&why);
            assert!(line.len() < 4 * DETAIL_MAX && !line.contains(char::is_control), "{line}");
        }
        let seed = changed("/settings/seed", json!(u64::MAX)).expect("a seed may be any");
        assert_eq!(seed.settings.seed, u64::MAX);
    }

    #[test]
    fn no_cut_makes_it_panic() {
        for length in (0..OLDER.len() - 2).step_by(997) {
            assert!(parse(&OLDER.as_bytes()[..length]).is_err());
        }
    }
}
