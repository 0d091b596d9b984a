//! Lists of the tensors of full-size checkpoints: each is a model of its family, with nothing missing
//! and nothing left over, and no weights are needed to say so.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ocelli_models::{Family, Inventory, inventory};
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
    for (name, family) in [
        ("bert-base-uncased", Family::Bert),
        ("blip-vqa-base", Family::TransformersBlip),
        ("blip2-flan-t5-xl", Family::TransformersBlip2),
        ("blip2-itm-vit-g", Family::TransformersBlip2),
        ("clip-vit-large-patch14-336", Family::TransformersClip),
        ("gpt2", Family::Gpt2),
        ("llava-1.5-7b-hf", Family::Llava),
        ("llava-v1.5-7b", Family::Llava),
        ("openai-ViT-B-32", Family::OpenAiClip),
        ("openai-RN50", Family::OpenAiClip),
        ("opt-2.7b", Family::Opt),
        ("vicuna-7b-v1.5", Family::Llama),
        ("vit-base-patch16-224", Family::TransformersVit),
    ] {
        let found = inventory(&stored(&format!("{name}.json"))).unwrap();
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
    let found = inventory(&stored("llava-1.5-7b-hf.json")).unwrap();
    assert_eq!(found.elements, 7_063_427_072);
    assert_eq!(part(&found, "projector."), 20_979_712);
    let found = inventory(&stored("llava-v1.5-7b.json")).unwrap();
    assert_eq!(part(&found, "projector."), 20_979_712);
    assert_eq!(part(&found, "language."), 6_738_415_616);
    // The paper says 188 M, heads of the first stage included.
    let found = inventory(&stored("blip2-itm-vit-g.json")).unwrap();
    assert_eq!(part(&found, "qformer."), 185_660_160 + 32 * 768);
}

#[test]
fn what_does_not_fit_is_named() {
    let text = std::fs::read_to_string(stored("gpt2.json")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("list.json");
    let failure = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        std::fs::write(&file, text.replace(from, to)).unwrap();
        inventory(&file).unwrap_err().to_string()
    };
    let missing = failure(r#""transformer.ln_f.bias": "#, r#""transformer.ln_g.bias": "#);
    assert!(missing.contains("1 missing: transformer.ln_f.bias"), "{missing}");
    assert!(missing.contains("1 not used: transformer.ln_g.bias"), "{missing}");
    let other = failure(r#"c_attn.bias": {"shape": [2304]"#, r#"c_attn.bias": {"shape": [2305]"#);
    assert!(other.contains("12 of another shape"), "{other}");
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
