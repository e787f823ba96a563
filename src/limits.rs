//! The limits that keep one peer from taking what belongs to all.

use std::time::Duration;

use crate::error::Error;

/// Limits of one reactor. Every default is meant for a server that faces the public.
///
/// ```
/// let limits = ringspun::Limits { output_max: 1 << 20, ..Default::default() };
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Unsent bytes of a connection above which `write` answers `Full` and `pause_writing` is
    /// called. 64 KiB as in Twisted: enough to keep a socket busy, small enough to hold for many.
    pub output_high: usize,
    /// Unsent bytes at or below which `resume_writing` is called. A quarter of the high mark, so
    /// that the socket does not run dry while the producer starts again.
    pub output_low: usize,
    /// Unsent bytes of a connection that end it when it writes once more, with
    /// `Reason::Limit`. 16 MiB: a peer that does not read costs no more than that.
    /// A single write is never refused for its own size.
    pub output_max: usize,
    /// Unsent bytes of all connections together. A write that passes it ends whichever connection has the most unsent bytes, with
    /// `Reason::Limit`: that may be the writer, which ends too where others have just as much, or one whose peer has read nothing for long. So a
    /// connection that keeps what it has unsent small is not ended for others. One with at most 4 KiB is neither counted nor ended.
    /// A shared buffer counts for each connection that has it unsent, so one who pushes much to many at once needs more.
    /// Beside what is counted, there is for a turn of the loop what the kernel still reads of those that were ended.
    /// 1 GiB: 16,384 connections that are full to the high mark, as producers fill them, or 64 that are full to `output_max`.
    pub output_total_max: usize,
    /// How long `lose_connection` may take to hand over what was written before it becomes an
    /// abort. 60 s: a slow reader gets its last bytes, a dead one does not keep the slot.
    pub close_timeout: Duration,
    /// How long a closed connection goes on throwing away what the peer still sends. 5 s: several
    /// round trips on any network.
    pub drain_timeout: Duration,
    /// How many bytes it throws away at most. 1 MiB: what a peer may well have had under way.
    pub drain_max: usize,
    /// How long accepting rests when the machine is out of descriptors or memory. 100 ms: peers
    /// that wait are shed ten times a second and the loop does not spin.
    pub accept_backoff: Duration,
}

impl Limits {
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.output_low > self.output_high {
            let cause = "must not be above output_high".to_owned();
            return Err(Error::Option { option: "output_low", cause });
        }
        if self.accept_backoff < Duration::from_millis(1) {
            let cause = "must be at least 1 ms, or running out of descriptors would spin".to_owned();
            return Err(Error::Option { option: "accept_backoff", cause });
        }
        Ok(())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            output_high: 64 << 10,
            output_low: 16 << 10,
            output_max: 16 << 20,
            output_total_max: 1 << 30,
            close_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(5),
            drain_max: 1 << 20,
            accept_backoff: Duration::from_millis(100),
        }
    }
}
