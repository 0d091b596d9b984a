//! Language models in GGUF files: sizes and tokenizer are in the metadata of the file.

use super::Model;
use super::fields::Fields;
use crate::language::llama::{self, Llama, LlamaConfig};
use crate::{Error, Result};
use ocelli_data::text::{BytePairParts, NamedTokens, Piece, PieceKind, ScoredParts, Tokenizer};
use ocelli_nn::checkpoint::{Checkpoint, gguf};
use ocelli_nn::{Builder, Names, Parameters};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The file of this format at `path`: itself, or the only one of a directory without a
/// configuration.
pub(super) fn file_at(path: &Path) -> Option<PathBuf> {
    if path.is_file() {
        return gguf::is_gguf(path).then(|| path.to_owned());
    }
    if super::CONFIGS.iter().any(|name| path.join(name).is_file()) {
        return None;
    }
    let files = std::fs::read_dir(path).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files = files.filter(|file| file.extension().is_some_and(|e| e == "gguf"));
    let only = files.next()?;
    files.next().is_none().then_some(only)
}

/// Tokens that end what the model writes.
pub(super) fn end_tokens(config: &Value) -> Vec<u32> {
    let keys = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"];
    let id = |key: &str| u32::try_from(config.get(key)?.as_u64()?).ok();
    keys.into_iter().filter_map(id).collect()
}

/// Builds the model.
pub(super) fn open(
    config: &Value,
    weights: &Arc<Checkpoint>,
    file: &Path,
) -> Result<(Model, Parameters, Vec<Names>)> {
    let has_head = weights.info("output.weight").is_some();
    let sizes = llama_sizes(&Fields::new(config, file), !has_head)?;
    let names = vec![llama::gguf_names(sizes.head_dim)];
    let b = Builder::load(Arc::clone(weights), names.clone());
    let model = Llama::new(&sizes, &b);
    Ok((Model::Llama(Box::new(model)), b.finish()?, names))
}

fn llama_sizes(f: &Fields, has_tied_head: bool) -> Result<LlamaConfig> {
    match f.text("general.architecture") {
        Some("llama") => {}
        other => {
            let found = other.unwrap_or("nothing");
            let reason = format!("expected llama, the only architecture run here, got `{found}`");
            return Err(f.error("general.architecture", reason));
        }
    }
    let words = f.get("tokenizer.ggml.tokens").and_then(Value::as_array).map(Vec::len);
    let width = f.size("llama.embedding_length", None)?;
    let heads = f.size("llama.attention.head_count", None)?;
    let kv_heads = f.size("llama.attention.head_count_kv", Some(heads))?;
    if !heads.is_multiple_of(kv_heads) {
        let reason = format!("{kv_heads} key heads do not divide {heads} heads");
        return Err(f.error("llama.attention.head_count_kv", reason));
    }
    let head_dim = f.size("llama.attention.key_length", Some((width / heads).max(1)))?;
    if f.size("llama.rope.dimension_count", Some(head_dim))? != head_dim {
        let reason = format!("expected {head_dim}, all values of a head");
        return Err(f.error("llama.rope.dimension_count", reason));
    }
    if !head_dim.is_multiple_of(2) {
        let reason = format!("heads of {head_dim} values have no pairs to turn");
        return Err(f.error("llama.attention.key_length", reason));
    }
    let rope_factor = match f.text("llama.rope.scaling.type").unwrap_or("none") {
        "none" => 1.0,
        "linear" => f.number("llama.rope.scaling.factor", 1.0)?,
        other => {
            let reason = format!("expected none or linear, got `{other}`");
            return Err(f.error("llama.rope.scaling.type", reason));
        }
    };
    let rope_theta = f.number("llama.rope.freq_base", 10_000.0)?;
    if rope_theta <= 0.0 || rope_factor < 1.0 {
        let reason = format!(
            "expected a positive base and a factor from 1, got {rope_theta} and {rope_factor}"
        );
        return Err(f.error("llama.rope", reason));
    }
    Ok(LlamaConfig {
        vocab: f.size("llama.vocab_size", words)?,
        context_length: f.size("llama.context_length", Some(2048))?,
        width,
        depth: f.blocks("llama.block_count", None)?,
        heads,
        kv_heads,
        head_dim,
        mlp_dim: f.size("llama.feed_forward_length", None)?,
        norm_eps: f.epsilon("llama.attention.layer_norm_rms_epsilon", 1e-5)?,
        rope_theta,
        rope_factor: rope_factor as f32,
        qkv_bias: false,
        out_bias: false,
        has_tied_head,
    })
}

/// The tokenizer.
pub(super) fn tokenizer(config: &Value, file: &Path) -> Result<Tokenizer> {
    let f = Fields::new(config, file);
    let kinds = |count: usize| -> Result<Vec<PieceKind>> {
        let name = "tokenizer.ggml.token_type";
        let Some(list) = f.get(name).and_then(Value::as_array) else {
            return Ok(vec![PieceKind::Normal; count]);
        };
        let kind = |value: &Value| value.as_u64().and_then(PieceKind::from_number);
        let kinds = list.iter().map(kind).collect::<Option<Vec<_>>>();
        let kinds = kinds.filter(|kinds| kinds.len() == count);
        kinds.ok_or_else(|| f.error(name, format!("expected {count} numbers from 1 to 6")))
    };
    let id = |name: &str| -> Option<u32> { u32::try_from(f.get(name)?.as_u64()?).ok() };
    let named = NamedTokens {
        start: id("tokenizer.ggml.bos_token_id"),
        end: id("tokenizer.ggml.eos_token_id"),
        unknown: id("tokenizer.ggml.unknown_token_id"),
        pad: id("tokenizer.ggml.padding_token_id"),
    };
    let tokens = texts(&f, "tokenizer.ggml.tokens")?;
    let kinds = kinds(tokens.len())?;
    let adds_end = f.flag("tokenizer.ggml.add_eos_token", false)?;
    let made = match f.text("tokenizer.ggml.model") {
        Some("gpt2") => Tokenizer::from_byte_pairs(BytePairParts {
            merges: texts(&f, "tokenizer.ggml.merges")?,
            pre_tokenizer: f.text("tokenizer.ggml.pre").unwrap_or("gpt-2").to_owned(),
            adds_start: f.flag("tokenizer.ggml.add_bos_token", false)?,
            tokens,
            kinds,
            named,
            adds_end,
        }),
        Some("llama") => {
            let name = "tokenizer.ggml.scores";
            let scores = f.get(name).and_then(Value::as_array).map(Vec::as_slice);
            let Some(scores) = scores.filter(|scores| scores.len() == tokens.len()) else {
                return Err(f.error(name, format!("expected {} numbers", tokens.len())));
            };
            let pieces = tokens.into_iter().zip(kinds).zip(scores).map(|((text, kind), score)| {
                // Infinity has no number in JSON and stands for the least likely.
                Piece { text, kind, score: score.as_f64().unwrap_or(f64::MIN) as f32 }
            });
            Tokenizer::from_scored(ScoredParts {
                pieces: pieces.collect(),
                adds_prefix: f.flag("tokenizer.ggml.add_space_prefix", true)?,
                adds_start: f.flag("tokenizer.ggml.add_bos_token", true)?,
                named,
                adds_end,
            })
        }
        other => {
            let found = other.unwrap_or("nothing");
            let reason = format!("expected gpt2 or llama, got `{found}`");
            return Err(f.error("tokenizer.ggml.model", reason));
        }
    };
    made.map_err(|e| Error::Data(ocelli_data::Error::from(e)))
}

fn texts(f: &Fields, name: &str) -> Result<Vec<String>> {
    let list = f.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let texts = list.iter().map(|text| text.as_str().map(str::to_owned));
    let texts = texts.collect::<Option<Vec<_>>>().filter(|texts| !texts.is_empty());
    texts.ok_or_else(|| f.error(name, "expected a list of texts"))
}
