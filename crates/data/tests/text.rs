//! The tokenizers against recorded ids, on hostile files and on arbitrary text.
//!
//! `testdata/text/clip_cases.json` was made with the original `SimpleTokenizer` (ftfy 6.3.1),
//! `open_clip` 3.3.0 and transformers 5.23.0; `bert/cases.json` with transformers 5.23.0;
//! `tiny_clip` holds the vocabulary of a tiny model, whose ids are those of transformers 5.23.0.
#![allow(clippy::unwrap_used)] // A failed test is to panic.

use std::path::PathBuf;

use ocelli_data::text::{
    Behaviour, BertTokenizer, ClassNames, ClipTokenizer, Ensemble, Language, TextError, Truncate,
    prompts, templates, train_vocabulary,
};
use proptest::prelude::*;
use serde::Deserialize;

const BEHAVIOURS: [Behaviour; 3] = [Behaviour::OpenAi, Behaviour::OpenClip, Behaviour::HuggingFace];
const CONTEXT: usize = 77;

fn testdata(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata/text").join(name)
}

fn read(name: &str) -> Vec<u8> {
    std::fs::read(testdata(name)).unwrap()
}

#[derive(Deserialize)]
struct ClipCase {
    text: String,
    ids: Vec<u32>,
    context77: Vec<u32>,
    too_long: bool,
    hf_ids: Vec<u32>,
    decoded: String,
    open_clip_context77: Option<Vec<u32>>,
}

fn clip_cases() -> Vec<ClipCase> {
    let cases: Vec<ClipCase> = serde_json::from_slice(&read("clip_cases.json")).unwrap();
    assert_eq!(cases.len(), 212);
    cases
}

fn padded(mut ids: Vec<u32>, pad: u32) -> Vec<u32> {
    ids.resize(CONTEXT, pad);
    ids
}

#[test]
fn clip_ids_are_those_of_the_original() {
    let tokenizer = ClipTokenizer::builtin(Behaviour::OpenAi);
    assert_eq!(tokenizer.vocab_size(), 49_408);
    for case in clip_cases() {
        let ClipCase { text, ids, context77, too_long, decoded, .. } = case;
        assert_eq!(tokenizer.encode_raw(&text), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), decoded, "{text:?}");
        let cut = tokenizer.encode(&text, CONTEXT, Truncate::Cut).unwrap();
        assert_eq!(cut, padded(context77, 0), "{text:?}");
        let refused = tokenizer.encode(&text, CONTEXT, Truncate::Error).is_err();
        assert_eq!(refused, too_long, "{text:?}");
    }
}

#[test]
fn clip_ids_are_those_of_open_clip() {
    let tokenizer = ClipTokenizer::builtin(Behaviour::OpenClip);
    for ClipCase { text, context77, open_clip_context77, .. } in clip_cases() {
        let expected = padded(open_clip_context77.unwrap_or(context77), 0);
        assert_eq!(tokenizer.encode(&text, CONTEXT, Truncate::Cut).unwrap(), expected, "{text:?}");
    }
    assert_eq!(tokenizer.encode_raw("<start_of_text>"), [49_406]);
}

#[test]
fn clip_ids_are_those_of_hugging_face() {
    let tokenizer = ClipTokenizer::builtin(Behaviour::HuggingFace);
    for ClipCase { text, hf_ids, .. } in clip_cases() {
        let expected = padded(hf_ids, tokenizer.special_tokens().end);
        assert_eq!(tokenizer.encode(&text, CONTEXT, Truncate::Cut).unwrap(), expected, "{text:?}");
    }
}

/// The texts and ids of the tiny checkpoint, without padding.
const TINY: [(&str, &[u32]); 4] = [
    ("a photo of a cat", &[898, 320, 816, 531, 539, 320, 66, 536, 899]),
    (
        "two dogs playing in the snow!",
        &[898, 83, 86, 334, 639, 70, 338, 841, 88, 519, 530, 518, 82, 692, 256, 899],
    ),
    (
        "The image shows a person riding a bicycle, near a tall building.",
        &[
            898, 518, 72, 577, 710, 719, 799, 320, 703, 825, 553, 796, 320, 65, 535, 88, 66, 579,
            267, 899,
        ],
    ),
    (
        "text: 42% off -- it's ok",
        &[898, 600, 87, 339, 281, 275, 273, 260, 684, 325, 12, 268, 585, 568, 78, 330, 899],
    ),
];

#[test]
fn a_vocabulary_of_any_size_loads_from_its_folder() {
    for behaviour in BEHAVIOURS {
        let tokenizer = ClipTokenizer::load(&testdata("tiny_clip"), behaviour).unwrap();
        let pad = if behaviour == Behaviour::HuggingFace { 899 } else { 0 };
        for (text, ids) in TINY {
            let mut expected = ids.to_vec();
            expected.resize(20, pad);
            assert_eq!(tokenizer.encode(text, 20, Truncate::Cut).unwrap(), expected, "{text}");
        }
    }
}

#[test]
fn a_tokenizer_json_gives_the_same_ids() {
    let vocab: serde_json::Value = serde_json::from_slice(&read("tiny_clip/vocab.json")).unwrap();
    let merges = String::from_utf8(read("tiny_clip/merges.txt")).unwrap();
    let merges: Vec<&str> = merges.lines().skip(1).collect();
    let pairs: Vec<Vec<&str>> = merges.iter().map(|line| line.split(' ').collect()).collect();
    for merges in [serde_json::json!(merges), serde_json::json!(pairs)] {
        let file = serde_json::json!({ "model": { "vocab": vocab, "merges": merges } });
        let bytes = file.to_string().into_bytes();
        let tokenizer =
            ClipTokenizer::from_tokenizer_json(&bytes, "tiny", Behaviour::HuggingFace).unwrap();
        for (text, ids) in TINY {
            assert_eq!(tokenizer.encode(text, ids.len(), Truncate::Cut).unwrap(), ids, "{text}");
        }
    }
}

#[test]
fn bad_files_are_refused_with_their_place() {
    let vocab = read("tiny_clip/vocab.json");
    let load = |merges: &str| {
        let result =
            ClipTokenizer::from_vocab(&vocab, merges.as_bytes(), "tiny", Behaviour::OpenAi);
        result.err().map(|error| error.to_string())
    };
    let expected = "tiny line 3: expected two symbols with a space between, found \"t h e\"";
    assert_eq!(load("#version: 0.2\ni n\nt h e\n").as_deref(), Some(expected));
    let unknown = load("#version: 0.2\nq zz\n").unwrap();
    assert!(unknown.starts_with("tiny line 2 of the merges: symbol \"qzz\""), "{unknown}");

    let from = |vocab: &str| {
        let result = ClipTokenizer::from_vocab(vocab.as_bytes(), b"", "v", Behaviour::OpenAi);
        result.err().unwrap()
    };
    assert!(matches!(from("[1]"), TextError::Json { .. }));
    assert!(matches!(from("{}"), TextError::NoSuchToken { .. }));
    let no_bytes = from(r#"{"<|startoftext|>": 0, "<|endoftext|>": 1}"#);
    assert!(matches!(no_bytes, TextError::NoByteSymbol { .. }));
    let huge = String::from_utf8(vocab.clone()).unwrap().replace(": 512,", ": 4000000000,");
    assert!(matches!(from(&huge), TextError::TokenIdTooLarge { .. }));
}

#[derive(Deserialize)]
struct BertCase {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

#[test]
fn bert_ids_are_those_of_transformers() {
    let tokenizer = BertTokenizer::load(&testdata("bert")).unwrap();
    let vocab = String::from_utf8(read("bert/vocab.txt")).unwrap();
    let ids: serde_json::Map<_, _> =
        vocab.lines().map(String::from).zip((0..).map(|id| serde_json::json!(id))).collect();
    let file = serde_json::json!({
        "model": { "vocab": ids },
        "normalizer": { "type": "BertNormalizer", "lowercase": true, "strip_accents": null },
    });
    let bytes = file.to_string().into_bytes();
    let from_json = BertTokenizer::from_tokenizer_json(&bytes, "bert").unwrap();
    let cases: Vec<BertCase> = serde_json::from_slice(&read("bert/cases.json")).unwrap();
    assert_eq!(cases.len(), 45);
    for BertCase { text, ids, decoded } in cases {
        for tokenizer in [&tokenizer, &from_json] {
            assert_eq!(tokenizer.encode(&text, 512, Truncate::Error).unwrap(), ids, "{text:?}");
        }
        assert_eq!(tokenizer.decode(&ids).unwrap(), decoded, "{text:?}");
    }
}

#[test]
fn bert_batches_are_padded_and_masked() {
    let tokenizer = BertTokenizer::load(&testdata("bert")).unwrap();
    let texts = ["Hello world", "a", "hello double space"];
    let batch = tokenizer.encode_batch(&texts, 4, Truncate::Cut).unwrap();
    assert_eq!((batch.batch, batch.tokens), (3, 4));
    assert_eq!(batch.ids, [101, 7592, 2088, 102, 101, 1037, 102, 0, 101, 7592, 3313, 102]);
    assert_eq!(batch.attention_mask, [1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1]);
    let refused = tokenizer.encode_batch(&texts, 4, Truncate::Error);
    assert!(matches!(refused, Err(TextError::TextTooLong { tokens: 5, context_length: 4 })));
}

#[test]
fn a_trained_vocabulary_is_small_and_covers_any_text() {
    let mut corpus = Vec::new();
    for (language, ensemble) in
        [(Language::English, Ensemble::Imagenet7), (Language::Chinese, Ensemble::ImagenetChinese80)]
    {
        let templates = templates(ensemble);
        for name in ClassNames::imagenet(language) {
            corpus.extend(prompts(&name, &templates[..7]).unwrap());
        }
    }
    let texts = || corpus.iter().map(String::as_str);
    let files = train_vocabulary(texts(), 3000, Behaviour::OpenAi).unwrap();
    assert_eq!(files, train_vocabulary(texts(), 3000, Behaviour::OpenAi).unwrap());
    let small = ClipTokenizer::from_vocab(
        files.vocab_json.as_bytes(),
        files.merges_txt.as_bytes(),
        "trained",
        Behaviour::OpenAi,
    )
    .unwrap();
    assert_eq!(small.vocab_size(), 3000);
    assert_eq!(small.encode_raw("a photo of the large 猫的照片。").len(), 7);
    let full = ClipTokenizer::builtin(Behaviour::OpenAi);
    let count = |tokenizer: &ClipTokenizer| -> usize {
        texts().map(|text| tokenizer.encode_raw(text).len()).sum()
    };
    assert!(count(&small) < count(&full));
    for text in texts().chain(["unseen Ωμέγα 龘 🐱 text"]) {
        let decoded = |tokenizer: &ClipTokenizer| tokenizer.decode(&tokenizer.encode_raw(text));
        assert_eq!(decoded(&small).unwrap(), decoded(&full).unwrap());
    }
    let refused = train_vocabulary(["a"], 513, Behaviour::OpenAi);
    assert!(matches!(refused, Err(TextError::VocabularyTooSmall { .. })));
}

#[test]
fn threads_share_a_tokenizer() {
    let tokenizer = ClipTokenizer::builtin(Behaviour::OpenAi);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for case in clip_cases() {
                    assert_eq!(tokenizer.encode_raw(&case.text), case.ids);
                }
            });
        }
    });
}

#[test]
fn one_huge_word_takes_no_time() {
    let tokenizer = ClipTokenizer::builtin(Behaviour::HuggingFace);
    let word = "abcdefghij".repeat(100_000);
    assert!(tokenizer.encode_raw(&word).len() < word.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_text_encodes(text in any::<String>()) {
        static TOKENIZERS: std::sync::LazyLock<[ClipTokenizer; 3]> =
            std::sync::LazyLock::new(|| BEHAVIOURS.map(ClipTokenizer::builtin));
        for tokenizer in TOKENIZERS.iter() {
            let ids = tokenizer.encode_raw(&text);
            let decoded = tokenizer.decode(&ids).unwrap();
            if tokenizer.behaviour() == Behaviour::HuggingFace {
                prop_assert_eq!(tokenizer.encode_raw(&decoded), ids);
            }
            prop_assert_eq!(tokenizer.encode(&text, 16, Truncate::Cut).unwrap().len(), 16);
        }
    }

    #[test]
    fn any_text_encodes_for_bert(text in any::<String>()) {
        static TOKENIZER: std::sync::LazyLock<BertTokenizer> =
            std::sync::LazyLock::new(|| BertTokenizer::load(&testdata("bert")).unwrap());
        let ids = TOKENIZER.encode(&text, 16, Truncate::Cut).unwrap();
        prop_assert!(ids.len() <= 16);
        TOKENIZER.decode(&ids).unwrap();
    }
}
