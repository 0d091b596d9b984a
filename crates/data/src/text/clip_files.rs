//! Files that CLIP tokenizers come in: the merge file of `OpenAI`, `vocab.json` with `merges.txt`,
//! and `tokenizer.json`.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use super::bpe::{Bpe, END_OF_WORD, Parts, byte_symbols};
use super::clip_bpe::{Behaviour, ClipTokenizer, SpecialTokens};
use super::clip_words::WordSplitter;
use super::error::{Result, TextError};
use super::files::{MAX_FILE_BYTES, parse_json, read_file, read_if_present, utf8};
use super::vocabulary::VocabularyFiles;

/// The vocabulary of the published CLIP models; `assets/text/NOTICE.md` tells its origin.
const BUILTIN: &[u8] = include_bytes!("../../assets/text/bpe_simple_vocab_16e6.txt.gz");

/// Merges that CLIP uses of its merge file, which holds more.
const MERGES_OF_MERGE_FILE: usize = 48_894;

pub(super) const START: &str = "<|startoftext|>";
pub(super) const END: &str = "<|endoftext|>";

impl ClipTokenizer {
    /// The tokenizer of the published CLIP models: 49,408 ids.
    pub fn builtin(behaviour: Behaviour) -> Self {
        Self::from_merge_file(BUILTIN, "the built-in merge file", behaviour)
            .expect("the built-in merge file is whole")
    }

    /// Reads a merge file (`bpe_simple_vocab_16e6.txt`, plain or gzip), from which the vocabulary
    /// follows: byte symbols, the same at the end of a word, merges, start, end.
    /// `file` is its name in messages.
    ///
    /// # Errors
    ///
    /// [`TextError::FileTooLarge`], [`TextError::NotUtf8`], or [`TextError::BadMerge`] or
    /// [`TextError::UnknownSymbol`] with the line.
    pub fn from_merge_file(bytes: &[u8], file: &str, behaviour: Behaviour) -> Result<Self> {
        let unpacked = unpack(bytes, file)?;
        let merges = merge_lines(utf8(&unpacked, file)?, file, MERGES_OF_MERGE_FILE)?;
        let ids = symbols_of(&merges).into_iter().zip(0..).collect();
        build(&Parts { file, ids: &ids, merges: &merges }, &SpecialNames::default(), behaviour)
    }

    /// The vocabulary of [`ClipTokenizer::builtin`] in the files of Hugging Face.
    pub fn builtin_files() -> VocabularyFiles {
        let whole = "the built-in merge file is whole";
        let unpacked = unpack(BUILTIN, "the built-in merge file").expect(whole);
        let text = std::str::from_utf8(&unpacked).expect(whole);
        let merges =
            merge_lines(text, "the built-in merge file", MERGES_OF_MERGE_FILE).expect(whole);
        let lines = merges.iter().map(|(_, left, right)| format!("{left} {right}\n"));
        VocabularyFiles::new(&symbols_of(&merges), lines)
    }

    /// Reads the `vocab.json` and `merges.txt` of a Hugging Face model of any size, whose special
    /// tokens have their usual names and whose pad token is the end token.
    /// `file` is the vocabulary's name in messages.
    ///
    /// # Errors
    ///
    /// As [`from_merge_file`](Self::from_merge_file); [`TextError::Json`] if the vocabulary is no map
    /// from symbols to ids; [`TextError::NoSuchToken`] if it lacks a special token.
    pub fn from_vocab(
        vocab_json: &[u8],
        merges_txt: &[u8],
        file: &str,
        behaviour: Behaviour,
    ) -> Result<Self> {
        from_vocab(vocab_json, merges_txt, file, &SpecialNames::default(), behaviour)
    }

    /// Reads a `tokenizer.json` with a byte-level BPE of CLIP's kind.
    /// `file` is its name in messages.
    ///
    /// # Errors
    ///
    /// As [`from_vocab`](Self::from_vocab); [`TextError::Json`] names what is missing.
    pub fn from_tokenizer_json(bytes: &[u8], file: &str, behaviour: Behaviour) -> Result<Self> {
        from_tokenizer_json(bytes, file, &SpecialNames::default(), behaviour)
    }

    /// Opens a merge file, a `tokenizer.json`, or a folder that holds `vocab.json` with
    /// `merges.txt`, or `tokenizer.json`. The names of the special tokens come from
    /// `special_tokens_map.json` or `tokenizer_config.json` where the folder has one.
    ///
    /// # Errors
    ///
    /// [`TextError::Io`] if a file cannot be read, and those of the other constructors.
    pub fn load(path: &Path, behaviour: Behaviour) -> Result<Self> {
        if !path.is_dir() {
            let (bytes, name) = (read_file(path)?, path.display().to_string());
            return if path.extension().is_some_and(|extension| extension == "json") {
                Self::from_tokenizer_json(&bytes, &name, behaviour)
            } else {
                Self::from_merge_file(&bytes, &name, behaviour)
            };
        }
        let names = SpecialNames::of_folder(path)?;
        let vocab = path.join("vocab.json");
        if let Some(vocab_json) = read_if_present(&vocab)? {
            let merges = read_file(&path.join("merges.txt"))?;
            let name = vocab.display().to_string();
            return from_vocab(&vocab_json, &merges, &name, &names, behaviour);
        }
        let merge_file = path.join("bpe_simple_vocab_16e6.txt.gz");
        let tokenizer = path.join("tokenizer.json");
        if !tokenizer.is_file()
            && let Some(bytes) = read_if_present(&merge_file)?
        {
            return Self::from_merge_file(&bytes, &merge_file.display().to_string(), behaviour);
        }
        let name = tokenizer.display().to_string();
        from_tokenizer_json(&read_file(&tokenizer)?, &name, &names, behaviour)
    }
}

/// Byte symbols, the same at the end of a word, what merges make, start and end, in the order of
/// their ids.
fn symbols_of(merges: &[(usize, &str, &str)]) -> Vec<String> {
    let bytes: Vec<String> = byte_symbols().into_iter().map(|(_, c)| c.to_string()).collect();
    let final_bytes = bytes.iter().map(|symbol| format!("{symbol}{END_OF_WORD}"));
    let merged = merges.iter().map(|(_, left, right)| format!("{left}{right}"));
    let symbols = bytes.iter().cloned().chain(final_bytes).chain(merged);
    symbols.chain([START.into(), END.into()]).collect()
}

/// Spellings of the special tokens.
struct SpecialNames {
    start: String,
    end: String,
    pad: String,
}

impl Default for SpecialNames {
    fn default() -> Self {
        Self { start: START.into(), end: END.into(), pad: END.into() }
    }
}

impl SpecialNames {
    fn of_folder(folder: &Path) -> Result<Self> {
        /// A token is spelled plainly, or within an object that also has flags.
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Token {
            Plain(String),
            Flagged { content: String },
        }
        #[derive(Deserialize)]
        struct SpecialTokensMap {
            #[serde(rename = "bos_token")]
            start: Option<Token>,
            #[serde(rename = "eos_token")]
            end: Option<Token>,
            #[serde(rename = "pad_token")]
            pad: Option<Token>,
        }
        let mut names = Self::default();
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            let path = folder.join(name);
            let Some(bytes) = read_if_present(&path)? else { continue };
            let map: SpecialTokensMap = parse_json(&bytes, &path.display().to_string())?;
            let spelled = |token: Option<Token>, usual: String| match token {
                Some(Token::Plain(content) | Token::Flagged { content }) => content,
                None => usual,
            };
            names.start = spelled(map.start, names.start);
            names.end = spelled(map.end, names.end);
            names.pad = spelled(map.pad, names.pad);
            break;
        }
        Ok(names)
    }
}

fn from_vocab(
    vocab_json: &[u8],
    merges_txt: &[u8],
    file: &str,
    names: &SpecialNames,
    behaviour: Behaviour,
) -> Result<ClipTokenizer> {
    let ids: HashMap<String, u32> = parse_json(vocab_json, file)?;
    let merges = merge_lines(utf8(merges_txt, file)?, file, usize::MAX)?;
    build(&Parts { file, ids: &ids, merges: &merges }, names, behaviour)
}

fn from_tokenizer_json(
    bytes: &[u8],
    file: &str,
    names: &SpecialNames,
    behaviour: Behaviour,
) -> Result<ClipTokenizer> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Merge {
        Line(String),
        Pair([String; 2]),
    }
    #[derive(Deserialize)]
    struct Model {
        vocab: HashMap<String, u32>,
        merges: Vec<Merge>,
    }
    #[derive(Deserialize)]
    struct AddedToken {
        id: u32,
        content: String,
    }
    #[derive(Deserialize)]
    struct TokenizerFile {
        model: Model,
        #[serde(default)]
        added_tokens: Vec<AddedToken>,
    }
    let TokenizerFile { model, added_tokens } = parse_json(bytes, file)?;
    let mut ids = model.vocab;
    ids.extend(added_tokens.into_iter().map(|token| (token.content, token.id)));
    let merges = (1..)
        .zip(&model.merges)
        .map(|(number, merge)| match merge {
            Merge::Line(line) => split_merge(line, number, file),
            Merge::Pair([left, right]) => Ok((number, left.as_str(), right.as_str())),
        })
        .collect::<Result<Vec<_>>>()?;
    build(&Parts { file, ids: &ids, merges: &merges }, names, behaviour)
}

fn build(parts: &Parts<'_>, names: &SpecialNames, behaviour: Behaviour) -> Result<ClipTokenizer> {
    let id_of = |name: &str| {
        let missing =
            || TextError::NoSuchToken { file: parts.file.to_owned(), token: name.to_owned() };
        parts.ids.get(name).copied().ok_or_else(missing)
    };
    let pad = match behaviour {
        Behaviour::OpenAi | Behaviour::OpenClip => 0,
        Behaviour::HuggingFace => id_of(&names.pad)?,
    };
    let special = SpecialTokens { start: id_of(&names.start)?, end: id_of(&names.end)?, pad };
    let splitter = WordSplitter::new(behaviour, &names.start, &names.end);
    Ok(ClipTokenizer::new(Bpe::new(parts)?, splitter, special))
}

/// The first `limit` merges of a merge file after its heading, with their line numbers.
fn merge_lines<'a>(
    text: &'a str,
    file: &str,
    limit: usize,
) -> Result<Vec<(usize, &'a str, &'a str)>> {
    let numbered = (1..).zip(text.lines()).skip(1).filter(|(_, line)| !line.is_empty());
    numbered.take(limit).map(|(number, line)| split_merge(line, number, file)).collect()
}

/// The two symbols of a merge with its line.
pub(super) fn split_merge<'a>(
    line: &'a str,
    number: usize,
    file: &str,
) -> Result<(usize, &'a str, &'a str)> {
    match line.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
            Ok((number, left, right))
        }
        _ => Err(TextError::BadMerge {
            file: file.to_owned(),
            line: number,
            found: line.chars().take(80).collect(),
        }),
    }
}

/// The content of a gzip file, or the bytes themselves.
fn unpack(bytes: &[u8], file: &str) -> Result<Vec<u8>> {
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes.to_vec());
    }
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(bytes)
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut unpacked)
        .map_err(|source| TextError::Io { path: file.into(), source })?;
    if unpacked.len() as u64 > MAX_FILE_BYTES {
        return Err(TextError::FileTooLarge { file: file.to_owned(), limit: MAX_FILE_BYTES });
    }
    Ok(unpacked)
}
