//! The percentile distribution that HdrHistogram's plotter reads, in milliseconds: a file a row and
//! point, all rounds added.

use std::fmt::Write;

use hdrhistogram::Histogram;

use crate::{point::Distinction, result::Document, summary};

/// Steps for each halving of the distance to 100 %.
const TICKS: u32 = 5;
const NS_PER_MS: f64 = 1e6;

/// Each distribution with a name for its file.
pub(super) fn render(document: &Document) -> Vec<(String, String)> {
    let distinction = Distinction::among(&document.settings.points);
    let merged = summary::merged_histograms(document).into_iter();
    merged
        .map(|(row, point, histogram)| {
            // No name of a server has a plus, so no two rows share a file.
            let plain = row.replace(|c: char| !c.is_ascii_alphanumeric() && !"._-".contains(c), "+");
            (format!("{plain}-{}", distinction.tag(&point, '-')), distribution(&histogram))
        })
        .collect()
}

fn distribution(histogram: &Histogram<u64>) -> String {
    let mut text =
        format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    let mut total = 0;
    for step in histogram.iter_quantiles(TICKS) {
        total += step.count_since_last_iteration();
        let (value, quantile) = (step.value_iterated_to() as f64 / NS_PER_MS, step.quantile_iterated_to());
        // Writing to a String cannot fail.
        let _ = write!(text, "{value:12.3} {quantile:2.12} {total:10}");
        let _ = match quantile < 1.0 {
            true => writeln!(text, " {:14.2}", 1.0 / (1.0 - quantile)),
            false => writeln!(text),
        };
    }
    let (mean, deviation, max) = (histogram.mean(), histogram.stdev(), histogram.max() as f64);
    let _ = write!(
        text,
        "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]\n#[Max     = {:12.3}, Total count    = {:12}]\n",
        mean / NS_PER_MS,
        deviation / NS_PER_MS,
        max / NS_PER_MS,
        histogram.len()
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_counts_everything_and_has_no_odds() {
        let mut histogram = Histogram::new(3).expect("3 digits");
        (1..=1_000_u64).for_each(|value| histogram.record(value * 1_000_000).expect("auto-resizing"));
        let text = distribution(&histogram);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains("1/(1-Percentile)"), "{text}");
        let half: Vec<&str> = lines
            .iter()
            .find(|line| line.contains("0.500000000000"))
            .expect("p50")
            .split_whitespace()
            .collect();
        assert_eq!((half[1], half[2], half[3]), ("0.500000000000", "500", "2.00"), "{text}");
        let last: Vec<&str> = lines[lines.len() - 3].split_whitespace().collect();
        assert_eq!((last.len(), last[2]), (3, "1000"), "{text}");
        assert!(lines[lines.len() - 1].contains("Total count    =         1000"), "{text}");
    }
}
