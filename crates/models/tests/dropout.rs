//! Dropout in Vision Transformers: where it is, and that its gradient is that of the same masks.
#![allow(clippy::unwrap_used)] // A failed test is to panic.

use ocelli_models::Pass;
use ocelli_models::vision::local_vit::{LocalVit, LocalVitConfig, Neighbourhood};
use ocelli_models::vision::position::PositionRule;
use ocelli_models::vision::vit::{Head, Vit, VitConfig};
use ocelli_nn::layers::Dropout;
use ocelli_nn::{Builder, Parameters};
use ocelli_tensor::{
    Activation, AttentionMask, Heads, LinearOptions, Result, Targets, Tensor, no_grad,
};

const SIDE: usize = 8;

fn pixels() -> Tensor {
    let values: Vec<f32> = (0..2 * 3 * SIDE * SIDE).map(|i| (i as f32 * 0.37).sin()).collect();
    Tensor::from_slice(&values, &[2, 3, SIDE, SIDE]).unwrap()
}

fn vit(has_layer_scale: bool) -> (Vit, Parameters) {
    let b = Builder::random(1);
    let config = VitConfig {
        image_size: (SIDE, SIDE),
        patch_size: 4,
        channels: 3,
        width: 12,
        depth: 2,
        heads: 2,
        mlp_dim: 24,
        norm_eps: 1e-6,
        qkv_bias: true,
        has_class_token: true,
        has_layer_scale,
        position_rule: PositionRule::Timm,
        head: Head::Classes(5),
    };
    let model = Vit::new(&config, &b);
    (model, learned(&b.finish().unwrap()))
}

/// As if steps had been taken: a new head is 0 and lets no gradient through, and a class token of
/// small values sits where layer norm bends most.
fn learned(parameters: &Parameters) -> Parameters {
    let is_small =
        |name: &str| ["class", "position", "head.weight"].contains(&name) || name.contains("scale");
    for p in parameters.iter().filter(|p| is_small(p.name())) {
        p.update(|v| v.iter_mut().enumerate().for_each(|(j, v)| *v = (j as f32).cos()));
    }
    parameters.clone()
}

fn dropping(rate: f32, step: u64) -> Pass {
    Pass { dropout: Dropout::new(rate, 42, step, 0), ..Pass::default() }
}

#[test]
fn a_vit_drops_behind_the_embedding_and_every_dense_layer_of_a_branch() {
    let (model, parameters) = vit(false);
    let pass = dropping(0.3, 1);
    let get = |name: &str| parameters.get(name).unwrap().tensor();
    let by_hand = || -> Result<Tensor> {
        let linear = |x: &Tensor, name: &str, activation| {
            let bias = get(&format!("{name}.bias"));
            let options = LinearOptions { bias: Some(&bias), activation, ..Default::default() };
            x.linear_with(&get(&format!("{name}.weight")), options)
        };
        let norm = |x: &Tensor, name: &str| {
            x.layer_norm(&get(&format!("{name}.weight")), &get(&format!("{name}.bias")), 1e-6)
        };
        let drop = |x: &Tensor, name: &str| pass.dropout.forward(x, name, None);
        let x = linear(&pixels().patches(4)?, "patch", Activation::None)?;
        let x = get("class").prepend_to(&x)?.add_table(&get("position"))?;
        let mut x = drop(&x, "position")?;
        for i in 0..2 {
            let at = |name: &str| format!("blocks.{i}.{name}");
            let z = linear(&norm(&x, &at("norm1"))?, &at("attn.qkv"), Activation::None)?;
            let z = z.self_attention(Heads::same(2), &AttentionMask::default())?;
            let z = linear(&z, &at("attn.out"), Activation::None)?;
            x = x.add(&drop(&z, &at("attn.out.weight"))?)?;
            let z = linear(&norm(&x, &at("norm2"))?, &at("mlp.up"), Activation::Gelu)?;
            let z = drop(&z, &at("mlp.up.weight"))?;
            let z = linear(&z, &at("mlp.down"), Activation::None)?;
            x = x.add(&drop(&z, &at("mlp.down.weight"))?)?;
        }
        linear(&norm(&x, "norm")?.select_tokens(&[0, 0])?, "head", Activation::None)
    };
    let (want, got) = (by_hand().unwrap(), model.forward_by(&pixels(), pass).unwrap());
    for (want, got) in want.values().iter().zip(got.values()) {
        assert!((want - got).abs() < 1e-5, "{want} {got}");
    }
    let bits = |y: Tensor| y.values().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let used = bits(model.forward(&pixels()).unwrap());
    assert_ne!(bits(got), used);
    assert_eq!(bits(model.forward_by(&pixels(), dropping(0.0, 1)).unwrap()), used);
}

/// The gradient of the loss against central differences, with blocks computed once and twice.
fn check(what: &str, parameters: &Parameters, logits: impl Fn(Pass) -> Tensor) {
    let targets = Targets::Classes([0, 3].into(), 0.1);
    let loss = |pass| logits(pass).cross_entropy(&targets).unwrap();
    for checkpoints_blocks in [false, true] {
        let pass = Pass { checkpoints_blocks, ..dropping(0.3, 1) };
        let gradients = loss(pass).backward().unwrap();
        for p in parameters.trainable() {
            let Some(gradient) = gradients.get(&p.tensor()).map(|g| g.values().to_vec()) else {
                assert_eq!(p.name(), "mask_token");
                continue;
            };
            for at in (0..gradient.len()).step_by(gradient.len() / 3 + 1) {
                let h = 4e-3;
                let moved = |by: f32| {
                    p.update(|v| v[at] += by);
                    let loss = no_grad(|| loss(dropping(0.3, 1))).item().unwrap();
                    p.update(|v| v[at] -= by);
                    f64::from(loss)
                };
                let slope = (moved(h) - moved(-h)) / f64::from(2.0 * h);
                let got = f64::from(gradient[at]);
                let name = p.name();
                assert!(
                    (got - slope).abs() < 4e-3 * (1.0 + slope.abs()),
                    "{what} {name}[{at}]: {got} {slope}"
                );
            }
        }
        let other = loss(dropping(0.3, 2)).item().unwrap();
        assert!(
            (loss(pass).item().unwrap() - other).abs() > 1e-4,
            "{what}: another step, same mask"
        );
    }
}

#[test]
fn gradients_are_those_of_the_same_masks() {
    for has_layer_scale in [false, true] {
        let (model, parameters) = vit(has_layer_scale);
        check("vit", &parameters, |pass| model.forward_by(&pixels(), pass).unwrap());
    }
    for neighbourhood in [Neighbourhood::Window(3), Neighbourhood::Axes] {
        let b = Builder::random(3);
        let sizes = LocalVitConfig {
            image_size: (SIDE, SIDE),
            patch_size: 4,
            width: 12,
            depth: 2,
            heads: 2,
            mlp_dim: 24,
            neighbourhood,
            classes: 5,
        };
        let model = LocalVit::new(&sizes, &b);
        let parameters = learned(&b.finish().unwrap());
        check("local", &parameters, |pass| model.forward_by(&pixels(), pass).unwrap());
    }
}
