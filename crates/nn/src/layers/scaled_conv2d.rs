//! Convolution with scaled, standardised filters.

use crate::{Builder, Init, Parameter};
use ocelli_tensor::{PicturePadding, Result, Tensor};

/// Sizes of a [`ScaledConv2d`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScaledConv2dSizes {
    /// Channels of the pictures.
    pub inputs: usize,
    /// Channels of the result.
    pub outputs: usize,
    /// Side of a filter, in pixels.
    pub kernel: usize,
    /// Pixels between filters.
    pub stride: usize,
    /// Groups of channels that do not see each other; divides both.
    pub groups: usize,
    /// What lies around a picture.
    pub padding: PicturePadding,
    /// Added to the variance of a filter.
    pub eps: f32,
    /// What every filter is multiplied by, so that a nonlinearity keeps the variance.
    pub gamma: f32,
}

/// A convolution whose filters have mean 0, variance `1 / fan_in`, and a learned gain each (Brock et
/// al. 2021, arXiv:2101.08692, §4.3): `gain gamma (w - mean) / sqrt(fan_in (variance + eps))`.
#[derive(Debug)]
pub struct ScaledConv2d {
    sizes: ScaledConv2dSizes,
    weight: Parameter,
    bias: Parameter,
    gain: Parameter,
}

impl ScaledConv2d {
    /// `weight` `[outputs, inputs / groups, kernel, kernel]` from N(0, `1 / fan_in`), `bias` `[outputs]`
    /// from 0 and `gain` `[outputs]` from `gain`.
    pub fn new(b: &Builder, sizes: ScaledConv2dSizes, gain: f32) -> Self {
        let s = &sizes;
        let filter = [s.outputs, s.inputs / s.groups.max(1), s.kernel, s.kernel];
        let fan_in = filter[1..].iter().product::<usize>();
        let init = Init::Normal((fan_in.max(1) as f32).powf(-0.5));
        Self {
            weight: b.parameter("weight", &filter, init),
            bias: b.parameter("bias", &[s.outputs], Init::Constant(0.0)),
            gain: b.parameter("gain", &[s.outputs], Init::Constant(gain)),
            sizes,
        }
    }

    /// `[batch, inputs, img_h, img_w]` to `[batch, outputs, grid_h, grid_w]`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let s = &self.sizes;
        let (weight, bias) = (self.weight.tensor(), self.bias.tensor());
        let fan_in = (weight.elements() / s.outputs.max(1)) as f32;
        let gain = self.gain.tensor().scale(s.gamma / fan_in.sqrt())?;
        let weight = weight.standardise_filters(s.eps)?.scale_rows(&gain)?;
        if s.groups <= 1 {
            return x.conv2d(&weight, Some(&bias), s.stride, s.padding);
        }
        let (inputs, outputs) = (s.inputs / s.groups, s.outputs / s.groups);
        let group = |i| {
            let weight = weight.narrow(0, i * outputs, outputs)?;
            let bias = bias.narrow(0, i * outputs, outputs)?;
            x.narrow(1, i * inputs, inputs)?.conv2d(&weight, Some(&bias), s.stride, s.padding)
        };
        let groups = (0..s.groups).map(group).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&groups.iter().collect::<Vec<_>>(), 1)
    }
}
