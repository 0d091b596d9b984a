//! A folder with a tokenizer's files and `cases.json`: texts with the ids of the reference.

use crate::failure::Failure;
use crate::output::Output;
use crate::session;
use ocelli_data::text::{Behaviour, ClipTokenizer, Tokenizer, Truncate};
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
    /// Of the original CLIP: start, ids and end, cut to 77.
    context77: Option<Vec<u32>>,
    /// Of `open_clip`, where it differs from the original.
    open_clip_context77: Option<Vec<u32>>,
}

/// Tokens of a text that CLIP reads.
const CLIP_CONTEXT: usize = 77;

/// Whether the folder is such a one.
pub(super) fn is_case(dir: &Path) -> bool {
    dir.join("cases.json").is_file() && !dir.join("golden.safetensors").is_file()
}

pub(super) fn run(dir: &Path) -> Result<(), Failure> {
    let cases: Vec<Case> = read(&dir.join("cases.json"))?;
    if cases.iter().any(|case| case.context77.is_some()) {
        return report(&of_clip(dir, &cases)?);
    }
    let tokenizer = Tokenizer::from_dir(dir).map_err(ocelli_data::Error::from)?;
    let asks_sentencepiece = cases.iter().any(|case| case.spm_ids.is_some());
    let sentencepiece = asks_sentencepiece.then(|| session::sentencepiece(dir)).transpose()?;
    let is_legacy = is_legacy(dir)?;
    let mut table = Table::default();
    let mut count = |name, is_same| table.count(name, is_same);
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
    report(&table)
}

/// CLIP's tokenizer as the original program, `open_clip` and transformers use it.
fn of_clip(dir: &Path, cases: &[Case]) -> Result<Table, Failure> {
    let open = |behaviour| {
        ClipTokenizer::load(dir, behaviour).map_err(|e| Failure::from(ocelli_data::Error::from(e)))
    };
    let openai = open(Behaviour::OpenAi)?;
    let behaviours = [&openai, &open(Behaviour::OpenClip)?, &open(Behaviour::HuggingFace)?];
    let mut table = Table::default();
    for case in cases {
        let text = &case.text;
        let original = case.context77.as_ref();
        let expected = [
            ("context77", original),
            ("open_clip", case.open_clip_context77.as_ref().or(original)),
            ("hf_ids", case.hf_ids.as_ref()),
        ];
        for (tokenizer, (name, ids)) in behaviours.into_iter().zip(expected) {
            let Some(ids) = ids else { continue };
            let (specials, mut padded) = (tokenizer.special_tokens(), ids.clone());
            padded.resize(CLIP_CONTEXT, specials.pad);
            let got = tokenizer.encode(text, CLIP_CONTEXT, Truncate::Cut);
            table.count(name, got.is_ok_and(|got| got == padded));
        }
        if let Some(ids) = &case.ids {
            table.count("ids", openai.encode_raw(text) == *ids);
            if let Some(decoded) = &case.decoded {
                table.count("decoded", openai.decode(ids).is_ok_and(|text| text == *decoded));
            }
        }
    }
    Ok(table)
}

/// What was compared: its name, how many texts are equal, and of how many.
#[derive(Default)]
struct Table(Vec<(&'static str, usize, usize)>);

impl Table {
    fn count(&mut self, name: &'static str, is_same: bool) {
        match self.0.iter_mut().find(|row| row.0 == name) {
            Some((_, same, all)) => (*same, *all) = (*same + usize::from(is_same), *all + 1),
            None => self.0.push((name, usize::from(is_same), 1)),
        }
    }
}

fn report(Table(table): &Table) -> Result<(), Failure> {
    let mut out = Output::new();
    let mut failed = 0;
    for (name, same, all) in table {
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
