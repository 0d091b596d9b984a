//! MiniGPT-4 and MiniGPT-v2 from a picture and words to words: the small models of the reference get
//! the vocabulary of a LLaMA tokenizer, so that texts go through prompt, tokenizer and tables.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod widened;

use serde_json::Value;
use std::path::Path;
use widened::{FOX, Folder, ROCKET, ocelli, texts, widened};

/// Pieces of the tokenizer.
const VOCAB: usize = 900;
/// What a text with everything around it may need.
const CONTEXT: usize = 1024;

/// The model of a stored case with tables for every piece of the tokenizer, whose files are added.
fn with_words(case: &str) -> Folder {
    let tables = [".embed_tokens.weight", ".lm_head.weight"];
    let words = ["text/tokenizers/llama_tiny", "tokenizer.model"];
    widened(&format!("minigpt4/{case}"), &tables, VOCAB, words, |config| {
        config["llama"]["vocab_size"] = VOCAB.into();
        config["llama"]["max_position_embeddings"] = CONTEXT.into();
    })
}

const SYSTEM: &str = "Give the following image: <Img>ImageContent</Img>. You will be able to see the \
                      image once I provide it to you. Please answer my questions.";

/// What the model writes behind a prompt that is written out, in the words of the publications.
fn behind(model: &str, prompt: &str, images: &[&str]) -> String {
    let mut arguments = vec!["generate", "-m", model, "-n", "12", "-i", prompt];
    for image in images {
        arguments.extend(["--image", image]);
    }
    // Where the next message would begin, an answer ends.
    arguments.extend(["--stop", "###", "--stop", "<s>[INST]"]);
    ocelli(&arguments, "").trim().to_owned()
}

/// Every command with the prompt that the publication has for it.
fn every_command_asks_as_published(model: &str, prompt: impl Fn(&str) -> String, asked: [&str; 2]) {
    let [caption, question] = asked;
    for (arguments, text) in
        [(&["caption"][..], caption), (&["vqa", "-q", "What is it?"], question)]
    {
        let rest = ["-m", model, "--jsonl", "-n", "12", FOX, ROCKET];
        let written = texts(&ocelli(&[arguments, &rest].concat(), ""));
        let expected = [FOX, ROCKET].map(|image| behind(model, &prompt(text), &[image]));
        assert_eq!(written, expected, "{arguments:?}");
        assert!(!expected[0].is_empty() && expected[0] != expected[1], "{expected:?}");
    }
    let arguments = ["run", "-m", model, "-n", "12", "--temperature", "0", "--image", FOX];
    let file = Path::new(model).join("said.json");
    let input = format!("What is it?\n/image {ROCKET}\nAnd this?\n/save {}\n", file.display());
    ocelli(&arguments, &input);
    let said: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let answer = |i: usize| said["turns"][i]["answer"].as_str().unwrap();
    assert_eq!(answer(0), behind(model, &prompt("What is it?"), &[FOX]));
    // The second message follows the first answer and its end.
    let end = if asked[0].starts_with('[') { "" } else { "###" };
    let both = format!("{}{}{end}", prompt("What is it?"), answer(0));
    let second = prompt("And this?").replace(SYSTEM, "");
    let both = both + second.strip_prefix("###").unwrap_or(&second);
    assert_eq!(answer(1), behind(model, &both, &[FOX, ROCKET]));
}

#[test]
fn minigpt_4_answers_about_pictures() {
    let model = with_words("v1_stage2_prompts");
    let prompt = |text: &str| format!("{SYSTEM}###Human: <Img><image></Img> {text}###Assistant: ");
    let asked = ["Describe this image in one sentence.", "What is it?"];
    every_command_asks_as_published(model.path(), prompt, asked);
}

#[test]
fn minigpt_v2_answers_about_pictures() {
    let model = with_words("v2_conversation");
    let prompt = |text: &str| format!("<s>[INST] <Img><image></Img> {text} [/INST]");
    let question =
        "[vqa] Based on the image, respond to this question with a short answer: What is it?";
    let asked = ["[caption] Describe the image briefly.", question];
    every_command_asks_as_published(model.path(), prompt, asked);
}
