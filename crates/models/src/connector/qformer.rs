//! Q-Former: learned queries that read a picture.
//!
//! Li et al. 2023, "BLIP-2", arXiv:2301.12597, §3.1 and Figure 2. A BERT whose sequence is 32
//! learned queries, a text, or both. Queries attend to the image tokens in every second block and
//! have perceptrons of their own; self-attention is shared, and who sees whom is the mask:
//!
//! ```text
//! queries alone   text alone     both see both    queries alone, text
//! (ITC, stage 2)  (ITC)          (ITM, Instruct)  causal (ITG)
//!       q q            t t t           q q t t t        q q t t t
//!     q 1 1          t 1 1 1         q 1 1 1 1 1      q 1 1 0 0 0
//!     q 1 1          t 1 1 1         q 1 1 1 1 1      q 1 1 0 0 0
//!                    t 1 1 1         t 1 1 1 1 1      t 1 1 1 0 0
//!                                    t 1 1 1 1 1      t 1 1 1 1 0
//!                                    t 1 1 1 1 1      t 1 1 1 1 1
//! ```

pub use crate::language::bert::Memory;
use crate::language::bert::Texts;
use crate::{Error, Result};
use ocelli_nn::layers::{Attention, LayerNorm, Linear, Mlp, SelfAttention};
use ocelli_nn::{Builder, Init, Name, Names, Parameter, concat, copy};
use ocelli_tensor::{Activation, AttentionMask, Targets, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// Sizes of a Q-Former.
#[derive(Clone, Debug, PartialEq)]
pub struct QFormerConfig {
    /// Learned queries.
    pub queries: usize,
    /// Width of a token.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads of each attention.
    pub heads: usize,
    /// Hidden width of each perceptron.
    pub mlp_dim: usize,
    /// Activation of each perceptron.
    pub activation: Activation,
    /// Epsilon of the layer norms.
    pub norm_eps: f32,
    /// Width of an image token.
    pub memory_width: usize,
    /// Queries attend to the image in block 0 and in each block this many further on.
    pub cross_every: usize,
    /// The side that reads text; a Q-Former of BLIP-2's second stage has none.
    pub text: Option<QFormerTextConfig>,
}

/// Sizes of the side that reads text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QFormerTextConfig {
    /// Rows of the word table.
    pub vocab: usize,
    /// Tokens of a text at most.
    pub context_length: usize,
    /// Whether the head that predicts the next word follows.
    pub has_language_head: bool,
}

impl QFormerConfig {
    /// The published Q-Former (§3.1) for image tokens of this width, without text.
    pub fn base(memory_width: usize) -> Self {
        Self {
            queries: 32,
            width: 768,
            depth: 12,
            heads: 12,
            mlp_dim: 3072,
            activation: Activation::Gelu,
            norm_eps: 1e-12,
            memory_width,
            cross_every: 2,
            text: None,
        }
    }
}

/// All weights are drawn from N(0, 0.02), as in BERT.
const INIT: Init = Init::Normal(0.02);
/// Added to a score that is not to count.
const UNSEEN: f32 = -1e30;

/// The objectives of the first stage, each with a mask of its own (Li et al. 2023, §3.1 and Figure 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objective {
    /// Image-text contrastive learning: queries and text are read apart.
    Contrastive,
    /// Image-text matching: everything sees everything.
    Matching,
    /// Image-grounded text generation: queries see each other, a token them and the text up to itself.
    Generation,
}

impl Objective {
    /// The places that the token at `place` sees, of `queries` queries and `tokens` tokens of text in
    /// this order.
    pub fn seen(self, place: usize, queries: usize, tokens: usize) -> Range<usize> {
        let all = queries + tokens;
        match self {
            Self::Matching => 0..all,
            Self::Generation => 0..queries.max(place + 1),
            Self::Contrastive if place < queries => 0..queries,
            Self::Contrastive => queries..all,
        }
    }
}

/// A perceptron with the norm of its sum.
#[derive(Debug)]
struct FeedForward {
    mlp: Mlp,
    norm: LayerNorm,
}

impl FeedForward {
    fn new(b: &Builder, c: &QFormerConfig, name: &str) -> Self {
        let mlp = b.at(format!("{name}_mlp"));
        Self {
            mlp: Mlp::new(&mlp, c.width, c.mlp_dim, c.activation, INIT, INIT),
            norm: LayerNorm::new(&b.at(format!("{name}_norm")), c.width, c.norm_eps),
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.norm.forward(&self.mlp.forward(x, Some(x))?)?)
    }
}

/// A post-norm block: queries come first, then the text.
#[derive(Debug)]
struct Block {
    attn: SelfAttention,
    norm: LayerNorm,
    cross: Option<(Attention, LayerNorm)>,
    query: FeedForward,
    text: Option<FeedForward>,
}

impl Block {
    fn new(b: &Builder, c: &QFormerConfig, index: usize) -> Self {
        let cross = || {
            let attn = Attention::to_memory(&b.at("cross"), c.width, c.memory_width, c.heads, INIT);
            (attn, LayerNorm::new(&b.at("cross_norm"), c.width, c.norm_eps))
        };
        Self {
            attn: SelfAttention::new(&b.at("attn"), c.width, c.heads, INIT, INIT),
            norm: LayerNorm::new(&b.at("norm"), c.width, c.norm_eps),
            cross: index.is_multiple_of(c.cross_every).then(cross),
            query: FeedForward::new(b, c, "query"),
            text: c.text.is_some().then(|| FeedForward::new(b, c, "text")),
        }
    }

    /// `[batch, queries + tokens, width]` in and out; `memory` is for the queries, which are absent
    /// without it.
    fn forward(
        &self,
        x: &Tensor,
        queries: usize,
        memory: Option<&Memory>,
        mask: &AttentionMask,
    ) -> Result<Tensor> {
        let x = self.norm.forward(&self.attn.forward(x, mask, Some(x))?)?;
        let tokens = x.shape()[1];
        let mut sides = Vec::new();
        if let Some(memory) = memory {
            let mut q = x.narrow(1, 0, queries)?; // [batch, queries, width]
            if let Some((cross, norm)) = &self.cross {
                let mask = memory.attention_mask();
                q = norm.forward(&cross.forward(&q, &memory.tokens, &mask, Some(&q))?)?;
            }
            sides.push(self.query.forward(&q)?);
        }
        let queries = if memory.is_some() { queries } else { 0 };
        if let Some(text) = self.text.as_ref().filter(|_| queries < tokens) {
            sides.push(text.forward(&x.narrow(1, queries, tokens - queries)?)?);
        }
        match &sides[..] {
            [one] => Ok(one.clone()),
            both => Ok(Tensor::cat(&both.iter().collect::<Vec<_>>(), 1)?),
        }
    }
}

/// The tables of the side that reads text.
#[derive(Debug)]
struct TextTables {
    word: Parameter,
    position: Parameter,
}

/// The head that predicts the next word: a layer, and the word table again.
#[derive(Debug)]
struct LanguageHead {
    transform: Linear,
    norm: LayerNorm,
    vocab: Linear,
}

/// Q-Former.
#[derive(Debug)]
pub struct QFormer {
    config: QFormerConfig,
    queries: Parameter,
    text: Option<TextTables>,
    norm: LayerNorm,
    blocks: Vec<Block>,
    language_head: Option<LanguageHead>,
}

impl QFormer {
    /// A model whose parameters come from `b`.
    pub fn new(config: &QFormerConfig, b: &Builder) -> Self {
        let c = config;
        let text = c.text.map(|t| TextTables {
            word: b.parameter("word", &[t.vocab, c.width], INIT),
            position: b.parameter("position", &[t.context_length, c.width], INIT),
        });
        let head = |text: &TextTables, vocab: usize| {
            let b = b.at("language_head");
            let bias = b.parameter("bias", &[vocab], Init::Constant(0.0));
            LanguageHead {
                transform: Linear::new(&b.at("transform"), c.width, c.width, true, INIT),
                norm: LayerNorm::new(&b.at("norm"), c.width, c.norm_eps),
                vocab: Linear::from_parts(text.word.clone(), Some(bias)),
            }
        };
        let with_head = text.as_ref().zip(c.text.filter(|t| t.has_language_head));
        Self {
            queries: b.parameter("queries", &[c.queries, c.width], INIT),
            norm: LayerNorm::new(&b.at("norm"), c.width, c.norm_eps),
            blocks: (0..c.depth).map(|i| Block::new(&b.at("blocks").at(i), c, i)).collect(),
            language_head: with_head.map(|(text, t)| head(text, t.vocab)),
            text,
            config: config.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &QFormerConfig {
        &self.config
    }

    /// Queries of each picture before the norm, `[batch, queries, width]`.
    fn query_tokens(&self, batch: usize) -> Result<Tensor> {
        let (n, width) = (self.config.queries, self.config.width);
        let zeros = Tensor::zeros(&[batch, n, width]);
        Ok(zeros.add_table(&self.queries.tensor())?)
    }

    /// Words and places of each text before the norm, `[batch, tokens, width]`.
    fn text_tokens(&self, texts: &Texts) -> Result<Tensor> {
        let tables = self.text.as_ref().ok_or_else(|| unsuitable("reading text", "a text side"))?;
        let shape = [texts.batch, texts.tokens()];
        let x = tables.word.tensor().embedding(&texts.ids, &shape)?;
        Ok(x.add_table(&tables.position.tensor().narrow(0, 0, shape[1])?)?)
    }

    /// The tokens after the embedding and after each block.
    fn run(
        &self,
        tokens: &Tensor,
        memory: Option<&Memory>,
        mask: &AttentionMask,
    ) -> Result<Vec<Tensor>> {
        let mut states = vec![self.norm.forward(tokens)?];
        for block in &self.blocks {
            let x = &states[states.len() - 1];
            states.push(block.forward(x, self.config.queries, memory, mask)?);
        }
        Ok(states)
    }

    /// What queries without text read: the tokens after the embedding and after each block,
    /// `depth + 1` of them, each `[batch, queries, width]`.
    ///
    /// # Errors
    /// If image tokens are not `memory_width` wide.
    pub fn hidden_states(&self, memory: &Memory) -> Result<Vec<Tensor>> {
        self.run(&self.query_tokens(memory.batch())?, Some(memory), &AttentionMask::default())
    }

    /// What queries without text read, `[batch, queries, width]`.
    ///
    /// # Errors
    /// As for [`QFormer::hidden_states`].
    pub fn forward(&self, memory: &Memory) -> Result<Tensor> {
        Ok(last(self.hidden_states(memory)?))
    }

    /// Texts without pictures, every token seeing all of its text, `[batch, tokens, width]`. Tokens
    /// of padding mean nothing.
    ///
    /// # Errors
    /// If the model has no text side, an id is not in its table, or a text is too long.
    pub fn read(&self, texts: &Texts) -> Result<Tensor> {
        let keys = Some(Arc::clone(&texts.mask));
        let mask = AttentionMask { keys, ..AttentionMask::default() };
        Ok(last(self.run(&self.text_tokens(texts)?, None, &mask)?))
    }

    /// Queries and texts that see each other: the tokens after the embedding and after each block,
    /// queries first, each `[batch, queries + tokens, width]`.
    ///
    /// # Errors
    /// As for [`QFormer::hidden_states`] and [`QFormer::read`].
    pub fn joint_states(&self, memory: &Memory, texts: &Texts) -> Result<Vec<Tensor>> {
        let tokens = [self.query_tokens(memory.batch())?, self.text_tokens(texts)?];
        let tokens = Tensor::cat(&[&tokens[0], &tokens[1]], 1)?;
        self.run(&tokens, Some(memory), &self.joint_mask(texts, Objective::Matching)?)
    }

    /// Queries and texts that see each other, `[batch, queries + tokens, width]`, queries first.
    ///
    /// # Errors
    /// As for [`QFormer::joint_states`].
    pub fn join(&self, memory: &Memory, texts: &Texts) -> Result<Tensor> {
        Ok(last(self.joint_states(memory, texts)?))
    }

    /// Logits of the word after each token of a text that is written about a picture,
    /// `[batch, tokens, vocab]`: queries see each other, a token sees them and the text before it.
    ///
    /// # Errors
    /// As for [`QFormer::joint_states`], or if the model has no language head.
    pub fn write(&self, memory: &Memory, texts: &Texts) -> Result<Tensor> {
        let head = self.language_head.as_ref();
        let head = head.ok_or_else(|| unsuitable("writing text", "a language head"))?;
        let tokens = [self.query_tokens(memory.batch())?, self.text_tokens(texts)?];
        let tokens = Tensor::cat(&[&tokens[0], &tokens[1]], 1)?;
        let x = last(self.run(
            &tokens,
            Some(memory),
            &self.joint_mask(texts, Objective::Generation)?,
        )?);
        let x = x.narrow(1, self.config.queries, texts.tokens())?; // [batch, tokens, width]
        let x = head.transform.forward_with(&x, self.config.activation, None)?;
        Ok(head.vocab.forward(&head.norm.forward(&x)?)?)
    }

    /// The mean cross-entropy of the next words of `texts`, each label predicted by the token before
    /// it and labels of [`Targets::IGNORED`] left out; `smoothing` of the weight is spread over all
    /// words.
    ///
    /// # Errors
    /// As for [`QFormer::write`].
    pub fn language_loss(
        &self,
        memory: &Memory,
        texts: &Texts,
        labels: &[u32],
        smoothing: f32,
    ) -> Result<Tensor> {
        let tokens = texts.tokens();
        let next = |at: usize| match (at + 1) % tokens.max(1) {
            0 => Targets::IGNORED,
            _ => labels.get(at + 1).copied().unwrap_or(Targets::IGNORED),
        };
        let targets: Arc<[u32]> = (0..texts.ids.len()).map(next).collect();
        let logits = self.write(memory, texts)?;
        Ok(logits.cross_entropy(&Targets::Classes(targets, smoothing))?)
    }

    /// The mask over queries and text that are read at once, without the padding.
    fn joint_mask(&self, texts: &Texts, objective: Objective) -> Result<AttentionMask> {
        let (queries, tokens) = (self.config.queries, texts.tokens());
        let all = queries + tokens;
        let mut keys = Vec::with_capacity(texts.batch * all);
        for text in texts.mask.chunks_exact(tokens.max(1)) {
            keys.extend(std::iter::repeat_n(1, queries));
            keys.extend_from_slice(text);
        }
        let bias = if objective == Objective::Matching {
            None
        } else {
            let mut bias = vec![UNSEEN; all * all];
            for (i, row) in bias.chunks_exact_mut(all).enumerate() {
                row[objective.seen(i, queries, tokens)].fill(0.0);
            }
            Some(Tensor::from_slice(&bias, &[1, 1, all, all])?)
        };
        Ok(AttentionMask { keys: Some(keys.into()), bias, ..AttentionMask::default() })
    }
}

fn last(mut states: Vec<Tensor>) -> Tensor {
    states.pop().expect("the embedding is the first state")
}

fn unsuitable(what: &'static str, needs: &'static str) -> Error {
    Error::Unsuitable { what, needs, is: "a Q-Former without one".to_owned() }
}

/// LAVIS, MiniGPT-4 and XComposer.
pub const LAVIS: &[Name] = &[
    copy("queries", "query_tokens").leading(1),
    copy("norm.*", "Qformer.bert.embeddings.LayerNorm.*"),
    copy("word", "Qformer.bert.embeddings.word_embeddings.weight"),
    copy("position", "Qformer.bert.embeddings.position_embeddings.weight"),
    concat(
        "blocks.*.attn.qkv.*",
        "Qformer.bert.encoder.layer.*.attention.self.{query,key,value}.*",
    ),
    copy("blocks.*.attn.out.*", "Qformer.bert.encoder.layer.*.attention.output.dense.*"),
    copy("blocks.*.norm.*", "Qformer.bert.encoder.layer.*.attention.output.LayerNorm.*"),
    copy("blocks.*.cross.q.*", "Qformer.bert.encoder.layer.*.crossattention.self.query.*"),
    copy("blocks.*.cross.k.*", "Qformer.bert.encoder.layer.*.crossattention.self.key.*"),
    copy("blocks.*.cross.v.*", "Qformer.bert.encoder.layer.*.crossattention.self.value.*"),
    copy("blocks.*.cross.out.*", "Qformer.bert.encoder.layer.*.crossattention.output.dense.*"),
    copy("blocks.*.cross_norm.*", "Qformer.bert.encoder.layer.*.crossattention.output.LayerNorm.*"),
    copy("blocks.*.query_mlp.up.*", "Qformer.bert.encoder.layer.*.intermediate_query.dense.*"),
    copy("blocks.*.query_mlp.down.*", "Qformer.bert.encoder.layer.*.output_query.dense.*"),
    copy("blocks.*.query_norm.*", "Qformer.bert.encoder.layer.*.output_query.LayerNorm.*"),
    copy("blocks.*.text_mlp.up.*", "Qformer.bert.encoder.layer.*.intermediate.dense.*"),
    copy("blocks.*.text_mlp.down.*", "Qformer.bert.encoder.layer.*.output.dense.*"),
    copy("blocks.*.text_norm.*", "Qformer.bert.encoder.layer.*.output.LayerNorm.*"),
    copy("language_head.transform.*", "Qformer.cls.predictions.transform.dense.*"),
    copy("language_head.norm.*", "Qformer.cls.predictions.transform.LayerNorm.*"),
    copy("language_head.bias", "Qformer.cls.predictions.bias"),
];

/// transformers; the norm and the tables of text are elsewhere in each model.
pub const TRANSFORMERS: &[Name] = &[
    copy("queries", "query_tokens").leading(1),
    concat(
        "blocks.*.attn.qkv.*",
        "qformer.encoder.layer.*.attention.attention.{query,key,value}.*",
    ),
    copy("blocks.*.attn.out.*", "qformer.encoder.layer.*.attention.output.dense.*"),
    copy("blocks.*.norm.*", "qformer.encoder.layer.*.attention.output.LayerNorm.*"),
    copy("blocks.*.cross.q.*", "qformer.encoder.layer.*.crossattention.attention.query.*"),
    copy("blocks.*.cross.k.*", "qformer.encoder.layer.*.crossattention.attention.key.*"),
    copy("blocks.*.cross.v.*", "qformer.encoder.layer.*.crossattention.attention.value.*"),
    copy("blocks.*.cross.out.*", "qformer.encoder.layer.*.crossattention.output.dense.*"),
    copy("blocks.*.cross_norm.*", "qformer.encoder.layer.*.crossattention.output.LayerNorm.*"),
    copy("blocks.*.query_mlp.up.*", "qformer.encoder.layer.*.intermediate_query.dense.*"),
    copy("blocks.*.query_mlp.down.*", "qformer.encoder.layer.*.output_query.dense.*"),
    copy("blocks.*.query_norm.*", "qformer.encoder.layer.*.output_query.LayerNorm.*"),
    copy("blocks.*.text_mlp.up.*", "qformer.encoder.layer.*.intermediate.dense.*"),
    copy("blocks.*.text_mlp.down.*", "qformer.encoder.layer.*.output.dense.*"),
    copy("blocks.*.text_norm.*", "qformer.encoder.layer.*.output.LayerNorm.*"),
];

/// Norm and tables of BLIP-2.
const TRANSFORMERS_BLIP2: &[Name] = &[
    copy("norm.*", "qformer.layernorm.*"),
    copy("word", "embeddings.word_embeddings.weight"),
    copy("position", "embeddings.position_embeddings.weight"),
];

/// Norm and tables of InstructBLIP.
const TRANSFORMERS_INSTRUCT: &[Name] = &[
    copy("norm.*", "qformer.embeddings.layernorm.*"),
    copy("word", "qformer.embeddings.word_embeddings.weight"),
    copy("position", "qformer.embeddings.position_embeddings.weight"),
];

/// The name map of [`LAVIS`] files. Their output table is the word table.
pub fn lavis_names() -> Names {
    let ignored = &["Qformer.bert.embeddings.position_ids", "Qformer.cls.predictions.decoder.*"];
    Names::family(LAVIS, ignored)
}

/// The name map of transformers files, of InstructBLIP if `is_instruct` and else of BLIP-2.
pub fn transformers_names(is_instruct: bool) -> Names {
    let ignored = &["embeddings.position_ids", "qformer.embeddings.position_ids"];
    let tables = if is_instruct { TRANSFORMERS_INSTRUCT } else { TRANSFORMERS_BLIP2 };
    Names::family(TRANSFORMERS, ignored).and(&Names::family(tables, &[]))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::*;

    #[test]
    fn the_published_sizes_have_their_parameters() {
        let count = |text| {
            let b = Builder::zeros();
            let _model = QFormer::new(&QFormerConfig { text, ..QFormerConfig::base(1408) }, &b);
            b.finish().unwrap().elements()
        };
        let queries = 32 * 768;
        assert_eq!(count(None) - queries, 105_137_664);
        let text = |has_language_head| {
            Some(QFormerTextConfig { vocab: 30_523, context_length: 512, has_language_head })
        };
        assert_eq!(count(text(false)) - queries, 185_660_160);
    }
}
