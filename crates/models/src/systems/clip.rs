//! CLIP: pictures and texts in one space.
//!
//! Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
//! arXiv:2103.00020, Figure 3. A vision tower and a text tower learn from the cosine of every
//! picture with every text of a batch.

use crate::language::clip_text::{ClipText, ClipTextConfig};
use crate::vision::clip_resnet::{ModifiedResNet, ModifiedResNetConfig};
use crate::vision::clip_vit::{ClipVit, ClipVitConfig};
use crate::vision::timm_vit::{self, TimmVit, TimmVitConfig};
use crate::vision::vit;
use crate::{Pass, Result};
use ocelli_nn::{Builder, Init, Name, Names, Parameter, concat, copy, transpose};
use ocelli_tensor::Tensor;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Sizes of both towers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipConfig {
    /// Width of the joint space.
    pub embed_dim: usize,
    /// The vision tower.
    pub vision: VisionConfig,
    /// The text tower.
    pub text: ClipTextConfig,
}

/// Sizes of the vision tower, of either kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VisionConfig {
    /// A Vision Transformer.
    Vit(ClipVitConfig),
    /// A ResNet with attention pooling.
    ResNet(ModifiedResNetConfig),
    /// A Vision Transformer of timm, in open_clip.
    TimmVit(TimmVitConfig),
}

impl VisionConfig {
    /// Height and width of the input, in pixels.
    pub fn image_size(&self) -> (usize, usize) {
        match self {
            Self::Vit(c) => c.image_size,
            Self::ResNet(c) => (c.image_size, c.image_size),
            Self::TimmVit(c) => c.vit.image_size,
        }
    }

    /// Tokens of a picture: patches and class token, or places of the last grid and their mean.
    pub fn tokens(&self) -> usize {
        match self {
            Self::Vit(c) => c.tokens(),
            Self::ResNet(c) => 1 + (c.image_size / 32).pow(2),
            Self::TimmVit(c) => c.vit.tokens(),
        }
    }
}

impl ClipConfig {
    /// A published model by its name, such as `"ViT-B/32"` or `"RN50x4"` (Tables 19 and 20).
    pub fn variant(name: &str) -> Option<Self> {
        let vit = |image_size, patch_size, width, depth| {
            VisionConfig::Vit(ClipVitConfig {
                image_size: (image_size, image_size),
                patch_size,
                width,
                depth,
                heads: width / 64,
                mlp_dim: 4 * width,
                quick_gelu: true,
                norm_eps: 1e-5,
                position_rule: crate::vision::position::PositionRule::Timm,
            })
        };
        let resnet = |layers, width, image_size| {
            let heads = width * 32 / 64;
            VisionConfig::ResNet(ModifiedResNetConfig { layers, width, heads, image_size })
        };
        let (embed_dim, vision, text_width) = match name {
            "RN50" => (1024, resnet([3, 4, 6, 3], 64, 224), 512),
            "RN101" => (512, resnet([3, 4, 23, 3], 64, 224), 512),
            "RN50x4" => (640, resnet([4, 6, 10, 6], 80, 288), 640),
            "RN50x16" => (768, resnet([6, 8, 18, 8], 96, 384), 768),
            "RN50x64" => (1024, resnet([3, 15, 36, 10], 128, 448), 1024),
            "ViT-B/32" => (512, vit(224, 32, 768, 12), 512),
            "ViT-B/16" => (512, vit(224, 16, 768, 12), 512),
            "ViT-L/14" => (768, vit(224, 14, 1024, 24), 768),
            "ViT-L/14@336" => (768, vit(336, 14, 1024, 24), 768),
            _ => return None,
        };
        let text = ClipTextConfig {
            vocab: 49_408,
            context_length: 77,
            width: text_width,
            depth: 12,
            heads: text_width / 64,
            mlp_dim: 4 * text_width,
            quick_gelu: true,
            norm_eps: 1e-5,
            end_token: crate::language::clip_text::EndToken::LargestId,
        };
        Some(Self { embed_dim, vision, text })
    }
}

/// The vision tower, of either kind.
#[derive(Debug)]
pub enum Vision {
    /// A Vision Transformer.
    Vit(Box<ClipVit>),
    /// A ResNet with attention pooling.
    ResNet(Box<ModifiedResNet>),
    /// A Vision Transformer of timm.
    TimmVit(Box<TimmVit>),
}

/// CLIP.
#[derive(Debug)]
pub struct Clip {
    config: ClipConfig,
    vision: Vision,
    text: ClipText,
    logit_scale: Parameter,
}

/// Pictures, texts and their cosines.
#[derive(Clone, Debug)]
pub struct Compared {
    /// `[images, embed_dim]`, each row of length 1.
    pub images: Tensor,
    /// `[texts, embed_dim]`, each row of length 1.
    pub texts: Tensor,
    /// exp(logit scale) times the cosines, `[images, texts]`.
    pub logits: Tensor,
}

impl Clip {
    /// A model whose parameters come from `b`.
    pub fn new(config: &ClipConfig, b: &Builder) -> Self {
        let vision = b.at("vision");
        Self {
            vision: match &config.vision {
                VisionConfig::Vit(c) => {
                    Vision::Vit(Box::new(ClipVit::new(c, config.embed_dim, &vision)))
                }
                VisionConfig::ResNet(c) => {
                    Vision::ResNet(Box::new(ModifiedResNet::new(c, config.embed_dim, &vision)))
                }
                VisionConfig::TimmVit(c) => {
                    Vision::TimmVit(Box::new(TimmVit::new(c, config.embed_dim, &vision)))
                }
            },
            text: ClipText::new(&config.text, config.embed_dim, &b.at("text")),
            // ln(1 / 0.07), §2.5.
            logit_scale: b.parameter("logit_scale", &[], Init::Constant(2.659_26)),
            config: config.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// The vision tower.
    pub fn vision(&self) -> &Vision {
        &self.vision
    }

    /// The text tower.
    pub fn text(&self) -> &ClipText {
        &self.text
    }

    /// The logarithm of the temperature's inverse.
    pub fn logit_scale(&self) -> &Parameter {
        &self.logit_scale
    }

    /// Normalised `pixels` `[batch, 3, img_h, img_w]` to `[batch, embed_dim]`, of any length.
    ///
    /// # Errors
    /// If the picture's size does not suit the tower.
    pub fn encode_image(&self, pixels: &Tensor) -> Result<Tensor> {
        self.encode_image_by(pixels, Pass::default())
    }

    /// The same in a pass of choice: a ResNet tower that learns takes the statistics of the batch.
    ///
    /// # Errors
    /// If the picture's size does not suit the tower.
    pub fn encode_image_by(&self, pixels: &Tensor, pass: Pass) -> Result<Tensor> {
        match &self.vision {
            Vision::Vit(tower) => tower.forward_by(pixels, pass),
            Vision::ResNet(tower) => tower.forward_with(pixels, pass.statistics),
            Vision::TimmVit(tower) => tower.forward_by(pixels, pass),
        }
    }

    /// Ids of `batch` texts, each as long as the others, to `[batch, embed_dim]`, of any length.
    ///
    /// # Errors
    /// If an id is not in the vocabulary or a text is longer than the context.
    pub fn encode_text(&self, ids: &Arc<[u32]>, batch: usize) -> Result<Tensor> {
        self.encode_text_by(ids, batch, Pass::default())
    }

    /// The same in a pass of choice.
    ///
    /// # Errors
    /// As for [`Clip::encode_text`].
    pub fn encode_text_by(&self, ids: &Arc<[u32]>, batch: usize, pass: Pass) -> Result<Tensor> {
        self.text.forward_by(ids, batch, pass)
    }

    /// Every picture against every text.
    ///
    /// # Errors
    /// As for the towers.
    pub fn compare(&self, pixels: &Tensor, ids: &Arc<[u32]>, texts: usize) -> Result<Compared> {
        let images = self.encode_image(pixels)?.l2_normalise()?;
        let texts = self.encode_text(ids, texts)?.l2_normalise()?;
        let scale = self.logit_scale.tensor().item()?.exp();
        let logits = images.detach().linear(&texts.detach(), None)?.scale(scale)?;
        Ok(Compared { images, texts, logits })
    }

    /// The contrastive loss of pictures and texts that belong together by index (Figure 3).
    ///
    /// # Errors
    /// As for the towers.
    pub fn loss(&self, pixels: &Tensor, ids: &Arc<[u32]>) -> Result<Tensor> {
        let images = self.encode_image(pixels)?.l2_normalise()?;
        let texts = self.encode_text(ids, images.shape()[0])?.l2_normalise()?;
        Ok(images.contrastive_loss(&texts, &self.logit_scale.tensor())?)
    }
}

/// transformers `CLIPModel`.
pub const TRANSFORMERS: &[Name] = &[
    copy("logit_scale", "logit_scale"),
    copy("vision.class", "vision_model.embeddings.class_embedding"),
    copy("vision.patch.weight", "vision_model.embeddings.patch_embedding.weight"),
    copy("vision.position", "vision_model.embeddings.position_embedding.weight"),
    copy("vision.norm_pre.*", "vision_model.pre_layrnorm.*"),
    copy("vision.norm_post.*", "vision_model.post_layernorm.*"),
    copy("vision.projection.weight", "visual_projection.weight"),
    copy("text.token.weight", "text_model.embeddings.token_embedding.weight"),
    copy("text.position", "text_model.embeddings.position_embedding.weight"),
    copy("text.norm.*", "text_model.final_layer_norm.*"),
    copy("text.projection.weight", "text_projection.weight"),
    copy("*.blocks.*.norm1.*", "*_model.encoder.layers.*.layer_norm1.*"),
    concat("*.blocks.*.attn.qkv.*", "*_model.encoder.layers.*.self_attn.{q,k,v}_proj.*"),
    copy("*.blocks.*.attn.out.*", "*_model.encoder.layers.*.self_attn.out_proj.*"),
    copy("*.blocks.*.norm2.*", "*_model.encoder.layers.*.layer_norm2.*"),
    copy("*.blocks.*.mlp.up.*", "*_model.encoder.layers.*.mlp.fc1.*"),
    copy("*.blocks.*.mlp.down.*", "*_model.encoder.layers.*.mlp.fc2.*"),
];

/// OpenAI's archives and open_clip; `~` is `text.` where open_clip keeps the text tower apart.
pub const OPENAI: &[Name] = &[
    copy("logit_scale", "logit_scale"),
    copy("vision.class", "visual.class_embedding"),
    copy("vision.patch.weight", "visual.conv1.weight"),
    copy("vision.position", "visual.positional_embedding"),
    copy("vision.norm_pre.*", "visual.ln_pre.*"),
    copy("vision.norm_post.*", "visual.ln_post.*"),
    transpose("vision.projection.weight", "visual.proj", 1),
    copy("vision.blocks.*.norm1.*", "visual.transformer.resblocks.*.ln_1.*"),
    copy("vision.blocks.*.attn.qkv.weight", "visual.transformer.resblocks.*.attn.in_proj_weight"),
    copy("vision.blocks.*.attn.qkv.bias", "visual.transformer.resblocks.*.attn.in_proj_bias"),
    copy("vision.blocks.*.attn.out.*", "visual.transformer.resblocks.*.attn.out_proj.*"),
    copy("vision.blocks.*.norm2.*", "visual.transformer.resblocks.*.ln_2.*"),
    copy("vision.blocks.*.mlp.up.*", "visual.transformer.resblocks.*.mlp.c_fc.*"),
    copy("vision.blocks.*.mlp.down.*", "visual.transformer.resblocks.*.mlp.c_proj.*"),
    copy("text.token.weight", "~token_embedding.weight"),
    copy("text.position", "~positional_embedding"),
    copy("text.norm.*", "~ln_final.*"),
    transpose("text.projection.weight", "~text_projection", 1),
    copy("text.blocks.*.norm1.*", "~transformer.resblocks.*.ln_1.*"),
    copy("text.blocks.*.attn.qkv.weight", "~transformer.resblocks.*.attn.in_proj_weight"),
    copy("text.blocks.*.attn.qkv.bias", "~transformer.resblocks.*.attn.in_proj_bias"),
    copy("text.blocks.*.attn.out.*", "~transformer.resblocks.*.attn.out_proj.*"),
    copy("text.blocks.*.norm2.*", "~transformer.resblocks.*.ln_2.*"),
    copy("text.blocks.*.mlp.up.*", "~transformer.resblocks.*.mlp.c_fc.*"),
    copy("text.blocks.*.mlp.down.*", "~transformer.resblocks.*.mlp.c_proj.*"),
];

/// Name maps of transformers checkpoints.
pub fn transformers_names() -> Vec<Names> {
    let ignored = &["text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"];
    vec![Names::family(TRANSFORMERS, ignored)]
}

/// Name maps of OpenAI and open_clip checkpoints; `text_prefix` is `""` or `"text."`.
pub fn openai_names(text_prefix: &str) -> Vec<Names> {
    let ignored = &["input_resolution", "context_length", "vocab_size", "attn_mask"];
    let clip = Names::family(OPENAI, ignored).with_prefix(text_prefix);
    vec![clip, crate::vision::clip_resnet::openai_names()]
}

/// Name maps of open_clip's checkpoints with a ViT of timm.
pub fn open_clip_timm_names(text_prefix: &str) -> Vec<Names> {
    let trunk = vit::names(vit::TIMM, "").under("vision.vit.").within("visual.trunk.");
    let mut names = vec![trunk, Names::family(timm_vit::PROJECTION, &[])];
    names.extend(openai_names(text_prefix));
    names
}
