//! A plain ViT of timm as the vision tower of a CLIP.
//!
//! Cherti et al. 2023, arXiv:2212.07143, is the paper of open_clip, whose `TimmModel` this is: the
//! tokens of the ViT, pooled, then a projection into the joint space.

use super::vit::{Vit, VitConfig};
use crate::{Pass, Result};
use ocelli_nn::layers::Linear;
use ocelli_nn::{Builder, Init, Name, copy};
use ocelli_tensor::{Activation, Tensor};
use serde::{Deserialize, Serialize};

/// Sizes of the tower.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimmVitConfig {
    /// The ViT, without a head.
    pub vit: VitConfig,
    /// Whether the mean of the patches stands for the picture, rather than the class token.
    pub is_average_pooled: bool,
    /// What leads into the joint space.
    pub projection: TimmProjection,
}

/// A projection into the joint space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimmProjection {
    /// A matrix.
    Linear,
    /// Two layers with GELU between, the hidden one twice as wide as the joint space.
    Mlp,
}

#[derive(Debug)]
enum Projection {
    Linear(Linear),
    Mlp { up: Linear, down: Linear },
}

/// The tower.
#[derive(Debug)]
pub struct TimmVit {
    config: TimmVitConfig,
    vit: Vit,
    projection: Projection,
}

impl TimmVit {
    /// A tower whose parameters come from `b`.
    pub fn new(config: &TimmVitConfig, embed_dim: usize, b: &Builder) -> Self {
        let width = config.vit.width;
        let linear = |name: &str, inputs: usize, outputs, has_bias| {
            let init = Init::Normal((inputs as f32).powf(-0.5));
            Linear::new(&b.at(name), inputs, outputs, has_bias, init)
        };
        Self {
            vit: Vit::new(&config.vit, &b.at("vit")),
            projection: match config.projection {
                TimmProjection::Linear => {
                    Projection::Linear(linear("projection", width, embed_dim, false))
                }
                TimmProjection::Mlp => Projection::Mlp {
                    up: linear("projection.up", width, 2 * embed_dim, true),
                    down: linear("projection.down", 2 * embed_dim, embed_dim, false),
                },
            },
            config: config.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &TimmVitConfig {
        &self.config
    }

    /// Normalised `pixels` `[batch, 3, img_h, img_w]` to `[batch, embed_dim]`, of any length.
    ///
    /// # Errors
    /// If the picture's size does not suit the ViT.
    pub fn forward_by(&self, pixels: &Tensor, pass: Pass) -> Result<Tensor> {
        let tokens = self.vit.features_by(pixels, pass)?; // [batch, tokens, width]
        let pooled = if self.config.is_average_pooled {
            tokens.mean_tokens(usize::from(self.config.vit.has_class_token))?
        } else {
            self.vit.pool(&tokens)?
        };
        Ok(match &self.projection {
            Projection::Linear(matrix) => matrix.forward(&pooled)?,
            Projection::Mlp { up, down } => {
                down.forward(&up.forward_with(&pooled, Activation::Gelu, None)?)?
            }
        })
    }
}

/// open_clip's names of the projection.
pub(crate) const PROJECTION: &[Name] = &[
    copy("vision.projection.weight", "visual.head.proj.weight"),
    copy("vision.projection.up.*", "visual.head.mlp.fc1.*"),
    copy("vision.projection.down.*", "visual.head.mlp.fc2.*"),
];
