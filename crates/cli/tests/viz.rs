//! The drawings of the docs are what `ocelli viz mask` draws.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::path::Path;
use std::process::{Command, Output};

fn drawn(arguments: &[&str], file: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
    command.args(["viz", "mask"]).args(arguments).arg("-o").arg(file).output().unwrap()
}

#[test]
fn drawings_of_the_docs_are_drawn_by_the_commands_beside_them() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let text = std::fs::read_to_string(docs.join("cli.md")).unwrap();
    for (name, arguments) in [
        ("flamingo", &["flamingo", "<image>A cat.<|endofchunk|><image>A dog.<|endofchunk|>"][..]),
        ("q_former", &["q-former", "a cat on a mat", "--queries", "3"]),
        ("chatglm", &["chatglm", "What is it?", "--answer", "A cat."]),
    ] {
        let shown = docs.join(format!("masks/{name}.svg"));
        assert!(text.contains(&format!("(masks/{name}.svg)")), "{name}");
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.svg"));
        let done = drawn(arguments, &file);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let [shown, file] = [shown, file].map(|f| std::fs::read_to_string(f).unwrap());
        assert!(shown == file, "docs/masks/{name}.svg is not what its command draws");
    }
}

#[test]
fn what_cannot_be_drawn_is_told() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let fails = |arguments: &[&str], file: &str, says: &str| {
        let done = drawn(arguments, &folder.join(file));
        let told = String::from_utf8(done.stderr).unwrap();
        assert!(done.status.code() == Some(2) && told.contains(says), "{told}");
        assert!(!folder.join(file).exists());
    };
    fails(&["flamingo", "a"], "mask.png", "ends with .svg");
    fails(&["flamingo", &"a ".repeat(101)], "long.svg", "a text of 101 words; at most 100");
    fails(&["flamingo", " "], "none.svg", "no words");
    fails(&["q-former", "a", "--queries", "0"], "queries.svg", "--queries");
}
