//! Vocabularies of pieces: how words become ids.

use std::collections::HashMap;
use std::sync::RwLock;

use super::bpe::byte_symbols;
use super::error::{Result, TextError};
use super::merges::PairMerges;
use super::unigram::Unigram;

/// Words kept with their ids; more are encoded anew each time.
const MAX_CACHED_WORDS: usize = 1 << 15;
/// Longer words are rare, so they are not worth keeping.
const MAX_CACHED_BYTES: usize = 64;

/// Ids of the symbols of bytes. A vocabulary may lack bytes that its texts never had (those that no
/// UTF-8 has, or the first ones of rare scripts): they are left out, as tokenizers without an unknown
/// token do.
pub(super) type ByteIds = Box<[Option<u32>; 256]>;

/// Bytes that may have no symbol.
const MAX_MISSING_BYTES: usize = 64;

/// How the symbols of a word are found.
pub(super) enum Algorithm {
    /// Bytes, merged in pairs. Some vocabularies take a word they hold whole, without merging.
    ByteMerges {
        merges: PairMerges,
        byte_ids: ByteIds,
        takes_whole_words: bool,
    },
    /// Characters, merged in pairs.
    CharMerges(PairMerges),
    Unigram(Unigram),
}

/// A vocabulary and its algorithm.
pub(super) struct Pieces {
    pub(super) texts: Vec<String>,
    pub(super) ids: HashMap<String, u32>,
    algorithm: Algorithm,
    /// Ids of `<0x00>` to `<0xFF>`, into which unknown characters fall apart.
    fallback: Option<Box<[u32; 256]>>,
    unknown: Option<u32>,
    cache: RwLock<HashMap<Box<str>, Box<[u32]>>>,
}

/// The byte that a piece such as `<0x0A>` stands for.
pub(super) fn byte_of_piece(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_plain = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u8::from_str_radix(digits, 16).ok().filter(|_| is_plain)
}

/// The ids of byte symbols.
pub(super) fn byte_ids(ids: &HashMap<String, u32>, file: &str) -> Result<ByteIds> {
    let mut found = Box::new([None; 256]);
    let mut missing = Vec::new();
    for (byte, symbol) in byte_symbols() {
        let symbol = symbol.to_string();
        found[usize::from(byte)] = ids.get(&symbol).copied();
        if found[usize::from(byte)].is_none() {
            missing.push(symbol);
        }
    }
    if missing.len() > MAX_MISSING_BYTES {
        let (file, symbol) = (file.to_owned(), missing.swap_remove(0));
        return Err(TextError::NoByteSymbol { file, symbol });
    }
    Ok(found)
}

/// Texts by id. Real files have no gaps; a few are harmless, many would allocate without limit.
pub(super) fn texts_by_id(ids: &HashMap<String, u32>, file: &str) -> Result<Vec<String>> {
    let largest = ids.values().max().map_or(0, |&id| id as usize);
    let limit = ids.len() * 2;
    if largest >= limit {
        return Err(TextError::TokenIdTooLarge { file: file.to_owned(), id: largest, limit });
    }
    let mut texts = vec![String::new(); largest + 1];
    for (text, &id) in ids {
        texts[id as usize].clone_from(text);
    }
    Ok(texts)
}

impl Pieces {
    /// Joins a vocabulary and its algorithm. `falls_apart` says that unknown characters become
    /// bytes, if all bytes have pieces; otherwise they become `unknown`, or nothing.
    pub(super) fn new(
        texts: Vec<String>,
        ids: HashMap<String, u32>,
        algorithm: Algorithm,
        falls_apart: bool,
        unknown: Option<u32>,
    ) -> Self {
        let fallback = falls_apart.then(|| {
            let mut found = Box::new([0; 256]);
            for (byte, id) in found.iter_mut().enumerate() {
                *id = *ids.get(format!("<0x{byte:02X}>").as_str())?;
            }
            Some(found)
        });
        let fallback = fallback.flatten();
        Self { texts, ids, algorithm, fallback, unknown, cache: RwLock::default() }
    }

    /// Whether pieces such as `<0x0A>` stand for bytes.
    pub(super) fn has_byte_pieces(&self) -> bool {
        self.fallback.is_some()
    }

    /// The id of what has no piece.
    pub(super) fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// Appends the ids of one word, which is not empty.
    pub(super) fn encode_word(&self, word: &str, ids: &mut Vec<u32>) {
        if word.len() > MAX_CACHED_BYTES {
            ids.extend(self.encode(word));
            return;
        }
        // A poisoned cache is whole: an entry is complete before it goes in.
        let cached = self.cache.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(known) = cached.get(word) {
            ids.extend_from_slice(known);
            return;
        }
        drop(cached);
        let encoded = self.encode(word);
        ids.extend_from_slice(&encoded);
        let mut cache = self.cache.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if cache.len() < MAX_CACHED_WORDS {
            cache.insert(word.into(), encoded.into());
        }
    }

    fn encode(&self, word: &str) -> Vec<u32> {
        match &self.algorithm {
            Algorithm::ByteMerges { merges, byte_ids, takes_whole_words } => {
                let bytes = word.bytes();
                let mut ids: Vec<u32> = bytes.filter_map(|b| byte_ids[usize::from(b)]).collect();
                if *takes_whole_words {
                    let symbols: String =
                        ids.iter().map(|&id| self.texts[id as usize].as_str()).collect();
                    if let Some(&whole) = self.ids.get(&symbols) {
                        return vec![whole];
                    }
                }
                merges.apply(&mut ids);
                ids
            }
            Algorithm::CharMerges(merges) => {
                let mut ids = Vec::with_capacity(word.len());
                let mut was_unknown = false;
                for c in word.chars() {
                    let mut buffer = [0; 4];
                    let text = &*c.encode_utf8(&mut buffer);
                    let known = self.ids.get(text);
                    match known {
                        Some(&id) => ids.push(id),
                        None => self.push_unknown(text, was_unknown, &mut ids),
                    }
                    was_unknown = known.is_none();
                }
                merges.apply(&mut ids);
                ids
            }
            Algorithm::Unigram(unigram) => {
                let mut pieces = Vec::new();
                unigram.encode(word, &mut pieces);
                let mut ids = Vec::with_capacity(pieces.len());
                for (id, range) in pieces {
                    if Some(id) == self.unknown {
                        self.push_unknown(&word[range], false, &mut ids);
                    } else {
                        ids.push(id);
                    }
                }
                ids
            }
        }
    }

    /// Neighbouring unknown characters are one unknown token.
    fn push_unknown(&self, text: &str, was_unknown: bool, ids: &mut Vec<u32>) {
        match (&self.fallback, self.unknown) {
            (Some(pieces), _) => ids.extend(text.bytes().map(|b| pieces[usize::from(b)])),
            (None, Some(unknown)) if !was_unknown => ids.push(unknown),
            (None, _) => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::*;

    #[test]
    fn bytes_that_texts_never_had_may_be_missing() {
        let symbols =
            byte_symbols().into_iter().map(|(byte, symbol)| (symbol.to_string(), u32::from(byte)));
        let mut ids: HashMap<String, u32> = symbols.collect();
        let rare: Vec<String> =
            ids.iter().filter(|(_, id)| **id >= 0xf8).map(|(s, _)| s.clone()).collect();
        for symbol in rare {
            ids.remove(&symbol);
        }
        let found = byte_ids(&ids, "vocab.json").unwrap();
        assert_eq!((found[0x61], found[0xf8]), (Some(0x61), None));
        ids.retain(|_, id| *id < 128);
        assert!(byte_ids(&ids, "vocab.json").is_err());
    }
}
