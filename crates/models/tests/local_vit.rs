//! The local Vision Transformer learns, and its pictures and distant tokens are independent.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ocelli_models::vision::local_vit::{LocalVit, LocalVitConfig, Neighbourhood};
use ocelli_nn::Builder;
use ocelli_tensor::{Targets, Tensor, no_grad};

fn config(neighbourhood: Neighbourhood) -> LocalVitConfig {
    LocalVitConfig {
        image_size: (20, 12),
        patch_size: 4,
        width: 16,
        depth: 2,
        heads: 2,
        mlp_dim: 32,
        neighbourhood,
        classes: 3,
    }
}

fn pixels(batch: usize) -> Tensor {
    let n = batch * 3 * 20 * 12;
    let values: Vec<f32> = (0..n).map(|i| ((i * 7919) % 1009) as f32 / 504.0 - 1.0).collect();
    Tensor::from_slice(&values, &[batch, 3, 20, 12]).unwrap()
}

#[test]
fn both_forms_learn_three_pictures_by_heart() {
    for neighbourhood in [Neighbourhood::Window(3), Neighbourhood::Axes] {
        let builder = Builder::random(7);
        let model = LocalVit::new(&config(neighbourhood), &builder);
        let parameters = builder.finish().unwrap();
        let (pixels, targets) = (pixels(3), Targets::Classes([2, 0, 1].into(), 0.0));
        let mut losses = Vec::new();
        for step in 0..60 {
            let loss = model.loss(&pixels, &targets).unwrap();
            losses.push(loss.item().unwrap());
            let grads = loss.backward().unwrap();
            for p in parameters.iter() {
                let grad =
                    grads.get(&p.tensor()).unwrap_or_else(|| panic!("{} has none", p.name()));
                if step == 30 && !p.name().contains("relative") {
                    assert!(grad.values().iter().any(|g| *g != 0.0), "{} is unused", p.name());
                }
                p.update(|values| {
                    for (v, g) in values.iter_mut().zip(grad.values()) {
                        *v -= 0.1 * g;
                    }
                });
            }
        }
        assert!((losses[0] - 3_f32.ln()).abs() < 1e-5, "a head of zeros knows nothing");
        assert!(losses[59] < 0.1, "{neighbourhood:?}: {losses:?}");
    }
}

#[test]
fn a_token_sees_its_neighbourhood_only() {
    // The grid has 5 rows of 3 tokens; the last pixel lies in the last one.
    let reach = |neighbourhood| -> Vec<usize> {
        let one_block = LocalVitConfig { depth: 1, ..config(neighbourhood) };
        let model = LocalVit::new(&one_block, &Builder::random(3));
        let before = pixels(1);
        let mut after = before.clone();
        *after.values_mut().last_mut().unwrap() += 1.0;
        let features = |x: &Tensor| no_grad(|| model.features(x)).unwrap();
        let (a, b) = (features(&before), features(&after));
        (0..15).filter(|i| a.values()[i * 16..][..16] != b.values()[i * 16..][..16]).collect()
    };
    assert_eq!(reach(Neighbourhood::Window(3)), [10, 11, 13, 14]);
    // Down the column first, then along every row.
    assert_eq!(reach(Neighbourhood::Axes), (0..15).collect::<Vec<_>>());
}

#[test]
fn a_picture_does_not_depend_on_the_others() {
    let model = LocalVit::new(&config(Neighbourhood::Axes), &Builder::random(1));
    let all = no_grad(|| model.features(&pixels(4))).unwrap();
    let one = no_grad(|| model.features(&pixels(1))).unwrap();
    assert_eq!(one.values(), &all.values()[..one.elements()]);
}

#[test]
fn pairs_grow_with_the_window_or_the_sides() {
    assert_eq!(config(Neighbourhood::Window(3)).pairs(), 15 * 9);
    assert_eq!(config(Neighbourhood::Axes).pairs(), 15 * 8);
}
