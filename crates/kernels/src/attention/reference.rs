//! Attention as plain loops in f64.

use super::{Layout, Mask, Shape};

/// Probabilities `[batch, heads, queries, keys]`.
fn probabilities(
    s: Shape,
    (q, q_at): (&[f32], Layout),
    (k, k_at): (&[f32], Layout),
    scale: f32,
    mask: Mask,
) -> Vec<f64> {
    let mut p = vec![0.0; s.batch * s.heads * s.queries * s.keys];
    for (row, p) in p.chunks_exact_mut(s.keys).enumerate() {
        let (pair, i) = (row / s.queries, row % s.queries);
        let (sample, head) = (pair / s.heads, pair % s.heads);
        let kv_head = head / (s.heads / s.kv_heads);
        for (j, p) in p.iter_mut().enumerate() {
            let mut x = 0.0;
            for c in 0..s.head_dim {
                let a = q[q_at.at(sample, head) + i * q_at.token_stride + c];
                let b = k[k_at.at(sample, kv_head) + j * k_at.token_stride + c];
                x += f64::from(a) * f64::from(b);
            }
            x *= f64::from(scale);
            if let Some(b) = mask.bias {
                let per = if b.per_head { s.heads } else { 1 };
                let sample = if b.per_sample { sample } else { 0 };
                let head = if b.per_head { head } else { 0 };
                x += f64::from(b.values[((sample * per + head) * s.queries + i) * s.keys + j]);
            }
            let hidden = (mask.causal && j + s.queries > i + s.keys)
                || mask.keys.is_some_and(|m| m[sample * s.keys + j] == 0);
            *p = if hidden { f64::NEG_INFINITY } else { x };
        }
        let max = p.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if max == f64::NEG_INFINITY {
            p.fill(0.0);
            continue;
        }
        for x in p.iter_mut() {
            *x = (*x - max).exp();
        }
        let sum: f64 = p.iter().sum();
        for x in p.iter_mut() {
            *x /= sum;
        }
    }
    p
}

/// As [`super::forward`].
pub fn forward(
    s: Shape,
    q: (&[f32], Layout),
    k: (&[f32], Layout),
    (v, v_at): (&[f32], Layout),
    scale: f32,
    mask: Mask,
    (out, out_at): (&mut [f32], Layout),
) {
    let p = probabilities(s, q, k, scale, mask);
    for (row, p) in p.chunks_exact(s.keys).enumerate() {
        let (pair, i) = (row / s.queries, row % s.queries);
        let (sample, head) = (pair / s.heads, pair % s.heads);
        let kv_head = head / (s.heads / s.kv_heads);
        for c in 0..s.head_dim {
            let sum: f64 = (0..s.keys)
                .map(|j| {
                    let v = v[v_at.at(sample, kv_head) + j * v_at.token_stride + c];
                    p[j] * f64::from(v)
                })
                .sum();
            out[out_at.at(sample, head) + i * out_at.token_stride + c] = sum as f32;
        }
    }
}
