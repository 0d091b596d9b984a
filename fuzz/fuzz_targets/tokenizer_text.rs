//! Any text: repair, encoding and decoding must neither panic nor leave the vocabulary.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use ocelli_data::text::{Behaviour, BertTokenizer, ClipTokenizer, Truncate, fix_text};

static CLIP: LazyLock<[ClipTokenizer; 3]> = LazyLock::new(|| {
    [Behaviour::OpenAi, Behaviour::OpenClip, Behaviour::HuggingFace].map(ClipTokenizer::builtin)
});

static BERT: LazyLock<BertTokenizer> = LazyLock::new(|| {
    let vocab = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n##a\n##b\nab\n##ab\n中\né\ne\n.\n";
    BertTokenizer::from_vocab_txt(vocab.as_bytes(), "vocab.txt", true).expect("it is whole")
});

fuzz_target!(|text: &str| {
    fix_text(text);
    for tokenizer in CLIP.iter() {
        let ids = tokenizer.encode_raw(text);
        let decoded = tokenizer.decode(&ids).expect("the ids are its own");
        if tokenizer.behaviour() == Behaviour::HuggingFace {
            assert_eq!(tokenizer.encode_raw(&decoded), ids);
        }
        let row = tokenizer.encode(text, 77, Truncate::Cut).expect("it is cut");
        assert_eq!(row.len(), 77);
    }
    let ids = BERT.encode(text, 64, Truncate::Cut).expect("it is cut");
    BERT.decode(&ids).expect("the ids are its own");
});
