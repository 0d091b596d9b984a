//! Configurations of language models that write from left to right, and the models themselves.

use super::fields::Fields;
use super::{Family, Model};
use crate::Result;
use crate::language::gpt_neox::{self, GptNeox, GptNeoxConfig};
use crate::language::gpt2::{self, Gpt2, Gpt2Config};
use crate::language::llama::{self, Llama, LlamaConfig};
use crate::language::mpt::{self, Mpt, MptConfig};
use crate::language::opt::{self, Opt, OptConfig};
use ocelli_nn::checkpoint::Checkpoint;
use ocelli_nn::{Builder, Names, Parameters};
use ocelli_tensor::Activation;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// `config.json` of transformers' `LlamaForCausalLM`, or the part of a system's that describes it.
pub(super) fn llama(f: &Fields) -> Result<LlamaConfig> {
    let width = f.size("hidden_size", Some(4096))?;
    let activation = f.activation("hidden_act", "silu")?;
    if activation != Activation::Silu {
        return Err(f.error("hidden_act", "expected silu, the only gate that LLaMA has"));
    }
    if f.flag("mlp_bias", false)? {
        return Err(f.error("mlp_bias", "perceptrons with biases are not supported"));
    }
    let heads = f.size("num_attention_heads", Some(32))?;
    let kv_heads = f.size("num_key_value_heads", Some(heads))?;
    if !heads.is_multiple_of(kv_heads) {
        let reason = format!("{kv_heads} key heads do not divide {heads} heads");
        return Err(f.error("num_key_value_heads", reason));
    }
    let head_dim = match f.get("head_dim") {
        Some(_) => f.size("head_dim", None)?,
        None => width / f.heads("num_attention_heads", width, Some(heads))?,
    };
    if !head_dim.is_multiple_of(2) {
        let reason = format!("heads of {head_dim} values have no pairs to turn");
        return Err(f.error("head_dim", reason));
    }
    let (rope_theta, rope_factor) = rope(f)?;
    let has_bias = f.flag("attention_bias", false)?;
    Ok(LlamaConfig {
        vocab: f.size("vocab_size", Some(32_000))?,
        context_length: f.size("max_position_embeddings", Some(2048))?,
        width,
        depth: f.blocks("num_hidden_layers", Some(32))?,
        heads,
        kv_heads,
        head_dim,
        mlp_dim: f.size("intermediate_size", Some(11_008))?,
        norm_eps: f.epsilon("rms_norm_eps", 1e-6)?,
        rope_theta,
        rope_factor,
        qkv_bias: has_bias,
        out_bias: has_bias,
        has_tied_head: f.flag("tie_word_embeddings", false)?,
    })
}

/// Base and factor of the rotary angles: `rope_theta` and `rope_scaling`, or both together in
/// `rope_parameters`.
fn rope(f: &Fields) -> Result<(f64, f32)> {
    let theta = f.number("rope_theta", 10_000.0)?;
    let name = if f.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
    let s = f.section(name);
    let theta = s.number("rope_theta", theta)?;
    if theta <= 0.0 {
        return Err(f.error("rope_theta", format!("expected a positive number, got {theta}")));
    }
    let factor = match s.text("rope_type").or_else(|| s.text("type")).unwrap_or("default") {
        "default" => 1.0,
        "linear" => s.number("factor", 1.0)?,
        other => {
            let reason = format!("expected default or linear, got `{other}`");
            return Err(s.error("rope_type", reason));
        }
    };
    if factor < 1.0 {
        return Err(s.error("factor", format!("expected a number from 1, got {factor}")));
    }
    Ok((theta, factor as f32))
}

/// `config.json` of transformers' `GPT2LMHeadModel`.
pub(super) fn gpt2(f: &Fields) -> Result<Gpt2Config> {
    let width = f.size("n_embd", Some(768))?;
    for (field, usual) in [("scale_attn_weights", true), ("scale_attn_by_inverse_layer_idx", false)]
    {
        if f.flag(field, usual)? != usual {
            return Err(f.error(field, format!("expected {usual}, as in the published models")));
        }
    }
    Ok(Gpt2Config {
        vocab: f.size("vocab_size", Some(50_257))?,
        context_length: f.size("n_positions", Some(1024))?,
        width,
        depth: f.blocks("n_layer", Some(12))?,
        heads: f.heads("n_head", width, Some(12))?,
        mlp_dim: f.size("n_inner", Some(4 * width))?,
        norm_eps: f.epsilon("layer_norm_epsilon", 1e-5)?,
        activation: f.activation("activation_function", "gelu_new")?,
    })
}

/// `config.json` of transformers' `OPTForCausalLM`, or the part of a system's that describes it.
pub(super) fn opt(f: &Fields) -> Result<OptConfig> {
    let width = f.size("hidden_size", Some(768))?;
    for field in ["enable_bias", "layer_norm_elementwise_affine"] {
        if !f.flag(field, true)? {
            return Err(f.error(field, "expected true, as in the published models"));
        }
    }
    let norms_first = f.flag("do_layer_norm_before", true)?;
    Ok(OptConfig {
        vocab: f.size("vocab_size", Some(50_272))?,
        context_length: f.size("max_position_embeddings", Some(2048))?,
        word_width: f.size("word_embed_proj_dim", Some(width))?,
        width,
        depth: f.blocks("num_hidden_layers", Some(12))?,
        heads: f.heads("num_attention_heads", width, Some(12))?,
        mlp_dim: f.size("ffn_dim", Some(4 * width))?,
        activation: f.activation("activation_function", "relu")?,
        norms_first,
        has_final_norm: norms_first && !f.flag("_remove_final_layer_norm", false)?,
    })
}

/// `config.json` of transformers' `GPTNeoXForCausalLM`, or the part of a system's that describes it.
pub(super) fn gpt_neox(f: &Fields) -> Result<GptNeoxConfig> {
    let width = f.size("hidden_size", Some(6144))?;
    if !f.flag("attention_bias", true)? {
        return Err(f.error("attention_bias", "expected true, as in the published models"));
    }
    let heads = f.heads("num_attention_heads", width, Some(64))?;
    let head_dim = width / heads;
    let part = f.number("rotary_pct", 0.25)?;
    let rotary_dim = (head_dim as f64 * part) as usize;
    if !(2..=head_dim).contains(&rotary_dim) || !rotary_dim.is_multiple_of(2) {
        let reason = format!("{part} of heads of {head_dim} values is not a number of pairs");
        return Err(f.error("rotary_pct", reason));
    }
    let rope_theta = f.number("rotary_emb_base", f.number("rope_theta", 10_000.0)?)?;
    if rope_theta <= 0.0 {
        let reason = format!("expected a positive number, got {rope_theta}");
        return Err(f.error("rotary_emb_base", reason));
    }
    if f.get("rope_scaling").is_some() {
        return Err(f.error("rope_scaling", "scaled positions are not supported; leave it out"));
    }
    Ok(GptNeoxConfig {
        vocab: f.size("vocab_size", Some(50_432))?,
        context_length: f.size("max_position_embeddings", Some(2048))?,
        width,
        depth: f.blocks("num_hidden_layers", Some(44))?,
        heads,
        rotary_dim,
        rope_theta,
        mlp_dim: f.size("intermediate_size", Some(4 * width))?,
        activation: f.activation("hidden_act", "gelu")?,
        norm_eps: f.epsilon("layer_norm_eps", 1e-5)?,
        is_parallel: f.flag("use_parallel_residual", true)?,
        has_tied_head: f.flag("tie_word_embeddings", false)?,
    })
}

/// What the published MPTs have in common.
const MPT_ONLY: &[(&str, &[&str])] = &[
    ("alibi", &["true"]),
    ("attn_type", &["\"multihead_attention\""]),
    ("prefix_lm", &["false"]),
    ("qk_ln", &["false"]),
    ("attn_uses_sequence_id", &["false"]),
];
/// What is read of the section, and what changes nothing here.
const MPT_READ: &[&str] = &["alibi_bias_max", "attn_pdrop", "attn_impl", "model_type"];

/// `config.json` of transformers' `MptForCausalLM`, or the part of a system's that describes it.
pub(super) fn mpt(f: &Fields) -> Result<MptConfig> {
    let width = f.size("d_model", Some(2048))?;
    if !f.flag("no_bias", true)? {
        return Err(f.error("no_bias", "expected true, as in the published models"));
    }
    let attention = f.section("attn_config");
    // Clipped values and another scale are asked for by numbers.
    attention.check_keys(MPT_READ, &[], &[MPT_ONLY])?;
    if !attention.flag("alibi", true)? {
        return Err(attention.error("alibi", "learned positions are not supported; expected true"));
    }
    Ok(MptConfig {
        vocab: f.size("vocab_size", Some(50_368))?,
        context_length: f.size("max_seq_len", Some(2048))?,
        width,
        depth: f.blocks("n_layers", Some(24))?,
        heads: f.heads("n_heads", width, Some(16))?,
        mlp_dim: width * f.size("expansion_ratio", Some(4))?,
        norm_eps: f.epsilon("layer_norm_epsilon", 1e-5)?,
        alibi_max: alibi_max(&attention)?,
        has_query_key_norm: false,
    })
}

/// What the published `MosaicGPT`s have in common.
const MOSAIC_GPT_ONLY: &[(&str, bool)] =
    &[("no_bias", true), ("alibi", true), ("prefix_lm", false), ("attn_uses_sequence_id", false)];
/// What they do not change: clipped values, another scale of scores and of logits.
const MOSAIC_GPT_UNSET: &[&str] = &["attn_clip_qkv", "softmax_scale", "logit_scale"];

/// `config.json` of a `MosaicGPT`, as MPT was first published.
pub(super) fn mosaic_gpt(f: &Fields) -> Result<MptConfig> {
    for (field, expected) in MOSAIC_GPT_ONLY {
        if f.flag(field, false)? != *expected {
            return Err(f.error(field, format!("expected {expected}, as in the published models")));
        }
    }
    if let Some(field) = MOSAIC_GPT_UNSET.iter().find(|field| f.get(field).is_some()) {
        return Err(f.error(field, "expected null, as in the published models"));
    }
    let width = f.size("d_model", Some(2048))?;
    Ok(MptConfig {
        vocab: f.size("vocab_size", Some(50_368))?,
        context_length: f.size("max_seq_len", Some(2048))?,
        width,
        depth: f.blocks("n_layers", Some(24))?,
        heads: f.heads("n_heads", width, Some(16))?,
        mlp_dim: width * f.size("mlp_ratio", Some(4))?,
        norm_eps: 1e-5,
        alibi_max: alibi_max(f)?,
        has_query_key_norm: f.flag("attn_qk_ln", false)?,
    })
}

/// The most that a slope of ALiBi halves.
fn alibi_max(f: &Fields) -> Result<f32> {
    let most = f.number("alibi_bias_max", 8.0)?;
    if most <= 0.0 {
        let reason = format!("expected a positive number, got {most}");
        return Err(f.error("alibi_bias_max", reason));
    }
    Ok(most as f32)
}

/// Builds the language model of a directory.
pub(super) fn open(
    family: Family,
    config: &Value,
    weights: &Arc<Checkpoint>,
    file: &Path,
) -> Result<(Model, Parameters, Vec<Names>)> {
    let f = Fields::new(config, file);
    let has = |name: &str| weights.info(name).is_some();
    let load = |names: Vec<Names>| (Builder::load(Arc::clone(weights), names.clone()), names);
    match family {
        Family::Gpt2 => {
            let prefix = if has("transformer.wte.weight") { "transformer." } else { "" };
            let (builder, names) = load(vec![gpt2::names(prefix)]);
            let model = Gpt2::new(&gpt2(&f)?, &builder);
            Ok((Model::Gpt2(Box::new(model)), builder.finish()?, names))
        }
        Family::Opt => {
            let prefix = if has("decoder.embed_tokens.weight") { "" } else { "model." };
            let (builder, names) = load(vec![opt::names(prefix)]);
            let model = Opt::new(&opt(&f)?, &builder);
            Ok((Model::Opt(Box::new(model)), builder.finish()?, names))
        }
        Family::GptNeox => {
            let config = gpt_neox(&f)?;
            let (builder, names) = load(vec![gpt_neox::names("", &config)]);
            let model = GptNeox::new(&config, &builder);
            Ok((Model::GptNeox(Box::new(model)), builder.finish()?, names))
        }
        Family::Mpt => {
            let (config, names) = match f.text("model_type") {
                Some("mosaic_gpt") => (mosaic_gpt(&f)?, mpt::mosaic_gpt_names("")),
                _ => (mpt(&f)?, mpt::names("")),
            };
            let (builder, names) = load(vec![names]);
            let model = Mpt::new(&config, &builder);
            Ok((Model::Mpt(Box::new(model)), builder.finish()?, names))
        }
        _ => {
            let config = llama(&f)?;
            let (builder, names) = load(llama::names("", config.has_tied_head));
            let model = Llama::new(&config, &builder);
            Ok((Model::Llama(Box::new(model)), builder.finish()?, names))
        }
    }
}
