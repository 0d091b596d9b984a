//! Lists of the tensors of full-size checkpoints: each is a model of its family, with nothing missing
//! and nothing left over, and no weights are needed to say so.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ocelli_models::language::t5::{T5, T5Config};
use ocelli_models::{Family, Inventory, inventory};
use ocelli_nn::Builder;
use std::path::{Path, PathBuf};

fn stored(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/shapes").join(name)
}

/// Parameters of the parts whose names begin so.
fn part(found: &Inventory, prefix: &str) -> usize {
    let of = found.opened.parameters.iter().filter(|p| p.name().starts_with(prefix));
    of.map(ocelli_nn::Parameter::elements).sum()
}

#[test]
fn every_list_is_a_model_of_its_family() {
    let lists: [(Family, &[&str]); 11] = [
        (Family::Bert, &["bert-base-uncased"]),
        (
            Family::TransformersBlip,
            &[
                "blip-image-captioning-base",
                "blip-image-captioning-large",
                "blip-itm-base",
                "blip-vqa-base",
            ],
        ),
        (
            Family::TransformersBlip2,
            &[
                "blip2-flan-t5-xl",
                "blip2-flan-t5-xxl",
                "blip2-itm-vit-g",
                "blip2-opt-2.7b",
                "blip2-opt-6.7b",
            ],
        ),
        (
            Family::TransformersClip,
            &[
                "clip-vit-base-patch16",
                "clip-vit-base-patch32",
                "clip-vit-large-patch14-336",
                "clip-vit-large-patch14",
            ],
        ),
        (Family::Gpt2, &["gpt2"]),
        (
            Family::Llava,
            &["llava-1.5-13b-hf", "llava-1.5-7b-hf", "llava-v1.5-13b", "llava-v1.5-7b"],
        ),
        (
            Family::OpenAiClip,
            &[
                "openai-RN101",
                "openai-RN50",
                "openai-RN50x16",
                "openai-RN50x4",
                "openai-RN50x64",
                "openai-ViT-B-16",
                "openai-ViT-B-32",
                "openai-ViT-L-14-336",
                "openai-ViT-L-14",
            ],
        ),
        (Family::Opt, &["opt-2.7b"]),
        (Family::T5, &["flan-t5-xl"]),
        (Family::Llama, &["vicuna-7b-v1.5"]),
        (
            Family::TransformersVit,
            &["vit-base-patch16-224-in21k", "vit-base-patch16-224", "vit-large-patch16-224"],
        ),
    ];
    let named =
        || lists.iter().flat_map(|(family, names)| names.iter().map(|name| (*family, *name)));
    let stored_lists = std::fs::read_dir(stored("")).unwrap().count();
    assert_eq!(named().count(), stored_lists);
    for (family, name) in named() {
        let found = inventory(&stored(&format!("{name}.json")), None).unwrap();
        assert_eq!(found.opened.family, family, "{name}");
        assert_eq!(found.stated, [Some(found.tensors), Some(found.elements)], "{name}");
        // All values are parameters, but for those that are named as not needed.
        let taken: usize = found.opened.parameters.iter().map(ocelli_nn::Parameter::elements).sum();
        let unneeded = found.elements - taken;
        assert!(unneeded <= 4096, "{name}: {unneeded} values are in no parameter");
        assert_eq!(unneeded == 0, found.unneeded.is_empty(), "{name}");
    }
}

#[test]
fn parts_have_their_published_sizes() {
    let found = inventory(&stored("llava-1.5-7b-hf.json"), None).unwrap();
    assert_eq!(found.elements, 7_063_427_072);
    assert_eq!(part(&found, "projector."), 20_979_712);
    let found = inventory(&stored("llava-v1.5-7b.json"), None).unwrap();
    assert_eq!(part(&found, "projector."), 20_979_712);
    assert_eq!(part(&found, "language."), 6_738_415_616);
    // The paper says 188 M, with the heads of the first stage, of which this file has two.
    let found = inventory(&stored("blip2-itm-vit-g.json"), None).unwrap();
    assert_eq!(part(&found, "qformer."), 185_660_160 + 32 * 768);
    assert_eq!(part(&found, "matching."), 395_266);
    let found = inventory(&stored("llava-1.5-13b-hf.json"), None).unwrap();
    assert_eq!(part(&found, "projector."), 31_467_520);
}

#[test]
fn what_does_not_fit_is_named() {
    let text = std::fs::read_to_string(stored("gpt2.json")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("list.json");
    let failure = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        std::fs::write(&file, text.replace(from, to)).unwrap();
        inventory(&file, None).unwrap_err().to_string()
    };
    let missing = failure(r#""transformer.ln_f.bias": "#, r#""transformer.ln_g.bias": "#);
    assert!(missing.contains("1 missing: transformer.ln_f.bias"), "{missing}");
    assert!(missing.contains("1 not used: transformer.ln_g.bias"), "{missing}");
    let other = failure(r#"c_attn.bias": {"shape": [2304]"#, r#"c_attn.bias": {"shape": [2305]"#);
    assert!(other.contains("12 of another shape"), "{other}");
    for (list, head) in [
        ("llava-1.5-7b-hf.json", "language_model.lm_head.weight"),
        ("vicuna-7b-v1.5.json", "lm_head.weight"),
    ] {
        let whole = std::fs::read_to_string(stored(list)).unwrap();
        let mut whole: serde_json::Value = serde_json::from_str(&whole).unwrap();
        whole["keys"].as_object_mut().unwrap().remove(head).unwrap();
        std::fs::write(&file, whole.to_string()).unwrap();
        let error = inventory(&file, None).unwrap_err().to_string();
        assert!(error.contains(&format!("1 missing: {head}")), "{error}");
    }
    for (from, to, says) in [
        (r#""0..11""#, r#""0..99999999999""#, "expected numbers"),
        (r#""0..11""#, r#""nine""#, "expected numbers"),
        ("[50257, 768]", "[18446744073709551615, 768]", "overflows"),
        ("[50257, 768]", "[-1, 768]", "expected a shape"),
        ("\"keys\"", "\"kays\"", "is missing"),
    ] {
        let message = failure(from, to);
        assert!(message.contains(says), "{to}: {message}");
    }
}

#[test]
fn published_sizes_of_t5_have_their_parameters() {
    for (name, parameters) in [("small", 76_961_152), ("xl", 2_849_757_184)] {
        let b = Builder::zeros();
        let _model = T5::new(&T5Config::variant(name).unwrap(), &b);
        assert_eq!(b.finish().unwrap().elements(), parameters, "{name}");
    }
}
