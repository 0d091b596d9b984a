//! A Flamingo from pictures and words to words: the small model of the reference gets the vocabulary of
//! a tokenizer, so that texts go through prompt, tokenizer and tables.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const FOX: &str = "examples/pictures/fox.svg";
const ROCKET: &str = "examples/pictures/rocket.svg";
/// Rows of the table, more than the tokenizer has pieces.
const VOCAB: usize = 1000;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn ocelli(arguments: &[&str], input: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
    command.current_dir(root()).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// The stored MPT with a row of the word table for every piece of a tokenizer, whose files are added.
/// Which ids its pictures and their ends have, the tokenizer says.
fn with_words(to: &Path) {
    let from = root().join("testdata/golden/flamingo/openflamingo_mpt");
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    config["lm_config"]["max_seq_len"] = 1024.into();
    for id in ["media_token_id", "eoc_token_id"] {
        config.as_object_mut().unwrap().remove(id);
    }
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = stored
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let (mut shape, mut data) = (view.shape().to_vec(), view.data().to_vec());
            if name.ends_with("wte.weight") || name.ends_with("lm_head.weight") {
                // Rows as unlike each other as the first ones, the same in every run.
                for i in shape[0] * shape[1]..VOCAB * shape[1] {
                    let value = ((i as f32) * 12.9898).sin() * 0.5;
                    data.extend_from_slice(&value.to_le_bytes());
                }
                shape[0] = VOCAB;
            }
            (name, shape, data)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, data)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap())
    });
    serialize_to_file(views, None, &to.join("model.safetensors")).unwrap();
    let words = root().join("testdata/models/blip2_opt");
    for file in ["vocab.json", "merges.txt", "tokenizer_config.json"] {
        std::fs::copy(words.join(file), to.join(file)).unwrap();
    }
}

/// The texts of lines of JSON.
fn texts(lines: &str) -> Vec<String> {
    let text = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["text"].as_str().unwrap().to_owned()
    };
    lines.lines().map(text).collect()
}

/// What the model writes behind a prompt that is spelled out.
fn behind(model: &str, prompt: &str, images: &[&str]) -> String {
    let mut arguments = vec!["generate", "-m", model, "-n", "8", "-i", prompt];
    for image in images {
        arguments.extend(["--image", image]);
    }
    ocelli(&arguments, "").trim().to_owned()
}

#[test]
fn pictures_and_examples_are_put_into_the_prompts_of_the_publication() {
    let folder = tempfile::tempdir().unwrap();
    with_words(folder.path());
    let model = folder.path().to_str().unwrap();

    let both = ocelli(&["caption", "-m", model, "-n", "8", "--jsonl", FOX, ROCKET], "");
    let caption = |image| behind(model, "<image>Output:", &[image]);
    assert_eq!(texts(&both), [caption(FOX), caption(ROCKET)]);

    let asked = ["vqa", "-m", model, "-q", "What is it?", "-n", "8", "--jsonl", FOX];
    let answer = texts(&ocelli(&asked, "")).remove(0);
    let question = "<image>Question:What is it? Short answer:";
    assert_eq!(answer, behind(model, question, &[FOX]));

    // An example with a picture and one of text alone.
    let shots = folder.path().join("shots.json");
    let rocket = root().join(ROCKET).canonicalize().unwrap();
    let examples = json!([
        {"image": rocket, "question": "What is it?", "text": "a rocket"},
        {"question": "Is it day?", "text": "no"},
    ]);
    std::fs::write(&shots, examples.to_string()).unwrap();
    let shots = shots.to_str().unwrap();
    let few = texts(&ocelli(&[&asked[..], &["--shots", shots]].concat(), "")).remove(0);
    let spelled = "<image>Question:What is it? Short answer:a rocket<|endofchunk|>\
                   Question:Is it day? Short answer:no<|endofchunk|>";
    assert_eq!(few, behind(model, &format!("{spelled}{question}"), &[ROCKET, FOX]));
    assert_ne!(few, answer);

    // The same examples before a prompt that says where its picture goes.
    let shown = "<image>What is it?a rocket<|endofchunk|>Is it day?no<|endofchunk|>";
    let prompt = ["generate", "-m", model, "-n", "8", "--image", FOX, "-i", "<image>A fox"];
    let few = ocelli(&[&prompt[..], &["--shots", shots]].concat(), "");
    assert_eq!(few.trim(), behind(model, &format!("{shown}<image>A fox"), &[ROCKET, FOX]));

    // Prompts of one call, each with the picture somewhere else, are what they are alone.
    let two = ["Look: <image>a", "<image>", "so much for <image> and more"];
    let mut together = vec!["generate", "-m", model, "-n", "8", "--image", FOX, "--json"];
    two.iter().for_each(|prompt| together.extend(["-i", prompt]));
    let alone: Vec<String> = two.iter().map(|prompt| behind(model, prompt, &[FOX])).collect();
    let together = texts(&ocelli(&together, ""));
    assert_eq!(together.iter().map(|text| text.trim()).collect::<Vec<_>>(), alone);

    let chat = ["run", "-m", model, "-n", "8", "--temperature", "0"];
    let lines = format!("/image {FOX}\nWhat is it?\n/image {ROCKET}\nAnd this?\n");
    let said = ocelli(&chat, &lines);
    let first = said.lines().next().unwrap();
    assert_eq!(first.trim(), behind(model, "<image>What is it?", &[FOX]));
}
