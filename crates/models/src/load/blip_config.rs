//! Configurations of BLIP.

use super::blip2_config::Sizes;
use super::fields::Fields;
use super::{Family, Model};
use crate::Result;
use crate::language::med::MedConfig;
use crate::systems::blip::{self, Blip, BlipConfig, BlipTokens};
use crate::systems::blip_pretraining::{ALPHA, MOMENTUM};
use crate::vision::position::PositionRule;
use crate::vision::vit::{Head, VitConfig};
use ocelli_nn::checkpoint::Checkpoint;
use ocelli_nn::{Builder, Names, Parameters};
use ocelli_tensor::Activation;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

const ENCODER: &str = "text_encoder.";
const DECODER: &str = "text_decoder.bert.";
/// Of every text model, behind its prefix.
const WORDS: &str = "embeddings.word_embeddings.weight";

/// Whether weights without a telling configuration are those of the original code.
pub(super) fn is_original(weights: &Checkpoint) -> bool {
    let has = |name: &str| weights.info(name).is_some();
    let writes_or_reads = has(&format!("{ENCODER}{WORDS}")) || has(&format!("{DECODER}{WORDS}"));
    has("visual_encoder.cls_token") && writes_or_reads
}

/// Builds a model of transformers' layout, or of the original's.
pub(super) fn open(
    is_original: bool,
    config: &Value,
    weights: &Arc<Checkpoint>,
    file: &Path,
) -> Result<(Model, Parameters, Vec<Names>)> {
    let (sizes, names) = if is_original {
        let sizes = original(config, weights, file)?;
        let pointers = ["queue_ptr", "ptr_queue"];
        let next = pointers.into_iter().find(|name| weights.info(name).is_some());
        let names = blip::original_names(&sizes, next.unwrap_or(pointers[0]));
        (sizes, names)
    } else {
        let sizes = transformers(config, weights, file)?;
        let names = blip::transformers_names(&sizes);
        (sizes, names)
    };
    let builder = Builder::load(Arc::clone(weights), names.clone());
    let model = Blip::new(&sizes, &builder);
    let parameters = builder.finish()?;
    model.freeze_copies(&parameters);
    Ok((Model::Blip(Box::new(model)), parameters, names))
}

/// Height and width of a picture, in pixels; `weights` are read only if there is no configuration.
pub(super) fn image_size(
    family: Family,
    config: &Value,
    file: &Path,
    weights: &dyn Fn() -> Result<Checkpoint>,
) -> Result<(usize, usize)> {
    let f = Fields::new(config, file);
    if family == Family::TransformersBlip {
        return f.section("vision_config").sides("image_size", 384);
    }
    match f.section("vit").get("img_size") {
        Some(_) => f.section("vit").sides("img_size", 384),
        None => Ok(original(config, &weights()?, file)?.vision.image_size),
    }
}

/// Tokens of a text at most, by the configuration of either layout.
pub(super) fn context_length(config: &Value, file: &Path) -> Result<usize> {
    let f = Fields::new(config, file);
    let section = if f.get("med").is_some() { "med" } else { "text_config" };
    f.section(section).size("max_position_embeddings", Some(512))
}

/// `config.json` of transformers; which parts there are is for the weights to say.
fn transformers(config: &Value, weights: &Checkpoint, file: &Path) -> Result<BlipConfig> {
    let root = Fields::new(config, file);
    let f = root.section("vision_config");
    let width = f.size("hidden_size", Some(768))?;
    if f.activation("hidden_act", "gelu")? != Activation::Gelu {
        return Err(f.error("hidden_act", "expected gelu, as every published BLIP has it"));
    }
    let vision = VitConfig {
        image_size: f.sides("image_size", 384)?,
        patch_size: f.size("patch_size", Some(16))?,
        width,
        depth: f.blocks("num_hidden_layers", Some(12))?,
        heads: f.heads("num_attention_heads", width, Some(12))?,
        mlp_dim: f.size("intermediate_size", Some(3072))?,
        norm_eps: f.epsilon("layer_norm_eps", 1e-5)?,
        ..tower()
    };
    let f = root.section("text_config");
    let text_width = f.size("hidden_size", Some(768))?;
    let text = MedConfig {
        vocab: f.size("vocab_size", Some(30_524))?,
        context_length: f.size("max_position_embeddings", Some(512))?,
        width: text_width,
        depth: f.blocks("num_hidden_layers", Some(12))?,
        heads: f.heads("num_attention_heads", text_width, Some(8))?,
        mlp_dim: f.size("intermediate_size", Some(3072))?,
        activation: f.activation("hidden_act", "gelu")?,
        norm_eps: f.epsilon("layer_norm_eps", 1e-12)?,
        memory_width: width,
        is_decoder: false,
    };
    let usual = BlipTokens::default();
    let decode = f.id("bos_token_id", usual.decode)?;
    let has = |prefix: &str| weights.info(&format!("{prefix}{WORDS}")).is_some();
    // A decoder that has an encoder before it looks at what that one has read.
    let (encodes, writer) = (has(ENCODER), MedConfig { is_decoder: true, ..text.clone() });
    let memory_width = if encodes { text_width } else { width };
    Ok(BlipConfig {
        vision,
        encoder: encodes.then_some(text),
        decoder: has(DECODER).then_some(MedConfig { memory_width, ..writer }),
        is_shared: false,
        embed_dim: if weights.info("itm_head.weight").is_some() {
            Some(root.size("image_text_hidden_size", Some(256))?)
        } else {
            None
        },
        queue: None,
        label_smoothing: f.number("label_smoothing", 0.0)? as f32,
        momentum: MOMENTUM,
        alpha: ALPHA,
        tokens: BlipTokens {
            decode,
            // The two were added to the vocabulary of BERT one after the other.
            encode: f.id("enc_token_id", decode.saturating_add(1))?,
            separator: f.id("sep_token_id", usual.separator)?,
            pad: f.id("pad_token_id", usual.pad)?,
        },
    })
}

/// What every vision tower has.
fn tower() -> VitConfig {
    VitConfig {
        image_size: (384, 384),
        patch_size: 16,
        channels: 3,
        width: 768,
        depth: 12,
        heads: 12,
        mlp_dim: 3072,
        norm_eps: 1e-6,
        qkv_bias: true,
        has_class_token: true,
        has_layer_scale: false,
        position_rule: PositionRule::Transformers,
        head: Head::None,
    }
}

/// Sizes from tensors, as the original code writes no configuration beside them; `config` may hold
/// what they do not tell.
fn original(config: &Value, weights: &Checkpoint, file: &Path) -> Result<BlipConfig> {
    let (root, sizes) = (Fields::new(config, file), Sizes::new(weights, file));
    let f = root.section("vit");
    let [width, _, patch_size, _] = sizes.axes("visual_encoder.patch_embed.proj.weight")?;
    let [tokens, _] = sizes.axes("visual_encoder.pos_embed")?;
    let [mlp_dim, _] = sizes.axes("visual_encoder.blocks.0.mlp.fc1.weight")?;
    let vision = VitConfig {
        image_size: Sizes::image_size(tokens, patch_size),
        patch_size,
        width,
        depth: sizes.count("visual_encoder.blocks.", ".norm1.weight"),
        heads: Sizes::heads(&f, ["num_heads", "heads"], width, (width / 64).max(1))?,
        mlp_dim,
        norm_eps: f.epsilon("norm_eps", 1e-6)?,
        ..tower()
    };
    let f = root.section("med");
    let text = |prefix: &str, is_decoder: bool| -> Result<MedConfig> {
        let name = |name: &str| format!("{prefix}{name}");
        let [vocab, width] = sizes.axes(&name(WORDS))?;
        let [context_length, _] = sizes.axes(&name("embeddings.position_embeddings.weight"))?;
        let [mlp_dim, _] = sizes.axes(&name("encoder.layer.0.intermediate.dense.weight"))?;
        let [_, memory_width] =
            sizes.axes(&name("encoder.layer.0.crossattention.self.key.weight"))?;
        Ok(MedConfig {
            vocab,
            context_length,
            width,
            depth: sizes.count(&name("encoder.layer."), ".attention.self.query.weight"),
            heads: f.heads("num_attention_heads", width, Some((width / 64).max(1)))?,
            mlp_dim,
            activation: f.activation("hidden_act", "gelu")?,
            norm_eps: f.epsilon("layer_norm_eps", 1e-12)?,
            memory_width,
            is_decoder,
        })
    };
    let part = |prefix: &str, is_decoder: bool| {
        let has_part = sizes.has(&format!("{prefix}{WORDS}"));
        has_part.then(|| text(prefix, is_decoder)).transpose()
    };
    let (encoder, decoder) = (part(ENCODER, false)?, part(DECODER, true)?);
    let embed_dim = if sizes.has("itm_head.weight") {
        let [embed_dim, _] = sizes.axes("vision_proj.weight")?;
        Some(embed_dim)
    } else {
        None
    };
    let queue = if sizes.has("image_queue") {
        let [_, queue] = sizes.axes("image_queue")?;
        Some(queue)
    } else {
        None
    };
    let usual = BlipTokens::default();
    let decode = root.id("bos_token_id", usual.decode)?;
    Ok(BlipConfig {
        // Only pre-training holds the parts that encoder and decoder have in common as one.
        is_shared: encoder.is_some() && decoder.is_some() && embed_dim.is_some(),
        vision,
        encoder,
        decoder,
        embed_dim,
        queue,
        label_smoothing: root.number("label_smoothing", 0.1)? as f32,
        momentum: root.number("momentum", f64::from(MOMENTUM))? as f32,
        alpha: root.number("alpha", f64::from(ALPHA))? as f32,
        tokens: BlipTokens {
            decode,
            encode: root.id("enc_token_id", decode.saturating_add(1))?,
            separator: root.id("sep_token_id", usual.separator)?,
            pad: root.id("pad_token_id", usual.pad)?,
        },
    })
}
