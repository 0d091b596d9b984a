//! Byte-pair encoding as in CLIP: byte symbols, an end-of-word mark, merges by rank.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::RwLock;

use super::error::{Result, TextError};

/// What the last symbol of a word ends with.
pub(super) const END_OF_WORD: &str = "</w>";

/// Words kept with their ids; more are encoded anew each time.
const MAX_CACHED_WORDS: usize = 1 << 15;
/// Longer words are rare, so they are not worth keeping.
const MAX_CACHED_BYTES: usize = 64;

/// The 256 byte symbols with their bytes, in the order of their ids: printable bytes stand for
/// themselves, the others for the characters from U+0100 on.
pub(super) fn byte_symbols() -> Vec<(u8, char)> {
    let is_printable =
        |b: u8| b.is_ascii_graphic() || (0xa1..=0xac).contains(&b) || (0xae..=0xff).contains(&b);
    let (printable, other): (Vec<u8>, Vec<u8>) = (0..=255).partition(|&b| is_printable(b));
    let shifted = other.into_iter().zip('\u{100}'..);
    printable.into_iter().map(|b| (b, char::from(b))).chain(shifted).collect()
}

/// A vocabulary of symbols and the merges that build them.
pub(super) struct Bpe {
    symbols: Vec<String>,
    byte_ids: [u32; 256],
    /// Ids of byte symbols that end a word.
    final_byte_ids: [u32; 256],
    /// Rank and result of a merge, by its two parts.
    merges: HashMap<(u32, u32), (u32, u32)>,
    byte_of: HashMap<char, u8>,
    cache: RwLock<HashMap<Box<str>, Box<[u32]>>>,
}

/// A vocabulary whose symbols are numbered, and its merges in order, each with its line.
pub(super) struct Parts<'a> {
    /// For messages.
    pub(super) file: &'a str,
    pub(super) ids: &'a HashMap<String, u32>,
    pub(super) merges: &'a [(usize, &'a str, &'a str)],
}

impl Bpe {
    /// Checks that the symbols cover every byte and every merge.
    pub(super) fn new(parts: &Parts<'_>) -> Result<Self> {
        let Parts { file, ids, merges } = *parts;
        let id_of = |line: usize, symbol: &str| {
            ids.get(symbol).copied().ok_or_else(|| TextError::UnknownSymbol {
                file: file.to_owned(),
                line,
                symbol: symbol.to_owned(),
            })
        };
        let byte_id = |symbol: String| match ids.get(&symbol) {
            Some(&id) => Ok(id),
            None => Err(TextError::NoByteSymbol { file: file.to_owned(), symbol }),
        };
        let mut byte_ids = [0; 256];
        let mut final_byte_ids = [0; 256];
        let mut byte_of = HashMap::new();
        for (byte, symbol) in byte_symbols() {
            byte_ids[usize::from(byte)] = byte_id(symbol.to_string())?;
            final_byte_ids[usize::from(byte)] = byte_id(format!("{symbol}{END_OF_WORD}"))?;
            byte_of.insert(symbol, byte);
        }
        let mut ranks = HashMap::with_capacity(merges.len());
        for (rank, &(line, left, right)) in (0..).zip(merges) {
            let merged = id_of(line, &format!("{left}{right}"))?;
            ranks.insert((id_of(line, left)?, id_of(line, right)?), (rank, merged));
        }
        let mut symbols = vec![String::new(); symbol_count(file, ids)?];
        for (symbol, &id) in ids {
            symbols[id as usize].clone_from(symbol);
        }
        let cache = RwLock::default();
        Ok(Self { symbols, byte_ids, final_byte_ids, merges: ranks, byte_of, cache })
    }

    /// How many ids there are.
    pub(super) fn len(&self) -> usize {
        self.symbols.len()
    }

    /// Appends the ids of one word, which is not empty.
    pub(super) fn encode_word(&self, word: &str, ids: &mut Vec<u32>) {
        // A poisoned cache is whole: an entry is complete before it goes in.
        let cached = self.cache.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(known) = cached.get(word) {
            ids.extend_from_slice(known);
            return;
        }
        drop(cached);
        let encoded = self.merge(word.as_bytes());
        ids.extend_from_slice(&encoded);
        if word.len() <= MAX_CACHED_BYTES {
            let mut cache = self.cache.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            if cache.len() < MAX_CACHED_WORDS {
                cache.insert(word.into(), encoded.into());
            }
        }
    }

    /// Merges the symbols of `bytes`, lowest rank first and from the left, until none applies.
    fn merge(&self, bytes: &[u8]) -> Vec<u32> {
        let Some((&last, rest)) = bytes.split_last() else { return Vec::new() };
        let mut ids: Vec<u32> = rest.iter().map(|&b| self.byte_ids[usize::from(b)]).collect();
        ids.push(self.final_byte_ids[usize::from(last)]);
        let count = ids.len();
        // A symbol covers `start..next[start]`; merged ones leave dead places behind.
        let mut next: Vec<usize> = (1..=count).collect();
        let mut previous: Vec<usize> = (0..count).map(|i| i.wrapping_sub(1)).collect();
        let mut is_dead = vec![false; count];
        let candidate = |ids: &[u32], next: &[usize], at: usize| {
            let pair = (ids[at], *ids.get(next[at])?);
            let &(rank, merged) = self.merges.get(&pair)?;
            Some(Reverse((rank, at, pair, merged)))
        };
        let mut queue: BinaryHeap<_> =
            (0..count).filter_map(|at| candidate(&ids, &next, at)).collect();
        let mut found = Vec::new();
        while let Some(Reverse((rank, at, pair, merged))) = queue.pop() {
            if !is_dead[at] && ids[at] == pair.0 && ids.get(next[at]) == Some(&pair.1) {
                let gone = next[at];
                ids[at] = merged;
                is_dead[gone] = true;
                next[at] = next[gone];
                if let Some(follower) = previous.get_mut(next[gone]) {
                    *follower = at;
                }
                found.push(at);
                found.extend((at > 0).then(|| previous[at]));
            }
            // All merges of a rank come before any that they make possible.
            if queue.peek().is_none_or(|Reverse(top)| top.0 != rank) {
                let live = found.drain(..).filter(|&at| !is_dead[at]);
                queue.extend(live.filter_map(|at| candidate(&ids, &next, at)));
            }
        }
        ids.into_iter().zip(is_dead).filter(|&(_, dead)| !dead).map(|(id, _)| id).collect()
    }

    /// The text of `ids`: each end of a word becomes a space, broken UTF-8 becomes U+FFFD.
    pub(super) fn decode(&self, ids: &[u32]) -> Result<String> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            let symbol = self
                .symbols
                .get(id as usize)
                .ok_or(TextError::TokenOutOfRange { id, vocab: self.symbols.len() })?;
            for c in symbol.chars() {
                match self.byte_of.get(&c) {
                    Some(&byte) => bytes.push(byte),
                    // Only a special token has characters that are not byte symbols.
                    None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                }
            }
        }
        Ok(String::from_utf8_lossy(&bytes).replace(END_OF_WORD, " "))
    }
}

/// One more than the largest id, where ids are without big gaps.
fn symbol_count(file: &str, ids: &HashMap<String, u32>) -> Result<usize> {
    let largest = ids.values().max().map_or(0, |&id| id as usize);
    // Real files have no gaps; a few are harmless, many would allocate without a limit.
    let limit = ids.len() * 2;
    if largest >= limit {
        return Err(TextError::TokenIdTooLarge { file: file.to_owned(), id: largest, limit });
    }
    Ok(largest + 1)
}
