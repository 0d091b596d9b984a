//! Tokens that a text may spell out: they are found before it is cut.

use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, MatchKind};
use regex::Regex;
use serde::Deserialize;

static WORD: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\w").expect("constant pattern"));

/// A token that text may spell out, as `tokenizer.json` and `tokenizer_config.json` have it.
#[derive(Clone, Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "the files have them")]
pub(super) struct AddedToken {
    #[serde(rename = "content")]
    pub(super) text: String,
    /// Outside the token where it is a key.
    #[serde(default)]
    pub(super) id: u32,
    /// Left out where special tokens are.
    #[serde(default, rename = "special")]
    pub(super) is_special: bool,
    /// Takes the white space before it.
    #[serde(default, rename = "lstrip")]
    takes_left: bool,
    /// Takes the white space behind it.
    #[serde(default, rename = "rstrip")]
    takes_right: bool,
    /// Not within a word.
    #[serde(default, rename = "single_word")]
    whole_word: bool,
}

impl AddedToken {
    pub(super) fn special(text: &str, id: u32) -> Self {
        Self {
            text: text.to_owned(),
            id,
            is_special: true,
            takes_left: false,
            takes_right: false,
            whole_word: false,
        }
    }

    /// One that is part of what is written.
    pub(super) fn plain(text: &str, id: u32) -> Self {
        Self { is_special: false, ..Self::special(text, id) }
    }
}

/// A part of a text.
pub(super) enum Part<'a> {
    /// Text, and whether the whole text starts with it.
    Text(&'a str, bool),
    Token(u32),
}

/// All such tokens of a tokenizer.
pub(super) struct AddedTokens {
    tokens: Vec<AddedToken>,
    finder: Option<AhoCorasick>,
}

impl AddedTokens {
    /// `tokens` without empty ones; of two with one text the first counts.
    pub(super) fn new(mut tokens: Vec<AddedToken>) -> Self {
        let mut seen = std::collections::HashSet::new();
        tokens.retain(|token| !token.text.is_empty() && seen.insert(token.text.clone()));
        let texts = tokens.iter().map(|token| token.text.as_str());
        // Building fails only beyond the memory that a vocabulary file may ask for.
        let finder = (!tokens.is_empty())
            .then(|| AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts))
            .and_then(std::result::Result::ok);
        Self { tokens, finder }
    }

    pub(super) fn tokens(&self) -> &[AddedToken] {
        &self.tokens
    }

    /// The parts of `text` in order; text parts are not empty.
    pub(super) fn parts<'a>(&self, text: &'a str) -> Vec<Part<'a>> {
        let mut parts = Vec::new();
        let mut start = 0;
        for found in self.finder.iter().flat_map(|finder| finder.find_iter(text)) {
            let token = &self.tokens[found.pattern()];
            let (mut from, mut to) = (found.start(), found.end());
            let is_word = |c: char| WORD.is_match(c.encode_utf8(&mut [0; 4]));
            let joined = text[..from].chars().next_back().is_some_and(is_word)
                || text[to..].chars().next().is_some_and(is_word);
            if from < start || (token.whole_word && joined) {
                continue;
            }
            if token.takes_left {
                from = start + text[start..from].trim_end().len();
            }
            if token.takes_right {
                to = text.len() - text[to..].trim_start().len();
            }
            if from > start {
                parts.push(Part::Text(&text[start..from], start == 0));
            }
            parts.push(Part::Token(token.id));
            start = to;
        }
        if start < text.len() {
            parts.push(Part::Text(&text[start..], start == 0));
        }
        parts
    }
}
