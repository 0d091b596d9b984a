//! `SentencePiece` models (`tokenizer.model`, `spiece.model`): the fields that encoding needs of
//! their protocol buffer. Unknown fields are passed over.

use super::error::{Result, TextError};

/// Longer pieces are refused, in bytes; published models stay below 100.
const LONGEST_PIECE: usize = 256;

/// What a piece is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceKind {
    /// Part of texts.
    Normal,
    /// Stands for what has no piece.
    Unknown,
    /// A special token such as `<s>`, which text does not contain.
    Control,
    /// A word that is never cut.
    UserDefined,
    /// Not used.
    Unused,
    /// A byte, spelled `<0x00>` to `<0xFF>`.
    Byte,
}

impl PieceKind {
    /// The kind with this number, the same in `SentencePiece` models and in GGUF files.
    pub fn from_number(number: u64) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// An entry of a vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Its text; a space is U+2581.
    pub text: String,
    /// Its log-probability (unigram), or the higher the sooner it is built (BPE).
    pub score: f32,
    /// What it is.
    pub kind: PieceKind,
}

/// How a model cuts texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Unigram,
    Bpe,
}

/// A model file.
pub(super) struct SentencePieceModel {
    pub(super) pieces: Vec<Piece>,
    pub(super) algorithm: Algorithm,
    pub(super) byte_fallback: bool,
    pub(super) unknown: u32,
    /// Ids of the tokens before and after a text, and of padding, where the model has them.
    pub(super) start: Option<u32>,
    pub(super) end: Option<u32>,
    pub(super) pad: Option<u32>,
    pub(super) charsmap: Vec<u8>,
    /// A space goes in front of every text.
    pub(super) adds_prefix: bool,
    /// Spaces at both ends are cut off, and runs of spaces become one.
    pub(super) tidies_spaces: bool,
}

impl SentencePieceModel {
    /// Reads a model. `file` is its name in messages.
    pub(super) fn read(bytes: &[u8], file: &str) -> Result<Self> {
        let broken = |offset| TextError::BrokenModel { file: file.to_owned(), offset };
        let mut model = Self {
            pieces: Vec::new(),
            algorithm: Algorithm::Unigram,
            byte_fallback: false,
            unknown: 0,
            start: Some(1),
            end: Some(2),
            pad: None,
            charsmap: Vec::new(),
            adds_prefix: true,
            tidies_spaces: true,
        };
        let mut number = 1;
        for field in Fields::of(bytes) {
            let offset = field.map_err(broken)?.0;
            match field.map_err(broken)?.1 {
                (1, Value::Bytes(piece)) => {
                    model.pieces.push(read_piece(piece).ok_or_else(|| broken(offset))?);
                }
                (2, Value::Bytes(trainer)) => {
                    number = model.read_trainer(trainer, number).ok_or_else(|| broken(offset))?;
                }
                (3, Value::Bytes(normalizer)) => {
                    model.read_normalizer(normalizer).ok_or_else(|| broken(offset))?;
                }
                _ => {}
            }
        }
        model.algorithm = match number {
            1 => Algorithm::Unigram,
            2 => Algorithm::Bpe,
            _ => return Err(TextError::UnknownAlgorithm { file: file.to_owned(), number }),
        };
        let vocab = model.pieces.len();
        if model.unknown as usize >= vocab {
            return Err(TextError::NoSuchToken { file: file.to_owned(), token: "<unk>".into() });
        }
        for id in [&mut model.start, &mut model.end, &mut model.pad] {
            *id = id.filter(|&id| (id as usize) < vocab);
        }
        Ok(model)
    }

    /// The algorithm's number.
    fn read_trainer(&mut self, bytes: &[u8], mut number: u64) -> Option<u64> {
        for field in Fields::of(bytes) {
            // Ids are signed: -1 means none.
            let id = |value: u64| u32::try_from(value).ok();
            match field.ok()?.1 {
                (3, Value::Number(value)) => number = value,
                (35, Value::Number(value)) => self.byte_fallback = value != 0,
                (40, Value::Number(value)) => self.unknown = id(value)?,
                (41, Value::Number(value)) => self.start = id(value),
                (42, Value::Number(value)) => self.end = id(value),
                (43, Value::Number(value)) => self.pad = id(value),
                _ => {}
            }
        }
        Some(number)
    }

    fn read_normalizer(&mut self, bytes: &[u8]) -> Option<()> {
        for field in Fields::of(bytes) {
            match field.ok()?.1 {
                (2, Value::Bytes(charsmap)) => self.charsmap = charsmap.to_vec(),
                (3, Value::Number(value)) => self.adds_prefix = value != 0,
                (4, Value::Number(value)) => self.tidies_spaces = value != 0,
                _ => {}
            }
        }
        Some(())
    }
}

fn read_piece(bytes: &[u8]) -> Option<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: PieceKind::Normal };
    for field in Fields::of(bytes) {
        match field.ok()?.1 {
            (1, Value::Bytes(text)) if text.len() <= LONGEST_PIECE => {
                std::str::from_utf8(text).ok()?.clone_into(&mut piece.text);
            }
            (1, _) => return None,
            (2, Value::Word(bits)) => {
                let score = f32::from_bits(bits);
                piece.score = score.is_finite().then_some(score)?;
            }
            (3, Value::Number(number)) => piece.kind = PieceKind::from_number(number)?,
            _ => {}
        }
    }
    Some(piece)
}

/// A field's content.
#[derive(Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Word(u32),
    Bytes(&'a [u8]),
    /// Of no field that is read here.
    Other,
}

/// The fields of a message with their numbers and offsets; an error is the offset of a broken one.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let &byte = self.bytes.get(self.at)?;
            self.at += 1;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..)?.get(..count)?;
        self.at += count;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let key = self.number()?;
        let value = match key & 7 {
            0 => Value::Number(self.number()?),
            1 => self.take(8).map(|_| Value::Other)?,
            2 => {
                let count = usize::try_from(self.number()?).ok()?;
                Value::Bytes(self.take(count)?)
            }
            5 => Value::Word(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = std::result::Result<(usize, (u64, Value<'a>)), usize>;

    fn next(&mut self) -> Option<Self::Item> {
        let offset = self.at;
        if offset >= self.bytes.len() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            // Nothing after a broken field can be trusted.
            self.at = self.bytes.len();
        }
        Some(field.map(|field| (offset, field)).ok_or(offset))
    }
}
