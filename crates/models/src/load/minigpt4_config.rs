//! Configurations of MiniGPT-4 and MiniGPT-v2.

use super::blip2_config::Sizes;
use super::fields::Fields;
use super::{Model, causal_config, minigpt4_parts, read_json};
use crate::Result;
use crate::systems::minigpt4::{self, LoraConfig, MiniGpt4, MiniGpt4Config, Version};
use ocelli_nn::checkpoint::Checkpoint;
use ocelli_nn::{Axis, Builder, Names, Parameters};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

/// What stands before the language model, plain and under peft.
pub(super) const LANGUAGE: [&str; 2] = ["llama_model.", "llama_model.base_model.model."];

/// Projections of an attention that may be changed.
const PROJECTIONS: [&str; 4] = ["q_proj", "k_proj", "v_proj", "o_proj"];
/// Side of the pictures of MiniGPT-v2, in pixels.
const V2_SIDE: usize = 448;

/// Builds the model of a directory.
pub(super) fn open(
    config: &Value,
    weights: &Arc<Checkpoint>,
    file: &Path,
) -> Result<(Model, Parameters, Vec<Names>)> {
    let (f, sizes) = (Fields::new(config, file), Sizes::new(weights, file));
    let has = |name: &str| weights.info(name).is_some();
    let language = LANGUAGE.into_iter().find(|p| has(&format!("{p}model.embed_tokens.weight")));
    let language = language.ok_or_else(|| {
        let reason = "the weights hold no language model (llama_model.model.embed_tokens.weight); \
                      give a file with all parts";
        f.error("llama", reason)
    })?;
    let on: Vec<&str> = PROJECTIONS.into_iter().filter(|on| has(&change(language, on))).collect();
    let lora = match (f.get("lora"), on.first()) {
        (Some(_), _) => Some(lora(&f.section("lora"))?),
        (None, None) => None,
        // A file of trained parts alone tells rank and places; its scale is that of the release.
        (None, Some(one)) => {
            let [rank, _] = sizes.axes(&change(language, one))?;
            let config = json!({ "r": rank, "target_modules": on });
            Some(lora(&f.with(&config))?)
        }
    };
    let text = match minigpt4_parts::language_config(file) {
        Some(apart) if f.get("llama").is_none() => {
            causal_config::llama(&Fields::new(&read_json(&apart)?, &apart))?
        }
        _ => causal_config::llama(&f.section("llama"))?,
    };
    let sizes = MiniGpt4Config {
        version: version(&f, weights),
        vision: sizes.eva("visual_encoder.", &f.section("vit"))?,
        norm_eps: f.epsilon("ln_vision_eps", 1e-5)?,
        qformer: if has("query_tokens") {
            Some(sizes.qformer(&f.section("qformer"))?)
        } else {
            None
        },
        text,
        lora,
    };
    let names = minigpt4::names(language, sizes.text.has_tied_head);
    let axis = |length: usize, name: &str, field| Axis {
        part: "projection.",
        length,
        symbol: format!("{name}={length}"),
        field,
    };
    let mut axes = vec![axis(sizes.text.width, "hidden", "hidden_size of the language model")];
    axes.extend(sizes.qformer.as_ref().map(|q| axis(q.width, "qformer", "query_tokens")));
    let builder = Builder::load_with(Arc::clone(weights), names.clone(), axes);
    let model = MiniGpt4::new(&sizes, &builder);
    Ok((Model::MiniGpt4(Box::new(model)), builder.finish()?, names))
}

/// The first tensor of a live change of low rank to a projection.
fn change(language: &str, on: &str) -> String {
    format!("{language}model.layers.0.self_attn.{on}.lora_A.weight")
}

/// Which system a file is of: as its configuration says, or MiniGPT-v2 if its language model was
/// changed. MiniGPT-4 on LLaMA-2 has no Q-Former either.
fn version(f: &Fields, weights: &Checkpoint) -> Version {
    let has = |name: &str| weights.info(name).is_some();
    let is_changed = || LANGUAGE.iter().any(|l| PROJECTIONS.iter().any(|on| has(&change(l, on))));
    let is_v2 = match f.text("arch") {
        Some(arch) => arch == "minigpt_v2",
        None => f.get("lora").is_some() || is_changed(),
    };
    match (is_v2, has("query_tokens")) {
        (true, _) => Version::MiniGptV2,
        (false, true) => Version::MiniGpt4,
        (false, false) => Version::MiniGpt4Llama2,
    }
}

/// Height and width of the pictures: what the configuration says, or else 448 for MiniGPT-v2
/// (arXiv:2310.09478, §2.1), whose tower is published for 224, and the tower's for the others.
pub(super) fn image_size(
    config: &Value,
    weights: &Checkpoint,
    file: &Path,
) -> Result<(usize, usize)> {
    let f = Fields::new(config, file);
    let section = f.section("vit");
    if section.get("img_size").is_some() {
        return section.sides("img_size", V2_SIDE);
    }
    if version(&f, weights) == Version::MiniGptV2 {
        return Ok((V2_SIDE, V2_SIDE));
    }
    Ok(Sizes::new(weights, file).eva("visual_encoder.", &section)?.image_size)
}

fn lora(f: &Fields) -> Result<LoraConfig> {
    let rank = f.size("r", Some(64))?;
    let alpha = f.number("lora_alpha", 16.0)?;
    let default = vec![Value::from("q_proj"), Value::from("v_proj")];
    let on = match f.get("target_modules") {
        None => default,
        Some(Value::Array(names)) => names.clone(),
        Some(other) => {
            let reason = format!("expected a list of projections, got {other}");
            return Err(f.error("target_modules", reason));
        }
    };
    let ours = |name: &Value| match name.as_str() {
        Some("q_proj") => Some("q"),
        Some("k_proj") => Some("k"),
        Some("v_proj") => Some("v"),
        Some("o_proj") => Some("out"),
        _ => None,
    };
    let on: Option<Vec<_>> = on.iter().map(ours).collect();
    let on = on.ok_or_else(|| {
        f.error("target_modules", "expected only q_proj, k_proj, v_proj and o_proj")
    })?;
    Ok(LoraConfig { rank, scale: alpha as f32 / rank as f32, on })
}
