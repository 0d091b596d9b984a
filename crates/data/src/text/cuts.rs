//! How a tokenizer cuts a text into the words that its model encodes one by one.

use std::borrow::Cow;

use regex::Regex;

/// What a space becomes in vocabularies of `SentencePiece`.
pub(super) const SPACE_MARK: char = '\u{2581}';

/// Words of GPT-2 (Radford et al. 2019), before its rule for runs of spaces.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Words of Llama 3.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Words of Qwen 2: as Llama 3, but every digit alone.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The end of such patterns: a run of spaces leaves its last one to the word behind it.
const LAST_SPACE_LEFT: &str = r"|\s+(?!\S)|\s+";

/// When a word starts with a space mark that its text does not have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefix {
    Never,
    /// Only at the start of the whole text.
    First,
    Always,
}

/// One way to cut; a tokenizer applies several in order.
pub(super) enum Cut {
    /// Between words, without the white space.
    WhiteSpace,
    /// Spaces become marks; each word starts at its mark if `splits`.
    SpaceMarks { prefix: Prefix, splits: bool },
    /// Numerals by themselves, each alone or as runs.
    Digits { each: bool },
    /// At every match of a pattern.
    Words(Words),
    /// A space in front of what starts without one.
    PrefixSpace,
}

/// A pattern, and what `regex` has no words for.
pub(super) struct Words {
    regex: Regex,
    /// A run of spaces before a word leaves its last one to that word.
    leaves_last_space: bool,
    /// But not a run that ends a line.
    takes_line_ends: bool,
    /// What lies between matches is dropped.
    only_matches: bool,
}

impl Words {
    /// The words of GPT-2.
    pub(super) fn gpt2() -> Self {
        Self::new(GPT2, false).expect("constant pattern")
    }

    /// Reads a pattern as tokenizer files have it.
    pub(super) fn new(pattern: &str, only_matches: bool) -> Result<Self, regex::Error> {
        let plain = pattern.strip_suffix(LAST_SPACE_LEFT).map(|start| format!("{start}|\\s+"));
        Ok(Self {
            regex: Regex::new(plain.as_deref().unwrap_or(pattern))?,
            leaves_last_space: plain.is_some(),
            takes_line_ends: pattern.contains(r"|\s*[\r\n]"),
            only_matches,
        })
    }

    fn cut<'a>(&self, text: &'a str, words: &mut Vec<Cow<'a, str>>) {
        let mut at = 0;
        while let Some(found) = self.regex.find_at(text, at) {
            let (start, mut end) = (found.start(), found.end());
            if self.leaves_last_space && end < text.len() {
                let mut run = found.as_str().chars();
                let is_run = run.by_ref().all(char::is_whitespace) && !found.is_empty();
                let last = found
                    .as_str()
                    .chars()
                    .next_back()
                    .filter(|c| is_run && !(self.takes_line_ends && matches!(c, '\r' | '\n')));
                if let Some(last) = last
                    && last.len_utf8() < found.len()
                {
                    end -= last.len_utf8();
                }
            }
            if start > at && !self.only_matches {
                words.push(text[at..start].into());
            }
            if end > start {
                words.push(text[start..end].into());
                at = end;
            } else {
                // An empty match: on to the next character, which stays with what follows.
                let Some(c) = text[start..].chars().next() else { break };
                if !self.only_matches {
                    words.push(text[start..start + c.len_utf8()].into());
                }
                at = start + c.len_utf8();
            }
        }
        if at < text.len() && !self.only_matches {
            words.push(text[at..].into());
        }
    }
}

/// The cuts of a byte-level vocabulary by the name that GGUF files give them, and whether a word
/// that is in the vocabulary is taken whole.
pub(super) fn named(name: &str) -> Option<(Vec<Cut>, bool)> {
    let words = |pattern| Cut::Words(Words::new(pattern, false).expect("constant pattern"));
    Some(match name {
        "gpt-2" | "default" => (vec![words(GPT2)], false),
        "smollm" => (vec![Cut::Digits { each: true }, words(GPT2)], false),
        "llama-bpe" | "llama3" => (vec![words(LLAMA3)], true),
        "qwen2" => (vec![words(QWEN2)], false),
        _ => return None,
    })
}

impl Cut {
    /// Cuts `text` into `words`; `is_first` says that the whole text starts here.
    fn apply<'a>(&self, text: Cow<'a, str>, is_first: bool, words: &mut Vec<Cow<'a, str>>) {
        match (self, text) {
            (Self::PrefixSpace, text) => {
                let has = text.starts_with(' ');
                words.push(if has { text } else { format!(" {text}").into() });
            }
            (Self::SpaceMarks { prefix, splits }, text) => {
                let mut marked = text.replace(' ', SPACE_MARK.encode_utf8(&mut [0; 4]));
                let wants = match prefix {
                    Prefix::Never => false,
                    Prefix::First => is_first,
                    Prefix::Always => true,
                };
                if wants && !marked.starts_with(SPACE_MARK) {
                    marked.insert(0, SPACE_MARK);
                }
                if *splits {
                    let mut start = 0;
                    for (at, _) in marked.match_indices(SPACE_MARK).filter(|&(at, _)| at > 0) {
                        words.push(marked[start..at].to_owned().into());
                        start = at;
                    }
                    words.push(marked[start..].to_owned().into());
                } else {
                    words.push(marked.into());
                }
            }
            (cut, Cow::Borrowed(text)) => cut.slice(text, words),
            (cut, Cow::Owned(text)) => {
                let mut slices = Vec::new();
                cut.slice(&text, &mut slices);
                words.extend(slices.into_iter().map(|word| word.into_owned().into()));
            }
        }
    }

    /// As [`apply`](Self::apply) for the cuts that change nothing.
    fn slice<'a>(&self, text: &'a str, words: &mut Vec<Cow<'a, str>>) {
        match self {
            Self::WhiteSpace => words.extend(text.split_whitespace().map(Cow::Borrowed)),
            Self::Words(pattern) => pattern.cut(text, words),
            Self::Digits { each } => {
                let mut start = 0;
                let mut was_numeral = None;
                for (at, c) in text.char_indices() {
                    let is_numeral = c.is_numeric();
                    let parts = was_numeral.is_some_and(|was| was != is_numeral || (was && *each));
                    if parts {
                        words.push(text[start..at].into());
                        start = at;
                    }
                    was_numeral = Some(is_numeral);
                }
                words.push(text[start..].into());
            }
            Self::SpaceMarks { .. } | Self::PrefixSpace => words.push(text.into()),
        }
    }
}

/// The words of `text` after all `cuts`.
pub(super) fn cut<'a>(cuts: &[Cut], text: &'a str, is_first: bool) -> Vec<Cow<'a, str>> {
    let mut words = vec![Cow::Borrowed(text)];
    for cut in cuts {
        let before = std::mem::take(&mut words);
        for (place, word) in before.into_iter().enumerate() {
            cut.apply(word, is_first && place == 0, &mut words);
        }
    }
    words.retain(|word| !word.is_empty());
    words
}
