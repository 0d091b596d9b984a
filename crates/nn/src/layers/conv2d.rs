//! Convolution.

use crate::{Builder, Init, Parameter};
use ocelli_tensor::{PicturePadding, Result, Tensor};

/// A convolution of pictures without bias, as in front of every norm; optionally with filters of
/// mean 0 and variance 1 (Qiao et al. 2019, arXiv:1903.10520).
#[derive(Debug)]
pub struct Conv2d {
    weight: Parameter,
    stride: usize,
    padding: PicturePadding,
    /// Added to the variance of the filters, if they are standardised.
    standardise_eps: Option<f32>,
}

impl Conv2d {
    /// `weight` `[outputs, inputs, kernel, kernel]`, uniform within ±(inputs kernel²)^-1/2.
    pub fn new(
        b: &Builder,
        inputs: usize,
        outputs: usize,
        kernel: usize,
        stride: usize,
        padding: PicturePadding,
    ) -> Self {
        let init = Init::Uniform(1.0 / ((inputs * kernel * kernel) as f32).sqrt());
        let weight = b.parameter("weight", &[outputs, inputs, kernel, kernel], init);
        Self { weight, stride, padding, standardise_eps: None }
    }

    /// The same with standardised filters.
    #[must_use]
    pub fn standardised(self, eps: f32) -> Self {
        Self { standardise_eps: Some(eps), ..self }
    }

    /// `[batch, inputs, img_h, img_w]` to `[batch, outputs, grid_h, grid_w]`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut weight = self.weight.tensor();
        if let Some(eps) = self.standardise_eps {
            weight = weight.standardise_filters(eps)?;
        }
        x.conv2d(&weight, None, self.stride, self.padding)
    }
}
