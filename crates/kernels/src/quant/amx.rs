//! The product with blocks on the matrix unit (AMX), for many rows.
//!
//! A tile of the left operand is 16 rows of a block, either the upper or the lower halves of its
//! whole numbers; a tile of the right operand is the same block of 16 columns. Each block has scales
//! of its own, so its two tiles of sums leave the unit at once and are added up in f32, while the
//! unit works on the next block.

use super::packed::PackedBlocks;
use super::rows::{LINE, Place, Rows, TILE};
use super::{BLOCK, BlockKind};
use crate::buffer::Buffer;
use crate::gemm::{Panel, finish_rows};
use std::arch::asm;
#[allow(clippy::wildcard_imports)] // Intrinsics carry their module in their names.
use std::arch::x86_64::*;

/// Columns of a row of sums.
const WIDTH: usize = 64;
/// Columns of a panel, and of a tile.
const SIDE: usize = 16;
/// Bytes of the codes of a block of a panel, a byte each.
const CODES: usize = SIDE * BLOCK;
/// Bytes between rows of a tile: those of four codes of every column, or of a row's block.
const ROW: usize = 64;
/// Blocks whose left tiles stay in the first-level cache while all columns of a panel meet them.
const STRETCH: usize = 16;
/// Bytes of a tile of sums.
const SUMS: usize = TILE * SIDE * size_of::<i32>();

/// The sizes of the tiles: sums and left operand have `rows` rows, the right operand has 8.
#[repr(align(64))]
struct Config([u8; 64]);

impl Config {
    fn new(rows: usize) -> Self {
        let mut bytes = [0; 64];
        bytes[0] = 1; // The palette.
        for (t, (width, rows)) in [
            (4 * SIDE, rows),
            (4 * SIDE, rows),
            (BLOCK, rows),
            (BLOCK, rows),
            (4 * SIDE, BLOCK / 4),
        ]
        .into_iter()
        .enumerate()
        {
            bytes[16 + 2 * t] = width as u8;
            bytes[48 + t] = rows as u8;
        }
        Self(bytes)
    }
}

/// Two tiles of sums of two blocks.
#[repr(align(64))]
struct Sums([u8; 4 * SUMS]);

/// A panel of the right operand with a byte for each code.
#[derive(Clone, Copy)]
struct Right {
    heads: *const u8,
    heads_apart: usize,
    codes: *const u8,
    codes_apart: usize,
    has_lowest: bool,
}

/// The rows of `panel`, which begin with row `first`, a multiple of 16, times the panels from `p`
/// on, as many as `panel` has columns for.
///
/// # Safety
/// The unit is there; rows and panels exist, and the output reaches over them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn panels(
    rows: &Rows,
    first: usize,
    rhs: &PackedBlocks,
    p: usize,
    panel: &Panel,
) {
    let (kind, blocks) = (rhs.kind(), rhs.k() / BLOCK);
    let apart = SIDE * kind.bytes();
    let count = panel.cols.div_ceil(SIDE);
    let mut sums = Buffer::<f32>::uninit(panel.rows.next_multiple_of(TILE) * WIDTH);
    let mut spread = None;
    // SAFETY: by the caller.
    unsafe {
        let mut right = [None; WIDTH / SIDE];
        for (c, right) in right[..count].iter_mut().enumerate() {
            let heads = rhs.panel(p + c);
            let codes = heads.add(SIDE * kind.head());
            let right = right.insert(Right {
                heads,
                heads_apart: apart,
                codes,
                codes_apart: apart,
                has_lowest: kind == BlockKind::Q4_1,
            });
            if kind != BlockKind::Q8_0 {
                let spread =
                    spread.get_or_insert_with(|| Buffer::<u8>::uninit(count * blocks * CODES));
                let to = spread.as_mut_ptr().add(c * blocks * CODES);
                let least = if kind == BlockKind::Q4_0 { 8 } else { 0 };
                for b in 0..blocks {
                    spread_codes(codes.add(b * apart), least, to.add(b * CODES));
                }
                (right.codes, right.codes_apart) = (to, CODES);
            }
        }
        for row in (0..panel.rows).step_by(TILE) {
            set_up(TILE.min(panel.rows - row));
            let sums = sums.as_mut_ptr().add(row * WIDTH);
            for from in (0..blocks).step_by(STRETCH) {
                let depth = STRETCH.min(blocks - from);
                for (c, right) in right.iter().flatten().enumerate() {
                    tile(rows.place(first + row), right, (from, depth), sums.add(c * SIDE));
                }
            }
        }
        release();
        finish_rows(panel, sums.as_ptr());
    }
}

/// Codes of 4 bits of a block of a panel, less `least`, to a byte each.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn spread_codes(from: *const u8, least: i8, to: *mut u8) {
    let (half, least) = (_mm512_set1_epi8(15), _mm512_set1_epi8(least));
    for at in (0..CODES / 2).step_by(64) {
        // SAFETY: by the caller.
        unsafe {
            let codes = _mm512_loadu_si512(from.add(at).cast());
            let low = _mm512_and_si512(codes, half);
            let high = _mm512_and_si512(_mm512_srli_epi32::<4>(codes), half);
            _mm512_storeu_si512(to.add(at).cast(), _mm512_sub_epi8(low, least));
            _mm512_storeu_si512(to.add(CODES / 2 + at).cast(), _mm512_sub_epi8(high, least));
        }
    }
}

/// The sums of 16 rows and 16 columns over the blocks `from..from + depth`, added to what is at
/// `sums`, or written there if these are the first blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn tile(left: Place, right: &Right, (from, depth): (usize, usize), sums: *mut f32) {
    let mut scratch = Sums([0; 4 * SUMS]);
    let scratch = scratch.0.as_mut_ptr();
    // SAFETY: by the caller; sums have 16 rows, whichever of them there are in the end.
    unsafe {
        let mut all = [_mm512_setzero_ps(); TILE];
        if from > 0 {
            for (r, all) in all.iter_mut().enumerate() {
                *all = _mm512_loadu_ps(sums.add(r * WIDTH));
            }
        }
        multiply(left, right, from, scratch);
        for b in from + 1..=from + depth {
            let done = scratch.add((b - 1 - from) % 2 * 2 * SUMS);
            if b < from + depth {
                multiply(left, right, b, scratch.add((b - from) % 2 * 2 * SUMS));
            }
            let b = b - 1;
            let heads = right.heads.add(b * right.heads_apart);
            let scale = _mm512_cvtph_ps(_mm256_loadu_si256(heads.cast()));
            let own = left.scales.add(b * left.apart);
            for (r, all) in all.iter_mut().enumerate() {
                let high = _mm512_load_si512(done.add(r * 64).cast());
                let low = _mm512_load_si512(done.add(SUMS + r * 64).cast());
                let sum = _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low);
                // Rows that are missing read the scale of others; nobody reads their sums.
                let own = _mm512_set1_ps(*own.add(r.min(left.apart - 1)));
                *all = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), own), scale, *all);
            }
            if right.has_lowest {
                let lowest = heads.add(2 * SIDE);
                let lowest = _mm512_cvtph_ps(_mm256_loadu_si256(lowest.cast()));
                let begins = left.begins.add(b * left.apart);
                for (r, all) in all.iter_mut().enumerate() {
                    let sum = (*begins.add(r.min(left.apart - 1))).cast_unsigned();
                    *all = _mm512_fmadd_ps(_mm512_set1_ps(f32::from_bits(sum)), lowest, *all);
                }
            }
        }
        for (r, all) in all.into_iter().enumerate() {
            _mm512_storeu_ps(sums.add(r * WIDTH), all);
        }
    }
}

/// Sets the tiles up for `rows` rows.
#[inline(always)]
unsafe fn set_up(rows: usize) {
    #[cfg(test)]
    if tests::is_emulated() {
        return tests::set_up(rows);
    }
    let config = Config::new(rows);
    // SAFETY: by the caller.
    unsafe { asm!("ldtilecfg [{}]", in(reg) config.0.as_ptr(), options(nostack, readonly)) }
}

#[inline(always)]
unsafe fn release() {
    #[cfg(test)]
    if tests::is_emulated() {
        return;
    }
    // SAFETY: by the caller.
    unsafe { asm!("tilerelease", options(nostack, nomem)) }
}

/// The products of block `b`: upper halves first, then lower ones.
#[inline(always)]
unsafe fn multiply(left: Place, right: &Right, b: usize, sums: *mut u8) {
    // SAFETY: by the caller; the tiles are set up.
    unsafe {
        #[cfg(test)]
        if tests::is_emulated() {
            return tests::multiply(left, right, b, sums);
        }
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tileloadd tmm4, [{right} + {row}]",
            "tileloadd tmm2, [{left} + {row}]",
            "tdpbssd tmm0, tmm2, tmm4",
            "tileloadd tmm3, [{left} + {row} + 32]",
            "tdpbssd tmm1, tmm3, tmm4",
            "tilestored [{sums} + {row}], tmm0",
            "tilestored [{sums} + {row} + 1024], tmm1",
            left = in(reg) left.bytes.add(b * left.apart * LINE),
            right = in(reg) right.codes.add(b * right.codes_apart),
            sums = in(reg) sums,
            row = in(reg) ROW,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _,
            options(nostack),
        );
    }
}

/// The unit in plain loops, so that all that surrounds it is tested on every machine.
#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        static ROWS: Cell<usize> = const { Cell::new(0) };
    }

    pub(super) fn is_emulated() -> bool {
        !crate::gemm::amx::available()
    }

    pub(super) fn set_up(rows: usize) {
        ROWS.set(rows);
    }

    pub(super) unsafe fn multiply(left: Place, right: &Right, b: usize, to: *mut u8) {
        // SAFETY: by the caller.
        unsafe {
            let codes = right.codes.add(b * right.codes_apart).cast::<i8>();
            let line = left.bytes.add(b * left.apart * LINE).cast::<i8>();
            for half in 0..2 {
                for row in 0..ROWS.get() {
                    for side in 0..SIDE {
                        let product = |j: usize| {
                            let x = *line.add(row * LINE + half * BLOCK + j);
                            let w = *codes.add(j / 4 * ROW + 4 * side + j % 4);
                            i32::from(x) * i32::from(w)
                        };
                        let at = half * SUMS / 4 + row * SIDE + side;
                        *to.cast::<i32>().add(at) = (0..BLOCK).map(product).sum();
                    }
                }
            }
        }
    }

    #[test]
    fn equals_the_products_of_bytes() {
        use crate::simd::Isa;
        if !Isa::available().contains(&Isa::Avx512) {
            return;
        }
        let (m, n, k) = (150, 100, 32 * 21);
        let x: Vec<f32> = (0..m * k).map(|i| (i * 7919 % 2003) as f32 / 1e3 - 1.0).collect();
        let w: Vec<f32> = (0..n * k).map(|i| (i * 104_729 % 3001) as f32 / 1e3 - 1.5).collect();
        for kind in [BlockKind::Q8_0, BlockKind::Q4_0, BlockKind::Q4_1] {
            let bytes = crate::quant::quantise(kind, &w);
            let weight = crate::quant::Blocks::new(kind, n, k, &bytes).expect("whole blocks");
            let product = |isa, m: usize| {
                let packed = PackedBlocks::for_isa(isa, weight);
                let mut out = vec![0.0; m * n];
                let epilogue = crate::gemm::Epilogue::default();
                let lhs = crate::gemm::Lhs::rows(&x, k);
                crate::quant::matmul((m, n, k), lhs, &packed, &mut out, n, epilogue);
                out
            };
            for m in [16, 37, m] {
                assert_eq!(product(Isa::Amx, m), product(Isa::Avx512, m), "{kind:?} {m}");
            }
        }
    }
}
