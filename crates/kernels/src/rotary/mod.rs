//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864, Eq. 34), pairs in the order of
//! transformers: value j of a head's first half goes with value j of its second half.

use crate::pool::{Shared, parallel_rows};
use crate::simd::{Isa, Vector, dispatch, load_up_to, store_up_to};

/// Values that one task handles.
const GRAIN: usize = 16 * 1024;

/// Which values are turned, and by what.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// Values between two tokens.
    pub width: usize,
    /// Heads at the beginning of a token that are turned.
    pub heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Half of the values at the beginning of a head that are turned; the rest stay.
    pub half: usize,
    /// Cosines of each token's angles, `[tokens, half]`.
    pub cos: &'a [f32],
    /// Sines of each token's angles, `[tokens, half]`.
    pub sin: &'a [f32],
    /// Whether it turns back, as gradients do.
    pub inverse: bool,
}

/// Turns each pair (a, b) of a head to (a cos - b sin, b cos + a sin), in place.
///
/// # Panics
/// If sizes do not fit.
pub fn rotate(x: &mut [f32], r: &Rotation) {
    #[inline(always)]
    unsafe fn head<V: Vector>(x: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        let half = cos.len();
        for i in (0..half).step_by(V::LANES) {
            let n = half - i;
            // SAFETY: `x` has `2 * half` values, the tables `half`; partial vectors are masked.
            unsafe {
                let (first, second) = (x.as_mut_ptr().add(i), x.as_mut_ptr().add(half + i));
                let (a, b) = (load_up_to::<V>(first, n), load_up_to::<V>(second, n));
                let c = load_up_to::<V>(cos.as_ptr().add(i), n);
                let s = load_up_to::<V>(sin.as_ptr().add(i), n).mul(V::splat(sign));
                store_up_to(a.mul(c).sub(b.mul(s)), first, n);
                store_up_to(b.mul(c).add(a.mul(s)), second, n);
            }
        }
    }
    let tokens = x.len() / r.width.max(1);
    assert!(x.len() == tokens * r.width && r.head_dim * r.heads <= r.width, "heads of a token");
    assert!(2 * r.half <= r.head_dim, "pairs of a head");
    assert!(r.cos.len() == tokens * r.half && r.sin.len() == r.cos.len(), "angles of the tokens");
    let sign = if r.inverse { -1.0 } else { 1.0 };
    let shared = Shared::new(x);
    parallel_rows(tokens, r.width, GRAIN, |first, count| {
        for token in first..first + count {
            let at = token * r.half;
            let (cos, sin) = (&r.cos[at..at + r.half], &r.sin[at..at + r.half]);
            for h in 0..r.heads {
                // SAFETY: tasks own disjoint tokens; the instruction set is there.
                unsafe {
                    let x = shared.slice(token * r.width + h * r.head_dim, 2 * r.half);
                    dispatch!(Isa::best(), head(x: &mut [f32], cos: &[f32], sin: &[f32], sign: f32));
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_turn_by_their_angle_and_back() {
        let (half, heads, width, tokens) = (21, 2, 97, 2);
        for head_dim in [42, 45] {
            turn_and_back(half, heads, head_dim, width, tokens);
        }
    }

    fn turn_and_back(half: usize, heads: usize, head_dim: usize, width: usize, tokens: usize) {
        let angle = |token: usize, j: usize| token as f32 * 0.3 + j as f32;
        let table = |f: fn(f32) -> f32| -> Vec<f32> {
            (0..tokens * half).map(|i| f(angle(i / half, i % half))).collect()
        };
        let (cos, sin) = (table(f32::cos), table(f32::sin));
        let x: Vec<f32> = (0..tokens * width).map(|i| (i as f32 * 0.7).sin()).collect();
        let turn = Rotation { width, heads, head_dim, half, cos: &cos, sin: &sin, inverse: false };
        let mut y = x.clone();
        rotate(&mut y, &turn);
        for token in 0..tokens {
            for h in 0..heads {
                for j in 0..half {
                    let at = token * width + h * head_dim + j;
                    let (s, c) = angle(token, j).sin_cos();
                    assert!((y[at] - (x[at] * c - x[at + half] * s)).abs() < 1e-6);
                    assert!((y[at + half] - (x[at + half] * c + x[at] * s)).abs() < 1e-6);
                }
            }
            for h in 0..heads {
                let rest = token * width + h * head_dim;
                let rest = rest + 2 * half..rest + head_dim;
                assert_eq!(y[rest.clone()], x[rest]);
            }
            let rest = token * width + heads * head_dim..(token + 1) * width;
            assert_eq!(y[rest.clone()], x[rest]);
        }
        rotate(&mut y, &Rotation { inverse: true, ..turn });
        assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() < 1e-6));
    }
}
