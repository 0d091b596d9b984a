//! The programs in `examples/` run as their first lines say.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// What an example prints. Cargo builds examples beside the program, for all tests of this crate.
fn printed(example: &str, arguments: &[&str]) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_ocelli")).parent().unwrap();
    said(&program.join("examples").join(example), arguments, "")
}

/// What a program prints that is given `input`.
fn said(program: &Path, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn zero_shot_finds_the_fox() {
    let text = printed("zero_shot", &["examples/pictures/fox.svg", "fox", "guitar", "pizza"]);
    let probabilities: Vec<f32> =
        text.lines().map(|line| line.split_once(' ').unwrap().0.parse().unwrap()).collect();
    assert!(probabilities.len() == 3 && probabilities[0] > 0.9, "{text}");
}

#[test]
fn a_tiny_clip_learns_its_drawings() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tiny_clip");
    let _ = std::fs::remove_dir_all(&folder);
    let text = printed("train_tiny_clip", &[folder.to_str().unwrap()]);
    let loss: f32 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(loss < 0.5, "{text}");
    assert!(folder.join("export/model.safetensors").is_file());
}

#[test]
fn captions_are_those_of_the_command() {
    let (model, fox) = ("testdata/golden/blip/caption", "examples/pictures/fox.svg");
    let command = Path::new(env!("CARGO_BIN_EXE_ocelli"));
    let line = said(command, &["caption", "-m", model, "--jsonl", fox], "");
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let caption = line["text"].as_str().unwrap();
    assert!(!caption.is_empty());
    assert_eq!(printed("caption", &[model, fox]), format!("{fox}: {caption}\n"));
}

#[test]
fn a_chat_is_that_of_the_command() {
    let (model, fox) = ("testdata/golden/llava/hf_v15", "examples/pictures/fox.svg");
    let command = Path::new(env!("CARGO_BIN_EXE_ocelli"));
    let example = command.parent().unwrap().join("examples/chat");
    let input = "What is it?\nAnd what colour?\n";
    let how = ["run", "-m", model, "--image", fox, "-n", "64", "--temperature", "0"];
    let (one, other) = (said(&example, &[model, fox], input), said(command, &how, input));
    let trimmed = |text: &str| text.lines().map(|l| l.trim().to_owned()).collect::<Vec<_>>();
    assert_eq!(trimmed(&one), trimmed(&other));
    assert!(one.len() > 20, "{one}");
}
