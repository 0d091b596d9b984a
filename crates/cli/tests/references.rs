//! From a picture in a file to words, against transformers 5.24.0 on the same miniatures and pictures:
//! processor, tokenizer, tower, connector, language model and search in one. Its fast processors resize
//! otherwise than the published ones; BLIP's pictures went through Pillow there, as they do here.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

const ASTRONAUT: &str = "testdata/preprocess/images/astronaut_143x190.png";
const CAMERA: &str = "testdata/preprocess/images/camera_gray_180x161.png";

/// Each line of JSON that a command prints.
fn lines(arguments: &[&str]) -> Vec<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_ocelli"))
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn blip_says_what_transformers_says() {
    for (prompt, beams, texts) in [
        ("a picture of", "1", ["##ti text blue w can ser some", ": sh sh sh sh sh sh sh"]),
        ("a picture of", "3", ["##ti text blue text can ser some", ": sh sh sh sh sh sh sh"]),
        ("", "1", ["some you some some you some sr blue", "bmw } projecttrain } vi evaluate vi"]),
        ("", "3", ["some you bmw you you w f f", "billed } project evaluate texttrain text vi"]),
    ] {
        let model = ["caption", "-m", "testdata/golden/blip/caption", "-n", "8", "--jsonl"];
        let how = ["-i", prompt, "--num-beams", beams, ASTRONAUT, CAMERA];
        let said = lines(&[&model[..], &how].concat());
        let said: Vec<&str> = said.iter().map(|line| line["text"].as_str().unwrap()).collect();
        assert_eq!(said, texts, "{prompt:?}, {beams} beams");
    }
}

#[test]
fn llava_says_what_transformers_says() {
    for (image, ids) in [
        (ASTRONAUT, [364, 187, 433, 106, 237, 249, 416, 364]),
        (CAMERA, [364, 187, 416, 364, 364, 477, 8, 364]),
    ] {
        let model = ["generate", "-m", "testdata/golden/llava/hf_v15", "-n", "8", "--json"];
        let said =
            lines(&[&model[..], &["--image", image, "-i", "What is in the image?"]].concat());
        assert_eq!(said[0]["ids"], json!(ids), "{image}");
    }
}

#[test]
fn blip2_goes_on_as_transformers_does() {
    let model = ["generate", "-m", "testdata/models/blip2_opt", "-n", "8", "--json"];
    let prompts = ["-i", "a photo of", "-i", "Question: what is it? Answer:"];
    let said = lines(&[&model[..], &["--image", ASTRONAUT], &prompts].concat());
    let ids: Vec<&Value> = said.iter().map(|line| &line["ids"]).collect();
    assert_eq!(ids[0], &json!([230, 230, 230, 230, 230, 230, 230, 230]));
    assert_eq!(ids[1], &json!([406, 406, 517, 517, 517, 517, 517, 154]));
    let read = |line: &Value| (line["prompt_tokens"].as_u64(), line["image_tokens"].as_u64());
    assert_eq!(
        said.iter().map(read).collect::<Vec<_>>(),
        [(Some(10), Some(6)), (Some(22), Some(6))]
    );
}

#[test]
fn t5_writes_what_transformers_writes() {
    let prompts = ["translate English to German: Where is the cat?", "a dog"];
    for (beams, ids) in [
        ("1", [[456; 8], [384, 241, 62, 484, 271, 322, 322, 322]]),
        ("3", [[456; 8], [293, 485, 363, 384, 213, 293, 7, 293]]),
    ] {
        let model = ["generate", "-m", "testdata/models/flan_t5", "-n", "8", "--json"];
        let how = ["--num-beams", beams, "-i", prompts[0], "-i", prompts[1]];
        let said = lines(&[&model[..], &how].concat());
        let said: Vec<&Value> = said.iter().map(|line| &line["ids"]).collect();
        assert_eq!(said, [&json!(ids[0]), &json!(ids[1])], "{beams} beams");
    }
}
