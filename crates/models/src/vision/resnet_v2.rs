//! The ResNet in front of a hybrid Vision Transformer, and the hybrid itself.
//!
//! Dosovitskiy et al. 2021, arXiv:2010.11929, §3.1 "Hybrid Architecture": the patches are the
//! positions of a feature map. The ResNet is that of "Big Transfer" (Kolesnikov et al. 2020,
//! arXiv:1912.11370) with weight-standardised convolutions and group norm, but with the activation
//! behind each convolution. Padding is that of TensorFlow.

use super::vit::{JAX, TIMM, Vit, VitConfig, names};
use crate::{Pass, Result};
use ocelli_nn::layers::{Conv2d, GroupNorm};
use ocelli_nn::{Builder, Name, Names, copy};
use ocelli_tensor::{Activation, PicturePadding, Targets, Tensor};
use serde::{Deserialize, Serialize};

/// Sizes of the ResNet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResNetV2Config {
    /// Channels behind the stem.
    pub stem_channels: usize,
    /// Blocks of each stage; all but the first halve the sides of the grid.
    pub layers: Vec<usize>,
    /// Channels of each stage.
    pub channels: Vec<usize>,
    /// Groups of each norm.
    pub groups: usize,
}

impl ResNetV2Config {
    /// The backbone of R50+ViT-B/16: the last stage of a ResNet-50 lies in the third, so that a
    /// position of the grid covers 16 pixels.
    pub fn r50() -> Self {
        Self {
            stem_channels: 64,
            layers: vec![3, 4, 9],
            channels: vec![256, 512, 1024],
            groups: 32,
        }
    }

    /// Pixels along a side that a position of the last grid stands for.
    pub fn stride(&self) -> usize {
        2 << self.layers.len()
    }
}

/// Added to the variance of a filter.
const FILTER_EPS: f32 = 1e-8;

/// A convolution with standardised filters and its norm.
#[derive(Debug)]
struct ConvNorm {
    conv: Conv2d,
    norm: GroupNorm,
}

impl ConvNorm {
    /// Parameters under `conv` and `norm`, two names.
    fn new(
        b: &Builder,
        (conv, norm): (&str, &str),
        (inputs, outputs): (usize, usize),
        (kernel, stride): (usize, usize),
        groups: usize,
    ) -> Self {
        let same = PicturePadding::Same;
        let conv = Conv2d::new(&b.at(conv), inputs, outputs, kernel, stride, same);
        Self {
            conv: conv.standardised(FILTER_EPS),
            norm: GroupNorm::new(&b.at(norm), outputs, groups),
        }
    }

    fn forward(&self, x: &Tensor, relu: bool) -> Result<Tensor> {
        Ok(self.norm.forward(&self.conv.forward(x)?, relu)?)
    }
}

#[derive(Debug)]
struct Bottleneck {
    reduce: ConvNorm,
    mix: ConvNorm,
    expand: ConvNorm,
    shortcut: Option<ConvNorm>,
}

impl Bottleneck {
    /// The first block of a stage has the stride and a shortcut of its own.
    fn new(
        b: &Builder,
        inputs: usize,
        outputs: usize,
        stride: usize,
        is_first: bool,
        groups: usize,
    ) -> Self {
        let inner = outputs / 4;
        let part = |names, channels, step| ConvNorm::new(b, names, channels, step, groups);
        Self {
            reduce: part(("conv1", "norm1"), (inputs, inner), (1, 1)),
            mix: part(("conv2", "norm2"), (inner, inner), (3, stride)),
            expand: part(("conv3", "norm3"), (inner, outputs), (1, 1)),
            shortcut: is_first.then(|| {
                let (names, channels) = (("conv", "norm"), (inputs, outputs));
                ConvNorm::new(&b.at("downsample"), names, channels, (1, stride), groups)
            }),
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let z = self.reduce.forward(x, true)?; // [batch, outputs / 4, img_h, img_w]
        let z = self.mix.forward(&z, true)?; // [batch, outputs / 4, grid_h, grid_w]
        let z = self.expand.forward(&z, false)?; // [batch, outputs, grid_h, grid_w]
        let shortcut = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x, false)?,
            None => x.clone(),
        };
        Ok(z.add(&shortcut)?.activate(Activation::Relu)?)
    }
}

/// The ResNet.
#[derive(Debug)]
pub struct ResNetV2 {
    config: ResNetV2Config,
    stem: ConvNorm,
    stages: Vec<Vec<Bottleneck>>,
}

impl ResNetV2 {
    /// A backbone whose parameters come from `b`.
    pub fn new(config: &ResNetV2Config, b: &Builder) -> Self {
        let stem_channels = (3, config.stem_channels);
        let stem =
            ConvNorm::new(&b.at("stem"), ("conv", "norm"), stem_channels, (7, 2), config.groups);
        let mut inputs = config.stem_channels;
        let mut stages = Vec::new();
        for (i, (&depth, &outputs)) in config.layers.iter().zip(&config.channels).enumerate() {
            let b = b.at("stages").at(i);
            let mut stage = Vec::new();
            for j in 0..depth {
                let stride = if i > 0 && j == 0 { 2 } else { 1 };
                stage.push(Bottleneck::new(
                    &b.at(j),
                    inputs,
                    outputs,
                    stride,
                    j == 0,
                    config.groups,
                ));
                inputs = outputs;
            }
            stages.push(stage);
        }
        Self { config: config.clone(), stem, stages }
    }

    /// The sizes.
    pub fn config(&self) -> &ResNetV2Config {
        &self.config
    }

    /// Normalised `pixels` `[batch, 3, img_h, img_w]` behind the stem,
    /// `[batch, stem_channels, img_h / 4, img_w / 4]`.
    ///
    /// # Errors
    /// If the channels differ.
    pub fn stem(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.stem.forward(pixels, true)?.max_pool(3, 2)?)
    }

    /// What stage `index` makes of the grid before it.
    ///
    /// # Errors
    /// If the channels differ.
    ///
    /// # Panics
    /// If there is no such stage.
    pub fn stage(&self, index: usize, x: &Tensor) -> Result<Tensor> {
        self.stages[index].iter().try_fold(x.clone(), |x, block| block.forward(&x))
    }

    /// The last feature map, `[batch, channels, img_h / 16, img_w / 16]` with three stages.
    ///
    /// # Errors
    /// If the channels differ.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let x = self.stem(pixels)?;
        (0..self.stages.len()).try_fold(x, |x, i| self.stage(i, &x))
    }
}

/// Sizes of a hybrid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HybridVitConfig {
    /// Pixels to a feature map.
    pub backbone: ResNetV2Config,
    /// The transformer for pictures of `vit.image_size` pixels; its patches are positions of the map.
    pub vit: VitConfig,
}

impl HybridVitConfig {
    /// A published hybrid: `"R50+ViT-B/16"` (Appendix, Table 3), at 224 pixels with 1,000 classes.
    pub fn variant(name: &str) -> Option<Self> {
        let vit = VitConfig::variant(name.strip_prefix("R50+ViT-")?).filter(|v| v.patch_size == 16);
        Some(Self { backbone: ResNetV2Config::r50(), vit: vit? })
    }
}

/// A ResNet whose feature map a Vision Transformer reads as patches of one position.
#[derive(Debug)]
pub struct HybridVit {
    config: HybridVitConfig,
    /// Pixels to a feature map.
    pub backbone: ResNetV2,
    /// The feature map to tokens; its sizes count positions of the map, not pixels.
    pub vit: Vit,
    /// Height and width of the input, in pixels.
    pub image_size: (usize, usize),
}

impl HybridVit {
    /// A model whose parameters come from `b`; `vit` states the sizes of the transformer for
    /// pictures of `vit.image_size` pixels.
    pub fn new(backbone: &ResNetV2Config, vit: &VitConfig, b: &Builder) -> Self {
        let stride = backbone.stride();
        let (img_h, img_w) = vit.image_size;
        let on_map = VitConfig {
            image_size: (img_h.div_ceil(stride), img_w.div_ceil(stride)),
            patch_size: 1,
            channels: backbone.channels.last().copied().unwrap_or(backbone.stem_channels),
            ..vit.clone()
        };
        Self {
            config: HybridVitConfig { backbone: backbone.clone(), vit: vit.clone() },
            backbone: ResNetV2::new(backbone, &b.at("backbone")),
            vit: Vit::new(&on_map, &b.at("vit")),
            image_size: vit.image_size,
        }
    }

    /// The sizes, those of the transformer in pixels.
    pub fn config(&self) -> &HybridVitConfig {
        &self.config
    }

    /// The output of the head for normalised `pixels` `[batch, 3, img_h, img_w]`, as
    /// [`Vit::forward`].
    ///
    /// # Errors
    /// If the channels differ.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        self.forward_by(pixels, Pass::default())
    }

    /// The same in a pass of choice.
    ///
    /// # Errors
    /// If the channels differ.
    pub fn forward_by(&self, pixels: &Tensor, pass: Pass) -> Result<Tensor> {
        self.vit.forward_by(&self.backbone.forward(pixels)?, pass)
    }

    /// The mean cross-entropy of the logits.
    ///
    /// # Errors
    /// If a label is out of range.
    pub fn loss(&self, pixels: &Tensor, targets: &Targets) -> Result<Tensor> {
        Ok(self.forward(pixels)?.cross_entropy(targets)?)
    }
}

/// timm's names of the backbone.
const TIMM_BACKBONE: &[Name] = &[
    copy("stem.*.*", "patch_embed.backbone.stem.*.*"),
    copy("stages.*.*.*.*", "patch_embed.backbone.stages.*.blocks.*.*.*"),
    copy("stages.*.*.downsample.*.*", "patch_embed.backbone.stages.*.blocks.*.downsample.*.*"),
];

/// The names of the backbone in the original `.npz` files; `~` is `opt/target/` or nothing.
///
/// Differs from the original code: it adds 1e-5 to the deviation of a filter and 1e-6 in the norms.
/// Here both are as in timm, which runs these files so.
const JAX_BACKBONE: &[Name] = &[
    copy("stem.conv.weight", "~conv_root/kernel").hwio(),
    copy("stem.norm.weight", "~gn_root/scale"),
    copy("stem.norm.bias", "~gn_root/bias"),
    copy("stages.*.*.downsample.conv.weight", "~block+/unit+/conv_proj/kernel").hwio(),
    copy("stages.*.*.downsample.norm.weight", "~block+/unit+/gn_proj/scale"),
    copy("stages.*.*.downsample.norm.bias", "~block+/unit+/gn_proj/bias"),
    copy("stages.*.*.conv1.weight", "~block+/unit+/conv1/kernel").hwio(),
    copy("stages.*.*.norm1.weight", "~block+/unit+/gn1/scale"),
    copy("stages.*.*.norm1.bias", "~block+/unit+/gn1/bias"),
    copy("stages.*.*.conv2.weight", "~block+/unit+/conv2/kernel").hwio(),
    copy("stages.*.*.norm2.weight", "~block+/unit+/gn2/scale"),
    copy("stages.*.*.norm2.bias", "~block+/unit+/gn2/bias"),
    copy("stages.*.*.conv3.weight", "~block+/unit+/conv3/kernel").hwio(),
    copy("stages.*.*.norm3.weight", "~block+/unit+/gn3/scale"),
    copy("stages.*.*.norm3.bias", "~block+/unit+/gn3/bias"),
];

/// The maps of an original hybrid for a [`HybridVit`].
pub fn jax_names(prefix: &str) -> Vec<Names> {
    let backbone = Names::family(JAX_BACKBONE, &[]).with_prefix(prefix);
    vec![backbone.under("backbone."), names(JAX, prefix).under("vit.")]
}

/// The maps of timm's `vit_base_r50_s16_*` for a [`HybridVit`].
pub fn timm_names() -> Vec<Names> {
    vec![Names::family(TIMM_BACKBONE, &[]).under("backbone."), names(TIMM, "").under("vit.")]
}
