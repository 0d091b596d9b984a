//! The visual abstractor of mPLUG-Owl: learned queries that gather what a picture shows.
//!
//! Ye et al. 2023, "mPLUG-Owl", arXiv:2304.14178, §3.1. Queries attend to themselves and to the image
//! tokens in every block; the last ones become as wide as a word, and one learned token ends each
//! picture. The original code adds what a block reads to the normalised queries, not to what they were.

use crate::Result;
use crate::connector::qformer::Memory;
use ocelli_nn::layers::{Attention, LayerNorm, Linear};
use ocelli_nn::{Builder, Init, Name, Names, Parameter, copy};
use ocelli_tensor::{Activation, AttentionMask, Tensor};

/// Sizes of an abstractor.
#[derive(Clone, Debug, PartialEq)]
pub struct AbstractorConfig {
    /// Learned queries.
    pub queries: usize,
    /// Width of a query.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads of each attention.
    pub heads: usize,
    /// Hidden width of each perceptron.
    pub mlp_dim: usize,
    /// Epsilon of the norm inside of each perceptron.
    pub mlp_norm_eps: f32,
    /// Width of an image token.
    pub memory_width: usize,
    /// Width of a word of the language model.
    pub text_width: usize,
}

impl AbstractorConfig {
    /// The published sizes (§3.1 and the released configuration).
    pub fn base(memory_width: usize, text_width: usize) -> Self {
        Self {
            queries: 64,
            width: 1024,
            depth: 6,
            heads: 16,
            mlp_dim: 4096,
            mlp_norm_eps: 1e-6,
            memory_width,
            text_width,
        }
    }

    /// Tokens that a picture becomes: one for each query, and the one that ends it.
    pub fn image_tokens(&self) -> usize {
        self.queries + 1
    }
}

/// All weights are drawn from N(0, 0.02).
const INIT: Init = Init::Normal(0.02);
/// Epsilon of the norms around the attention, whatever the configuration says.
const NORM_EPS: f32 = 1e-5;

/// `down(norm(silu(gate(x)) * up(x)))`, with biases.
#[derive(Debug)]
struct NormedMlp {
    gate: Linear,
    up: Linear,
    norm: LayerNorm,
    down: Linear,
}

impl NormedMlp {
    fn new(b: &Builder, c: &AbstractorConfig) -> Self {
        Self {
            gate: Linear::new(&b.at("gate"), c.width, c.mlp_dim, true, INIT),
            up: Linear::new(&b.at("up"), c.width, c.mlp_dim, true, INIT),
            norm: LayerNorm::new(&b.at("norm"), c.mlp_dim, c.mlp_norm_eps),
            down: Linear::new(&b.at("down"), c.mlp_dim, c.width, true, INIT),
        }
    }

    /// With `residual` added; `[batch, queries, width]` in and out.
    fn forward(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let gate = self.gate.forward_with(x, Activation::Silu, None)?; // [batch, queries, mlp_dim]
        let hidden = self.norm.forward(&gate.mul(&self.up.forward(x)?)?)?;
        Ok(self.down.forward_with(&hidden, Activation::None, Some(residual))?)
    }
}

#[derive(Debug)]
struct Block {
    norm_query: LayerNorm,
    norm_memory: LayerNorm,
    attn: Attention,
    norm_mlp: LayerNorm,
    mlp: NormedMlp,
}

impl Block {
    fn new(b: &Builder, c: &AbstractorConfig) -> Self {
        Self {
            norm_query: LayerNorm::new(&b.at("norm_query"), c.width, NORM_EPS),
            norm_memory: LayerNorm::new(&b.at("norm_memory"), c.memory_width, NORM_EPS),
            attn: Attention::to_memory(&b.at("attn"), c.width, c.memory_width, c.heads, INIT),
            norm_mlp: LayerNorm::new(&b.at("norm_mlp"), c.width, NORM_EPS),
            mlp: NormedMlp::new(&b.at("mlp"), c),
        }
    }

    /// `[batch, queries, width]` in and out.
    fn forward(&self, x: &Tensor, memory: &Tensor, mask: &AttentionMask) -> Result<Tensor> {
        let q = self.norm_query.forward(x)?;
        let seen = Tensor::cat(&[&q, &self.norm_memory.forward(memory)?], 1)?; // [batch, queries + tokens, width]
        // Differs from the paper: the sum starts from the normalised queries, as in the original code.
        let x = self.attn.forward(&q, &seen, mask, Some(&q))?;
        self.mlp.forward(&self.norm_mlp.forward(&x)?, &x)
    }
}

/// The visual abstractor.
#[derive(Debug)]
pub struct Abstractor {
    config: AbstractorConfig,
    blocks: Vec<Block>,
    projection: Linear,
    end: Parameter,
}

impl Abstractor {
    /// An abstractor whose parameters come from `b`. Its queries lie elsewhere in the original files, so
    /// [`Abstractor::forward`] is given them.
    pub fn new(config: &AbstractorConfig, b: &Builder) -> Self {
        let c = config;
        Self {
            blocks: (0..c.depth).map(|i| Block::new(&b.at("blocks").at(i), c)).collect(),
            projection: Linear::new(&b.at("projection"), c.width, c.text_width, true, INIT),
            end: b.parameter("end", &[c.text_width], INIT),
            config: c.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &AbstractorConfig {
        &self.config
    }

    /// What `queries` `[queries, width]` read of image tokens: after each block,
    /// `[batch, queries, width]` each.
    ///
    /// # Errors
    /// If widths differ.
    pub fn states(&self, queries: &Tensor, memory: &Memory) -> Result<Vec<Tensor>> {
        let [n, width] = [0, 1].map(|axis| queries.shape().get(axis).copied().unwrap_or(1));
        let batch = memory.batch();
        let mut x = Tensor::zeros(&[batch, n, width]).add_table(queries)?;
        let keys = memory.mask.as_ref().map(|mask| {
            let rows = mask.chunks(memory.tokens.shape()[1].max(1));
            rows.flat_map(|row| std::iter::repeat_n(1, n).chain(row.iter().copied())).collect()
        });
        let mask = AttentionMask { keys, ..AttentionMask::default() };
        let mut states = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            x = block.forward(&x, &memory.tokens, &mask)?;
            states.push(x.clone());
        }
        Ok(states)
    }

    /// What a language model is shown of [`Abstractor::states`], the last of them,
    /// `[batch, queries + 1, text_width]`.
    ///
    /// # Errors
    /// If the width is another.
    pub fn shown(&self, last: &Tensor) -> Result<Tensor> {
        let read = self.projection.forward(last)?; // [batch, queries, text_width]
        let [batch, width] = [read.shape()[0], self.config.text_width];
        let ends = Tensor::zeros(&[batch, 1, width]);
        let ends = ends.add_table(&self.end.tensor().reshape(&[1, width])?)?;
        Ok(Tensor::cat(&[&read, &ends], 1)?)
    }

    /// Image tokens `[batch, tokens, memory_width]` to what a language model is shown,
    /// `[batch, queries + 1, text_width]`.
    ///
    /// # Errors
    /// If widths differ.
    pub fn forward(&self, queries: &Tensor, memory: &Memory) -> Result<Tensor> {
        let mut states = self.states(queries, memory)?;
        self.shown(&states.pop().unwrap_or_else(|| queries.clone()))
    }
}

/// The original files; `~` is `abstractor.` in a whole one.
pub const ORIGINAL: &[Name] = &[
    copy("blocks.*.norm_query.*", "~encoder.layers.*.crossattention.norm1.*"),
    copy("blocks.*.norm_memory.*", "~encoder.layers.*.crossattention.normk.*"),
    copy("blocks.*.attn.q.*", "~encoder.layers.*.crossattention.attention.query.*"),
    copy("blocks.*.attn.k.*", "~encoder.layers.*.crossattention.attention.key.*"),
    copy("blocks.*.attn.v.*", "~encoder.layers.*.crossattention.attention.value.*"),
    copy("blocks.*.attn.out.*", "~encoder.layers.*.crossattention.output.out_proj.*"),
    copy("blocks.*.norm_mlp.*", "~encoder.layers.*.crossattention.output.norm2.*"),
    copy("blocks.*.mlp.gate.*", "~encoder.layers.*.crossattention.output.mlp.w1.*"),
    copy("blocks.*.mlp.up.*", "~encoder.layers.*.crossattention.output.mlp.w3.*"),
    copy("blocks.*.mlp.norm.*", "~encoder.layers.*.crossattention.output.mlp.ffn_ln.*"),
    copy("blocks.*.mlp.down.*", "~encoder.layers.*.crossattention.output.mlp.w2.*"),
    copy("projection.*", "~visual_fc.*"),
    copy("end", "~vit_eos").leading(2),
];

/// The name map of the original files; `prefix` stands before the names of an abstractor.
pub fn names(prefix: &str) -> Names {
    Names::family(ORIGINAL, &[]).with_prefix(prefix)
}
