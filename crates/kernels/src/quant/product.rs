//! The product of rows with blocks.
//!
//! With a row's block as `scale q` and a column's as `d c + lowest`, both whole numbers inside, a
//! block adds `(Σ q c) scale d + (Σ q) scale lowest`. The first sum is exact, so every way to take it
//! gives the same bits; the blocks follow in order. So a row's result never depends on how many rows
//! there are: a token alone is what it is in the middle of a prompt.

use super::packed::{PackedBlocks, WORD};
use super::rows::{Form, Place, Rows};
use super::words::{Sized, Stretch, panels, tile};
use super::{BLOCK, BlockKind};
use crate::gemm::{Epilogue, Lhs, Panel, Tail, finish};
use crate::pool::{Shared, parallel_for, threads};
#[cfg(target_arch = "aarch64")]
use crate::simd::Neon;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Isa, Portable, Vector};

/// The fewest rows that codes are spread out for.
const MANY: usize = 6;
/// Rows that panels are read for at once.
const PASS: usize = 2;
/// Panels that are read at once.
const PANELS: usize = 2;
/// Bytes that memory is asked for ahead of where a panel is read.
const AHEAD: usize = 4608;
/// Rows of a task of many rows.
const CHUNK: usize = 256;

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

/// Panels of a tile of many rows, and the most of a task.
const fn tile_panels(isa: Isa) -> usize {
    match isa {
        Isa::Amx | Isa::Avx512 | Isa::Neon => 4,
        Isa::Avx2 | Isa::Portable => 2,
    }
}

/// The product of [`crate::gemm::matmul`], whose checks have passed.
pub(crate) fn matmul(
    (m, n, k): (usize, usize, usize),
    lhs: Lhs,
    rhs: &PackedBlocks,
    out: &mut [f32],
    out_stride: usize,
    mut epilogue: Epilogue,
) {
    let (isa, width) = (rhs.isa(), rhs.width());
    let form = if m < MANY || isa == Isa::Amx { Form::Halves } else { Form::Pairs };
    let rows = Rows::new(isa, rhs.kind(), form, (m, k), lhs);
    let panels = n.div_ceil(width);
    let out = Shared::new(out);
    let pre = epilogue.pre_activation.take().map(Shared::new);
    let corner = |row: usize, rows: usize, col: usize, cols: usize| {
        let at = row * out_stride + col;
        // SAFETY: the corner lies inside of the output, and all slices reach over it.
        unsafe {
            Panel {
                rows,
                cols,
                c: out.get().add(at),
                c_stride: out_stride,
                tail: Tail::new(&epilogue, pre, (row, col), at),
                ..Panel::EMPTY
            }
        }
    };
    let chunk = m.div_ceil(m.div_ceil(CHUNK)).next_multiple_of(16).min(m);
    let chunks = m.div_ceil(chunk);
    // A thread walks over neighbouring panels.
    let together = if panels < 16 * threads() { PANELS } else { tile_panels(isa) };
    let groups = panels.div_ceil(together);
    parallel_for(chunks * groups, |task| {
        let (row, p) = (task % chunks * chunk, task / chunks * together);
        let (col, count) = (p * width, chunk.min(m - row));
        let panel = corner(row, count, col, (together * width).min(n - col));
        // SAFETY: tasks write disjoint parts of the output; the instruction set is there.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            if isa == Isa::Amx && m >= MANY {
                return super::amx::panels(&rows, row, rhs, p, &panel);
            }
            run(isa, form, &rows, row, rhs, p, &panel);
        }
    });
}

/// All rows of `panel`, from row `row` of the left operand on, by its columns, which are those of
/// the panels from `p` on.
unsafe fn run(
    isa: Isa,
    form: Form,
    rows: &Rows,
    row: usize,
    rhs: &PackedBlocks,
    p: usize,
    panel: &Panel,
) {
    macro_rules! few {
        ($($features:literal)?, $vector:ty) => {{
            $(#[target_feature(enable = $features)])?
            unsafe fn call(r: &Rows, row: usize, b: &PackedBlocks, p: usize, to: &Panel) {
                // SAFETY: this function carries the features; the rest is by the caller.
                unsafe { columns::<$vector>(r, row, b, p, to) }
            }
            // SAFETY: by the caller.
            unsafe { call(rows, row, rhs, p, panel) }
        }};
    }
    macro_rules! many {
        ($($features:literal)?, $vector:ty, $vectors:literal) => {{
            #[inline(never)]
            $(#[target_feature(enable = $features)])?
            unsafe fn sized<const R: usize>(
                rows: &Rows,
                first: usize,
                stretch: &Stretch,
                blocks: (usize, usize),
                sums: *mut f32,
            ) {
                // SAFETY: as above.
                unsafe { tile::<$vector, R, $vectors>(rows, first, stretch, blocks, sums) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn call(r: &Rows, row: usize, b: &PackedBlocks, p: usize, to: &Panel) {
                const SIZES: [Sized; 6] =
                    [sized::<1>, sized::<2>, sized::<3>, sized::<4>, sized::<5>, sized::<6>];
                // SAFETY: as above.
                unsafe { panels::<$vector>(&SIZES, r, row, b, p, to) }
            }
            // SAFETY: by the caller.
            unsafe { call(rows, row, rhs, p, panel) }
        }};
    }
    match (isa, form) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Amx | Isa::Avx512, Form::Halves) => {
            few!("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma", Avx512);
        }
        #[cfg(target_arch = "x86_64")]
        (Isa::Amx | Isa::Avx512, Form::Pairs) => {
            many!("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma", Avx512, 4);
        }
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, Form::Halves) => few!("avx2,fma", Avx2),
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, Form::Pairs) => many!("avx2,fma", Avx2, 2),
        #[cfg(target_arch = "aarch64")]
        (Isa::Neon, Form::Halves) => few!(, Neon),
        #[cfg(target_arch = "aarch64")]
        (Isa::Neon, Form::Pairs) => many!(, Neon, 4),
        (_, Form::Halves) => few!(, Portable),
        (_, Form::Pairs) => many!(, Portable, 2),
    }
}

#[inline(always)]
unsafe fn columns<V: Vector>(rows: &Rows, row: usize, rhs: &PackedBlocks, p: usize, panel: &Panel) {
    // SAFETY: by the caller.
    unsafe {
        match rhs.kind() {
            BlockKind::Q8_0 => columns_of::<V, 8>(rows, row, rhs, p, panel),
            BlockKind::Q4_0 | BlockKind::Q4_1 => columns_of::<V, 4>(rows, row, rhs, p, panel),
        }
    }
}

#[inline(always)]
unsafe fn columns_of<V: Vector, const WORDS: usize>(
    rows: &Rows,
    row: usize,
    rhs: &PackedBlocks,
    p: usize,
    panel: &Panel,
) {
    let (kind, blocks) = (rhs.kind(), rhs.k() / BLOCK);
    let vectors = panel.cols.div_ceil(V::LANES);
    let mut sums = [0.0; PASS * 64];
    let mut r = 0;
    // SAFETY: by the caller.
    unsafe {
        while r < panel.rows {
            let count = PASS.min(panel.rows - r);
            let left = [rows.place(row + r), rows.place(row + r + count - 1)];
            let mut v = 0;
            while v < vectors {
                let right = [rhs.panel(p + v), rhs.panel(p + v + 1)];
                let to = sums.as_mut_ptr().add(v * V::LANES);
                match (count, vectors - v) {
                    (1, 1) => pass::<V, 1, 1, WORDS>([left[0]], [right[0]], kind, blocks, to),
                    (1, _) => pass::<V, 1, 2, WORDS>([left[0]], right, kind, blocks, to),
                    (_, 1) => pass::<V, 2, 1, WORDS>(left, [right[0]], kind, blocks, to),
                    (_, _) => pass::<V, 2, 2, WORDS>(left, right, kind, blocks, to),
                }
                v += PANELS;
            }
            finish::<V>(panel, r, count, vectors, sums.as_ptr());
            r += count;
        }
    }
}

/// `R` rows by `P` panels whose blocks have `WORDS` words of codes; a row of results is 64 places behind the one before.
#[inline(always)]
unsafe fn pass<V: Vector, const R: usize, const P: usize, const WORDS: usize>(
    rows: [Place; R],
    panels: [*const u8; P],
    kind: BlockKind,
    blocks: usize,
    to: *mut f32,
) {
    let block = V::LANES * kind.bytes();
    // SAFETY: by the caller.
    unsafe {
        let mut all = [[V::splat(0.0); P]; R];
        for b in 0..blocks {
            let mut high = [[V::int(0); P]; R];
            let mut low = [[V::int(0); P]; R];
            for (r, row) in rows.iter().enumerate() {
                if kind != BlockKind::Q4_1 {
                    low[r] = [V::int(*row.begins.add(b * row.apart)); P];
                }
            }
            for (v, panel) in panels.iter().enumerate() {
                let heads = panel.add(b * block);
                for line in (0..block).step_by(64) {
                    V::prefetch(heads.wrapping_add(AHEAD + line).cast());
                }
                let codes = heads.add(V::LANES * kind.head());
                for w in 0..WORDS {
                    let codes = V::load_int(codes.add(WORD * w * V::LANES));
                    let (first, second) =
                        if WORDS == 8 { (V::flip_signs(codes), codes) } else { V::nibbles(codes) };
                    for (r, row) in rows.iter().enumerate() {
                        let line = row.bytes.add(b * row.apart * super::rows::LINE).cast::<i32>();
                        let word = |at: usize| V::int(line.add(at).read_unaligned());
                        high[r][v] = V::dot(high[r][v], first, word(w));
                        low[r][v] = V::dot(low[r][v], first, word(8 + w));
                        if WORDS == 4 {
                            high[r][v] = V::dot(high[r][v], second, word(4 + w));
                            low[r][v] = V::dot(low[r][v], second, word(12 + w));
                        }
                    }
                }
                let scale = V::load_half(heads.cast());
                for (r, row) in rows.iter().enumerate() {
                    let own = V::splat(*row.scales.add(b * row.apart));
                    let sum = V::join(high[r][v], low[r][v]).mul(own);
                    all[r][v] = sum.fma(scale, all[r][v]);
                }
                if kind == BlockKind::Q4_1 {
                    let lowest = V::load_half(heads.cast::<u16>().add(V::LANES));
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
