//! Top-k accuracy.

use std::cmp::Ordering;

/// The place of `target` when `scores` are sorted from high to low, from 0. Of equal scores the
/// earlier one comes first; a score that is not a number comes last.
///
/// # Panics
/// If `target` is not below the number of scores.
///
/// ```
/// assert_eq!(ocelli_eval::rank_of(2, &[0.1, 0.7, 0.4, 0.4]), 1);
/// assert_eq!(ocelli_eval::rank_of(3, &[0.1, 0.7, 0.4, 0.4]), 2);
/// ```
pub fn rank_of(target: usize, scores: &[f32]) -> usize {
    let own = scores[target];
    if own.is_nan() {
        return scores.len() - 1;
    }
    let before = |(i, score): &(usize, &f32)| match score.partial_cmp(&&own) {
        Some(Ordering::Greater) => true,
        Some(Ordering::Equal) => *i < target,
        _ => false,
    };
    scores.iter().enumerate().filter(before).count()
}

/// Counts how often the right class is among the best ones.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Accuracy {
    /// Rows seen.
    pub rows: usize,
    /// Rows whose right class came first.
    pub first: usize,
    /// Rows whose right class was among the first five.
    pub among_five: usize,
}

impl Accuracy {
    /// Counts rows of `scores` `[rows, classes]` with the right class of each.
    ///
    /// # Panics
    /// If the scores are not as many as rows times classes, or a class is not below `classes`.
    pub fn add(&mut self, scores: &[f32], classes: usize, targets: &[u32]) {
        assert_eq!(scores.len(), classes * targets.len(), "one row of scores per target");
        for (scores, target) in scores.chunks_exact(classes.max(1)).zip(targets) {
            let rank = rank_of(*target as usize, scores);
            self.rows += 1;
            self.first += usize::from(rank == 0);
            self.among_five += usize::from(rank < 5);
        }
    }

    /// The share of rows whose right class came first, in [0, 1]; 0 without rows.
    pub fn top1(&self) -> f64 {
        self.first as f64 / self.rows.max(1) as f64
    }

    /// The share of rows whose right class was among the first five, in [0, 1]; 0 without rows.
    pub fn top5(&self) -> f64 {
        self.among_five as f64 / self.rows.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_first_and_the_first_five() {
        let mut accuracy = Accuracy::default();
        let scores = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        for target in 0..6 {
            accuracy.add(&scores, 6, &[target]);
        }
        assert_eq!((accuracy.rows, accuracy.first, accuracy.among_five), (6, 1, 5));
        assert!((accuracy.top5() - 5.0 / 6.0).abs() < 1e-12);
        assert_eq!(Accuracy::default().top1().to_bits(), 0);
    }

    #[test]
    fn a_model_without_opinion_is_right_once_in_all_classes() {
        let mut accuracy = Accuracy::default();
        for target in 0..10 {
            accuracy.add(&[0.5; 10], 10, &[target]);
        }
        assert_eq!((accuracy.first, accuracy.among_five), (1, 5));
    }

    #[test]
    fn what_is_not_a_number_is_wrong() {
        assert_eq!(rank_of(0, &[f32::NAN, 1.0]), 1);
        assert_eq!(rank_of(1, &[f32::NAN, 1.0]), 0);
    }
}
