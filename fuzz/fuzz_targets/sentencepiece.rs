//! Any bytes as a `SentencePiece` model: it loads or is refused, and what loads can encode.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ocelli_data::text::Tokenizer;

const TEXT: &str = "A photo of </s> 猫, it's\r\n 3  cats ½ e\u{301} \u{2581}x";

fuzz_target!(|bytes: &[u8]| {
    if let Ok(tokenizer) = Tokenizer::from_sentencepiece(bytes, "tokenizer.model") {
        let ids = tokenizer.encode(TEXT, true);
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
        tokenizer.decode(&ids, false);
    }
});
