//! MPT: the language model of OpenFlamingo-3B and -9B.
//!
//! MosaicML 2023, "Introducing MPT-7B"; a decoder without biases whose scores fall with the distance
//! of tokens instead of positions (ALiBi; Press et al. 2022, arXiv:2108.12409, §3). The first of the
//! line, `MosaicGPT` (`mpt-1b-redpajama-200b`), norms queries and keys too (Dehghani et al. 2023,
//! arXiv:2302.05442, §2), over all heads together.

use super::causal::{Before, CausalModel, Interleaved, StepBefore};
use crate::Result;
use crate::generate::{BlockCache, Cache, Decoder, Rows};
use ocelli_nn::layers::{LayerNorm, Linear};
use ocelli_nn::{Builder, Init, Name, Names, Parameter, copy};
use ocelli_tensor::{Activation, AttentionMask, Heads, Step, Tensor};
use std::sync::Arc;

/// Sizes of an MPT.
#[derive(Clone, Debug, PartialEq)]
pub struct MptConfig {
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
    /// The slope of the last head, if heads are a power of two, is one over two to the power of this.
    pub alibi_max: f32,
    /// Whether queries and keys are normed.
    pub has_query_key_norm: bool,
}

impl MptConfig {
    /// A published size: `"1b"`, `"7b"` or `"30b"`.
    pub fn variant(name: &str) -> Option<Self> {
        let (width, depth, heads, context_length) = match name {
            "1b" => (2048, 24, 16, 2048),
            "7b" => (4096, 32, 32, 2048),
            "30b" => (7168, 48, 64, 8192),
            _ => return None,
        };
        let is_first = name == "1b";
        Some(Self {
            vocab: if is_first { 50_368 } else { 50_432 },
            context_length,
            width,
            depth,
            heads,
            mlp_dim: 4 * width,
            norm_eps: 1e-5,
            alibi_max: 8.0,
            has_query_key_norm: is_first,
        })
    }

    /// How fast the scores of each head fall with the distance.
    fn slopes(&self) -> Vec<f32> {
        let power = self.heads.next_power_of_two();
        let slope = |i: usize| 0.5_f32.powf((i + 1) as f32 * self.alibi_max / power as f32);
        if power == self.heads {
            return (0..power).map(slope).collect();
        }
        // Every other slope of the next power of two, then those left out.
        (1..power).step_by(2).chain((0..power).step_by(2)).take(self.heads).map(slope).collect()
    }

    /// What is added to the scores, `[rows, heads, tokens, keys]`, for `tokens` tokens of each row at
    /// positions from `past[row]`. It is the same for a token alone as in a prompt.
    fn alibi(&self, past: &[usize], tokens: usize, keys: usize) -> Result<Tensor> {
        let slopes = self.slopes();
        let mut bias = Vec::with_capacity(past.len() * slopes.len() * tokens * keys);
        for past in past {
            for slope in &slopes {
                for token in 0..tokens {
                    let at = (past + token) as f32;
                    bias.extend((0..keys).map(|key| slope * (key as f32 - at)));
                }
            }
        }
        Ok(Tensor::from_slice(&bias, &[past.len(), slopes.len(), tokens, keys])?)
    }
}

/// All weights are drawn from N(0, 0.02).
const INIT: Init = Init::Normal(0.02);

#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    /// Of queries and of keys, if they are normed.
    query_key_norms: Option<[LayerNorm; 2]>,
    out: Linear,
    norm2: LayerNorm,
    up: Linear,
    down: Linear,
    heads: usize,
}

impl Block {
    fn new(b: &Builder, c: &MptConfig) -> Self {
        let linear = |part: &str, name, inputs, outputs| {
            Linear::new(&b.at(part).at(name), inputs, outputs, false, INIT)
        };
        let attn = b.at("attn");
        let norms = || {
            ["q_norm", "k_norm"]
                .map(|name| LayerNorm::without_bias(&attn.at(name), c.width, c.norm_eps))
        };
        Self {
            norm1: LayerNorm::without_bias(&b.at("norm1"), c.width, c.norm_eps),
            query_key_norms: c.has_query_key_norm.then(norms),
            qkv: linear("attn", "qkv", c.width, 3 * c.width),
            out: linear("attn", "out", c.width, c.width),
            norm2: LayerNorm::without_bias(&b.at("norm2"), c.width, c.norm_eps),
            up: linear("mlp", "up", c.width, c.mlp_dim),
            down: linear("mlp", "down", c.mlp_dim, c.width),
            heads: c.heads,
        }
    }

    /// Queries, keys and values of `x`, `[batch, tokens, 3 width]`.
    fn query_key_values(&self, x: &Tensor) -> Result<Tensor> {
        let qkv = self.qkv.forward(&self.norm1.forward(x)?)?;
        let Some([q_norm, k_norm]) = &self.query_key_norms else { return Ok(qkv) };
        let width = qkv.shape().last_axis() / 3;
        let part = |i: usize| qkv.narrow(2, i * width, width);
        let (q, k) = (q_norm.forward(&part(0)?)?, k_norm.forward(&part(1)?)?);
        Ok(Tensor::cat(&[&q, &k, &part(2)?], 2)?)
    }

    /// `[batch, tokens, width]` in and out; `attend` mixes queries, keys and values
    /// `[batch, tokens, 3 width]`.
    fn around(
        &self,
        x: &Tensor,
        attend: impl FnOnce(&Tensor) -> ocelli_tensor::Result<Tensor>,
    ) -> Result<Tensor> {
        let mixed = attend(&self.query_key_values(x)?)?; // [batch, tokens, width]
        let x = self.out.forward_with(&mixed, Activation::None, Some(x))?;
        let hidden = self.up.forward_with(&self.norm2.forward(&x)?, Activation::Gelu, None)?;
        Ok(self.down.forward_with(&hidden, Activation::None, Some(&x))?)
    }

    fn forward(&self, x: &Tensor, mask: &AttentionMask) -> Result<Tensor> {
        self.around(x, |qkv| qkv.self_attention(Heads::same(self.heads), mask))
    }

    /// The same for new tokens of a text.
    fn step(&self, x: &Tensor, step: &Step, cache: &mut BlockCache) -> Result<Tensor> {
        self.around(x, |qkv| {
            let width = qkv.shape().last_axis() / 3;
            let part = |i: usize| qkv.narrow(2, i * width, width);
            cache.own.push(&part(1)?, &part(2)?, step.lens)?;
            cache.own.attend(&part(0)?, Heads::same(self.heads), step)
        })
    }
}

/// MPT.
#[derive(Debug)]
pub struct Mpt {
    config: MptConfig,
    word: Parameter,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Linear,
}

impl Mpt {
    /// A model whose parameters come from `b`.
    pub fn new(config: &MptConfig, b: &Builder) -> Self {
        let c = config;
        let word = b.parameter("word", &[c.vocab, c.width], INIT);
        Self {
            blocks: (0..c.depth).map(|i| Block::new(&b.at("blocks").at(i), c)).collect(),
            norm: LayerNorm::without_bias(&b.at("norm"), c.width, c.norm_eps),
            head: Linear::from_parts(word.clone(), None),
            word,
            config: config.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &MptConfig {
        &self.config
    }
}

impl Decoder for Mpt {
    fn context_length(&self) -> Option<usize> {
        Some(self.config.context_length)
    }

    fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        Ok(self.word.tensor().embedding(&ids.into(), &[ids.len()])?)
    }

    fn advance(&self, rows: &Rows, cache: &mut Cache) -> Result<Tensor> {
        self.advance_between(rows, cache, &|_, x, _| Ok(x))
    }
}

impl CausalModel for Mpt {
    fn features(&self, embeddings: &Tensor, mask: Option<&Arc<[u8]>>) -> Result<Tensor> {
        self.features_between(embeddings, mask, &|_, x| Ok(x))
    }

    fn logits(&self, features: &Tensor) -> Result<Tensor> {
        Ok(self.head.forward(features)?)
    }

    fn new_cache(&self, batch: usize) -> Cache {
        let heads = self.config.heads;
        Cache::empty(batch, self.config.depth, heads, self.config.width / heads.max(1))
    }
}

impl Interleaved for Mpt {
    fn depth(&self) -> usize {
        self.config.depth
    }

    fn width(&self) -> usize {
        self.config.width
    }

    fn features_between(
        &self,
        embeddings: &Tensor,
        mask: Option<&Arc<[u8]>>,
        before: &Before,
    ) -> Result<Tensor> {
        let tokens = embeddings.shape().get(1).copied().unwrap_or(1);
        let bias = Some(self.config.alibi(&[0], tokens, tokens)?);
        let mask = AttentionMask { keys: mask.cloned(), bias, ..AttentionMask::causal() };
        let mut x = embeddings.clone();
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&before(i, x)?, &mask)?;
        }
        Ok(self.norm.forward(&x)?)
    }

    fn advance_between(
        &self,
        rows: &Rows,
        cache: &mut Cache,
        before: &StepBefore,
    ) -> Result<Tensor> {
        let mut past = cache.lens();
        let keys = past.iter().zip(&rows.lens).map(|(past, new)| past + new).max().unwrap_or(0);
        // Rows of one length share what is added.
        if past.iter().all(|p| *p == past[0]) {
            past.truncate(1);
        }
        let tokens = rows.embeddings.shape().get(1).copied().unwrap_or(1);
        let bias = self.config.alibi(&past, tokens, keys)?;
        let step = Step { bias: Some(&bias), ..rows.causal_step() };
        let mut x = rows.embeddings.clone();
        for (i, (block, cache)) in self.blocks.iter().zip(cache.blocks_mut()).enumerate() {
            x = block.step(&before(i, x, cache)?, &step, cache)?;
        }
        self.logits(&self.norm.forward(&rows.last(&x)?)?)
    }
}

/// transformers `MptForCausalLM`; `~` is what a system puts in front.
pub const TRANSFORMERS: &[Name] = &[
    copy("word", "~transformer.wte.weight"),
    copy("blocks.*.norm1.weight", "~transformer.blocks.*.norm_1.weight"),
    copy("blocks.*.attn.qkv.weight", "~transformer.blocks.*.attn.Wqkv.weight"),
    copy("blocks.*.attn.out.weight", "~transformer.blocks.*.attn.out_proj.weight"),
    copy("blocks.*.norm2.weight", "~transformer.blocks.*.norm_2.weight"),
    copy("blocks.*.mlp.up.weight", "~transformer.blocks.*.ffn.up_proj.weight"),
    copy("blocks.*.mlp.down.weight", "~transformer.blocks.*.ffn.down_proj.weight"),
    copy("norm.weight", "~transformer.norm_f.weight"),
];

/// The layout of the first release, `MosaicGPT`.
pub const MOSAIC_GPT: &[Name] = &[
    copy("word", "~transformer.wte.weight"),
    copy("blocks.*.norm1.weight", "~transformer.blocks.*.ln_1.weight"),
    copy("blocks.*.attn.qkv.weight", "~transformer.blocks.*.attn.Wqkv.weight"),
    copy("blocks.*.attn.q_norm.weight", "~transformer.blocks.*.attn.q_ln.weight"),
    copy("blocks.*.attn.k_norm.weight", "~transformer.blocks.*.attn.k_ln.weight"),
    copy("blocks.*.attn.out.weight", "~transformer.blocks.*.attn.out_proj.weight"),
    copy("blocks.*.norm2.weight", "~transformer.blocks.*.ln_2.weight"),
    copy("blocks.*.mlp.up.weight", "~transformer.blocks.*.mlp.mlp_up.weight"),
    copy("blocks.*.mlp.down.weight", "~transformer.blocks.*.mlp.mlp_down.weight"),
    copy("norm.weight", "~transformer.ln_f.weight"),
];

/// Name map of a file; `prefix` is what a system puts in front.
pub fn names(prefix: &str) -> Names {
    // The word table again.
    Names::family(TRANSFORMERS, &["lm_head.weight"]).with_prefix(prefix)
}

/// Name map of a file in the layout of the first release.
pub fn mosaic_gpt_names(prefix: &str) -> Names {
    Names::family(MOSAIC_GPT, &["lm_head.weight"]).with_prefix(prefix)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::*;

    #[test]
    fn published_sizes_have_their_parameters() {
        for (name, parameters) in
            [("1b", 1_311_311_872), ("7b", 6_649_286_656), ("30b", 29_957_200_896)]
        {
            let b = Builder::zeros();
            let _model = Mpt::new(&MptConfig::variant(name).unwrap(), &b);
            assert_eq!(b.finish().unwrap().elements(), parameters, "{name}");
        }
        assert!(MptConfig::variant("2b").is_none());
    }

    #[test]
    fn slopes_are_those_of_the_paper() {
        let with = |heads| MptConfig { heads, ..MptConfig::variant("7b").unwrap() }.slopes();
        assert_eq!(with(8)[..2], [0.5, 0.25]);
        assert_eq!(with(4), [0.25, 0.0625, 0.015_625, 0.003_906_25]);
        assert_eq!(with(3), [0.0625, 0.003_906_25, 0.25]);
    }
}
