//! OPT: the language model of BLIP-2.
//!
//! Zhang et al. 2022, "OPT: Open Pre-trained Transformer Language Models", arXiv:2205.01068, §2.1: a
//! decoder with learned positions, ReLU and the word table as head. Norms stand before each part,
//! except in the 350M size, whose norms follow the sums and whose word vectors are narrower than its
//! tokens.

use super::causal::{Before, CausalModel, Interleaved, StepBefore};
use crate::Result;
use crate::generate::{BlockCache, Cache, Decoder, Rows};
use ocelli_nn::layers::{Attention, AttentionSizes, LayerNorm, Linear, Mlp};
use ocelli_nn::{Builder, Init, Name, Names, Parameter, copy};
use ocelli_tensor::{Activation, AttentionMask, Heads, Step, Tensor};
use std::sync::Arc;

/// Sizes of an OPT (§2.1, Table 1).
#[derive(Clone, Debug, PartialEq)]
pub struct OptConfig {
    /// Rows of the word table.
    pub vocab: usize,
    /// Tokens of a text at most.
    pub context_length: usize,
    /// Width of a word vector.
    pub word_width: usize,
    /// Width of a token.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads of each attention.
    pub heads: usize,
    /// Hidden width of each perceptron.
    pub mlp_dim: usize,
    /// Activation of the perceptrons.
    pub activation: Activation,
    /// Whether norms stand before each part; else they follow the sums.
    pub norms_first: bool,
    /// Whether a norm follows the last block.
    pub has_final_norm: bool,
}

impl OptConfig {
    /// A published size: `"125m"`, `"350m"`, `"1.3b"`, `"2.7b"`, `"6.7b"` or `"13b"`.
    pub fn variant(name: &str) -> Option<Self> {
        let (width, depth, heads) = match name {
            "125m" => (768, 12, 12),
            "350m" => (1024, 24, 16),
            "1.3b" => (2048, 24, 32),
            "2.7b" => (2560, 32, 32),
            "6.7b" => (4096, 32, 32),
            "13b" => (5120, 40, 40),
            _ => return None,
        };
        let is_350m = name == "350m";
        Some(Self {
            vocab: 50_272,
            context_length: 2048,
            word_width: if is_350m { 512 } else { width },
            width,
            depth,
            heads,
            mlp_dim: 4 * width,
            activation: Activation::Relu,
            norms_first: !is_350m,
            has_final_norm: !is_350m,
        })
    }
}

/// All weights are drawn from N(0, 0.02).
const INIT: Init = Init::Normal(0.02);
/// No configuration tells it.
const NORM_EPS: f32 = 1e-5;
/// Rows of the position table before that of the first token; padding has the second of them.
const OFFSET: u32 = 2;

#[derive(Debug)]
struct Block {
    attn: Attention,
    norm1: LayerNorm,
    mlp: Mlp,
    norm2: LayerNorm,
    norms_first: bool,
}

impl Block {
    fn new(b: &Builder, c: &OptConfig) -> Self {
        let sizes = AttentionSizes {
            width: c.width,
            memory_width: c.width,
            heads: Heads::same(c.heads),
            head_dim: c.width / c.heads.max(1),
            has_bias: true,
            has_out_bias: true,
        };
        Self {
            attn: Attention::new(&b.at("attn"), sizes, INIT, INIT),
            norm1: LayerNorm::new(&b.at("norm1"), c.width, NORM_EPS),
            mlp: Mlp::new(&b.at("mlp"), c.width, c.mlp_dim, c.activation, INIT, INIT),
            norm2: LayerNorm::new(&b.at("norm2"), c.width, NORM_EPS),
            norms_first: c.norms_first,
        }
    }

    /// `[batch, tokens, width]` in and out; `attend(x, residual)` is the attention.
    fn around(
        &self,
        x: &Tensor,
        attend: impl FnOnce(&Tensor, &Tensor) -> ocelli_tensor::Result<Tensor>,
    ) -> Result<Tensor> {
        if self.norms_first {
            let x = attend(&self.norm1.forward(x)?, x)?;
            return Ok(self.mlp.forward(&self.norm2.forward(&x)?, Some(&x))?);
        }
        let x = self.norm1.forward(&attend(x, x)?)?;
        Ok(self.norm2.forward(&self.mlp.forward(&x, Some(&x))?)?)
    }

    fn forward(&self, x: &Tensor, mask: &AttentionMask) -> Result<Tensor> {
        self.around(x, |x, residual| self.attn.forward(x, x, mask, Some(residual)))
    }

    /// The same for new tokens of a text.
    fn step(&self, x: &Tensor, step: &Step, cache: &mut BlockCache) -> Result<Tensor> {
        self.around(x, |x, residual| self.attn.step(x, &mut cache.own, None, step, Some(residual)))
    }
}

/// OPT.
#[derive(Debug)]
pub struct Opt {
    config: OptConfig,
    word: Parameter,
    position: Parameter,
    project_in: Option<Linear>,
    blocks: Vec<Block>,
    norm: Option<LayerNorm>,
    project_out: Option<Linear>,
    head: Linear,
}

impl Opt {
    /// A model whose parameters come from `b`.
    pub fn new(config: &OptConfig, b: &Builder) -> Self {
        let c = config;
        let word = b.parameter("word", &[c.vocab, c.word_width], INIT);
        let projected = |name: &str, inputs, outputs| {
            let is_there = c.word_width != c.width;
            is_there.then(|| Linear::new(&b.at(name), inputs, outputs, false, INIT))
        };
        let rows = c.context_length + OFFSET as usize;
        Self {
            position: b.parameter("position", &[rows, c.width], INIT),
            project_in: projected("project_in", c.word_width, c.width),
            blocks: (0..c.depth).map(|i| Block::new(&b.at("blocks").at(i), c)).collect(),
            norm: c.has_final_norm.then(|| LayerNorm::new(&b.at("norm"), c.width, NORM_EPS)),
            project_out: projected("project_out", c.width, c.word_width),
            head: Linear::from_parts(word.clone(), None),
            word,
            config: config.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &OptConfig {
        &self.config
    }

    /// Tokens `[batch, tokens, width]` from word vectors `[batch, tokens, word_width]` and the rows of
    /// the position table.
    fn placed(&self, embeddings: &Tensor, rows: &Arc<[u32]>) -> Result<Tensor> {
        let [batch, tokens] = [0, 1].map(|axis| embeddings.shape().get(axis).copied().unwrap_or(1));
        let position = self.position.tensor().embedding(rows, &[batch, tokens])?;
        let x = match &self.project_in {
            Some(project) => project.forward(embeddings)?,
            None => embeddings.clone(),
        };
        Ok(x.add(&position)?)
    }

    /// What the head reads, from tokens after the last block.
    fn finished(&self, x: Tensor) -> Result<Tensor> {
        let x = match &self.norm {
            Some(norm) => norm.forward(&x)?,
            None => x,
        };
        match &self.project_out {
            Some(project) => Ok(project.forward(&x)?),
            None => Ok(x),
        }
    }
}

impl Decoder for Opt {
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

impl Interleaved for Opt {
    fn depth(&self) -> usize {
        self.config.depth
    }

    fn width(&self) -> usize {
        self.config.width
    }

    fn advance_between(
        &self,
        rows: &Rows,
        cache: &mut Cache,
        before: &StepBefore,
    ) -> Result<Tensor> {
        // Padding behind a row may reach past the table; any row does for it.
        let last = (self.config.context_length as u32).saturating_sub(1);
        let positions = rows.positions(&cache.lens());
        let positions = positions.iter().map(|p| (*p).min(last) + OFFSET).collect();
        let mut x = self.placed(&rows.embeddings, &positions)?;
        for (i, (block, cache)) in self.blocks.iter().zip(cache.blocks_mut()).enumerate() {
            x = block.step(&before(i, x, cache)?, &rows.causal_step(), cache)?;
        }
        self.logits(&self.finished(rows.last(&x)?)?)
    }

    fn features_between(
        &self,
        embeddings: &Tensor,
        mask: Option<&Arc<[u8]>>,
        before: &Before,
    ) -> Result<Tensor> {
        let tokens = embeddings.shape().get(1).copied().unwrap_or(1);
        // Positions count the tokens that are not padding.
        let count = |row: &[u8]| {
            let mut seen = 0;
            let next = |real: &u8| {
                seen += u32::from(*real != 0);
                if *real != 0 { seen - 1 + OFFSET } else { OFFSET - 1 }
            };
            row.iter().map(next).collect::<Vec<_>>()
        };
        let positions: Arc<[u32]> = match mask {
            Some(mask) => mask.chunks(tokens.max(1)).flat_map(count).collect(),
            None => super::causal::positions(embeddings).iter().map(|p| p + OFFSET).collect(),
        };
        let mask = AttentionMask { keys: mask.cloned(), ..AttentionMask::causal() };
        let mut x = self.placed(embeddings, &positions)?;
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&before(i, x)?, &mask)?;
        }
        self.finished(x)
    }
}

impl CausalModel for Opt {
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

/// transformers `OPTForCausalLM`; `~` is `model.` or nothing, behind what a system puts in front.
pub const TRANSFORMERS: &[Name] = &[
    copy("word", "~decoder.embed_tokens.weight"),
    copy("position", "~decoder.embed_positions.weight"),
    copy("project_in.weight", "~decoder.project_in.weight"),
    copy("blocks.*.attn.q.*", "~decoder.layers.*.self_attn.q_proj.*"),
    copy("blocks.*.attn.k.*", "~decoder.layers.*.self_attn.k_proj.*"),
    copy("blocks.*.attn.v.*", "~decoder.layers.*.self_attn.v_proj.*"),
    copy("blocks.*.attn.out.*", "~decoder.layers.*.self_attn.out_proj.*"),
    copy("blocks.*.norm1.*", "~decoder.layers.*.self_attn_layer_norm.*"),
    copy("blocks.*.mlp.up.*", "~decoder.layers.*.fc1.*"),
    copy("blocks.*.mlp.down.*", "~decoder.layers.*.fc2.*"),
    copy("blocks.*.norm2.*", "~decoder.layers.*.final_layer_norm.*"),
    copy("norm.*", "~decoder.final_layer_norm.*"),
    copy("project_out.weight", "~decoder.project_out.weight"),
];

/// Name map of a file; `prefix` is `"model."` or `""`, behind what a system puts in front.
pub fn names(prefix: &str) -> Names {
    // The word table again.
    let ignored = &["lm_head.weight", "language_model.lm_head.weight"];
    Names::family(TRANSFORMERS, ignored).with_prefix(prefix)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::*;

    #[test]
    fn published_sizes_have_their_parameters() {
        for (name, parameters) in [
            ("125m", 125_239_296),
            ("350m", 331_196_416),
            ("1.3b", 1_315_758_080),
            ("2.7b", 2_651_596_800),
            ("6.7b", 6_658_473_984),
        ] {
            let b = Builder::zeros();
            let _model = Opt::new(&OptConfig::variant(name).unwrap(), &b);
            assert_eq!(b.finish().unwrap().elements(), parameters, "{name}");
        }
        assert!(OptConfig::variant("1b").is_none());
    }
}
