//! The ViT tower of CLIP.
//!
//! Radford et al. 2021, arXiv:2103.00020, §2.4: as in `vit.rs`, but the patch projection has no
//! bias, a norm comes before the first block, the activation is QuickGELU in the original weights,
//! and a matrix without bias leads to the joint space. Systems that read all its tokens take the
//! trunk alone.

use super::position::PositionRule;
use crate::{Error, Pass, Result};
use ocelli_nn::layers::{LayerNorm, Linear, Mlp, SelfAttention};
use ocelli_nn::{Builder, Init, Parameter};
use ocelli_tensor::{Activation, AttentionMask, Tensor};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Sizes of the tower.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipVitConfig {
    /// Height and width of the input, in pixels.
    pub image_size: (usize, usize),
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Width of a token.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads of each attention.
    pub heads: usize,
    /// Hidden width of each perceptron.
    pub mlp_dim: usize,
    /// Whether the activation is x σ(1.702 x) rather than GELU.
    pub quick_gelu: bool,
    /// Epsilon of the layer norms.
    pub norm_eps: f32,
    /// How the position table is brought to other sizes.
    pub position_rule: PositionRule,
}

impl ClipVitConfig {
    /// Rows and columns of patches of a picture, in patches.
    pub fn grid(&self, (img_h, img_w): (usize, usize)) -> (usize, usize) {
        (img_h / self.patch_size, img_w / self.patch_size)
    }

    /// Tokens of a picture at the configured size.
    pub fn tokens(&self) -> usize {
        let (grid_h, grid_w) = self.grid(self.image_size);
        1 + grid_h * grid_w
    }
}

/// The activation of a tower.
pub(crate) fn activation(quick_gelu: bool) -> Activation {
    if quick_gelu { Activation::QuickGelu } else { Activation::Gelu }
}

/// A pre-norm block.
#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    attn: SelfAttention,
    norm2: LayerNorm,
    mlp: Mlp,
}

impl Block {
    fn new(b: &Builder, c: &ClipVitConfig) -> Self {
        // Framework defaults of the original: Xavier in attention, uniform in the perceptron.
        let uniform = |inputs: usize| Init::Uniform((inputs as f32).powf(-0.5));
        let (init, out) = (Init::XavierUniform, uniform(c.width));
        let act = activation(c.quick_gelu);
        let (up, down) = (uniform(c.width), uniform(c.mlp_dim));
        Self {
            norm1: LayerNorm::new(&b.at("norm1"), c.width, c.norm_eps),
            attn: SelfAttention::new(&b.at("attn"), c.width, c.heads, init, out),
            norm2: LayerNorm::new(&b.at("norm2"), c.width, c.norm_eps),
            mlp: Mlp::new(&b.at("mlp"), c.width, c.mlp_dim, act, up, down),
        }
    }

    /// `[batch, tokens, width]` in and out.
    fn forward(&self, x: &Tensor) -> ocelli_tensor::Result<Tensor> {
        let mask = AttentionMask::default();
        let x = self.attn.forward(&self.norm1.forward(x)?, &mask, Some(x))?;
        self.mlp.forward(&self.norm2.forward(&x)?, Some(&x))
    }
}

/// The ViT tower of CLIP.
#[derive(Debug)]
pub struct ClipVit {
    config: ClipVitConfig,
    patch: Linear,
    class: Parameter,
    position: Parameter,
    norm_pre: LayerNorm,
    blocks: Vec<Arc<Block>>,
    /// The norm and the projection of the class token into the joint space.
    end: Option<(LayerNorm, Linear)>,
}

impl ClipVit {
    /// A tower into a space of `embed_dim` whose parameters come from `b`.
    pub fn new(config: &ClipVitConfig, embed_dim: usize, b: &Builder) -> Self {
        let c = config;
        let std = Init::Normal((c.width as f32).powf(-0.5));
        let trunk = Self::trunk(c, b);
        let norm = LayerNorm::new(&b.at("norm_post"), c.width, c.norm_eps);
        let projection = Linear::new(&b.at("projection"), c.width, embed_dim, false, std);
        Self { end: Some((norm, projection)), ..trunk }
    }

    /// A tower without the way into the joint space.
    pub fn trunk(config: &ClipVitConfig, b: &Builder) -> Self {
        let c = config;
        let inputs = 3 * c.patch_size * c.patch_size;
        let std = Init::Normal((c.width as f32).powf(-0.5));
        let filters = Init::Uniform((inputs as f32).powf(-0.5));
        Self {
            patch: Linear::of_patches(&b.at("patch"), [3, c.width], c.patch_size, false, filters),
            class: b.parameter("class", &[c.width], std),
            position: b.parameter("position", &[c.tokens(), c.width], std),
            norm_pre: LayerNorm::new(&b.at("norm_pre"), c.width, c.norm_eps),
            blocks: (0..c.depth).map(|i| Arc::new(Block::new(&b.at("blocks").at(i), c))).collect(),
            end: None,
            config: config.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &ClipVitConfig {
        &self.config
    }

    /// The position table, `[1 + patches, width]`.
    pub fn position(&self) -> &Parameter {
        &self.position
    }

    /// Normalised `pixels` `[batch, 3, img_h, img_w]` to the tokens before each block and after
    /// the last, `depth + 1` of them, each `[batch, 1 + patches, width]`.
    ///
    /// # Errors
    /// If the channels differ or a side is smaller than a patch.
    pub fn hidden_states(&self, pixels: &Tensor) -> Result<Vec<Tensor>> {
        let mut states = vec![self.embed(pixels)?];
        for block in &self.blocks {
            states.push(block.forward(&states[states.len() - 1])?);
        }
        Ok(states)
    }

    /// Those of [`ClipVit::hidden_states`] that are `wanted`, in that order. Blocks behind the last of
    /// them do not run.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// If there is no such state.
    pub fn states(&self, pixels: &Tensor, wanted: &[usize]) -> Result<Vec<Tensor>> {
        let last = wanted.iter().copied().max().unwrap_or(0);
        let mut kept = vec![None; wanted.len()];
        let mut x = self.embed(pixels)?;
        for state in 0..=last {
            if state > 0 {
                x = self.blocks[state - 1].forward(&x)?;
            }
            for (kept, _) in kept.iter_mut().zip(wanted).filter(|(_, wanted)| **wanted == state) {
                *kept = Some(x.clone());
            }
        }
        Ok(kept.into_iter().flatten().collect())
    }

    /// The position table for pictures of another size, `[1 + patches, width]`.
    ///
    /// # Errors
    /// If the table does not have the configured size.
    pub fn positions(&self, image_size: (usize, usize)) -> Result<Tensor> {
        let c = &self.config;
        let (old, new) = (c.grid(c.image_size), c.grid(image_size));
        Ok(c.position_rule.resample(&self.position.tensor(), 1, old, new)?)
    }

    fn embed(&self, pixels: &Tensor) -> Result<Tensor> {
        let c = &self.config;
        let x = pixels.patches(c.patch_size)?; // [batch, patches, 3 patch patch]
        let x = self.patch.forward(&x)?; // [batch, patches, width]
        let x = self.class.tensor().prepend_to(&x)?; // [batch, 1 + patches, width]
        let axes = pixels.shape();
        let positions = self.positions((axes[2], axes[3]))?;
        Ok(self.norm_pre.forward(&x.add_table(&positions)?)?)
    }

    /// The tokens after the last block, not normalised, `[batch, 1 + patches, width]`.
    ///
    /// # Errors
    /// As for [`ClipVit::hidden_states`].
    pub fn features(&self, pixels: &Tensor) -> Result<Tensor> {
        self.features_by(pixels, Pass::default())
    }

    fn features_by(&self, pixels: &Tensor, pass: Pass) -> Result<Tensor> {
        let mut x = self.embed(pixels)?;
        for block in &self.blocks {
            x = pass.through(block, &x, Block::forward)?;
        }
        Ok(x)
    }

    /// Pictures in the joint space, `[batch, embed_dim]`, of any length.
    ///
    /// # Errors
    /// As for [`ClipVit::hidden_states`].
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        self.forward_by(pixels, Pass::default())
    }

    /// The same in a pass of choice.
    ///
    /// # Errors
    /// As for [`ClipVit::hidden_states`], or if the tower is a trunk alone.
    pub fn forward_by(&self, pixels: &Tensor, pass: Pass) -> Result<Tensor> {
        let (norm, projection) = self.end.as_ref().ok_or_else(|| Error::Unsuitable {
            what: "a vector of a picture",
            needs: "a CLIP with its projection",
            is: "the trunk of a CLIP".to_owned(),
        })?;
        let x = self.features_by(pixels, pass)?;
        let class = x.select_tokens(&vec![0; x.shape()[0]])?; // [batch, width]
        Ok(projection.forward(&norm.forward(&class)?)?)
    }
}
