//! What the user reads: progress on standard error, the report on standard output.

mod curves;
pub(crate) mod text;

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::Args;

use crate::{
    cli::Format,
    document::{self, Loaded},
    error::{Error, Exit},
    export::Exports,
    summary,
};

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// A result.json, or the folder of a run
    #[arg(value_name = "RESULT")]
    result: PathBuf,
    /// What goes to standard output
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    exports: Exports,
}

/// Shows a result as its run did, and exports it.
pub(crate) fn again(args: &ReportArgs) -> Result<Exit, Error> {
    args.exports.check()?;
    let Loaded { mut document, path } = document::load(&args.result)?;
    args.exports.spare(&path)?;
    if document.summary.is_none() {
        // Its run was killed.
        summary::conclude(&mut document);
    }
    if !document.complete && args.exports.are_wanted() {
        return Err(Error::usage(format!(
            "{} is not complete, so other tools would take a part of it for the whole; export a run that ended",
            path.display()
        )));
    }
    match args.format {
        Format::Text => print(&text::screen(&document, &path)),
        Format::Json => print(&document.to_json()?),
    }
    args.exports.write(&document)?;
    Ok(Exit::Done)
}

/// A line of progress. A closed standard error is no reason to stop measuring.
pub(crate) fn progress(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// The report. A reader that has gone away, such as `head`, has what it wanted.
pub(crate) fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}
