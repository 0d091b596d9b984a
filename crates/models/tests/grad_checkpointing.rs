//! Blocks that are computed a second time give the same gradients, bit for bit.
#![allow(clippy::unwrap_used)] // A failed test is to panic.

use ocelli_models::Pass;
use ocelli_models::language::clip_text::{ClipTextConfig, EndToken};
use ocelli_models::systems::clip::{Clip, ClipConfig, VisionConfig};
use ocelli_models::vision::clip_vit::ClipVitConfig;
use ocelli_models::vision::local_vit::{LocalVit, LocalVitConfig, Neighbourhood};
use ocelli_models::vision::position::PositionRule;
use ocelli_models::vision::resnet_v2::{HybridVit, ResNetV2Config};
use ocelli_models::vision::vit::{Head, Vit, VitConfig};
use ocelli_nn::{Builder, Parameters};
use ocelli_tensor::{Gradients, Targets, Tensor};
use std::sync::Arc;

const SIDE: usize = 16;

fn pixels(batch: usize) -> Tensor {
    let n = batch * 3 * SIDE * SIDE;
    let values: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
    Tensor::from_slice(&values, &[batch, 3, SIDE, SIDE]).unwrap()
}

/// The loss and all gradients are the same with and without.
fn check(what: &str, parameters: &Parameters, loss: impl Fn(Pass) -> Tensor) {
    // A new head is 0 and would let no gradient through.
    for (i, p) in parameters.iter().filter(|p| p.name().contains("head.weight")).enumerate() {
        p.update(|v| v.iter_mut().enumerate().for_each(|(j, v)| *v = ((i + j) as f32).cos()));
    }
    let run = |checkpoints_blocks| {
        let loss = loss(Pass { checkpoints_blocks, ..Pass::default() });
        (loss.item().unwrap(), loss.backward().unwrap())
    };
    let ((loss_a, a), (loss_b, b)) = (run(false), run(true));
    assert_eq!(loss_a.to_bits(), loss_b.to_bits(), "{what}");
    let bits = |gradients: &Gradients, leaf: &Tensor| {
        gradients.get(leaf).unwrap().values().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    for p in parameters.trainable() {
        let leaf = p.tensor();
        assert!(bits(&a, &leaf).iter().any(|v| *v != 0), "{what}: {} has none", p.name());
        assert!(bits(&a, &leaf) == bits(&b, &leaf), "{what}: {} differs", p.name());
    }
}

fn vit() -> VitConfig {
    VitConfig {
        image_size: (SIDE, SIDE),
        patch_size: 4,
        channels: 3,
        width: 24,
        depth: 3,
        heads: 2,
        mlp_dim: 48,
        norm_eps: 1e-6,
        qkv_bias: true,
        has_class_token: true,
        has_layer_scale: true,
        position_rule: PositionRule::Timm,
        head: Head::Classes(5),
    }
}

fn targets() -> Targets {
    Targets::Classes([0, 3, 4].into(), 0.1)
}

#[test]
fn vision_transformers() {
    let b = Builder::random(1);
    let model = Vit::new(&vit(), &b);
    // It owns the token of the masked-image objective, which has no gradient here.
    let parameters = b.finish().unwrap();
    if let Some(token) = parameters.get("mask_token") {
        token.set_trainable(false);
    }
    let loss =
        |pass| model.forward_by(&pixels(3), pass).unwrap().cross_entropy(&targets()).unwrap();
    check("vit", &parameters, loss);
}

#[test]
fn hybrids_and_local_attention() {
    let backbone =
        ResNetV2Config { stem_channels: 4, layers: vec![1, 1], channels: vec![8, 16], groups: 2 };
    let b = Builder::random(2);
    let sizes = VitConfig { has_layer_scale: false, ..vit() };
    let model = HybridVit::new(&backbone, &sizes, &b);
    let loss =
        |pass| model.forward_by(&pixels(3), pass).unwrap().cross_entropy(&targets()).unwrap();
    check("hybrid", &b.finish().unwrap(), loss);
    for neighbourhood in [Neighbourhood::Window(3), Neighbourhood::Axes] {
        let b = Builder::random(3);
        let sizes = LocalVitConfig {
            image_size: (SIDE, SIDE),
            patch_size: 4,
            width: 24,
            depth: 2,
            heads: 2,
            mlp_dim: 32,
            neighbourhood,
            classes: 5,
        };
        let model = LocalVit::new(&sizes, &b);
        let loss =
            |pass| model.forward_by(&pixels(3), pass).unwrap().cross_entropy(&targets()).unwrap();
        check("local", &b.finish().unwrap(), loss);
    }
}

#[test]
fn both_towers_of_clip() {
    let config = ClipConfig {
        embed_dim: 12,
        vision: VisionConfig::Vit(ClipVitConfig {
            image_size: (SIDE, SIDE),
            patch_size: 8,
            width: 24,
            depth: 2,
            heads: 2,
            mlp_dim: 48,
            quick_gelu: true,
            norm_eps: 1e-5,
            position_rule: PositionRule::Timm,
        }),
        text: ClipTextConfig {
            vocab: 9,
            context_length: 5,
            width: 16,
            depth: 2,
            heads: 2,
            mlp_dim: 32,
            quick_gelu: false,
            norm_eps: 1e-5,
            end_token: EndToken::LargestId,
        },
    };
    let b = Builder::random(4);
    let model = Clip::new(&config, &b);
    let ids: Arc<[u32]> = [7, 1, 8, 0, 0, 7, 2, 3, 8, 0, 7, 4, 5, 6, 8].into();
    let loss = |pass| {
        let images = model.encode_image_by(&pixels(3), pass).unwrap().l2_normalise().unwrap();
        let texts = model.encode_text_by(&ids, 3, pass).unwrap().l2_normalise().unwrap();
        images.contrastive_loss(&texts, &model.logit_scale().tensor()).unwrap()
    };
    check("clip", &b.finish().unwrap(), loss);
}
