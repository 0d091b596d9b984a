//! The BERT tokenizer (Devlin et al. 2018, section 4.1; `WordPiece` of Wu et al. 2016): cleaning,
//! words and punctuation, then the longest known pieces from the left.
//!
//! Gives the ids of transformers' fast `BertTokenizer`. Reads `vocab.txt` or `tokenizer.json`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::LazyLock;

use regex::Regex;
use serde::Deserialize;
use unicode_normalization::UnicodeNormalization;

use super::Truncate;
use super::clip_words::split_at_literals;
use super::error::{Result, TextError};
use super::files::{parse_json, read_file, read_if_present, utf8};

/// What a piece within a word starts with in the vocabulary.
const CONTINUATION: &str = "##";
/// Longer words are unknown, in characters.
const MAX_WORD: usize = 100;

/// White space is one space; zero characters, controls and private-use characters are nothing.
static UNWANTED: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"[\x00\u{fffd}\p{Cc}\p{Cf}\p{Co}]").expect("constant pattern"));
static ACCENT: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\p{Mn}+").expect("constant pattern"));
/// A sign of punctuation, or a run of anything else but white space.
static WORDS: LazyLock<Regex> = LazyLock::new(|| {
    let punctuation = r"!-/:-@\[-`{-~\p{P}";
    Regex::new(&format!(r"[{punctuation}]|[^\s{punctuation}]+")).expect("constant pattern")
});

/// A BERT tokenizer; it may be shared between threads.
pub struct BertTokenizer {
    pieces: Vec<String>,
    /// Pieces that start a word.
    starts: HashMap<String, u32>,
    /// Pieces within a word, without their mark.
    continuations: HashMap<String, u32>,
    special: BertSpecialTokens,
    /// Special tokens that text may spell out.
    literals: Vec<(String, u32)>,
    cleaning: Cleaning,
}

/// Ids of BERT's special tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BertSpecialTokens {
    /// The token before every text, `[CLS]`.
    pub class: u32,
    /// The token after every text, `[SEP]`.
    pub separator: u32,
    /// What fills a row of a batch, `[PAD]`.
    pub pad: u32,
    /// A word without known pieces, `[UNK]`.
    pub unknown: u32,
}

/// Texts of a batch as ids, each row filled up to the longest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBatch {
    /// Ids, `[batch, tokens]`.
    pub ids: Vec<u32>,
    /// 1 for a token of the text, 0 for padding, `[batch, tokens]`.
    pub attention_mask: Vec<u32>,
    /// Rows.
    pub batch: usize,
    /// Tokens in each row.
    pub tokens: usize,
}

/// Which changes a text undergoes; the `normalizer` of a `tokenizer.json`.
#[derive(Clone, Copy, Deserialize)]
#[serde(default)]
struct Cleaning {
    clean_text: bool,
    handle_chinese_chars: bool,
    /// Follows `lowercase` when left open.
    strip_accents: Option<bool>,
    lowercase: bool,
}

impl Default for Cleaning {
    fn default() -> Self {
        Self { clean_text: true, handle_chinese_chars: true, strip_accents: None, lowercase: true }
    }
}

impl BertTokenizer {
    /// Reads a `vocab.txt`, one piece a line. `lowercase` is `do_lower_case` of its model; `file`
    /// is its name in messages.
    ///
    /// # Errors
    ///
    /// [`TextError::FileTooLarge`], [`TextError::NotUtf8`], or [`TextError::NoSuchToken`] if a special token
    /// is missing.
    pub fn from_vocab_txt(bytes: &[u8], file: &str, lowercase: bool) -> Result<Self> {
        let pieces = utf8(bytes, file)?.lines().map(|line| line.trim_end().to_owned()).collect();
        Self::new(pieces, file, Cleaning { lowercase, ..Cleaning::default() })
    }

    /// Reads a `tokenizer.json` with a `WordPiece` model. `file` is its name in messages.
    ///
    /// # Errors
    ///
    /// [`TextError::FileTooLarge`], [`TextError::Json`], [`TextError::TokenIdTooLarge`] if ids have gaps, or
    /// [`TextError::NoSuchToken`] if a special token is missing.
    pub fn from_tokenizer_json(bytes: &[u8], file: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Model {
            vocab: HashMap<String, u32>,
        }
        #[derive(Deserialize)]
        struct TokenizerFile {
            model: Model,
            normalizer: Cleaning,
        }
        let TokenizerFile { model, normalizer } = parse_json(bytes, file)?;
        let limit = model.vocab.len();
        let mut pieces = vec![String::new(); limit];
        for (piece, id) in model.vocab {
            let id = id as usize;
            let too_large = || TextError::TokenIdTooLarge { file: file.to_owned(), id, limit };
            *pieces.get_mut(id).ok_or_else(too_large)? = piece;
        }
        Self::new(pieces, file, normalizer)
    }

    /// Opens a `vocab.txt`, a `tokenizer.json`, or a folder with either; beside a `vocab.txt`,
    /// `tokenizer_config.json` says whether text is lower-cased.
    ///
    /// # Errors
    ///
    /// [`TextError::Io`] if a file cannot be read, and those of the other constructors.
    pub fn load(path: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Config {
            do_lower_case: Option<bool>,
        }
        let path = match path.join("tokenizer.json") {
            tokenizer if tokenizer.is_file() => tokenizer,
            _ if path.is_dir() => path.join("vocab.txt"),
            _ => path.to_owned(),
        };
        let (bytes, name) = (read_file(&path)?, path.display().to_string());
        if path.extension().is_some_and(|extension| extension == "json") {
            return Self::from_tokenizer_json(&bytes, &name);
        }
        let config = path.with_file_name("tokenizer_config.json");
        let lowercase = match read_if_present(&config)? {
            Some(bytes) => {
                parse_json::<Config>(&bytes, &config.display().to_string())?.do_lower_case
            }
            None => None,
        };
        Self::from_vocab_txt(&bytes, &name, lowercase.unwrap_or(true))
    }

    fn new(pieces: Vec<String>, file: &str, cleaning: Cleaning) -> Result<Self> {
        let mut starts = HashMap::with_capacity(pieces.len());
        let mut continuations = HashMap::new();
        for (piece, id) in pieces.iter().zip(0..) {
            starts.insert(piece.clone(), id);
            if let Some(rest) = piece.strip_prefix(CONTINUATION) {
                continuations.insert(rest.to_owned(), id);
            }
        }
        let id_of = |name: &str| {
            let missing =
                || TextError::NoSuchToken { file: file.to_owned(), token: name.to_owned() };
            starts.get(name).copied().ok_or_else(missing)
        };
        let special = BertSpecialTokens {
            class: id_of("[CLS]")?,
            separator: id_of("[SEP]")?,
            pad: id_of("[PAD]")?,
            unknown: id_of("[UNK]")?,
        };
        let literals = ["[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"]
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), *starts.get(name)?)))
            .collect();
        Ok(Self { pieces, starts, continuations, special, literals, cleaning })
    }

    /// Ids of the special tokens.
    pub fn special_tokens(&self) -> &BertSpecialTokens {
        &self.special
    }

    /// How many ids there are, special tokens included.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// The ids of `text` without the tokens around it.
    pub fn encode_raw(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        for (before, special) in split_at_literals(text, &self.literals) {
            for word in WORDS.find_iter(&self.clean(before)) {
                self.encode_word(word.as_str(), &mut ids);
            }
            ids.extend(special);
        }
        ids
    }

    /// The ids of `text` between class token and separator, without padding.
    ///
    /// # Errors
    ///
    /// [`TextError::TextTooLong`] if there are more than `max_tokens` and `truncate` says so, or if
    /// not even the two special tokens fit.
    pub fn encode(&self, text: &str, max_tokens: usize, truncate: Truncate) -> Result<Vec<u32>> {
        let mut ids = vec![self.special.class];
        ids.extend(self.encode_raw(text));
        let tokens = ids.len() + 1;
        if max_tokens < 2 || (tokens > max_tokens && truncate == Truncate::Error) {
            return Err(TextError::TextTooLong { tokens, context_length: max_tokens });
        }
        ids.truncate(max_tokens - 1);
        ids.push(self.special.separator);
        Ok(ids)
    }

    /// As [`encode`](Self::encode) for many texts, padded to the longest of them.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub fn encode_batch(
        &self,
        texts: &[&str],
        max_tokens: usize,
        truncate: Truncate,
    ) -> Result<TokenBatch> {
        let rows = texts
            .iter()
            .map(|text| self.encode(text, max_tokens, truncate))
            .collect::<Result<Vec<_>>>()?;
        let tokens = rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut ids = Vec::with_capacity(rows.len() * tokens);
        let mut attention_mask = Vec::with_capacity(rows.len() * tokens);
        for row in &rows {
            let padding = tokens - row.len();
            ids.extend(row.iter().copied().chain(std::iter::repeat_n(self.special.pad, padding)));
            attention_mask.extend(std::iter::repeat_n(1, row.len()));
            attention_mask.extend(std::iter::repeat_n(0, padding));
        }
        Ok(TokenBatch { ids, attention_mask, batch: rows.len(), tokens })
    }

    /// The text of `ids` without special tokens: pieces joined to words, words parted by a space,
    /// except before `.`, `?`, `!` and `,`.
    ///
    /// # Errors
    ///
    /// [`TextError::TokenOutOfRange`] if an id is not in the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let mut text = String::new();
        for &id in ids {
            if id as usize >= self.pieces.len() {
                return Err(TextError::TokenOutOfRange { id, vocab: self.pieces.len() });
            }
            if !self.is_special(id) {
                let has_begun = !text.is_empty();
                self.print(id, has_begun, &mut |printed| text.push_str(printed));
            }
        }
        Ok(text)
    }

    /// Hands out what a piece adds to a text that `has_begun`; an unknown id adds nothing.
    pub(super) fn print(&self, id: u32, has_begun: bool, take: &mut dyn FnMut(&str)) {
        let Some(piece) = self.piece(id) else { return };
        match piece.strip_prefix(CONTINUATION) {
            Some(rest) if has_begun => take(rest),
            _ => {
                if has_begun && !piece.starts_with(['.', '?', '!', ',']) {
                    take(" ");
                }
                take(piece);
            }
        }
    }

    /// The piece with this id, as the vocabulary spells it.
    pub(super) fn piece(&self, id: u32) -> Option<&str> {
        self.pieces.get(id as usize).map(String::as_str)
    }

    /// The id of a piece, as the vocabulary spells it.
    pub(super) fn id_of(&self, piece: &str) -> Option<u32> {
        self.starts.get(piece).copied()
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.literals.iter().any(|&(_, special)| special == id)
    }

    fn clean(&self, text: &str) -> String {
        let Cleaning { clean_text, handle_chinese_chars, strip_accents, lowercase } = self.cleaning;
        let mut cleaned = text.to_owned();
        if clean_text {
            // White space among the controls is kept, as a space.
            cleaned = cleaned.replace(['\t', '\n', '\r'], " ");
            cleaned = UNWANTED.replace_all(&cleaned, "").into_owned();
        }
        if handle_chinese_chars && !cleaned.is_ascii() {
            let spaced = |c: char| {
                let space = is_chinese(c).then_some(' ');
                space.into_iter().chain([c]).chain(space)
            };
            cleaned = cleaned.chars().flat_map(spaced).collect();
        }
        if strip_accents.unwrap_or(lowercase) && !cleaned.is_ascii() {
            let decomposed: String = cleaned.nfd().collect();
            cleaned = ACCENT.replace_all(&decomposed, "").into_owned();
        }
        if lowercase {
            cleaned = cleaned.chars().flat_map(char::to_lowercase).collect();
        }
        cleaned
    }

    /// Appends the pieces of `word`, or the unknown token when a part of it has none.
    fn encode_word(&self, word: &str, ids: &mut Vec<u32>) {
        let before = ids.len();
        let bounds: Vec<usize> =
            word.char_indices().map(|(at, _)| at).chain([word.len()]).collect();
        let is_known = bounds.len() <= MAX_WORD + 1 && {
            let mut start = 0;
            while start + 1 < bounds.len() {
                let known = if start == 0 { &self.starts } else { &self.continuations };
                let longest = (start + 1..bounds.len())
                    .rev()
                    .find_map(|end| Some((end, *known.get(&word[bounds[start]..bounds[end]])?)));
                let Some((end, id)) = longest else { break };
                ids.push(id);
                start = end;
            }
            start + 1 == bounds.len()
        };
        if !is_known {
            ids.truncate(before);
            ids.push(self.special.unknown);
        }
    }
}

/// Chinese characters, each of which is a word; not the Japanese and Korean scripts.
fn is_chinese(c: char) -> bool {
    matches!(
        c,
        '\u{4e00}'..='\u{9fff}'
            | '\u{3400}'..='\u{4dbf}'
            | '\u{20000}'..='\u{2a6df}'
            | '\u{2a700}'..='\u{2b73f}'
            | '\u{2b740}'..='\u{2b81f}'
            | '\u{2b820}'..='\u{2ceaf}'
            | '\u{f900}'..='\u{faff}'
            | '\u{2f800}'..='\u{2fa1f}'
    )
}
