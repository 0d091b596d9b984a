//! Batch normalisation.

use crate::{Builder, Init, Parameter};
use ocelli_tensor::{BatchNormOptions, Result, Tensor, tracking};

/// Where a batch norm takes mean and variance from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NormStatistics {
    /// From the running values: no picture depends on another.
    #[default]
    Running,
    /// From the batch. Its statistics move the running values too, but only where the tape is
    /// on: a pass under `no_grad` whose work is done again for the gradients counts once.
    /// A step in parts takes mean and variance from each part, and each part moves the running values.
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
                if !tracking() {
                    return Ok(y);
                }
                self.running_mean.update(|mean| {
                    self.running_var.update(|variance| measured.update(mean, variance, MOMENTUM));
                });
                Ok(y)
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::float_cmp)] // A failed test is to panic; passes are equal bit for bit.
mod tests {
    use super::*;
    use ocelli_tensor::{checkpoint, no_grad};
    use std::sync::Arc;

    /// Running mean after `passes` over one batch whose mean is 3.
    fn mean_after(passes: impl FnOnce(&Arc<BatchNorm>, &Tensor)) -> f32 {
        let norm = Arc::new(BatchNorm::new(&Builder::random(0), 1, 1.0));
        let x = Tensor::from_slice(&[1.0, 2.0, 4.0, 5.0], &[2, 1, 1, 2]).unwrap().leaf();
        passes(&norm, &x);
        norm.running_mean.tensor().item().unwrap()
    }

    #[test]
    fn a_step_that_computes_twice_moves_the_statistics_once() {
        let forward = |norm: &Arc<BatchNorm>, x: &Tensor| {
            norm.forward(x, false, NormStatistics::Batch).unwrap()
        };
        let once = mean_after(|norm, x| drop(forward(norm, x)));
        assert!((once - 0.3).abs() < 1e-6, "{once}");
        let in_two_passes = mean_after(|norm, x| {
            no_grad(|| forward(norm, x));
            forward(norm, x);
        });
        assert_eq!(in_two_passes, once);
        let recomputed = mean_after(|norm, x| {
            let norm = Arc::clone(norm);
            let again = move |x: &Tensor| norm.forward(x, false, NormStatistics::Batch);
            let y = checkpoint(x, again).unwrap();
            y.sum().unwrap().backward().unwrap();
        });
        assert_eq!(recomputed, once);
        assert_eq!(mean_after(|norm, x| drop(no_grad(|| forward(norm, x)))), 0.0);
    }
}
