//! LLaMA: the language model of Vicuna, LLaVA and MiniGPT-4.
//!
//! Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models", arXiv:2302.13971,
//! §2.2: blocks with the norm before each part and no biases, root mean square norms, a SiLU gate in
//! the perceptron, and rotary positions (Su et al. 2021, arXiv:2104.09864). Later sizes share keys
//! and values among heads (Ainslie et al. 2023, arXiv:2305.13245).

use super::causal::{Before, CausalModel, Interleaved, StepBefore, positions};
use crate::Result;
use crate::generate::{BlockCache, Cache, Decoder, Rows};
use ocelli_nn::layers::{Attention, AttentionSizes, GatedMlp, Linear, RmsNorm, Turns};
use ocelli_nn::{Builder, Init, Name, Names, Parameter, copy};
use ocelli_tensor::{Activation, AttentionMask, Heads, Rotary, Step, Tensor};
use std::sync::Arc;

/// Sizes of a LLaMA (§2.2, Table 2).
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Rows of the word table.
    pub vocab: usize,
    /// Tokens of a text at most.
    pub context_length: usize,
    /// Width of a token.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Hidden width of each perceptron.
    pub mlp_dim: usize,
    /// Epsilon of the norms.
    pub norm_eps: f32,
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// What positions are divided by.
    pub rope_factor: f32,
    /// Whether the projections to queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the last projection of an attention has one.
    pub out_bias: bool,
    /// Whether the word table serves as the head too.
    pub has_tied_head: bool,
}

impl LlamaConfig {
    /// A published size: `"7b"` or `"13b"` as of LLaMA 2 and Vicuna 1.5, or `"1.1b"` (Zhang et al.
    /// 2024, "`TinyLlama`", arXiv:2401.02385, Table 1).
    pub fn variant(name: &str) -> Option<Self> {
        let (context_length, width, depth, mlp_dim, head_dim, queries_per_key) = match name {
            "1.1b" => (2048, 2048, 22, 5632, 64, 8),
            "7b" => (4096, 4096, 32, 11_008, 128, 1),
            "13b" => (4096, 5120, 40, 13_824, 128, 1),
            _ => return None,
        };
        Some(Self {
            vocab: 32_000,
            context_length,
            width,
            depth,
            heads: width / head_dim,
            kv_heads: width / head_dim / queries_per_key,
            head_dim,
            mlp_dim,
            norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_factor: 1.0,
            qkv_bias: false,
            out_bias: false,
            has_tied_head: false,
        })
    }
}

/// All weights are drawn from N(0, 0.02).
pub(super) const INIT: Init = Init::Normal(0.02);

/// A pre-norm block.
#[derive(Debug)]
pub(super) struct Block {
    norm1: RmsNorm,
    attn: Attention,
    norm2: RmsNorm,
    mlp: GatedMlp,
}

impl Block {
    pub(super) fn new(b: &Builder, c: &LlamaConfig) -> Self {
        let sizes = AttentionSizes {
            width: c.width,
            memory_width: c.width,
            heads: Heads { heads: c.heads, kv_heads: c.kv_heads },
            head_dim: c.head_dim,
            has_bias: c.qkv_bias,
            has_out_bias: c.out_bias,
        };
        let (width, mlp_dim) = (c.width, c.mlp_dim);
        Self {
            norm1: RmsNorm::new(&b.at("norm1"), width, c.norm_eps),
            attn: Attention::new(&b.at("attn"), sizes, INIT, INIT),
            norm2: RmsNorm::new(&b.at("norm2"), width, c.norm_eps),
            mlp: GatedMlp::new(&b.at("mlp"), width, mlp_dim, Activation::Silu, INIT, INIT),
        }
    }

    /// `[batch, tokens, width]` in and out.
    pub(super) fn forward(&self, x: &Tensor, turns: Turns, mask: &AttentionMask) -> Result<Tensor> {
        let normed = self.norm1.forward(x)?;
        let x = self.attn.forward_rotary(&normed, turns, mask, Some(x))?;
        Ok(self.mlp.forward(&self.norm2.forward(&x)?, Some(&x))?)
    }

    /// The same for new tokens of a text.
    pub(super) fn step(
        &self,
        x: &Tensor,
        turns: Turns,
        step: &Step,
        cache: &mut BlockCache,
    ) -> Result<Tensor> {
        let normed = self.norm1.forward(x)?;
        let x = self.attn.step(&normed, &mut cache.own, Some(turns), step, Some(x))?;
        Ok(self.mlp.forward(&self.norm2.forward(&x)?, Some(&x))?)
    }
}

/// LLaMA.
#[derive(Debug)]
pub struct Llama {
    config: LlamaConfig,
    word: Parameter,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Linear,
    rotary: Rotary,
}

impl Llama {
    /// A model whose parameters come from `b`.
    pub fn new(config: &LlamaConfig, b: &Builder) -> Self {
        let c = config;
        let word = b.parameter("word", &[c.vocab, c.width], INIT);
        let head = |b: Builder| {
            if c.has_tied_head {
                Linear::from_parts(word.clone(), None)
            } else {
                Linear::new(&b, c.width, c.vocab, false, INIT)
            }
        };
        Self {
            blocks: (0..c.depth).map(|i| Block::new(&b.at("blocks").at(i), c)).collect(),
            norm: RmsNorm::new(&b.at("norm"), c.width, c.norm_eps),
            head: head(b.at("head")),
            word,
            rotary: Rotary::new(c.head_dim / 2, c.rope_theta, c.rope_factor),
            config: config.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// With changes of low rank to the layers `on` of each block: `q`, `k`, `v` or `out` of the attention,
    /// `gate`, `up` or `down` of the perceptron.
    #[must_use]
    pub fn with_lora(mut self, b: &Builder, rank: usize, scale: f32, on: &[&str]) -> Self {
        let blocks = std::mem::take(&mut self.blocks).into_iter().enumerate();
        self.blocks = blocks
            .map(|(i, block)| {
                let b = b.at("blocks").at(i);
                Block {
                    attn: block.attn.with_lora(&b.at("attn"), rank, scale, on),
                    mlp: block.mlp.with_lora(&b.at("mlp"), rank, scale, on),
                    ..block
                }
            })
            .collect();
        self
    }

    /// As [`CausalModel::features`], for tokens at the given positions, `[batch, tokens]`.
    ///
    /// # Errors
    /// As there.
    pub fn features_at(
        &self,
        embeddings: &Tensor,
        mask: Option<&Arc<[u8]>>,
        positions: &Arc<[u32]>,
    ) -> Result<Tensor> {
        self.read(embeddings, mask, positions, &|_, x| Ok(x))
    }

    fn read(
        &self,
        embeddings: &Tensor,
        mask: Option<&Arc<[u8]>>,
        positions: &Arc<[u32]>,
        before: &Before,
    ) -> Result<Tensor> {
        let angles = self.rotary.angles(positions);
        let mask = AttentionMask { keys: mask.cloned(), ..AttentionMask::causal() };
        let mut x = embeddings.clone();
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&before(i, x)?, (&angles).into(), &mask)?;
        }
        Ok(self.norm.forward(&x)?)
    }
}

impl Llama {
    /// From now on gradients go through positions as in the published results of
    /// InternLM-XComposer; see [`Rotary::turning_half_back`].
    pub fn turn_half_back(&mut self) {
        self.rotary = self.rotary.clone().turning_half_back();
    }
}

impl Decoder for Llama {
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

impl Interleaved for Llama {
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
        self.read(embeddings, mask, &positions(embeddings), before)
    }

    fn advance_between(
        &self,
        rows: &Rows,
        cache: &mut Cache,
        before: &StepBefore,
    ) -> Result<Tensor> {
        let angles = self.rotary.angles(&rows.positions(&cache.lens()));
        let mut x = rows.embeddings.clone();
        for (i, (block, cache)) in self.blocks.iter().zip(cache.blocks_mut()).enumerate() {
            x = block.step(&before(i, x, cache)?, (&angles).into(), &rows.causal_step(), cache)?;
        }
        self.logits(&self.norm.forward(&rows.last(&x)?)?)
    }
}

impl CausalModel for Llama {
    fn features(&self, embeddings: &Tensor, mask: Option<&Arc<[u8]>>) -> Result<Tensor> {
        self.features_at(embeddings, mask, &positions(embeddings))
    }

    fn logits(&self, features: &Tensor) -> Result<Tensor> {
        Ok(self.head.forward(features)?)
    }

    fn new_cache(&self, batch: usize) -> Cache {
        Cache::empty(batch, self.config.depth, self.config.kv_heads, self.config.head_dim)
    }
}

/// The body of transformers' `LlamaForCausalLM`; `~` is what stands before it, usually `model.`.
pub const TRANSFORMERS: &[Name] = &[
    copy("word", "~embed_tokens.weight"),
    copy("blocks.*.norm1.weight", "~layers.*.input_layernorm.weight"),
    copy("blocks.*.attn.q.*", "~layers.*.self_attn.q_proj.*"),
    copy("blocks.*.attn.k.*", "~layers.*.self_attn.k_proj.*"),
    copy("blocks.*.attn.v.*", "~layers.*.self_attn.v_proj.*"),
    copy("blocks.*.attn.out.*", "~layers.*.self_attn.o_proj.*"),
    copy("blocks.*.norm2.weight", "~layers.*.post_attention_layernorm.weight"),
    copy("blocks.*.mlp.gate.weight", "~layers.*.mlp.gate_proj.weight"),
    copy("blocks.*.mlp.up.weight", "~layers.*.mlp.up_proj.weight"),
    copy("blocks.*.mlp.down.weight", "~layers.*.mlp.down_proj.weight"),
    copy("norm.weight", "~norm.weight"),
];

/// GGUF files of the architecture `llama`.
pub const GGUF: &[Name] = &[
    copy("word", "token_embd.weight"),
    copy("blocks.*.norm1.weight", "blk.*.attn_norm.weight"),
    copy("blocks.*.attn.q.weight", "blk.*.attn_q.weight").pairs(),
    copy("blocks.*.attn.k.weight", "blk.*.attn_k.weight").pairs(),
    copy("blocks.*.attn.v.weight", "blk.*.attn_v.weight"),
    copy("blocks.*.attn.out.weight", "blk.*.attn_output.weight"),
    copy("blocks.*.norm2.weight", "blk.*.ffn_norm.weight"),
    copy("blocks.*.mlp.gate.weight", "blk.*.ffn_gate.weight"),
    copy("blocks.*.mlp.up.weight", "blk.*.ffn_up.weight"),
    copy("blocks.*.mlp.down.weight", "blk.*.ffn_down.weight"),
    copy("norm.weight", "output_norm.weight"),
    copy("head.weight", "output.weight"),
];

/// Name map of a GGUF file with heads of so many values.
pub fn gguf_names(head_dim: usize) -> Names {
    Names::family(GGUF, &[]).with_head_dim(head_dim)
}

/// Changes of low rank as peft writes them.
const LORA: &[Name] = &[
    copy("blocks.*.attn.q.lora_a", "~layers.*.self_attn.q_proj.lora_A.weight"),
    copy("blocks.*.attn.q.lora_b", "~layers.*.self_attn.q_proj.lora_B.weight"),
    copy("blocks.*.attn.k.lora_a", "~layers.*.self_attn.k_proj.lora_A.weight"),
    copy("blocks.*.attn.k.lora_b", "~layers.*.self_attn.k_proj.lora_B.weight"),
    copy("blocks.*.attn.v.lora_a", "~layers.*.self_attn.v_proj.lora_A.weight"),
    copy("blocks.*.attn.v.lora_b", "~layers.*.self_attn.v_proj.lora_B.weight"),
    copy("blocks.*.attn.out.lora_a", "~layers.*.self_attn.o_proj.lora_A.weight"),
    copy("blocks.*.attn.out.lora_b", "~layers.*.self_attn.o_proj.lora_B.weight"),
    copy("blocks.*.mlp.gate.lora_a", "~layers.*.mlp.gate_proj.lora_A.weight"),
    copy("blocks.*.mlp.gate.lora_b", "~layers.*.mlp.gate_proj.lora_B.weight"),
    copy("blocks.*.mlp.up.lora_a", "~layers.*.mlp.up_proj.lora_A.weight"),
    copy("blocks.*.mlp.up.lora_b", "~layers.*.mlp.up_proj.lora_B.weight"),
    copy("blocks.*.mlp.down.lora_a", "~layers.*.mlp.down_proj.lora_A.weight"),
    copy("blocks.*.mlp.down.lora_b", "~layers.*.mlp.down_proj.lora_B.weight"),
];

/// The name map of changes of low rank; ask it before that of the body.
pub fn lora_names(body: &str) -> Names {
    Names::family(LORA, &[]).with_prefix(body)
}

/// Name maps of a file; `prefix` stands before the names of a part of a system.
pub fn names(prefix: &str, has_tied_head: bool) -> Vec<Names> {
    names_at(&format!("{prefix}model."), prefix, has_tied_head).into()
}

/// Name maps of the body and of the head, each with what stands before it.
pub fn names_at(body: &str, head: &str, has_tied_head: bool) -> [Names; 2] {
    // Old files keep the rotary frequencies; a tied head may be there as a copy.
    let ignored: &[&str] = if has_tied_head { &["lm_head.weight"] } else { &[] };
    [
        Names::family(TRANSFORMERS, &["layers.*.self_attn.rotary_emb.inv_freq"]).with_prefix(body),
        Names::family(&[copy("head.weight", "~lm_head.weight")], ignored).with_prefix(head),
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::*;

    #[test]
    fn published_sizes_have_their_parameters() {
        for (name, parameters) in
            [("1.1b", 1_100_048_384), ("7b", 6_738_415_616), ("13b", 13_015_864_320)]
        {
            let b = Builder::zeros();
            let _model = Llama::new(&LlamaConfig::variant(name).unwrap(), &b);
            assert_eq!(b.finish().unwrap().elements(), parameters, "{name}");
        }
        assert!(LlamaConfig::variant("8b").is_none());
    }
}
