//! Pictures laid out so that every step of a convolution copies contiguous runs.
//!
//! A sample is zero-padded, and its columns are split by their phase modulo the horizontal stride:
//! `[channels, padded rows, stride_w, phase_width]`. The inputs of neighbouring output pixels under
//! one kernel position are then neighbours in memory, whatever the stride.
//!
//! The column matrix `[in_channels * kernel_h * kernel_w, batch * patches]` holds the patches of
//! all samples side by side, so that a panel is full also when a sample has few of them.
//! [`Layout::gather`] writes a block of it (im2col); [`Layout::scatter`] adds the columns of one
//! sample back (col2im). With a kernel of 1 x 1 the picture itself is the padded form.

use super::{Conv2d, Padding};
use crate::gemm::panel_width;
use crate::simd::{Isa, Vector, dispatch, load_up_to, store_up_to};
use std::ops::Range;

/// Values that a copy may touch past the end of a run: the widest vector.
pub(super) const SLACK: usize = 16;

/// Sizes of the padded, phase-split form of the samples.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    conv: Conv2d,
    grid_w: usize,
    patches: usize,
    padded_h: usize,
    phase_width: usize,
    /// Rows of the column matrix take the positions of the kernel backwards.
    is_turned: bool,
}

/// A block of the column matrix: rows `k..k + depth`, columns `first..first + cols`.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub(super) k: usize,
    pub(super) depth: usize,
    pub(super) first: usize,
    pub(super) cols: usize,
}

/// `len` columns of a block from `col` on, at most a vector: those at offset `at` of the padded
/// samples.
struct Piece {
    col: usize,
    at: usize,
    len: usize,
}

impl Layout {
    pub(super) fn new(conv: &Conv2d) -> Self {
        Self {
            conv: *conv,
            grid_w: conv.grid_w(),
            patches: conv.patches(),
            padded_h: (conv.grid_h() - 1) * conv.stride.0 + conv.kernel.0,
            phase_width: conv.grid_w() + (conv.kernel.1 - 1) / conv.stride.1,
            is_turned: false,
        }
    }

    /// As [`new`](Self::new), for filters turned by half a circle.
    pub(super) fn turned(conv: &Conv2d) -> Self {
        Self { is_turned: true, ..Self::new(conv) }
    }

    /// The output of a convolution as a matrix `[out_channels, batch * patches]`.
    pub(super) fn of_output(conv: &Conv2d) -> Self {
        Self::new(&Conv2d {
            in_channels: conv.out_channels,
            img_h: conv.grid_h(),
            img_w: conv.grid_w(),
            kernel: (1, 1),
            stride: (1, 1),
            padding: Padding::default(),
            ..*conv
        })
    }

    /// Values of a channel.
    pub(super) fn channel(&self) -> usize {
        self.padded_h * self.conv.stride.1 * self.phase_width
    }

    /// Values of a sample.
    pub(super) fn sample(&self) -> usize {
        self.conv.in_channels * self.channel()
    }

    /// For every row of a channel that a window reaches and every phase of its columns, calls
    /// `run(pixel, value)`: pixels from `pixel` on, a stride apart up to the end of the row, are
    /// the values from `value` on up to the end of the phase.
    #[inline(always)]
    fn rows(&self, mut run: impl FnMut(Range<usize>, Range<usize>)) {
        let Conv2d { img_h, img_w, padding: Padding { top, left, .. }, stride, .. } = self.conv;
        let width = self.phase_width;
        for row in top..(top + img_h).min(self.padded_h) {
            let pixels = (row - top) * img_w;
            for phase in 0..stride.1 {
                // The first pixel of this phase.
                let col = (phase + stride.1 - left % stride.1) % stride.1;
                let skipped = (col + left) / stride.1;
                if col < img_w && skipped < width {
                    let values = (row * stride.1 + phase) * width;
                    run(pixels + col..pixels + img_w, values + skipped..values + width);
                }
            }
        }
    }

    /// The padded form of one channel `[img_h, img_w]`.
    pub(super) fn pad(&self, isa: Isa, plane: &[f32], to: &mut [f32]) {
        #[inline(always)]
        unsafe fn run<V: Vector>(layout: &Layout, plane: &[f32], to: &mut [f32]) {
            let step = layout.conv.stride.1;
            to.fill(0.0);
            layout.rows(|pixels, values| {
                let (from, to) = (&plane[pixels], &mut to[values]);
                if step == 1 {
                    // SAFETY: the shorter of the two bounds the copy.
                    unsafe { copy::<V>(from.as_ptr(), to.as_mut_ptr(), from.len().min(to.len())) };
                    return;
                }
                // A step known to the compiler becomes shuffles of vectors.
                if step == 2 { take_every(2, from, to) } else { take_every(step, from, to) }
            });
        }
        let layout = self;
        // SAFETY: the instruction set is there.
        unsafe { dispatch!(isa, run(layout: &Layout, plane: &[f32], to: &mut [f32])) }
    }

    /// The reverse of [`pad`](Self::pad): reads the picture out of a padded channel.
    pub(super) fn unpad(&self, padded: &[f32], plane: &mut [f32]) {
        let step = self.conv.stride.1;
        plane.fill(0.0); // Pixels that no window reaches.
        self.rows(|pixels, values| {
            for (to, from) in plane[pixels].iter_mut().step_by(step).zip(&padded[values]) {
                *to = *from;
            }
        });
    }

    /// Writes a block of the column matrix of the padded samples to `to`, rows `to_stride` apart.
    ///
    /// # Safety
    /// `padded` reaches over all samples and, unless the kernel is 1 x 1, [`SLACK`] values more,
    /// `to` over `depth` rows of `to_stride >= cols` values and [`SLACK`] more; the block is inside.
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
            let pieces = layout.pieces(block.first, block.cols, V::LANES);
            let is_exact = layout.conv.is_pointwise();
            // SAFETY: by the caller. Pieces are written in ascending order, so what a copy writes
            // past the end of its piece is overwritten by the next one.
            unsafe {
                layout.walk(block.k, block.depth, |row, shift| {
                    let (from, to) = (padded.add(shift), to.add(row * to_stride));
                    if is_exact {
                        for piece in &pieces {
                            load_up_to::<V>(from.add(piece.at), piece.len).store(to.add(piece.col));
                        }
                    } else {
                        for piece in &pieces {
                            V::load(from.add(piece.at)).store(to.add(piece.col));
                        }
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

    /// Adds the columns of one sample, `depth` rows `stride` apart, to a padded sample whose first
    /// channel is that of the first row.
    ///
    /// # Safety
    /// `padded` reaches over the channels of the rows, `from` over the rows.
    pub(super) unsafe fn scatter(
        &self,
        isa: Isa,
        from: *const f32,
        stride: usize,
        depth: usize,
        padded: *mut f32,
    ) {
        #[inline(always)]
        unsafe fn run<V: Vector>(
            layout: &Layout,
            from: *const f32,
            stride: usize,
            depth: usize,
            padded: *mut f32,
        ) {
            let pieces = layout.pieces(0, layout.patches, V::LANES);
            // SAFETY: by the caller.
            unsafe {
                layout.walk(0, depth, |row, shift| {
                    let (from, to) = (from.add(row * stride), padded.add(shift));
                    for &Piece { col, at, len } in &pieces {
                        let to = to.add(at);
                        let sum = load_up_to::<V>(from.add(col), len).add(load_up_to(to, len));
                        store_up_to(sum, to, len);
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
                    depth: usize,
                    padded: *mut f32,
                )
            );
        }
    }

    /// The reverse of [`gather`](Self::gather) for a kernel of 1 x 1: writes a block, rows `stride`
    /// apart, to the pictures.
    ///
    /// # Safety
    /// As for `gather`; each row of `from` reaches over whole vectors.
    pub(super) unsafe fn spread(
        &self,
        isa: Isa,
        from: *const f32,
        stride: usize,
        block: Block,
        pictures: *mut f32,
    ) {
        #[inline(always)]
        unsafe fn run<V: Vector>(
            layout: &Layout,
            from: *const f32,
            stride: usize,
            block: Block,
            pictures: *mut f32,
        ) {
            // SAFETY: by the caller. A piece goes to neighbouring channels of one picture.
            unsafe {
                for Piece { col, at, len } in layout.pieces(block.first, block.cols, V::LANES) {
                    layout.walk(block.k, block.depth, |row, shift| {
                        let values = load_up_to::<V>(from.add(row * stride + col), len);
                        store_up_to(values, pictures.add(at + shift), len);
                    });
                }
            }
        }
        debug_assert!(self.conv.is_pointwise());
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
                    pictures: *mut f32,
                )
            );
        }
    }

    /// Cuts columns into pieces that are contiguous in memory.
    fn pieces(&self, first: usize, cols: usize, lanes: usize) -> Vec<Piece> {
        let is_pointwise = self.conv.is_pointwise();
        let row_len = self.conv.stride.1 * self.phase_width;
        let mut pieces = Vec::with_capacity(cols.div_ceil(lanes) + cols.div_ceil(self.grid_w) + 1);
        let mut col = 0;
        while col < cols {
            let (sample, patch) = ((first + col) / self.patches, (first + col) % self.patches);
            let (y, x) = (patch / self.grid_w, patch % self.grid_w);
            let (at, rest) = if is_pointwise {
                (patch, self.patches - patch)
            } else {
                (y * self.conv.stride.0 * row_len + x, self.grid_w - x)
            };
            let len = rest.min(cols - col).min(lanes);
            pieces.push(Piece { col, at: sample * self.sample() + at, len });
            col += len;
        }
        pieces
    }

    /// Calls `run(row, offset)` for rows `k..k + depth` of the column matrix: `row` counts from 0,
    /// `offset` is added to that of a [`Piece`].
    #[inline(always)]
    fn walk(&self, k: usize, depth: usize, mut run: impl FnMut(usize, usize)) {
        let (kernel, stride) = (self.conv.kernel, self.conv.stride);
        let row_len = stride.1 * self.phase_width;
        let positions = kernel.0 * kernel.1;
        let (mut channel, rest) = (k / positions, k % positions);
        let (mut ky, mut kx) = (rest / kernel.1, rest % kernel.1);
        for row in 0..depth {
            let (y, x) =
                if self.is_turned { (kernel.0 - 1 - ky, kernel.1 - 1 - kx) } else { (ky, kx) };
            let shift = channel * self.channel()
                + y * row_len
                + (x % stride.1) * self.phase_width
                + x / stride.1;
            run(row, shift);
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

/// The first value of every `step` of `from`, until either slice ends.
#[inline(always)]
fn take_every(step: usize, from: &[f32], to: &mut [f32]) {
    let whole = from.chunks_exact(step);
    if let (Some(to), Some(from)) = (to.get_mut(whole.len()), whole.remainder().first()) {
        *to = *from;
    }
    for (to, from) in to.iter_mut().zip(whole) {
        *to = from[0];
    }
}

/// Copies `len` values, few ones without a call.
///
/// # Safety
/// `from` and `to` reach over them.
#[inline(always)]
pub(super) unsafe fn copy<V: Vector>(from: *const f32, to: *mut f32, len: usize) {
    for i in (0..len).step_by(V::LANES) {
        // SAFETY: by the caller.
        unsafe { store_up_to(load_up_to::<V>(from.add(i), len - i), to.add(i), len - i) };
    }
}

/// Columns dealt evenly over panels, in whole vectors.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    pub(super) count: usize,
    columns: usize,
    vectors: usize,
    lanes: usize,
}

impl Panels {
    pub(super) fn new(isa: Isa, columns: usize) -> Self {
        let width = panel_width(isa);
        let lanes = 16.min(width / 2);
        Self { count: columns.div_ceil(width), columns, vectors: columns.div_ceil(lanes), lanes }
    }

    /// The columns of a panel.
    pub(super) fn range(&self, panel: usize) -> Range<usize> {
        let first = |panel: usize| {
            let (each, more) = (self.vectors / self.count, self.vectors % self.count);
            ((panel * each + panel.min(more)) * self.lanes).min(self.columns)
        };
        first(panel)..first(panel + 1)
    }
}
