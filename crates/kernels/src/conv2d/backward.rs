//! The gradients of a convolution.
//!
//! Every sum over samples and pixels runs in a fixed order inside one task, so results do not
//! depend on the number of threads.

use super::columns::{Block, Layout, Panels, SLACK, copy};
use super::{Conv2d, DEPTH, Padding, pad_all, product};
use crate::batch_norm::plane::sum;
use crate::buffer::Buffer;
use crate::gemm::{Next, Panel, Tail, pack_transposed, panel_fn, panel_width};
use crate::pool::{Shared, parallel_for};
use crate::simd::{Isa, Vector, dispatch};
use std::ops::Range;

/// Values of the column matrix that a task of [`grad_input`] holds at a time.
const COLUMN_VALUES: usize = 1 << 17;
/// Columns that samples with fewer patches share in [`grad_input`].
const TEAM_COLUMNS: usize = 256;
/// Input channels of the filters that a task of [`swap`] moves.
const SWAPPED: usize = 16;
/// Rows of the column matrix that a task of [`grad_weight`] takes at most.
const ROWS: usize = 60;
/// Patches from which on [`grad_weight`] does not copy the pictures for kernels of 1 x 1.
const IN_PLACE: usize = 192;

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

/// `[out, in, kernel]` to `[in, out, kernel]`.
fn swap(isa: Isa, conv: &Conv2d, weight: &[f32], to: &mut [f32]) {
    let (inputs, outputs) = (conv.in_channels, conv.out_channels);
    let positions = conv.kernel.0 * conv.kernel.1;
    if positions == 1 {
        return transpose(isa, weight, outputs, inputs, to);
    }
    #[inline(always)]
    unsafe fn run<V: Vector>(
        (inputs, outputs, positions): (usize, usize, usize),
        own: Range<usize>,
        weight: *const f32,
        to: *mut f32,
    ) {
        for output in 0..outputs {
            for input in own.clone() {
                // SAFETY: by the caller, both slices hold all filters.
                unsafe {
                    let from = weight.add((output * inputs + input) * positions);
                    copy::<V>(from, to.add((input * outputs + output) * positions), positions);
                }
            }
        }
    }
    debug_assert!(weight.len() == to.len());
    let (sizes, to) = ((inputs, outputs, positions), Shared::new(to));
    parallel_for(inputs.div_ceil(SWAPPED), |task| {
        let own = task * SWAPPED..inputs.min((task + 1) * SWAPPED);
        let (weight, to) = (weight.as_ptr(), to.get());
        // SAFETY: each input channel is written by one task; the instruction set is there.
        unsafe {
            dispatch!(
                isa,
                run(
                    sizes: (usize, usize, usize),
                    own: Range<usize>,
                    weight: *const f32,
                    to: *mut f32
                )
            );
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
        swap(isa, conv, weight, &mut filters);
        let layout = Layout::turned(&turned);
        return product(isa, &turned, layout, grad_out, &filters, None, grad_input);
    }
    let (fan_in, patches, filters) = (conv.fan_in(), conv.patches(), conv.out_channels);
    let width = panel_width(isa);
    let layout = Layout::new(conv);
    let plane_len = conv.img_h * conv.img_w;
    let positions = conv.kernel.0 * conv.kernel.1;
    // Samples with few patches share panels.
    let teams = conv.batch.div_ceil((TEAM_COLUMNS / patches).max(1));
    let samples_per_team = conv.batch.div_ceil(teams);
    let teams = conv.batch.div_ceil(samples_per_team);
    let team = |task: usize| {
        let first = task * samples_per_team;
        first..conv.batch.min(first + samples_per_team)
    };

    // [fan_in, out_channels], so that rows are read along the sum.
    let mut transposed = Buffer::uninit(fan_in * filters);
    transpose(isa, weight, filters, fan_in, &mut transposed);

    let gradients = Layout::of_output(conv);
    let panels_per_team = (samples_per_team * patches).div_ceil(width);
    let panel_len = filters * width + SLACK;
    let mut packed = Buffer::<f32>::uninit(teams * panels_per_team * panel_len);
    let to = Shared::new(&mut packed);
    parallel_for(teams * panels_per_team, |task| {
        let samples = team(task / panels_per_team);
        let panels = Panels::new(isa, samples.len() * patches);
        let panel = task % panels_per_team;
        if panel < panels.count {
            let columns = panels.range(panel);
            let first = samples.start * patches + columns.start;
            let block = Block { k: 0, depth: filters, first, cols: columns.len() };
            // SAFETY: each task packs its own panel; lengths were checked above.
            unsafe {
                let to = to.get().add(task * panel_len);
                gradients.gather(isa, grad_out.as_ptr(), block, to, width);
            }
        }
    });

    let channels_per_task = (COLUMN_VALUES / (positions * samples_per_team * patches))
        .clamp(1, conv.in_channels.div_ceil(4));
    let groups = conv.in_channels.div_ceil(channels_per_task);
    let to = Shared::new(grad_input);
    let run = panel_fn(isa);
    parallel_for(teams * groups, |task| {
        let samples = team(task / groups);
        let first = task % groups * channels_per_task;
        let channels = channels_per_task.min(conv.in_channels - first);
        let rows = channels * positions;
        let stride = samples.len() * patches;
        let panels = Panels::new(isa, stride);
        let mut columns = Buffer::<f32>::uninit(rows * stride);
        for p in 0..panels.count {
            let range = panels.range(p);
            for from in (0..filters).step_by(DEPTH) {
                let depth = DEPTH.min(filters - from);
                // SAFETY: lengths were checked above; `columns` has room for the rows.
                unsafe {
                    let panel = task / groups * panels_per_team + p;
                    let b = packed.as_ptr().add(panel * panel_len + from * width);
                    run(&Panel {
                        rows,
                        cols: range.len(),
                        depth,
                        a: transposed.as_ptr().add(first * positions * filters + from),
                        a_stride: filters,
                        k_stride: 1,
                        strip_depth: 0,
                        strip_from: 0,
                        b,
                        b_stride: width,
                        c: columns.as_mut_ptr().add(range.start),
                        c_stride: stride,
                        tail: Tail { accumulate: from > 0, ..Tail::PLAIN },
                        next: Next { at: b.wrapping_add(depth * width), stride: width },
                    });
                }
            }
        }
        let mut padded = Buffer::uninit(channels * layout.channel());
        for (n, sample) in samples.enumerate() {
            padded.fill(0.0);
            // SAFETY: `padded` holds the channels of all rows, `columns` the rows; a task writes
            // the gradients of its own channels.
            let planes = unsafe {
                let from = columns.as_ptr().add(n * patches);
                layout.scatter(isa, from, stride, rows, padded.as_mut_ptr());
                to.slice((sample * conv.in_channels + first) * plane_len, channels * plane_len)
            };
            for (plane, padded) in
                planes.chunks_exact_mut(plane_len).zip(padded.chunks_exact(layout.channel()))
            {
                layout.unpad(padded, plane);
            }
        }
    });
}

/// `grad_weight` `[out_channels, in_channels, kernel_h, kernel_w]`, summed over the batch:
/// the column matrix times the transposed `grad_out`, over all samples at once.
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
    let (fan_in, filters) = (conv.fan_in(), conv.out_channels);
    // With a kernel of 1 x 1 both operands are pictures; the smaller one is transposed.
    if conv.is_pointwise() && fan_in < filters {
        let exchanged = Conv2d { in_channels: filters, out_channels: fan_in, ..*conv };
        return correlate(isa, &exchanged, grad_out, pixels, grad_weight);
    }
    let mut transposed = Buffer::<f32>::uninit(fan_in * filters);
    correlate(isa, conv, pixels, grad_out, &mut transposed);
    transpose(isa, &transposed, fan_in, filters, grad_weight);
}

/// The column matrix times the transposed `grad_out`: `to` `[fan_in, out_channels]`.
fn correlate(isa: Isa, conv: &Conv2d, pixels: &[f32], grad_out: &[f32], to: &mut [f32]) {
    let (fan_in, patches, filters) = (conv.fan_in(), conv.patches(), conv.out_channels);
    let width = panel_width(isa);
    let panels = filters.div_ceil(width);
    let layout = Layout::new(conv);
    let padded = (!conv.is_pointwise()).then(|| pad_all(isa, conv, &layout, pixels));
    let padded = padded.as_deref().unwrap_or(pixels);

    // Panel p: the patches of 64 filters, those of all samples one after the other.
    let columns = conv.batch * patches;
    let panel_len = columns * width;
    let mut packed = Buffer::<f32>::uninit(panels * panel_len);
    let into = Shared::new(&mut packed);
    parallel_for(conv.batch * panels, |task| {
        let (p, sample) = (task / conv.batch, task % conv.batch);
        let cols = width.min(filters - p * width);
        // SAFETY: each task packs its own part of a panel; lengths were checked above.
        unsafe {
            let from = grad_out.as_ptr().add((sample * filters + p * width) * patches);
            let to = into.get().add(p * panel_len + sample * patches * width);
            pack_transposed(isa, from, patches, patches, cols, to);
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
    // The sum runs over all samples. Pictures of many patches are read in place with a kernel of
    // 1 x 1, so there a block ends with its sample.
    let is_in_place = conv.is_pointwise() && patches >= IN_PLACE;
    let span = if is_in_place { patches } else { columns };
    let block_len = span.div_ceil(span.div_ceil(DEPTH)).next_multiple_of(16);
    let blocks = (0..columns).step_by(span).flat_map(|start| {
        (0..span).step_by(block_len).map(move |at| (start + at, block_len.min(span - at)))
    });
    let to = Shared::new(to);
    let run = panel_fn(isa);
    parallel_for(groups * splits, |task| {
        let k = task / splits * rows_per_task;
        let own = if is_narrow { task % splits..task % splits + 1 } else { 0..panels };
        let rows = rows_per_task.min(fan_in - k);
        let mut scratch = Buffer::<f32>::uninit(rows * block_len + SLACK);
        for (first, depth) in blocks.clone() {
            // SAFETY: lengths were checked above; a task writes its own rows.
            unsafe {
                let (a, a_stride) = if is_in_place {
                    let (sample, patch) = (first / patches, first % patches);
                    (pixels.as_ptr().add((sample * fan_in + k) * patches + patch), patches)
                } else {
                    let block = Block { k, depth: rows, first, cols: depth };
                    layout.gather(isa, padded.as_ptr(), block, scratch.as_mut_ptr(), depth);
                    (scratch.as_ptr(), depth)
                };
                for p in own.clone() {
                    let b = packed.as_ptr().add(p * panel_len + first * width);
                    let next = if p + 1 < own.end {
                        b.wrapping_add(panel_len)
                    } else {
                        packed
                            .as_ptr()
                            .wrapping_add(own.start * panel_len + (first + depth) * width)
                    };
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
                        tail: Tail { accumulate: first > 0, ..Tail::PLAIN },
                        next: Next { at: next, stride: width },
                    });
                }
            }
        }
    });
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
