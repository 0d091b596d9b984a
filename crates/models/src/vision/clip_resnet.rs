//! The ResNet towers of CLIP: "ModifiedResNet" with attention pooling.
//!
//! Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
//! arXiv:2103.00020, §2.4: three convolutions in the stem (He et al. 2018, arXiv:1812.01187), an
//! average pool in front of every strided step (Zhang 2019, arXiv:1904.11486), and a last pooling in
//! which the mean attends to all positions. Preprocessing and the text tower are elsewhere.

use crate::Result;
use ocelli_nn::layers::{BatchNorm, Conv2d, Linear, NormStatistics};
use ocelli_nn::{Builder, Init, Name, Names, Parameter, copy};
use ocelli_tensor::{Activation, AttentionMask, Heads, PicturePadding, Tensor};
use serde::{Deserialize, Serialize};

/// Sizes of a tower (Table 19).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModifiedResNetConfig {
    /// Blocks of each stage.
    pub layers: [usize; 4],
    /// Channels behind the stem.
    pub width: usize,
    /// Heads of the attention pooling.
    pub heads: usize,
    /// Height and width of the input, in pixels; a multiple of 32.
    pub image_size: usize,
}

impl ModifiedResNetConfig {
    /// Side of the last grid.
    fn grid(&self) -> usize {
        self.image_size / 32
    }

    /// Channels of the last grid.
    fn channels(&self) -> usize {
        32 * self.width
    }
}

const SAME_SIZE: PicturePadding = PicturePadding::Uniform(1);
const NO_PADDING: PicturePadding = PicturePadding::Uniform(0);

/// A convolution and its norm.
#[derive(Debug)]
struct ConvNorm {
    conv: Conv2d,
    norm: BatchNorm,
}

impl ConvNorm {
    fn forward(&self, x: &Tensor, relu: bool, statistics: NormStatistics) -> Result<Tensor> {
        Ok(self.norm.forward(&self.conv.forward(x)?, relu, statistics)?)
    }
}

/// A bottleneck block; every convolution has stride 1.
#[derive(Debug)]
struct Bottleneck {
    reduce: ConvNorm,
    mix: ConvNorm,
    expand: ConvNorm,
    shortcut: Option<ConvNorm>,
    /// Side of the average pool that stands for a stride.
    stride: usize,
}

impl Bottleneck {
    fn new(b: &Builder, inputs: usize, planes: usize, stride: usize) -> Self {
        let outputs = 4 * planes;
        let part = |i: usize, from, to, kernel, padding, scale| ConvNorm {
            conv: Conv2d::new(&b.at(format!("conv{i}")), from, to, kernel, 1, padding),
            norm: BatchNorm::new(&b.at(format!("bn{i}")), to, scale),
        };
        Self {
            reduce: part(1, inputs, planes, 1, NO_PADDING, 1.0),
            mix: part(2, planes, planes, 3, SAME_SIZE, 1.0),
            // A new block is the identity: its last norm starts at 0.
            expand: part(3, planes, outputs, 1, NO_PADDING, 0.0),
            shortcut: (stride > 1 || inputs != outputs).then(|| {
                let b = b.at("downsample");
                ConvNorm {
                    conv: Conv2d::new(&b.at(0), inputs, outputs, 1, 1, NO_PADDING),
                    norm: BatchNorm::new(&b.at(1), outputs, 1.0),
                }
            }),
            stride,
        }
    }

    /// `[batch, inputs, img_h, img_w]` to `[batch, 4 planes, img_h / stride, img_w / stride]`.
    fn forward(&self, x: &Tensor, statistics: NormStatistics) -> Result<Tensor> {
        let pool = |x: Tensor| if self.stride > 1 { x.average_pool(self.stride) } else { Ok(x) };
        let z = self.reduce.forward(x, true, statistics)?; // [batch, planes, img_h, img_w]
        let z = pool(self.mix.forward(&z, true, statistics)?)?;
        let z = self.expand.forward(&z, false, statistics)?;
        let shortcut = match &self.shortcut {
            Some(shortcut) => shortcut.forward(&pool(x.clone())?, false, statistics)?,
            None => x.clone(),
        };
        Ok(z.add(&shortcut)?.activate(Activation::Relu)?)
    }
}

/// The last pooling: one query, the mean of all positions, attends to itself and to them.
#[derive(Debug)]
struct AttentionPool {
    position: Parameter,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    heads: Heads,
}

impl AttentionPool {
    fn new(b: &Builder, config: &ModifiedResNetConfig, embed_dim: usize) -> Self {
        let channels = config.channels();
        let init = Init::Normal(1.0 / (channels as f32).sqrt());
        let project = |name, outputs| Linear::new(&b.at(name), channels, outputs, true, init);
        let positions = config.grid() * config.grid() + 1;
        Self {
            position: b.parameter("positional_embedding", &[positions, channels], init),
            q: project("q_proj", channels),
            k: project("k_proj", channels),
            v: project("v_proj", channels),
            out: project("c_proj", embed_dim),
            heads: Heads::same(config.heads),
        }
    }

    /// `[batch, channels, grid, grid]` to `[batch, embed_dim]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let &[batch, channels, grid_h, grid_w] = &x.shape()[..] else {
            return Err(not_pictures("attention_pool", x));
        };
        let x = x.reshape(&[batch, channels, grid_h * grid_w])?;
        let x = x.permute(&[0, 2, 1])?; // [batch, positions, channels]
        let mean = x.mean_tokens(0)?.reshape(&[batch, 1, channels])?;
        let x = Tensor::cat(&[&mean, &x], 1)?; // [batch, 1 + positions, channels]
        let x = x.add_table(&self.position.tensor())?;
        let q = self.q.forward(&x.narrow(1, 0, 1)?)?; // [batch, 1, channels]
        let (k, v) = (self.k.forward(&x)?, self.v.forward(&x)?);
        let z = q.attention(&k, &v, self.heads, &AttentionMask::default())?;
        Ok(self.out.forward(&z.reshape(&[batch, channels])?)?)
    }
}

/// `op` was given something else than pictures.
fn not_pictures(op: &'static str, x: &Tensor) -> crate::Error {
    let expected = "[batch, channels, img_h, img_w]".to_owned();
    ocelli_tensor::Error::Shape { op, expected, got: x.shape().clone() }.into()
}

/// A ResNet tower of CLIP.
#[derive(Debug)]
pub struct ModifiedResNet {
    config: ModifiedResNetConfig,
    stem: [ConvNorm; 3],
    stages: Vec<Vec<Bottleneck>>,
    pool: AttentionPool,
}

impl ModifiedResNet {
    /// A tower whose parameters come from `b`; its output has `embed_dim` values.
    pub fn new(config: &ModifiedResNetConfig, embed_dim: usize, b: &Builder) -> Self {
        let width = config.width;
        let stem = |i: usize, inputs, outputs, stride| ConvNorm {
            conv: Conv2d::new(&b.at(format!("conv{i}")), inputs, outputs, 3, stride, SAME_SIZE),
            norm: BatchNorm::new(&b.at(format!("bn{i}")), outputs, 1.0),
        };
        let stem = [
            stem(1, 3, width / 2, 2),
            stem(2, width / 2, width / 2, 1),
            stem(3, width / 2, width, 1),
        ];
        let mut inputs = width;
        let mut stages = Vec::new();
        for (i, &depth) in config.layers.iter().enumerate() {
            let b = b.at(format!("layer{}", i + 1));
            let planes = width << i;
            let mut stage = Vec::new();
            for j in 0..depth {
                let stride = if i > 0 && j == 0 { 2 } else { 1 };
                stage.push(Bottleneck::new(&b.at(j), inputs, planes, stride));
                inputs = 4 * planes;
            }
            stages.push(stage);
        }
        let pool = AttentionPool::new(&b.at("attnpool"), config, embed_dim);
        Self { config: config.clone(), stem, stages, pool }
    }

    /// The sizes.
    pub fn config(&self) -> &ModifiedResNetConfig {
        &self.config
    }

    /// Normalised `pixels` `[batch, 3, img, img]` behind the stem, `[batch, width, img/4, img/4]`.
    ///
    /// # Errors
    /// If the channels differ.
    pub fn stem(&self, pixels: &Tensor, statistics: NormStatistics) -> Result<Tensor> {
        let mut x = pixels.clone();
        for part in &self.stem {
            x = part.forward(&x, true, statistics)?;
        }
        Ok(x.average_pool(2)?)
    }

    /// What stage `index` (0 to 3) makes of the grid before it; all but the first halve its sides.
    ///
    /// # Errors
    /// If the channels differ.
    ///
    /// # Panics
    /// If there is no such stage.
    pub fn stage(&self, index: usize, x: &Tensor, statistics: NormStatistics) -> Result<Tensor> {
        self.stages[index].iter().try_fold(x.clone(), |x, block| block.forward(&x, statistics))
    }

    /// The grid in front of the pooling, `[batch, 32 width, img/32, img/32]`.
    ///
    /// # Errors
    /// If the channels differ.
    pub fn features(&self, pixels: &Tensor, statistics: NormStatistics) -> Result<Tensor> {
        let x = self.stem(pixels, statistics)?;
        (0..self.stages.len()).try_fold(x, |x, i| self.stage(i, &x, statistics))
    }

    /// Normalised `pixels` `[batch, 3, image_size, image_size]` to `[batch, embed_dim]`, not yet of
    /// length 1, by the running statistics: no picture depends on another.
    ///
    /// # Errors
    /// If the pictures have another size.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        self.forward_with(pixels, NormStatistics::Running)
    }

    /// The same by statistics of choice. Training from scratch takes those of the batch, which move
    /// the running ones.
    ///
    /// # Errors
    /// If the pictures have another size.
    pub fn forward_with(&self, pixels: &Tensor, statistics: NormStatistics) -> Result<Tensor> {
        self.pool.forward(&self.features(pixels, statistics)?)
    }
}

/// Names of the tower in the archives of CLIP and of `open_clip`.
const OPENAI: &[Name] = &[
    copy("attnpool.positional_embedding", "visual.attnpool.positional_embedding"),
    copy("attnpool.*.*", "visual.attnpool.*.*"),
    copy("layer1.*.*.*", "visual.layer1.*.*.*"),
    copy("layer1.*.downsample.*.*", "visual.layer1.*.downsample.*.*"),
    copy("layer2.*.*.*", "visual.layer2.*.*.*"),
    copy("layer2.*.downsample.*.*", "visual.layer2.*.downsample.*.*"),
    copy("layer3.*.*.*", "visual.layer3.*.*.*"),
    copy("layer3.*.downsample.*.*", "visual.layer3.*.downsample.*.*"),
    copy("layer4.*.*.*", "visual.layer4.*.*.*"),
    copy("layer4.*.downsample.*.*", "visual.layer4.*.downsample.*.*"),
    copy("conv1.*", "visual.conv1.*"),
    copy("conv2.*", "visual.conv2.*"),
    copy("conv3.*", "visual.conv3.*"),
    copy("bn1.*", "visual.bn1.*"),
    copy("bn2.*", "visual.bn2.*"),
    copy("bn3.*", "visual.bn3.*"),
];

/// The map of the archives of CLIP and of `open_clip` for a tower under `vision.`. They also count
/// batches, which nothing needs.
pub fn openai_names() -> Names {
    let ignored = &[
        "visual.*.num_batches_tracked",
        "visual.*.*.*.num_batches_tracked",
        "visual.*.*.*.*.num_batches_tracked",
    ];
    Names::family(OPENAI, ignored).under("vision.")
}
