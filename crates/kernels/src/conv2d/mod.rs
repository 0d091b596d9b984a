//! Two-dimensional convolution over pictures `[batch, channels, img_h, img_w]`.
//!
//! ```text
//! out[n, o, y, x] = bias[o] + sum over c, i, j of
//!                   weight[o, c, i, j] * pixels[n, c, y * stride_h + i - top, x * stride_w + j - left]
//! ```
//!
//! As in every framework this is a correlation: the kernel is not flipped. A task takes up to 64
//! output pixels, of several samples where a sample has few, copies the inputs under each kernel
//! position into a panel (im2col, Chellapilla et al. 2006) and multiplies the filters with it, so
//! the column matrix never exists as a whole. Every output sums the same products in the same order
//! whatever shares its panel: a sample does not depend on its batch. Kernels of 1 x 1 read the
//! picture as it is. Groups and dilation are left out: no model of the toolkit has them.

mod backward;
mod columns;
pub mod reference;
mod standardise;
#[cfg(test)]
pub(crate) mod tests;

pub use backward::{grad_bias, grad_input, grad_weight};
pub use standardise::{standardise_backward, standardise_forward};

use crate::buffer::Buffer;
use crate::gemm::{Next, Panel, Tail, panel_fn, panel_width};
use crate::pool::{Shared, parallel_for, threads};
use crate::simd::Isa;
use columns::{Block, Layout, Panels, SLACK};

/// Inner values that a panel holds at a time, so that it stays in the second-level cache.
const DEPTH: usize = 768;

/// Zeros (or for a maximum, nothing) around a picture, in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the left.
    pub left: usize,
    /// Columns to the right.
    pub right: usize,
}

impl Padding {
    /// The same on all sides.
    pub const fn uniform(pixels: usize) -> Self {
        Self { top: pixels, bottom: pixels, left: pixels, right: pixels }
    }

    /// What TensorFlow calls SAME: the grid has `ceil(img / stride)` positions, and of an odd
    /// number of padded pixels the larger half lies at the bottom and at the right.
    pub fn same(img: (usize, usize), kernel: (usize, usize), stride: (usize, usize)) -> Self {
        let total =
            |n: usize, k: usize, s: usize| ((n.div_ceil(s).max(1) - 1) * s + k).saturating_sub(n);
        let (rows, cols) = (total(img.0, kernel.0, stride.0), total(img.1, kernel.1, stride.1));
        Self { top: rows / 2, bottom: rows - rows / 2, left: cols / 2, right: cols - cols / 2 }
    }
}

/// Positions of a window of `kernel` along `img` pixels with `before` and `after` padded ones.
pub(crate) fn positions(
    img: usize,
    before: usize,
    after: usize,
    kernel: usize,
    stride: usize,
) -> usize {
    let padded = img + before + after;
    assert!(
        kernel > 0 && stride > 0 && padded >= kernel,
        "a window of {kernel} with stride {stride} does not fit {padded} padded pixels"
    );
    (padded - kernel) / stride + 1
}

/// The sizes of a convolution. Weights are `[out_channels, in_channels, kernel_h, kernel_w]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    /// Pictures.
    pub batch: usize,
    /// Channels of a picture.
    pub in_channels: usize,
    /// Height of a picture, in pixels.
    pub img_h: usize,
    /// Width of a picture, in pixels.
    pub img_w: usize,
    /// Filters.
    pub out_channels: usize,
    /// Height and width of a filter, in pixels.
    pub kernel: (usize, usize),
    /// Vertical and horizontal step, in pixels.
    pub stride: (usize, usize),
    /// Zeros around the picture.
    pub padding: Padding,
}

impl Conv2d {
    /// Rows of the output.
    ///
    /// # Panics
    /// If the kernel is larger than the padded picture.
    pub fn grid_h(&self) -> usize {
        let Padding { top, bottom, .. } = self.padding;
        positions(self.img_h, top, bottom, self.kernel.0, self.stride.0)
    }

    /// Columns of the output.
    ///
    /// # Panics
    /// If the kernel is larger than the padded picture.
    pub fn grid_w(&self) -> usize {
        let Padding { left, right, .. } = self.padding;
        positions(self.img_w, left, right, self.kernel.1, self.stride.1)
    }

    /// Pixels of an output channel.
    pub fn patches(&self) -> usize {
        self.grid_h() * self.grid_w()
    }

    /// Values that a filter reads: `in_channels * kernel_h * kernel_w`.
    pub fn fan_in(&self) -> usize {
        self.in_channels * self.kernel.0 * self.kernel.1
    }

    /// Values of the input.
    pub fn input_len(&self) -> usize {
        self.batch * self.in_channels * self.img_h * self.img_w
    }

    /// Values of the output.
    pub fn output_len(&self) -> usize {
        self.batch * self.out_channels * self.patches()
    }

    /// Multiply-adds of one pass.
    pub fn multiply_adds(&self) -> usize {
        self.output_len() * self.fan_in()
    }

    /// True if the column matrix is the picture itself.
    fn is_pointwise(&self) -> bool {
        self.kernel == (1, 1) && self.stride == (1, 1) && self.padding == Padding::default()
    }

    fn is_empty(&self) -> bool {
        self.input_len() == 0 || self.output_len() == 0
    }

    fn check(&self, pixels: usize, weight: usize, out: usize) {
        let need = (self.input_len(), self.out_channels * self.fan_in(), self.output_len());
        assert!(
            (pixels, weight, out) == need,
            "{self:?}: pixels, weight and output need {need:?} values, have {:?}",
            (pixels, weight, out)
        );
    }
}

/// The padded forms of all samples, one behind the other, [`SLACK`] values at the end.
fn pad_all(isa: Isa, conv: &Conv2d, layout: &Layout, pixels: &[f32]) -> Buffer<f32> {
    let planes = conv.batch * conv.in_channels;
    let mut padded = Buffer::uninit(planes * layout.channel() + SLACK);
    padded[planes * layout.channel()..].fill(0.0);
    let plane_len = conv.img_h * conv.img_w;
    let to = Shared::new(&mut padded);
    crate::pool::parallel_rows(planes, layout.channel(), 1 << 14, |first, count| {
        for p in first..first + count {
            // SAFETY: each plane is written by one task.
            let to = unsafe { to.slice(p * layout.channel(), layout.channel()) };
            layout.pad(isa, &pixels[p * plane_len..][..plane_len], to);
        }
    });
    padded
}

/// `out = conv(pixels, weight) + bias`; `pixels` `[batch, in_channels, img_h, img_w]`,
/// `out` `[batch, out_channels, grid_h, grid_w]`.
///
/// # Panics
/// If a slice does not have the length that `conv` states.
pub fn forward(
    conv: &Conv2d,
    pixels: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    forward_for(Isa::best(), conv, pixels, weight, bias, out);
}

fn forward_for(
    isa: Isa,
    conv: &Conv2d,
    pixels: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    conv.check(pixels.len(), weight.len(), out.len());
    assert!(bias.is_none_or(|b| b.len() == conv.out_channels), "one bias per output channel");
    if !conv.is_empty() {
        product(isa, conv, Layout::new(conv), pixels, weight, bias, out);
    }
}

/// The filters times the columns that `layout` gives, plus the bias.
fn product(
    isa: Isa,
    conv: &Conv2d,
    layout: Layout,
    pixels: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let (fan_in, patches) = (conv.fan_in(), conv.patches());
    let width = panel_width(isa);
    let pictures = Layout::of_output(conv);
    let padded = (!conv.is_pointwise()).then(|| pad_all(isa, conv, &layout, pixels));
    let padded = padded.as_deref().unwrap_or(pixels);

    let panels = Panels::new(isa, conv.batch * patches);
    // Filters are split when the panels alone would leave threads idle.
    let chunks = (4 * threads()).div_ceil(panels.count).clamp(1, conv.out_channels.div_ceil(48));
    let filters_per_chunk = conv.out_channels.div_ceil(chunks);
    let chunks = conv.out_channels.div_ceil(filters_per_chunk);

    let out = Shared::new(out);
    let run = panel_fn(isa);
    parallel_for(panels.count * chunks, |task| {
        let columns = panels.range(task / chunks);
        let (first, cols) = (columns.start, columns.len());
        let filter = task % chunks * filters_per_chunk;
        let filters = filters_per_chunk.min(conv.out_channels - filter);
        let mut scratch = Buffer::<f32>::uninit(DEPTH.min(fan_in) * width + SLACK);
        let b = scratch.as_mut_ptr();
        // A panel of one sample is written in place, one of several by way of a block.
        let (sample, patch) = (first / patches, first % patches);
        let mut shared = (patch + cols > patches).then(|| Buffer::<f32>::uninit(filters * width));
        let (c, c_stride) = match &mut shared {
            Some(shared) => (shared.as_mut_ptr(), width),
            None => {
                let at = (sample * conv.out_channels + filter) * patches + patch;
                // SAFETY: lengths were checked above.
                (unsafe { out.get().add(at) }, patches)
            }
        };
        for k in (0..fan_in).step_by(DEPTH) {
            let depth = DEPTH.min(fan_in - k);
            let is_last = k + depth == fan_in;
            let bias = bias.filter(|_| is_last);
            // SAFETY: lengths were checked above; a task writes its own filters and patches.
            unsafe {
                layout.gather(isa, padded.as_ptr(), Block { k, depth, first, cols }, b, width);
                let next = if conv.is_pointwise() && patch + cols < patches {
                    let at = (sample * fan_in + k) * patches + patch + cols;
                    Next { at: pixels.as_ptr().add(at), stride: patches }
                } else {
                    Next { at: b, stride: width }
                };
                run(&Panel {
                    rows: filters,
                    cols,
                    depth,
                    a: weight.as_ptr().add(filter * fan_in + k),
                    a_stride: fan_in,
                    k_stride: 1,
                    strip_depth: 0,
                    strip_from: 0,
                    b,
                    b_stride: width,
                    c,
                    c_stride,
                    tail: Tail {
                        accumulate: k > 0,
                        row_bias: bias.map_or(std::ptr::null(), |b| b.as_ptr().add(filter)),
                        ..Tail::PLAIN
                    },
                    next,
                });
            }
        }
        if let Some(shared) = shared {
            let block = Block { k: filter, depth: filters, first, cols };
            // SAFETY: as above; rows of `shared` are as wide as a panel.
            unsafe { pictures.spread(isa, shared.as_ptr(), width, block, out.get()) };
        }
    });
}
