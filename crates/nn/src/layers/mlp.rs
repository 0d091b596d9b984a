//! The two-layer perceptron of a transformer block.

use crate::layers::{Dropout, Linear};
use crate::{Builder, Init};
use ocelli_tensor::{Activation, Result, Tensor};

/// `down(activation(up(x)))`.
#[derive(Debug)]
pub struct Mlp {
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl Mlp {
    /// Parameters `up` `[hidden, width]` and `down` `[width, hidden]`, with biases.
    pub fn new(
        b: &Builder,
        width: usize,
        hidden: usize,
        activation: Activation,
        init_up: Init,
        init_down: Init,
    ) -> Self {
        Self {
            up: Linear::new(&b.at("up"), width, hidden, true, init_up),
            down: Linear::new(&b.at("down"), hidden, width, true, init_down),
            activation,
        }
    }

    /// `down(activation(up(x))) + residual`; `[.., width]` in and out.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        self.forward_dropping(x, residual, Dropout::default())
    }

    /// The same with dropout behind both layers.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward_dropping(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
        dropout: Dropout,
    ) -> Result<Tensor> {
        let hidden = self.up.forward_dropping(x, self.activation, None, dropout)?; // [.., hidden]
        self.down.forward_dropping(&hidden, Activation::None, residual, dropout)
    }
}
