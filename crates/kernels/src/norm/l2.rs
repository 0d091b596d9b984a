//! Rows of length 1.

use crate::pool::{Shared, parallel_rows};

/// `out = x / |x|` per row of `width` values; a row of zeros stays zero. `norms[rows]` receives the
/// lengths.
///
/// # Panics
/// If lengths do not fit.
pub fn l2_forward(x: &[f32], width: usize, out: &mut [f32], norms: &mut [f32]) {
    assert!(x.len() == out.len() && norms.len() * width == x.len());
    let (out, lengths) = (Shared::new(out), Shared::new(norms));
    parallel_rows(x.len() / width.max(1), width, super::GRAIN, |first, count| {
        for r in first..first + count {
            let x = &x[r * width..][..width];
            let norm = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt() as f32;
            let scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
            // SAFETY: tasks own disjoint rows.
            unsafe {
                for (o, x) in out.slice(r * width, width).iter_mut().zip(x) {
                    *o = x * scale;
                }
                lengths.slice(r, 1)[0] = norm;
            }
        }
    });
}

/// `grad_x = (g - y (y · g)) / |x|` per row, with `y` the output of [`l2_forward`].
///
/// # Panics
/// If lengths do not fit.
pub fn l2_backward(y: &[f32], width: usize, norms: &[f32], grad_out: &[f32], grad_x: &mut [f32]) {
    assert!(y.len() == grad_out.len() && y.len() == grad_x.len() && norms.len() * width == y.len());
    let grad_x = Shared::new(grad_x);
    parallel_rows(norms.len(), width, super::GRAIN, |first, count| {
        for r in first..first + count {
            let (y, g) = (&y[r * width..][..width], &grad_out[r * width..][..width]);
            let dot =
                y.iter().zip(g).map(|(y, g)| f64::from(*y) * f64::from(*g)).sum::<f64>() as f32;
            let scale = if norms[r] > 0.0 { 1.0 / norms[r] } else { 0.0 };
            // SAFETY: tasks own disjoint rows.
            let out = unsafe { grad_x.slice(r * width, width) };
            for ((o, y), g) in out.iter_mut().zip(y).zip(g) {
                *o = (g - y * dot) * scale;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_get_length_one_and_gradients_match_finite_differences() {
        let width = 7;
        let x: Vec<f32> = (0..21).map(|i| ((i * 37) % 11) as f32 / 5.0 - 1.0).collect();
        let g: Vec<f32> = (0..21).map(|i| ((i * 17) % 13) as f32 / 6.0 - 1.0).collect();
        let run = |x: &[f32]| {
            let (mut y, mut n) = (vec![0.0; 21], vec![0.0; 3]);
            l2_forward(x, width, &mut y, &mut n);
            (y, n)
        };
        let (y, norms) = run(&x);
        for row in y.chunks_exact(width) {
            assert!((row.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-6);
        }
        let mut dx = vec![0.0; 21];
        l2_backward(&y, width, &norms, &g, &mut dx);
        for i in 0..21 {
            let at = |d: f32| {
                let mut x = x.clone();
                x[i] += d;
                run(&x).0.iter().zip(&g).map(|(y, g)| f64::from(y * g)).sum::<f64>()
            };
            let slope = (at(1e-3) - at(-1e-3)) / 2e-3;
            assert!((slope - f64::from(dx[i])).abs() < 1e-3, "{i}: {} {slope}", dx[i]);
        }
        assert!(run(&[0.0; 21]).0.iter().all(|v| *v == 0.0));
    }
}
