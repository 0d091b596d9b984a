//! Root mean square normalisation (Zhang and Sennrich 2019, arXiv:1910.07467, Eq. 4).

use super::{GRAIN, PARTS};
use crate::buffer::Buffer;
use crate::pool::{Shared, parallel_for, parallel_rows};
use crate::simd::{Isa, Vector, dispatch, load_up_to, store_up_to};

/// `out = x / sqrt(mean(x²) + eps) * weight` per row of `width` values. `reciprocals[rows]` receives
/// 1 / sqrt(mean(x²) + eps), which [`rms_norm_backward`] needs.
///
/// # Panics
/// If lengths do not fit.
pub fn rms_norm_forward(
    x: &[f32],
    width: usize,
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
    reciprocals: Option<&mut [f32]>,
) {
    #[inline(always)]
    unsafe fn row<V: Vector>(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) -> f32 {
        let n = x.len();
        // SAFETY: all slices have `n` values; partial vectors are masked.
        unsafe {
            let mut squares = V::splat(0.0);
            for i in (0..n).step_by(V::LANES) {
                let v = load_up_to::<V>(x.as_ptr().add(i), n - i);
                squares = v.fma(v, squares);
            }
            let mean = f64::from(squares.sum() / n as f32);
            let reciprocal = (1.0 / (mean + f64::from(eps)).sqrt()) as f32;
            let r = V::splat(reciprocal);
            for i in (0..n).step_by(V::LANES) {
                let left = n - i;
                let h = load_up_to::<V>(x.as_ptr().add(i), left).mul(r);
                let y = h.mul(load_up_to(w.as_ptr().add(i), left));
                store_up_to(y, out.as_mut_ptr().add(i), left);
            }
            reciprocal
        }
    }
    assert!(x.len() == out.len() && weight.len() == width);
    let rows = x.len() / width.max(1);
    assert!(reciprocals.as_ref().is_none_or(|r| r.len() == rows));
    let out = Shared::new(out);
    let reciprocals = reciprocals.map(Shared::new);
    parallel_rows(rows, width, GRAIN, |first, count| {
        for r in first..first + count {
            let x = &x[r * width..][..width];
            // SAFETY: tasks own disjoint rows; the instruction set is there.
            unsafe {
                let (w, out) = (weight, out.slice(r * width, width));
                let found = dispatch!(Isa::best(), row(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) -> f32);
                if let Some(all) = reciprocals {
                    all.slice(r, 1)[0] = found;
                }
            }
        }
    });
}

/// Gradients of [`rms_norm_forward`]; both are overwritten.
///
/// # Panics
/// If lengths do not fit.
pub fn rms_norm_backward(
    x: &[f32],
    width: usize,
    weight: &[f32],
    reciprocals: &[f32],
    grad_out: &[f32],
    grad_x: Option<&mut [f32]>,
    grad_weight: &mut [f32],
) {
    struct Row<'a> {
        x: &'a [f32],
        w: &'a [f32],
        g: &'a [f32],
        reciprocal: f32,
    }
    #[inline(always)]
    unsafe fn row<V: Vector>(row: &Row, dx: Option<&mut [f32]>, dw: &mut [f32]) {
        let n = row.x.len();
        // SAFETY: all slices have `n` values; partial vectors are masked.
        unsafe {
            let (r, mut dot) = (V::splat(row.reciprocal), V::splat(0.0));
            for i in (0..n).step_by(V::LANES) {
                let left = n - i;
                let g = load_up_to::<V>(row.g.as_ptr().add(i), left);
                let h = load_up_to::<V>(row.x.as_ptr().add(i), left).mul(r);
                let to = dw.as_mut_ptr().add(i);
                store_up_to(g.fma(h, load_up_to(to, left)), to, left);
                dot = g.mul(load_up_to(row.w.as_ptr().add(i), left)).fma(h, dot);
            }
            let Some(dx) = dx else { return };
            let mean = V::splat(dot.sum() / n as f32);
            for i in (0..n).step_by(V::LANES) {
                let left = n - i;
                let g = load_up_to::<V>(row.g.as_ptr().add(i), left);
                let h = load_up_to::<V>(row.x.as_ptr().add(i), left).mul(r);
                let gw = g.mul(load_up_to(row.w.as_ptr().add(i), left));
                store_up_to(gw.sub(h.mul(mean)).mul(r), dx.as_mut_ptr().add(i), left);
            }
        }
    }
    assert!(x.len() == grad_out.len() && weight.len() == width && grad_weight.len() == width);
    assert!(grad_x.as_ref().is_none_or(|g| g.len() == x.len()));
    let rows = x.len() / width.max(1);
    assert_eq!(reciprocals.len(), rows);
    let parts = PARTS.min(rows.max(1));
    let per_part = rows.div_ceil(parts);
    let mut sums = Buffer::zeroed(parts * width);
    let shared = Shared::new(&mut sums);
    let grad_x = grad_x.map(Shared::new);
    parallel_for(parts, |p| {
        // SAFETY: tasks own disjoint rows and parts; the instruction set is there.
        unsafe {
            let dw = shared.slice(p * width, width);
            for r in p * per_part..((p + 1) * per_part).min(rows) {
                let at = r * width;
                let (x, g) = (&x[at..at + width], &grad_out[at..at + width]);
                let of = &Row { x, w: weight, g, reciprocal: reciprocals[r] };
                let dx = grad_x.map(|g| g.slice(at, width));
                let dw = &mut *dw;
                dispatch!(Isa::best(), row(of: &Row, dx: Option<&mut [f32]>, dw: &mut [f32]));
            }
        }
    });
    grad_weight.fill(0.0);
    for part in sums.chunks_exact(width.max(1)) {
        grad_weight.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
}
