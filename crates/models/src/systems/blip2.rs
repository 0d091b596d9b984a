//! BLIP-2: a frozen vision tower and a frozen language model, bridged by a Q-Former.
//!
//! Li et al. 2023, "BLIP-2", arXiv:2301.12597. The first stage (§3.2, Figure 2) teaches the queries
//! to read pictures (`blip2_pretraining.rs`) and leaves heads that compare pictures with texts. The
//! second (§3.3, Figure 3) puts what they read among the text of a language model
//! (`blip2_writing.rs`).

use super::blip2_writing::{Instructions, LanguageConfig, Writing, WritingConfig, language_names};
use super::matcher::{Matcher, Scores};
use crate::connector::qformer::{self, Memory, QFormer, QFormerConfig};
use crate::language::bert::Texts;
use crate::vision::clip_vit::{ClipVit, ClipVitConfig};
use crate::vision::eva_vit::{self, EvaVit, EvaVitConfig};
use crate::{Error, Result};
use ocelli_data::text::Tokenizer;
use ocelli_nn::layers::{LayerNorm, Linear};
use ocelli_nn::{Builder, Init, Name, Names, Parameter, copy};
use ocelli_tensor::Tensor;

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

/// BLIP-2.
#[derive(Debug)]
pub struct Blip2 {
    config: Blip2Config,
    vision: Tower,
    norm: LayerNorm,
    qformer: QFormer,
    matching: Option<Matching>,
    writing: Option<Writing>,
    instructions: Option<Instructions>,
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
        Self::from_parts(config, b, &b.at("vision"), &b.at("language"))
    }

    /// The same with a tower and a language model whose parameters come from elsewhere.
    pub fn from_parts(
        config: &Blip2Config,
        b: &Builder,
        vision: &Builder,
        language: &Builder,
    ) -> Self {
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
        let writing = |w: &WritingConfig| Writing::new(w, width, uniform(width), b, language);
        Self {
            vision: Tower::new(&c.vision, vision),
            norm: LayerNorm::new(&b.at("norm"), c.vision.width(), c.norm_eps),
            qformer: QFormer::new(&c.qformer, &b.at("qformer")),
            matching: c.matching.map(matching),
            writing: c.writing.as_ref().map(writing),
            instructions: None,
            config: config.clone(),
        }
    }

    /// The same with the tokenizer of the instructions that queries read (InstructBLIP).
    #[must_use]
    pub fn with_instructions(self, tokenizer: Tokenizer) -> Self {
        Self { instructions: Some(Instructions(tokenizer)), ..self }
    }

    /// The tokenizer of the instructions that queries read, if it is there.
    pub(super) fn instructions(&self) -> Option<&Tokenizer> {
        self.instructions.as_ref().map(|i| &i.0)
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

    /// What writes about pictures, if it is there.
    pub(super) fn second_stage(&self) -> Option<&Writing> {
        self.writing.as_ref()
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
}

impl Matcher for Blip2 {
    fn scores(&self, pixels: &Tensor, texts: &Texts) -> Result<Scores> {
        let memory = self.image_tokens(pixels)?;
        let cosines = self.compare(&memory, texts)?.cosines;
        let (images, tokens) = (memory.tokens.shape()[0], texts.tokens());
        let mut probabilities = vec![0.0; images * texts.batch];
        for text in 0..texts.batch {
            // One text at a time, without padding, with all pictures.
            let mask = &texts.mask[text * tokens..][..tokens];
            let ids = texts.ids[text * tokens..].iter().zip(mask);
            let ids: Vec<u32> = ids.filter(|(_, m)| **m != 0).map(|(id, _)| *id).collect();
            let pairs = self.qformer.join(&memory, &Texts::repeated(&ids, images))?;
            let logits = self.match_logits(&pairs)?;
            for (image, logits) in logits.values().chunks_exact(2).enumerate() {
                probabilities[image * texts.batch + text] =
                    1.0 / (1.0 + (logits[0] - logits[1]).exp());
            }
        }
        let probabilities = Tensor::from_slice(&probabilities, &[images, texts.batch])?;
        Ok(Scores { cosines, probabilities })
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

/// What leads to the language model in LAVIS, by the kind of model.
pub(crate) const LAVIS_PROJECTIONS: [&str; 3] = ["opt_proj", "t5_proj", "llm_proj"];

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

/// Name maps of LAVIS files, which hold no language model, and a tower only if it was trained.
pub fn lavis_names(config: &Blip2Config, has_tower: bool) -> Vec<Names> {
    let prefix = "visual_encoder.";
    let tower = match &config.vision {
        TowerConfig::Eva(_) => eva_vit::lavis_names(prefix),
        TowerConfig::Clip(_) => lavis_clip_names(prefix),
    };
    let qformer = qformer::lavis_names().under("qformer.");
    let projection = match config.writing.as_ref().map(|w| &w.language) {
        Some(LanguageConfig::T5(_)) => copy("projection.*", "t5_proj.*"),
        Some(LanguageConfig::Llama(_)) => copy("projection.*", "llm_proj.*"),
        _ => copy("projection.*", "opt_proj.*"),
    };
    let own = Names::family(LAVIS, &[]).and(&Names::family(&[projection], &[]));
    let mut names = vec![own, qformer];
    names.extend(has_tower.then(|| tower.under("vision.")));
    names
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
