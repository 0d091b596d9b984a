//! The convolutional towers against their references: every stage, the loss, gradients, and for
//! batch norm one step with the statistics of the batch.
//!
//! `testdata/golden/clip/openai_resnet` was made by `open_clip` 3.3.0 (seed 2020), `vit/timm_hybrid` by timm
//! 1.0.31 (seed 1300), both with tiny random weights in the layout of the published files.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ocelli_models::vision::clip_resnet::{ModifiedResNet, ModifiedResNetConfig, openai_names};
use ocelli_models::vision::resnet_v2::{HybridVit, ResNetV2Config, timm_names};
use ocelli_models::vision::vit::{Head, VitConfig};
use ocelli_nn::checkpoint::Checkpoint;
use ocelli_nn::layers::NormStatistics;
use ocelli_nn::{Builder, Names, Parameters, copy};
use ocelli_tensor::{Gradients, Targets, Tensor, no_grad};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

fn open(case: &str, file: &str) -> Checkpoint {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden");
    Checkpoint::open(&path.join(case).join(file)).unwrap()
}

fn tensor(file: &Checkpoint, name: &str) -> Tensor {
    let shape = file.info(name).unwrap_or_else(|| panic!("no {name}")).1.to_vec();
    Tensor::from_slice(&file.read_f32(name).unwrap(), &shape).unwrap()
}

#[track_caller]
fn assert_close(name: &str, got: &[f32], want: &[f32], atol: f32, rtol: f32) {
    assert_eq!(got.len(), want.len(), "{name}");
    let over = |(g, w): (&f32, &f32)| (g - w).abs() - (atol + rtol * w.abs());
    let worst = got
        .iter()
        .zip(want)
        .map(over)
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |a, b| if b.1 > a.1 || b.1.is_nan() { b } else { a });
    let (at, excess) = worst;
    assert!(excess <= 0.0, "{name}[{at}]: got {}, want {}", got[at], want[at]);
}

/// The golden tensor `out/{name}`, and that `got` is it.
#[track_caller]
fn assert_output(golden: &Checkpoint, name: &str, got: &Tensor) {
    let want = tensor(golden, name);
    assert_eq!(got.shape(), want.shape(), "{name}");
    assert_close(name, got.values(), want.values(), 1e-4, 1e-4);
}

/// Every golden gradient that belongs to one of the parameters; returns how many there were.
fn assert_gradients(
    golden: &Checkpoint,
    parameters: &Parameters,
    names: &[Names],
    grads: &Gradients,
) -> usize {
    let ours = parameters.export(names, |p| grads.get(&p.tensor()).cloned());
    let mut seen = BTreeSet::new();
    for (name, _, values) in ours {
        let name = format!("grad/{name}");
        if golden.info(&name).is_some() {
            let want = tensor(golden, &name);
            assert_close(&name, &values, want.values(), 1e-5, 1e-3);
            seen.insert(name);
        }
    }
    seen.len()
}

fn resnet(model: Arc<Checkpoint>) -> (ModifiedResNet, Parameters, Vec<Names>) {
    let config = ModifiedResNetConfig { layers: [1, 2, 1, 1], width: 4, heads: 2, image_size: 64 };
    // This test leaves the text tower out.
    let text = [
        "input_resolution",
        "context_length",
        "vocab_size",
        "logit_scale",
        "positional_embedding",
        "text_projection",
        "token_embedding.weight",
        "ln_final.*",
        "transformer.resblocks.*.*.*",
        "transformer.resblocks.*.*.*.*",
    ];
    let names = vec![openai_names(), Names::family(&[copy("text", "text")], &text)];
    let builder = Builder::load(model, names.clone());
    let tower = ModifiedResNet::new(&config, 16, &builder.at("vision"));
    (tower, builder.finish().unwrap(), names)
}

#[test]
fn clip_resnet_matches_open_clip() {
    let (model, golden) = (
        Arc::new(open("clip/openai_resnet", "model.safetensors")),
        open("clip/openai_resnet", "golden.safetensors"),
    );
    let (tower, parameters, names) = resnet(Arc::clone(&model));
    let pixels = tensor(&golden, "in/pixel_values");
    let running = NormStatistics::Running;
    no_grad(|| {
        let mut x = tower.stem(&pixels, running).unwrap();
        assert_output(&golden, "out/stem", &x);
        for i in 0..4 {
            x = tower.stage(i, &x, running).unwrap();
            assert_output(&golden, &format!("out/layer{}", i + 1), &x);
        }
    });
    let features = tower.forward(&pixels).unwrap();
    assert_output(&golden, "out/image_features_raw", &features);

    // The text features are given, so the loss and its gradients are those of the whole model.
    let text = tensor(&golden, "out/text_features_raw").l2_normalise().unwrap();
    let logit_scale = tensor(&model, "logit_scale");
    let loss_of = |features: &Tensor| {
        features.l2_normalise().unwrap().contrastive_loss(&text, &logit_scale).unwrap()
    };
    let loss = loss_of(&features);
    assert_close("out/loss", loss.values(), tensor(&golden, "out/loss").values(), 0.0, 1e-5);
    let grads = loss.backward().unwrap();
    assert_eq!(assert_gradients(&golden, &parameters, &names, &grads), 7);

    let features = tower.forward_with(&pixels, NormStatistics::Batch).unwrap();
    assert_output(&golden, "train_mode/image_features_raw", &features);
    let loss = loss_of(&features);
    assert_close("train", loss.values(), tensor(&golden, "train_mode/loss").values(), 0.0, 1e-5);
    let buffers = parameters.export(&names, |p| p.is_buffer().then(|| p.tensor()));
    let mut compared = 0;
    for (name, _, values) in buffers {
        let name = format!("train_mode/{name}");
        if golden.info(&name).is_some() {
            assert_close(&name, &values, tensor(&golden, &name).values(), 1e-5, 1e-5);
            compared += 1;
        }
    }
    assert_eq!(compared, 6);
    assert!(loss.backward().is_ok());
}

#[test]
fn a_picture_through_the_resnet_does_not_depend_on_the_others() {
    let (tower, ..) = resnet(Arc::new(open("clip/openai_resnet", "model.safetensors")));
    let pixels = tensor(&open("clip/openai_resnet", "golden.safetensors"), "in/pixel_values");
    let all = no_grad(|| tower.forward(&pixels)).unwrap();
    let one = pixels.narrow(0, 2, 1).unwrap();
    let one = no_grad(|| tower.forward(&one)).unwrap();
    assert_eq!(one.values(), &all.values()[2 * 16..3 * 16]);
}

#[test]
fn hybrid_vit_matches_timm() {
    let (model, golden) = (
        Arc::new(open("vit/timm_hybrid", "model.safetensors")),
        open("vit/timm_hybrid", "golden.safetensors"),
    );
    let backbone = ResNetV2Config {
        stem_channels: 32,
        layers: vec![1, 1, 2],
        channels: vec![64, 64, 128],
        groups: 8,
    };
    let vit = VitConfig {
        image_size: (64, 64),
        width: 48,
        depth: 2,
        heads: 4,
        mlp_dim: 96,
        head: Head::Classes(6),
        ..VitConfig::variant("B/16").unwrap()
    };
    let names = timm_names();
    let builder = Builder::load(model, names.clone());
    let hybrid = HybridVit::new(&backbone, &vit, &builder);
    let parameters = builder.finish().unwrap();
    let pixels = tensor(&golden, "in/pixel_values");
    no_grad(|| {
        let mut x = hybrid.backbone.stem(&pixels).unwrap();
        assert_output(&golden, "out/stem", &x);
        for i in 0..3 {
            x = hybrid.backbone.stage(i, &x).unwrap();
            assert_output(&golden, &format!("out/block_stage{i}"), &x);
        }
        assert_output(&golden, "out/feature_map", &x);
        let states = hybrid.vit.hidden_states(&x).unwrap();
        assert_output(&golden, "out/layer0", &states[1]);
        assert_output(&golden, "out/features", &hybrid.vit.features(&x).unwrap());
        // The first state has class token and positions on top of what timm calls the embedding.
        let table = hybrid.vit.positions((4, 4)).unwrap();
        let want = tensor(&golden, "out/patch_embed");
        let embedded = states[0].narrow(1, 1, 16).unwrap();
        let added = want.add_table(&table.narrow(0, 1, 16).unwrap()).unwrap();
        assert_close("out/patch_embed", embedded.values(), added.values(), 1e-4, 1e-4);
    });
    let logits = hybrid.forward(&pixels).unwrap();
    assert_output(&golden, "out/logits", &logits);
    let labels: Arc<[u32]> =
        golden.read_i64("in/labels").unwrap().iter().map(|&l| u32::try_from(l).unwrap()).collect();
    let loss = hybrid.loss(&pixels, &Targets::Classes(labels, 0.0)).unwrap();
    assert_close("out/loss", loss.values(), tensor(&golden, "out/loss").values(), 0.0, 1e-5);
    let grads = loss.backward().unwrap();
    assert_eq!(assert_gradients(&golden, &parameters, &names, &grads), 9);
}
