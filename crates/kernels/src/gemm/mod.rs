//! Matrix product with a fused tail: `y = act(x B + bias) + residual`.
//!
//! The right operand is read in panels of 64 columns (16 without AVX-512), inner dimension outermost inside
//! a panel; weights are packed so once ([`PackedRhs`]), anything else on the fly. The left operand
//! is read in place, row by row. A tile of 6 rows by 4 vectors (AVX-512) keeps 24 sums in registers;
//! rows are dealt evenly over tiles, so that there is no slow rest. Panels are split over threads,
//! and rows too when there are few panels.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
mod pack;
pub mod reference;
mod tile;

pub(crate) use pack::{pack_row_major, pack_transposed};
#[cfg(target_arch = "x86_64")]
pub(crate) use tile::finish_rows;
pub(crate) use tile::{Dealing, Next, Panel, Tail, deal, finish, finish_as, panel_fn, panel_width};

use crate::activation::Activation;
use crate::buffer::Buffer;
use crate::narrow::{self, PackedNarrow};
use crate::pool::{Shared, parallel_for, threads};
use crate::quant::{self, PackedBlocks};
use crate::simd::Isa;

/// The longest inner dimension that is walked in one go: a panel of it stays in the second-level
/// cache. Longer ones go in even blocks.
const BLOCK: usize = 3072;
/// The same where the right operand comes unpacked: what panels are packed from needs room as well.
const PACKED_BLOCK: usize = 1024;
/// The most rows that panels pass over.
const ROWS: usize = 396;

/// What operands become before they are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operands {
    /// As they are.
    Exact,
    /// The nearest bf16; only of operands that are not packed.
    Bf16,
}

/// The left operand `[m, k]`.
#[derive(Clone, Copy, Debug)]
pub struct Lhs<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) row_stride: usize,
    pub(crate) k_stride: usize,
}

impl<'a> Lhs<'a> {
    /// Rows of `k` values, `stride` apart.
    pub fn rows(data: &'a [f32], stride: usize) -> Self {
        Self { data, row_stride: stride, k_stride: 1 }
    }

    /// The transpose of `k` rows of `m` values, `stride` apart.
    pub fn transposed(data: &'a [f32], stride: usize) -> Self {
        Self { data, row_stride: 1, k_stride: stride }
    }
}

/// The right operand `[k, n]`.
#[derive(Clone, Copy, Debug)]
pub enum Rhs<'a> {
    /// Packed beforehand.
    Packed(&'a PackedRhs),
    /// `k` rows of `n` values, `stride` apart.
    RowMajor(&'a [f32], usize),
    /// The transpose of `n` rows of `k` values, `stride` apart: the layout of linear weights.
    Transposed(&'a [f32], usize),
    /// In blocks of few bits.
    Blocks(&'a PackedBlocks),
    /// In bf16 or bytes.
    Narrow(&'a PackedNarrow),
}

impl Rhs<'_> {
    /// Where panel `p` is read from, inner value `from` first.
    fn source(&self, (p, from): (usize, usize), width: usize, k: usize) -> Next {
        let (data, at, stride) = match *self {
            Rhs::Blocks(_) | Rhs::Narrow(_) => unreachable!("these have products of their own"),
            Rhs::Packed(packed) => (&packed.panels[..], (p * k + from) * width, width),
            Rhs::RowMajor(data, stride) => (data, from * stride + p * width, stride),
            // As many values one after the other, where rows touch.
            Rhs::Transposed(data, stride) => (data, p * width * stride + from * width, width),
        };
        Next { at: data.as_ptr().wrapping_add(at), stride }
    }
}

/// A right operand in the panels that the kernels read.
#[derive(Debug)]
pub struct PackedRhs {
    panels: Buffer<f32>,
    k: usize,
    n: usize,
    isa: Isa,
}

impl PackedRhs {
    /// Packs `rhs` of `[k, n]`, on all threads.
    ///
    /// # Panics
    /// If the slice is too short.
    pub fn new(k: usize, n: usize, rhs: Rhs) -> Self {
        Self::for_isa(Isa::best(), k, n, rhs, Operands::Exact)
    }

    fn for_isa(isa: Isa, k: usize, n: usize, rhs: Rhs, operands: Operands) -> Self {
        let width = panel_width(isa);
        let panels = n.div_ceil(width);
        let mut buffer = Buffer::<f32>::uninit(panels * width * k);
        let out = Shared::new(&mut buffer);
        check_rhs(k, n, rhs);
        parallel_for(panels, |p| {
            // SAFETY: each task writes its own panel.
            unsafe { pack_panel(isa, (0, k), n, rhs, p, out.get().add(p * width * k), operands) }
        });
        Self { panels: buffer, k, n, isa }
    }

    /// Inner dimension.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Memory that the panels take, in bytes.
    pub fn bytes(&self) -> usize {
        self.panels.len() * size_of::<f32>()
    }
}

/// What happens to a product before it is written.
#[derive(Debug, Default)]
pub struct Epilogue<'a> {
    /// Added to each row, `[n]`.
    pub bias: Option<&'a [f32]>,
    /// Added to each column, `[m]`.
    pub row_bias: Option<&'a [f32]>,
    /// Applied after the bias.
    pub activation: Activation,
    /// Receives the values before the activation, `[m, n]` with the stride of the output.
    pub pre_activation: Option<&'a mut [f32]>,
    /// Added after the activation, `[m, n]` with the stride of the output.
    pub residual: Option<&'a [f32]>,
    /// Adds to what the output holds instead of overwriting it (before the bias).
    pub accumulate: bool,
}

fn check_rhs(k: usize, n: usize, rhs: Rhs) {
    let (len, need) = match rhs {
        Rhs::Packed(p) => {
            assert!(p.k == k && p.n == n, "packed {}x{}, asked for {k}x{n}", p.k, p.n);
            return;
        }
        Rhs::Blocks(b) => {
            assert!(b.k() == k && b.n() == n, "packed {}x{}, asked for {k}x{n}", b.k(), b.n());
            return;
        }
        Rhs::Narrow(b) => {
            assert!(b.k() == k && b.n() == n, "packed {}x{}, asked for {k}x{n}", b.k(), b.n());
            return;
        }
        Rhs::RowMajor(data, stride) => (data.len(), span(k, stride, n)),
        Rhs::Transposed(data, stride) => (data.len(), span(n, stride, k)),
    };
    assert!(len >= need, "right operand of {k}x{n} needs {need} values, has {len}");
}

/// Values that `rows` rows of `len` values, `stride` apart, reach over.
fn span(rows: usize, stride: usize, len: usize) -> usize {
    if rows == 0 { 0 } else { (rows - 1) * stride + len }
}

/// Packs the inner values `from..from + depth` of panel `p` of `rhs` to `to`.
#[inline]
unsafe fn pack_panel(
    isa: Isa,
    (from, depth): (usize, usize),
    n: usize,
    rhs: Rhs,
    p: usize,
    to: *mut f32,
    operands: Operands,
) {
    let width = panel_width(isa);
    let first = p * width;
    let cols = width.min(n - first);
    // SAFETY: `check_rhs` compared the slices with the sizes; `to` has room for `depth * width`.
    unsafe {
        match rhs {
            Rhs::Packed(_) | Rhs::Blocks(_) | Rhs::Narrow(_) => {
                unreachable!("a packed operand is not packed again")
            }
            Rhs::RowMajor(data, stride) => {
                let data = data.as_ptr().add(from * stride + first);
                pack_row_major(isa, data, stride, depth, cols, to);
            }
            Rhs::Transposed(data, stride) => {
                let data = data.as_ptr().add(first * stride + from);
                pack_transposed(isa, data, stride, depth, cols, to);
            }
        }
        if operands == Operands::Bf16 {
            narrow::round(isa, std::slice::from_raw_parts_mut(to, depth * width), width, cols);
        }
    }
}

/// `out[m, n] = lhs[m, k] rhs[k, n]` with `epilogue`; rows of `out` are `out_stride` apart.
///
/// # Panics
/// If a slice is too short for the sizes.
pub fn matmul(
    (m, n, k): (usize, usize, usize),
    lhs: Lhs,
    rhs: Rhs,
    out: &mut [f32],
    out_stride: usize,
    epilogue: Epilogue,
) {
    let isa = match rhs {
        Rhs::Packed(packed) => packed.isa,
        _ => Isa::best(),
    };
    matmul_for((isa, Operands::Exact), (m, n, k), lhs, rhs, out, out_stride, epilogue);
}

pub(crate) fn matmul_for(
    (isa, operands): (Isa, Operands),
    (m, n, k): (usize, usize, usize),
    lhs: Lhs,
    rhs: Rhs,
    out: &mut [f32],
    out_stride: usize,
    mut epilogue: Epilogue,
) {
    if m == 0 || n == 0 {
        return;
    }
    check_rhs(k, n, rhs);
    let lhs_need = if k == 0 { 0 } else { (m - 1) * lhs.row_stride + (k - 1) * lhs.k_stride + 1 };
    assert!(lhs.data.len() >= lhs_need, "left operand: needs {lhs_need}, has {}", lhs.data.len());
    let out_need = span(m, out_stride, n);
    assert!(
        out_stride >= n && out.len() >= out_need,
        "output: needs {out_need}, has {}",
        out.len()
    );
    assert!(epilogue.bias.is_none_or(|b| b.len() >= n), "bias is shorter than {n}");
    assert!(epilogue.row_bias.is_none_or(|b| b.len() >= m), "row bias is shorter than {m}");
    assert!(epilogue.residual.is_none_or(|r| r.len() >= out_need), "residual is too short");
    assert!(
        epilogue.pre_activation.as_ref().is_none_or(|p| p.len() >= out_need),
        "room for the values before the activation is too small"
    );

    match rhs {
        Rhs::Blocks(blocks) => {
            return quant::matmul((m, n, k), lhs, blocks, out, out_stride, epilogue);
        }
        Rhs::Narrow(narrow) => {
            return narrow::matmul((m, n, k), lhs, narrow, out, out_stride, epilogue);
        }
        _ => {}
    }
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx && operands == Operands::Exact {
        return amx::matmul((m, n, k), lhs, rhs, out, out_stride, epilogue);
    }
    let width = panel_width(isa);
    let panels = n.div_ceil(width);
    // Rows are split where they would not stay in the cache from panel to panel, and when the
    // panels alone would leave threads idle.
    let for_threads = (4 * threads()).div_ceil(panels).min(m.div_ceil(48));
    let chunks = m.div_ceil(ROWS).max(for_threads);
    let rows_per_chunk = m.div_ceil(chunks);
    let chunks = m.div_ceil(rows_per_chunk);

    let rounded;
    let lhs = if operands == Operands::Bf16 && lhs.k_stride == 1 {
        rounded = narrow::rounded_rows(isa, (m, k), lhs);
        Lhs::rows(&rounded.0, rounded.1)
    } else {
        lhs
    };
    // By the operand alone, so that sums do not depend on how rows are dealt to threads.
    let longest = if matches!(rhs, Rhs::Packed(_)) { BLOCK } else { PACKED_BLOCK };
    let packed;
    let rhs = match rhs {
        Rhs::Packed(_) => rhs,
        _ if chunks == 1 && lhs.k_stride == 1 => rhs,
        _ => {
            packed = PackedRhs::for_isa(isa, k, n, rhs, operands);
            Rhs::Packed(&packed)
        }
    };
    let strips = (lhs.k_stride != 1).then(|| {
        // SAFETY: the operand was checked above.
        unsafe {
            let from = lhs.data.as_ptr();
            pack::pack_strips(isa, (m, k), rows_per_chunk, from, lhs.k_stride, operands)
        }
    });

    let block = k.div_ceil(k.div_ceil(longest).max(1)).max(1);

    let out = Shared::new(out);
    let pre = epilogue.pre_activation.take().map(Shared::new);
    let run = panel_fn(isa);
    parallel_for(chunks * panels, |task| {
        let (chunk, p) = (task / panels, task % panels);
        let row = chunk * rows_per_chunk;
        let rows = rows_per_chunk.min(m - row);
        let col = p * width;
        let cols = width.min(n - col);
        let mut scratch = None;
        // SAFETY: tasks write disjoint tiles of the output; all sizes were checked above.
        unsafe {
            let at = row * out_stride + col;
            let tail = Tail::new(&epilogue, pre, (row, col), at);
            let mut from = 0;
            loop {
                let depth = block.min(k - from);
                let (first, last) = (from == 0, from + depth >= k);
                let b = if let Rhs::Packed(packed) = rhs {
                    packed.panels.as_ptr().add((p * k + from) * width)
                } else {
                    let scratch = scratch.get_or_insert_with(|| Buffer::uninit(width * block));
                    pack_panel(isa, (from, depth), n, rhs, p, scratch.as_mut_ptr(), operands);
                    scratch.as_ptr()
                };
                let (a, strip_depth) = match &strips {
                    Some(s) => (s.as_ptr().add(row * k), k),
                    None => (lhs.data.as_ptr().add(row * lhs.row_stride + from), 0),
                };
                let next = if last { ((p + 1) % panels, 0) } else { (p, from + depth) };
                run(&Panel {
                    rows,
                    cols,
                    depth,
                    a,
                    a_stride: lhs.row_stride,
                    k_stride: 1,
                    strip_depth,
                    strip_from: from,
                    b,
                    b_stride: width,
                    c: out.get().add(at),
                    c_stride: out_stride,
                    tail: if last {
                        Tail { accumulate: tail.accumulate || !first, ..tail }
                    } else {
                        Tail { accumulate: tail.accumulate || !first, ..Tail::PLAIN }
                    },
                    next: rhs.source(next, width, k),
                });
                from += depth;
                if last {
                    break;
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::values;
    use proptest::prelude::*;

    fn transpose(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
        (0..rows * cols).map(|i| x[(i % rows) * cols + i / rows]).collect()
    }

    fn close(got: &[f32], want: &[f32], k: usize) {
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            assert!((g - w).abs() <= 2e-6 * (k as f32).sqrt().max(4.0), "at {i}: {g} {w}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        // All activations but the last, whose square multiplies the error of a sum by the sum.
        #[test]
        fn equals_the_reference(m in 1..70_usize, n in 1..200_usize, k in 0..90_usize, seed: u32,
                                pad in 0..5_usize, act in 0..8_usize, tail in 0..16_usize) {
            let (a, b) = (values(m * k, seed), values(k * n, seed ^ 1));
            let (bias, rb) = (values(n, seed ^ 2), values(m, seed ^ 3));
            let stride = n + pad;
            let (residual, before) = (values(m * stride, seed ^ 4), values(m * stride, seed ^ 5));
            let activation = Activation::ALL[act];
            let (at, bt) = (transpose(&a, m, k), transpose(&b, k, n));
            let epilogue = || Epilogue {
                bias: (tail & 1 != 0).then_some(&bias[..]),
                row_bias: (tail & 2 != 0).then_some(&rb[..]),
                residual: (tail & 4 != 0).then_some(&residual[..]),
                accumulate: tail & 8 != 0,
                activation,
                pre_activation: None,
            };
            let mut want = before.clone();
            let mut want_pre = before.clone();
            reference::matmul((m, n, k), &a, &b, &mut want, stride,
                Epilogue { pre_activation: Some(&mut want_pre), ..epilogue() });
            for &isa in Isa::available() {
                let packed = PackedRhs::for_isa(isa, k, n, Rhs::Transposed(&bt, k), Operands::Exact);
                for rhs in [Rhs::Packed(&packed), Rhs::RowMajor(&b, n), Rhs::Transposed(&bt, k)] {
                    for lhs in [Lhs::rows(&a, k), Lhs::transposed(&at, m)] {
                        let (mut got, mut pre) = (before.clone(), before.clone());
                        matmul_for((isa, Operands::Exact), (m, n, k), lhs, rhs, &mut got, stride,
                            Epilogue { pre_activation: Some(&mut pre), ..epilogue() });
                        close(&got, &want, k);
                        close(&pre, &want_pre, k);
                    }
                }
            }
        }
    }

    #[test]
    fn long_inner_dimensions_go_in_blocks() {
        let (m, n, k) = (13, 130, 2500);
        let (a, b) = (values(m * k, 7), values(k * n, 8));
        let bias = values(n, 9);
        let at = transpose(&a, m, k);
        let tail =
            || Epilogue { bias: Some(&bias), activation: Activation::Relu, ..Default::default() };
        let mut want = vec![0.0; m * n];
        reference::matmul((m, n, k), &a, &b, &mut want, n, tail());
        for &isa in Isa::available() {
            for lhs in [Lhs::rows(&a, k), Lhs::transposed(&at, m)] {
                let mut got = vec![f32::NAN; m * n];
                matmul_for(
                    (isa, Operands::Exact),
                    (m, n, k),
                    lhs,
                    Rhs::RowMajor(&b, n),
                    &mut got,
                    n,
                    tail(),
                );
                close(&got, &want, k);
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_others() {
        let (n, k) = (384, 384);
        let (a, b) = (values(50 * k, 1), values(k * n, 2));
        let mut all = vec![0.0; 50 * n];
        matmul(
            (50, n, k),
            Lhs::rows(&a, k),
            Rhs::RowMajor(&b, n),
            &mut all,
            n,
            Epilogue::default(),
        );
        for r in [0, 17, 49] {
            let mut one = vec![0.0; n];
            let row = &a[r * k..][..k];
            matmul(
                (1, n, k),
                Lhs::rows(row, k),
                Rhs::RowMajor(&b, n),
                &mut one,
                n,
                Epilogue::default(),
            );
            assert_eq!(one, all[r * n..][..n]);
        }
    }
}
