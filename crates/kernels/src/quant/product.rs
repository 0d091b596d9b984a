//! The product of rows with blocks.
//!
//! With a row's block as `scale q` and a column's as `d c + lowest`, both whole numbers inside, a
//! block adds `(Σ q c) scale d + (Σ q) scale lowest`. The first sum is exact, so every way to take it
//! gives the same bits; the blocks follow in order. So a row's result never depends on how many rows
//! there are: a token alone is what it is in the middle of a prompt.

use super::packed::{PackedBlocks, WORD};
use super::rows::{Place, Rows};
use super::{BLOCK, BlockKind};
use crate::gemm::{Epilogue, Lhs, Panel, Tail, finish};
use crate::pool::{Shared, parallel_for, threads};
use crate::simd::{Isa, Vector};

/// The fewest rows that the matrix unit is worth its set-up for.
#[cfg(target_arch = "x86_64")]
const ROWS_FOR_UNIT: usize = 6;
/// Rows that the columns of a panel are read for at once.
const PASS: usize = 2;
/// Rows of a task of many rows.
const CHUNK: usize = 128;

/// The fastest instruction set of this machine that multiplies bytes.
pub(super) fn best_isa() -> Isa {
    usable(Isa::best())
}

/// `isa`, or the next one that has what is needed here.
fn usable(isa: Isa) -> Isa {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512 && !is_x86_feature_detected!("avx512vnni") {
        return Isa::Avx2;
    }
    isa
}

/// The product of [`crate::gemm::matmul`], whose checks have passed.
pub(crate) fn matmul(
    (m, n, k): (usize, usize, usize),
    lhs: Lhs,
    rhs: &PackedBlocks,
    out: &mut [f32],
    out_stride: usize,
    epilogue: Epilogue,
) {
    let (isa, width) = (rhs.isa(), rhs.width());
    let rows = Rows::new(isa, rhs.kind(), (m, k), lhs);
    let panels = n.div_ceil(width);
    let out = Shared::new(out);
    let pre = epilogue.pre_activation.map(Shared::new);
    let corner = |row: usize, rows: usize, col: usize, cols: usize| {
        let at = row * out_stride + col;
        // SAFETY: the corner lies inside of the output, and all slices reach over it.
        unsafe {
            Panel {
                rows,
                cols,
                c: out.get().add(at),
                c_stride: out_stride,
                tail: Tail {
                    bias: epilogue.bias.map_or(std::ptr::null(), |b| b.as_ptr().add(col)),
                    row_bias: epilogue.row_bias.map_or(std::ptr::null(), |b| b.as_ptr().add(row)),
                    activation: epilogue.activation,
                    pre: pre.map_or(std::ptr::null_mut(), |p| p.get().add(at)),
                    residual: epilogue.residual.map_or(std::ptr::null(), |r| r.as_ptr().add(at)),
                    accumulate: epilogue.accumulate,
                },
                ..Panel::EMPTY
            }
        }
    };
    let chunk = m.div_ceil(m.div_ceil(CHUNK)).next_multiple_of(16).min(m);
    let chunks = m.div_ceil(chunk);
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx && m >= ROWS_FOR_UNIT {
        return parallel_for(chunks * panels, |task| {
            let (row, p) = (task % chunks * chunk, task / chunks);
            let (col, count) = (p * width, chunk.min(m - row));
            let panel = corner(row, count, col, width.min(n - col));
            // SAFETY: tasks write disjoint parts of the output; the unit is there.
            unsafe { super::amx::panel(&rows, row, rhs, p, &panel) };
        });
    }
    // Panels are split where there are too few of them to keep the threads evenly busy.
    let parts = if panels * chunks < 8 * threads() { width / 32 } else { 1 }.max(1);
    parallel_for(chunks * panels * parts, |task| {
        let (row, part) = (task % chunks * chunk, task / chunks);
        let (p, first) = (part / parts, part % parts * (width / parts));
        let col = p * width + first;
        if col < n {
            let panel = corner(row, chunk.min(m - row), col, (width / parts).min(n - col));
            // SAFETY: as above; the instruction set is there.
            unsafe { run(isa, &rows, row, rhs, (p, first), &panel) };
        }
    });
}

/// All rows of `panel`, from row `row` of the left operand on, by its columns: those of panel `p`
/// from column `first` on.
unsafe fn run(
    isa: Isa,
    rows: &Rows,
    row: usize,
    rhs: &PackedBlocks,
    place: (usize, usize),
    panel: &Panel,
) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
        unsafe fn avx512(r: &Rows, row: usize, b: &PackedBlocks, at: (usize, usize), p: &Panel) {
            // SAFETY: this function carries the features; the rest is by the caller.
            unsafe { columns::<crate::simd::Avx512>(r, row, b, at, p) }
        }
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2(r: &Rows, row: usize, b: &PackedBlocks, at: (usize, usize), p: &Panel) {
            // SAFETY: as above.
            unsafe { columns::<crate::simd::Avx2>(r, row, b, at, p) }
        }
        // SAFETY: by the caller.
        unsafe {
            match isa {
                Isa::Amx | Isa::Avx512 => return avx512(rows, row, rhs, place, panel),
                Isa::Avx2 => return avx2(rows, row, rhs, place, panel),
                Isa::Portable => (),
            }
        }
    }
    let _ = isa;
    // SAFETY: by the caller.
    unsafe { columns::<crate::simd::Portable>(rows, row, rhs, place, panel) }
}

/// A few columns of a panel in blocks.
#[derive(Clone, Copy)]
struct Columns {
    /// The first of the scales.
    heads: *const u8,
    /// The first code.
    codes: *const u8,
    kind: BlockKind,
    blocks: usize,
    /// Columns of the whole panel.
    width: usize,
}

#[inline(always)]
unsafe fn columns<V: Vector>(
    rows: &Rows,
    row: usize,
    rhs: &PackedBlocks,
    (p, first): (usize, usize),
    panel: &Panel,
) {
    let (kind, width) = (rhs.kind(), rhs.width());
    let at = rhs.panel(p);
    let columns = Columns {
        heads: at.wrapping_add(2 * first),
        codes: at.wrapping_add(kind.head() * width + WORD * first),
        kind,
        blocks: rhs.k() / BLOCK,
        width,
    };
    let vectors = panel.cols.div_ceil(V::LANES);
    let mut sums = [0.0; PASS * 64];
    let mut r = 0;
    // SAFETY: by the caller.
    unsafe {
        while r < panel.rows {
            let count = PASS.min(panel.rows - r);
            let left = [rows.place(row + r), rows.place(row + r + count - 1)];
            let to = sums.as_mut_ptr();
            match (count, vectors) {
                (1, 1) => pass::<V, 1, 1>([left[0]], columns, to),
                (1, 2) => pass::<V, 1, 2>([left[0]], columns, to),
                (1, _) => {
                    pass::<V, 1, 2>([left[0]], columns, to);
                    let rest = columns.from(2 * V::LANES);
                    pass::<V, 1, 2>([left[0]], rest, to.add(2 * V::LANES));
                }
                (_, 1) => pass::<V, 2, 1>(left, columns, to),
                (_, 2) => pass::<V, 2, 2>(left, columns, to),
                (_, _) => {
                    pass::<V, 2, 2>(left, columns, to);
                    let rest = columns.from(2 * V::LANES);
                    pass::<V, 2, 2>(left, rest, to.add(2 * V::LANES));
                }
            }
            finish::<V>(panel, r, count, vectors, to);
            r += count;
        }
    }
}

impl Columns {
    /// The columns from `col` on.
    fn from(self, col: usize) -> Self {
        Self {
            heads: self.heads.wrapping_add(2 * col),
            codes: self.codes.wrapping_add(WORD * col),
            ..self
        }
    }
}

/// `R` rows by `VECTORS` vectors of columns; a row of results is 64 places behind the one before.
#[inline(always)]
unsafe fn pass<V: Vector, const R: usize, const VECTORS: usize>(
    rows: [Place; R],
    columns: Columns,
    to: *mut f32,
) {
    let Columns { kind, width, .. } = columns;
    let block = width * kind.bytes();
    // SAFETY: by the caller.
    unsafe {
        let mut all = [[V::splat(0.0); VECTORS]; R];
        for b in 0..columns.blocks {
            let heads = columns.heads.add(b * block).cast::<u16>();
            let codes = columns.codes.add(b * block);
            let mut high = [[V::int(0); VECTORS]; R];
            let mut low = [[V::int(0); VECTORS]; R];
            for (r, row) in rows.iter().enumerate() {
                if kind != BlockKind::Q4_1 {
                    low[r] = [V::int(*row.begins.add(b * row.apart)); VECTORS];
                }
            }
            let words = if kind == BlockKind::Q8_0 { 8 } else { 4 };
            for w in 0..words {
                for v in 0..VECTORS {
                    let codes = V::load_int(codes.add(WORD * (w * width + v * V::LANES)));
                    let (first, second) = if kind == BlockKind::Q8_0 {
                        (V::flip_signs(codes), codes)
                    } else {
                        V::nibbles(codes)
                    };
                    for (r, row) in rows.iter().enumerate() {
                        let line = row.bytes.add(b * row.apart * super::rows::LINE).cast::<i32>();
                        let word = |at: usize| V::int(line.add(at).read_unaligned());
                        high[r][v] = V::dot(high[r][v], first, word(w));
                        low[r][v] = V::dot(low[r][v], first, word(8 + w));
                        if kind != BlockKind::Q8_0 {
                            high[r][v] = V::dot(high[r][v], second, word(4 + w));
                            low[r][v] = V::dot(low[r][v], second, word(12 + w));
                        }
                    }
                }
            }
            for v in 0..VECTORS {
                let scale = V::load_half(heads.add(v * V::LANES));
                for (r, row) in rows.iter().enumerate() {
                    let own = V::splat(*row.scales.add(b * row.apart));
                    let sum = V::join(high[r][v], low[r][v]).mul(own);
                    all[r][v] = sum.fma(scale, all[r][v]);
                }
                if kind == BlockKind::Q4_1 {
                    let lowest = V::load_half(heads.add(width + v * V::LANES));
                    for (r, row) in rows.iter().enumerate() {
                        let sum = f32::from_bits((*row.begins.add(b * row.apart)).cast_unsigned());
                        all[r][v] = V::splat(sum).fma(lowest, all[r][v]);
                    }
                }
            }
        }
        for (r, all) in all.into_iter().enumerate() {
            for (v, x) in all.into_iter().enumerate() {
                x.store(to.add(r * 64 + v * V::LANES));
            }
        }
    }
}
