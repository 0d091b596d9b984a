//! Weight standardisation (Qiao et al. 2019, arXiv:1903.10520): every filter with mean 0 and
//! variance 1, `(w - mean) / sqrt(variance + eps)`, variance biased.

use crate::batch_norm::plane::{Factors, Line, affine, grad_input, grad_sums, squares, sum};
use crate::pool::{Shared, parallel_rows};

/// Mean and `1 / sqrt(variance + eps)` of a filter.
fn statistics(filter: &[f32], eps: f32) -> (f32, f32) {
    let count = filter.len() as f32;
    let mean = sum(filter) / count;
    (mean, 1.0 / (squares(filter, mean) / count + eps).sqrt())
}

/// Standardises each filter of `weight` `[filters, fan_in]` into `out`.
///
/// # Panics
/// If the slices differ in length or do not hold whole filters.
pub fn standardise_forward(weight: &[f32], fan_in: usize, eps: f32, out: &mut [f32]) {
    assert!(weight.len() == out.len() && weight.len().is_multiple_of(fan_in));
    let to = Shared::new(out);
    parallel_rows(weight.len() / fan_in, fan_in, 1 << 14, |first, filters| {
        for f in first..first + filters {
            let filter = &weight[f * fan_in..][..fan_in];
            let (mean, rstd) = statistics(filter, eps);
            // SAFETY: each filter is written by one task.
            let out = unsafe { to.slice(f * fan_in, fan_in) };
            affine(filter, Line { scale: rstd, shift: -mean * rstd, relu: false }, out);
        }
    });
}

/// Overwrites `grad_weight` with the gradient of [`standardise_forward`]:
/// `rstd * (g - mean(g) - n * mean(g * n))`, where `n` is the standardised filter.
///
/// # Panics
/// As [`standardise_forward`].
pub fn standardise_backward(
    weight: &[f32],
    grad_out: &[f32],
    fan_in: usize,
    eps: f32,
    grad_weight: &mut [f32],
) {
    assert!(weight.len() == grad_weight.len() && weight.len() == grad_out.len());
    assert!(weight.len().is_multiple_of(fan_in));
    let to = Shared::new(grad_weight);
    parallel_rows(weight.len() / fan_in, fan_in, 1 << 14, |first, filters| {
        for f in first..first + filters {
            let (filter, g) = (&weight[f * fan_in..][..fan_in], &grad_out[f * fan_in..][..fan_in]);
            let (mean, rstd) = statistics(filter, eps);
            let line = Line { scale: rstd, shift: -mean * rstd, relu: false };
            let (total, along) = grad_sums(filter, g, mean, line);
            let count = fan_in as f32;
            let factors = Factors {
                grad: rstd,
                centred: -rstd * rstd * rstd * along / count,
                shift: -rstd * total / count,
            };
            // SAFETY: each filter is written by one task.
            let out = unsafe { to.slice(f * fan_in, fan_in) };
            grad_input(filter, g, mean, line, factors, out);
        }
    });
}
