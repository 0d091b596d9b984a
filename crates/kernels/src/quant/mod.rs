//! Matrices in blocks: weights of 4 or 8 bits with a scale, and perhaps a lowest value, for each 32
//! of a row, as GGUF files hold them.
//!
//! A value is `scale * code + lowest` in f32. A product never sees a whole f32 matrix: the panel that
//! comes next is unpacked, a short stretch of the inner dimension at a time, into memory that stays
//! in the first-level cache, and the f32 kernel runs over it. So a result is that of the f32 matrix
//! of the same values, and the memory read is that of the codes.

mod encode;

pub use encode::quantise;

use crate::buffer::Buffer;
use crate::gemm::panel_width;
use crate::pool::{Shared, parallel_for, parallel_rows};
use crate::simd::{Isa, Vector, dispatch};

/// Values of a row that share a scale.
pub const BLOCK: usize = 32;

/// How a block is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// An f16 scale and 32 signed bytes.
    Q8_0,
    /// An f16 scale and 32 codes of 4 bits that mean -8 to 7.
    Q4_0,
    /// An f16 scale, an f16 lowest value and 32 codes of 4 bits.
    Q4_1,
}

impl BlockKind {
    /// Bytes of a block in a file.
    pub fn bytes(self) -> usize {
        self.head() + self.codes()
    }

    /// Bytes of the scale and the lowest value.
    fn head(self) -> usize {
        if self == Self::Q4_1 { 4 } else { 2 }
    }

    /// Bytes of the codes.
    fn codes(self) -> usize {
        if self == Self::Q8_0 { BLOCK } else { BLOCK / 2 }
    }
}

/// A matrix as a file holds it: row by row, each of whole blocks. Code `j` of a block of 4 bits is
/// the lower half of byte `j`, code `j + 16` the upper one.
#[derive(Clone, Copy, Debug)]
pub struct Blocks<'a> {
    kind: BlockKind,
    rows: usize,
    cols: usize,
    bytes: &'a [u8],
}

impl<'a> Blocks<'a> {
    /// `rows` rows of `cols` values, or `None` if the bytes are not those of such a matrix.
    pub fn new(kind: BlockKind, rows: usize, cols: usize, bytes: &'a [u8]) -> Option<Self> {
        let row = (cols / BLOCK).checked_mul(kind.bytes())?;
        let fits = cols.is_multiple_of(BLOCK) && rows.checked_mul(row)? == bytes.len();
        fits.then_some(Self { kind, rows, cols, bytes })
    }

    /// How they are stored.
    pub fn kind(&self) -> BlockKind {
        self.kind
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// Writes the values of row `row`.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not as long as one.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "a row has {} values", self.cols);
        let blocks = self.row_bytes(row).chunks_exact(self.kind.bytes());
        for (block, out) in blocks.zip(out.as_chunks_mut::<BLOCK>().0) {
            decode(self.kind, block, out);
        }
    }

    /// All values, row by row, on all threads.
    pub fn values(&self) -> Vec<f32> {
        let mut all = vec![0.0; self.rows * self.cols];
        let out = Shared::new(&mut all);
        parallel_rows(self.rows, self.cols, 1 << 13, |first, count| {
            for row in first..first + count {
                // SAFETY: each task writes its own rows.
                self.row(row, unsafe { out.slice(row * self.cols, self.cols) });
            }
        });
        all
    }

    /// Whether every value is a number.
    pub fn is_finite(&self) -> bool {
        let head = self.kind.head();
        self.bytes.chunks_exact(self.kind.bytes()).all(|block| {
            block[..head]
                .as_chunks::<2>()
                .0
                .iter()
                .all(|h| from_half(u16::from_le_bytes(*h)).is_finite())
        })
    }

    fn row_bytes(&self, row: usize) -> &'a [u8] {
        let len = self.cols / BLOCK * self.kind.bytes();
        &self.bytes[row * len..][..len]
    }
}

/// The values of one block.
fn decode(kind: BlockKind, block: &[u8], out: &mut [f32; BLOCK]) {
    let half = |at: usize| from_half(u16::from_le_bytes([block[at], block[at + 1]]));
    let (scale, codes) = (half(0), &block[kind.head()..]);
    let lowest = match kind {
        BlockKind::Q8_0 => {
            for (out, code) in out.iter_mut().zip(codes) {
                *out = scale * f32::from(code.cast_signed());
            }
            return;
        }
        BlockKind::Q4_0 => -8.0 * scale,
        BlockKind::Q4_1 => half(2),
    };
    for (j, byte) in codes.iter().enumerate() {
        // The product is exact, so there is one rounding with or without a fused step.
        out[j] = scale * f32::from(byte & 15) + lowest;
        out[j + BLOCK / 2] = scale * f32::from(byte >> 4) + lowest;
    }
}

/// The f32 of the same value as these bits of an f16.
pub fn from_half(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    if bits & 0x7c00 == 0x7c00 {
        return f32::from_bits(sign | 0x7f80_0000 | magnitude);
    }
    // The exponent has another bias; the product is exact, also where it is below the normal range.
    let value = f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23);
    f32::from_bits(sign | value.to_bits())
}

/// A right operand in blocks, ordered for the kernels: panel by panel as in [`crate::gemm`], a panel
/// block by block along the inner dimension. A block of a panel is its scales, its lowest values if
/// it has any, and for each code the bytes of all columns.
#[derive(Debug)]
pub struct PackedBlocks {
    data: Buffer<u8>,
    kind: BlockKind,
    k: usize,
    n: usize,
    isa: Isa,
}

impl PackedBlocks {
    /// Packs the transpose of a weight `[n, k]`, on all threads.
    pub fn new(weight: Blocks) -> Self {
        Self::for_isa(Isa::best(), weight)
    }

    pub(crate) fn for_isa(isa: Isa, weight: Blocks) -> Self {
        let Blocks { kind, rows: n, cols: k, .. } = weight;
        let (width, head) = (panel_width(isa), kind.head());
        let block = width * kind.bytes();
        let panel = k / BLOCK * block;
        let panels = n.div_ceil(width);
        let mut data = Buffer::<u8>::zeroed(panels * panel);
        let out = Shared::new(&mut data);
        parallel_for(panels, |p| {
            // SAFETY: each task writes its own panel, which lies inside of the buffer.
            let to = unsafe { std::slice::from_raw_parts_mut(out.get().add(p * panel), panel) };
            // Columns that are missing in the last panel keep scale 0.
            for (col, row) in (p * width..n.min((p + 1) * width)).enumerate() {
                let blocks = weight.row_bytes(row).chunks_exact(kind.bytes());
                for (from, to) in blocks.zip(to.chunks_exact_mut(block)) {
                    for (i, half) in from[..head].chunks_exact(2).enumerate() {
                        to[2 * (i * width + col)..][..2].copy_from_slice(half);
                    }
                    for (j, byte) in from[head..].iter().enumerate() {
                        to[head * width + j * width + col] = *byte;
                    }
                }
            }
        });
        Self { data, kind, k, n, isa }
    }

    /// Inner dimension.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The instruction set that it is packed for.
    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    /// Memory that it takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Where the inner values from `from`, a multiple of [`BLOCK`], of panel `p` lie.
    pub(crate) fn at(&self, p: usize, from: usize) -> *const u8 {
        let block = panel_width(self.isa) * self.kind.bytes();
        self.data.as_ptr().wrapping_add((p * self.k + from) / BLOCK * block)
    }

    /// Unpacks the inner values `from..from + depth` of panel `p` to `depth` rows of a panel.
    ///
    /// # Safety
    /// The panel exists; both numbers are multiples of [`BLOCK`] within the inner dimension; `to` has
    /// room.
    pub(crate) unsafe fn unpack(&self, p: usize, (from, depth): (usize, usize), to: *mut f32) {
        let (kind, from, blocks) = (self.kind, self.at(p, from), depth / BLOCK);
        // SAFETY: by the caller; the instruction set is there.
        unsafe {
            dispatch!(self.isa, unpack(kind: BlockKind, from: *const u8, blocks: usize, to: *mut f32));
        }
    }
}

// Vectors of halves are loaded from any address.
#[allow(clippy::cast_ptr_alignment)]
#[inline(always)]
unsafe fn unpack<V: Vector>(kind: BlockKind, from: *const u8, blocks: usize, to: *mut f32) {
    let width = V::LANES * V::TILE_VECTORS;
    // SAFETY: by the caller, `from` reaches over the blocks and `to` over their values.
    unsafe {
        for b in 0..blocks {
            let (from, to) = (from.add(b * width * kind.bytes()), to.add(b * width * BLOCK));
            let codes = from.add(kind.head() * width);
            for v in 0..V::TILE_VECTORS {
                let col = v * V::LANES;
                let scale = V::load_half(from.cast::<u16>().add(col));
                let lowest = match kind {
                    BlockKind::Q8_0 => {
                        for j in 0..BLOCK {
                            let code = V::load_signed_bytes(codes.add(j * width + col).cast());
                            code.mul(scale).store(to.add(j * width + col));
                        }
                        continue;
                    }
                    BlockKind::Q4_0 => scale.mul(V::splat(-8.0)),
                    BlockKind::Q4_1 => V::load_half(from.cast::<u16>().add(width + col)),
                };
                for j in 0..BLOCK / 2 {
                    let (low, high) = V::load_nibbles(codes.add(j * width + col));
                    low.fma(scale, lowest).store(to.add(j * width + col));
                    let high_at = (j + BLOCK / 2) * width + col;
                    high.fma(scale, lowest).store(to.add(high_at));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::{Epilogue, Lhs, Rhs, matmul};
    use proptest::prelude::*;

    fn values(n: usize, seed: u32) -> Vec<f32> {
        let mut s = seed.wrapping_mul(2_654_435_761).max(1);
        let mut next = || {
            s ^= s << 13;
            s ^= s >> 17;
            s ^= s << 5;
            (s >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    const KINDS: [BlockKind; 3] = [BlockKind::Q8_0, BlockKind::Q4_0, BlockKind::Q4_1];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn products_equal_those_of_the_values(
            m in 1..20_usize, n in 1..150_usize, blocks in 1..12_usize, seed: u32, kind in 0..3_usize
        ) {
            let (kind, k) = (KINDS[kind], blocks * BLOCK);
            let x = values(m * k, seed);
            let bytes = quantise(kind, &values(n * k, seed ^ 1));
            let weight = Blocks::new(kind, n, k, &bytes).expect("as long as its values");
            let full = weight.values();
            for &isa in Isa::available() {
                let packed = PackedBlocks::for_isa(isa, weight);
                let mut got = vec![f32::NAN; m * n];
                let blocks = Rhs::Blocks(&packed);
                matmul((m, n, k), Lhs::rows(&x, k), blocks, &mut got, n, Epilogue::default());
                for (i, got) in got.iter().enumerate() {
                    let (x, w) = (&x[i / n * k..][..k], &full[i % n * k..][..k]);
                    let want: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    prop_assert!((f64::from(*got) - want).abs() < 2e-5, "{isa:?} {kind:?} {i}: {got} {want}");
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_others() {
        let (n, k) = (130, 640);
        let x = values(500 * k, 3);
        let bytes = quantise(BlockKind::Q4_0, &values(n * k, 4));
        let packed = PackedBlocks::new(Blocks::new(BlockKind::Q4_0, n, k, &bytes).expect("fits"));
        let product = |rows: &[f32]| {
            let m = rows.len() / k;
            let mut out = vec![0.0; m * n];
            let rhs = Rhs::Blocks(&packed);
            matmul((m, n, k), Lhs::rows(rows, k), rhs, &mut out, n, Epilogue::default());
            out
        };
        let all = product(&x);
        for row in [0, 5, 499] {
            assert_eq!(product(&x[row * k..][..k]), all[row * n..][..n]);
        }
    }

    #[test]
    fn halves_are_exact() {
        for (bits, value) in [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0001, 5.960_464_5e-8),
            (0x83ff, -6.097_555e-5),
            (0xfc00, f32::NEG_INFINITY),
        ] {
            assert_eq!(from_half(bits).to_bits(), f32::to_bits(value), "{bits:#x}");
        }
        assert!(from_half(0x7e00).is_nan());
    }

    #[test]
    fn bytes_of_another_size_are_no_matrix() {
        assert!(Blocks::new(BlockKind::Q8_0, 1, 32, &[0; 34]).is_some());
        assert!(Blocks::new(BlockKind::Q8_0, 1, 31, &[0; 34]).is_none());
        assert!(Blocks::new(BlockKind::Q8_0, 2, 32, &[0; 34]).is_none());
        assert!(Blocks::new(BlockKind::Q8_0, usize::MAX, usize::MAX, &[0; 34]).is_none());
        let infinite = [&[0, 0x7c][..], &[1; 32]].concat();
        let blocks = Blocks::new(BlockKind::Q8_0, 1, 32, &infinite).expect("fits");
        assert!(!blocks.is_finite());
    }
}
