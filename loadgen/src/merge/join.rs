//! Cells that were one load: what can be added is added, latencies are computed anew from the added
//! histograms, and what is neither is null.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::{
    engine::{DatagramCounts, Failure},
    histogram::sum,
    measure::TcpTrouble,
    point::Point,
    result::{Cell, Check, Costs, Counts, Idle, Latency, Paced},
};

/// The load of so many machines, each with this one.
pub(super) fn point(point: &Point, machines: usize) -> Point {
    Point {
        connections: point.connections.saturating_mul(machines),
        rate: point.rate.map(|rate| rate.saturating_mul(machines as u64)),
        ..point.clone()
    }
}

/// One cell of several that ran at the same time, at least one.
pub(super) fn cells(cells: &[&Cell]) -> Cell {
    let first = cells[0];
    let histogram = histogram(cells, |cell| cell.histogram.as_ref());
    let checks = checks(cells);
    Cell {
        row: first.row.clone(),
        round: first.round,
        point: point(&first.point, cells.len()),
        repeat: first.repeat,
        probe: first.probe,
        spoiled: cells.iter().any(|cell| cell.spoiled),
        client_processes: cells.iter().map(|cell| cell.client_processes).sum(),
        server: only(cells, |cell| cell.server.clone()),
        // Windows have one length; the load was on from the first moment to the last.
        window_opened_unix_seconds: cells
            .iter()
            .filter_map(|cell| cell.window_opened_unix_seconds)
            .min_by(f64::total_cmp),
        ramp_seconds: cells.iter().map(|cell| cell.ramp_seconds).fold(0.0, f64::max),
        window_seconds: cells.iter().map(|cell| cell.window_seconds).fold(0.0, f64::max),
        counts: counts(cells),
        rps: cells.iter().map(|cell| cell.rps).sum(),
        latency: histogram.as_ref().and_then(Latency::of),
        histogram,
        paced: paced(cells),
        response: first.response,
        idle: idle(cells),
        series: series(cells),
        costs: costs(cells),
        datagrams: datagrams(cells),
        tcp: tcp(cells),
        errors: errors(cells),
        checks,
        error: cells.iter().find_map(|cell| cell.error.clone()),
    }
}

/// What exactly one of the cells has.
fn only<T>(cells: &[&Cell], pick: impl Fn(&Cell) -> Option<T>) -> Option<T> {
    let mut found = cells.iter().filter_map(|cell| pick(cell));
    let first = found.next();
    first.filter(|_| found.next().is_none())
}

/// The sum of the histograms, if all cells have one.
fn histogram<'a>(
    cells: &[&'a Cell],
    pick: impl Fn(&'a Cell) -> Option<&'a Histogram<u64>>,
) -> Option<Histogram<u64>> {
    let all: Vec<&Histogram<u64>> = cells.iter().map(|cell| pick(cell)).collect::<Option<_>>()?;
    sum(all.into_iter())
}

fn counts(cells: &[&Cell]) -> Counts {
    let mut sum = Counts::default();
    for Counts {
        requests,
        requests_all_phases,
        bytes_each_way,
        bytes_sent_all_phases,
        connections_made,
        connections_asked,
        connections_alive,
        connections_starved,
    } in cells.iter().map(|cell| &cell.counts)
    {
        sum.requests += requests;
        sum.requests_all_phases += requests_all_phases;
        sum.bytes_each_way += bytes_each_way;
        sum.bytes_sent_all_phases += bytes_sent_all_phases;
        sum.connections_made += connections_made;
        sum.connections_asked += connections_asked;
        sum.connections_alive += connections_alive;
        sum.connections_starved += connections_starved;
    }
    sum
}

fn paced(cells: &[&Cell]) -> Option<Paced> {
    let all: Vec<&Paced> = cells.iter().map(|cell| cell.paced.as_ref()).collect::<Option<_>>()?;
    let lag = histogram(cells, |cell| cell.paced.as_ref()?.lag_histogram.as_ref());
    let service = histogram(cells, |cell| cell.paced.as_ref()?.service_histogram.as_ref());
    Some(Paced {
        offered: all.iter().map(|paced| paced.offered).sum(),
        late: all.iter().map(|paced| paced.late).sum(),
        dropped: all.iter().map(|paced| paced.dropped).sum(),
        lag: lag.as_ref().and_then(Latency::of),
        service: service.as_ref().and_then(Latency::of),
        lag_histogram: lag,
        service_histogram: service,
    })
}

/// Bytes a connection are of one machine, and what a server adds for all of them no client has seen.
fn idle(cells: &[&Cell]) -> Option<Idle> {
    let all: Vec<&Idle> = cells.iter().map(|cell| cell.idle.as_ref()).collect::<Option<_>>()?;
    Some(Idle {
        connections_per_second: all.iter().map(|idle| idle.connections_per_second).sum(),
        server_bytes_per_connection: None,
        client_bytes_per_connection: None,
        kernel_bytes_per_connection: None,
        pinged: all.iter().map(|idle| idle.pinged).sum(),
        answered: all.iter().map(|idle| idle.answered).sum(),
    })
}

/// Slice by slice, each from the opening of its own window.
fn series(cells: &[&Cell]) -> Vec<u64> {
    let length = cells.iter().map(|cell| cell.series.len()).max().unwrap_or(0);
    let slice = |at: usize| cells.iter().filter_map(|cell| cell.series.get(at)).sum();
    (0..length).map(slice).collect()
}

/// CPU time of clients is added and shared out over all requests. What a server took is known if one of the
/// machines is its own, and it took it for the requests of all; what it counted itself it also divided itself.
fn costs(cells: &[&Cell]) -> Costs {
    let requests = cells.iter().map(|cell| cell.counts.requests).sum::<u64>() as f64;
    let shared_out = |us: f64| (requests > 0.0).then(|| us / requests);
    let spent =
        |cell: &Cell, us_per_request: Option<f64>| Some(us_per_request? * cell.counts.requests as f64);
    let client: Option<f64> =
        cells.iter().map(|cell| spent(cell, cell.costs.client_cpu_us_per_request)).sum();
    let server = only(cells, |cell| spent(cell, cell.costs.server_cpu_us_per_request));
    let own = |pick: fn(&Costs) -> Option<f64>| only(cells, |cell| pick(&cell.costs));
    Costs {
        server_cpu_us_per_request: server.and_then(shared_out),
        client_cpu_us_per_request: client.and_then(shared_out),
        total_cpu_us_per_request: client.zip(server).and_then(|(client, server)| shared_out(client + server)),
        syscalls_per_request: own(|costs| costs.syscalls_per_request),
        syscalls_in_window: only(cells, |cell| {
            let syscalls = &cell.costs.syscalls_in_window;
            (!syscalls.is_empty()).then(|| syscalls.clone())
        })
        .unwrap_or_default(),
        events_per_wait: own(|costs| costs.events_per_wait),
        voluntary_switches_per_request: own(|costs| costs.voluntary_switches_per_request),
        involuntary_switches_per_request: own(|costs| costs.involuntary_switches_per_request),
        server_peak_memory_bytes: only(cells, |cell| cell.costs.server_peak_memory_bytes),
        server_cpu_share: own(|costs| costs.server_cpu_share),
        client_cpu_share: None,
        stolen_share: None,
    }
}

fn tcp(cells: &[&Cell]) -> Option<TcpTrouble> {
    let mut sum = TcpTrouble::default();
    for cell in cells {
        let TcpTrouble { retransmitted_segments, dropped_connections, dropped_segments } = cell.tcp?;
        sum.retransmitted_segments += retransmitted_segments;
        sum.dropped_connections += dropped_connections;
        sum.dropped_segments += dropped_segments;
    }
    Some(sum)
}

fn datagrams(cells: &[&Cell]) -> Option<DatagramCounts> {
    let mut sum = DatagramCounts::default();
    for cell in cells {
        let counts = cell.datagrams?;
        sum.sent += counts.sent;
        sum.answered += counts.answered;
        sum.lost += counts.lost;
        sum.late += counts.late;
        sum.outstanding += counts.outstanding;
        sum.lost_in_window += counts.lost_in_window;
    }
    // Each machine's kernel has its own.
    Some(DatagramCounts { dropped_by_kernel: None, ..sum })
}

fn errors(cells: &[&Cell]) -> Vec<Failure> {
    let mut counts = BTreeMap::new();
    for Failure { phase, cause, count } in cells.iter().flat_map(|cell| &cell.errors) {
        *counts.entry((phase.clone(), cause.clone())).or_insert(0) += count;
    }
    let counts = counts.into_iter();
    counts.map(|((phase, cause), count)| Failure { phase, cause, count }).collect()
}

/// One of each name, passed if all passed.
fn checks(cells: &[&Cell]) -> Vec<Check> {
    let mut joined: Vec<Check> = Vec::new();
    for check in cells.iter().flat_map(|cell| &cell.checks) {
        match joined.iter_mut().find(|known| known.name == check.name) {
            None => joined.push(check.clone()),
            Some(known) => {
                known.passed &= check.passed;
                known.spoils |= check.spoils;
                known.detail = format!("{}; {}", known.detail, check.detail);
            }
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latency(values: &[u64]) -> Histogram<u64> {
        let mut histogram = Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("valid bounds");
        values.iter().for_each(|us| histogram.record(us * 1_000).expect("in range"));
        histogram
    }

    fn cell(requests: u64, values: &[u64]) -> Cell {
        let mut cell = Cell::of_test("tcp://host:1", 2, 10);
        cell.point.rate = Some(500);
        cell.counts.requests = requests;
        (cell.rps, cell.window_seconds, cell.series) = (Some(requests as f64), 1.0, vec![requests; 2]);
        cell.window_opened_unix_seconds = Some(1e9 + requests as f64 / 1e6);
        let histogram = latency(values);
        (cell.latency, cell.histogram) = (Latency::of(&histogram), Some(histogram));
        cell.costs.client_cpu_us_per_request = Some(2.0);
        cell.checks = vec![Check::noted("client_not_saturated", true, "80 %".into())];
        cell
    }

    #[test]
    fn loads_and_rates_are_added() {
        let (mut a, b) = (cell(1_000, &[10]), cell(3_000, &[20]));
        a.series.push(7);
        a.tcp = Some(TcpTrouble { retransmitted_segments: 2, ..TcpTrouble::default() });
        let joined = cells(&[&a, &b]);
        assert_eq!((joined.point.connections, joined.point.rate), (20, Some(1_000)));
        assert_eq!((joined.counts.requests, joined.counts.connections_asked), (4_000, 20));
        assert_eq!((joined.rps, joined.series), (Some(4_000.0), vec![4_000, 4_000, 7]));
        assert_eq!((joined.row.as_str(), joined.round), ("tcp://host:1", 2));
        assert_eq!(joined.window_opened_unix_seconds, a.window_opened_unix_seconds, "the first opening");
        assert_eq!(joined.tcp, None, "one of them does not tell");
    }

    #[test]
    fn histograms_are_added_and_never_averaged() {
        let (a, b) = (cell(99, &[10; 99]), cell(1, &[1_000]));
        let joined = cells(&[&a, &b]);
        let latency = joined.latency.expect("there are values");
        assert!((latency.p50_us - 10.0).abs() < 0.1, "an average of medians would be 505: {latency:?}");
        assert!((latency.mean_us - 19.9).abs() < 0.1, "{latency:?}");
        assert_eq!(joined.histogram.expect("added").len(), 100);
        let (a, mut b) = (cell(1, &[1]), cell(1, &[1]));
        b.histogram = None;
        let joined = cells(&[&a, &b]);
        assert!(joined.latency.is_none() && joined.histogram.is_none(), "half of them is not the latency");
    }

    #[test]
    fn what_an_open_loop_counts_is_added() {
        let paced = |offered: u64, us: u64| Paced {
            offered,
            late: 1,
            dropped: 2,
            lag: None,
            service: None,
            lag_histogram: Some(latency(&[us])),
            service_histogram: Some(latency(&[us])),
        };
        let (mut a, mut b) = (cell(1, &[1]), cell(1, &[1]));
        (a.paced, b.paced) = (Some(paced(10, 100)), Some(paced(20, 300)));
        let joined = cells(&[&a, &b]).paced.expect("both have it");
        assert_eq!((joined.offered, joined.late, joined.dropped), (30, 2, 4));
        assert_eq!(joined.lag.expect("added").mean_us.round(), 200.0);
    }

    #[test]
    fn cpu_time_is_shared_out_over_all_requests() {
        let (mut a, b) = (cell(1_000, &[1]), cell(3_000, &[1]));
        a.costs.client_cpu_us_per_request = Some(6.0);
        (a.costs.server_cpu_us_per_request, a.costs.syscalls_per_request) = (Some(8.0), Some(2.5));
        a.costs.client_cpu_share = Some(0.5);
        let costs = cells(&[&a, &b]).costs;
        assert_eq!(costs.client_cpu_us_per_request, Some(3.0), "(1,000 x 6 + 3,000 x 2) / 4,000");
        assert_eq!(costs.server_cpu_us_per_request, Some(2.0), "8,000 us for the requests of both");
        assert_eq!(costs.total_cpu_us_per_request, Some(5.0));
        assert_eq!((costs.syscalls_per_request, costs.client_cpu_share), (Some(2.5), None));
        let costs = cells(&[&a, &a]).costs;
        assert_eq!(
            (costs.server_cpu_us_per_request, costs.syscalls_per_request),
            (None, None),
            "both claim it"
        );
    }

    #[test]
    fn a_check_passes_if_it_passed_everywhere() {
        let (a, mut b) = (cell(1, &[1]), cell(1, &[1]));
        b.checks[0] = Check::noted("client_not_saturated", false, "99 %".into());
        b.checks.push(Check::required("connections_alive", true, "10 of 10".into()));
        let checks = cells(&[&a, &b]).checks;
        assert_eq!(checks.len(), 2);
        assert_eq!((checks[0].passed, checks[0].detail.as_str()), (false, "80 %; 99 %"));
        assert!(checks[1].passed && checks[1].spoils);
    }
}
