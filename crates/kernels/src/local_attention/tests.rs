use super::*;
use crate::conv2d::tests::{assert_gradient, assert_near, values, wide};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn equals_the_reference(batch in 1..3_usize, heads in 1..4_usize, grid in (1..7_usize, 1..7_usize),
                            half in 1..20_usize, window in (0..5_usize, 0..5_usize), seed: u32) {
        let sizes = LocalAttention {
            batch,
            heads,
            grid_h: grid.0,
            grid_w: grid.1,
            head_dim: 2 * half,
            window: (2 * window.0 + 1, 2 * window.1 + 1),
            scale: 1.0 / (half as f32).sqrt(),
        };
        let qkv = values(3 * sizes.output_len(), seed);
        let (rows, cols) = (values(sizes.rows_len(), seed ^ 1), values(sizes.cols_len(), seed ^ 2));
        let g = values(sizes.output_len(), seed ^ 3);
        let (wide_rows, wide_cols) = (wide(&rows), wide(&cols));
        let relative = reference::Relative { rows: &wide_rows, cols: &wide_cols };
        let mut out = vec![f32::NAN; g.len()];
        forward(&sizes, &qkv, Relative { rows: &rows, cols: &cols }, &mut out);
        assert_near(&out, &reference::forward(&sizes, &wide(&qkv), relative), 1e-5);
        let (mut dqkv, mut drows, mut dcols) =
            (vec![f32::NAN; qkv.len()], vec![f32::NAN; rows.len()], vec![f32::NAN; cols.len()]);
        let gradients = Gradients { qkv: &mut dqkv, rows: &mut drows, cols: &mut dcols };
        backward(&sizes, &qkv, Relative { rows: &rows, cols: &cols }, &g, gradients);
        let want = reference::backward(&sizes, &wide(&qkv), relative, &wide(&g));
        assert_near(&dqkv, &want.0, 1e-5);
        assert_near(&drows, &want.1, 2e-5);
        assert_near(&dcols, &want.2, 2e-5);
    }
}

#[test]
fn the_reference_gradient_is_the_slope() {
    for window in [(3, 3), (5, 1), (1, 7)] {
        let sizes = LocalAttention {
            batch: 2,
            heads: 2,
            grid_h: 3,
            grid_w: 4,
            head_dim: 4,
            window,
            scale: 0.5,
        };
        let qkv = wide(&values(3 * sizes.output_len(), 1));
        let (rows, cols) = (wide(&values(sizes.rows_len(), 2)), wide(&values(sizes.cols_len(), 3)));
        let g = wide(&values(sizes.output_len(), 4));
        let with = |rows: &[f64], cols: &[f64], qkv: &[f64]| {
            reference::forward(&sizes, qkv, reference::Relative { rows, cols })
        };
        let relative = reference::Relative { rows: &rows, cols: &cols };
        let (dqkv, drows, dcols) = reference::backward(&sizes, &qkv, relative, &g);
        assert_gradient(&qkv, &dqkv, &g, |v| with(&rows, &cols, v));
        assert_gradient(&rows, &drows, &g, |v| with(v, &cols, &qkv));
        assert_gradient(&cols, &dcols, &g, |v| with(&rows, v, &qkv));
    }
}

/// Attention of all positions to all, with the relative terms written out as a bias per pair.
fn global(sizes: &LocalAttention, qkv: &[f32], relative: Relative) -> Vec<f64> {
    let (n, d, half) = (sizes.positions(), sizes.head_dim, sizes.head_dim / 2);
    let part = |i: usize, part: usize| {
        qkv[(i * 3 + part) * d..][..d].iter().map(|&v| f64::from(v)).collect::<Vec<f64>>()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut out = Vec::new();
    for i in 0..n {
        let q = part(i, 0);
        let score = |j: usize| {
            let row = j / sizes.grid_w + sizes.window.0 / 2 - i / sizes.grid_w;
            let col = j % sizes.grid_w + sizes.window.1 / 2 - i % sizes.grid_w;
            let bias = dot(&q[..half], &wide(&relative.rows[row * half..][..half]))
                + dot(&q[half..], &wide(&relative.cols[col * half..][..half]));
            (f64::from(sizes.scale) * (dot(&q, &part(j, 1)) + bias)).exp()
        };
        let total: f64 = (0..n).map(score).sum();
        for c in 0..d {
            out.push((0..n).map(|j| score(j) / total * part(j, 2)[c]).sum());
        }
    }
    out
}

#[test]
fn a_window_over_the_whole_grid_is_global_attention() {
    for (grid_h, grid_w) in [(4, 5), (20, 1), (1, 9)] {
        let sizes = LocalAttention {
            batch: 1,
            heads: 1,
            grid_h,
            grid_w,
            head_dim: 16,
            window: (2 * grid_h - 1, 2 * grid_w - 1),
            scale: 0.25,
        };
        let qkv = values(3 * sizes.output_len(), 1);
        let (rows, cols) = (values(sizes.rows_len(), 2), values(sizes.cols_len(), 3));
        let relative = Relative { rows: &rows, cols: &cols };
        let mut out = vec![f32::NAN; sizes.output_len()];
        forward(&sizes, &qkv, relative, &mut out);
        assert_near(&out, &global(&sizes, &qkv, relative), 1e-5);
    }
}

#[test]
fn an_axis_of_length_one_passes_the_values_on() {
    let sizes = LocalAttention {
        batch: 2,
        heads: 2,
        grid_h: 7,
        grid_w: 1,
        head_dim: 8,
        window: (1, 1),
        scale: 0.4,
    };
    let qkv = values(3 * sizes.output_len(), 1);
    let (rows, cols) = (values(sizes.rows_len(), 2), values(sizes.cols_len(), 3));
    let relative = Relative { rows: &rows, cols: &cols };
    let mut out = vec![f32::NAN; sizes.output_len()];
    forward(&sizes, &qkv, relative, &mut out);
    let values_of: Vec<f64> =
        qkv.chunks(3 * 16).flat_map(|position| wide(&position[32..])).collect();
    assert_near(&out, &values_of, 1e-6);
    // Only the values get a gradient: there is nothing to choose between.
    let g = vec![1.0; out.len()];
    let (mut dqkv, mut drows, mut dcols) =
        (vec![f32::NAN; qkv.len()], vec![f32::NAN; rows.len()], vec![f32::NAN; cols.len()]);
    let gradients = Gradients { qkv: &mut dqkv, rows: &mut drows, cols: &mut dcols };
    backward(&sizes, &qkv, relative, &g, gradients);
    assert!(drows.iter().chain(&dcols).all(|v| v.abs() < 1e-5));
    assert!(
        dqkv.chunks(48).all(|p| p[..32].iter().all(|v| v.abs() < 1e-5) && p[32..] == [1.0; 16])
    );
}

/// Attention along the columns of a grid is attention on each column taken out by itself.
#[test]
fn a_window_of_one_column_is_attention_along_the_column() {
    let all = LocalAttention {
        batch: 1,
        heads: 2,
        grid_h: 5,
        grid_w: 3,
        head_dim: 8,
        window: (9, 1),
        scale: 0.4,
    };
    let qkv = values(3 * all.output_len(), 1);
    let (rows, cols) = (values(all.rows_len(), 2), values(all.cols_len(), 3));
    let relative = Relative { rows: &rows, cols: &cols };
    let mut out = vec![f32::NAN; all.output_len()];
    forward(&all, &qkv, relative, &mut out);
    let column = LocalAttention { grid_w: 1, ..all };
    for x in 0..3 {
        let pick = |from: &[f32], width: usize| -> Vec<f32> {
            (0..5).flat_map(|y| from[(y * 3 + x) * width..][..width].to_vec()).collect()
        };
        let mut alone = vec![f32::NAN; column.output_len()];
        forward(&column, &pick(&qkv, 48), relative, &mut alone);
        assert_eq!(alone, pick(&out, 16));
    }
}
