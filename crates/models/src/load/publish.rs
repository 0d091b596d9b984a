//! The folder of a model in the layout of the family that reads it elsewhere: transformers for ViT
//! and CLIP, `open_clip` for CLIP's `ResNet`s, timm for hybrids and average pooling. What no family has keeps
//! our own names.

use super::Model;
use crate::language::clip_text::EndToken;
use crate::systems::clip::{self, Clip, ClipConfig, VisionConfig};
use crate::vision::resnet_v2::{self, HybridVitConfig};
use crate::vision::vit::{self, Head, VitConfig};
use ocelli_nn::Names;
use serde_json::{Value, json};

/// The key of a configuration that says that this program trained the model.
pub(super) const TRAINED_WITH: &str = "trained_with";

/// What a model's folder holds beside the vocabulary.
#[derive(Debug)]
pub struct Published {
    /// The configuration's file.
    pub config_file: &'static str,
    /// The configuration.
    pub config: Value,
    /// The weights' file.
    pub weights_file: &'static str,
    /// What the tensors are called in it.
    pub names: Vec<Names>,
}

/// The folder of `model`, whose classes have these names (none for a model without classes) and
/// whose pictures are prepared as `preprocessing`, a processor's file of transformers, says.
pub fn published(model: &Model, classes: &[String], preprocessing: &Value) -> Published {
    let (config_file, weights_file) = ("config.json", "model.safetensors");
    let (mut config, names) = match model {
        Model::Vit(vit) if has_transformers_layout(vit.config()) => {
            (transformers_vit(vit.config(), classes), vec![vit::names(vit::TRANSFORMERS, "vit.")])
        }
        Model::Vit(vit) => {
            let is_average = matches!(vit.config().head, Head::AverageClasses(_));
            let norm = if is_average { "fc_" } else { "" };
            let mut config = timm(vit.config(), classes, preprocessing);
            config["architecture"] = json!("vit_base_patch16_224");
            (config, vec![vit::names(vit::TIMM, norm)])
        }
        Model::Hybrid(hybrid) => {
            let HybridVitConfig { backbone, vit } = hybrid.config();
            let mut config = timm(vit, classes, preprocessing);
            config["architecture"] = json!("vit_base_r50_s16_224");
            config["model_args"]["backbone"] = json!({
                "type": "resnetv2", "layers": backbone.layers, "channels": backbone.channels,
                "stem_chs": backbone.stem_channels, "groups": backbone.groups, "preact": false,
                "stem_type": "same",
            });
            (config, resnet_v2::timm_names())
        }
        Model::Clip(clip) => {
            let c = clip.config();
            if let VisionConfig::ResNet(_) = c.vision {
                let config = open_clip(c, preprocessing);
                let names = clip::openai_names("");
                let (config_file, weights_file) =
                    ("open_clip_config.json", "open_clip_model.safetensors");
                return Published { config_file, config, weights_file, names };
            }
            if let VisionConfig::TimmVit(_) = c.vision {
                // Such a tower is not trained here, so its own files stay the ones to use.
                return Published {
                    config: Value::Null,
                    names: clip::open_clip_timm_names(""),
                    config_file: "open_clip_config.json",
                    weights_file: "open_clip_model.safetensors",
                };
            }
            (transformers_clip(clip), clip::transformers_names())
        }
        Model::LocalVit(vit) => (ours("local_vit", &json!(vit.config())), vec![Names::ours()]),
        Model::Lit(lit) => (ours("lit", &json!(lit.config())), vec![Names::ours()]),
        other => (ours(other.kind(), &Value::Null), vec![Names::ours()]),
    };
    if config.get("format").is_some() {
        config["preprocessing"] = preprocessing.clone();
        if !classes.is_empty() && matches!(model, Model::LocalVit(_)) {
            config["id2label"] = id2label(classes, classes.len());
        }
    } else {
        config[TRAINED_WITH] = json!("ocelli");
    }
    Published { config_file, config, weights_file, names }
}

/// transformers has the plain form only.
fn has_transformers_layout(c: &VitConfig) -> bool {
    c.has_class_token && !c.has_layer_scale && !matches!(c.head, Head::AverageClasses(_))
}

fn ours(family: &str, sizes: &Value) -> Value {
    json!({ "format": "ocelli", "family": family, family: sizes })
}

/// The shortest number that reads as this one.
fn short(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// Names of all outputs, by number; those without one are called as in transformers.
fn id2label(classes: &[String], outputs: usize) -> Value {
    let name = |i: usize| classes.get(i).cloned().unwrap_or_else(|| format!("LABEL_{i}"));
    (0..outputs)
        .map(|i| (i.to_string(), Value::String(name(i))))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn transformers_vit(c: &VitConfig, classes: &[String]) -> Value {
    let architecture = match c.head {
        Head::Classes(_) | Head::AverageClasses(_) => "ViTForImageClassification",
        Head::MaskedImage => "ViTForMaskedImageModeling",
        Head::None | Head::Pooler => "ViTModel",
    };
    let mut config = json!({
        "architectures": [architecture], "model_type": "vit",
        "hidden_size": c.width, "num_hidden_layers": c.depth, "num_attention_heads": c.heads,
        "intermediate_size": c.mlp_dim, "hidden_act": "gelu", "layer_norm_eps": short(c.norm_eps),
        "image_size": c.image_size.0, "patch_size": c.patch_size, "num_channels": c.channels,
        "qkv_bias": c.qkv_bias, "encoder_stride": c.patch_size,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    });
    if let Head::Classes(outputs) = c.head {
        config["id2label"] = id2label(classes, outputs);
    }
    config
}

fn timm(c: &VitConfig, classes: &[String], preprocessing: &Value) -> Value {
    let (outputs, pool) = match c.head {
        Head::Classes(n) => (n, "token"),
        Head::AverageClasses(n) => (n, "avg"),
        _ => (0, "token"),
    };
    let mut args = json!({
        "img_size": c.image_size.0, "patch_size": c.patch_size, "in_chans": c.channels,
        "embed_dim": c.width, "depth": c.depth, "num_heads": c.heads,
        "mlp_ratio": c.mlp_dim as f64 / c.width as f64, "qkv_bias": c.qkv_bias,
        "class_token": c.has_class_token,
    });
    if c.has_layer_scale {
        args["init_values"] = json!(1e-5);
    }
    json!({
        "num_classes": outputs, "num_features": c.width, "global_pool": pool, "model_args": args,
        "id2label": id2label(classes, outputs),
        "pretrained_cfg": {
            "input_size": [c.channels, c.image_size.0, c.image_size.1],
            "mean": preprocessing["image_mean"], "std": preprocessing["image_std"],
            "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash",
        },
    })
}

fn transformers_clip(clip: &Clip) -> Value {
    let c = clip.config();
    let act = |quick: bool| if quick { "quick_gelu" } else { "gelu" };
    let VisionConfig::Vit(vision) = &c.vision else { return Value::Null };
    let text = &c.text;
    json!({
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": c.embed_dim,
        "vision_config": {
            "model_type": "clip_vision_model", "projection_dim": c.embed_dim,
            "hidden_size": vision.width, "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.heads, "intermediate_size": vision.mlp_dim,
            "hidden_act": act(vision.quick_gelu), "layer_norm_eps": short(vision.norm_eps),
            "image_size": vision.image_size.0, "patch_size": vision.patch_size, "num_channels": 3,
        },
        "text_config": {
            "model_type": "clip_text_model", "projection_dim": c.embed_dim,
            "vocab_size": text.vocab, "max_position_embeddings": text.context_length,
            "hidden_size": text.width, "num_hidden_layers": text.depth,
            "num_attention_heads": text.heads, "intermediate_size": text.mlp_dim,
            "hidden_act": act(text.quick_gelu), "layer_norm_eps": short(text.norm_eps),
            "bos_token_id": text.vocab.saturating_sub(2), "pad_token_id": text.vocab.saturating_sub(1),
            // 2 means the largest id.
            "eos_token_id": match text.end_token {
                EndToken::LargestId => 2,
                EndToken::Id(id) => id,
            },
        },
    })
}

fn open_clip(c: &ClipConfig, preprocessing: &Value) -> Value {
    let VisionConfig::ResNet(vision) = &c.vision else { return Value::Null };
    let text = &c.text;
    json!({
        TRAINED_WITH: "ocelli",
        "model_cfg": {
            "embed_dim": c.embed_dim, "quick_gelu": text.quick_gelu,
            "vision_cfg": {
                "image_size": vision.image_size, "layers": vision.layers, "width": vision.width,
                "head_width": (vision.width * 32).checked_div(vision.heads),
                "patch_size": null,
            },
            "text_cfg": {
                "context_length": text.context_length, "vocab_size": text.vocab,
                "width": text.width, "heads": text.heads, "layers": text.depth,
                "mlp_ratio": text.mlp_dim as f64 / text.width as f64,
            },
        },
        "preprocess_cfg": {
            "mean": preprocessing["image_mean"], "std": preprocessing["image_std"],
            "interpolation": "bicubic", "resize_mode": "shortest",
        },
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::super::{clip_config, vit_config};
    use super::*;
    use crate::vision::position::PositionRule;
    use crate::vision::vit::Vit;
    use ocelli_nn::Builder;
    use std::path::Path;

    #[test]
    fn configurations_read_back() {
        let file = Path::new("config.json");
        let processor = json!({ "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5] });
        for name in ["RN50", "RN50x64", "ViT-B/32", "ViT-L/14@336"] {
            let sizes = ClipConfig::variant(name).unwrap();
            let clip = Model::Clip(Box::new(Clip::new(&sizes, &Builder::zeros())));
            let written = published(&clip, &[], &processor);
            let read = match written.config_file {
                "open_clip_config.json" => clip_config::open_clip(&written.config, file).unwrap(),
                _ => clip_config::transformers(&written.config, file).unwrap(),
            };
            let mut expected = sizes;
            if let VisionConfig::Vit(vit) = &mut expected.vision {
                vit.position_rule = PositionRule::Transformers;
            }
            assert_eq!(read, expected, "{name}");
        }
        for (name, head) in [
            ("S/16", Head::Classes(7)),
            ("Ti/32", Head::AverageClasses(7)),
            ("B/32", Head::MaskedImage),
        ] {
            let mut sizes = VitConfig { head, ..VitConfig::variant(name).unwrap() };
            let vit = Model::Vit(Box::new(Vit::new(&sizes, &Builder::zeros())));
            let written = published(&vit, &["cat".to_owned()], &processor).config;
            if head == Head::AverageClasses(7) {
                assert_eq!(vit_config::timm(&written, file).unwrap(), sizes);
            } else {
                sizes.position_rule = PositionRule::Transformers;
                assert_eq!(vit_config::transformers(&written, file).unwrap(), sizes);
            }
            if head != Head::MaskedImage {
                assert_eq!(
                    (&written["id2label"]["0"], &written["id2label"]["6"]),
                    (&json!("cat"), &json!("LABEL_6"))
                );
            }
        }
    }
}
