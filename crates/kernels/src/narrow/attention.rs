//! Attention whose two products are narrow: softmax(q kᵀ s) v with queries, keys, weights and values
//! in bytes, or in pairs of bf16.
//!
//! Queries and keys become bytes with a scale for each token, values with one for each of their
//! columns. A row of weights holds exponentials between 0 and 1 with the largest at 1. They become
//! whole numbers of 16 bits, 65,535 for 1, whose upper and lower bytes have a product each: many
//! keys of little weight beside one of much would vanish in 8 bits. What they are divided by is their
//! sum, so that the weights that are used add up to 1.

use super::product::{self, run};
use super::rows::{self, Form, Rows};
use super::{Narrow, PackedNarrow};
use crate::attention::{Layout, Row, Running, Shape, softmax_row};
use crate::buffer::Buffer;
use crate::elementwise::largest_bits;
use crate::gemm::{Lhs, Panel, Tail, pack_transposed, panel_width};
use crate::pool::{Shared, parallel_for, threads};
use crate::simd::{Isa, Vector, dispatch};

/// Queries of a block.
const QUERIES: usize = 24;
/// The most keys: a block's scores stay in the second-level cache.
const KEYS: usize = 8192;
/// Columns of a panel at most.
const MOST_COLUMNS: usize = 64;

/// Whether products of this kind make attention faster than those of f32 on this machine.
pub fn attends(kind: Narrow, keys: usize) -> bool {
    let isa = product::usable(Isa::best());
    isa >= Isa::Avx512 && product::form(isa, kind) != Form::F32 && keys <= KEYS
}

/// `out = softmax(q kᵀ scale) v` per head (Vaswani et al. 2017, arXiv:1706.03762, Eq. 1); every query sees
/// every key. Queries and the output are `[batch, queries, heads, head_dim]`, keys and values
/// `[batch, keys, kv_heads, head_dim]`, where their layouts say.
///
/// # Panics
/// If a slice is too short for its layout, or [`attends`] says no.
pub fn attend(
    kind: Narrow,
    shape: Shape,
    q: (&[f32], Layout),
    k: (&[f32], Layout),
    v: (&[f32], Layout),
    scale: f32,
    out: (&mut [f32], Layout),
) {
    assert!(attends(kind, shape.keys), "{kind:?} is no faster here");
    let isa = product::usable(Isa::best());
    attend_as(isa, product::form(isa, kind), shape, q, k, v, scale, out);
}

fn attend_as(
    isa: Isa,
    form: Form,
    s: Shape,
    (q, q_at): (&[f32], Layout),
    (k, k_at): (&[f32], Layout),
    (v, v_at): (&[f32], Layout),
    scale: f32,
    (out, out_at): (&mut [f32], Layout),
) {
    q_at.check("queries", q.len(), &s, s.queries, s.heads);
    k_at.check("keys", k.len(), &s, s.keys, s.kv_heads);
    v_at.check("values", v.len(), &s, s.keys, s.kv_heads);
    out_at.check("output", out.len(), &s, s.queries, s.heads);
    if s.queries * s.keys * s.head_dim == 0 {
        out.fill(0.0);
        return;
    }
    let out = Shared::new(out);
    let width = panel_width(isa);
    let pairs = s.batch * s.heads;
    // Queries are split too when there are fewer heads than threads could use.
    let splits = (2 * threads()).div_ceil(pairs).min(s.queries.div_ceil(4 * QUERIES)).max(1);
    let per_split = s.queries.div_ceil(splits).next_multiple_of(QUERIES);
    parallel_for(pairs * splits, |task| {
        let (pair, split) = (task / splits, task % splits);
        let (first, last) = (split * per_split, ((split + 1) * per_split).min(s.queries));
        if first >= last {
            return;
        }
        let (sample, head) = (pair / s.heads, pair % s.heads);
        let kv_head = head / (s.heads / s.kv_heads);
        let queries =
            Rows::new(isa, form, (s.queries, s.head_dim), rows_of(q, q_at.at(sample, head), q_at));
        let keys =
            pack_keys(isa, form, (s.keys, s.head_dim), rows_of(k, k_at.at(sample, kv_head), k_at));
        let values = pack_values(
            isa,
            form,
            (s.keys, s.head_dim),
            rows_of(v, v_at.at(sample, kv_head), v_at),
        );
        let stride = s.keys.next_multiple_of(width);
        let mut scores = Buffer::<f32>::uninit(QUERIES * stride);
        let mut weights = [(); 2].map(|()| Rows::room(form, QUERIES, s.keys));
        for query in (first..last).step_by(QUERIES) {
            let rows = QUERIES.min(last - query);
            for from in (0..s.keys).step_by(width) {
                let panel = Panel {
                    rows,
                    cols: width.min(s.keys - from),
                    c: scores[from..].as_mut_ptr(),
                    c_stride: stride,
                    ..Panel::EMPTY
                };
                // SAFETY: there is room for the scores of the block.
                unsafe { run(isa, &queries, query, &keys, from / width, &panel) };
            }
            for (r, scores) in scores.chunks_exact_mut(stride).take(rows).enumerate() {
                let row = Row::of(&mut scores[..s.keys], scale);
                let [upper, lower] = &mut weights;
                let place = r * upper.stride..(r + 1) * upper.stride;
                let to = [&mut upper.words[place.clone()], &mut lower.words[place]];
                // SAFETY: the row was made from a slice; the instruction set is there.
                let scale = unsafe {
                    dispatch!(isa, weigh(form: Form, row: Row, to: [&mut [i32]; 2]) -> f32)
                };
                upper.scales[r] = if form == Form::Bytes { 256.0 * scale } else { scale };
                lower.scales[r] = scale;
            }
            for from in (0..s.head_dim).step_by(width) {
                let at = out_at.at(sample, head) + query * out_at.token_stride + from;
                // SAFETY: the layout was checked; tasks write disjoint heads.
                unsafe {
                    let panel = Panel {
                        rows,
                        cols: width.min(s.head_dim - from),
                        c: out.get().add(at),
                        c_stride: out_at.token_stride,
                        ..Panel::EMPTY
                    };
                    let [upper, lower] = &weights;
                    run(isa, upper, 0, &values, from / width, &panel);
                    if form == Form::Bytes {
                        let tail = Tail { accumulate: true, ..Tail::PLAIN };
                        run(isa, lower, 0, &values, from / width, &Panel { tail, ..panel });
                    }
                }
            }
        }
    });
}

/// The tokens of a head, which begin at `first`.
fn rows_of(x: &[f32], first: usize, at: Layout) -> Lhs<'_> {
    Lhs::rows(&x[first..], at.token_stride)
}

/// The softmax of a row of scores in narrow numbers, the upper and the lower bytes of 16 bits for bytes;
/// returns what the numbers are times.
#[inline(always)]
unsafe fn weigh<V: Vector>(form: Form, row: Row, [upper, lower]: [&mut [i32]; 2]) -> f32 {
    let mut running = Running::START;
    // SAFETY: by the caller.
    unsafe {
        // The softmax would hide what is not finite.
        let scores = std::slice::from_raw_parts(row.scores, row.keys);
        if !f32::from_bits(largest_bits(scores)).is_finite() {
            upper.fill(0);
            lower.fill(0);
            return f32::NAN;
        }
        softmax_row::<V>(row, &mut running);
        let exponentials = std::slice::from_raw_parts(row.scores, row.keys);
        if form != Form::Bytes {
            let mut one = 0.0;
            rows::write::<V>(form, exponentials, upper, &mut one);
            return 1.0 / running.sum;
        }
        let bytes = |words: &mut [i32]| {
            std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), 4 * words.len())
        };
        let (upper, lower) = (bytes(upper), bytes(lower));
        let mut sum = 0_u32;
        for ((upper, lower), x) in upper.iter_mut().zip(&mut *lower).zip(exponentials) {
            // The lower half of the number with 1.5 * 2^23 added is the nearest whole number.
            let code = (x * 65_535.0 + 12_582_912.0).to_bits() & 0xffff;
            sum += code;
            *upper = (code >> 8) as u8;
            *lower = code as u8;
        }
        upper[exponentials.len()..].fill(0);
        lower[exponentials.len()..].fill(0);
        1.0 / sum as f32
    }
}

/// Keys as the right operand `[head_dim, keys]`.
fn pack_keys(isa: Isa, form: Form, (keys, depth): (usize, usize), from: Lhs) -> PackedNarrow {
    let width = panel_width(isa);
    let rows = Rows::new(isa, form, (keys, depth), from);
    let per_row = depth.div_ceil(form.per_word());
    let columns = keys.next_multiple_of(width);
    // Columns that are missing in the last panel are added up too.
    let mut words = Buffer::<i32>::zeroed(columns * per_row);
    let mut scales = Buffer::<f32>::zeroed(columns);
    let mut shifts = Buffer::<i32>::zeroed(columns);
    scales[..keys].copy_from_slice(&rows.scales);
    for (col, words) in words.chunks_exact_mut(per_row * width).enumerate() {
        let col = col * width;
        // SAFETY: words are moved as values of the same size; the panel has room for them.
        unsafe {
            pack_transposed(
                isa,
                rows.words[col * rows.stride..].as_ptr().cast(),
                rows.stride,
                per_row,
                width.min(keys - col),
                words.as_mut_ptr().cast(),
            );
            if form == Form::Bytes {
                let shifts = &mut shifts[col..][..width];
                dispatch!(isa, with_signs(words: &mut [i32], shifts: &mut [i32]));
            }
        }
    }
    PackedNarrow { words, scales, shifts, kind: form.kind(), form, k: depth, n: keys, isa }
}

// Plain loops, compiled for each instruction set.

/// Takes 128 off each byte of a panel, and adds 128 times what remains to its column's shift.
#[allow(clippy::extra_unused_type_parameters)]
#[inline(always)]
unsafe fn with_signs<V: Vector>(words: &mut [i32], shifts: &mut [i32]) {
    for row in words.chunks_exact_mut(shifts.len()) {
        for (word, shift) in row.iter_mut().zip(&mut *shifts) {
            *word ^= 0x8080_8080_u32.cast_signed();
            let byte = |place: u32| *word << (24 - 8 * place) >> 24;
            *shift += 128 * (byte(0) + byte(1) + byte(2) + byte(3));
        }
    }
}

/// Values as the right operand `[keys, head_dim]`.
fn pack_values(isa: Isa, form: Form, (keys, cols): (usize, usize), from: Lhs) -> PackedNarrow {
    let width = panel_width(isa);
    let depth = keys.div_ceil(form.per_word());
    let columns = cols.next_multiple_of(width);
    let mut words = Buffer::<i32>::uninit(columns * depth);
    let mut scales = Buffer::<f32>::uninit(columns);
    scales.fill(1.0);
    let panels = words.chunks_exact_mut(depth * width).zip(scales.chunks_exact_mut(width));
    for (p, (words, scales)) in panels.enumerate() {
        let here = width.min(cols - p * width);
        let row = |key: usize| &from.data[key * from.row_stride + p * width..][..here];
        if form == Form::Bytes {
            let from = Lhs::rows(&from.data[p * width..], from.row_stride);
            let sizes = (keys, here);
            // SAFETY: the instruction set is there.
            unsafe {
                dispatch!(isa, bytes_of_columns(from: Lhs, sizes: (usize, usize),
                    words: &mut [i32], scales: &mut [f32]));
            }
        } else {
            for (j, to) in words.chunks_exact_mut(width).enumerate() {
                rows::pairs(row(2 * j), (2 * j + 1 < keys).then(|| row(2 * j + 1)), to);
            }
        }
    }
    let shifts = Buffer::zeroed(columns);
    PackedNarrow { words, scales, shifts, kind: form.kind(), form, k: keys, n: cols, isa }
}

/// A panel of words of four rows each, with a scale for each column.
#[allow(clippy::extra_unused_type_parameters)]
#[inline(always)]
unsafe fn bytes_of_columns<V: Vector>(
    from: Lhs,
    (count, cols): (usize, usize),
    words: &mut [i32],
    scales: &mut [f32],
) {
    let row = |r: usize| &from.data[r * from.row_stride..][..cols];
    // As in `largest_bits`, for each column.
    let mut largest = [0_u32; MOST_COLUMNS];
    for r in 0..count {
        for (most, x) in largest.iter_mut().zip(row(r)) {
            *most = (*most).max(x.to_bits() & 0x7fff_ffff);
        }
    }
    let mut inverses = [0.0_f32; MOST_COLUMNS];
    for ((scale, inverse), most) in scales.iter_mut().zip(&mut inverses).zip(largest) {
        *scale = rows::scale_of(f32::from_bits(most));
        *inverse = rows::inverse(*scale);
    }
    for (j, to) in words.chunks_exact_mut(scales.len()).enumerate() {
        to.fill(0);
        for (place, r) in (4 * j..count.min(4 * j + 4)).enumerate() {
            for ((to, x), inverse) in to.iter_mut().zip(row(r)).zip(&inverses) {
                *to |= (rows::byte(*x, *inverse) & 255) << (8 * place);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::{Mask, reference};
    use crate::noise::values;

    /// Forms that can be computed here.
    fn forms() -> Vec<(Isa, Form)> {
        let mut forms: Vec<_> =
            Isa::available().iter().map(|isa| (product::usable(*isa), Form::Bytes)).collect();
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512bf16") {
            forms.push((Isa::Avx512, Form::Pairs));
        }
        forms
    }

    #[test]
    fn is_near_the_reference() {
        for (isa, form) in forms() {
            for (queries, keys, head_dim, kv_heads) in
                [(1, 1, 4, 2), (7, 13, 20, 1), (50, 50, 64, 2), (30, 197, 80, 4), (25, 70, 64, 4)]
            {
                let s = Shape { batch: 2, heads: 4, kv_heads, queries, keys, head_dim };
                let (q_at, kv_at) =
                    (Layout::dense(queries, 4, head_dim), Layout::dense(keys, kv_heads, head_dim));
                let doubled =
                    |n, seed| values(n, seed).iter().map(|x| 2.0 * x).collect::<Vec<f32>>();
                let q = doubled(2 * queries * 4 * head_dim, 1);
                let [k, v] = [2, 3].map(|seed| doubled(2 * keys * kv_heads * head_dim, seed));
                let mut want = vec![0.0; q.len()];
                let scale = 1.0 / (head_dim as f32).sqrt();
                let mask = Mask::default();
                reference::forward(
                    s,
                    (&q, q_at),
                    (&k, kv_at),
                    (&v, kv_at),
                    scale,
                    mask,
                    (&mut want, q_at),
                );
                let mut got = vec![f32::NAN; q.len()];
                attend_as(
                    isa,
                    form,
                    s,
                    (&q, q_at),
                    (&k, kv_at),
                    (&v, kv_at),
                    scale,
                    (&mut got, q_at),
                );
                // A byte is off by 1/254 of the largest, and so is a score of some units.
                let most = 0.05;
                let mut squares = [0.0; 2];
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    assert!((got - want).abs() < most, "{isa:?} {form:?} {i}: {got} {want}");
                    squares[0] += (got - want).powi(2);
                    squares[1] += want.powi(2);
                }
                assert!(squares[0] < 2e-4 * squares[1], "{isa:?} {form:?} {squares:?}");
            }
        }
    }

    #[test]
    fn many_keys_of_little_weight_are_not_lost() {
        // One key of weight 1 and value 1; 1,000 of weight 1/600 each, of value -1.
        let (keys, head_dim) = (1001, 8);
        let s = Shape { batch: 1, heads: 1, kv_heads: 1, queries: 1, keys, head_dim };
        let mut q = vec![0.0; head_dim];
        q[0] = 1.0;
        let mut k = vec![0.0; keys * head_dim];
        let mut v = vec![-1.0; keys * head_dim];
        k[0] = 600_f32.ln();
        v[..head_dim].fill(1.0);
        let want = (1.0 - 1000.0 / 600.0) / (1.0 + 1000.0 / 600.0);
        for (isa, form) in forms() {
            let mut out = vec![f32::NAN; head_dim];
            let at = |tokens| Layout::dense(tokens, 1, head_dim);
            let [k, v] = [&k, &v].map(|x| (&x[..], at(keys)));
            attend_as(isa, form, s, (&q, at(1)), k, v, 1.0, (&mut out, at(1)));
            assert!((out[0] - want).abs() < 0.02, "{isa:?} {form:?} {} {want}", out[0]);
        }
    }

    #[test]
    fn a_sample_does_not_depend_on_the_others() {
        let (tokens, heads, head_dim) = (61, 3, 64);
        let width = 3 * heads * head_dim;
        let x = values(2 * tokens * width, 9);
        for (isa, form) in forms() {
            let attend = |x: &[f32]| {
                let batch = x.len() / (tokens * width);
                let s = Shape {
                    batch,
                    heads,
                    kv_heads: heads,
                    queries: tokens,
                    keys: tokens,
                    head_dim,
                };
                let at =
                    |part: usize| Layout::part(tokens, width, part * heads * head_dim, head_dim);
                let mut out = vec![f32::NAN; batch * tokens * heads * head_dim];
                let to = (&mut out[..], Layout::dense(tokens, heads, head_dim));
                attend_as(isa, form, s, (x, at(0)), (x, at(1)), (x, at(2)), 0.125, to);
                out
            };
            let (first, second) = x.split_at(x.len() / 2);
            assert_eq!([attend(first), attend(second)].concat(), attend(&x), "{isa:?} {form:?}");
        }
    }

    #[test]
    fn what_is_not_finite_is_seen() {
        let (tokens, head_dim) = (9, 8);
        let s = Shape { batch: 1, heads: 1, kv_heads: 1, queries: tokens, keys: tokens, head_dim };
        let at = Layout::dense(tokens, 1, head_dim);
        for (isa, form) in forms() {
            for part in 0..3 {
                let mut x = [1, 2, 3].map(|seed| values(tokens * head_dim, seed));
                x[part][3 * head_dim] = f32::NAN;
                let mut out = vec![0.0; tokens * head_dim];
                let [q, k, v] = x.each_ref().map(|x| (&x[..], at));
                attend_as(isa, form, s, q, k, v, 0.3, (&mut out, at));
                assert!(out[3 * head_dim].is_nan(), "{isa:?} {form:?} {part}");
            }
        }
    }
}
