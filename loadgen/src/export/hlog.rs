//! The HdrHistogram interval log (version 1.3): an interval a cell, values in nanoseconds, tagged
//! with row and point.

use std::time::{Duration, UNIX_EPOCH};

use hdrhistogram::serialization::{
    V2DeflateSerializer,
    interval_log::{IntervalLogWriterBuilder, Tag},
};

use crate::{
    point::Distinction,
    result::{Cell, Document},
};

pub(super) fn render(document: &Document) -> String {
    let mut bytes = Vec::new();
    // Writing to memory cannot fail, and all histograms have the bounds that the encoding takes.
    let written = write(document, &mut bytes);
    debug_assert!(written.is_some());
    String::from_utf8(bytes).unwrap_or_default()
}

fn write(document: &Document, bytes: &mut Vec<u8>) -> Option<()> {
    let mut serializer = V2DeflateSerializer::new();
    let mut builder = IntervalLogWriterBuilder::new();
    // Readers of the format look for this line, which the library leaves out.
    builder.add_comment("[Histogram log format version 1.3]");
    builder.add_comment(&format!("loadgen {}, latency in nanoseconds", document.loadgen_version));
    if let Some(opened) = document.cells.iter().find_map(|cell| cell.window_opened_unix_seconds) {
        builder.with_start_time(UNIX_EPOCH + Duration::from_secs_f64(opened));
    }
    let mut log = builder.begin_log_with(bytes, &mut serializer).ok()?;
    let distinction = Distinction::among(&document.settings.points);
    // A cell that leaves out the slowest is left out itself.
    let told = |cell: &&Cell| cell.counts_for_comparison() && !cell.hides_latency();
    for cell in document.cells.iter().filter(told) {
        let (Some(histogram), Some(opened)) = (&cell.histogram, cell.window_opened_unix_seconds) else {
            continue;
        };
        let length = Duration::from_secs_f64(cell.window_seconds);
        let tag = tag(cell, distinction);
        log.write_histogram(histogram, Duration::from_secs_f64(opened), length, Tag::new(&tag)).ok()?;
    }
    Some(())
}

/// A tag may hold neither commas nor white space.
fn tag(cell: &Cell, distinction: Distinction) -> String {
    format!("{}/{}", cell.row, distinction.tag(&cell.point, '/')).replace([',', ' '], "_")
}
