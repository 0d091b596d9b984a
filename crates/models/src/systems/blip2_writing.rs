//! The second stage of BLIP-2: a language model writes about what the queries read.
//!
//! Li et al. 2023, "BLIP-2", arXiv:2301.12597, §3.3 and Figure 3: one linear layer takes what the
//! queries read to the width of a frozen language model, in whose text it stands for the picture.
//! InstructBLIP (Dai et al. 2023, arXiv:2305.06500, §2.3) shows the instruction to the queries as
//! well.

use super::blip2::Blip2;
use super::writer::{Request, Writer};
use crate::connector::qformer::Memory;
use crate::generate::{Answer, Cache, Decoder, Flow, Prompt, Settings, generate};
use crate::language::bert::Texts;
use crate::language::causal::{CausalModel, next_token_loss};
use crate::language::llama::{self, Llama, LlamaConfig};
use crate::language::opt::{self, Opt, OptConfig};
use crate::language::t5::{self, T5, T5Config};
use crate::{Error, Result};
use ocelli_data::text::Tokenizer;
use ocelli_nn::layers::Linear;
use ocelli_nn::{Builder, Init, Names};
use ocelli_tensor::{Targets, Tensor};
use std::sync::Arc;

/// Sizes of what writes about pictures.
#[derive(Clone, Debug, PartialEq)]
pub struct WritingConfig {
    /// The language model.
    pub language: LanguageConfig,
    /// The id that stands where a token of a picture goes; it may lie behind the vocabulary.
    pub image_id: u32,
    /// The id that a text without a prompt begins with.
    pub bos_id: u32,
    /// The ids that end an answer.
    pub eos_ids: Vec<u32>,
    /// The id behind the end of a text.
    pub pad_id: u32,
}

/// Sizes of the language model.
#[derive(Clone, Debug, PartialEq)]
pub enum LanguageConfig {
    /// OPT.
    Opt(OptConfig),
    /// Vicuna.
    Llama(LlamaConfig),
    /// Flan-T5.
    T5(T5Config),
}

impl LanguageConfig {
    /// Width of a token.
    pub fn width(&self) -> usize {
        match self {
            Self::Opt(c) => c.word_width,
            Self::Llama(c) => c.width,
            Self::T5(c) => c.width,
        }
    }
}

/// The language model.
#[derive(Debug)]
pub enum Language {
    /// OPT.
    Opt(Box<Opt>),
    /// Vicuna.
    Llama(Box<Llama>),
    /// Flan-T5: its encoder reads the picture, its decoder writes.
    T5(Box<T5>),
}

impl Language {
    /// A model whose parameters come from `b`.
    pub fn new(config: &LanguageConfig, b: &Builder) -> Self {
        match config {
            LanguageConfig::Opt(c) => Self::Opt(Box::new(Opt::new(c, b))),
            LanguageConfig::Llama(c) => Self::Llama(Box::new(Llama::new(c, b))),
            LanguageConfig::T5(c) => Self::T5(Box::new(T5::new(c, b))),
        }
    }

    /// What writes token by token.
    pub fn decoder(&self) -> &dyn Decoder {
        match self {
            Self::Opt(model) => &**model,
            Self::Llama(model) => &**model,
            Self::T5(model) => &**model,
        }
    }

    /// A model that reads and writes in one sequence, or else T5.
    fn side(&self) -> Side<'_> {
        match self {
            Self::Opt(model) => Side::Causal(&**model),
            Self::Llama(model) => Side::Causal(&**model),
            Self::T5(model) => Side::T5(model),
        }
    }
}

/// How a language model takes a picture.
enum Side<'a> {
    Causal(&'a dyn CausalModel),
    T5(&'a T5),
}

/// What writes about pictures (§3.3).
#[derive(Debug)]
pub(super) struct Writing {
    projection: Linear,
    language: Language,
}

impl Writing {
    /// Parameters `projection` from `b`, those of the language model from `language`.
    pub(super) fn new(
        config: &WritingConfig,
        width: usize,
        init: Init,
        b: &Builder,
        language: &Builder,
    ) -> Self {
        let c = &config.language;
        Self {
            projection: Linear::new(&b.at("projection"), width, c.width(), true, init),
            language: Language::new(c, language),
        }
    }
}

/// The tokenizer of the instructions that queries read (InstructBLIP).
pub(super) struct Instructions(pub(super) Tokenizer);

impl std::fmt::Debug for Instructions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Instructions of {} words", self.0.vocab_size())
    }
}

/// Texts about pictures to learn from.
#[derive(Clone, Debug)]
pub struct Lessons {
    /// What is read, padded to one length, with [`WritingConfig::image_id`] once for each query,
    /// `[batch, tokens]`.
    pub texts: Texts,
    /// What is to be written: of a T5 the answers, `[batch, answer tokens]`; else the label of each
    /// token that is read. [`Targets::IGNORED`] takes no part.
    pub labels: Arc<[u32]>,
    /// 0 for padding of a T5's answers; all are real if `None`.
    pub label_mask: Option<Arc<[u8]>>,
}

impl Blip2 {
    fn writing(&self) -> Result<(&WritingConfig, &Writing)> {
        let found = self.config().writing.as_ref().zip(self.second_stage());
        found.ok_or_else(|| Error::Unsuitable {
            what: "writing about pictures",
            needs: "a BLIP-2 of the second stage, with a language model",
            is: "a BLIP-2 of the first stage".to_owned(),
        })
    }

    /// What writes token by token.
    ///
    /// # Errors
    /// If the model has no language model.
    pub fn decoder(&self) -> Result<&dyn Decoder> {
        Ok(self.writing()?.1.language.decoder())
    }

    /// What the language model is shown of pictures, `[batch, queries, language width]`, from
    /// the queries of `QFormer::forward`, or from `QFormer::join` with the instruction (InstructBLIP).
    ///
    /// # Errors
    /// If the model has no language model.
    pub fn shown(&self, read: &Tensor) -> Result<Tensor> {
        let queries = read.narrow(1, 0, self.config().qformer.queries)?;
        Ok(self.writing()?.1.projection.forward(&queries)?)
    }

    /// A text with the places of a picture in front.
    ///
    /// # Errors
    /// If the model has no language model.
    pub fn with_picture(&self, text: &[u32]) -> Result<Vec<u32>> {
        let mut ids = vec![self.writing()?.0.image_id; self.config().qformer.queries];
        ids.extend_from_slice(text);
        Ok(ids)
    }

    /// Embeddings of texts of one length, `[batch, tokens, width]`, with what is shown of pictures
    /// `[batch, queries, width]` in its places.
    fn splice(&self, shown: &Tensor, ids: &[u32]) -> Result<Tensor> {
        let (config, Writing { language, .. }) = self.writing()?;
        let (batch, queries) = (shown.shape()[0], self.config().qformer.queries);
        let tokens = ids.len() / batch.max(1);
        let words: Vec<u32> =
            ids.iter().map(|id| if *id == config.image_id { 0 } else { *id }).collect();
        let words = language.decoder().embed(&words)?; // [batch tokens, width]
        let width = words.shape().last_axis();
        let table = Tensor::cat(&[&words, &shown.reshape(&[batch * queries, width])?], 0)?;
        let mut places: Vec<u32> = (0..ids.len() as u32).collect();
        for (row, text) in ids.chunks_exact(tokens.max(1)).enumerate() {
            let images = (0..tokens).filter(|t| text[*t] == config.image_id);
            let found = images.clone().count();
            if found != queries {
                return Err(Error::ImagePlaces { found, expected: queries });
            }
            for (query, token) in images.enumerate() {
                places[row * tokens + token] = (ids.len() + row * queries + query) as u32;
            }
        }
        Ok(table.embedding(&places.into(), &[batch, tokens])?)
    }

    /// Logits of the word behind each token that is read, `[batch, tokens, vocab]`, or of each word
    /// of a T5's answers.
    ///
    /// # Errors
    /// If the model has no language model, or the lessons do not suit it.
    pub fn logits(&self, shown: &Tensor, lessons: &Lessons) -> Result<Tensor> {
        let embeddings = self.splice(shown, &lessons.texts.ids)?;
        let mask = Some(Arc::clone(&lessons.texts.mask));
        match self.writing()?.1.language.side() {
            Side::Causal(model) => model.logits(&model.features(&embeddings, mask.as_ref())?),
            Side::T5(model) => {
                let memory = model.encode(&embeddings, mask)?;
                model.label_logits(&memory, &lessons.labels, lessons.label_mask.clone())
            }
        }
    }

    /// The mean cross-entropy of the labels (§3.3).
    ///
    /// # Errors
    /// As for [`Blip2::logits`].
    pub fn loss(&self, shown: &Tensor, lessons: &Lessons) -> Result<Tensor> {
        let logits = self.logits(shown, lessons)?;
        match self.writing()?.1.language.side() {
            Side::Causal(_) => next_token_loss(&logits, &lessons.labels),
            Side::T5(_) => {
                let targets = Targets::Classes(Arc::clone(&lessons.labels), 0.0);
                Ok(logits.cross_entropy(&targets)?)
            }
        }
    }

    /// What [`crate::generate::generate`] needs to go on behind texts of any lengths, one about each
    /// picture, with the places of the picture in them.
    ///
    /// # Errors
    /// If the model has no language model, or a text has other places than a picture needs.
    pub fn prompts(&self, shown: &Tensor, texts: &[Vec<u32>]) -> Result<(Vec<Prompt>, Cache)> {
        let (config, Writing { language, .. }) = self.writing()?;
        let image_tokens = self.config().qformer.queries;
        let splice = |(i, ids): (usize, &Vec<u32>)| {
            let embeddings = self.splice(&shown.narrow(0, i, 1)?, ids)?;
            let width = embeddings.shape().last_axis();
            Ok(embeddings.reshape(&[ids.len(), width])?)
        };
        let embeddings = texts.iter().enumerate().map(splice).collect::<Result<Vec<_>>>()?;
        match language.side() {
            Side::Causal(model) => {
                let said = |ids: &Vec<u32>| {
                    ids.iter().copied().filter(|id| *id != config.image_id).collect()
                };
                let prompt = |(embeddings, ids)| Prompt {
                    embeddings,
                    ids: said(ids),
                    image_tokens,
                    shown: Vec::new(),
                };
                let prompts = embeddings.into_iter().zip(texts).map(prompt).collect();
                Ok((prompts, model.new_cache(texts.len())))
            }
            Side::T5(model) => model.prompts(&embeddings),
        }
    }
}

/// Tokens of a caption, and of an answer, at most; as in the original code.
const MOST_TOKENS: [usize; 2] = [30, 10];
/// How the captions begin that the model learned from.
const PROMPT: &str = "a photo of";
/// What InstructBLIP is asked for a caption (Table 5).
const CAPTION_INSTRUCTION: &str = "A short image caption.";

impl Blip2 {
    /// The text that the language model reads for a request.
    fn text_of(&self, request: &Request) -> Result<String> {
        let is_instruct = self.config().qformer.text.is_some();
        let usual = if is_instruct { CAPTION_INSTRUCTION } else { PROMPT };
        Ok(match (request, &self.writing()?.0.language) {
            (Request::Caption(prompt), _) => prompt.unwrap_or(usual).to_owned(),
            (Request::Answer(question), _) if is_instruct => (*question).to_owned(),
            (Request::Answer(question), LanguageConfig::T5(_)) => {
                format!("Question: {question} Short answer:")
            }
            (Request::Answer(question), _) => format!("Question: {question} Answer:"),
        })
    }

    /// What the queries read in pictures, with this text before them if the model is an InstructBLIP.
    fn read(&self, memory: &Memory, text: &str) -> Result<Tensor> {
        let Some(sizes) = self.config().qformer.text else { return self.qformer().forward(memory) };
        let tokenizer = self.instructions().ok_or_else(|| Error::Unsuitable {
            what: "reading an instruction",
            needs: "the folder qformer_tokenizer beside the weights",
            is: "an InstructBLIP without it".to_owned(),
        })?;
        let ids = tokenizer.encode(text, true);
        let (limit, tokens) = (sizes.context_length, ids.len());
        if tokens > limit {
            return Err(Error::ContextOverflow { limit, tokens, image_tokens: 0 });
        }
        let images = memory.tokens.shape()[0];
        self.qformer().join(memory, &Texts::repeated(&ids, images))
    }
}

impl Blip2 {
    /// What [`crate::generate::generate`] needs to go on behind texts, each about the one picture of
    /// normalised `pixels` `[1, 3, img_h, img_w]`, which stands in front of it.
    ///
    /// # Errors
    /// If the model has no language model, or a text is longer than the queries can read.
    pub fn asked(
        &self,
        pixels: &Tensor,
        texts: &[String],
        tokenizer: &Tokenizer,
    ) -> Result<(Vec<Prompt>, Cache)> {
        let memory = self.image_tokens(pixels)?;
        let shown = |text: &String| self.shown(&self.read(&memory, text)?);
        let shown = texts.iter().map(shown).collect::<Result<Vec<_>>>()?;
        let ids = |text: &String| self.with_picture(&tokenizer.encode(text, true));
        let ids = texts.iter().map(ids).collect::<Result<Vec<_>>>()?;
        self.prompts(&Tensor::cat(&shown.iter().collect::<Vec<_>>(), 0)?, &ids)
    }
}

impl Writer for Blip2 {
    fn usual(&self, request: &Request) -> Settings {
        let is_question = matches!(request, Request::Answer(_));
        let ends = self.config().writing.as_ref().map(|w| &w.eos_ids[..]).unwrap_or_default();
        Settings::greedy(MOST_TOKENS[usize::from(is_question)], ends)
    }

    fn write(
        &self,
        pixels: &Tensor,
        request: &Request,
        tokenizer: &Tokenizer,
        settings: &Settings,
        on_token: &mut dyn FnMut(usize, u32) -> Flow,
    ) -> Result<Vec<Answer>> {
        let text = self.text_of(request)?;
        let memory = self.image_tokens(pixels)?;
        let shown = self.shown(&self.read(&memory, &text)?)?;
        let ids = self.with_picture(&tokenizer.encode(&text, true))?;
        let (prompts, mut cache) = self.prompts(&shown, &vec![ids; shown.shape()[0]])?;
        generate(self.decoder()?, &prompts, &mut cache, settings, on_token)
    }
}

/// The name maps of a language model whose names follow `prefix`.
pub(super) fn language_names(config: &LanguageConfig, prefix: &str) -> Vec<Names> {
    let names = match config {
        LanguageConfig::Opt(_) => vec![opt::names(&format!("{prefix}model."))],
        LanguageConfig::Llama(c) => llama::names(prefix, c.has_tied_head),
        LanguageConfig::T5(c) => vec![t5::names(prefix, c)],
    };
    names.into_iter().map(|names| names.under("language.")).collect()
}
