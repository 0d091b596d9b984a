//! MiniGPT-4 and MiniGPT-v2 from a picture and words to words: the small models of the reference get
//! the vocabulary of a LLaMA tokenizer, so that texts go through prompt, tokenizer and tables.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const FOX: &str = "examples/pictures/fox.svg";
const ROCKET: &str = "examples/pictures/rocket.svg";
/// Pieces of the tokenizer.
const VOCAB: usize = 900;
/// What a text with everything around it may need.
const CONTEXT: usize = 1024;

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

/// A folder that is removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The model of a stored case with tables for every piece of the tokenizer, whose files are added.
fn with_words(case: &str) -> Folder {
    let from = root().join("testdata/golden/minigpt4").join(case);
    let to = std::env::temp_dir().join(format!("ocelli-{case}-{}", std::process::id()));
    std::fs::create_dir_all(&to).unwrap();
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    config["llama"]["vocab_size"] = VOCAB.into();
    config["llama"]["max_position_embeddings"] = CONTEXT.into();
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = stored
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let (mut shape, mut data) = (view.shape().to_vec(), view.data().to_vec());
            let is_table = ["llama_model", "embed_tokens.weight"].iter().all(|p| name.contains(p))
                || name.ends_with("lm_head.weight");
            if is_table {
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
    let words = root().join("testdata/text/tokenizers/llama_tiny");
    for file in ["tokenizer.model", "tokenizer_config.json"] {
        std::fs::copy(words.join(file), to.join(file)).unwrap();
    }
    Folder(to)
}

const SYSTEM: &str = "Give the following image: <Img>ImageContent</Img>. You will be able to see the \
                      image once I provide it to you. Please answer my questions.";

/// What the model writes behind a prompt that is written out, in the words of the publications.
fn behind(model: &str, prompt: &str, images: &[&str]) -> String {
    let mut arguments = vec!["generate", "-m", model, "-n", "12", "-i", prompt];
    for image in images {
        arguments.extend(["--image", image]);
    }
    // Where the next message would begin, an answer ends.
    arguments.extend(["--stop", "###", "--stop", "<s>[INST]"]);
    ocelli(&arguments, "").trim().to_owned()
}

/// The texts of lines of JSON.
fn texts(lines: &str) -> Vec<String> {
    let text = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["text"].as_str().unwrap().to_owned()
    };
    lines.lines().map(text).collect()
}

/// Every command with the prompt that the publication has for it.
fn every_command_asks_as_published(model: &str, prompt: impl Fn(&str) -> String, asked: [&str; 2]) {
    let [caption, question] = asked;
    for (arguments, text) in
        [(&["caption"][..], caption), (&["vqa", "-q", "What is it?"], question)]
    {
        let rest = ["-m", model, "--jsonl", "-n", "12", FOX, ROCKET];
        let written = texts(&ocelli(&[arguments, &rest].concat(), ""));
        let expected = [FOX, ROCKET].map(|image| behind(model, &prompt(text), &[image]));
        assert_eq!(written, expected, "{arguments:?}");
        assert!(!expected[0].is_empty() && expected[0] != expected[1], "{expected:?}");
    }
    let arguments = ["run", "-m", model, "-n", "12", "--temperature", "0", "--image", FOX];
    let file = Path::new(model).join("said.json");
    let input = format!("What is it?\n/image {ROCKET}\nAnd this?\n/save {}\n", file.display());
    ocelli(&arguments, &input);
    let said: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let answer = |i: usize| said["turns"][i]["answer"].as_str().unwrap();
    assert_eq!(answer(0), behind(model, &prompt("What is it?"), &[FOX]));
    // The second message follows the first answer and its end.
    let end = if asked[0].starts_with('[') { "" } else { "###" };
    let both = format!("{}{}{end}", prompt("What is it?"), answer(0));
    let second = prompt("And this?").replace(SYSTEM, "");
    let both = both + second.strip_prefix("###").unwrap_or(&second);
    assert_eq!(answer(1), behind(model, &both, &[FOX, ROCKET]));
}

#[test]
fn minigpt_4_answers_about_pictures() {
    let model = with_words("v1_stage2_prompts");
    let prompt = |text: &str| format!("{SYSTEM}###Human: <Img><image></Img> {text}###Assistant: ");
    let asked = ["Describe this image in one sentence.", "What is it?"];
    every_command_asks_as_published(model.path(), prompt, asked);
}

#[test]
fn minigpt_v2_answers_about_pictures() {
    let model = with_words("v2_conversation");
    let prompt = |text: &str| format!("<s>[INST] <Img><image></Img> {text} [/INST]");
    let question =
        "[vqa] Based on the image, respond to this question with a short answer: What is it?";
    let asked = ["[caption] Describe the image briefly.", question];
    every_command_asks_as_published(model.path(), prompt, asked);
}
