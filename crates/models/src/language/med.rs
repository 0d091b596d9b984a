//! MED: BLIP's mixture of encoder and decoder, a BERT that can look at a picture.
//!
//! Li et al. 2022, "BLIP", arXiv:2201.12086, §3.1 and Figure 2. A post-norm BERT without segments
//! whose blocks have a cross-attention between self-attention and perceptron. It reads a text alone,
//! reads it about a memory (image tokens, or the tokens of a question), or writes it about one:
//!
//! ```text
//!                  sees         memory   first token
//! text encoder     both sides   no       [CLS]
//! grounded encoder both sides   yes      [ENC]
//! grounded decoder the left     yes      [DEC]
//! ```

use crate::generate::{BlockCache, Cache, Decoder, Rows};
use crate::language::bert::{Memory, Texts};
use crate::{Error, Result};
use ocelli_nn::layers::{Attention, LayerNorm, Linear, Mlp, SelfAttention};
use ocelli_nn::{Builder, Init, Name, Names, Parameter, concat, copy};
use ocelli_tensor::{Activation, AttentionMask, Heads, KeyValues, Targets, Tensor};
use std::sync::Arc;

/// Sizes of a MED.
#[derive(Clone, Debug, PartialEq)]
pub struct MedConfig {
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
    /// Activation of each perceptron and of the language head.
    pub activation: Activation,
    /// Epsilon of the layer norms.
    pub norm_eps: f32,
    /// Width of a token of the memory.
    pub memory_width: usize,
    /// Whether it writes: a token sees those to its left alone, and a language head follows.
    pub is_decoder: bool,
}

impl MedConfig {
    /// The published size (§4.1) for a memory of this width.
    pub fn base(memory_width: usize) -> Self {
        Self {
            vocab: 30_524,
            context_length: 512,
            width: 768,
            depth: 12,
            heads: 12,
            mlp_dim: 3072,
            activation: Activation::Gelu,
            norm_eps: 1e-12,
            memory_width,
            is_decoder: false,
        }
    }
}

/// All weights are drawn from N(0, 0.02), as in BERT.
const INIT: Init = Init::Normal(0.02);

/// Word and position tables.
#[derive(Debug)]
struct Tables {
    word: Parameter,
    position: Parameter,
    norm: LayerNorm,
}

/// The part of a block that encoder and decoder may have in common.
#[derive(Debug)]
struct Common {
    cross: Attention,
    cross_norm: LayerNorm,
    mlp: Mlp,
    mlp_norm: LayerNorm,
}

/// A post-norm block.
#[derive(Debug)]
struct Block {
    attn: SelfAttention,
    norm: LayerNorm,
    common: Arc<Common>,
}

impl Block {
    fn new(b: &Builder, c: &MedConfig, common: Arc<Common>) -> Self {
        Self {
            attn: SelfAttention::new(&b.at("attn"), c.width, c.heads, INIT, INIT),
            norm: LayerNorm::new(&b.at("norm"), c.width, c.norm_eps),
            common,
        }
    }

    /// `[batch, tokens, width]` to what leaves self-attention, cross-attention and perceptron, of the
    /// same shape.
    fn forward(
        &self,
        x: &Tensor,
        mask: &AttentionMask,
        memory: Option<(&Tensor, &AttentionMask)>,
    ) -> Result<Tensor> {
        let c = &self.common;
        let mut x = self.norm.forward(&self.attn.forward(x, mask, Some(x))?)?;
        if let Some((memory, seen)) = memory {
            x = c.cross_norm.forward(&c.cross.forward(&x, memory, seen, Some(&x))?)?;
        }
        Ok(c.mlp_norm.forward(&c.mlp.forward(&x, Some(&x))?)?)
    }

    /// The same for new tokens behind those of the cache.
    fn step(&self, x: &Tensor, rows: &Rows, cache: &mut BlockCache) -> Result<Tensor> {
        let c = &self.common;
        let step = rows.causal_step();
        let mut x = self.norm.forward(&self.attn.step(x, &mut cache.own, &step, Some(x))?)?;
        if let Some(memory) = &cache.memory {
            let seen = c.cross.recall(&x, memory, &rows.memory_step(), Some(&x))?;
            x = c.cross_norm.forward(&seen)?;
        }
        Ok(c.mlp_norm.forward(&c.mlp.forward(&x, Some(&x))?)?)
    }
}

impl Common {
    fn new(b: &Builder, c: &MedConfig) -> Self {
        let cross = b.at("cross");
        Self {
            cross: Attention::to_memory(&cross, c.width, c.memory_width, c.heads, INIT),
            cross_norm: LayerNorm::new(&b.at("cross_norm"), c.width, c.norm_eps),
            mlp: Mlp::new(&b.at("mlp"), c.width, c.mlp_dim, c.activation, INIT, INIT),
            mlp_norm: LayerNorm::new(&b.at("mlp_norm"), c.width, c.norm_eps),
        }
    }
}

/// The head that predicts the next word: a layer, and the word table again.
#[derive(Debug)]
struct LanguageHead {
    transform: Linear,
    norm: LayerNorm,
    vocab: Linear,
}

impl LanguageHead {
    fn new(b: &Builder, c: &MedConfig, word: &Parameter) -> Self {
        let bias = b.parameter("bias", &[c.vocab], Init::Constant(0.0));
        Self {
            transform: Linear::new(&b.at("transform"), c.width, c.width, true, INIT),
            norm: LayerNorm::new(&b.at("norm"), c.width, c.norm_eps),
            vocab: Linear::from_parts(word.clone(), Some(bias)),
        }
    }
}

/// MED.
#[derive(Debug)]
pub struct Med {
    config: MedConfig,
    tables: Arc<Tables>,
    blocks: Vec<Block>,
    language_head: Option<LanguageHead>,
}

impl Med {
    /// A model whose parameters come from `b`.
    pub fn new(config: &MedConfig, b: &Builder) -> Self {
        let c = config;
        let tables = Arc::new(Tables {
            word: b.parameter("word", &[c.vocab, c.width], INIT),
            position: b.parameter("position", &[c.context_length, c.width], INIT),
            norm: LayerNorm::new(&b.at("norm"), c.width, c.norm_eps),
        });
        let common = |i: usize| Arc::new(Common::new(&b.at("blocks").at(i), c));
        Self::of_parts(config, b, tables, (0..c.depth).map(common).collect())
    }

    /// A decoder that has all but self-attention in common with this encoder (§3.2); its own
    /// parameters come from `b`.
    #[must_use]
    pub fn decoder(&self, b: &Builder) -> Self {
        let config = MedConfig { is_decoder: true, ..self.config.clone() };
        let common = self.blocks.iter().map(|block| Arc::clone(&block.common)).collect();
        Self::of_parts(&config, b, Arc::clone(&self.tables), common)
    }

    fn of_parts(c: &MedConfig, b: &Builder, tables: Arc<Tables>, common: Vec<Arc<Common>>) -> Self {
        let block = |(i, common)| Block::new(&b.at("blocks").at(i), c, common);
        Self {
            blocks: common.into_iter().enumerate().map(block).collect(),
            language_head: c
                .is_decoder
                .then(|| LanguageHead::new(&b.at("language_head"), c, &tables.word)),
            tables,
            config: c.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &MedConfig {
        &self.config
    }

    /// The tokens after the embedding and after each block, `depth + 1` of them, each
    /// `[batch, tokens, width]`; without a memory the text is read alone. Those of padding mean
    /// nothing.
    ///
    /// # Errors
    /// If an id is not in its table, the texts are longer than the context, or the memory does not
    /// suit.
    pub fn hidden_states(&self, texts: &Texts, memory: Option<&Memory>) -> Result<Vec<Tensor>> {
        let shape = [texts.batch, texts.tokens()];
        let x = self.tables.word.tensor().embedding(&texts.ids, &shape)?; // [batch, tokens, width]
        let x = x.add_table(&self.tables.position.tensor().narrow(0, 0, shape[1])?)?;
        let mut states = vec![self.tables.norm.forward(&x)?];
        let mask = AttentionMask {
            is_causal: self.config.is_decoder,
            keys: Some(Arc::clone(&texts.mask)),
            ..AttentionMask::default()
        };
        let seen = memory.map(Memory::attention_mask).unwrap_or_default();
        let memory = memory.map(|memory| (&memory.tokens, &seen));
        for block in &self.blocks {
            states.push(block.forward(&states[states.len() - 1], &mask, memory)?);
        }
        Ok(states)
    }

    /// The tokens after the last block, `[batch, tokens, width]`.
    ///
    /// # Errors
    /// As for [`Med::hidden_states`].
    pub fn features(&self, texts: &Texts, memory: Option<&Memory>) -> Result<Tensor> {
        let mut states = self.hidden_states(texts, memory)?;
        Ok(states.pop().expect("the embedding is the first state"))
    }

    /// Logits of the word after each token, `[.., vocab]`, from [`Med::features`].
    ///
    /// # Errors
    /// If it does not write.
    pub fn words(&self, features: &Tensor) -> Result<Tensor> {
        let head = self.language_head.as_ref().ok_or_else(|| Error::Unsuitable {
            what: "writing text",
            needs: "a decoder",
            is: "a text encoder".to_owned(),
        })?;
        let x = head.transform.forward_with(features, self.config.activation, None)?;
        Ok(head.vocab.forward(&head.norm.forward(&x)?)?)
    }

    /// The mean cross-entropy of the label of each token from the logits of the one before it;
    /// `logits` is `[batch, tokens, vocab]`, `labels` `[batch, tokens]` with [`Targets::IGNORED`]
    /// for those that take no part, and `smoothing` the share of the weight spread over all words.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn loss(&self, logits: &Tensor, labels: &[u32], smoothing: f32) -> Result<Tensor> {
        let tokens = logits.shape().get(1).copied().unwrap_or(1).max(1);
        // The last token of a row has none behind it.
        let next = |at: usize| match (at + 1) % tokens {
            0 => Targets::IGNORED,
            _ => labels.get(at + 1).copied().unwrap_or(Targets::IGNORED),
        };
        let targets = (0..labels.len()).map(next).collect();
        Ok(logits.cross_entropy(&Targets::Classes(targets, smoothing))?)
    }

    /// A cache for texts about the memories of a batch, all of whose tokens are seen.
    ///
    /// # Errors
    /// If the memory is not `[batch, tokens, memory_width]`.
    pub fn new_cache(&self, memory: &Tensor) -> Result<Cache> {
        let &[batch, tokens, _] = &memory.shape()[..] else {
            let (op, got) = ("new_cache", memory.shape().clone());
            let expected = "[batch, tokens, memory_width]".to_owned();
            return Err(ocelli_tensor::Error::Shape { op, expected, got }.into());
        };
        let heads = Heads::same(self.config.heads);
        let cache = |block: &Block| {
            let own = KeyValues::new(batch, heads.kv_heads, self.config.width / heads.heads);
            let memory = block.common.cross.remember(memory, &vec![tokens; batch])?;
            Ok(BlockCache { own, memory: Some(memory) })
        };
        Ok(Cache::new(self.blocks.iter().map(cache).collect::<Result<_>>()?))
    }
}

impl Decoder for Med {
    fn context_length(&self) -> Option<usize> {
        Some(self.config.context_length)
    }

    fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        Ok(self.tables.word.tensor().embedding(&ids.into(), &[ids.len()])?)
    }

    fn advance(&self, rows: &Rows, cache: &mut Cache) -> Result<Tensor> {
        // Padding behind a row may lie beyond the last position.
        let last = self.config.context_length as u32 - 1;
        let places = rows.positions(&cache.lens()).iter().map(|p| (*p).min(last)).collect();
        let shape = &rows.embeddings.shape()[..2];
        let places = self.tables.position.tensor().embedding(&places, shape)?;
        let mut x = self.tables.norm.forward(&rows.embeddings.add(&places)?)?;
        for (block, cache) in self.blocks.iter().zip(cache.blocks_mut()) {
            x = block.step(&x, rows, cache)?;
        }
        self.words(&rows.last(&x)?)
    }
}

/// transformers and the original code; `~` is `text_encoder.`, or `text_decoder.bert.` with the head
/// elsewhere.
const BERT: &[Name] = &[
    copy("word", "~embeddings.word_embeddings.weight"),
    copy("position", "~embeddings.position_embeddings.weight"),
    copy("norm.*", "~embeddings.LayerNorm.*"),
    concat("blocks.*.attn.qkv.*", "~encoder.layer.*.attention.self.{query,key,value}.*"),
    copy("blocks.*.attn.out.*", "~encoder.layer.*.attention.output.dense.*"),
    copy("blocks.*.norm.*", "~encoder.layer.*.attention.output.LayerNorm.*"),
    copy("blocks.*.cross.q.*", "~encoder.layer.*.crossattention.self.query.*"),
    copy("blocks.*.cross.k.*", "~encoder.layer.*.crossattention.self.key.*"),
    copy("blocks.*.cross.v.*", "~encoder.layer.*.crossattention.self.value.*"),
    copy("blocks.*.cross.out.*", "~encoder.layer.*.crossattention.output.dense.*"),
    copy("blocks.*.cross_norm.*", "~encoder.layer.*.crossattention.output.LayerNorm.*"),
    copy("blocks.*.mlp.up.*", "~encoder.layer.*.intermediate.dense.*"),
    copy("blocks.*.mlp.down.*", "~encoder.layer.*.output.dense.*"),
    copy("blocks.*.mlp_norm.*", "~encoder.layer.*.output.LayerNorm.*"),
];

const LANGUAGE_HEAD: &[Name] = &[
    copy("language_head.transform.*", "text_decoder.cls.predictions.transform.dense.*"),
    copy("language_head.norm.*", "text_decoder.cls.predictions.transform.LayerNorm.*"),
    copy("language_head.bias", "text_decoder.cls.predictions.bias"),
];

/// The name map of an encoder; `prefix` is `"text_encoder."` or that of its momentum copy.
pub fn encoder_names(prefix: &str) -> Names {
    Names::family(BERT, &["embeddings.position_ids"]).with_prefix(prefix)
}

/// The name maps of a decoder. Its output table is the word table; with `is_shared` what it has in
/// common with its encoder is there a second time.
pub fn decoder_names(is_shared: bool) -> [Names; 2] {
    let copies = ["text_decoder.cls.predictions.decoder.*"];
    let shared = [
        "embeddings.*.*",
        "encoder.layer.*.crossattention.*.*.*",
        "encoder.layer.*.intermediate.dense.*",
        "encoder.layer.*.output.*.*",
    ];
    let ignored = if is_shared { &shared[..] } else { &[] };
    let ignored: Vec<&str> = ["embeddings.position_ids"].iter().chain(ignored).copied().collect();
    let tables = Names::family(BERT, &ignored).with_prefix("text_decoder.bert.");
    [tables, Names::family(LANGUAGE_HEAD, &copies)]
}
