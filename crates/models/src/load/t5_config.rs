//! Configurations of T5, T5 v1.1 and Flan-T5.

use super::Model;
use super::fields::Fields;
use crate::Result;
use crate::language::t5::{self, T5, T5Config};
use ocelli_nn::checkpoint::Checkpoint;
use ocelli_nn::{Builder, Names, Parameters};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// Builds the model.
pub(super) fn open(
    config: &Value,
    weights: &Arc<Checkpoint>,
    file: &Path,
) -> Result<(Model, Parameters, Vec<Names>)> {
    let has_head = weights.info("lm_head.weight").is_some();
    let sizes = transformers(&Fields::new(config, file), has_head)?;
    let names = vec![t5::names("", &sizes)];
    let b = Builder::load(Arc::clone(weights), names.clone());
    let model = T5::new(&sizes, &b);
    Ok((Model::T5(Box::new(model)), b.finish()?, names))
}

/// `config.json` of transformers' `T5ForConditionalGeneration`, or that section of a system's.
/// `has_own_head` says whether the weights hold a table for the head.
pub(super) fn transformers(f: &Fields, has_own_head: bool) -> Result<T5Config> {
    let depth = f.blocks("num_layers", Some(6))?;
    let projection = f.text("feed_forward_proj").unwrap_or("relu");
    let (gate, activation) = match projection.split_once('-') {
        // The first files of version 1.1 name the approximation so.
        Some((gate, "gelu")) => (Some(gate), "gelu_new"),
        Some((gate, activation)) => (Some(gate), activation),
        None => (None, projection),
    };
    if gate.is_some_and(|gate| gate != "gated") {
        let reason =
            format!("expected an activation, with `gated-` before it or not, got `{projection}`");
        return Err(f.error("feed_forward_proj", reason));
    }
    let activation = f.activation("dense_act_fn", activation)?;
    let buckets = f.size("relative_attention_num_buckets", Some(32))?;
    if !buckets.is_multiple_of(4) {
        let reason = format!("expected a multiple of 4, got {buckets}");
        return Err(f.error("relative_attention_num_buckets", reason));
    }
    let max_distance = f.size("relative_attention_max_distance", Some(128))?;
    if max_distance <= buckets / 2 {
        let reason = format!("expected more than half of {buckets} buckets, got {max_distance}");
        return Err(f.error("relative_attention_max_distance", reason));
    }
    let is_tied = f.flag("tie_word_embeddings", true)?;
    Ok(T5Config {
        vocab: f.size("vocab_size", Some(32_128))?,
        width: f.size("d_model", Some(512))?,
        encoder_depth: depth,
        decoder_depth: f.blocks("num_decoder_layers", Some(depth))?,
        heads: f.size("num_heads", Some(8))?,
        head_dim: f.size("d_kv", Some(64))?,
        mlp_dim: f.size("d_ff", Some(2048))?,
        activation,
        has_gate: f.flag("is_gated_act", gate.is_some())?,
        buckets,
        max_distance,
        norm_eps: f.epsilon("layer_norm_epsilon", 1e-6)?,
        has_own_head: has_own_head && !is_tied,
        scales_head: is_tied,
        start_id: f.id("decoder_start_token_id", 0)?,
        pad_id: f.id("pad_token_id", 0)?,
    })
}
