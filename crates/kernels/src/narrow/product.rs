//! The narrow product by vectors.

use super::rows::{Form, Rows};
use super::{Narrow, PackedNarrow, widened};
use crate::gemm::{Dealing, Epilogue, Lhs, Panel, Tail, deal, finish_as, panel_width};
use crate::pool::{Shared, parallel_for, threads};
#[cfg(target_arch = "aarch64")]
use crate::simd::Neon;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Isa, Portable, Vector};

/// Values of a row of sums.
const WIDTH: usize = 64;
/// Rows of a tile at most.
const MOST: usize = 6;
/// The most rows that panels pass over.
const ROWS: usize = 384;
/// Words that memory is asked for ahead of where a panel is read.
const AHEAD: usize = 1024;

/// `isa`, or the next one that has what is needed here.
pub(super) fn usable(isa: Isa) -> Isa {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512 && !is_x86_feature_detected!("avx512vnni") {
        return Isa::Avx2;
    }
    isa
}

/// Whether products of bf16 are faster than those of f32: AMD's units take twice as many of them,
/// Intel's half as many, where there is no matrix unit.
fn has_fast_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let vendor = std::arch::x86_64::__cpuid(0);
        let is_amd = [vendor.ebx, vendor.edx, vendor.ecx]
            == [*b"Auth", *b"enti", *b"cAMD"].map(u32::from_le_bytes);
        is_amd && is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// What rows become for a weight of this kind.
pub(super) fn form(isa: Isa, kind: Narrow) -> Form {
    match kind {
        Narrow::Int8 => Form::Bytes,
        Narrow::Bf16 if isa >= Isa::Avx512 && has_fast_bf16() => Form::Pairs,
        Narrow::Bf16 => Form::F32,
    }
}

/// The product of [`crate::gemm::matmul`], whose checks have passed.
pub(crate) fn matmul(
    (m, n, k): (usize, usize, usize),
    lhs: Lhs,
    rhs: &PackedNarrow,
    out: &mut [f32],
    out_stride: usize,
    mut epilogue: Epilogue,
) {
    let isa = rhs.isa;
    let width = panel_width(isa);
    let rows = Rows::new(isa, rhs.form, (m, k), lhs);
    let panels = n.div_ceil(width);
    let for_threads = (4 * threads()).div_ceil(panels).min(m.div_ceil(48));
    let chunk = m.div_ceil(m.div_ceil(ROWS).max(for_threads));
    let chunks = m.div_ceil(chunk);
    let out = Shared::new(out);
    let pre = epilogue.pre_activation.take().map(Shared::new);
    parallel_for(chunks * panels, |task| {
        let (row, p) = (task / panels * chunk, task % panels);
        let (col, count) = (p * width, chunk.min(m - row));
        let at = row * out_stride + col;
        // SAFETY: tasks write disjoint parts of the output, and all slices reach over it.
        unsafe {
            let panel = Panel {
                rows: count,
                cols: width.min(n - col),
                c: out.get().add(at),
                c_stride: out_stride,
                tail: Tail::new(&epilogue, pre, (row, col), at),
                ..Panel::EMPTY
            };
            if rhs.form == Form::F32 && count >= widened::ROWS {
                widened::run(&rows, row, rhs, p, &panel);
            } else {
                run(isa, &rows, row, rhs, p, &panel);
            }
        }
    });
}

/// How words are multiplied and added up.
trait Dot<V: Vector> {
    type Sum: Copy;
    /// What is multiplied at once.
    type Part: Copy;
    /// Parts of a word of a column, which are words of a row.
    const PARTS: usize = 1;
    unsafe fn zero() -> Self::Sum;
    /// What is at `x` of a row, in all lanes.
    unsafe fn left(x: *const i32) -> Self::Part;
    /// Part `part` of the words of a vector of columns.
    unsafe fn right(w: V::Int, part: usize) -> Self::Part;
    unsafe fn add(sum: Self::Sum, x: Self::Part, w: Self::Part) -> Self::Sum;
    /// The sums less `shifts`.
    unsafe fn value(sum: Self::Sum, shifts: *const i32) -> V;
}

struct Bytes;

// SAFETY of the blocks below: the contract of `Vector`.
impl<V: Vector> Dot<V> for Bytes {
    type Sum = V::Int;
    type Part = V::Int;
    #[inline(always)]
    unsafe fn zero() -> V::Int {
        unsafe { V::int(0) }
    }
    #[inline(always)]
    unsafe fn left(x: *const i32) -> V::Int {
        unsafe { V::int(*x) }
    }
    #[inline(always)]
    unsafe fn right(w: V::Int, _: usize) -> V::Int {
        w
    }
    #[inline(always)]
    unsafe fn add(sum: V::Int, x: V::Int, w: V::Int) -> V::Int {
        unsafe { V::dot(sum, x, w) }
    }
    #[inline(always)]
    unsafe fn value(sum: V::Int, shifts: *const i32) -> V {
        unsafe { V::from_int(V::sub_int(sum, V::load_int(shifts.cast()))) }
    }
}

/// bf16 as f32, one after the other; rows are f32 already.
struct Halves;

impl<V: Vector> Dot<V> for Halves {
    type Sum = V;
    type Part = V;
    const PARTS: usize = 2;
    #[inline(always)]
    unsafe fn zero() -> V {
        unsafe { V::splat(0.0) }
    }
    #[inline(always)]
    unsafe fn left(x: *const i32) -> V {
        unsafe { V::splat(*x.cast()) }
    }
    #[inline(always)]
    unsafe fn right(w: V::Int, part: usize) -> V {
        unsafe { if part == 0 { V::lower_bf16(w) } else { V::upper_bf16(w) } }
    }
    #[inline(always)]
    unsafe fn add(sum: V, x: V, w: V) -> V {
        unsafe { x.fma(w, sum) }
    }
    #[inline(always)]
    unsafe fn value(sum: V, _: *const i32) -> V {
        sum
    }
}

/// Two bf16 at once, by the instruction of AVX-512 BF16.
#[cfg(target_arch = "x86_64")]
struct Pairs;

#[cfg(target_arch = "x86_64")]
impl Dot<Avx512> for Pairs {
    type Sum = Avx512;
    type Part = <Avx512 as Vector>::Int;
    #[inline(always)]
    unsafe fn zero() -> Avx512 {
        unsafe { Avx512::splat(0.0) }
    }
    #[inline(always)]
    unsafe fn left(x: *const i32) -> Self::Part {
        unsafe { Avx512::int(*x) }
    }
    #[inline(always)]
    unsafe fn right(w: Self::Part, _: usize) -> Self::Part {
        w
    }
    #[inline(always)]
    unsafe fn add(sum: Avx512, x: Self::Part, w: Self::Part) -> Avx512 {
        unsafe { sum.dot_bf16(x, w) }
    }
    #[inline(always)]
    unsafe fn value(sum: Avx512, _: *const i32) -> Avx512 {
        sum
    }
}

/// The product of a tile of so many rows: one function for each number, as a single one for all of
/// them would keep its sums on the stack.
type Sized = unsafe fn(&Rows, usize, &PackedNarrow, usize, *mut f32);

/// The rows of `panel`, which begin with row `first`, times panel `p`.
pub(super) unsafe fn run(
    isa: Isa,
    rows: &Rows,
    first: usize,
    rhs: &PackedNarrow,
    p: usize,
    panel: &Panel,
) {
    macro_rules! compiled {
        ($($features:literal)?, $vector:ty, $dot:ty, $vectors:literal, $near:literal) => {{
            #[inline(never)]
            $(#[target_feature(enable = $features)])?
            unsafe fn sized<const R: usize>(
                rows: &Rows,
                first: usize,
                rhs: &PackedNarrow,
                p: usize,
                to: *mut f32,
            ) {
                // SAFETY: this function carries the features; the rest is by the caller.
                unsafe { tile::<$vector, $dot, R, $vectors>(rows, first, rhs, p, to) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn call(r: &Rows, row: usize, b: &PackedNarrow, p: usize, to: &Panel) {
                const SIZES: [Sized; MOST] =
                    [sized::<1>, sized::<2>, sized::<3>, sized::<4>, sized::<5>, sized::<6>];
                // SAFETY: as above.
                unsafe { tiles::<$vector, $near>(&SIZES, r, row, b, p, to) }
            }
            // SAFETY: by the caller.
            unsafe { call(rows, first, rhs, p, panel) }
        }};
    }
    match (isa, rhs.form) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Amx | Isa::Avx512, Form::Bytes) => {
            compiled!(
                "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma",
                Avx512,
                Bytes,
                4,
                true
            );
        }
        #[cfg(target_arch = "x86_64")]
        (Isa::Amx | Isa::Avx512, Form::Pairs) => {
            compiled!(
                "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma",
                Avx512,
                Pairs,
                4,
                false
            );
        }
        #[cfg(target_arch = "x86_64")]
        (Isa::Amx | Isa::Avx512, Form::F32) => {
            compiled!("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma", Avx512, Halves, 4, false);
        }
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, Form::Bytes) => compiled!("avx2,fma", Avx2, Bytes, 2, true),
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, _) => compiled!("avx2,fma", Avx2, Halves, 2, false),
        #[cfg(target_arch = "aarch64")]
        (Isa::Neon, Form::Bytes) => compiled!(, Neon, Bytes, 4, true),
        #[cfg(target_arch = "aarch64")]
        (Isa::Neon, _) => compiled!(, Neon, Halves, 4, false),
        (_, Form::Bytes) => compiled!(, Portable, Bytes, 2, true),
        (_, _) => compiled!(, Portable, Halves, 2, false),
    }
}

#[inline(always)]
unsafe fn tiles<V: Vector, const NEAR: bool>(
    sizes: &[Sized; MOST],
    rows: &Rows,
    first: usize,
    rhs: &PackedNarrow,
    p: usize,
    panel: &Panel,
) {
    // A tile is finished while its sums are in the first-level cache.
    let mut sums = std::mem::MaybeUninit::<[f32; MOST * WIDTH]>::uninit();
    let vectors = panel.cols.div_ceil(V::LANES);
    let Dealing { tiles, base, more } = deal(panel.rows, V::TILE_ROWS);
    let mut row = 0;
    // SAFETY: by the caller.
    unsafe {
        for t in 0..tiles {
            let count = base + usize::from(t < more);
            sizes[count - 1](rows, first + row, rhs, p, sums.as_mut_ptr().cast());
            finish_as::<V, NEAR>(panel, row, count, vectors, sums.as_ptr().cast());
            row += count;
        }
    }
}

/// `R` rows by `P` vectors; a row of results is [`WIDTH`] places behind the one before.
#[inline(always)]
unsafe fn tile<V: Vector, D: Dot<V>, const R: usize, const P: usize>(
    rows: &Rows,
    first: usize,
    rhs: &PackedNarrow,
    p: usize,
    to: *mut f32,
) {
    let depth = rhs.k.div_ceil(rhs.kind.per_word());
    let width = P * V::LANES;
    // SAFETY: by the caller.
    unsafe {
        let mut sums = [[D::zero(); P]; R];
        let mut x = rows.words.as_ptr().add(first * rows.stride);
        let mut w = rhs.words.as_ptr().add(p * depth * width);
        for _ in 0..depth {
            V::prefetch(w.wrapping_add(AHEAD).cast());
            for part in 0..D::PARTS {
                let mut right = [D::right(V::load_int(w.cast()), part); P];
                for v in 1..P {
                    right[v] = D::right(V::load_int(w.add(v * V::LANES).cast()), part);
                }
                for r in 0..R {
                    let left = D::left(x.add(r * rows.stride));
                    for v in 0..P {
                        sums[r][v] = D::add(sums[r][v], left, right[v]);
                    }
                }
                x = x.add(1);
            }
            w = w.add(width);
        }
        for r in 0..R {
            let own = V::splat(rows.scales[first + r]);
            for v in 0..P {
                let col = p * width + v * V::LANES;
                let sum = D::value(sums[r][v], rhs.shifts.as_ptr().add(col));
                let scale = V::load(rhs.scales.as_ptr().add(col)).mul(own);
                sum.mul(scale).store(to.add(r * WIDTH + v * V::LANES));
            }
        }
    }
}
