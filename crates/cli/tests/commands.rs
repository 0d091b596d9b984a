//! The contract of the commands that programs call: exit codes, lines of JSON, files.
#![allow(clippy::unwrap_used)] // A failed test is to panic.

use ocelli_nn::checkpoint::Checkpoint;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const CLIP: &str = "testdata/golden/clip/hf_vit";
const VIT: &str = "testdata/golden/vit/hf_classifier";
const PHOTOS: &str = "testdata/preprocess/images";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn ocelli(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
    command.args(arguments).current_dir(root()).env("HF_HUB_OFFLINE", "1");
    command.env("OCELLI_THREADS", "2").stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Exit code, standard output, standard error.
fn told(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    told(&ocelli(arguments).output().unwrap())
}

fn run_with(arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut child = ocelli(arguments).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    told(&child.wait_with_output().unwrap())
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A folder that is removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ocelli-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn at(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    fn copy(&self, from: &str, name: &str) -> String {
        fs::create_dir_all(self.0.join(name).parent().unwrap()).unwrap();
        fs::copy(root().join(from), self.0.join(name)).unwrap();
        self.at(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A folder of good and broken pictures, and their paths in order.
fn mixed(name: &str) -> (Scratch, Vec<String>) {
    let scratch = Scratch::new(name);
    let flower = format!("{PHOTOS}/flower_96x64.png");
    let mut paths = vec![scratch.copy(&flower, "a.png")];
    let bytes = fs::read(root().join(&flower)).unwrap();
    fs::write(scratch.at("b.png"), &bytes[..bytes.len() / 2]).unwrap();
    paths.push(scratch.at("b.png"));
    paths.push(scratch.copy(&format!("{PHOTOS}/china_320x213.jpg"), "c/d.JPG"));
    fs::write(scratch.at("notes.txt"), "no picture").unwrap();
    paths.push(scratch.copy(&format!("{PHOTOS}/camera_gray_180x161.png"), "e.png"));
    (scratch, paths)
}

#[test]
fn a_folder_with_a_broken_picture_gives_a_line_each_and_code_3() {
    let (scratch, paths) = mixed("folder");
    let folder = scratch.at("");
    let labels = ["--labels", "cat,dog,flower", "--top", "3", "--jsonl"];
    for batch_size in ["1", "2", "8"] {
        let batch = ["--batch-size", batch_size, &folder];
        let arguments = [&["classify", "-m", CLIP][..], &labels, &batch].concat();
        let (code, out, err) = run(&arguments);
        assert_eq!((code, err.as_str()), (3, ""));
        let lines = lines(&out);
        let images: Vec<&str> = lines.iter().map(|l| l["image"].as_str().unwrap()).collect();
        assert_eq!(images, paths);
        for (i, line) in lines.iter().enumerate() {
            let keys: Vec<&String> = line.as_object().unwrap().keys().collect();
            if i == 1 {
                assert_eq!(keys, ["error", "image"]);
                continue;
            }
            assert_eq!(keys, ["image", "labels"]);
            let probs: Vec<f64> = line["labels"]
                .as_array()
                .unwrap()
                .iter()
                .map(|l| l["prob"].as_f64().unwrap())
                .collect();
            assert_eq!(probs.len(), 3);
            assert!(probs.is_sorted_by(|a, b| a >= b), "{probs:?}");
            assert!((probs.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{probs:?}");
        }
    }
}

#[test]
fn paths_come_from_standard_input_and_patterns() {
    let (scratch, paths) = mixed("stdin");
    let listed = format!("{}\n\n{}\r\n", paths[3], paths[0]);
    let (code, out, _) = run_with(&["classify", "-m", VIT, "--jsonl", "-"], &listed);
    let images: Vec<Value> = lines(&out).iter().map(|l| l["image"].clone()).collect();
    assert_eq!((code, images), (0, vec![json!(paths[3]), json!(paths[0])]));
    let pattern = scratch.at("**/*.JPG");
    let (code, out, _) = run(&["classify", "-m", VIT, "--jsonl", &pattern]);
    assert_eq!((code, &lines(&out)[0]["image"]), (0, &json!(paths[2])));
    let (code, out, _) = run(&["classify", "-m", VIT, "--jsonl", &scratch.at("*.gif")]);
    assert_eq!((code, &lines(&out)[0]["error"]), (3, &json!("no file is named like this")));
}

/// The classifier of the reference on features of ours.
#[test]
fn probabilities_are_those_of_the_reference_classifier() {
    let case = root().join("testdata/golden/clip/zeroshot");
    let told: Value =
        serde_json::from_str(&fs::read_to_string(case.join("golden.json")).unwrap()).unwrap();
    let strings = |key: &str| -> Vec<String> {
        told[key].as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
    };
    let (labels, templates) = (strings("class_names"), strings("templates"));
    let golden = Checkpoint::open(&case.join("golden.safetensors")).unwrap();
    let classifier = golden.read_f32("out/classifier").unwrap(); // [width, labels]
    let photo = format!("{PHOTOS}/coffee_301x200.jpg");
    let embedding = lines(&run(&["embed", "-m", CLIP, &photo]).1);
    let embedding = embedding[0]["embedding"].as_array().unwrap();
    let logits: Vec<f64> = (0..labels.len())
        .map(|label| {
            let column = classifier.iter().skip(label).step_by(labels.len());
            let pairs = column.zip(embedding);
            let cosine: f64 = pairs.map(|(w, x)| f64::from(*w) * x.as_f64().unwrap()).sum();
            cosine * logit_scale()
        })
        .collect();
    let sum: f64 = logits.iter().map(|l| l.exp()).sum();
    let list = labels.join(",");
    let mut arguments = vec!["classify", "-m", CLIP, "--labels", &list, "--jsonl", &photo];
    for template in &templates {
        arguments.extend(["--template", template]);
    }
    let (code, out, err) = run(&arguments);
    assert_eq!((code, err.as_str()), (0, ""));
    for found in lines(&out)[0]["labels"].as_array().unwrap() {
        let i = labels.iter().position(|l| found["label"] == **l).unwrap();
        let (found, expected) = (found["prob"].as_f64().unwrap(), logits[i].exp() / sum);
        assert!((found - expected).abs() < 1e-4, "{}: {found}, expected {expected}", labels[i]);
    }
}

fn logit_scale() -> f64 {
    let weights = Checkpoint::open(&root().join(CLIP).join("model.safetensors")).unwrap();
    f64::from(weights.read_f32("logit_scale").unwrap()[0]).exp()
}

#[test]
fn texts_get_the_ids_and_vectors_of_the_reference() {
    let case = root().join(CLIP);
    let told: Value =
        serde_json::from_str(&fs::read_to_string(case.join("golden.json")).unwrap()).unwrap();
    let texts: Vec<&str> =
        told["texts"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
    let golden = Checkpoint::open(&case.join("golden.safetensors")).unwrap();

    let rows: Vec<String> = texts.iter().map(|text| json!({"text": text}).to_string()).collect();
    let input = rows.join("\n") + "\n";
    let (code, out, _) = run_with(&["tokenize", "-m", CLIP], &input);
    assert_eq!(code, 0);
    let ids = golden.read_i64("in/input_ids").unwrap();
    let mask = golden.read_i64("in/attention_mask").unwrap();
    for ((line, ids), mask) in lines(&out).iter().zip(ids.chunks(20)).zip(mask.chunks(20)) {
        let kept = mask.iter().filter(|m| **m == 1).count();
        assert_eq!(line["ids"], json!(ids[..kept]));
    }

    let scratch = Scratch::new("texts");
    let file = scratch.at("out.safetensors");
    let mut arguments = vec!["embed", "-m", CLIP, "-o", &file];
    texts.iter().for_each(|text| arguments.extend(["--text", text]));
    assert_eq!(run(&arguments), (0, String::new(), String::new()));
    let written = Checkpoint::open(Path::new(&file)).unwrap();
    assert_eq!(written.info("embeddings").unwrap().1, [4, 24]);
    let expected = golden.read_f32("out/text_embeds").unwrap();
    for (found, expected) in written.read_f32("embeddings").unwrap().iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-4, "{found}, expected {expected}");
    }
}

#[test]
fn pixels_are_those_of_the_reference_and_need_no_weights() {
    let scratch = Scratch::new("pixels");
    scratch.copy(&format!("{CLIP}/config.json"), "config.json");
    let processor = fs::read_to_string(root().join(CLIP).join("preprocessor_config.json")).unwrap();
    fs::write(scratch.at("preprocessor_config.json"), processor.replace("32", "224")).unwrap();
    let (folder, file) = (scratch.at(""), scratch.at("out.safetensors"));
    let photos = ["coffee_301x200.jpg", "flower_96x64.png"].map(|p| format!("{PHOTOS}/{p}"));
    let arguments = ["preprocess", "-m", &folder, &photos[0], &photos[1], "-o", &file];
    assert_eq!(run(&arguments), (0, String::new(), String::new()));
    let written = Checkpoint::open(Path::new(&file)).unwrap();
    assert_eq!(written.info("pixel_values").unwrap().1, [2, 3, 224, 224]);
    let pixels = written.read_f32("pixel_values").unwrap();
    let golden = root().join("testdata/preprocess/photos.safetensors");
    let golden = Checkpoint::open(&golden).unwrap();
    // The flower is a PNG: its bytes are the reference's; mean and deviation undo exactly enough.
    let bytes = golden.bytes("flower_96x64/clip224.u8").unwrap();
    let (mean, std) =
        ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_6, 0.275_777_1]);
    for (i, (value, byte)) in pixels[3 * 224 * 224..].iter().zip(bytes.iter()).enumerate() {
        let channel = i / (224 * 224);
        let found = (f64::from(*value) * std[channel] + mean[channel]) * 255.0;
        assert!((found - f64::from(*byte)).abs() < 1e-3, "{i}: {found}, expected {byte}");
    }
}

#[test]
fn files_are_only_written_if_every_picture_was_read() {
    let (scratch, paths) = mixed("unread");
    let (folder, file) = (scratch.at(""), scratch.at("out.safetensors"));
    for command in ["embed", "preprocess"] {
        let (code, out, err) = run(&[command, "-m", CLIP, &folder, "-o", &file]);
        assert_eq!((code, out.as_str()), (3, ""));
        assert!(err.contains(&paths[1]) && err.contains("1 of the pictures"), "{err}");
        assert!(!Path::new(&file).exists());
    }
    fs::remove_file(&paths[1]).unwrap();
    assert_eq!(run(&["embed", "-m", VIT, &folder, "-o", &file]).0, 0);
    let written = Checkpoint::open(Path::new(&file)).unwrap();
    let (_, shape) = written.info("embeddings").unwrap();
    assert_eq!(shape, [3, 48]);
    for row in written.read_f32("embeddings").unwrap().chunks(48) {
        assert!((row.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-5);
    }
    let left: Vec<_> = fs::read_dir(&scratch.0).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".tmp")), "{left:?}");
}

#[test]
fn bad_checkpoints_are_explained_with_code_4() {
    let scratch = Scratch::new("checkpoints");
    let config = format!("{VIT}/config.json");
    let weights = fs::read(root().join(VIT).join("model.safetensors")).unwrap();
    let huge: Vec<u8> = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
    let cases: [(&str, &[u8], &str); 4] = [
        ("truncated", &weights[..weights.len() / 2], "model.safetensors"),
        ("huge_header", &huge, "model.safetensors"),
        ("empty", b"", "model.safetensors"),
        ("text", b"<html>not found</html>", "model.safetensors"),
    ];
    let photo = format!("{PHOTOS}/flower_96x64.png");
    let check = |model: &str, expected: &str| {
        let (code, out, err) = run(&["classify", "-m", model, &photo]);
        assert_eq!((code, out.as_str()), (4, ""), "{err}");
        assert!(err.starts_with("error: ") && err.contains(expected), "{err}");
        assert!(!err.contains("panicked"), "{err}");
    };
    for (name, bytes, expected) in cases {
        scratch.copy(&config, &format!("{name}/config.json"));
        fs::write(scratch.at(&format!("{name}/model.safetensors")), bytes).unwrap();
        check(&scratch.at(name), expected);
    }
    scratch.copy(&config, "none/config.json");
    check(&scratch.at("none"), "none");
    fs::create_dir_all(scratch.at("nothing")).unwrap();
    check(&scratch.at("nothing"), "nothing");
    // The weights of another model: every tensor that is missing is named.
    scratch.copy(&config, "other/config.json");
    scratch.copy("testdata/golden/vit/timm_gap/model.safetensors", "other/model.safetensors");
    check(&scratch.at("other"), "missing");
    check("testdata/checkpoint/malicious.pt", "malicious.pt");
}

#[test]
fn wrong_lines_for_the_tokenizer_are_named() {
    let (code, out, err) = run_with(&["tokenize", "-m", CLIP], "{\"text\": \"a\"}\n{\"t\": 1}\n");
    assert_eq!(code, 3);
    assert_eq!(lines(&out).len(), 1);
    assert!(err.contains("standard input line 2: no \"text\"; expected"), "{err}");
    for (wrong, said) in [("[1]", "no object"), ("{\"text\": 1}", "is no string"), ("{", "no JSON")]
    {
        let (code, _, err) = run_with(&["tokenize", "-m", CLIP], wrong);
        assert!(code == 3 && err.contains(said) && !err.contains("struct"), "{err}");
    }
    let (code, out, err) = run_with(&["tokenize", "-m", CLIP], "{\"text\": \"a\"}\n\n{}\n");
    assert_eq!((code, lines(&out).len()), (3, 1));
    assert!(err.contains("line 2: blank"), "{err}");
    assert_eq!(run_with(&["tokenize", "-m", CLIP], "{\"text\": \"a\"}\n\n").0, 0);
    let (code, out, _) = run_with(&["tokenize", "-m", CLIP, "--raw"], "{\"text\": \"\"}\n");
    assert_eq!((code, out.as_str()), (0, "{\"ids\":[]}\n"));
}

#[test]
fn without_a_model_the_built_in_one_answers() {
    let photo = format!("{PHOTOS}/flower_96x64.png");
    let (code, out, err) = run(&["classify", "--labels", "flower,cat", "--jsonl", &photo]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(lines(&out)[0]["labels"].as_array().unwrap().len(), 2);
    let (code, out, _) = run(&["model", "info"]);
    assert!(code == 0 && out.contains("inside this program"), "{out}");
    let (code, out, _) = run(&["embed", "--text", "a flower"]);
    let embedding = &lines(&out)[0]["embedding"];
    let length: f64 =
        embedding.as_array().unwrap().iter().map(|v| v.as_f64().unwrap().powi(2)).sum();
    assert!(code == 0 && (length - 1.0).abs() < 1e-5, "{length}");
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    let mut child = ocelli(&["completions", "bash"]).spawn().unwrap();
    drop(child.stdout.take());
    let (code, _, err) = told(&child.wait_with_output().unwrap());
    assert_eq!((code, err.as_str()), (0, ""));
}

/// A folder of a model with everything but its weights, where one file is replaced.
fn without_weights(scratch: &Scratch, model: &str, file: &str, text: &str) -> String {
    let config = format!("{model}/config.json");
    scratch.copy(&config, "model/config.json");
    fs::write(scratch.at(&format!("model/{file}")), text).unwrap();
    scratch.at("model")
}

#[test]
fn a_processor_file_may_leave_its_class_to_the_model() {
    let scratch = Scratch::new("processor");
    let photo = format!("{PHOTOS}/flower_96x64.png");
    let out = scratch.at("out.safetensors");
    for model in [CLIP, VIT] {
        let said = fs::read_to_string(root().join(model).join("preprocessor_config.json")).unwrap();
        let mut fields: Value = serde_json::from_str(&said).unwrap();
        let mut pixels = Vec::new();
        for keep in [true, false] {
            if !keep {
                fields.as_object_mut().unwrap().remove("image_processor_type");
                fields.as_object_mut().unwrap().remove("feature_extractor_type");
            }
            let file = "preprocessor_config.json";
            let folder = without_weights(&scratch, model, file, &fields.to_string());
            let (code, _, err) = run(&["preprocess", "-m", &folder, &photo, "-o", &out]);
            assert_eq!(code, 0, "{err}");
            pixels.push(fs::read(&out).unwrap());
        }
        assert!(pixels[0] == pixels[1], "{model}");
    }
    let wrong = "{\"image_processor_type\": \"SamImageProcessor\"}";
    let folder = without_weights(&scratch, CLIP, "preprocessor_config.json", wrong);
    let (code, _, err) = run(&["preprocess", "-m", &folder, &photo, "-o", &out]);
    assert_eq!((code, err.matches("preprocessor_config.json").count()), (4, 1), "{err}");
}

#[test]
fn label_files_are_data_and_their_faults_have_code_3() {
    let scratch = Scratch::new("labels");
    let photo = format!("{PHOTOS}/flower_96x64.png");
    let file = scratch.at("labels.txt");
    let classify = |text: &[u8]| {
        fs::write(&file, text).unwrap();
        run(&["classify", "-m", CLIP, "--labels-file", &file, "--jsonl", &photo])
    };
    let (code, out, err) = classify("\u{feff}cat\r\n\r\ndog\n\n".as_bytes());
    assert_eq!((code, err.as_str()), (0, ""));
    let same = run(&["classify", "-m", CLIP, "--labels", "cat，dog", "--jsonl", &photo]);
    assert_eq!(same, (0, out, String::new()));
    for (wrong, said) in
        [(&b"cat\ncat\n"[..], "line 2 repeats"), (b"\n", "no labels"), (b"\xff", "UTF-8")]
    {
        let (code, _, err) = classify(wrong);
        assert!(code == 3 && err.contains(said) && err.contains("labels.txt"), "{err}");
    }
}

#[test]
fn a_rehearsal_splits_the_work_for_threads_that_there_are_not() {
    let (code, out, err) = run(&["bench", "--shape", "vit-ti16", "--scaling", "--json"]);
    assert_eq!(code, 0, "{err}");
    let rows: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let threads: Vec<u64> = rows.iter().map(|row| row["threads"].as_u64().unwrap()).collect();
    assert_eq!(threads, [1, 2, 4, 8, 16, 32, 64]);
    // What is predicted has the price of a fork in it, which is high while other tests have the cores.
    let first = |name: &str| rows[0][name].as_f64().unwrap();
    assert!(first("serial_ms") < 0.5 * first("ms"), "most of the work is dealt to threads: {out}");
    // A split for more threads forks no more often: only tasks become smaller.
    assert!(rows.iter().all(|row| row["forks"] == rows[0]["forks"]), "{out}");
}

#[test]
fn what_does_not_fit_into_memory_is_refused_with_code_5() {
    for task in ["encode", "train"] {
        let arguments = ["bench", "--shape", "VIT-S16", "--task", task, "--batch", "4000000"];
        let (code, out, err) = run(&arguments);
        assert_eq!((code, out.as_str()), (5, ""), "{err}");
        assert!(err.contains("GiB are available; lower --batch"), "{err}");
    }
}

#[test]
fn narrow_numbers_change_features_little() {
    let features = |more: &[&str]| {
        let command = ["embed", "examples/pictures/rocket.svg"];
        let (code, out, err) = run(&[&command[..], more].concat());
        assert_eq!(code, 0, "{err}");
        let line: Value = serde_json::from_str(out.lines().next().unwrap()).unwrap();
        let values = line["embedding"].as_array().unwrap_or_else(|| panic!("{line}")).clone();
        values.iter().map(|x| x.as_f64().unwrap()).collect::<Vec<f64>>()
    };
    let full = features(&[]);
    let cosine = |x: &[f64]| {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        dot(&full, x) / (dot(&full, &full) * dot(x, x)).sqrt()
    };
    // Not 1: the numbers are narrow indeed.
    for (more, least) in [(["--dtype", "bf16"], 0.9999), (["--quant", "int8"], 0.995)] {
        let near = cosine(&features(&more));
        assert!((least..0.999_999_9).contains(&near), "{more:?}: {near}");
    }
}

#[test]
fn texts_are_timed_with_weights_in_blocks() {
    let folder = "testdata/golden/backbones/llama_gqa";
    for (task, tokens) in [("prefill", 12), ("decode", 1)] {
        let bench = ["bench", "-m", folder, "--task", task, "--tokens", "12", "--json"];
        for dtype in ["f32", "q8_0"] {
            let (code, out, err) = run(&[&bench[..], &["--dtype", dtype]].concat());
            assert_eq!(code, 0, "{err}");
            let line: Value = serde_json::from_str(&out).unwrap();
            let [median, rate] = ["median_ms", "tokens_per_s"].map(|k| line[k].as_f64().unwrap());
            assert!((rate * median / 1e3 / f64::from(tokens) - 1.0).abs() < 1e-6, "{out}");
        }
    }
    let (code, _, err) = run(&["bench", "-m", folder, "--task", "decode", "--tokens", "100000"]);
    assert!(
        code == 2 && err.contains("the context has") && err.contains("lower --tokens"),
        "{err}"
    );
    let (code, _, err) = run(&["bench", "--shape", "vit-s16", "--dtype", "q4_0"]);
    assert!(code == 2 && err.contains("--task prefill or decode"), "{err}");
    let (code, _, err) = run(&["bench", "--shape", "RN50", "--task", "decode"]);
    assert!(code != 0 && err.contains("a language model without an encoder"), "{err}");
    let (code, _, err) = run(&["bench", "--shape", "vit-s16", "--fast-decode"]);
    assert!(code == 2 && err.contains("belong to --task pipeline"), "{err}");
}

#[test]
fn variables_that_are_set_wrongly_are_errors() {
    let output = ocelli(&["doctor"]).env("OCELLI_THREADS", "abc").output().unwrap();
    let (code, out, err) = told(&output);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.starts_with("error: OCELLI_THREADS=abc: expected a number"), "{err}");
}

#[test]
fn values_that_are_not_finite_say_what_to_do() {
    let scratch = Scratch::new("nan");
    scratch.copy(&format!("{VIT}/config.json"), "model/config.json");
    let file = scratch.copy(&format!("{VIT}/model.safetensors"), "model/model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    let photo = format!("{PHOTOS}/flower_96x64.png");
    let (code, _, err) = run(&["classify", "-m", &scratch.at("model"), &photo]);
    assert!(
        code == 4 && err.contains("not finite") && err.contains("fetch the file again"),
        "{err}"
    );
}

#[test]
fn missing_training_data_names_what_fetches_it() {
    let scratch = Scratch::new("recipe");
    let text = fs::read_to_string(root().join("recipes/vit/mnist.toml")).unwrap();
    let recipe = scratch.at("mnist.toml");
    fs::write(&recipe, text.replace("\"data/mnist", "\"no/such/folder")).unwrap();
    let (code, _, err) = run(&["train", "-c", &recipe, "--runs", &scratch.at("runs")]);
    assert!(code == 3 && err.contains("tools/fetch_mnist.py data/mnist"), "{err}");
}

#[test]
fn checkpoints_of_openai_take_their_heads_from_the_case_of_the_same_weights() {
    let scratch = Scratch::new("heads");
    let case = "testdata/golden/clip/openai_vit";
    for file in ["golden.json", "golden.safetensors", "model.safetensors"] {
        scratch.copy(&format!("{case}/{file}"), &format!("case/{file}"));
    }
    let verify = || run(&["verify", &scratch.at("case"), "--family", "openai"]);
    // Without the neighbour a tower 48 wide does not tell its heads, which are 64 wide by OpenAI's rule.
    let (code, _, err) = verify();
    assert!(code == 4 && err.contains("no multiple of 64"), "{err}");
    scratch.copy(&format!("{CLIP}/config.json"), "hf_vit/config.json");
    assert_eq!(verify().0, 0);
}

#[test]
fn a_model_in_bytes_reads_like_the_one_that_it_was_made_of() {
    let folder = tempfile::tempdir().unwrap();
    let small = folder.path().join("small");
    let to = small.to_str().unwrap();
    let flower = &format!("{PHOTOS}/flower_96x64.png");
    for (model, what) in [(CLIP, ["--labels", "cat,flower,car"]), (VIT, ["--top", "2"])] {
        let quantize = ["model", "quantize", "-m", model, "-o", to, flower];
        let (code, said, error) = run(&quantize);
        assert_eq!(code, 0, "{error}");
        let cosine = said.lines().find_map(|line| line.strip_prefix("cosine")).unwrap();
        let cosine: f32 = cosine.split_whitespace().next().unwrap().parse().unwrap();
        assert!((0.995..1.0).contains(&cosine), "{said}");
        let size = |dir: &Path| fs::metadata(dir.join("model.safetensors")).unwrap().len();
        assert!(size(&small) < size(&root().join(model)) / 2);

        let label = |model: &str, how: &[&str]| {
            let call = ["classify", "-m", model, "--jsonl", flower];
            let (code, said, error) = run(&[&call[..], &what, how].concat());
            assert_eq!(code, 0, "{error}");
            said
        };
        // The weights are the same bytes as those that are made of f32 on loading.
        assert_eq!(label(to, &[]), label(model, &["--quant", "int8"]));
        let (code, _, error) = run(&quantize);
        assert_eq!(code, 2);
        assert!(error.contains("exists; name a new folder"), "{error}");
        fs::remove_dir_all(&small).unwrap();
    }
    let (code, _, error) = run(&["model", "quantize", "-m", "testdata/gguf/chat.gguf", "-o", to]);
    assert_eq!(code, 2);
    assert!(error.contains("in blocks already"), "{error}");
}
