//! The linear layer.

use crate::layers::Dropout;
use crate::{Builder, Init, Parameter};
use ocelli_tensor::{Activation, LinearOptions, Narrow, PackedWeight, Result, Tensor};
use std::sync::Mutex;

/// `y = x Wᵀ + b`. Outside of training the weight is packed for the kernels, which then hold the only
/// copy in memory. One of f32 is packed when it is used again: a program that looks at one picture would
/// write all weights for nothing.
#[derive(Debug)]
pub struct Linear {
    weight: Parameter,
    bias: Option<Parameter>,
    lora: Option<Box<Lora>>,
    /// The version of the values that were used last, and the packed weight that was made of them.
    packed: Mutex<Option<(u64, Option<PackedWeight>)>>,
}

impl Linear {
    /// `weight` `[outputs, inputs]` drawn by `init`, `bias` `[outputs]` from 0.
    pub fn new(b: &Builder, inputs: usize, outputs: usize, has_bias: bool, init: Init) -> Self {
        let weight = b.weight("weight", &[outputs, inputs], init);
        let bias = has_bias.then(|| b.parameter("bias", &[outputs], Init::Constant(0.0)));
        Self::from_parts(weight, bias)
    }

    /// A layer of patches: `weight` `[outputs, inputs kernel kernel]`, of filters in files, drawn by
    /// `init`, `bias` `[outputs]` from 0.
    pub fn of_patches(
        b: &Builder,
        [inputs, outputs]: [usize; 2],
        kernel: usize,
        has_bias: bool,
        init: Init,
    ) -> Self {
        let weight = b.filters("weight", [outputs, inputs], (kernel, kernel), init);
        let bias = has_bias.then(|| b.parameter("bias", &[outputs], Init::Constant(0.0)));
        Self::from_parts(weight, bias)
    }

    /// From parameters that exist.
    pub fn from_parts(weight: Parameter, bias: Option<Parameter>) -> Self {
        Self { weight, bias, lora: None, packed: Mutex::new(None) }
    }

    /// With a change of low rank to the weight (Hu et al. 2021, arXiv:2106.09685, Eq. 3):
    /// `lora_a` `[rank, inputs]` and `lora_b` `[outputs, rank]`, whose product counts `scale` times.
    #[must_use]
    pub fn with_lora(self, b: &Builder, rank: usize, scale: f32) -> Self {
        let shape = self.weight.tensor().shape().to_vec();
        let (outputs, inputs) = (shape[0], shape[1]);
        let down = Init::Uniform((inputs as f32).powf(-0.5));
        let a = b.parameter("lora_a", &[rank, inputs], down);
        let up = b.parameter("lora_b", &[outputs, rank], Init::Constant(0.0));
        let lora = Lora { a: Self::from_parts(a, None), b: Self::from_parts(up, None), scale };
        Self { lora: Some(Box::new(lora)), ..self }
    }

    /// `[.., inputs]` to `[.., outputs]`.
    ///
    /// # Errors
    /// If the last axis is not `inputs`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, Activation::None, None)
    }

    /// `activation(x Wᵀ + b) + residual`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward_with(
        &self,
        x: &Tensor,
        activation: Activation,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        if let Some(lora) = &self.lora {
            let change = lora.b.forward(&lora.a.forward(x)?)?.scale(lora.scale)?;
            let y = self.of_weight(x, Activation::None, Some(&change))?.activate(activation)?;
            return residual.map_or(Ok(y.clone()), |residual| y.add(residual));
        }
        self.of_weight(x, activation, residual)
    }

    /// `dropout(activation(x Wᵀ + b)) + residual`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward_dropping(
        &self,
        x: &Tensor,
        activation: Activation,
        residual: Option<&Tensor>,
        dropout: Dropout,
    ) -> Result<Tensor> {
        if dropout.is_off() {
            return self.forward_with(x, activation, residual);
        }
        let y = self.forward_with(x, activation, None)?;
        dropout.forward(&y, self.weight.name(), residual)
    }

    /// [`Linear::forward_with`] without a change of low rank.
    fn of_weight(
        &self,
        x: &Tensor,
        activation: Activation,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let weight = self.weight.tensor();
        let bias = self.bias.as_ref().map(Parameter::tensor);
        let mut options =
            LinearOptions { bias: bias.as_ref(), activation, residual, in_bf16: false };
        let tracked = |t: Option<&Tensor>| t.is_some_and(Tensor::is_tracked);
        if x.is_tracked() || weight.is_tracked() || tracked(bias.as_ref()) || tracked(residual) {
            options.in_bf16 = self.weight.narrow() == Some(Narrow::Bf16);
            return x.linear_with(&weight, options);
        }
        match self.packed(&weight)? {
            Some(packed) => x.linear_packed(&packed, options),
            None => x.linear_with(&weight, options),
        }
    }

    /// What the operands of the product are rounded to, if they are.
    pub(crate) fn narrow(&self) -> Option<Narrow> {
        self.weight.narrow()
    }

    /// The packed weight, unless it is one of f32 that is used for the first time.
    fn packed(&self, weight: &Tensor) -> Result<Option<PackedWeight>> {
        let version = self.weight.version();
        let mut slot = self.packed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let narrow = self.narrow();
        let is_used = match &*slot {
            Some((made, packed)) if *made == version => {
                if packed.is_some() {
                    return Ok(packed.clone());
                }
                true
            }
            _ => narrow.is_some() || weight.block_kind().is_some(),
        };
        let packed = if is_used { Some(PackedWeight::new(weight, narrow)?) } else { None };
        *slot = Some((version, packed.clone()));
        if packed.is_some() {
            self.weight.rest();
        }
        Ok(packed)
    }
}

/// A change of low rank.
#[derive(Debug)]
struct Lora {
    a: Linear,
    b: Linear,
    scale: f32,
}
