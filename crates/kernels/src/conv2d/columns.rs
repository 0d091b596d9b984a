//! Pictures laid out so that every step of a convolution copies contiguous runs.
//!
//! A sample is zero-padded, and its columns are split by their phase modulo the horizontal stride:
//! `[channels, padded rows, stride_w, phase_width]`. The inputs of neighbouring output pixels under
//! one kernel position are then neighbours in memory, whatever the stride. [`Layout::gather`]
//! writes rows of the matrix `[in_channels * kernel_h * kernel_w, patches]` from it (im2col);
//! [`Layout::scatter`] adds such rows back (col2im).

use super::Conv2d;
use crate::simd::{Isa, Vector, dispatch, load_up_to, store_up_to};

/// Values that a copy may touch past the end of a run: the widest vector.
pub(super) const SLACK: usize = 16;

/// Sizes of the padded, phase-split form of one sample.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    conv: Conv2d,
    grid_w: usize,
    padded_h: usize,
    phase_width: usize,
}

/// A block of the column matrix: rows `k..k + depth`, columns `patch..patch + patches`.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub(super) k: usize,
    pub(super) depth: usize,
    pub(super) patch: usize,
    pub(super) patches: usize,
}

impl Layout {
    pub(super) fn new(conv: &Conv2d) -> Self {
        Self {
            conv: *conv,
            grid_w: conv.grid_w(),
            padded_h: (conv.grid_h() - 1) * conv.stride.0 + conv.kernel.0,
            phase_width: conv.grid_w() + (conv.kernel.1 - 1) / conv.stride.1,
        }
    }

    /// Values of a channel.
    pub(super) fn channel(&self) -> usize {
        self.padded_h * self.conv.stride.1 * self.phase_width
    }

    /// Values of a sample.
    pub(super) fn sample(&self) -> usize {
        self.conv.in_channels * self.channel()
    }

    /// The padded form of one channel `[img_h, img_w]`.
    pub(super) fn pad(&self, plane: &[f32], to: &mut [f32]) {
        let Conv2d { img_h, img_w, padding, stride, .. } = self.conv;
        let row_len = stride.1 * self.phase_width;
        for (row, to) in to[..self.channel()].chunks_exact_mut(row_len).enumerate() {
            if row < padding.top || row >= padding.top + img_h {
                to.fill(0.0);
                continue;
            }
            let from = &plane[(row - padding.top) * img_w..][..img_w];
            if stride.1 == 1 {
                let copied = img_w.min(row_len - padding.left.min(row_len));
                let start = padding.left.min(row_len);
                to[..start].fill(0.0);
                to[start..start + copied].copy_from_slice(&from[..copied]);
                to[start + copied..].fill(0.0);
                continue;
            }
            for (phase, to) in to.chunks_exact_mut(self.phase_width).enumerate() {
                for (i, to) in to.iter_mut().enumerate() {
                    let col = (i * stride.1 + phase).wrapping_sub(padding.left);
                    *to = from.get(col).copied().unwrap_or(0.0);
                }
            }
        }
    }

    /// The reverse of [`pad`](Self::pad): reads the picture out of a padded channel.
    pub(super) fn unpad(&self, padded: &[f32], plane: &mut [f32]) {
        let Conv2d { img_w, padding, stride, .. } = self.conv;
        let row_len = stride.1 * self.phase_width;
        for (row, to) in plane.chunks_exact_mut(img_w).enumerate() {
            let row = row + padding.top;
            if row >= self.padded_h {
                to.fill(0.0); // No window reaches this row.
                continue;
            }
            let from = &padded[row * row_len..][..row_len];
            for (col, to) in to.iter_mut().enumerate() {
                let col = col + padding.left;
                let i = col / stride.1;
                *to = if i < self.phase_width {
                    from[(col % stride.1) * self.phase_width + i]
                } else {
                    0.0
                };
            }
        }
    }

    /// Writes a block of the column matrix of a padded sample to `to`, rows `to_stride` apart.
    ///
    /// # Safety
    /// `padded` reaches over [`sample`](Self::sample) values and [`SLACK`] more, `to` over
    /// `depth` rows of `to_stride >= patches` values and [`SLACK`] more; the block is inside.
    pub(super) unsafe fn gather(
        &self,
        isa: Isa,
        padded: *const f32,
        block: Block,
        to: *mut f32,
        to_stride: usize,
    ) {
        #[inline(always)]
        unsafe fn run<V: Vector>(
            layout: &Layout,
            padded: *const f32,
            block: Block,
            to: *mut f32,
            to_stride: usize,
        ) {
            // SAFETY: by the caller. Runs are written in ascending order, so what a copy writes
            // past the end of its run is overwritten by the next one.
            unsafe {
                layout.walk(block, |row, col, from, len| {
                    let (from, to) = (padded.add(from), to.add(row * to_stride + col));
                    let mut i = 0;
                    while i < len {
                        V::load(from.add(i)).store(to.add(i));
                        i += V::LANES;
                    }
                });
            }
        }
        let layout = self;
        // SAFETY: by the caller; the instruction set is there.
        unsafe {
            dispatch!(
                isa,
                run(
                    layout: &Layout,
                    padded: *const f32,
                    block: Block,
                    to: *mut f32,
                    to_stride: usize,
                )
            );
        }
    }

    /// Adds a block of the column matrix, rows `stride` apart, to a padded sample whose first
    /// channel is that of row `block.k`.
    ///
    /// # Safety
    /// `padded` reaches over the channels of the block, `from` over its rows.
    pub(super) unsafe fn scatter(
        &self,
        isa: Isa,
        from: *const f32,
        stride: usize,
        block: Block,
        padded: *mut f32,
    ) {
        #[inline(always)]
        unsafe fn run<V: Vector>(
            layout: &Layout,
            from: *const f32,
            stride: usize,
            block: Block,
            padded: *mut f32,
        ) {
            // SAFETY: by the caller.
            unsafe {
                layout.walk(block, |row, col, to, len| {
                    let (from, to) = (from.add(row * stride + col), padded.add(to));
                    let mut i = 0;
                    while i < len {
                        let n = len - i;
                        let sum = load_up_to::<V>(from.add(i), n).add(load_up_to(to.add(i), n));
                        store_up_to(sum, to.add(i), n);
                        i += V::LANES;
                    }
                });
            }
        }
        let layout = self;
        // SAFETY: by the caller; the instruction set is there.
        unsafe {
            dispatch!(
                isa,
                run(
                    layout: &Layout,
                    from: *const f32,
                    stride: usize,
                    block: Block,
                    padded: *mut f32,
                )
            );
        }
    }

    /// Calls `run(row, col, offset, len)` for every contiguous run of a block: `len` values from
    /// column `col` of its row `row` are those at `offset` of the padded sample.
    #[inline(always)]
    fn walk(&self, block: Block, mut run: impl FnMut(usize, usize, usize, usize)) {
        let (kernel, stride) = (self.conv.kernel, self.conv.stride);
        let row_len = stride.1 * self.phase_width;
        let positions = kernel.0 * kernel.1;
        let (mut channel, rest) = (block.k / positions, block.k % positions);
        let (mut ky, mut kx) = (rest / kernel.1, rest % kernel.1);
        let (first_y, first_x) = (block.patch / self.grid_w, block.patch % self.grid_w);
        for row in 0..block.depth {
            let shift = channel * self.channel()
                + ky * row_len
                + (kx % stride.1) * self.phase_width
                + kx / stride.1;
            let (mut y, mut x, mut col) = (first_y, first_x, 0);
            while col < block.patches {
                let len = (self.grid_w - x).min(block.patches - col);
                run(row, col, shift + y * stride.0 * row_len + x, len);
                col += len;
                y += 1;
                x = 0;
            }
            kx += 1;
            if kx == kernel.1 {
                (kx, ky) = (0, ky + 1);
            }
            if ky == kernel.0 {
                (ky, channel) = (0, channel + 1);
            }
        }
    }
}
