//! The perceptron with a gate.

use crate::layers::Linear;
use crate::{Builder, Init};
use ocelli_tensor::{Activation, Result, Tensor};

/// `down(activation(gate(x)) * up(x))` (Shazeer 2020, arXiv:2002.05202, Eq. 6).
#[derive(Debug)]
pub struct GatedMlp {
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl GatedMlp {
    /// Parameters `gate` and `up` `[hidden, width]`, `down` `[width, hidden]`, without biases.
    pub fn new(
        b: &Builder,
        width: usize,
        hidden: usize,
        activation: Activation,
        init_up: Init,
        init_down: Init,
    ) -> Self {
        Self {
            gate: Linear::new(&b.at("gate"), width, hidden, false, init_up),
            up: Linear::new(&b.at("up"), width, hidden, false, init_up),
            down: Linear::new(&b.at("down"), hidden, width, false, init_down),
            activation,
        }
    }

    /// With changes of low rank to the layers `on`, by their names.
    #[must_use]
    pub fn with_lora(self, b: &Builder, rank: usize, scale: f32, on: &[&str]) -> Self {
        let changed = |layer: Linear, name: &str| {
            if on.contains(&name) { layer.with_lora(&b.at(name), rank, scale) } else { layer }
        };
        Self {
            gate: changed(self.gate, "gate"),
            up: changed(self.up, "up"),
            down: changed(self.down, "down"),
            activation: self.activation,
        }
    }

    /// `down(activation(gate(x)) * up(x)) + residual`; `[.., width]` in and out.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let gate = self.gate.forward_with(x, self.activation, None)?; // [.., hidden]
        let hidden = gate.mul(&self.up.forward(x)?)?;
        self.down.forward_with(&hidden, Activation::None, residual)
    }
}
