//! The model inside the program: a small CLIP for drawings, English and Chinese.
//!
//! `assets/builtin/MODEL_CARD.md` says what it was trained on and how well it does;
//! `recipes/clip/builtin.toml` trains it and `tools/pack_builtin.py` puts it here.

use crate::Result;
use ocelli_data::text::{Behaviour, ClipTokenizer};

/// What messages call it.
pub(super) const NAME: &str = "built-in model";
pub(super) const CONFIG: &str = include_str!("../../assets/builtin/config.json");
/// Half precision.
pub(super) const WEIGHTS: &[u8] = include_bytes!("../../assets/builtin/model.safetensors");
/// The names of the drawings that it was measured on.
pub(super) const LABELS: &str = include_str!("../../assets/builtin/labels.txt");
const VOCAB: &[u8] = include_bytes!("../../assets/builtin/vocab.json");
const MERGES: &[u8] = include_bytes!("../../assets/builtin/merges.txt");

pub(super) fn tokenizer() -> Result<ClipTokenizer> {
    let tokenizer = ClipTokenizer::from_vocab(VOCAB, MERGES, NAME, Behaviour::OpenAi);
    Ok(tokenizer.map_err(ocelli_data::Error::from)?)
}
