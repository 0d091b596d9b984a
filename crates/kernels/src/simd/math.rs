//! Elementary functions over vectors, in f32 accuracy.

use super::Vector;

/// e^x, relative error below 2e-7 for x in [-80, 88]; smaller x give e^-80, so that products with
/// the result never fall into denormals.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2 (Cody and Waite's two-part ln 2), then a polynomial in r.
#[inline(always)]
pub(crate) unsafe fn exp<V: Vector>(x: V) -> V {
    // SAFETY: the contract of `Vector`.
    unsafe {
        let x = x.max(V::splat(-80.0)).min(V::splat(88.0));
        // Adding and subtracting 1.5 * 2^23 rounds to the nearest whole number.
        let magic = V::splat(12_582_912.0);
        let n = x.fma(V::splat(std::f32::consts::LOG2_E), magic).sub(magic);
        let r = n.fma(V::splat(-0.693_359_4), x);
        let r = n.fma(V::splat(2.121_944_4e-4), r);
        let mut p = V::splat(1.987_569_1e-4);
        for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
            p = p.fma(r, V::splat(c));
        }
        let p = p.fma(r.mul(r), r.add(V::splat(1.0)));
        p.scale_by_power_of_two(n)
    }
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(crate) unsafe fn sigmoid<V: Vector>(x: V) -> V {
    // SAFETY: the contract of `Vector`.
    unsafe {
        let one = V::splat(1.0);
        one.ratio(one.add(exp(V::splat(0.0).sub(x))))
    }
}

/// tanh x = 1 - 2 / (e^2x + 1).
#[inline(always)]
pub(crate) unsafe fn tanh<V: Vector>(x: V) -> V {
    // SAFETY: the contract of `Vector`.
    unsafe {
        let x = x.max(V::splat(-10.0)).min(V::splat(10.0));
        let one = V::splat(1.0);
        let e = exp(x.add(x));
        one.sub(V::splat(2.0).ratio(e.add(one)))
    }
}

/// The error function as x P(x^2) / Q(x^2), |x| clamped to 4, absolute error below 4e-7.
#[inline(always)]
pub(crate) unsafe fn erf<V: Vector>(x: V) -> V {
    // SAFETY: the contract of `Vector`.
    unsafe {
        let x = x.max(V::splat(-4.0)).min(V::splat(4.0));
        let s = x.mul(x);
        let mut p = V::splat(-2.726_142e-10);
        for c in [
            2.770_681_5e-8,
            -2.101_024e-6,
            -5.692_506_5e-5,
            -7.349_906e-4,
            -2.954_6e-3,
            -1.609_603_3e-2,
        ] {
            p = p.fma(s, V::splat(c));
        }
        let mut q = V::splat(-1.456_607_2e-5);
        for c in [-2.133_740_6e-4, -1.682_827e-3, -7.373_329_2e-3, -1.426_473_9e-2] {
            q = q.fma(s, V::splat(c));
        }
        x.mul(p).ratio(q)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, dispatch};

    #[inline(always)]
    unsafe fn all<V: Vector>(x: &[f32], out: &mut [[f32; 4]]) {
        for (x, out) in x.chunks_exact(V::LANES).zip(out.chunks_exact_mut(V::LANES)) {
            let mut lanes = [[0.0_f32; 16]; 4];
            // SAFETY: the chunks hold `LANES <= 16` values.
            unsafe {
                let v = V::load(x.as_ptr());
                exp(v).store(lanes[0].as_mut_ptr());
                sigmoid(v).store(lanes[1].as_mut_ptr());
                tanh(v).store(lanes[2].as_mut_ptr());
                erf(v).store(lanes[3].as_mut_ptr());
            }
            for (i, o) in out.iter_mut().enumerate() {
                *o = std::array::from_fn(|f| lanes[f][i]);
            }
        }
    }

    /// erf by its Taylor series in f64, good to 1e-9 for |x| <= 4.
    fn erf_f64(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..120 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn functions_match_f64() {
        let x: Vec<f32> = (-3200..3200).map(|i| i as f32 / 800.0).collect();
        for &isa in Isa::available() {
            let mut out = vec![[0.0; 4]; x.len()];
            let (xs, os) = (&x[..], &mut out[..]);
            // SAFETY: the instruction set is there.
            unsafe { dispatch!(isa, all(xs: &[f32], os: &mut [[f32; 4]])) }
            for (&x, o) in x.iter().zip(&out) {
                let x = f64::from(x);
                let want = [x.exp(), 1.0 / (1.0 + (-x).exp()), x.tanh(), erf_f64(x)];
                for (f, (&got, want)) in o.iter().zip(want).enumerate() {
                    let scale = if f == 0 { want } else { 1.0 };
                    let error = (f64::from(got) - want).abs() / scale;
                    assert!(error < 5e-7, "function {f} at {x} with {isa:?}: {got} {want}");
                }
            }
        }
    }
}
