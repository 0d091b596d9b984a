//! T5: an encoder that reads text and a decoder that writes it. T5 v1.0, v1.1 and Flan-T5.
//!
//! Raffel et al. 2019, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
//! Transformer", arXiv:1910.10683, §2.1: blocks with the norm before each part, norms without a mean
//! and no biases anywhere. Scores are not scaled; a learned bias per distance and head, one table for
//! all blocks of a side, stands for positions. Version 1.1 has a gate in the perceptron (Shazeer
//! 2020, arXiv:2002.05202) and a head of its own; Flan-T5 (Chung et al. 2022, arXiv:2210.11416) is
//! the same model trained further. Dropout is left out.

use crate::generate::{BlockCache, Cache, Decoder, Prompt, Rows};
use crate::{Error, Result};
use ocelli_nn::layers::{Attention, AttentionSizes, GatedMlp, Linear, RmsNorm};
use ocelli_nn::{Builder, Init, Name, Names, Parameter, copy};
use ocelli_tensor::{Activation, AttentionMask, Heads, Step, Targets, Tensor};
use std::sync::Arc;

/// Sizes of a T5 (§2.1).
#[derive(Clone, Debug, PartialEq)]
pub struct T5Config {
    /// Rows of the word table.
    pub vocab: usize,
    /// Width of a token.
    pub width: usize,
    /// Blocks of the encoder.
    pub encoder_depth: usize,
    /// Blocks of the decoder.
    pub decoder_depth: usize,
    /// Heads of each attention.
    pub heads: usize,
    /// Values per head; `heads * head_dim` need not be `width`.
    pub head_dim: usize,
    /// Hidden width of each perceptron.
    pub mlp_dim: usize,
    /// Activation of the perceptron.
    pub activation: Activation,
    /// Whether the perceptron has a gate.
    pub has_gate: bool,
    /// Rows of the tables of position biases, even.
    pub buckets: usize,
    /// From this distance on, in tokens, all keys share a bucket.
    pub max_distance: usize,
    /// Epsilon of the norms.
    pub norm_eps: f32,
    /// Whether the head has a table of its own; else it is the word table.
    pub has_own_head: bool,
    /// Whether the head's input is multiplied by `width`^-1/2.
    pub scales_head: bool,
    /// The token that an answer begins behind.
    pub start_id: u32,
    /// The token that stands for nothing.
    pub pad_id: u32,
}

impl T5Config {
    /// A published size of Flan-T5 and T5 v1.1: `"small"`, `"base"`, `"large"`, `"xl"`, `"xxl"`.
    pub fn variant(name: &str) -> Option<Self> {
        let (width, depth, heads, mlp_dim) = match name {
            "small" => (512, 8, 6, 1024),
            "base" => (768, 12, 12, 2048),
            "large" => (1024, 24, 16, 2816),
            "xl" => (2048, 24, 32, 5120),
            "xxl" => (4096, 24, 64, 10_240),
            _ => return None,
        };
        Some(Self {
            vocab: 32_128,
            width,
            encoder_depth: depth,
            decoder_depth: depth,
            heads,
            head_dim: 64,
            mlp_dim,
            activation: Activation::GeluTanh,
            has_gate: true,
            buckets: 32,
            max_distance: 128,
            norm_eps: 1e-6,
            has_own_head: true,
            scales_head: false,
            start_id: 0,
            pad_id: 0,
        })
    }
}

/// N(0, `fan`^-1/2).
fn init(fan: usize) -> Init {
    Init::Normal(1.0 / (fan as f32).sqrt())
}

fn attention(b: &Builder, c: &T5Config) -> Attention {
    let mixed = c.heads * c.head_dim;
    let linear = |name: &str, inputs, outputs, fan| {
        Linear::new(&b.at(name), inputs, outputs, false, init(fan))
    };
    let layers = [
        // The scale that scores lack is in the queries' first values.
        linear("q", c.width, mixed, c.width * c.head_dim),
        linear("k", c.width, mixed, c.width),
        linear("v", c.width, mixed, c.width),
        linear("out", mixed, c.width, mixed),
    ];
    let sizes = AttentionSizes {
        width: c.width,
        memory_width: c.width,
        heads: Heads::same(c.heads),
        head_dim: c.head_dim,
        has_bias: false,
        has_out_bias: false,
    };
    Attention::from_parts(layers, sizes)
}

/// The perceptron of a block.
#[derive(Debug)]
enum FeedForward {
    /// `down(activation(up(x)))`, without biases.
    Plain {
        up: Linear,
        down: Linear,
        activation: Activation,
    },
    Gated(GatedMlp),
}

impl FeedForward {
    fn new(b: &Builder, c: &T5Config) -> Self {
        let (width, hidden, activation) = (c.width, c.mlp_dim, c.activation);
        let (init_up, init_down) = (init(width), init(hidden));
        if c.has_gate {
            return Self::Gated(GatedMlp::new(b, width, hidden, activation, init_up, init_down));
        }
        Self::Plain {
            up: Linear::new(&b.at("up"), width, hidden, false, init_up),
            down: Linear::new(&b.at("down"), hidden, width, false, init_down),
            activation,
        }
    }

    fn forward(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Plain { up, down, activation } => {
                let hidden = up.forward_with(x, *activation, None)?; // [.., mlp_dim]
                down.forward_with(&hidden, Activation::None, Some(residual))?
            }
            Self::Gated(mlp) => mlp.forward(x, Some(residual))?,
        })
    }
}

/// A block of the encoder, or one of the decoder, which attends to the encoder's tokens as well.
#[derive(Debug)]
struct Block {
    norm1: RmsNorm,
    attn: Attention,
    cross: Option<(RmsNorm, Attention)>,
    norm2: RmsNorm,
    mlp: FeedForward,
}

impl Block {
    fn new(b: &Builder, c: &T5Config, has_cross: bool) -> Self {
        let norm = |name: &str| RmsNorm::new(&b.at(name), c.width, c.norm_eps);
        Self {
            norm1: norm("norm1"),
            attn: attention(&b.at("attn"), c),
            cross: has_cross.then(|| (norm("cross_norm"), attention(&b.at("cross"), c))),
            norm2: norm("norm2"),
            mlp: FeedForward::new(&b.at("mlp"), c),
        }
    }

    /// `[batch, tokens, width]` in and out.
    fn forward(
        &self,
        x: &Tensor,
        mask: &AttentionMask,
        memory: Option<(&Tensor, &AttentionMask)>,
    ) -> Result<Tensor> {
        let normed = self.norm1.forward(x)?;
        let mut x = self.attn.forward(&normed, &normed, mask, Some(x))?;
        if let (Some((norm, cross)), Some((memory, mask))) = (&self.cross, memory) {
            x = cross.forward(&norm.forward(&x)?, memory, mask, Some(&x))?;
        }
        self.mlp.forward(&self.norm2.forward(&x)?, &x)
    }

    /// The same for new tokens of an answer.
    fn step(
        &self,
        x: &Tensor,
        own: &Step,
        memory: &Step,
        cache: &mut BlockCache,
    ) -> Result<Tensor> {
        let normed = self.norm1.forward(x)?;
        let mut x = self.attn.step(&normed, &mut cache.own, None, own, Some(x))?;
        if let (Some((norm, cross)), Some(kept)) = (&self.cross, &cache.memory) {
            x = cross.recall(&norm.forward(&x)?, kept, memory, Some(&x))?;
        }
        self.mlp.forward(&self.norm2.forward(&x)?, &x)
    }
}

/// One side of the model.
#[derive(Debug)]
struct Stack {
    /// `[buckets, heads]`.
    position_bias: Parameter,
    blocks: Vec<Block>,
    norm: RmsNorm,
    /// Whether tokens see those behind them.
    is_bidirectional: bool,
    max_distance: usize,
}

impl Stack {
    fn new(b: &Builder, c: &T5Config, depth: usize, is_encoder: bool) -> Self {
        let block = |i: usize| Block::new(&b.at("blocks").at(i), c, !is_encoder);
        Self {
            position_bias: b.parameter("position_bias", &[c.buckets, c.heads], init(c.width)),
            blocks: (0..depth).map(block).collect(),
            norm: RmsNorm::new(&b.at("norm"), c.width, c.norm_eps),
            is_bidirectional: is_encoder,
            max_distance: c.max_distance,
        }
    }

    /// What is added to the scores, `[pasts, heads, queries, keys]`: query i of sample s stands at
    /// position `pasts[s] + i`, key j at j.
    fn bias(&self, pasts: &[usize], queries: usize, keys: usize) -> Result<Tensor> {
        let table = self.position_bias.tensor();
        let buckets = table.shape()[0];
        let mut at = Vec::with_capacity(pasts.len() * queries * keys);
        for past in pasts {
            for query in *past..past + queries {
                at.extend((0..keys).map(|key| self.bucket(key, query, buckets)));
            }
        }
        let rows = table.embedding(&at.into(), &[pasts.len(), queries, keys])?;
        Ok(rows.permute(&[0, 3, 1, 2])?) // [pasts, heads, queries, keys]
    }

    /// The row of the table for a key at this position: one each for near keys, then wider and wider
    /// ones. With 8 buckets and a distance of 16, keys that are so many tokens away:
    ///
    /// ```text
    /// decoder, before  0 1 2 3 4 5 6 7 8 9 ..    encoder, before  0 1 2 3 4 5 6 ..
    /// bucket           0 1 2 3 4 4 5 5 6 6 ..    bucket           0 1 2 2 2 2 3 ..
    ///                                            behind: 4 more
    /// ```
    fn bucket(&self, key: usize, query: usize, buckets: usize) -> u32 {
        let side = if self.is_bidirectional { buckets / 2 } else { buckets };
        let is_behind = key > query;
        let (base, distance) = match (self.is_bidirectional, is_behind) {
            (true, true) => (side, key - query),
            (false, true) => (0, 0),
            (_, false) => (0, query - key),
        };
        let exact = side / 2;
        if distance < exact {
            return (base + distance) as u32;
        }
        // In f32 as in the reference, as the rounding decides where buckets end.
        let octaves = (distance as f32 / exact as f32).ln();
        let span = (self.max_distance as f64 / exact as f64).ln() as f32;
        let wide = exact + (octaves / span * (side - exact) as f32) as usize;
        (base + wide.min(side - 1)) as u32
    }

    fn forward(
        &self,
        x: &Tensor,
        keys: Option<Arc<[u8]>>,
        memory: Option<(&Tensor, &AttentionMask)>,
    ) -> Result<Tensor> {
        let tokens = x.shape().get(1).copied().unwrap_or(0);
        let mask = AttentionMask {
            is_causal: !self.is_bidirectional,
            keys,
            bias: Some(self.bias(&[0], tokens, tokens)?),
            scale: Some(1.0),
        };
        let mut x = x.clone();
        for block in &self.blocks {
            x = block.forward(&x, &mask, memory)?;
        }
        Ok(self.norm.forward(&x)?)
    }
}

/// What an encoder has made of its input.
#[derive(Clone, Debug)]
pub struct Memory {
    /// `[batch, tokens, width]`.
    pub tokens: Tensor,
    /// `[batch, tokens]`, 0 for padding; all tokens are real if `None`.
    pub mask: Option<Arc<[u8]>>,
}

/// T5.
#[derive(Debug)]
pub struct T5 {
    config: T5Config,
    word: Parameter,
    encoder: Stack,
    decoder: Stack,
    head: Linear,
}

impl T5 {
    /// A model whose parameters come from `b`.
    pub fn new(config: &T5Config, b: &Builder) -> Self {
        let c = config;
        let word = b.parameter("word", &[c.vocab, c.width], Init::Normal(1.0));
        let head = if c.has_own_head {
            Linear::new(&b.at("head"), c.width, c.vocab, false, Init::Normal(1.0))
        } else {
            Linear::from_parts(word.clone(), None)
        };
        Self {
            encoder: Stack::new(&b.at("encoder"), c, c.encoder_depth, true),
            decoder: Stack::new(&b.at("decoder"), c, c.decoder_depth, false),
            config: config.clone(),
            word,
            head,
        }
    }

    /// The sizes.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// Embeddings of ids of `shape`, `[shape.., width]`, for both sides.
    ///
    /// # Errors
    /// If an id is not in the vocabulary.
    pub fn embed(&self, ids: &Arc<[u32]>, shape: &[usize]) -> Result<Tensor> {
        Ok(self.word.tensor().embedding(ids, shape)?)
    }

    /// Reads embeddings `[batch, tokens, width]`; `mask` is `[batch, tokens]`, 0 for padding.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn encode(&self, embeddings: &Tensor, mask: Option<Arc<[u8]>>) -> Result<Memory> {
        let tokens = self.encoder.forward(embeddings, mask.clone(), None)?;
        Ok(Memory { tokens, mask })
    }

    /// The decoder's tokens behind its last norm, `[batch, tokens, width]`, from embeddings of what is
    /// written, which begins with [`T5Config::start_id`]; `own` is `[batch, tokens]`, 0 for padding.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn decode(
        &self,
        embeddings: &Tensor,
        own: Option<Arc<[u8]>>,
        memory: &Memory,
    ) -> Result<Tensor> {
        let keys = memory.mask.clone();
        let mask = AttentionMask { keys, scale: Some(1.0), ..AttentionMask::default() };
        self.decoder.forward(embeddings, own, Some((&memory.tokens, &mask)))
    }

    /// Logits of the token behind each one, `[.., vocab]`, from [`T5::decode`].
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn logits(&self, features: &Tensor) -> Result<Tensor> {
        if self.config.scales_head {
            let scaled = features.scale(1.0 / (self.config.width as f32).sqrt())?;
            return Ok(self.head.forward(&scaled)?);
        }
        Ok(self.head.forward(features)?)
    }

    /// Logits of labels `[batch, tokens]`, each from the labels before it: `[batch, tokens, vocab]`.
    /// The decoder reads the labels one place to the right:
    ///
    /// ```text
    /// labels   a     cat   </s>  -100
    /// read     start a     cat   </s>
    /// ```
    ///
    /// `own` `[batch, tokens]` hides those that it holds 0 for from the places behind them.
    ///
    /// # Errors
    /// If a label is not in the vocabulary, or shapes do not fit.
    pub fn label_logits(
        &self,
        memory: &Memory,
        labels: &[u32],
        own: Option<Arc<[u8]>>,
    ) -> Result<Tensor> {
        let batch = memory.tokens.shape()[0].max(1);
        let tokens = labels.len() / batch;
        let (start, pad) = (self.config.start_id, self.config.pad_id);
        let real = |id: &u32| if *id == Targets::IGNORED { pad } else { *id };
        let read = labels.chunks(tokens.max(1)).flat_map(|row| {
            [start].into_iter().chain(row[..row.len() - 1].iter().map(real)).collect::<Vec<_>>()
        });
        let read = self.embed(&read.collect(), &[batch, tokens])?; // [batch, tokens, width]
        self.logits(&self.decode(&read, own, memory)?)
    }

    /// The mean cross-entropy of labels `[batch, tokens]`; [`Targets::IGNORED`] takes no part.
    ///
    /// # Errors
    /// As for [`T5::label_logits`].
    pub fn loss(&self, memory: &Memory, labels: &[u32]) -> Result<Tensor> {
        let logits = self.label_logits(memory, labels, None)?;
        Ok(logits.cross_entropy(&Targets::Classes(labels.into(), 0.0))?)
    }

    /// A prompt and a cache to answer texts of any lengths, from the embeddings `[tokens, width]` of each.
    ///
    /// # Errors
    /// If a text is empty, or shapes do not fit.
    pub fn prompts(&self, texts: &[Tensor]) -> Result<(Vec<Prompt>, Cache)> {
        if let Some(index) = texts.iter().position(|text| text.shape().rows() == 0) {
            return Err(Error::EmptyPrompt { index });
        }
        let rows = Rows::join(texts)?;
        let tokens = rows.embeddings.shape()[1];
        let real = |len: &usize| (0..tokens).map(|t| u8::from(t < *len)).collect::<Vec<_>>();
        let memory =
            self.encode(&rows.embeddings, Some(rows.lens.iter().flat_map(real).collect()))?;
        let start = Prompt::text(self, &[self.config.start_id])?;
        Ok((vec![start; texts.len()], self.new_cache(&memory.tokens, &rows.lens)?))
    }

    /// An empty cache of answers to a memory `[batch, tokens, width]` whose rows have `lens` tokens
    /// without padding; a prompt for it is [`T5Config::start_id`].
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn new_cache(&self, memory: &Tensor, lens: &[usize]) -> Result<Cache> {
        let mut blocks = Vec::with_capacity(self.decoder.blocks.len());
        for block in &self.decoder.blocks {
            let kept = match &block.cross {
                Some((_, cross)) => Some(cross.remember(memory, lens)?),
                None => None,
            };
            blocks.push(BlockCache { own: block.attn.cache(lens.len()), memory: kept });
        }
        Ok(Cache::new(blocks))
    }
}

impl Decoder for T5 {
    fn context_length(&self) -> Option<usize> {
        None
    }

    fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        T5::embed(self, &ids.into(), &[ids.len()])
    }

    fn advance(&self, rows: &Rows, cache: &mut Cache) -> Result<Tensor> {
        let past = cache.lens();
        let tokens = rows.embeddings.shape().get(1).copied().unwrap_or(0);
        let most = past.iter().max().copied().unwrap_or(0);
        // Rows of one length share their bias.
        let is_even = past.iter().all(|n| *n == most);
        let shared = &past[..if is_even { past.len().min(1) } else { past.len() }];
        let bias = self.decoder.bias(shared, tokens, most + tokens)?;
        let own = Step { bias: Some(&bias), scale: Some(1.0), ..rows.causal_step() };
        let memory = Step { scale: Some(1.0), ..rows.memory_step() };
        let mut x = rows.embeddings.clone();
        for (block, cache) in self.decoder.blocks.iter().zip(cache.blocks_mut()) {
            x = block.step(&x, &own, &memory, cache)?;
        }
        self.logits(&self.decoder.norm.forward(&rows.last(&x)?)?)
    }
}

/// transformers `T5ForConditionalGeneration`; `~` is what a system puts in front.
pub const TRANSFORMERS: &[Name] = &[
    copy("word", "~shared.weight"),
    copy(
        "encoder.position_bias",
        "~encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    copy("encoder.blocks.*.norm1.weight", "~encoder.block.*.layer.0.layer_norm.weight"),
    copy("encoder.blocks.*.attn.q.weight", "~encoder.block.*.layer.0.SelfAttention.q.weight"),
    copy("encoder.blocks.*.attn.k.weight", "~encoder.block.*.layer.0.SelfAttention.k.weight"),
    copy("encoder.blocks.*.attn.v.weight", "~encoder.block.*.layer.0.SelfAttention.v.weight"),
    copy("encoder.blocks.*.attn.out.weight", "~encoder.block.*.layer.0.SelfAttention.o.weight"),
    copy("encoder.blocks.*.norm2.weight", "~encoder.block.*.layer.1.layer_norm.weight"),
    copy("encoder.blocks.*.mlp.gate.weight", "~encoder.block.*.layer.1.DenseReluDense.wi_0.weight"),
    copy("encoder.blocks.*.mlp.down.weight", "~encoder.block.*.layer.1.DenseReluDense.wo.weight"),
    copy("encoder.norm.weight", "~encoder.final_layer_norm.weight"),
    copy(
        "decoder.position_bias",
        "~decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    copy("decoder.blocks.*.norm1.weight", "~decoder.block.*.layer.0.layer_norm.weight"),
    copy("decoder.blocks.*.attn.q.weight", "~decoder.block.*.layer.0.SelfAttention.q.weight"),
    copy("decoder.blocks.*.attn.k.weight", "~decoder.block.*.layer.0.SelfAttention.k.weight"),
    copy("decoder.blocks.*.attn.v.weight", "~decoder.block.*.layer.0.SelfAttention.v.weight"),
    copy("decoder.blocks.*.attn.out.weight", "~decoder.block.*.layer.0.SelfAttention.o.weight"),
    copy("decoder.blocks.*.cross_norm.weight", "~decoder.block.*.layer.1.layer_norm.weight"),
    copy("decoder.blocks.*.cross.q.weight", "~decoder.block.*.layer.1.EncDecAttention.q.weight"),
    copy("decoder.blocks.*.cross.k.weight", "~decoder.block.*.layer.1.EncDecAttention.k.weight"),
    copy("decoder.blocks.*.cross.v.weight", "~decoder.block.*.layer.1.EncDecAttention.v.weight"),
    copy("decoder.blocks.*.cross.out.weight", "~decoder.block.*.layer.1.EncDecAttention.o.weight"),
    copy("decoder.blocks.*.norm2.weight", "~decoder.block.*.layer.2.layer_norm.weight"),
    copy("decoder.blocks.*.mlp.gate.weight", "~decoder.block.*.layer.2.DenseReluDense.wi_0.weight"),
    copy("decoder.blocks.*.mlp.down.weight", "~decoder.block.*.layer.2.DenseReluDense.wo.weight"),
    copy("decoder.norm.weight", "~decoder.final_layer_norm.weight"),
    copy("head.weight", "~lm_head.weight"),
];

/// The layer of a perceptron that widens, beside a gate.
const GATED: &[Name] = &[
    copy("encoder.blocks.*.mlp.up.weight", "~encoder.block.*.layer.1.DenseReluDense.wi_1.weight"),
    copy("decoder.blocks.*.mlp.up.weight", "~decoder.block.*.layer.2.DenseReluDense.wi_1.weight"),
];

/// The same without a gate.
const PLAIN: &[Name] = &[
    copy("encoder.blocks.*.mlp.up.weight", "~encoder.block.*.layer.1.DenseReluDense.wi.weight"),
    copy("decoder.blocks.*.mlp.up.weight", "~decoder.block.*.layer.2.DenseReluDense.wi.weight"),
];

/// Copies of the word table, and a table that the original code makes and never reads.
const IGNORED: &[&str] = &[
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
];

/// Name map of a file; `prefix` stands before the names of a part of a system.
pub fn names(prefix: &str, config: &T5Config) -> Names {
    let widening = if config.has_gate { GATED } else { PLAIN };
    // A head that is the word table may be there as a copy.
    let head: &[&str] = if config.has_own_head { &[] } else { &["lm_head.weight"] };
    Names::family(TRANSFORMERS, IGNORED).and(&Names::family(widening, head)).with_prefix(prefix)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::*;
    use ocelli_tensor::no_grad;

    fn tiny() -> T5Config {
        T5Config {
            vocab: 13,
            width: 12,
            encoder_depth: 2,
            decoder_depth: 2,
            heads: 3,
            head_dim: 5,
            mlp_dim: 16,
            buckets: 8,
            max_distance: 16,
            ..T5Config::variant("small").unwrap()
        }
    }

    #[test]
    fn far_keys_share_buckets() {
        let model = T5::new(&tiny(), &Builder::random(1));
        let before =
            |stack: &Stack| (0..10).map(|n| stack.bucket(20 - n, 20, 8)).collect::<Vec<_>>();
        assert_eq!(before(&model.decoder), [0, 1, 2, 3, 4, 4, 5, 5, 6, 6]);
        assert_eq!(before(&model.encoder)[..7], [0, 1, 2, 2, 2, 2, 3]);
        assert_eq!(model.encoder.bucket(21, 20, 8), 5);
        assert_eq!(model.decoder.bucket(21, 20, 8), 0);
        assert_eq!(model.decoder.bucket(0, 500, 8), 7);
    }

    /// Rows of different pasts have a bias each.
    #[test]
    fn ragged_steps_equal_one_pass() {
        let model = T5::new(&tiny(), &Builder::random(5));
        let embed = |ids: &[u32], batch| {
            T5::embed(&model, &ids.into(), &[batch, ids.len() / batch]).unwrap()
        };
        no_grad(|| {
            let text = embed(&[1, 2, 3, 4, 5, 6], 2);
            let memory = model.encode(&text, Some([1, 1, 1, 1, 1, 0].into())).unwrap();
            let mut cache = model.new_cache(&memory.tokens, &[3, 2]).unwrap();
            let first = Rows { embeddings: embed(&[0, 7, 8, 0, 9, 0], 2), lens: vec![3, 2] };
            model.advance(&first, &mut cache).unwrap();
            let second = Rows { embeddings: embed(&[10, 11], 2), lens: vec![1, 1] };
            let stepped = model.advance(&second, &mut cache).unwrap();
            let all = embed(&[0, 7, 8, 10, 0, 9, 11, 0], 2);
            let whole = model.logits(&model.decode(&all, None, &memory).unwrap()).unwrap();
            let whole = whole.select_tokens(&[3, 2]).unwrap();
            for (a, b) in stepped.values().iter().zip(whole.values()) {
                assert!((a - b).abs() < 1e-5 * (1.0 + b.abs()), "{a} {b}");
            }
        });
    }
}
