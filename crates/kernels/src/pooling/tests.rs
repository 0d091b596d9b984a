use super::*;
use crate::conv2d::tests::{assert_gradient, assert_near, values, wide};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn averages_equal_the_reference(planes in 1..40_usize, img in (5..40_usize, 5..40_usize),
                                    kernel in 1..5_usize, seed: u32) {
        let sizes = Pool2d::disjoint(planes, img.0, img.1, kernel);
        let (x, g) = (values(sizes.input_len(), seed), values(sizes.output_len(), seed ^ 1));
        let (mut out, mut dx) = (vec![f32::NAN; g.len()], vec![f32::NAN; x.len()]);
        average_forward(&sizes, &x, &mut out);
        average_backward(&sizes, &g, &mut dx);
        assert_near(&out, &reference::average_forward(&sizes, &wide(&x)), 1e-6);
        assert_near(&dx, &reference::average_backward(&sizes, &wide(&g)), 1e-6);
        let pixels = img.0 * img.1;
        let (mut mean, mut dx) = (vec![f32::NAN; planes], vec![f32::NAN; x.len()]);
        mean_forward(pixels, &x, &mut mean);
        mean_backward(pixels, &mean, &mut dx);
        assert_near(&mean, &reference::mean_forward(pixels, &wide(&x)), 1e-6);
        assert_near(&dx, &reference::mean_backward(pixels, &wide(&mean)), 1e-6);
    }

    #[test]
    fn maxima_equal_the_reference(planes in 1..20_usize, img in (5..30_usize, 5..30_usize),
                                  kernel in 2..5_usize, stride in 1..4_usize, same: bool, seed: u32) {
        let padding = if same {
            Padding::same(img, (kernel, kernel), (stride, stride))
        } else {
            Padding::uniform(1)
        };
        let (img_h, img_w) = img;
        let sizes = Pool2d { planes, img_h, img_w, kernel, stride, padding };
        let (x, g) = (values(sizes.input_len(), seed), values(sizes.output_len(), seed ^ 1));
        // Coarse and negative: ties happen, and padding with 0 would win.
        let x: Vec<f32> = x.iter().map(|v| (v * 8.0).round() / 8.0 - 2.0).collect();
        let (mut out, mut index) = (vec![f32::NAN; g.len()], vec![0; g.len()]);
        let mut dx = vec![f32::NAN; x.len()];
        max_forward(&sizes, &x, &mut out, &mut index);
        max_backward(&sizes, &index, &g, &mut dx);
        assert_near(&out, &reference::max_forward(&sizes, &wide(&x)), 0.0);
        assert_near(&dx, &reference::max_backward(&sizes, &wide(&x), &wide(&g)), 1e-6);
    }
}

#[test]
fn the_reference_gradient_is_the_slope() {
    let sizes = Pool2d::disjoint(2, 5, 7, 2);
    let (x, g) = (wide(&values(sizes.input_len(), 1)), wide(&values(sizes.output_len(), 2)));
    let grad = reference::average_backward(&sizes, &g);
    assert_gradient(&x, &grad, &g, |x| reference::average_forward(&sizes, x));
    let sizes =
        Pool2d { kernel: 3, stride: 2, padding: Padding::same((5, 7), (3, 3), (2, 2)), ..sizes };
    let g = wide(&values(sizes.output_len(), 3));
    let grad = reference::max_backward(&sizes, &x, &g);
    assert_gradient(&x, &grad, &g, |x| reference::max_forward(&sizes, x));
    let grad = reference::mean_backward(35, &g[..2]);
    assert_gradient(&x, &grad, &g[..2], |x| reference::mean_forward(35, x));
}

#[test]
fn a_value_that_is_not_a_number_wins() {
    let sizes = Pool2d::disjoint(1, 2, 2, 2);
    let (mut out, mut index) = ([0.0], [0]);
    max_forward(&sizes, &[1.0, f32::NAN, 3.0, f32::NEG_INFINITY], &mut out, &mut index);
    assert!(out[0].is_nan());
}
