//! `tokenizer.json`: a normaliser, a way to cut words, a model, the tokens around a text and a
//! decoder. Parts that no supported model has are refused by name.

use std::collections::HashMap;

use base64::Engine;
use regex::Regex;
use serde::Deserialize;
use serde_json::Value;

use super::added_tokens::AddedToken;
use super::changes::Change;
use super::charsmap::Charsmap;
use super::clip_files::split_merge;
use super::cuts::{Cut, Prefix, Words};
use super::error::{Result, TextError};
use super::files::parse_json;
use super::merges::PairMerges;
use super::pieces::{Algorithm, Pieces, byte_ids, texts_by_id};
use super::stream::Printing;
use super::tokenizer::{NamedTokens, Parts};
use super::unigram::Unigram;

/// The file, as far as it is read.
#[derive(Deserialize)]
pub(super) struct TokenizerJson {
    pub(super) model: Model,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
}

#[derive(Deserialize)]
pub(super) struct Model {
    /// Old files leave it out.
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Vocab,
    #[serde(default)]
    merges: Vec<Merge>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    unk_token: Option<String>,
    unk_id: Option<u32>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Vocab {
    Ids(HashMap<String, u32>),
    Scores(Vec<(String, f64)>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Line(String),
    Pair([String; 2]),
}

/// A part with its kind.
#[derive(Deserialize)]
#[serde(tag = "type")]
enum Part {
    Sequence {
        #[serde(alias = "normalizers", alias = "pretokenizers", alias = "processors")]
        #[serde(alias = "decoders")]
        parts: Vec<Value>,
    },
    // Normalisers.
    Prepend {
        prepend: String,
    },
    Replace {
        pattern: Pattern,
        content: String,
    },
    Precompiled {
        precompiled_charsmap: Option<String>,
    },
    Strip {
        strip_left: Option<bool>,
        strip_right: Option<bool>,
        /// Characters to strip off the front of decoded text.
        start: Option<usize>,
    },
    Lowercase,
    #[serde(rename = "NFC")]
    Nfc,
    #[serde(rename = "NFD")]
    Nfd,
    #[serde(rename = "NFKC")]
    Nfkc,
    #[serde(rename = "NFKD")]
    Nfkd,
    // Cuts.
    ByteLevel {
        #[serde(default)]
        add_prefix_space: bool,
        use_regex: Option<bool>,
    },
    WhitespaceSplit,
    Metaspace {
        prepend_scheme: Option<String>,
        add_prefix_space: Option<bool>,
        split: Option<bool>,
    },
    Digits {
        #[serde(default)]
        individual_digits: bool,
    },
    Split {
        pattern: Pattern,
        behavior: String,
        #[serde(default)]
        invert: bool,
    },
    // Around a text.
    TemplateProcessing {
        single: Vec<Place>,
        #[serde(default)]
        special_tokens: HashMap<String, SpecialToken>,
    },
    BertProcessing {
        sep: (String, u32),
        cls: (String, u32),
    },
    RobertaProcessing {
        sep: (String, u32),
        cls: (String, u32),
    },
    // Decoders.
    ByteFallback,
    Fuse,
}

#[derive(Deserialize)]
enum Pattern {
    String(String),
    Regex(String),
}

#[derive(Deserialize)]
enum Place {
    Sequence {},
    SpecialToken { id: String },
}

#[derive(Deserialize)]
struct SpecialToken {
    ids: Vec<u32>,
}

/// The deepest nesting of sequences.
const MAX_DEPTH: usize = 8;

/// The file that is read, for messages.
struct Reader<'a> {
    file: &'a str,
}

/// Reads the file's content.
pub(super) fn read(bytes: &[u8], file: &str) -> Result<TokenizerJson> {
    parse_json(bytes, file)
}

impl TokenizerJson {
    /// Whether the model is `WordPiece`, which has a tokenizer of its own.
    pub(super) fn is_word_piece(&self) -> bool {
        self.model.kind.as_deref() == Some("WordPiece")
    }

    /// The tokenizer's parts; roles of tokens are not in this file.
    pub(super) fn into_parts(self, file: &str) -> Result<Parts> {
        if let Some(mark) = self.model.end_of_word_suffix.clone().filter(|mark| !mark.is_empty()) {
            return Err(TextError::EndsWords { file: file.to_owned(), mark });
        }
        let reader = Reader { file };
        let mut changes = Vec::new();
        reader.changes(self.normalizer, &mut changes, MAX_DEPTH)?;
        let mut cuts = Vec::new();
        let is_byte_level = reader.cuts(self.pre_tokenizer, &mut cuts, MAX_DEPTH)?;
        let (mut front, mut back) = (Vec::new(), Vec::new());
        reader.around(self.post_processor, &mut front, &mut back, MAX_DEPTH)?;
        let mut drops_first_space = false;
        reader.decoder(self.decoder, &mut drops_first_space, MAX_DEPTH)?;
        let (pieces, unknown) = reader.pieces(self.model, is_byte_level)?;
        let printing = if is_byte_level {
            Printing::ByteLevel
        } else {
            Printing::SpaceMarks { drops_first_space }
        };
        let named = NamedTokens { unknown, ..NamedTokens::default() };
        let added = self.added_tokens;
        let prints_unknown = false;
        Ok(Parts { added, changes, cuts, pieces, printing, prints_unknown, named, front, back })
    }
}

impl Reader<'_> {
    fn unsupported(&self, part: &'static str, found: &Value) -> TextError {
        let name = found.get("type").and_then(Value::as_str).map(str::to_owned);
        let found = name.unwrap_or_else(|| found.to_string().chars().take(80).collect());
        TextError::UnsupportedPart { file: self.file.to_owned(), part, found }
    }

    /// A part and what it was read from, or nothing when the file has none.
    fn part(&self, what: &'static str, value: Value) -> Result<Option<(Part, Value)>> {
        if value.is_null() {
            return Ok(None);
        }
        match Part::deserialize(&value) {
            Ok(part) => Ok(Some((part, value))),
            Err(_) => Err(self.unsupported(what, &value)),
        }
    }

    fn regex<T>(
        &self,
        pattern: &str,
        read: impl FnOnce(&str) -> std::result::Result<T, regex::Error>,
    ) -> Result<T> {
        read(pattern).map_err(|_| TextError::UnsupportedPart {
            file: self.file.to_owned(),
            part: "pattern",
            found: pattern.chars().take(80).collect(),
        })
    }

    fn changes(&self, value: Value, changes: &mut Vec<Change>, depth: usize) -> Result<()> {
        let what = "normalizer";
        let Some((part, value)) = self.part(what, value)? else { return Ok(()) };
        changes.push(match part {
            Part::Sequence { parts } if depth > 0 => {
                return parts.into_iter().try_for_each(|p| self.changes(p, changes, depth - 1));
            }
            Part::Prepend { prepend } => Change::Prepend(prepend),
            Part::Replace { pattern: Pattern::String(from), content } => {
                Change::Replace(from, content)
            }
            Part::Replace { pattern: Pattern::Regex(from), content } => {
                Change::ReplaceMatches(self.regex(&from, Regex::new)?, content)
            }
            Part::Precompiled { precompiled_charsmap } => {
                let Some(coded) = precompiled_charsmap.filter(|c| !c.is_empty()) else {
                    return Ok(());
                };
                let decoded = base64::engine::general_purpose::STANDARD.decode(coded);
                let bytes = decoded.map_err(|_| self.unsupported(what, &value))?;
                Change::CharsmapByClusters(Charsmap::read(&bytes, self.file)?)
            }
            Part::Strip { strip_left, strip_right, .. } => Change::Trim {
                left: strip_left.unwrap_or(false),
                right: strip_right.unwrap_or(false),
            },
            Part::Lowercase => Change::Lowercase,
            Part::Nfc => Change::Nfc,
            Part::Nfd => Change::Nfd,
            Part::Nfkc => Change::Nfkc,
            Part::Nfkd => Change::Nfkd,
            _ => return Err(self.unsupported(what, &value)),
        });
        Ok(())
    }

    /// Whether words become bytes in the end.
    fn cuts(&self, value: Value, cuts: &mut Vec<Cut>, depth: usize) -> Result<bool> {
        let what = "pre_tokenizer";
        let Some((part, value)) = self.part(what, value)? else { return Ok(false) };
        match part {
            Part::Sequence { parts } if depth > 0 => {
                let mut is_byte_level = false;
                for part in parts {
                    is_byte_level |= self.cuts(part, cuts, depth - 1)?;
                }
                return Ok(is_byte_level);
            }
            Part::ByteLevel { add_prefix_space, use_regex } => {
                cuts.extend(add_prefix_space.then_some(Cut::PrefixSpace));
                cuts.extend(use_regex.unwrap_or(true).then(|| Cut::Words(Words::gpt2())));
                return Ok(true);
            }
            Part::WhitespaceSplit => cuts.push(Cut::WhiteSpace),
            Part::Metaspace { prepend_scheme, add_prefix_space, split } => {
                let prefix = match (prepend_scheme.as_deref(), add_prefix_space) {
                    (Some("never"), _) | (None, Some(false)) => Prefix::Never,
                    (Some("first"), _) => Prefix::First,
                    (Some("always") | None, _) => Prefix::Always,
                    _ => return Err(self.unsupported(what, &value)),
                };
                cuts.push(Cut::SpaceMarks { prefix, splits: split.unwrap_or(true) });
            }
            Part::Digits { individual_digits } => {
                cuts.push(Cut::Digits { each: individual_digits });
            }
            Part::Split { pattern, behavior, invert } => {
                let only_matches = match (behavior.as_str(), invert) {
                    ("Isolated", _) => false,
                    ("Removed", true) => true,
                    _ => return Err(self.unsupported("way to split", &behavior.into())),
                };
                let pattern = match pattern {
                    Pattern::Regex(pattern) => pattern,
                    Pattern::String(literal) => regex::escape(&literal),
                };
                cuts.push(Cut::Words(self.regex(&pattern, |p| Words::new(p, only_matches))?));
            }
            _ => return Err(self.unsupported(what, &value)),
        }
        Ok(false)
    }

    fn around(
        &self,
        value: Value,
        front: &mut Vec<u32>,
        back: &mut Vec<u32>,
        depth: usize,
    ) -> Result<()> {
        let what = "post_processor";
        let Some((part, value)) = self.part(what, value)? else { return Ok(()) };
        match part {
            Part::Sequence { parts } if depth > 0 => {
                for part in parts {
                    self.around(part, front, back, depth - 1)?;
                }
            }
            Part::ByteLevel { .. } => {}
            Part::BertProcessing { sep, cls } | Part::RobertaProcessing { sep, cls } => {
                front.push(cls.1);
                back.push(sep.1);
            }
            Part::TemplateProcessing { single, special_tokens } => {
                let mut is_behind = false;
                for place in single {
                    match place {
                        Place::Sequence {} => is_behind = true,
                        Place::SpecialToken { id } => {
                            let token = special_tokens.get(&id);
                            let token = token.ok_or_else(|| self.unsupported(what, &id.into()))?;
                            let side = if is_behind { &mut *back } else { &mut *front };
                            side.extend_from_slice(&token.ids);
                        }
                    }
                }
            }
            _ => return Err(self.unsupported(what, &value)),
        }
        Ok(())
    }

    fn decoder(&self, value: Value, drops_first_space: &mut bool, depth: usize) -> Result<()> {
        let what = "decoder";
        let Some((part, value)) = self.part(what, value)? else { return Ok(()) };
        match part {
            Part::Sequence { parts } if depth > 0 => {
                for part in parts {
                    self.decoder(part, drops_first_space, depth - 1)?;
                }
            }
            Part::Strip { start, .. } => *drops_first_space |= start.is_some_and(|n| n > 0),
            Part::Metaspace { prepend_scheme, add_prefix_space, .. } => {
                *drops_first_space |=
                    prepend_scheme.as_deref() != Some("never") && add_prefix_space != Some(false);
            }
            Part::ByteLevel { .. } | Part::ByteFallback | Part::Fuse | Part::Replace { .. } => {}
            _ => return Err(self.unsupported(what, &value)),
        }
        Ok(())
    }

    /// The vocabulary, and the id of what it does not cover.
    fn pieces(&self, model: Model, is_byte_level: bool) -> Result<(Pieces, Option<u32>)> {
        if let Some(mark) = model.continuing_subword_prefix.filter(|mark| !mark.is_empty()) {
            return Err(self.unsupported("mark of word parts", &mark.into()));
        }
        match model.vocab {
            Vocab::Scores(scored) => {
                let unknown = model.unk_id.filter(|&id| (id as usize) < scored.len());
                let unknown = unknown.ok_or_else(|| TextError::NoSuchToken {
                    file: self.file.to_owned(),
                    token: "<unk>".to_owned(),
                })?;
                let numbered = (0..).zip(&scored);
                let unigram = Unigram::new(
                    numbered.map(|(id, (text, score))| (&**text, id, *score)),
                    unknown,
                );
                let texts: Vec<String> = scored.into_iter().map(|(text, _)| text).collect();
                let ids = texts.iter().cloned().zip(0..).collect();
                let algorithm = Algorithm::Unigram(unigram);
                let pieces = Pieces::new(texts, ids, algorithm, model.byte_fallback, Some(unknown));
                Ok((pieces, Some(unknown)))
            }
            Vocab::Ids(ids) => {
                let kind = model.kind.as_deref().unwrap_or("BPE");
                if kind != "BPE" {
                    return Err(self.unsupported("model", &kind.into()));
                }
                let texts = texts_by_id(&ids, self.file)?;
                let merges = (1..).zip(&model.merges).map(|(number, merge)| match merge {
                    Merge::Line(line) => split_merge(line, number, self.file),
                    Merge::Pair([left, right]) => Ok((number, left.as_str(), right.as_str())),
                });
                let merges = merges.collect::<Result<Vec<_>>>()?;
                let merges = PairMerges::listed(self.file, &ids, &merges)?;
                let unknown = model.unk_token.and_then(|token| ids.get(&token).copied());
                let algorithm = if is_byte_level {
                    let byte_ids = byte_ids(&ids, self.file)?;
                    let takes_whole_words = model.ignore_merges;
                    Algorithm::ByteMerges { merges, byte_ids, takes_whole_words }
                } else {
                    Algorithm::CharMerges(merges)
                };
                let pieces = Pieces::new(texts, ids, algorithm, model.byte_fallback, unknown);
                Ok((pieces, unknown))
            }
        }
    }
}
