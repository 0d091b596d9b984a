//! Configurations of ViT checkpoints.

use super::fields::Fields;
use crate::vision::position::PositionRule;
use crate::vision::resnet_v2::ResNetV2Config;
use crate::vision::vit::{Head, VitConfig};
use crate::{Error, Result};
use ocelli_nn::checkpoint::Checkpoint;
use serde_json::Value;
use std::path::Path;

/// `config.json` of transformers' `ViTModel` and its heads.
pub(super) fn transformers(config: &Value, file: &Path) -> Result<VitConfig> {
    let f = Fields::new(config, file);
    let width = f.size("hidden_size", Some(768))?;
    if let Some(act) = f.text("hidden_act").filter(|a| *a != "gelu") {
        return Err(
            f.error("hidden_act", format!("`{act}` is not an activation of ViT; expected gelu"))
        );
    }
    let pooler_size = f.size("pooler_output_size", Some(width))?;
    if pooler_size != width {
        return Err(f.error("pooler_output_size", format!("expected {width}, got {pooler_size}")));
    }
    if let Some(act) = f.text("pooler_act").filter(|a| *a != "tanh") {
        return Err(f.error("pooler_act", format!("expected tanh, got `{act}`")));
    }
    let architecture =
        f.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str).unwrap_or("ViTModel");
    let head = match architecture {
        "ViTForImageClassification" => Head::Classes(classes(&f)?),
        "ViTForMaskedImageModeling" => Head::MaskedImage,
        "ViTModel" => Head::Pooler,
        other => {
            let want = "expected ViTModel, ViTForImageClassification or ViTForMaskedImageModeling";
            return Err(f.error("architectures", format!("{want}, got {other}")));
        }
    };
    encoder(&f, width, head, 1e-12)
}

/// `config.json` of transformers' `Dinov2Model`.
pub(super) fn dinov2(config: &Value, file: &Path) -> Result<VitConfig> {
    let f = Fields::new(config, file);
    let width = f.size("hidden_size", Some(768))?;
    if f.flag("use_swiglu_ffn", false)? {
        return Err(f.error("use_swiglu_ffn", "the giant's SwiGLU layers are not supported"));
    }
    let ratio = f.size("mlp_ratio", Some(4))?;
    let mut config = encoder(&f, width, Head::None, 1e-6)?;
    config.mlp_dim = ratio * width;
    config.has_layer_scale = true;
    Ok(config)
}

fn encoder(f: &Fields, width: usize, head: Head, eps: f64) -> Result<VitConfig> {
    let patch = f.sides("patch_size", 16)?;
    if patch.0 != patch.1 {
        return Err(f.error("patch_size", "expected square patches"));
    }
    Ok(VitConfig {
        image_size: f.sides("image_size", 224)?,
        patch_size: patch.0,
        channels: f.size("num_channels", Some(3))?,
        width,
        depth: f.blocks("num_hidden_layers", Some(12))?,
        heads: f.heads("num_attention_heads", width, Some(12))?,
        mlp_dim: f.size("intermediate_size", Some(4 * width))?,
        norm_eps: f.epsilon("layer_norm_eps", eps)?,
        qkv_bias: f.flag("qkv_bias", true)?,
        has_class_token: true,
        has_layer_scale: false,
        position_rule: PositionRule::Transformers,
        head,
    })
}

fn classes(f: &Fields) -> Result<usize> {
    match f.get("id2label").and_then(Value::as_object) {
        Some(labels) => Ok(labels.len()),
        None => f.size("num_labels", Some(2)),
    }
}

/// Arguments of timm's `VisionTransformer` that are read.
const TIMM_READ: &[&str] = &[
    "img_size",
    "patch_size",
    "in_chans",
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "norm_eps",
    "qkv_bias",
    "class_token",
    "init_values",
    "global_pool",
    "backbone",
];
/// Those that matter only while training or say again what stands elsewhere.
const TIMM_HARMLESS: &[&str] = &[
    "num_classes",
    "drop_rate",
    "pos_drop_rate",
    "patch_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
    "weight_init",
    "fix_init",
    "strict_img_size",
];
/// Those that are built with one value only.
const TIMM_ONLY: &[(&str, &[&str])] = &[
    ("act_layer", &["\"gelu\""]),
    ("norm_layer", &["\"layernorm\""]),
    ("reg_tokens", &["0"]),
    ("qk_norm", &["false"]),
    ("scale_attn_norm", &["false"]),
    ("scale_mlp_norm", &["false"]),
    ("proj_bias", &["true"]),
    ("no_embed_class", &["false"]),
    ("pre_norm", &["false"]),
    ("final_norm", &["true"]),
    ("pool_include_prefix", &["false"]),
    ("pos_embed", &["\"learn\""]),
    ("dynamic_img_size", &["false"]),
    ("dynamic_img_pad", &["false"]),
];

/// `config.json` of timm's `VisionTransformer`.
pub(super) fn timm(config: &Value, file: &Path) -> Result<VitConfig> {
    let f = Fields::new(config, file);
    let name = f.text("architecture").unwrap_or_default();
    let args = f.section("model_args");
    // Published files name their sizes: vit_base_patch16_224.
    let known = published(name);
    let size = |field: &str, of: fn(&VitConfig) -> usize| args.size(field, known.as_ref().map(of));
    let width = size("embed_dim", |c| c.width)?;
    let ratio = args.number("mlp_ratio", 4.0)?;
    let classes = f.get("num_classes").and_then(Value::as_u64).unwrap_or(1000) as usize;
    let pool = args.text("global_pool").or_else(|| f.text("global_pool")).unwrap_or("token");
    let head = match (pool, classes) {
        (_, 0) => Head::None,
        ("token", n) => Head::Classes(n),
        ("avg", n) => Head::AverageClasses(n),
        (other, _) => {
            return Err(f.error("global_pool", format!("expected token or avg, got `{other}`")));
        }
    };
    args.check_keys(TIMM_READ, TIMM_HARMLESS, &[TIMM_ONLY])?;
    let input = f
        .section("pretrained_cfg")
        .get("input_size")
        .and_then(|v| v.get(1))
        .and_then(Value::as_u64);
    Ok(VitConfig {
        image_size: args.sides("img_size", input.unwrap_or(224) as usize)?,
        patch_size: size("patch_size", |c| c.patch_size)?,
        channels: args.size("in_chans", Some(3))?,
        width,
        depth: args.blocks("depth", known.as_ref().map(|c| c.depth))?,
        heads: args.heads("num_heads", width, known.as_ref().map(|c| c.heads))?,
        mlp_dim: (width as f64 * ratio) as usize,
        norm_eps: args.epsilon("norm_eps", 1e-6)?,
        qkv_bias: args.flag("qkv_bias", true)?,
        has_class_token: args.flag("class_token", true)?,
        has_layer_scale: args.get("init_values").is_some(),
        position_rule: PositionRule::Timm,
        head,
    })
}

/// The ResNet below timm's hybrid ViT, which the sizes of [`timm`] sit on.
pub(super) fn backbone(config: &Value, file: &Path) -> Result<ResNetV2Config> {
    let root = Fields::new(config, file);
    let args = root.section("model_args");
    let f = args.section("backbone");
    let counts = |field: &str, default: Vec<usize>| -> Result<Vec<usize>> {
        let Some(value) = f.get(field) else { return Ok(default) };
        let of = |v: &Value| v.as_u64().filter(|n| (1..=1 << 16).contains(n)).map(|n| n as usize);
        let counts = value.as_array().map(|list| list.iter().map(of).collect::<Option<Vec<_>>>());
        match counts {
            Some(Some(list)) if (1..=8).contains(&list.len()) => Ok(list),
            _ => Err(f.error(field, format!("expected up to eight whole numbers, got {value}"))),
        }
    };
    let r50 = ResNetV2Config::r50();
    Ok(ResNetV2Config {
        stem_channels: args.section("backbone").size("stem_chs", Some(r50.stem_channels))?,
        layers: counts("layers", r50.layers)?,
        channels: counts("channels", r50.channels)?,
        groups: f.size("groups", Some(r50.groups))?,
    })
}

/// A plain ViT without a head by timm's name, such as `vit_base_patch16_224.augreg_in21k`.
pub(super) fn timm_named(name: &str) -> Option<VitConfig> {
    let plain = name.split('.').next()?;
    let [kind, _, _, side] = plain.split('_').collect::<Vec<_>>()[..] else { return None };
    let side = side.parse().ok().filter(|side| kind == "vit" && (1..=4096).contains(side))?;
    Some(VitConfig { image_size: (side, side), head: Head::None, ..published(plain)? })
}

/// Sizes of a name such as `vit_base_patch16_224`.
fn published(name: &str) -> Option<VitConfig> {
    let mut parts = name.split('_').skip(1);
    let size = match parts.next()? {
        "tiny" => "Ti",
        "small" => "S",
        "base" => "B",
        "large" => "L",
        "huge" => "H",
        _ => return None,
    };
    VitConfig::variant(&format!("{size}/{}", parts.next()?.strip_prefix("patch")?))
}

/// Sizes from the tensors of an original `.npz` file, which has no configuration.
pub(super) fn jax(weights: &Checkpoint, file: &Path) -> Result<VitConfig> {
    let prefix = if weights.info("opt/target/cls").is_some() { "opt/target/" } else { "" };
    let shape = |name: &str| -> Result<Vec<usize>> {
        let name = format!("{prefix}{name}");
        weights.info(&name).map(|(_, shape)| shape.to_vec()).ok_or_else(|| Error::Config {
            file: file.to_owned(),
            field: name,
            reason: "the tensor is missing; expected the names of the original ViT files"
                .to_owned(),
        })
    };
    let wrong = |name: &str, found: &[usize]| Error::Config {
        file: file.to_owned(),
        field: name.to_owned(),
        reason: format!("a shape {found:?} is none of a ViT"),
    };
    let patch = shape("embedding/kernel")?;
    let &[patch_size, _, channels, width] = &patch[..] else {
        return Err(wrong("embedding/kernel", &patch));
    };
    let query = shape("Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel")?;
    let mlp = shape("Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel")?;
    let position = shape("Transformer/posembed_input/pos_embedding")?;
    let (&[_, heads, _], &[_, mlp_dim], &[_, tokens, _]) = (&query[..], &mlp[..], &position[..])
    else {
        return Err(wrong("Transformer/posembed_input/pos_embedding", &position));
    };
    let patch_size = match jax_backbone(weights, file)? {
        None => patch_size,
        Some(backbone) if patch_size == 1 => backbone.stride(),
        // R+Ti/16 reads a stem alone in patches of four by four positions.
        Some(_) => return Err(wrong("embedding/kernel of a hybrid", &patch)),
    };
    let side = ((tokens.saturating_sub(1)) as f64).sqrt() as usize * patch_size;
    let depth = (0..1000)
        .take_while(|i| {
            let name = format!("{prefix}Transformer/encoderblock_{i}/LayerNorm_0/scale");
            weights.info(&name).is_some()
        })
        .count();
    let head = shape("head/kernel").ok().and_then(|s| s.last().copied());
    if head.is_some() && weights.info(&format!("{prefix}pre_logits/kernel")).is_some() {
        return Err(Error::Config {
            file: file.to_owned(),
            field: "pre_logits".to_owned(),
            reason: "a file with both a pre-logits layer and a head is not supported; \
                     drop `head` to use its features"
                .to_owned(),
        });
    }
    Ok(VitConfig {
        image_size: (side, side),
        patch_size,
        channels,
        width,
        depth,
        heads,
        mlp_dim,
        norm_eps: 1e-6,
        qkv_bias: true,
        has_class_token: true,
        has_layer_scale: false,
        position_rule: PositionRule::Jax,
        head: head.map_or(Head::None, Head::Classes),
    })
}

/// The ResNet in an original `.npz` file, if it is one of a hybrid. Groups change no shape; all
/// published ones have 32.
pub(super) fn jax_backbone(weights: &Checkpoint, file: &Path) -> Result<Option<ResNetV2Config>> {
    const GROUPS: usize = 32;
    let prefix = if weights.info("opt/target/cls").is_some() { "opt/target/" } else { "" };
    let outputs = |name: &str| {
        let (_, shape) = weights.info(&format!("{prefix}{name}/kernel"))?;
        shape.last().copied()
    };
    let Some(stem_channels) = outputs("conv_root") else { return Ok(None) };
    let units = |stage: usize| {
        let has = |unit: &usize| outputs(&format!("block{stage}/unit{unit}/conv1")).is_some();
        (1..=100).take_while(has).count()
    };
    let layers: Vec<usize> = (1..=8).map(units).take_while(|units| *units > 0).collect();
    let channels = (1..=layers.len()).map(|stage| outputs(&format!("block{stage}/unit1/conv3")));
    let channels: Vec<usize> = channels.map(|n| n.unwrap_or(0)).collect();
    let divides = |n: usize, by: usize| n > 0 && n.is_multiple_of(by);
    if !divides(stem_channels, GROUPS) || !channels.iter().all(|n| divides(*n, 4 * GROUPS)) {
        return Err(Error::Config {
            file: file.to_owned(),
            field: "conv_root".to_owned(),
            reason: format!(
                "{stem_channels} channels in the stem and {channels:?} in the stages; expected \
                 multiples of 32 and of 128"
            ),
        });
    }
    Ok(Some(ResNetV2Config { stem_channels, layers, channels, groups: GROUPS }))
}
