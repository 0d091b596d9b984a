//! The symmetric cross-entropy of a square matrix whose matches lie on the diagonal.

use crate::pool::{Shared, parallel_for, parallel_rows};

/// The mean of the cross-entropies along rows and along columns of `logits[n, n]`, the right answer
/// of row i being column i (Radford et al. 2021, arXiv:2103.00020, Figure 3). The logits are
/// replaced by the gradient of the loss.
///
/// # Panics
/// If the matrix is not square.
pub fn contrastive(logits: &mut [f32], n: usize) -> f32 {
    assert_eq!(logits.len(), n * n);
    if n == 0 {
        return 0.0;
    }
    let mut row_sums = vec![0.0_f32; n];
    let mut col_sums = vec![0.0_f32; n];
    let x = &*logits;
    let (rows, cols) = (Shared::new(&mut row_sums), Shared::new(&mut col_sums));
    parallel_rows(n, n, 16 * 1024, |first, count| {
        for r in first..first + count {
            let row = &x[r * n..][..n];
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = row.iter().map(|v| (v - max).exp()).sum();
            // SAFETY: tasks own disjoint rows.
            unsafe { rows.slice(r, 1)[0] = max + sum.ln() }
        }
    });
    // Sixteen columns share the lines that are read.
    parallel_for(n.div_ceil(16), |task| {
        let (first, width) = (task * 16, 16.min(n - task * 16));
        let (mut max, mut sum) = ([f32::NEG_INFINITY; 16], [0.0_f32; 16]);
        for row in x.chunks_exact(n) {
            for (m, v) in max.iter_mut().zip(&row[first..first + width]) {
                *m = m.max(*v);
            }
        }
        for row in x.chunks_exact(n) {
            for c in 0..width {
                sum[c] += (row[first + c] - max[c]).exp();
            }
        }
        // SAFETY: tasks own disjoint columns.
        let out = unsafe { cols.slice(first, width) };
        for c in 0..width {
            out[c] = max[c] + sum[c].ln();
        }
    });
    let diagonal: f64 = (0..n).map(|i| f64::from(x[i * n + i])).sum();
    let sums: f64 = row_sums.iter().chain(&col_sums).map(|v| f64::from(*v)).sum();
    let loss = (sums / 2.0 - diagonal) / n as f64;
    let scale = 0.5 / n as f32;
    let out = Shared::new(logits);
    parallel_rows(n, n, 16 * 1024, |first, count| {
        for r in first..first + count {
            // SAFETY: tasks own disjoint rows.
            let row = unsafe { out.slice(r * n, n) };
            for (v, col) in row.iter_mut().zip(&col_sums) {
                *v = ((*v - row_sums[r]).exp() + (*v - col).exp()) * scale;
            }
            row[r] -= 2.0 * scale;
        }
    });
    loss as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_two_cross_entropies() {
        let n = 21;
        let x: Vec<f32> = (0..n * n).map(|i| ((i * 7919) % 83) as f32 / 15.0 - 2.0).collect();
        let loss = |x: &[f32]| -> f64 {
            let at = |r: usize, c: usize| f64::from(x[r * n + c]);
            let mut sum = 0.0;
            for i in 0..n {
                sum += (0..n).map(|j| at(i, j).exp()).sum::<f64>().ln() - at(i, i);
                sum += (0..n).map(|j| at(j, i).exp()).sum::<f64>().ln() - at(i, i);
            }
            sum / (2 * n) as f64
        };
        let mut grad = x.clone();
        let got = contrastive(&mut grad, n);
        assert!((f64::from(got) - loss(&x)).abs() < 1e-5);
        for i in (0..n * n).step_by(17) {
            let at = |d: f32| {
                let mut x = x.clone();
                x[i] += d;
                loss(&x)
            };
            let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!((slope - f64::from(grad[i])).abs() < 1e-5, "{} {slope}", grad[i]);
        }
    }
}
