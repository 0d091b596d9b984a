//! What a model is said to take before it is read is what it takes afterwards.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ocelli_models::generate::{Flow, Prompt, Settings, generate};
use ocelli_models::{Files, HeadCounts, Need, Opened, Work};
use ocelli_tensor::BlockKind;
use std::path::{Path, PathBuf};

fn stored(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(name)
}

fn bytes(opened: &Opened) -> Vec<(String, u64)> {
    opened.parameters.iter().map(|p| (p.name().to_owned(), p.bytes())).collect()
}

#[test]
fn weights_take_what_was_said_in_f32_and_in_blocks() {
    for name in [
        "golden/llava/hf_v15",
        "golden/minigpt4/v2_conversation",
        "golden/backbones/opt_postnorm_proj",
        "golden/clip/hf_vit",
        "golden/blip2/stage1_lavis",
    ] {
        for quant in [None, Some(BlockKind::Q8_0), Some(BlockKind::Q4_0)] {
            let files = Files::find(&stored(name), None).unwrap();
            let files = match quant {
                Some(kind) => files.quantised(kind),
                None => files,
            };
            let measured = files.measure(HeadCounts::default()).unwrap();
            let read = files.open(HeadCounts::default()).unwrap();
            assert_eq!(bytes(&measured), bytes(&read), "{name}, {quant:?}");
            let need =
                |opened: &Opened| Need::of(&opened.model, &opened.parameters, Work::default());
            assert_eq!(need(&measured), need(&read), "{name}, {quant:?}");
            let in_f32 = 4 * read.parameters.iter().map(|p| p.elements() as u64).sum::<u64>();
            let of_weights = need(&read).weights + need(&read).packed;
            if quant.is_none() {
                assert_eq!(of_weights, in_f32, "{name}");
            } else if name.contains("minigpt4") {
                // Most of its rows are whole blocks.
                assert!(of_weights < in_f32 / 4 * 3, "{name}");
            }
        }
    }
}

/// The cache makes room for whole panels, so it is held against one that is full.
#[test]
fn a_token_takes_what_was_said() {
    let files = Files::find(&stored("golden/llava/hf_v15"), None).unwrap();
    let opened = files.open(HeadCounts::default()).unwrap();
    let language = opened.model.talker().unwrap().language();
    let prompt = Prompt {
        embeddings: language.embed(&[5; 128]).unwrap(),
        image_tokens: 0,
        ids: vec![5; 128],
        shown: Vec::new(),
    };
    let mut cache = language.new_cache(1);
    cache.reserve(128);
    let full = cache.bytes();
    assert_eq!(full, 128 * opened.model.token_bytes());
    let settings = Settings::greedy(1, &[]);
    generate(language, &[prompt], &mut cache, &settings, &mut |_, _| Flow::Continue).unwrap();
    assert_eq!(cache.lens(), [128]);
    let work = Work { texts: 3, read: 28, written: 100, pictures: 0 };
    let need = Need::of(&opened.model, &opened.parameters, work);
    assert_eq!(need.cache, 3 * full as u64);
    assert_eq!(need.total(), need.weights + need.packed + need.cache + need.passing);
}
