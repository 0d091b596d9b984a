//! Attention to a memory whose keys and values come from one projection.

use crate::layers::Linear;
use crate::{Builder, Init};
use ocelli_tensor::{AttentionMask, Heads, KeyValues, Result, Step, Tensor};

/// Sizes of a [`MemoryAttention`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryAttentionSizes {
    /// Width of the tokens that ask, and of the result.
    pub width: usize,
    /// Width of the tokens that are asked.
    pub memory_width: usize,
    /// Heads.
    pub heads: usize,
    /// Values per head.
    pub head_dim: usize,
}

/// Attention without biases to another sequence, the memory.
#[derive(Debug)]
pub struct MemoryAttention {
    q: Linear,
    kv: Linear,
    out: Linear,
    sizes: MemoryAttentionSizes,
}

impl MemoryAttention {
    /// Parameters `q` `[heads head_dim, width]`, `kv` `[2 heads head_dim, memory_width]`, keys first,
    /// and `out` `[width, heads head_dim]`.
    pub fn new(b: &Builder, sizes: MemoryAttentionSizes, init: Init) -> Self {
        let inner = sizes.heads * sizes.head_dim;
        let linear = |name, inputs, outputs| Linear::new(&b.at(name), inputs, outputs, false, init);
        Self {
            q: linear("q", sizes.width, inner),
            kv: linear("kv", sizes.memory_width, 2 * inner),
            out: linear("out", inner, sizes.width),
            sizes,
        }
    }

    fn heads(&self) -> Heads {
        Heads::same(self.sizes.heads)
    }

    /// Keys and values of a memory `[batch, keys, memory_width]`, each
    /// `[batch, keys, heads head_dim]`.
    fn keys_values(&self, memory: &Tensor) -> Result<[Tensor; 2]> {
        let inner = self.sizes.heads * self.sizes.head_dim;
        let kv = self.kv.forward(memory)?; // [batch, keys, 2 heads head_dim]
        Ok([kv.narrow(2, 0, inner)?, kv.narrow(2, inner, inner)?])
    }

    /// `out(attention(x, memory))` for `x` `[batch, queries, width]`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(&self, x: &Tensor, memory: &Tensor, mask: &AttentionMask) -> Result<Tensor> {
        let [keys, values] = self.keys_values(memory)?;
        self.out.forward(&self.q.forward(x)?.attention(&keys, &values, self.heads(), mask)?)
    }

    /// Keys and values of the first `lens[i]` tokens of each memory, kept for
    /// [`MemoryAttention::recall`].
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn remember(&self, memory: &Tensor, lens: &[usize]) -> Result<KeyValues> {
        let [keys, values] = self.keys_values(memory)?;
        let mut kept = KeyValues::new(lens.len(), self.sizes.heads, self.sizes.head_dim);
        kept.push(&keys, &values, lens)?;
        Ok(kept)
    }

    /// Attention of new tokens to a memory whose keys and values were kept.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn recall(&self, x: &Tensor, memory: &KeyValues, step: &Step) -> Result<Tensor> {
        self.out.forward(&memory.attend(&self.q.forward(x)?, self.heads(), step)?)
    }
}
