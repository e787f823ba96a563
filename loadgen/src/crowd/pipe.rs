//! What loadgen and one of its client processes tell each other: JSON lines over the client's standard streams.

use serde::{Deserialize, Serialize};

use crate::{
    engine::{Counted, Load},
    error::Error,
};

/// From loadgen to the client. The end of the stream ends it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub(super) enum Order {
    /// Its share; it connects.
    Begin { load: Box<Load> },
    /// It goes on from where it has stopped.
    GoOn,
}

/// From the client to loadgen.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "news", rename_all = "snake_case")]
pub(super) enum News {
    /// It has come so far, and waits.
    Reached { step: Step },
    /// It has ended.
    Counted { counted: Box<Counted> },
    /// It could not begin.
    Failed { error: Error },
}

/// Where clients wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Step {
    Connected,
    /// Each connection has asked once and was answered.
    WindowOpened,
    WindowClosed,
    /// Those that were asked at the end have answered.
    Drained,
}
