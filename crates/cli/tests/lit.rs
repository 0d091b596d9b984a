//! The LiT recipe on miniature towers of random weights: planned without them, trained, and used.
#![allow(clippy::unwrap_used)] // A failed test is to panic.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn ocelli(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
    command.args(args).current_dir(root()).env("OCELLI_THREADS", "1");
    command.env("HF_HUB_OFFLINE", "1").output().unwrap()
}

fn printed(args: &[&str]) -> String {
    let output = ocelli(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Pictures with what is on them.
const PICTURES: [(&str, &str); 4] = [
    ("astronaut_143x190.png", "a woman in a suit"),
    ("chelsea_197x131.png", "a cat"),
    ("coffee_301x200.jpg", "a cup of coffee"),
    ("flower_96x64.png", "a flower"),
];

/// Two towers, the golden miniatures with a vocabulary of these words, and the table of pictures.
fn make_towers(folder: &Path) {
    for (tower, case) in [("vision", "vit/hf_backbone_pooler"), ("text", "backbones/bert_pooler")] {
        fs::create_dir_all(folder.join(tower)).unwrap();
        for file in ["config.json", "model.safetensors"] {
            let from = root().join("testdata/golden").join(case).join(file);
            fs::copy(from, folder.join(tower).join(file)).unwrap();
        }
    }
    let words = "[PAD] [UNK] [CLS] [SEP] [MASK] a woman in suit cat cup of coffee flower";
    fs::write(folder.join("text/vocab.txt"), words.replace(' ', "\n")).unwrap();
    let line = |(name, text)| format!("{{\"image\": \"{name}\", \"caption\": \"{text}\"}}\n");
    fs::write(folder.join("pictures.jsonl"), PICTURES.map(line).concat()).unwrap();
}

#[test]
fn the_recipe_trains_on_miniature_towers_and_its_model_finds_the_pictures() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name).display().to_string();
    let recipe = "recipes/clip/lit.toml";
    let source =
        format!("[{{ path = {:?}, root = \"testdata/preprocess/images\" }}]", at("pictures.jsonl"));
    let overrides = [
        format!("model.towers.vision={:?}", at("vision")),
        format!("model.towers.text={:?}", at("text")),
        "model.towers.hidden_state=2".to_owned(),
        // A multiple of both patches, that of DINOv2 and that of the miniature.
        "model.image_size=56".to_owned(),
        format!("data.sources={source}"),
        format!("eval.sets=[{{ name = \"val\", sources = {source} }}]"),
        "train.global_batch_size=4".to_owned(),
        "train.epochs=60".to_owned(),
        "optim.lr=1e-2".to_owned(),
    ];
    let mut args = vec!["train", "-q", "-c", recipe];
    args.extend(overrides.iter().map(String::as_str));

    // Before anything is there, the plan says what is missing; training says so and stops.
    let plan = printed(&[&args[..], &["--dry-run"]].concat());
    for tower in ["vision", "text"] {
        assert!(plan.contains(&format!("tower not found: {}", at(tower))), "{plan}");
    }
    make_towers(scratch.path());
    fs::rename(at("text"), at("elsewhere")).unwrap();
    let runs = at("runs");
    args.extend(["--runs", &runs]);
    let failed = ocelli(&args);
    assert!(!failed.status.success());
    assert!(String::from_utf8_lossy(&failed.stderr).contains(&at("text")), "{failed:?}");

    fs::rename(at("elsewhere"), at("text")).unwrap();
    let plan = printed(&[&args[..], &["--dry-run"]].concat());
    assert!(!plan.contains("not found"), "{plan}");
    let told = printed(&args);
    // Four texts that chance would find once.
    assert!(told.contains("val_image_to_text_r1 1.0000"), "{told}");

    // The exported model needs no towers.
    fs::remove_dir_all(at("vision")).unwrap();
    fs::remove_dir_all(at("text")).unwrap();
    let export = at("runs/lit/export");
    let labels = PICTURES.map(|(_, text)| text).join(",");
    for (name, text) in PICTURES {
        let picture = format!("testdata/preprocess/images/{name}");
        let args = ["classify", "-m", &export, "--labels", &labels, "--jsonl", &picture];
        let answer: Value = serde_json::from_str(&printed(&args)).unwrap();
        assert_eq!(answer["labels"][0]["label"], text, "{answer}");
    }
}
