//! The forward pass.

use super::{Layout, Left, Mask, Rows, Shape, key_panels, times_panels, times_rows};
use crate::buffer::Buffer;
use crate::gemm::{Panel, panel_fn};
use crate::pool::{Shared, parallel_for, threads};
use crate::simd::math::exp;
use crate::simd::{Isa, Vector, dispatch, load_up_to, store_up_to};

/// Queries of a block.
pub(super) const QUERIES: usize = 24;
/// Keys of a block; a multiple of every panel width.
pub(super) const KEYS: usize = 512;

/// `out = softmax(q kᵀ scale + mask) v` per head. `log_sums[batch, heads, queries]` receives the
/// logarithm of each row's sum of exponentials, which [`super::backward`] needs. A query that sees
/// no key gets zeros.
///
/// # Panics
/// If a slice is too short for its layout.
pub fn forward(
    shape: Shape,
    (q, q_at): (&[f32], Layout),
    (k, k_at): (&[f32], Layout),
    (v, v_at): (&[f32], Layout),
    scale: f32,
    mask: Mask,
    (out, out_at): (&mut [f32], Layout),
    log_sums: Option<&mut [f32]>,
) {
    forward_for(
        Isa::best(),
        shape,
        (q, q_at),
        (k, k_at),
        (v, v_at),
        scale,
        mask,
        (out, out_at),
        log_sums,
    );
}

pub(super) fn forward_for(
    isa: Isa,
    shape: Shape,
    (q, q_at): (&[f32], Layout),
    (k, k_at): (&[f32], Layout),
    (v, v_at): (&[f32], Layout),
    scale: f32,
    mask: Mask,
    (out, out_at): (&mut [f32], Layout),
    log_sums: Option<&mut [f32]>,
) {
    let s = shape;
    q_at.check("queries", q.len(), &s, s.queries, s.heads);
    k_at.check("keys", k.len(), &s, s.keys, s.kv_heads);
    v_at.check("values", v.len(), &s, s.keys, s.kv_heads);
    out_at.check("output", out.len(), &s, s.queries, s.heads);
    mask.check(&s);
    assert!(log_sums.as_ref().is_none_or(|l| l.len() == s.batch * s.heads * s.queries));
    let pairs = s.batch * s.heads;
    if pairs * s.queries == 0 {
        return;
    }
    // Queries are split too when there are fewer heads than threads could use.
    let splits = (2 * threads()).div_ceil(pairs).min(s.queries.div_ceil(4 * QUERIES)).max(1);
    let per_split = s.queries.div_ceil(splits).next_multiple_of(QUERIES);
    let out = Shared::new(out);
    let log_sums = log_sums.map(Shared::new);
    let engine = (isa, panel_fn(isa));

    parallel_for(pairs * splits, |task| {
        let (pair, split) = (task / splits, task % splits);
        let (sample, head) = (pair / s.heads, pair % s.heads);
        let kv_head = head / (s.heads / s.kv_heads);
        let (first, last) = (split * per_split, ((split + 1) * per_split).min(s.queries));
        if first >= last {
            return;
        }
        // SAFETY: layouts were checked; tasks write disjoint queries of disjoint heads.
        unsafe {
            let k = k.as_ptr().add(k_at.at(sample, kv_head));
            let v = v.as_ptr().add(v_at.at(sample, kv_head));
            let panels = key_panels(isa, k, k_at.token_stride, s.keys, s.head_dim);
            let values = Rows::new(isa, v, v_at.token_stride, s.keys, s.head_dim);
            let key_bias = mask.key_bias(&s, sample);
            let bias = mask.bias_of(&s, sample, head);
            let stride = s.keys.min(KEYS).next_multiple_of(64);
            let mut scores = Buffer::uninit(QUERIES * stride);
            let scores = scores.as_mut_ptr();

            for query in (first..last).step_by(QUERIES) {
                let rows = QUERIES.min(last - query);
                let left = Left {
                    ptr: q.as_ptr().add(q_at.at(sample, head) + query * q_at.token_stride),
                    row_stride: q_at.token_stride,
                    k_stride: 1,
                };
                let out = out.get().add(out_at.at(sample, head) + query * out_at.token_stride);
                let block = Block {
                    rows,
                    head_dim: s.head_dim,
                    left,
                    panels: &panels,
                    values: &values,
                    scale,
                    visible: &|r| mask.visible(&s, query + r),
                    bias: if bias.is_null() { bias } else { bias.add(query * s.keys) },
                    bias_stride: s.keys,
                    key_bias: key_bias.as_ref().map_or(std::ptr::null(), |b| b.as_ptr()),
                    scores: (scores, stride),
                    out: (out, out_at.token_stride),
                };
                let running = block.attend(engine);
                if let Some(sums) = log_sums {
                    for (r, running) in running[..rows].iter().enumerate() {
                        let at = pair * s.queries + query + r;
                        *sums.get().add(at) = running.max + running.sum.ln();
                    }
                }
            }
        }
    });
}

/// A block of at most [`QUERIES`] queries of one head against all keys that they see.
pub(super) struct Block<'a> {
    pub(super) rows: usize,
    pub(super) head_dim: usize,
    /// The queries.
    pub(super) left: Left,
    /// The keys, packed by [`key_panels`].
    pub(super) panels: &'a [f32],
    pub(super) values: &'a Rows,
    pub(super) scale: f32,
    /// Keys that a query of the block sees; grows with the query.
    pub(super) visible: &'a dyn Fn(usize) -> usize,
    /// Added to the scores, a row of `bias_stride` per query; may be null.
    pub(super) bias: *const f32,
    pub(super) bias_stride: usize,
    /// Added to the scores of every query; may be null.
    pub(super) key_bias: *const f32,
    /// Room for the scores against [`KEYS`] keys, and its stride.
    pub(super) scores: (*mut f32, usize),
    /// Where the results go, and how far rows are apart.
    pub(super) out: (*mut f32, usize),
}

impl Block<'_> {
    /// # Safety
    /// Pointers reach over the sizes given.
    pub(super) unsafe fn attend(&self, engine: (Isa, unsafe fn(&Panel))) -> [Running; QUERIES] {
        let isa = engine.0;
        let ((scores, stride), (out, out_stride)) = (self.scores, self.out);
        let mut running = [Running::START; QUERIES];
        let end = (self.visible)(self.rows - 1);
        // SAFETY: by the caller.
        unsafe {
            for from in (0..end.max(1)).step_by(KEYS) {
                let to = (from + KEYS).min(end);
                let sizes = (self.rows, self.head_dim);
                times_panels(engine, sizes, self.left, self.panels, (from, to), (scores, stride));
                for (r, running) in running[..self.rows].iter_mut().enumerate() {
                    let row = Row {
                        scores: scores.add(r * stride),
                        seen: (self.visible)(r).clamp(from, to) - from,
                        keys: to - from,
                        scale: self.scale,
                        bias: offset(self.bias, r * self.bias_stride + from),
                        key_bias: offset(self.key_bias, from),
                    };
                    let alpha = dispatch!(isa, softmax_row(row: Row, running: &mut Running) -> f32);
                    if from > 0 {
                        scale_row(isa, out.add(r * out_stride), self.head_dim, alpha);
                    }
                }
                let p = Left { ptr: scores, row_stride: stride, k_stride: 1 };
                let sizes = (self.rows, self.head_dim, to - from);
                times_rows(engine, sizes, p, self.values, from, self.out, from > 0);
            }
            for (r, running) in running[..self.rows].iter().enumerate() {
                let inverse = if running.sum > 0.0 { 1.0 / running.sum } else { 0.0 };
                scale_row(isa, out.add(r * out_stride), self.head_dim, inverse);
            }
        }
        running
    }
}

/// `ptr + n`, or null.
fn offset(ptr: *const f32, n: usize) -> *const f32 {
    if ptr.is_null() { ptr } else { ptr.wrapping_add(n) }
}

/// The largest score of a row so far and the sum of its exponentials.
#[derive(Clone, Copy)]
pub(crate) struct Running {
    max: f32,
    pub(crate) sum: f32,
}

impl Running {
    /// Before any score.
    pub(crate) const START: Self = Self { max: -1e30, sum: 0.0 };
}

/// A row of scores against one block of keys.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    pub(crate) scores: *mut f32,
    /// Keys in sight.
    seen: usize,
    /// Keys of the block; those out of sight get 0.
    pub(crate) keys: usize,
    scale: f32,
    bias: *const f32,
    key_bias: *const f32,
}

impl Row {
    /// A row of scores that are all in sight.
    pub(crate) fn of(scores: &mut [f32], scale: f32) -> Self {
        let (bias, key_bias) = (std::ptr::null(), std::ptr::null());
        let keys = scores.len();
        Self { scores: scores.as_mut_ptr(), seen: keys, keys, scale, bias, key_bias }
    }
}

/// Turns scores into exponentials and moves the maximum and the sum; returns the factor that makes
/// earlier results fit the new maximum.
#[inline(always)]
pub(crate) unsafe fn softmax_row<V: Vector>(row: Row, running: &mut Running) -> f32 {
    // SAFETY: by the caller.
    unsafe {
        let scale = V::splat(row.scale);
        let mut largest = V::splat(running.max);
        for i in (0..row.seen).step_by(V::LANES) {
            let n = row.seen - i;
            let mut x = load_up_to::<V>(row.scores.add(i), n).mul(scale);
            if !row.bias.is_null() {
                x = x.add(load_up_to(row.bias.add(i), n));
            }
            if !row.key_bias.is_null() {
                x = x.add(load_up_to(row.key_bias.add(i), n));
            }
            store_up_to(x, row.scores.add(i), n);
            if n >= V::LANES {
                largest = x.max(largest);
            } else {
                for j in 0..n {
                    largest = V::splat(*row.scores.add(i + j)).max(largest);
                }
            }
        }
        let max = largest.largest();
        let (top, floor) = (V::splat(max), V::splat(-85.0));
        let mut sum = V::splat(0.0);
        for i in (0..row.seen).step_by(V::LANES) {
            let n = row.seen - i;
            let x = load_up_to::<V>(row.scores.add(i), n).sub(top);
            let e = exp(x).zero_where_less(x, floor);
            store_up_to(e, row.scores.add(i), n);
            if n >= V::LANES {
                sum = sum.add(e);
            } else {
                sum = sum.add(V::load_first(row.scores.add(i), n));
            }
        }
        for i in row.seen..row.keys {
            *row.scores.add(i) = 0.0;
        }
        let alpha = (running.max - max).exp();
        running.sum = running.sum * alpha + sum.sum();
        running.max = max;
        alpha
    }
}

/// Multiplies `n` values by `factor`.
unsafe fn scale_row(isa: Isa, row: *mut f32, n: usize, factor: f32) {
    #[inline(always)]
    unsafe fn run<V: Vector>(row: *mut f32, n: usize, factor: f32) {
        for i in (0..n).step_by(V::LANES) {
            // SAFETY: by the caller.
            unsafe {
                let x = load_up_to::<V>(row.add(i), n - i).mul(V::splat(factor));
                store_up_to(x, row.add(i), n - i);
            }
        }
    }
    // SAFETY: by the caller.
    unsafe { dispatch!(isa, run(row: *mut f32, n: usize, factor: f32)) }
}
