//! Vocabularies of tiktoken (`qwen.tiktoken`): a line for each piece, its bytes in base64 and its id.
//! Two pieces become a third in the order of ids, so the ids are the ranks of the merges.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::added_tokens::AddedToken;
use super::bpe::byte_symbols;
use super::changes::Change;
use super::cuts;
use super::error::{Result, TextError};
use super::files::utf8;
use super::merges::PairMerges;
use super::pieces::{Algorithm, Pieces, byte_ids, texts_by_id};
use super::stream::Printing;
use super::tokenizer::{NamedTokens, Parts};

/// Longer pieces are refused, in bytes; those of Qwen stay below 260.
const LONGEST_PIECE: usize = 1024;
/// Tokens without a meaning that follow the three of a conversation.
const EXTRAS: usize = 205;
/// Marks of Qwen-VL around phrases, boxes and quadrangles, which are part of what it answers.
const MARKS: [&str; 6] = ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"];
/// Its tokens around and in place of pictures.
const PICTURES: [&str; 3] = ["<img>", "</img>", "<imgpad>"];

/// Qwen's tokenizer from its vocabulary; its special tokens follow the pieces and are in no file.
/// `file` is its name in messages.
pub(super) fn qwen(bytes: &[u8], file: &str) -> Result<Parts> {
    let symbols: HashMap<u8, char> = byte_symbols().into_iter().collect();
    let mut ids = HashMap::new();
    for (number, line) in (1..).zip(utf8(bytes, file)?.lines()).filter(|(_, l)| !l.is_empty()) {
        let broken = || TextError::BadPiece { file: file.to_owned(), line: number };
        let (piece, id) = line.split_once(' ').ok_or_else(broken)?;
        let piece = STANDARD.decode(piece).ok().ok_or_else(broken)?;
        let id: u32 = id.trim().parse().ok().ok_or_else(broken)?;
        if piece.is_empty() || piece.len() > LONGEST_PIECE {
            return Err(broken());
        }
        let text: String = piece.iter().map(|byte| symbols[byte]).collect();
        if ids.insert(text, id).is_some() {
            return Err(broken());
        }
    }
    let texts = texts_by_id(&ids, file)?;
    let ranked = texts.iter().filter_map(|text| Some((text.as_str(), *ids.get(text)?)));
    let merges = PairMerges::of_pieces(&ids, ranked.map(|(text, id)| (text, id, id)), false);
    let byte_ids = byte_ids(&ids, file)?;
    let first = texts.len() as u32;
    let conversation = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned);
    let extras = (0..EXTRAS).map(|number| format!("<|extra_{number}|>"));
    let rest = MARKS.into_iter().chain(PICTURES).map(str::to_owned);
    let special = conversation.into_iter().chain(extras).chain(rest);
    let added = (first..).zip(special).map(|(id, text)| {
        let is_mark = MARKS.contains(&text.as_str());
        if is_mark { AddedToken::plain(&text, id) } else { AddedToken::special(&text, id) }
    });
    let algorithm = Algorithm::ByteMerges { merges, byte_ids, takes_whole_words: true };
    Ok(Parts {
        added: added.collect(),
        changes: vec![Change::Nfc],
        cuts: cuts::named("qwen2").expect("its words are known").0,
        pieces: Pieces::new(texts, ids, algorithm, false, None),
        printing: Printing::ByteLevel,
        prints_unknown: false,
        named: NamedTokens { start: None, end: Some(first), unknown: None, pad: Some(first) },
        front: Vec::new(),
        back: Vec::new(),
    })
}
