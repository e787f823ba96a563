//! The result in the forms that other tools read. One exporter is one file; all derive from the
//! document that is also the JSON result.

mod bencher;
mod csv;
mod github;
mod hgrm;
mod hlog;

use std::path::{Path, PathBuf};

use clap::Args;

use crate::{error::Error, output, result::Document};

/// Files to be written beside the result, once a run is complete.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Exports, written when the run is complete")]
pub(crate) struct Exports {
    /// One line a cell
    #[arg(long, value_name = "PATH")]
    export_csv: Option<PathBuf>,
    /// For github-action-benchmark: PATH.json becomes PATH-bigger.json and PATH-ratio.json, for
    /// customBiggerIsBetter, and PATH-smaller.json, for customSmallerIsBetter
    #[arg(long, value_name = "PATH")]
    export_github: Option<PathBuf>,
    /// Bencher Metric Format
    #[arg(long, value_name = "PATH")]
    export_bencher: Option<PathBuf>,
    /// HdrHistogram log, an interval a cell, tagged row/connections
    #[arg(long, value_name = "PATH")]
    export_hlog: Option<PathBuf>,
    /// HdrHistogram percentiles in milliseconds: PATH.hgrm becomes PATH-ROW-CONNECTIONS.hgrm
    #[arg(long, value_name = "PATH")]
    export_hgrm: Option<PathBuf>,
}

/// A file to be written.
struct Export {
    path: PathBuf,
    text: String,
}

impl Exports {
    /// Finds out before the run whether its exports will have a place.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let paths = self.paths();
        for path in paths.iter().copied().flatten() {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let is_folder = path.is_dir() || path.file_stem().is_none();
            if is_folder || paths.iter().filter(|other| **other == &Some(path.clone())).count() > 1 {
                return Err(Error::usage(format!(
                    "cannot export to {}: give each export the name of a file of its own",
                    path.display()
                )));
            }
            if folder.is_some_and(|folder| !folder.is_dir()) {
                return Err(Error::machine(format!(
                    "cannot export to {}: there is no such folder; make it first",
                    path.display()
                )));
            }
        }
        Ok(())
    }

    /// Refuses to replace this file, which is what is exported.
    pub(crate) fn spare(&self, result: &Path) -> Result<(), Error> {
        let result = result.canonicalize().ok();
        let replaces = |path: &&PathBuf| path.canonicalize().ok() == result;
        match self.paths().into_iter().flatten().find(replaces) {
            Some(path) if result.is_some() => Err(Error::usage(format!(
                "cannot export to {}: that is the result itself; give the export the name of a file of its own",
                path.display()
            ))),
            _ => Ok(()),
        }
    }

    /// Whether any was asked for.
    pub(crate) fn are_wanted(&self) -> bool {
        self.paths().into_iter().any(Option::is_some)
    }

    fn paths(&self) -> [&Option<PathBuf>; 5] {
        [&self.export_csv, &self.export_github, &self.export_bencher, &self.export_hlog, &self.export_hgrm]
    }

    /// Writes all that were asked for; each appears whole or not at all.
    pub(crate) fn write(&self, document: &Document) -> Result<(), Error> {
        let one = |path: &Option<PathBuf>, render: fn(&Document) -> String| {
            path.clone().map(|path| Export { path, text: render(document) })
        };
        let mut exports: Vec<Export> = [
            one(&self.export_csv, csv::render),
            one(&self.export_bencher, bencher::render),
            one(&self.export_hlog, hlog::render),
        ]
        .into_iter()
        .flatten()
        .collect();
        if let Some(path) = &self.export_github {
            exports.push(Export { path: beside(path, "bigger"), text: github::bigger(document) });
            exports.push(Export { path: beside(path, "smaller"), text: github::smaller(document) });
            exports.push(Export { path: beside(path, "ratio"), text: github::ratios(document) });
        }
        if let Some(path) = &self.export_hgrm {
            let rendered = hgrm::render(document).into_iter();
            exports.extend(rendered.map(|(name, text)| Export { path: beside(path, &name), text }));
        }
        exports.iter().try_for_each(write)
    }
}

fn write(export: &Export) -> Result<(), Error> {
    output::replace(&export.path, &export.text).map_err(|error| {
        let path = export.path.display();
        Error::machine(format!("cannot export to {path}: {error}; the result itself is kept"))
    })
}

/// `bench.json` with `bigger` is `bench-bigger.json`.
fn beside(path: &Path, word: &str) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let ending = path.extension().map(|ending| format!(".{}", ending.to_string_lossy())).unwrap_or_default();
    path.with_file_name(format!("{stem}-{word}{ending}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{document, report::text, summary};

    #[test]
    fn names_of_several_files_keep_their_ending() {
        assert_eq!(beside(Path::new("out/bench.json"), "bigger"), Path::new("out/bench-bigger.json"));
        assert_eq!(beside(Path::new("bench"), "epoll-64"), Path::new("bench-epoll-64"));
    }

    #[test]
    fn a_folder_that_is_not_there_is_found_before_the_run() {
        let exports = Exports { export_csv: Some("no/such/folder/a.csv".into()), ..Exports::default() };
        let error = exports.check().expect_err("there is none");
        assert!(error.to_string().contains("no/such/folder/a.csv"), "{error}");
        let twice =
            Exports { export_csv: Some("a".into()), export_hlog: Some("a".into()), ..Exports::default() };
        assert!(twice.check().is_err());
        assert!(Exports { export_csv: Some("src".into()), ..Exports::default() }.check().is_err());
        assert!(Exports { export_csv: Some("a.csv".into()), ..Exports::default() }.check().is_ok());
    }

    /// All single values of a result with a way to each.
    fn leaves(value: &Value, way: &str, found: &mut Vec<String>) {
        match value {
            Value::Array(values) => {
                let few = values.iter().enumerate().take(1);
                few.for_each(|(index, value)| leaves(value, &format!("{way}/{index}"), found));
            }
            Value::Object(fields) => {
                fields.iter().for_each(|(name, value)| leaves(value, &format!("{way}/{name}"), found));
            }
            _ => found.push(way.to_owned()),
        }
    }

    // Anybody can write a result: what is read must not panic, whatever it is.
    #[test]
    fn no_result_that_can_be_read_makes_a_screen_or_an_export_panic() {
        let text = include_str!("../../../results/2026-11-21-6.18.44-fc-v669-8622a687090f/result.json");
        let mut older = document::parse(text.as_bytes()).expect("a result");
        older.cells.truncate(2);
        older.cells[1].histogram = None;
        let result: Value = serde_json::to_value(&older).expect("serialises");
        let mut ways = Vec::new();
        leaves(&result, "", &mut ways);
        let mut read = 0;
        for way in &ways {
            for other in [json!(null), json!(0), json!(-1), json!(1e300), json!("é")] {
                let mut changed = result.clone();
                *changed.pointer_mut(way).expect(way) = other;
                let Ok(mut document) = document::parse(changed.to_string().as_bytes()) else { continue };
                read += 1;
                for _ in 0..2 {
                    let _ = text::screen(&document, Path::new("result.json"));
                    let _ = (csv::render(&document), bencher::render(&document), hlog::render(&document));
                    let _ =
                        (github::bigger(&document), github::smaller(&document), github::ratios(&document));
                    let _ = hgrm::render(&document);
                    summary::conclude(&mut document);
                }
            }
        }
        assert!(read > ways.len() / 2, "many changes go unnoticed: {read} of {}", ways.len());
    }
}
