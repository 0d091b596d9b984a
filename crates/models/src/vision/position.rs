//! Resampling of a learned position table to another grid, by each family's own rule.
//!
//! Resampling is linear in the table, so it is one matrix product; gradients pass through it.

use ocelli_tensor::{Result, Tensor};
use serde::{Deserialize, Serialize};

/// How a family resamples its position table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionRule {
    /// transformers at run time: bicubic with a = -0.75, half-pixel centres, no antialiasing.
    #[default]
    Transformers,
    /// timm and open_clip: bicubic with a = -0.5, half-pixel centres, antialiased.
    Timm,
    /// The original JAX code: bilinear with aligned corners.
    Jax,
    /// LAVIS for the tower of CLIP: bicubic with a = -0.75 and aligned corners.
    Lavis,
}

impl PositionRule {
    /// `[from, to]` weights of one axis: row `i` gives the old places that make new place `i`.
    fn axis(self, from: usize, to: usize) -> Vec<Vec<f64>> {
        let scale = from as f64 / to as f64;
        (0..to)
            .map(|i| {
                let mut row = vec![0.0; from];
                let last = from as isize - 1;
                // The first and the last place stay where they are.
                let aligned = if to > 1 { (i * (from - 1)) as f64 / (to - 1) as f64 } else { 0.0 };
                match self {
                    Self::Transformers | Self::Lavis => {
                        let centre = (i as f64 + 0.5) * scale - 0.5;
                        let at = if self == Self::Lavis { aligned } else { centre };
                        let first = at.floor();
                        for tap in -1..=2_isize {
                            let place = (first as isize + tap).clamp(0, last) as usize;
                            row[place] += cubic((at - first - tap as f64).abs(), -0.75);
                        }
                    }
                    Self::Timm => {
                        let stretch = scale.max(1.0);
                        let (centre, reach) = ((i as f64 + 0.5) * scale, 2.0 * stretch);
                        let low = ((centre - reach + 0.5) as isize).max(0);
                        let high = ((centre + reach + 0.5) as isize).min(last + 1);
                        for place in low..high {
                            let distance = (place as f64 - centre + 0.5) / stretch;
                            row[place as usize] = cubic(distance.abs(), -0.5);
                        }
                        let sum: f64 = row.iter().sum();
                        for w in &mut row {
                            *w /= sum;
                        }
                    }
                    Self::Jax => {
                        let first = (aligned.floor() as usize).min(from - 1);
                        row[first] += 1.0 - aligned.fract();
                        row[(first + 1).min(from - 1)] += aligned.fract();
                    }
                }
                row
            })
            .collect()
    }

    /// The table `[prefix + old_h * old_w, width]` on another grid; the first `prefix` rows, which
    /// belong to no place, stay.
    ///
    /// # Errors
    /// If the table does not have that many rows.
    pub fn resample(
        self,
        table: &Tensor,
        prefix: usize,
        (old_h, old_w): (usize, usize),
        (new_h, new_w): (usize, usize),
    ) -> Result<Tensor> {
        if (old_h, old_w) == (new_h, new_w) {
            return Ok(table.clone());
        }
        let (rows, cols) = (self.axis(old_h, new_h), self.axis(old_w, new_w));
        let old = prefix + old_h * old_w;
        let mut weights = vec![0.0; (prefix + new_h * new_w) * old];
        for p in 0..prefix {
            weights[p * old + p] = 1.0;
        }
        for (y, row) in rows.iter().enumerate() {
            for (x, col) in cols.iter().enumerate() {
                let out = &mut weights[(prefix + y * new_w + x) * old + prefix..][..old_h * old_w];
                for (place, w) in out.iter_mut().enumerate() {
                    *w = (row[place / old_w] * col[place % old_w]) as f32;
                }
            }
        }
        Tensor::from_slice(&weights, &[prefix + new_h * new_w, old])?.matmul(table)
    }
}

/// Keys' cubic kernel at distance `x >= 0`.
fn cubic(x: f64, a: f64) -> f64 {
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_sum_to_one_and_the_same_grid_stays() {
        let rules = [
            PositionRule::Transformers,
            PositionRule::Timm,
            PositionRule::Jax,
            PositionRule::Lavis,
        ];
        for rule in rules {
            for (from, to) in [(4, 8), (8, 3), (5, 5), (7, 1), (1, 4)] {
                for (i, row) in rule.axis(from, to).iter().enumerate() {
                    assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{rule:?} {from} {to}");
                    if from == to {
                        assert!((row[i] - 1.0).abs() < 1e-12, "{rule:?} {from}");
                    }
                }
            }
        }
    }
}
