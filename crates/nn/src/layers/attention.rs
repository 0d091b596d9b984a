//! Multi-head self-attention.

use crate::layers::Linear;
use crate::{Builder, Init};
use ocelli_tensor::{AttentionMask, Heads, Result, Tensor};

/// Multi-head self-attention (Vaswani et al. 2017, arXiv:1706.03762, §3.2.2) with one fused
/// projection to queries, keys and values.
#[derive(Debug)]
pub struct SelfAttention {
    qkv: Linear,
    out: Linear,
    heads: Heads,
}

impl SelfAttention {
    /// Parameters `qkv` `[3 width, width]` and `out` `[width, width]`, with biases; `init` draws
    /// the first, `init_out` the second.
    pub fn new(b: &Builder, width: usize, heads: usize, init: Init, init_out: Init) -> Self {
        Self::with_bias(b, width, heads, true, init, init_out)
    }

    /// The same where the first projection may lack its bias.
    pub fn with_bias(
        b: &Builder,
        width: usize,
        heads: usize,
        qkv_bias: bool,
        init: Init,
        init_out: Init,
    ) -> Self {
        Self {
            qkv: Linear::new(&b.at("qkv"), width, 3 * width, qkv_bias, init),
            out: Linear::new(&b.at("out"), width, width, true, init_out),
            heads: Heads::same(heads),
        }
    }

    /// `out(attention(x)) + residual`; `[batch, tokens, width]` in and out.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(
        &self,
        x: &Tensor,
        mask: &AttentionMask,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let qkv = self.qkv.forward(x)?; // [batch, tokens, 3 width]
        let mixed = qkv.self_attention(self.heads, mask)?; // [batch, tokens, width]
        self.out.forward_with(&mixed, ocelli_tensor::Activation::None, residual)
    }
}
