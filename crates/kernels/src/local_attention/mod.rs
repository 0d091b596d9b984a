//! Attention of each position of a grid to the window around it (Ramachandran et al. 2019,
//! arXiv:1906.05909).
//!
//! ```text
//! out[i] = sum over j of softmax_j(scale * q[i] . (k[j] + r[j - i])) v[j]
//! ```
//!
//! `j` runs over the window around `i`, cut at the border; the relative embedding `r` has a learned
//! row part in the first half of a head's width and a learned column part in the second. A window
//! of `2 grid_h - 1` rows and one column is attention along the columns, so the two steps of axial
//! attention (Ho et al. 2019, arXiv:1912.12180; Wang et al. 2020, arXiv:2003.07853) are this
//! operation as well. On an axis of length 1 the embedding is one vector that adds the same to every score, so
//! it changes nothing and gets no gradient.
//!
//! A task is one head of one sample; the backward pass computes the weights anew, so the memory
//! stays linear in the number of positions.

pub mod reference;
#[cfg(test)]
mod tests;

use crate::buffer::Buffer;
use crate::pool::{Shared, parallel_for};
use crate::simd::math::exp;
use crate::simd::{Isa, Vector, dispatch, load_up_to, store_up_to};

/// Sizes of a local attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LocalAttention {
    /// Samples.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Rows of the grid.
    pub grid_h: usize,
    /// Columns of the grid.
    pub grid_w: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Rows and columns of the window; odd.
    pub window: (usize, usize),
    /// Factor of the scores.
    pub scale: f32,
}

/// The learned relative embeddings.
#[derive(Clone, Copy, Debug)]
pub struct Relative<'a> {
    /// `[heads, window rows, head_dim / 2]`; the middle row belongs to the position's own row.
    pub rows: &'a [f32],
    /// `[heads, window columns, head_dim / 2]`.
    pub cols: &'a [f32],
}

/// What [`backward`] writes.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// `[batch, positions, 3, heads, head_dim]`.
    pub qkv: &'a mut [f32],
    /// As [`Relative::rows`].
    pub rows: &'a mut [f32],
    /// As [`Relative::cols`].
    pub cols: &'a mut [f32],
}

impl LocalAttention {
    /// Positions of the grid.
    pub fn positions(&self) -> usize {
        self.grid_h * self.grid_w
    }

    /// Values of the output.
    pub fn output_len(&self) -> usize {
        self.batch * self.positions() * self.heads * self.head_dim
    }

    /// Values of the row embedding.
    pub fn rows_len(&self) -> usize {
        self.heads * self.window.0 * self.head_dim / 2
    }

    /// Values of the column embedding.
    pub fn cols_len(&self) -> usize {
        self.heads * self.window.1 * self.head_dim / 2
    }

    fn check(&self, qkv: usize, rows: usize, cols: usize, out: usize) {
        assert!(
            self.head_dim.is_multiple_of(2) && self.window.0 % 2 == 1 && self.window.1 % 2 == 1,
            "the width of a head is even, the sides of a window are odd, got {self:?}"
        );
        let need = (3 * self.output_len(), self.rows_len(), self.cols_len(), self.output_len());
        assert!((qkv, rows, cols, out) == need, "{self:?} needs {need:?} values");
    }

    /// The window around `at` on an axis of `grid` positions: the positions it covers and the
    /// embedding of the first of them.
    fn span(at: usize, grid: usize, window: usize) -> Span {
        let half = window / 2;
        let from = at.saturating_sub(half);
        Span { from, to: (at + half + 1).min(grid), first: from + half - at }
    }

    /// Most keys that a window covers.
    fn keys(&self) -> usize {
        self.window.0.min(self.grid_h) * self.window.1.min(self.grid_w)
    }
}

#[derive(Clone, Copy)]
struct Span {
    from: usize,
    to: usize,
    first: usize,
}

/// One head of one sample.
#[derive(Clone, Copy)]
struct Head {
    sizes: LocalAttention,
    /// Query of position 0; keys and values lie `width` and `2 width` further.
    q: *const f32,
    rows: *const f32,
    cols: *const f32,
}

// SAFETY: a head is only read through.
unsafe impl Sync for Head {}

impl Head {
    fn width(&self) -> usize {
        self.sizes.heads * self.sizes.head_dim
    }

    fn stride(&self) -> usize {
        3 * self.width()
    }
}

/// `out` `[batch, positions, heads, head_dim]` of `qkv` `[batch, positions, 3, heads, head_dim]`.
///
/// # Panics
/// If a slice does not have the length that `sizes` states, a window's side is even or the width of
/// a head odd.
pub fn forward(sizes: &LocalAttention, qkv: &[f32], relative: Relative, out: &mut [f32]) {
    sizes.check(qkv.len(), relative.rows.len(), relative.cols.len(), out.len());
    let to = Shared::new(out);
    parallel_for(sizes.batch * sizes.heads, |task| {
        let head = head_of(sizes, qkv, relative, task);
        let (sample, h) = (task / sizes.heads, task % sizes.heads);
        // SAFETY: lengths were checked; each task writes its own head.
        unsafe {
            let at = sample * sizes.positions() * head.width() + h * sizes.head_dim;
            let out = to.get().add(at);
            let head = &head;
            dispatch!(Isa::best(), forward_head(head: &Head, out: *mut f32));
        }
    });
}

fn head_of(sizes: &LocalAttention, qkv: &[f32], relative: Relative, task: usize) -> Head {
    let (sample, h) = (task / sizes.heads, task % sizes.heads);
    let half = sizes.head_dim / 2;
    let at = sample * sizes.positions() * 3 * sizes.heads * sizes.head_dim + h * sizes.head_dim;
    Head {
        sizes: *sizes,
        q: qkv[at..].as_ptr(),
        rows: relative.rows[h * sizes.window.0 * half..].as_ptr(),
        cols: relative.cols[h * sizes.window.1 * half..].as_ptr(),
    }
}

#[inline(always)]
unsafe fn dot<V: Vector>(a: *const f32, b: *const f32, n: usize) -> f32 {
    // SAFETY: by the caller.
    unsafe {
        let mut sum = V::splat(0.0);
        for i in (0..n).step_by(V::LANES) {
            sum = load_up_to::<V>(a.add(i), n - i).fma(load_up_to(b.add(i), n - i), sum);
        }
        sum.sum()
    }
}

/// `to += factor * from`.
#[inline(always)]
unsafe fn add_scaled<V: Vector>(factor: f32, from: *const f32, to: *mut f32, n: usize) {
    // SAFETY: by the caller.
    unsafe {
        for i in (0..n).step_by(V::LANES) {
            let sum =
                V::splat(factor).fma(load_up_to(from.add(i), n - i), load_up_to(to.add(i), n - i));
            store_up_to(sum, to.add(i), n - i);
        }
    }
}

/// Room for one query.
struct Scratch {
    /// A weight per key of the window.
    weights: Vec<f32>,
    /// A value per row and per column of the window.
    rows: Vec<f32>,
    cols: Vec<f32>,
}

impl Scratch {
    fn new(sizes: &LocalAttention) -> Self {
        Self {
            weights: vec![0.0; sizes.keys()],
            rows: vec![0.0; sizes.window.0],
            cols: vec![0.0; sizes.window.1],
        }
    }
}

/// Fills `scratch.weights` with the softmax over the window of the query at `(y, x)`.
#[inline(always)]
unsafe fn weigh<V: Vector>(head: &Head, (y, x): (usize, usize), scratch: &mut Scratch) {
    let sizes = &head.sizes;
    let (d, half) = (sizes.head_dim, sizes.head_dim / 2);
    let rows = LocalAttention::span(y, sizes.grid_h, sizes.window.0);
    let cols = LocalAttention::span(x, sizes.grid_w, sizes.window.1);
    // SAFETY: by the caller, all positions and embeddings are inside.
    unsafe {
        let q = head.q.add((y * sizes.grid_w + x) * head.stride());
        for i in rows.first..rows.first + rows.to - rows.from {
            scratch.rows[i] = dot::<V>(q, head.rows.add(i * half), half);
        }
        for i in cols.first..cols.first + cols.to - cols.from {
            scratch.cols[i] = dot::<V>(q.add(half), head.cols.add(i * half), half);
        }
        let (mut n, mut largest) = (0, f32::NEG_INFINITY);
        for row in rows.from..rows.to {
            let of_row = scratch.rows[rows.first + row - rows.from];
            for col in cols.from..cols.to {
                let k = head.q.add((row * sizes.grid_w + col) * head.stride() + head.width());
                let relative = of_row + scratch.cols[cols.first + col - cols.from];
                let score = sizes.scale * (dot::<V>(q, k, d) + relative);
                scratch.weights[n] = score;
                largest = largest.max(score);
                n += 1;
            }
        }
        let weights = scratch.weights.as_mut_ptr();
        for i in (0..n).step_by(V::LANES) {
            let e = exp(load_up_to::<V>(weights.add(i), n - i).sub(V::splat(largest)));
            store_up_to(e, weights.add(i), n - i);
        }
        let scale = 1.0 / scratch.weights[..n].iter().sum::<f32>();
        scratch.weights[..n].iter_mut().for_each(|w| *w *= scale);
    }
}

#[inline(always)]
unsafe fn forward_head<V: Vector>(head: &Head, out: *mut f32) {
    let sizes = &head.sizes;
    let mut scratch = Scratch::new(sizes);
    for y in 0..sizes.grid_h {
        let rows = LocalAttention::span(y, sizes.grid_h, sizes.window.0);
        for x in 0..sizes.grid_w {
            let cols = LocalAttention::span(x, sizes.grid_w, sizes.window.1);
            // SAFETY: by the caller, all positions are inside.
            unsafe {
                weigh::<V>(head, (y, x), &mut scratch);
                let out = out.add((y * sizes.grid_w + x) * head.width());
                for i in (0..sizes.head_dim).step_by(V::LANES) {
                    let rest = sizes.head_dim - i;
                    let (mut sum, mut n) = (V::splat(0.0), 0);
                    for row in rows.from..rows.to {
                        for col in cols.from..cols.to {
                            let at = (row * sizes.grid_w + col) * head.stride() + 2 * head.width();
                            let v = load_up_to::<V>(head.q.add(at + i), rest);
                            sum = V::splat(scratch.weights[n]).fma(v, sum);
                            n += 1;
                        }
                    }
                    store_up_to(sum, out.add(i), rest);
                }
            }
        }
    }
}

/// Overwrites `gradients` with those of [`forward`].
///
/// # Panics
/// As [`forward`].
pub fn backward(
    sizes: &LocalAttention,
    qkv: &[f32],
    relative: Relative,
    grad_out: &[f32],
    gradients: Gradients,
) {
    sizes.check(qkv.len(), relative.rows.len(), relative.cols.len(), grad_out.len());
    let Gradients { qkv: grad_qkv, rows, cols } = gradients;
    assert!(grad_qkv.len() == qkv.len());
    assert!(rows.len() == sizes.rows_len() && cols.len() == sizes.cols_len());
    grad_qkv.fill(0.0);
    // Each sample's part of the embeddings' gradients, summed in order afterwards.
    let mut row_parts = Buffer::<f32>::zeroed(sizes.batch * rows.len());
    let mut col_parts = Buffer::<f32>::zeroed(sizes.batch * cols.len());
    let to = Shared::new(grad_qkv);
    let (row_to, col_to) = (Shared::new(&mut row_parts), Shared::new(&mut col_parts));
    parallel_for(sizes.batch * sizes.heads, |task| {
        let head = head_of(sizes, qkv, relative, task);
        let (sample, h) = (task / sizes.heads, task % sizes.heads);
        let half = sizes.head_dim / 2;
        // SAFETY: lengths were checked; each task writes its own head of its own sample.
        unsafe {
            let at = sample * sizes.positions() * head.width() + h * sizes.head_dim;
            let grads = HeadGradients {
                out: grad_out[at..].as_ptr(),
                q: to.get().add(sample * sizes.positions() * head.stride() + h * sizes.head_dim),
                rows: row_to.get().add(task * sizes.window.0 * half),
                cols: col_to.get().add(task * sizes.window.1 * half),
            };
            let (head, grads) = (&head, &grads);
            dispatch!(Isa::best(), backward_head(head: &Head, grads: &HeadGradients));
        }
    });
    for (total, parts) in [(rows, row_parts), (cols, col_parts)] {
        total.fill(0.0);
        for part in parts.chunks_exact(total.len().max(1)) {
            total.iter_mut().zip(part).for_each(|(t, p)| *t += p);
        }
    }
}

/// The gradients of one head of one sample, laid out as [`Head`].
struct HeadGradients {
    out: *const f32,
    q: *mut f32,
    rows: *mut f32,
    cols: *mut f32,
}

#[inline(always)]
unsafe fn backward_head<V: Vector>(head: &Head, grads: &HeadGradients) {
    let sizes = &head.sizes;
    let (d, half, width) = (sizes.head_dim, sizes.head_dim / 2, head.width());
    let mut scratch = Scratch::new(sizes);
    let mut slopes = vec![0.0; sizes.keys()];
    for y in 0..sizes.grid_h {
        let rows = LocalAttention::span(y, sizes.grid_h, sizes.window.0);
        for x in 0..sizes.grid_w {
            let cols = LocalAttention::span(x, sizes.grid_w, sizes.window.1);
            let position = y * sizes.grid_w + x;
            // SAFETY: by the caller, all positions and embeddings are inside.
            unsafe {
                weigh::<V>(head, (y, x), &mut scratch);
                let (q, grad_q) =
                    (head.q.add(position * head.stride()), grads.q.add(position * head.stride()));
                let grad_out = grads.out.add(position * width);
                let (mut n, mut mean) = (0, 0.0);
                for row in rows.from..rows.to {
                    for col in cols.from..cols.to {
                        let at = (row * sizes.grid_w + col) * head.stride() + 2 * width;
                        slopes[n] = dot::<V>(grad_out, head.q.add(at), d);
                        mean += slopes[n] * scratch.weights[n];
                        add_scaled::<V>(scratch.weights[n], grad_out, grads.q.add(at), d);
                        n += 1;
                    }
                }
                scratch.rows.fill(0.0);
                scratch.cols.fill(0.0);
                n = 0;
                for row in rows.from..rows.to {
                    for col in cols.from..cols.to {
                        let at = (row * sizes.grid_w + col) * head.stride() + width;
                        let slope = sizes.scale * scratch.weights[n] * (slopes[n] - mean);
                        add_scaled::<V>(slope, head.q.add(at), grad_q, d);
                        add_scaled::<V>(slope, q, grads.q.add(at), d);
                        scratch.rows[rows.first + row - rows.from] += slope;
                        scratch.cols[cols.first + col - cols.from] += slope;
                        n += 1;
                    }
                }
                for (i, &slope) in scratch.rows.iter().enumerate() {
                    add_scaled::<V>(slope, head.rows.add(i * half), grad_q, half);
                    add_scaled::<V>(slope, q, grads.rows.add(i * half), half);
                }
                for (i, &slope) in scratch.cols.iter().enumerate() {
                    add_scaled::<V>(slope, head.cols.add(i * half), grad_q.add(half), half);
                    add_scaled::<V>(slope, q.add(half), grads.cols.add(i * half), half);
                }
            }
        }
    }
}
