//! The f32 product on the matrix unit of recent Intel cores (AMX), which multiplies bf16.
//!
//! An f32 of 24 significant bits is the sum of three bf16 of 8 bits, `x = x0 + x1 + x2`, exactly.
//! Of the nine products of pieces of two numbers the six largest are summed in f32; the other three
//! are together below one unit in the last place of the product. So a result is as exact as that of
//! f32 multiply-adds, and comes at 16 / 6 of their rate.
//!
//! A tile of the left operand is 16 rows of 32 inner values, one of the right operand the same of
//! 16 columns, pairs of inner values side by side. Four tiles of sums, 32 rows by 32 columns, stay
//! in the unit while it walks along the inner dimension.

use super::tile::{Panel, Tail, finish_rows};
use super::{Epilogue, Lhs, Rhs, panel_width};
use crate::buffer::Buffer;
use crate::pool::{Shared, parallel_for, threads};
use crate::simd::{Avx512, Isa, Vector};
use std::arch::asm;
#[allow(clippy::wildcard_imports)] // Intrinsics carry their module in their names.
use std::arch::x86_64::*;

/// Columns of a panel.
const WIDTH: usize = panel_width(Isa::Amx);
/// Rows of a tile of the left operand, and columns of one of the right operand.
const SIDE: usize = 16;
/// Inner values of a tile.
const DEPTH: usize = 32;
/// Values of a tile.
const TILE: usize = SIDE * DEPTH;
/// Pieces of an f32.
const PIECES: usize = 3;
/// Values of the pieces of one tile.
const STEP: usize = PIECES * TILE;
/// Tiles along the inner dimension that go in one block: the right panel of a block stays in the
/// second-level cache beside the left rows.
const BLOCK: usize = 12;
/// The most tiles of rows that panels pass over.
const CHUNK: usize = 18;
/// Tiles of the left operand that stay in the second-level cache.
const KEPT: usize = 468;

/// Whether the machine has the unit and the system lets this process use it.
pub(crate) fn available() -> bool {
    #[cfg(target_os = "linux")]
    {
        const LEAF: u32 = 7;
        const TILES: u32 = 1 << 24;
        const BF16: u32 = 1 << 22;
        const REQUEST: libc::c_long = 0x1023; // ARCH_REQ_XCOMP_PERM
        const TILE_DATA: libc::c_long = 18; // The state component of tiles.
        let flags = if __get_cpuid_max(0).0 < LEAF { 0 } else { __cpuid_count(LEAF, 0).edx };
        flags & TILES != 0
            && flags & BF16 != 0
            && is_x86_feature_detected!("avx512bf16")
            // SAFETY: the call has two numbers and touches no memory of ours.
            && unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) } == 0
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// The sizes of all eight tiles: 16 rows of 64 bytes.
#[repr(align(64))]
struct Config([u8; 64]);

static CONFIG: Config = {
    let mut bytes = [0; 64];
    bytes[0] = 1; // The palette.
    let mut t = 0;
    while t < 8 {
        bytes[16 + 2 * t] = 64;
        bytes[48 + t] = 16;
        t += 1;
    }
    Config(bytes)
};

/// The product of [`super::matmul`], whose checks have passed.
pub(super) fn matmul(
    (m, n, k): (usize, usize, usize),
    lhs: Lhs,
    rhs: Rhs,
    out: &mut [f32],
    out_stride: usize,
    mut epilogue: Epilogue,
) {
    let (tiles, steps, panels) = (m.div_ceil(SIDE), k.div_ceil(DEPTH), n.div_ceil(WIDTH));
    let for_threads = (4 * threads()).div_ceil(panels).min(tiles.div_ceil(3));
    let chunk = tiles.div_ceil(tiles.div_ceil(CHUNK).max(for_threads));
    let chunks = tiles.div_ceil(chunk);
    // The inner dimension goes in segments that keep the rows of a chunk in the cache.
    let segment = (KEPT / chunk / BLOCK).max(1) * BLOCK;

    let out = Shared::new(out);
    let pre = epilogue.pre_activation.take().map(Shared::new);
    let mut left = Buffer::<u16>::uninit(tiles * segment.min(steps) * STEP);
    // Panels that several chunks read are taken apart once.
    let mut right =
        (chunks > 1).then(|| Buffer::<u16>::uninit(panels * segment.min(steps) * 4 * STEP));
    let mut from = 0;
    loop {
        let depth = segment.min(steps - from);
        let last = from + depth == steps;
        {
            let left = Shared::new(&mut left);
            parallel_for(tiles, |t| {
                // SAFETY: each task writes its own tiles; the operand was checked.
                unsafe { split_left(lhs, (m, k), t, from, depth, left.get().add(t * depth * STEP)) }
            });
        }
        if let Some(right) = &mut right {
            let right = Shared::new(right);
            parallel_for(panels, |p| {
                // SAFETY: each task writes its own panel; the operand was checked.
                unsafe {
                    let to = right.get().add(p * depth * 4 * STEP);
                    split_right(rhs, (n, k), p, from, depth, to);
                }
            });
        }
        parallel_for(chunks * panels, |task| {
            let (tile, p) = (task / panels * chunk, task % panels);
            let row = tile * SIDE;
            let rows = (chunk * SIDE).min(m - row);
            let col = p * WIDTH;
            let at = row * out_stride + col;
            let mut sums = Buffer::<f32>::uninit(rows.next_multiple_of(SIDE) * WIDTH);
            // SAFETY: tasks write disjoint parts of the output; all sizes were checked.
            unsafe {
                let panel = Panel {
                    rows,
                    cols: WIDTH.min(n - col),
                    c: out.get().add(at),
                    c_stride: out_stride,
                    tail: Tail { accumulate: false, ..Tail::new(&epilogue, pre, (row, col), at) },
                    ..Panel::EMPTY
                };
                begin(&panel, from > 0 || epilogue.accumulate, &mut sums);
                let left = left.as_ptr().add(tile * depth * STEP);
                let mut scratch = None;
                let mut done = 0;
                asm!("ldtilecfg [{}]", in(reg) CONFIG.0.as_ptr(), options(nostack, readonly));
                while done < depth {
                    let block = BLOCK.min(depth - done);
                    // Panels follow each other in memory: what is read next lies behind.
                    let (right, ahead) = if let Some(right) = &right {
                        let at = right.as_ptr().add((p * depth + done) * 4 * STEP);
                        (at, at.wrapping_add(block * 4 * STEP).cast())
                    } else {
                        let scratch =
                            scratch.get_or_insert_with(|| Buffer::<u16>::uninit(4 * BLOCK * STEP));
                        split_right(rhs, (n, k), p, from + done, block, scratch.as_mut_ptr());
                        let (panel, step) = if done + block < depth {
                            (p, from + done + block)
                        } else {
                            (p + 1, from)
                        };
                        (scratch.as_ptr(), behind(rhs, panel * k + step * DEPTH))
                    };
                    let left = (left.add(done * STEP), depth);
                    multiply(left, right, block, &panel, sums.as_mut_ptr(), ahead);
                    done += block;
                }
                asm!("tilerelease", options(nostack, nomem));
                if last {
                    finish_rows(&panel, sums.as_ptr());
                } else {
                    let plain = Panel { tail: Tail::PLAIN, ..panel };
                    finish_rows(&plain, sums.as_ptr());
                }
            }
        });
        from += depth;
        if last {
            break;
        }
    }
}

/// What the sums of a panel begin with: 0, or what the output holds.
unsafe fn begin(panel: &Panel, from_output: bool, sums: &mut [f32]) {
    if !from_output {
        sums.fill(0.0);
        return;
    }
    for (r, sums) in sums.chunks_exact_mut(WIDTH).enumerate() {
        let cols = if r < panel.rows { panel.cols } else { 0 };
        // SAFETY: the output reaches over its rows.
        unsafe {
            let c = panel.c.wrapping_add(r * panel.c_stride);
            std::ptr::copy_nonoverlapping(c, sums.as_mut_ptr(), cols);
        }
        sums[cols..].fill(0.0);
    }
}

/// Where row `row` of the panels lies, all of them below each other; anywhere if they are not packed.
fn behind(rhs: Rhs, row: usize) -> *const u8 {
    match rhs {
        Rhs::Packed(packed) => packed.panels.as_ptr().wrapping_add(row * WIDTH).cast(),
        _ => std::ptr::null(),
    }
}

/// Adds the products of `steps` tiles along the inner dimension to `sums`, all rows of a chunk by
/// one panel. Rows of the left operand are `left_apart` tiles apart. The memory from `ahead` on comes
/// to the second-level cache on the way.
unsafe fn multiply(
    (left, left_apart): (*const u16, usize),
    right: *const u16,
    steps: usize,
    panel: &Panel,
    sums: *mut f32,
    mut ahead: *const u8,
) {
    let tiles = panel.rows.div_ceil(SIDE);
    let halves = panel.cols.div_ceil(2 * SIDE);
    for t in (0..tiles).step_by(2) {
        for half in 0..halves {
            // SAFETY: by the caller; tiles of a panel that have no columns hold zeros.
            unsafe {
                let a = left.add(t * left_apart * STEP);
                let b = right.add(2 * half * STEP);
                let sums = sums.add(t * SIDE * WIDTH + half * 2 * SIDE);
                if t + 1 < tiles {
                    four_tiles(a, a.add(left_apart * STEP), b, steps, sums, ahead);
                    ahead = ahead.wrapping_add(steps * AHEAD);
                } else {
                    two_tiles(a, b, steps, sums);
                }
            }
        }
    }
}

/// Bytes that [`four_tiles`] asks for in a step.
const AHEAD: usize = 768;
/// Bytes between rows of sums.
const SUMS_APART: usize = WIDTH * size_of::<f32>();

/// 32 rows by 32 columns. The order of the six products loads the fewest tiles.
unsafe fn four_tiles(
    a0: *const u16,
    a1: *const u16,
    b: *const u16,
    steps: usize,
    sums: *mut f32,
    ahead: *const u8,
) {
    macro_rules! products {
        () => {
            "tdpbf16ps tmm0, tmm4, tmm6
             tdpbf16ps tmm1, tmm4, tmm7
             tdpbf16ps tmm2, tmm5, tmm6
             tdpbf16ps tmm3, tmm5, tmm7"
        };
    }
    // SAFETY: by the caller; the tiles are set up for 16 rows of 64 bytes.
    unsafe {
        asm!(
            "tileloadd tmm0, [{c} + {apart}]",
            "tileloadd tmm1, [{c} + {apart} + 64]",
            "tileloadd tmm2, [{d} + {apart}]",
            "tileloadd tmm3, [{d} + {apart} + 64]",
            "2:",
            "tileloadd tmm4, [{a0} + {row}]",
            "tileloadd tmm6, [{b} + {row} + 2048]",
            "tileloadd tmm7, [{b} + {row} + 5120]",
            "tileloadd tmm5, [{a1} + {row}]",
            products!(),
            "prefetcht1 [{ahead} + 0]",
            "prefetcht1 [{ahead} + 64]",
            "tileloadd tmm6, [{b} + {row} + 1024]",
            "tileloadd tmm7, [{b} + {row} + 4096]",
            products!(),
            "prefetcht1 [{ahead} + 128]",
            "prefetcht1 [{ahead} + 192]",
            "tileloadd tmm6, [{b} + {row}]",
            "tileloadd tmm7, [{b} + {row} + 3072]",
            products!(),
            "prefetcht1 [{ahead} + 256]",
            "prefetcht1 [{ahead} + 320]",
            "tileloadd tmm4, [{a0} + {row} + 2048]",
            "tileloadd tmm5, [{a1} + {row} + 2048]",
            products!(),
            "prefetcht1 [{ahead} + 384]",
            "prefetcht1 [{ahead} + 448]",
            "tileloadd tmm4, [{a0} + {row} + 1024]",
            "tileloadd tmm5, [{a1} + {row} + 1024]",
            products!(),
            "prefetcht1 [{ahead} + 512]",
            "prefetcht1 [{ahead} + 576]",
            "tileloadd tmm6, [{b} + {row} + 1024]",
            "tileloadd tmm7, [{b} + {row} + 4096]",
            products!(),
            "prefetcht1 [{ahead} + 640]",
            "prefetcht1 [{ahead} + 704]",
            "add {a0}, 3072",
            "add {a1}, 3072",
            "add {b}, 12288",
            "add {ahead}, 768",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{c} + {apart}], tmm0",
            "tilestored [{c} + {apart} + 64], tmm1",
            "tilestored [{d} + {apart}], tmm2",
            "tilestored [{d} + {apart} + 64], tmm3",
            a0 = inout(reg) a0 => _, a1 = inout(reg) a1 => _,
            b = inout(reg) b => _, ahead = inout(reg) ahead => _,
            steps = inout(reg) steps => _,
            c = in(reg) sums, d = in(reg) sums.wrapping_add(SIDE * WIDTH),
            apart = in(reg) SUMS_APART, row = in(reg) 64_usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// The last 16 rows by 32 columns, in the order of [`four_tiles`].
unsafe fn two_tiles(a: *const u16, b: *const u16, steps: usize, sums: *mut f32) {
    // SAFETY: by the caller; the tiles are set up for 16 rows of 64 bytes.
    unsafe {
        asm!(
            "tileloadd tmm0, [{c} + {apart}]",
            "tileloadd tmm1, [{c} + {apart} + 64]",
            "2:",
            "tileloadd tmm4, [{a} + {row}]",
            "tileloadd tmm6, [{b} + {row} + 2048]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {row} + 5120]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm2, [{b} + {row} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm2",
            "tileloadd tmm3, [{b} + {row} + 4096]",
            "tdpbf16ps tmm1, tmm4, tmm3",
            "tileloadd tmm6, [{b} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {row} + 3072]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a} + {row} + 2048]",
            "tdpbf16ps tmm0, tmm5, tmm6",
            "tdpbf16ps tmm1, tmm5, tmm7",
            "tileloadd tmm4, [{a} + {row} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm0, tmm4, tmm2",
            "tdpbf16ps tmm1, tmm4, tmm3",
            "add {a}, 3072",
            "add {b}, 12288",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{c} + {apart}], tmm0",
            "tilestored [{c} + {apart} + 64], tmm1",
            a = inout(reg) a => _, b = inout(reg) b => _,
            steps = inout(reg) steps => _,
            c = in(reg) sums, apart = in(reg) SUMS_APART, row = in(reg) 64_usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// The three pieces of 32 values: as the values come, and with those of `first` and `second` in pairs.
#[inline(always)]
unsafe fn pieces(mut first: __m512, mut second: __m512) -> [(__m512i, __m512i); PIECES] {
    /// Lane `2 i` from lane `i`, lane `2 i + 1` from lane `16 + i`.
    const PAIRS: [u16; 32] = {
        let mut lanes = [0; 32];
        let mut i = 0;
        while i < 16 {
            lanes[2 * i] = i as u16;
            lanes[2 * i + 1] = 16 + i as u16;
            i += 1;
        }
        lanes
    };
    // SAFETY: by the caller, who has the instruction sets.
    unsafe {
        let order = _mm512_loadu_si512(PAIRS.as_ptr().cast());
        let upper = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
        let mut all = [(order, order); PIECES];
        for piece in &mut all {
            let plain: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(second, first));
            let pairs = _mm512_permutexvar_epi16(order, plain);
            *piece = (plain, pairs);
            let near = |bits| _mm512_castsi512_ps(bits);
            first = _mm512_sub_ps(first, near(_mm512_slli_epi32::<16>(pairs)));
            second = _mm512_sub_ps(second, near(_mm512_and_si512(pairs, upper)));
        }
        all
    }
}

/// Takes tile `t` of rows apart, `steps` tiles of the inner dimension from tile `from` on.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn split_left(
    lhs: Lhs,
    (m, k): (usize, usize),
    t: usize,
    from: usize,
    steps: usize,
    to: *mut u16,
) {
    let rows = SIDE.min(m - t * SIDE);
    // SAFETY: by the caller; no load reaches past `rows` and `k`.
    unsafe {
        for s in 0..steps {
            let first = (from + s) * DEPTH;
            let inner = DEPTH.min(k - first);
            let to = to.add(s * STEP);
            let mut turned;
            let at = lhs.data.as_ptr().add(t * SIDE * lhs.row_stride + first * lhs.k_stride);
            let (data, apart) = if lhs.k_stride == 1 {
                (at, lhs.row_stride)
            } else {
                turned = Turned([0.0; TILE]);
                turn(at, lhs.k_stride, inner, rows, DEPTH, &mut turned);
                (turned.0.as_ptr(), DEPTH)
            };
            for r in 0..SIDE {
                let row = data.wrapping_add(r * apart);
                let inner = if r < rows { inner } else { 0 };
                let (first, second) =
                    (some(row, inner), some(row.wrapping_add(16), inner.saturating_sub(16)));
                for (i, piece) in pieces(first, second).into_iter().enumerate() {
                    _mm512_storeu_si512(to.add(i * TILE + r * DEPTH).cast(), piece.0);
                }
            }
        }
    }
}

/// Up to 16 values, zeros after.
#[inline(always)]
unsafe fn some(p: *const f32, n: usize) -> __m512 {
    // SAFETY: by the caller.
    unsafe { _mm512_maskz_loadu_ps(((1_u32 << n.min(16)) - 1) as __mmask16, p) }
}

/// A transposed block.
#[repr(align(64))]
struct Turned([f32; TILE]);

/// Writes the transpose of `rows` rows of up to 16 values, `stride` apart, 16 rows `apart`.
#[inline(always)]
unsafe fn turn(
    from: *const f32,
    stride: usize,
    rows: usize,
    cols: usize,
    apart: usize,
    to: &mut Turned,
) {
    // SAFETY: by the caller; what is missing reads as 0.
    unsafe {
        for half in 0..rows.div_ceil(SIDE) {
            if rows >= (half + 1) * SIDE && cols == SIDE {
                let from = from.add(half * SIDE * stride);
                Avx512::transpose(from, stride, to.0.as_mut_ptr().add(half * SIDE), apart);
                continue;
            }
            let mut block = Turned([0.0; TILE]);
            for r in 0..SIDE.min(rows - half * SIDE) {
                let row = some(from.add((half * SIDE + r) * stride), cols);
                _mm512_store_ps(block.0.as_mut_ptr().add(r * SIDE), row);
            }
            Avx512::transpose(block.0.as_ptr(), SIDE, to.0.as_mut_ptr().add(half * SIDE), apart);
        }
    }
}

/// Takes panel `p` apart, `steps` tiles of the inner dimension from tile `from` on: four tiles beside
/// each other, then the next ones down.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn split_right(
    rhs: Rhs,
    (n, k): (usize, usize),
    p: usize,
    from: usize,
    steps: usize,
    to: *mut u16,
) {
    // SAFETY: by the caller; no load reaches past `n` and `k`.
    unsafe {
        for s in 0..steps {
            let first = (from + s) * DEPTH;
            let inner = DEPTH.min(k - first);
            for g in 0..WIDTH / SIDE {
                let to = to.add((4 * s + g) * STEP);
                let col = p * WIDTH + g * SIDE;
                let cols = SIDE.min(n.saturating_sub(col));
                let mut turned;
                let (data, stride) = match rhs {
                    Rhs::Packed(packed) => {
                        (packed.panels.as_ptr().add((p * k + first) * WIDTH + g * SIDE), WIDTH)
                    }
                    Rhs::RowMajor(data, stride) => {
                        (data.as_ptr().wrapping_add(first * stride + col), stride)
                    }
                    Rhs::Transposed(data, stride) => {
                        let at = data.as_ptr().wrapping_add(col * stride + first);
                        turned = Turned([0.0; TILE]);
                        for half in 0..inner.div_ceil(SIDE) {
                            let to = turned.0.as_mut_ptr().add(half * TILE / 2);
                            if inner >= (half + 1) * SIDE && cols == SIDE {
                                Avx512::transpose(at.add(half * SIDE), stride, to, SIDE);
                                continue;
                            }
                            let mut block = Turned([0.0; TILE]);
                            for j in 0..cols {
                                let row =
                                    some(at.add(j * stride + half * SIDE), inner - half * SIDE);
                                _mm512_store_ps(block.0.as_mut_ptr().add(j * SIDE), row);
                            }
                            Avx512::transpose(block.0.as_ptr(), SIDE, to, SIDE);
                        }
                        (turned.0.as_ptr(), SIDE)
                    }
                    Rhs::Blocks(_) | Rhs::Narrow(_) => {
                        unreachable!("these have products of their own")
                    }
                };
                for r in 0..DEPTH / 2 {
                    let row = data.wrapping_add(2 * r * stride);
                    let there = |r: usize| if r < inner { cols } else { 0 };
                    let (even, odd) =
                        (some(row, there(2 * r)), some(row.wrapping_add(stride), there(2 * r + 1)));
                    for (i, piece) in pieces(even, odd).into_iter().enumerate() {
                        _mm512_storeu_si512(to.add(i * TILE + r * DEPTH).cast(), piece.1);
                    }
                }
            }
        }
    }
}
