//! The backward pass.
//!
//! With P the probabilities and O the output: dV = Pᵀ dO, dP = dO Vᵀ, dS = P (dP - rowsum(dO O)),
//! dQ = s dS K, dK = s dSᵀ Q.

use super::forward::KEYS;
use super::{Layout, Left, Mask, Rows, Shape, key_panels, times_panels, times_rows};
use crate::buffer::Buffer;
use crate::gemm::panel_fn;
use crate::pool::{Shared, parallel_for};
use crate::simd::math::exp;
use crate::simd::{Isa, Vector, dispatch, load_up_to, store_up_to};

/// Queries of a block.
const QUERIES: usize = 48;

/// Gradients of [`super::forward`] for queries, keys and values from `out`, `log_sums` and
/// `grad_out` (laid out like `out`). The three gradients are parts of one slice, as of a fused
/// projection, or three slices; they are overwritten. So is `grad_bias[batch, heads, queries,
/// keys]`, if given: the gradient of the bias before sums over what shares it.
///
/// # Panics
/// If a slice is too short for its layout.
pub fn backward(
    shape: Shape,
    (q, q_at): (&[f32], Layout),
    (k, k_at): (&[f32], Layout),
    (v, v_at): (&[f32], Layout),
    scale: f32,
    mask: Mask,
    (out, grad_out, out_at): (&[f32], &[f32], Layout),
    log_sums: &[f32],
    grads: Grads,
    grad_bias: Option<&mut [f32]>,
) {
    let isa = Isa::best();
    backward_for(
        isa,
        shape,
        (q, q_at),
        (k, k_at),
        (v, v_at),
        scale,
        mask,
        (out, grad_out, out_at),
        log_sums,
        grads,
        grad_bias,
    );
}

/// Where the gradients go, each with the layout of its operand.
pub enum Grads<'a> {
    /// One slice that holds all three.
    Fused(&'a mut [f32]),
    /// A slice for queries and one for keys and values.
    QueryAndKeyValue(&'a mut [f32], &'a mut [f32]),
    /// A slice for each.
    Separate(&'a mut [f32], &'a mut [f32], &'a mut [f32]),
}

pub(super) fn backward_for(
    isa: Isa,
    shape: Shape,
    (q, q_at): (&[f32], Layout),
    (k, k_at): (&[f32], Layout),
    (v, v_at): (&[f32], Layout),
    scale: f32,
    mask: Mask,
    (out, grad_out, out_at): (&[f32], &[f32], Layout),
    log_sums: &[f32],
    grads: Grads,
    grad_bias: Option<&mut [f32]>,
) {
    let s = shape;
    let (dq, dk, dv) = match grads {
        Grads::Fused(all) => {
            q_at.check("query gradient", all.len(), &s, s.queries, s.heads);
            k_at.check("key gradient", all.len(), &s, s.keys, s.kv_heads);
            v_at.check("value gradient", all.len(), &s, s.keys, s.kv_heads);
            let p = Shared::new(all);
            (p, p, p)
        }
        Grads::QueryAndKeyValue(dq, dkv) => {
            q_at.check("query gradient", dq.len(), &s, s.queries, s.heads);
            k_at.check("key gradient", dkv.len(), &s, s.keys, s.kv_heads);
            v_at.check("value gradient", dkv.len(), &s, s.keys, s.kv_heads);
            let p = Shared::new(dkv);
            (Shared::new(dq), p, p)
        }
        Grads::Separate(dq, dk, dv) => {
            q_at.check("query gradient", dq.len(), &s, s.queries, s.heads);
            k_at.check("key gradient", dk.len(), &s, s.keys, s.kv_heads);
            v_at.check("value gradient", dv.len(), &s, s.keys, s.kv_heads);
            (Shared::new(dq), Shared::new(dk), Shared::new(dv))
        }
    };
    q_at.check("queries", q.len(), &s, s.queries, s.heads);
    k_at.check("keys", k.len(), &s, s.keys, s.kv_heads);
    v_at.check("values", v.len(), &s, s.keys, s.kv_heads);
    out_at.check("output", out.len().min(grad_out.len()), &s, s.queries, s.heads);
    mask.check(&s);
    assert_eq!(log_sums.len(), s.batch * s.heads * s.queries);
    if s.queries * s.keys == 0 {
        return;
    }
    let scores = s.batch * s.heads * s.queries * s.keys;
    assert!(grad_bias.as_ref().is_none_or(|g| g.len() == scores), "bias gradient");
    let grad_bias = grad_bias.map(Shared::new);
    let engine = (isa, panel_fn(isa));
    let group = s.heads / s.kv_heads;
    let d = s.head_dim;

    parallel_for(s.batch * s.kv_heads, |task| {
        let (sample, kv_head) = (task / s.kv_heads, task % s.kv_heads);
        // SAFETY: layouts were checked; a task owns its key head and the query heads of its group.
        unsafe {
            let k = k.as_ptr().add(k_at.at(sample, kv_head));
            let v = v.as_ptr().add(v_at.at(sample, kv_head));
            let key_columns = key_panels(isa, k, k_at.token_stride, s.keys, d);
            let value_columns = key_panels(isa, v, v_at.token_stride, s.keys, d);
            let key_rows = Rows::new(isa, k, k_at.token_stride, s.keys, d);
            let key_bias = mask.key_bias(&s, sample);
            let dk = dk.get().add(k_at.at(sample, kv_head));
            let dv = dv.get().add(v_at.at(sample, kv_head));
            let stride = s.keys.min(KEYS).next_multiple_of(64);
            let mut p = Buffer::uninit(QUERIES * stride);
            let mut ds = Buffer::uninit(QUERIES * stride);
            let (p, ds) = (p.as_mut_ptr(), ds.as_mut_ptr());
            let mut fresh = true;
            for head in kv_head * group..(kv_head + 1) * group {
                let bias = mask.bias_of(&s, sample, head);
                let q = q.as_ptr().add(q_at.at(sample, head));
                let dq = dq.get().add(q_at.at(sample, head));
                let o = out.as_ptr().add(out_at.at(sample, head));
                let go = grad_out.as_ptr().add(out_at.at(sample, head));
                for query in (0..s.queries).step_by(QUERIES) {
                    let rows = QUERIES.min(s.queries - query);
                    let q = q.add(query * q_at.token_stride);
                    let go = go.add(query * out_at.token_stride);
                    let o = o.add(query * out_at.token_stride);
                    let q_left = Left { ptr: q, row_stride: q_at.token_stride, k_stride: 1 };
                    let go_left = Left { ptr: go, row_stride: out_at.token_stride, k_stride: 1 };
                    let q_rows = Rows::new(isa, q, q_at.token_stride, rows, d);
                    let go_rows = Rows::new(isa, go, out_at.token_stride, rows, d);
                    let dq = (dq.add(query * q_at.token_stride), q_at.token_stride);
                    for from in (0..s.keys).step_by(KEYS) {
                        let to = (from + KEYS).min(s.keys);
                        let keys = to - from;
                        times_panels(
                            engine,
                            (rows, d),
                            q_left,
                            &key_columns,
                            (from, to),
                            (p, stride),
                        );
                        times_panels(
                            engine,
                            (rows, d),
                            go_left,
                            &value_columns,
                            (from, to),
                            (ds, stride),
                        );
                        for r in 0..rows {
                            let at = (sample * s.heads + head) * s.queries + query + r;
                            let row = Row {
                                p: p.add(r * stride),
                                ds: ds.add(r * stride),
                                seen: mask.visible(&s, query + r).clamp(from, to) - from,
                                keys,
                                scale,
                                log_sum: log_sums[at],
                                bias: if bias.is_null() {
                                    bias
                                } else {
                                    bias.add((query + r) * s.keys + from)
                                },
                                key_bias: key_bias
                                    .as_ref()
                                    .map_or(std::ptr::null(), |b| b.as_ptr().add(from)),
                                out: o.add(r * out_at.token_stride),
                                grad_out: go.add(r * out_at.token_stride),
                                head_dim: d,
                                grad_bias: grad_bias.map_or(std::ptr::null_mut(), |g| {
                                    g.get().add(at * s.keys + from)
                                }),
                            };
                            dispatch!(isa, score_grads(row: Row));
                        }
                        let left = Left { ptr: ds, row_stride: stride, k_stride: 1 };
                        times_rows(engine, (rows, d, keys), left, &key_rows, from, dq, from > 0);
                        let left = |ptr| Left { ptr, row_stride: 1, k_stride: stride };
                        let dk = (dk.add(from * k_at.token_stride), k_at.token_stride);
                        times_rows(engine, (keys, d, rows), left(ds), &q_rows, 0, dk, !fresh);
                        let dv = (dv.add(from * v_at.token_stride), v_at.token_stride);
                        times_rows(engine, (keys, d, rows), left(p), &go_rows, 0, dv, !fresh);
                    }
                    fresh = false;
                }
            }
        }
    });
}

/// One query against one block of keys.
#[derive(Clone, Copy)]
struct Row {
    /// Scores; becomes probabilities.
    p: *mut f32,
    /// Gradients of the probabilities; becomes gradients of the unscaled scores.
    ds: *mut f32,
    seen: usize,
    keys: usize,
    scale: f32,
    log_sum: f32,
    bias: *const f32,
    key_bias: *const f32,
    out: *const f32,
    grad_out: *const f32,
    head_dim: usize,
    /// Receives the gradients of the scaled scores, if not null.
    grad_bias: *mut f32,
}

#[inline(always)]
unsafe fn score_grads<V: Vector>(row: Row) {
    // SAFETY: by the caller.
    unsafe {
        let mut dot = V::splat(0.0);
        for i in (0..row.head_dim).step_by(V::LANES) {
            let n = row.head_dim - i;
            dot = load_up_to::<V>(row.out.add(i), n).fma(load_up_to(row.grad_out.add(i), n), dot);
        }
        let dot = V::splat(dot.sum());
        let (scale, floor) = (V::splat(row.scale), V::splat(-85.0));
        // A query that sees nothing has log-sum minus infinity and no gradient.
        let log_sum = if row.log_sum.is_finite() { row.log_sum } else { f32::MAX };
        let log_sum = V::splat(log_sum);
        for i in (0..row.seen).step_by(V::LANES) {
            let n = row.seen - i;
            let mut x = load_up_to::<V>(row.p.add(i), n).mul(scale);
            if !row.bias.is_null() {
                x = x.add(load_up_to(row.bias.add(i), n));
            }
            if !row.key_bias.is_null() {
                x = x.add(load_up_to(row.key_bias.add(i), n));
            }
            let x = x.sub(log_sum);
            let p = exp(x).zero_where_less(x, floor);
            let ds = load_up_to::<V>(row.ds.add(i), n).sub(dot).mul(p);
            store_up_to(p, row.p.add(i), n);
            store_up_to(ds.mul(scale), row.ds.add(i), n);
            if !row.grad_bias.is_null() {
                store_up_to(ds, row.grad_bias.add(i), n);
            }
        }
        for i in row.seen..row.keys {
            if !row.grad_bias.is_null() {
                *row.grad_bias.add(i) = 0.0;
            }
            *row.p.add(i) = 0.0;
            *row.ds.add(i) = 0.0;
        }
    }
}
