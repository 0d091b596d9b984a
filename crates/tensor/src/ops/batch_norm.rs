//! Batch normalisation.

use super::conv::pictures;
use crate::{Error, Result, Tensor};
use ocelli_kernels::Buffer;
use ocelli_kernels::batch_norm::{
    Affine, BatchNorm, Gradients, Statistics, backward, forward_eval, forward_train, update_running,
};

/// What a batch norm does beside normalising.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNormOptions {
    /// Added to the variance.
    pub eps: f32,
    /// Whether negative outputs become 0.
    pub relu: bool,
}

/// Mean and biased variance of each channel over a batch and its pixels, `[channels]` each.
#[derive(Clone, Debug)]
pub struct BatchStatistics {
    mean: Tensor,
    variance: Tensor,
    /// Values that a channel's statistics were taken over.
    count: usize,
}

impl BatchStatistics {
    /// Moves running statistics by `momentum` towards these; the variance is made unbiased first,
    /// as PyTorch does.
    ///
    /// # Panics
    /// If the number of channels differs.
    pub fn update(&self, running_mean: &mut [f32], running_variance: &mut [f32], momentum: f32) {
        let measured =
            Statistics { mean: self.mean.values(), variance: self.variance.values(), eps: 0.0 };
        update_running(running_mean, running_variance, measured, self.count, momentum);
    }
}

impl Tensor {
    /// Batch normalisation of pictures `[batch, channels, img_h, img_w]` by given mean and variance
    /// (Ioffe and Szegedy 2015, arXiv:1502.03167), then scaled and shifted by `weight` and `bias`;
    /// all of them `[channels]`. Mean and variance get no gradient.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn batch_norm(
        &self,
        weight: &Tensor,
        bias: &Tensor,
        mean: &Tensor,
        variance: &Tensor,
        options: BatchNormOptions,
    ) -> Result<Tensor> {
        let sizes = self.batch_norm_sizes([weight, bias, mean, variance], options.relu)?;
        let mut out = Buffer::uninit(self.elements());
        forward_eval(
            &sizes,
            self.values(),
            Affine { gamma: weight.values(), beta: bias.values() },
            Statistics { mean: mean.values(), variance: variance.values(), eps: options.eps },
            &mut out,
        );
        Ok(self.batch_norm_tracked(sizes, [weight, bias, mean, variance], options.eps, false, out))
    }

    /// Batch normalisation by the statistics of the batch itself, which are returned for the running
    /// ones.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn batch_norm_train(
        &self,
        weight: &Tensor,
        bias: &Tensor,
        options: BatchNormOptions,
    ) -> Result<(Tensor, BatchStatistics)> {
        let sizes = self.batch_norm_sizes([weight, bias, weight, bias], options.relu)?;
        let mut out = Buffer::uninit(self.elements());
        let mut mean = Buffer::uninit(sizes.channels);
        let mut variance = Buffer::uninit(sizes.channels);
        forward_train(
            &sizes,
            self.values(),
            Affine { gamma: weight.values(), beta: bias.values() },
            options.eps,
            &mut mean,
            &mut variance,
            &mut out,
        );
        let statistics = BatchStatistics {
            mean: Tensor::new(mean, [sizes.channels]),
            variance: Tensor::new(variance, [sizes.channels]),
            count: sizes.batch * sizes.pixels,
        };
        let parts = [weight, bias, &statistics.mean, &statistics.variance];
        let out = self.batch_norm_tracked(sizes, parts, options.eps, true, out);
        Ok((out, statistics))
    }

    fn batch_norm_sizes(&self, parts: [&Tensor; 4], relu: bool) -> Result<BatchNorm> {
        let [batch, channels, img_h, img_w] = pictures("batch_norm", self)?;
        if let Some(t) = parts.into_iter().find(|t| t.shape()[..] != [channels]) {
            return Err(Error::shape("batch_norm", format!("[{channels}]"), t.shape()));
        }
        Ok(BatchNorm { batch, channels, pixels: img_h * img_w, relu })
    }

    fn batch_norm_tracked(
        &self,
        sizes: BatchNorm,
        [weight, bias, mean, variance]: [&Tensor; 4],
        eps: f32,
        measured: bool,
        out: Buffer<f32>,
    ) -> Tensor {
        let edges = [self.edge(), weight.edge(), bias.edge()];
        let [x, weight, bias, mean, variance] =
            [self, weight, bias, mean, variance].map(Tensor::detach);
        let parents = edges.clone();
        let out = Tensor::new(out, x.shape().clone());
        out.tracked(&parents.each_ref(), move |grad, tape| {
            let channels = sizes.channels;
            let mut input = Buffer::uninit(x.elements());
            let (mut gamma, mut beta) = (Buffer::uninit(channels), Buffer::uninit(channels));
            backward(
                &sizes,
                x.values(),
                Affine { gamma: weight.values(), beta: bias.values() },
                Statistics { mean: mean.values(), variance: variance.values(), eps },
                measured,
                grad.values(),
                Gradients { input: &mut input, gamma: &mut gamma, beta: &mut beta },
            );
            tape.add(&edges[0], || Tensor::new(input, x.shape().clone()));
            tape.add(&edges[1], || Tensor::new(gamma, [channels]));
            tape.add(&edges[2], || Tensor::new(beta, [channels]));
        })
    }
}
