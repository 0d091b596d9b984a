//! Products whose operands are narrower than f32: bf16, or whole numbers of 8 bits.
//!
//! Both read words of 32 bits, two bf16 or four bytes, and add their products to f32 or to whole
//! numbers of 32 bits; the layout is one and the same. bf16: both operands are rounded to the nearest.
//! 8 bits: `w ≈ d c` with a scale for each output, `x ≈ s q` with one for each row that is found on
//! the way, so nothing has to be calibrated; the sum `Σ q c` is exact, and the result is `s d Σ q c`.

mod attention;
mod product;
mod rows;
mod widened;

pub use attention::{attend, attends};
pub(crate) use product::matmul;
pub(crate) use rows::{round, round_plain, rounded_rows};

use crate::buffer::Buffer;
use crate::gemm::{self, Epilogue, Lhs, Operands, Rhs, panel_width};
use crate::pool::{Shared, parallel_for};
use crate::simd::Isa;
use rows::Form;

/// What a narrow operand is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Narrow {
    /// The upper half of an f32, rounded to the nearest.
    Bf16,
    /// Signed bytes with a scale.
    Int8,
}

impl Narrow {
    /// Values in a word of 32 bits.
    const fn per_word(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::Int8 => 4,
        }
    }
}

/// A right operand in panels of words: for each word along the inner dimension, those of all columns.
#[derive(Debug)]
pub struct PackedNarrow {
    words: Buffer<i32>,
    /// The scale of each column, of whole panels; all 1 for bf16.
    scales: Buffer<f32>,
    /// What is taken off each column's sum, as rows are stored 128 higher; all 0 for bf16.
    shifts: Buffer<i32>,
    kind: Narrow,
    /// What rows become to meet them.
    form: Form,
    k: usize,
    n: usize,
    isa: Isa,
}

impl PackedNarrow {
    /// Packs the transpose of a weight `[n, k]`, on all threads.
    ///
    /// # Panics
    /// If the slice has another length.
    pub fn new(kind: Narrow, (n, k): (usize, usize), weight: &[f32]) -> Self {
        Self::for_isa(product::usable(Isa::best()), kind, (n, k), weight)
    }

    pub(crate) fn for_isa(isa: Isa, kind: Narrow, (n, k): (usize, usize), weight: &[f32]) -> Self {
        assert_eq!(weight.len(), n * k, "a weight of {n} x {k}");
        let (width, depth) = (panel_width(isa), k.div_ceil(kind.per_word()));
        let panels = n.div_ceil(width);
        let mut words = Buffer::<i32>::zeroed(panels * depth * width);
        let (mut scales, mut shifts) =
            (Buffer::zeroed(panels * width), Buffer::zeroed(panels * width));
        let out = (Shared::new(&mut words), Shared::new(&mut scales), Shared::new(&mut shifts));
        parallel_for(panels, |p| {
            for (col, row) in (p * width..n.min((p + 1) * width)).enumerate() {
                let values = &weight[row * k..][..k];
                let scale = match kind {
                    Narrow::Bf16 => 1.0,
                    Narrow::Int8 => rows::scale(values),
                };
                // SAFETY: each task writes its own panel.
                unsafe {
                    out.1.slice(row, 1)[0] = scale;
                    let to = out.0.slice(p * depth * width, depth * width);
                    let mut sum = 0;
                    for (values, to) in
                        values.chunks(kind.per_word()).zip(to[col..].iter_mut().step_by(width))
                    {
                        let (word, of_word) = rows::word(kind, values, scale);
                        *to = word;
                        sum += of_word;
                    }
                    out.2.slice(row, 1)[0] = 128 * sum;
                }
            }
        });
        Self { words, scales, shifts, kind, form: product::form(isa, kind), k, n, isa }
    }

    /// Packs values `[k, n]`, `stride` apart, as bf16, on all threads.
    fn of_columns(isa: Isa, (k, n): (usize, usize), values: &[f32], stride: usize) -> Self {
        let kind = Narrow::Bf16;
        let (width, depth) = (panel_width(isa), k.div_ceil(2));
        let panels = n.div_ceil(width);
        let mut words = Buffer::<i32>::uninit(panels * depth * width);
        let mut scales = Buffer::uninit(panels * width);
        scales.fill(1.0);
        let shifts = Buffer::zeroed(panels * width);
        let out = Shared::new(&mut words);
        // Some rows of words of one panel are a task.
        const ROWS: usize = 64;
        let parts = depth.div_ceil(ROWS);
        parallel_for(panels * parts, |task| {
            let (p, part) = (task / parts, task % parts);
            let (from, cols) = (part * ROWS, width.min(n - p * width));
            let count = ROWS.min(depth - from);
            // SAFETY: each task writes its own rows of its own panel.
            let to = unsafe { out.slice((p * depth + from) * width, count * width) };
            for (j, to) in to.chunks_exact_mut(width).enumerate() {
                let row = |i: usize| &values[i * stride + p * width..][..cols];
                let first = 2 * (from + j);
                rows::pairs(row(first), (first + 1 < k).then(|| row(first + 1)), to);
            }
        });
        Self { words, scales, shifts, kind, form: product::form(isa, kind), k, n, isa }
    }

    /// Inner dimension.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Memory that it takes, in bytes.
    pub fn bytes(&self) -> usize {
        4 * (self.words.len() + 2 * self.scales.len())
    }
}

/// [`gemm::matmul`] of operands that are rounded to bf16, with sums of f32: what a layer multiplies
/// while it learns. `rhs` is not packed.
///
/// # Panics
/// As for [`gemm::matmul`], or if `rhs` is packed.
pub fn matmul_bf16(
    (m, n, k): (usize, usize, usize),
    lhs: Lhs,
    rhs: Rhs,
    out: &mut [f32],
    out_stride: usize,
    epilogue: Epilogue,
) {
    let isa = product::usable(Isa::best());
    let is_plain = matches!(rhs, Rhs::RowMajor(..) | Rhs::Transposed(..));
    if is_plain && product::form(isa, Narrow::Bf16) == Form::F32 {
        let how = (Isa::best(), Operands::Bf16);
        return gemm::matmul_for(how, (m, n, k), lhs, rhs, out, out_stride, epilogue);
    }
    let packed = match rhs {
        Rhs::RowMajor(values, stride) => PackedNarrow::of_columns(isa, (k, n), values, stride),
        Rhs::Transposed(values, stride) => {
            assert_eq!(stride, k, "rows that touch");
            PackedNarrow::for_isa(isa, Narrow::Bf16, (n, k), values)
        }
        _ => panic!("a right operand that is not packed"),
    };
    gemm::matmul((m, n, k), lhs, Rhs::Narrow(&packed), out, out_stride, epilogue);
}

/// The bytes that a weight's row `[k]` is multiplied as, and the scale that they stand times.
pub fn to_bytes(row: &[f32]) -> (Vec<i8>, f32) {
    let scale = rows::scale(row);
    (rows::bytes(row, scale).collect(), scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::Activation;
    use crate::gemm::{Epilogue, Lhs, Rhs, matmul, reference};
    use crate::noise::values;
    use proptest::prelude::*;

    /// What remains of each row of `k` values.
    fn rounded(kind: Narrow, x: &[f32], k: usize) -> Vec<f32> {
        let row = |row: &[f32]| {
            let scale = rows::scale(row);
            let value = |x: f32| match kind {
                Narrow::Bf16 => {
                    let bits = x.to_bits();
                    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
                }
                Narrow::Int8 => (x * (1.0 / scale)).round_ties_even() * scale,
            };
            row.iter().map(|x| value(*x)).collect::<Vec<_>>()
        };
        x.chunks(k).flat_map(row).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn equals_the_reference_on_rounded_values(m in 1..70_usize, n in 1..150_usize, k in 1..200_usize,
                                                  seed: u32, tail in 0..8_usize, narrow in 0..2_usize) {
            let kind = [Narrow::Bf16, Narrow::Int8][narrow];
            let (x, w) = (values(m * k, seed), values(n * k, seed ^ 1));
            let (bias, residual) = (values(n, seed ^ 2), values(m * n, seed ^ 3));
            let epilogue = || Epilogue {
                bias: (tail & 1 != 0).then_some(&bias[..]),
                residual: (tail & 2 != 0).then_some(&residual[..]),
                activation: if tail & 4 == 0 { Activation::None } else { Activation::Silu },
                ..Epilogue::default()
            };
            let (near_x, near_w) = (rounded(kind, &x, k), rounded(kind, &w, k));
            let turned: Vec<f32> = (0..k * n).map(|i| near_w[i % n * k + i / n]).collect();
            let mut want = vec![0.0; m * n];
            reference::matmul((m, n, k), &near_x, &turned, &mut want, n, epilogue());
            for &isa in Isa::available() {
                let packed = PackedNarrow::for_isa(product::usable(isa), kind, (n, k), &w);
                let mut got = vec![f32::NAN; m * n];
                let rhs = Rhs::Narrow(&packed);
                matmul((m, n, k), Lhs::rows(&x, k), rhs, &mut got, n, epilogue());
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    let most = 1e-5 * (k as f32).sqrt();
                    prop_assert!((got - want).abs() < most, "{isa:?} {kind:?} {i}: {got} {want}");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn what_is_rounded_on_the_way_equals_the_reference(m in 1..120_usize, n in 1..150_usize,
                                                           k in 1..1200_usize, seed: u32) {
            let (x, w) = (values(m * k, seed), values(k * n, seed ^ 1));
            let turn = |x: &[f32], rows: usize, cols: usize| -> Vec<f32> {
                (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
            };
            let (near_x, near_w) = (rounded(Narrow::Bf16, &x, k), rounded(Narrow::Bf16, &w, n));
            let mut want = vec![0.0; m * n];
            reference::matmul((m, n, k), &near_x, &near_w, &mut want, n, Epilogue::default());
            let (turned_x, turned_w) = (turn(&x, m, k), turn(&w, k, n));
            for lhs in [Lhs::rows(&x, k), Lhs::transposed(&turned_x, m)] {
                for rhs in [Rhs::RowMajor(&w, n), Rhs::Transposed(&turned_w, k)] {
                    let mut all = vec![vec![f32::NAN; m * n]; 1 + Isa::available().len()];
                    matmul_bf16((m, n, k), lhs, rhs, &mut all[0], n, Epilogue::default());
                    for (isa, got) in Isa::available().iter().zip(&mut all[1..]) {
                        let how = (*isa, Operands::Bf16);
                        gemm::matmul_for(how, (m, n, k), lhs, rhs, got, n, Epilogue::default());
                    }
                    for (i, (got, want)) in all.iter().flat_map(|got| got.iter().zip(&want)).enumerate() {
                        let most = 1e-5 * (k as f32).sqrt();
                        prop_assert!((got - want).abs() < most, "{i}: {got} {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_others() {
        let (m, n, k) = (150, 130, 333);
        let (x, w) = (values(m * k, 3), values(n * k, 4));
        for kind in [Narrow::Bf16, Narrow::Int8] {
            for &isa in Isa::available() {
                let packed = PackedNarrow::for_isa(product::usable(isa), kind, (n, k), &w);
                let product = |x: &[f32]| {
                    let m = x.len() / k;
                    let mut out = vec![0.0; m * n];
                    let (lhs, rhs) = (Lhs::rows(x, k), Rhs::Narrow(&packed));
                    matmul((m, n, k), lhs, rhs, &mut out, n, Epilogue::default());
                    out
                };
                let all = product(&x);
                for (row, count) in [(0, 1), (149, 1), (7, 2), (20, 17)] {
                    let some = product(&x[row * k..][..count * k]);
                    assert_eq!(some, all[row * n..][..count * n], "{isa:?} {kind:?} {row}");
                }
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn one_instruction_equals_two() {
        if !is_x86_feature_detected!("avx512bf16") {
            return;
        }
        let (m, n, k) = (9, 70, 133);
        let (x, w) = (values(m * k, 8), values(n * k, 9));
        let product = |form| {
            let mut packed = PackedNarrow::for_isa(Isa::Avx512, Narrow::Bf16, (n, k), &w);
            packed.form = form;
            let mut out = vec![0.0; m * n];
            let (lhs, rhs) = (Lhs::rows(&x, k), Rhs::Narrow(&packed));
            matmul((m, n, k), lhs, rhs, &mut out, n, Epilogue::default());
            out
        };
        for (got, want) in product(Form::Pairs).iter().zip(product(Form::F32)) {
            assert!((got - want).abs() < 1e-4, "{got} {want}");
        }
    }

    #[test]
    fn what_is_not_finite_is_seen() {
        let (n, k) = (20, 40);
        let w = values(n * k, 5);
        for kind in [Narrow::Bf16, Narrow::Int8] {
            for value in [f32::NAN, f32::INFINITY] {
                let packed = PackedNarrow::new(kind, (n, k), &w);
                let mut x = values(3 * k, 6);
                x[k + 7] = value;
                let mut out = vec![0.0; 3 * n];
                let rhs = Rhs::Narrow(&packed);
                matmul((3, n, k), Lhs::rows(&x, k), rhs, &mut out, n, Epilogue::default());
                assert!(out[..n].iter().chain(&out[2 * n..]).all(|x| x.is_finite()), "{kind:?}");
                assert!(out[n..2 * n].iter().all(|x| !x.is_finite()), "{kind:?} {value}");
            }
        }
    }
}
