//! How often the weblog examples look for what is new.

use std::{env, time::Duration};

/// The time between two looks: so many seconds, unless WEBLOG_SECONDS says otherwise.
pub(crate) fn interval(seconds: f64) -> Duration {
    let said = env::var("WEBLOG_SECONDS").ok().and_then(|word| word.parse().ok());
    Duration::try_from_secs_f64(said.unwrap_or(seconds)).unwrap_or(Duration::MAX)
}
