//! The product of bf16 where no unit takes pairs of them: a panel is widened to f32 once for all rows
//! that pass over it, and the tile of f32 does the rest.

use super::PackedNarrow;
use super::rows::Rows;
use crate::buffer::Buffer;
use crate::gemm::{Next, Panel, panel_fn, panel_width};
use crate::simd::{Vector, dispatch};

/// Rows from which widening a panel pays.
pub(super) const ROWS: usize = 32;

/// The rows of `panel`, which begin with row `first`, times panel `p`: bit for bit what the words
/// themselves give, as the same values are multiplied and added up in the same order.
///
/// # Safety
/// The output of `panel` reaches over its rows and columns, and the instruction set is there.
pub(super) unsafe fn run(rows: &Rows, first: usize, rhs: &PackedNarrow, p: usize, panel: &Panel) {
    let width = panel_width(rhs.isa);
    let depth = rhs.k.div_ceil(2);
    let panels = rhs.n.div_ceil(width);
    let words = |p: usize| rhs.words.as_ptr().wrapping_add(p * depth * width);
    let mut wide = Buffer::<f32>::uninit(2 * depth * width);
    let (from, to, count) = (words(p), wide.as_mut_ptr(), depth * width);
    // SAFETY: a panel has that many words, each of two values; the rest is by the caller.
    unsafe {
        dispatch!(rhs.isa, widen(from: *const i32, count: usize, to: *mut f32));
        panel_fn(rhs.isa)(&Panel {
            depth: rhs.k,
            a: rows.words.as_ptr().add(first * rows.stride).cast(),
            a_stride: rows.stride,
            k_stride: 1,
            b: to,
            b_stride: width,
            next: Next { at: words((p + 1) % panels).cast(), stride: width },
            ..*panel
        });
    }
}

/// A row of words becomes two rows of values.
#[inline(always)]
unsafe fn widen<V: Vector>(from: *const i32, count: usize, to: *mut f32) {
    let width = V::LANES * V::TILE_VECTORS;
    // SAFETY: by the caller.
    unsafe {
        for row in (0..count).step_by(width) {
            for col in (0..width).step_by(V::LANES) {
                let words = V::load_int(from.add(row + col).cast());
                V::lower_bf16(words).store(to.add(2 * row + col));
                V::upper_bf16(words).store(to.add(2 * row + width + col));
            }
        }
    }
}
