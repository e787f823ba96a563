//! The order of cells: every backend once a round, each as often early as late.

/// How the rows of a round are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Order {
    /// All permutations in turn for up to three rows, a Williams design beyond.
    Balanced,
    /// As given, in every round.
    Given,
}

impl Order {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Balanced => "balanced",
            Self::Given => "given",
        }
    }
}

/// The order of rows 0..rows in each round. The seed decides with which sequence to begin.
pub(crate) fn rounds(order: Order, rows: usize, rounds: usize, seed: u64) -> Vec<Vec<usize>> {
    let sequences = match order {
        Order::Given => vec![(0..rows).collect()],
        Order::Balanced if rows <= 3 => permutations(rows),
        Order::Balanced => williams(rows),
    };
    let first = (seed % sequences.len() as u64) as usize;
    sequences.iter().cycle().skip(first).take(rounds).cloned().collect()
}

fn permutations(rows: usize) -> Vec<Vec<usize>> {
    if rows == 0 {
        return vec![Vec::new()];
    }
    let shorter = permutations(rows - 1);
    (0..rows)
        .flat_map(|place| {
            shorter.iter().map(move |permutation| {
                let mut longer = permutation.clone();
                longer.insert(place, rows - 1);
                longer
            })
        })
        .collect()
}

/// A Latin square in which each row follows each other row equally often; for an odd number of
/// rows that takes the square and its mirror image.
fn williams(rows: usize) -> Vec<Vec<usize>> {
    let first: Vec<usize> = (0..rows).map(|place| zigzag(place, rows)).collect();
    let shifted = |by: usize| first.iter().map(|row| (row + by) % rows).collect::<Vec<_>>();
    let mut square: Vec<Vec<usize>> = (0..rows).map(shifted).collect();
    if rows % 2 == 1 {
        let mirrored: Vec<_> =
            square.iter().map(|sequence| sequence.iter().rev().copied().collect()).collect();
        square.extend::<Vec<Vec<usize>>>(mirrored);
    }
    square
}

/// 0, 1, n-1, 2, n-2, ...: all differences between neighbours are distinct.
fn zigzag(place: usize, rows: usize) -> usize {
    if place % 2 == 1 { place.div_ceil(2) } else { (rows - place / 2) % rows }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn three_rows_go_through_all_permutations() {
        let plan = rounds(Order::Balanced, 3, 12, 4);
        let distinct: BTreeSet<_> = plan.iter().collect();
        assert_eq!((plan.len(), distinct.len()), (12, 6));
    }

    #[test]
    fn every_round_holds_every_row_once() {
        for rows in 1..8 {
            for round in rounds(Order::Balanced, rows, 14, 3) {
                let distinct: BTreeSet<_> = round.iter().copied().collect();
                assert_eq!(distinct, (0..rows).collect());
            }
        }
    }

    #[test]
    fn williams_balances_who_follows_whom() {
        for rows in 4..8 {
            let mut follows = BTreeMap::new();
            for sequence in williams(rows) {
                for pair in sequence.windows(2) {
                    *follows.entry((pair[0], pair[1])).or_insert(0) += 1;
                }
            }
            let counts: BTreeSet<_> = follows.values().copied().collect();
            assert_eq!((follows.len(), counts.len()), (rows * (rows - 1), 1), "{rows} rows");
        }
    }

    #[test]
    fn the_given_order_stays() {
        assert_eq!(rounds(Order::Given, 2, 2, 9), vec![vec![0, 1], vec![0, 1]]);
    }
}
