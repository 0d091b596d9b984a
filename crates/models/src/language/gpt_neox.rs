//! GPT-NeoX: the language model of Pythia and RedPajama-INCITE.
//!
//! Black et al. 2022, "GPT-NeoX-20B: An Open-Source Autoregressive Language Model", arXiv:2204.06745,
//! §2.1: a decoder whose attention and perceptron read the same tokens side by side, with rotary
//! positions on a part of each head.

use super::causal::{Before, CausalModel, Interleaved, StepBefore, positions};
use crate::Result;
use crate::generate::{BlockCache, Cache, Decoder, Rows};
use ocelli_nn::layers::{LayerNorm, Linear, Mlp};
use ocelli_nn::{Builder, Init, Name, Names, Parameter, copy};
use ocelli_tensor::{Activation, Angles, AttentionMask, Heads, Rotary, Step, Tensor};
use std::sync::Arc;

/// Sizes of a GPT-NeoX.
#[derive(Clone, Debug, PartialEq)]
pub struct GptNeoxConfig {
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
    /// Values at the beginning of each head that positions turn; even.
    pub rotary_dim: usize,
    /// Base of the angles.
    pub rope_theta: f64,
    /// Hidden width of each perceptron.
    pub mlp_dim: usize,
    /// Activation of the perceptrons.
    pub activation: Activation,
    /// Epsilon of the norms.
    pub norm_eps: f32,
    /// Whether attention and perceptron read the same tokens; else one after the other.
    pub is_parallel: bool,
    /// Whether the word table is the head.
    pub has_tied_head: bool,
}

impl GptNeoxConfig {
    /// A published size: `"pythia-70m"` to `"pythia-12b"` (Biderman et al. 2023, arXiv:2304.01373,
    /// Table 1), `"redpajama-3b"` or `"20b"`.
    pub fn variant(name: &str) -> Option<Self> {
        let (width, depth, heads, vocab) = match name {
            "pythia-70m" => (512, 6, 8, 50_304),
            "pythia-160m" => (768, 12, 12, 50_304),
            "pythia-410m" => (1024, 24, 16, 50_304),
            "pythia-1b" => (2048, 16, 8, 50_304),
            "pythia-1.4b" => (2048, 24, 16, 50_304),
            "pythia-2.8b" => (2560, 32, 32, 50_304),
            "pythia-6.9b" => (4096, 32, 32, 50_432),
            "pythia-12b" => (5120, 36, 40, 50_688),
            "redpajama-3b" => (2560, 32, 32, 50_432),
            "20b" => (6144, 44, 64, 50_432),
            _ => return None,
        };
        let is_redpajama = name == "redpajama-3b";
        Some(Self {
            vocab,
            context_length: 2048,
            width,
            depth,
            heads,
            rotary_dim: if is_redpajama { width / heads } else { width / heads / 4 },
            rope_theta: 10_000.0,
            mlp_dim: 4 * width,
            activation: Activation::Gelu,
            norm_eps: 1e-5,
            is_parallel: !is_redpajama,
            has_tied_head: false,
        })
    }
}

/// All weights are drawn from N(0, 0.02).
const INIT: Init = Init::Normal(0.02);

#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    out: Linear,
    norm2: LayerNorm,
    mlp: Mlp,
    heads: usize,
    head_dim: usize,
    is_parallel: bool,
}

impl Block {
    fn new(b: &Builder, c: &GptNeoxConfig) -> Self {
        let (width, attn) = (c.width, b.at("attn"));
        Self {
            norm1: LayerNorm::new(&b.at("norm1"), width, c.norm_eps),
            qkv: Linear::new(&attn.at("qkv"), width, 3 * width, true, INIT),
            out: Linear::new(&attn.at("out"), width, width, true, INIT),
            norm2: LayerNorm::new(&b.at("norm2"), width, c.norm_eps),
            mlp: Mlp::new(&b.at("mlp"), width, c.mlp_dim, c.activation, INIT, INIT),
            heads: c.heads,
            head_dim: width / c.heads.max(1),
            is_parallel: c.is_parallel,
        }
    }

    /// `[batch, tokens, width]` in and out; `attend` mixes queries, keys and values
    /// `[batch, tokens, 3 width]`.
    fn around(
        &self,
        x: &Tensor,
        angles: &Angles,
        attend: impl FnOnce(&Tensor) -> ocelli_tensor::Result<Tensor>,
    ) -> Result<Tensor> {
        let qkv = self.qkv.forward(&self.norm1.forward(x)?)?;
        // Queries and keys come first.
        let qkv = qkv.rotate_part(angles, 2 * self.heads, self.head_dim)?;
        let mixed = attend(&qkv)?; // [batch, tokens, width]
        let y = self.out.forward_with(&mixed, Activation::None, Some(x))?;
        let read = if self.is_parallel { x } else { &y };
        Ok(self.mlp.forward(&self.norm2.forward(read)?, Some(&y))?)
    }

    fn forward(&self, x: &Tensor, angles: &Angles, mask: &AttentionMask) -> Result<Tensor> {
        self.around(x, angles, |qkv| qkv.self_attention(Heads::same(self.heads), mask))
    }

    /// The same for new tokens of a text.
    fn step(
        &self,
        x: &Tensor,
        angles: &Angles,
        step: &Step,
        cache: &mut BlockCache,
    ) -> Result<Tensor> {
        let width = self.heads * self.head_dim;
        self.around(x, angles, |qkv| {
            let part = |i: usize| qkv.narrow(2, i * width, width);
            cache.own.push(&part(1)?, &part(2)?, step.lens)?;
            cache.own.attend(&part(0)?, Heads::same(self.heads), step)
        })
    }
}

/// GPT-NeoX.
#[derive(Debug)]
pub struct GptNeox {
    config: GptNeoxConfig,
    word: Parameter,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Linear,
    rotary: Rotary,
}

impl GptNeox {
    /// A model whose parameters come from `b`.
    pub fn new(config: &GptNeoxConfig, b: &Builder) -> Self {
        let c = config;
        let word = b.parameter("word", &[c.vocab, c.width], INIT);
        let head = || Linear::new(&b.at("head"), c.width, c.vocab, false, INIT);
        Self {
            blocks: (0..c.depth).map(|i| Block::new(&b.at("blocks").at(i), c)).collect(),
            norm: LayerNorm::new(&b.at("norm"), c.width, c.norm_eps),
            head: if c.has_tied_head { Linear::from_parts(word.clone(), None) } else { head() },
            word,
            rotary: Rotary::new(c.rotary_dim / 2, c.rope_theta, 1.0),
            config: config.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &GptNeoxConfig {
        &self.config
    }
}

impl Decoder for GptNeox {
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

impl CausalModel for GptNeox {
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

impl Interleaved for GptNeox {
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
        let angles = self.rotary.angles(&positions(embeddings));
        let mask = AttentionMask { keys: mask.cloned(), ..AttentionMask::causal() };
        let mut x = embeddings.clone();
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&before(i, x)?, &angles, &mask)?;
        }
        Ok(self.norm.forward(&x)?)
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
            x = block.step(&before(i, x, cache)?, &angles, &rows.causal_step(), cache)?;
        }
        self.logits(&self.norm.forward(&rows.last(&x)?)?)
    }
}

/// transformers `GPTNeoXForCausalLM`; `~` is what a system puts in front.
pub const TRANSFORMERS: &[Name] = &[
    copy("word", "~gpt_neox.embed_in.weight"),
    copy("blocks.*.norm1.*", "~gpt_neox.layers.*.input_layernorm.*"),
    copy("blocks.*.attn.qkv.*", "~gpt_neox.layers.*.attention.query_key_value.*").head_by_head(),
    copy("blocks.*.attn.out.*", "~gpt_neox.layers.*.attention.dense.*"),
    copy("blocks.*.norm2.*", "~gpt_neox.layers.*.post_attention_layernorm.*"),
    copy("blocks.*.mlp.up.*", "~gpt_neox.layers.*.mlp.dense_h_to_4h.*"),
    copy("blocks.*.mlp.down.*", "~gpt_neox.layers.*.mlp.dense_4h_to_h.*"),
    copy("norm.*", "~gpt_neox.final_layer_norm.*"),
    copy("head.weight", "~embed_out.weight"),
];

/// Name map of a file; `prefix` is what a system puts in front.
pub fn names(prefix: &str, config: &GptNeoxConfig) -> Names {
    // Causal masks and frequencies of old files; a tied head is the word table again.
    let ignored: &[&'static str] = &[
        "gpt_neox.layers.*.attention.bias",
        "gpt_neox.layers.*.attention.masked_bias",
        "gpt_neox.layers.*.attention.rotary_emb.inv_freq",
    ];
    let head = config.has_tied_head.then(|| "embed_out.weight".to_owned());
    Names::family(TRANSFORMERS, ignored)
        .ignoring(head)
        .with_prefix(prefix)
        .with_head_dim(config.width / config.heads.max(1))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::*;

    #[test]
    fn published_sizes_have_their_parameters() {
        // Pythia's Table 1 counts all parameters of the first, and those without tables of the second.
        for (name, parameters) in [("pythia-70m", 70_426_624), ("pythia-1b", 1_011_781_632)] {
            let b = Builder::zeros();
            let _model = GptNeox::new(&GptNeoxConfig::variant(name).unwrap(), &b);
            assert_eq!(b.finish().unwrap().elements(), parameters, "{name}");
        }
        assert!(GptNeoxConfig::variant("pythia-2b").is_none());
    }
}
