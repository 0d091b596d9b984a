//! Configurations of VisualGLM and of its parts.

use super::Model;
use super::blip2_config::Sizes;
use super::fields::Fields;
use crate::Result;
use crate::connector::qformer::QFormerConfig;
use crate::language::chatglm::{self, ChatGlm, ChatGlmConfig};
use crate::systems::visualglm::{
    self, ImageEncoder, ImageEncoderConfig, VisualGlm, VisualGlmConfig,
};
use crate::vision::eva_vit::EvaVitConfig;
use ocelli_nn::checkpoint::Checkpoint;
use ocelli_nn::{Builder, Names, Parameters};
use ocelli_tensor::Activation;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// A tensor of a whole model, of what sees alone, and of a language model.
const WHOLE: &str = "image_encoder.glm_proj.weight";
const EYES: &str = "glm_proj.weight";
const LANGUAGE: &str = "transformer.layers.0.attention.query_key_value.weight";

/// Side of the pictures where nothing is said, in pixels.
const USUAL_SIZE: usize = 224;

/// Whether tensors are of such a model.
pub(super) fn is_one(weights: &Checkpoint) -> bool {
    [WHOLE, EYES, LANGUAGE].iter().any(|name| weights.info(name).is_some())
}

/// Builds the model of a directory: whole, or one of its parts.
pub(super) fn open(
    config: &Value,
    weights: &Arc<Checkpoint>,
    file: &Path,
) -> Result<(Model, Parameters, Vec<Names>)> {
    let (f, sizes) = (Fields::new(config, file), Sizes::new(weights, file));
    let builder = |names: &Vec<Names>| Builder::load(Arc::clone(weights), names.clone());
    if sizes.has(EYES) {
        let eyes = eyes(&f, &sizes, "")?;
        let names = visualglm::encoder_names(&eyes, "");
        let b = builder(&names);
        let model = ImageEncoder::new(&eyes, &b);
        return Ok((Model::ImageEncoder(Box::new(model)), b.finish()?, names));
    }
    let text = language(&f)?;
    if !sizes.has(WHOLE) {
        let names = vec![chatglm::names(&text)];
        let b = builder(&names);
        let model = ChatGlm::new(&text, &b);
        return Ok((Model::ChatGlm(Box::new(model)), b.finish()?, names));
    }
    let sizes = VisualGlmConfig { eyes: eyes(&f, &sizes, "image_encoder.")?, text };
    let names = visualglm::names(&sizes);
    let b = builder(&names);
    let model = VisualGlm::new(&sizes, &b);
    Ok((Model::VisualGlm(Box::new(model)), b.finish()?, names))
}

/// Height and width of the pictures.
pub(super) fn image_size(config: &Value, file: &Path) -> Result<(usize, usize)> {
    Fields::new(config, file).section("eva_config").sides("image_size", USUAL_SIZE)
}

fn language(f: &Fields) -> Result<ChatGlmConfig> {
    if !f.flag("position_encoding_2d", true)? {
        return Err(f.error("position_encoding_2d", "expected true, as in the released models"));
    }
    for field in ["pre_seq_len", "quantization_bit"] {
        if f.get(field).and_then(Value::as_u64).is_some_and(|n| n > 0) {
            return Err(f.error(field, "is not supported; give the plain weights"));
        }
    }
    let usual = ChatGlmConfig::variant("6b").expect("it is published");
    let width = f.size("hidden_size", Some(usual.width))?;
    let heads = f.heads("num_attention_heads", width, Some(usual.heads))?;
    if !(width / heads).is_multiple_of(4) {
        let reason = format!("{heads} heads of {} values have no pairs in halves", width / heads);
        return Err(f.error("num_attention_heads", reason));
    }
    Ok(ChatGlmConfig {
        vocab: f.size("vocab_size", Some(usual.vocab))?,
        context_length: f.size("max_sequence_length", Some(usual.context_length))?,
        width,
        depth: f.blocks("num_layers", Some(usual.depth))?,
        heads,
        mlp_dim: f.size("inner_hidden_size", Some(usual.mlp_dim))?,
        norm_eps: f.epsilon("layernorm_epsilon", 1e-5)?,
        residual_scale: f.number("residual_alpha", f64::from(usual.residual_scale))? as f32,
        answer_ids: [
            f.id("gmask_token_id", usual.answer_ids[0])?,
            f.id("bos_token_id", usual.answer_ids[1])?,
        ],
    })
}

/// What sees; its names follow `prefix`, and its tensors tell what the sections leave out.
fn eyes(f: &Fields, sizes: &Sizes, prefix: &str) -> Result<ImageEncoderConfig> {
    let name = |name: &str| format!("{prefix}{name}");
    let (v, q) = (f.section("eva_config"), f.section("qformer_config"));
    for (section, order) in [(&v, "pre"), (&q, "post")] {
        if section.text("layernorm_order").is_some_and(|o| o != order) {
            return Err(section.error("layernorm_order", format!("expected {order}")));
        }
    }
    let [width, _, patch_size, _] = sizes.axes(&name("vit.mixins.patch_embedding.proj.weight"))?;
    let layer = "vit.transformer.layers.";
    let [mlp_dim, _] = sizes.axes(&name("vit.transformer.layers.0.mlp.dense_h_to_4h.weight"))?;
    let vision = EvaVitConfig {
        image_size: v.sides("image_size", USUAL_SIZE)?,
        patch_size,
        width,
        depth: sizes.count(&name(layer), ".input_layernorm.weight"),
        heads: v.heads("num_attention_heads", width, Some(16))?,
        mlp_dim,
        activation: Activation::Gelu,
        norm_eps: v.epsilon("layernorm_epsilon", 1e-6)?,
    };
    let layer = "qformer.transformer.layers.";
    let [queries, width] = sizes.axes(&name("qformer.transformer.word_embeddings.weight"))?;
    let [mlp_dim, _] = sizes.axes(&name(&format!("{layer}0.mlp.dense_h_to_4h.weight")))?;
    let depth = sizes.count(&name(layer), ".attention.dense.weight");
    let crosses = |i: &usize| sizes.has(&name(&format!("{layer}{i}.cross_attention.query.weight")));
    let qformer = QFormerConfig {
        queries,
        width,
        depth,
        heads: q.heads("num_attention_heads", width, Some((width / 64).max(1)))?,
        mlp_dim,
        activation: Activation::Gelu,
        norm_eps: q.epsilon("layernorm_epsilon", 1e-12)?,
        memory_width: vision.width,
        cross_every: (1..depth).find(crosses).unwrap_or(depth.max(1)),
        text: None,
    };
    let [text_width, _] = sizes.axes(&name("glm_proj.weight"))?;
    Ok(ImageEncoderConfig { vision, norm_eps: 1e-5, qformer, text_width })
}
