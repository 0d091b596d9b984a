//! The projector: linear layers from the width of image tokens to that of words.

use crate::Result;
use ocelli_nn::layers::Linear;
use ocelli_nn::{Builder, Init};
use ocelli_tensor::{Activation, Tensor};

/// A projector.
///
/// LLaVA (Liu et al. 2023, arXiv:2304.08485, §4.1) has one matrix, LLaVA-1.5 (arXiv:2310.03744,
/// §3.3) two with an activation between.
#[derive(Debug)]
pub struct Projector {
    layers: Vec<Linear>,
    activation: Activation,
}

impl Projector {
    /// `depth` layers, the first from `width`, all to `outputs`.
    pub fn new(
        b: &Builder,
        width: usize,
        outputs: usize,
        depth: usize,
        has_bias: bool,
        activation: Activation,
    ) -> Self {
        let inputs = |i: usize| if i == 0 { width } else { outputs };
        let layer = |i: usize| {
            let init = Init::Normal((inputs(i) as f32).powf(-0.5));
            Linear::new(&b.at(i), inputs(i), outputs, has_bias, init)
        };
        Self { layers: (0..depth).map(layer).collect(), activation }
    }

    /// What the first layer makes of `[.., width]`, before an activation.
    ///
    /// # Errors
    /// If the last axis is not `width`.
    pub fn first(&self, x: &Tensor) -> Result<Tensor> {
        match self.layers.first() {
            Some(layer) => Ok(layer.forward(x)?),
            None => Ok(x.clone()),
        }
    }

    /// `[.., width]` to `[.., outputs]`.
    ///
    /// # Errors
    /// If the last axis is not `width`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            let is_last = i + 1 == self.layers.len();
            let activation = if is_last { Activation::None } else { self.activation };
            x = layer.forward_with(&x, activation, None)?;
        }
        Ok(x)
    }
}
