//! Layer normalisation.

use crate::{Builder, Init, Parameter};
use ocelli_tensor::{Result, Tensor};

/// Layer normalisation over the last axis (Ba et al. 2016, arXiv:1607.06450).
#[derive(Debug)]
pub struct LayerNorm {
    weight: Parameter,
    bias: Option<Parameter>,
    eps: f32,
}

impl LayerNorm {
    /// `weight` from 1 and `bias` from 0, both `[width]`.
    pub fn new(b: &Builder, width: usize, eps: f32) -> Self {
        Self {
            weight: b.parameter("weight", &[width], Init::Constant(1.0)),
            bias: Some(b.parameter("bias", &[width], Init::Constant(0.0))),
            eps,
        }
    }

    /// The same without a bias.
    pub fn without_bias(b: &Builder, width: usize, eps: f32) -> Self {
        Self { weight: b.parameter("weight", &[width], Init::Constant(1.0)), bias: None, eps }
    }

    /// `[.., width]` in and out.
    ///
    /// # Errors
    /// If the last axis is not `width`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let weight = self.weight.tensor();
        let none = || Tensor::zeros(weight.shape());
        let bias = self.bias.as_ref().map_or_else(none, Parameter::tensor);
        x.layer_norm(&weight, &bias, self.eps)
    }
}
