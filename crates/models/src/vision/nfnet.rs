//! NFNet: a residual network without normalisation, the tower of Flamingo.
//!
//! Brock et al. 2021, "High-Performance Large-Scale Image Recognition Without Normalization",
//! arXiv:2102.06171, §4 and Figure 5. Constants that the paper leaves open are those of timm.
//! Stochastic depth and dropout of training are left out.

use crate::Result;
use ocelli_nn::layers::{Linear, ScaledConv2d, ScaledConv2dSizes};
use ocelli_nn::{Builder, Init, Name, Names, Parameter, copy};
use ocelli_tensor::{Activation, PicturePadding, Tensor};

/// Where the scale of the nonlinearity is, and how pictures are padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NfNetLayout {
    /// Of the published weights: the activation is scaled, padding is that of TensorFlow, and every
    /// branch ends in a learned scalar that begins at 0 (`dm_nfnet_*` of timm).
    DeepMind,
    /// The filters are scaled, padding is the same on all sides, and the gains of a branch's last
    /// filters begin at 0 (`nfnet_*` of timm).
    Plain,
}

/// Sizes of an NFNet (Table 1).
#[derive(Clone, Debug, PartialEq)]
pub struct NfNetConfig {
    /// Which of two layouts.
    pub layout: NfNetLayout,
    /// Side of a square input in use, in pixels; others are read too.
    pub image_size: usize,
    /// Blocks of each stage.
    pub depths: Vec<usize>,
    /// Channels of each stage.
    pub channels: Vec<usize>,
    /// Channels behind the stem; a multiple of 8.
    pub stem_channels: usize,
    /// Channels of a group of the convolutions in the middle.
    pub group_width: usize,
    /// Channels behind the last convolution.
    pub features: usize,
    /// Rows of the head; 0 for none.
    pub classes: usize,
    /// What a residual branch counts.
    pub alpha: f32,
    /// Added to the variance of filters.
    pub filter_eps: f32,
}

impl NfNetConfig {
    /// A published size, `"F0"` to `"F6"`, in the layout of the published weights with 1,000 classes.
    pub fn variant(name: &str) -> Option<Self> {
        let (n, image_size) = match name {
            "F0" => (1, 256),
            "F1" => (2, 320),
            "F2" => (3, 352),
            "F3" => (4, 416),
            "F4" => (5, 512),
            "F5" => (6, 544),
            "F6" => (7, 576),
            _ => return None,
        };
        Some(Self {
            layout: NfNetLayout::DeepMind,
            image_size,
            depths: vec![n, 2 * n, 6 * n, 3 * n],
            channels: vec![256, 512, 1536, 1536],
            stem_channels: 128,
            group_width: 128,
            features: 3072,
            classes: 1000,
            alpha: 0.2,
            filter_eps: 1e-5,
        })
    }

    /// Channels of the last stage.
    pub fn width(&self) -> usize {
        self.channels.last().copied().unwrap_or(self.stem_channels)
    }

    /// Channels in the middle of a block with `outputs` channels: half of them, in whole groups.
    pub fn inner(&self, outputs: usize) -> usize {
        self.groups(outputs) * self.group_width
    }

    fn groups(&self, outputs: usize) -> usize {
        (whole_channels(outputs as f32 * 0.5) / self.group_width.max(1)).max(1)
    }

    /// What every block of every stage scales its input by: one over its standard deviation, which
    /// grows with each block and is that of one branch behind the first of a stage (§2).
    pub fn betas(&self) -> Vec<Vec<f32>> {
        let mut variance = 1.0_f32;
        let mut stage = |depth: usize| {
            let mut block = |i: usize| {
                let beta = variance.powf(-0.5);
                variance = if i == 0 { 1.0 } else { variance } + self.alpha * self.alpha;
                beta
            };
            (0..depth).map(&mut block).collect()
        };
        self.depths.iter().map(|depth| stage(*depth)).collect()
    }

    /// The activation, scaled to keep the variance where the filters do not, and by `beta`.
    fn scaled_gelu(&self, x: &Tensor, beta: Option<f32>) -> Result<Tensor> {
        let y = x.activate(Activation::Gelu)?;
        let factor = match self.layout {
            NfNetLayout::DeepMind => Some(beta.unwrap_or(1.0) * GELU_GAMMA),
            NfNetLayout::Plain => beta,
        };
        match factor {
            Some(factor) => Ok(y.scale(factor)?),
            None => Ok(y),
        }
    }
}

/// One over the standard deviation of a GELU's output for inputs from N(0, 1).
const GELU_GAMMA: f32 = 1.701_504_3;
/// What squeeze and excitation is multiplied by, so that it keeps the variance.
const EXCITE_GAIN: f32 = 2.0;
/// Widths are multiples of this many channels.
const CHANNELS: usize = 8;

/// `width` as a multiple of 8, less than it by a tenth at most.
pub fn whole_channels(width: f32) -> usize {
    let whole = |channels: usize| (channels / CHANNELS * CHANNELS).max(CHANNELS);
    let near = whole(width as usize + CHANNELS / 2);
    if (near as f32) < 0.9 * width { near + CHANNELS } else { near }
}

/// Makes the convolutions of a model.
struct Convs<'a>(&'a NfNetConfig);

impl Convs<'_> {
    /// A convolution named `name`; `gain` is what its gains begin with.
    fn named(
        &self,
        b: &Builder,
        name: &str,
        (inputs, outputs): (usize, usize),
        (kernel, stride): (usize, usize),
        groups: usize,
        gain: f32,
    ) -> ScaledConv2d {
        let (padding, gamma) = match self.0.layout {
            NfNetLayout::DeepMind => (PicturePadding::Same, 1.0),
            NfNetLayout::Plain => (PicturePadding::Uniform((stride + kernel - 2) / 2), GELU_GAMMA),
        };
        let eps = self.0.filter_eps;
        let sizes =
            ScaledConv2dSizes { inputs, outputs, kernel, stride, groups, padding, eps, gamma };
        ScaledConv2d::new(&b.at(name), sizes, gain)
    }
}

/// Squeeze and excitation (Hu et al. 2018, arXiv:1709.01507, §3): each channel times a number that the
/// means of all channels decide.
#[derive(Debug)]
struct SqueezeExcite {
    squeeze: Linear,
    excite: Linear,
}

impl SqueezeExcite {
    fn new(b: &Builder, channels: usize) -> Self {
        let hidden = whole_channels(channels as f32 * 0.5);
        let init = |inputs: usize| Init::Normal((inputs as f32).powf(-0.5));
        let layer = |name, inputs, outputs| {
            Linear::of_patches(&b.at(name), [inputs, outputs], 1, true, init(inputs))
        };
        Self { squeeze: layer("fc1", channels, hidden), excite: layer("fc2", hidden, channels) }
    }

    /// `[batch, channels, grid_h, grid_w]` in and out.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let z = self.squeeze.forward_with(&x.mean_pool()?, Activation::Relu, None)?;
        let z = self.excite.forward_with(&z, Activation::Sigmoid, None)?; // [batch, channels]
        Ok(x.scale_rows(&z.scale(EXCITE_GAIN)?)?)
    }
}

/// A bottleneck: it narrows, mixes twice in groups, and widens.
#[derive(Debug)]
struct Block {
    beta: f32,
    stride: usize,
    shortcut: Option<ScaledConv2d>,
    reduce: ScaledConv2d,
    mix: [ScaledConv2d; 2],
    expand: ScaledConv2d,
    excite: SqueezeExcite,
    /// A scalar (Bachlechner et al. 2020; De and Smith 2020, arXiv:2002.10444).
    gain: Option<Parameter>,
}

impl Block {
    fn new(
        b: &Builder,
        c: &NfNetConfig,
        (inputs, outputs): (usize, usize),
        stride: usize,
        beta: f32,
    ) -> Self {
        let (groups, inner) = (c.groups(outputs), c.inner(outputs));
        let convs = Convs(c);
        let conv = |name, channels, step, groups| convs.named(b, name, channels, step, groups, 1.0);
        let is_deep_mind = c.layout == NfNetLayout::DeepMind;
        let last = if is_deep_mind { 1.0 } else { 0.0 };
        let has_shortcut = inputs != outputs || stride != 1;
        Self {
            beta,
            stride,
            shortcut: has_shortcut.then(|| conv("downsample.conv", (inputs, outputs), (1, 1), 1)),
            reduce: conv("conv1", (inputs, inner), (1, 1), 1),
            mix: [
                conv("conv2", (inner, inner), (3, stride), groups),
                conv("conv2b", (inner, inner), (3, 1), groups),
            ],
            expand: convs.named(b, "conv3", (inner, outputs), (1, 1), 1, last),
            excite: SqueezeExcite::new(&b.at("attn_last"), outputs),
            gain: is_deep_mind.then(|| b.parameter("skipinit_gain", &[], Init::Constant(0.0))),
        }
    }

    /// `[batch, inputs, img_h, img_w]` to `[batch, outputs, grid_h, grid_w]`.
    fn forward(&self, c: &NfNetConfig, x: &Tensor) -> Result<Tensor> {
        let z = c.scaled_gelu(x, Some(self.beta))?;
        // A shortcut with a convolution begins behind the activation, another before it.
        let shortcut = match &self.shortcut {
            Some(conv) if self.stride > 1 => conv.forward(&halved(&z)?)?,
            Some(conv) => conv.forward(&z)?,
            None => x.clone(),
        };
        let z = self.reduce.forward(&z)?; // [batch, inner, img_h, img_w]
        let z = self.mix[0].forward(&c.scaled_gelu(&z, None)?)?; // [batch, inner, grid_h, grid_w]
        let z = self.mix[1].forward(&c.scaled_gelu(&z, None)?)?;
        let z = self.expand.forward(&c.scaled_gelu(&z, None)?)?; // [batch, outputs, grid_h, grid_w]
        let z = self.excite.forward(&z)?;
        let z = match &self.gain {
            Some(gain) => z.scale_rows(&gain.tensor().scale(c.alpha)?)?,
            None => z.scale(c.alpha)?,
        };
        Ok(z.add(&shortcut)?)
    }
}

/// The mean of each two by two pixels; where a side is odd, the last windows have fewer. To repeat the
/// last row or column leaves the mean of such a window what it is.
fn halved(x: &Tensor) -> Result<Tensor> {
    let mut x = x.clone();
    for axis in [2, 3] {
        let side = x.shape().get(axis).copied().unwrap_or(0);
        if side % 2 == 1 {
            x = Tensor::cat(&[&x, &x.narrow(axis, side - 1, 1)?], axis)?;
        }
    }
    Ok(x.average_pool(2)?)
}

/// NFNet.
#[derive(Debug)]
pub struct NfNet {
    config: NfNetConfig,
    stem: Vec<ScaledConv2d>,
    stages: Vec<Vec<Block>>,
    last: ScaledConv2d,
    head: Option<Linear>,
}

impl NfNet {
    /// A model whose parameters come from `b`.
    pub fn new(config: &NfNetConfig, b: &Builder) -> Self {
        let c = config;
        let convs = Convs(c);
        let mut inputs = 3;
        let mut stem = Vec::new();
        for (i, (part, stride)) in [(8, 2), (4, 1), (2, 1), (1, 2)].into_iter().enumerate() {
            let (outputs, name) = (c.stem_channels / part, format!("stem.conv{}", i + 1));
            stem.push(convs.named(b, &name, (inputs, outputs), (3, stride), 1, 1.0));
            inputs = outputs;
        }
        let mut stages = Vec::new();
        for (i, (betas, &outputs)) in c.betas().into_iter().zip(&c.channels).enumerate() {
            let mut stage = Vec::new();
            for (j, beta) in betas.into_iter().enumerate() {
                let stride = if i > 0 && j == 0 { 2 } else { 1 };
                let b = b.at("stages").at(i).at(j);
                stage.push(Block::new(&b, c, (inputs, outputs), stride, beta));
                inputs = outputs;
            }
            stages.push(stage);
        }
        let head = |classes| Linear::new(&b.at("head"), c.features, classes, true, HEAD_INIT);
        Self {
            stem,
            stages,
            last: convs.named(b, "last", (inputs, c.features), (1, 1), 1, 1.0),
            head: (c.classes > 0).then(|| head(c.classes)),
            config: config.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &NfNetConfig {
        &self.config
    }

    /// Normalised `pixels` `[batch, 3, img_h, img_w]` behind the stem,
    /// `[batch, stem_channels, img_h / 4, img_w / 4]`, sides rounded up.
    ///
    /// # Errors
    /// If the channels differ.
    pub fn stem(&self, pixels: &Tensor) -> Result<Tensor> {
        let mut x = pixels.clone();
        for (i, conv) in self.stem.iter().enumerate() {
            let z = if i == 0 { x } else { self.config.scaled_gelu(&x, None)? };
            x = conv.forward(&z)?;
        }
        Ok(x)
    }

    /// The map behind each stage; sides of the last are a thirty-second, rounded up.
    ///
    /// # Errors
    /// If the channels differ.
    pub fn stages(&self, pixels: &Tensor) -> Result<Vec<Tensor>> {
        let mut x = self.stem(pixels)?;
        let mut maps = Vec::new();
        for stage in &self.stages {
            for block in stage {
                x = block.forward(&self.config, &x)?;
            }
            maps.push(x.clone());
        }
        Ok(maps)
    }

    /// The map behind the last stage, `[batch, channels, grid_h, grid_w]`.
    ///
    /// # Errors
    /// If the channels differ.
    pub fn last_stage(&self, pixels: &Tensor) -> Result<Tensor> {
        let stem = self.stem(pixels)?;
        let mut blocks = self.stages.iter().flatten();
        blocks.try_fold(stem, |x, block| block.forward(&self.config, &x))
    }

    /// The map behind the last activation, `[batch, features, grid_h, grid_w]`.
    ///
    /// # Errors
    /// If the channels differ.
    pub fn features(&self, pixels: &Tensor) -> Result<Tensor> {
        self.config.scaled_gelu(&self.last.forward(&self.last_stage(pixels)?)?, None)
    }

    /// One vector per picture, `[batch, features]`: the mean over the map.
    ///
    /// # Errors
    /// If the channels differ.
    pub fn pooled(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.features(pixels)?.mean_pool()?)
    }

    /// The logits, `[batch, classes]`, or [`NfNet::pooled`] without a head.
    ///
    /// # Errors
    /// If the channels differ.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let x = self.pooled(pixels)?;
        match &self.head {
            Some(head) => Ok(head.forward(&x)?),
            None => Ok(x),
        }
    }
}

/// N(0, 0.01).
const HEAD_INIT: Init = Init::Normal(0.01);

/// timm `NormFreeNet`.
pub const TIMM: &[Name] = &[
    copy("stem.*.*", "~stem.*.*"),
    copy("stages.*.*.*", "~stages.*.*.*"),
    copy("stages.*.*.*.*", "~stages.*.*.*.*"),
    copy("stages.*.*.downsample.conv.*", "~stages.*.*.downsample.conv.*"),
    copy("stages.*.*.attn_last.*.*", "~stages.*.*.attn_last.*.*"),
    copy("last.*", "~final_conv.*"),
    copy("head.*", "~head.fc.*"),
];

/// Name map of a file; `prefix` is what stands in front.
pub fn names(prefix: &str, has_head: bool) -> Names {
    let ignored: &[&'static str] = if has_head { &[] } else { &["head.fc.weight", "head.fc.bias"] };
    Names::family(TIMM, ignored).with_prefix(prefix)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::*;

    #[test]
    fn the_largest_has_its_parameters() {
        let b = Builder::zeros();
        let config = NfNetConfig { classes: 0, ..NfNetConfig::variant("F6").unwrap() };
        let _model = NfNet::new(&config, &b);
        let parameters = b.finish().unwrap();
        assert_eq!(parameters.elements(), 435_286_116);
        assert_eq!(parameters.iter().count(), 1455);
        assert!(NfNetConfig::variant("F7").is_none());
    }

    #[test]
    fn halves_of_odd_pictures_are_means_of_what_is_there() {
        let x: Vec<f32> = (0..15).map(|v| v as f32).collect();
        let y = halved(&Tensor::from_slice(&x, &[1, 1, 3, 5]).unwrap()).unwrap();
        assert_eq!(y.shape()[..], [1, 1, 2, 3]);
        assert_eq!(y.values(), [3.0, 5.0, 6.5, 10.5, 12.5, 14.0]);
    }
}
