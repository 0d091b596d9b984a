//! Configurations of CLIP checkpoints.

use super::fields::Fields;
use super::{HeadCounts, vit_config};
use crate::language::clip_text::{ClipTextConfig, EndToken};
use crate::systems::clip::{ClipConfig, VisionConfig};
use crate::vision::clip_resnet::ModifiedResNetConfig;
use crate::vision::clip_vit::ClipVitConfig;
use crate::vision::position::PositionRule;
use crate::vision::timm_vit::{TimmProjection, TimmVitConfig};
use crate::{Error, Result};
use ocelli_nn::checkpoint::Checkpoint;
use serde_json::Value;
use std::path::Path;

/// `config.json` of transformers' `CLIPModel`.
pub(super) fn transformers(config: &Value, file: &Path) -> Result<ClipConfig> {
    let f = Fields::new(config, file);
    // Early files repeat the sections under other names, which win.
    let section = |name: &str| {
        let old = f.section(&format!("{name}_dict"));
        if old.value.is_object() { old } else { f.section(name) }
    };
    let (vision, text) = (section("vision_config"), section("text_config"));
    let width = vision.size("hidden_size", Some(768))?;
    let patch = vision.sides("patch_size", 32)?;
    if patch.0 != patch.1 {
        return Err(vision.error("patch_size", "expected square patches"));
    }
    let text_width = text.size("hidden_size", Some(512))?;
    let end = text.get("eos_token_id").and_then(Value::as_u64).unwrap_or(49_407);
    Ok(ClipConfig {
        embed_dim: f.size("projection_dim", Some(512))?,
        vision: VisionConfig::Vit(ClipVitConfig {
            image_size: vision.sides("image_size", 224)?,
            patch_size: patch.0,
            width,
            depth: vision.blocks("num_hidden_layers", Some(12))?,
            heads: vision.heads("num_attention_heads", width, Some(12))?,
            mlp_dim: vision.size("intermediate_size", Some(3072))?,
            quick_gelu: quick_gelu(&vision)?,
            norm_eps: vision.epsilon("layer_norm_eps", 1e-5)?,
            position_rule: PositionRule::Transformers,
        }),
        text: ClipTextConfig {
            vocab: text.size("vocab_size", Some(49_408))?,
            context_length: text.size("max_position_embeddings", Some(77))?,
            width: text_width,
            depth: text.blocks("num_hidden_layers", Some(12))?,
            heads: text.heads("num_attention_heads", text_width, Some(8))?,
            mlp_dim: text.size("intermediate_size", Some(2048))?,
            quick_gelu: quick_gelu(&text)?,
            norm_eps: text.epsilon("layer_norm_eps", 1e-5)?,
            // The first published configurations say 2 and mean the largest id.
            end_token: if end == 2 { EndToken::LargestId } else { EndToken::Id(end as u32) },
        },
    })
}

fn quick_gelu(f: &Fields) -> Result<bool> {
    match f.text("hidden_act").unwrap_or("quick_gelu") {
        "quick_gelu" => Ok(true),
        "gelu" => Ok(false),
        other => Err(f.error("hidden_act", format!("expected quick_gelu or gelu, got `{other}`"))),
    }
}

/// Keys of `open_clip`'s sections that are read, that change no result here, and that are built with
/// one value only.
mod keys {
    pub(super) const READ: &[&str] = &["embed_dim", "vision_cfg", "text_cfg", "quick_gelu"];
    /// Names and first values; how weights are kept while they train.
    pub(super) const HARMLESS: &[&str] =
        &["custom_text", "init_logit_scale", "cast_dtype", "output_dict"];
    pub(super) const ONLY: &[(&str, &[&str])] = &[("nonscalar_logit_scale", &["false"])];

    pub(super) const VISION_READ: &[&str] = &[
        "layers",
        "width",
        "head_width",
        "mlp_ratio",
        "patch_size",
        "image_size",
        "timm_model_name",
    ];
    /// Dropout while training, and what only towers of timm or attentional pools read.
    pub(super) const VISION_HARMLESS: &[&str] = &[
        "patch_dropout",
        "attn_pooler_queries",
        "attn_pooler_heads",
        "timm_model_pretrained",
        "timm_pool",
        "timm_proj",
        "timm_proj_bias",
        "timm_drop",
        "timm_drop_path",
        "output_tokens",
    ];
    pub(super) const VISION_ONLY: &[(&str, &[&str])] = &[
        ("attentional_pool", &["false"]),
        ("no_ln_pre", &["false"]),
        ("pos_embed_type", &["\"learnable\""]),
        ("final_ln_after_pool", &["false"]),
        ("pool_type", &["\"tok\""]),
    ];

    pub(super) const TEXT_READ: &[&str] =
        &["context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"];
    /// The tokenizer's files are in the folder; the rest is read by towers of transformers only, or
    /// by other pools.
    pub(super) const TEXT_HARMLESS: &[&str] = &[
        "hf_tokenizer_name",
        "hf_model_pretrained",
        "hf_proj_type",
        "hf_pooler_type",
        "eos_id",
        "output_tokens",
    ];
    pub(super) const TEXT_ONLY: &[(&str, &[&str])] = &[
        ("embed_cls", &["false"]),
        ("pad_id", &["0"]),
        ("no_causal_mask", &["false"]),
        ("final_ln_after_pool", &["false"]),
        ("pool_type", &["\"argmax\""]),
        ("proj_bias", &["false"]),
        ("proj_type", &["\"linear\""]),
        ("tokenizer_kwargs", &["{}"]),
    ];

    /// Of the blocks of both towers.
    pub(super) const BLOCKS: &[(&str, &[&str])] = &[
        ("act_kwargs", &["{}"]),
        ("norm_kwargs", &["{}", "{\"eps\": 1e-5}"]),
        ("block_type", &["\"default\""]),
        ("qk_norm", &["false"]),
        ("scaled_cosine_attn", &["false"]),
        ("scale_heads", &["false"]),
        ("scale_attn_inner", &["false"]),
        ("scale_attn", &["false"]),
        ("scale_fc", &["false"]),
    ];
}

/// `open_clip_config.json`.
pub(super) fn open_clip(config: &Value, file: &Path) -> Result<ClipConfig> {
    let root = Fields::new(config, file);
    let f = root.section("model_cfg");
    let (vision, text) = (f.section("vision_cfg"), f.section("text_cfg"));
    if let Some(name) = text.text("hf_model_name") {
        let reason = format!("a text tower `{name}` is not supported; take one of CLIP's own");
        return Err(text.error("hf_model_name", reason));
    }
    f.check_keys(keys::READ, keys::HARMLESS, &[keys::ONLY])?;
    let only = [keys::VISION_ONLY, keys::BLOCKS];
    vision.check_keys(keys::VISION_READ, keys::VISION_HARMLESS, &only)?;
    text.check_keys(keys::TEXT_READ, keys::TEXT_HARMLESS, &[keys::TEXT_ONLY, keys::BLOCKS])?;
    let quick_gelu = f.flag("quick_gelu", false)?;
    let embed_dim = f.size("embed_dim", None)?;
    let tower = if let Some(name) = vision.text("timm_model_name") {
        VisionConfig::TimmVit(timm_vit(&vision, name)?)
    } else if let Some(layers) = vision.get("layers").and_then(Value::as_array) {
        let counts: Vec<usize> =
            layers.iter().filter_map(Value::as_u64).map(|n| n as usize).collect();
        let Ok(layers) = <[usize; 4]>::try_from(counts) else {
            return Err(vision.error("layers", "expected four block counts of a ResNet"));
        };
        let width = vision.size("width", Some(64))?;
        let head_width = vision.size("head_width", Some(64))?;
        let image_size = vision.size("image_size", Some(224))?;
        let heads = (width * 32 / head_width).max(1);
        VisionConfig::ResNet(ModifiedResNetConfig { layers, width, heads, image_size })
    } else {
        let width = vision.size("width", Some(768))?;
        let head_width = vision.size("head_width", Some(64))?;
        if !width.is_multiple_of(head_width) {
            return Err(vision.error("head_width", format!("{head_width} does not divide {width}")));
        }
        VisionConfig::Vit(ClipVitConfig {
            image_size: vision.sides("image_size", 224)?,
            patch_size: vision.size("patch_size", Some(16))?,
            width,
            depth: vision.blocks("layers", Some(12))?,
            heads: width / head_width,
            mlp_dim: (width as f64 * vision.number("mlp_ratio", 4.0)?) as usize,
            quick_gelu,
            norm_eps: 1e-5,
            position_rule: PositionRule::Timm,
        })
    };
    let width = text.size("width", Some(512))?;
    Ok(ClipConfig {
        embed_dim,
        vision: tower,
        text: ClipTextConfig {
            vocab: text.size("vocab_size", Some(49_408))?,
            context_length: text.size("context_length", Some(77))?,
            width,
            depth: text.blocks("layers", Some(12))?,
            heads: text.heads("heads", width, Some(8))?,
            mlp_dim: (width as f64 * text.number("mlp_ratio", 4.0)?) as usize,
            quick_gelu,
            norm_eps: 1e-5,
            end_token: EndToken::LargestId,
        },
    })
}

/// open_clip's tower of timm.
fn timm_vit(f: &Fields, name: &str) -> Result<TimmVitConfig> {
    let vit = vit_config::timm_named(name).ok_or_else(|| {
        let reason = format!(
            "a vision tower `{name}` is not supported; expected a plain ViT such as \
             vit_base_patch16_224"
        );
        f.error("timm_model_name", reason)
    })?;
    let image_size = f.sides("image_size", 224)?;
    if image_size != vit.image_size {
        let (side, _) = vit.image_size;
        return Err(f.error("image_size", format!("expected {side}, as {name} has it")));
    }
    let is_average_pooled = match f.text("timm_pool").unwrap_or("avg") {
        "avg" => true,
        "" | "token" => false,
        other => {
            let reason = format!("expected avg, token or nothing, got `{other}`");
            return Err(f.error("timm_pool", reason));
        }
    };
    let projection = match f.text("timm_proj").unwrap_or("linear") {
        "linear" => TimmProjection::Linear,
        "mlp" => TimmProjection::Mlp,
        other => {
            return Err(f.error("timm_proj", format!("expected linear or mlp, got `{other}`")));
        }
    };
    if f.flag("timm_proj_bias", false)? {
        return Err(f.error("timm_proj_bias", "a projection with a bias is not supported"));
    }
    Ok(TimmVitConfig { vit, is_average_pooled, projection })
}

/// Refuses widths that heads of 64 do not divide, unless the heads are given.
pub(super) fn check_openai_heads(
    config: &ClipConfig,
    file: &Path,
    given: HeadCounts,
) -> Result<()> {
    let vision = match &config.vision {
        VisionConfig::Vit(vit) => ("visual.conv1.weight", vit.width),
        VisionConfig::TimmVit(timm) => ("visual.conv1.weight", timm.vit.width),
        VisionConfig::ResNet(resnet) => ("visual.layer1.0.conv1.weight", 32 * resnet.width),
    };
    let text = ("token_embedding.weight", config.text.width);
    for ((field, width), heads) in [(vision, given.vision), (text, given.text)] {
        if heads.is_none() && !width.is_multiple_of(64) {
            return Err(Error::Config {
                file: file.to_owned(),
                field: field.to_owned(),
                reason: format!(
                    "a width of {width} is no multiple of 64, so the file does not tell the number of \
                     heads; give the model with its open_clip_config.json or config.json"
                ),
            });
        }
    }
    Ok(())
}

/// Blocks that are looked for in a file without a configuration.
const MOST_BLOCKS: usize = 1000;

/// Sizes from the tensors of an OpenAI archive, which has no configuration. Heads are 64 wide.
pub(super) fn openai(weights: &Checkpoint, file: &Path, heads: HeadCounts) -> Result<ClipConfig> {
    let shape = |name: &str| -> Result<Vec<usize>> {
        weights.info(name).map(|(_, shape)| shape.to_vec()).ok_or_else(|| Error::Config {
            file: file.to_owned(),
            field: name.to_owned(),
            reason: "the tensor is missing; expected the names of OpenAI's CLIP".to_owned(),
        })
    };
    let matrix = |name: &str| -> Result<[usize; 2]> {
        let found = shape(name)?;
        <[usize; 2]>::try_from(found).map_err(|found| Error::Config {
            file: file.to_owned(),
            field: name.to_owned(),
            reason: format!("expected a matrix, got {found:?}"),
        })
    };
    let count = |pattern: &dyn Fn(usize) -> String| {
        (0..MOST_BLOCKS).take_while(|i| weights.info(&pattern(*i)).is_some()).count()
    };
    let usual = |width: usize| (width / 64).max(1);
    let vision = if weights.info("visual.proj").is_some() {
        let [tokens, width] = matrix("visual.positional_embedding")?;
        let patch_size = shape("visual.conv1.weight")?.last().copied().unwrap_or(1);
        let side = (tokens.saturating_sub(1) as f64).sqrt().round() as usize * patch_size;
        VisionConfig::Vit(ClipVitConfig {
            image_size: (side, side),
            patch_size,
            width,
            depth: count(&|i| format!("visual.transformer.resblocks.{i}.attn.in_proj_weight")),
            heads: heads.vision.unwrap_or(usual(width)),
            mlp_dim: matrix("visual.transformer.resblocks.0.mlp.c_fc.weight")?[0],
            quick_gelu: true,
            norm_eps: 1e-5,
            position_rule: PositionRule::Timm,
        })
    } else {
        let width = shape("visual.layer1.0.conv1.weight")?[0];
        let [tokens, _] = matrix("visual.attnpool.positional_embedding")?;
        VisionConfig::ResNet(ModifiedResNetConfig {
            layers: std::array::from_fn(|s| {
                count(&|i| format!("visual.layer{}.{i}.conv1.weight", s + 1))
            }),
            width,
            heads: heads.vision.unwrap_or(usual(width * 32)),
            image_size: 32 * (tokens.saturating_sub(1) as f64).sqrt().round() as usize,
        })
    };
    let [vocab, width] = matrix("token_embedding.weight")?;
    let [context_length, _] = matrix("positional_embedding")?;
    Ok(ClipConfig {
        embed_dim: matrix("text_projection")?[1],
        vision,
        text: ClipTextConfig {
            vocab,
            context_length,
            width,
            depth: count(&|i| format!("transformer.resblocks.{i}.attn.in_proj_weight")),
            heads: heads.text.unwrap_or(usual(width)),
            mlp_dim: matrix("transformer.resblocks.0.mlp.c_fc.weight")?[0],
            quick_gelu: true,
            norm_eps: 1e-5,
            end_token: EndToken::LargestId,
        },
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;
    use serde_json::json;

    /// What is said of a configuration with one more key, empty if it is taken.
    fn said(section: &str, key: &str, value: Value) -> String {
        let mut config = json!({"model_cfg": {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}}});
        config["model_cfg"][section][key] = value;
        let read = open_clip(&config, Path::new("open_clip_config.json"));
        read.err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn keys_that_would_change_the_result_are_refused_by_name() {
        for (section, key, value) in [
            ("text_cfg", "no_causal_mask", json!(true)),
            ("text_cfg", "pool_type", json!("last")),
            ("text_cfg", "pad_id", json!(1)),
            ("vision_cfg", "pool_type", json!("avg")),
            ("vision_cfg", "final_ln_after_pool", json!(true)),
            ("vision_cfg", "attentional_pool", json!(true)),
            ("vision_cfg", "act_kwargs", json!({"approximate": "tanh"})),
            ("text_cfg", "norm_kwargs", json!({"eps": 1e-6})),
            ("text_cfg", "of_the_future", json!(2)),
        ] {
            let shown = value.to_string();
            let said = said(section, key, value);
            for part in ["open_clip_config.json", &format!("{section}.{key}"), &shown] {
                assert!(said.contains(part), "{key}: {said}");
            }
        }
    }

    #[test]
    fn keys_that_change_nothing_are_taken() {
        for (section, key, value) in [
            ("vision_cfg", "patch_dropout", json!(0.5)),
            ("vision_cfg", "timm_pool", json!("avg")),
            ("vision_cfg", "pool_type", json!("tok")),
            ("text_cfg", "norm_kwargs", json!({"eps": 1e-5})),
            ("text_cfg", "no_causal_mask", json!(false)),
            ("text_cfg", "act_kwargs", Value::Null),
        ] {
            assert_eq!(said(section, key, value), "", "{key}");
        }
    }
}
