//! `loadgen` compares ringspun's backends under load: paired rounds of fresh cells, every reply
//! verified, cost beside speed, and a verdict on its own validity.

mod axes;
mod cell;
mod child;
mod cli;
mod control;
mod crowd;
mod diff;
mod doctor;
mod document;
mod engine;
mod error;
mod export;
mod histogram;
mod http;
mod interrupt;
mod layout;
mod machine;
mod measure;
mod merge;
mod message;
mod mode;
mod objectives;
mod output;
mod pinning;
mod plan;
mod point;
mod raw;
mod report;
mod result;
mod rows;
mod search;
mod selftest;
mod sentences;
mod serve;
mod session;
mod slo;
mod spec;
mod stats;
mod summary;
mod sweep;
mod target;
mod units;
mod validity;
mod verdict;

use std::process::ExitCode;

use clap::Parser;

use crate::{
    cli::{Cli, Command, CompareArgs},
    error::{Error, Exit},
};

fn main() -> ExitCode {
    let exit = run().unwrap_or_else(|error| {
        report::progress(&format!("loadgen: {error}"));
        error.exit
    });
    ExitCode::from(exit.code())
}

fn run() -> Result<Exit, Error> {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    match cli.command {
        None => session::measure(&CompareArgs::quick().settings()?),
        Some(Command::Compare(args)) => session::measure(&args.settings()?),
        Some(Command::Run(args)) => session::measure(&args.settings()?),
        Some(Command::Sweep(args)) => session::measure(&args.settings()?),
        Some(Command::Search(args)) => session::measure(&args.settings()?),
        Some(Command::Idle(args)) => session::measure(&args.settings()?),
        Some(Command::Selftest(args)) => selftest::run(&args),
        Some(Command::Report(args)) => report::again(&args),
        Some(Command::Diff(args)) => diff::run(args),
        Some(Command::Merge(args)) => merge::run(&args),
        Some(Command::Doctor(args)) => Ok(doctor::run(&args)),
        Some(Command::Client) => crowd::work(),
        Some(Command::Serve(args)) => serve::serve(&args).map(|()| Exit::Done),
    }
}

/// Help goes to standard output; what is wrong with a command line is told in one line.
fn refuse(error: &clap::Error) -> Result<Exit, Error> {
    if !error.use_stderr() {
        report::print(&error.to_string());
        return Ok(Exit::Done);
    }
    let text = error.to_string();
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let told: Vec<&str> = lines.filter(|line| !line.is_empty() && !line.starts_with("For more")).collect();
    let told = told.join("; ");
    Err(Error::usage(format!("{}; see `loadgen --help`", told.trim_start_matches("error: "))))
}
