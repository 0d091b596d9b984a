//! Sums, products, sums over rows, gathers: what memory bandwidth bounds.

use crate::buffer::Buffer;
use crate::pool::{Shared, parallel_for, parallel_rows};
use crate::simd::{Isa, Vector, dispatch, load_up_to, store_up_to};
use std::sync::atomic::{AtomicBool, Ordering};

const GRAIN: usize = 64 * 1024;

macro_rules! two_inputs {
    ($(#[$doc:meta])* $name:ident, |$a:ident, $b:ident, $s:ident| $body:expr) => {
        $(#[$doc])*
        ///
        /// # Panics
        /// If the lengths differ.
        pub fn $name(a: &[f32], b: &[f32], scale: f32, out: &mut [f32]) {
            #[inline(always)]
            unsafe fn run<V: Vector>(a: &[f32], b: &[f32], scale: f32, out: &mut [f32]) {
                let n = a.len();
                // SAFETY: the slices have `n` values; partial vectors are masked.
                unsafe {
                    let $s = V::splat(scale);
                    for i in (0..n).step_by(V::LANES) {
                        let $a = load_up_to::<V>(a.as_ptr().add(i), n - i);
                        let $b = load_up_to::<V>(b.as_ptr().add(i), n - i);
                        store_up_to($body, out.as_mut_ptr().add(i), n - i);
                    }
                }
            }
            assert!(a.len() == b.len() && a.len() == out.len());
            let to = Shared::new(out);
            parallel_rows(a.len(), 1, GRAIN, |first, n| {
                let (a, b) = (&a[first..first + n], &b[first..first + n]);
                // SAFETY: chunks are disjoint; the instruction set is there.
                unsafe {
                    let out = to.slice(first, n);
                    dispatch!(Isa::best(), run(a: &[f32], b: &[f32], scale: f32, out: &mut [f32]));
                }
            });
        }
    };
}

two_inputs!(
    /// `out = a + b * scale`.
    add_scaled, |a, b, s| b.fma(s, a)
);
two_inputs!(
    /// `out = a * b * scale`.
    multiply, |a, b, s| a.mul(b).mul(s)
);

/// `to += from`.
///
/// # Panics
/// If the lengths differ.
pub fn add_assign(to: &mut [f32], from: &[f32]) {
    #[inline(always)]
    unsafe fn run<V: Vector>(to: &mut [f32], from: &[f32]) {
        let n = from.len();
        for i in (0..n).step_by(V::LANES) {
            // SAFETY: both slices have `n` values; partial vectors are masked.
            unsafe {
                let p = to.as_mut_ptr().add(i);
                let x = load_up_to::<V>(p, n - i).add(load_up_to(from.as_ptr().add(i), n - i));
                store_up_to(x, p, n - i);
            }
        }
    }
    assert_eq!(to.len(), from.len());
    let shared = Shared::new(to);
    parallel_rows(from.len(), 1, GRAIN, |first, n| {
        let from = &from[first..first + n];
        // SAFETY: chunks are disjoint; the instruction set is there.
        unsafe {
            let to = shared.slice(first, n);
            dispatch!(Isa::best(), run(to: &mut [f32], from: &[f32]));
        }
    });
}

/// Dropout (Srivastava et al. 2014, JMLR 15, §4): `out[i]` is 0 with probability `rate`, else
/// `x[i] / (1 - rate)`; `residual` is added to it. Value `i` has the random number `i` that `SplitMix64`
/// (Steele et al. 2014) draws from `key`, so a mask is never stored and depends on nothing else.
///
/// # Panics
/// If the lengths differ.
pub fn dropout(x: &[f32], rate: f32, key: u64, residual: Option<&[f32]>, out: &mut [f32]) {
    #[inline(always)]
    #[allow(clippy::extra_unused_type_parameters, reason = "`dispatch!` names the vector")]
    unsafe fn run<V: Vector>(x: &[f32], key: u64, limit: u64, scale: f32, out: &mut [f32]) {
        let mut state = key;
        for (o, x) in out.iter_mut().zip(x) {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let is_kept = ((z ^ (z >> 31)) >> 32) >= limit;
            *o = if is_kept { x * scale } else { 0.0 };
        }
    }
    assert!(x.len() == out.len() && residual.is_none_or(|r| r.len() == x.len()));
    let limit = (f64::from(rate) * 2f64.powi(32)) as u64;
    let scale = if rate < 1.0 { 1.0 / (1.0 - rate) } else { 0.0 };
    let shared = Shared::new(out);
    parallel_rows(x.len(), 1, GRAIN, |first, n| {
        let x = &x[first..first + n];
        let key = key.wrapping_add((first as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // SAFETY: chunks are disjoint; the instruction set is there.
        let out = unsafe {
            let out = shared.slice(first, n);
            dispatch!(
                Isa::best(),
                run(x: &[f32], key: u64, limit: u64, scale: f32, out: &mut [f32])
            );
            out
        };
        if let Some(residual) = residual {
            out.iter_mut().zip(&residual[first..first + n]).for_each(|(o, r)| *o += r);
        }
    });
}

/// `to *= factor`.
pub fn scale_assign(to: &mut [f32], factor: f32) {
    let n = to.len();
    let shared = Shared::new(to);
    parallel_rows(n, 1, GRAIN, |first, n| {
        // SAFETY: chunks are disjoint.
        unsafe { shared.slice(first, n) }.iter_mut().for_each(|v| *v *= factor);
    });
}

/// `out[r, c] = x[r, c] * factors[r]`.
///
/// # Panics
/// If `x` does not hold rows of one length, one for each factor.
pub fn scale_rows(x: &[f32], factors: &[f32], out: &mut [f32]) {
    assert!(x.len() == out.len() && x.len().is_multiple_of(factors.len().max(1)));
    let width = (x.len() / factors.len().max(1)).max(1);
    let shared = Shared::new(out);
    parallel_rows(x.len(), 1, GRAIN, |first, n| {
        // SAFETY: chunks are disjoint.
        let mut out = unsafe { shared.slice(first, n) };
        let mut x = &x[first..first + n];
        let mut row = first / width;
        let mut len = (width - first % width).min(n);
        while !x.is_empty() {
            let (now, later) = out.split_at_mut(len);
            now.iter_mut().zip(x).for_each(|(o, v)| *o = v * factors[row]);
            (out, x) = (later, &x[len..]);
            row += 1;
            len = width.min(x.len());
        }
    });
}

/// `out[r] = Σ over c of a[r, c] b[r, c]`, in f64 and in an order that does not depend on threads.
///
/// # Panics
/// If the lengths differ or do not hold rows of one length, one for each sum.
pub fn row_products(a: &[f32], b: &[f32], out: &mut [f32]) {
    assert!(a.len() == b.len() && a.len().is_multiple_of(out.len().max(1)));
    let width = a.len() / out.len().max(1);
    let rows = out.len();
    let shared = Shared::new(out);
    parallel_rows(rows, width.max(1), GRAIN, |first, n| {
        // SAFETY: tasks own disjoint sums.
        let out = unsafe { shared.slice(first, n) };
        for (row, out) in (first..).zip(out) {
            let at = row * width..(row + 1) * width;
            let products = a[at.clone()].iter().zip(&b[at]);
            *out = products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32;
        }
    });
}

/// `out[c] = Σ over rows of x[r, c]`, in an order that does not depend on threads.
///
/// # Panics
/// If lengths do not fit.
pub fn sum_rows(x: &[f32], width: usize, out: &mut [f32]) {
    assert!(out.len() == width && x.len().is_multiple_of(width.max(1)));
    let rows = x.len() / width.max(1);
    let parts = (x.len() / GRAIN).clamp(1, 16);
    let per_part = rows.div_ceil(parts);
    let mut sums = Buffer::zeroed(parts * width);
    let shared = Shared::new(&mut sums);
    #[inline(always)]
    unsafe fn run<V: Vector>(x: &[f32], width: usize, sum: &mut [f32]) {
        for row in x.chunks_exact(width) {
            for i in (0..width).step_by(V::LANES) {
                // SAFETY: both have `width` values; partial vectors are masked.
                unsafe {
                    let p = sum.as_mut_ptr().add(i);
                    let n = width - i;
                    store_up_to(
                        load_up_to::<V>(p, n).add(load_up_to(row.as_ptr().add(i), n)),
                        p,
                        n,
                    );
                }
            }
        }
    }
    parallel_for(parts, |p| {
        let (first, last) = ((p * per_part).min(rows), ((p + 1) * per_part).min(rows));
        let x = &x[first * width..last * width];
        // SAFETY: tasks own disjoint parts; the instruction set is there.
        unsafe {
            let sum = shared.slice(p * width, width);
            dispatch!(Isa::best(), run(x: &[f32], width: usize, sum: &mut [f32]));
        }
    });
    out.fill(0.0);
    for part in sums.chunks_exact(width) {
        out.iter_mut().zip(part).for_each(|(o, p)| *o += p);
    }
}

/// `out[r, c] = x[r, c] + row[(r * width + c) % row.len()]`: adds a table to each of its repeats.
///
/// # Panics
/// If `x` does not hold whole repeats of `table`.
pub fn add_repeated(x: &[f32], table: &[f32], out: &mut [f32]) {
    assert!(x.len() == out.len() && x.len().is_multiple_of(table.len().max(1)));
    for (x, out) in x.chunks_exact(table.len()).zip(out.chunks_exact_mut(table.len())) {
        add_scaled(x, table, 1.0, out);
    }
}

/// `out[i] = table[ids[i]]`, rows of `width` values.
///
/// # Panics
/// If an id is not below the number of rows.
pub fn gather_rows(table: &[f32], width: usize, ids: &[u32], out: &mut [f32]) {
    assert_eq!(out.len(), ids.len() * width);
    for (id, out) in ids.iter().zip(out.chunks_exact_mut(width)) {
        out.copy_from_slice(&table[*id as usize * width..][..width]);
    }
}

/// `table[ids[i]] += rows[i]`, in the order of `ids`.
///
/// # Panics
/// If an id is not below the number of rows.
pub fn scatter_add_rows(table: &mut [f32], width: usize, ids: &[u32], rows: &[f32]) {
    assert_eq!(rows.len(), ids.len() * width);
    for (id, row) in ids.iter().zip(rows.chunks_exact(width)) {
        let to = &mut table[*id as usize * width..][..width];
        to.iter_mut().zip(row).for_each(|(t, r)| *t += r);
    }
}

/// Σ x², in f64 and in an order that does not depend on threads.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    let parts = x.len().div_ceil(GRAIN);
    let mut sums = vec![0.0_f64; parts];
    let shared = Shared::new(&mut sums);
    parallel_for(parts, |p| {
        let x = &x[p * GRAIN..((p + 1) * GRAIN).min(x.len())];
        let mut lanes = [0.0_f64; 8];
        for chunk in x.chunks(8) {
            for (l, v) in lanes.iter_mut().zip(chunk) {
                *l += f64::from(*v) * f64::from(*v);
            }
        }
        // SAFETY: tasks own disjoint sums.
        unsafe { shared.slice(p, 1)[0] = lanes.iter().sum() }
    });
    sums.iter().sum()
}

/// The bits of the largest size among values, in a loop that its caller compiles for an instruction
/// set: as whole numbers, the bits of what is not finite are the largest.
#[inline(always)]
pub(crate) fn largest_bits(x: &[f32]) -> u32 {
    x.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff))
}

/// Whether no value is infinite or not a number.
pub fn is_finite(x: &[f32]) -> bool {
    #[allow(clippy::extra_unused_type_parameters)]
    #[inline(always)]
    unsafe fn largest<V: Vector>(x: &[f32]) -> u32 {
        largest_bits(x)
    }
    let all = AtomicBool::new(true);
    // The first look at a mapped file waits for the system, on each thread for its own part.
    parallel_rows(x.len(), 1, GRAIN, |first, n| {
        let x = &x[first..first + n];
        // SAFETY: the instruction set is there.
        let most = unsafe { dispatch!(Isa::best(), largest(x: &[f32]) -> u32) };
        if !f32::from_bits(most).is_finite() {
            all.store(false, Ordering::Relaxed);
        }
    });
    all.into_inner()
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // Sums of small whole numbers are exact.
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_is_found_anywhere() {
        let mut x = vec![-f32::MAX; 3 * GRAIN + 5];
        assert!(is_finite(&x) && is_finite(&[]) && is_finite(&[-0.0, f32::MIN_POSITIVE / 2.0]));
        for (at, value) in [(0, f32::NAN), (GRAIN, f32::INFINITY), (3 * GRAIN + 4, -f32::INFINITY)]
        {
            let before = std::mem::replace(&mut x[at], value);
            assert!(!is_finite(&x), "{value} at {at}");
            x[at] = before;
        }
    }

    #[test]
    fn sums_products_and_gathers() {
        let n = 200_003;
        let a: Vec<f32> = (0..n).map(|i| (i % 17) as f32).collect();
        let b: Vec<f32> = (0..n).map(|i| (i % 5) as f32).collect();
        let mut out = vec![0.0; n];
        add_scaled(&a, &b, 2.0, &mut out);
        assert!((0..n).all(|i| out[i] == a[i] + 2.0 * b[i]));
        multiply(&a, &b, 0.5, &mut out);
        assert!((0..n).all(|i| out[i] == a[i] * b[i] * 0.5));
        add_assign(&mut out, &a);
        scale_assign(&mut out, 2.0);
        assert!((0..n).all(|i| out[i] == (a[i] * b[i] * 0.5 + a[i]) * 2.0));
        let want: f64 = a.iter().map(|v| f64::from(v * v)).sum();
        assert!((sum_of_squares(&a) - want).abs() < 1e-3);

        let width = 1001;
        let x = &a[..width * 199];
        let mut sums = vec![1.0; width];
        sum_rows(x, width, &mut sums);
        for c in [0, 500, 1000] {
            assert_eq!(sums[c], (0..199).map(|r| x[r * width + c]).sum::<f32>());
        }
        let factors: Vec<f32> = (0..199).map(|r| (r % 3) as f32).collect();
        let mut scaled = vec![9.0; x.len()];
        scale_rows(x, &factors, &mut scaled);
        assert!((0..x.len()).all(|i| scaled[i] == x[i] * factors[i / width]));
        let mut products = vec![9.0; 199];
        row_products(x, &scaled, &mut products);
        for r in [0, 1, 198] {
            let want: f32 = (r * width..(r + 1) * width).map(|i| x[i] * scaled[i]).sum();
            assert_eq!(products[r], want);
        }

        let mut rows = vec![0.0; 4];
        gather_rows(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, &[2, 0], &mut rows);
        assert_eq!(rows, [5.0, 6.0, 1.0, 2.0]);
        let mut table = vec![0.0; 6];
        scatter_add_rows(&mut table, 2, &[1, 1], &rows);
        assert_eq!(table, [0.0, 0.0, 6.0, 8.0, 0.0, 0.0]);
        let mut repeated = vec![0.0; 4];
        add_repeated(&rows, &[10.0, 20.0], &mut repeated);
        assert_eq!(repeated, [15.0, 26.0, 11.0, 22.0]);
    }

    #[test]
    fn dropout_keeps_the_mean_and_its_masks_do_not_depend_on_the_length() {
        // Longer than a task, so that later tasks begin within the sequence of numbers.
        let n = 3 * GRAIN + 5;
        let x: Vec<f32> = (0..n).map(|i| 1.0 + (i % 3) as f32).collect();
        let residual: Vec<f32> = (0..n).map(|i| (i % 7) as f32).collect();
        let (mut out, mut part) = (vec![9.0; n], vec![9.0; n]);
        for (rate, scale) in [(0.1, 1.0 / 0.9), (0.5, 2.0), (0.75, 4.0)] {
            dropout(&x, rate, 7, None, &mut out);
            let is_zero_or_scaled = |(o, x): (&f32, &f32)| *o == 0.0 || *o == x * scale;
            assert!(out.iter().zip(&x).all(is_zero_or_scaled), "{rate}");
            let zeros = out.iter().filter(|o| **o == 0.0).count() as f64;
            let (n, rate64) = (n as f64, f64::from(rate));
            let deviation = (n * rate64 * (1.0 - rate64)).sqrt();
            assert!((zeros - n * rate64).abs() < 5.0 * deviation, "{rate}: {zeros} of {n}");
            // Neighbours are dropped together as often as chance has it.
            let pairs = out.windows(2).filter(|w| w[0] == 0.0 && w[1] == 0.0).count() as f64;
            assert!((pairs - n * rate64 * rate64).abs() < 5.0 * n.sqrt(), "{rate}: {pairs}");

            let short = 1000;
            dropout(&x[..short], rate, 7, None, &mut part[..short]);
            assert_eq!(part[..short], out[..short], "{rate}");
            dropout(&x, rate, 7, Some(&residual), &mut part);
            assert!((0..part.len()).all(|i| part[i] == out[i] + residual[i]), "{rate}");
        }
        dropout(&x, 0.0, 7, None, &mut out);
        assert_eq!(out, x);
        dropout(&x, 1.0, 7, None, &mut out);
        assert!(out.iter().all(|o| *o == 0.0));
        // The first number that `SplitMix64` draws from 0 is e220a8397b1dcdaf.
        let bound = (f64::from(0xe220_a839_u32) / 2f64.powi(32)) as f32;
        for (rate, is_kept) in [(bound - 1e-6, true), (bound + 1e-6, false)] {
            dropout(&[1.0], rate, 0, None, &mut out[..1]);
            assert_eq!(out[0] != 0.0, is_kept);
        }
    }
}
