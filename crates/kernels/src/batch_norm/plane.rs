//! One pass over contiguous values that share a mean and a scale: what batch norm, group norm and
//! the standardisation of filters are made of.

use crate::simd::{Isa, Vector, dispatch, load_up_to, store_up_to};

/// The line `x * scale + shift`, and whether negative results become 0.
#[derive(Clone, Copy)]
pub(crate) struct Line {
    pub(crate) scale: f32,
    pub(crate) shift: f32,
    pub(crate) relu: bool,
}

/// The sum of all values.
pub(crate) fn sum(x: &[f32]) -> f32 {
    #[inline(always)]
    unsafe fn run<V: Vector>(x: &[f32]) -> f32 {
        // SAFETY: partial vectors are masked, their other lanes are 0.
        unsafe {
            let mut sums = [V::splat(0.0); 2];
            for i in (0..x.len()).step_by(2 * V::LANES) {
                sums[0] = sums[0].add(load_up_to(x.as_ptr().add(i), x.len() - i));
                if x.len() > i + V::LANES {
                    let rest = x.len() - i - V::LANES;
                    sums[1] = sums[1].add(load_up_to(x.as_ptr().add(i + V::LANES), rest));
                }
            }
            sums[0].add(sums[1]).sum()
        }
    }
    // SAFETY: the instruction set is there.
    unsafe { dispatch!(Isa::best(), run(x: &[f32]) -> f32) }
}

/// The sum of `(x - mean)^2`.
pub(crate) fn squares(x: &[f32], mean: f32) -> f32 {
    #[inline(always)]
    unsafe fn run<V: Vector>(x: &[f32], mean: f32) -> f32 {
        let whole = x.len() / V::LANES * V::LANES;
        // SAFETY: full vectors stay inside.
        unsafe {
            let mut sum = V::splat(0.0);
            for i in (0..whole).step_by(V::LANES) {
                let d = V::load(x.as_ptr().add(i)).sub(V::splat(mean));
                sum = d.fma(d, sum);
            }
            sum.sum() + x[whole..].iter().map(|v| (v - mean) * (v - mean)).sum::<f32>()
        }
    }
    // SAFETY: the instruction set is there.
    unsafe { dispatch!(Isa::best(), run(x: &[f32], mean: f32) -> f32) }
}

/// `out = line(x)`.
pub(crate) fn affine(x: &[f32], line: Line, out: &mut [f32]) {
    #[inline(always)]
    unsafe fn run<V: Vector>(x: &[f32], line: Line, out: &mut [f32]) {
        // SAFETY: partial vectors are masked.
        unsafe {
            for i in (0..x.len()).step_by(V::LANES) {
                let n = x.len() - i;
                let v = line_of::<V>(load_up_to(x.as_ptr().add(i), n), line);
                let v = if line.relu { v.max(V::splat(0.0)) } else { v };
                store_up_to(v, out.as_mut_ptr().add(i), n);
            }
        }
    }
    debug_assert_eq!(x.len(), out.len());
    // SAFETY: the instruction set is there.
    unsafe {
        dispatch!(Isa::best(), run(x: &[f32], line: Line, out: &mut [f32]));
    }
}

#[inline(always)]
unsafe fn line_of<V: Vector>(x: V, line: Line) -> V {
    // SAFETY: the contract of `Vector`.
    unsafe { x.fma(V::splat(line.scale), V::splat(line.shift)) }
}

/// The gradient behind the ReLU: `g` where the line is above 0, else 0.
#[inline(always)]
unsafe fn behind_relu<V: Vector>(x: V, g: V, line: Line) -> V {
    // SAFETY: the contract of `Vector`.
    unsafe {
        if !line.relu {
            return g;
        }
        let tiny = V::splat(f32::MIN_POSITIVE);
        g.mul(line_of::<V>(x, line).max(V::splat(0.0)).min(tiny).div(tiny))
    }
}

/// The sums of `g` and of `g * (x - mean)`, where `g` is `grad_out` behind the ReLU.
pub(crate) fn grad_sums(x: &[f32], grad_out: &[f32], mean: f32, line: Line) -> (f32, f32) {
    #[inline(always)]
    unsafe fn run<V: Vector>(x: &[f32], grad_out: &[f32], mean: f32, line: Line) -> (f32, f32) {
        // SAFETY: partial vectors are masked; the gradient's other lanes are 0.
        unsafe {
            let (mut sum, mut along) = (V::splat(0.0), V::splat(0.0));
            for i in (0..x.len()).step_by(V::LANES) {
                let n = x.len() - i;
                let v = load_up_to::<V>(x.as_ptr().add(i), n);
                let g = behind_relu(v, load_up_to(grad_out.as_ptr().add(i), n), line);
                sum = sum.add(g);
                along = g.fma(v.sub(V::splat(mean)), along);
            }
            (sum.sum(), along.sum())
        }
    }
    debug_assert_eq!(x.len(), grad_out.len());
    // SAFETY: the instruction set is there.
    unsafe {
        dispatch!(
            Isa::best(),
            run(x: &[f32], grad_out: &[f32], mean: f32, line: Line) -> (f32, f32)
        )
    }
}

/// Factors of [`grad_input`].
#[derive(Clone, Copy)]
pub(crate) struct Factors {
    /// Of the gradient.
    pub(crate) grad: f32,
    /// Of the centred input.
    pub(crate) centred: f32,
    /// Added.
    pub(crate) shift: f32,
}

/// `out = grad * g + centred * (x - mean) + shift`, where `g` is `grad_out` behind the ReLU.
pub(crate) fn grad_input(
    x: &[f32],
    grad_out: &[f32],
    mean: f32,
    line: Line,
    factors: Factors,
    out: &mut [f32],
) {
    #[inline(always)]
    unsafe fn run<V: Vector>(
        x: &[f32],
        grad_out: &[f32],
        mean: f32,
        line: Line,
        factors: Factors,
        out: &mut [f32],
    ) {
        // SAFETY: partial vectors are masked.
        unsafe {
            for i in (0..x.len()).step_by(V::LANES) {
                let n = x.len() - i;
                let v = load_up_to::<V>(x.as_ptr().add(i), n);
                let g = behind_relu(v, load_up_to(grad_out.as_ptr().add(i), n), line);
                let rest =
                    v.sub(V::splat(mean)).fma(V::splat(factors.centred), V::splat(factors.shift));
                store_up_to(g.fma(V::splat(factors.grad), rest), out.as_mut_ptr().add(i), n);
            }
        }
    }
    debug_assert!(x.len() == grad_out.len() && x.len() == out.len());
    // SAFETY: the instruction set is there.
    unsafe {
        dispatch!(
            Isa::best(),
            run(
                x: &[f32],
                grad_out: &[f32],
                mean: f32,
                line: Line,
                factors: Factors,
                out: &mut [f32],
            )
        );
    }
}
