//! How CLIP tokenizers clean text and cut it into words.

use regex::Regex;
use unicode_normalization::UnicodeNormalization;

use super::{Behaviour, fix_text, html};

/// A piece of a cleaned text.
#[derive(Clone, Copy)]
pub(super) enum Piece<'a> {
    /// A word, a digit, or a run of other signs; never empty.
    Word(&'a str),
    /// A special token that the text spells out.
    Special(Special),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Special {
    Start,
    End,
}

/// Cleans and cuts text by the rules of one program.
pub(super) struct WordSplitter {
    behaviour: Behaviour,
    /// Special tokens that text may spell out.
    literals: [(String, Special); 2],
    words: Regex,
}

impl WordSplitter {
    /// `start` and `end` are the special tokens as the vocabulary spells them.
    pub(super) fn new(behaviour: Behaviour, start: &str, end: &str) -> Self {
        let (start, end) = match behaviour {
            Behaviour::OpenClip => ("<start_of_text>", "<end_of_text>"),
            Behaviour::OpenAi | Behaviour::HuggingFace => (start, end),
        };
        let pattern = if behaviour == Behaviour::HuggingFace {
            // Special tokens are cut out before the text is changed.
            r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+".to_owned()
        } else {
            let [start, end] = [start, end].map(regex::escape);
            // U+0345 is left out: to a matcher that ignores case it is neither letter nor sign.
            format!(
                r"(?i:{start}|{end}|'s|'t|'re|'ve|'m|'ll|'d)|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}\u{{345}}]+"
            )
        };
        let words = Regex::new(&pattern).expect("the names are escaped and the rest is constant");
        let literals = [(start.to_owned(), Special::Start), (end.to_owned(), Special::End)];
        Self { behaviour, literals, words }
    }

    /// The rules that are followed.
    pub(super) fn behaviour(&self) -> Behaviour {
        self.behaviour
    }

    /// Hands out the pieces of `text` in order.
    pub(super) fn for_each_piece(&self, text: &str, mut take: impl FnMut(Piece<'_>)) {
        if self.behaviour != Behaviour::HuggingFace {
            for word in self.words.find_iter(&clean_as_openai(text)) {
                let special = self.literals.iter().find(|(name, _)| name == word.as_str());
                take(special.map_or(Piece::Word(word.as_str()), |&(_, s)| Piece::Special(s)));
            }
            return;
        }
        for (before, special) in split_at_literals(text, &self.literals) {
            for word in self.words.find_iter(&clean_as_hugging_face(before)) {
                take(Piece::Word(word.as_str()));
            }
            if let Some(special) = special {
                take(Piece::Special(special));
            }
        }
    }
}

/// Cuts `text` behind every literal it holds: what stands before one, and which one it is. The
/// last part has none.
pub(super) fn split_at_literals<'a, T: Copy + Ord>(
    text: &'a str,
    literals: &[(String, T)],
) -> Vec<(&'a str, Option<T>)> {
    let mut parts = Vec::new();
    // Where each literal occurs next, so that a text is searched once for each.
    let mut next: Vec<Option<usize>> = literals.iter().map(|(name, _)| text.find(name)).collect();
    let mut start = 0;
    loop {
        let first =
            next.iter().zip(literals).filter_map(|(at, literal)| Some((*at.as_ref()?, literal)));
        let Some((at, (name, value))) = first.min() else { break };
        parts.push((&text[start..at], Some(*value)));
        start = at + name.len();
        for (at, (name, _)) in next.iter_mut().zip(literals) {
            if at.is_some_and(|at| at < start) {
                *at = text[start..].find(name).map(|found| start + found);
            }
        }
    }
    parts.push((&text[start..], None));
    parts
}

/// White space needs no tidying here, because the words leave it out.
fn clean_as_openai(text: &str) -> String {
    let repaired = fix_text(text);
    html::unescape(&html::unescape(&repaired)).to_lowercase()
}

/// Lower-cases each character by itself, so that a final sigma is as any other.
fn clean_as_hugging_face(text: &str) -> String {
    text.nfc().flat_map(char::to_lowercase).collect()
}
