//! Qwen: the language model of Qwen-VL.
//!
//! Bai et al. 2023, "Qwen Technical Report", arXiv:2309.16609, §2.3: blocks as in `llama.rs` with biases on
//! queries, keys and values. Texts longer than those of the training are read with other rotary
//! frequencies, chosen by the length of the prompt, and with queries that grow with the logarithm of
//! their place. The original code does neither while it trains.

use super::causal::CausalModel;
use super::llama::{Block, INIT, LlamaConfig};
use crate::Result;
use crate::generate::{Cache, Decoder, Rows};
use ocelli_nn::layers::{Linear, RmsNorm, Turns};
use ocelli_nn::{Builder, Name, Names, Parameter, copy};
use ocelli_tensor::{Angles, AttentionMask, Rotary, Tensor};
use std::sync::Arc;

/// Sizes of a Qwen.
#[derive(Clone, Debug, PartialEq)]
pub struct QwenConfig {
    /// What it has in common with a LLaMA.
    pub llama: LlamaConfig,
    /// Tokens of a text of the training.
    pub trained_length: usize,
    /// Whether rotary frequencies change for longer texts.
    pub has_dynamic_ntk: bool,
    /// Whether queries grow behind that many tokens.
    pub has_log_scaling: bool,
}

impl QwenConfig {
    /// The published size, `"7b"`.
    pub fn variant(name: &str) -> Option<Self> {
        let llama = LlamaConfig::variant(name).filter(|_| name == "7b")?;
        let llama = LlamaConfig {
            vocab: 151_936,
            context_length: 8192,
            norm_eps: 1e-6,
            qkv_bias: true,
            ..llama
        };
        Some(Self { llama, trained_length: 2048, has_dynamic_ntk: true, has_log_scaling: true })
    }
}

/// Queries grow up to this place.
const LAST_GROWN: usize = 32_767;

/// Qwen.
#[derive(Debug)]
pub struct Qwen {
    config: QwenConfig,
    word: Parameter,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Linear,
}

impl Qwen {
    /// A model whose parameters come from `b`.
    pub fn new(config: &QwenConfig, b: &Builder) -> Self {
        let c = &config.llama;
        Self {
            word: b.parameter("word", &[c.vocab, c.width], INIT),
            blocks: (0..c.depth).map(|i| Block::new(&b.at("blocks").at(i), c)).collect(),
            norm: RmsNorm::new(&b.at("norm"), c.width, c.norm_eps),
            head: Linear::new(&b.at("head"), c.width, c.vocab, false, INIT),
            config: config.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &QwenConfig {
        &self.config
    }

    /// How many times the base of the rotary angles grows for a prompt of so many tokens:
    /// `2^ceil(log2(tokens / trained) + 1) - 1`, at least 1.
    fn growth(&self, tokens: usize) -> f64 {
        if !self.config.has_dynamic_ntk || tokens <= self.config.trained_length {
            return 1.0;
        }
        let times = (tokens as f64 / self.config.trained_length as f64).log2() + 1.0;
        (times.ceil().exp2() - 1.0).max(1.0)
    }

    /// Angles of queries and keys: rows of `tokens` tokens each, of which row `i` is behind `past[i]`
    /// others and belongs to a prompt of `prompts[i]`.
    fn angles(&self, past: &[usize], prompts: &[usize], tokens: usize) -> Result<[Angles; 2]> {
        let c = &self.config;
        let dim = c.llama.head_dim as f64;
        let mut keys = Vec::with_capacity(past.len());
        let mut factors = Vec::with_capacity(past.len() * tokens);
        for (past, prompt) in past.iter().zip(prompts) {
            let base = c.llama.rope_theta * self.growth(*prompt).powf(dim / (dim - 2.0));
            let rotary = Rotary::new(c.llama.head_dim / 2, base, 1.0);
            let positions: Vec<u32> = (0..tokens).map(|t| (past + t) as u32).collect();
            keys.push(rotary.angles(&positions));
            factors.extend(positions.iter().map(|at| self.query_factor(*at as usize + 1)));
        }
        let keys = Angles::join(&keys)?;
        let queries = if c.has_log_scaling { keys.scaled(&factors) } else { keys.clone() };
        Ok([queries, keys])
    }

    /// What a query at a place, counted from 1, is multiplied by.
    fn query_factor(&self, place: usize) -> f32 {
        let trained = self.config.trained_length;
        if place <= trained || place > LAST_GROWN || trained < 2 {
            return 1.0;
        }
        ((place as f64).ln() / (trained as f64).ln()) as f32
    }
}

impl Decoder for Qwen {
    fn context_length(&self) -> Option<usize> {
        Some(self.config.llama.context_length)
    }

    fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        Ok(self.word.tensor().embedding(&ids.into(), &[ids.len()])?)
    }

    fn advance(&self, rows: &Rows, cache: &mut Cache) -> Result<Tensor> {
        let past = cache.lens();
        for (row, (past, new)) in past.iter().zip(&rows.lens).enumerate() {
            if *past == 0 || *new > 1 {
                cache.set_prompt(row, past + new);
            }
        }
        let [queries, keys] = self.angles(&past, cache.prompts(), rows.embeddings.shape()[1])?;
        let turns = Turns { queries: &queries, keys: &keys };
        let mut x = rows.embeddings.clone();
        for (block, cache) in self.blocks.iter().zip(cache.blocks_mut()) {
            x = block.step(&x, turns, &rows.causal_step(), cache)?;
        }
        self.logits(&self.norm.forward(&rows.last(&x)?)?)
    }
}

impl CausalModel for Qwen {
    fn features(&self, embeddings: &Tensor, mask: Option<&Arc<[u8]>>) -> Result<Tensor> {
        let [batch, tokens] = [0, 1].map(|i| embeddings.shape().get(i).copied().unwrap_or(1));
        let real = |row: usize| match mask {
            Some(mask) => mask[row * tokens..][..tokens].iter().filter(|m| **m != 0).count(),
            None => tokens,
        };
        let prompts: Vec<usize> = (0..batch).map(real).collect();
        let [queries, keys] = self.angles(&vec![0; batch], &prompts, tokens)?;
        let turns = Turns { queries: &queries, keys: &keys };
        let mask = AttentionMask { keys: mask.cloned(), ..AttentionMask::causal() };
        let mut x = embeddings.clone();
        for block in &self.blocks {
            x = block.forward(&x, turns, &mask)?;
        }
        Ok(self.norm.forward(&x)?)
    }

    fn logits(&self, features: &Tensor) -> Result<Tensor> {
        Ok(self.head.forward(features)?)
    }

    // Keys that were turned by other frequencies do not belong to a longer text.
    fn goes_on(&self, cache: &Cache, tokens: usize) -> bool {
        let read = cache.prompts().first().copied().unwrap_or(0);
        self.growth(read).total_cmp(&self.growth(tokens)).is_eq()
    }

    fn new_cache(&self, batch: usize) -> Cache {
        let c = &self.config.llama;
        Cache::empty(batch, c.depth, c.kv_heads, c.head_dim)
    }
}

/// The original files; `~` is `transformer.`.
const ORIGINAL: &[Name] = &[
    copy("word", "~wte.weight"),
    copy("blocks.*.norm1.weight", "~h.*.ln_1.weight"),
    copy("blocks.*.attn.q.weight", "~h.*.attn.c_attn.weight").part(0, 3),
    copy("blocks.*.attn.k.weight", "~h.*.attn.c_attn.weight").part(1, 3),
    copy("blocks.*.attn.v.weight", "~h.*.attn.c_attn.weight").part(2, 3),
    copy("blocks.*.attn.q.bias", "~h.*.attn.c_attn.bias").part(0, 3),
    copy("blocks.*.attn.k.bias", "~h.*.attn.c_attn.bias").part(1, 3),
    copy("blocks.*.attn.v.bias", "~h.*.attn.c_attn.bias").part(2, 3),
    copy("blocks.*.attn.out.weight", "~h.*.attn.c_proj.weight"),
    copy("blocks.*.norm2.weight", "~h.*.ln_2.weight"),
    // The second of the two is the gate.
    copy("blocks.*.mlp.gate.weight", "~h.*.mlp.w2.weight"),
    copy("blocks.*.mlp.up.weight", "~h.*.mlp.w1.weight"),
    copy("blocks.*.mlp.down.weight", "~h.*.mlp.c_proj.weight"),
    copy("norm.weight", "~ln_f.weight"),
    copy("head.weight", "lm_head.weight"),
];

/// The name map of the original files.
pub fn names() -> Names {
    let ignored = &["rotary_emb.inv_freq", "h.*.attn.rotary_emb.inv_freq"];
    Names::family(ORIGINAL, ignored).with_prefix("transformer.")
}
