//! Matrices in blocks: weights of 4 or 8 bits with a scale, and perhaps a lowest value, for each 32
//! of a row, as GGUF files hold them.
//!
//! A value is `scale * code + lowest`. A product works on the codes: rows of the left operand become
//! whole numbers of 16 bits (`rows.rs`), so that the sums of a block are exact (`product.rs`), and the
//! memory read is that of the codes.
// Codes and scales lie in bytes; vectors and whole numbers are loaded from any address.
#![allow(clippy::cast_ptr_alignment)]

#[cfg(target_arch = "x86_64")]
mod amx;
mod encode;
mod packed;
mod product;
mod rows;
mod words;

pub use encode::quantise;
pub use packed::PackedBlocks;
pub(crate) use product::matmul;

use crate::pool::{Shared, parallel_rows};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::{Epilogue, Lhs, Rhs, matmul};
    use crate::noise::values;
    use crate::simd::Isa;
    use proptest::prelude::*;

    const KINDS: [BlockKind; 3] = [BlockKind::Q8_0, BlockKind::Q4_0, BlockKind::Q4_1];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn products_equal_those_of_the_values(
            m in 1..20_usize, n in 1..150_usize, blocks in 1..12_usize, seed: u32, kind in 0..3_usize
        ) {
            let (kind, k) = (KINDS[kind], blocks * BLOCK);
            // With the largest whole number in a block, whole numbers are what they are rounded to.
            let mut whole = values(m * k, seed ^ 2).iter().map(|x| (x * 3e4).round()).collect::<Vec<_>>();
            whole.iter_mut().step_by(BLOCK).for_each(|x| *x = -32_639.0);
            let bytes = quantise(kind, &values(n * k, seed ^ 1));
            let weight = Blocks::new(kind, n, k, &bytes).expect("as long as its values");
            let full = weight.values();
            for &isa in Isa::available() {
                let packed = PackedBlocks::for_isa(isa, weight);
                // A value below 1 is rounded by less than 1.6e-5; six deviations of their sum.
                let rounded = 3e-5 * (k as f64).sqrt();
                for (x, most) in [(values(m * k, seed), rounded), (whole.clone(), 0.0)] {
                    let mut got = vec![f32::NAN; m * n];
                    let blocks = Rhs::Blocks(&packed);
                    matmul((m, n, k), Lhs::rows(&x, k), blocks, &mut got, n, Epilogue::default());
                    for (i, got) in got.iter().enumerate() {
                        let (x, w) = (&x[i / n * k..][..k], &full[i % n * k..][..k]);
                        let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                        let (want, size) = (terms.clone().sum::<f64>(), terms.map(f64::abs).sum::<f64>());
                        let off = (f64::from(*got) - want).abs() - 1e-6 * size;
                        prop_assert!(off <= most, "{isa:?} {kind:?} {i}: {got} {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_others() {
        let (n, k) = (130, 640);
        let x = values(500 * k, 3);
        for kind in KINDS {
            let bytes = quantise(kind, &values(n * k, 4));
            let blocks = Blocks::new(kind, n, k, &bytes).expect("fits");
            for &isa in Isa::available() {
                let packed = PackedBlocks::for_isa(isa, blocks);
                let product = |rows: &[f32]| {
                    let m = rows.len() / k;
                    let mut out = vec![0.0; m * n];
                    let rhs = Rhs::Blocks(&packed);
                    let epilogue = Epilogue::default();
                    matmul((m, n, k), Lhs::rows(rows, k), rhs, &mut out, n, epilogue);
                    out
                };
                let all = product(&x);
                for (row, count) in [(0, 1), (5, 1), (499, 1), (3, 2), (7, 6), (100, 33)] {
                    let (from, some) = (row * n, product(&x[row * k..][..count * k]));
                    assert_eq!(some, all[from..][..count * n], "{isa:?} {kind:?} {row}");
                }
            }
        }
    }

    #[test]
    fn outliers_and_what_is_not_finite_stay_in_their_block() {
        let (n, k) = (40, 96);
        let mut x = values(8 * k, 5);
        x[3] = 1e6;
        let bytes = quantise(BlockKind::Q8_0, &values(n * k, 6));
        let blocks = Blocks::new(BlockKind::Q8_0, n, k, &bytes).expect("fits");
        let full = blocks.values();
        for &isa in Isa::available() {
            let packed = PackedBlocks::for_isa(isa, blocks);
            let product = |x: &[f32]| {
                let mut out = vec![0.0; 8 * n];
                let (lhs, rhs) = (Lhs::rows(x, k), Rhs::Blocks(&packed));
                matmul((8, n, k), lhs, rhs, &mut out, n, Epilogue::default());
                out
            };
            for (got, w) in product(&x).iter().zip(full.chunks_exact(k)) {
                let want: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                assert!((f64::from(*got) - want).abs() < 1e6 * 32.0 / 65_000.0, "{got} {want}");
            }
            for (value, least) in [(f32::NAN, 0), (f32::INFINITY, 0), (1e-38, 8 * n)] {
                let (mut x, plain) = (x.clone(), product(&x));
                x[2 * k + 40] = value;
                x[2 * k + 64..3 * k].fill(0.0);
                let got = product(&x);
                let spoilt = got[2 * n..3 * n].iter().filter(|x| !x.is_finite()).count();
                assert_eq!(spoilt, if least == 0 { n } else { 0 }, "{isa:?} {value}");
                assert_eq!(got[..2 * n], plain[..2 * n]);
                assert_eq!(got[3 * n..], plain[3 * n..]);
            }
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
