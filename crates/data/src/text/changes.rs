//! What a tokenizer does to a text before it is cut.

use regex::Regex;
use unicode_normalization::UnicodeNormalization;

use super::charsmap::Charsmap;

/// One change of a whole text, or of a part between special tokens.
pub(super) enum Change {
    /// The compiled normalisation, at every place the longest sequence.
    CharsmapLongest(Charsmap),
    /// The compiled normalisation by grapheme clusters.
    CharsmapByClusters(Charsmap),
    /// No spaces at the ends, one between words.
    TidySpaces,
    /// In front of every text that is not empty.
    Prepend(String),
    Replace(String, String),
    ReplaceMatches(Regex, String),
    Trim {
        left: bool,
        right: bool,
    },
    Lowercase,
    Nfc,
    Nfd,
    Nfkc,
    Nfkd,
}

impl Change {
    pub(super) fn apply(&self, text: &str) -> String {
        match self {
            Self::CharsmapLongest(map) => map.longest(text),
            Self::CharsmapByClusters(map) => map.by_clusters(text),
            Self::TidySpaces => {
                let words: Vec<&str> = text.split(' ').filter(|word| !word.is_empty()).collect();
                words.join(" ")
            }
            Self::Prepend(front) if !text.is_empty() => format!("{front}{text}"),
            Self::Prepend(_) => String::new(),
            Self::Replace(from, to) => text.replace(from.as_str(), to),
            Self::ReplaceMatches(from, to) => {
                from.replace_all(text, regex::NoExpand(to)).into_owned()
            }
            Self::Trim { left, right } => {
                let text = if *left { text.trim_start() } else { text };
                if *right { text.trim_end() } else { text }.to_owned()
            }
            Self::Lowercase => text.to_lowercase(),
            Self::Nfc => text.nfc().collect(),
            Self::Nfd => text.nfd().collect(),
            Self::Nfkc => text.nfkc().collect(),
            Self::Nfkd => text.nfkd().collect(),
        }
    }
}
