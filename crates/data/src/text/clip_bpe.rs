//! The CLIP tokenizer (Radford et al. 2021, section 2.4) as it is run by `OpenAI`, `open_clip`
//! and Hugging Face.
//!
//! Text is cleaned, lower-cased and cut into words; byte-pair encoding turns words into ids. The
//! three behaviours differ in the cleaning, in the special tokens that text may spell out and in
//! the padding. Reading the files is in `clip_files.rs`.

use super::bpe::Bpe;
use super::clip_words::{Piece, Special, WordSplitter};
use super::error::{Result, TextError};

/// The rules of which program to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// The original `SimpleTokenizer`: repairs text with [`fix_text`](super::fix_text), unescapes HTML twice, pads
    /// with 0; text may spell out the special tokens in any case.
    OpenAi,
    /// `open_clip` 3.3: as the original, but the special tokens that text may spell out are
    /// `<start_of_text>` and `<end_of_text>`.
    OpenClip,
    /// `CLIPTokenizer` of transformers 5: only Unicode normalisation form C, no repair of text;
    /// pads with the pad token of the files.
    HuggingFace,
}

/// What to do with a text that has more tokens than the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truncate {
    /// Refuse it.
    Error,
    /// Keep the front, and the end token last.
    Cut,
}

/// Ids of the special tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialTokens {
    /// The token before every text.
    pub start: u32,
    /// The token after every text, from which CLIP takes the text's features.
    pub end: u32,
    /// What fills a row up to the context length.
    pub pad: u32,
}

/// A CLIP tokenizer; it may be shared between threads.
pub struct ClipTokenizer {
    bpe: Bpe,
    splitter: WordSplitter,
    special: SpecialTokens,
}

impl ClipTokenizer {
    /// Joins a vocabulary, the rules for text and the special tokens.
    pub(super) fn new(bpe: Bpe, splitter: WordSplitter, special: SpecialTokens) -> Self {
        Self { bpe, splitter, special }
    }

    /// The rules it follows.
    pub fn behaviour(&self) -> Behaviour {
        self.splitter.behaviour()
    }

    /// Ids of the special tokens.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    /// How many ids there are, special tokens included.
    pub fn vocab_size(&self) -> usize {
        self.bpe.len()
    }

    /// The ids of `text` without start, end and padding.
    ///
    /// ```
    /// use ocelli_data::text::{Behaviour, ClipTokenizer};
    /// let tokenizer = ClipTokenizer::builtin(Behaviour::OpenAi);
    /// assert_eq!(tokenizer.encode_raw("A photo of a cat."), [320, 1125, 539, 320, 2368, 269]);
    /// ```
    pub fn encode_raw(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        self.splitter.for_each_piece(text, |piece| match piece {
            Piece::Word(word) => self.bpe.encode_word(word, &mut ids),
            Piece::Special(Special::Start) => ids.push(self.special.start),
            Piece::Special(Special::End) => ids.push(self.special.end),
        });
        ids
    }

    /// The ids of `text` between start and end, padded to `context_length`.
    ///
    /// # Errors
    ///
    /// [`TextError::TextTooLong`] if the text does not fit and `truncate` says so, or if not even the
    /// two special tokens fit.
    ///
    /// ```
    /// use ocelli_data::text::{Behaviour, ClipTokenizer, Truncate};
    /// let tokenizer = ClipTokenizer::builtin(Behaviour::OpenAi);
    /// let ids = tokenizer.encode("a cat", 6, Truncate::Error)?;
    /// assert_eq!(ids, [49406, 320, 2368, 49407, 0, 0]);
    /// # Ok::<(), ocelli_data::text::TextError>(())
    /// ```
    pub fn encode(
        &self,
        text: &str,
        context_length: usize,
        truncate: Truncate,
    ) -> Result<Vec<u32>> {
        let SpecialTokens { start, end, pad } = self.special;
        let raw = self.encode_raw(text);
        let tokens = raw.len() + 2;
        if context_length < 2 || (tokens > context_length && truncate == Truncate::Error) {
            return Err(TextError::TextTooLong { tokens, context_length });
        }
        let kept = raw.len().min(context_length - 2);
        let mut ids = Vec::with_capacity(context_length);
        ids.push(start);
        ids.extend_from_slice(&raw[..kept]);
        ids.push(end);
        ids.resize(context_length, pad);
        Ok(ids)
    }

    /// The text of `ids`: lower-case, with a space after every word.
    ///
    /// # Errors
    ///
    /// [`TextError::TokenOutOfRange`] if an id is not in the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.bpe.decode(ids)
    }
}
