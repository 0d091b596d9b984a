//! Packing: right operands into panels, transposed left operands into strips.

use super::Operands;
use super::tile::deal;
use crate::buffer::Buffer;
use crate::narrow;
use crate::pool::{Shared, parallel_for};
use crate::simd::{Isa, Vector, dispatch, load_up_to, store_up_to};

/// Writes `k` rows of `cols` values, `stride` apart, as one panel; missing columns become 0.
///
/// # Safety
/// `from` reaches over the rows; `to` has room for `k` rows of a panel's width.
pub(crate) unsafe fn pack_row_major(
    isa: Isa,
    from: *const f32,
    stride: usize,
    k: usize,
    cols: usize,
    to: *mut f32,
) {
    #[inline(always)]
    unsafe fn pack<V: Vector>(
        from: *const f32,
        stride: usize,
        k: usize,
        cols: usize,
        to: *mut f32,
    ) {
        let width = V::LANES * V::TILE_VECTORS;
        // SAFETY: by the caller.
        unsafe {
            for r in 0..k {
                let (from, to) = (from.add(r * stride), to.add(r * width));
                for v in 0..cols.div_ceil(V::LANES) {
                    let col = v * V::LANES;
                    load_up_to::<V>(from.add(col), cols - col).store(to.add(col));
                }
            }
        }
    }
    // SAFETY: by the caller; the instruction set is there.
    unsafe {
        dispatch!(isa, pack(from: *const f32, stride: usize, k: usize, cols: usize, to: *mut f32));
    }
}

/// Writes the transpose of `cols` rows of `k` values, `stride` apart, as one panel.
///
/// # Safety
/// As for [`pack_row_major`].
pub(crate) unsafe fn pack_transposed(
    isa: Isa,
    from: *const f32,
    stride: usize,
    k: usize,
    cols: usize,
    to: *mut f32,
) {
    #[inline(always)]
    unsafe fn pack<V: Vector>(
        from: *const f32,
        stride: usize,
        k: usize,
        cols: usize,
        to: *mut f32,
    ) {
        let width = V::LANES * V::TILE_VECTORS;
        // SAFETY: by the caller; whole blocks stay inside `cols` rows and `k` columns.
        unsafe {
            let mut col = 0;
            while col < cols {
                let mut r = 0;
                if cols - col >= V::LANES {
                    while k - r >= V::LANES {
                        V::transpose(
                            from.add(col * stride + r),
                            stride,
                            to.add(r * width + col),
                            width,
                        );
                        r += V::LANES;
                    }
                }
                for r in r..k {
                    for j in col..(col + V::LANES).min(width) {
                        let value = if j < cols { *from.add(j * stride + r) } else { 0.0 };
                        *to.add(r * width + j) = value;
                    }
                }
                col += V::LANES;
            }
        }
    }
    // SAFETY: by the caller; the instruction set is there.
    unsafe {
        dispatch!(isa, pack(from: *const f32, stride: usize, k: usize, cols: usize, to: *mut f32));
    }
}

/// Inner values that one task moves: a row of one tile from each, which stay in the first-level
/// cache until the next tile takes its part of the same lines.
const STRIP_STEP: usize = 32;

/// Brings a transposed left operand (`k` rows of `m` values, `stride` apart) into strips: per tile
/// of rows, the inner dimension outermost. A chunk of `rows_per_chunk` rows is dealt by itself, as
/// the panel kernel does it.
///
/// # Safety
/// `from` reaches over the rows.
pub(super) unsafe fn pack_strips(
    isa: Isa,
    (m, k): (usize, usize),
    rows_per_chunk: usize,
    from: *const f32,
    stride: usize,
    operands: Operands,
) -> Buffer<f32> {
    let mut buffer = Buffer::<f32>::uninit(m * k);
    let out = Shared::new(&mut buffer);
    let from = from as usize; // An address may cross threads; it is read only.
    parallel_for(k.div_ceil(STRIP_STEP), |task| {
        let first = task * STRIP_STEP;
        let depth = STRIP_STEP.min(k - first);
        let mut row = 0;
        while row < m {
            let rows = rows_per_chunk.min(m - row);
            // SAFETY: tasks write disjoint inner values of each strip.
            unsafe {
                let from = (from as *const f32).add(row + first * stride);
                let to = out.get().add(row * k);
                strips_of_chunk(isa, (rows, k), depth, from, stride, to, first, operands);
            }
            row += rows;
        }
    });
    buffer
}

/// The inner values `first..first + depth` of all strips of a chunk.
unsafe fn strips_of_chunk(
    isa: Isa,
    (rows, k): (usize, usize),
    depth: usize,
    from: *const f32,
    stride: usize,
    to: *mut f32,
    first: usize,
    operands: Operands,
) {
    #[inline(always)]
    unsafe fn strips<V: Vector>(
        rows: usize,
        k: usize,
        depth: usize,
        from: *const f32,
        stride: usize,
        to: *mut f32,
        first: usize,
        operands: Operands,
    ) {
        let dealing = deal(rows, V::TILE_ROWS);
        let mut row = 0;
        for t in 0..dealing.tiles {
            let height = dealing.base + usize::from(t < dealing.more);
            // SAFETY: by the caller.
            unsafe {
                let (from, to) = (from.add(row), to.add(row * k + first * height));
                for s in 0..depth {
                    let (from, to) = (from.add(s * stride), to.add(s * height));
                    for i in (0..V::TILE_ROWS).step_by(V::LANES) {
                        if i < height {
                            let n = height - i;
                            store_up_to(load_up_to::<V>(from.add(i), n), to.add(i), n);
                        }
                    }
                }
                if operands == Operands::Bf16 {
                    narrow::round_plain(std::slice::from_raw_parts_mut(to, depth * height));
                }
            }
            row += height;
        }
    }
    // SAFETY: by the caller; the instruction set is there.
    unsafe {
        dispatch!(isa, strips(rows: usize, k: usize, depth: usize, from: *const f32, stride: usize,
            to: *mut f32, first: usize, operands: Operands));
    }
}
