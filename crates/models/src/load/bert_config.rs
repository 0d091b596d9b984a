//! Configurations of BERT checkpoints.

use super::fields::Fields;
use crate::Result;
use crate::language::bert::BertConfig;
use serde_json::Value;
use std::path::Path;

/// `config.json` of transformers' `BertModel` and `BertForMaskedLM`; which heads there are is for
/// the weights to say.
pub(super) fn transformers(config: &Value, file: &Path) -> Result<BertConfig> {
    let f = Fields::new(config, file);
    let width = f.size("hidden_size", Some(768))?;
    for (field, known) in [("hidden_act", "gelu"), ("position_embedding_type", "absolute")] {
        if let Some(other) = f.text(field).filter(|v| *v != known) {
            return Err(f.error(field, format!("expected {known}, got `{other}`")));
        }
    }
    for field in ["is_decoder", "add_cross_attention"] {
        if f.flag(field, false)? {
            return Err(f.error(field, "a BERT that writes text is not supported"));
        }
    }
    Ok(BertConfig {
        vocab: f.size("vocab_size", Some(30_522))?,
        context_length: f.size("max_position_embeddings", Some(512))?,
        token_types: f.size("type_vocab_size", Some(2))?,
        width,
        depth: f.blocks("num_hidden_layers", Some(12))?,
        heads: f.heads("num_attention_heads", width, Some(12))?,
        mlp_dim: f.size("intermediate_size", Some(4 * width))?,
        norm_eps: f.epsilon("layer_norm_eps", 1e-12)?,
        has_pooler: false,
        has_language_head: false,
    })
}
