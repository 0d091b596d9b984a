//! A model that would take too much memory is refused before it is loaded.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::path::Path;
use std::process::Command;

/// Exit code and what was said on standard error.
fn ocelli(arguments: &[&str], limit: Option<&str>) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")).args(arguments);
    command.env_remove("OCELLI_MEMORY_LIMIT");
    if let Some(limit) = limit {
        command.env("OCELLI_MEMORY_LIMIT", limit);
    }
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

const LLAVA: &str = "testdata/golden/llava/hf_v15";
const XCOMPOSER: &str = "testdata/golden/xcomposer/tiny";
const FOX: &str = "examples/pictures/fox.svg";

#[test]
fn every_command_that_loads_a_model_looks_at_the_limit() {
    let vit = "testdata/golden/vit/hf_classifier";
    let clip = "testdata/golden/clip/hf_vit";
    for arguments in [
        &["generate", "-m", LLAVA, "-i", "Hello"][..],
        &["run", "-m", LLAVA, "-i", "Hello"],
        &["vqa", "-m", LLAVA, "-q", "What?", FOX],
        &["caption", "-m", LLAVA, FOX],
        &["classify", "-m", vit, FOX],
        &["embed", "-m", vit, FOX],
        &["embed", "-m", clip, "--text", "a fox"],
        &["match", "-m", clip, "--text", "a fox", FOX],
    ] {
        let (code, said) = ocelli(&[arguments, &["--memory-limit", "100KiB"]].concat(), None);
        assert_eq!(code, Some(5), "{arguments:?}: {said}");
        assert!(said.contains("the limit is 100.0 KiB") && said.contains("weights"), "{said}");
        assert_eq!(ocelli(arguments, Some("100KiB")), (code, said), "{arguments:?}");
        let (code, said) = ocelli(&[arguments, &["--memory-limit", "1G"]].concat(), Some("1k"));
        assert_eq!(code, Some(0), "{arguments:?}: {said}");
    }
}

#[test]
fn what_would_fit_is_said() {
    let ask = |tokens: &str, limit: &str| {
        ocelli(&["generate", "-m", LLAVA, "-i", "Hi", "-n", tokens, "--memory-limit", limit], None)
    };
    let (code, said) = ask("200000", "4MiB");
    assert_eq!(code, Some(5), "{said}");
    let fewer = said.split(" in place of 200000").next().unwrap();
    let fewer: usize = fewer.rsplit("-n ").next().unwrap().parse().unwrap();
    // What is said to fit fits, and one more does not.
    assert_eq!(ask(&fewer.to_string(), "4MiB").0, Some(0));
    assert_eq!(ask(&(fewer + 1).to_string(), "4MiB").0, Some(5));
    // Of a command without -n it is another option.
    let folder = tempfile::tempdir().unwrap();
    let article = folder.path().join("article.txt");
    std::fs::write(&article, "tea\n".repeat(16)).unwrap();
    let article = article.to_str().unwrap();
    let ask = |images: &str, limit: &str| {
        let of = ["--pictures", "examples/pictures", "--by", "testdata/golden/clip/hf_vit"];
        let of = [&of[..], &["--images", images, "--memory-limit", limit]].concat();
        ocelli(&[&["compose", "-m", XCOMPOSER, article], &of[..]].concat(), None)
    };
    let (code, said) = ask("14", "2.6MiB");
    assert_eq!(code, Some(5), "{said}");
    assert!(!said.contains("-n "), "{said}");
    let fewer = said.split(" in place of 14").next().unwrap();
    let fewer: usize = fewer.rsplit("--images ").next().unwrap().parse().unwrap();
    // What the model places of them is another matter.
    assert_ne!(ask(&fewer.to_string(), "2.6MiB").0, Some(5));
    assert_eq!(ask(&(fewer + 1).to_string(), "2.6MiB").0, Some(5));
}

#[test]
fn fewer_bits_are_said_to_fit() {
    let ask = |tokens: &str, limit: &str| {
        ocelli(&["generate", "-m", LLAVA, "-i", "Hi", "-n", tokens, "--memory-limit", limit], None)
    };
    let (_, said) = ask("1", "715KiB");
    assert!(said.contains("with --quant q8_0 it needs"), "{said}");
    let (code, said) = ocelli(&["doctor"], Some("lots"));
    assert_eq!(code, Some(2));
    assert!(said.contains("OCELLI_MEMORY_LIMIT=lots: expected a size"), "{said}");
}
