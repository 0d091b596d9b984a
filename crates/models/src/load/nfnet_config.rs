//! Configurations of NFNets: what timm's hub files say, or every constant spelled out.

use super::Model;
use super::fields::Fields;
use crate::Result;
use crate::vision::nfnet::{self, NfNet, NfNetConfig, NfNetLayout, whole_channels};
use ocelli_nn::checkpoint::Checkpoint;
use ocelli_nn::{Builder, Names, Parameters};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// Whether a configuration describes an NFNet.
pub(super) fn is_one(config: &Value) -> bool {
    let name = config.get("architecture").and_then(Value::as_str).unwrap_or_default();
    name.starts_with("dm_nfnet_f")
        || name.starts_with("nfnet_f")
        || config.get("skipinit").is_some()
}

/// Constants that every published NFNet has.
const ONLY: &[(&str, &[&str])] = &[
    ("stem_type", &["\"deep_quad\""]),
    ("attn_layer", &["\"se\""]),
    ("attn_kwargs", &["{\"rd_ratio\": 0.5}"]),
    ("attn_gain", &["2.0", "2"]),
    ("bottle_ratio", &["0.5"]),
    ("ch_div", &["8"]),
    ("reg", &["false"]),
    ("extra_conv", &["true"]),
    ("act_layer", &["\"gelu\""]),
];
const READ: &[&str] = &[
    "kind",
    "depths",
    "channels",
    "alpha",
    "stem_chs",
    "group_size",
    "width_factor",
    "num_features",
    "num_classes",
    "image_size",
    "gamma_in_act",
    "same_padding",
    "skipinit",
    "std_conv_eps",
];
/// Results of the above, bookkeeping, and what matters only while training.
const HARMLESS: &[&str] =
    &["block_betas", "parameters_without_influence", "gelu_gamma", "zero_init_fc", "weights_seed"];

/// The sizes that a configuration states.
pub(super) fn nfnet(f: &Fields) -> Result<NfNetConfig> {
    if f.get("depths").is_none() {
        return published(f);
    }
    f.check_keys(READ, HARMLESS, &[ONLY])?;
    let factor = f.number("width_factor", 1.0)? as f32;
    let widths = |field| -> Result<Vec<usize>> {
        let sizes = list(f, field)?;
        Ok(sizes.into_iter().map(|n| whole_channels(n as f32 * factor)).collect())
    };
    let (depths, channels) = (list(f, "depths")?, widths("channels")?);
    if depths.len() != channels.len() || depths.iter().any(|d| *d > 1000) {
        let reason = format!("{} stages of at most 1000 blocks, as `channels` has", channels.len());
        return Err(f.error("depths", format!("expected {reason}")));
    }
    let layout = match f.text("kind") {
        Some("dm") => NfNetLayout::DeepMind,
        None if f.flag("skipinit", false)? => NfNetLayout::DeepMind,
        None | Some("plain") => NfNetLayout::Plain,
        Some(other) => return Err(f.error("kind", format!("expected dm or plain, got `{other}`"))),
    };
    let is_deep_mind = layout == NfNetLayout::DeepMind;
    for field in ["gamma_in_act", "same_padding", "skipinit"] {
        if f.flag(field, is_deep_mind)? != is_deep_mind {
            return Err(f.error(field, "expected as in dm_nfnet or as in nfnet, not of each some"));
        }
    }
    let stem = f.size("stem_chs", channels.first().copied())?;
    let last = channels.last().copied().unwrap_or(stem);
    let group_width = f.size("group_size", Some(128))?;
    if group_width % 8 != 0 {
        return Err(f.error("group_size", format!("expected a multiple of 8, got {group_width}")));
    }
    let features = f.size("num_features", Some(2 * last))?;
    Ok(NfNetConfig {
        layout,
        image_size: f.size("image_size", Some(224))?,
        depths,
        stem_channels: whole_channels(stem as f32 * factor),
        group_width,
        features: whole_channels(features as f32 * factor),
        classes: classes(f, 0),
        alpha: f.number("alpha", 0.2)? as f32,
        filter_eps: f.epsilon("std_conv_eps", 1e-5)?,
        channels,
    })
}

/// What a hub file of timm names.
fn published(f: &Fields) -> Result<NfNetConfig> {
    let name = f.text("architecture").unwrap_or_default();
    let (layout, size) = match name.strip_prefix("dm_nfnet_") {
        Some(size) => (NfNetLayout::DeepMind, size),
        None => (NfNetLayout::Plain, name.strip_prefix("nfnet_").unwrap_or_default()),
    };
    let Some(config) = NfNetConfig::variant(&size.to_ascii_uppercase()) else {
        let reason = format!("expected dm_nfnet_f0 to f6 or nfnet_f0 to f6, got `{name}`");
        return Err(f.error("architecture", reason));
    };
    let cfg = f.section("pretrained_cfg");
    let side = cfg.get("input_size").and_then(|v| v.get(1)).and_then(Value::as_u64);
    let image_size =
        side.filter(|s| (1..=1 << 14).contains(s)).map_or(config.image_size, |s| s as usize);
    Ok(NfNetConfig { layout, image_size, classes: classes(f, config.classes), ..config })
}

/// Rows of the head; 0 is no head.
fn classes(f: &Fields, usual: usize) -> usize {
    let stated = f.get("num_classes").and_then(Value::as_u64);
    stated.filter(|n| *n <= 1 << 20).map_or(usual, |n| n as usize)
}

/// One to eight sizes.
fn list(f: &Fields, field: &str) -> Result<Vec<usize>> {
    let size = |v: &Value| v.as_u64().filter(|n| (1..=1 << 16).contains(n)).map(|n| n as usize);
    let sizes: Option<Vec<usize>> =
        f.get(field).and_then(Value::as_array).and_then(|v| v.iter().map(size).collect());
    sizes
        .filter(|sizes| (1..=8).contains(&sizes.len()))
        .ok_or_else(|| f.error(field, "expected one to eight whole numbers from 1"))
}

/// Builds the NFNet of a directory.
pub(super) fn open(
    config: &Value,
    weights: &Arc<Checkpoint>,
    file: &Path,
) -> Result<(Model, Parameters, Vec<Names>)> {
    let config = nfnet(&Fields::new(config, file))?;
    let names = vec![nfnet::names("", config.classes > 0)];
    let builder = Builder::load(Arc::clone(weights), names.clone());
    let model = NfNet::new(&config, &builder);
    Ok((Model::NfNet(Box::new(model)), builder.finish()?, names))
}
