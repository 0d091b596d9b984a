//! Sums, products, sums over rows, gathers: what memory bandwidth bounds.

use crate::buffer::Buffer;
use crate::pool::{Shared, parallel_for, parallel_rows};
use crate::simd::{Isa, Vector, dispatch, load_up_to, store_up_to};

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

/// `to *= factor`.
pub fn scale_assign(to: &mut [f32], factor: f32) {
    let n = to.len();
    let shared = Shared::new(to);
    parallel_rows(n, 1, GRAIN, |first, n| {
        // SAFETY: chunks are disjoint.
        unsafe { shared.slice(first, n) }.iter_mut().for_each(|v| *v *= factor);
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

#[cfg(test)]
#[allow(clippy::float_cmp)] // Sums of small whole numbers are exact.
mod tests {
    use super::*;

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
}
