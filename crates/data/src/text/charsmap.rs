//! The compiled normalisation of `SentencePiece` models: a double-array trie of character
//! sequences (Aoe 1989), each with its replacement.

use unicode_segmentation::UnicodeSegmentation;

use super::error::{Result, TextError};

/// Longer clusters are replaced character by character in transformers' tokenizers.
const LONGEST_CLUSTER: usize = 6;

/// Which sequences of characters become which.
pub(super) struct Charsmap {
    trie: Vec<u32>,
    /// Replacements, each ended by a zero.
    replacements: Vec<u8>,
}

impl Charsmap {
    /// Reads the bytes of a model's `precompiled_charsmap`. `file` is for messages.
    pub(super) fn read(bytes: &[u8], file: &str) -> Result<Self> {
        let broken = || TextError::BrokenCharsmap { file: file.to_owned(), bytes: bytes.len() };
        let (size, rest) = bytes.split_first_chunk().ok_or_else(broken)?;
        let size = u32::from_le_bytes(*size) as usize;
        let (units, []) = rest.get(..size).ok_or_else(broken)?.as_chunks() else {
            return Err(broken());
        };
        let trie = units.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        Ok(Self { trie, replacements: rest[size..].to_vec() })
    }

    /// Replaces the longest known sequence at every place, as `SentencePiece` does.
    pub(super) fn longest(&self, text: &str) -> String {
        let mut changed = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let known = self.prefixes(rest).last().filter(|&(end, _)| rest.is_char_boundary(end));
            let end = match known.and_then(|(end, at)| Some((end, self.replacement(at)?))) {
                Some((end, replacement)) => {
                    changed.push_str(replacement);
                    end
                }
                None => {
                    changed.push(c);
                    c.len_utf8()
                }
            };
            rest = &rest[end..];
        }
        changed
    }

    /// Replaces whole grapheme clusters, or single characters of long ones: the rule of
    /// transformers' tokenizers, which differs for some decomposed scripts.
    pub(super) fn by_clusters(&self, text: &str) -> String {
        let mut changed = String::with_capacity(text.len());
        for cluster in text.graphemes(true) {
            let whole = (cluster.len() < LONGEST_CLUSTER).then(|| self.of_start(cluster));
            if let Some(replacement) = whole.flatten() {
                changed.push_str(replacement);
                continue;
            }
            for c in cluster.chars() {
                match self.of_start(c.encode_utf8(&mut [0; 4])) {
                    Some(replacement) => changed.push_str(replacement),
                    None => changed.push(c),
                }
            }
        }
        changed
    }

    /// The replacement of the shortest known sequence that `text` starts with.
    fn of_start(&self, text: &str) -> Option<&str> {
        self.replacement(self.prefixes(text).next()?.1)
    }

    /// Known sequences that `text` starts with, shortest first: their bytes, and where their
    /// replacement starts.
    fn prefixes(&self, text: &str) -> impl Iterator<Item = (usize, usize)> {
        let offset = |unit: u32| ((unit >> 10) << ((unit & 0x200) >> 6)) as usize;
        let mut node = self.trie.first().map_or(0, |&root| offset(root));
        let steps = text.bytes().map_while(move |byte| {
            node ^= usize::from(byte);
            let unit = *self.trie.get(node)?;
            if byte == 0 || unit & 0x8000_00ff != u32::from(byte) {
                return None;
            }
            node ^= offset(unit);
            let is_end = (unit >> 8) & 1 == 1;
            Some(is_end.then(|| self.trie.get(node)).flatten().map(|v| (v & 0x7fff_ffff) as usize))
        });
        (1..).zip(steps).filter_map(|(end, value)| Some((end, value?)))
    }

    /// The replacement that starts at `at`.
    fn replacement(&self, at: usize) -> Option<&str> {
        let rest = self.replacements.get(at..)?;
        let end = rest.iter().position(|&byte| byte == 0)?;
        std::str::from_utf8(&rest[..end]).ok()
    }
}
