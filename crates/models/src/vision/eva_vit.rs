//! The ViT tower of EVA-CLIP.
//!
//! Fang et al. 2022, "EVA", arXiv:2211.07636, §2.3 and Table 3: as in `vit.rs`, but keys have no
//! bias, the perceptron is 4.3637 times as wide as a token, and no norm follows the last block:
//! whoever uses the tower normalises its tokens. BLIP-2, InstructBLIP, MiniGPT-4, VisualGLM and
//! InternLM-XComposer see through it, without the last of its 40 blocks.

use super::position::PositionRule;
use crate::{Pass, Result};
use ocelli_nn::layers::{LayerNorm, Linear, Mlp, SelfAttention};
use ocelli_nn::{Builder, Init, Name, Names, Parameter, concat, copy};
use ocelli_tensor::{Activation, AttentionMask, Tensor};
use std::sync::Arc;

/// Sizes of the tower.
#[derive(Clone, Debug, PartialEq)]
pub struct EvaVitConfig {
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
    /// Activation of each perceptron.
    pub activation: Activation,
    /// Epsilon of the layer norms.
    pub norm_eps: f32,
}

impl EvaVitConfig {
    /// The published tower, `"g/14"`, as its users cut it: 39 of 40 blocks, at 224 pixels.
    pub fn variant(name: &str) -> Option<Self> {
        (name == "g/14").then_some(Self {
            image_size: (224, 224),
            patch_size: 14,
            width: 1408,
            depth: 39,
            heads: 16,
            mlp_dim: 6144,
            activation: Activation::Gelu,
            norm_eps: 1e-6,
        })
    }

    /// Rows and columns of patches of a picture.
    pub fn grid(&self, (img_h, img_w): (usize, usize)) -> (usize, usize) {
        (img_h / self.patch_size, img_w / self.patch_size)
    }

    /// Tokens of a picture at the configured size.
    pub fn tokens(&self) -> usize {
        let (grid_h, grid_w) = self.grid(self.image_size);
        1 + grid_h * grid_w
    }
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
    fn new(b: &Builder, c: &EvaVitConfig, index: usize) -> Self {
        let init = Init::Normal(0.02);
        // What a residual branch adds shrinks with depth.
        let out = Init::Normal(0.02 / (2.0 * (index + 1) as f32).sqrt());
        Self {
            norm1: LayerNorm::new(&b.at("norm1"), c.width, c.norm_eps),
            attn: SelfAttention::new(&b.at("attn"), c.width, c.heads, init, out),
            norm2: LayerNorm::new(&b.at("norm2"), c.width, c.norm_eps),
            mlp: Mlp::new(&b.at("mlp"), c.width, c.mlp_dim, c.activation, init, out),
        }
    }

    /// `[batch, tokens, width]` in and out.
    fn forward(&self, x: &Tensor) -> ocelli_tensor::Result<Tensor> {
        let mask = AttentionMask::default();
        let x = self.attn.forward(&self.norm1.forward(x)?, &mask, Some(x))?;
        self.mlp.forward(&self.norm2.forward(&x)?, Some(&x))
    }
}

/// The ViT tower of EVA-CLIP.
#[derive(Debug)]
pub struct EvaVit {
    config: EvaVitConfig,
    patch: Linear,
    class: Parameter,
    position: Parameter,
    blocks: Vec<Arc<Block>>,
}

impl EvaVit {
    /// A tower whose parameters come from `b`.
    pub fn new(config: &EvaVitConfig, b: &Builder) -> Self {
        let c = config;
        let init = Init::Normal(0.02);
        let block = |i| Arc::new(Block::new(&b.at("blocks").at(i), c, i));
        Self {
            patch: Linear::of_patches(&b.at("patch"), [3, c.width], c.patch_size, true, init),
            class: b.parameter("class", &[c.width], init),
            position: b.parameter("position", &[c.tokens(), c.width], init),
            blocks: (0..c.depth).map(block).collect(),
            config: config.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &EvaVitConfig {
        &self.config
    }

    /// The position table for pictures of another size, `[1 + patches, width]`.
    ///
    /// # Errors
    /// If the table does not have the configured size.
    pub fn positions(&self, image_size: (usize, usize)) -> Result<Tensor> {
        let c = &self.config;
        let (old, new) = (c.grid(c.image_size), c.grid(image_size));
        Ok(PositionRule::Transformers.resample(&self.position.tensor(), 1, old, new)?)
    }

    /// The tokens before the first block, `[batch, 1 + patches, width]`.
    ///
    /// # Errors
    /// If the channels differ or a side is smaller than a patch.
    pub fn embed(&self, pixels: &Tensor) -> Result<Tensor> {
        let x = pixels.patches(self.config.patch_size)?; // [batch, patches, 3 patch patch]
        let x = self.patch.forward(&x)?; // [batch, patches, width]
        let x = self.class.tensor().prepend_to(&x)?; // [batch, 1 + patches, width]
        let axes = pixels.shape();
        Ok(x.add_table(&self.positions((axes[2], axes[3]))?)?)
    }

    /// The tokens before each block and after the last, `depth + 1` of them, each
    /// `[batch, 1 + patches, width]`.
    ///
    /// # Errors
    /// As for [`EvaVit::embed`].
    pub fn hidden_states(&self, pixels: &Tensor) -> Result<Vec<Tensor>> {
        let mut states = vec![self.embed(pixels)?];
        for block in &self.blocks {
            states.push(block.forward(&states[states.len() - 1])?);
        }
        Ok(states)
    }

    /// Normalised `pixels` `[batch, 3, img_h, img_w]` to the tokens after the last block, class
    /// token first, not normalised: `[batch, 1 + patches, width]`.
    ///
    /// # Errors
    /// As for [`EvaVit::embed`].
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        self.forward_by(pixels, Pass::default())
    }

    /// The same in a pass of choice.
    ///
    /// # Errors
    /// As for [`EvaVit::embed`].
    pub fn forward_by(&self, pixels: &Tensor, pass: Pass) -> Result<Tensor> {
        let mut x = self.embed(pixels)?;
        for block in &self.blocks {
            x = pass.through(block, &x, Block::forward)?;
        }
        Ok(x)
    }
}

/// `eva_vit_g.pth`, and the tower in LAVIS, MiniGPT-4 and XComposer; `~` is `visual_encoder.` there.
pub const LAVIS: &[Name] = &[
    copy("class", "~cls_token").leading(2),
    copy("position", "~pos_embed").leading(1),
    copy("patch.*", "~patch_embed.proj.*"),
    copy("blocks.*.norm1.*", "~blocks.*.norm1.*"),
    copy("blocks.*.attn.qkv.weight", "~blocks.*.attn.qkv.weight"),
    concat("blocks.*.attn.qkv.bias", "~blocks.*.attn.{q_bias,0,v_bias}"),
    copy("blocks.*.attn.out.*", "~blocks.*.attn.proj.*"),
    copy("blocks.*.norm2.*", "~blocks.*.norm2.*"),
    copy("blocks.*.mlp.up.*", "~blocks.*.mlp.fc1.*"),
    copy("blocks.*.mlp.down.*", "~blocks.*.mlp.fc2.*"),
];

/// The tower in transformers' BLIP-2 and InstructBLIP.
pub const TRANSFORMERS: &[Name] = &[
    copy("class", "~embeddings.class_embedding").leading(2),
    copy("position", "~embeddings.position_embedding").leading(1),
    copy("patch.*", "~embeddings.patch_embedding.*"),
    copy("blocks.*.norm1.*", "~encoder.layers.*.layer_norm1.*"),
    copy("blocks.*.attn.qkv.*", "~encoder.layers.*.self_attn.qkv.*"),
    copy("blocks.*.attn.out.*", "~encoder.layers.*.self_attn.projection.*"),
    copy("blocks.*.norm2.*", "~encoder.layers.*.layer_norm2.*"),
    copy("blocks.*.mlp.up.*", "~encoder.layers.*.mlp.fc1.*"),
    copy("blocks.*.mlp.down.*", "~encoder.layers.*.mlp.fc2.*"),
];

/// The name map of [`LAVIS`] files; `prefix` is `"visual_encoder."` or `""`. What a whole EVA file
/// has beside the tower is left out.
pub fn lavis_names(prefix: &str) -> Names {
    Names::family(LAVIS, &["norm.*", "fc_norm.*", "head.*"]).with_prefix(prefix)
}

/// The name map of transformers files.
pub fn transformers_names() -> Names {
    Names::family(TRANSFORMERS, &[]).with_prefix("vision_model.")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::*;

    #[test]
    fn the_published_tower_has_its_parameters() {
        let b = Builder::zeros();
        let config = EvaVitConfig::variant("g/14").unwrap();
        let _model = EvaVit::new(&config, &b);
        // With the norm of its users these are the 985,952,256 parameters of BLIP-2's tower.
        assert_eq!(b.finish().unwrap().elements() + 2 * config.width, 985_952_256);
        assert!(EvaVitConfig::variant("B/16").is_none());
    }
}
