//! Any bytes as vocabulary files: they load or are refused, and what loads can encode.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ocelli_data::text::{Behaviour, BertTokenizer, ClipTokenizer, Truncate};

const TEXT: &str = "A photo of <|endoftext|> 猫, it's 3 cats & [MASK]";

fuzz_target!(|bytes: &[u8]| {
    let behaviour = Behaviour::HuggingFace;
    let middle = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    let (vocab, merges) = bytes.split_at(middle);
    for tokenizer in [
        ClipTokenizer::from_merge_file(bytes, "merges", behaviour),
        ClipTokenizer::from_vocab(vocab, merges, "vocab", behaviour),
        ClipTokenizer::from_tokenizer_json(bytes, "tokenizer", behaviour),
    ]
    .into_iter()
    .flatten()
    {
        let ids = tokenizer.encode_raw(TEXT);
        tokenizer.decode(&ids).expect("the ids are its own");
    }
    for tokenizer in [
        BertTokenizer::from_vocab_txt(bytes, "vocab", true),
        BertTokenizer::from_tokenizer_json(bytes, "tokenizer"),
    ]
    .into_iter()
    .flatten()
    {
        let ids = tokenizer.encode(TEXT, 32, Truncate::Cut).expect("it is cut");
        tokenizer.decode(&ids).expect("the ids are its own");
    }
});
