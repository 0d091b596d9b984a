//! Group normalisation (Wu and He 2018, arXiv:1803.08494) over `[batch, channels, pixels]`, with
//! the ReLU that usually follows: the channels of a picture are normalised in groups of
//! neighbours, so that no picture depends on another.
//!
//! ```text
//! y = act((x - mean) * rstd * gamma[c] + beta[c]),   rstd = 1 / sqrt(variance + eps)
//! ```

pub mod reference;
#[cfg(test)]
mod tests;

pub use crate::batch_norm::{Affine, Gradients};

use crate::batch_norm::plane::{Factors, affine, grad_input, grad_sums, squares, sum};
use crate::buffer::Buffer;
use crate::pool::{Shared, parallel_for};

/// Sizes of a group norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNorm {
    /// Pictures.
    pub batch: usize,
    /// Groups of channels.
    pub groups: usize,
    /// Channels of a group.
    pub group_channels: usize,
    /// Values of a channel of a picture.
    pub pixels: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Whether negative outputs become 0.
    pub relu: bool,
}

impl GroupNorm {
    /// Channels of a picture.
    pub fn channels(&self) -> usize {
        self.groups * self.group_channels
    }

    /// Values of the input.
    pub fn len(&self) -> usize {
        self.batch * self.channels() * self.pixels
    }

    /// True if there is nothing to normalise.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn check(&self, input: usize, affine: Affine, output: usize) {
        assert!(input == self.len() && output == self.len(), "values of {self:?}");
        let lens = [affine.gamma.len(), affine.beta.len()];
        assert!(lens == [self.channels(); 2], "{} channels, got {lens:?}", self.channels());
    }

    /// Mean and `1 / sqrt(variance + eps)` of the values of a group.
    fn statistics(&self, values: &[f32]) -> (f32, f32) {
        let planes = || values.chunks_exact(self.pixels);
        let count = values.len() as f64;
        let mean = (planes().map(|p| f64::from(sum(p))).sum::<f64>() / count) as f32;
        let variance = planes().map(|p| f64::from(squares(p, mean))).sum::<f64>() / count;
        (mean, 1.0 / (variance as f32 + self.eps).sqrt())
    }
}

/// `out` of `x`.
///
/// # Panics
/// If a slice does not have the length that `sizes` states.
pub fn forward(sizes: &GroupNorm, x: &[f32], affine_: Affine, out: &mut [f32]) {
    sizes.check(x.len(), affine_, out.len());
    if sizes.is_empty() {
        return;
    }
    let (len, pixels) = (sizes.group_channels * sizes.pixels, sizes.pixels);
    let to = Shared::new(out);
    parallel_for(sizes.batch * sizes.groups, |group| {
        let x = &x[group * len..][..len];
        let (mean, rstd) = sizes.statistics(x);
        // SAFETY: each group is written by one task.
        let out = unsafe { to.slice(group * len, len) };
        let first = group % sizes.groups * sizes.group_channels;
        for (c, (x, out)) in x.chunks_exact(pixels).zip(out.chunks_exact_mut(pixels)).enumerate() {
            affine(x, affine_.line(first + c, mean, rstd, sizes.relu), out);
        }
    });
}

/// Overwrites `gradients` with those of [`forward`].
///
/// With `n = (x - mean) * rstd`, `g` the gradient behind the ReLU and means over the group,
/// `grad_gamma = sum(g * n)`, `grad_beta = sum(g)` and
/// `grad_input = rstd * (gamma * g - mean(gamma * g) - n * mean(gamma * g * n))`.
///
/// # Panics
/// As [`forward`].
pub fn backward(
    sizes: &GroupNorm,
    x: &[f32],
    affine_: Affine,
    grad_out: &[f32],
    gradients: Gradients,
) {
    sizes.check(x.len(), affine_, grad_out.len());
    let (channels, pixels) = (sizes.channels(), sizes.pixels);
    let Gradients { input, gamma, beta } = gradients;
    assert!(input.len() == x.len() && gamma.len() == channels && beta.len() == channels);
    gamma.fill(0.0);
    beta.fill(0.0);
    if sizes.is_empty() {
        return;
    }
    let len = sizes.group_channels * pixels;
    // Sums of g * n and of g for each channel of each picture.
    let mut sums = Buffer::<f32>::uninit(2 * sizes.batch * channels);
    let (to, sums_to) = (Shared::new(input), Shared::new(&mut sums));
    parallel_for(sizes.batch * sizes.groups, |group| {
        let (x, grad_out) = (&x[group * len..][..len], &grad_out[group * len..][..len]);
        let (mean, rstd) = sizes.statistics(x);
        let first = group % sizes.groups * sizes.group_channels;
        // SAFETY: each group is written by one task.
        let (out, sums) = unsafe {
            let at = 2 * group * sizes.group_channels;
            (to.slice(group * len, len), sums_to.slice(at, 2 * sizes.group_channels))
        };
        let (mut total, mut along) = (0.0, 0.0);
        for c in 0..sizes.group_channels {
            let line = affine_.line(first + c, mean, rstd, sizes.relu);
            let (x, g) = (&x[c * pixels..][..pixels], &grad_out[c * pixels..][..pixels]);
            let (t, a) = grad_sums(x, g, mean, line);
            (sums[2 * c], sums[2 * c + 1]) = (a * rstd, t);
            total += t * affine_.gamma[first + c];
            along += a * rstd * affine_.gamma[first + c];
        }
        let scale = -rstd / len as f32;
        for c in 0..sizes.group_channels {
            let line = affine_.line(first + c, mean, rstd, sizes.relu);
            let factors =
                Factors { grad: line.scale, centred: scale * along * rstd, shift: scale * total };
            let plane = c * pixels..(c + 1) * pixels;
            let out = &mut out[plane.clone()];
            grad_input(&x[plane.clone()], &grad_out[plane], mean, line, factors, out);
        }
    });
    for sums in sums.chunks_exact(2 * channels) {
        for c in 0..channels {
            gamma[c] += sums[2 * c];
            beta[c] += sums[2 * c + 1];
        }
    }
}
