//! Text of ids as they come, never cut within a character.

use super::tokenizer::Tokenizer;

/// How pieces become text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Printing {
    /// Symbols stand for bytes.
    ByteLevel,
    /// Marks stand for spaces; the first space of the text may be one that encoding put there.
    SpaceMarks { drops_first_space: bool },
}

/// The text of ids that come one by one. What it returns, joined, is
/// [`decode`](Tokenizer::decode) of all the ids.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// Bytes of a character whose end has not come yet.
    pending: Vec<u8>,
    has_begun: bool,
}

impl<'a> TextStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, pending: Vec::new(), has_begun: false }
    }

    /// The text that `id` completes; empty within a character, for a special token that is
    /// skipped and for an id beyond the vocabulary.
    pub fn push(&mut self, id: u32) -> String {
        let mut text = String::new();
        if self.skip_special && self.tokenizer.is_special(id) {
            return text;
        }
        self.tokenizer.print(id, self.has_begun, &mut |printed| match printed {
            Printed::Bytes(bytes) => {
                self.pending.extend_from_slice(bytes);
                text.push_str(&complete(&mut self.pending));
            }
            Printed::Text(whole) => {
                text.push_str(&broken(&mut self.pending));
                text.push_str(whole);
            }
        });
        self.start(text)
    }

    /// The rest: U+FFFD for a character whose end never came.
    pub fn finish(mut self) -> String {
        let text = broken(&mut self.pending);
        self.start(text)
    }

    /// Drops the space that encoding put in front of the text.
    fn start(&mut self, mut text: String) -> String {
        if !self.has_begun && !text.is_empty() {
            self.has_begun = true;
            if self.tokenizer.drops_first_space() && text.starts_with(' ') {
                text.remove(0);
            }
        }
        text
    }
}

/// What an id adds.
pub(super) enum Printed<'a> {
    /// Bytes of characters that may reach into the next id.
    Bytes(&'a [u8]),
    Text(&'a str),
}

/// Takes all whole characters off `bytes`; what cannot become one is U+FFFD.
fn complete(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut rest = &bytes[..];
    loop {
        match std::str::from_utf8(rest) {
            Ok(whole) => {
                text.push_str(whole);
                rest = &[];
            }
            Err(cause) => {
                let (whole, tail) = rest.split_at(cause.valid_up_to());
                text.push_str(std::str::from_utf8(whole).expect("valid up to there"));
                rest = tail;
                if let Some(broken) = cause.error_len() {
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[broken..];
                    continue;
                }
            }
        }
        *bytes = rest.to_vec();
        return text;
    }
}

/// Gives up on what `bytes` have begun.
fn broken(bytes: &mut Vec<u8>) -> String {
    let text = String::from_utf8_lossy(bytes).into_owned();
    bytes.clear();
    text
}
