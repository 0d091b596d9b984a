//! Training of a small CLIP vocabulary on a corpus (byte-pair encoding, Sennrich et al. 2016), for
//! models whose token table must stay small.
//!
//! Byte symbols are always in, so that any text encodes; the merges are those that the corpus
//! needs most, so that its Chinese characters become single tokens as its English words do.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use super::Behaviour;
use super::bpe::{END_OF_WORD, byte_symbols};
use super::clip_files::{END, START};
use super::clip_words::{Piece, WordSplitter};
use super::error::{Result, TextError};

/// Byte symbols, byte symbols that end a word, start and end.
const SMALLEST_VOCABULARY: usize = 256 + 256 + 2;

/// Merges of pairs that occur only once would just learn the corpus by heart.
const MIN_COUNT: i64 = 2;

/// A vocabulary in the files of Hugging Face, for
/// [`ClipTokenizer::from_vocab`](super::ClipTokenizer::from_vocab).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VocabularyFiles {
    /// Content of `vocab.json`.
    pub vocab_json: String,
    /// Content of `merges.txt`.
    pub merges_txt: String,
}

/// A word of the corpus as ids of symbols, and how often it occurs.
struct Word {
    symbols: Vec<usize>,
    count: i64,
}

type Pair = (usize, usize);

/// Learns at most `vocab_size` ids from `texts`, cleaned and cut into words as `behaviour` does.
///
/// The same texts always give the same vocabulary: of equally frequent pairs the one whose symbols
/// came first is merged.
///
/// # Errors
///
/// [`TextError::VocabularyTooSmall`] if `vocab_size` has no room for the bytes and special tokens.
///
/// ```
/// use ocelli_data::text::{Behaviour, ClipTokenizer, train_vocabulary};
/// let files = train_vocabulary(["大白鲨", "一只大白鲨", "a cat", "the cat"], 530, Behaviour::OpenAi)?;
/// let (vocab, merges) = (files.vocab_json.as_bytes(), files.merges_txt.as_bytes());
/// let tokenizer = ClipTokenizer::from_vocab(vocab, merges, "trained", Behaviour::OpenAi)?;
/// assert_eq!(tokenizer.encode_raw("cat").len(), 1);
/// # Ok::<(), ocelli_data::text::TextError>(())
/// ```
pub fn train_vocabulary<'a>(
    texts: impl IntoIterator<Item = &'a str>,
    vocab_size: usize,
    behaviour: Behaviour,
) -> Result<VocabularyFiles> {
    let Some(max_merges) = vocab_size.checked_sub(SMALLEST_VOCABULARY) else {
        return Err(TextError::VocabularyTooSmall { vocab_size, smallest: SMALLEST_VOCABULARY });
    };
    let bytes = byte_symbols();
    let mut symbols: Vec<String> = bytes.iter().map(|(_, c)| c.to_string()).collect();
    symbols.extend(bytes.iter().map(|(_, c)| format!("{c}{END_OF_WORD}")));
    let merges = Trainer::new(count_words(texts, behaviour)).learn(&mut symbols, max_merges);

    let line = |(left, right): &Pair| format!("{} {}\n", symbols[*left], symbols[*right]);
    let lines: Vec<String> = merges.iter().map(line).collect();
    symbols.extend([START.to_owned(), END.to_owned()]);
    Ok(VocabularyFiles::new(&symbols, lines))
}

impl VocabularyFiles {
    /// From all symbols in the order of their ids, and the merges, each a line of two symbols.
    pub(super) fn new(symbols: &[String], merges: impl IntoIterator<Item = String>) -> Self {
        let entries: Vec<String> = symbols
            .iter()
            .zip(0..)
            .map(|(symbol, id)| format!("{}:{id}", serde_json::Value::from(symbol.as_str())))
            .collect();
        let lines: String = merges.into_iter().collect();
        Self {
            vocab_json: format!("{{{}}}", entries.join(",")),
            merges_txt: format!("#version: 0.2\n{lines}"),
        }
    }
}

/// The different words of the corpus, in the order of their bytes.
fn count_words<'a>(texts: impl IntoIterator<Item = &'a str>, behaviour: Behaviour) -> Vec<Word> {
    let splitter = WordSplitter::new(behaviour, START, END);
    let mut counts: HashMap<String, i64> = HashMap::new();
    for text in texts {
        splitter.for_each_piece(text, |piece| {
            if let Piece::Word(word) = piece {
                *counts.entry(word.to_owned()).or_default() += 1;
            }
        });
    }
    let mut counts: Vec<(String, i64)> = counts.into_iter().collect();
    counts.sort_unstable();
    let mut id_of_byte = [0; 256];
    for (id, (byte, _)) in byte_symbols().into_iter().enumerate() {
        id_of_byte[usize::from(byte)] = id;
    }
    let to_word = |(word, count): (String, i64)| {
        let mut symbols: Vec<usize> = word.bytes().map(|b| id_of_byte[usize::from(b)]).collect();
        if let Some(last) = symbols.last_mut() {
            *last += 256;
        }
        Word { symbols, count }
    };
    counts.into_iter().map(to_word).collect()
}

/// Counts of neighbouring symbols, kept up to date while pairs are merged.
struct Trainer {
    words: Vec<Word>,
    counts: HashMap<Pair, i64>,
    /// Words that held a pair at some time.
    places: HashMap<Pair, Vec<usize>>,
}

impl Trainer {
    fn new(words: Vec<Word>) -> Self {
        let mut trainer =
            Self { words: Vec::new(), counts: HashMap::new(), places: HashMap::new() };
        for (index, word) in words.iter().enumerate() {
            for pair in word.symbols.windows(2) {
                trainer.add((pair[0], pair[1]), index, word.count);
            }
        }
        trainer.words = words;
        trainer
    }

    /// Adds `count` occurrences of `pair` in the word at `index`.
    fn add(&mut self, pair: Pair, index: usize, count: i64) {
        *self.counts.entry(pair).or_default() += count;
        // Words are visited one after the other, so that a repetition is the last entry.
        let places = self.places.entry(pair).or_default();
        if places.last() != Some(&index) {
            places.push(index);
        }
    }

    /// Merges the most frequent pair, again and again; returns the pairs and extends the symbols.
    fn learn(mut self, symbols: &mut Vec<String>, max_merges: usize) -> Vec<Pair> {
        let entry = |(&pair, &count): (&Pair, &i64)| (count, Reverse(pair));
        let mut queue: BinaryHeap<_> = self.counts.iter().map(entry).collect();
        let mut id_of: HashMap<String, usize> = symbols.iter().cloned().zip(0..).collect();
        let mut merges = Vec::new();
        while merges.len() < max_merges {
            let Some((count, Reverse(pair))) = queue.pop() else { break };
            // An outdated entry; a live pair has one with its current count as well.
            if count < MIN_COUNT || self.counts.get(&pair) != Some(&count) {
                continue;
            }
            let symbol = format!("{}{}", symbols[pair.0], symbols[pair.1]);
            // Two pairs can spell the same symbol, which keeps its one id.
            let merged = *id_of.entry(symbol).or_insert_with_key(|symbol| {
                symbols.push(symbol.clone());
                symbols.len() - 1
            });
            merges.push(pair);
            for changed in self.apply(pair, merged) {
                queue.extend(self.counts.get(&changed).map(|&count| (count, Reverse(changed))));
            }
        }
        merges
    }

    /// Replaces `pair` by `merged` in every word; returns the pairs whose counts changed.
    fn apply(&mut self, pair: Pair, merged: usize) -> HashSet<Pair> {
        let mut changed = HashSet::new();
        for index in self.places.remove(&pair).unwrap_or_default() {
            let Word { symbols, count } = &mut self.words[index];
            let (before, count) = (std::mem::take(symbols), *count);
            let mut after: Vec<usize> = Vec::with_capacity(before.len());
            let mut rest = &before[..];
            while let Some((&first, tail)) = rest.split_first() {
                if first != pair.0 || tail.first() != Some(&pair.1) {
                    after.push(first);
                    rest = tail;
                    continue;
                }
                rest = &tail[1..];
                let left = after.last().map(|&left| [(left, pair.0), (left, merged)]);
                let right = rest.first().map(|&right| [(pair.1, right), (merged, right)]);
                for [old, new] in left.into_iter().chain(right) {
                    *self.counts.entry(old).or_default() -= count;
                    self.add(new, index, count);
                    changed.extend([old, new]);
                }
                *self.counts.entry(pair).or_default() -= count;
                after.push(merged);
            }
            self.words[index].symbols = after;
        }
        changed
    }
}
