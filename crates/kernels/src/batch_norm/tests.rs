use super::*;
use crate::conv2d::tests::{assert_gradient, assert_near, values, wide};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn equals_the_reference(batch in 1..5_usize, channels in 1..9_usize, pixels in 2..90_usize,
                            relu: bool, seed: u32) {
        let sizes = BatchNorm { batch, channels, pixels, relu };
        let eps = 1e-3;
        let x: Vec<f32> = values(sizes.len(), seed).iter().map(|v| 3.0 * v + 1.0).collect();
        let g = values(sizes.len(), seed ^ 1);
        let (gamma, beta) = (values(channels, seed ^ 2), values(channels, seed ^ 3));
        let given = (values(channels, seed ^ 4),
            values(channels, seed ^ 5).iter().map(|v| v.abs() + 0.5).collect::<Vec<f32>>());
        let affine = Affine { gamma: &gamma, beta: &beta };
        let wide_affine = (wide(&gamma), wide(&beta));
        let wide_affine = (&wide_affine.0[..], &wide_affine.1[..]);
        for measured in [false, true] {
            let (mut out, mut mean, mut variance) =
                (vec![f32::NAN; sizes.len()], given.0.clone(), given.1.clone());
            let want_statistics = if measured {
                forward_train(&sizes, &x, affine, eps, &mut mean, &mut variance, &mut out);
                reference::statistics(&sizes, &wide(&x))
            } else {
                let statistics = Statistics { mean: &mean, variance: &variance, eps };
                forward_eval(&sizes, &x, affine, statistics, &mut out);
                (wide(&mean), wide(&variance))
            };
            assert_near(&mean, &want_statistics.0, 1e-5);
            assert_near(&variance, &want_statistics.1, 1e-5);
            let wide_statistics = (&want_statistics.0[..], &want_statistics.1[..]);
            let eps64 = f64::from(eps);
            let want = reference::forward(&sizes, &wide(&x), wide_affine, wide_statistics, eps64);
            assert_near(&out, &want, 2e-5);
            // The slope jumps where the line crosses 0; rounding may fall to either side.
            prop_assume!(!relu || want.iter().all(|v| *v == 0.0 || *v > 1e-5));
            let (mut dx, mut dgamma, mut dbeta) =
                (vec![f32::NAN; sizes.len()], vec![f32::NAN; channels], vec![f32::NAN; channels]);
            let gradients = Gradients { input: &mut dx, gamma: &mut dgamma, beta: &mut dbeta };
            let statistics = Statistics { mean: &mean, variance: &variance, eps };
            backward(&sizes, &x, affine, statistics, measured, &g, gradients);
            let want = reference::backward(
                &sizes, &wide(&x), wide_affine, wide_statistics, eps64, measured, &wide(&g));
            assert_near(&dx, &want.0, 5e-5);
            assert_near(&dgamma, &want.1, 5e-5);
            assert_near(&dbeta, &want.2, 5e-5);
        }
    }
}

#[test]
fn the_reference_gradient_is_the_slope() {
    let sizes = BatchNorm { batch: 3, channels: 2, pixels: 4, relu: false };
    let (x, g) = (wide(&values(sizes.len(), 1)), wide(&values(sizes.len(), 2)));
    let (gamma, beta) = (wide(&values(2, 3)), wide(&values(2, 4)));
    let (given_mean, given_variance) = (vec![0.1, -0.2], vec![0.7, 1.3]);
    for (relu, measured) in [(false, false), (true, false), (false, true), (true, true)] {
        let sizes = BatchNorm { relu, ..sizes };
        let run = |x: &[f64], gamma: &[f64], beta: &[f64]| {
            let (mean, variance) = if measured {
                reference::statistics(&sizes, x)
            } else {
                (given_mean.clone(), given_variance.clone())
            };
            reference::forward(&sizes, x, (gamma, beta), (&mean, &variance), 1e-5)
        };
        let (mean, variance) = if measured {
            reference::statistics(&sizes, &x)
        } else {
            (given_mean.clone(), given_variance.clone())
        };
        let affine = (&gamma[..], &beta[..]);
        let (dx, dgamma, dbeta) =
            reference::backward(&sizes, &x, affine, (&mean, &variance), 1e-5, measured, &g);
        assert_gradient(&x, &dx, &g, |x| run(x, &gamma, &beta));
        assert_gradient(&gamma, &dgamma, &g, |gamma| run(&x, gamma, &beta));
        assert_gradient(&beta, &dbeta, &g, |beta| run(&x, &gamma, beta));
    }
}

#[test]
fn running_statistics_take_the_unbiased_variance() {
    let (mut mean, mut variance) = (vec![1.0], vec![2.0]);
    let measured = Statistics { mean: &[3.0], variance: &[4.0], eps: 0.0 };
    update_running(&mut mean, &mut variance, measured, 5, 0.1);
    assert!((mean[0] - 1.2).abs() < 1e-6);
    assert!((variance[0] - (1.8 + 0.1 * 4.0 * 5.0 / 4.0)).abs() < 1e-6);
}
