//! Group norm as plain loops in f64.

use super::GroupNorm;

/// Mean and `1 / sqrt(variance + eps)` of each group of each picture.
fn statistics(sizes: &GroupNorm, x: &[f64]) -> Vec<(f64, f64)> {
    x.chunks(sizes.group_channels * sizes.pixels)
        .map(|group| {
            let count = group.len() as f64;
            let mean = group.iter().sum::<f64>() / count;
            let variance = group.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
            (mean, 1.0 / (variance + f64::from(sizes.eps)).sqrt())
        })
        .collect()
}

/// The output.
pub fn forward(sizes: &GroupNorm, x: &[f64], gamma: &[f64], beta: &[f64]) -> Vec<f64> {
    let groups = statistics(sizes, x);
    let normalised = |(i, v): (usize, &f64)| {
        let (mean, rstd) = groups[i / (sizes.group_channels * sizes.pixels)];
        let c = i / sizes.pixels % sizes.channels();
        let y = (v - mean) * rstd * gamma[c] + beta[c];
        if sizes.relu { y.max(0.0) } else { y }
    };
    x.iter().enumerate().map(normalised).collect()
}

/// Gradients of input, gamma and beta.
pub fn backward(
    sizes: &GroupNorm,
    x: &[f64],
    gamma: &[f64],
    beta: &[f64],
    grad_out: &[f64],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let y = forward(sizes, x, gamma, beta);
    let groups = statistics(sizes, x);
    let len = sizes.group_channels * sizes.pixels;
    let channel = |i: usize| i / sizes.pixels % sizes.channels();
    let normal = |i: usize| (x[i] - groups[i / len].0) * groups[i / len].1;
    let g = |i: usize| if sizes.relu && y[i] <= 0.0 { 0.0 } else { grad_out[i] };
    let (mut dgamma, mut dbeta) = (vec![0.0; gamma.len()], vec![0.0; gamma.len()]);
    let (mut total, mut along) = (vec![0.0; groups.len()], vec![0.0; groups.len()]);
    for i in 0..x.len() {
        dgamma[channel(i)] += g(i) * normal(i);
        dbeta[channel(i)] += g(i);
        total[i / len] += g(i) * gamma[channel(i)] / len as f64;
        along[i / len] += g(i) * gamma[channel(i)] * normal(i) / len as f64;
    }
    let dx = (0..x.len())
        .map(|i| {
            let scaled = g(i) * gamma[channel(i)];
            groups[i / len].1 * (scaled - total[i / len] - normal(i) * along[i / len])
        })
        .collect();
    (dx, dgamma, dbeta)
}
