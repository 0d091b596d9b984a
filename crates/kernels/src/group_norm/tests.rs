use super::*;
use crate::conv2d::tests::{assert_gradient, assert_near, values, wide};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn equals_the_reference(batch in 1..4_usize, groups in 1..5_usize, group_channels in 1..4_usize,
                            pixels in 3..90_usize, relu: bool, seed: u32) {
        let sizes = GroupNorm { batch, groups, group_channels, pixels, eps: 1e-3, relu };
        let channels = sizes.channels();
        let x: Vec<f32> = values(sizes.len(), seed).iter().map(|v| 3.0 * v + 1.0).collect();
        let g = values(sizes.len(), seed ^ 1);
        let (gamma, beta) = (values(channels, seed ^ 2), values(channels, seed ^ 3));
        let affine = Affine { gamma: &gamma, beta: &beta };
        let mut out = vec![f32::NAN; sizes.len()];
        forward(&sizes, &x, affine, &mut out);
        let want = reference::forward(&sizes, &wide(&x), &wide(&gamma), &wide(&beta));
        assert_near(&out, &want, 2e-5);
        // The slope jumps where the line crosses 0; rounding may fall to either side.
        prop_assume!(!relu || want.iter().all(|v| *v == 0.0 || *v > 1e-5));
        let (mut dx, mut dgamma, mut dbeta) =
            (vec![f32::NAN; sizes.len()], vec![f32::NAN; channels], vec![f32::NAN; channels]);
        let gradients = Gradients { input: &mut dx, gamma: &mut dgamma, beta: &mut dbeta };
        backward(&sizes, &x, affine, &g, gradients);
        let want =
            reference::backward(&sizes, &wide(&x), &wide(&gamma), &wide(&beta), &wide(&g));
        assert_near(&dx, &want.0, 1e-4);
        assert_near(&dgamma, &want.1, 5e-5);
        assert_near(&dbeta, &want.2, 5e-5);
    }
}

#[test]
fn the_reference_gradient_is_the_slope() {
    for relu in [false, true] {
        let sizes =
            GroupNorm { batch: 2, groups: 2, group_channels: 2, pixels: 3, eps: 1e-5, relu };
        let (x, g) = (wide(&values(sizes.len(), 1)), wide(&values(sizes.len(), 2)));
        let (gamma, beta) = (wide(&values(4, 3)), wide(&values(4, 4)));
        let (dx, dgamma, dbeta) = reference::backward(&sizes, &x, &gamma, &beta, &g);
        assert_gradient(&x, &dx, &g, |x| reference::forward(&sizes, x, &gamma, &beta));
        assert_gradient(&gamma, &dgamma, &g, |v| reference::forward(&sizes, &x, v, &beta));
        assert_gradient(&beta, &dbeta, &g, |v| reference::forward(&sizes, &x, &gamma, v));
    }
}
