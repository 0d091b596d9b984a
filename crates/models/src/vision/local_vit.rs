//! A Vision Transformer whose tokens look at their neighbourhood only.
//!
//! The blocks of `vit.rs` with another attention on the grid of patches: stand-alone local attention
//! (Ramachandran et al. 2019, arXiv:1906.05909), or one attention along the columns and then one
//! along the rows (axial attention; Ho et al. 2019, arXiv:1912.12180, and Appendix D of the ViT
//! paper, arXiv:2010.11929). Long sequences of small patches cost `n k²` or `n (h + w)` pairs
//! instead of `n²`. Positions are relative, so there is no table of them and no class token; the
//! mean of all tokens is classified. No checkpoint of this form was published.

use crate::{Pass, Result};
use ocelli_nn::layers::{Dropout, LayerNorm, Linear, LocalAttention, Mlp};
use ocelli_nn::{Builder, Init};
use ocelli_tensor::{Activation, Targets, Tensor};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Which tokens a token attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Neighbourhood {
    /// Those in a square window of this many rows and columns around it, an odd number.
    Window(usize),
    /// Those of its column, then those of its row.
    Axes,
}

/// Sizes of a local Vision Transformer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalVitConfig {
    /// Height and width of the input, in pixels.
    pub image_size: (usize, usize),
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Width of a token; a multiple of twice the heads.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads of each attention.
    pub heads: usize,
    /// Hidden width of each perceptron.
    pub mlp_dim: usize,
    /// Which tokens a token attends to.
    pub neighbourhood: Neighbourhood,
    /// Classes of the head.
    pub classes: usize,
}

impl LocalVitConfig {
    /// Rows and columns of patches.
    pub fn grid(&self) -> (usize, usize) {
        (self.image_size.0 / self.patch_size, self.image_size.1 / self.patch_size)
    }

    /// Tokens of a picture.
    pub fn tokens(&self) -> usize {
        let (grid_h, grid_w) = self.grid();
        grid_h * grid_w
    }

    /// Multiply-adds of one picture, counted as two operations.
    pub fn flops(&self) -> u64 {
        let (t, w, inputs) = (self.tokens(), self.width, 3 * self.patch_size * self.patch_size);
        // Axial attention has two sets of projections.
        let attentions = if self.neighbourhood == Neighbourhood::Axes { 2 } else { 1 };
        let linear = t * w * (4 * attentions * w + 2 * self.mlp_dim);
        let block = linear + 2 * self.pairs() * w;
        2 * (self.depth * block + t * inputs * w + w * self.classes) as u64
    }

    /// Pairs of tokens that the attention of one head in one block weighs, borders not cut.
    pub fn pairs(&self) -> usize {
        let (grid_h, grid_w) = self.grid();
        let per_token = match self.neighbourhood {
            Neighbourhood::Window(side) => side * side,
            Neighbourhood::Axes => grid_h + grid_w,
        };
        grid_h * grid_w * per_token
    }
}

const NORM_EPS: f32 = 1e-6;

#[derive(Debug)]
enum Attention {
    Window(LocalAttention),
    Axes { columns: LocalAttention, rows: LocalAttention },
}

/// The pre-norm block of the ViT (Eq. 2 and 3).
#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    attn: Attention,
    norm2: LayerNorm,
    mlp: Mlp,
}

impl Block {
    fn new(b: &Builder, c: &LocalVitConfig) -> Self {
        let init = Init::XavierUniform;
        let (grid_h, grid_w) = c.grid();
        let (width, heads) = (c.width, c.heads);
        let attn = b.at("attn");
        Self {
            norm1: LayerNorm::new(&b.at("norm1"), width, NORM_EPS),
            attn: match c.neighbourhood {
                Neighbourhood::Window(side) => {
                    Attention::Window(LocalAttention::new(&attn, width, heads, (side, side), init))
                }
                Neighbourhood::Axes => Attention::Axes {
                    columns: LocalAttention::along_columns(
                        &attn.at("columns"),
                        width,
                        heads,
                        grid_h,
                        init,
                    ),
                    rows: LocalAttention::along_rows(&attn.at("rows"), width, heads, grid_w, init),
                },
            },
            norm2: LayerNorm::new(&b.at("norm2"), width, NORM_EPS),
            mlp: Mlp::new(&b.at("mlp"), width, c.mlp_dim, Activation::Gelu, init, init),
        }
    }

    /// `[batch, patches, width]` in and out.
    fn forward(
        &self,
        x: &Tensor,
        grid: (usize, usize),
        drop: Dropout,
    ) -> ocelli_tensor::Result<Tensor> {
        let z = self.norm1.forward(x)?;
        let x = match &self.attn {
            Attention::Window(attention) => attention.forward(&z, grid, Some(x), drop)?,
            Attention::Axes { columns, rows } => {
                let z = columns.forward(&z, grid, None, drop)?;
                rows.forward(&z, grid, Some(x), drop)?
            }
        };
        self.mlp.forward_dropping(&self.norm2.forward(&x)?, Some(&x), drop)
    }
}

/// The local Vision Transformer.
#[derive(Debug)]
pub struct LocalVit {
    config: LocalVitConfig,
    patch: Linear,
    blocks: Vec<Arc<Block>>,
    norm: LayerNorm,
    head: Linear,
}

impl LocalVit {
    /// A model whose parameters come from `b`. The head starts at 0, as that of the ViT.
    pub fn new(config: &LocalVitConfig, b: &Builder) -> Self {
        let c = config;
        Self {
            patch: Linear::of_patches(
                &b.at("patch"),
                [3, c.width],
                c.patch_size,
                true,
                Init::XavierUniform,
            ),
            blocks: (0..c.depth).map(|i| Arc::new(Block::new(&b.at("blocks").at(i), c))).collect(),
            norm: LayerNorm::new(&b.at("norm"), c.width, NORM_EPS),
            head: Linear::new(&b.at("head"), c.width, c.classes, true, Init::Constant(0.0)),
            config: config.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &LocalVitConfig {
        &self.config
    }

    /// Normalised `pixels` `[batch, 3, img_h, img_w]` to tokens `[batch, patches, width]`, not yet
    /// normalised.
    ///
    /// # Errors
    /// If the pictures have another size.
    pub fn features(&self, pixels: &Tensor) -> Result<Tensor> {
        self.features_by(pixels, Pass::default())
    }

    fn features_by(&self, pixels: &Tensor, pass: Pass) -> Result<Tensor> {
        let grid = self.config.grid();
        let x = pixels.patches(self.config.patch_size)?; // [batch, patches, 3 patch patch]
        let drop = pass.dropout;
        // [batch, patches, width]
        let mut x = self.patch.forward_dropping(&x, Activation::None, None, drop)?;
        for block in &self.blocks {
            x = pass.through(block, &x, move |block, x| block.forward(x, grid, drop))?;
        }
        Ok(x)
    }

    /// Logits `[batch, classes]`.
    ///
    /// # Errors
    /// As for [`LocalVit::features`].
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        self.forward_by(pixels, Pass::default())
    }

    /// The same in a pass of choice.
    ///
    /// # Errors
    /// As for [`LocalVit::features`].
    pub fn forward_by(&self, pixels: &Tensor, pass: Pass) -> Result<Tensor> {
        Ok(self.head.forward(&self.pool(&self.features_by(pixels, pass)?)?)?)
    }

    /// One vector per picture from [`LocalVit::features`]: their normalised mean, `[batch, width]`.
    ///
    /// # Errors
    /// If the tokens have another shape.
    pub fn pool(&self, features: &Tensor) -> Result<Tensor> {
        Ok(self.norm.forward(&features.mean_tokens(0)?)?)
    }

    /// The mean cross-entropy of the logits.
    ///
    /// # Errors
    /// If a label is out of range.
    pub fn loss(&self, pixels: &Tensor, targets: &Targets) -> Result<Tensor> {
        Ok(self.forward(pixels)?.cross_entropy(targets)?)
    }
}
