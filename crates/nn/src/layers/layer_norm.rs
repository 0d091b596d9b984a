//! Layer normalisation.

use crate::{Builder, Init, Parameter};
use ocelli_tensor::{Result, Tensor};

/// Layer normalisation over the last axis (Ba et al. 2016, arXiv:1607.06450).
#[derive(Debug)]
pub struct LayerNorm {
    weight: Parameter,
    bias: Parameter,
    eps: f32,
}

impl LayerNorm {
    /// `weight` from 1 and `bias` from 0, both `[width]`.
    pub fn new(b: &Builder, width: usize, eps: f32) -> Self {
        Self {
            weight: b.parameter("weight", &[width], Init::Constant(1.0)),
            bias: b.parameter("bias", &[width], Init::Constant(0.0)),
            eps,
        }
    }

    /// `[.., width]` in and out.
    ///
    /// # Errors
    /// If the last axis is not `width`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.layer_norm(&self.weight.tensor(), &self.bias.tensor(), self.eps)
    }
}
