//! Configurations of InternLM-XComposer and of its language model.

use super::blip2_config::Sizes;
use super::fields::Fields;
use super::{Model, causal_config};
use crate::Result;
use crate::language::llama::{self, Llama};
use crate::systems::minigpt4::LoraConfig;
use crate::systems::xcomposer::{self, XComposer, XComposerConfig};
use ocelli_nn::checkpoint::Checkpoint;
use ocelli_nn::{Axis, Builder, Names, Parameters};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// A tensor that a whole model has, and one of its language model alone.
const WHOLE: &str = "internlm_proj.weight";
const LANGUAGE: &str = "model.layers.0.self_attn.o_proj.bias";

/// Side of the pictures where nothing is said, in pixels.
const USUAL_SIZE: usize = 224;
/// What ends messages of the user and of the model in the published vocabulary.
const MESSAGE_ENDS: [u32; 2] = [103_027, 103_028];

/// Whether tensors are of such a model.
pub(super) fn is_one(weights: &Checkpoint) -> bool {
    [WHOLE, LANGUAGE].iter().any(|name| weights.info(name).is_some())
}

/// Builds the model of a directory, whole or the language model alone.
pub(super) fn open(
    config: &Value,
    weights: &Arc<Checkpoint>,
    file: &Path,
) -> Result<(Model, Parameters, Vec<Names>)> {
    let (f, sizes) = (Fields::new(config, file), Sizes::new(weights, file));
    if !f.flag("intern_converted_llm", true)? {
        return Err(f.error("intern_converted_llm", "expected true, as in the released models"));
    }
    let mut text = causal_config::llama(&f)?;
    let has_bias = f.flag("kqvo_bias", f.flag("bias", true)?)?;
    (text.qkv_bias, text.out_bias) = (has_bias, has_bias);
    if !sizes.has(WHOLE) {
        let lora = lora(&f, "lora_cfg")?;
        let names = [vec![llama::lora_names("model.")], llama::names("", text.has_tied_head)];
        let names = names.concat();
        let builder = Builder::load(Arc::clone(weights), names.clone());
        let model = Llama::new(&text, &builder);
        let model = match &lora {
            Some(l) => model.with_lora(&builder, l.rank, l.scale, &l.on),
            None => model,
        };
        return Ok((Model::Llama(Box::new(model)), builder.finish()?, names));
    }
    let sizes = XComposerConfig {
        vision: sizes.eva("visual_encoder.", &f.section("vit"))?,
        norm_eps: f.epsilon("ln_vision_eps", 1e-5)?,
        sampler: sizes.qformer(&f.section("qformer"))?,
        text,
        lora: lora(&f, "internlm_lora")?,
    };
    let names = xcomposer::names();
    let axis = |part, length: usize, name: &str, field| Axis {
        part,
        length,
        symbol: format!("{name}={length}"),
        field,
    };
    let axes = vec![
        axis("language.", sizes.text.width, "hidden", "hidden_size"),
        axis("language.", sizes.text.vocab, "vocab", "vocab_size"),
        axis("language.", sizes.text.mlp_dim, "intermediate", "intermediate_size"),
        axis("projection.", sizes.text.width, "hidden", "hidden_size"),
    ];
    let builder = Builder::load_with(Arc::clone(weights), names.clone(), axes);
    let model = XComposer::new(&sizes, &builder);
    Ok((Model::XComposer(Box::new(model)), builder.finish()?, names))
}

/// Height and width of the pictures.
pub(super) fn image_size(config: &Value, file: &Path) -> Result<(usize, usize)> {
    Fields::new(config, file).section("vit").sides("img_size", USUAL_SIZE)
}

/// Tokens that end a message, if the vocabulary has them.
pub(super) fn end_tokens(config: &Value) -> Vec<u32> {
    let vocab = config["vocab_size"].as_u64().unwrap_or(0);
    MESSAGE_ENDS.into_iter().filter(|id| u64::from(*id) < vocab).collect()
}

/// The changes of low rank that a section tells of.
fn lora(f: &Fields, section: &str) -> Result<Option<LoraConfig>> {
    if f.get(section).is_none() {
        return Ok(None);
    }
    let f = f.section(section);
    let rank = f.size("lora_r", Some(256))?;
    let alpha = f.number("lora_alpha", 256.0)?;
    let nothing = Vec::new();
    let learned = f.get("learn_param").and_then(Value::as_array).unwrap_or(&nothing);
    let mut on = Vec::new();
    for name in learned {
        match name.as_str() {
            Some("q") => on.push("q"),
            Some("k") => on.push("k"),
            Some("v") => on.push("v"),
            Some("o") => on.push("out"),
            Some("ffn") => on.extend(["up", "down"]),
            _ => return Err(f.error("learn_param", "expected only q, k, v, o and ffn")),
        }
    }
    Ok(Some(LoraConfig { rank, scale: alpha as f32 / rank as f32, on }))
}
