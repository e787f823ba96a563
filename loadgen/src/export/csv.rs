//! CSV (RFC 4180): one line a cell, spoiled ones included. What is not available is empty.

use crate::result::{Cell, Document, Paced, Recorded};

const COLUMNS: &str = "row,connections,round,size_bytes,repeat,spoiled,window_seconds,requests,rps,mean_us,p50_us,\
                       p90_us,p99_us,p999_us,max_us,server_cpu_us_per_request,client_cpu_us_per_request,\
                       total_cpu_us_per_request,syscalls_per_request,events_per_wait,\
                       voluntary_switches_per_request,involuntary_switches_per_request,server_peak_memory_bytes,\
                       connections_starved,offered,late,dropped,pipeline,rate,mode,probe,transport,lost";

pub(super) fn render(document: &Document) -> String {
    let mut text = format!("{COLUMNS}\r\n");
    for cell in &document.cells {
        text.push_str(&line(cell, &document.settings).join(","));
        text.push_str("\r\n");
    }
    text
}

fn line(cell: &Cell, settings: &Recorded) -> Vec<String> {
    // Of cells that leave out the slowest it would be a lie.
    let (latency, costs) = (cell.latency.as_ref().filter(|_| !cell.hides_latency()), &cell.costs);
    let figure = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
    let mut fields = vec![
        quoted(&cell.row),
        cell.point.connections.to_string(),
        cell.round.to_string(),
        cell.point.size.to_string(),
        cell.repeat.to_string(),
        cell.spoiled.to_string(),
        cell.window_seconds.to_string(),
        cell.counts.requests.to_string(),
    ];
    fields.extend(
        [
            cell.rps,
            latency.map(|latency| latency.mean_us),
            latency.map(|latency| latency.p50_us),
            latency.map(|latency| latency.p90_us),
            latency.map(|latency| latency.p99_us),
            latency.map(|latency| latency.p999_us),
            latency.map(|latency| latency.max_us),
            costs.server_cpu_us_per_request,
            costs.client_cpu_us_per_request,
            costs.total_cpu_us_per_request,
            costs.syscalls_per_request,
            costs.events_per_wait,
            costs.voluntary_switches_per_request,
            costs.involuntary_switches_per_request,
        ]
        .map(figure),
    );
    fields.push(costs.server_peak_memory_bytes.map(|bytes| bytes.to_string()).unwrap_or_default());
    fields.push(cell.counts.connections_starved.to_string());
    let paced = |pick: fn(&Paced) -> u64| {
        cell.paced.as_ref().map(|paced| pick(paced).to_string()).unwrap_or_default()
    };
    fields.extend([paced(|paced| paced.offered), paced(|paced| paced.late), paced(|paced| paced.dropped)]);
    fields.push(cell.point.pipeline.to_string());
    fields.push(cell.point.rate.map(|rate| rate.to_string()).unwrap_or_default());
    fields.extend([quoted(&settings.mode), cell.probe.to_string(), quoted(&settings.transport)]);
    fields.push(cell.datagrams.map(|counts| counts.lost_in_window.to_string()).unwrap_or_default());
    fields
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\r', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_break_a_line_is_quoted() {
        assert_eq!(quoted("epoll"), "epoll");
        assert_eq!(quoted("a,\"b\""), "\"a,\"\"b\"\"\"");
    }
}
