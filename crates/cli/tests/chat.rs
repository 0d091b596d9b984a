//! `ocelli run` through its pipes: messages, pictures, commands and what goes wrong with them.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn ocelli(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
    command.current_dir(root()).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

const MODEL: &str = "testdata/golden/llava/hf_v15";
const FOX: &str = "examples/pictures/fox.svg";
const ROCKET: &str = "examples/pictures/rocket.svg";

fn saved(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_chat_answers_as_if_all_were_said_at_once() {
    let file = std::env::temp_dir().join(format!("ocelli-chat-{}.json", std::process::id()));
    let save = format!("/save {}\n", file.display());
    let input = format!("What is it?\nAnd what colour?\n/image {ROCKET}\nAnd this?\n{save}");
    let chat = ["run", "-m", MODEL, "--image", FOX, "-n", "8", "--temperature", "0"];
    let output = ocelli(&chat, &input);
    assert!(output.status.success(), "{output:?}");
    let conversation = saved(&file);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(conversation["images"], serde_json::json!([FOX, ROCKET]));
    let turns = conversation["turns"].as_array().unwrap();
    assert_eq!(turns.len(), 3);
    let mut prompt = String::new();
    for (i, turn) in turns.iter().enumerate() {
        prompt += &["USER: ", turn["user"].as_str().unwrap(), " ASSISTANT:"].concat();
        let mut once = vec!["generate", "-m", MODEL, "-i", &prompt, "-n", "8", "--image", FOX];
        if i == 2 {
            once.extend(["--image", ROCKET]);
        }
        let answer = String::from_utf8(ocelli(&once, "").stdout).unwrap();
        let said = turn["answer"].as_str().unwrap();
        assert_eq!(said, answer.trim(), "turn {i}");
        assert!(!said.is_empty());
        prompt += &[" ", said, "</s>"].concat();
    }
}

#[test]
fn what_goes_wrong_ends_neither_the_chat_nor_what_was_said() {
    let input = "/image nowhere.png\n/frob\nWhat is <image>?\n/clear\nHello\n/help\n/exit\nnever\n";
    let output = ocelli(&["run", "-m", MODEL, "-n", "4", "--temperature", "0"], input);
    assert!(output.status.success());
    let errors = String::from_utf8(output.stderr).unwrap();
    for said in ["nowhere.png", "/frob is no command", "pictures given: 0", "/save FILE"] {
        assert!(errors.contains(said), "{said} is not in {errors}");
    }
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 1);
}

#[test]
fn too_long_a_conversation_is_refused_with_its_counts() {
    let long = "word ".repeat(300);
    let output = ocelli(&["run", "-m", MODEL, "--image", FOX, "-i", &long], "");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("16 of them from pictures") && error.contains("at most 256"), "{error}");
}

#[test]
fn captions_and_answers_come_from_a_model_that_talks() {
    for arguments in [&["caption", "-m", MODEL][..], &["vqa", "-m", MODEL, "-q", "What is it?"]] {
        let arguments = [arguments, &["--jsonl", "-n", "6", FOX, ROCKET]].concat();
        let output = ocelli(&arguments, "");
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        for (line, image) in text.lines().zip([FOX, ROCKET]) {
            let line: Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["image"], image);
        }
    }
}
