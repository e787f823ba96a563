//! `loadgen sweep`: what `compare` does, at every combination of several loads.

use clap::Args;

use crate::{
    axes::ListArgs,
    cli::{self, EXIT_CODES, LoadArgs, SHORT, Settings},
    error::Error,
    plan::Order,
    spec::{Hired, Spec},
    stats, units,
};

#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES, args_override_self = true)]
pub(crate) struct SweepArgs {
    /// Rows, as for compare, or only one [default: io_uring,epoll,threads, without --server]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    backend: Vec<Spec>,
    /// Another program as a row: 'name=command {port}'; may be repeated
    #[arg(long, value_name = "NAME=COMMAND")]
    server: Vec<Hired>,
    /// Rounds, fixed beforehand; an interval takes at least 6
    #[arg(long, value_name = "N", default_value_t = stats::ROUNDS_MIN, value_parser = cli::rounds)]
    rounds: usize,
    /// Order of the rows within a round
    #[arg(long, value_enum, default_value_t = Order::Balanced)]
    order: Order,
    /// Row that the others are compared with [default: epoll if it is a row, else the last row]
    #[arg(long, value_name = "ROW")]
    baseline: Option<String>,
    /// Smallest effect that counts as a difference
    #[arg(long, value_name = "EFFECT", default_value = "2%", value_parser = units::effect)]
    min_effect: f64,
    /// One more row, the baseline again: what it seems to differ by is the noise floor, and no smaller
    /// effect counts as a difference
    #[arg(long)]
    control: bool,
    #[command(flatten)]
    lists: ListArgs,
    #[command(flatten)]
    load: LoadArgs,
}

impl SweepArgs {
    pub(crate) fn settings(self) -> Result<Settings, Error> {
        let rows = cli::distinct(cli::rows(self.backend, self.server))?;
        let names: Vec<String> = rows.iter().map(ToString::to_string).collect();
        let baseline = cli::baseline(&names, self.baseline.as_deref())?;
        let mut settings = self.load.settings("sweep", rows, SHORT, self.lists.into())?;
        (settings.baseline, settings.rounds, settings.order) = (baseline, self.rounds, self.order);
        settings.min_effect = self.min_effect;
        if self.control {
            settings.add_control();
        }
        Ok(settings)
    }
}
