//! Softmax cross-entropy, forward and backward.
//!
//! loss = mean over rows of lse(x) Σt - Σ t x, where t is the target distribution: one class with
//! label smoothing (Szegedy et al. 2016, arXiv:1512.00567, §7), or given in full (mixup). Only the
//! logarithm of each row's sum is kept; the probabilities are computed again for the gradient.

mod contrastive;

pub use contrastive::contrastive;

use crate::pool::{Shared, parallel_rows};
use crate::simd::math::exp;
use crate::simd::{Isa, Vector, dispatch, load_up_to, store_up_to};

/// What each row should predict.
#[derive(Clone, Copy, Debug)]
pub enum Targets<'a> {
    /// A class per row; [`Targets::IGNORED`] leaves a row out. The smoothing spreads this share of
    /// the weight evenly over all classes.
    Classes(&'a [u32], f32),
    /// A distribution per row, `[rows, classes]`.
    Distributions(&'a [f32]),
}

impl Targets<'_> {
    /// The class of a row that takes no part.
    pub const IGNORED: u32 = u32::MAX;

    fn counted(&self, rows: usize) -> usize {
        match self {
            Self::Classes(c, _) => c.iter().filter(|c| **c != Self::IGNORED).count(),
            Self::Distributions(_) => rows,
        }
    }
}

/// ln Σ e^x, without overflow.
#[inline(always)]
unsafe fn log_sum<V: Vector>(x: &[f32]) -> f32 {
    let n = x.len();
    let whole = n - n % V::LANES;
    // SAFETY: only whole vectors are loaded.
    unsafe {
        let mut largest = V::splat(f32::NEG_INFINITY);
        for i in (0..whole).step_by(V::LANES) {
            largest = V::load(x.as_ptr().add(i)).max(largest);
        }
        let max = x[whole..].iter().fold(largest.largest(), |m, v| m.max(*v));
        let mut sum = V::splat(0.0);
        for i in (0..whole).step_by(V::LANES) {
            sum = sum.add(exp(V::load(x.as_ptr().add(i)).sub(V::splat(max))));
        }
        let rest: f32 = x[whole..].iter().map(|v| (v - max).exp()).sum();
        max + (sum.sum() + rest).ln()
    }
}

/// The mean loss over the rows that count; `log_sums[rows]` is kept for [`backward`]. 0 if no row
/// counts.
///
/// # Panics
/// If lengths do not fit or a class is out of range.
pub fn forward(logits: &[f32], classes: usize, targets: Targets, log_sums: &mut [f32]) -> f32 {
    let rows = log_sums.len();
    assert_eq!(logits.len(), rows * classes);
    check(rows, classes, targets);
    let mut losses = vec![0.0_f64; rows];
    let (to, sums) = (Shared::new(&mut losses), Shared::new(log_sums));
    parallel_rows(rows, classes, 16 * 1024, |first, count| {
        for r in first..first + count {
            let x = &logits[r * classes..][..classes];
            // SAFETY: tasks own disjoint rows; the instruction set is there.
            unsafe {
                let sum = dispatch!(Isa::best(), log_sum(x: &[f32]) -> f32);
                sums.slice(r, 1)[0] = sum;
                to.slice(r, 1)[0] = row_loss(x, f64::from(sum), targets, r);
            }
        }
    });
    (losses.iter().sum::<f64>() / targets.counted(rows).max(1) as f64) as f32
}

fn check(rows: usize, classes: usize, targets: Targets) {
    match targets {
        Targets::Classes(c, _) => {
            assert_eq!(c.len(), rows);
            let fits = |c: &u32| *c == Targets::IGNORED || (*c as usize) < classes;
            assert!(c.iter().all(fits), "a class is not below {classes}");
        }
        Targets::Distributions(d) => assert_eq!(d.len(), rows * classes),
    }
}

fn row_loss(x: &[f32], log_sum: f64, targets: Targets, row: usize) -> f64 {
    match targets {
        Targets::Classes(c, _) if c[row] == Targets::IGNORED => 0.0,
        Targets::Classes(c, smoothing) => {
            let hit = log_sum - f64::from(x[c[row] as usize]);
            if smoothing == 0.0 {
                return hit;
            }
            let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / x.len() as f64;
            let smoothing = f64::from(smoothing);
            (1.0 - smoothing) * hit + smoothing * (log_sum - mean)
        }
        Targets::Distributions(d) => {
            let t = &d[row * x.len()..][..x.len()];
            t.iter().zip(x).map(|(t, x)| f64::from(*t) * (log_sum - f64::from(*x))).sum()
        }
    }
}

/// `grad = (softmax(x) Σt - t) * scale / rows that count`; rows left out get zeros.
///
/// # Panics
/// If lengths do not fit.
pub fn backward(
    logits: &[f32],
    classes: usize,
    targets: Targets,
    log_sums: &[f32],
    scale: f32,
    grad: &mut [f32],
) {
    #[inline(always)]
    unsafe fn probabilities<V: Vector>(x: &[f32], log_sum: f32, factor: f32, out: &mut [f32]) {
        let n = x.len();
        for i in (0..n).step_by(V::LANES) {
            // SAFETY: both slices have `n` values; partial vectors are masked.
            unsafe {
                let p = exp(load_up_to::<V>(x.as_ptr().add(i), n - i).sub(V::splat(log_sum)));
                store_up_to(p.mul(V::splat(factor)), out.as_mut_ptr().add(i), n - i);
            }
        }
    }
    let rows = log_sums.len();
    assert!(logits.len() == rows * classes && grad.len() == logits.len());
    check(rows, classes, targets);
    let scale = scale / targets.counted(rows).max(1) as f32;
    let to = Shared::new(grad);
    parallel_rows(rows, classes, 16 * 1024, |first, count| {
        for r in first..first + count {
            // SAFETY: tasks own disjoint rows.
            let out = unsafe { to.slice(r * classes, classes) };
            let x = &logits[r * classes..][..classes];
            let weight = match targets {
                Targets::Classes(c, _) if c[r] == Targets::IGNORED => {
                    out.fill(0.0);
                    continue;
                }
                Targets::Classes(..) => 1.0,
                Targets::Distributions(d) => d[r * classes..][..classes].iter().sum(),
            };
            let (sum, factor) = (log_sums[r], weight * scale);
            // SAFETY: the instruction set is there.
            unsafe {
                let out = &mut *out;
                dispatch!(Isa::best(), probabilities(x: &[f32], sum: f32, factor: f32, out: &mut [f32]));
            }
            match targets {
                Targets::Classes(c, smoothing) => {
                    if smoothing != 0.0 {
                        let share = smoothing / classes as f32 * scale;
                        for o in out.iter_mut() {
                            *o -= share;
                        }
                    }
                    out[c[r] as usize] -= (1.0 - smoothing) * scale;
                }
                Targets::Distributions(d) => {
                    for (o, t) in out.iter_mut().zip(&d[r * classes..][..classes]) {
                        *o -= t * scale;
                    }
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_and_gradients_match_f64() {
        let (rows, classes) = (5, 37);
        let x: Vec<f32> =
            (0..rows * classes).map(|i| ((i * 7919) % 101) as f32 / 10.0 - 5.0).collect();
        let labels = [3, 36, Targets::IGNORED, 0, 17];
        let soft: Vec<f32> = (0..rows * classes).map(|i| ((i * 31) % 7) as f32 / 100.0).collect();
        for (targets, counted) in [
            (Targets::Classes(&labels, 0.0), 4),
            (Targets::Classes(&labels, 0.1), 4),
            (Targets::Distributions(&soft), 5),
        ] {
            let loss = |x: &[f32]| -> f64 {
                let mut sum = 0.0;
                for r in 0..rows {
                    let x: Vec<f64> =
                        x[r * classes..][..classes].iter().map(|v| f64::from(*v)).collect();
                    let lse = x.iter().map(|v| v.exp()).sum::<f64>().ln();
                    for (c, x) in x.iter().enumerate() {
                        let t = match targets {
                            Targets::Classes(l, _) if l[r] == Targets::IGNORED => 0.0,
                            Targets::Classes(l, s) => {
                                f64::from(s) / classes as f64
                                    + if l[r] as usize == c { 1.0 - f64::from(s) } else { 0.0 }
                            }
                            Targets::Distributions(d) => f64::from(d[r * classes + c]),
                        };
                        sum += t * (lse - x);
                    }
                }
                sum / f64::from(counted)
            };
            let mut sums = vec![0.0; rows];
            let got = forward(&x, classes, targets, &mut sums);
            assert!((f64::from(got) - loss(&x)).abs() < 1e-5, "{got} {}", loss(&x));
            let mut grad = vec![0.0; x.len()];
            backward(&x, classes, targets, &sums, 2.0, &mut grad);
            for i in (0..x.len()).step_by(11) {
                let at = |d: f32| {
                    let mut x = x.clone();
                    x[i] += d;
                    2.0 * loss(&x)
                };
                let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
                assert!((slope - f64::from(grad[i])).abs() < 1e-4, "{i}: {} {slope}", grad[i]);
            }
        }
    }
}
