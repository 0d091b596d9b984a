//! Batch normalisation (Ioffe and Szegedy 2015, arXiv:1502.03167) over `[batch, channels, pixels]`,
//! with the ReLU that usually follows.
//!
//! ```text
//! y = act((x - mean) * rstd * gamma + beta),   rstd = 1 / sqrt(variance + eps)
//! ```
//!
//! [`forward_eval`] takes mean and variance as they are; [`forward_train`] measures them over batch
//! and pixels, in two passes (mean first), with the biased variance. The running variance is fed
//! with the unbiased one, as PyTorch does.

pub(crate) mod plane;
pub mod reference;
#[cfg(test)]
mod tests;

use crate::pool::{Shared, parallel_for};
use plane::{Factors, Line, affine, grad_input, grad_sums, squares, sum};

/// Sizes of a batch norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchNorm {
    /// Pictures.
    pub batch: usize,
    /// Channels, each with its own statistics.
    pub channels: usize,
    /// Values of a channel of a picture.
    pub pixels: usize,
    /// Whether negative outputs become 0.
    pub relu: bool,
}

/// Mean and variance of each channel, `[channels]` each.
#[derive(Clone, Copy, Debug)]
pub struct Statistics<'a> {
    /// Mean.
    pub mean: &'a [f32],
    /// Biased variance.
    pub variance: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

impl Statistics<'_> {
    fn rstd(&self, channel: usize) -> f32 {
        1.0 / (self.variance[channel] + self.eps).sqrt()
    }
}

/// Scale and shift of each channel, `[channels]` each.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    /// Scale.
    pub gamma: &'a [f32],
    /// Shift.
    pub beta: &'a [f32],
}

impl Affine<'_> {
    /// The line of channel `channel` for values of the given mean.
    pub(crate) fn line(&self, channel: usize, mean: f32, rstd: f32, relu: bool) -> Line {
        let scale = self.gamma[channel] * rstd;
        Line { scale, shift: self.beta[channel] - mean * scale, relu }
    }
}

/// What [`backward`] writes.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// As the input.
    pub input: &'a mut [f32],
    /// `[channels]`.
    pub gamma: &'a mut [f32],
    /// `[channels]`.
    pub beta: &'a mut [f32],
}

impl BatchNorm {
    /// Values of the input.
    pub fn len(&self) -> usize {
        self.batch * self.channels * self.pixels
    }

    /// True if there is nothing to normalise.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The planes of a channel.
    fn planes(&self, channel: usize) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let Self { batch, channels, pixels, .. } = *self;
        (0..batch).map(move |n| {
            let start = (n * channels + channel) * pixels;
            start..start + pixels
        })
    }

    fn check(&self, input: usize, affine: Affine, statistics: Statistics) {
        assert_eq!(input, self.len(), "values of {self:?}");
        let lens = [
            affine.gamma.len(),
            affine.beta.len(),
            statistics.mean.len(),
            statistics.variance.len(),
        ];
        assert!(lens == [self.channels; 4], "{} channels, got {lens:?}", self.channels);
    }
}

/// `out` of `x` by given statistics.
///
/// # Panics
/// If a slice does not have the length that `sizes` states.
pub fn forward_eval(
    sizes: &BatchNorm,
    x: &[f32],
    affine_: Affine,
    statistics: Statistics,
    out: &mut [f32],
) {
    sizes.check(x.len(), affine_, statistics);
    assert_eq!(out.len(), x.len(), "output of {sizes:?}");
    let to = Shared::new(out);
    parallel_for(sizes.batch * sizes.channels, |p| {
        let channel = p % sizes.channels;
        let line =
            affine_.line(channel, statistics.mean[channel], statistics.rstd(channel), sizes.relu);
        // SAFETY: each plane is written by one task.
        let out = unsafe { to.slice(p * sizes.pixels, sizes.pixels) };
        affine(&x[p * sizes.pixels..][..sizes.pixels], line, out);
    });
}

/// `out` of `x` by its own statistics, which are written to `mean` and `variance` (biased),
/// `[channels]` each.
///
/// # Panics
/// As [`forward_eval`].
pub fn forward_train(
    sizes: &BatchNorm,
    x: &[f32],
    affine_: Affine,
    eps: f32,
    mean: &mut [f32],
    variance: &mut [f32],
    out: &mut [f32],
) {
    sizes.check(x.len(), affine_, Statistics { mean, variance, eps });
    assert_eq!(out.len(), x.len(), "output of {sizes:?}");
    let count = (sizes.batch * sizes.pixels) as f64;
    let (to, means, variances) = (Shared::new(out), Shared::new(mean), Shared::new(variance));
    parallel_for(sizes.channels, |channel| {
        let total: f64 = sizes.planes(channel).map(|p| f64::from(sum(&x[p]))).sum();
        let mean = (total / count) as f32;
        let total: f64 = sizes.planes(channel).map(|p| f64::from(squares(&x[p], mean))).sum();
        let variance = (total / count) as f32;
        let line = affine_.line(channel, mean, 1.0 / (variance + eps).sqrt(), sizes.relu);
        // SAFETY: each channel is written by one task.
        unsafe {
            *means.get().add(channel) = mean;
            *variances.get().add(channel) = variance;
            for p in sizes.planes(channel) {
                affine(&x[p.clone()], line, to.slice(p.start, p.len()));
            }
        }
    });
}

/// Moves the running statistics by `momentum` towards those of a batch of `count` values a
/// channel: `running = (1 - momentum) * running + momentum * measured`, where the measured variance
/// is made unbiased first.
///
/// # Panics
/// If the slices differ in length.
pub fn update_running(
    running_mean: &mut [f32],
    running_variance: &mut [f32],
    measured: Statistics,
    count: usize,
    momentum: f32,
) {
    let unbiased = count as f32 / (count as f32 - 1.0).max(1.0);
    assert!(running_mean.len() == measured.mean.len());
    assert!(running_variance.len() == measured.variance.len());
    for (running, new) in running_mean.iter_mut().zip(measured.mean) {
        *running = (1.0 - momentum) * *running + momentum * new;
    }
    for (running, new) in running_variance.iter_mut().zip(measured.variance) {
        *running = (1.0 - momentum) * *running + momentum * new * unbiased;
    }
}

/// Overwrites `gradients` with those of [`forward_train`] if `measured` (the statistics then are
/// the batch's own), else of [`forward_eval`].
///
/// With `n = (x - mean) * rstd` and `g` the gradient behind the ReLU, `grad_gamma = sum(g * n)`,
/// `grad_beta = sum(g)`, and `grad_input = gamma * rstd * g`, from which training subtracts
/// `gamma * rstd * (mean(g) + n * mean(g * n))`.
///
/// # Panics
/// As [`forward_eval`].
pub fn backward(
    sizes: &BatchNorm,
    x: &[f32],
    affine_: Affine,
    statistics: Statistics,
    measured: bool,
    grad_out: &[f32],
    gradients: Gradients,
) {
    sizes.check(x.len(), affine_, statistics);
    let Gradients { input, gamma, beta } = gradients;
    assert!(grad_out.len() == x.len() && input.len() == x.len());
    assert!(gamma.len() == sizes.channels && beta.len() == sizes.channels);
    let count = (sizes.batch * sizes.pixels) as f32;
    let to = Shared::new(input);
    let (gammas, betas) = (Shared::new(gamma), Shared::new(beta));
    parallel_for(sizes.channels, |channel| {
        let (mean, rstd) = (statistics.mean[channel], statistics.rstd(channel));
        let line = affine_.line(channel, mean, rstd, sizes.relu);
        let (mut total, mut along) = (0.0_f64, 0.0_f64);
        for p in sizes.planes(channel) {
            let (t, a) = grad_sums(&x[p.clone()], &grad_out[p], mean, line);
            total += f64::from(t);
            along += f64::from(a);
        }
        let (total, along) = (total as f32, along as f32 * rstd);
        let scale = if measured { -line.scale / count } else { 0.0 };
        let factors =
            Factors { grad: line.scale, centred: scale * along * rstd, shift: scale * total };
        // SAFETY: each channel is written by one task.
        unsafe {
            *gammas.get().add(channel) = along;
            *betas.get().add(channel) = total;
            for p in sizes.planes(channel) {
                let out = to.slice(p.start, p.len());
                grad_input(&x[p.clone()], &grad_out[p], mean, line, factors, out);
            }
        }
    });
}
