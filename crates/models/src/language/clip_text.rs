//! The text tower of CLIP.
//!
//! Radford et al. 2021, arXiv:2103.00020, §2.4: a causal pre-norm transformer; the features of a
//! text are those of its end token after the last norm, through a matrix without bias.

use crate::vision::clip_vit::activation;
use crate::{Pass, Result};
use ocelli_nn::layers::{Embedding, LayerNorm, Linear, Mlp, SelfAttention};
use ocelli_nn::{Builder, Init, Parameter};
use ocelli_tensor::{AttentionMask, Tensor};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Sizes of the tower.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipTextConfig {
    /// Rows of the token table.
    pub vocab: usize,
    /// Tokens of a text, start and end included.
    pub context_length: usize,
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
    /// Which token's features stand for the text.
    pub end_token: EndToken,
}

/// How the end of a text is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndToken {
    /// The first token with the largest id: the end token has the largest id of the vocabulary.
    #[default]
    LargestId,
    /// The first token with this id.
    Id(u32),
}

impl EndToken {
    /// The position of the end of each text.
    fn positions(self, ids: &[u32], tokens: usize) -> Vec<usize> {
        ids.chunks_exact(tokens)
            .map(|text| {
                let end = match self {
                    Self::LargestId => text.iter().copied().max().unwrap_or(0),
                    Self::Id(id) => id,
                };
                // As the references do: the first position if the text has no such token.
                text.iter().position(|id| *id == end).unwrap_or(0)
            })
            .collect()
    }
}

/// A causal pre-norm block.
#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    attn: SelfAttention,
    norm2: LayerNorm,
    mlp: Mlp,
}

impl Block {
    fn new(b: &Builder, c: &ClipTextConfig) -> Self {
        // The original's explicit scheme.
        let width = c.width as f32;
        let residual = Init::Normal(width.powf(-0.5) * (2.0 * c.depth as f32).powf(-0.5));
        let init = Init::Normal(width.powf(-0.5));
        let (act, up) = (activation(c.quick_gelu), Init::Normal((2.0 * width).powf(-0.5)));
        Self {
            norm1: LayerNorm::new(&b.at("norm1"), c.width, c.norm_eps),
            attn: SelfAttention::new(&b.at("attn"), c.width, c.heads, init, residual),
            norm2: LayerNorm::new(&b.at("norm2"), c.width, c.norm_eps),
            mlp: Mlp::new(&b.at("mlp"), c.width, c.mlp_dim, act, up, residual),
        }
    }

    /// `[batch, tokens, width]` in and out.
    fn forward(&self, x: &Tensor) -> ocelli_tensor::Result<Tensor> {
        let mask = &AttentionMask::causal();
        let x = self.attn.forward(&self.norm1.forward(x)?, mask, Some(x))?;
        self.mlp.forward(&self.norm2.forward(&x)?, Some(&x))
    }
}

/// The text tower of CLIP.
#[derive(Debug)]
pub struct ClipText {
    config: ClipTextConfig,
    token: Embedding,
    position: Parameter,
    blocks: Vec<Arc<Block>>,
    norm: LayerNorm,
    projection: Linear,
}

impl ClipText {
    /// A tower into a space of `embed_dim` whose parameters come from `b`.
    pub fn new(config: &ClipTextConfig, embed_dim: usize, b: &Builder) -> Self {
        let c = config;
        let std = Init::Normal((c.width as f32).powf(-0.5));
        let positions = [c.context_length, c.width];
        Self {
            token: Embedding::new(&b.at("token"), c.vocab, c.width, Init::Normal(0.02)),
            position: b.parameter("position", &positions, Init::Normal(0.01)),
            blocks: (0..c.depth).map(|i| Arc::new(Block::new(&b.at("blocks").at(i), c))).collect(),
            norm: LayerNorm::new(&b.at("norm"), c.width, c.norm_eps),
            projection: Linear::new(&b.at("projection"), c.width, embed_dim, false, std),
            config: config.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// All tokens after the last norm, `[batch, tokens, width]`, from `batch` texts of the same
    /// number of ids, start and end included, padded behind the end.
    ///
    /// # Errors
    /// If an id is not in the vocabulary or a text is longer than the context.
    pub fn features(&self, ids: &Arc<[u32]>, batch: usize) -> Result<Tensor> {
        self.features_by(ids, batch, Pass::default())
    }

    fn features_by(&self, ids: &Arc<[u32]>, batch: usize, pass: Pass) -> Result<Tensor> {
        let tokens = ids.len() / batch.max(1);
        let x = self.token.forward(ids, &[batch, tokens])?; // [batch, tokens, width]
        let mut x = x.add_table(&self.position.tensor().narrow(0, 0, tokens)?)?;
        for block in &self.blocks {
            x = pass.through(block, &x, Block::forward)?;
        }
        Ok(self.norm.forward(&x)?)
    }

    /// Texts in the joint space, `[batch, embed_dim]`, of any length.
    ///
    /// # Errors
    /// As for [`ClipText::features`].
    pub fn forward(&self, ids: &Arc<[u32]>, batch: usize) -> Result<Tensor> {
        self.forward_by(ids, batch, Pass::default())
    }

    /// The same in a pass of choice.
    ///
    /// # Errors
    /// As for [`ClipText::features`].
    pub fn forward_by(&self, ids: &Arc<[u32]>, batch: usize, pass: Pass) -> Result<Tensor> {
        let x = self.features_by(ids, batch, pass)?;
        let ends = self.config.end_token.positions(ids, x.shape()[1]);
        Ok(self.projection.forward(&x.select_tokens(&ends)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_text_is_the_first_of_its_kind() {
        let ids = [5, 2, 9, 9, 0, 5, 9, 2, 2, 0];
        assert_eq!(EndToken::LargestId.positions(&ids, 5), [2, 1]);
        assert_eq!(EndToken::Id(2).positions(&ids, 5), [1, 2]);
        assert_eq!(EndToken::Id(7).positions(&ids, 5), [0, 0]);
    }
}
