//! Configurations of LLaVA, of transformers and of the original code.

use super::fields::Fields;
use super::{Model, causal_config, read_json};
use crate::systems::llava::{self, Llava, LlavaConfig, Prefixes};
use crate::systems::talker::Reading;
use crate::vision::clip_vit::ClipVitConfig;
use crate::vision::position::PositionRule;
use crate::{Error, Result};
use ocelli_data::image::Processor;
use ocelli_nn::checkpoint::Checkpoint;
use ocelli_nn::{Axis, Builder, Names, Parameters};
use ocelli_tensor::Activation;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Tokens around a picture where `mm_use_im_start_end` says so, as in the first weights.
const IMAGE_ENDS: [&str; 2] = ["<im_start>", "<im_end>"];

/// Whether a configuration is one of the original code.
pub(super) fn is_original(config: &Value) -> bool {
    config.get("mm_vision_tower").is_some() && config.get("vision_config").is_none()
}

/// The directory of the tower, which the original code keeps apart.
///
/// # Errors
/// If it is neither beside the model nor where the configuration says.
pub(super) fn tower_dir(config: &Value, file: &Path) -> Result<PathBuf> {
    let f = Fields::new(config, file);
    let name = f.text("mm_vision_tower").unwrap_or_default();
    let dir = file.parent().unwrap_or(Path::new("."));
    let places = [dir.join(name), PathBuf::from(name), dir.join("vision_tower")];
    places.into_iter().find(|place| place.join("config.json").is_file()).ok_or_else(|| {
        let reason = format!(
            "the frozen tower `{name}` is not part of this checkpoint and not beside it; fetch that \
             CLIP and put its files into {}",
            dir.join("vision_tower").display()
        );
        f.error("mm_vision_tower", reason)
    })
}

/// Builds the model of a directory.
pub(super) fn open(
    config: &Value,
    weights: &Arc<Checkpoint>,
    file: &Path,
) -> Result<(Model, Parameters, Vec<Names>)> {
    let f = Fields::new(config, file);
    let is_original = is_original(config);
    let find = |what: &str, name: &str, places: &[&'static str]| {
        let holds = |place: &&&str| weights.info(&format!("{place}{name}")).is_some();
        places.iter().find(holds).copied().ok_or_else(|| {
            let wanted: Vec<String> = places.iter().map(|p| format!("{p}{name}")).collect();
            let reason =
                format!("the weights hold no {what}; expected a tensor {}", wanted.join(" or "));
            f.error("model_type", reason)
        })
    };
    let language = find("language model", "embed_tokens.weight", &LANGUAGE)?;
    let projector = if is_original {
        "model.mm_projector."
    } else {
        find("projector", "linear_1.weight", &PROJECTOR)?
    };
    let tower = match find("tower", "embeddings.class_embedding", &TOWER) {
        // Of shapes alone there is no tower beside a file of the original code.
        Err(_) if !weights.has_values() && is_original => "",
        found => found?,
    };
    let sizes = if !is_original {
        transformers(&f)?
    } else if weights.has_values() {
        original(&f, own_tower(config, file)?)?
    } else {
        original(&f, published_tower(&f)?)?
    };
    let has = |name: &str| weights.info(name).is_some();
    let head = if has("language_model.lm_head.weight")
        || (language == LANGUAGE[0] && !has("lm_head.weight"))
    {
        "language_model."
    } else {
        ""
    };
    let prefixes = Prefixes { tower, projector, language, head };
    let names =
        llava::names(&prefixes, is_original, sizes.projector_depth, sizes.text.has_tied_head);
    let builder = Builder::load_with(Arc::clone(weights), names.clone(), axes(&sizes, is_original));
    if !weights.has_values() && is_original {
        // Of shapes alone there is no tower beside the file; its parameters are not the file's.
        let model = Llava::new(&sizes, &Builder::zeros().at("vision"), &builder);
        return Ok((Model::Llava(Box::new(model)), builder.finish()?, names));
    }
    let model = Llava::new(&sizes, &builder.at("vision"), &builder);
    Ok((Model::Llava(Box::new(model)), builder.finish()?, names))
}

/// What stands before the parts, as published, as written by transformers 5, and as in LLaVA 1.6.
pub(super) const LANGUAGE: [&str; 3] = ["language_model.model.", "model.language_model.", "model."];
pub(super) const PROJECTOR: [&str; 2] = ["multi_modal_projector.", "model.multi_modal_projector."];
pub(super) const TOWER: [&str; 5] = [
    "vision_tower.vision_model.",
    "vision_tower.",
    "model.vision_tower.vision_model.",
    "model.vision_tower.",
    "model.vision_tower.vision_tower.vision_model.",
];

/// `config.json` of transformers' `LlavaForConditionalGeneration`.
fn transformers(f: &Fields) -> Result<LlavaConfig> {
    let vision = tower(&f.section("vision_config"))?;
    let layers = match f.get("vision_feature_layer") {
        Some(Value::Array(layers)) => layers.iter().map(Value::as_i64).collect(),
        Some(layer) => Some(vec![layer.as_i64().unwrap_or(0)]),
        None => Some(vec![-2]),
    };
    let layers = layers.unwrap_or_default();
    let keeps_class = match f.text("vision_feature_select_strategy").unwrap_or("default") {
        "default" => false,
        "full" => true,
        other => {
            let reason = format!("expected default or full, got `{other}`");
            return Err(f.error("vision_feature_select_strategy", reason));
        }
    };
    let mut text = causal_config::llama(&f.section("text_config"))?;
    text.has_tied_head |= f.flag("tie_word_embeddings", false)?;
    Ok(LlavaConfig {
        states: states(f, "vision_feature_layer", &layers, vision.depth)?,
        vision,
        keeps_class,
        projector_depth: 2,
        projector_bias: f.flag("multimodal_projector_bias", true)?,
        projector_activation: f.activation("projector_hidden_act", "gelu")?,
        text,
        template: "llava_hf",
        reading: Reading { goes_on: true, around: None },
    })
}

/// The template that the original code chooses for the published models: the first version has a
/// projector of one layer.
fn original_template(projector_depth: usize) -> &'static str {
    if projector_depth > 1 { "vicuna_v1" } else { "llava_v1" }
}

/// How the original code prepares pictures: as their tower's files say, or as CLIP, padded to a
/// square in the tower's mean colour where the configuration says so.
pub(super) fn processor(config: &Value, file: &Path) -> Result<Processor> {
    let at = tower_dir(config, file)?.join("preprocessor_config.json");
    let processor = if at.is_file() {
        let text = read_json(&at)?.to_string();
        let picture = |source| Error::Data(ocelli_data::Error::Picture { path: at, source });
        Processor::from_hf_json_or(&text, "CLIPImageProcessor").map_err(picture)?
    } else {
        Processor::openai(own_tower(config, file)?.image_size.0)
    };
    let is_padded = config.get("image_aspect_ratio").and_then(Value::as_str) == Some("pad");
    Ok(if is_padded { processor.padded_to_square() } else { processor })
}

/// The tower of the original code, by its own `config.json`.
fn own_tower(config: &Value, file: &Path) -> Result<ClipVitConfig> {
    let tower_file = tower_dir(config, file)?.join("config.json");
    let tower_config = read_json(&tower_file)?;
    let whole = Fields::new(&tower_config, &tower_file);
    let has_section = whole.get("vision_config").is_some();
    tower(&if has_section { whole.section("vision_config") } else { whole })
}

/// The tower that every published model has, ViT-L/14 at 336 pixels.
fn published_tower(f: &Fields) -> Result<ClipVitConfig> {
    let width = f.size("mm_hidden_size", Some(1024))?;
    let nothing = Value::Null;
    let usual = tower(&f.with(&nothing))?;
    Ok(ClipVitConfig { width, heads: (width / 64).max(1), mlp_dim: 4 * width, ..usual })
}

/// `config.json` of the original code with a tower of these sizes.
fn original(f: &Fields, vision: ClipVitConfig) -> Result<LlavaConfig> {
    let kind = f.text("mm_projector_type").unwrap_or("linear");
    let depth = match kind.strip_prefix("mlp").and_then(|rest| rest.strip_suffix("x_gelu")) {
        None if kind == "linear" => Some(1),
        None => None,
        Some(depth) => depth.parse().ok().filter(|n| (1..=4).contains(n)),
    };
    let projector_depth = depth.ok_or_else(|| {
        let reason = format!("expected linear or mlp2x_gelu to mlp4x_gelu, got `{kind}`");
        f.error("mm_projector_type", reason)
    })?;
    let keeps_class = match f.text("mm_vision_select_feature").unwrap_or("patch") {
        "patch" => false,
        "cls_patch" => true,
        other => {
            let reason = format!("expected patch or cls_patch, got `{other}`");
            return Err(f.error("mm_vision_select_feature", reason));
        }
    };
    let has_ends = f.flag("mm_use_im_start_end", false)?;
    let layer = f.get("mm_vision_select_layer").and_then(Value::as_i64).unwrap_or(-2);
    Ok(LlavaConfig {
        states: states(f, "mm_vision_select_layer", &[layer], vision.depth)?,
        vision,
        keeps_class,
        projector_depth,
        projector_bias: true,
        projector_activation: Activation::Gelu,
        text: causal_config::llama(f)?,
        template: if has_ends { "llava_v0" } else { original_template(projector_depth) },
        reading: Reading { goes_on: false, around: has_ends.then_some(IMAGE_ENDS) },
    })
}

/// What the axes of the parameters are, and which fields say so.
fn axes(c: &LlavaConfig, is_original: bool) -> Vec<Axis> {
    let axis = |part, length, name: &str, field| Axis {
        part,
        length,
        symbol: format!("{name}={length}"),
        field,
    };
    let field = |original, transformers| if is_original { original } else { transformers };
    let (vision, text) = (&c.vision, &c.text);
    let hidden = field("hidden_size", "text_config.hidden_size");
    let seen = field("mm_vision_tower", "vision_config.hidden_size");
    let patches = vision.tokens() - 1;
    let tokens = format!("patches={patches}+1");
    vec![
        axis("projector.", text.width, "hidden", hidden),
        axis("projector.", c.states.len() * vision.width, "vision", seen),
        axis("language.", text.width, "hidden", hidden),
        axis("language.", text.vocab, "vocab", field("vocab_size", "text_config.vocab_size")),
        axis(
            "language.",
            text.mlp_dim,
            "intermediate",
            field("intermediate_size", "text_config.intermediate_size"),
        ),
        axis(
            "language.",
            text.kv_heads * text.head_dim,
            "kv_heads*head_dim",
            field("num_key_value_heads", "text_config.num_key_value_heads"),
        ),
        axis("vision.", vision.width, "vision", seen),
        Axis {
            part: "vision.",
            length: patches + 1,
            symbol: tokens,
            field: field("mm_vision_tower", "vision_config.image_size"),
        },
        axis(
            "vision.",
            vision.mlp_dim,
            "intermediate",
            field("mm_vision_tower", "vision_config.intermediate_size"),
        ),
    ]
}

/// Hidden states by their numbers, negative ones from the end.
fn states(f: &Fields, field: &str, layers: &[i64], depth: usize) -> Result<Vec<usize>> {
    let state = |layer: &i64| {
        let from_end = depth as i64 + 1 + layer;
        let state = if *layer < 0 { from_end } else { *layer };
        usize::try_from(state).ok().filter(|s| *s <= depth)
    };
    let states: Option<Vec<usize>> = layers.iter().map(state).collect();
    states.filter(|s| !s.is_empty()).ok_or_else(|| {
        let last = -(depth as i64) - 1;
        f.error(field, format!("expected hidden states from {last} to {depth}, got {layers:?}"))
    })
}

/// The part of a configuration that describes CLIP's tower.
fn tower(f: &Fields) -> Result<ClipVitConfig> {
    let width = f.size("hidden_size", Some(1024))?;
    let activation = f.activation("hidden_act", "quick_gelu")?;
    let quick_gelu = match activation {
        Activation::QuickGelu => true,
        Activation::Gelu => false,
        _ => return Err(f.error("hidden_act", "expected quick_gelu or gelu")),
    };
    Ok(ClipVitConfig {
        image_size: f.sides("image_size", 336)?,
        patch_size: f.size("patch_size", Some(14))?,
        width,
        depth: f.blocks("num_hidden_layers", Some(24))?,
        heads: f.heads("num_attention_heads", width, Some(16))?,
        mlp_dim: f.size("intermediate_size", Some(4096))?,
        quick_gelu,
        norm_eps: f.epsilon("layer_norm_eps", 1e-5)?,
        position_rule: PositionRule::Transformers,
    })
}
