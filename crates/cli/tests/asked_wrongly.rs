//! What language systems and their commands say to what they cannot do: which exit code, and what to do
//! about it.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

const LLAVA: &str = "testdata/golden/llava/hf_v15";
const BLIP: &str = "testdata/golden/blip/caption";
const CHAT: &str = "testdata/gguf/chat.gguf";
const FOX: &str = "examples/pictures/fox.svg";
const ROCKET: &str = "examples/pictures/rocket.svg";

/// Exit code, standard output, standard error.
fn ocelli(arguments: &[&str], input: &[u8]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that fails at once does not read.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn each_mistake_has_its_code_and_its_advice() {
    let cases: &[(&[&str], i32, &str)] = &[
        (&["generate", "-m", CHAT, "--image", FOX, "-i", "x"], 2, "needs a model that sees"),
        (&["caption", "-m", CHAT, FOX], 2, "needs a model that sees; this model is a LLaMA"),
        (&["generate", "-m", BLIP, "-i", "x"], 2, "`ocelli caption` and `ocelli vqa`"),
        (&["match", "-m", LLAVA, "--text", "x", FOX], 2, "a CLIP, a LiT, a BLIP or a BLIP-2"),
        (&["run", "-i", "x"], 2, "--model <MODEL>"),
        (&["generate", "-i", "x"], 2, "--model <MODEL>"),
        (&["caption", FOX], 2, "--model <MODEL>"),
        (&["vqa", "-q", "x", FOX], 2, "--model <MODEL>"),
        (&["classify", "--lora", "x", FOX], 2, "--lora belongs to a model of files"),
        (&["embed", "--base", "x", FOX], 2, "--base belongs to a model of files"),
        (&["generate", "-m", CHAT, "-i", "x", "--temperature", "-1"], 2, "number from 0 to 100"),
        (&["generate", "-m", CHAT, "-i", "x", "--length-penalty", "2"], 2, "add --num-beams"),
        (
            &["generate", "-m", CHAT, "-i", "x", "--num-beams", "2", "--top-p", "0.5"],
            2,
            "--top-p: a search with --num-beams draws no tokens",
        ),
        (
            &["generate", "-m", CHAT, "-i", "x", "--num-beams", "2", "--seed", "1"],
            2,
            "--seed: a search",
        ),
    ];
    for (arguments, code, said) in cases {
        let (got, out, err) = ocelli(arguments, b"");
        assert_eq!((got, out.as_str()), (*code, ""), "{arguments:?}: {err}");
        assert!(err.contains(said), "{arguments:?}: {said:?} is not in {err}");
    }
}

#[test]
fn a_command_without_a_model_of_its_own_does_not_offer_one() {
    for (command, has_own) in
        [("run", false), ("generate", false), ("caption", false), ("vqa", false), ("embed", true)]
    {
        let (code, out, _) = ocelli(&[command, "--help"], b"");
        assert_eq!((code, out.contains("the built-in")), (0, has_own), "{command}");
    }
}

#[test]
fn pictures_may_stand_behind_commas() {
    let both = format!("{FOX},{ROCKET}");
    let ask = |images: &[&str]| {
        let how = ["generate", "-m", LLAVA, "-i", "What?", "-n", "4", "--json"];
        let (code, out, err) = ocelli(&[&how[..], images].concat(), b"");
        assert_eq!(code, 0, "{err}");
        let line: serde_json::Value = serde_json::from_str(&out).unwrap();
        (line["ids"].clone(), line["image_tokens"].clone())
    };
    assert_eq!(ask(&["--image", &both]), ask(&["--image", FOX, "--image", ROCKET]));
}

#[test]
fn a_line_that_is_no_text_does_not_end_the_chat() {
    let chat = ["run", "-m", LLAVA, "-n", "4", "--temperature", "0"];
    let (code, out, err) = ocelli(&chat, b"\xff\xfe\nHello\n");
    assert_eq!((code, out.lines().count()), (3, 1), "{err}");
    assert!(err.contains("not UTF-8"), "{err}");
    let (code, alone, _) = ocelli(&chat, b"Hello\n");
    assert_eq!((code, alone), (0, out));
}

/// The files of a model in a folder of its own, but for those that `change` gives another content.
fn changed(model: &str, name: &str, change: &[(&str, Option<&str>)]) -> String {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(model);
    let to = std::env::temp_dir().join(format!("ocelli-{name}-{}", std::process::id()));
    fs::create_dir_all(&to).unwrap();
    for file in fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
    for (file, text) in change {
        match text {
            Some(text) => fs::write(to.join(file), text).unwrap(),
            None => fs::remove_file(to.join(file)).unwrap(),
        }
    }
    to.to_str().unwrap().to_owned()
}

/// Files of a folder and what they hold, or nothing where they are removed.
type Files<'a> = &'a [(&'a str, Option<&'a str>)];

#[test]
fn damaged_files_of_a_model_give_code_4() {
    let json = r#"{"tokenizer_class": "LlamaTokenizer", "legacy": true}"#;
    let cases: [(Files, &str); 4] = [
        (&[("tokenizer.model", None)], "tokenizer"),
        (&[("tokenizer.json", Some("{}"))], "tokenizer.json"),
        (
            &[("added_tokens.json", Some("[")), ("tokenizer_config.json", Some(json))],
            "added_tokens",
        ),
        (&[("preprocessor_config.json", Some("{"))], "JSON"),
    ];
    for (i, (change, said)) in cases.into_iter().enumerate() {
        let dir = changed(LLAVA, &format!("damaged-{i}"), change);
        let (code, _, err) = ocelli(&["caption", "-m", &dir, FOX, "-n", "2"], b"");
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(code, 4, "{err}");
        assert!(err.contains(said) && err.contains(&dir), "{err}");
    }
}

#[test]
fn a_vocabulary_beyond_the_table_of_words_is_refused() {
    let pieces: Vec<String> =
        (0..700).map(|i| if i == 0 { "<unk>".into() } else { format!("w{i}") }).collect();
    let vocab: Vec<String> = pieces.iter().map(|p| format!("[{p:?}, 0.0]")).collect();
    let json = format!(
        r#"{{"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": null,
        "model": {{"type": "Unigram", "unk_id": 0, "vocab": [{}]}}}}"#,
        vocab.join(", ")
    );
    let dir = changed(LLAVA, "words", &[("tokenizer.json", Some(&json))]);
    let (code, _, err) = ocelli(&["generate", "-m", &dir, "-i", "x", "-n", "1"], b"");
    fs::remove_dir_all(&dir).unwrap();
    assert_eq!(code, 4, "{err}");
    for said in ["tokenizer.json", "700 tokens", "the word table of"] {
        assert!(err.contains(said), "{said:?} is not in {err}");
    }
}

#[test]
fn talking_systems_end_at_the_end_tokens_of_their_files() {
    let how = ["-n", "6", "--jsonl", FOX];
    let (code, usual, err) = ocelli(&[&["caption", "-m", LLAVA][..], &how].concat(), b"");
    assert_eq!(code, 0, "{err}");
    // Every token ends a text, so that the first is the last.
    let ids: Vec<String> = (0..700).map(|id| id.to_string()).collect();
    let ends = format!(r#"{{"eos_token_id": [{}]}}"#, ids.join(", "));
    let dir = changed(LLAVA, "ends", &[("generation_config.json", Some(&ends))]);
    let (code, ended, err) = ocelli(&[&["caption", "-m", &dir][..], &how].concat(), b"");
    fs::remove_dir_all(&dir).unwrap();
    assert_eq!(code, 0, "{err}");
    let text = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["text"].as_str().unwrap().to_owned()
    };
    let (usual, ended) = (text(&usual), text(&ended));
    assert!(usual.starts_with(&ended) && ended.chars().count() == 1, "{usual:?}, {ended:?}");
}

#[test]
fn the_model_inside_the_program_is_held_in_blocks_where_asked() {
    let embed = |quant: &[&str]| {
        let (code, out, err) = ocelli(&[&["embed", "--text", "a flower"], quant].concat(), b"");
        assert_eq!(code, 0, "{err}");
        let line: serde_json::Value = serde_json::from_str(&out).unwrap();
        let numbers = line["embedding"].as_array().unwrap().iter();
        numbers.map(|n| n.as_f64().unwrap()).collect::<Vec<_>>()
    };
    let whole = embed(&[]);
    for (quant, least) in [("q8_0", 0.999), ("q4_0", 0.9), ("int8", 0.99)] {
        let held = embed(&["--quant", quant]);
        let cosine: f64 = whole.iter().zip(&held).map(|(a, b)| a * b).sum();
        assert!(held != whole && cosine > least, "{quant}: {cosine}");
    }
}
