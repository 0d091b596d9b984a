//! The gradient of every operation on pictures equals finite differences.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ocelli_tensor::{
    BatchNormOptions, Error, GroupNormOptions, PicturePadding, Result, Tensor, no_grad,
};

fn values(shape: &[usize], seed: usize) -> Tensor {
    let n = shape.iter().product::<usize>();
    let v: Vec<f32> =
        (0..n).map(|i| ((i * 7919 + seed * 131) % 1009) as f32 / 504.0 - 1.0).collect();
    Tensor::from_slice(&v, shape).unwrap()
}

/// Compares gradients of `Σ f(inputs) * weights` with central differences at some places.
fn check(name: &str, inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let leaves: Vec<Tensor> = inputs.iter().map(Tensor::leaf).collect();
    let y = f(&leaves).unwrap();
    let weights = values(y.shape(), 77);
    let grads = y.backward_from(&weights).unwrap();
    let loss = |inputs: &[Tensor]| -> f64 {
        let y = no_grad(|| f(inputs)).unwrap();
        y.values().iter().zip(weights.values()).map(|(y, w)| f64::from(*y) * f64::from(*w)).sum()
    };
    for (i, leaf) in leaves.iter().enumerate() {
        let grad = grads.get(leaf).unwrap_or_else(|| panic!("{name}: input {i} got no gradient"));
        assert_eq!(grad.shape(), leaf.shape(), "{name}: input {i}");
        for at in (0..leaf.elements()).step_by(leaf.elements() / 13 + 1) {
            let moved = |d: f32| {
                let mut inputs = inputs.to_vec();
                inputs[i].values_mut()[at] += d;
                loss(&inputs)
            };
            let h = 1e-2;
            let slope = (moved(h) - moved(-h)) / (2.0 * f64::from(h));
            let got = f64::from(grad.values()[at]);
            let near = (got - slope).abs() < 4e-3 * (1.0 + slope.abs());
            assert!(near, "{name} {i}[{at}]: {got} {slope}");
        }
    }
}

#[test]
fn convolutions() {
    for (kernel, stride, padding) in [
        ((3, 3), 1, PicturePadding::Uniform(1)),
        ((3, 2), 2, PicturePadding::Same),
        ((1, 1), 1, PicturePadding::Uniform(0)),
    ] {
        let inputs =
            [values(&[2, 3, 6, 7], 1), values(&[4, 3, kernel.0, kernel.1], 2), values(&[4], 3)];
        check("conv2d", &inputs, |x| x[0].conv2d(&x[1], Some(&x[2]), stride, padding));
        check("conv2d without bias", &inputs[..2], |x| x[0].conv2d(&x[1], None, stride, padding));
    }
    check("standardise_filters", &[values(&[3, 2, 3, 3], 1)], |x| x[0].standardise_filters(1e-5));
}

#[test]
fn norms() {
    let inputs = [values(&[2, 4, 3, 5], 1), values(&[4], 2), values(&[4], 3)];
    // The kernels' tests cover the kink of the ReLU, which defeats finite differences.
    let options = BatchNormOptions { eps: 1e-3, relu: false };
    let (mean, variance) = (values(&[4], 4), Tensor::full(0.6, &[4]));
    check("batch_norm", &inputs, |x| x[0].batch_norm(&x[1], &x[2], &mean, &variance, options));
    check("batch_norm_train", &inputs, |x| {
        x[0].batch_norm_train(&x[1], &x[2], options).map(|(y, _)| y)
    });
    let options = GroupNormOptions { groups: 2, eps: 1e-3, relu: false };
    check("group_norm", &inputs, |x| x[0].group_norm(&x[1], &x[2], options));
}

#[test]
fn pooling() {
    let x = [values(&[2, 3, 5, 6], 1)];
    check("average_pool", &x, |x| x[0].average_pool(2));
    check("mean_pool", &x, |x| x[0].mean_pool());
    check("max_pool", &x, |x| x[0].max_pool(3, 2));
}

#[test]
fn local_attention() {
    for window in [(3, 3), (5, 1), (1, 7)] {
        let inputs =
            [values(&[2, 12, 24], 1), values(&[2, window.0, 2], 2), values(&[2, window.1, 2], 3)];
        check("local_attention", &inputs, |x| x[0].local_attention(&x[1], &x[2], (3, 4)));
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let x = values(&[1, 3, 4, 4], 1);
    let none = PicturePadding::Uniform(0);
    let refused = |r: Result<Tensor>| matches!(r, Err(Error::Shape { .. }));
    assert!(refused(x.conv2d(&values(&[2, 4, 3, 3], 1), None, 1, none)));
    assert!(refused(x.conv2d(&values(&[2, 3, 5, 5], 1), None, 1, none)));
    assert!(refused(x.conv2d(&values(&[2, 3, 3, 3], 1), Some(&values(&[3], 1)), 1, none)));
    assert!(refused(values(&[3, 4, 4], 1).average_pool(2)));
    assert!(refused(x.average_pool(5)));
    let options = GroupNormOptions { groups: 2, eps: 1e-5, relu: true };
    assert!(refused(x.group_norm(&values(&[3], 1), &values(&[3], 1), options)));
    let qkv = values(&[1, 4, 12], 1);
    let (even, odd) = (values(&[1, 2, 2], 1), values(&[1, 3, 2], 1));
    assert!(refused(qkv.local_attention(&even, &odd, (2, 2))));
    assert!(refused(qkv.local_attention(&odd, &odd, (3, 2))));
}
