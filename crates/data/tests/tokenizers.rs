//! Tokenizers of language models give the ids of their references: transformers 5.23.0 and
//! `SentencePiece` 0.2.3.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ocelli_data::text::{
    BytePairParts, NamedTokens, Piece, PieceKind, ScoredParts, TextError, Tokenizer,
};
use proptest::prelude::*;
use serde_json::Value;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/text/tokenizers").join(name)
}

fn cases(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder(name).join("cases.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn ids(case: &Value, field: &str) -> Vec<u32> {
    serde_json::from_value(case[field].clone()).unwrap()
}

/// Compares the ids of every case, and that a stream gives the text of decoding.
fn assert_ids(tokenizer: &Tokenizer, cases: &[Value], field: &str) {
    assert!(!cases.is_empty());
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let found = tokenizer.encode(text, true);
        assert_eq!(found, ids(case, field), "{field} of {text:?}");
        let mut stream = tokenizer.stream(true);
        let mut streamed: String = found.iter().map(|&id| stream.push(id)).collect();
        streamed.push_str(&stream.finish());
        assert_eq!(streamed, tokenizer.decode(&found, true));
    }
}

fn assert_decoded(tokenizer: &Tokenizer, cases: &[Value], ids_field: &str, field: &str) {
    for case in cases {
        let text = case[field].as_str().unwrap();
        assert_eq!(tokenizer.decode(&ids(case, ids_field), true), text, "{ids_field} of {case}");
    }
}

#[test]
fn gpt2_is_byte_level_bpe() {
    let tokenizer = Tokenizer::from_dir(&folder("gpt2")).unwrap();
    let cases = cases("gpt2");
    assert_ids(&tokenizer, &cases, "ids");
    assert_decoded(&tokenizer, &cases, "ids", "decoded");
}

#[test]
fn bert_is_word_piece() {
    let tokenizer = Tokenizer::from_dir(&folder("../bert")).unwrap();
    let cases = cases("../bert");
    assert_ids(&tokenizer, &cases, "ids");
    assert_decoded(&tokenizer, &cases, "ids", "decoded");
}

/// A copy of some files of a folder, with another configuration.
fn copied(name: &str, files: &[&str], config: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in files {
        std::fs::copy(folder(name).join(file), copy.path().join(file)).unwrap();
    }
    std::fs::write(copy.path().join("tokenizer_config.json"), config).unwrap();
    copy
}

#[test]
fn llama_merges_by_score_with_either_rule_for_the_space_in_front() {
    let cases = cases("llama_tiny");
    for file in ["tokenizer.json", "tokenizer.model"] {
        for (legacy, field) in [("true", "hf_legacy_ids"), ("false", "hf_ids")] {
            let config = format!(
                r#"{{"tokenizer_class": "LlamaTokenizer", "legacy": {legacy}, "bos_token": "<s>",
                    "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": true}}"#
            );
            let copy = copied("llama_tiny", &[file], &config);
            let tokenizer = Tokenizer::from_dir(copy.path()).unwrap();
            assert_ids(&tokenizer, &cases, field);
            assert_eq!(tokenizer.named().end, Some(2));
        }
    }
}

#[test]
fn sentencepiece_itself_knows_no_special_tokens() {
    for (name, file) in [("llama_tiny", "tokenizer.model"), ("t5_tiny", "spiece.model")] {
        let bytes = std::fs::read(folder(name).join(file)).unwrap();
        let tokenizer = Tokenizer::from_sentencepiece(&bytes, file).unwrap();
        let cases = cases(name);
        assert_ids(&tokenizer, &cases, "spm_ids");
        assert_decoded(&tokenizer, &cases, "spm_ids", "spm_decoded");
    }
}

#[test]
fn t5_ends_with_its_end_token_and_has_sentinels() {
    let tokenizer = Tokenizer::from_dir(&folder("t5_tiny")).unwrap();
    assert_ids(&tokenizer, &cases("t5_tiny"), "hf_ids");
    assert_eq!(tokenizer.id_of("<extra_id_0>"), Some(999));
}

/// The GPT-2 vocabulary as a GGUF file has it.
fn gpt2_parts(pre_tokenizer: &str) -> BytePairParts {
    let read = |file: &str| std::fs::read_to_string(folder("gpt2").join(file)).unwrap();
    let ids: HashMap<String, usize> = serde_json::from_str(&read("vocab.json")).unwrap();
    let mut tokens = vec![String::new(); ids.len()];
    ids.into_iter().for_each(|(token, id)| tokens[id] = token);
    let mut kinds = vec![PieceKind::Normal; tokens.len()];
    kinds[50_256] = PieceKind::Control;
    BytePairParts {
        tokens,
        kinds,
        merges: read("merges.txt").lines().skip(1).map(str::to_owned).collect(),
        pre_tokenizer: pre_tokenizer.to_owned(),
        named: NamedTokens { start: Some(50_256), end: Some(50_256), ..NamedTokens::default() },
        adds_start: false,
        adds_end: false,
    }
}

#[test]
fn byte_pairs_of_a_gguf_file_give_the_same_ids() {
    let tokenizer = Tokenizer::from_byte_pairs(gpt2_parts("gpt-2")).unwrap();
    assert_ids(&tokenizer, &cases("gpt2"), "ids");
    assert_eq!(tokenizer.encode("a<|endoftext|>b", true), [64, 50_256, 65]);
    // Ids of tokenizers 0.23.3 with the same vocabulary and the published way to cut words.
    let text = "Year 2024,\r\n\n  I'LL  go: x=12345";
    let found = |name| Tokenizer::from_byte_pairs(gpt2_parts(name)).unwrap().encode(text, true);
    let year = [220, 17, 15, 17, 19, 11, 201, 628, 220, 314, 6, 3069, 220, 467, 25, 2124, 28];
    let digits = [&[17_688], &year[..], &[16, 17, 18, 19, 20]].concat();
    assert_eq!(found("smollm"), digits);
    assert_eq!(found("qwen2"), digits);
    let threes = [&[17_688, 220, 19_004, 19], &year[5..], &[10_163, 2231]].concat();
    assert_eq!(found("llama-bpe"), threes);
    let refused = Tokenizer::from_byte_pairs(gpt2_parts("other")).err().unwrap();
    assert!(refused.to_string().contains("\"other\" is not supported"), "{refused}");
}

#[test]
fn scored_pieces_of_a_gguf_file_merge_as_in_sentencepiece() {
    let json = std::fs::read_to_string(folder("llama_tiny").join("tokenizer.json")).unwrap();
    let json: Value = serde_json::from_str(&json).unwrap();
    let ids: HashMap<String, usize> =
        serde_json::from_value(json["model"]["vocab"].clone()).unwrap();
    let mut pieces =
        vec![Piece { text: String::new(), score: 0.0, kind: PieceKind::Normal }; ids.len()];
    for (text, id) in ids {
        let kind = match id {
            0 => PieceKind::Unknown,
            1 | 2 => PieceKind::Control,
            3..=258 => PieceKind::Byte,
            _ => PieceKind::Normal,
        };
        // Pieces are numbered in the order of their scores.
        pieces[id] = Piece { text, score: -(id as f32), kind };
    }
    let named = NamedTokens { start: Some(1), end: Some(2), unknown: Some(0), pad: None };
    let parts =
        ScoredParts { pieces, adds_prefix: true, named, adds_start: false, adds_end: false };
    let tokenizer = Tokenizer::from_scored(parts).unwrap();
    let plain = cases("llama_tiny").into_iter().filter(|case| {
        let text = case["text"].as_str().unwrap();
        !text.contains("<s>") && !text.contains("</s>")
    });
    assert_ids(&tokenizer, &plain.collect::<Vec<_>>(), "spm_ids");
}

#[test]
fn streams_hold_back_parts_of_characters() {
    let tokenizer = Tokenizer::from_dir(&folder("gpt2")).unwrap();
    let ids = tokenizer.encode("🙂 é", true);
    let mut stream = tokenizer.stream(true);
    let parts: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
    assert_eq!(parts.concat() + &stream.finish(), "🙂 é");
    assert!(parts[0].is_empty(), "{parts:?}");
    // A character that ends too early, within a text and at its end.
    assert_eq!(tokenizer.decode(&[8582, 64, 8582], true), "\u{fffd}a\u{fffd}");
    assert_eq!(tokenizer.decode(&[64, 4_000_000_000, 50_256], true), "a");
    assert_eq!(tokenizer.decode(&[64, 50_256], false), "a<|endoftext|>");
}

#[test]
fn special_tokens_can_be_added() {
    let mut tokenizer = Tokenizer::from_dir(&folder("llama_tiny")).unwrap();
    assert_eq!(tokenizer.add_special_token("<im_start>"), Some(900));
    assert_eq!(tokenizer.add_special_token("</s>"), Some(2));
    assert_eq!(tokenizer.vocab_size(), 901);
    assert_eq!(tokenizer.encode("<im_start>", true), [1, 900]);
    assert_eq!(tokenizer.decode(&[1, 900], true), "");
}

#[test]
fn broken_models_are_refused_with_their_place() {
    let whole = std::fs::read(folder("t5_tiny").join("spiece.model")).unwrap();
    let load = |bytes: &[u8]| Tokenizer::from_sentencepiece(bytes, "spiece.model");
    for length in [0, 1, 2, 17, 1000, whole.len() / 2, whole.len() - 1] {
        load(&whole[..length]).err().unwrap();
    }
    let said = load(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]).err().unwrap().to_string();
    assert!(said.contains("broken at byte 0"), "{said}");
    // A piece, then model type 3.
    let said = load(&[0x0a, 3, 0x0a, 1, b'a', 0x12, 2, 0x18, 3]).err().unwrap().to_string();
    assert!(said.contains("found 3"), "{said}");
    let empty = tempfile::tempdir().unwrap();
    let refused = Tokenizer::from_dir(empty.path()).err().unwrap();
    assert!(matches!(refused, TextError::NoTokenizer { .. }));
}

#[test]
fn long_texts_take_no_time() {
    let text = "a".repeat(1 << 20);
    for name in ["gpt2", "llama_tiny", "t5_tiny"] {
        let tokenizer = Tokenizer::from_dir(&folder(name)).unwrap();
        let ids = tokenizer.encode(&text, false);
        assert_eq!(tokenizer.decode(&ids, false), text, "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A model with wrong bytes is refused, or encodes within its vocabulary.
    #[test]
    fn wrong_bytes_do_no_harm(
        is_t5: bool,
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..40),
    ) {
        let name = if is_t5 { "t5_tiny/spiece.model" } else { "llama_tiny/tokenizer.model" };
        let mut bytes = std::fs::read(folder(name)).unwrap();
        // Near the end are the settings and the normalisation.
        let start = if is_t5 { 12_000 } else { 0 };
        for (place, byte) in changes {
            let place = place.index(bytes.len() - start);
            bytes[start + place] = byte;
        }
        if let Ok(tokenizer) = Tokenizer::from_sentencepiece(&bytes, name) {
            let ids = tokenizer.encode("Ｈello ½ e\u{301} </s>\r\n  猫 3.14", true);
            prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
            tokenizer.decode(&ids, false);
        }
    }
}

/// Ids of tiktoken 0.14.0 for a small vocabulary in the file of Qwen.
#[test]
fn qwen_reads_its_vocabulary_of_tiktoken() {
    let tokenizer = Tokenizer::from_dir(&folder("qwen_tiny")).unwrap();
    let cases = cases("qwen_tiny");
    assert_ids(&tokenizer, &cases, "ids");
    assert_decoded(&tokenizer, &cases, "ids", "decoded");
    assert_eq!(tokenizer.token(tokenizer.named().end.unwrap()), Some("<|endoftext|>"));
    let broken = tempfile::tempdir().unwrap();
    for line in ["IQ==", "IQ== x", "!! 0", " 3"] {
        std::fs::write(broken.path().join("qwen.tiktoken"), line).unwrap();
        let error = Tokenizer::from_dir(broken.path()).err().unwrap().to_string();
        assert!(error.contains("line 1: expected a piece in base64"), "{error}");
    }
}

/// Ids of `SentencePiece` 0.2.3 for a small model in the file of `ChatGLM`, which spells line ends, tabs and
/// runs of spaces in pieces of their own.
#[test]
fn chatglm_reads_line_ends_and_runs_of_spaces_as_pieces() {
    let tokenizer = Tokenizer::from_dir(&folder("glm_tiny")).unwrap();
    assert_ids(&tokenizer, &cases("glm_tiny"), "ids");
    let text = "a\n\tb   c";
    assert_eq!(tokenizer.decode(&tokenizer.encode(text, true), true), text);
}
