//! Root mean square normalisation.

use crate::{Builder, Init, Parameter};
use ocelli_tensor::{Result, Tensor};

/// Normalisation by the root mean square of the last axis (Zhang and Sennrich 2019,
/// arXiv:1910.07467).
#[derive(Debug)]
pub struct RmsNorm {
    weight: Parameter,
    eps: f32,
}

impl RmsNorm {
    /// `weight` `[width]` from 1.
    pub fn new(b: &Builder, width: usize, eps: f32) -> Self {
        Self { weight: b.parameter("weight", &[width], Init::Constant(1.0)), eps }
    }

    /// `[.., width]` in and out.
    ///
    /// # Errors
    /// If the last axis is not `width`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.rms_norm(&self.weight.tensor(), self.eps)
    }
}
