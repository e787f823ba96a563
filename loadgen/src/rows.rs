//! Which rows are measured, and how they are compared: arguments that several commands share.

use clap::Args;

use crate::{
    cli::Settings,
    error::Error,
    plan::Order,
    spec::{Hired, Kind, Row, Spec},
    units,
};

#[derive(Debug, Args)]
pub(crate) struct RowArgs {
    /// Rows: io_uring (with variants :direct, :no-multishot, :latency, :spin), epoll, threads, and their opponents
    /// without the library, raw-uring (with :direct), raw-epoll (with :spin), raw-threads [default:
    /// io_uring,epoll,threads, without --server]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    backend: Vec<Spec>,
    /// Another program as a row, after those of --backend: 'name=command {port}', which must echo every
    /// byte, or with --http speak HTTP; may be repeated
    #[arg(long, value_name = "NAME=COMMAND")]
    server: Vec<Hired>,
}

#[derive(Debug, Args)]
pub(crate) struct ComparisonArgs {
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
}

impl RowArgs {
    pub(crate) fn rows(self) -> Result<Vec<Row>, Error> {
        distinct(rows(self.backend, self.server))
    }
}

impl ComparisonArgs {
    /// Whether there is one more row, the baseline again.
    pub(crate) fn has_control(&self) -> bool {
        self.control
    }

    /// Completes the settings of a comparison in so many rounds.
    pub(crate) fn apply(self, rounds: usize, mut settings: Settings) -> Result<Settings, Error> {
        let names: Vec<String> = settings.rows.iter().map(ToString::to_string).collect();
        settings.baseline = baseline(&names, self.baseline.as_deref())?;
        (settings.rounds, settings.order, settings.min_effect) = (rounds, self.order, self.min_effect);
        if self.control {
            settings.add_control();
        }
        Ok(settings)
    }
}

fn distinct(rows: Vec<Row>) -> Result<Vec<Row>, Error> {
    let names: Vec<String> = rows.iter().map(ToString::to_string).collect();
    match names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
        Some((_, twice)) => Err(Error::usage(format!("{twice} is named twice; name each row once"))),
        None => Ok(rows),
    }
}

fn rows(backends: Vec<Spec>, servers: Vec<Hired>) -> Vec<Row> {
    let backends = match (backends.as_slice(), servers.as_slice()) {
        ([], []) => [Kind::IoUring, Kind::Epoll, Kind::Threads].map(Spec::plain).to_vec(),
        _ => backends,
    };
    backends.into_iter().map(Row::Backend).chain(servers.into_iter().map(Row::Hired)).collect()
}

fn baseline(rows: &[String], asked: Option<&str>) -> Result<usize, Error> {
    let position = |wanted: &str| rows.iter().position(|row| row == wanted);
    match asked {
        Some(name) => position(name).ok_or_else(|| {
            Error::usage(format!("--baseline {name} is no row; there are {}", rows.join(", ")))
        }),
        None => Ok(position(Kind::Epoll.name()).unwrap_or(rows.len() - 1)),
    }
}
