//! Hodges-Lehmann estimates with intervals from exact distributions: that of Wilcoxon's signed ranks where rounds
//! are paired, that of Mann and Whitney's U where two runs are compared.
//!
//! The estimate is the median of all pairwise means (Walsh averages) of the log ratios. The number
//! of Walsh averages above zero is the signed-rank statistic, so its exact distribution under the
//! hypothesis "no difference" tells how many of them to cut off at either end. Interval and p come
//! from the same counts and cannot disagree: p is below 0.05 exactly if the interval excludes 1. The same
//! holds for two samples, whose pairwise differences take the place of the Walsh averages.

/// Fewer rounds than this cannot give a 95 % interval: 2 / 2^5 is above 0.05.
pub(crate) const ROUNDS_MIN: usize = 6;

const ALPHA: f64 = 0.05;

/// A ratio with what is known about it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) ratio: f64,
    /// The 95 % interval, if there are enough rounds for one.
    pub(crate) interval: Option<(f64, f64)>,
    pub(crate) p: f64,
}

/// Estimates the ratio behind one ratio a round; None if there is none, or one that is not above 0.
pub(crate) fn estimate(ratios: &[f64]) -> Option<Estimate> {
    Some(shift(&logs(ratios)?).into())
}

/// Estimates the ratio of new values to old ones that were not measured in pairs; None as above.
pub(crate) fn estimate_unpaired(old: &[f64], new: &[f64]) -> Option<Estimate> {
    Some(shift_between(&logs(old)?, &logs(new)?).into())
}

fn logs(values: &[f64]) -> Option<Vec<f64>> {
    let positive = |value: &f64| value.is_finite() && *value > 0.0;
    (!values.is_empty() && values.iter().all(positive))
        .then(|| values.iter().map(|value| value.ln()).collect())
}

/// By how much values lie beside zero, or beside others.
struct Shift {
    median: f64,
    interval: Option<(f64, f64)>,
    p: f64,
}

impl From<Shift> for Estimate {
    fn from(Shift { median, interval, p }: Shift) -> Self {
        Self { ratio: median.exp(), interval: interval.map(|(low, high)| (low.exp(), high.exp())), p }
    }
}

fn shift(values: &[f64]) -> Shift {
    let averages = walsh_averages(values);
    let cumulative = signed_rank_cumulative(values.len());
    Shift {
        median: median_of_sorted(&averages),
        interval: interval(&averages, &cumulative),
        p: p_value(&averages, &cumulative),
    }
}

fn shift_between(old: &[f64], new: &[f64]) -> Shift {
    let mut differences: Vec<f64> = new.iter().flat_map(|new| old.iter().map(move |old| new - old)).collect();
    differences.sort_by(f64::total_cmp);
    let cumulative = mann_whitney_cumulative(old.len(), new.len());
    Shift {
        median: median_of_sorted(&differences),
        interval: interval(&differences, &cumulative),
        p: p_value(&differences, &cumulative),
    }
}

/// The median, for values in any order.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (!sorted.is_empty()).then(|| median_of_sorted(&sorted))
}

fn median_of_sorted(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

fn walsh_averages(values: &[f64]) -> Vec<f64> {
    let mut averages: Vec<f64> = values
        .iter()
        .enumerate()
        .flat_map(|(index, a)| values[index..].iter().map(move |b| (a + b) / 2.0))
        .collect();
    averages.sort_by(f64::total_cmp);
    averages
}

/// P(T <= t) of the signed-rank statistic for `count` values, t from 0 to count (count + 1) / 2.
fn signed_rank_cumulative(count: usize) -> Vec<f64> {
    let mut probability = vec![0.0; count * (count + 1) / 2 + 1];
    probability[0] = 1.0;
    for rank in 1..=count {
        for total in (0..probability.len()).rev() {
            let with_rank = if total >= rank { probability[total - rank] } else { 0.0 };
            probability[total] = (probability[total] + with_rank) / 2.0;
        }
    }
    let mut sum = 0.0;
    probability
        .iter()
        .map(|p| {
            sum += p;
            sum
        })
        .collect()
}

/// P(U <= u) of the Mann-Whitney statistic for samples of these sizes, u from 0 to their product.
fn mann_whitney_cumulative(old: usize, new: usize) -> Vec<f64> {
    let highest = old * new;
    // How many of the orders of both samples have a statistic of u, for the lower half of them: the coefficients of
    // a Gaussian binomial (Harding 1984). Below the middle no step takes the difference of far larger numbers.
    let mut orders = vec![0.0; highest / 2 + 1];
    orders[0] = 1.0;
    for factor in 1..=old {
        for total in (new + factor..orders.len()).rev() {
            orders[total] -= orders[total - new - factor];
        }
        for total in factor..orders.len() {
            orders[total] += orders[total - factor];
        }
    }
    let all: f64 = (1..=old).map(|factor| (new + factor) as f64 / factor as f64).product();
    let mut sum = 0.0;
    let lower: Vec<f64> = orders
        .iter()
        .map(|count| {
            sum += count / all;
            sum
        })
        .collect();
    // The other half is its mirror image.
    let at = |total: usize| match lower.get(total) {
        Some(probability) => *probability,
        None if total == highest => 1.0,
        None => 1.0 - lower[highest - total - 1],
    };
    (0..=highest).map(at).collect()
}

fn interval(averages: &[f64], cumulative: &[f64]) -> Option<(f64, f64)> {
    let cut = cumulative.iter().take_while(|p| 2.0 * **p <= ALPHA).count();
    let low = cut.checked_sub(1)?;
    Some((averages[low], averages[averages.len() - 1 - low]))
}

fn p_value(averages: &[f64], cumulative: &[f64]) -> f64 {
    // A tie with zero counts for the hypothesis, as it does when the interval's end is zero.
    let not_above = averages.iter().filter(|average| **average <= 0.0).count();
    let not_below = averages.iter().filter(|average| **average >= 0.0).count();
    (2.0 * cumulative[not_above.min(not_below)]).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratios(logs: &[f64]) -> Vec<f64> {
        logs.iter().map(|log| log.exp()).collect()
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    // The published table of critical values for a two-sided test at 5 %: n, largest T to reject.
    #[test]
    fn critical_values_are_those_of_the_published_table() {
        let table =
            [(6, 0), (7, 2), (8, 3), (9, 5), (10, 8), (12, 13), (15, 25), (20, 52), (25, 89), (30, 137)];
        for (count, critical) in table {
            let cumulative = signed_rank_cumulative(count);
            assert!(2.0 * cumulative[critical] <= 0.05, "{count}");
            assert!(2.0 * cumulative[critical + 1] > 0.05, "{count}");
        }
    }

    #[test]
    fn the_distribution_is_exact_for_three_values() {
        let expected = [1.0, 2.0, 3.0, 5.0, 6.0, 7.0, 8.0].map(|count| count / 8.0);
        assert_eq!(signed_rank_cumulative(3), expected);
    }

    // Darwin's maize, the classic example of the test. The p-value is that of SciPy's
    // wilcoxon(method="exact") with T = 24; at T = 25 the two-sided 5 % point lies, so the interval
    // ends at the 26th Walsh average from either side.
    #[test]
    fn darwin_s_maize_agrees_with_the_published_result() {
        let differences =
            [49.0, -67.0, 8.0, 16.0, 6.0, 23.0, 28.0, 41.0, 14.0, 29.0, 56.0, 24.0, 75.0, 60.0, -48.0];
        let shift = shift(&differences);
        assert!(close(shift.p, 0.041_259_765_625), "{}", shift.p);
        assert_eq!((shift.median, shift.interval), (25.0, Some((4.0, 41.5))));
    }

    #[test]
    fn eight_ratios_agree_with_scipy() {
        let logs = [0.12, -0.03, 0.2, 0.15, 0.07, 0.31, -0.01, 0.09];
        let estimate = estimate(&ratios(&logs)).expect("valid ratios");
        let (low, high) = estimate.interval.expect("eight rounds give an interval");
        assert!(close(estimate.p, 0.039_062_5) && close(estimate.ratio.ln(), 0.1075));
        assert!(close(low.ln(), 0.02) && close(high.ln(), 0.215), "{low} {high}");
    }

    #[test]
    fn six_rounds_all_on_one_side_are_the_least_evidence() {
        let six = estimate(&ratios(&[0.1, 0.2, 0.3, 0.4, 0.5, 0.6])).expect("valid ratios");
        assert!(close(six.p, 0.031_25));
        let (low, high) = six.interval.expect("six rounds give an interval");
        assert!(close(low.ln(), 0.1) && close(high.ln(), 0.6));
        let five = estimate(&ratios(&[0.1, 0.2, 0.3, 0.4, 0.5])).expect("valid ratios");
        assert!(five.interval.is_none());
        assert!(five.p > 0.05);
    }

    #[test]
    fn interval_and_p_never_disagree() {
        let mut state = 1_u64;
        for round in 0..2_000 {
            let count = 6 + round % 10;
            let offset = (round % 7) as f64 / 8.0;
            let logs: Vec<f64> = (0..count)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    // Coarse values, so that ties and zeros occur.
                    ((state >> 60) as f64 - 8.0) / 8.0 + offset
                })
                .collect();
            let shift = shift(&logs);
            let (low, high) = shift.interval.expect("enough rounds");
            assert_eq!(shift.p <= 0.05, low > 0.0 || high < 0.0, "{logs:?}");
            assert!(low <= shift.median && shift.median <= high);
        }
    }

    // The published table of critical values of U for a two-sided test at 5 %: sizes, largest U to reject.
    #[test]
    fn critical_values_of_u_are_those_of_the_published_table() {
        let table = [
            ((4, 4), 0),
            ((3, 5), 0),
            ((5, 5), 2),
            ((6, 6), 5),
            ((5, 8), 6),
            ((8, 8), 13),
            ((8, 10), 17),
            ((10, 10), 23),
            ((12, 12), 37),
            ((15, 15), 64),
            ((20, 20), 127),
        ];
        for ((old, new), critical) in table {
            for cumulative in [mann_whitney_cumulative(old, new), mann_whitney_cumulative(new, old)] {
                assert!(2.0 * cumulative[critical] <= 0.05, "{old} and {new}");
                assert!(2.0 * cumulative[critical + 1] > 0.05, "{old} and {new}");
            }
        }
        assert!(mann_whitney_cumulative(3, 3)[0] * 2.0 > 0.05, "three of each are too few");
    }

    #[test]
    fn the_distribution_of_u_is_exact_and_stays_one_for_many_rounds() {
        let expected = [1.0, 2.0, 4.0, 6.0, 8.0, 9.0, 10.0].map(|count| count / 10.0);
        let cumulative = mann_whitney_cumulative(2, 3);
        assert!(cumulative.iter().zip(expected).all(|(a, b)| close(*a, b)), "{cumulative:?}");
        for (old, new) in [(1, 1), (1, 200), (199, 200), (200, 200)] {
            let cumulative = mann_whitney_cumulative(old, new);
            assert_eq!(cumulative.len(), old * new + 1);
            assert!(cumulative.windows(2).all(|pair| pair[0] <= pair[1]), "{old} and {new}");
            let middle = cumulative[(old * new) / 2];
            assert!((0.5..0.6).contains(&middle) || old == 1, "{old} and {new}: {middle}");
        }
        // Of 200 and 200 the normal approximation is good: its 2.5 % point is the mean less 1.96 deviations.
        let cumulative = mann_whitney_cumulative(200, 200);
        let deviation = (200.0_f64 * 200.0 * 401.0 / 12.0).sqrt();
        let tail = cumulative[(20_000.0 - 1.96 * deviation) as usize];
        assert!((tail - 0.025).abs() < 0.000_1, "{tail}");
    }

    // The example of wilcox.test in R, from Hollander and Wolfe 1973: permeability of the human chorioamnion at
    // term and earlier. Their estimate is 0.305 with a 95 % interval from -0.15 to 0.76.
    #[test]
    fn the_permeability_of_membranes_agrees_with_the_published_result() {
        let term = [0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46];
        let earlier = [1.15, 0.88, 0.90, 0.74, 1.21];
        let shift = shift_between(&earlier, &term);
        let (low, high) = shift.interval.expect("enough of both");
        assert!(close(shift.median, 0.305) && close(low, -0.15) && close(high, 0.76), "{low} {high}");
        assert!(close(shift.p, 764.0 / 3003.0), "{}", shift.p);
    }

    // The example of SciPy's mannwhitneyu: the ages at which men and women were told that they have diabetes.
    #[test]
    fn ages_at_a_diagnosis_agree_with_scipy() {
        let (men, women) = ([19.0, 22.0, 16.0, 29.0, 24.0], [20.0, 11.0, 17.0, 12.0]);
        assert!(close(shift_between(&women, &men).p, 0.111_111_111_111_111_1));
        let (there, back) = (estimate_unpaired(&women, &men), estimate_unpaired(&men, &women));
        let (there, back) = (there.expect("valid"), back.expect("valid"));
        assert!(close(there.ratio * back.ratio, 1.0) && close(there.p, back.p));
        assert!(estimate_unpaired(&men, &[]).is_none() && estimate_unpaired(&[0.0], &men).is_none());
    }

    #[test]
    fn interval_and_p_of_two_samples_never_disagree() {
        let mut noise = Noise(4);
        for round in 0..2_000 {
            // Coarse values, so that ties occur.
            let mut sample = |count: usize, offset: f64| -> Vec<f64> {
                (0..count).map(|_| (noise.uniform() * 8.0).floor() + offset).collect()
            };
            let (old, new) = (sample(4 + round % 5, 0.0), sample(4 + round % 7, (round % 4) as f64));
            let shift = shift_between(&old, &new);
            let (low, high) = shift.interval.expect("enough of both");
            assert_eq!(shift.p <= 0.05, low > 0.0 || high < 0.0, "{old:?} {new:?}");
            assert!(low <= shift.median && shift.median <= high);
        }
        assert_eq!(shift_between(&[1.0; 5], &[1.0; 5]).p, 1.0, "all alike");
    }

    /// Noise of a machine, always the same: normal, and with the tails of a Laplace distribution.
    struct Noise(u64);

    impl Noise {
        fn uniform(&mut self) -> f64 {
            // SplitMix64, Steele, Lea and Flood 2014.
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.0;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
        }

        fn normal(&mut self) -> f64 {
            let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
            radius * (std::f64::consts::TAU * self.uniform()).cos()
        }

        fn laplace(&mut self) -> f64 {
            let centred = self.uniform() - 0.5;
            -centred.signum() * (1.0 - 2.0 * centred.abs()).ln()
        }
    }

    /// How many of 10,000 experiments over so many rounds end like this, when each round is off by
    /// a tenth or so and the truth is this ratio.
    fn experiments(
        rounds: usize,
        truth: f64,
        mut noise: impl FnMut() -> f64,
        wanted: impl Fn(&Estimate) -> bool,
    ) -> usize {
        (0..10_000)
            .filter(|_| {
                let ratios: Vec<f64> = (0..rounds).map(|_| truth * (0.1 * noise()).exp()).collect();
                wanted(&estimate(&ratios).expect("valid ratios"))
            })
            .count()
    }

    // What is expected follows from the exact distribution: the test rejects at T <= 0 of 6 rounds
    // (2 / 64 = 0.03125) and at T <= 13 of 12 rounds (0.04248). Three standard deviations of 10,000
    // experiments are 0.0061 at most.
    #[test]
    fn errors_and_coverage_are_those_of_the_exact_distribution_in_10_000_experiments() {
        let covers = |truth: f64| {
            move |estimate: &Estimate| {
                estimate.interval.is_some_and(|(low, high)| low <= truth && truth <= high)
            }
        };
        for (rounds, size) in [(6, 0.031_25), (12, 0.042_48)] {
            let (mut normal, mut laplace) = (Noise(1), Noise(2));
            let alarms = experiments(rounds, 1.0, || normal.normal(), |estimate| estimate.p <= 0.05);
            let covered = experiments(rounds, 1.1, || laplace.laplace(), covers(1.1));
            for (what, share, expected) in [("alarms", alarms, size), ("covered", covered, 1.0 - size)]
                .map(|(a, b, c)| (a, b as f64 / 1e4, c))
            {
                assert!(
                    (share - expected).abs() < 0.0065,
                    "{what} in {rounds} rounds: {share}, not {expected}"
                );
            }
        }
    }

    #[test]
    fn a_difference_as_large_as_the_noise_is_nearly_always_found() {
        let mut noise = Noise(3);
        let found =
            experiments(12, 1.1, || noise.normal(), |estimate| estimate.p <= 0.05 && estimate.ratio > 1.0);
        assert!((8_000..9_700).contains(&found), "{found}");
    }

    #[test]
    fn swapping_the_sides_inverts_the_ratio() {
        let forward = [1.1, 1.3, 0.9, 1.2, 1.05, 1.4, 1.15];
        let backward = forward.map(|ratio: f64| 1.0 / ratio);
        let (a, b) = (estimate(&forward).expect("valid"), estimate(&backward).expect("valid"));
        assert!(close(a.ratio * b.ratio, 1.0) && close(a.p, b.p));
    }

    #[test]
    fn what_is_no_ratio_gives_no_estimate() {
        assert!(estimate(&[]).is_none());
        assert!(estimate(&[1.0, 0.0]).is_none());
        assert!(estimate(&[1.0, f64::NAN]).is_none());
    }
}
