//! A CLIP of open_clip with a vision tower of timm, under the names of its files.
#![allow(clippy::unwrap_used)] // A failed test is to panic.

use ocelli_models::language::clip_text::{ClipTextConfig, EndToken};
use ocelli_models::systems::clip::{Clip, ClipConfig, VisionConfig};
use ocelli_models::vision::timm_vit::{TimmProjection, TimmVitConfig};
use ocelli_models::vision::vit::{Head, Vit, VitConfig};
use ocelli_models::{Files, HeadCounts, Model};
use ocelli_nn::checkpoint::{Dtype, TensorView, save_safetensors};
use ocelli_nn::{Builder, Parameters};
use ocelli_tensor::{Activation, LinearOptions, Tensor};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const SIDE: usize = 32;
const EMBED: usize = 8;

fn config(is_average_pooled: bool, projection: TimmProjection) -> ClipConfig {
    let vit = VitConfig {
        image_size: (SIDE, SIDE),
        depth: 12,
        head: Head::None,
        ..VitConfig::variant("Ti/16").unwrap()
    };
    ClipConfig {
        embed_dim: EMBED,
        vision: VisionConfig::TimmVit(TimmVitConfig { vit, is_average_pooled, projection }),
        text: ClipTextConfig {
            vocab: 20,
            context_length: 6,
            width: 16,
            depth: 2,
            heads: 2,
            mlp_dim: 64,
            quick_gelu: false,
            norm_eps: 1e-5,
            end_token: EndToken::LargestId,
        },
    }
}

/// open_clip's name of a parameter, and its shape there.
fn theirs(name: &str, shape: &[usize]) -> (String, Vec<usize>) {
    let replaced = |name: &str, pairs: &[(&str, &str)]| {
        pairs.iter().fold(name.to_owned(), |name, (ours, theirs)| name.replace(ours, theirs))
    };
    let shape = shape.to_vec();
    if let Some(rest) = name.strip_prefix("vision.vit.") {
        let name = match rest {
            "class" => "cls_token".to_owned(),
            "position" => "pos_embed".to_owned(),
            rest => replaced(
                rest,
                &[
                    ("patch.", "patch_embed.proj."),
                    ("attn.out", "attn.proj"),
                    ("mlp.up", "mlp.fc1"),
                    ("mlp.down", "mlp.fc2"),
                ],
            ),
        };
        let leading = match rest {
            "class" => vec![1, 1],
            "position" => vec![1],
            _ => vec![],
        };
        return (format!("visual.trunk.{name}"), [leading, shape].concat());
    }
    if let Some(rest) = name.strip_prefix("vision.projection.") {
        let pairs = [("up", "mlp.fc1"), ("down", "mlp.fc2")];
        let rest = if rest == "weight" { "proj.weight".to_owned() } else { replaced(rest, &pairs) };
        return (format!("visual.head.{rest}"), shape);
    }
    let name = replaced(
        name,
        &[
            ("token.weight", "token_embedding.weight"),
            ("text.position", "text.positional_embedding"),
            ("text.norm.", "text.ln_final."),
            ("text.projection.weight", "text.text_projection"),
            ("text.blocks", "text.transformer.resblocks"),
            ("norm1", "ln_1"),
            ("norm2", "ln_2"),
            ("attn.qkv.", "attn.in_proj_"),
            ("attn.out", "attn.out_proj"),
            ("mlp.up", "mlp.c_fc"),
            ("mlp.down", "mlp.c_proj"),
        ],
    );
    (name, shape)
}

fn save(folder: &Path, parameters: &Parameters) {
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = (parameters.iter())
        .map(|p| {
            let (name, mut shape) = theirs(p.name(), &p.stored_shape());
            let mut values = p.tensor().values().to_vec();
            if name == "text.text_projection" {
                let (rows, cols) = (shape[0], shape[1]);
                values = (0..values.len()).map(|i| values[i % rows * cols + i / rows]).collect();
                shape = vec![cols, rows];
            }
            (name, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
        })
        .collect();
    let views: Vec<TensorView<'_>> = (tensors.iter())
        .map(|(name, shape, bytes)| TensorView { name, dtype: Dtype::F32, shape, bytes })
        .collect();
    let path = folder.join("open_clip_model.safetensors");
    save_safetensors(&path, &views, &BTreeMap::new()).unwrap();
}

/// `open_clip_config.json` with more in the section of the vision tower.
fn write_config(folder: &Path, vision: &str, text: &str) {
    let config = format!(
        r#"{{"model_cfg": {{"embed_dim": {EMBED}, "custom_text": true,
            "vision_cfg": {{"image_size": {SIDE}, {vision}}},
            "text_cfg": {{"context_length": 6, "vocab_size": 20, "width": 16, "heads": 2,
                "layers": 2{text}}}}},
          "preprocess_cfg": {{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}}}"#
    );
    fs::write(folder.join("open_clip_config.json"), config).unwrap();
}

#[test]
fn a_tower_of_timm_is_read_and_means_what_open_clip_says() {
    let values: Vec<f32> = (0..2 * 3 * SIDE * SIDE).map(|i| (i as f32 * 0.37).sin()).collect();
    let pixels = Tensor::from_slice(&values, &[2, 3, SIDE, SIDE]).unwrap();
    let cases = [
        (false, TimmProjection::Linear, r#""timm_pool": """#),
        (true, TimmProjection::Linear, r#""timm_proj": "linear""#),
        (true, TimmProjection::Mlp, r#""timm_pool": "avg", "timm_proj": "mlp""#),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (is_average_pooled, projection, keys) in cases {
        let b = Builder::random(3);
        let config = config(is_average_pooled, projection);
        let model = Clip::new(&config, &b);
        let parameters = b.finish().unwrap();
        save(folder.path(), &parameters);
        let name = r#""timm_model_name": "vit_tiny_patch16_32.made_up""#;
        write_config(folder.path(), &format!("{name}, {keys}"), "");

        let files = Files::find(folder.path(), None).unwrap();
        let opened = files.open(HeadCounts::default()).unwrap();
        let Model::Clip(read) = &opened.model else { panic!("{}", opened.model.kind()) };
        assert_eq!(read.config(), &config);
        let got = read.encode_image(&pixels).unwrap();
        assert_eq!(got.values(), model.encode_image(&pixels).unwrap().values(), "{keys}");
        let ids = [1, 5, 19, 0, 0, 0].into();
        let text = |clip: &Clip| clip.encode_text(&ids, 1).unwrap().values().to_vec();
        assert_eq!(text(read), text(&model), "{keys}");

        // The tower by hand: normalised tokens, pooled, projected.
        let VisionConfig::TimmVit(tower) = &config.vision else { panic!() };
        let b = Builder::zeros();
        let vit = Vit::new(&tower.vit, &b);
        let get = |name: &str| parameters.get(name).unwrap().tensor();
        b.finish()
            .unwrap()
            .iter()
            .for_each(|p| p.replace(&get(&format!("vision.vit.{}", p.name()))));
        let tokens = vit.features(&pixels).unwrap();
        let pooled = if is_average_pooled {
            tokens.narrow(1, 1, 4).unwrap().mean_tokens(0).unwrap()
        } else {
            tokens.narrow(1, 0, 1).unwrap().reshape(&[2, 192]).unwrap()
        };
        let want = if projection == TimmProjection::Mlp {
            let bias = get("vision.projection.up.bias");
            let options = LinearOptions {
                bias: Some(&bias),
                activation: Activation::Gelu,
                ..Default::default()
            };
            let hidden = pooled.linear_with(&get("vision.projection.up.weight"), options).unwrap();
            hidden.linear(&get("vision.projection.down.weight"), None).unwrap()
        } else {
            pooled.linear(&get("vision.projection.weight"), None).unwrap()
        };
        for (want, got) in want.values().iter().zip(got.values()) {
            assert!((want - got).abs() < 1e-5 * (1.0 + want.abs()), "{keys}: {want} {got}");
        }
    }
}

#[test]
fn a_tower_that_is_not_known_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let vit = r#""timm_model_name": "vit_tiny_patch16_32""#;
    let cases = [
        (r#""timm_model_name": "convnext_base""#.to_owned(), "", "`convnext_base`"),
        (r#""timm_model_name": "vit_base_patch16_clip_224""#.to_owned(), "", "patch16_clip"),
        (format!(r#"{vit}, "timm_pool": "map""#), "", "timm_pool"),
        (format!(r#"{vit}, "timm_proj": """#), "", "timm_proj"),
        (format!(r#"{vit}, "timm_proj_bias": true"#), "", "timm_proj_bias"),
        (r#""timm_model_name": "vit_tiny_patch16_224""#.to_owned(), "", "image_size"),
        (vit.to_owned(), r#", "hf_model_name": "roberta-base""#, "roberta-base"),
    ];
    fs::write(folder.path().join("open_clip_model.safetensors"), "").unwrap();
    for (vision, text, named) in cases {
        write_config(folder.path(), &vision, text);
        let files = Files::find(folder.path(), None).unwrap();
        let error = files.context_length().unwrap_err().to_string();
        assert!(error.contains(named), "{vision}: {error}");
    }
}
