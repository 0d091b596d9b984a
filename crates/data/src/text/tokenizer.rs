//! The tokenizers of language models: byte-level BPE (GPT-2, OPT, Llama 3, Qwen), `SentencePiece`
//! BPE (`LLaMA`, Vicuna), `SentencePiece` unigram (T5) and `WordPiece` (BERT).
//!
//! A text is parted at the special tokens that it spells out; each part is changed, cut into words
//! and encoded. Reading the files is in `tokenizer_folder.rs` and `tokenizer_json.rs`.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use super::added_tokens::{AddedToken, AddedTokens, Part};
use super::bpe::byte_symbols;
use super::changes::Change;
use super::cuts::{Cut, SPACE_MARK, cut};
use super::error::{Result, TextError};
use super::pieces::{Pieces, byte_of_piece};
use super::stream::{Printed, Printing, TextStream};
use super::wordpiece::BertTokenizer;

/// What `SentencePiece` prints for an unknown character.
pub(super) const UNKNOWN_SIGN: &str = " \u{2047} ";

static BYTE_OF_SYMBOL: LazyLock<HashMap<char, u8>> =
    LazyLock::new(|| byte_symbols().into_iter().map(|(byte, symbol)| (symbol, byte)).collect());

/// Ids of the tokens that programs ask for by their role, where the tokenizer has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NamedTokens {
    /// Before a text.
    pub start: Option<u32>,
    /// After a text; a model that writes it has finished.
    pub end: Option<u32>,
    /// For what the vocabulary does not cover.
    pub unknown: Option<u32>,
    /// Fills rows of a batch.
    pub pad: Option<u32>,
}

/// The tokenizer of a language model; it may be shared between threads.
pub struct Tokenizer {
    kind: Kind,
    named: NamedTokens,
    front: Vec<u32>,
    back: Vec<u32>,
}

enum Kind {
    Pieces(Box<PieceTokenizer>),
    Bert(Box<BertTokenizer>),
}

struct PieceTokenizer {
    added: AddedTokens,
    /// Texts of added tokens by id.
    added_texts: HashMap<u32, String>,
    special: HashSet<u32>,
    changes: Vec<Change>,
    cuts: Vec<Cut>,
    pieces: Pieces,
    printing: Printing,
    /// What the unknown token prints, if not its name.
    unknown_sign: Option<&'static str>,
}

/// All that a tokenizer of pieces consists of.
pub(super) struct Parts {
    pub(super) added: Vec<AddedToken>,
    pub(super) changes: Vec<Change>,
    pub(super) cuts: Vec<Cut>,
    pub(super) pieces: Pieces,
    pub(super) printing: Printing,
    /// As `SentencePiece` itself, not as transformers: unknown characters print as a sign.
    pub(super) prints_unknown: bool,
    pub(super) named: NamedTokens,
    /// Ids before and after a text.
    pub(super) front: Vec<u32>,
    pub(super) back: Vec<u32>,
}

impl Tokenizer {
    pub(super) fn of_parts(parts: Parts) -> Self {
        let Parts { added, changes, cuts, pieces, printing, named, front, back, .. } = parts;
        let added = AddedTokens::new(added);
        let mut special: HashSet<u32> =
            added.tokens().iter().filter(|t| t.is_special).map(|t| t.id).collect();
        special.extend([named.start, named.end, named.pad].into_iter().flatten());
        let unknown_sign = parts.prints_unknown.then_some(UNKNOWN_SIGN);
        match named.unknown {
            Some(unknown) if parts.prints_unknown => {
                special.remove(&unknown);
            }
            unknown => special.extend(unknown),
        }
        let added_texts = added.tokens().iter().map(|t| (t.id, t.text.clone())).collect();
        let tokenizer = PieceTokenizer {
            added,
            added_texts,
            special,
            changes,
            cuts,
            pieces,
            printing,
            unknown_sign,
        };
        Self { kind: Kind::Pieces(Box::new(tokenizer)), named, front, back }
    }

    pub(super) fn of_bert(bert: BertTokenizer) -> Self {
        let special = bert.special_tokens();
        let (front, back) = (vec![special.class], vec![special.separator]);
        let named = NamedTokens {
            start: Some(special.class),
            end: Some(special.separator),
            unknown: Some(special.unknown),
            pad: Some(special.pad),
        };
        Self { kind: Kind::Bert(Box::new(bert)), named, front, back }
    }

    /// The ids of `text`, with the tokens that the model expects around it if `add_special`.
    pub fn encode(&self, text: &str, add_special: bool) -> Vec<u32> {
        let mut ids = if add_special { self.front.clone() } else { Vec::new() };
        match &self.kind {
            Kind::Bert(bert) => ids.extend(bert.encode_raw(text)),
            Kind::Pieces(tokenizer) => tokenizer.encode(text, true, &mut ids),
        }
        if add_special {
            ids.extend_from_slice(&self.back);
        }
        ids
    }

    /// The ids of a text that goes on behind something, such as a picture: a tokenizer that marks
    /// where a text begins alone does not mark it here.
    pub fn encode_behind(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        match &self.kind {
            Kind::Bert(bert) => ids.extend(bert.encode_raw(text)),
            Kind::Pieces(tokenizer) => tokenizer.encode(text, false, &mut ids),
        }
        ids
    }

    /// As [`Tokenizer::encode`], with the byte of `text` that each token begins at; those that the
    /// model expects around it begin at its ends. A space that encoding put in is at no byte.
    ///
    /// # Errors
    ///
    /// [`TextError::TokenElsewhere`] for a tokenizer that changes texts.
    pub fn encode_with_starts(&self, text: &str, add_special: bool) -> Result<Vec<(u32, usize)>> {
        let with_start = |start: usize| move |id: &u32| (*id, start);
        let mut tokens = Vec::new();
        if add_special {
            tokens.extend(self.front.iter().map(with_start(0)));
        }
        let mut rest = text.as_bytes();
        for id in self.encode(text, false) {
            let mut printed = Vec::new();
            self.print(id, !tokens.is_empty(), &mut |more| match more {
                Printed::Bytes(bytes) => printed.extend_from_slice(bytes),
                Printed::Text(text) => printed.extend_from_slice(text.as_bytes()),
            });
            let at = text.len() - rest.len();
            let without_space = || rest.strip_prefix(printed.strip_prefix(b" ")?);
            rest = rest.strip_prefix(&printed[..]).or_else(without_space).ok_or_else(|| {
                TextError::TokenElsewhere { token: self.token(id).unwrap_or_default().into(), at }
            })?;
            tokens.push((id, at));
        }
        if add_special {
            tokens.extend(self.back.iter().map(with_start(text.len())));
        }
        Ok(tokens)
    }

    /// The text of `ids`, without special tokens if `skip_special`. Bytes that are no UTF-8 become
    /// U+FFFD; ids beyond the vocabulary, as a padded table of embeddings has, print nothing.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut stream = self.stream(skip_special);
        let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
        text.push_str(&stream.finish());
        text
    }

    /// The text of ids that come one by one.
    pub fn stream(&self, skip_special: bool) -> TextStream<'_> {
        TextStream::new(self, skip_special)
    }

    /// Ids of the tokens with a role.
    pub fn named(&self) -> &NamedTokens {
        &self.named
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        match &self.kind {
            Kind::Bert(bert) => bert.vocab_size(),
            Kind::Pieces(tokenizer) => {
                let added = tokenizer.added_texts.keys().map(|&id| id as usize + 1).max();
                tokenizer.pieces.texts.len().max(added.unwrap_or(0))
            }
        }
    }

    /// Pieces of the vocabulary, without tokens that were added to it and without T5's sentinels, which
    /// only texts that spell them out need.
    pub fn pieces(&self) -> usize {
        match &self.kind {
            Kind::Bert(bert) => bert.vocab_size(),
            Kind::Pieces(tokenizer) => {
                let texts = tokenizer.pieces.texts.iter().rev();
                texts.skip_while(|text| text.starts_with("<extra_id_")).count()
            }
        }
    }

    /// The id of a piece or special token, as the vocabulary spells it.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        match &self.kind {
            Kind::Bert(bert) => bert.id_of(token),
            Kind::Pieces(tokenizer) => {
                let added = tokenizer.added.tokens().iter().find(|t| t.text == token);
                added.map(|t| t.id).or_else(|| tokenizer.pieces.ids.get(token).copied())
            }
        }
    }

    /// The piece or special token with this id, as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<&str> {
        match &self.kind {
            Kind::Bert(bert) => bert.piece(id),
            Kind::Pieces(tokenizer) => tokenizer.text_of(id),
        }
    }

    /// Whether this id is left out where special tokens are.
    pub fn is_special(&self, id: u32) -> bool {
        match &self.kind {
            Kind::Bert(bert) => bert.is_special(id),
            Kind::Pieces(tokenizer) => tokenizer.special.contains(&id),
        }
    }

    /// Makes `token` a special token that texts may spell out, and returns its id: the one that
    /// the vocabulary has, or else the next free one. `WordPiece` vocabularies cannot grow.
    pub fn add_special_token(&mut self, token: &str) -> Option<u32> {
        let next = u32::try_from(self.vocab_size()).ok()?;
        let id = self.id_of(token);
        let Kind::Pieces(tokenizer) = &mut self.kind else { return id };
        let id = id.unwrap_or(next);
        let mut added = tokenizer.added.tokens().to_vec();
        added.retain(|known| known.text != token);
        added.push(AddedToken::special(token, id));
        tokenizer.added = AddedTokens::new(added);
        tokenizer.added_texts.insert(id, token.to_owned());
        tokenizer.special.insert(id);
        Some(id)
    }

    /// Makes ids special that texts may not spell out.
    pub(super) fn hide(&mut self, ids: Vec<u32>) {
        if let Kind::Pieces(tokenizer) = &mut self.kind {
            tokenizer.special.extend(ids);
        }
    }

    pub(super) fn drops_first_space(&self) -> bool {
        matches!(&self.kind, Kind::Pieces(t)
            if t.printing == Printing::SpaceMarks { drops_first_space: true })
    }

    /// Hands out what `id` adds to a text that `has_begun`.
    pub(super) fn print(&self, id: u32, has_begun: bool, take: &mut dyn FnMut(Printed<'_>)) {
        match &self.kind {
            Kind::Pieces(tokenizer) => tokenizer.print(id, take),
            Kind::Bert(bert) => bert.print(id, has_begun, &mut |text| take(Printed::Text(text))),
        }
    }
}

impl PieceTokenizer {
    /// `begins` says that nothing stands before `text`.
    fn encode(&self, text: &str, begins: bool, ids: &mut Vec<u32>) {
        for part in self.added.parts(text) {
            match part {
                Part::Token(id) => ids.push(id),
                Part::Text(text, is_first) => {
                    let mut changed = std::borrow::Cow::Borrowed(text);
                    for change in &self.changes {
                        changed = change.apply(&changed).into();
                    }
                    for word in cut(&self.cuts, &changed, begins && is_first) {
                        self.pieces.encode_word(&word, ids);
                    }
                }
            }
        }
    }

    fn text_of(&self, id: u32) -> Option<&str> {
        let piece = || self.pieces.texts.get(id as usize).map(String::as_str);
        self.added_texts.get(&id).map(String::as_str).or_else(piece)
    }

    fn print(&self, id: u32, take: &mut dyn FnMut(Printed<'_>)) {
        let Some(text) = self.text_of(id) else { return };
        let is_added = self.added_texts.contains_key(&id);
        match self.printing {
            Printing::ByteLevel => {
                let bytes = text.chars().map(|c| BYTE_OF_SYMBOL.get(&c).copied());
                match bytes.collect::<Option<Vec<u8>>>() {
                    Some(bytes) if !is_added => take(Printed::Bytes(&bytes)),
                    _ => take(Printed::Bytes(text.as_bytes())),
                }
            }
            Printing::SpaceMarks { .. } => match byte_of_piece(text) {
                Some(byte) if self.pieces.has_byte_pieces() => take(Printed::Bytes(&[byte])),
                _ => match self.unknown_sign {
                    Some(sign) if self.pieces.unknown() == Some(id) => take(Printed::Text(sign)),
                    _ => take(Printed::Text(&text.replace(SPACE_MARK, " "))),
                },
            },
        }
    }
}
