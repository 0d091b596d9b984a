//! The vision tower of Qwen-VL.
//!
//! Bai et al. 2023, "Qwen-VL", arXiv:2308.12966, §2.1: the ViT-bigG of `open_clip`, as in `clip_vit.rs`, but
//! without a class token, and its table of positions, always that of 16 x 16 patches, is brought to the
//! size of each picture.

use super::position::PositionRule;
use crate::Result;
use ocelli_nn::layers::{LayerNorm, Linear, Mlp, SelfAttention};
use ocelli_nn::{Builder, Init, Name, Names, Parameter, copy};
use ocelli_tensor::{Activation, AttentionMask, Tensor};

/// Sizes of the tower.
#[derive(Clone, Debug, PartialEq)]
pub struct QwenVitConfig {
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
}

/// Side of the grid that the table of positions is for, in patches.
const GRID: usize = 16;
/// Epsilon of the layer norms.
pub(crate) const NORM_EPS: f32 = 1e-6;

impl QwenVitConfig {
    /// The published tower, `"bigG/14"`, at 448 pixels.
    pub fn variant(name: &str) -> Option<Self> {
        (name == "bigG/14").then_some(Self {
            image_size: (448, 448),
            patch_size: 14,
            width: 1664,
            depth: 48,
            heads: 16,
            mlp_dim: 8192,
        })
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
    fn new(b: &Builder, c: &QwenVitConfig) -> Self {
        let init = Init::Normal((c.width as f32).powf(-0.5));
        Self {
            norm1: LayerNorm::new(&b.at("norm1"), c.width, NORM_EPS),
            attn: SelfAttention::new(&b.at("attn"), c.width, c.heads, init, init),
            norm2: LayerNorm::new(&b.at("norm2"), c.width, NORM_EPS),
            mlp: Mlp::new(&b.at("mlp"), c.width, c.mlp_dim, Activation::Gelu, init, init),
        }
    }

    /// `[batch, patches, width]` in and out.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mask = AttentionMask::default();
        let x = self.attn.forward(&self.norm1.forward(x)?, &mask, Some(x))?;
        Ok(self.mlp.forward(&self.norm2.forward(&x)?, Some(&x))?)
    }
}

/// The vision tower of Qwen-VL.
#[derive(Debug)]
pub struct QwenVit {
    config: QwenVitConfig,
    patch: Linear,
    position: Parameter,
    norm_pre: LayerNorm,
    blocks: Vec<Block>,
}

impl QwenVit {
    /// A tower whose parameters come from `b`.
    pub fn new(config: &QwenVitConfig, b: &Builder) -> Self {
        let c = config;
        let init = Init::Normal((c.width as f32).powf(-0.5));
        Self {
            patch: Linear::of_patches(&b.at("patch"), [3, c.width], c.patch_size, false, init),
            position: b.parameter("position", &[GRID * GRID, c.width], init),
            norm_pre: LayerNorm::new(&b.at("norm_pre"), c.width, NORM_EPS),
            blocks: (0..c.depth).map(|i| Block::new(&b.at("blocks").at(i), c)).collect(),
            config: c.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &QwenVitConfig {
        &self.config
    }

    /// Normalised `pixels` `[batch, 3, img_h, img_w]` to the tokens after the last block, not
    /// normalised, `[batch, patches, width]`.
    ///
    /// # Errors
    /// If the channels differ or a side is smaller than a patch.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let side = self.config.patch_size;
        let x = self.patch.forward(&pixels.patches(side)?)?; // [batch, patches, width]
        let grid = (pixels.shape()[2] / side, pixels.shape()[3] / side);
        let table = self.position.tensor();
        let positions = PositionRule::Transformers.resample(&table, 0, (GRID, GRID), grid)?;
        let mut x = self.norm_pre.forward(&x.add_table(&positions)?)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        Ok(x)
    }
}

/// The original files; `~` is what stands before the tower.
const ORIGINAL: &[Name] = &[
    copy("patch.weight", "~conv1.weight"),
    copy("position", "~positional_embedding"),
    copy("norm_pre.*", "~ln_pre.*"),
    copy("blocks.*.norm1.*", "~transformer.resblocks.*.ln_1.*"),
    copy("blocks.*.attn.qkv.*", "~transformer.resblocks.*.attn.in_proj.*").head_by_head(),
    copy("blocks.*.attn.out.*", "~transformer.resblocks.*.attn.out_proj.*"),
    copy("blocks.*.norm2.*", "~transformer.resblocks.*.ln_2.*"),
    copy("blocks.*.mlp.up.*", "~transformer.resblocks.*.mlp.c_fc.*"),
    copy("blocks.*.mlp.down.*", "~transformer.resblocks.*.mlp.c_proj.*"),
];

/// The name map of the original files; `prefix` stands before the names of the tower.
pub fn names(config: &QwenVitConfig, prefix: &str) -> Names {
    let head_dim = config.width / config.heads.max(1);
    Names::family(ORIGINAL, &[]).with_prefix(prefix).with_head_dim(head_dim)
}
