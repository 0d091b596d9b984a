//! Tokenizers of language models give the ids of their references: transformers 5.23.0 and
//! `SentencePiece` 0.2.3.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use ocelli_data::text::Tokenizer;
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
