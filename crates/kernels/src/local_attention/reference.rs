//! Local attention as plain loops in f64.

use super::LocalAttention;

/// The relative embeddings, as in [`super::Relative`].
#[derive(Clone, Copy, Debug)]
pub struct Relative<'a> {
    /// `[heads, window rows, head_dim / 2]`.
    pub rows: &'a [f64],
    /// `[heads, window columns, head_dim / 2]`.
    pub cols: &'a [f64],
}

/// A pair of positions, the second in the window of the first.
struct Pair {
    query: usize,
    key: usize,
    /// Which row and column of the window.
    at: (usize, usize),
}

fn pairs(sizes: &LocalAttention) -> Vec<Vec<Pair>> {
    let of_query = |query: usize| {
        let (y, x) = (query / sizes.grid_w, query % sizes.grid_w);
        let inside = |key: usize| {
            let row = (key / sizes.grid_w + sizes.window.0 / 2).checked_sub(y)?;
            let col = (key % sizes.grid_w + sizes.window.1 / 2).checked_sub(x)?;
            let fits = row < sizes.window.0 && col < sizes.window.1;
            fits.then_some(Pair { query, key, at: (row, col) })
        };
        (0..sizes.positions()).filter_map(inside).collect()
    };
    (0..sizes.positions()).map(of_query).collect()
}

/// Index of value `c` of part `part` (query, key, value) of a position.
fn index(sizes: &LocalAttention, n: usize, i: usize, part: usize, head: usize, c: usize) -> usize {
    (((n * sizes.positions() + i) * 3 + part) * sizes.heads + head) * sizes.head_dim + c
}

/// The relative embedding's value `c`: its index among the rows (true) or columns (false).
fn embedding(sizes: &LocalAttention, pair: &Pair, head: usize, c: usize) -> (bool, usize) {
    let half = sizes.head_dim / 2;
    if c < half {
        (true, (head * sizes.window.0 + pair.at.0) * half + c)
    } else {
        (false, (head * sizes.window.1 + pair.at.1) * half + c - half)
    }
}

fn key(
    sizes: &LocalAttention,
    qkv: &[f64],
    relative: Relative,
    n: usize,
    pair: &Pair,
    head: usize,
    c: usize,
) -> f64 {
    let (is_row, at) = embedding(sizes, pair, head, c);
    qkv[index(sizes, n, pair.key, 1, head, c)]
        + if is_row { relative.rows[at] } else { relative.cols[at] }
}

fn weights(
    sizes: &LocalAttention,
    qkv: &[f64],
    relative: Relative,
    n: usize,
    pairs: &[Pair],
    head: usize,
) -> Vec<f64> {
    let score = |pair: &Pair| {
        let product = |c| {
            qkv[index(sizes, n, pair.query, 0, head, c)]
                * key(sizes, qkv, relative, n, pair, head, c)
        };
        f64::from(sizes.scale) * (0..sizes.head_dim).map(product).sum::<f64>()
    };
    let scores: Vec<f64> = pairs.iter().map(score).collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
    let total: f64 = exps.iter().sum();
    exps.iter().map(|e| e / total).collect()
}

/// The output `[batch, positions, heads, head_dim]`.
pub fn forward(sizes: &LocalAttention, qkv: &[f64], relative: Relative) -> Vec<f64> {
    let pairs = pairs(sizes);
    let mut out = Vec::new();
    for n in 0..sizes.batch {
        for pairs in &pairs {
            for head in 0..sizes.heads {
                let weights = weights(sizes, qkv, relative, n, pairs, head);
                for c in 0..sizes.head_dim {
                    let value = |p: &Pair| qkv[index(sizes, n, p.key, 2, head, c)];
                    out.push(pairs.iter().zip(&weights).map(|(p, w)| w * value(p)).sum());
                }
            }
        }
    }
    out
}

/// The gradients of `qkv`, the row and the column embeddings.
pub fn backward(
    sizes: &LocalAttention,
    qkv: &[f64],
    relative: Relative,
    grad_out: &[f64],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let mut dqkv = vec![0.0; qkv.len()];
    let (mut drows, mut dcols) = (vec![0.0; relative.rows.len()], vec![0.0; relative.cols.len()]);
    let pairs = pairs(sizes);
    for n in 0..sizes.batch {
        for (query, pairs) in pairs.iter().enumerate() {
            for head in 0..sizes.heads {
                let weights = weights(sizes, qkv, relative, n, pairs, head);
                let g = |c: usize| {
                    let position = n * sizes.positions() + query;
                    grad_out[(position * sizes.heads + head) * sizes.head_dim + c]
                };
                let slopes: Vec<f64> = pairs
                    .iter()
                    .map(|p| {
                        let value = |c| qkv[index(sizes, n, p.key, 2, head, c)];
                        (0..sizes.head_dim).map(|c| g(c) * value(c)).sum()
                    })
                    .collect();
                let mean: f64 = slopes.iter().zip(&weights).map(|(s, w)| s * w).sum();
                for ((p, w), s) in pairs.iter().zip(&weights).zip(&slopes) {
                    let slope = f64::from(sizes.scale) * w * (s - mean);
                    for c in 0..sizes.head_dim {
                        let q = index(sizes, n, query, 0, head, c);
                        dqkv[index(sizes, n, p.key, 2, head, c)] += w * g(c);
                        dqkv[q] += slope * key(sizes, qkv, relative, n, p, head, c);
                        dqkv[index(sizes, n, p.key, 1, head, c)] += slope * qkv[q];
                        let (is_row, at) = embedding(sizes, p, head, c);
                        let to = if is_row { &mut drows[at] } else { &mut dcols[at] };
                        *to += slope * qkv[q];
                    }
                }
            }
        }
    }
    (dqkv, drows, dcols)
}
