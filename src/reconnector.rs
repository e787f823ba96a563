//! Connecting again, later and later: what Twisted's `ReconnectingClientFactory` does.

use std::{
    f64::consts,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::{
    connector::{Connector, WeakConnector},
    delayed_call::DelayedCall,
    reactor::Reactor,
};

/// Tries again after growing delays; a factory keeps one in a field, and tells it of every failure and loss.
///
/// ```
/// use ringspun::{ClientFactory, ConnectError, Connector, Cx, Factory, FactoryCx, Peer, Protocol, Reason, Reconnector};
///
/// struct Feed { again: Reconnector }
/// struct Reader;
///
/// impl Factory for Feed {
///     type Protocol = Reader;
///     fn build_protocol(&mut self, _peer: &mut Peer<'_>) -> Option<Reader> {
///         self.again.reset_delay();
///         Some(Reader)
///     }
/// }
///
/// impl ClientFactory for Feed {
///     fn client_connection_failed(&mut self, cx: &mut FactoryCx<'_, Self>, connector: &Connector, _: &ConnectError) {
///         self.again.retry(cx.reactor, connector);
///     }
///     fn client_connection_lost(&mut self, cx: &mut FactoryCx<'_, Self>, connector: &Connector, _: &Reason) {
///         self.again.retry(cx.reactor, connector);
///     }
/// }
/// # impl Protocol<Feed> for Reader { fn data_received(&mut self, _: &mut Cx<'_, Feed>, _: &[u8]) {} }
/// ```
///
/// The delays are Twisted's: each is the one before times e, the first 1 s times e, give or take 12 % (the standard deviation), so
/// that many clients do not come back at one instant; no delay is longer than an hour.
#[derive(Debug)]
pub struct Reconnector {
    initial_delay: Duration,
    max_delay: Duration,
    factor: f64,
    jitter: f64,
    max_retries: Option<u32>,
    delay: Duration,
    retries: u32,
    /// Shared with the retry that waits, which another thread may be making just now.
    stopped: Arc<AtomicBool>,
    /// Weak, since a connector keeps its factory, which keeps this.
    connector: Option<WeakConnector>,
    waiting: Option<DelayedCall>,
}

impl Default for Reconnector {
    fn default() -> Self {
        let initial_delay = Duration::from_secs(1);
        Self {
            initial_delay,
            max_delay: Duration::from_secs(3600),
            factor: consts::E,
            // Twisted's figure, like the others.
            jitter: 0.119_626_565_582,
            max_retries: None,
            delay: initial_delay,
            retries: 0,
            stopped: Arc::default(),
            connector: None,
            waiting: None,
        }
    }
}

/// How it tries.
impl Reconnector {
    /// With Twisted's delays, for ever.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the first delay is a multiple of; 1 s by default.
    pub fn initial_delay(mut self, delay: Duration) -> Self {
        (self.initial_delay, self.delay) = (delay, delay);
        self
    }

    /// No delay is longer; 3600 s by default.
    pub fn max_delay(mut self, delay: Duration) -> Self {
        self.max_delay = delay;
        self
    }

    /// How many times as long each delay is as the one before it; e by default. What is less than 1 or no number counts as 1.
    pub fn factor(mut self, factor: f64) -> Self {
        self.factor = factor.max(1.0);
        self
    }

    /// The standard deviation of a delay, as a part of it; 0 for none. What is less than 0 or no number counts as 0.
    pub fn jitter(mut self, jitter: f64) -> Self {
        self.jitter = jitter.max(0.0);
        self
    }

    /// How often it tries again in a row, before it gives up; for ever by default.
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.max_retries = Some(retries);
        self
    }
}

/// Trying.
impl Reconnector {
    /// An attempt begins, which [`stop_trying`](Self::stop_trying) is to stop. For
    /// [`started_connecting`](crate::ClientFactory::started_connecting): without it the first attempt is not known here.
    pub fn started_connecting(&mut self, connector: &Connector) {
        self.connector = Some(connector.downgrade());
    }

    /// Has the connector connect again after the next delay, and answers how long that is; None if that was one retry too many,
    /// or [`stop_trying`](Self::stop_trying) has been called.
    pub fn retry(&mut self, reactor: &Reactor, connector: &Connector) -> Option<Duration> {
        self.connector = Some(connector.downgrade());
        if let Some(waiting) = self.waiting.take() {
            // There is one retry at a time.
            let _ = waiting.cancel();
        }
        if self.stopped.load(SeqCst) {
            return None;
        }
        let Some(delay) = self.next_delay(normal()) else {
            log::info!("Abandoning {} after {} retries", connector.get_destination(), self.retries);
            return None;
        };
        log::info!("{} will be tried again in {delay:.1?}", connector.get_destination());
        let (connector, stopped) = (connector.clone(), Arc::clone(&self.stopped));
        self.waiting = Some(reactor.call_later(delay, move |_| {
            // In any other state somebody else has connected it meanwhile.
            let begun = connector.connect().is_ok();
            if begun && stopped.load(SeqCst) {
                let _ = connector.stop_connecting();
            }
        }));
        Some(delay)
    }

    /// Begins again with the first delay and no retries, also after [`stop_trying`](Self::stop_trying). For a
    /// connection that has proved to be good.
    pub fn reset_delay(&mut self) {
        (self.delay, self.retries) = (self.initial_delay, 0);
        self.stopped.store(false, SeqCst);
    }

    /// Tries no more: neither the retry that waits for its time nor the attempt that is under way goes on. A
    /// connection that is made stays.
    pub fn stop_trying(&mut self) {
        self.stopped.store(true, SeqCst);
        if let Some(waiting) = self.waiting.take() {
            // It may have been called already; then the attempt is under way.
            let _ = waiting.cancel();
        }
        if let Some(connector) = self.connector.take().and_then(|connector| connector.upgrade()) {
            // It may be under way no more.
            let _ = connector.stop_connecting();
        }
    }

    /// How often it has tried again since the beginning or the last [`reset_delay`](Self::reset_delay).
    pub fn retries(&self) -> u32 {
        self.retries
    }

    /// Counts a retry and finds its delay, by a number of the standard normal distribution.
    fn next_delay(&mut self, normal: f64) -> Option<Duration> {
        if self.max_retries.is_some_and(|max| self.retries >= max) {
            return None;
        }
        self.retries += 1;
        let max = self.max_delay.as_secs_f64();
        let delay = (self.delay.as_secs_f64() * self.factor).min(max);
        let as_duration = |delay| Duration::try_from_secs_f64(delay).unwrap_or(self.max_delay);
        // Without the jitter (≠ Twisted): a delay that came out as 0 would stay there.
        self.delay = as_duration(delay);
        Some(as_duration((delay + delay * self.jitter * normal).clamp(0.0, max)))
    }
}

/// A number of the standard normal distribution, by Box and Muller.
fn normal() -> f64 {
    let (radius, angle) = (1.0 - fastrand::f64(), consts::TAU * fastrand::f64());
    (-2.0 * radius.ln()).sqrt() * angle.cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(reconnector: &mut Reconnector, normal: f64) -> f64 {
        reconnector.next_delay(normal).unwrap().as_secs_f64()
    }

    #[test]
    fn delays_grow_by_e_up_to_an_hour() {
        let mut reconnector = Reconnector::new();
        let mut wanted = 1.0;
        for _ in 0..20 {
            wanted = f64::min(wanted * consts::E, 3600.0);
            assert!((seconds(&mut reconnector, 0.0) - wanted).abs() < 1e-6 * wanted);
        }
        assert_eq!(reconnector.retries(), 20);
        reconnector.reset_delay();
        assert_eq!(reconnector.retries(), 0);
        assert!((seconds(&mut reconnector, 0.0) - consts::E).abs() < 1e-6);
    }

    #[test]
    fn jitter_makes_no_delay_too_long_or_less_than_none() {
        let mut reconnector = Reconnector::new().jitter(0.5);
        let once = seconds(&mut reconnector, 1.0);
        assert!((once - consts::E * 1.5).abs() < 1e-6, "{once}");
        assert_eq!(seconds(&mut reconnector, -1000.0), 0.0);
        assert!(seconds(&mut reconnector, 0.0) > 20.0, "what grows is not what was made shorter by chance");
        let mut reconnector = Reconnector::new();
        for _ in 0..100 {
            assert!(seconds(&mut reconnector, 5.0) <= 3600.0);
        }
        assert_eq!(seconds(&mut reconnector, 5.0), 3600.0);
    }

    #[test]
    fn it_gives_up_after_so_many() {
        let mut reconnector = Reconnector::new().max_retries(2);
        assert!(reconnector.next_delay(0.0).is_some() && reconnector.next_delay(0.0).is_some());
        assert_eq!(reconnector.next_delay(0.0), None);
        assert_eq!(reconnector.retries(), 2);
    }

    #[test]
    fn nonsense_is_bounded() {
        let mut reconnector = Reconnector::new().factor(f64::NAN).jitter(-1.0);
        assert_eq!(seconds(&mut reconnector, 3.0), 1.0);
        let mut reconnector = Reconnector::new().factor(f64::INFINITY).max_delay(Duration::MAX);
        assert!(reconnector.next_delay(1.0).is_some());
    }

    #[test]
    fn the_normal_numbers_are_normal() {
        let numbers: Vec<f64> = (0..10_000).map(|_| normal()).collect();
        let mean = numbers.iter().sum::<f64>() / 10_000.0;
        let deviation = (numbers.iter().map(|n| (n - mean).powi(2)).sum::<f64>() / 10_000.0).sqrt();
        assert!(mean.abs() < 0.1 && (deviation - 1.0).abs() < 0.1, "{mean} {deviation}");
    }
}
