//! The gradients of a convolution.
//!
//! Every sum over samples and pixels runs in a fixed order inside one task, so results do not
//! depend on the number of threads.

use super::columns::{Block, Layout, SLACK};
use super::{Conv2d, DEPTH, Padding, forward_for, pad_all};
use crate::batch_norm::plane::sum;
use crate::buffer::Buffer;
use crate::gemm::{Panel, Tail, pack_row_major, pack_transposed, panel_fn, panel_width};
use crate::pool::{Shared, parallel_for, parallel_rows};
use crate::simd::Isa;

/// Values of the column matrix that a task of [`grad_input`] holds at a time.
const COLUMN_VALUES: usize = 1 << 17;
/// Rows of the column matrix that a task of [`grad_weight`] takes at most.
const ROWS: usize = 60;

/// `grad_input` `[batch, in_channels, img_h, img_w]` from `grad_out`
/// `[batch, out_channels, grid_h, grid_w]`.
///
/// With a stride of 1 this is the convolution of `grad_out` with the filters turned by half a
/// circle, inputs and outputs swapped. With larger ones, the transposed filters times `grad_out`
/// give the gradient of the column matrix, which is added back to the pixels (col2im).
///
/// # Panics
/// If a slice does not have the length that `conv` states.
pub fn grad_input(conv: &Conv2d, weight: &[f32], grad_out: &[f32], grad_input: &mut [f32]) {
    grad_input_for(Isa::best(), conv, weight, grad_out, grad_input);
}

/// The convolution that gives the gradient of one with stride 1, if its padding is narrower than
/// the kernel.
fn turned(conv: &Conv2d) -> Option<Conv2d> {
    let Padding { top, bottom, left, right } = conv.padding;
    let (kernel_h, kernel_w) = conv.kernel;
    (conv.stride == (1, 1)).then_some(())?;
    Some(Conv2d {
        batch: conv.batch,
        in_channels: conv.out_channels,
        img_h: conv.grid_h(),
        img_w: conv.grid_w(),
        out_channels: conv.in_channels,
        kernel: conv.kernel,
        stride: (1, 1),
        padding: Padding {
            top: (kernel_h - 1).checked_sub(top)?,
            bottom: (kernel_h - 1).checked_sub(bottom)?,
            left: (kernel_w - 1).checked_sub(left)?,
            right: (kernel_w - 1).checked_sub(right)?,
        },
    })
}

/// `[out, in, kernel]` to `[in, out, kernel]`, each kernel read backwards.
fn turn(conv: &Conv2d, weight: &[f32], to: &mut [f32]) {
    let (inputs, outputs) = (conv.in_channels, conv.out_channels);
    let positions = conv.kernel.0 * conv.kernel.1;
    let to = Shared::new(to);
    parallel_rows(inputs, outputs * positions, 1 << 14, |first, count| {
        for input in first..first + count {
            // SAFETY: each input channel is written by one task.
            let to = unsafe { to.slice(input * outputs * positions, outputs * positions) };
            for (output, to) in to.chunks_exact_mut(positions).enumerate() {
                let from = &weight[(output * inputs + input) * positions..][..positions];
                for (to, from) in to.iter_mut().zip(from.iter().rev()) {
                    *to = *from;
                }
            }
        }
    });
}

pub(super) fn grad_input_for(
    isa: Isa,
    conv: &Conv2d,
    weight: &[f32],
    grad_out: &[f32],
    grad_input: &mut [f32],
) {
    conv.check(grad_input.len(), weight.len(), grad_out.len());
    if conv.is_empty() {
        return grad_input.fill(0.0);
    }
    if let Some(turned) = turned(conv) {
        let mut filters = Buffer::uninit(weight.len());
        if conv.kernel == (1, 1) {
            transpose(isa, weight, conv.out_channels, conv.in_channels, &mut filters);
        } else {
            turn(conv, weight, &mut filters);
        }
        return forward_for(isa, &turned, grad_out, &filters, None, grad_input);
    }
    let (fan_in, patches, filters) = (conv.fan_in(), conv.patches(), conv.out_channels);
    let width = panel_width(isa);
    let panels = patches.div_ceil(width);
    let layout = Layout::new(conv);
    let plane_len = conv.img_h * conv.img_w;
    let positions = conv.kernel.0 * conv.kernel.1;

    // [fan_in, out_channels], so that rows are read along the sum.
    let mut transposed = Buffer::uninit(fan_in * filters);
    transpose(isa, weight, filters, fan_in, &mut transposed);

    let panel_len = filters * width;
    let mut packed = Buffer::<f32>::uninit(conv.batch * panels * panel_len);
    let to = Shared::new(&mut packed);
    parallel_for(conv.batch * panels, |task| {
        let (sample, first) = (task / panels, task % panels * width);
        let cols = width.min(patches - first);
        // SAFETY: each task packs its own panel; lengths were checked above.
        unsafe {
            let from = grad_out.as_ptr().add(sample * filters * patches + first);
            pack_row_major(isa, from, patches, filters, cols, to.get().add(task * panel_len));
        }
    });

    let channels_per_task =
        (COLUMN_VALUES / (positions * patches)).clamp(1, conv.in_channels.div_ceil(4));
    let groups = conv.in_channels.div_ceil(channels_per_task);
    let to = Shared::new(grad_input);
    let run = panel_fn(isa);
    parallel_for(conv.batch * groups, |task| {
        let (sample, first) = (task / groups, task % groups * channels_per_task);
        let channels = channels_per_task.min(conv.in_channels - first);
        let rows = channels * positions;
        // SAFETY: a task writes the gradients of its own channels.
        let planes = unsafe {
            to.slice((sample * conv.in_channels + first) * plane_len, channels * plane_len)
        };
        let mut columns = Buffer::<f32>::uninit(rows * patches);
        let c = columns.as_mut_ptr();
        for p in 0..panels {
            for from in (0..filters).step_by(DEPTH) {
                // SAFETY: lengths were checked above; `c` has room for `rows * patches`.
                unsafe {
                    let b = packed.as_ptr().add((sample * panels + p) * panel_len + from * width);
                    run(&Panel {
                        rows,
                        cols: width.min(patches - p * width),
                        depth: DEPTH.min(filters - from),
                        a: transposed.as_ptr().add(first * positions * filters + from),
                        a_stride: filters,
                        k_stride: 1,
                        strip_depth: 0,
                        strip_from: 0,
                        b,
                        b_stride: width,
                        c: c.add(p * width),
                        c_stride: patches,
                        tail: Tail { accumulate: from > 0, ..Tail::PLAIN },
                        prefetch: b.wrapping_add(panel_len),
                    });
                }
            }
        }
        let mut padded = Buffer::zeroed(channels * layout.channel());
        let block = Block { k: 0, depth: rows, patch: 0, patches };
        // SAFETY: `padded` holds the channels of all rows, `columns` the rows.
        unsafe {
            layout.scatter(isa, columns.as_ptr(), patches, block, padded.as_mut_ptr());
        }
        for (plane, padded) in
            planes.chunks_exact_mut(plane_len).zip(padded.chunks_exact(layout.channel()))
        {
            layout.unpad(padded, plane);
        }
    });
}

/// `grad_weight` `[out_channels, in_channels, kernel_h, kernel_w]`, summed over the batch:
/// the column matrix times the transposed `grad_out`, then transposed.
///
/// # Panics
/// If a slice does not have the length that `conv` states.
pub fn grad_weight(conv: &Conv2d, pixels: &[f32], grad_out: &[f32], grad_weight: &mut [f32]) {
    grad_weight_for(Isa::best(), conv, pixels, grad_out, grad_weight);
}

pub(super) fn grad_weight_for(
    isa: Isa,
    conv: &Conv2d,
    pixels: &[f32],
    grad_out: &[f32],
    grad_weight: &mut [f32],
) {
    conv.check(pixels.len(), grad_weight.len(), grad_out.len());
    if conv.is_empty() {
        return grad_weight.fill(0.0);
    }
    let (fan_in, patches, filters) = (conv.fan_in(), conv.patches(), conv.out_channels);
    let width = panel_width(isa);
    let panels = filters.div_ceil(width);
    let layout = Layout::new(conv);
    let padded = (!conv.is_pointwise()).then(|| pad_all(conv, &layout, pixels));

    // Panel (sample, p): the patches of 64 filters, patch outermost.
    let panel_len = patches * width;
    let mut packed = Buffer::<f32>::uninit(conv.batch * panels * panel_len);
    let to = Shared::new(&mut packed);
    parallel_for(conv.batch * panels, |task| {
        let (sample, first) = (task / panels, task % panels * width);
        let cols = width.min(filters - first);
        // SAFETY: each task packs its own panel; lengths were checked above.
        unsafe {
            let from = grad_out.as_ptr().add((sample * filters + first) * patches);
            pack_transposed(isa, from, patches, patches, cols, to.get().add(task * panel_len));
        }
    });

    // Rows of the column matrix per task, in whole tiles of 6 and of 4: many, as each task reads
    // the panels anew. Panels are tasks of their own where rows alone would leave threads idle.
    let is_narrow = fan_in < 6 * ROWS;
    let splits = if is_narrow { panels } else { 1 };
    let per_task = [ROWS, 36, 24].into_iter().find(|rows| fan_in.div_ceil(*rows) * splits >= 6);
    let rows_per_task =
        fan_in.div_ceil(fan_in.div_ceil(per_task.unwrap_or(12))).next_multiple_of(12);
    let groups = fan_in.div_ceil(rows_per_task);
    let mut transposed = Buffer::<f32>::uninit(fan_in * filters);
    let to = Shared::new(&mut transposed);
    let run = panel_fn(isa);
    parallel_for(groups * splits, |task| {
        let k = task / splits * rows_per_task;
        let own = if is_narrow { task % splits..task % splits + 1 } else { 0..panels };
        let rows = rows_per_task.min(fan_in - k);
        let mut scratch = Buffer::<f32>::uninit(rows * DEPTH + SLACK);
        for sample in 0..conv.batch {
            for patch in (0..patches).step_by(DEPTH) {
                let depth = DEPTH.min(patches - patch);
                // SAFETY: lengths were checked above; a task writes its own rows.
                unsafe {
                    let (a, a_stride) = if let Some(padded) = &padded {
                        let from = padded.as_ptr().add(sample * layout.sample());
                        let block = Block { k, depth: rows, patch, patches: depth };
                        layout.gather(isa, from, block, scratch.as_mut_ptr(), depth);
                        (scratch.as_ptr(), depth)
                    } else {
                        (pixels.as_ptr().add((sample * fan_in + k) * patches + patch), patches)
                    };
                    for p in own.clone() {
                        let panel = (sample * panels + p) * panel_len;
                        let b = packed.as_ptr().add(panel + patch * width);
                        run(&Panel {
                            rows,
                            cols: width.min(filters - p * width),
                            depth,
                            a,
                            a_stride,
                            k_stride: 1,
                            strip_depth: 0,
                            strip_from: 0,
                            b,
                            b_stride: width,
                            c: to.get().add(k * filters + p * width),
                            c_stride: filters,
                            tail: Tail { accumulate: sample + patch > 0, ..Tail::PLAIN },
                            prefetch: b.wrapping_add(panel_len),
                        });
                    }
                }
            }
        }
    });
    transpose(isa, &transposed, fan_in, filters, grad_weight);
}

/// `grad_bias` `[out_channels]`: `grad_out` summed over samples and pixels.
///
/// # Panics
/// If a slice does not have the length that `conv` states.
pub fn grad_bias(conv: &Conv2d, grad_out: &[f32], grad_bias: &mut [f32]) {
    let (filters, patches) = (conv.out_channels, conv.patches());
    assert!(grad_out.len() == conv.output_len() && grad_bias.len() == filters);
    let to = Shared::new(grad_bias);
    parallel_for(filters, |filter| {
        let mut total = 0.0;
        for sample in 0..conv.batch {
            let x = &grad_out[(sample * filters + filter) * patches..][..patches];
            total += f64::from(sum(x));
        }
        // SAFETY: each task writes its own filter.
        unsafe { *to.get().add(filter) = total as f32 };
    });
}

/// `to[c, r] = from[r, c]`.
fn transpose(isa: Isa, from: &[f32], rows: usize, cols: usize, to: &mut [f32]) {
    debug_assert!(from.len() == rows * cols && to.len() == rows * cols);
    let width = panel_width(isa);
    let to = Shared::new(to);
    parallel_for(rows.div_ceil(width), |task| {
        let first = task * width;
        let count = width.min(rows - first);
        let mut panel = Buffer::<f32>::uninit(cols * width);
        // SAFETY: a task reads `count` rows and writes as many columns.
        unsafe {
            let from = from.as_ptr().add(first * cols);
            pack_transposed(isa, from, cols, cols, count, panel.as_mut_ptr());
            for c in 0..cols {
                to.slice(c * rows + first, count).copy_from_slice(&panel[c * width..][..count]);
            }
        }
    });
}
