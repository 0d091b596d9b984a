//! The product with blocks by vectors, for many rows.
//!
//! Codes become whole numbers of 16 bits, a stretch of a few panels at a time, which stays in the
//! second-level cache while all rows of a task pass over it. A tile of rows by panels keeps the sums
//! of a block in registers.

use super::packed::WORD;
use super::rows::{LINE, Rows};
use super::{BLOCK, BlockKind, PackedBlocks};
use crate::buffer::Buffer;
use crate::gemm::{Dealing, Panel, deal, finish};
use crate::simd::Vector;

/// Blocks of a stretch.
const STRETCH: usize = 32;
/// Pairs of numbers of a block.
const PAIRS: usize = BLOCK / 2;
/// Values of a row of sums.
const WIDTH: usize = 64;

/// A stretch of panels.
pub(super) struct Stretch {
    /// For each block and pair, the pairs of the columns of all panels.
    words: Buffer<i32>,
    /// For each block the scales of the columns of all panels, and then their lowest values.
    heads: Buffer<f32>,
    has_lowest: bool,
}

/// The product of a tile of so many rows with a stretch: one function for each number, as a single
/// one for all of them would keep its sums on the stack.
pub(super) type Sized = unsafe fn(&Rows, usize, &Stretch, (usize, usize), *mut f32);

/// The rows of `panel`, which begin with row `first`, times the panels from `p` on, as many as
/// `panel` has columns for.
#[inline(always)]
pub(super) unsafe fn panels<V: Vector>(
    sizes: &[Sized; 6],
    rows: &Rows,
    first: usize,
    rhs: &PackedBlocks,
    p: usize,
    panel: &Panel,
) {
    let columns = V::LANES * V::TILE_VECTORS;
    let blocks = rhs.k() / BLOCK;
    let depth = STRETCH.min(blocks);
    let mut sums = Buffer::<f32>::zeroed(panel.rows * WIDTH);
    let mut stretch = Stretch {
        // Columns that are missing are multiplied too; nobody reads their sums.
        words: Buffer::zeroed(depth * PAIRS * columns),
        heads: Buffer::zeroed(depth * 2 * columns),
        has_lowest: rhs.kind() == BlockKind::Q4_1,
    };
    // SAFETY: by the caller.
    unsafe {
        for from in (0..blocks).step_by(STRETCH) {
            let depth = STRETCH.min(blocks - from);
            for v in 0..panel.cols.div_ceil(V::LANES) {
                spread::<V>(rhs, p + v, (from, depth), v, &mut stretch);
            }
            let Dealing { tiles, base, more } = deal(panel.rows, V::TILE_ROWS);
            let mut row = 0;
            for t in 0..tiles {
                let count = base + usize::from(t < more);
                let sums = sums.as_mut_ptr().add(row * WIDTH);
                sizes[count - 1](rows, first + row, &stretch, (from, depth), sums);
                row += count;
            }
        }
        let vectors = panel.cols.div_ceil(V::LANES);
        finish::<V>(panel, 0, panel.rows, vectors, sums.as_ptr());
    }
}

/// Panel `p` to place `v` of a stretch.
#[inline(always)]
unsafe fn spread<V: Vector>(
    rhs: &PackedBlocks,
    p: usize,
    (from, depth): (usize, usize),
    v: usize,
    to: &mut Stretch,
) {
    let (kind, columns) = (rhs.kind(), V::LANES * V::TILE_VECTORS);
    let block = V::LANES * kind.bytes();
    // SAFETY: by the caller.
    unsafe {
        for b in 0..depth {
            let heads = rhs.panel(p).add((from + b) * block);
            let to_heads = to.heads.as_mut_ptr().add(b * 2 * columns + v * V::LANES);
            V::load_half(heads.cast()).store(to_heads);
            if to.has_lowest {
                V::load_half(heads.cast::<u16>().add(V::LANES)).store(to_heads.add(columns));
            }
            let codes = heads.add(V::LANES * kind.head());
            let to = to.words.as_mut_ptr().add(b * PAIRS * columns + v * V::LANES);
            let store = |pair: usize, (even, odd): (V::Int, V::Int)| {
                V::store_int(even, to.add(pair * columns).cast());
                V::store_int(odd, to.add((pair + 1) * columns).cast());
            };
            if kind == BlockKind::Q8_0 {
                for w in 0..BLOCK / WORD {
                    store(2 * w, V::words(V::load_int(codes.add(WORD * w * V::LANES)), 0));
                }
            } else {
                let less = if kind == BlockKind::Q4_0 { 8 } else { 0 };
                for w in 0..BLOCK / WORD / 2 {
                    let (low, high) = V::nibbles(V::load_int(codes.add(WORD * w * V::LANES)));
                    store(2 * w, V::words(low, less));
                    store(PAIRS / 2 + 2 * w, V::words(high, less));
                }
            }
        }
    }
}

/// Adds the products of `R` rows with `P` panels of a stretch to their sums.
#[inline(always)]
pub(super) unsafe fn tile<V: Vector, const R: usize, const P: usize>(
    rows: &Rows,
    first: usize,
    stretch: &Stretch,
    (from, depth): (usize, usize),
    sums: *mut f32,
) {
    let columns = V::LANES * P;
    // SAFETY: by the caller.
    unsafe {
        let places: [_; R] = std::array::from_fn(|r| rows.place(first + r));
        for b in 0..depth {
            let words = stretch.words.as_ptr().add(b * PAIRS * columns).cast::<u8>();
            let lines: [_; R] = std::array::from_fn(|r| {
                let place = &places[r];
                place.bytes.add((from + b) * place.apart * LINE).cast::<i32>()
            });
            let mut whole = [[V::int(0); P]; R];
            for pair in 0..PAIRS {
                let at = words.add(4 * pair * columns);
                let mut codes = [V::load_int(at); P];
                for v in 1..P {
                    codes[v] = V::load_int(at.add(4 * v * V::LANES));
                }
                for r in 0..R {
                    let x = V::int(lines[r].add(pair).read_unaligned());
                    for v in 0..P {
                        whole[r][v] = V::dot_words(whole[r][v], codes[v], x);
                    }
                }
            }
            let heads = stretch.heads.as_ptr().add(b * 2 * columns);
            for (r, place) in places.iter().enumerate() {
                let own = V::splat(*place.scales.add((from + b) * place.apart));
                for v in 0..P {
                    let at = sums.add(r * WIDTH + v * V::LANES);
                    let sum = V::from_int(whole[r][v]).mul(own);
                    let mut all = sum.fma(V::load(heads.add(v * V::LANES)), V::load(at));
                    if stretch.has_lowest {
                        let sum = *place.begins.add((from + b) * place.apart);
                        let lowest = V::load(heads.add(columns + v * V::LANES));
                        all = V::splat(f32::from_bits(sum.cast_unsigned())).fma(lowest, all);
                    }
                    all.store(at);
                }
            }
        }
    }
}
