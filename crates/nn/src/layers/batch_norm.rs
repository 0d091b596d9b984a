//! Batch normalisation.

use crate::{Builder, Init, Parameter};
use ocelli_tensor::{BatchNormOptions, Result, Tensor};

/// Where a batch norm takes mean and variance from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NormStatistics {
    /// From the running values: no picture depends on another.
    #[default]
    Running,
    /// From the batch, whose statistics then move the running values.
    Batch,
}

/// Batch normalisation of each channel (Ioffe and Szegedy 2015, arXiv:1502.03167), with the `eps`
/// 1e-5 and the momentum 0.1 of PyTorch.
#[derive(Debug)]
pub struct BatchNorm {
    weight: Parameter,
    bias: Parameter,
    running_mean: Parameter,
    running_var: Parameter,
}

const EPS: f32 = 1e-5;
const MOMENTUM: f32 = 0.1;

impl BatchNorm {
    /// `weight` from `scale`, `bias` from 0, `running_mean` from 0 and `running_var` from 1, all
    /// `[channels]`.
    pub fn new(b: &Builder, channels: usize, scale: f32) -> Self {
        Self {
            weight: b.parameter("weight", &[channels], Init::Constant(scale)),
            bias: b.parameter("bias", &[channels], Init::Constant(0.0)),
            running_mean: b.buffer("running_mean", &[channels], 0.0),
            running_var: b.buffer("running_var", &[channels], 1.0),
        }
    }

    /// `[batch, channels, img_h, img_w]` in and out, negative values set to 0 if `relu`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(&self, x: &Tensor, relu: bool, statistics: NormStatistics) -> Result<Tensor> {
        let (weight, bias) = (self.weight.tensor(), self.bias.tensor());
        let options = BatchNormOptions { eps: EPS, relu };
        match statistics {
            NormStatistics::Running => {
                let (mean, variance) = (self.running_mean.tensor(), self.running_var.tensor());
                x.batch_norm(&weight, &bias, &mean, &variance, options)
            }
            NormStatistics::Batch => {
                let (y, measured) = x.batch_norm_train(&weight, &bias, options)?;
                self.running_mean.update(|mean| {
                    self.running_var.update(|variance| measured.update(mean, variance, MOMENTUM));
                });
                Ok(y)
            }
        }
    }
}
