//! Batch norm as plain loops in f64.

use super::BatchNorm;

/// Mean and biased variance of each channel.
pub fn statistics(sizes: &BatchNorm, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let count = (sizes.batch * sizes.pixels) as f64;
    let of_channel = |c: usize| {
        let pixels = sizes.pixels;
        x.iter().enumerate().filter(move |(i, _)| i / pixels % sizes.channels == c).map(|(_, v)| *v)
    };
    let mean: Vec<f64> = (0..sizes.channels).map(|c| of_channel(c).sum::<f64>() / count).collect();
    let variance = (0..sizes.channels)
        .map(|c| of_channel(c).map(|v| (v - mean[c]).powi(2)).sum::<f64>() / count)
        .collect();
    (mean, variance)
}

/// The output by given statistics.
pub fn forward(
    sizes: &BatchNorm,
    x: &[f64],
    (gamma, beta): (&[f64], &[f64]),
    (mean, variance): (&[f64], &[f64]),
    eps: f64,
) -> Vec<f64> {
    let normalised = |(i, v): (usize, &f64)| {
        let c = i / sizes.pixels % sizes.channels;
        let y = (v - mean[c]) / (variance[c] + eps).sqrt() * gamma[c] + beta[c];
        if sizes.relu { y.max(0.0) } else { y }
    };
    x.iter().enumerate().map(normalised).collect()
}

/// Gradients of input, gamma and beta; `measured` if the statistics are those of `x` itself.
pub fn backward(
    sizes: &BatchNorm,
    x: &[f64],
    (gamma, beta): (&[f64], &[f64]),
    (mean, variance): (&[f64], &[f64]),
    eps: f64,
    measured: bool,
    grad_out: &[f64],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let y = forward(sizes, x, (gamma, beta), (mean, variance), eps);
    let channel = |i: usize| i / sizes.pixels % sizes.channels;
    let rstd: Vec<f64> = variance.iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
    let normal = |i: usize| (x[i] - mean[channel(i)]) * rstd[channel(i)];
    let g = |i: usize| if sizes.relu && y[i] <= 0.0 { 0.0 } else { grad_out[i] };
    let (mut dgamma, mut dbeta) = (vec![0.0; sizes.channels], vec![0.0; sizes.channels]);
    for i in 0..x.len() {
        dgamma[channel(i)] += g(i) * normal(i);
        dbeta[channel(i)] += g(i);
    }
    let count = (sizes.batch * sizes.pixels) as f64;
    let dx = (0..x.len())
        .map(|i| {
            let c = channel(i);
            let rest = (dbeta[c] + normal(i) * dgamma[c]) / count;
            gamma[c] * rstd[c] * (g(i) - if measured { rest } else { 0.0 })
        })
        .collect();
    (dx, dgamma, dbeta)
}
