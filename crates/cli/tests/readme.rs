//! The README's first command gives what the README shows.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::path::Path;
use std::process::Command;

/// A line without its numbers and bars: the last digit may differ between instruction sets.
fn words(line: &str) -> String {
    line.chars()
        .filter(|c| c.is_alphabetic() || "/. ".contains(*c))
        .collect::<String>()
        .trim()
        .to_owned()
}

#[test]
fn the_first_command_answers_as_shown() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let (_, block) = readme.split_once("$ cargo run --release -- ").unwrap();
    let (command, rest) = block.split_once('\n').unwrap();
    let (shown, _) = rest.split_once("```").unwrap();
    let done = Command::new(env!("CARGO_BIN_EXE_ocelli"))
        .args(command.split_whitespace())
        .current_dir(&root)
        .output()
        .unwrap();
    assert!(done.status.success());
    let printed = String::from_utf8(done.stdout).unwrap();
    let lines = |text: &str| -> Vec<String> {
        text.lines().map(|l| words(l).trim_end_matches(['.', ' ']).to_owned()).collect()
    };
    assert_eq!(lines(&printed), lines(shown));
    assert!(readme.contains("\n$ cargo test --release --workspace\n"));
}
