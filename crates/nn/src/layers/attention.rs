//! Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762, §3.2.2).

use crate::layers::{Dropout, Linear};
use crate::{Builder, Init};
use ocelli_tensor::{Activation, Angles, AttentionMask, Heads, KeyValues, Result, Step, Tensor};

/// Self-attention with one fused projection to queries, keys and values.
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
        self.forward_dropping(x, mask, residual, Dropout::default())
    }

    /// The same with dropout behind the last projection.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward_dropping(
        &self,
        x: &Tensor,
        mask: &AttentionMask,
        residual: Option<&Tensor>,
        dropout: Dropout,
    ) -> Result<Tensor> {
        let qkv = self.qkv.forward(x)?; // [batch, tokens, 3 width]
        // [batch, tokens, width]
        let mixed = qkv.self_attention_in(self.qkv.narrow(), self.heads, mask)?;
        self.out.forward_dropping(&mixed, Activation::None, residual, dropout)
    }

    /// The same for new tokens, whose keys and values join those of the tokens before them.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn step(
        &self,
        x: &Tensor,
        past: &mut KeyValues,
        step: &Step,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let qkv = self.qkv.forward(x)?; // [batch, tokens, 3 width]
        let width = qkv.shape().last_axis() / 3;
        let part = |i: usize| qkv.narrow(2, i * width, width);
        past.push(&part(1)?, &part(2)?, step.lens)?;
        let mixed = past.attend(&part(0)?, self.heads, step)?; // [batch, tokens, width]
        self.out.forward_with(&mixed, Activation::None, residual)
    }
}

/// Sizes of an [`Attention`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionSizes {
    /// Width of the tokens that ask, and of the result.
    pub width: usize,
    /// Width of the tokens that are asked.
    pub memory_width: usize,
    /// Heads; keys and values may have fewer (Ainslie et al. 2023, arXiv:2305.13245).
    pub heads: Heads,
    /// Values per head.
    pub head_dim: usize,
    /// Whether the projections to queries, keys and values have biases.
    pub has_bias: bool,
    /// Whether the last projection has one.
    pub has_out_bias: bool,
}

/// The angles that queries and keys are turned by.
#[derive(Clone, Copy, Debug)]
pub struct Turns<'a> {
    /// Of the queries.
    pub queries: &'a Angles,
    /// Of the keys.
    pub keys: &'a Angles,
}

impl<'a> From<&'a Angles> for Turns<'a> {
    fn from(angles: &'a Angles) -> Self {
        Self { queries: angles, keys: angles }
    }
}

/// Attention with a projection each for queries, keys and values: to the sequence itself, or to
/// another one, the memory.
#[derive(Debug)]
pub struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    sizes: AttentionSizes,
}

impl Attention {
    /// Parameters `q` `[heads head_dim, width]`, `k` and `v` `[kv_heads head_dim, memory_width]`,
    /// and `out` `[width, heads head_dim]`; `init` draws the first three, `init_out` the last.
    pub fn new(b: &Builder, sizes: AttentionSizes, init: Init, init_out: Init) -> Self {
        let s = sizes;
        let linear = |name: &str, inputs, heads| {
            Linear::new(&b.at(name), inputs, heads * s.head_dim, s.has_bias, init)
        };
        let mixed = s.heads.heads * s.head_dim;
        let layers = [
            linear("q", s.width, s.heads.heads),
            linear("k", s.memory_width, s.heads.kv_heads),
            linear("v", s.memory_width, s.heads.kv_heads),
            Linear::new(&b.at("out"), mixed, s.width, s.has_out_bias, init_out),
        ];
        Self::from_parts(layers, s)
    }

    /// With changes of low rank to the projections `on`, by their names.
    #[must_use]
    pub fn with_lora(self, b: &Builder, rank: usize, scale: f32, on: &[&str]) -> Self {
        let changed = |layer: Linear, name: &str| {
            if on.contains(&name) { layer.with_lora(&b.at(name), rank, scale) } else { layer }
        };
        Self {
            q: changed(self.q, "q"),
            k: changed(self.k, "k"),
            v: changed(self.v, "v"),
            out: changed(self.out, "out"),
            sizes: self.sizes,
        }
    }

    /// From layers that exist: `q`, `k`, `v` and `out`.
    pub fn from_parts([q, k, v, out]: [Linear; 4], sizes: AttentionSizes) -> Self {
        Self { q, k, v, out, sizes }
    }

    /// Attention to a memory of another width, with biases.
    pub fn to_memory(
        b: &Builder,
        width: usize,
        memory_width: usize,
        heads: usize,
        init: Init,
    ) -> Self {
        let sizes = AttentionSizes {
            width,
            memory_width,
            heads: Heads::same(heads),
            head_dim: width / heads.max(1),
            has_bias: true,
            has_out_bias: true,
        };
        Self::new(b, sizes, init, init)
    }

    /// Keys and values of a memory `[batch, keys, memory_width]`, each
    /// `[batch, keys, kv_heads head_dim]`.
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
        let mixed = self.q.forward(x)?.attention(keys, values, self.sizes.heads, mask)?;
        self.out.forward_with(&mixed, Activation::None, residual)
    }

    /// `out(attention(x, memory)) + residual`; the memory of self-attention is `x`.
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

    /// `out(attention(x, keys of one memory, values of another))`, such as keys that carry positions.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward_apart(
        &self,
        x: &Tensor,
        key_memory: &Tensor,
        value_memory: &Tensor,
        mask: &AttentionMask,
    ) -> Result<Tensor> {
        let (keys, values) = (self.k.forward(key_memory)?, self.v.forward(value_memory)?);
        self.attend(x, (&keys, &values), mask, None)
    }

    /// Self-attention whose queries and keys are turned by the angles of their positions.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward_rotary(
        &self,
        x: &Tensor,
        turns: Turns,
        mask: &AttentionMask,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let heads = self.sizes.heads;
        let (keys, values) = self.keys_values(x)?;
        let keys = keys.rotate(turns.keys, heads.kv_heads)?;
        let queries = self.q.forward(x)?.rotate(turns.queries, heads.heads)?;
        let mixed = queries.attention(&keys, &values, heads, mask)?;
        self.out.forward_with(&mixed, Activation::None, residual)
    }

    /// Self-attention of new tokens, whose keys and values join those of the tokens before them;
    /// `turns` turn queries and keys, if given.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn step(
        &self,
        x: &Tensor,
        past: &mut KeyValues,
        turns: Option<Turns>,
        step: &Step,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let heads = self.sizes.heads;
        let (mut keys, values) = self.keys_values(x)?;
        let mut queries = self.q.forward(x)?;
        if let Some(turns) = turns {
            keys = keys.rotate(turns.keys, heads.kv_heads)?;
            queries = queries.rotate(turns.queries, heads.heads)?;
        }
        past.push(&keys, &values, step.lens)?;
        let mixed = past.attend(&queries, heads, step)?;
        self.out.forward_with(&mixed, Activation::None, residual)
    }

    /// An empty cache for this layer.
    pub fn cache(&self, batch: usize) -> KeyValues {
        KeyValues::new(batch, self.sizes.heads.kv_heads, self.sizes.head_dim)
    }

    /// Keys and values of the first `lens[i]` tokens of each memory, kept for [`Attention::recall`].
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn remember(&self, memory: &Tensor, lens: &[usize]) -> Result<KeyValues> {
        let (keys, values) = self.keys_values(memory)?;
        let mut kept = self.cache(lens.len());
        kept.push(&keys, &values, lens)?;
        Ok(kept)
    }

    /// Attention to a memory whose keys and values were kept.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn recall(
        &self,
        x: &Tensor,
        memory: &KeyValues,
        step: &Step,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let mixed = memory.attend(&self.q.forward(x)?, self.sizes.heads, step)?;
        self.out.forward_with(&mixed, Activation::None, residual)
    }
}
