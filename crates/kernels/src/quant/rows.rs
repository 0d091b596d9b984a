//! The left operand of a product with blocks: rows in whole numbers of 16 bits.
//!
//! Each 32 values of a row share a scale; a value is `scale * q` with `|q| <= 32,639`, and
//! `q = 256 high + low` in two signed bytes. So the sums of a block are whole numbers and exact in
//! any order, and what is lost is below 2^-16 of the largest value of the block.

use super::{BLOCK, BlockKind};
use crate::buffer::Buffer;
use crate::gemm::Lhs;
use crate::pool::{Shared, parallel_rows};
use crate::simd::{Isa, Vector, dispatch};

/// Rows of a tile of the matrix unit.
pub(super) const TILE: usize = 16;
/// Bytes of a block of a row.
pub(super) const LINE: usize = 2 * BLOCK;
/// The largest whole number whose upper half is a signed byte.
const LARGEST: f32 = 32_639.0;

/// How a block of a row lies in memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The upper halves of all numbers, then the lower ones.
    Halves,
    /// Of each four numbers the first and the third, then the second and the fourth.
    Pairs,
}

/// Rows in blocks of whole numbers. Up to 16 rows lie together: all of them of the first block, then
/// of the next.
pub(super) struct Rows {
    bytes: Buffer<u8>,
    /// The scale of each block of each row.
    scales: Buffer<f32>,
    /// Where codes mean less than what they are as unsigned numbers, what its sum of products with
    /// those begins with; else its own sum times its scale, as the bits of an f32.
    begins: Buffer<i32>,
    blocks: usize,
    count: usize,
}

impl Rows {
    pub(super) fn new(
        isa: Isa,
        kind: BlockKind,
        form: Form,
        (m, k): (usize, usize),
        lhs: Lhs,
    ) -> Self {
        let blocks = k / BLOCK;
        let (mut bytes, mut scales) =
            (Buffer::<u8>::uninit(m * blocks * LINE), Buffer::<f32>::uninit(m * blocks));
        let mut begins = Buffer::<i32>::uninit(m * blocks);
        let out = (Shared::new(&mut bytes), Shared::new(&mut scales), Shared::new(&mut begins));
        parallel_rows(m, k, 1 << 13, |first, count| {
            for row in first..first + count {
                let (tile, r) = (row / TILE, row % TILE);
                let height = TILE.min(m - tile * TILE);
                let at = tile * TILE * blocks + r;
                // SAFETY: each task writes its own rows; the operand was checked.
                unsafe {
                    let to = Place {
                        bytes: out.0.get().add(at * LINE),
                        scales: out.1.get().add(at),
                        begins: out.2.get().add(at),
                        apart: height,
                    };
                    let from = lhs.data.as_ptr().add(row * lhs.row_stride);
                    let apart = lhs.k_stride;
                    let what = (kind, form);
                    dispatch!(isa, write(what: (BlockKind, Form), from: *const f32, apart: usize, blocks: usize, to: Place));
                }
            }
        });
        Self { bytes, scales, begins, blocks, count: m }
    }

    /// Where the blocks of row `row` lie.
    pub(super) fn place(&self, row: usize) -> Place {
        let tile = row / TILE;
        let at = tile * TILE * self.blocks + row % TILE;
        Place {
            bytes: self.bytes.as_ptr().wrapping_add(at * LINE).cast_mut(),
            scales: self.scales.as_ptr().wrapping_add(at).cast_mut(),
            begins: self.begins.as_ptr().wrapping_add(at).cast_mut(),
            apart: TILE.min(self.count - tile * TILE),
        }
    }
}

/// The first block of a row; the next ones follow `apart` places behind each other.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) bytes: *mut u8,
    pub(super) scales: *mut f32,
    pub(super) begins: *mut i32,
    pub(super) apart: usize,
}

/// Turns `blocks` blocks of a row, whose values are `stride` apart, to whole numbers.
// Plain loops, compiled for each instruction set.
#[allow(clippy::extra_unused_type_parameters)]
#[inline(always)]
unsafe fn write<V: Vector>(
    (kind, form): (BlockKind, Form),
    from: *const f32,
    stride: usize,
    blocks: usize,
    to: Place,
) {
    // SAFETY: by the caller.
    unsafe {
        for b in 0..blocks {
            let x: [f32; BLOCK] = if stride == 1 {
                from.add(b * BLOCK).cast::<[f32; BLOCK]>().read_unaligned()
            } else {
                std::array::from_fn(|j| *from.add((b * BLOCK + j) * stride))
            };
            // As whole numbers, the bits of what is not finite are the largest.
            let mut bits = 0;
            for x in x {
                bits = bits.max(x.to_bits() & 0x7fff_ffff);
            }
            let largest = f32::from_bits(bits);
            // What is not finite stays so by its scale; the smallest numbers have no inverse.
            let (scale, inverse) = if !largest.is_finite() {
                (f32::NAN, 0.0)
            } else if largest < 1e-30 {
                (0.0, 0.0)
            } else {
                (largest / LARGEST, LARGEST / largest)
            };
            let mut whole = [0_i32; BLOCK];
            if scale > 0.0 {
                for (q, x) in whole.iter_mut().zip(x) {
                    *q = (x * inverse).round_ties_even().to_int_unchecked::<i32>();
                }
            }
            let sum = whole.iter().sum::<i32>();
            let line = to.bytes.add(b * to.apart * LINE);
            match form {
                Form::Halves => {
                    let line = &mut *line.cast::<[i8; LINE]>();
                    for (j, q) in whole.into_iter().enumerate() {
                        let high = (q + 128) >> 8;
                        line[j] = high as i8;
                        line[BLOCK + j] = (q - (high << 8)) as i8;
                    }
                }
                Form::Pairs => {
                    let line = line.cast::<[i16; BLOCK]>();
                    let four = |j: usize| j / 4 * 4 + [0, 2, 1, 3][j % 4];
                    line.write_unaligned(std::array::from_fn(|j| whole[four(j)] as i16));
                }
            }
            *to.scales.add(b * to.apart) = scale;
            *to.begins.add(b * to.apart) = match kind {
                BlockKind::Q8_0 => -128 * sum,
                BlockKind::Q4_0 => -8 * sum,
                BlockKind::Q4_1 => (sum as f32 * scale).to_bits().cast_signed(),
            };
        }
    }
}
