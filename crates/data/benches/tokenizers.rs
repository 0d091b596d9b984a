//! CLIP ids of short and long texts, in the two languages of the built-in prompts.
#![allow(missing_docs, reason = "divan makes public items")]

use divan::{Bencher, black_box, counter::ItemsCount};
use ocelli_data::text::{
    Behaviour, ClassNames, ClipTokenizer, Ensemble, Language, prompts, templates,
};

fn main() {
    divan::main();
}

/// 7,000 prompts; the counter gives texts per second.
fn texts(language: Language, ensemble: Ensemble) -> Vec<String> {
    let templates = templates(ensemble);
    let names = ClassNames::imagenet(language);
    let filled = names.iter().map(|name| prompts(name, &templates[..7]));
    filled.flat_map(|texts| texts.expect("the built-in templates have a place")).collect()
}

fn encode(bencher: Bencher, texts: &[String]) {
    let tokenizer = ClipTokenizer::builtin(Behaviour::OpenAi);
    bencher.counter(ItemsCount::new(texts.len())).bench_local(|| {
        texts.iter().map(|text| tokenizer.encode_raw(black_box(text)).len()).sum::<usize>()
    });
}

#[divan::bench]
fn encode_english(bencher: Bencher) {
    encode(bencher, &texts(Language::English, Ensemble::Imagenet7));
}

#[divan::bench]
fn encode_chinese(bencher: Bencher) {
    encode(bencher, &texts(Language::Chinese, Ensemble::ImagenetChinese80));
}

#[divan::bench]
fn load_builtin() -> ClipTokenizer {
    ClipTokenizer::builtin(Behaviour::OpenAi)
}
