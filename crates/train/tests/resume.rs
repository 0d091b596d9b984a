//! A run that was interrupted, or killed, gives the losses and weights of one that was not.
#![allow(clippy::unwrap_used)] // A failed test is to panic.

use ocelli_data::image::{Limits, RgbImage, decode, encode_png};
use ocelli_data::text::Truncate;
use ocelli_models::language::bert::Texts;
use ocelli_models::{Files, HeadCounts, Model};
use ocelli_nn::checkpoint::Checkpoint;
use ocelli_tensor::Tensor;
use ocelli_train::{RunOptions, Show, Summary, TrainConfig, run};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const CLASSIFIER: &str = r#"
[model]
family = "vit"
image_size = 16
vision = { patch_size = 8, width = 16, depth = 1, heads = 2 }
[data]
sources = [{ path = "DATA/folder" }]
augment = { scale = [0.5, 1.0], flip = 0.5, rotate = 10.0, brightness = 0.2 }
cache = { side = 24, bytes = 1000000 }
[train]
stage = "supervised"
steps = 11
global_batch_size = 8
micro_batch_size = 3
label_smoothing = 0.1
mixup = 0.2
dropout = 0.1
[optim]
name = "adamw"
lr = 3e-3
weight_decay = 0.1
max_grad_norm = 1.0
[schedule]
name = "cosine"
warmup_steps = 2
[freeze]
vision = "none"
[checkpoint]
every_steps = 4
keep_best = "val_top1:max"
[log]
every_steps = 1
[eval]
every_steps = 5
sets = [{ name = "val", sources = [{ path = "DATA/folder" }] }]
"#;

const CLIP: &str = r#"
[model]
family = "clip"
image_size = 16
embed_dim = 8
vision = { patch_size = 8, width = 16, depth = 1, heads = 2 }
text = { context_length = 12, width = 16, depth = 1, heads = 2 }
tokenizer = { train_vocab_size = 540 }
[data]
sources = [{ path = "DATA/pairs.jsonl" }]
augment = { scale = [0.6, 1.0] }
[train]
stage = "contrastive"
steps = 11
global_batch_size = 6
micro_batch_size = 4
[optim]
name = "adamw"
lr = 1e-3
betas = [0.9, 0.98]
eps = 1e-6
weight_decay = 0.2
[schedule]
name = "linear"
warmup_ratio = 0.1
[freeze]
vision = "none"
text = "none"
[checkpoint]
every_steps = 4
[log]
every_steps = 1
[eval]
every_steps = 6
sets = [
  { name = "zero_shot", labels = "DATA/labels.txt", templates = ["{}", "a picture of {}"], sources = [{ path = "DATA/pairs.jsonl" }] },
  { name = "pairs", sources = [{ path = "DATA/pairs.jsonl" }] },
]
"#;

const LIT: &str = r#"
[model]
family = "lit"
image_size = 16
embed_dim = 8
towers = { vision = "DATA/vision", hidden_state = 2, text = "DATA/text", projection = { mlp = 12 } }
[data]
sources = [{ path = "DATA/pairs.jsonl" }, { path = "DATA/broken.jsonl" }]
on_broken = { skip = { limit = 1 } }
[train]
stage = "contrastive"
steps = 11
global_batch_size = 6
micro_batch_size = 4
[optim]
name = "adamw"
lr = 1e-2
weight_decay = 0.1
[schedule]
name = "cosine"
[freeze]
vision = "all"
text = "all"
[checkpoint]
every_steps = 4
[log]
every_steps = 1
[eval]
every_steps = 6
sets = [
  { name = "zero_shot", labels = "DATA/labels.txt", templates = ["{}", "a picture of {}"], sources = [{ path = "DATA/pairs.jsonl" }] },
  { name = "pairs", sources = [{ path = "DATA/pairs.jsonl" }] },
]
"#;

/// Thirty pictures of three colours, as a folder of classes and as captions.
fn make_data(folder: &Path) {
    let mut lines = String::new();
    for (class, name) in ["red", "green", "blue"].into_iter().enumerate() {
        let of_class = folder.join("folder").join(name);
        fs::create_dir_all(&of_class).unwrap();
        for i in 0..10_u8 {
            let mut pixels = vec![0_u8; 20 * 18 * 3];
            for (at, pixel) in pixels.chunks_exact_mut(3).enumerate() {
                pixel[class] = 130 + 10 * i;
                pixel[(class + 1) % 3] = (at as u8).wrapping_mul(i);
            }
            let picture = RgbImage::new(20, 18, pixels).unwrap();
            let file = of_class.join(format!("{i}.png"));
            fs::write(file, encode_png(&picture).unwrap()).unwrap();
            let line = format!(
                "{{\"image\": \"folder/{name}/{i}.png\", \"label\": \"{name}\", \
                 \"caption\": [\"{name}\", \"a {name} picture\", \"number {i} in {name}\"]}}\n"
            );
            lines.push_str(&line);
        }
    }
    fs::write(folder.join("pairs.jsonl"), lines).unwrap();
    fs::write(folder.join("labels.txt"), "red\ngreen\nblue\n").unwrap();
}

/// Towers of random weights: miniatures of the golden cases, and a small vocabulary.
fn make_towers(folder: &Path) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden");
    for (tower, case) in [("vision", "vit/hf_backbone_pooler"), ("text", "backbones/bert_pooler")] {
        fs::create_dir_all(folder.join(tower)).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(golden.join(case).join(file), folder.join(tower).join(file)).unwrap();
        }
    }
    let words = "[PAD] [UNK] [CLS] [SEP] [MASK] red green blue a picture of number in 0 1 2 3";
    fs::write(folder.join("text/vocab.txt"), words.replace(' ', "\n")).unwrap();
    fs::write(folder.join("text/sentence_bert_config.json"), r#"{"max_seq_length": 5}"#).unwrap();
    fs::write(folder.join("broken.png"), "no picture").unwrap();
    let line = r#"{"image": "broken.png", "caption": "a picture"}"#;
    fs::write(folder.join("broken.jsonl"), line).unwrap();
}

fn go(recipe: &str, folder: &Path, is_stopped: bool) -> Summary {
    let data = folder.parent().unwrap().display().to_string();
    let config = TrainConfig::parse(&recipe.replace("DATA", &data), "test.toml", &[]).unwrap();
    let stop = Arc::new(AtomicBool::new(is_stopped));
    let options =
        RunOptions { folder: folder.to_path_buf(), show: Show::Nothing, memory: None, stop };
    run(&config, &options).unwrap()
}

/// The records of a run without what depends on the machine's mood.
fn records(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("log.jsonl")).unwrap();
    let parse = |line: &str| {
        let mut record: Value = serde_json::from_str(line).unwrap();
        for key in ["seconds", "images_per_second"] {
            record.as_object_mut().unwrap().remove(key);
        }
        record
    };
    text.lines().map(parse).collect()
}

fn check(recipe: &str, folder: &Path) {
    make_data(folder);
    let straight = folder.join("straight");
    let summary = go(recipe, &straight, false);
    assert_eq!((summary.steps, summary.is_interrupted), (11, false));
    let weights = |run: &Path| fs::read(run.join("export/model.safetensors")).unwrap();

    // Stopped after every single step.
    let stopped = folder.join("stopped");
    let mut sittings = 1;
    while go(recipe, &stopped, true).is_interrupted {
        sittings += 1;
    }
    assert_eq!(sittings, 11);
    assert_eq!(records(&stopped), records(&straight));
    assert!(weights(&stopped) == weights(&straight), "the weights differ");

    // Killed while it wrote the checkpoint of step 8.
    let killed = folder.join("killed");
    go(recipe, &killed, false);
    let checkpoints = killed.join("checkpoints");
    for entry in fs::read_dir(&checkpoints).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if ["latest", "best"].contains(&&*name) {
            fs::remove_file(path).unwrap();
        } else if name == "step-00000008" {
            fs::remove_file(path.join("optimizer.safetensors")).unwrap();
            fs::rename(&path, checkpoints.join(".draft")).unwrap();
        } else if name != "step-00000004" {
            fs::remove_dir_all(path).unwrap();
        }
    }
    std::os::unix::fs::symlink("step-00000004", checkpoints.join("latest")).unwrap();
    fs::remove_dir_all(killed.join("export")).unwrap();
    go(recipe, &killed, false);
    assert_eq!(records(&killed), records(&straight));
    assert!(weights(&killed) == weights(&straight), "the weights differ");
}

#[test]
fn a_classifier_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    check(CLASSIFIER, folder.path());
    let run = folder.path().join("straight");
    for file in [
        "config.resolved.toml",
        "params.txt",
        "env.json",
        "out.log",
        "plot.svg",
        "plot.png",
        "export/config.json",
    ] {
        assert!(run.join(file).is_file(), "{file}");
    }
    assert!(run.join("checkpoints/best").exists() && run.join("tensorboard").is_dir());
    let config: Value =
        serde_json::from_slice(&fs::read(run.join("export/config.json")).unwrap()).unwrap();
    let names = serde_json::json!({ "0": "blue", "1": "green", "2": "red" });
    assert_eq!((&config["id2label"], &config["model_type"]), (&names, &"vit".into()));
    let written = Checkpoint::open(&run.join("export")).unwrap();
    let filters = "vit.embeddings.patch_embeddings.projection.weight";
    assert_eq!(written.info(filters).unwrap().1, [16, 3, 8, 8]);
    let kept = Checkpoint::open(&run.join("checkpoints/best/model.safetensors")).unwrap();
    assert_eq!(kept.info("patch.weight").unwrap().1, [16, 3, 8, 8]);
    let opened = ocelli_models::Files::find(&run.join("export"), None).unwrap();
    assert_eq!(opened.processor().unwrap().size(), Some((16, 16)));
    opened.open(ocelli_models::HeadCounts::default()).unwrap();
}

#[test]
fn clip_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    check(CLIP, folder.path());
    let run = folder.path().join("straight");
    let last = records(&run).pop().unwrap();
    assert!(last["zero_shot_top5"] == 1.0 && last["pairs_image_to_text_r1"].is_number(), "{last}");
    let files = ocelli_models::Files::find(&run.join("export"), None).unwrap();
    assert!(files.tokenizer().unwrap().vocab_size() <= 540);
    files.open(ocelli_models::HeadCounts::default()).unwrap();

    // The exported model is a start for a larger picture, with a frozen tower.
    let larger = CLIP
        .replace("image_size = 16", &format!("image_size = 24\nfrom = {:?}", run.join("export")))
        .replace("tokenizer = { train_vocab_size = 540 }", "")
        .replace("vision = \"none\"", "vision = { except_last = 0 }")
        .replace("steps = 11", "steps = 2");
    let folder = folder.path().join("larger");
    assert_eq!(go(&larger, &folder, false).steps, 2);
    let table = fs::read_to_string(folder.join("params.txt")).unwrap();
    assert!(table.contains("vision"), "{table}");
}

/// Pictures of three colours through a model of another family, which its export opens again.
fn check_family(model: &str, section: &str) {
    let folder = tempfile::tempdir().unwrap();
    let sizes = "family = \"vit\"\nimage_size = 16\nvision = { patch_size = 8, width = 16, depth = 1, heads = 2 }";
    assert!(CLASSIFIER.contains(sizes));
    check(&CLASSIFIER.replace(sizes, model), folder.path());
    let export = folder.path().join("straight/export");
    let config: Value =
        serde_json::from_slice(&fs::read(export.join("config.json")).unwrap()).unwrap();
    assert!(config[section].is_object() || section == "hybrid", "{config}");
    let files = ocelli_models::Files::find(&export, None).unwrap();
    files.open(ocelli_models::HeadCounts::default()).unwrap();
    // It is a start for a larger picture and other classes.
    if section == "hybrid" {
        let larger = format!(
            "family = \"hybrid\"\nimage_size = 24\nfrom = \"{}\"\nclasses = 7",
            export.display()
        );
        let recipe = CLASSIFIER.replace(sizes, &larger).replace("steps = 11", "steps = 2");
        assert_eq!(go(&recipe, &folder.path().join("larger"), false).steps, 2);
    }
}

#[test]
fn a_hybrid_goes_on_where_it_stopped() {
    let backbone = "{ stem_channels = 4, layers = [1, 1], channels = [8, 16], groups = 2 }";
    let vision = "{ patch_size = 1, width = 16, depth = 1, heads = 2 }";
    let model =
        format!("family = \"hybrid\"\nimage_size = 16\nbackbone = {backbone}\nvision = {vision}");
    check_family(&model, "hybrid");
}

#[test]
fn local_and_axial_attention_go_on_where_they_stopped() {
    let sizes = "image_size = 16\nvision = { patch_size = 4, width = 16, depth = 1, heads = 2 }";
    for neighbourhood in ["{ window = 3 }", "\"axes\""] {
        let model = format!("family = \"local_vit\"\n{sizes}\nneighbourhood = {neighbourhood}");
        check_family(&model, "local_vit");
    }
}

#[test]
fn bf16_goes_on_where_it_stopped_and_learns_like_f32() {
    let folder = tempfile::tempdir().unwrap();
    check(&CLASSIFIER.replace("mixup", "precision = \"bf16\"\nmixup"), folder.path());
    let in_f32 = folder.path().join("f32");
    go(CLASSIFIER, &in_f32, false);
    let [in_f32, in_bf16] = [in_f32, folder.path().join("straight")]
        .map(|run| records(&run).iter().filter_map(|r| r["loss"].as_f64()).collect::<Vec<_>>());
    assert_eq!(in_f32.len(), 11);
    assert_ne!(in_f32, in_bf16);
    for (a, b) in in_f32.iter().zip(&in_bf16) {
        assert!((a - b).abs() < 0.02 * a, "{in_f32:?} {in_bf16:?}");
    }
}

#[test]
fn blocks_computed_twice_give_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    make_data(folder.path());
    for recipe in [CLASSIFIER, CLIP] {
        let weights = ["false", "true"].map(|checkpoints| {
            let key = format!("[train]\ngrad_checkpointing = {checkpoints}\n");
            let recipe = recipe.replace("[train]\n", &key).replace("depth = 1", "depth = 2");
            let run = folder.path().join(format!("{}-{checkpoints}", recipe.len()));
            go(&recipe, &run, false);
            fs::read(run.join("export/model.safetensors")).unwrap()
        });
        assert!(weights[0] == weights[1], "the weights differ");
    }
}

#[test]
fn lit_goes_on_where_it_stopped_and_its_export_is_what_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    make_towers(folder.path());
    check(LIT, folder.path());
    let run = folder.path().join("straight");
    let table = fs::read_to_string(run.join("params.txt")).unwrap();
    assert_eq!(table.matches("frozen").count(), 2, "{table}");
    let last = records(&run).pop().unwrap();

    let files = Files::find(&run.join("export"), None).unwrap();
    assert_eq!((files.template(), files.context_length().unwrap()), ("{}", 5));
    let (tokenizer, processor) = (files.bert_tokenizer().unwrap(), files.processor().unwrap());
    let opened = files.open(HeadCounts::default()).unwrap();
    let Model::Lit(lit) = &opened.model else { panic!("{}", opened.model.kind()) };
    assert_eq!(lit.config().vision.image_size, (16, 16));
    let mut found = [0.0; 3];
    let (labels, pictures) = (["red", "green", "blue"], 10);
    for (class, label) in labels.iter().enumerate() {
        let prompts = labels.map(|l| format!("a picture of {l}"));
        let prompts: Vec<&str> = labels.into_iter().chain(prompts.iter().map(|p| &**p)).collect();
        let texts = tokenizer.encode_batch(&prompts, 5, Truncate::Cut).unwrap();
        let texts = lit.encode_text(&Texts::from(&texts)).unwrap().l2_normalise().unwrap();
        let texts: Vec<&[f32]> = texts.values().chunks(8).collect();
        for i in 0..pictures {
            let path = folder.path().join("folder").join(label).join(format!("{i}.png"));
            let picture = decode(&fs::read(path).unwrap(), &Limits::default()).unwrap();
            let pixels = processor.pixels(&picture).unwrap();
            let pixels = Tensor::from_slice(&pixels, &[1, 3, 16, 16]).unwrap();
            let image = lit.encode_image(&pixels).unwrap();
            let score = |class: usize| {
                let both = texts[class].iter().zip(texts[3 + class]).map(|(a, b)| a + b);
                let both: Vec<f32> = both.collect();
                let dot: f32 = both.iter().zip(image.values()).map(|(a, b)| a * b).sum();
                dot / both.iter().map(|v| v * v).sum::<f32>().sqrt()
            };
            let best = (0..3).max_by(|a, b| score(*a).total_cmp(&score(*b))).unwrap();
            found[class] += f64::from(u8::from(best == class));
        }
    }
    let top1 = found.iter().sum::<f64>() / 30.0;
    let measured = last["zero_shot_top1"].as_f64().unwrap();
    assert!((measured - top1).abs() < 1e-9 && top1 > 0.5, "{measured} {top1}");
}

#[test]
fn another_recipe_does_not_go_on_with_a_run() {
    let folder = tempfile::tempdir().unwrap();
    make_data(folder.path());
    let run_folder = folder.path().join("run");
    go(CLASSIFIER, &run_folder, true);
    let data = folder.path().display().to_string();
    let changed = CLASSIFIER.replace("DATA", &data).replace("depth = 1", "depth = 2");
    let config = TrainConfig::parse(&changed, "test.toml", &[]).unwrap();
    let options = RunOptions { folder: run_folder, ..RunOptions::default() };
    let error = run(&config, &options).unwrap_err().to_string();
    assert!(error.contains("model differs"), "{error}");
}

#[test]
fn the_files_of_a_finished_run_tell_how_it_was_trained() {
    let folder = tempfile::tempdir().unwrap();
    make_data(folder.path());
    let run_folder = folder.path().join("run");
    let short = CLASSIFIER.replace("steps = 11", "steps = 2");
    assert_eq!(go(&short, &run_folder, false).without_effect, None);
    let files = || {
        ["config.resolved.toml", "env.json", "params.txt"]
            .map(|name| fs::read_to_string(run_folder.join(name)).unwrap())
    };
    let before = files();
    let again = go(&short, &run_folder, false);
    assert_eq!(again.without_effect, Some(Vec::new()));
    let other = short.replace("lr = 3e-3", "lr = 1e-3").replace("dropout = 0.1", "dropout = 0.2");
    let summary = go(&other, &run_folder, false);
    let keys = ["optim.lr", "train.dropout"].map(str::to_owned).to_vec();
    assert_eq!((summary.steps, summary.without_effect), (2, Some(keys)));
    assert_eq!(files(), before);
    // A longer run is not finished, so it goes on as its recipe says.
    let longer = go(&other.replace("steps = 2", "steps = 3"), &run_folder, false);
    assert_eq!((longer.steps, longer.without_effect), (3, None));
    assert!(files()[0].contains("dropout = 0.2"));
}

#[test]
fn runs_that_do_not_fit_are_refused_before_they_leave_anything() {
    let folder = tempfile::tempdir().unwrap();
    make_data(folder.path());
    let data = folder.path().display().to_string();
    let config = |recipe: &str| {
        TrainConfig::parse(&recipe.replace("DATA", &data), "test.toml", &[]).unwrap()
    };
    let run_folder = folder.path().join("run");
    let options = RunOptions { folder: run_folder.clone(), ..RunOptions::default() };
    let little = RunOptions { memory: Some(1000), ..options.clone() };
    let needed = ocelli_train::plan(&config(CLASSIFIER)).unwrap().memory() as u64;
    match run(&config(CLASSIFIER), &little).unwrap_err() {
        ocelli_train::Error::Memory { needed: found, available: 1000 } => assert_eq!(found, needed),
        other => panic!("{other}"),
    }
    let large = config(&CLASSIFIER.replace("global_batch_size = 8", "global_batch_size = 99"));
    let error = run(&large, &options).unwrap_err().to_string();
    assert!(error.contains("train.global_batch_size: is 99, the data have 30 samples"), "{error}");
    assert!(!run_folder.join("config.resolved.toml").exists());
}

#[test]
fn changed_data_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    make_data(folder.path());
    let run_folder = folder.path().join("run");
    let is_told = || {
        go(CLASSIFIER, &run_folder, true);
        let log = fs::read_to_string(run_folder.join("out.log")).unwrap();
        log.contains("folder is not what the run began with (30 files of")
    };
    assert!(!is_told() && !is_told());
    let env: Value =
        serde_json::from_slice(&fs::read(run_folder.join("env.json")).unwrap()).unwrap();
    assert_eq!(env["sources"][0]["files"], 30, "{env}");
    assert_eq!(env["sources"][0]["sha256"].as_str().unwrap().len(), 64, "{env}");
    let picture = |name: &str| folder.path().join("folder/red").join(name);
    fs::copy(picture("1.png"), picture("2.png")).unwrap();
    assert!(is_told());
}

#[test]
fn a_loss_that_is_no_number_names_step_and_parameter() {
    let folder = tempfile::tempdir().unwrap();
    make_data(folder.path());
    let data = folder.path().display().to_string();
    let recipe = CLASSIFIER.replace("DATA", &data).replace("lr = 3e-3", "lr = 1e30");
    let recipe = recipe.replace("warmup_steps = 2", "warmup_steps = 0");
    let config = TrainConfig::parse(&recipe, "test.toml", &[]).unwrap();
    let options = RunOptions { folder: folder.path().join("run"), ..RunOptions::default() };
    let error = run(&config, &options).unwrap_err().to_string();
    assert!(error.starts_with("step ") && error.contains("not finite"), "{error}");
}
