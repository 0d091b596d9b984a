//! Optimiser steps in one pass over memory.

use crate::pool::{Shared, parallel_rows};
use crate::simd::{Isa, Vector, dispatch, load_up_to, store_up_to};

const GRAIN: usize = 64 * 1024;

/// Settings of one AdamW step.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f32,
    /// Decay rates of the two moments.
    pub betas: (f32, f32),
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// The number of this step, from 1.
    pub step: u64,
    /// The gradient is multiplied by this first: a clipped norm, a mean over micro-batches.
    pub grad_scale: f32,
}

/// One step of AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101, Algorithm 2) with the decay
/// applied before the update and bias-corrected moments `m` and `v`.
///
/// # Panics
/// If the lengths differ.
pub fn adamw(o: AdamW, weights: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32]) {
    #[inline(always)]
    unsafe fn run<V: Vector>(o: &Factors, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let n = g.len();
        // SAFETY: all slices have `n` values; partial vectors are masked.
        unsafe {
            let s = o.map(|f| V::splat(f));
            let [keep, b1, c1, b2, c2, scale, root, eps, step] = s;
            for i in (0..n).step_by(V::LANES) {
                let left = n - i;
                let g = load_up_to::<V>(g.as_ptr().add(i), left).mul(scale);
                let (pm, pv, pw) =
                    (m.as_mut_ptr().add(i), v.as_mut_ptr().add(i), w.as_mut_ptr().add(i));
                let m = load_up_to::<V>(pm, left).fma(b1, g.mul(c1));
                let v = load_up_to::<V>(pv, left).fma(b2, g.mul(g).mul(c2));
                let w = load_up_to::<V>(pw, left).mul(keep);
                let down = v.sqrt().mul(root).add(eps);
                store_up_to(m, pm, left);
                store_up_to(v, pv, left);
                store_up_to(w.sub(step.mul(m).div(down)), pw, left);
            }
        }
    }
    /// Decay, beta 1, its rest, beta 2, its rest, gradient scale, 1 / root of the second
    /// correction, epsilon, step size over the first correction.
    type Factors = [f32; 9];
    assert!(weights.len() == grad.len() && m.len() == grad.len() && v.len() == grad.len());
    let steps = o.step.min(i32::MAX as u64) as i32;
    let first = 1.0 - f64::from(o.betas.0).powi(steps);
    let second = 1.0 - f64::from(o.betas.1).powi(steps);
    let factors: Factors = [
        1.0 - o.lr * o.weight_decay,
        o.betas.0,
        1.0 - o.betas.0,
        o.betas.1,
        1.0 - o.betas.1,
        o.grad_scale,
        (1.0 / second.sqrt()) as f32,
        o.eps,
        (f64::from(o.lr) / first) as f32,
    ];
    let (w, m, v) = (Shared::new(weights), Shared::new(m), Shared::new(v));
    parallel_rows(grad.len(), 1, GRAIN, |first, n| {
        let (o, g) = (&factors, &grad[first..first + n]);
        // SAFETY: chunks are disjoint; the instruction set is there.
        unsafe {
            let (w, m, v) = (w.slice(first, n), m.slice(first, n), v.slice(first, n));
            dispatch!(Isa::best(), run(o: &Factors, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]));
        }
    });
}

/// One step of SGD with momentum: `velocity = momentum * velocity + grad * grad_scale`,
/// `weights -= lr * velocity`.
///
/// # Panics
/// If the lengths differ.
pub fn sgd(
    lr: f32,
    momentum: f32,
    grad_scale: f32,
    weights: &mut [f32],
    grad: &[f32],
    velocity: &mut [f32],
) {
    assert!(weights.len() == grad.len() && velocity.len() == grad.len());
    let (w, v) = (Shared::new(weights), Shared::new(velocity));
    parallel_rows(grad.len(), 1, GRAIN, |first, n| {
        // SAFETY: chunks are disjoint.
        let (w, v) = unsafe { (w.slice(first, n), v.slice(first, n)) };
        for ((w, v), g) in w.iter_mut().zip(v).zip(&grad[first..first + n]) {
            *v = momentum * *v + g * grad_scale;
            *w -= lr * *v;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adamw_matches_f64() {
        let n = 37;
        let mut w: Vec<f32> = (0..n).map(|i| i as f32 / 10.0 - 1.0).collect();
        let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
        let mut want: Vec<[f64; 3]> = w.iter().map(|w| [f64::from(*w), 0.0, 0.0]).collect();
        for step in 1..=5 {
            let g: Vec<f32> =
                (0..n).map(|i| ((i * 13 + step * 7) % 19) as f32 / 9.0 - 1.0).collect();
            let o = AdamW {
                lr: 0.01,
                betas: (0.9, 0.98),
                eps: 1e-6,
                weight_decay: 0.05,
                step: step as u64,
                grad_scale: 0.5,
            };
            adamw(o, &mut w, &g, &mut m, &mut v);
            for (x, g) in want.iter_mut().zip(&g) {
                let g = f64::from(*g) * 0.5;
                x[0] -= 0.01 * 0.05 * x[0];
                x[1] = 0.9 * x[1] + 0.1 * g;
                x[2] = 0.98 * x[2] + 0.02 * g * g;
                let (c1, c2) = (1.0 - 0.9_f64.powi(step as i32), 1.0 - 0.98_f64.powi(step as i32));
                x[0] -= 0.01 * (x[1] / c1) / ((x[2] / c2).sqrt() + 1e-6);
            }
        }
        for (w, want) in w.iter().zip(&want) {
            assert!((f64::from(*w) - want[0]).abs() < 1e-6, "{w} {}", want[0]);
        }
    }

    #[test]
    fn sgd_keeps_its_velocity() {
        let (mut w, mut v) = (vec![1.0], vec![0.0]);
        sgd(0.1, 0.9, 1.0, &mut w, &[2.0], &mut v);
        sgd(0.1, 0.9, 0.5, &mut w, &[2.0], &mut v);
        assert!((v[0] - 2.8).abs() < 1e-6 && (w[0] - (1.0 - 0.2 - 0.28)).abs() < 1e-6);
    }
}
