//! BERT: a bidirectional text encoder.
//!
//! Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers for Language
//! Understanding", arXiv:1810.04805, §3. Word, position and segment add up to a token; a post-norm
//! encoder (Vaswani et al. 2017, arXiv:1706.03762, §3.1) mixes all tokens of a text. With it what
//! its checkpoints come with: a tanh pooler, the masked-language head, and the mean over tokens that
//! sentence encoders use (Reimers & Gurevych 2019, arXiv:1908.10084, §3).

use crate::Result;
use ocelli_data::text::TokenBatch;
use ocelli_nn::layers::{Embedding, LayerNorm, Linear, Mlp, SelfAttention};
use ocelli_nn::{Builder, Init, Name, Names, Parameter, concat, copy};
use ocelli_tensor::{Activation, AttentionMask, Targets, Tensor};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Sizes of a BERT (§3) and the heads on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BertConfig {
    /// Rows of the word table.
    pub vocab: usize,
    /// Tokens of a text at most, class token and separator included.
    pub context_length: usize,
    /// Kinds of segments.
    pub token_types: usize,
    /// Width of a token.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads of each attention.
    pub heads: usize,
    /// Hidden width of each perceptron.
    pub mlp_dim: usize,
    /// Epsilon of the layer norms.
    pub norm_eps: f32,
    /// Whether a tanh layer on the class token follows.
    pub has_pooler: bool,
    /// Whether the head that predicts masked words follows.
    pub has_language_head: bool,
}

impl BertConfig {
    /// A published size, `"base"` or `"large"` (§3), uncased, without heads.
    pub fn variant(name: &str) -> Option<Self> {
        let (width, depth) = match name {
            "base" => (768, 12),
            "large" => (1024, 24),
            _ => return None,
        };
        Some(Self {
            vocab: 30_522,
            context_length: 512,
            token_types: 2,
            width,
            depth,
            heads: width / 64,
            mlp_dim: 4 * width,
            norm_eps: 1e-12,
            has_pooler: false,
            has_language_head: false,
        })
    }
}

/// Texts of a batch, padded to the same number of tokens.
///
/// Two texts of 4 and 2 tokens; a token sees those of its own text that are not padding:
///
/// ```text
/// ids   [CLS] a     cat   [SEP]     mask  1 1 1 1
///       [CLS] [SEP] [PAD] [PAD]           1 1 0 0
/// ```
#[derive(Clone, Debug)]
pub struct Texts {
    /// Ids, `[batch, tokens]`.
    pub ids: Arc<[u32]>,
    /// Segment of each token, `[batch, tokens]`.
    pub token_types: Arc<[u32]>,
    /// 1 for a token of the text, 0 for padding, `[batch, tokens]`.
    pub mask: Arc<[u8]>,
    /// Number of texts.
    pub batch: usize,
}

impl From<&TokenBatch> for Texts {
    /// Texts of one segment each.
    fn from(tokens: &TokenBatch) -> Self {
        Self {
            ids: tokens.ids[..].into(),
            token_types: vec![0; tokens.ids.len()].into(),
            mask: tokens.attention_mask.iter().map(|m| u8::from(*m != 0)).collect(),
            batch: tokens.batch,
        }
    }
}

impl Texts {
    /// The same text, without padding, this many times.
    pub fn repeated(ids: &[u32], batch: usize) -> Self {
        let all = ids.len() * batch;
        let (ids, token_types) = (ids.repeat(batch).into(), vec![0; all].into());
        Self { ids, token_types, mask: vec![1; all].into(), batch }
    }

    /// Tokens of each text, padding included.
    pub fn tokens(&self) -> usize {
        self.ids.len() / self.batch.max(1)
    }
}

/// What a text or queries are about: image tokens, or the tokens of another text.
#[derive(Clone, Debug)]
pub struct Memory {
    /// `[batch, tokens, memory_width]`.
    pub tokens: Tensor,
    /// 0 for a token that nobody sees, `[batch, tokens]`.
    pub mask: Option<Arc<[u8]>>,
}

impl From<Tensor> for Memory {
    /// Tokens that are all seen.
    fn from(tokens: Tensor) -> Self {
        Self { tokens, mask: None }
    }
}

impl Memory {
    pub(crate) fn batch(&self) -> usize {
        self.tokens.shape()[0]
    }

    pub(crate) fn attention_mask(&self) -> AttentionMask {
        AttentionMask { keys: self.mask.clone(), ..AttentionMask::default() }
    }
}

/// All weights are drawn from N(0, 0.02), as in the original code.
const INIT: Init = Init::Normal(0.02);

/// A post-norm block: each norm follows its sum.
#[derive(Debug)]
struct Block {
    attn: SelfAttention,
    norm1: LayerNorm,
    mlp: Mlp,
    norm2: LayerNorm,
}

impl Block {
    fn new(b: &Builder, c: &BertConfig) -> Self {
        Self {
            attn: SelfAttention::new(&b.at("attn"), c.width, c.heads, INIT, INIT),
            norm1: LayerNorm::new(&b.at("norm1"), c.width, c.norm_eps),
            mlp: Mlp::new(&b.at("mlp"), c.width, c.mlp_dim, Activation::Gelu, INIT, INIT),
            norm2: LayerNorm::new(&b.at("norm2"), c.width, c.norm_eps),
        }
    }

    /// `[batch, tokens, width]` in and out.
    fn forward(&self, x: &Tensor, mask: &AttentionMask) -> Result<Tensor> {
        let x = self.norm1.forward(&self.attn.forward(x, mask, Some(x))?)?;
        Ok(self.norm2.forward(&self.mlp.forward(&x, Some(&x))?)?)
    }
}

/// The head that predicts masked words (§3.1, task 1): a layer, and the word table again.
#[derive(Debug)]
struct LanguageHead {
    transform: Linear,
    norm: LayerNorm,
    vocab: Linear,
}

/// BERT.
#[derive(Debug)]
pub struct Bert {
    config: BertConfig,
    word: Parameter,
    position: Parameter,
    token_type: Embedding,
    norm: LayerNorm,
    blocks: Vec<Block>,
    pooler: Option<Linear>,
    language_head: Option<LanguageHead>,
}

impl Bert {
    /// A model whose parameters come from `b`.
    pub fn new(config: &BertConfig, b: &Builder) -> Self {
        let c = config;
        let word = b.parameter("word", &[c.vocab, c.width], INIT);
        let head = || {
            let b = b.at("language_head");
            let bias = b.parameter("bias", &[c.vocab], Init::Constant(0.0));
            LanguageHead {
                transform: Linear::new(&b.at("transform"), c.width, c.width, true, INIT),
                norm: LayerNorm::new(&b.at("norm"), c.width, c.norm_eps),
                vocab: Linear::from_parts(word.clone(), Some(bias)),
            }
        };
        Self {
            language_head: c.has_language_head.then(head),
            word,
            position: b.parameter("position", &[c.context_length, c.width], INIT),
            token_type: Embedding::new(&b.at("token_type"), c.token_types, c.width, INIT),
            norm: LayerNorm::new(&b.at("norm"), c.width, c.norm_eps),
            blocks: (0..c.depth).map(|i| Block::new(&b.at("blocks").at(i), c)).collect(),
            pooler: c
                .has_pooler
                .then(|| Linear::new(&b.at("pooler"), c.width, c.width, true, INIT)),
            config: config.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// The tokens before the first block, `[batch, tokens, width]`.
    ///
    /// # Errors
    /// If an id is not in its table, or the texts are longer than the context.
    pub fn embed(&self, texts: &Texts) -> Result<Tensor> {
        let shape = [texts.batch, texts.tokens()];
        let x = self.word.tensor().embedding(&texts.ids, &shape)?; // [batch, tokens, width]
        let x = x.add(&self.token_type.forward(&texts.token_types, &shape)?)?;
        let x = x.add_table(&self.position.tensor().narrow(0, 0, shape[1])?)?;
        Ok(self.norm.forward(&x)?)
    }

    /// The tokens after the embedding and after each block, `depth + 1` of them, each
    /// `[batch, tokens, width]`. Those of padding mean nothing.
    ///
    /// # Errors
    /// As for [`Bert::embed`].
    pub fn hidden_states(&self, texts: &Texts) -> Result<Vec<Tensor>> {
        let mut states = vec![self.embed(texts)?];
        let mask =
            AttentionMask { keys: Some(Arc::clone(&texts.mask)), ..AttentionMask::default() };
        for block in &self.blocks {
            states.push(block.forward(&states[states.len() - 1], &mask)?);
        }
        Ok(states)
    }

    /// The tokens after the last block, `[batch, tokens, width]`.
    ///
    /// # Errors
    /// As for [`Bert::embed`].
    pub fn features(&self, texts: &Texts) -> Result<Tensor> {
        let mut x = self.embed(texts)?;
        let mask =
            AttentionMask { keys: Some(Arc::clone(&texts.mask)), ..AttentionMask::default() };
        for block in &self.blocks {
            x = block.forward(&x, &mask)?;
        }
        Ok(x)
    }

    /// What the pooler makes of the class token of [`Bert::features`], `[batch, width]`.
    ///
    /// # Errors
    /// If the model has no pooler.
    pub fn pool(&self, features: &Tensor) -> Result<Tensor> {
        let pooler =
            self.pooler.as_ref().ok_or_else(|| unsuitable("the pooled text", "a pooler"))?;
        let class = features.select_tokens(&vec![0; features.shape()[0]])?; // [batch, width]
        Ok(pooler.forward_with(&class, Activation::Tanh, None)?)
    }

    /// One vector per text, the mean of its tokens without padding, `[batch, width]`, of any length.
    ///
    /// # Errors
    /// As for [`Bert::embed`].
    pub fn sentences(&self, texts: &Texts) -> Result<Tensor> {
        mean_of_real_tokens(&self.features(texts)?, texts)
    }

    /// Logits of the word at each token, `[batch, tokens, vocab]`, from [`Bert::features`].
    ///
    /// # Errors
    /// If the model has no masked-language head.
    pub fn words(&self, features: &Tensor) -> Result<Tensor> {
        let head = self.language_head.as_ref();
        let head = head.ok_or_else(|| unsuitable("predicting words", "a masked-language head"))?;
        let x = head.transform.forward_with(features, Activation::Gelu, None)?;
        Ok(head.vocab.forward(&head.norm.forward(&x)?)?) // [batch, tokens, vocab]
    }

    /// The mean cross-entropy of the words at the tokens whose target is not
    /// [`Targets::IGNORED`]; `targets` is `[batch, tokens]`.
    ///
    /// # Errors
    /// As for [`Bert::embed`] and [`Bert::words`].
    pub fn loss(&self, texts: &Texts, targets: &Arc<[u32]>) -> Result<Tensor> {
        let logits = self.words(&self.features(texts)?)?;
        let logits = logits.reshape(&[targets.len(), self.config.vocab])?;
        Ok(logits.cross_entropy(&Targets::Classes(Arc::clone(targets), 0.0))?)
    }
}

/// `[batch, tokens, width]` to `[batch, width]`.
fn mean_of_real_tokens(features: &Tensor, texts: &Texts) -> Result<Tensor> {
    let width = features.shape().last_axis();
    let mut weights = Vec::with_capacity(features.elements());
    for text in texts.mask.chunks_exact(texts.tokens().max(1)) {
        // The mean below is over all tokens, the one wanted over the real ones.
        let real = text.iter().filter(|m| **m != 0).count();
        let share = texts.tokens() as f32 / real.max(1) as f32;
        for real in text {
            weights.extend(std::iter::repeat_n(f32::from(*real) * share, width));
        }
    }
    let weights = Tensor::from_slice(&weights, features.shape())?;
    Ok(features.mul(&weights)?.mean_tokens(0)?)
}

fn unsuitable(what: &'static str, needs: &'static str) -> crate::Error {
    crate::Error::Unsuitable { what, needs, is: "a BERT without one".to_owned() }
}

/// transformers `BertModel` and `BertForMaskedLM`; `~` is `bert.` or nothing.
pub const TRANSFORMERS: &[Name] = &[
    copy("word", "~embeddings.word_embeddings.weight"),
    copy("position", "~embeddings.position_embeddings.weight"),
    copy("token_type.*", "~embeddings.token_type_embeddings.*"),
    copy("norm.*", "~embeddings.LayerNorm.*"),
    concat("blocks.*.attn.qkv.*", "~encoder.layer.*.attention.self.{query,key,value}.*"),
    copy("blocks.*.attn.out.*", "~encoder.layer.*.attention.output.dense.*"),
    copy("blocks.*.norm1.*", "~encoder.layer.*.attention.output.LayerNorm.*"),
    copy("blocks.*.mlp.up.*", "~encoder.layer.*.intermediate.dense.*"),
    copy("blocks.*.mlp.down.*", "~encoder.layer.*.output.dense.*"),
    copy("blocks.*.norm2.*", "~encoder.layer.*.output.LayerNorm.*"),
    copy("pooler.*", "~pooler.dense.*"),
    copy("language_head.transform.*", "cls.predictions.transform.dense.*"),
    copy("language_head.norm.*", "cls.predictions.transform.LayerNorm.*"),
    copy("language_head.bias", "cls.predictions.bias"),
];

/// What files from before 2020 call the gains and biases of norms.
pub const OLD_NORMS: &[Name] = &[
    copy("norm.weight", "~embeddings.LayerNorm.gamma"),
    copy("norm.bias", "~embeddings.LayerNorm.beta"),
    copy("blocks.*.norm1.weight", "~encoder.layer.*.attention.output.LayerNorm.gamma"),
    copy("blocks.*.norm1.bias", "~encoder.layer.*.attention.output.LayerNorm.beta"),
    copy("blocks.*.norm2.weight", "~encoder.layer.*.output.LayerNorm.gamma"),
    copy("blocks.*.norm2.bias", "~encoder.layer.*.output.LayerNorm.beta"),
    copy("language_head.norm.weight", "cls.predictions.transform.LayerNorm.gamma"),
    copy("language_head.norm.bias", "cls.predictions.transform.LayerNorm.beta"),
];

/// Name maps of a file; `prefix` is `"bert."` or `""`.
pub fn names(prefix: &str, has_old_norms: bool) -> Vec<Names> {
    // The output table is the word table; the next-sentence head is not run.
    let ignored =
        &["embeddings.position_ids", "cls.predictions.decoder.*", "cls.seq_relationship.*"];
    let table = Names::family(TRANSFORMERS, ignored).with_prefix(prefix);
    if has_old_norms {
        return vec![Names::family(OLD_NORMS, &[]).with_prefix(prefix), table];
    }
    vec![table]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::*;

    #[test]
    fn published_sizes_have_their_parameters() {
        for (name, parameters) in [("base", 109_482_240), ("large", 335_141_888)] {
            let config = BertConfig { has_pooler: true, ..BertConfig::variant(name).unwrap() };
            let b = Builder::zeros();
            let _model = Bert::new(&config, &b);
            assert_eq!(b.finish().unwrap().elements(), parameters, "{name}");
        }
        assert!(BertConfig::variant("tiny").is_none());
    }

    #[test]
    fn padding_changes_no_sentence() {
        let config = BertConfig {
            vocab: 11,
            context_length: 6,
            width: 8,
            depth: 2,
            heads: 2,
            mlp_dim: 16,
            ..BertConfig::variant("base").unwrap()
        };
        let model = Bert::new(&config, &Builder::random(3));
        let texts = |ids: &[u32], mask: &[u32], batch| {
            let tokens = ids.len() / batch;
            let (ids, attention_mask) = (ids.to_vec(), mask.to_vec());
            Texts::from(&TokenBatch { ids, attention_mask, batch, tokens })
        };
        let alone = model.sentences(&texts(&[1, 5, 2], &[1; 3], 1)).unwrap();
        let ids = [1, 5, 2, 0, 0, 1, 7, 8, 9, 2];
        let mask = [1, 1, 1, 0, 0, 1, 1, 1, 1, 1];
        let both = model.sentences(&texts(&ids, &mask, 2)).unwrap();
        for (a, b) in alone.values().iter().zip(&both.values()[..8]) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
        assert!(model.words(&both).is_err() && model.pool(&both).is_err());
        assert!(model.embed(&texts(&[0; 7], &[1; 7], 1)).is_err());
        assert!(model.embed(&texts(&[11], &[1], 1)).is_err());
    }
}
