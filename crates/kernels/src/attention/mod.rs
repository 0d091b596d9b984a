//! Scaled dot-product attention, softmax(q kᵀ s + mask) v, forward and backward, as one operation.
//!
//! Vaswani et al. 2017, arXiv:1706.03762, Eq. 1. The scores of a block of queries against a block
//! of keys are the only part of the tokens x tokens matrix that ever exists: the softmax runs with
//! a moving maximum and sum (Dao et al. 2022, arXiv:2205.14135, Algorithm 1), and the backward pass
//! computes the scores again from the saved row sums. Queries, keys and values are read where the
//! projections wrote them; no axis is moved.

mod backward;
mod cache;
mod forward;
pub mod reference;

pub use backward::{Grads, backward};
pub use cache::{CacheRow, Window, cached};
pub use forward::forward;
pub(crate) use forward::{Row, Running, softmax_row};

use crate::buffer::Buffer;
use crate::gemm::{Next, Panel, Tail, panel_width};
use crate::simd::Isa;

/// Sizes of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Samples.
    pub batch: usize,
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads (Ainslie et al. 2023, arXiv:2305.13245).
    pub kv_heads: usize,
    /// Query tokens.
    pub queries: usize,
    /// Key tokens.
    pub keys: usize,
    /// Values per head.
    pub head_dim: usize,
}

/// Where the value `[sample, token, head, 0]` lies in a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Position of the first value.
    pub offset: usize,
    /// Between samples.
    pub batch_stride: usize,
    /// Between tokens.
    pub token_stride: usize,
    /// Between heads.
    pub head_stride: usize,
}

impl Layout {
    /// Dense `[batch, tokens, heads, head_dim]`.
    pub fn dense(tokens: usize, heads: usize, head_dim: usize) -> Self {
        Self::part(tokens, heads * head_dim, 0, head_dim)
    }

    /// A part of rows of `width` values that starts at `offset`, as in a fused
    /// `[batch, tokens, 3 * heads * head_dim]`.
    pub fn part(tokens: usize, width: usize, offset: usize, head_dim: usize) -> Self {
        Self { offset, batch_stride: tokens * width, token_stride: width, head_stride: head_dim }
    }

    pub(crate) fn at(&self, sample: usize, head: usize) -> usize {
        self.offset + sample * self.batch_stride + head * self.head_stride
    }

    pub(crate) fn check(&self, what: &str, len: usize, s: &Shape, tokens: usize, heads: usize) {
        if s.batch * tokens * heads * s.head_dim == 0 {
            return;
        }
        let last = self.at(s.batch - 1, heads - 1) + (tokens - 1) * self.token_stride + s.head_dim;
        assert!(last <= len, "{what} reaches to {last}, the slice holds {len}");
    }
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mask<'a> {
    /// Query i sees keys up to i + keys - queries.
    pub causal: bool,
    /// `[batch, keys]`, 0 for a key that nobody sees.
    pub keys: Option<&'a [u8]>,
    /// Added to the scaled scores: `[batch or 1, heads or 1, queries, keys]`.
    pub bias: Option<Bias<'a>>,
}

/// An additive bias of the scores.
#[derive(Clone, Copy, Debug)]
pub struct Bias<'a> {
    /// `[batch or 1, heads or 1, queries, keys]`.
    pub values: &'a [f32],
    /// One bias per sample.
    pub per_sample: bool,
    /// One bias per head.
    pub per_head: bool,
}

impl Mask<'_> {
    fn check(&self, s: &Shape) {
        assert!(self.keys.is_none_or(|k| k.len() == s.batch * s.keys), "key mask: batch x keys");
        if let Some(b) = self.bias {
            let n = if b.per_sample { s.batch } else { 1 } * if b.per_head { s.heads } else { 1 };
            assert_eq!(b.values.len(), n * s.queries * s.keys, "attention bias");
        }
    }

    /// The bias rows of a sample and head.
    fn bias_of(&self, s: &Shape, sample: usize, head: usize) -> *const f32 {
        self.bias.map_or(std::ptr::null(), |b| {
            let mut at = 0;
            if b.per_sample {
                at = sample * if b.per_head { s.heads } else { 1 };
            }
            if b.per_head {
                at += head;
            }
            b.values[at * s.queries * s.keys..].as_ptr()
        })
    }

    /// 0 or minus infinity per key, if keys are hidden.
    fn key_bias(&self, s: &Shape, sample: usize) -> Option<Buffer<f32>> {
        self.keys.map(|keys| {
            let mut row = Buffer::uninit(s.keys);
            for (r, &seen) in row.iter_mut().zip(&keys[sample * s.keys..][..s.keys]) {
                *r = if seen == 0 { f32::NEG_INFINITY } else { 0.0 };
            }
            row
        })
    }

    /// Keys that query `i` may see.
    fn visible(&self, s: &Shape, i: usize) -> usize {
        if self.causal { (i + 1 + s.keys).saturating_sub(s.queries).min(s.keys) } else { s.keys }
    }
}

/// Rows of `head_dim` values that a product reads as its right operand.
struct Rows {
    ptr: *const f32,
    stride: usize,
    _padded: Option<Buffer<f32>>,
}

impl Rows {
    /// In place if rows are whole vectors, else copied with zeros behind each.
    unsafe fn new(isa: Isa, from: *const f32, stride: usize, rows: usize, cols: usize) -> Self {
        let lanes = isa.lanes();
        if cols.is_multiple_of(lanes) {
            return Self { ptr: from, stride, _padded: None };
        }
        let width = cols.next_multiple_of(lanes);
        let mut padded = Buffer::zeroed(rows * width);
        for (r, row) in padded.chunks_exact_mut(width).enumerate() {
            // SAFETY: by the caller, `from` reaches over the rows.
            row[..cols]
                .copy_from_slice(unsafe { std::slice::from_raw_parts(from.add(r * stride), cols) });
        }
        Self { ptr: padded.as_ptr(), stride: width, _padded: Some(padded) }
    }
}

/// The left operand of [`times_rows`].
#[derive(Clone, Copy)]
struct Left {
    ptr: *const f32,
    row_stride: usize,
    k_stride: usize,
}

/// `c[rows, cols] (+)= a[rows, depth] b[depth, cols]`, where `b` begins `skip` rows down.
unsafe fn times_rows(
    (isa, run): (Isa, unsafe fn(&Panel)),
    (rows, cols, depth): (usize, usize, usize),
    a: Left,
    b: &Rows,
    skip: usize,
    (c, c_stride): (*mut f32, usize),
    accumulate: bool,
) {
    let width = panel_width(isa);
    for col in (0..cols).step_by(width) {
        // SAFETY: by the caller.
        unsafe {
            let b_at = b.ptr.add(skip * b.stride + col);
            run(&Panel {
                rows,
                cols: width.min(cols - col),
                depth,
                a: a.ptr,
                a_stride: a.row_stride,
                k_stride: a.k_stride,
                strip_depth: 0,
                strip_from: 0,
                b: b_at,
                b_stride: b.stride,
                c: c.add(col),
                c_stride,
                tail: Tail { accumulate, ..Tail::PLAIN },
                next: Next { at: b_at, stride: b.stride },
            });
        }
    }
}

/// `c[rows, keys] = a[rows, depth] panelsᵀ` over packed panels of keys, from key `from` (a multiple
/// of the panel width) to `to`.
unsafe fn times_panels(
    (isa, run): (Isa, unsafe fn(&Panel)),
    (rows, depth): (usize, usize),
    a: Left,
    panels: &[f32],
    (from, to): (usize, usize),
    (c, c_stride): (*mut f32, usize),
) {
    let width = panel_width(isa);
    for key in (from..to).step_by(width) {
        // SAFETY: by the caller.
        unsafe {
            let b = panels.as_ptr().add(key * depth);
            run(&Panel {
                rows,
                cols: width.min(to - key),
                depth,
                a: a.ptr,
                a_stride: a.row_stride,
                k_stride: a.k_stride,
                strip_depth: 0,
                strip_from: 0,
                b,
                b_stride: width,
                c: c.add(key - from),
                c_stride,
                tail: Tail::PLAIN,
                next: Next { at: b, stride: width },
            });
        }
    }
}

/// Packs the transpose of `rows` rows of `depth` values into panels.
unsafe fn key_panels(
    isa: Isa,
    from: *const f32,
    stride: usize,
    rows: usize,
    depth: usize,
) -> Buffer<f32> {
    let width = panel_width(isa);
    let mut panels = Buffer::<f32>::uninit(rows.next_multiple_of(width) * depth);
    for row in (0..rows).step_by(width) {
        // SAFETY: by the caller, `from` reaches over the rows.
        unsafe {
            crate::gemm::pack_transposed(
                isa,
                from.add(row * stride),
                stride,
                depth,
                width.min(rows - row),
                panels.as_mut_ptr().add(row * depth),
            );
        }
    }
    panels
}

#[cfg(test)]
mod tests;
