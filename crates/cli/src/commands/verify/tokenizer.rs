//! A folder with a tokenizer's files and `cases.json`: texts with the ids of the reference.

use crate::failure::Failure;
use crate::output::Output;
use crate::session;
use ocelli_data::text::Tokenizer;
use serde::Deserialize;
use std::path::Path;

/// A text with its ids: of transformers (`ids`, `hf_ids`, and `hf_legacy_ids` by the older rule for
/// the space in front of a text), and of `SentencePiece` itself.
#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Option<Vec<u32>>,
    hf_ids: Option<Vec<u32>>,
    hf_legacy_ids: Option<Vec<u32>>,
    spm_ids: Option<Vec<u32>>,
    decoded: Option<String>,
    spm_decoded: Option<String>,
}

/// Whether the folder is such a one.
pub(super) fn is_case(dir: &Path) -> bool {
    dir.join("cases.json").is_file() && !dir.join("golden.safetensors").is_file()
}

pub(super) fn run(dir: &Path) -> Result<(), Failure> {
    let cases: Vec<Case> = read(&dir.join("cases.json"))?;
    let tokenizer = Tokenizer::from_dir(dir).map_err(ocelli_data::Error::from)?;
    let asks_sentencepiece = cases.iter().any(|case| case.spm_ids.is_some());
    let sentencepiece = asks_sentencepiece.then(|| session::sentencepiece(dir)).transpose()?;
    let is_legacy = is_legacy(dir)?;
    let mut table: Vec<(&str, usize, usize)> = Vec::new();
    let mut count = |name, is_same: bool| match table.iter_mut().find(|row| row.0 == name) {
        Some((_, same, all)) => (*same, *all) = (*same + usize::from(is_same), *all + 1),
        None => table.push((name, usize::from(is_same), 1)),
    };
    for case in &cases {
        let (name, ids) = match (&case.ids, &case.hf_legacy_ids) {
            (Some(ids), _) => ("ids", Some(ids)),
            (None, Some(ids)) if is_legacy => ("hf_legacy_ids", Some(ids)),
            (None, _) => ("hf_ids", case.hf_ids.as_ref()),
        };
        if let Some(ids) = ids {
            count(name, tokenizer.encode(&case.text, true) == *ids);
            if let Some(text) = &case.decoded {
                count("decoded", tokenizer.decode(ids, true) == *text);
            }
        }
        if let (Some(ids), Some(tokenizer)) = (&case.spm_ids, &sentencepiece) {
            count("spm_ids", tokenizer.encode(&case.text, true) == *ids);
            if let Some(text) = &case.spm_decoded {
                count("spm_decoded", tokenizer.decode(ids, true) == *text);
            }
        }
    }
    let mut out = Output::new();
    let mut failed = 0;
    for (name, same, all) in &table {
        failed += all - same;
        let verdict = if same == all { "ok" } else { "FAIL" };
        out.text(&format!("{name:13}  {same:>6} of {all:>6} equal  {verdict}\n"))?;
    }
    out.flush()?;
    match (failed, table.is_empty()) {
        (_, true) => Err(Failure::input("cases.json: no ids to compare with".to_owned())),
        (0, false) => Ok(()),
        (n, false) => Err(Failure::runtime(format!("{n} texts differ from the reference"))),
    }
}

/// Whether the configuration asks for the older rule, which holds where it says nothing.
fn is_legacy(dir: &Path) -> Result<bool, Failure> {
    #[derive(Deserialize)]
    struct Config {
        legacy: Option<bool>,
    }
    let path = dir.join("tokenizer_config.json");
    let config: Option<Config> = if path.is_file() { Some(read(&path)?) } else { None };
    Ok(config.and_then(|config| config.legacy).unwrap_or(true))
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let wrong = |e: &dyn std::fmt::Display| Failure::input(format!("{}: {e}", path.display()));
    let bytes = std::fs::read(path).map_err(|e| wrong(&e))?;
    serde_json::from_slice(&bytes).map_err(|e| wrong(&e))
}
