//! BLIP-2: a frozen vision tower and a frozen language model, bridged by a Q-Former.
//!
//! Li et al. 2023, "BLIP-2", arXiv:2301.12597. The first stage (§3.2, Figure 2) teaches the queries
//! to read pictures by three losses: contrast, matching and writing. The second (§3.3, Figure 3)
//! puts what they read in front of the text of a language model, through one linear layer.

use crate::connector::qformer::{self, Memory, QFormer, QFormerConfig};
use crate::language::bert::Texts;
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

/// Which pair of the batch each sample is to be told apart from (§3.2, hard negatives).
#[derive(Clone, Debug)]
pub struct Negatives {
    /// The picture that is shown with text `i`.
    pub images: Arc<[u32]>,
    /// The text that is shown with picture `i`.
    pub texts: Arc<[u32]>,
}

/// The losses of the first stage and what they are made of.
#[derive(Clone, Debug)]
pub struct FirstStage {
    /// Pictures and texts in the joint space.
    pub contrast: Contrast,
    /// Cosines over the temperature, `[images, texts]`.
    pub similarities: Tensor,
    /// Queries and texts of each pair, `[3 batch, queries + tokens, width]`.
    pub pairs: Tensor,
    /// Logits of no match and match, `[3 batch, 2]`: pairs, negative pictures, negative texts.
    pub match_logits: Tensor,
    /// Image-text contrast.
    pub contrast_loss: Tensor,
    /// Image-text matching.
    pub matching_loss: Tensor,
    /// Image-grounded writing.
    pub language_loss: Tensor,
}

impl FirstStage {
    /// The sum of the three losses.
    ///
    /// # Errors
    /// Never; a result like the other operations.
    pub fn loss(&self) -> Result<Tensor> {
        Ok(self.contrast_loss.add(&self.matching_loss)?.add(&self.language_loss)?)
    }
}

/// Label smoothing of contrast and writing, as in the original code.
const SMOOTHING: f32 = 0.1;
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
        Self {
            vision: Tower::new(&c.vision, &b.at("vision")),
            norm: LayerNorm::new(&b.at("norm"), c.vision.width(), c.norm_eps),
            qformer: QFormer::new(&c.qformer, &b.at("qformer")),
            matching: c.matching.map(matching),
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

    /// The three losses of the first stage (§3.2) for pictures and texts that belong together by
    /// index. Texts begin with the class token; the writer's begin with `bos` in its place.
    ///
    /// # Errors
    /// If the model is not one of the first stage, or the inputs do not suit.
    pub fn first_stage(
        &self,
        memory: &Memory,
        texts: &Texts,
        bos: u32,
        negatives: &Negatives,
    ) -> Result<FirstStage> {
        let batch = texts.batch;
        let contrast = self.compare(memory, texts)?;
        let temperature = self.matching()?.temperature.as_ref().ok_or_else(untrained)?.tensor();
        let similarities = contrast.cosines.divide_by(&temperature)?;
        let diagonal = Targets::Classes((0..batch as u32).collect(), SMOOTHING);
        let by_image = similarities.cross_entropy(&diagonal)?;
        let by_text = similarities.transpose()?.cross_entropy(&diagonal)?;
        let contrast_loss = by_image.add(&by_text)?.scale(0.5)?;

        let other = rows_of(&memory.tokens, &negatives.images)?;
        let shown = Tensor::cat(&[&memory.tokens, &other, &memory.tokens], 0)?.into();
        let pairs = self.qformer.join(&shown, &with_negatives(texts, &negatives.texts))?;
        let match_logits = self.match_logits(&pairs)?; // [3 batch, 2]
        let classes = (0..3 * batch).map(|i| u32::from(i < batch)).collect();
        let matching_loss = match_logits.cross_entropy(&Targets::Classes(classes, 0.0))?;

        let (written, labels) = to_write(texts, bos);
        let language_loss = self.qformer.language_loss(memory, &written, &labels, SMOOTHING)?;
        Ok(FirstStage {
            contrast,
            similarities,
            pairs,
            match_logits,
            contrast_loss,
            matching_loss,
            language_loss,
        })
    }
}

fn untrained() -> Error {
    Error::Unsuitable {
        what: "the losses of the first stage",
        needs: "a checkpoint with a temperature, as LAVIS writes it",
        is: "a BLIP-2 without one".to_owned(),
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

/// The samples `which` of `[batch, tokens, width]`.
fn rows_of(x: &Tensor, which: &Arc<[u32]>) -> Result<Tensor> {
    let &[batch, tokens, width] = &x.shape()[..] else { unreachable!("tokens of each image") };
    let rows = x.reshape(&[batch, tokens * width])?.embedding(which, &[which.len()])?;
    Ok(rows.reshape(&[which.len(), tokens, width])?)
}

/// The texts of pairs, of negative pictures and of negative texts, one after another.
fn with_negatives(texts: &Texts, negatives: &[u32]) -> Texts {
    let own: Vec<u32> = (0..texts.batch as u32).collect();
    let order = || own.iter().chain(&own).chain(negatives).map(|i| *i as usize);
    let tokens = texts.tokens();
    Texts {
        ids: order().flat_map(|i| texts.ids[i * tokens..][..tokens].to_vec()).collect(),
        token_types: vec![0; 3 * texts.ids.len()].into(),
        mask: order().flat_map(|i| texts.mask[i * tokens..][..tokens].to_vec()).collect(),
        batch: 3 * texts.batch,
    }
}

/// The texts behind the writer's first token, and their labels without the padding.
pub fn to_write(texts: &Texts, bos: u32) -> (Texts, Vec<u32>) {
    let tokens = texts.tokens().max(1);
    let ids = texts.ids.iter().enumerate();
    let ids: Arc<[u32]> = ids.map(|(i, id)| if i % tokens == 0 { bos } else { *id }).collect();
    let real = ids.iter().zip(&texts.mask[..]);
    let labels = real.map(|(id, m)| if *m == 0 { Targets::IGNORED } else { *id }).collect();
    (Texts { ids, ..texts.clone() }, labels)
}

/// How likely each other sample is drawn as the negative of a row, from similarities
/// `[batch, batch]`: their softmax without the pair itself (§3.2).
///
/// # Errors
/// If the similarities are not square.
pub fn negative_weights(similarities: &Tensor) -> Result<Tensor> {
    let n = similarities.shape().last_axis();
    let mut weights = similarities.values().to_vec();
    for (i, row) in weights.chunks_exact_mut(n.max(1)).enumerate() {
        row[i] = f32::NEG_INFINITY;
        let largest = row.iter().copied().fold(f32::MIN, f32::max);
        row.iter_mut().for_each(|w| *w = (*w - largest).exp());
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|w| *w /= sum.max(f32::MIN_POSITIVE));
    }
    Ok(Tensor::from_slice(&weights, &[n, n])?)
}

/// LAVIS, beside the tower and the Q-Former.
const LAVIS: &[Name] = &[
    copy("norm.*", "ln_vision.*"),
    copy("matching.image.*", "vision_proj.*"),
    copy("matching.text.*", "text_proj.*"),
    copy("matching.head.*", "itm_head.*"),
    copy("matching.temperature", "temp"),
];

/// transformers, beside the tower and the Q-Former.
const TRANSFORMERS: &[Name] = &[
    copy("norm.*", "vision_model.post_layernorm.*"),
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

/// Name maps of LAVIS files with this tower.
pub fn lavis_names(vision: &TowerConfig) -> Vec<Names> {
    let prefix = "visual_encoder.";
    let tower = match vision {
        TowerConfig::Eva(_) => eva_vit::lavis_names(prefix),
        TowerConfig::Clip(_) => lavis_clip_names(prefix),
    };
    let qformer = qformer::lavis_names().under("qformer.");
    vec![Names::family(LAVIS, &[]), tower.under("vision."), qformer]
}

/// Name maps of transformers files, of InstructBLIP if `is_instruct` and else of BLIP-2.
pub fn transformers_names(is_instruct: bool) -> Vec<Names> {
    let tower = eva_vit::transformers_names().under("vision.");
    let qformer = qformer::transformers_names(is_instruct).under("qformer.");
    vec![Names::family(TRANSFORMERS, &[]), tower, qformer]
}
