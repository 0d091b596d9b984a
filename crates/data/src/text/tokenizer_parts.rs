//! Tokenizers from their parts: `SentencePiece` models, and the vocabularies that GGUF files hold.

use std::collections::HashMap;
use std::path::Path;

use super::added_tokens::AddedToken;
use super::changes::Change;
use super::charsmap::Charsmap;
use super::clip_files::split_merge;
use super::cuts::{self, SPACE_MARK};
use super::error::{Result, TextError};
use super::files::read_file;
use super::merges::PairMerges;
use super::pieces::{Algorithm, Pieces, byte_ids};
use super::sentencepiece::{self, Piece, PieceKind, SentencePieceModel};
use super::stream::Printing;
use super::tokenizer::{NamedTokens, Parts, Tokenizer};
use super::unigram::Unigram;

/// A vocabulary of pieces with scores: `tokenizer.ggml.model` "llama" of a GGUF file.
pub struct ScoredParts {
    /// The vocabulary in the order of ids.
    pub pieces: Vec<Piece>,
    /// A space goes in front of every text.
    pub adds_prefix: bool,
    /// Tokens with a role.
    pub named: NamedTokens,
    /// The start token goes before every text.
    pub adds_start: bool,
    /// The end token goes after every text.
    pub adds_end: bool,
}

/// A byte-level vocabulary with merges: `tokenizer.ggml.model` "gpt2" of a GGUF file.
pub struct BytePairParts {
    /// The vocabulary in the order of ids.
    pub tokens: Vec<String>,
    /// What each token is.
    pub kinds: Vec<PieceKind>,
    /// Two symbols with a space between, in order.
    pub merges: Vec<String>,
    /// How words are cut, by the name of `tokenizer.ggml.pre`: "gpt-2", "smollm", "llama-bpe" or
    /// "qwen2".
    pub pre_tokenizer: String,
    /// Tokens with a role.
    pub named: NamedTokens,
    /// The start token goes before every text.
    pub adds_start: bool,
    /// The end token goes after every text.
    pub adds_end: bool,
}

impl Tokenizer {
    /// A tokenizer of pieces that merge by their scores. Special tokens that a text spells out are
    /// recognised; each part between them gets a space in front if texts do.
    ///
    /// # Errors
    ///
    /// [`TextError::NoSuchToken`] if the vocabulary is empty.
    pub fn from_scored(parts: ScoredParts) -> Result<Self> {
        let ScoredParts { pieces, adds_prefix, named, adds_start, adds_end } = parts;
        if pieces.is_empty() {
            let (file, token) = ("the vocabulary".to_owned(), "<unk>".to_owned());
            return Err(TextError::NoSuchToken { file, token });
        }
        let added = named_by_kind(pieces.iter().map(|piece| (&piece.text, piece.kind)));
        let mut changes = Vec::new();
        if adds_prefix {
            changes.push(Change::Prepend(" ".to_owned()));
        }
        changes.push(Change::Replace(" ".to_owned(), SPACE_MARK.to_string()));
        Ok(Self::of_parts(Parts {
            added,
            changes,
            cuts: Vec::new(),
            pieces: scored_pieces(&pieces, named.unknown),
            printing: Printing::SpaceMarks { drops_first_space: adds_prefix },
            prints_unknown: false,
            named,
            front: named.start.filter(|_| adds_start).into_iter().collect(),
            back: named.end.filter(|_| adds_end).into_iter().collect(),
        }))
    }

    /// A byte-level tokenizer.
    ///
    /// # Errors
    ///
    /// [`TextError::UnsupportedPart`] for a way to cut words that is not known,
    /// [`TextError::ListLength`], [`TextError::NoByteSymbol`], [`TextError::BadMerge`] or
    /// [`TextError::UnknownSymbol`] with the number of the merge.
    pub fn from_byte_pairs(parts: BytePairParts) -> Result<Self> {
        let BytePairParts { tokens, kinds, merges, pre_tokenizer, named, .. } = parts;
        let file = "the vocabulary";
        if kinds.len() != tokens.len() {
            let (list, found) = ("the list of token types", kinds.len());
            return Err(TextError::ListLength { list, found, expected: tokens.len() });
        }
        let Some((cuts, takes_whole_words)) = cuts::named(&pre_tokenizer) else {
            let (file, part) = (file.to_owned(), "pre-tokenizer");
            return Err(TextError::UnsupportedPart { file, part, found: pre_tokenizer });
        };
        let added = named_by_kind(tokens.iter().zip(kinds));
        let ids: HashMap<String, u32> = tokens.iter().cloned().zip(0..).collect();
        let merges = (1..).zip(&merges).map(|(number, line)| split_merge(line, number, file));
        let merges = PairMerges::listed(file, &ids, &merges.collect::<Result<Vec<_>>>()?)?;
        let byte_ids = byte_ids(&ids, file)?;
        let algorithm = Algorithm::ByteMerges { merges, byte_ids, takes_whole_words };
        Ok(Self::of_parts(Parts {
            added,
            changes: Vec::new(),
            cuts,
            pieces: Pieces::new(tokens, ids, algorithm, false, None),
            printing: Printing::ByteLevel,
            prints_unknown: false,
            named,
            front: named.start.filter(|_| parts.adds_start).into_iter().collect(),
            back: named.end.filter(|_| parts.adds_end).into_iter().collect(),
        }))
    }

    /// Opens a model as [`from_sentencepiece`](Self::from_sentencepiece) reads it.
    ///
    /// # Errors
    ///
    /// [`TextError::Io`] if the file cannot be read, and those of a broken model.
    pub fn open_sentencepiece(path: &Path) -> Result<Self> {
        Self::from_sentencepiece(&read_file(path)?, &path.display().to_string())
    }

    /// A `SentencePiece` model by the rules of `SentencePiece` itself: special tokens are not
    /// recognised in texts, and none are put around them. `file` is its name in messages.
    ///
    /// # Errors
    ///
    /// [`TextError::BrokenModel`], [`TextError::UnknownAlgorithm`], [`TextError::BrokenCharsmap`], or
    /// [`TextError::NoSuchToken`] without an unknown token.
    pub fn from_sentencepiece(bytes: &[u8], file: &str) -> Result<Self> {
        let model = SentencePieceModel::read(bytes, file)?;
        let SentencePieceModel { unknown, start, end, pad, adds_prefix, .. } = model;
        let named = NamedTokens { start, end, unknown: Some(unknown), pad };
        let mut changes = Vec::new();
        if !model.charsmap.is_empty() {
            changes.push(Change::CharsmapLongest(Charsmap::read(&model.charsmap, file)?));
        }
        if model.tidies_spaces {
            changes.push(Change::TidySpaces);
        }
        if adds_prefix {
            changes.push(Change::Prepend(" ".to_owned()));
        }
        changes.push(Change::Replace(" ".to_owned(), SPACE_MARK.to_string()));
        let listed = model.pieces.iter().map(|piece| (&piece.text, piece.kind));
        let mut added = named_by_kind(listed);
        let control: Vec<u32> = added.iter().filter(|t| t.is_special).map(|t| t.id).collect();
        added.retain(|token| !token.is_special);
        let pieces = match model.algorithm {
            sentencepiece::Algorithm::Bpe => scored_pieces(&model.pieces, Some(unknown)),
            sentencepiece::Algorithm::Unigram => {
                unigram_pieces(&model, |kind| matches!(kind, PieceKind::Normal))
            }
        };
        let mut tokenizer = Self::of_parts(Parts {
            added,
            changes,
            cuts: Vec::new(),
            pieces,
            printing: Printing::SpaceMarks { drops_first_space: adds_prefix },
            prints_unknown: true,
            named,
            front: Vec::new(),
            back: Vec::new(),
        });
        tokenizer.hide(control);
        Ok(tokenizer)
    }
}

/// The vocabulary of a unigram model; `takes_part` says which kinds texts are cut into.
pub(super) fn unigram_pieces(
    model: &SentencePieceModel,
    takes_part: impl Fn(PieceKind) -> bool,
) -> Pieces {
    let (texts, ids) = numbered(&model.pieces);
    let pieces = (0..).zip(&model.pieces).filter(|(_, piece)| takes_part(piece.kind));
    let scored = pieces.map(|(id, piece)| (piece.text.as_str(), id, f64::from(piece.score)));
    let algorithm = Algorithm::Unigram(Unigram::new(scored, model.unknown));
    Pieces::new(texts, ids, algorithm, model.byte_fallback, Some(model.unknown))
}

/// Pieces that merge by score, highest first.
fn scored_pieces(pieces: &[Piece], unknown: Option<u32>) -> Pieces {
    let (texts, ids) = numbered(pieces);
    let mut scores: Vec<f32> = pieces.iter().map(|piece| piece.score).collect();
    scores.sort_by(|a, b| b.total_cmp(a));
    scores.dedup();
    let rank = |score: f32| scores.partition_point(|s| s.total_cmp(&score).is_gt()) as u32;
    let results = (0..).zip(pieces).filter(|(_, piece)| {
        matches!(piece.kind, PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused)
    });
    let ranked = results.map(|(id, piece)| (piece.text.as_str(), id, rank(piece.score)));
    let merges = PairMerges::of_pieces(&ids, ranked, false);
    Pieces::new(texts, ids, Algorithm::CharMerges(merges), true, unknown)
}

/// Texts and ids of a list of pieces.
pub(super) fn numbered(pieces: &[Piece]) -> (Vec<String>, HashMap<String, u32>) {
    let texts: Vec<String> = pieces.iter().map(|piece| piece.text.clone()).collect();
    let ids = texts.iter().cloned().zip(0..).collect();
    (texts, ids)
}

/// Control tokens and words that are never cut, which texts may spell out.
pub(super) fn named_by_kind<'a>(
    tokens: impl Iterator<Item = (&'a String, PieceKind)>,
) -> Vec<AddedToken> {
    let added = (0..).zip(tokens).filter_map(|(id, (text, kind))| {
        let is_special = kind == PieceKind::Control;
        let is_added = is_special || kind == PieceKind::UserDefined;
        is_added.then(|| {
            let mut token = AddedToken::special(text, id);
            token.is_special = is_special;
            token
        })
    });
    added.collect()
}
