//! `ocelli verify` on every stored case, which is the proof that models run as in their reference.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::path::{Path, PathBuf};
use std::process::Command;

fn folders(dir: &Path) -> Vec<PathBuf> {
    let entries = dir.read_dir().unwrap().map(|e| e.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|p| p.is_dir()).collect();
    folders.sort();
    folders
}

#[test]
fn every_case_agrees_with_its_reference() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden");
    let kinds = folders(&golden).into_iter();
    let cases = kinds.flat_map(|kind| folders(&kind));
    let cases = cases.filter(|case| case.join("golden.safetensors").is_file());
    let mut seen = 0;
    for case in cases {
        let output =
            Command::new(env!("CARGO_BIN_EXE_ocelli")).arg("verify").arg(&case).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}\n{text}\n{errors}", case.display());
        seen += 1;
    }
    assert!(seen >= 28, "{seen} cases found");
}

#[test]
fn every_tokenizer_gives_the_ids_of_its_reference() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/text/tokenizers");
    let cases = folders(&folder);
    assert!(cases.len() >= 3);
    for case in cases {
        let output =
            Command::new(env!("CARGO_BIN_EXE_ocelli")).arg("verify").arg(&case).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("ok"), "{}\n{text}", case.display());
    }
}
