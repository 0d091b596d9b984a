//! Pointwise activations and their derivatives.
//!
//! GELU x Φ(x) with the error function (Hendrycks and Gimpel 2016, arXiv:1606.08415) and in its
//! tanh form; QuickGELU x σ(1.702 x) of CLIP; SiLU x σ(x); ReLU and its square; tanh; σ.

pub mod reference;

use crate::pool::{Shared, parallel_rows};
use crate::simd::math::{erf, exp, sigmoid, tanh};
use crate::simd::{Isa, Vector, dispatch, load_up_to, store_up_to};

/// An activation function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// The identity.
    #[default]
    None,
    /// x Φ(x), by the error function.
    Gelu,
    /// x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2.
    GeluTanh,
    /// x σ(1.702 x).
    QuickGelu,
    /// max(x, 0).
    Relu,
    /// x σ(x).
    Silu,
    /// tanh x.
    Tanh,
    /// σ(x) = 1 / (1 + e⁻ˣ).
    Sigmoid,
    /// max(x, 0)² (So et al. 2021, arXiv:2109.08668, §3).
    SquaredRelu,
}

impl Activation {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::None,
        Self::Gelu,
        Self::GeluTanh,
        Self::QuickGelu,
        Self::Relu,
        Self::Silu,
        Self::Tanh,
        Self::Sigmoid,
        Self::SquaredRelu,
    ];
}

const QUICK: f32 = 1.702;
/// √(2/π).
const TANH_SCALE: f32 = 0.797_884_6;
const TANH_CUBE: f32 = 0.044_715;

/// The activation of a vector.
#[inline(always)]
pub(crate) unsafe fn apply<V: Vector>(activation: Activation, x: V) -> V {
    // SAFETY: the contract of `Vector`.
    unsafe {
        let half = V::splat(0.5);
        match activation {
            Activation::None => x,
            Activation::Gelu => {
                let e = erf(x.mul(V::splat(std::f32::consts::FRAC_1_SQRT_2)));
                x.mul(half).mul(e.add(V::splat(1.0)))
            }
            Activation::GeluTanh => {
                let cube = x.mul(x).mul(x);
                let inner = cube.fma(V::splat(TANH_CUBE), x).mul(V::splat(TANH_SCALE));
                x.mul(half).mul(tanh(inner).add(V::splat(1.0)))
            }
            Activation::QuickGelu => x.mul(sigmoid(x.mul(V::splat(QUICK)))),
            Activation::Relu => x.max(V::splat(0.0)),
            Activation::Silu => x.mul(sigmoid(x)),
            Activation::Tanh => tanh(x),
            Activation::Sigmoid => sigmoid(x),
            Activation::SquaredRelu => {
                let positive = x.max(V::splat(0.0));
                positive.mul(positive)
            }
        }
    }
}

/// The GELU within 1e-4: for what is rounded to a byte afterwards.
///
/// x (1/2 + u P(u²)) with u = x clamped to ±4.25, where u P(u²) is 1/2.
#[inline(always)]
pub(crate) unsafe fn near_gelu<V: Vector>(x: V) -> V {
    // SAFETY: the contract of `Vector`.
    unsafe {
        let u = x.max(V::splat(-4.25)).min(V::splat(4.25));
        let s = u.mul(u);
        let mut p = V::splat(-8.460_429_6e-10);
        for c in [
            7.570_852e-8,
            -2.938_809_3e-6,
            6.552_721e-5,
            -9.404_485e-4,
            9.257_826e-3,
            -6.545_35e-2,
            0.398_420_04,
        ] {
            p = p.fma(s, V::splat(c));
        }
        // What rounding leaves at the ends would grow with x.
        x.mul(u.fma(p, V::splat(0.5)).max(V::splat(0.0)).min(V::splat(1.0)))
    }
}

/// The derivative at `x`.
#[inline(always)]
unsafe fn derivative<V: Vector>(activation: Activation, x: V) -> V {
    // SAFETY: the contract of `Vector`.
    unsafe {
        let (one, half) = (V::splat(1.0), V::splat(0.5));
        match activation {
            Activation::None => one,
            Activation::Gelu => {
                // Φ(x) + x φ(x)
                let e = erf(x.mul(V::splat(std::f32::consts::FRAC_1_SQRT_2)));
                let density = exp(x.mul(x).mul(V::splat(-0.5))).mul(V::splat(0.398_942_3));
                x.fma(density, half.mul(e.add(one)))
            }
            Activation::GeluTanh => {
                let square = x.mul(x);
                let inner = square.mul(x).fma(V::splat(TANH_CUBE), x).mul(V::splat(TANH_SCALE));
                let t = tanh(inner);
                let slope =
                    square.fma(V::splat(3.0 * TANH_CUBE), one).mul(V::splat(TANH_SCALE)).mul(half);
                x.mul(one.sub(t.mul(t))).fma(slope, half.mul(one.add(t)))
            }
            Activation::QuickGelu => {
                let s = sigmoid(x.mul(V::splat(QUICK)));
                let rest = x.mul(V::splat(QUICK)).mul(one.sub(s)).add(one);
                s.mul(rest)
            }
            Activation::Relu => {
                // 1 where x > 0, else 0.
                let tiny = V::splat(f32::MIN_POSITIVE);
                x.max(V::splat(0.0)).min(tiny).div(tiny)
            }
            Activation::Silu => {
                let s = sigmoid(x);
                s.mul(x.mul(one.sub(s)).add(one))
            }
            Activation::Tanh => {
                let t = tanh(x);
                one.sub(t.mul(t))
            }
            Activation::Sigmoid => {
                let s = sigmoid(x);
                s.mul(one.sub(s))
            }
            Activation::SquaredRelu => x.max(V::splat(0.0)).mul(V::splat(2.0)),
        }
    }
}

/// `out = activation(x)`.
///
/// # Panics
/// If the lengths differ.
pub fn forward(activation: Activation, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    let to = Shared::new(out);
    parallel_rows(x.len(), 1, 16 * 1024, |first, n| {
        let x = &x[first..first + n];
        // SAFETY: chunks are disjoint.
        let out = unsafe { to.slice(first, n) };
        #[inline(always)]
        unsafe fn run<V: Vector>(activation: Activation, x: &[f32], out: &mut [f32]) {
            for i in (0..x.len()).step_by(V::LANES) {
                // SAFETY: partial vectors are masked.
                unsafe {
                    let v = load_up_to::<V>(x.as_ptr().add(i), x.len() - i);
                    store_up_to(apply(activation, v), out.as_mut_ptr().add(i), x.len() - i);
                }
            }
        }
        // SAFETY: the instruction set is there.
        unsafe {
            dispatch!(Isa::best(), run(activation: Activation, x: &[f32], out: &mut [f32]));
        }
    });
}

/// `grad_in = grad_out * activation'(x)`, where `x` are the values before the activation.
///
/// # Panics
/// If the lengths differ.
pub fn backward(activation: Activation, x: &[f32], grad_out: &[f32], grad_in: &mut [f32]) {
    assert!(x.len() == grad_in.len() && grad_out.len() == grad_in.len());
    let to = Shared::new(grad_in);
    parallel_rows(x.len(), 1, 16 * 1024, |first, n| {
        let (x, g) = (&x[first..first + n], &grad_out[first..first + n]);
        // SAFETY: chunks are disjoint.
        let out = unsafe { to.slice(first, n) };
        #[inline(always)]
        unsafe fn run<V: Vector>(activation: Activation, x: &[f32], g: &[f32], out: &mut [f32]) {
            for i in (0..x.len()).step_by(V::LANES) {
                let n = x.len() - i;
                // SAFETY: partial vectors are masked.
                unsafe {
                    let d = derivative(activation, load_up_to::<V>(x.as_ptr().add(i), n));
                    let g = load_up_to::<V>(g.as_ptr().add(i), n);
                    store_up_to(g.mul(d), out.as_mut_ptr().add(i), n);
                }
            }
        }
        // SAFETY: the instruction set is there.
        unsafe {
            dispatch!(Isa::best(), run(activation: Activation, x: &[f32], g: &[f32], out: &mut [f32]));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forward_and_backward_match_f64() {
        let x: Vec<f32> = (-997..1000).map(|i| i as f32 / 130.0).collect();
        let g: Vec<f32> = x.iter().map(|v| (v * 3.0).sin()).collect();
        for activation in Activation::ALL {
            let (mut y, mut d) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            forward(activation, &x, &mut y);
            backward(activation, &x, &g, &mut d);
            for i in 0..x.len() {
                let at = f64::from(x[i]);
                let want = reference::apply(activation, at);
                assert!((f64::from(y[i]) - want).abs() < 2e-6, "{activation:?} at {at}: {}", y[i]);
                let h = 1e-3;
                let slope = (reference::apply(activation, at + h)
                    - reference::apply(activation, at - h))
                    / (2.0 * h);
                if activation == Activation::Relu && at == 0.0 {
                    continue; // The slope jumps there.
                }
                let got = f64::from(d[i]);
                assert!(
                    (got - slope * f64::from(g[i])).abs() < 3e-6,
                    "{activation:?}' at {at}: {got}"
                );
            }
        }
    }

    #[test]
    fn the_near_gelu_is_near() {
        #[inline(always)]
        unsafe fn all<V: Vector>(x: &[f32], y: &mut [f32]) {
            for (x, y) in x.chunks(V::LANES).zip(y.chunks_mut(V::LANES)) {
                // SAFETY: whole vectors.
                unsafe { near_gelu(V::load(x.as_ptr())).store(y.as_mut_ptr()) }
            }
        }
        let mut x: Vec<f32> = (-8000..8000).map(|i| i as f32 / 500.0).collect();
        x.extend((-800..800).map(|i| 1e4 * i as f32));
        for &isa in Isa::available() {
            let mut y = vec![0.0; x.len()];
            let (xs, ys) = (&x[..], &mut y[..]);
            // SAFETY: the instruction set is there.
            unsafe { dispatch!(isa, all(xs: &[f32], ys: &mut [f32])) }
            for (x, y) in x.iter().zip(&y) {
                let want = reference::apply(Activation::Gelu, f64::from(*x));
                assert!((f64::from(*y) - want).abs() < 1e-4, "{isa:?} {x}: {y} {want}");
            }
        }
    }
}
