//! Configurations of Flamingos and of their parts.

use super::blip2_config::Sizes;
use super::fields::Fields;
use super::{Model, causal_config, flamingo_parts, nfnet_config, read_json};
use crate::Result;
use crate::connector::flamingo::FlamingoParts;
use crate::connector::gated_xattn::{self, GatedConfig, GatedCrossAttention};
use crate::connector::perceiver::{self, PerceiverConfig, PerceiverResampler};
use crate::systems::flamingo::{
    self, Flamingo, FlamingoConfig, LanguageConfig, NfNetMap, PREFIXES, Places, TowerConfig,
};
use ocelli_nn::checkpoint::Checkpoint;
use ocelli_nn::{Builder, Names, Parameters};
use ocelli_tensor::Activation;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

/// The part that a configuration describes, by the class that it names.
fn module(config: &Value) -> Option<&str> {
    let name = config.get("module").and_then(Value::as_str)?;
    let parts = ["PerceiverResampler", "GatedCrossAttentionBlock"];
    parts.iter().any(|part| name.contains(part)).then_some(name)
}

/// Whether a configuration describes parts of a Flamingo.
pub(super) fn is_parts(config: &Value) -> bool {
    module(config).is_some()
}

/// The paper squares a ReLU where its public implementations have a GELU.
fn activation(f: &Fields) -> Result<Activation> {
    match f.text("activation") {
        Some("squared_relu") => Ok(Activation::SquaredRelu),
        _ => f.activation("activation", "gelu"),
    }
}

/// Sizes of the resampler.
fn perceiver(f: &Fields) -> Result<PerceiverConfig> {
    let width = f.size("dim", None)?;
    let optional = |field| f.get(field).map_or(Ok(0), |_| f.size(field, None));
    Ok(PerceiverConfig {
        width,
        depth: f.blocks("depth", Some(6))?,
        heads: f.size("heads", Some(8))?,
        head_dim: f.size("dim_head", Some(64))?,
        latents: f.size("num_latents", Some(64))?,
        mlp_dim: width * f.size("ff_mult", Some(4))?,
        activation: activation(f)?,
        frames: optional("max_num_frames")?,
        media: match optional("max_num_media")? {
            0 => optional("num_media_embeds")?,
            media => media,
        },
    })
}

/// Sizes of the gated cross attention of tokens of `width` to latents of `memory_width`.
fn gated(f: &Fields, width: usize, memory_width: usize) -> Result<GatedConfig> {
    Ok(GatedConfig {
        width,
        memory_width,
        heads: f.size("heads", Some(8))?,
        head_dim: f.size("dim_head", Some(64))?,
        mlp_dim: width * f.size("ff_mult", Some(4))?,
        activation: activation(f)?,
    })
}

/// Builds the parts in a directory.
pub(super) fn open_parts(
    config: &Value,
    weights: &Arc<Checkpoint>,
    file: &Path,
) -> Result<(Model, Parameters, Vec<Names>)> {
    let f = Fields::new(config, file);
    let name = module(config).unwrap_or_default();
    let [resamples, looks] = ["PerceiverResampler", "GatedCross"].map(|part| name.contains(part));
    // A file of both parts has a prefix for each.
    let [before, before_gated] =
        if resamples && looks { ["perceiver.", "gated."] } else { ["", ""] };
    let has_media_pos = weights.info(&format!("{before}media_pos_emb")).is_some();
    let mut names = Vec::new();
    if resamples {
        names.push(perceiver::names(before, has_media_pos).under("resampler."));
    }
    if looks {
        names.push(gated_xattn::names(before_gated).under("gated."));
    }
    let b = Builder::load(Arc::clone(weights), names.clone());
    let resampler = if resamples {
        Some(PerceiverResampler::new(&perceiver(&f)?, &b.at("resampler")))
    } else {
        None
    };
    let gated = if looks {
        let width = f.size("dim", None)?;
        let sizes = gated(&f, width, f.size("dim_visual", Some(width))?)?;
        Some(GatedCrossAttention::new(sizes, &b.at("gated")))
    } else {
        None
    };
    let model = FlamingoParts { resampler, gated };
    Ok((Model::FlamingoParts(Box::new(model)), b.finish()?, names))
}

/// Whether a configuration describes a whole Flamingo.
pub(super) fn is_whole(config: &Value) -> bool {
    config.get("cross_attn_every_n_layers").is_some()
}

/// Whether a file is of a Flamingo, whole or what was trained.
pub(super) fn is_flamingo(weights: &Checkpoint) -> bool {
    ["", "module."]
        .iter()
        .any(|before| weights.info(&format!("{before}{}latents", PREFIXES[1])).is_some())
}

/// The language model that a section of the configuration, or the one beside the frozen part, tells.
fn language(config: &Value, file: &Path) -> Result<LanguageConfig> {
    let f = Fields::new(config, file);
    let build = |kind: &str, f: &Fields| -> Result<LanguageConfig> {
        Ok(match kind {
            "llama" => LanguageConfig::Llama(causal_config::llama(f)?),
            "opt" => LanguageConfig::Opt(causal_config::opt(f)?),
            "gpt_neox" => LanguageConfig::GptNeox(causal_config::gpt_neox(f)?),
            "mpt" => LanguageConfig::Mpt(causal_config::mpt(f)?),
            "mosaic_gpt" => LanguageConfig::MosaicGpt(causal_config::mosaic_gpt(f)?),
            other => {
                let reason =
                    format!("expected llama, opt, gpt_neox, mpt or mosaic_gpt, got `{other}`");
                return Err(f.error("model_type", reason));
            }
        })
    };
    if f.get("llama").is_some() {
        return build("llama", &f.section("llama"));
    }
    if f.get("lm_config").is_some() {
        return build(f.text("lm").unwrap_or_default(), &f.section("lm_config"));
    }
    let apart = flamingo_parts::language_config(file)?;
    let own = read_json(&apart)?;
    let own = Fields::new(&own, &apart);
    build(own.text("model_type").unwrap_or_default(), &own)
}

/// The tower, whose map has features of `width` values if it is an NFNet.
fn tower(f: &Fields, sizes: &Sizes, width: usize) -> Result<TowerConfig> {
    if f.get("nfnet").is_some() {
        let section = f.section("nfnet");
        let config = nfnet_config::nfnet(&section)?;
        let map = match width {
            width if width == config.features => NfNetMap::Features,
            width if width == config.width() => NfNetMap::LastStage,
            other => {
                let reason = format!(
                    "the resampler reads {other} values, the tower has {} or {}",
                    config.width(),
                    config.features
                );
                return Err(section.error("channels", reason));
            }
        };
        return Ok(TowerConfig::NfNet(config, map));
    }
    let section = f.section("clip_vision");
    let is_normed = section.flag("tokens_after_ln_post", false)?;
    Ok(TowerConfig::Clip(sizes.clip(PREFIXES[0], &section)?, is_normed))
}

/// The sizes of a Flamingo. What the configuration leaves out, tensors tell; heads are those of
/// OpenFlamingo.
fn whole(config: &Value, weights: &Checkpoint, file: &Path) -> Result<FlamingoConfig> {
    let (f, sizes) = (Fields::new(config, file), Sizes::new(weights, file));
    let [_, resampler, before] = PREFIXES;
    let [latents, memory_width] = sizes.axes(&format!("{resampler}latents"))?;
    let rows = |name: &str| match sizes.axes(&format!("{resampler}{name}")) {
        Ok([rows, _]) => rows,
        Err(_) => 0,
    };
    let known = json!({
        "dim": memory_width,
        "num_latents": latents,
        "depth": sizes.count(&format!("{resampler}layers."), ".0.to_q.weight"),
        "max_num_frames": rows("frame_embs"),
        "max_num_media": weights.info(&format!("{resampler}media_time_embs")).map_or(0, |t| t.1[0]),
    });
    let mut section = config.get("perceiver").cloned().unwrap_or_default();
    for (field, value) in known.as_object().into_iter().flatten() {
        if *value != json!(0) && section.get(field).is_none_or(Value::is_null) {
            section[field.as_str()] = value.clone();
        }
    }
    let resampler = perceiver(&f.with(&section))?;
    let text = language(config, file)?;
    let (depth, width) = text.sizes();
    let has_layer = |block: usize| {
        let gate = flamingo::layer_name(&text, block, "attn_gate");
        weights.info(&gate).is_some()
    };
    let first = (0..depth).find(|block| has_layer(*block)).unwrap_or(0);
    let every = f.size("cross_attn_every_n_layers", Some(first + 1))?;
    let config = FlamingoConfig {
        vision: tower(&f, &sizes, memory_width)?,
        gated: gated(&f.section("gated_cross_attn"), width, resampler.width)?,
        resampler,
        places: Places { every, is_first: every > 1 && first == 0 },
        image_token: match f.get("media_token_id") {
            Some(_) => f.id("media_token_id", 0)?,
            None => flamingo_parts::token(file, flamingo_parts::IMAGE_TOKEN)?,
        },
        looks_back: !f.flag("only_attend_immediate_media", true)?,
        text: flamingo_parts::with_words(text, weights, before),
    };
    Ok(config)
}

/// Builds the Flamingo of a directory.
pub(super) fn open(
    config: &Value,
    weights: &Arc<Checkpoint>,
    file: &Path,
) -> Result<(Model, Parameters, Vec<Names>)> {
    let config = whole(config, weights, file)?;
    let names = flamingo::names(&config);
    let b = Builder::load(Arc::clone(weights), names.clone());
    let model = Flamingo::new(&config, &b);
    Ok((Model::Flamingo(Box::new(model)), b.finish()?, names))
}

/// Side of the pictures that the tower reads, and whether it is a CLIP.
pub(super) fn image_size(
    config: &Value,
    weights: &Checkpoint,
    file: &Path,
) -> Result<(usize, bool)> {
    let (f, sizes) = (Fields::new(config, file), Sizes::new(weights, file));
    let [_, width] = sizes.axes(&format!("{}latents", PREFIXES[1]))?;
    Ok(match tower(&f, &sizes, width)? {
        TowerConfig::Clip(c, _) => (c.image_size.0, true),
        TowerConfig::NfNet(c, _) => (c.image_size, false),
    })
}
