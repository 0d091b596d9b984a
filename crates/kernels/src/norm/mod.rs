//! Layer normalisation (Ba et al. 2016, arXiv:1607.06450), its kin without the mean, and L2
//! normalisation of rows.

mod l2;
pub mod reference;
mod rms;

pub use l2::{l2_backward, l2_forward};
pub use rms::{rms_norm_backward, rms_norm_forward};

use crate::buffer::Buffer;
use crate::pool::{Shared, parallel_for, parallel_rows};
use crate::simd::{Isa, Vector, dispatch, load_up_to, store_up_to};

/// Values that one task handles.
const GRAIN: usize = 16 * 1024;
/// Parts that sums over rows are split into, whatever the number of threads.
const PARTS: usize = 16;

/// `out = (x - mean) / sqrt(variance + eps) * weight + bias` per row of `width` values, with the
/// biased variance. `statistics[rows, 2]` receives mean and reciprocal deviation, which
/// [`layer_norm_backward`] needs.
///
/// # Panics
/// If lengths do not fit.
pub fn layer_norm_forward(
    x: &[f32],
    width: usize,
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    out: &mut [f32],
    statistics: Option<&mut [f32]>,
) {
    layer_norm_forward_for(Isa::best(), x, width, weight, bias, eps, out, statistics);
}

fn layer_norm_forward_for(
    isa: Isa,
    x: &[f32],
    width: usize,
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    out: &mut [f32],
    statistics: Option<&mut [f32]>,
) {
    #[inline(always)]
    unsafe fn row<V: Vector>(
        x: &[f32],
        w: &[f32],
        b: &[f32],
        eps: f32,
        out: &mut [f32],
    ) -> [f32; 2] {
        let n = x.len();
        // SAFETY: all slices have `n` values; partial vectors are masked.
        unsafe {
            let mut sum = V::splat(0.0);
            for i in (0..n).step_by(V::LANES) {
                sum = sum.add(load_up_to(x.as_ptr().add(i), n - i));
            }
            let mean = sum.sum() / n as f32;
            let m = V::splat(mean);
            let mut squares = V::splat(0.0);
            let whole = n - n % V::LANES;
            for i in (0..whole).step_by(V::LANES) {
                let d = V::load(x.as_ptr().add(i)).sub(m);
                squares = d.fma(d, squares);
            }
            let rest: f32 = x[whole..].iter().map(|v| (v - mean) * (v - mean)).sum();
            // In f64, so that an epsilon of 1e-12 counts as in the references.
            let variance = f64::from((squares.sum() + rest) / n as f32);
            let reciprocal = (1.0 / (variance + f64::from(eps)).sqrt()) as f32;
            let r = V::splat(reciprocal);
            for i in (0..n).step_by(V::LANES) {
                let left = n - i;
                let d = load_up_to::<V>(x.as_ptr().add(i), left).sub(m).mul(r);
                let y =
                    d.fma(load_up_to(w.as_ptr().add(i), left), load_up_to(b.as_ptr().add(i), left));
                store_up_to(y, out.as_mut_ptr().add(i), left);
            }
            [mean, reciprocal]
        }
    }
    assert!(x.len() == out.len() && weight.len() == width && bias.len() == width);
    let rows = x.len() / width.max(1);
    assert!(statistics.as_ref().is_none_or(|s| s.len() == 2 * rows));
    let out = Shared::new(out);
    let statistics = statistics.map(Shared::new);
    parallel_rows(rows, width, GRAIN, |first, count| {
        for r in first..first + count {
            let x = &x[r * width..][..width];
            // SAFETY: tasks own disjoint rows; the instruction set is there.
            unsafe {
                let out = out.slice(r * width, width);
                let (w, b) = (weight, bias);
                let found = dispatch!(isa, row(x: &[f32], w: &[f32], b: &[f32], eps: f32, out: &mut [f32]) -> [f32; 2]);
                if let Some(s) = statistics {
                    s.slice(2 * r, 2).copy_from_slice(&found);
                }
            }
        }
    });
}

/// Gradients of [`layer_norm_forward`]: `grad_x` is overwritten, `grad_weight` and `grad_bias` are
/// overwritten.
///
/// # Panics
/// If lengths do not fit.
pub fn layer_norm_backward(
    x: &[f32],
    width: usize,
    weight: &[f32],
    statistics: &[f32],
    grad_out: &[f32],
    grad_x: Option<&mut [f32]>,
    grad_weight: &mut [f32],
    grad_bias: &mut [f32],
) {
    layer_norm_backward_for(
        Isa::best(),
        x,
        width,
        weight,
        statistics,
        grad_out,
        grad_x,
        grad_weight,
        grad_bias,
    );
}

fn layer_norm_backward_for(
    isa: Isa,
    x: &[f32],
    width: usize,
    weight: &[f32],
    statistics: &[f32],
    grad_out: &[f32],
    grad_x: Option<&mut [f32]>,
    grad_weight: &mut [f32],
    grad_bias: &mut [f32],
) {
    struct Row<'a> {
        x: &'a [f32],
        w: &'a [f32],
        g: &'a [f32],
        mean: f32,
        reciprocal: f32,
    }
    #[inline(always)]
    unsafe fn row<V: Vector>(row: &Row, dx: Option<&mut [f32]>, dw: &mut [f32], db: &mut [f32]) {
        let n = row.x.len();
        // SAFETY: all slices have `n` values; partial vectors are masked.
        unsafe {
            let (m, r) = (V::splat(row.mean), V::splat(row.reciprocal));
            let (mut sum, mut dot) = (V::splat(0.0), V::splat(0.0));
            for i in (0..n).step_by(V::LANES) {
                let left = n - i;
                let g = load_up_to::<V>(row.g.as_ptr().add(i), left);
                let h = load_up_to::<V>(row.x.as_ptr().add(i), left).sub(m).mul(r);
                let (pw, pb) = (dw.as_mut_ptr().add(i), db.as_mut_ptr().add(i));
                store_up_to(g.fma(h, load_up_to(pw, left)), pw, left);
                store_up_to(g.add(load_up_to(pb, left)), pb, left);
                // Beyond the row g is 0, so the sums hold.
                let gw = g.mul(load_up_to(row.w.as_ptr().add(i), left));
                sum = sum.add(gw);
                dot = gw.fma(h, dot);
            }
            let Some(dx) = dx else { return };
            let (mean_g, mean_gh) =
                (V::splat(sum.sum() / n as f32), V::splat(dot.sum() / n as f32));
            for i in (0..n).step_by(V::LANES) {
                let left = n - i;
                let g = load_up_to::<V>(row.g.as_ptr().add(i), left);
                let h = load_up_to::<V>(row.x.as_ptr().add(i), left).sub(m).mul(r);
                let gw = g.mul(load_up_to(row.w.as_ptr().add(i), left));
                let d = gw.sub(mean_g).sub(h.mul(mean_gh)).mul(r);
                store_up_to(d, dx.as_mut_ptr().add(i), left);
            }
        }
    }
    assert!(x.len() == grad_out.len() && weight.len() == width);
    assert!(grad_weight.len() == width && grad_bias.len() == width);
    assert!(grad_x.as_ref().is_none_or(|g| g.len() == x.len()));
    let rows = x.len() / width.max(1);
    assert_eq!(statistics.len(), 2 * rows);
    let parts = PARTS.min(rows.max(1));
    let per_part = rows.div_ceil(parts);
    let mut sums = Buffer::zeroed(parts * 2 * width);
    let shared = Shared::new(&mut sums);
    let grad_x = grad_x.map(Shared::new);
    parallel_for(parts, |p| {
        // SAFETY: tasks own disjoint rows and parts; the instruction set is there.
        unsafe {
            let (dw, db) = shared.slice(p * 2 * width, 2 * width).split_at_mut(width);
            for r in p * per_part..((p + 1) * per_part).min(rows) {
                let at = r * width;
                let of = &Row {
                    x: &x[at..at + width],
                    w: weight,
                    g: &grad_out[at..at + width],
                    mean: statistics[2 * r],
                    reciprocal: statistics[2 * r + 1],
                };
                let dx = grad_x.map(|g| g.slice(at, width));
                let (dw, db) = (&mut *dw, &mut *db);
                dispatch!(isa, row(of: &Row, dx: Option<&mut [f32]>, dw: &mut [f32], db: &mut [f32]));
            }
        }
    });
    grad_weight.fill(0.0);
    grad_bias.fill(0.0);
    for part in sums.chunks_exact(2 * width) {
        for i in 0..width {
            grad_weight[i] += part[i];
            grad_bias[i] += part[width + i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values(n: usize, seed: u64) -> Vec<f32> {
        (0..n)
            .map(|i| (((i as u64 * 2_654_435_761 + seed * 97) % 10_007) as f32 / 5003.0) - 1.0)
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn layer_norm_equals_the_reference(rows in 1..40_usize, width in 2..70_usize, seed in 0..1000_u64) {
            let x = values(rows * width, seed);
            let (w, b, g) = (values(width, seed + 1), values(width, seed + 2), values(rows * width, seed + 3));
            let mut want = vec![0.0; x.len()];
            reference::layer_norm(&x, width, &w, &b, 1e-6, &mut want);
            let loss = |x: &[f32], w: &[f32]| -> f64 {
                let mut y = vec![0.0; x.len()];
                reference::layer_norm(x, width, w, &b, 1e-6, &mut y);
                y.iter().zip(&g).map(|(y, g)| f64::from(*y) * f64::from(*g)).sum()
            };
            for &isa in Isa::available() {
                let (mut y, mut s) = (vec![0.0; x.len()], vec![0.0; 2 * rows]);
                layer_norm_forward_for(isa, &x, width, &w, &b, 1e-6, &mut y, Some(&mut s));
                for (y, want) in y.iter().zip(&want) {
                    prop_assert!((y - want).abs() < 1e-5, "{y} {want}");
                }
                let (mut dx, mut dw, mut db) = (vec![0.0; x.len()], vec![0.0; width], vec![0.0; width]);
                layer_norm_backward_for(isa, &x, width, &w, &s, &g, Some(&mut dx), &mut dw, &mut db);
                let h = 1e-2;
                let i = (seed as usize * 31) % x.len();
                let slope = |x: &[f32], w: &[f32], i: usize, in_x: bool| {
                    let (mut x1, mut w1) = (x.to_vec(), w.to_vec());
                    (if in_x { &mut x1 } else { &mut w1 })[i] += h;
                    let up = loss(&x1, &w1);
                    (if in_x { &mut x1 } else { &mut w1 })[i] -= 2.0 * h;
                    (up - loss(&x1, &w1)) / (2.0 * f64::from(h))
                };
                // Rows of very small spread bend too much for finite differences.
                if s[2 * (i / width) + 1] < 4.0 {
                    let want = slope(&x, &w, i, true);
                    prop_assert!((want - f64::from(dx[i])).abs() < 2e-2 * (1.0 + want.abs()), "{} {want}", dx[i]);
                }
                let want = slope(&x, &w, i % width, false);
                prop_assert!((want - f64::from(dw[i % width])).abs() < 1e-3 * (1.0 + want.abs()));
                let want: f32 = g.iter().skip(i % width).step_by(width).sum();
                prop_assert!((want - db[i % width]).abs() < 1e-4);
            }
        }
    }
}
