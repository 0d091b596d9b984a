//! The left operand of a narrow product: rows of words.

use super::Narrow;
use crate::buffer::Buffer;
use crate::elementwise::largest_bits;
use crate::gemm::Lhs;
use crate::pool::{Shared, parallel_rows};
use crate::simd::{Isa, Vector, dispatch};

/// The largest byte.
const LARGEST: f32 = 127.0;
/// Words that a row is longer than what it holds, as rows that are a power of two apart would meet in
/// the same lines of the cache.
const APART: usize = 16;

/// What a row is divided by to become bytes: 0 for one of zeros, and not a number if it has values
/// that are not finite.
pub(super) fn scale(row: &[f32]) -> f32 {
    scale_of(f32::from_bits(largest_bits(row)))
}

/// The same, for the largest size of its values.
pub(super) fn scale_of(largest: f32) -> f32 {
    if !largest.is_finite() {
        f32::NAN
    } else if largest < 1e-30 {
        0.0
    } else {
        largest / LARGEST
    }
}

/// What a row is multiplied by to become bytes.
pub(super) fn inverse(scale: f32) -> f32 {
    if scale > 0.0 { 1.0 / scale } else { 0.0 }
}

/// The nearest byte to `x * inverse`.
pub(super) fn byte(x: f32, inverse: f32) -> i32 {
    // Rounds to even, as 1.5 * 2^23 has its last digit before the point. What is not finite becomes
    // some byte; the scale remembers it.
    const ROUND: f32 = 12_582_912.0;
    let bits = (x * inverse + ROUND).to_bits().cast_signed();
    (bits - ROUND.to_bits().cast_signed()).clamp(-127, 127)
}

/// The bytes of a row with this scale.
pub(super) fn bytes(row: &[f32], scale: f32) -> impl Iterator<Item = i8> {
    let inverse = inverse(scale);
    row.iter().map(move |x| byte(*x, inverse) as i8)
}

fn bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) | 0x40;
    }
    (bits + 0x7fff + (bits >> 16 & 1)) >> 16
}

/// Rounds values to bf16, in a loop that its caller compiles for an instruction set.
#[inline(always)]
pub(crate) fn round_plain(values: &mut [f32]) {
    for x in values {
        *x = f32::from_bits(bf16(*x) << 16);
    }
}

/// The same as a call, for the first `cols` of each `width` values.
pub(crate) fn round(isa: Isa, values: &mut [f32], width: usize, cols: usize) {
    #[allow(clippy::extra_unused_type_parameters)]
    #[inline(always)]
    unsafe fn all<V: Vector>(values: &mut [f32], width: usize, cols: usize) {
        values.chunks_exact_mut(width).for_each(|row| round_plain(&mut row[..cols]));
    }
    // SAFETY: the instruction set is there.
    unsafe { dispatch!(isa, all(values: &mut [f32], width: usize, cols: usize)) }
}

/// The rows of `lhs` in bf16, and how many values they are apart.
pub(crate) fn rounded_rows(isa: Isa, (m, k): (usize, usize), lhs: Lhs) -> (Buffer<f32>, usize) {
    let stride = k.next_multiple_of(APART) + APART;
    let mut rows = Buffer::<f32>::uninit(m * stride);
    let out = Shared::new(&mut rows);
    parallel_rows(m, k, 1 << 13, |first, count| {
        for row in first..first + count {
            // SAFETY: each task writes its own rows.
            let to = unsafe { out.slice(row * stride, k) };
            to.copy_from_slice(&lhs.data[row * lhs.row_stride..][..k]);
            round(isa, to, k, k);
        }
    });
    (rows, stride)
}

/// Words of bf16 from two rows of values, the second one zeros if `None`; what `to` has more is zeros.
pub(super) fn pairs(first: &[f32], second: Option<&[f32]>, to: &mut [i32]) {
    to[first.len()..].fill(0);
    match second {
        Some(second) => {
            for ((to, a), b) in to.iter_mut().zip(first).zip(second) {
                *to = (bf16(*a) | bf16(*b) << 16).cast_signed();
            }
        }
        None => {
            for (to, a) in to.iter_mut().zip(first) {
                *to = bf16(*a).cast_signed();
            }
        }
    }
}

/// The word of up to [`Narrow::per_word`] values of a weight, and the sum of its bytes.
pub(super) fn word(kind: Narrow, values: &[f32], scale: f32) -> (i32, i32) {
    match kind {
        Narrow::Bf16 => {
            let upper = values.get(1).map_or(0, |x| bf16(*x));
            ((bf16(values[0]) | upper << 16).cast_signed(), 0)
        }
        Narrow::Int8 => {
            let inverse = inverse(scale);
            let mut bytes = [0_u8; 4];
            let mut sum = 0;
            for (to, x) in bytes.iter_mut().zip(values) {
                let byte = byte(*x, inverse);
                *to = (byte as i8).cast_unsigned();
                sum += byte;
            }
            (i32::from_le_bytes(bytes), sum)
        }
    }
}

/// What the words of a row are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Four bytes.
    Bytes,
    /// Two bf16.
    Pairs,
    /// An f32 of the value of a bf16.
    F32,
}

impl Form {
    /// Values in a word of a row.
    pub(super) const fn per_word(self) -> usize {
        match self {
            Self::Bytes => 4,
            Self::Pairs => 2,
            Self::F32 => 1,
        }
    }

    /// What rows of this form are multiplied by.
    pub(super) const fn kind(self) -> Narrow {
        match self {
            Self::Bytes => Narrow::Int8,
            Self::Pairs | Self::F32 => Narrow::Bf16,
        }
    }
}

/// Rows of words; bytes are 128 higher than what they mean, so that they have no sign.
pub(super) struct Rows {
    pub(super) words: Buffer<i32>,
    /// Words between two rows.
    pub(super) stride: usize,
    /// The scale of each row; all 1 for bf16.
    pub(super) scales: Buffer<f32>,
}

impl Rows {
    /// Room for `m` rows of `k` values.
    pub(super) fn room(form: Form, m: usize, k: usize) -> Self {
        let stride = k.div_ceil(form.per_word());
        Self { words: Buffer::uninit(m * stride), stride, scales: Buffer::uninit(m) }
    }

    pub(super) fn new(isa: Isa, form: Form, (m, k): (usize, usize), lhs: Lhs) -> Self {
        // A row of f32 has a word for each of a pair.
        let depth =
            k.div_ceil(form.per_word()).next_multiple_of(if form == Form::F32 { 2 } else { 1 });
        let stride = depth.next_multiple_of(16) + APART;
        let mut words = Buffer::<i32>::uninit(m * stride);
        let mut scales = Buffer::<f32>::uninit(m);
        let out = (Shared::new(&mut words), Shared::new(&mut scales));
        parallel_rows(m, k, 1 << 13, |first, count| {
            let mut lines = Vec::new();
            for row in first..first + count {
                let values = if lhs.k_stride == 1 {
                    &lhs.data[row * lhs.row_stride..][..k]
                } else {
                    let line = (row - first) % LINES;
                    if line == 0 {
                        gather(&lhs, row, LINES.min(first + count - row), k, &mut lines);
                    }
                    &lines[line * k..][..k]
                };
                // SAFETY: each task writes its own rows; the instruction set is there.
                unsafe {
                    let to = out.0.slice(row * stride, depth);
                    let scale = &mut out.1.slice(row, 1)[0];
                    dispatch!(isa, write(form: Form, values: &[f32], to: &mut [i32], scale: &mut f32));
                }
            }
        });
        Self { words, stride, scales }
    }
}

/// Rows of a transposed operand that are gathered at once: as many as lie side by side in a line of
/// the cache.
const LINES: usize = 16;

/// `count` rows of `k` values from row `first` on, one behind the other.
fn gather(lhs: &Lhs, first: usize, count: usize, k: usize, to: &mut Vec<f32>) {
    to.clear();
    to.resize(count * k, 0.0);
    for i in 0..k {
        let from = first * lhs.row_stride + i * lhs.k_stride;
        let side_by_side = lhs.data[from..].iter().step_by(lhs.row_stride);
        for (to, value) in to[i..].iter_mut().step_by(k).zip(side_by_side.take(count)) {
            *to = *value;
        }
    }
}

// Plain loops, compiled for each instruction set.
#[allow(clippy::extra_unused_type_parameters)]
#[inline(always)]
pub(super) unsafe fn write<V: Vector>(form: Form, values: &[f32], to: &mut [i32], scale: &mut f32) {
    match form {
        Form::F32 => {
            *scale = 1.0;
            to[values.len()..].fill(0);
            for (to, x) in to.iter_mut().zip(values) {
                *to = (bf16(*x) << 16).cast_signed();
            }
        }
        Form::Pairs => {
            *scale = 1.0;
            let (pairs, rest) = values.as_chunks::<2>();
            for (to, [a, b]) in to.iter_mut().zip(pairs) {
                *to = (bf16(*a) | bf16(*b) << 16).cast_signed();
            }
            if let ([x], Some(to)) = (rest, to.last_mut()) {
                *to = bf16(*x).cast_signed();
            }
        }
        Form::Bytes => {
            *scale = self::scale(values);
            let inverse = inverse(*scale);
            // SAFETY: words are four bytes each, and there are enough for the values.
            let bytes = unsafe {
                std::slice::from_raw_parts_mut(to.as_mut_ptr().cast::<u8>(), 4 * to.len())
            };
            for (to, x) in bytes.iter_mut().zip(values) {
                // Below 127.5 in size, so the lowest byte of the number with 2^23 added is its code.
                let x = if x.is_finite() { x * inverse } else { 0.0 };
                *to = (x + 12_582_912.0 + 128.0).to_bits() as u8;
            }
            // What is missing counts as 0, in bytes that are 128 higher.
            bytes[values.len()..].fill(128);
        }
    }
}
