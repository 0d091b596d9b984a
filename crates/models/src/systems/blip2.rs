//! BLIP-2: a frozen vision tower and a frozen language model, bridged by a Q-Former.
//!
//! Li et al. 2023, "BLIP-2", arXiv:2301.12597. The first stage (§3.2, Figure 2) teaches the queries
//! to read pictures (`blip2_pretraining.rs`) and leaves heads that compare pictures with texts. The
//! second (§3.3, Figure 3) puts what they read among the text of a language model, through one linear
//! layer. InstructBLIP (Dai et al. 2023, arXiv:2305.06500, §2.3) shows the instruction to the queries
//! as well.

use crate::connector::qformer::{self, Memory, QFormer, QFormerConfig};
use crate::generate::{Cache, Decoder, Prompt};
use crate::language::bert::Texts;
use crate::language::causal::{CausalModel, next_token_loss};
use crate::language::llama::{self, Llama, LlamaConfig};
use crate::language::opt::{self, Opt, OptConfig};
use crate::language::t5::{self, T5, T5Config};
use crate::vision::clip_vit::{ClipVit, ClipVitConfig};
use crate::vision::eva_vit::{self, EvaVit, EvaVitConfig};
use crate::{Error, Result};
use ocelli_nn::layers::{LayerNorm, Linear};
use ocelli_nn::{Builder, Init, Name, Names, Parameter, copy};
use ocelli_tensor::{Targets, Tensor};
use std::sync::Arc;

/// Sizes of a BLIP-2.
#[derive(Clone, Debug, PartialEq)]
pub struct Blip2Config {
    /// The vision tower.
    pub vision: TowerConfig,
    /// Epsilon of the norm behind the tower: 1e-5 in LAVIS, 1e-6 in transformers.
    pub norm_eps: f32,
    /// The Q-Former.
    pub qformer: QFormerConfig,
    /// What compares pictures and texts, after the first stage.
    pub matching: Option<MatchingConfig>,
    /// What writes about pictures, after the second stage.
    pub writing: Option<WritingConfig>,
}

/// Sizes of the vision tower.
#[derive(Clone, Debug, PartialEq)]
pub enum TowerConfig {
    /// EVA-CLIP's ViT-g.
    Eva(EvaVitConfig),
    /// CLIP's ViT-L without its last block.
    Clip(ClipVitConfig),
}

impl TowerConfig {
    /// Width of an image token.
    pub fn width(&self) -> usize {
        match self {
            Self::Eva(c) => c.width,
            Self::Clip(c) => c.width,
        }
    }

    /// Height and width of the input, in pixels.
    pub fn image_size(&self) -> (usize, usize) {
        match self {
            Self::Eva(c) => c.image_size,
            Self::Clip(c) => c.image_size,
        }
    }
}

/// Sizes of what compares pictures and texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatchingConfig {
    /// Width of the joint space.
    pub embed_dim: usize,
    /// Whether the temperature of training is there.
    pub has_temperature: bool,
}

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

/// The vision tower.
#[derive(Debug)]
pub enum Tower {
    /// EVA-CLIP's ViT-g.
    Eva(Box<EvaVit>),
    /// CLIP's ViT-L.
    Clip(Box<ClipVit>),
}

impl Tower {
    /// A tower whose parameters come from `b`.
    pub fn new(config: &TowerConfig, b: &Builder) -> Self {
        match config {
            TowerConfig::Eva(c) => Self::Eva(Box::new(EvaVit::new(c, b))),
            TowerConfig::Clip(c) => Self::Clip(Box::new(ClipVit::trunk(c, b))),
        }
    }

    /// Normalised `pixels` `[batch, 3, img_h, img_w]` to the tokens after the last block, class
    /// token first, `[batch, 1 + patches, width]`.
    ///
    /// # Errors
    /// If the channels differ or a side is smaller than a patch.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        match self {
            Self::Eva(tower) => tower.forward(pixels),
            Self::Clip(tower) => tower.features(pixels),
        }
    }
}

/// What compares pictures and texts (§3.2).
#[derive(Debug)]
struct Matching {
    image: Linear,
    text: Linear,
    head: Linear,
    temperature: Option<Parameter>,
}

/// What writes about pictures (§3.3).
#[derive(Debug)]
struct Writing {
    projection: Linear,
    language: Language,
}

/// BLIP-2.
#[derive(Debug)]
pub struct Blip2 {
    config: Blip2Config,
    vision: Tower,
    norm: LayerNorm,
    qformer: QFormer,
    matching: Option<Matching>,
    writing: Option<Writing>,
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

/// Pictures and texts in the joint space.
#[derive(Clone, Debug)]
pub struct Contrast {
    /// What the queries read, `[images, queries, width]`.
    pub queries: Tensor,
    /// The texts alone, `[texts, tokens, width]`.
    pub tokens: Tensor,
    /// `[images, queries, embed_dim]`, each row of length 1.
    pub images: Tensor,
    /// `[texts, embed_dim]`, each row of length 1.
    pub texts: Tensor,
    /// The cosine of each text and the query that is nearest to it, `[images, texts]`.
    pub cosines: Tensor,
}

/// What the linear layers of the original are drawn from: the framework's default.
fn uniform(inputs: usize) -> Init {
    Init::Uniform((inputs as f32).powf(-0.5))
}

impl Blip2 {
    /// A model whose parameters come from `b`.
    pub fn new(config: &Blip2Config, b: &Builder) -> Self {
        let c = config;
        let width = c.qformer.width;
        let matching = |m: MatchingConfig| {
            let b = b.at("matching");
            let project =
                |name: &str| Linear::new(&b.at(name), width, m.embed_dim, true, uniform(width));
            Matching {
                image: project("image"),
                text: project("text"),
                head: Linear::new(&b.at("head"), width, 2, true, uniform(width)),
                temperature: m
                    .has_temperature
                    .then(|| b.parameter("temperature", &[], Init::Constant(0.07))),
            }
        };
        let writing = |w: &WritingConfig| Writing {
            projection: Linear::new(
                &b.at("projection"),
                width,
                w.language.width(),
                true,
                uniform(width),
            ),
            language: Language::new(&w.language, &b.at("language")),
        };
        Self {
            vision: Tower::new(&c.vision, &b.at("vision")),
            norm: LayerNorm::new(&b.at("norm"), c.vision.width(), c.norm_eps),
            qformer: QFormer::new(&c.qformer, &b.at("qformer")),
            matching: c.matching.map(matching),
            writing: c.writing.as_ref().map(writing),
            config: config.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &Blip2Config {
        &self.config
    }

    /// The vision tower.
    pub fn vision(&self) -> &Tower {
        &self.vision
    }

    /// The Q-Former.
    pub fn qformer(&self) -> &QFormer {
        &self.qformer
    }

    /// Normalised `pixels` `[batch, 3, img_h, img_w]` to what the queries read: all tokens of the
    /// tower, class token first, normalised.
    ///
    /// # Errors
    /// If the channels differ or a side is smaller than a patch.
    pub fn image_tokens(&self, pixels: &Tensor) -> Result<Memory> {
        self.normalise(&self.vision.forward(pixels)?)
    }

    /// The tokens of the tower, normalised.
    ///
    /// # Errors
    /// If the tokens have another width.
    pub fn normalise(&self, tokens: &Tensor) -> Result<Memory> {
        Ok(self.norm.forward(tokens)?.into())
    }

    fn matching(&self) -> Result<&Matching> {
        self.matching.as_ref().ok_or_else(|| Error::Unsuitable {
            what: "comparing pictures and texts",
            needs: "a BLIP-2 of the first stage",
            is: "a BLIP-2 of the second stage".to_owned(),
        })
    }

    /// What the cosines of training were divided by.
    pub(super) fn temperature(&self) -> Option<Tensor> {
        self.matching.as_ref()?.temperature.as_ref().map(Parameter::tensor)
    }

    /// Every picture against every text (§3.2, image-text contrast): each side is read alone, and
    /// the query nearest to the text counts.
    ///
    /// # Errors
    /// If the model has no matching heads, or the inputs do not suit.
    pub fn compare(&self, memory: &Memory, texts: &Texts) -> Result<Contrast> {
        let heads = self.matching()?;
        let queries = self.qformer.forward(memory)?; // [images, queries, width]
        let tokens = self.qformer.read(texts)?; // [texts, tokens, width]
        let class = tokens.select_tokens(&vec![0; texts.batch])?; // [texts, width]
        let images = heads.image.forward(&queries)?.l2_normalise()?;
        let texts = heads.text.forward(&class)?.l2_normalise()?;
        let cosines = nearest_query(&images, &texts)?;
        Ok(Contrast { queries, tokens, images, texts, cosines })
    }

    /// Logits of no match and match of each picture and its text (§3.2, image-text matching), the
    /// mean over the queries, `[batch, 2]`, from what [`QFormer::join`] gives.
    ///
    /// # Errors
    /// If the model has no matching heads.
    pub fn match_logits(&self, pairs: &Tensor) -> Result<Tensor> {
        let queries = pairs.narrow(1, 0, self.config.qformer.queries)?;
        let logits = self.matching()?.head.forward(&queries)?; // [batch, queries, 2]
        Ok(logits.mean_tokens(0)?)
    }

    fn writing(&self) -> Result<(&WritingConfig, &Writing)> {
        let found = self.config.writing.as_ref().zip(self.writing.as_ref());
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
    /// [`QFormer::forward`], or from [`QFormer::join`] with the instruction (InstructBLIP).
    ///
    /// # Errors
    /// If the model has no language model.
    pub fn shown(&self, read: &Tensor) -> Result<Tensor> {
        let queries = read.narrow(1, 0, self.config.qformer.queries)?;
        Ok(self.writing()?.1.projection.forward(&queries)?)
    }

    /// A text with the places of a picture in front.
    ///
    /// # Errors
    /// If the model has no language model.
    pub fn with_picture(&self, text: &[u32]) -> Result<Vec<u32>> {
        let mut ids = vec![self.writing()?.0.image_id; self.config.qformer.queries];
        ids.extend_from_slice(text);
        Ok(ids)
    }

    /// Embeddings of texts of one length, `[batch, tokens, width]`, with what is shown of pictures
    /// `[batch, queries, width]` in its places.
    fn splice(&self, shown: &Tensor, ids: &[u32]) -> Result<Tensor> {
        let (config, Writing { language, .. }) = self.writing()?;
        let (batch, queries) = (shown.shape()[0], self.config.qformer.queries);
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
        let image_tokens = self.config.qformer.queries;
        match language.side() {
            Side::Causal(model) => {
                let prompt = |(i, ids): (usize, &Vec<u32>)| {
                    let embeddings = self.splice(&shown.narrow(0, i, 1)?, ids)?;
                    let width = embeddings.shape().last_axis();
                    let embeddings = embeddings.reshape(&[ids.len(), width])?;
                    let ids = ids.iter().copied().filter(|id| *id != config.image_id).collect();
                    Ok(Prompt { embeddings, ids, image_tokens })
                };
                let prompts = texts.iter().enumerate().map(prompt).collect::<Result<Vec<_>>>()?;
                Ok((prompts, model.new_cache(texts.len())))
            }
            Side::T5(model) => {
                let lens: Vec<usize> = texts.iter().map(Vec::len).collect();
                let most = lens.iter().copied().max().unwrap_or(0);
                let (mut ids, mut mask) = (Vec::new(), Vec::new());
                for text in texts {
                    let padding = most - text.len();
                    ids.extend(
                        text.iter().copied().chain(std::iter::repeat_n(config.pad_id, padding)),
                    );
                    mask.extend((0..most).map(|t| u8::from(t < text.len())));
                }
                let memory = model.encode(&self.splice(shown, &ids)?, Some(mask.into()))?;
                let start = Prompt::text(model, &[model.config().start_id])?;
                Ok((vec![start; texts.len()], model.new_cache(&memory.tokens, &lens)?))
            }
        }
    }
}

/// The largest cosine over the queries: `[images, queries, width]` and `[texts, width]` to
/// `[images, texts]`.
fn nearest_query(images: &Tensor, texts: &Tensor) -> Result<Tensor> {
    let &[n, queries, width] = &images.shape()[..] else { unreachable!("queries of each image") };
    let m = texts.shape()[0];
    let rows = images.reshape(&[n * queries, width])?;
    let all = rows.matmul(&texts.transpose()?)?; // [images queries, texts]
    let mut places = Vec::with_capacity(n * m);
    for image in all.values().chunks_exact((queries * m).max(1)) {
        let first = places.len() / m.max(1) * queries * m;
        for text in 0..m {
            let best = (0..queries).map(|q| q * m + text);
            let best = best.max_by(|a, b| image[*a].total_cmp(&image[*b])).unwrap_or(text);
            places.push((first + best) as u32);
        }
    }
    let all = all.reshape(&[n * queries * m, 1])?;
    Ok(all.embedding(&places.into(), &[n, m])?.reshape(&[n, m])?)
}

/// LAVIS, beside the tower and the Q-Former.
const LAVIS: &[Name] = &[
    copy("norm.*", "ln_vision.*"),
    copy("matching.image.*", "vision_proj.*"),
    copy("matching.text.*", "text_proj.*"),
    copy("matching.head.*", "itm_head.*"),
    copy("matching.temperature", "temp"),
];

/// transformers, beside the tower, the Q-Former and the language model.
const TRANSFORMERS: &[Name] = &[
    copy("norm.*", "vision_model.post_layernorm.*"),
    copy("projection.*", "language_projection.*"),
    copy("matching.image.*", "vision_projection.*"),
    copy("matching.text.*", "text_projection.*"),
    copy("matching.head.*", "itm_head.*"),
];

/// CLIP's tower in LAVIS; `~` is `visual_encoder.` there.
const LAVIS_CLIP: &[Name] = &[
    copy("class", "~class_embedding"),
    copy("patch.weight", "~conv1.weight"),
    copy("position", "~positional_embedding"),
    copy("norm_pre.*", "~ln_pre.*"),
    copy("blocks.*.norm1.*", "~transformer.resblocks.*.ln_1.*"),
    copy("blocks.*.attn.qkv.weight", "~transformer.resblocks.*.attn.in_proj_weight"),
    copy("blocks.*.attn.qkv.bias", "~transformer.resblocks.*.attn.in_proj_bias"),
    copy("blocks.*.attn.out.*", "~transformer.resblocks.*.attn.out_proj.*"),
    copy("blocks.*.norm2.*", "~transformer.resblocks.*.ln_2.*"),
    copy("blocks.*.mlp.up.*", "~transformer.resblocks.*.mlp.c_fc.*"),
    copy("blocks.*.mlp.down.*", "~transformer.resblocks.*.mlp.c_proj.*"),
];

/// The name map of CLIP's tower in LAVIS; `prefix` is `"visual_encoder."` or `""`.
pub fn lavis_clip_names(prefix: &str) -> Names {
    Names::family(LAVIS_CLIP, &[]).with_prefix(prefix)
}

/// The name maps of a language model whose names follow `prefix`.
fn language_names(config: &LanguageConfig, prefix: &str) -> Vec<Names> {
    let names = match config {
        LanguageConfig::Opt(_) => vec![opt::names(&format!("{prefix}model."))],
        LanguageConfig::Llama(c) => llama::names(prefix, c.has_tied_head),
        LanguageConfig::T5(c) => vec![t5::names(prefix, c)],
    };
    names.into_iter().map(|names| names.under("language.")).collect()
}

/// Name maps of LAVIS files.
pub fn lavis_names(config: &Blip2Config) -> Vec<Names> {
    let prefix = "visual_encoder.";
    let tower = match &config.vision {
        TowerConfig::Eva(_) => eva_vit::lavis_names(prefix),
        TowerConfig::Clip(_) => lavis_clip_names(prefix),
    };
    let qformer = qformer::lavis_names().under("qformer.");
    vec![Names::family(LAVIS, &[]), tower.under("vision."), qformer]
}

/// Name maps of transformers files, of InstructBLIP if `is_instruct` and else of BLIP-2.
pub fn transformers_names(config: &Blip2Config, is_instruct: bool) -> Vec<Names> {
    let tower = eva_vit::transformers_names().under("vision.");
    let qformer = qformer::transformers_names(is_instruct).under("qformer.");
    let mut names = vec![Names::family(TRANSFORMERS, &[]), tower, qformer];
    if let Some(writing) = &config.writing {
        names.extend(language_names(&writing.language, "language_model."));
    }
    names
}
