//! The programs in `examples/` run as their first lines say.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::path::Path;
use std::process::Command;

/// What an example prints. Cargo builds examples beside the program, for all tests of this crate.
fn printed(example: &str, arguments: &[&str]) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_ocelli")).parent().unwrap();
    let output = Command::new(program.join("examples").join(example))
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .output()
        .unwrap();
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
