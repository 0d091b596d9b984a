//! Kernels against plain loops, and the loops' gradients against finite differences. The numbers
//! and comparisons here serve the other picture operations too.

use super::*;
use proptest::prelude::*;

/// Pseudo-random values in [-1, 1), exact in f32.
pub(crate) fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut s = seed.wrapping_mul(2_654_435_761).max(1);
    (0..n)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 17;
            s ^= s << 5;
            (s >> 8) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

/// Every value within `tolerance` of `want`, relative to the larger of 1 and `|want|`.
#[track_caller]
pub(crate) fn assert_near(got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let difference = (f64::from(g) - w).abs();
        assert!(difference <= tolerance * w.abs().max(1.0), "at {i} of {}: {g} {w}", got.len());
    }
}

/// `grad` is the gradient of `sum(f(x) * weights)` at `x`, by central differences.
#[track_caller]
pub(crate) fn assert_gradient(
    x: &[f64],
    grad: &[f64],
    weights: &[f64],
    f: impl Fn(&[f64]) -> Vec<f64>,
) {
    let loss = |x: &[f64]| f(x).iter().zip(weights).map(|(y, w)| y * w).sum::<f64>();
    assert_eq!(x.len(), grad.len());
    for i in 0..x.len() {
        let (mut up, mut down) = (x.to_vec(), x.to_vec());
        up[i] += 1e-5;
        down[i] -= 1e-5;
        let slope = (loss(&up) - loss(&down)) / 2e-5;
        assert!((slope - grad[i]).abs() < 1e-6 * slope.abs().max(1.0), "{i}: {slope} {}", grad[i]);
    }
}

fn sizes() -> impl Strategy<Value = Conv2d> {
    let padding = (0..3_usize, 0..3_usize, 0..3_usize, 0..3_usize)
        .prop_map(|(top, bottom, left, right)| Padding { top, bottom, left, right });
    let kernel = prop_oneof![Just((1, 1)), Just((3, 3)), (1..5_usize, 1..6_usize)];
    let stride = prop_oneof![Just((1, 1)), (1..4_usize, 1..4_usize)];
    (1..3_usize, 1..9_usize, 1..70_usize, (5..20_usize, 6..24_usize), kernel, stride, padding)
        .prop_map(|(batch, in_channels, out_channels, img, kernel, stride, padding)| Conv2d {
            batch,
            in_channels,
            img_h: img.0,
            img_w: img.1,
            out_channels,
            kernel,
            stride,
            padding: if kernel == (1, 1) && stride == (1, 1) {
                Padding::default()
            } else {
                padding
            },
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn equals_the_reference(conv in sizes(), seed: u32) {
        let pixels = values(conv.input_len(), seed);
        let weight = values(conv.out_channels * conv.fan_in(), seed ^ 1);
        let bias = values(conv.out_channels, seed ^ 2);
        let grad = values(conv.output_len(), seed ^ 3);
        let (x, w, b, g) = (wide(&pixels), wide(&weight), wide(&bias), wide(&grad));
        let want = reference::forward(&conv, &x, &w, Some(&b));
        let (want_dx, want_dw, want_db) = reference::backward(&conv, &x, &w, &g);
        for &isa in Isa::available() {
            let mut out = vec![f32::NAN; conv.output_len()];
            forward_for(isa, &conv, &pixels, &weight, Some(&bias), &mut out);
            assert_near(&out, &want, 2e-5);
            let mut dx = vec![f32::NAN; pixels.len()];
            backward::grad_input_for(isa, &conv, &weight, &grad, &mut dx);
            assert_near(&dx, &want_dx, 2e-5);
            let mut dw = vec![f32::NAN; weight.len()];
            backward::grad_weight_for(isa, &conv, &pixels, &grad, &mut dw);
            assert_near(&dw, &want_dw, 2e-5);
        }
        let mut db = vec![f32::NAN; conv.out_channels];
        grad_bias(&conv, &grad, &mut db);
        assert_near(&db, &want_db, 2e-5);
    }

    #[test]
    fn standardised_filters_equal_the_reference(filters in 1..9_usize, fan_in in 2..200_usize,
                                                seed: u32) {
        let weight = values(filters * fan_in, seed);
        let grad = values(filters * fan_in, seed ^ 1);
        let (mut out, mut dw) = (vec![f32::NAN; weight.len()], vec![f32::NAN; weight.len()]);
        standardise_forward(&weight, fan_in, 1e-3, &mut out);
        assert_near(&out, &reference::standardise(&wide(&weight), fan_in, 1e-3), 2e-5);
        standardise_backward(&weight, &grad, fan_in, 1e-3, &mut dw);
        let want = reference::standardise_backward(&wide(&weight), &wide(&grad), fan_in, 1e-3);
        assert_near(&dw, &want, 1e-4);
    }
}

#[test]
fn the_reference_gradient_is_the_slope() {
    let conv = Conv2d {
        batch: 2,
        in_channels: 2,
        img_h: 5,
        img_w: 6,
        out_channels: 3,
        kernel: (3, 2),
        stride: (2, 1),
        padding: Padding { top: 0, bottom: 1, left: 1, right: 0 },
    };
    let x = wide(&values(conv.input_len(), 1));
    let w = wide(&values(conv.out_channels * conv.fan_in(), 2));
    let b = wide(&values(conv.out_channels, 3));
    let g = wide(&values(conv.output_len(), 4));
    let (dx, dw, db) = reference::backward(&conv, &x, &w, &g);
    assert_gradient(&x, &dx, &g, |x| reference::forward(&conv, x, &w, Some(&b)));
    assert_gradient(&w, &dw, &g, |w| reference::forward(&conv, &x, w, Some(&b)));
    assert_gradient(&b, &db, &g, |b| reference::forward(&conv, &x, &w, Some(b)));
    let grad = wide(&values(w.len(), 5));
    let dw = reference::standardise_backward(&w, &grad, conv.fan_in(), 1e-8);
    assert_gradient(&w, &dw, &grad, |w| reference::standardise(w, conv.fan_in(), 1e-8));
}

/// Deep filters (several blocks of the inner dimension) and grids of many panels.
#[test]
fn large_sizes_equal_the_reference() {
    for (in_channels, img, out_channels, kernel, stride) in
        [(100, 9, 70, 3, 1), (3, 61, 20, 7, 2), (1600, 4, 9, 1, 1), (8, 40, 800, 1, 1)]
    {
        let conv = Conv2d {
            batch: 2,
            in_channels,
            img_h: img,
            img_w: img,
            out_channels,
            kernel: (kernel, kernel),
            stride: (stride, stride),
            padding: Padding::uniform(kernel / 2),
        };
        let pixels = values(conv.input_len(), 1);
        let weight = values(out_channels * conv.fan_in(), 2);
        let grad = values(conv.output_len(), 3);
        let (x, w, g) = (wide(&pixels), wide(&weight), wide(&grad));
        let mut out = vec![f32::NAN; conv.output_len()];
        forward(&conv, &pixels, &weight, None, &mut out);
        assert_near(&out, &reference::forward(&conv, &x, &w, None), 5e-5);
        let (want_dx, want_dw, _) = reference::backward(&conv, &x, &w, &g);
        let (mut dx, mut dw) = (vec![f32::NAN; pixels.len()], vec![f32::NAN; weight.len()]);
        grad_input(&conv, &weight, &grad, &mut dx);
        grad_weight(&conv, &pixels, &grad, &mut dw);
        assert_near(&dx, &want_dx, 5e-5);
        assert_near(&dw, &want_dw, 1e-4);
    }
}

/// Batch, channels in, side, channels out, kernel, stride: grids that fill no panel alone, batches
/// that end in the middle of one, filters and batches of several blocks of the inner dimension.
const SMALL_GRIDS: [(usize, usize, usize, usize, usize, usize); 8] = [
    (9, 20, 7, 70, 3, 1),
    (41, 90, 2, 50, 3, 1),
    (70, 3, 1, 5, 3, 1),
    (18, 30, 7, 20, 3, 2),
    (5, 33, 7, 100, 1, 1),
    (6, 900, 3, 9, 1, 1),
    (7, 13, 8, 66, 1, 2),
    (60, 5, 4, 67, 3, 1),
];

fn small_grid(i: usize) -> Conv2d {
    let (batch, in_channels, side, out_channels, kernel, stride) = SMALL_GRIDS[i];
    Conv2d {
        batch,
        in_channels,
        img_h: side,
        img_w: side,
        out_channels,
        kernel: (kernel, kernel),
        stride: (stride, stride),
        padding: Padding::uniform(kernel / 2),
    }
}

#[test]
fn samples_that_share_panels_equal_the_reference() {
    for conv in (0..SMALL_GRIDS.len()).map(small_grid) {
        let pixels = values(conv.input_len(), 1);
        let weight = values(conv.out_channels * conv.fan_in(), 2);
        let bias = values(conv.out_channels, 3);
        let grad = values(conv.output_len(), 4);
        let (x, w, b, g) = (wide(&pixels), wide(&weight), wide(&bias), wide(&grad));
        let want = reference::forward(&conv, &x, &w, Some(&b));
        let (want_dx, want_dw, _) = reference::backward(&conv, &x, &w, &g);
        for &isa in Isa::available() {
            let mut out = vec![f32::NAN; conv.output_len()];
            forward_for(isa, &conv, &pixels, &weight, Some(&bias), &mut out);
            assert_near(&out, &want, 5e-5);
            let mut dx = vec![f32::NAN; pixels.len()];
            backward::grad_input_for(isa, &conv, &weight, &grad, &mut dx);
            assert_near(&dx, &want_dx, 5e-5);
            let mut dw = vec![f32::NAN; weight.len()];
            backward::grad_weight_for(isa, &conv, &pixels, &grad, &mut dw);
            assert_near(&dw, &want_dw, 5e-5);
        }
    }
}

/// Bit for bit, whatever else is in the batch.
#[test]
fn a_sample_does_not_depend_on_the_others() {
    let large = Conv2d {
        batch: 5,
        in_channels: 16,
        img_h: 14,
        img_w: 14,
        out_channels: 100,
        kernel: (3, 3),
        stride: (1, 1),
        padding: Padding::uniform(1),
    };
    for all in (0..SMALL_GRIDS.len()).map(small_grid).chain([large]) {
        let one = Conv2d { batch: 1, ..all };
        let pixels = values(all.input_len(), 1);
        let weight = values(all.out_channels * all.fan_in(), 2);
        let bias = values(all.out_channels, 3);
        let grad = values(all.output_len(), 4);
        for &isa in Isa::available() {
            let mut out = vec![0.0; all.output_len()];
            forward_for(isa, &all, &pixels, &weight, Some(&bias), &mut out);
            let mut dx = vec![0.0; all.input_len()];
            backward::grad_input_for(isa, &all, &weight, &grad, &mut dx);
            for n in [0, all.batch / 2, all.batch - 1] {
                let own = n * one.input_len()..(n + 1) * one.input_len();
                let own_out = n * one.output_len()..(n + 1) * one.output_len();
                let mut alone = vec![0.0; one.output_len()];
                forward_for(isa, &one, &pixels[own.clone()], &weight, Some(&bias), &mut alone);
                assert_eq!(alone, out[own_out.clone()]);
                let mut alone = vec![0.0; one.input_len()];
                backward::grad_input_for(isa, &one, &weight, &grad[own_out], &mut alone);
                assert_eq!(alone, dx[own]);
            }
        }
    }
}

#[test]
fn same_padding_is_that_of_tensorflow() {
    let same = |img, kernel, stride| Padding::same((img, img), (kernel, kernel), (stride, stride));
    assert_eq!(same(224, 7, 2), Padding { top: 2, bottom: 3, left: 2, right: 3 });
    assert_eq!(same(112, 3, 2), Padding { top: 0, bottom: 1, left: 0, right: 1 });
    assert_eq!(same(14, 3, 1), Padding::uniform(1));
    assert_eq!(same(56, 1, 2), Padding::default());
}
