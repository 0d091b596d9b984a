//! Multi-head attention to a memory.

use crate::layers::Linear;
use crate::{Builder, Init};
use ocelli_tensor::{Activation, AttentionMask, Heads, Result, Tensor};

/// Multi-head attention whose queries come from one sequence and whose keys and values come from
/// another, the memory, which may have another width (Vaswani et al. 2017, arXiv:1706.03762,
/// §3.2.3).
#[derive(Debug)]
pub struct CrossAttention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    heads: Heads,
}

impl CrossAttention {
    /// Parameters `q` and `out` `[width, width]`, `k` and `v` `[width, memory_width]`, with biases.
    pub fn new(b: &Builder, width: usize, memory_width: usize, heads: usize, init: Init) -> Self {
        let linear = |name: &str, inputs| Linear::new(&b.at(name), inputs, width, true, init);
        Self {
            q: linear("q", width),
            k: linear("k", memory_width),
            v: linear("v", memory_width),
            out: linear("out", width),
            heads: Heads::same(heads),
        }
    }

    /// Keys and values of a memory `[batch, keys, memory_width]`, each `[batch, keys, width]`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn keys_values(&self, memory: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok((self.k.forward(memory)?, self.v.forward(memory)?))
    }

    /// `out(attention(x, keys, values)) + residual` for `x` `[batch, queries, width]`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn attend(
        &self,
        x: &Tensor,
        (keys, values): (&Tensor, &Tensor),
        mask: &AttentionMask,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let mixed = self.q.forward(x)?.attention(keys, values, self.heads, mask)?;
        self.out.forward_with(&mixed, Activation::None, residual)
    }

    /// `out(attention(x, memory)) + residual`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(
        &self,
        x: &Tensor,
        memory: &Tensor,
        mask: &AttentionMask,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (keys, values) = self.keys_values(memory)?;
        self.attend(x, (&keys, &values), mask, residual)
    }
}
