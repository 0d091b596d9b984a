//! The README's first command gives what the README shows.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::path::Path;
use std::process::Command;

/// How far a percentage may be from the one shown: instruction sets add in other orders.
const POINTS: f64 = 1.0;

/// A line without its bar and percentage, and the percentage.
fn parts(line: &str) -> (String, Option<f64>) {
    let (text, percent) = match line.trim_end().strip_suffix(" %").and_then(|l| l.rsplit_once(' '))
    {
        Some((text, number)) => (text, Some(number.parse().unwrap())),
        None => (line, None),
    };
    let bar = |c: char| ('\u{2580}'..='\u{259f}').contains(&c) || c == ' ';
    (text.trim_matches(bar).to_owned(), percent)
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
    assert_eq!(printed.lines().count(), shown.lines().count());
    let mut percentages = 0;
    for (printed, shown) in printed.lines().zip(shown.lines()) {
        let ((name, percent), (expected, near)) = (parts(printed), parts(shown));
        assert_eq!((&name, percent.is_some()), (&expected, near.is_some()), "{printed}");
        if let (Some(percent), Some(near)) = (percent, near) {
            assert!((percent - near).abs() <= POINTS, "{printed}, shown {shown}");
            percentages += 1;
        }
    }
    assert!(percentages > 0, "{printed}");
    assert!(readme.contains("\n$ cargo test --release --workspace\n"));
}
