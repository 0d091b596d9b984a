//! Group normalisation.

use crate::{Builder, Init, Parameter};
use ocelli_tensor::{GroupNormOptions, Result, Tensor};

/// Group normalisation (Wu and He 2018, arXiv:1803.08494), with the `eps` 1e-5 of PyTorch.
#[derive(Debug)]
pub struct GroupNorm {
    weight: Parameter,
    bias: Parameter,
    groups: usize,
}

const EPS: f32 = 1e-5;

impl GroupNorm {
    /// `weight` from 1 and `bias` from 0, both `[channels]`; `groups` divides the channels.
    pub fn new(b: &Builder, channels: usize, groups: usize) -> Self {
        Self {
            weight: b.parameter("weight", &[channels], Init::Constant(1.0)),
            bias: b.parameter("bias", &[channels], Init::Constant(0.0)),
            groups,
        }
    }

    /// `[batch, channels, img_h, img_w]` in and out, negative values set to 0 if `relu`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(&self, x: &Tensor, relu: bool) -> Result<Tensor> {
        let options = GroupNormOptions { groups: self.groups, eps: EPS, relu };
        x.group_norm(&self.weight.tensor(), &self.bias.tensor(), options)
    }
}
