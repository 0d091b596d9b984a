//! The tokenizer of a model's folder: finds its files and follows what its configuration says.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::added_tokens::AddedToken;
use super::bpe::END_OF_WORD;
use super::changes::Change;
use super::charsmap::Charsmap;
use super::clip_files::split_merge;
use super::cuts::{Cut, Prefix, Words};
use super::error::{Result, TextError};
use super::files::{parse_json, read_file, read_if_present, utf8};
use super::merges::PairMerges;
use super::pieces::{Algorithm, Pieces, byte_ids, texts_by_id};
use super::sentencepiece::{self, Piece, PieceKind, SentencePieceModel};
use super::stream::Printing;
use super::tiktoken;
use super::tokenizer::{NamedTokens, Parts, Tokenizer};
use super::tokenizer_json;
use super::tokenizer_parts::{named_by_kind, numbered, unigram_pieces};
use super::wordpiece::BertTokenizer;

/// Sentinels of T5, if its configuration does not count them.
const T5_SENTINELS: u32 = 100;
/// The vocabulary of `ChatGLM`.
const ICE_TEXT: &str = "ice_text.model";
/// Most spaces that one of its pieces stands for.
const MOST_BLANKS: usize = 80;
/// More sentinels are a mistake.
const MAX_SENTINELS: u32 = 10_000;

/// `tokenizer_config.json` and `special_tokens_map.json`, as far as they are read.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    tokenizer_class: Option<String>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    add_prefix_space: Option<bool>,
    legacy: Option<bool>,
    extra_ids: Option<u32>,
    bos_token: Option<Name>,
    eos_token: Option<Name>,
    unk_token: Option<Name>,
    pad_token: Option<Name>,
    additional_special_tokens: Value,
    /// The same in newer files; some have roles in place of a list.
    extra_special_tokens: Value,
    added_tokens_decoder: BTreeMap<u32, AddedToken>,
}

/// A token is spelled plainly, or within an object that also has flags.
#[derive(Deserialize)]
#[serde(untagged)]
enum Name {
    Plain(String),
    Flagged { content: String },
}

impl Name {
    fn text(&self) -> &str {
        match self {
            Self::Plain(text) | Self::Flagged { content: text } => text,
        }
    }
}

impl Config {
    /// Reads what the folder has; `tokenizer_config.json` counts more.
    fn of_folder(folder: &Path) -> Result<Self> {
        let read = |name: &str| -> Result<Self> {
            let path = folder.join(name);
            match read_if_present(&path)? {
                Some(bytes) => parse_json(&bytes, &path.display().to_string()),
                None => Ok(Self::default()),
            }
        };
        let (mut config, map) = (read("tokenizer_config.json")?, read("special_tokens_map.json")?);
        config.bos_token = config.bos_token.or(map.bos_token);
        config.eos_token = config.eos_token.or(map.eos_token);
        config.unk_token = config.unk_token.or(map.unk_token);
        config.pad_token = config.pad_token.or(map.pad_token);
        if config.additional_special_tokens.is_null() {
            config.additional_special_tokens = map.additional_special_tokens;
        }
        Ok(config)
    }

    fn is(&self, class: &str) -> bool {
        let named = self.tokenizer_class.as_deref().unwrap_or_default();
        named.strip_suffix("Fast").unwrap_or(named) == class
    }

    fn is_internlm(&self) -> bool {
        self.is("InternLMTokenizer") || self.is("InternLMXComposerTokenizer")
    }

    /// Where a `LLaMA` tokenizer puts the space that no text has.
    fn llama_prefix(&self, is_legacy: bool) -> Prefix {
        // InternLM's marks between messages are pieces of the model, behind which no space is put.
        let is_legacy = is_legacy && !self.is_internlm();
        match (self.add_prefix_space, is_legacy) {
            (Some(false), _) => Prefix::Never,
            (_, true) => Prefix::Always,
            (_, false) => Prefix::First,
        }
    }
}

impl Tokenizer {
    /// The tokenizer of a model's folder, which has `tokenizer.json`, `tokenizer.model`,
    /// `spiece.model`, `ice_text.model`, `qwen.tiktoken`, `vocab.json` with `merges.txt` or `vocab.txt`;
    /// with several, the first of these counts. Gives the ids of transformers' tokenizers.
    ///
    /// # Errors
    ///
    /// [`TextError::NoTokenizer`] if there is none of these, [`TextError::Io`] if a file cannot be
    /// read, [`TextError::UnsupportedPart`] for rules of other models, and those of broken files.
    pub fn from_dir(folder: &Path) -> Result<Self> {
        let config = Config::of_folder(folder)?;
        let json = folder.join("tokenizer.json");
        if let Some(bytes) = read_if_present(&json)? {
            let file = json.display().to_string();
            let read = tokenizer_json::read(&bytes, &file)?;
            if read.is_word_piece() {
                return Ok(Self::of_bert(BertTokenizer::from_tokenizer_json(&bytes, &file)?));
            }
            let mut parts = read.into_parts(&file)?;
            if let Some(is_legacy) = config.legacy
                && config.is("LlamaTokenizer")
                && parts.pieces.has_byte_pieces()
            {
                // As the class builds it, whatever the file has.
                follow_llama(&mut parts, config.llama_prefix(is_legacy));
            }
            return finish(parts, &config, folder);
        }
        for name in ["tokenizer.model", "spiece.model", ICE_TEXT] {
            let path = folder.join(name);
            if let Some(bytes) = read_if_present(&path)? {
                let file = path.display().to_string();
                let model = SentencePieceModel::read(&bytes, &file)?;
                let parts = if name == ICE_TEXT {
                    of_ice_text(&model, &file)?
                } else {
                    of_model(model, &config, &file)?
                };
                return finish(parts, &config, folder);
            }
        }
        let qwen = folder.join("qwen.tiktoken");
        if let Some(bytes) = read_if_present(&qwen)? {
            let parts = tiktoken::qwen(&bytes, &qwen.display().to_string())?;
            return finish(parts, &config, folder);
        }
        let vocab = folder.join("vocab.json");
        if let Some(bytes) = read_if_present(&vocab)? {
            let merges = read_file(&folder.join("merges.txt"))?;
            let parts = of_vocab(&bytes, &merges, &config, &vocab.display().to_string())?;
            return finish(parts, &config, folder);
        }
        if folder.join("vocab.txt").is_file() {
            return Ok(Self::of_bert(BertTokenizer::load(folder)?));
        }
        Err(TextError::NoTokenizer { path: folder.to_owned() })
    }
}

fn follow_llama(parts: &mut Parts, prefix: Prefix) {
    parts.changes = Vec::new();
    parts.cuts = vec![Cut::SpaceMarks { prefix, splits: false }];
    let drops_first_space = prefix != Prefix::Never;
    parts.printing = Printing::SpaceMarks { drops_first_space };
}

/// A byte-level vocabulary and its merges.
fn of_vocab(vocab: &[u8], merges: &[u8], config: &Config, file: &str) -> Result<Parts> {
    let ids: HashMap<String, u32> = parse_json(vocab, file)?;
    if ids.contains_key(&format!("!{END_OF_WORD}")) {
        return Err(TextError::EndsWords { file: file.to_owned(), mark: END_OF_WORD.to_owned() });
    }
    let lines = (1..).zip(utf8(merges, file)?.lines());
    let lines =
        lines.filter(|(n, line)| !(line.is_empty() || *n == 1 && line.starts_with("#version")));
    let merges = lines.map(|(n, line)| split_merge(line, n, file)).collect::<Result<Vec<_>>>()?;
    let merges = PairMerges::listed(file, &ids, &merges)?;
    let byte_ids = byte_ids(&ids, file)?;
    let algorithm = Algorithm::ByteMerges { merges, byte_ids, takes_whole_words: false };
    let mut cuts = Vec::new();
    cuts.extend(config.add_prefix_space.unwrap_or(false).then_some(Cut::PrefixSpace));
    cuts.push(Cut::Words(Words::gpt2()));
    let texts = texts_by_id(&ids, file)?;
    Ok(Parts {
        added: Vec::new(),
        changes: Vec::new(),
        cuts,
        pieces: Pieces::new(texts, ids, algorithm, false, None),
        printing: Printing::ByteLevel,
        prints_unknown: false,
        named: NamedTokens::default(),
        front: Vec::new(),
        back: Vec::new(),
    })
}

/// A `SentencePiece` model by the rules of the class that the configuration names.
fn of_model(mut model: SentencePieceModel, config: &Config, file: &str) -> Result<Parts> {
    let SentencePieceModel { unknown, start, end, pad, .. } = model;
    let is_unigram = model.algorithm == sentencepiece::Algorithm::Unigram;
    if is_unigram {
        add_sentinels(&mut model.pieces, config)?;
    }
    let added = named_by_kind(model.pieces.iter().map(|piece| (&piece.text, piece.kind)));
    let parts = |pieces| Parts {
        added,
        changes: Vec::new(),
        cuts: Vec::new(),
        pieces,
        printing: Printing::SpaceMarks { drops_first_space: true },
        prints_unknown: false,
        named: NamedTokens { start, end, unknown: Some(unknown), pad },
        front: Vec::new(),
        back: Vec::new(),
    };
    if !is_unigram {
        let (texts, ids) = numbered(&model.pieces);
        let ranked = texts.iter().map(|text| (text.as_str(), ids[text], ids[text]));
        let algorithm = Algorithm::CharMerges(PairMerges::of_pieces(&ids, ranked, true));
        let mut parts = parts(Pieces::new(texts, ids, algorithm, true, Some(unknown)));
        // Models from before this setting were trained with the legacy rule.
        follow_llama(&mut parts, config.llama_prefix(config.legacy.unwrap_or(true)));
        parts.front = start.into_iter().collect();
        return Ok(parts);
    }
    let mut parts = parts(unigram_pieces(&model, |_| true));
    if !model.charsmap.is_empty() {
        let map = Charsmap::read(&model.charsmap, file)?;
        parts.changes.push(Change::CharsmapByClusters(map));
    }
    parts.cuts = vec![Cut::WhiteSpace, Cut::SpaceMarks { prefix: Prefix::Always, splits: true }];
    parts.back = end.into_iter().collect();
    Ok(parts)
}

/// `ChatGLM`'s model: pieces of their own stand for line ends, tabs and runs of spaces, and two tokens
/// behind a text say that an answer begins. A text that begins with such a piece has no mark of its start
/// before it, where `SentencePiece` puts one.
fn of_ice_text(model: &SentencePieceModel, file: &str) -> Result<Parts> {
    let is_unigram = model.algorithm == sentencepiece::Algorithm::Unigram;
    let (texts, ids) = numbered(&model.pieces);
    let id_of = |token: &str| {
        let missing = || TextError::NoSuchToken { file: file.to_owned(), token: token.to_owned() };
        ids.get(token).copied().ok_or_else(missing)
    };
    let roles = ["[gMASK]", "<sop>", "<eop>", "[MASK]", "<pad>"];
    let [mask_all, start, end, mask, pad] = roles.map(id_of);
    let (mask_all, start, end, mask, pad) = (mask_all?, start?, end?, mask.ok(), pad.ok());
    let special = [Some(mask_all), Some(start), Some(end), mask, pad].into_iter().zip(roles);
    let mut added: Vec<AddedToken> =
        special.filter_map(|(id, text)| Some(AddedToken::special(text, id?))).collect();
    let blanks = (2..=MOST_BLANKS).map(|n| (format!("<|blank_{n}|>"), " ".repeat(n)));
    let spaces = [("<n>", "\n"), ("<|tab|>", "\t")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    for (piece, stands_for) in spaces.into_iter().chain(blanks) {
        if let Some(&id) = ids.get(&piece) {
            added.push(AddedToken::plain(&stands_for, id));
        }
    }
    let pieces = if is_unigram {
        unigram_pieces(model, |kind| kind == PieceKind::Normal)
    } else {
        let ranked = model.pieces.iter().filter(|p| p.kind == PieceKind::Normal);
        let ranked = ranked.map(|p| (p.text.as_str(), ids[&p.text], ids[&p.text]));
        let algorithm = Algorithm::CharMerges(PairMerges::of_pieces(&ids, ranked, true));
        Pieces::new(texts, ids, algorithm, true, Some(model.unknown))
    };
    Ok(Parts {
        added,
        changes: Vec::new(),
        cuts: vec![Cut::SpaceMarks { prefix: Prefix::First, splits: false }],
        pieces,
        printing: Printing::SpaceMarks { drops_first_space: true },
        prints_unknown: false,
        named: NamedTokens { start: None, end: Some(end), unknown: Some(model.unknown), pad },
        front: Vec::new(),
        back: vec![mask_all, start],
    })
}

/// Appends T5's sentinels, the last one first, unless the model has them.
fn add_sentinels(pieces: &mut Vec<Piece>, config: &Config) -> Result<()> {
    let is_t5 = config.tokenizer_class.is_none() || config.is("T5Tokenizer");
    let count = config.extra_ids.unwrap_or(if is_t5 { T5_SENTINELS } else { 0 });
    if count > MAX_SENTINELS {
        let (list, found) = ("extra_ids of tokenizer_config.json", count as usize);
        return Err(TextError::ListLength { list, found, expected: T5_SENTINELS as usize });
    }
    if pieces.iter().any(|piece| piece.text == "<extra_id_0>") {
        return Ok(());
    }
    pieces.extend((0..count).rev().map(|number| Piece {
        text: format!("<extra_id_{number}>"),
        score: 0.0,
        kind: PieceKind::Control,
    }));
    Ok(())
}

/// Adds what the folder's configuration says of special tokens.
fn finish(mut parts: Parts, config: &Config, folder: &Path) -> Result<Tokenizer> {
    let path = folder.join("added_tokens.json");
    let listed: BTreeMap<String, u32> = match read_if_present(&path)? {
        Some(bytes) => parse_json(&bytes, &path.display().to_string())?,
        None => BTreeMap::new(),
    };
    for (&id, added) in &config.added_tokens_decoder {
        let mut added = added.clone();
        added.id = id;
        parts.added.push(added);
    }
    parts.added.extend(listed.iter().map(|(text, &id)| AddedToken::special(text, id)));
    let named = [&config.bos_token, &config.eos_token, &config.unk_token, &config.pad_token];
    let [start, end, unknown, pad] = named.map(|name| {
        let name = name.as_ref()?.text();
        let added = parts.added.iter().find(|token| token.text == name).map(|token| token.id);
        let id = added.or_else(|| parts.pieces.ids.get(name).copied())?;
        parts.added.push(AddedToken::special(name, id));
        Some(id)
    });
    let more = [&config.additional_special_tokens, &config.extra_special_tokens];
    let listed = more.into_iter().filter_map(Value::as_array).flatten();
    for name in listed.filter_map(Value::as_str) {
        if let Some(&id) = parts.pieces.ids.get(name) {
            parts.added.push(AddedToken::special(name, id));
        }
    }
    let known = parts.named;
    parts.named = NamedTokens {
        start: start.or(known.start),
        end: end.or(known.end),
        unknown: unknown.or(known.unknown),
        pad: pad.or(known.pad),
    };
    if config.add_bos_token.is_some() || config.add_eos_token.is_some() {
        let if_asked = |asked: Option<bool>, id: Option<u32>| {
            id.filter(|_| asked == Some(true)).into_iter().collect()
        };
        parts.front = if_asked(config.add_bos_token, parts.named.start);
        parts.back = if_asked(config.add_eos_token, parts.named.end);
    }
    Ok(Tokenizer::of_parts(parts))
}
