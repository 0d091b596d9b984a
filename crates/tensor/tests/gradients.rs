//! Every operation's gradient equals finite differences, and the tape keeps its promises.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ocelli_tensor::{
    Activation, AttentionMask, Heads, LinearOptions, Result, Rotary, Targets, Tensor, checkpoint,
    no_grad,
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
        for at in (0..leaf.elements()).step_by(leaf.elements() / 7 + 1) {
            let moved = |d: f32| {
                let mut inputs = inputs.to_vec();
                inputs[i].values_mut()[at] += d;
                loss(&inputs)
            };
            let h = 1e-2;
            let slope = (moved(h) - moved(-h)) / (2.0 * f64::from(h));
            let got = f64::from(grad.values()[at]);
            assert!(
                (got - slope).abs() < 4e-3 * (1.0 + slope.abs()),
                "{name} {i}[{at}]: {got} {slope}"
            );
        }
    }
}

#[test]
fn dropout() {
    let inputs = [values(&[3, 8], 1), values(&[3, 8], 2)];
    check("dropout", &inputs[..1], |x| x[0].dropout(0.4, 5, None));
    check("dropout and residual", &inputs, |x| x[0].dropout(0.4, 5, Some(&x[1])));
    assert!(inputs[0].dropout(0.4, 5, Some(&values(&[8], 1))).is_err());
}

#[test]
fn linear() {
    for activation in Activation::ALL {
        if [Activation::Relu, Activation::SquaredRelu].contains(&activation) {
            continue; // Their kinks defeat finite differences; the kernel test covers them.
        }
        let inputs =
            [values(&[2, 3, 5], 1), values(&[4, 5], 2), values(&[4], 3), values(&[2, 3, 4], 4)];
        check("linear", &inputs, |x| {
            let (bias, residual) = (Some(&x[2]), Some(&x[3]));
            let o = LinearOptions { bias, activation, residual, in_bf16: false };
            x[0].linear_with(&x[1], o)
        });
        check("activate", &[values(&[9], 1)], |x| x[0].activate(activation));
    }
    check("matmul", &[values(&[3, 4], 1), values(&[4, 5], 2)], |x| x[0].matmul(&x[1]));
}

#[test]
fn norms() {
    let inputs = [values(&[3, 8], 1), values(&[8], 2), values(&[8], 3)];
    check("layer_norm", &inputs, |x| x[0].layer_norm(&x[1], &x[2], 1e-5));
    let inputs = [values(&[3, 8], 1), values(&[8], 2)];
    check("rms_norm", &inputs, |x| x[0].rms_norm(&x[1], 1e-5));
    check("l2_normalise", &[values(&[3, 5], 1)], |x| x[0].l2_normalise());
}

#[test]
fn attention() {
    check("self_attention", &[values(&[2, 5, 4 * 6], 1)], |x| {
        x[0].self_attention(Heads { heads: 2, kv_heads: 1 }, &AttentionMask::causal())
    });
    let mask = AttentionMask {
        keys: Some([1, 1, 0, 1, 1, 1, 1, 1].into()),
        bias: Some(values(&[1, 2, 3, 4], 9)),
        ..AttentionMask::default()
    };
    let inputs = [values(&[2, 3, 6], 1), values(&[2, 4, 6], 2), values(&[2, 4, 6], 3)];
    check("attention", &inputs, |x| x[0].attention(&x[1], &x[2], Heads::same(2), &mask));
    // The bias of T5: one for all samples, per head, with scores that are not scaled.
    let inputs = [values(&[2, 3, 12], 1), values(&[1, 2, 3, 3], 2)];
    check("bias of self_attention", &inputs, |x| {
        let bias = Some(x[1].clone());
        let mask = AttentionMask { bias, scale: Some(1.0), ..AttentionMask::causal() };
        x[0].self_attention(Heads::same(2), &mask)
    });
}

#[test]
fn rotary() {
    let angles = Rotary::new(3, 10_000.0, 1.0).angles(&[0, 1, 3, 4]);
    check("rotate", &[values(&[2, 2, 4 * 6], 1)], |x| x[0].rotate(&angles, 3));
    check("rotate_part", &[values(&[2, 2, 4 * 6], 1)], |x| x[0].rotate_part(&angles, 3, 8));
    assert!(values(&[2, 2, 24], 1).rotate_part(&angles, 3, 5).is_err());
    let scaled = angles.scaled(&[1.0, 2.0, 0.5, -1.5]);
    check("rotate, scaled", &[values(&[2, 2, 4 * 6], 1)], |x| x[0].rotate(&scaled, 3));
}

#[test]
fn losses() {
    let classes = Targets::Classes([2, 0, Targets::IGNORED].into(), 0.1);
    check("cross_entropy", &[values(&[3, 4], 1)], |x| x[0].cross_entropy(&classes));
    let soft = Targets::Distributions(values(&[3, 4], 5));
    check("cross_entropy", &[values(&[3, 4], 1)], |x| x[0].cross_entropy(&soft));
    let inputs = [values(&[4, 6], 1), values(&[4, 6], 2), Tensor::full(0.7, &[])];
    check("contrastive_loss", &inputs, |x| x[0].contrastive_loss(&x[1], &x[2]));
    let (target, mask) = (values(&[2, 5], 8), Tensor::full(1.0, &[2, 5]));
    check("masked_l1_loss", &[values(&[2, 5], 1)], |x| x[0].masked_l1_loss(&target, &mask));
}

#[test]
fn tables_and_tokens() {
    let ids = [1, 3, 1, 0].into();
    check("embedding", &[values(&[4, 3], 1)], |x| x[0].embedding(&ids, &[2, 2]));
    check("select_tokens", &[values(&[2, 3, 4], 1)], |x| x[0].select_tokens(&[2, 0]));
    check("mean_tokens", &[values(&[2, 3, 4], 1)], |x| x[0].mean_tokens(1));
    check("prepend_to", &[values(&[1, 1, 4], 1), values(&[2, 3, 4], 2)], |x| {
        x[0].prepend_to(&x[1])
    });
    let mask = [true, false, false, true].into();
    check("replace_in", &[values(&[3], 1), values(&[2, 2, 3], 2)], |x| {
        x[0].replace_in(&x[1], &mask)
    });
}

#[test]
fn elementwise_and_rearranging() {
    let two = [values(&[2, 3, 4], 1), values(&[2, 3, 4], 2)];
    check("add", &two, |x| x[0].add(&x[1]));
    check("mul", &two, |x| x[0].mul(&x[1]));
    check("add_table", &[values(&[2, 3, 4], 1), values(&[3, 4], 2)], |x| x[0].add_table(&x[1]));
    check("scale_columns", &[values(&[2, 3, 4], 1), values(&[4], 2)], |x| {
        x[0].scale_columns(&x[1])
    });
    for factors in [vec![], vec![2], vec![2, 3]] {
        let inputs = [values(&[2, 3, 4], 1), values(&factors, 2)];
        check("scale_rows", &inputs, |x| x[0].scale_rows(&x[1]));
    }
    assert!(two[0].scale_rows(&values(&[3], 1)).is_err());
    check("scale", &two[..1], |x| x[0].scale(-1.5));
    check("sum", &two[..1], |x| x[0].sum());
    check("permute", &two[..1], |x| x[0].permute(&[2, 0, 1]));
    check("cat", &[values(&[2, 1, 4], 1), values(&[2, 3, 4], 2)], |x| {
        Tensor::cat(&[&x[0], &x[1]], 1)
    });
    check("patches", &[values(&[2, 3, 5, 4], 1)], |x| x[0].patches(2));
    check("narrow", &two[..1], |x| x[0].narrow(1, 1, 2));
    check("reshape", &two[..1], |x| x[0].reshape(&[6, 4]));
}

#[test]
fn a_tensor_used_twice_gets_the_sum() {
    let x = values(&[3], 1).leaf();
    let y = x.add(&x).unwrap().mul(&x).unwrap(); // 2 x^2
    let grads = y.sum().unwrap().backward().unwrap();
    for (g, x) in grads.get(&x).unwrap().values().iter().zip(x.values()) {
        assert!((g - 4.0 * x).abs() < 1e-6);
    }
}

#[test]
fn frozen_parents_and_no_grad_leave_no_tape() {
    let (x, w) = (values(&[2, 3], 1), values(&[4, 3], 2).leaf());
    assert!(!no_grad(|| x.linear(&w, None)).unwrap().is_tracked());
    assert!(!x.linear(&w.detach(), None).unwrap().is_tracked());
    assert!(x.sum().unwrap().backward().is_err());
    let grads = x.linear(&w, None).unwrap().sum().unwrap().backward().unwrap();
    assert!(grads.get(&x).is_none() && grads.get(&w).is_some());
}

#[test]
fn a_recomputed_block_gives_the_same_gradients() {
    let (x, w) = (values(&[2, 3], 1).leaf(), values(&[3, 3], 2).leaf());
    let inner = w.clone();
    let block = move |x: &Tensor| {
        let h = x.linear_with(
            &inner,
            LinearOptions { activation: Activation::Gelu, ..Default::default() },
        )?;
        h.linear(&inner, None)
    };
    let plain = block(&x).unwrap().sum().unwrap().backward().unwrap();
    let twice = checkpoint(&x, block).unwrap().sum().unwrap().backward().unwrap();
    for leaf in [&x, &w] {
        assert_eq!(plain.get(leaf).unwrap().values(), twice.get(leaf).unwrap().values());
    }
}

#[test]
fn wrong_shapes_are_errors_that_name_them() {
    let x = values(&[2, 3], 1);
    let e = x.linear(&values(&[4, 5], 2), None).unwrap_err().to_string();
    assert_eq!(e, "linear: expected [.., 5], got [2, 3]");
    assert!(x.add(&values(&[3, 2], 2)).is_err());
    assert!(x.embedding(&[2].into(), &[1]).is_err());
    assert!(x.permute(&[0, 0]).is_err());
}

/// With operands that bf16 holds exactly, rounding changes nothing, forward or backward.
#[test]
fn a_layer_in_bf16_is_that_of_rounded_operands() {
    let (m, n, k) = (37, 70, 51);
    let exact = |shape: &[usize], seed| {
        let values = values(shape, seed);
        let upper = |v: &f32| f32::from_bits(v.to_bits() & 0xffff_0000);
        Tensor::from_slice(&values.values().iter().map(upper).collect::<Vec<_>>(), shape).unwrap()
    };
    let (x, w, c) = (exact(&[m, k], 1), exact(&[n, k], 2), exact(&[m, n], 3));
    let run = |x: &Tensor, w: &Tensor, in_bf16: bool| {
        let (x, w) = (x.leaf(), w.leaf());
        let y = x.linear_with(&w, LinearOptions { in_bf16, ..LinearOptions::default() }).unwrap();
        let grads = y.backward_from(&c).unwrap();
        [y.detach(), grads.get(&x).unwrap().detach(), grads.get(&w).unwrap().detach()]
    };
    let close = |a: &[Tensor; 3], b: &[Tensor; 3]| {
        a.iter().zip(b).all(|(a, b)| {
            a.values().iter().zip(b.values()).all(|(a, b)| (a - b).abs() < 1e-5 * (1.0 + b.abs()))
        })
    };
    assert!(close(&run(&x, &w, true), &run(&x, &w, false)));
    // Others are rounded: the same, once they are, and not before.
    let third = x.scale(1.0 / 3.0).unwrap();
    let bits = |v: &f32| {
        let bits = v.to_bits();
        f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
    };
    let near: Vec<f32> = third.values().iter().map(bits).collect();
    let near = Tensor::from_slice(&near, &[m, k]).unwrap();
    assert!(close(&run(&third, &w, true), &run(&near, &w, false)));
    assert!(!close(&run(&third, &w, true), &run(&third, &w, false)));
}

/// Second halves of heads get what the rotation itself gives, first halves the gradient.
#[test]
fn turning_half_back_is_the_gradient_of_first_halves_alone() {
    let rotary = Rotary::new(4, 100.0, 1.0);
    let (x, g) = (values(&[1, 3, 16], 1), values(&[1, 3, 16], 2));
    let back = |rotary: &Rotary| {
        let x = x.leaf();
        let y = x.rotate(&rotary.angles(&[0, 5, 9]), 2).unwrap();
        y.backward_from(&g).unwrap().get(&x).unwrap().values().to_vec()
    };
    let (right, half) = (back(&rotary), back(&rotary.clone().turning_half_back()));
    let again = g.rotate(&rotary.angles(&[0, 5, 9]), 2).unwrap();
    for (i, value) in half.iter().enumerate() {
        let want = if i % 8 < 4 { right[i] } else { again.values()[i] };
        assert!((value - want).abs() < 1e-6, "{i}: {value} {want}");
    }
    assert_ne!(right, half);
}
