//! Configurations of Qwen-VL and of its adapter.

use super::blip2_config::Sizes;
use super::fields::Fields;
use super::{Model, read_json};
use crate::Result;
use crate::connector::position_resampler::{self, PositionResampler, PositionResamplerConfig};
use crate::language::llama::LlamaConfig;
use crate::language::qwen::QwenConfig;
use crate::systems::qwen_vl::{self, QwenVl, QwenVlConfig};
use crate::vision::qwen_vit::QwenVitConfig;
use ocelli_nn::checkpoint::Checkpoint;
use ocelli_nn::{Axis, Builder, Names, Parameters};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// A tensor that a Qwen-VL has, and one of its adapter alone.
pub(super) const TOWER: &str = "transformer.visual.conv1.weight";
pub(super) const ADAPTER: &str = "attn.in_proj_weight";

/// Side of the pictures where nothing is said, in pixels.
const USUAL_SIZE: usize = 448;
/// How far the tokens of a conversation are before the one that begins a picture: the end of a text, the
/// start and the end of a message.
const BEFORE_PICTURES: [u32; 3] = [214, 213, 212];

/// Builds the model of a directory, whole or the adapter alone.
pub(super) fn open(
    config: &Value,
    weights: &Arc<Checkpoint>,
    file: &Path,
) -> Result<(Model, Parameters, Vec<Names>)> {
    let (f, sizes) = (Fields::new(config, file), Sizes::new(weights, file));
    if weights.info(ADAPTER).is_some() {
        let names = vec![position_resampler::names("")];
        let builder = Builder::load(Arc::clone(weights), names.clone());
        let [queries, width] = sizes.axes("query")?;
        let adapter = PositionResamplerConfig {
            queries,
            width,
            heads: f.heads("num_heads", width, Some((width / 128).max(1)))?,
            memory_width: f.size("kv_dim", Some(width))?,
            norm_eps: f.epsilon("norm_eps", 1e-6)?,
        };
        let model = PositionResampler::new(&adapter, &builder);
        return Ok((Model::PositionResampler(Box::new(model)), builder.finish()?, names));
    }
    let v = f.section("visual");
    let width = v.size("width", Some(1664))?;
    let ratio = v.number("mlp_ratio", 4.9231)?;
    let text = language(&f)?;
    let output = v.size("output_dim", Some(text.llama.width))?;
    if output != text.llama.width {
        let reason = format!("expected the hidden_size of {}, got {output}", text.llama.width);
        return Err(v.error("output_dim", reason));
    }
    let vision = QwenVitConfig {
        image_size: v.sides("image_size", USUAL_SIZE)?,
        patch_size: v.size("patch_size", Some(14))?,
        width,
        depth: v.blocks("layers", Some(48))?,
        heads: v.heads("heads", width, Some(16))?,
        mlp_dim: ((width as f64 * ratio) as usize).clamp(1, 1 << 20),
    };
    let resampler = PositionResamplerConfig {
        queries: v.size("n_queries", Some(256))?,
        width: output,
        heads: (output / 128).max(1),
        memory_width: width,
        norm_eps: 1e-6,
    };
    let is_chat = generation(file)?.get("chat_format").and_then(Value::as_str) == Some("chatml");
    let sizes = QwenVlConfig { vision, resampler, text, is_chat };
    let names = qwen_vl::names(&sizes);
    let axis = |part, length: usize, name: &str, field| Axis {
        part,
        length,
        symbol: format!("{name}={length}"),
        field,
    };
    let axes = vec![
        axis("vision.", sizes.vision.width, "vision", "visual.width"),
        axis("vision.", sizes.vision.mlp_dim, "mlp", "visual.mlp_ratio"),
        axis("resampler.", sizes.resampler.queries, "queries", "visual.n_queries"),
        axis("language.", sizes.text.llama.width, "hidden", "hidden_size"),
        axis("language.", sizes.text.llama.vocab, "vocab", "vocab_size"),
        axis("language.", sizes.text.llama.mlp_dim, "half of intermediate", "intermediate_size"),
    ];
    let builder = Builder::load_with(Arc::clone(weights), names.clone(), axes);
    let model = QwenVl::new(&sizes, &builder);
    Ok((Model::QwenVl(Box::new(model)), builder.finish()?, names))
}

/// What `generation_config.json` beside a configuration says; nothing without one.
fn generation(file: &Path) -> Result<Value> {
    let beside = file.parent().unwrap_or(Path::new(".")).join("generation_config.json");
    if beside.is_file() { read_json(&beside) } else { Ok(Value::Null) }
}

/// Height and width of the pictures.
pub(super) fn image_size(config: &Value, file: &Path) -> Result<(usize, usize)> {
    Fields::new(config, file).section("visual").sides("image_size", USUAL_SIZE)
}

/// Tokens that end a text or a message.
pub(super) fn end_tokens(config: &Value) -> Vec<u32> {
    let start = config["visual"]["image_start_id"].as_u64().and_then(|id| u32::try_from(id).ok());
    let tokens = BEFORE_PICTURES.map(|before| start?.checked_sub(before));
    tokens.into_iter().flatten().collect()
}

fn language(f: &Fields) -> Result<QwenConfig> {
    for (field, usual) in [("no_bias", true), ("scale_attn_weights", true)] {
        if f.flag(field, usual)? != usual {
            return Err(f.error(field, format!("expected {usual}, as in the published models")));
        }
    }
    if f.flag("tie_word_embeddings", false)? {
        return Err(f.error("tie_word_embeddings", "expected false, as in the published models"));
    }
    if f.number("rotary_pct", 1.0)?.total_cmp(&1.0).is_ne() {
        return Err(f.error("rotary_pct", "expected 1, as in the published models"));
    }
    let width = f.size("hidden_size", Some(4096))?;
    let heads = f.heads("num_attention_heads", width, Some(32))?;
    let head_dim = f.size("kv_channels", Some(width / heads))?;
    if head_dim * heads != width || !head_dim.is_multiple_of(2) {
        let reason = format!("{heads} heads of {head_dim} values do not make a width of {width}");
        return Err(f.error("kv_channels", reason));
    }
    let base = f.number("rotary_emb_base", 10_000.0)?;
    if base <= 0.0 {
        return Err(f.error("rotary_emb_base", format!("expected a positive number, got {base}")));
    }
    let llama = LlamaConfig {
        vocab: f.size("vocab_size", Some(151_936))?,
        context_length: f.size("max_position_embeddings", Some(8192))?,
        width,
        depth: f.blocks("num_hidden_layers", Some(32))?,
        heads,
        kv_heads: heads,
        head_dim,
        mlp_dim: (f.size("intermediate_size", Some(22_016))? / 2).max(1),
        norm_eps: f.epsilon("layer_norm_epsilon", 1e-6)?,
        rope_theta: base,
        rope_factor: 1.0,
        qkv_bias: true,
        out_bias: false,
        has_tied_head: false,
    };
    Ok(QwenConfig {
        llama,
        trained_length: f.size("seq_length", Some(2048))?,
        has_dynamic_ntk: f.flag("use_dynamic_ntk", true)?,
        has_log_scaling: f.flag("use_logn_attn", true)?,
    })
}
