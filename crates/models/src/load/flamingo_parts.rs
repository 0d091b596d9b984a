//! A Flamingo from its separate parts: the files of OpenFlamingo hold what was trained, the tower and
//! the language model lie beside them.

use super::fields::Fields;
use crate::systems::flamingo::{BLOCK, LAYER, LanguageConfig, PREFIXES};
use crate::{Error, Result};
use ocelli_data::text::Tokenizer;
use ocelli_nn::checkpoint::Checkpoint;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Folders of the frozen parts beside what was trained: the tower in the layout of OpenAI or open_clip,
/// the language model in that of transformers, with its tokenizer.
pub(super) const PARTS: [&str; 2] = ["vision", "language"];
/// What stands in a text where a picture is looked at.
pub(super) const IMAGE_TOKEN: &str = "<image>";
/// What ends the text of a picture.
pub(super) const END_TOKEN: &str = "<|endofchunk|>";
/// The tokens that OpenFlamingo adds to a vocabulary, in their order.
const ADDED: [&str; 2] = [END_TOKEN, IMAGE_TOKEN];

fn dir_of(path: &Path) -> &Path {
    if path.is_dir() { path } else { path.parent().unwrap_or(Path::new(".")) }
}

/// The folder of the frozen language model beside `path`, if there is one.
pub(super) fn language_dir(path: &Path) -> Option<PathBuf> {
    Some(dir_of(path).join(PARTS[1])).filter(|dir| dir.is_dir())
}

fn missing(path: &Path, field: &str, what: &str, part: &str) -> Error {
    let reason = format!(
        "{what} is not part of this checkpoint and not beside it; fetch it and put it into {}",
        dir_of(path).join(part).display()
    );
    Fields::new(&Value::Null, path).error(field, reason)
}

/// The configuration of the frozen language model beside `path`.
pub(super) fn language_config(path: &Path) -> Result<PathBuf> {
    let file = dir_of(path).join(PARTS[1]).join("config.json");
    let what = "the frozen language model, with its config.json,";
    if file.is_file() { Ok(file) } else { Err(missing(path, "lang_encoder", what, PARTS[1])) }
}

/// A tokenizer with the tokens that OpenFlamingo adds.
pub(super) fn with_added(mut tokenizer: Tokenizer) -> Tokenizer {
    for token in ADDED {
        tokenizer.add_special_token(token);
    }
    tokenizer
}

/// The id of an added token, by the tokenizer beside `path`.
pub(super) fn token(path: &Path, token: &str) -> Result<u32> {
    let dir = language_dir(path).unwrap_or_else(|| dir_of(path).to_owned());
    let tokenizer = Tokenizer::from_dir(&dir).map_err(ocelli_data::Error::from)?;
    with_added(tokenizer).id_of(token).ok_or_else(|| {
        let what = "a vocabulary that can grow by the tokens of OpenFlamingo";
        missing(path, "media_token_id", what, PARTS[1])
    })
}

/// The language model with as many words as the table in the weights has, which was made larger or
/// smaller for the added tokens.
pub(super) fn with_words(
    mut config: LanguageConfig,
    weights: &Checkpoint,
    before: &str,
) -> LanguageConfig {
    let rows = |name: &str| {
        weights.info(&format!("{before}{name}")).and_then(|(_, shape)| shape.first().copied())
    };
    let (vocab, found) = match &mut config {
        LanguageConfig::Llama(c) => (&mut c.vocab, rows("model.embed_tokens.weight")),
        LanguageConfig::Opt(c) => (&mut c.vocab, rows("model.decoder.embed_tokens.weight")),
        LanguageConfig::GptNeox(c) => (&mut c.vocab, rows("gpt_neox.embed_in.weight")),
        LanguageConfig::Mpt(c) | LanguageConfig::MosaicGpt(c) => {
            (&mut c.vocab, rows("transformer.wte.weight"))
        }
    };
    *vocab = found.unwrap_or(*vocab);
    config
}

/// The name in a file with all parts of a tensor of a file of the language model alone: the blocks are
/// wrapped.
fn wrapped(name: &str) -> String {
    let mut parts: Vec<&str> = name.split('.').collect();
    let is_number = |part: &&str| part.bytes().all(|b| b.is_ascii_digit());
    if let Some(at) = parts.iter().position(is_number) {
        parts.insert(at + 1, BLOCK);
    }
    format!("{}{}", PREFIXES[2], parts.join("."))
}

/// Names in a file as the table of names has them: without what several processes put in front, and
/// without the copies of layers that a dump of the whole has.
fn renamed(name: &str) -> Option<String> {
    let name = name.strip_prefix("module.").unwrap_or(name);
    let behind = name.strip_prefix(PREFIXES[2]);
    let is_copy = |rest: &str| {
        rest.starts_with(&format!("{LAYER}s.")) || rest.starts_with("old_decoder_blocks.")
    };
    (!behind.is_some_and(is_copy)).then(|| name.to_owned())
}

/// The whole of the weights at `path` and the frozen parts beside them.
pub(super) fn complete(path: &Path, held: &Checkpoint) -> Result<Checkpoint> {
    let held = Checkpoint::default().over(held, renamed);
    let has = |prefix: &str, but: &str| {
        held.names().any(|name| name.starts_with(prefix) && !name.contains(but))
    };
    let mut whole = Checkpoint::default();
    let dir = dir_of(path);
    if !has(PREFIXES[0], "\0") {
        let folder = dir.join(PARTS[0]);
        let what = "the frozen tower, a CLIP of OpenAI or open_clip,";
        if !folder.is_dir() {
            return Err(missing(path, "vision_encoder", what, PARTS[0]));
        }
        let tower = Checkpoint::open(&folder)?;
        let names =
            |name: &str| name.strip_prefix("visual.").map(|name| format!("{}{name}", PREFIXES[0]));
        whole = whole.over(&tower, names);
        if whole.names().next().is_none() {
            return Err(missing(path, "vision_encoder", what, PARTS[0]));
        }
    }
    // What was trained has the word table and the layers of the language model alone.
    if !held.names().any(|name| name.contains(&format!(".{BLOCK}."))) {
        language_config(path)?;
        let language = Checkpoint::open(&dir.join(PARTS[1]))?;
        whole = whole.over(&language, |name| Some(wrapped(name)));
    }
    Ok(whole.over(&held, |name| Some(name.to_owned())))
}
