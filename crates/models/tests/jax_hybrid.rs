//! A hybrid under the names of the original `.npz` files is the same model.
#![allow(clippy::unwrap_used)] // A failed test is to panic.

use ocelli_models::vision::position::PositionRule;
use ocelli_models::vision::resnet_v2::{HybridVit, ResNetV2Config};
use ocelli_models::vision::vit::{Head, VitConfig};
use ocelli_models::{Files, HeadCounts, Model};
use ocelli_nn::checkpoint::{Dtype, TensorView, save_safetensors};
use ocelli_nn::{Builder, Parameter};
use ocelli_tensor::Tensor;
use std::collections::BTreeMap;
use std::path::Path;

const HEADS: usize = 2;

type Named = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// `[rows, cols]` as `[cols, rows]`.
fn turned(values: &[f32], rows: usize) -> Vec<f32> {
    let cols = values.len() / rows;
    (0..values.len()).map(|i| values[i % rows * cols + i / rows]).collect()
}

/// A parameter as the original code holds it.
fn as_jax(p: &Parameter, to: &mut Named) {
    let (shape, values) = (p.stored_shape(), p.tensor().values().to_vec());
    let parts: Vec<&str> = p.name().split('.').collect();
    let mut put = |name: String, shape: Vec<usize>, values: Vec<f32>| {
        assert!(to.insert(name, (shape, values)).is_none(), "{}", p.name());
    };
    // [out, in, h, w] to [h, w, in, out]
    let hwio = |values: &[f32]| {
        let &[o, i, h, w] = &shape[..] else { panic!("{}: {shape:?}", p.name()) };
        let mut all = vec![0.0; values.len()];
        for (at, value) in values.iter().enumerate() {
            let (x, y) = (at % w, at / w % h);
            let (c, f) = (at / (w * h) % i, at / (w * h * i));
            all[((y * w + x) * i + c) * o + f] = *value;
        }
        (vec![h, w, i, o], all)
    };
    let kind = |last: &str| if last == "weight" { "scale" } else { "bias" };
    match parts[..] {
        ["backbone", "stem", "conv", _] => {
            let (shape, values) = hwio(&values);
            put("conv_root/kernel".into(), shape, values);
        }
        // The norms of the backbone have three axes more.
        ["backbone", "stem", "norm", last] => {
            put(format!("gn_root/{}", kind(last)), vec![1, 1, 1, shape[0]], values);
        }
        ["backbone", "stages", stage, unit, ref rest @ ..] => {
            let number = |n: &str| n.parse::<usize>().unwrap() + 1;
            let at = format!("block{}/unit{}", number(stage), number(unit));
            let which = if rest[0] == "downsample" { "_proj" } else { &rest[0][4..] };
            if rest[0].starts_with("conv") || rest[1] == "conv" {
                let (shape, values) = hwio(&values);
                put(format!("{at}/conv{which}/kernel"), shape, values);
            } else {
                let name = format!("{at}/gn{which}/{}", kind(rest[rest.len() - 1]));
                put(name, vec![1, 1, 1, shape[0]], values);
            }
        }
        ["vit", "class"] => put("cls".into(), vec![1, 1, shape[0]], values),
        ["vit", "position"] => {
            let name = "Transformer/posembed_input/pos_embedding".into();
            put(name, vec![1, shape[0], shape[1]], values);
        }
        ["vit", "patch", "weight"] => {
            let (shape, values) = hwio(&values);
            put("embedding/kernel".into(), shape, values);
        }
        ["vit", "patch", _] => put("embedding/bias".into(), shape, values),
        ["vit", "norm", last] => {
            put(format!("Transformer/encoder_norm/{}", kind(last)), shape, values);
        }
        ["vit", "head", "weight"] => {
            put("head/kernel".into(), vec![shape[1], shape[0]], turned(&values, shape[0]));
        }
        ["vit", "head", _] => put("head/bias".into(), shape, values),
        ["vit", "blocks", block, ref rest @ ..] => {
            let at = format!("Transformer/encoderblock_{block}");
            let attention = format!("{at}/MultiHeadDotProductAttention_1");
            match rest {
                ["norm1", last] => put(format!("{at}/LayerNorm_0/{}", kind(last)), shape, values),
                ["norm2", last] => put(format!("{at}/LayerNorm_2/{}", kind(last)), shape, values),
                ["attn", "qkv", last] => {
                    let n = values.len() / 3;
                    for (i, part) in ["query", "key", "value"].into_iter().enumerate() {
                        let part_of = values[i * n..][..n].to_vec();
                        let (width, head) = (shape[0] / 3, shape[0] / 3 / HEADS);
                        if *last == "weight" {
                            let name = format!("{attention}/{part}/kernel");
                            put(name, vec![width, HEADS, head], turned(&part_of, width));
                        } else {
                            put(format!("{attention}/{part}/bias"), vec![HEADS, head], part_of);
                        }
                    }
                }
                ["attn", "out", "weight"] => {
                    let shape_of = vec![HEADS, shape[0] / HEADS, shape[0]];
                    put(format!("{attention}/out/kernel"), shape_of, turned(&values, shape[0]));
                }
                ["attn", "out", _] => put(format!("{attention}/out/bias"), shape, values),
                ["mlp", layer, last] => {
                    let layer = if *layer == "up" { "Dense_0" } else { "Dense_1" };
                    let at = format!("{at}/MlpBlock_3/{layer}");
                    if *last == "weight" {
                        let values = turned(&values, shape[0]);
                        put(format!("{at}/kernel"), vec![shape[1], shape[0]], values);
                    } else {
                        put(format!("{at}/bias"), shape, values);
                    }
                }
                _ => panic!("{}", p.name()),
            }
        }
        _ => panic!("{}", p.name()),
    }
}

fn save(path: &Path, tensors: &Named) {
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = (tensors.iter())
        .map(|(name, (shape, v))| (name, shape, v.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views: Vec<TensorView<'_>> = (bytes.iter())
        .map(|(name, shape, data)| TensorView { name, dtype: Dtype::F32, shape, bytes: data })
        .collect();
    save_safetensors(path, &views, &BTreeMap::new()).unwrap();
}

#[test]
fn a_hybrid_of_the_original_code_is_read() {
    let backbone = ResNetV2Config {
        stem_channels: 32,
        layers: vec![1, 1, 2],
        channels: vec![128, 128, 256],
        groups: 32,
    };
    let vit = VitConfig {
        image_size: (64, 64),
        patch_size: 16,
        channels: 3,
        width: 24,
        depth: 2,
        heads: HEADS,
        mlp_dim: 48,
        norm_eps: 1e-6,
        qkv_bias: true,
        has_class_token: true,
        has_layer_scale: false,
        position_rule: PositionRule::Jax,
        head: Head::Classes(5),
    };
    let b = Builder::random(7);
    let model = HybridVit::new(&backbone, &vit, &b);
    let parameters = b.finish().unwrap();
    // Biases start at 0, gains at 1, and a head of zeros gives zeros.
    for (i, p) in parameters.iter().enumerate() {
        p.update(|v| {
            v.iter_mut().enumerate().for_each(|(j, v)| *v += 0.1 * ((i * 7 + j) as f32).sin());
        });
    }
    let mut tensors = Named::new();
    parameters.iter().for_each(|p| as_jax(p, &mut tensors));
    let values: Vec<f32> = (0..2 * 3 * 64 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
    let pixels = Tensor::from_slice(&values, &[2, 3, 64, 64]).unwrap();
    let want = model.forward(&pixels).unwrap();

    let folder = tempfile::tempdir().unwrap();
    for prefix in ["", "opt/target/"] {
        let tensors =
            tensors.iter().map(|(name, t)| (format!("{prefix}{name}"), t.clone())).collect();
        let path = folder.path().join("model.safetensors");
        save(&path, &tensors);
        let files = Files::find(&path, None).unwrap();
        assert_eq!(files.processor().unwrap().size(), Some((64, 64)));
        let opened = files.open(HeadCounts::default()).unwrap();
        let Model::Hybrid(read) = &opened.model else { panic!("{}", opened.model.kind()) };
        assert_eq!(read.config().backbone, backbone);
        let got = read.forward(&pixels).unwrap();
        assert_eq!(got.values(), want.values(), "{prefix}");
    }

    // R+Ti/16 has patches of four positions on a stem alone.
    let (shape, values) = &tensors["embedding/kernel"];
    let doubled = (vec![2, 2, shape[2], shape[3]], values.repeat(4));
    tensors.insert("embedding/kernel".into(), doubled);
    let path = folder.path().join("other.safetensors");
    save(&path, &tensors);
    let error = Files::find(&path, None).unwrap().open(HeadCounts::default()).unwrap_err();
    assert!(error.to_string().contains("embedding/kernel of a hybrid"), "{error}");
}
