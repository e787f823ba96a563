//! `loadgen sweep`: what `compare` does, at every combination of several loads.

use clap::Args;

use crate::{
    axes::ListArgs,
    cli::{self, EXIT_CODES, LoadArgs, SHORT, Settings},
    error::Error,
    rows::{ComparisonArgs, RowArgs},
    stats,
};

#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES, args_override_self = true)]
pub(crate) struct SweepArgs {
    #[command(flatten)]
    rows: RowArgs,
    /// Rounds, fixed beforehand; an interval takes at least 6
    #[arg(long, value_name = "N", default_value_t = stats::ROUNDS_MIN, value_parser = cli::rounds)]
    rounds: usize,
    #[command(flatten)]
    comparison: ComparisonArgs,
    #[command(flatten)]
    lists: ListArgs,
    #[command(flatten)]
    load: LoadArgs,
}

impl SweepArgs {
    pub(crate) fn settings(self) -> Result<Settings, Error> {
        let settings = self.load.settings("sweep", self.rows.rows()?, SHORT, self.lists.into())?;
        self.comparison.apply(self.rounds, settings)
    }
}
