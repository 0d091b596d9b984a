//! `ocelli run` through its pipes: messages, pictures, commands and what goes wrong with them; with
//! models that see and with language models that have a chat template.
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
    // The code of the first failure, a picture that is not there.
    assert_eq!(output.status.code(), Some(3));
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

/// The tiny LLaMA of `tools/gguf_chat.py`, which has a chat template.
const CHAT: &str = "testdata/gguf/chat.gguf";

#[test]
fn a_language_model_talks_in_its_chat_template() {
    let file = std::env::temp_dir().join(format!("ocelli-gguf-{}.json", std::process::id()));
    let input = format!("What is it?\nAnd the cat?\n/save {}\n/clear\nThe dog\n", file.display());
    let output = ocelli(&["run", "-m", CHAT, "-n", "8", "--temperature", "0"], &input);
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    let conversation = saved(&file);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(conversation["template"], CHAT);
    let generated = |arguments: &[&str], prompt: &str| {
        let arguments = [&["generate", "-m", CHAT, "-n", "8", "-i", prompt], arguments].concat();
        String::from_utf8(ocelli(&arguments, "").stdout).unwrap().trim().to_owned()
    };
    // The token that begins a text comes with its tokenizer.
    let mut prompt = String::new();
    for turn in conversation["turns"].as_array().unwrap() {
        prompt += &["[user] ", turn["user"].as_str().unwrap(), "\n[assistant]"].concat();
        let answer = turn["answer"].as_str().unwrap();
        assert_eq!(answer, generated(&[], &prompt));
        assert!(!answer.is_empty());
        prompt = prompt.trim_end_matches("[assistant]").to_owned();
        prompt += &["[assistant] ", answer, "</s>\n"].concat();
    }
    // After /clear nothing was said before, as if the program had just begun.
    let last = generated(&["--chat"], "The dog");
    assert!(said.ends_with(&format!("{last}\n")), "{said:?}, {last:?}");
    assert_eq!(last, generated(&[], "[user] The dog\n[assistant]"));
}

#[test]
fn chat_templates_that_are_missing_broken_or_unwilling_are_named() {
    let file = std::env::temp_dir().join(format!("ocelli-{}.jinja", std::process::id()));
    std::fs::write(&file, "{% for m in messages %}{{ m.content }}\n{% end %}").unwrap();
    let path = file.to_str().unwrap();
    let bare = "testdata/golden/backbones/llama_gqa";
    let cases: [(&[&str], i32, &str); 5] = [
        (&["-m", bare], 2, "the model has no chat template; give --chat-template FILE"),
        (&["-m", CHAT, "--system", "Be brief."], 3, "this model has no system message"),
        (&["-m", bare, "--chat-template", path], 3, "fails at line 2"),
        (&["-m", bare, "--chat-template", "no-such-file"], 3, "cannot read no-such-file"),
        (&["-m", CHAT, "--image", FOX], 2, "the model reads text alone"),
    ];
    for (arguments, code, said) in cases {
        let output = ocelli(&[&["run", "-i", "Hello"], arguments].concat(), "");
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains(said), "{said} is not in {error}");
    }
    std::fs::remove_file(&file).unwrap();
}
