//! `ChatGLM`: the language model of VisualGLM.
//!
//! Zeng et al. 2022, "GLM-130B", arXiv:2210.02414, §2.1, and Du et al. 2021, "GLM", arXiv:2103.10360, §2.1.
//! What is asked ends with two tokens, the mask that the answer stands for and its start. Tokens before
//! the start see each other in both directions; those of the answer see all before them. Each token has
//! two positions: its own, at which the answer stays with its mask, and its place in the answer.
//!
//! ```text
//!        a b m s x y      own    place         a, b: what is asked
//!      a 1 1 1 0 0 0       0       0           m: the mask
//!      b 1 1 1 0 0 0       1       0           s: the start of the answer
//!      m 1 1 1 0 0 0       2       0           x, y: the answer
//!      s 1 1 1 1 0 0       2       1
//!      x 1 1 1 1 1 0       2       2
//!      y 1 1 1 1 1 1       2       3
//! ```

use super::causal::CausalModel;
use crate::Result;
use crate::generate::{BlockCache, Cache, Decoder, Rows};
use ocelli_nn::layers::{LayerNorm, Linear, Mlp};
use ocelli_nn::{Builder, Init, Name, Names, Parameter, copy};
use ocelli_tensor::{Activation, Angles, AttentionMask, Heads, Rotary, Step, Tensor};
use std::sync::Arc;

/// Sizes of a `ChatGLM`.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatGlmConfig {
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
    /// How often the normalised input of a part counts in its sum.
    pub residual_scale: f32,
    /// The token that the answer stands for, and the one that begins it.
    pub answer_ids: [u32; 2],
}

/// The released code takes the sum's scale from 28 blocks, whatever the model has.
const SCALED_BLOCKS: f32 = 28.0;

impl ChatGlmConfig {
    /// How often the input of a part counts in the released code.
    pub fn usual_scale() -> f32 {
        (2.0 * SCALED_BLOCKS).sqrt()
    }

    /// The published size, `"6b"`.
    pub fn variant(name: &str) -> Option<Self> {
        (name == "6b").then(|| Self {
            vocab: 130_528,
            context_length: 2048,
            width: 4096,
            depth: 28,
            heads: 32,
            mlp_dim: 16_384,
            norm_eps: 1e-5,
            residual_scale: Self::usual_scale(),
            answer_ids: [130_001, 130_004],
        })
    }

    fn head_dim(&self) -> usize {
        self.width / self.heads.max(1)
    }
}

const INIT: Init = Init::Normal(0.02);
/// Added to a score that is not to count.
const UNSEEN: f32 = -1e30;

/// What is asked of a text: where the answer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Tokens before the start of the answer.
    pub tokens: usize,
    /// The place of the mask that the answer stands for.
    pub mask: usize,
}

impl Asked {
    /// Of a prompt of so many tokens, whose last two are the mask and the start.
    pub fn prompt(tokens: usize) -> Self {
        Self { tokens: tokens.saturating_sub(1), mask: tokens.saturating_sub(2) }
    }

    /// How many tokens the one at `place` sees, from the first on.
    pub fn seen(self, place: usize) -> usize {
        if place < self.tokens { self.tokens } else { place + 1 }
    }

    /// Both positions of the token at a place.
    fn positions(self, at: usize) -> [u32; 2] {
        match at.checked_sub(self.tokens) {
            None => [at as u32, 0],
            Some(behind) => [self.mask as u32, behind as u32 + 1],
        }
    }
}

/// A block whose parts read and add to what is normalised.
#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    out: Linear,
    norm2: LayerNorm,
    mlp: Mlp,
    heads: usize,
    residual_scale: f32,
}

impl Block {
    fn new(b: &Builder, c: &ChatGlmConfig) -> Self {
        let act = Activation::GeluTanh;
        Self {
            norm1: LayerNorm::new(&b.at("norm1"), c.width, c.norm_eps),
            qkv: Linear::new(&b.at("attn").at("qkv"), c.width, 3 * c.width, true, INIT),
            out: Linear::new(&b.at("attn").at("out"), c.width, c.width, true, INIT),
            norm2: LayerNorm::new(&b.at("norm2"), c.width, c.norm_eps),
            mlp: Mlp::new(&b.at("mlp"), c.width, c.mlp_dim, act, INIT, INIT),
            heads: c.heads,
            residual_scale: c.residual_scale,
        }
    }

    /// Queries, keys and values of `x` `[batch, tokens, width]`. Each half of a head is turned by one of
    /// the two positions, so it counts as a head of its own.
    fn projections(&self, x: &Tensor, angles: &Angles) -> Result<[Tensor; 3]> {
        let qkv = self.qkv.forward(x)?; // [batch, tokens, 3 width]
        let &[batch, tokens, width] = &x.shape()[..] else {
            unreachable!("a block is given tokens of each text")
        };
        let halves = [batch, tokens * self.heads * 2, width / (self.heads * 2)];
        let turned = |at: usize| -> Result<Tensor> {
            let part = qkv.narrow(2, at * width, width)?.reshape(&halves)?;
            Ok(part.rotate(angles, 1)?.reshape(&[batch, tokens, width])?)
        };
        Ok([turned(0)?, turned(1)?, qkv.narrow(2, 2 * width, width)?])
    }

    /// What follows the attention: `x` is normalised, `mixed` what its tokens attended to.
    fn rest(&self, x: &Tensor, mixed: &Tensor) -> Result<Tensor> {
        let same = x.scale(self.residual_scale)?;
        let h = self.out.forward_with(mixed, Activation::None, Some(&same))?;
        let y = self.norm2.forward(&h)?;
        Ok(self.mlp.forward(&y, Some(&y.scale(self.residual_scale)?))?)
    }

    /// `[batch, tokens, width]` in and out.
    fn forward(&self, x: &Tensor, angles: &Angles, mask: &AttentionMask) -> Result<Tensor> {
        let x = self.norm1.forward(x)?;
        let [q, k, v] = self.projections(&x, angles)?;
        self.rest(&x, &q.attention(&k, &v, Heads::same(self.heads), mask)?)
    }

    /// The same for new tokens of a text.
    fn step(
        &self,
        x: &Tensor,
        angles: &Angles,
        step: &Step,
        cache: &mut BlockCache,
    ) -> Result<Tensor> {
        let x = self.norm1.forward(x)?;
        let [q, k, v] = self.projections(&x, angles)?;
        cache.own.push(&k, &v, step.lens)?;
        self.rest(&x, &cache.own.attend(&q, Heads::same(self.heads), step)?)
    }
}

/// `ChatGLM`.
#[derive(Debug)]
pub struct ChatGlm {
    config: ChatGlmConfig,
    word: Parameter,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Linear,
    rotary: Rotary,
}

impl ChatGlm {
    /// A model whose parameters come from `b`.
    pub fn new(config: &ChatGlmConfig, b: &Builder) -> Self {
        let c = config;
        Self {
            word: b.parameter("word", &[c.vocab, c.width], INIT),
            blocks: (0..c.depth).map(|i| Block::new(&b.at("blocks").at(i), c)).collect(),
            norm: LayerNorm::new(&b.at("norm"), c.width, c.norm_eps),
            head: Linear::new(&b.at("head"), c.width, c.vocab, false, INIT),
            rotary: Rotary::new(c.head_dim() / 4, 10_000.0, 1.0).rounded_to_f16(),
            config: c.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &ChatGlmConfig {
        &self.config
    }

    /// How far each pair of half a head turns from one position to the next.
    pub fn frequencies(&self) -> &[f32] {
        self.rotary.frequencies()
    }

    /// Both positions of each token of texts of `tokens` tokens, `[batch, 2, tokens]`.
    pub fn positions(asked: &[Asked], tokens: usize) -> Vec<u32> {
        let of = |asked: &Asked, which: usize| -> Vec<u32> {
            (0..tokens).map(|at| asked.positions(at)[which]).collect()
        };
        asked.iter().flat_map(|asked| [of(asked, 0), of(asked, 1)].concat()).collect()
    }

    /// Angles of rows of `tokens` tokens behind `past[i]` others.
    fn angles(&self, asked: &[Asked], past: &[usize], tokens: usize) -> Angles {
        let rows = asked.iter().zip(past);
        let both =
            rows.flat_map(|(asked, past)| (0..tokens).map(move |t| asked.positions(past + t)));
        let of_heads = both.flat_map(|both| std::iter::repeat_n(both, self.config.heads));
        self.rotary.angles(&of_heads.flatten().collect::<Vec<u32>>())
    }

    /// As [`CausalModel::features`], for texts whose answers begin where `asked` says.
    ///
    /// # Errors
    /// As there.
    pub fn features_of(
        &self,
        embeddings: &Tensor,
        mask: Option<&Arc<[u8]>>,
        asked: &[Asked],
    ) -> Result<Tensor> {
        let tokens = embeddings.shape().get(1).copied().unwrap_or(1);
        let angles = self.angles(asked, &vec![0; asked.len()], tokens);
        let mut bias = vec![0.0; asked.len() * tokens * tokens];
        let queries = bias.chunks_exact_mut(tokens.max(1)).enumerate();
        for (at, seen) in queries {
            let first = asked[at / tokens].seen(at % tokens);
            seen[first.min(tokens)..].fill(UNSEEN);
        }
        let bias = Some(Tensor::from_slice(&bias, &[asked.len(), 1, tokens, tokens])?);
        let mask = AttentionMask { keys: mask.cloned(), bias, ..AttentionMask::default() };
        let mut x = embeddings.clone();
        for block in &self.blocks {
            x = block.forward(&x, &angles, &mask)?;
        }
        Ok(self.norm.forward(&x)?)
    }
}

impl Decoder for ChatGlm {
    fn context_length(&self) -> Option<usize> {
        Some(self.config.context_length)
    }

    fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        Ok(self.word.tensor().embedding(&ids.into(), &[ids.len()])?)
    }

    fn advance(&self, rows: &Rows, cache: &mut Cache) -> Result<Tensor> {
        let (past, tokens) = (cache.lens(), rows.embeddings.shape()[1]);
        for (row, (past, new)) in past.iter().zip(&rows.lens).enumerate() {
            if *past == 0 {
                cache.set_prompt(row, *new);
            }
        }
        let asked: Vec<Asked> = cache.prompts().iter().map(|n| Asked::prompt(*n)).collect();
        let angles = self.angles(&asked, &past, tokens);
        // Tokens of a prompt see all that is asked, behind them too; others what is before them.
        let keys = past.iter().zip(&rows.lens).map(|(past, new)| past + new).max().unwrap_or(0);
        let mut bias = vec![0.0; asked.len() * tokens * keys];
        for (at, seen) in bias.chunks_exact_mut(keys.max(1)).enumerate() {
            let (row, place) = (at / tokens, past[at / tokens] + at % tokens);
            seen[asked[row].seen(place).min(keys)..].fill(UNSEEN);
        }
        let bias = Tensor::from_slice(&bias, &[asked.len(), 1, tokens, keys])?;
        let step = Step { lens: &rows.lens, is_causal: false, bias: Some(&bias), scale: None };
        let mut x = rows.embeddings.clone();
        for (block, cache) in self.blocks.iter().zip(cache.blocks_mut()) {
            x = block.step(&x, &angles, &step, cache)?;
        }
        self.logits(&self.norm.forward(&rows.last(&x)?)?)
    }
}

impl CausalModel for ChatGlm {
    // All of a text is asked.
    fn features(&self, embeddings: &Tensor, mask: Option<&Arc<[u8]>>) -> Result<Tensor> {
        let [batch, tokens] = [0, 1].map(|i| embeddings.shape().get(i).copied().unwrap_or(1));
        let real = |row: usize| match mask {
            Some(mask) => mask[row * tokens..][..tokens].iter().filter(|m| **m != 0).count(),
            None => tokens,
        };
        let asked: Vec<Asked> = (0..batch).map(|row| Asked::prompt(real(row))).collect();
        self.features_of(embeddings, mask, &asked)
    }

    fn logits(&self, features: &Tensor) -> Result<Tensor> {
        Ok(self.head.forward(features)?)
    }

    // What was asked saw nothing of what is asked now.
    fn goes_on(&self, _: &Cache, _: usize) -> bool {
        false
    }

    fn new_cache(&self, batch: usize) -> Cache {
        let c = &self.config;
        Cache::empty(batch, c.depth, c.heads, c.head_dim())
    }
}

/// The released files.
const RELEASED: &[Name] = &[
    copy("word", "transformer.word_embeddings.weight"),
    copy("blocks.*.norm1.*", "transformer.layers.*.input_layernorm.*"),
    copy("blocks.*.attn.qkv.*", "transformer.layers.*.attention.query_key_value.*").head_by_head(),
    copy("blocks.*.attn.out.*", "transformer.layers.*.attention.dense.*"),
    copy("blocks.*.norm2.*", "transformer.layers.*.post_attention_layernorm.*"),
    copy("blocks.*.mlp.up.*", "transformer.layers.*.mlp.dense_h_to_4h.*"),
    copy("blocks.*.mlp.down.*", "transformer.layers.*.mlp.dense_4h_to_h.*"),
    copy("norm.*", "transformer.final_layernorm.*"),
    copy("head.weight", "lm_head.weight"),
];

/// The name map of the released files.
pub fn names(config: &ChatGlmConfig) -> Names {
    // Rotary frequencies are computed, not read.
    let ignored = &["transformer.layers.*.attention.rotary_emb.inv_freq"];
    Names::family(RELEASED, ignored).with_head_dim(config.head_dim())
}
