//! Captions as token ids: where the vocabulary comes from, and a cache of what was encoded.

use crate::config::TokenizerConfig;
use crate::{Error, Result};
use ocelli_data::dataset::Dataset;
use ocelli_data::text::{Behaviour, ClipTokenizer, Truncate, VocabularyFiles, train_vocabulary};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Encodes texts for a text tower; every text is encoded once.
pub struct TextEncoder {
    tokenizer: ClipTokenizer,
    context_length: usize,
    /// Ids without padding.
    known: Mutex<HashMap<String, Box<[u32]>>>,
}

impl std::fmt::Debug for TextEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TextEncoder of {} ids", self.tokenizer.vocab_size())
    }
}

/// Ids of several texts, all as long as the longest.
#[derive(Clone, Debug)]
pub struct Ids {
    /// `[texts, tokens]`, padded behind the end of each.
    pub ids: Arc<[u32]>,
    /// Tokens of each text.
    pub tokens: usize,
}

impl Ids {
    /// The texts of a range.
    #[must_use]
    pub fn range(&self, range: std::ops::Range<usize>) -> Arc<[u32]> {
        self.ids[range.start * self.tokens..range.end * self.tokens].into()
    }
}

impl TextEncoder {
    /// For texts of at most `context_length` tokens, start and end included; longer ones are cut.
    pub fn new(tokenizer: ClipTokenizer, context_length: usize) -> Self {
        Self { tokenizer, context_length, known: Mutex::default() }
    }

    /// The number of ids.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size()
    }

    /// Ids of `texts`. Padding reaches to the longest of them only: what follows the end token does
    /// not change a text's features.
    ///
    /// # Errors
    /// If not even the two special tokens fit the context.
    pub fn encode(&self, texts: &[String]) -> Result<Ids> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for text in texts {
            if !known.contains_key(text) {
                let mut ids = self.tokenizer.encode(text, self.context_length, Truncate::Cut)?;
                let end = self.tokenizer.special_tokens().end;
                let length = ids.iter().position(|id| *id == end).map_or(ids.len(), |i| i + 1);
                ids.truncate(length);
                known.insert(text.clone(), ids.into());
            }
        }
        let tokens = texts.iter().map(|t| known[t].len()).max().unwrap_or(0);
        let mut all = Vec::with_capacity(tokens * texts.len());
        for (i, text) in texts.iter().enumerate() {
            all.extend_from_slice(&known[text]);
            all.resize((i + 1) * tokens, self.tokenizer.special_tokens().pad);
        }
        Ok(Ids { ids: all.into(), tokens })
    }
}

/// The files of a vocabulary, by name.
pub(crate) type NamedFiles = Vec<(&'static str, Vec<u8>)>;

/// Opens or learns the vocabulary of a run. The files are those that a model folder needs beside the
/// weights. `kept` is where an earlier part of the run left them.
pub(crate) fn vocabulary(
    config: Option<&TokenizerConfig>,
    dataset: &Dataset,
    kept: &Path,
) -> Result<(ClipTokenizer, NamedFiles)> {
    const NAMES: [&str; 2] = ["vocab.json", "merges.txt"];
    let read = |folder: &Path| -> Result<NamedFiles> {
        let mut files = Vec::new();
        for name in NAMES.into_iter().chain(["tokenizer.json"]) {
            let path = folder.join(name);
            if path.is_file() {
                let bytes = std::fs::read(&path).map_err(|source| Error::Io { path, source })?;
                files.push((name, bytes));
            }
        }
        Ok(files)
    };
    match config {
        None | Some(TokenizerConfig::Clip) => {
            let VocabularyFiles { vocab_json, merges_txt } = ClipTokenizer::builtin_files();
            let files =
                vec![(NAMES[0], vocab_json.into_bytes()), (NAMES[1], merges_txt.into_bytes())];
            Ok((ClipTokenizer::builtin(Behaviour::OpenAi), files))
        }
        Some(TokenizerConfig::Path(path)) => {
            Ok((ClipTokenizer::load(path, Behaviour::OpenAi)?, read(path)?))
        }
        Some(TokenizerConfig::TrainVocabSize(size)) => {
            let mut files = read(kept)?;
            if files.is_empty() {
                let captions = all_captions(dataset)?;
                let texts = captions.iter().map(String::as_str);
                let trained = train_vocabulary(texts, *size, Behaviour::OpenAi)?;
                files = vec![
                    (NAMES[0], trained.vocab_json.into_bytes()),
                    (NAMES[1], trained.merges_txt.into_bytes()),
                ];
            }
            let [(name, vocab), (_, merges), ..] = &files[..] else {
                let problem = "vocab.json and merges.txt do not lie together".to_owned();
                return Err(Error::State { path: kept.to_path_buf(), problem });
            };
            let tokenizer = ClipTokenizer::from_vocab(vocab, merges, name, Behaviour::OpenAi)?;
            Ok((tokenizer, files))
        }
    }
}

/// Every caption of a dataset once per sample.
fn all_captions(dataset: &Dataset) -> Result<Vec<String>> {
    let mut captions = Vec::new();
    for index in 0..dataset.len() {
        captions.extend(dataset.annotation(index)?.captions.into_iter().flatten());
    }
    Ok(captions)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;

    #[test]
    fn texts_are_as_long_as_the_longest() {
        let encoder = TextEncoder::new(ClipTokenizer::builtin(Behaviour::OpenAi), 6);
        let texts = ["a cat".to_owned(), "cat".to_owned(), "a cat".to_owned()];
        for _ in 0..2 {
            let ids = encoder.encode(&texts).unwrap();
            assert_eq!(ids.tokens, 4);
            assert_eq!(ids.range(0..1)[..], [49_406, 320, 2368, 49_407]);
            assert_eq!(ids.range(1..2)[..], [49_406, 2368, 49_407, 0]);
            assert_eq!(ids.range(2..3), ids.range(0..1));
        }
        let long = ["a cat a cat a cat a cat".to_owned()];
        let ids = encoder.encode(&long).unwrap();
        assert_eq!(ids.ids[..], [49_406, 320, 2368, 320, 2368, 49_407]);
    }
}
