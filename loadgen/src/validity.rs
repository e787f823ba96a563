//! Whether a cell's figures mean what they seem to: checks that spoil it, and checks that say how to read it.

use crate::{
    cli::Settings,
    control::ServerStats,
    engine::DatagramCounts,
    layout::DEVIATIONS,
    measure::TcpTrouble,
    mode::{Manner, Mode},
    result::{Cell, Check, Paced},
};

/// Above this share of a CPU the client may be what limits the rate.
const BUSY: f64 = 0.9;
/// A rate that changes more within a window is no rate.
const DRIFT_MAX: f64 = 0.1;
/// An open loop that does not send, or have answered, a larger share of what arrives does not keep its rate.
const DROPPED_MAX: f64 = 0.01;
/// How far rate times latency may be from the number of requests under way.
const LITTLE_MAX: f64 = 0.05;
/// Above this share of lost datagrams what is measured is the loss.
const LOST_MAX: f64 = 0.01;
/// As long as the kernel's clock of stolen time takes for a step.
const TICK_SECONDS: f64 = 0.01;

/// What the client knows.
pub(crate) fn of_client(settings: &Settings, cell: &Cell) -> Vec<Check> {
    let counts = &cell.counts;
    let mut checks = Vec::new();
    // In an open loop, or idle, who gets nothing may have asked nothing.
    if cell.point.rate.is_none() && !settings.is_idle() {
        // How a server shares its time is its own property, so it is told and not thrown away.
        checks.push(Check::noted(
            "no_starved_connection",
            counts.connections_starved == 0,
            format!("{} got no reply within the window", counts.connections_starved),
        ));
    }
    // Those that come and go are not all there at any moment.
    if settings.manner.mode != Mode::Churn {
        checks.push(Check::required(
            "connections_alive",
            counts.connections_alive == counts.connections_asked,
            format!("{} of {} were up at the end", counts.connections_alive, counts.connections_asked),
        ));
    }
    checks.extend(little_stolen(settings.max_steal, cell));
    // Who spins is always busy; then this check has nothing to say, and neither has the share.
    if let Some(share) = cell.costs.client_cpu_share {
        let detail = format!("the client used {:.0} % of a CPU", share * 100.0);
        checks.push(Check::noted("client_not_saturated", share <= BUSY, detail));
    }
    if !settings.is_idle() {
        let served = counts.requests > 0;
        let detail = format!("{} replies came within the window", counts.requests);
        checks.push(Check::required("anything_served", served, detail));
        checks.extend(steadiness(&cell.series));
    }
    checks.extend(match cell.point.rate {
        Some(rate) => rate_kept(&settings.manner, cell, rate),
        None => littles_law(&settings.manner, cell),
    });
    checks.extend(few_lost(cell));
    if let Some(tcp) = cell.tcp {
        let TcpTrouble { retransmitted_segments, dropped_connections, dropped_segments } = tcp;
        let none = tcp == TcpTrouble::default();
        let detail = format!(
            "{retransmitted_segments} segments were sent again, {dropped_segments} dropped, {dropped_connections} \
             connections dropped, in the whole network namespace"
        );
        checks.push(Check::noted("no_tcp_trouble", none, detail));
    }
    checks
}

/// A cell of which more is stolen says more about the neighbours than about the server.
fn little_stolen(max_steal: f64, cell: &Cell) -> Option<Check> {
    let stolen = cell.costs.stolen_share?;
    let detail = format!("the hypervisor took {:.1} % of the time", stolen * 100.0);
    // Stolen time comes in ticks, which a short window has few of.
    let most = max_steal + 2.0 * TICK_SECONDS / cell.window_seconds;
    Some(Check::required("stolen_time", stolen <= most, detail))
}

/// Whether the rate holds: the second half of the window against the first, if it has at least two slices beside
/// the last.
fn steadiness(series: &[u64]) -> Option<Check> {
    // The last slice may be cut short by the window's end.
    let whole = &series[..series.len().saturating_sub(1)];
    let (first, second) = (&whole[..whole.len() / 2], &whole[whole.len().div_ceil(2)..]);
    let (first, second): (u64, u64) = (first.iter().sum(), second.iter().sum());
    if first == 0 {
        let detail = format!("nothing was served in the first half of the window, {second} in the second");
        return (second > 0).then(|| Check::noted("steady_rate", false, detail));
    }
    let change = second as f64 / first as f64 - 1.0;
    // Random arrivals differ by themselves: three standard deviations of two counts.
    let chance = 3.0 * (4.0 / (first + second) as f64).sqrt();
    let detail = format!("the second half of the window served {:+.1} % against the first", change * 100.0);
    Some(Check::noted("steady_rate", change.abs() <= DRIFT_MAX.max(chance), detail))
}

/// Whether nearly every datagram was answered: of a socket whose request is lost, nothing is heard for a while.
fn few_lost(cell: &Cell) -> Option<Check> {
    let DatagramCounts { lost_in_window, late, dropped_by_kernel, .. } = cell.datagrams?;
    let asked = cell.counts.requests + lost_in_window;
    let dropped = dropped_by_kernel
        .map_or_else(String::new, |dropped| format!(", {dropped} datagrams found a full receive queue"));
    let detail = format!(
        "{lost_in_window} of {asked} requests had no reply in time ({late} replies came late, in all phases{dropped})"
    );
    Some(Check::required("few_datagrams_lost", lost_in_window as f64 <= LOST_MAX * asked as f64, detail))
}

/// Whether an open loop sent what arrived, and as much was answered: what a slow server leaves behind in a
/// short window can all be under way on connections that were free.
fn rate_kept(manner: &Manner, cell: &Cell, rate: u64) -> Option<Check> {
    // Each request of a push has as many replies as there are connections.
    let audience = if manner.mode == Mode::Push { cell.point.connections as f64 } else { 1.0 };
    let (rps, paced) = (cell.rps? / audience, cell.paced.as_ref()?);
    let Paced { offered, late, dropped, .. } = paced;
    // Random arrivals differ by themselves.
    let least = (1.0 - DROPPED_MAX) * *offered as f64 - 3.0 * (*offered as f64).sqrt();
    let answered = cell.counts.requests as f64 / audience;
    let kept = *dropped as f64 <= DROPPED_MAX * *offered as f64 && answered >= least;
    let detail = format!(
        "{rps:.0} of {rate} requests/s were answered; of {offered} that arrived, {late} waited for a free \
         connection and {dropped} were never sent"
    );
    Some(Check::noted("rate_kept", kept, detail))
}

/// Rate times mean latency is the number of requests under way; in a closed loop that is known. If it does not
/// agree, one of the figures is wrong.
fn littles_law(manner: &Manner, cell: &Cell) -> Option<Check> {
    // With churn the time to close is not in the latency; a push is over only with the last of its replies.
    if !matches!(manner.mode, Mode::Rr | Mode::Stream) {
        return None;
    }
    let (rps, latency) = (cell.rps?, cell.latency.as_ref().filter(|_| !cell.hides_latency())?);
    // What was lost has its time-out as its latency, and no part in the rate.
    let lost = cell.datagrams.map_or(0.0, |counts| counts.lost_in_window as f64) / cell.window_seconds;
    let under_way = (rps + lost) * (latency.mean_us / 1e6 + manner.think.as_secs_f64());
    let asked = (cell.point.connections * cell.point.pipeline) as f64;
    let pausing = if manner.think.is_zero() { "" } else { " or pausing" };
    let detail =
        format!("{under_way:.1} requests were under way{pausing} on average, of {asked} that may be");
    // Those at the edges of the window are counted with their whole time, but not all of them as answered.
    let edges = latency.mean_us / 1e6 / cell.window_seconds.max(f64::MIN_POSITIVE);
    let holds = (under_way / asked - 1.0).abs() <= LITTLE_MAX + edges;
    Some(Check::noted("littles_law", holds, detail))
}

/// The server's account must agree with the client's.
pub(crate) fn of_server(cell: &Cell, last: Option<&ServerStats>) -> Vec<Check> {
    let Some(last) = last else {
        return vec![Check::required(
            "server_stopped_cleanly",
            false,
            "it gave no last account of itself".into(),
        )];
    };
    let stopped = Check::required("server_stopped_cleanly", true, "it gave its last account".into());
    // Another program counts nothing for loadgen.
    if let Some(counts) = cell.datagrams {
        return [Some(stopped), last.count("datagrams_received").map(|came| all_came(counts, came))]
            .into_iter()
            .flatten()
            .collect();
    }
    let (Some(accepted), Some(received)) = (last.count("accepted"), last.count("bytes_received")) else {
        return vec![stopped];
    };
    let (made, sent) = (cell.counts.connections_made, cell.counts.bytes_sent_all_phases);
    let mut checks = vec![
        stopped,
        Check::required(
            "server_accepted_all",
            accepted == made,
            format!("the server counts {accepted} accepted connections, the client made {made}"),
        ),
        Check::required(
            "server_received_all",
            received == sent,
            format!("the server counts {received} bytes, the client sent {sent}"),
        ),
    ];
    checks.extend(dealt_evenly(&last.accepted_by_reactor));
    checks
}

/// What is lost may be a request or a reply.
fn all_came(counts: DatagramCounts, came: u64) -> Check {
    let DatagramCounts { sent, lost, .. } = counts;
    let detail =
        format!("the server counts {came} datagrams, the client sent {sent}, and counts {lost} as lost");
    Check::required("server_received_all", (sent.saturating_sub(lost)..=sent).contains(&came), detail)
}

/// Whether several reactors got about as many connections each, as they do by a good hash.
fn dealt_evenly(accepted: &[u64]) -> Option<Check> {
    let fullest = *accepted.iter().max().filter(|_| accepted.len() > 1)?;
    let mean = accepted.iter().sum::<u64>() as f64 / accepted.len() as f64;
    let detail = format!("the fullest of {} reactors got {fullest}, the mean is {mean:.0}", accepted.len());
    let even = fullest as f64 <= mean + DEVIATIONS * mean.sqrt();
    Some(Check::noted("connections_dealt_evenly", even, detail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::Latency;

    #[test]
    fn a_rate_that_changes_within_the_window_is_told() {
        let passed = |series: &[u64]| steadiness(series).map(|check| check.passed);
        assert_eq!(passed(&[10_000; 11]), Some(true));
        assert_eq!(passed(&[10_000, 10_000, 10_800, 10_800, 3]), Some(true), "the last slice is cut short");
        assert_eq!(passed(&[10_000, 10_000, 8_800, 8_800, 0]), Some(false));
        assert_eq!(passed(&[10_000, 10_000, 11_200, 11_200, 0]), Some(false));
        assert_eq!(passed(&[10_000, 10_000, 0, 0, 0]), Some(false), "it went quiet");
        assert_eq!(passed(&[0, 0, 5, 5, 0]), Some(false), "it began late");
        assert_eq!(passed(&[100, 100, 120, 120, 0]), Some(true), "so few differ by chance");
        assert_eq!((passed(&[]), passed(&[0, 0, 0, 0])), (None, None));
    }

    #[test]
    fn more_stolen_time_than_allowed_spoils() {
        let mut cell = Cell::of_test("epoll", 1, 10);
        cell.window_seconds = 1.0;
        let passed = |cell: &Cell, most| little_stolen(most, cell).map(|check| check.passed);
        cell.costs.stolen_share = None;
        assert_eq!(passed(&cell, 0.05), None, "this kernel does not tell");
        cell.costs.stolen_share = Some(0.5);
        assert_eq!((passed(&cell, 0.05), passed(&cell, 0.5)), (Some(false), Some(true)));
        cell.costs.stolen_share = Some(0.06);
        assert_eq!(passed(&cell, 0.05), Some(true), "two ticks of a hundred may be chance");
    }

    #[test]
    fn rate_and_latency_must_fit_the_connections() {
        let mut cell = Cell::of_test("epoll", 1, 10);
        let manner = Manner::plain();
        cell.window_seconds = 5.0;
        assert!(littles_law(&manner, &cell).is_none(), "nothing is known yet");
        let mut histogram = hdrhistogram::Histogram::new(3).expect("3 digits");
        histogram.record(10_000_000).expect("auto-resizing");
        (cell.rps, cell.latency) = (Some(1_000.0), Latency::of(&histogram));
        assert!(littles_law(&manner, &cell).expect("all is known").passed);
        cell.rps = Some(900.0);
        assert!(!littles_law(&manner, &cell).expect("all is known").passed);
        cell.counts.connections_starved = 1;
        assert!(littles_law(&manner, &cell).is_none(), "some had no reply, which the latency cannot tell");
    }
}
