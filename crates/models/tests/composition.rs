//! Models whose parts lie in several places are the whole models that they were taken from, and what
//! does not belong together is named with its file, its tensor, both shapes and what to do.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ocelli_data::text::Template;
use ocelli_models::systems::minigpt4::Version;
use ocelli_models::systems::talker::Talker;
use ocelli_models::systems::writer::Request;
use ocelli_models::vision::position::PositionRule;
use ocelli_models::{Files, HeadCounts, Model, Opened, Result};
use ocelli_nn::checkpoint::{Dtype, TensorView, save_safetensors};
use ocelli_tensor::Tensor;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Tensors by name: shape and values.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Values that differ from name to name and from place to place.
fn drawn(tensors: &mut Tensors, name: &str, shape: &[usize]) {
    let seed = name.bytes().fold(1.0_f32, |h, b| (h * 1.7 + f32::from(b)) % 97.0);
    let n = shape.iter().product();
    let values = (0..n).map(|i| (seed + i as f32 * 0.37).sin() * 0.3).collect();
    tensors.insert(name.to_owned(), (shape.to_vec(), values));
}

fn write(file: &Path, tensors: &Tensors) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let bytes: Vec<Vec<u8>> =
        tensors.values().map(|t| t.1.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views: Vec<TensorView> = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, t), bytes)| TensorView { name, dtype: Dtype::F32, shape: &t.0, bytes })
        .collect();
    save_safetensors(file, &views, &BTreeMap::new()).unwrap();
}

fn write_json(file: &Path, value: &Value) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, value.to_string()).unwrap();
}

/// A LLaMA under the names of transformers.
fn llama(width: usize, vocab: usize) -> Tensors {
    let mut t = Tensors::new();
    drawn(&mut t, "model.embed_tokens.weight", &[vocab, width]);
    drawn(&mut t, "model.norm.weight", &[width]);
    drawn(&mut t, "lm_head.weight", &[vocab, width]);
    for i in 0..2 {
        let mut layer = |name: &str, shape: &[usize]| {
            drawn(&mut t, &format!("model.layers.{i}.{name}.weight"), shape);
        };
        layer("input_layernorm", &[width]);
        layer("post_attention_layernorm", &[width]);
        for name in ["q", "k", "v", "o"] {
            layer(&format!("self_attn.{name}_proj"), &[width, width]);
        }
        layer("mlp.gate_proj", &[24, width]);
        layer("mlp.up_proj", &[24, width]);
        layer("mlp.down_proj", &[width, 24]);
    }
    t
}

fn llama_config(width: usize, vocab: usize) -> Value {
    json!({ "model_type": "llama", "hidden_size": width, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": vocab })
}

/// The projector of LLaVA-1.5 under the names of the original code.
fn projector(width: usize) -> Tensors {
    let mut t = Tensors::new();
    for (layer, inputs) in [(0, 12), (2, width)] {
        drawn(&mut t, &format!("model.mm_projector.{layer}.weight"), &[width, inputs]);
        drawn(&mut t, &format!("model.mm_projector.{layer}.bias"), &[width]);
    }
    t
}

/// `config.json` of the original code.
fn llava_config(base: &Path) -> Value {
    let mut config = llama_config(16, 20);
    let own = json!({ "model_type": "llava_llama", "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": "tower", "_name_or_path": base });
    config.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
    config
}

/// CLIP's tower as transformers writes it, into `dir`.
fn write_tower(dir: &Path) {
    let mut t = Tensors::new();
    let mut add = |name: &str, shape: &[usize]| {
        drawn(&mut t, &format!("vision_model.{name}"), shape);
    };
    add("embeddings.class_embedding", &[12]);
    add("embeddings.patch_embedding.weight", &[12, 3, 4, 4]);
    add("embeddings.position_embedding.weight", &[5, 12]);
    for norm in ["pre_layrnorm", "post_layernorm"] {
        add(&format!("{norm}.weight"), &[12]);
        add(&format!("{norm}.bias"), &[12]);
    }
    for i in 0..2 {
        let layer = format!("encoder.layers.{i}");
        let projections = ["q_proj", "k_proj", "v_proj", "out_proj"];
        let linears = projections.map(|name| (format!("self_attn.{name}"), 12, 12));
        let mlp = [("mlp.fc1".to_owned(), 24, 12), ("mlp.fc2".to_owned(), 12, 24)];
        for (name, outputs, inputs) in linears.into_iter().chain(mlp) {
            add(&format!("{layer}.{name}.weight"), &[outputs, inputs]);
            add(&format!("{layer}.{name}.bias"), &[outputs]);
        }
        for norm in ["layer_norm1", "layer_norm2"] {
            add(&format!("{layer}.{norm}.weight"), &[12]);
            add(&format!("{layer}.{norm}.bias"), &[12]);
        }
    }
    // The other half of a CLIP is left alone.
    drawn(&mut t, "text_model.final_layer_norm.weight", &[8]);
    write(&dir.join("model.safetensors"), &t);
    write_json(
        &dir.join("config.json"),
        &json!({ "model_type": "clip_vision_model", "hidden_size": 12, "image_size": 8,
            "patch_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 24 }),
    );
}

fn open(path: &Path, base: Option<&Path>) -> Result<Opened> {
    Files::find_on(path, None, base)?.open(HeadCounts::default())
}

/// Panics unless both have the same parameters, values of one may be off by roundings.
fn assert_same(got: &Opened, want: &Opened) {
    assert_eq!(got.parameters.iter().count(), want.parameters.iter().count());
    for p in want.parameters.iter() {
        let other = got.parameters.get(p.name()).unwrap();
        for (a, b) in other.tensor().values().iter().zip(p.tensor().values()) {
            assert!((a - b).abs() <= 1e-6, "{}: {a}, expected {b}", p.name());
        }
    }
}

fn says(error: &ocelli_models::Error, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

/// A base, its whole LLaVA and the directory of its projector alone.
fn llava(dir: &Path) {
    let (base, whole, stage1) = (dir.join("vicuna"), dir.join("whole"), dir.join("stage1"));
    write(&base.join("model.safetensors"), &llama(16, 20));
    write_json(&base.join("config.json"), &llama_config(16, 20));
    let mut all = llama(16, 20);
    all.extend(projector(16));
    write(&whole.join("model.safetensors"), &all);
    write(&stage1.join("mm_projector.bin"), &projector(16));
    for folder in [&whole, &stage1] {
        write_json(&folder.join("config.json"), &llava_config(&base));
        write_tower(&folder.join("vision_tower"));
    }
}

#[test]
fn a_projector_lies_on_its_base() {
    let dir = tempfile::tempdir().unwrap();
    llava(dir.path());
    let whole = open(&dir.path().join("whole"), None).unwrap();
    let stage1 = dir.path().join("stage1");
    let composed = open(&stage1, None).unwrap();
    assert_same(&composed, &whole);
    let from = |part: &str| composed.sources.iter().find(|s| s.part == part).unwrap().path.clone();
    assert!(from("projector").ends_with("stage1/mm_projector.bin"));
    assert!(from("language").ends_with("vicuna/model.safetensors"));
    assert!(from("vision").ends_with("stage1/vision_tower/model.safetensors"));
    // The file itself may be named, and the base by hand.
    let base = dir.path().join("vicuna");
    assert_same(&open(&stage1.join("mm_projector.bin"), Some(&base)).unwrap(), &whole);
}

#[test]
fn a_missing_frozen_part_is_named() {
    let dir = tempfile::tempdir().unwrap();
    llava(dir.path());
    let stage1 = dir.path().join("stage1");
    fs::remove_dir_all(stage1.join("vision_tower")).unwrap();
    says(
        &open(&stage1, None).unwrap_err(),
        &["mm_vision_tower", "`tower`", "vision_tower", "fetch"],
    );
    fs::remove_dir_all(dir.path().join("vicuna")).unwrap();
    let error = open(&stage1, None).unwrap_err();
    says(&error, &["config.json", "_name_or_path", "vicuna", "fetch it", "--base"]);
}

#[test]
fn a_projector_of_another_model_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    llava(dir.path());
    let stage1 = dir.path().join("stage1");
    let file = stage1.join("mm_projector.bin");
    let path = file.display().to_string();
    write(&file, &projector(18));
    says(
        &open(&stage1, None).unwrap_err(),
        &[
            "model.mm_projector.0.weight",
            "expected [hidden=16, vision=12] by hidden_size and mm_vision_tower, found [18, 12]",
            &path,
            "take the one that belongs to this language model",
        ],
    );
    let broken = |name: &str, shape: Vec<usize>, parts: &[&str]| {
        let mut t = projector(16);
        let values = vec![0.5; shape.iter().product()];
        t.insert(name.to_owned(), (shape, values));
        write(&file, &t);
        says(&open(&stage1, None).unwrap_err(), parts);
    };
    let name = "model.mm_projector.2.weight";
    let expected = "expected [hidden=16, hidden=16] by hidden_size";
    broken(name, vec![0], &[name, expected, "found [0]", "ZeRO", &path, "save the full weights"]);
    let packed = ["found [128, 1]", "4 bits", &path, "save the full weights"];
    broken(name, vec![128, 1], &packed);
    broken(name, vec![128, 1], &[name, expected]);
}

#[test]
fn a_difference_is_added_to_its_base() {
    let dir = tempfile::tempdir().unwrap();
    llava(dir.path());
    // Words added to the table have their rows in the difference alone.
    let mut whole = llama(16, 23);
    whole.extend(projector(16));
    let mut delta = whole.clone();
    for (name, (_, values)) in llama(16, 20) {
        let of_delta = &mut delta.get_mut(&name).unwrap().1;
        of_delta.iter_mut().zip(values).for_each(|(value, base)| *value -= base);
    }
    let base = dir.path().join("vicuna");
    let mut config = llava_config(&base);
    config["vocab_size"] = 23.into();
    for (name, tensors) in [("v0", &whole), ("delta", &delta)] {
        let folder = dir.path().join(name);
        write(&folder.join("model.safetensors"), tensors);
        write_json(&folder.join("config.json"), &config);
        write_tower(&folder.join("vision_tower"));
    }
    let whole = open(&dir.path().join("v0"), None).unwrap();
    let delta = dir.path().join("delta");
    assert_same(&open(&delta, Some(&base)).unwrap(), &whole);

    write(&base.join("model.safetensors"), &llama(18, 20));
    let error = open(&delta, Some(&base)).unwrap_err();
    says(&error, &["delta/model.safetensors", "lm_head.weight", "[20, 18]", "found [23, 16]"]);
}

/// Changes of q and v of the first layer, with `middle` in the names, and the weights with them.
fn changes(width: usize, layer: usize, middle: &str) -> (Tensors, Tensors) {
    let (mut low, mut whole) = (Tensors::new(), llama(16, 20));
    for name in ["q", "v"] {
        let stem = format!("model.layers.{layer}.self_attn.{name}_proj");
        let of = |part: &str| format!("base_model.model.{stem}.lora_{part}.weight");
        drawn(&mut low, &of("A"), &[2, width]);
        drawn(&mut low, &of("B"), &[16, 2]);
        if let Some((_, values)) = whole.get_mut(&format!("{stem}.weight")).filter(|_| width == 16)
        {
            let (a, b) = (&low[&of("A")].1, &low[&of("B")].1);
            for (i, value) in values.iter_mut().enumerate() {
                let (o, c) = (i / 16, i % 16);
                // alpha over rank is 1.5.
                *value += 1.5 * (b[o * 2] * a[c] + b[o * 2 + 1] * a[16 + c]);
            }
        }
    }
    let renamed = low
        .into_iter()
        .map(|(name, tensor)| (name.replace(".weight", &format!("{middle}.weight")), tensor));
    (renamed.collect(), whole)
}

fn write_adapter(dir: &Path, base: &Path, low: &Tensors) {
    write(&dir.join("adapter_model.safetensors"), low);
    let config = json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 3, "fan_in_fan_out": false,
        "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": base });
    write_json(&dir.join("adapter_config.json"), &config);
}

#[test]
fn a_folder_of_changes_finds_its_base_and_its_projector() {
    let dir = tempfile::tempdir().unwrap();
    llava(dir.path());
    let (base, lora, merged) =
        (dir.path().join("vicuna"), dir.path().join("lora"), dir.path().join("merged"));
    let (_, mut whole) = changes(16, 0, "");
    whole.extend(projector(16));
    write(&merged.join("model.safetensors"), &whole);
    let too: Tensors = (projector(16).into_iter())
        .map(|(name, tensor)| (format!("base_model.model.{name}"), tensor))
        .collect();
    write(&lora.join("non_lora_trainables.bin"), &too);
    for folder in [&merged, &lora] {
        write_json(&folder.join("config.json"), &llava_config(&base));
        write_tower(&folder.join("vision_tower"));
    }
    let merged = open(&merged, None).unwrap();
    for middle in ["", ".default"] {
        write_adapter(&lora, &base, &changes(16, 0, middle).0);
        let composed = open(&lora, None).unwrap();
        assert_same(&composed, &merged);
        assert!(composed.sources.iter().any(|s| s.part == "adapter" && s.path == lora));
    }
    // The same changes on a whole model, by half.
    let half = Files::find(&dir.path().join("whole"), None).unwrap();
    let half = half.with_adapter(&lora, 0.5).unwrap().open(HeadCounts::default()).unwrap();
    let plain = open(&dir.path().join("whole"), None).unwrap();
    let name = "language.blocks.0.attn.q.weight";
    let of = |o: &Opened| o.parameters.get(name).unwrap().tensor().values()[7];
    assert!((of(&half) - 0.5 * (of(&plain) + of(&merged))).abs() < 1e-6);
}

#[test]
fn changes_of_another_base_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let (base, lora) = (dir.path().join("vicuna"), dir.path().join("lora"));
    write(&base.join("model.safetensors"), &llama(16, 20));
    write_json(&base.join("config.json"), &llama_config(16, 20));
    let of_other = Path::new("lmsys/vicuna-13b");
    write_adapter(&lora, of_other, &changes(18, 0, "").0);
    let q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let error = open(&lora, Some(&base)).unwrap_err();
    says(&error, &["adapter_model.safetensors", q, "inputs=16", "[2, 18]", "lmsys/vicuna-13b"]);
    write_adapter(&lora, of_other, &changes(16, 7, "").0);
    says(&open(&lora, Some(&base)).unwrap_err(), &["layers.7", "found none", "lmsys/vicuna-13b"]);
    says(&open(&lora, None).unwrap_err(), &["base_model_name_or_path", "vicuna-13b", "--base"]);
}

/// A MiniGPT: the tower with a block too many and a Q-Former, as their releases name them, and what
/// was trained on top.
fn minigpt(dir: &Path, width: usize) -> [Tensors; 4] {
    let mut tower = Tensors::new();
    drawn(&mut tower, "cls_token", &[1, 1, 8]);
    drawn(&mut tower, "pos_embed", &[1, 5, 8]);
    drawn(&mut tower, "patch_embed.proj.weight", &[8, 3, 4, 4]);
    drawn(&mut tower, "patch_embed.proj.bias", &[8]);
    for i in 0..3 {
        let mut add = |name: &str, shape: &[usize]| {
            drawn(&mut tower, &format!("blocks.{i}.{name}"), shape);
        };
        for norm in ["norm1", "norm2"] {
            add(&format!("{norm}.weight"), &[8]);
            add(&format!("{norm}.bias"), &[8]);
        }
        add("attn.q_bias", &[8]);
        add("attn.v_bias", &[8]);
        add("attn.qkv.weight", &[24, 8]);
        add("attn.proj.weight", &[8, 8]);
        add("attn.proj.bias", &[8]);
        add("mlp.fc1.weight", &[16, 8]);
        add("mlp.fc1.bias", &[16]);
        add("mlp.fc2.weight", &[8, 16]);
        add("mlp.fc2.bias", &[8]);
    }
    let mut qformer = Tensors::new();
    let mut add = |name: &str, shape: &[usize]| drawn(&mut qformer, name, shape);
    add("query_tokens", &[1, 3, 64]);
    add("ln_vision.weight", &[8]);
    add("ln_vision.bias", &[8]);
    // What another language model was led to, and what only texts need.
    add("t5_proj.weight", &[10, 64]);
    add("Qformer.cls.predictions.bias", &[30]);
    add("Qformer.bert.embeddings.word_embeddings.weight", &[30, 64]);
    add("Qformer.bert.embeddings.position_embeddings.weight", &[9, 64]);
    for name in ["weight", "bias"] {
        add(&format!("Qformer.bert.embeddings.LayerNorm.{name}"), &[64]);
    }
    for i in 0..2 {
        let layer = format!("Qformer.bert.encoder.layer.{i}");
        let mut dense = |name: &str, outputs: usize, inputs: usize| {
            add(&format!("{layer}.{name}.weight"), &[outputs, inputs]);
            add(&format!("{layer}.{name}.bias"), &[outputs]);
        };
        let cross: &[&str] = if i == 0 { &["attention", "crossattention"] } else { &["attention"] };
        for attention in cross {
            let memory = if *attention == "attention" { 64 } else { 8 };
            dense(&format!("{attention}.self.query"), 64, 64);
            dense(&format!("{attention}.self.key"), 64, memory);
            dense(&format!("{attention}.self.value"), 64, memory);
            dense(&format!("{attention}.output.dense"), 64, 64);
        }
        for half in ["", "_query"] {
            dense(&format!("intermediate{half}.dense"), 96, 64);
            dense(&format!("output{half}.dense"), 64, 96);
        }
        for name in cross.iter().map(|a| format!("{a}.output")).chain(["output".into()]) {
            add(&format!("{layer}.{name}.LayerNorm.weight"), &[64]);
            add(&format!("{layer}.{name}.LayerNorm.bias"), &[64]);
        }
        add(&format!("{layer}.output_query.LayerNorm.weight"), &[64]);
        add(&format!("{layer}.output_query.LayerNorm.bias"), &[64]);
    }
    let mut trained = Tensors::new();
    drawn(&mut trained, "llama_proj.weight", &[16, 64]);
    drawn(&mut trained, "llama_proj.bias", &[16]);
    let parts = [tower, qformer, llama(width, 20), trained];
    write(&dir.join("eva_vit_g.pth"), &parts[0]);
    write(&dir.join("blip2_pretrained_flant5xxl.pth"), &parts[1]);
    write(&dir.join("language_model/model.safetensors"), &parts[2]);
    write_json(&dir.join("language_model/config.json"), &llama_config(width, 20));
    write(&dir.join("trained.pth"), &parts[3]);
    parts
}

/// Heads that no tensor tells and that are not those of the release.
fn tower_heads(dir: &Path) {
    write_json(&dir.join("config.json"), &json!({ "vit": { "num_heads": 2 } }));
}

#[test]
fn a_minigpt_is_put_together_from_its_parts() {
    let dir = tempfile::tempdir().unwrap();
    let [_, _, language, _] = minigpt(dir.path(), 16);
    tower_heads(dir.path());
    let file = dir.path().join("trained.pth");
    let opened = open(&file, None).unwrap();
    let value = |name: &str| opened.parameters.get(name).unwrap().tensor().values()[3];
    assert_eq!(
        value("language.word").to_bits(),
        language["model.embed_tokens.weight"].1[3].to_bits()
    );
    let from = |part: &str| opened.sources.iter().find(|s| s.part == part).unwrap().path.clone();
    assert!(from("vision").ends_with("eva_vit_g.pth"));
    assert!(from("norm").ends_with("blip2_pretrained_flant5xxl.pth"));
    assert!(from("qformer").ends_with("blip2_pretrained_flant5xxl.pth"));
    assert!(from("projection").ends_with("trained.pth"));
    assert!(from("language").ends_with("language_model/model.safetensors"));
    assert!(opened.parameters.get("vision.blocks.2.norm1.weight").is_none(), "the last block");
    assert_same(&open(dir.path(), None).unwrap(), &opened);
    let other = dir.path().join("trained_longer.pth");
    fs::copy(&file, &other).unwrap();
    says(&open(dir.path(), None).unwrap_err(), &["several trained parts", "trained_longer.pth"]);
    fs::remove_file(other).unwrap();

    minigpt(dir.path(), 20);
    says(
        &open(&file, None).unwrap_err(),
        &["llama_proj.weight", "[hidden=20, qformer=64] by hidden_size", "found [16, 64]"],
    );
    minigpt(dir.path(), 16);
    for (part, says_what) in
        [("blip2_pretrained_flant5xxl.pth", "the Q-Former"), ("eva_vit_g.pth", "the frozen tower")]
    {
        fs::remove_file(dir.path().join(part)).unwrap();
        says(&open(&file, None).unwrap_err(), &["trained.pth", says_what, "fetch it", part]);
        minigpt(dir.path(), 16);
    }
    fs::remove_dir_all(dir.path().join("language_model")).unwrap();
    let error = open(&file, None).unwrap_err();
    says(&error, &["llama_model", "frozen language model", "language_model"]);
}

#[test]
fn a_live_change_of_a_minigpt_is_found_whoever_wrote_it() {
    let dir = tempfile::tempdir().unwrap();
    let [.., mut trained] = minigpt(dir.path(), 16);
    tower_heads(dir.path());
    let file = dir.path().join("trained.pth");
    let mut before = None;
    for middle in ["", ".default"] {
        for layer in 0..2 {
            for (name, (shape, values)) in changes(16, layer, middle).0 {
                let name = name.replace("base_model.", "llama_model.base_model.");
                trained.insert(name, (shape, values));
            }
        }
        write(&file, &trained);
        let opened = open(&file, None).unwrap();
        let name = "language.blocks.1.attn.v.lora_b";
        assert_eq!(opened.parameters.get(name).unwrap().tensor().shape()[..], [16, 2]);
        if let Some(before) = &before {
            assert_same(&opened, before);
        }
        before = Some(opened);
        trained.retain(|name, _| !name.contains("lora"));
    }
}

/// The parts of a MiniGPT without a Q-Former whose tower has 16 x 16 patches of 14 pixels.
fn minigpt_without_qformer(dir: &Path, is_changed: bool) -> Tensors {
    let [mut tower, mut qformer, ..] = minigpt(dir, 16);
    drawn(&mut tower, "patch_embed.proj.weight", &[8, 3, 14, 14]);
    drawn(&mut tower, "pos_embed", &[1, 257, 8]);
    write(&dir.join("eva_vit_g.pth"), &tower);
    qformer.retain(|name, _| name.starts_with("ln_vision."));
    let mut trained = qformer;
    drawn(&mut trained, "llama_proj.weight", &[16, 32]);
    drawn(&mut trained, "llama_proj.bias", &[16]);
    for layer in if is_changed { 0..2 } else { 0..0 } {
        for (name, tensor) in changes(16, layer, "").0 {
            trained.insert(name.replace("base_model.", "llama_model.base_model."), tensor);
        }
    }
    write(&dir.join("trained.pth"), &trained);
    fs::remove_file(dir.join("blip2_pretrained_flant5xxl.pth")).unwrap();
    tower_heads(dir);
    tower
}

#[test]
fn minigpt_v2_sees_448_pixels_with_a_tower_of_224() {
    let dir = tempfile::tempdir().unwrap();
    let mut tower = minigpt_without_qformer(dir.path(), true);
    let file = dir.path().join("trained.pth");
    let processor = Files::find(&file, None).unwrap().processor().unwrap();
    assert_eq!(processor.size(), Some((448, 448)));
    let pixels: Vec<f32> = (0..3 * 448 * 448).map(|i| (i as f32 * 0.013).sin()).collect();
    let pixels = Tensor::from_slice(&pixels, &[1, 3, 448, 448]).unwrap();
    let opened = open(&file, None).unwrap();
    let Model::MiniGpt4(model) = &opened.model else { panic!("{:?}", opened.model.kind()) };
    let tokens = model.image_tokens(&pixels).unwrap();
    assert_eq!(tokens.shape()[..], [1, 256, 16]);
    assert_eq!(model.template(), "minigpt_v2");

    // As with a table that was resampled before.
    let table = opened.parameters.get("vision.position").unwrap().tensor();
    let table = PositionRule::Transformers.resample(&table, 1, (16, 16), (32, 32)).unwrap();
    tower.insert("pos_embed".into(), (vec![1, 1025, 8], table.values().to_vec()));
    write(&dir.path().join("eva_vit_g.pth"), &tower);
    let whole = open(&file, None).unwrap();
    let Model::MiniGpt4(whole) = &whole.model else { panic!("{:?}", whole.model.kind()) };
    assert_eq!(whole.image_tokens(&pixels).unwrap().values(), tokens.values());
}

#[test]
fn a_minigpt_without_qformer_and_changes_is_minigpt_4_on_llama_2() {
    let dir = tempfile::tempdir().unwrap();
    minigpt_without_qformer(dir.path(), false);
    let file = dir.path().join("trained.pth");
    let opened = open(&file, None).unwrap();
    let Model::MiniGpt4(model) = &opened.model else { panic!("{:?}", opened.model.kind()) };
    assert_eq!(model.config().version, Version::MiniGpt4Llama2);
    assert_eq!(model.template(), "minigpt4_llama_2");
    assert!(model.boxes().is_none());
    let text = Template::named(model.template()).unwrap();
    let text = text.render(&text.show(1, &model.instruction(&Request::Answer("Who is it?"))));
    assert!(text.contains("[INST] <Img><image></Img> Who is it? [/INST]"), "{text}");
}
