//! Attention of new tokens to tokens whose keys and values were kept.
//!
//! Keys are kept as the panels that [`super::forward`] packs, so a step packs nothing and reads each
//! key and value once for all query heads that share them. The results are those of
//! [`super::forward`] bit for bit.

use super::forward::{Block, KEYS, QUERIES};
use super::{Bias, Layout, Left, Rows};
use crate::buffer::Buffer;
use crate::gemm::{panel_fn, panel_width};
use crate::pool::{Shared, parallel_for, threads};
use crate::simd::Isa;

/// Keys and values of one sample.
#[derive(Debug)]
pub struct CacheRow {
    isa: Isa,
    kv_heads: usize,
    head_dim: usize,
    len: usize,
    /// Tokens that there is room for; a multiple of the panel width.
    room: usize,
    /// Per head, panels of transposed keys.
    keys: Buffer<f32>,
    /// Per head, a row of whole vectors per token.
    values: Buffer<f32>,
}

impl Clone for CacheRow {
    /// With room for little more than the tokens that are there.
    fn clone(&self) -> Self {
        let room = (self.len + 1).next_multiple_of(panel_width(self.isa));
        let (keys, values) = self.with_room(room);
        Self { room, keys, values, ..*self }
    }
}

impl CacheRow {
    /// A row without tokens.
    pub fn new(kv_heads: usize, head_dim: usize) -> Self {
        Self::for_isa(Isa::best(), kv_heads, head_dim)
    }

    pub(super) fn for_isa(isa: Isa, kv_heads: usize, head_dim: usize) -> Self {
        let empty = || Buffer::uninit(0);
        Self { isa, kv_heads, head_dim, len: 0, room: 0, keys: empty(), values: empty() }
    }

    /// Tokens.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Memory that a token takes, in bytes.
    pub fn token_bytes(&self) -> usize {
        self.kv_heads * (self.head_dim + self.value_width()) * size_of::<f32>()
    }

    /// Memory that it takes, in bytes.
    pub fn bytes(&self) -> usize {
        (self.keys.len() + self.values.len()) * size_of::<f32>()
    }

    /// Drops all tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Values between two tokens of a head.
    fn value_width(&self) -> usize {
        self.head_dim.next_multiple_of(self.isa.lanes())
    }

    /// Makes room for `tokens` in all.
    pub fn reserve(&mut self, tokens: usize) {
        if tokens <= self.room {
            return;
        }
        let room = tokens.max(self.room + self.room / 2).next_multiple_of(panel_width(self.isa));
        (self.keys, self.values) = self.with_room(room);
        self.room = room;
    }

    /// Keys and values with room for `room` tokens, a multiple of the panel width.
    fn with_room(&self, room: usize) -> (Buffer<f32>, Buffer<f32>) {
        let resized = |old: &Buffer<f32>, per_token: usize| {
            // Zeros, as a product may read what is behind the last token.
            let mut new = Buffer::zeroed(self.kv_heads * room * per_token);
            let used = self.len.next_multiple_of(panel_width(self.isa)).min(self.room) * per_token;
            for head in 0..self.kv_heads {
                let from = &old[head * self.room * per_token..][..used];
                new[head * room * per_token..][..used].copy_from_slice(from);
            }
            new
        };
        (resized(&self.keys, self.head_dim), resized(&self.values, self.value_width()))
    }

    /// Adds `tokens` tokens, whose keys and values are `[tokens, kv_heads, head_dim]`, each token
    /// `stride` values after the one before it.
    ///
    /// # Panics
    /// If a slice is too short.
    pub fn push(&mut self, keys: &[f32], values: &[f32], tokens: usize, stride: usize) {
        self.reserve(self.len + tokens);
        let (width, d, value_width) = (panel_width(self.isa), self.head_dim, self.value_width());
        for t in 0..tokens {
            let at = self.len + t;
            let (panel, column) = (at / width * width * d, at % width);
            for head in 0..self.kv_heads {
                let key = &keys[t * stride + head * d..][..d];
                let to = &mut self.keys[head * self.room * d + panel..][..width * d];
                for (to, k) in to[column..].iter_mut().step_by(width).zip(key) {
                    *to = *k;
                }
                let value = &values[t * stride + head * d..][..d];
                let to = (head * self.room + at) * value_width;
                self.values[to..][..d].copy_from_slice(value);
            }
        }
        self.len += tokens;
    }
}

/// What the new tokens see of a cache.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    /// Each new token sees the tokens of its row up to itself; else all of them.
    pub is_causal: bool,
    /// New tokens of each row; they are the last of those that the cache holds if causal.
    pub queries: &'a [usize],
    /// Added to the scaled scores, `[batch or 1, heads or 1, tokens, keys]`.
    pub bias: Option<Bias<'a>>,
    /// Keys in a row of the bias.
    pub bias_keys: usize,
}

/// `out = softmax(q kᵀ scale + bias) v`: queries `[rows, tokens, heads, head_dim]` against the tokens
/// of their row. Queries behind those that a row has are left as they are.
///
/// # Panics
/// If sizes do not fit.
pub fn cached(
    rows: &[&CacheRow],
    (heads, tokens): (usize, usize),
    q: &[f32],
    scale: f32,
    window: Window,
    out: &mut [f32],
) {
    let Some(first) = rows.first() else { return };
    let (isa, kv_heads, d) = (first.isa, first.kv_heads, first.head_dim);
    let fits = |r: &&CacheRow| r.isa == isa && r.kv_heads == kv_heads && r.head_dim == d;
    assert!(rows.iter().all(fits) && heads.is_multiple_of(kv_heads), "rows of one cache");
    let len = rows.len() * tokens * heads * d;
    assert!(q.len() == len && out.len() == len && window.queries.len() == rows.len());
    for (row, n) in rows.iter().zip(window.queries) {
        assert!(*n <= tokens && (!window.is_causal || *n <= row.len), "new tokens of a row");
        assert!(window.bias.is_none() || row.len <= window.bias_keys, "keys of the bias");
    }
    if let Some(b) = window.bias {
        let n = if b.per_sample { rows.len() } else { 1 } * if b.per_head { heads } else { 1 };
        assert_eq!(b.values.len(), n * tokens * window.bias_keys, "attention bias");
    }
    let at = Layout::dense(tokens, heads, d);
    let group = heads / kv_heads;
    // One query per row: the heads that share keys go together. Else head by head, and queries are
    // split where there are too few heads for the threads.
    let together = tokens == 1 && window.bias.is_none() && group <= QUERIES;
    let per_row = if together { kv_heads } else { heads };
    let splits = (2 * threads()).div_ceil(rows.len() * per_row);
    let splits = splits.min(tokens.div_ceil(4 * QUERIES)).max(1);
    let per_split = tokens.div_ceil(splits).next_multiple_of(QUERIES);
    let engine = (isa, panel_fn(isa));
    let out = Shared::new(out);
    parallel_for(rows.len() * per_row * splits, |task| {
        let (pair, split) = (task / splits, task % splits);
        let (r, head) = (pair / per_row, pair % per_row);
        let (row, queries) = (rows[r], window.queries[r]);
        let kv_head = if together { head } else { head / group };
        let head = if together { head * group } else { head };
        let panels = &row.keys[kv_head * row.room * d..][..row.room * d];
        let width = row.value_width();
        let values = Rows {
            ptr: row.values[kv_head * row.room * width..].as_ptr(),
            stride: width,
            _padded: None,
        };
        let stride = row.len.clamp(1, KEYS).next_multiple_of(64);
        let mut scores = Buffer::uninit(QUERIES * stride);
        let (begin, end) = (split * per_split, ((split + 1) * per_split).min(queries));
        for query in (begin..end).step_by(QUERIES) {
            let past = row.len - if window.is_causal { queries } else { 0 };
            let (count, q_stride) =
                if together { (group, d) } else { (QUERIES.min(end - query), at.token_stride) };
            let visible = |i: usize| {
                if !window.is_causal {
                    row.len
                } else if together {
                    past + 1
                } else {
                    past + query + i + 1
                }
            };
            let bias = window.bias.map_or(std::ptr::null(), |b| {
                let sample = if b.per_sample { r } else { 0 };
                let heads = if b.per_head { heads } else { 1 };
                let head = if b.per_head { head } else { 0 };
                let row = (sample * heads + head) * tokens + query;
                b.values[row * window.bias_keys..].as_ptr()
            });
            let from = at.at(r, head) + query * at.token_stride;
            // SAFETY: the sizes were compared above; tasks write disjoint queries and heads.
            unsafe {
                Block {
                    rows: count,
                    head_dim: d,
                    left: Left { ptr: q.as_ptr().add(from), row_stride: q_stride, k_stride: 1 },
                    panels,
                    values: &values,
                    scale,
                    visible: &visible,
                    bias,
                    bias_stride: window.bias_keys,
                    key_bias: std::ptr::null(),
                    scores: (scores.as_mut_ptr(), stride),
                    out: (out.get().add(from), q_stride),
                }
                .attend(engine);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::forward::forward_for;
    use crate::attention::{Mask, Shape};

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0).collect()
    }

    #[test]
    fn steps_equal_one_pass_bit_for_bit() {
        for (tokens, prompt, kv_heads, group, d) in
            [(9, 4, 1, 1, 3), (90, 70, 2, 3, 16), (600, 590, 1, 2, 12), (70, 1, 2, 1, 64)]
        {
            let heads = kv_heads * group;
            let (q, k) = (values(tokens * heads * d, 1), values(tokens * kv_heads * d, 2));
            let v = values(tokens * kv_heads * d, 3);
            let s = Shape { batch: 1, heads, kv_heads, queries: tokens, keys: tokens, head_dim: d };
            let (q_at, kv_at) =
                (Layout::dense(tokens, heads, d), Layout::dense(tokens, kv_heads, d));
            for &isa in Isa::available() {
                let mut want = vec![0.0; q.len()];
                let mask = Mask { causal: true, ..Mask::default() };
                let to = (&mut want[..], q_at);
                forward_for(isa, s, (&q, q_at), (&k, kv_at), (&v, kv_at), 0.3, mask, to, None);
                let mut row = CacheRow::for_isa(isa, kv_heads, d);
                let mut got = vec![0.0; q.len()];
                let mut step = |from: usize, n: usize| {
                    let (width, kv_width) = (heads * d, kv_heads * d);
                    row.push(&k[from * kv_width..], &v[from * kv_width..], n, kv_width);
                    let queries = [n];
                    let window =
                        Window { is_causal: true, queries: &queries, bias: None, bias_keys: 0 };
                    let span = from * width..(from + n) * width;
                    cached(&[&row], (heads, n), &q[span.clone()], 0.3, window, &mut got[span]);
                };
                step(0, prompt);
                (prompt..tokens).for_each(|t| step(t, 1));
                assert_eq!(got, want, "{isa:?} {tokens} tokens");
            }
        }
    }
}
