//! The Perceiver Resampler: any number of features of a picture or a video become a few tokens.
//!
//! Alayrac et al. 2022, "Flamingo: a Visual Language Model for Few-Shot Learning", arXiv:2204.14198,
//! §3.1 and its appendix on the architecture (Figure 5). Learned queries attend to the features and
//! to themselves.

use crate::Result;
use ocelli_nn::layers::{LayerNorm, Linear, MemoryAttention, MemoryAttentionSizes};
use ocelli_nn::{Builder, Init, Name, Names, Parameter, copy};
use ocelli_tensor::{Activation, AttentionMask, Tensor};
use std::sync::Arc;

/// Sizes of a Perceiver Resampler.
#[derive(Clone, Debug, PartialEq)]
pub struct PerceiverConfig {
    /// Width of the features, and of the result.
    pub width: usize,
    /// Layers.
    pub depth: usize,
    /// Heads of each attention.
    pub heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Tokens that come out.
    pub latents: usize,
    /// Hidden width of each perceptron.
    pub mlp_dim: usize,
    /// Activation of the perceptrons.
    pub activation: Activation,
    /// Frames of a video that have an embedding of their own; 0 if none has.
    pub frames: usize,
    /// Places among the pictures of a text that have an embedding of their own; 0 if none has.
    pub media: usize,
}

/// Epsilon of the norms.
pub(super) const NORM_EPS: f32 = 1e-5;
/// Queries and tables are drawn from N(0, 1), as in OpenFlamingo.
const TABLE_INIT: Init = Init::Normal(1.0);
/// Linear layers are drawn as in OpenFlamingo, whose library decides: uniform with this bound.
pub(super) fn linear_init(inputs: usize) -> Init {
    Init::Uniform((inputs.max(1) as f32).powf(-0.5))
}

/// A perceptron without biases behind its norm.
#[derive(Debug)]
pub(super) struct FeedForward {
    norm: LayerNorm,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl FeedForward {
    pub(super) fn new(b: &Builder, width: usize, hidden: usize, activation: Activation) -> Self {
        let linear = |name, inputs, outputs| {
            Linear::new(&b.at(name), inputs, outputs, false, linear_init(inputs))
        };
        Self {
            norm: LayerNorm::new(&b.at("norm"), width, NORM_EPS),
            up: linear("up", width, hidden),
            down: linear("down", hidden, width),
            activation,
        }
    }

    /// `down(activation(up(norm(x)))) + residual`; `[.., width]` in and out.
    pub(super) fn forward(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let hidden = self.up.forward_with(&self.norm.forward(x)?, self.activation, None)?;
        Ok(self.down.forward_with(&hidden, Activation::None, residual)?)
    }
}

#[derive(Debug)]
struct Layer {
    norm_media: LayerNorm,
    norm_latents: LayerNorm,
    attn: MemoryAttention,
    mlp: FeedForward,
}

impl Layer {
    fn new(b: &Builder, c: &PerceiverConfig) -> Self {
        let sizes = MemoryAttentionSizes {
            width: c.width,
            memory_width: c.width,
            heads: c.heads,
            head_dim: c.head_dim,
        };
        Self {
            norm_media: LayerNorm::new(&b.at("norm_media"), c.width, NORM_EPS),
            norm_latents: LayerNorm::new(&b.at("norm_latents"), c.width, NORM_EPS),
            attn: MemoryAttention::new(&b.at("attn"), sizes, linear_init(c.width)),
            mlp: FeedForward::new(&b.at("mlp"), c.width, c.mlp_dim, c.activation),
        }
    }

    /// Latents `[media, latents, width]` that have looked at features `[media, positions, width]`.
    fn forward(&self, latents: &Tensor, features: &Tensor) -> Result<Tensor> {
        let seen = self.norm_media.forward(features)?;
        let queries = self.norm_latents.forward(latents)?;
        let memory = Tensor::cat(&[&seen, &queries], 1)?; // [media, positions + latents, width]
        let looked = self.attn.forward(&queries, &memory, &AttentionMask::default())?;
        let latents = latents.add(&looked)?;
        self.mlp.forward(&latents, Some(&latents))
    }
}

/// The Perceiver Resampler.
#[derive(Debug)]
pub struct PerceiverResampler {
    config: PerceiverConfig,
    latents: Parameter,
    frames: Option<Parameter>,
    media: Option<Parameter>,
    layers: Vec<Layer>,
    norm: LayerNorm,
}

impl PerceiverResampler {
    /// A resampler whose parameters come from `b`.
    pub fn new(config: &PerceiverConfig, b: &Builder) -> Self {
        let c = config;
        let table =
            |name, rows| (rows > 0).then(|| b.parameter(name, &[rows, c.width], TABLE_INIT));
        Self {
            latents: b.parameter("latents", &[c.latents, c.width], TABLE_INIT),
            frames: table("frames", c.frames),
            media: table("media", c.media),
            layers: (0..c.depth).map(|i| Layer::new(&b.at("layers").at(i), c)).collect(),
            norm: LayerNorm::new(&b.at("norm"), c.width, NORM_EPS),
            config: config.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &PerceiverConfig {
        &self.config
    }

    /// What a language model is shown of features `[batch, media, frames, positions, width]`:
    /// `[batch, media, latents, width]`. Each medium is looked at alone.
    ///
    /// # Errors
    /// If shapes do not fit, or there are more media than have an embedding.
    pub fn forward(&self, features: &Tensor) -> Result<Tensor> {
        self.forward_from(features, 0)
    }

    /// The latents `[latents, width]` of the features `[frames, positions, width]` of one picture or
    /// video, the one of that index in its text.
    ///
    /// # Errors
    /// As there.
    pub fn medium(&self, features: &Tensor, index: usize) -> Result<Tensor> {
        let mut shape = vec![1, 1];
        shape.extend_from_slice(features.shape());
        let latents = self.forward_from(&features.reshape(&shape)?, index)?;
        Ok(latents.reshape(&[self.config.latents, self.config.width])?)
    }

    /// [`PerceiverResampler::forward`] where the first medium has the index `first` in its text.
    fn forward_from(&self, features: &Tensor, first: usize) -> Result<Tensor> {
        let c = &self.config;
        let &[batch, media, frames, positions, width] = &features.shape()[..] else {
            let expected = "features [batch, media, frames, positions, width]".to_owned();
            let (op, got) = ("resample", features.shape().clone());
            return Err(ocelli_tensor::Error::Shape { op, expected, got }.into());
        };
        let mut x = features.clone();
        if let Some(table) = &self.frames {
            let table = frame_table(&table.tensor(), frames)?;
            let ids: Arc<[u32]> = repeated(frames, positions);
            let table = table.embedding(&ids, &[frames, positions])?;
            x = x.add_table(&table)?; // the same for every medium
        }
        if let Some(table) = &self.media {
            let ids: Arc<[u32]> = repeated(media, frames * positions);
            let rows = table.tensor().narrow(0, first, media)?;
            let table = rows.embedding(&ids, &[media, frames, positions])?;
            x = x.add_table(&table)?;
        }
        let x = x.reshape(&[batch * media, frames * positions, width])?;
        let ids: Arc<[u32]> = (0..batch * media).flat_map(|_| 0..c.latents as u32).collect();
        let mut latents = self.latents.tensor().embedding(&ids, &[batch * media, c.latents])?;
        for layer in &self.layers {
            latents = layer.forward(&latents, &x)?;
        }
        let latents = self.norm.forward(&latents)?;
        Ok(latents.reshape(&[batch, media, c.latents, width])?)
    }
}

/// `0 0 .. 1 1 ..`, `times` each.
fn repeated(n: usize, times: usize) -> Arc<[u32]> {
    (0..n as u32).flat_map(|i| std::iter::repeat_n(i, times)).collect()
}

/// The embeddings of `frames` frames: the first rows of `table` `[rows, width]`, or if there are fewer,
/// as many at equal distances between the first and the last (the paper shows 30 frames to a table of
/// 8).
fn frame_table(table: &Tensor, frames: usize) -> Result<Tensor> {
    let rows = table.shape()[0];
    if frames <= rows {
        return Ok(table.narrow(0, 0, frames)?);
    }
    let mut mix = vec![0.0; frames * rows];
    for (i, mix) in mix.chunks_exact_mut(rows).enumerate() {
        let at = (i * (rows - 1)) as f32 / (frames - 1) as f32;
        let (low, part) = (at as usize, at.fract());
        mix[low] += 1.0 - part;
        mix[(low + 1).min(rows - 1)] += part;
    }
    Ok(Tensor::from_slice(&mix, &[frames, rows])?.matmul(table)?) // [frames, width]
}

/// OpenFlamingo and flamingo-pytorch; `~` is what stands in front.
pub const OPEN_FLAMINGO: &[Name] = &[
    copy("latents", "~latents"),
    copy("frames", "~frame_embs"),
    copy("media", "~media_time_embs"),
    copy("layers.*.norm_media.*", "~layers.*.0.norm_media.*"),
    copy("layers.*.norm_latents.*", "~layers.*.0.norm_latents.*"),
    copy("layers.*.attn.q.weight", "~layers.*.0.to_q.weight"),
    copy("layers.*.attn.kv.weight", "~layers.*.0.to_kv.weight"),
    copy("layers.*.attn.out.weight", "~layers.*.0.to_out.weight"),
    copy("layers.*.mlp.norm.*", "~layers.*.1.0.*"),
    copy("layers.*.mlp.up.weight", "~layers.*.1.1.weight"),
    copy("layers.*.mlp.down.weight", "~layers.*.1.3.weight"),
    copy("norm.*", "~norm.*"),
];
/// What flamingo-pytorch calls otherwise.
const LUCIDRAINS: &[Name] = &[copy("media", "~media_pos_emb")];

/// Name map of a file; `prefix` stands in front of every name, and `has_media_pos` says that the table
/// of places among media has the name of flamingo-pytorch.
pub fn names(prefix: &str, has_media_pos: bool) -> Names {
    let first = if has_media_pos { LUCIDRAINS } else { &[] };
    Names::family(&[first, OPEN_FLAMINGO].concat(), &[]).with_prefix(prefix)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::*;

    #[test]
    fn more_frames_than_rows_lie_between_them() {
        let table = Tensor::from_slice(&[0.0, 4.0, 2.0, 0.0], &[2, 2]).unwrap();
        assert_eq!(frame_table(&table, 1).unwrap().values(), [0.0, 4.0]);
        let three = frame_table(&table, 3).unwrap();
        assert_eq!(three.values(), [0.0, 4.0, 1.0, 2.0, 2.0, 0.0]);
    }
}
