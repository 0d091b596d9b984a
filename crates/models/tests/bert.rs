//! BERT against its reference: every hidden state, both heads, the loss and its gradients.
//!
//! `testdata/golden/backbones/bert_*` were made by transformers 5.23.0 (seeds 6050 and 6060) with
//! tiny random weights; texts of different lengths are padded.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ocelli_models::language::bert::{Bert, Texts};
use ocelli_models::{Files, HeadCounts, Model, Opened};
use ocelli_nn::checkpoint::{Checkpoint, Dtype, TensorView, save_safetensors};
use ocelli_tensor::{Targets, Tensor, no_grad};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden/backbones").join(name)
}

fn open(dir: &Path) -> Opened {
    Files::find(dir, None).unwrap().open(HeadCounts::default()).unwrap()
}

fn bert(opened: &Opened) -> &Bert {
    let Model::Bert(model) = &opened.model else { panic!("{}", opened.model.kind()) };
    model
}

fn golden(name: &str) -> Checkpoint {
    Checkpoint::open(&case(name).join("golden.safetensors")).unwrap()
}

fn texts(golden: &Checkpoint) -> Texts {
    let ids = |name: &str| golden.read_i64(name).unwrap().into_iter().map(|v| v as u32);
    Texts {
        ids: ids("in/input_ids").collect(),
        token_types: ids("in/token_type_ids").collect(),
        mask: ids("in/attention_mask").map(|m| m as u8).collect(),
        batch: golden.info("in/input_ids").unwrap().1[0],
    }
}

#[track_caller]
fn assert_close(name: &str, got: &Tensor, golden: &Checkpoint, limit: f32) {
    let want = golden.read_f32(name).unwrap();
    assert_eq!(got.elements(), want.len(), "{name}");
    for (i, (g, w)) in got.values().iter().zip(&want).enumerate() {
        assert!((g - w).abs() <= limit + 1e-4 * w.abs(), "{name}[{i}]: got {g}, want {w}");
    }
}

#[test]
fn tokens_and_pooler_are_those_of_the_reference() {
    let (opened, golden) = (open(&case("bert_pooler")), golden("bert_pooler"));
    let (model, texts) = (bert(&opened), texts(&golden));
    assert!(model.config().has_pooler && !model.config().has_language_head);
    let features = no_grad(|| model.features(&texts)).unwrap();
    assert_close("out/last_hidden_state", &features, &golden, 2e-5);
    assert_close("out/pooler_output", &model.pool(&features).unwrap(), &golden, 1e-5);
}

#[test]
fn words_loss_and_gradients_are_those_of_the_reference() {
    let (opened, golden) = (open(&case("bert_mlm")), golden("bert_mlm"));
    let (model, texts) = (bert(&opened), texts(&golden));
    let states = no_grad(|| model.hidden_states(&texts)).unwrap();
    for (name, state) in ["out/embeddings", "out/layer0", "out/last_hidden"].iter().zip(&states) {
        assert_close(name, state, &golden, 2e-5);
    }
    assert_close("out/logits", &model.words(&states[2]).unwrap(), &golden, 1e-4);
    let labels = golden.read_i64("in/labels").unwrap();
    let targets =
        labels.into_iter().map(|l| u32::try_from(l).unwrap_or(Targets::IGNORED)).collect();
    let loss = model.loss(&texts, &targets).unwrap();
    assert_close("out/loss", &loss, &golden, 1e-6);
    let grads = loss.backward().unwrap();
    let gradients =
        opened.parameters.export(&opened.names, |p| grads.get(&p.tensor()).map(Tensor::detach));
    let mut compared = 0;
    for (name, shape, values) in gradients {
        let name = format!("grad/{name}");
        if golden.info(&name).is_some() {
            compared += 1;
            let got = Tensor::from_slice(&values, &shape).unwrap();
            assert_close(&name, &got, &golden, 2e-5);
        }
    }
    assert_eq!(compared, golden.names().filter(|n| n.starts_with("grad/")).count());
}

#[test]
fn old_names_of_norms_are_read() {
    let dir = std::env::temp_dir().join(format!("ocelli-old-bert-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::copy(case("bert_mlm").join("config.json"), dir.join("config.json")).unwrap();
    let new = Checkpoint::open(&case("bert_mlm").join("model.safetensors")).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = new
        .names()
        .map(|name| {
            let old = name.replace("LayerNorm.weight", "LayerNorm.gamma");
            let bytes = new.read_f32(name).unwrap().iter().flat_map(|v| v.to_le_bytes()).collect();
            let shape = new.info(name).unwrap().1.to_vec();
            (old.replace("LayerNorm.bias", "LayerNorm.beta"), shape, bytes)
        })
        .collect();
    let views: Vec<TensorView> = tensors
        .iter()
        .map(|(name, shape, bytes)| TensorView { name, dtype: Dtype::F32, shape, bytes })
        .collect();
    save_safetensors(&dir.join("model.safetensors"), &views, &BTreeMap::new()).unwrap();
    let opened = open(&dir);
    let golden = golden("bert_mlm");
    let features = no_grad(|| bert(&opened).features(&texts(&golden))).unwrap();
    assert_close("out/last_hidden", &features, &golden, 2e-5);
    std::fs::remove_dir_all(&dir).unwrap();
}
