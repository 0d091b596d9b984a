//! GPT-2.
//!
//! Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", §2.3: a decoder whose
//! norms stand before each part, with learned positions, a norm at the end and the word table as
//! head.

use super::causal::{CausalModel, positions};
use crate::Result;
use crate::generate::{BlockCache, Cache, Decoder, Rows};
use ocelli_nn::layers::{LayerNorm, Linear, Mlp, SelfAttention};
use ocelli_nn::{Builder, Init, Name, Names, Parameter, copy, transpose};
use ocelli_tensor::{Activation, AttentionMask, Step, Tensor};
use std::sync::Arc;

/// Sizes of a GPT-2 (Table 2).
#[derive(Clone, Debug, PartialEq)]
pub struct Gpt2Config {
    /// Rows of the word table.
    pub vocab: usize,
    /// Tokens of a text at most.
    pub context_length: usize,
    /// Width of a token.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads of each attention.
    pub heads: usize,
    /// Hidden width of each perceptron.
    pub mlp_dim: usize,
    /// Epsilon of the norms.
    pub norm_eps: f32,
    /// Activation of the perceptrons.
    pub activation: Activation,
}

impl Gpt2Config {
    /// A published size: `"small"`, `"medium"`, `"large"` or `"xl"`.
    pub fn variant(name: &str) -> Option<Self> {
        let (width, depth, heads) = match name {
            "small" => (768, 12, 12),
            "medium" => (1024, 24, 16),
            "large" => (1280, 36, 20),
            "xl" => (1600, 48, 25),
            _ => return None,
        };
        Some(Self {
            vocab: 50_257,
            context_length: 1024,
            width,
            depth,
            heads,
            mlp_dim: 4 * width,
            norm_eps: 1e-5,
            activation: Activation::GeluTanh,
        })
    }
}

/// All weights are drawn from N(0, 0.02).
const INIT: Init = Init::Normal(0.02);

#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    attn: SelfAttention,
    norm2: LayerNorm,
    mlp: Mlp,
}

impl Block {
    fn new(b: &Builder, c: &Gpt2Config) -> Self {
        // What adds to the residual stream is drawn smaller the more blocks there are.
        let out = Init::Normal(0.02 / ((2 * c.depth) as f32).sqrt());
        Self {
            norm1: LayerNorm::new(&b.at("norm1"), c.width, c.norm_eps),
            attn: SelfAttention::new(&b.at("attn"), c.width, c.heads, INIT, out),
            norm2: LayerNorm::new(&b.at("norm2"), c.width, c.norm_eps),
            mlp: Mlp::new(&b.at("mlp"), c.width, c.mlp_dim, c.activation, INIT, out),
        }
    }

    /// `[batch, tokens, width]` in and out.
    fn forward(&self, x: &Tensor, mask: &AttentionMask) -> Result<Tensor> {
        let x = self.attn.forward(&self.norm1.forward(x)?, mask, Some(x))?;
        Ok(self.mlp.forward(&self.norm2.forward(&x)?, Some(&x))?)
    }

    /// The same for new tokens of a text.
    fn step(&self, x: &Tensor, step: &Step, cache: &mut BlockCache) -> Result<Tensor> {
        let x = self.attn.step(&self.norm1.forward(x)?, &mut cache.own, step, Some(x))?;
        Ok(self.mlp.forward(&self.norm2.forward(&x)?, Some(&x))?)
    }
}

/// GPT-2.
#[derive(Debug)]
pub struct Gpt2 {
    config: Gpt2Config,
    word: Parameter,
    position: Parameter,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Linear,
}

impl Gpt2 {
    /// A model whose parameters come from `b`.
    pub fn new(config: &Gpt2Config, b: &Builder) -> Self {
        let c = config;
        let word = b.parameter("word", &[c.vocab, c.width], INIT);
        Self {
            position: b.parameter("position", &[c.context_length, c.width], Init::Normal(0.01)),
            blocks: (0..c.depth).map(|i| Block::new(&b.at("blocks").at(i), c)).collect(),
            norm: LayerNorm::new(&b.at("norm"), c.width, c.norm_eps),
            head: Linear::from_parts(word.clone(), None),
            word,
            config: config.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &Gpt2Config {
        &self.config
    }

    /// `[batch, tokens, width]` with positions.
    fn placed(&self, embeddings: &Tensor, positions: &Arc<[u32]>) -> Result<Tensor> {
        let [batch, tokens] = [0, 1].map(|axis| embeddings.shape().get(axis).copied().unwrap_or(1));
        let table = self.position.tensor();
        Ok(embeddings.add(&table.embedding(positions, &[batch, tokens])?)?)
    }
}

impl Decoder for Gpt2 {
    fn context_length(&self) -> Option<usize> {
        Some(self.config.context_length)
    }

    fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        Ok(self.word.tensor().embedding(&ids.into(), &[ids.len()])?)
    }

    fn advance(&self, rows: &Rows, cache: &mut Cache) -> Result<Tensor> {
        let mut x = self.placed(&rows.embeddings, &rows.positions(&cache.lens()))?;
        for (block, cache) in self.blocks.iter().zip(cache.blocks_mut()) {
            x = block.step(&x, &rows.causal_step(), cache)?;
        }
        self.logits(&self.norm.forward(&rows.last(&x)?)?)
    }
}

impl CausalModel for Gpt2 {
    fn features(&self, embeddings: &Tensor, mask: Option<&Arc<[u8]>>) -> Result<Tensor> {
        let mask = AttentionMask { keys: mask.cloned(), ..AttentionMask::causal() };
        let mut x = self.placed(embeddings, &positions(embeddings))?;
        for block in &self.blocks {
            x = block.forward(&x, &mask)?;
        }
        Ok(self.norm.forward(&x)?)
    }

    fn logits(&self, features: &Tensor) -> Result<Tensor> {
        Ok(self.head.forward(features)?)
    }

    fn new_cache(&self, batch: usize) -> Cache {
        let heads = self.config.heads;
        Cache::empty(batch, self.config.depth, heads, self.config.width / heads.max(1))
    }
}

/// transformers `GPT2LMHeadModel`; `~` is `transformer.` or nothing.
pub const TRANSFORMERS: &[Name] = &[
    copy("word", "~wte.weight"),
    copy("position", "~wpe.weight"),
    copy("blocks.*.norm1.*", "~h.*.ln_1.*"),
    transpose("blocks.*.attn.qkv.weight", "~h.*.attn.c_attn.weight", 1),
    copy("blocks.*.attn.qkv.bias", "~h.*.attn.c_attn.bias"),
    transpose("blocks.*.attn.out.weight", "~h.*.attn.c_proj.weight", 1),
    copy("blocks.*.attn.out.bias", "~h.*.attn.c_proj.bias"),
    copy("blocks.*.norm2.*", "~h.*.ln_2.*"),
    transpose("blocks.*.mlp.up.weight", "~h.*.mlp.c_fc.weight", 1),
    copy("blocks.*.mlp.up.bias", "~h.*.mlp.c_fc.bias"),
    transpose("blocks.*.mlp.down.weight", "~h.*.mlp.c_proj.weight", 1),
    copy("blocks.*.mlp.down.bias", "~h.*.mlp.c_proj.bias"),
    copy("norm.*", "~ln_f.*"),
];

/// Name map of a file; `prefix` is `"transformer."` or `""`.
pub fn names(prefix: &str) -> Names {
    // The causal masks of old files, and the word table again.
    let ignored = &["h.*.attn.bias", "h.*.attn.masked_bias", "lm_head.weight"];
    Names::family(TRANSFORMERS, ignored).with_prefix(prefix)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::*;

    #[test]
    fn published_sizes_have_their_parameters() {
        for (name, parameters) in [
            ("small", 124_439_808),
            ("medium", 354_823_168),
            ("large", 774_030_080),
            ("xl", 1_557_611_200),
        ] {
            let b = Builder::zeros();
            let _model = Gpt2::new(&Gpt2Config::variant(name).unwrap(), &b);
            assert_eq!(b.finish().unwrap().elements(), parameters, "{name}");
        }
        assert!(Gpt2Config::variant("nano").is_none());
    }
}
