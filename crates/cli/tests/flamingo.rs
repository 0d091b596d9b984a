//! A Flamingo from pictures and words to words: the small model of the reference gets the vocabulary of
//! a tokenizer, so that texts go through prompt, tokenizer and tables.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod widened;

use serde_json::json;
use widened::{FOX, Folder, ROCKET, ocelli, root, texts, widened};

/// Rows of the table, more than the tokenizer has pieces.
const VOCAB: usize = 1000;

/// The stored MPT with words. Which ids its pictures and their ends have, the tokenizer says.
fn with_words() -> Folder {
    let words = ["models/blip2_opt", "vocab.json"];
    let tables = [".wte.weight", ".lm_head.weight"];
    widened("flamingo/openflamingo_mpt", &tables, VOCAB, words, |config| {
        config["lm_config"]["max_seq_len"] = 1024.into();
        for id in ["media_token_id", "eoc_token_id"] {
            config.as_object_mut().unwrap().remove(id);
        }
    })
}

/// What the model writes behind a prompt that is spelled out.
fn behind(model: &str, prompt: &str, images: &[&str]) -> String {
    let mut arguments = vec!["generate", "-m", model, "-n", "8", "-i", prompt];
    for image in images {
        arguments.extend(["--image", image]);
    }
    ocelli(&arguments, "").trim().to_owned()
}

#[test]
fn pictures_and_examples_are_put_into_the_prompts_of_the_publication() {
    let folder = with_words();
    let model = folder.path();

    let both = ocelli(&["caption", "-m", model, "-n", "8", "--jsonl", FOX, ROCKET], "");
    let caption = |image| behind(model, "<image>Output:", &[image]);
    assert_eq!(texts(&both), [caption(FOX), caption(ROCKET)]);

    let asked = ["vqa", "-m", model, "-q", "What is it?", "-n", "8", "--jsonl", FOX];
    let answer = texts(&ocelli(&asked, "")).remove(0);
    let question = "<image>Question:What is it? Short answer:";
    assert_eq!(answer, behind(model, question, &[FOX]));

    // An example with a picture and one of text alone.
    let shots = std::path::Path::new(model).join("shots.json");
    let rocket = root().join(ROCKET).canonicalize().unwrap();
    let examples = json!([
        {"image": rocket, "question": "What is it?", "text": "a rocket"},
        {"question": "Is it day?", "text": "no"},
    ]);
    std::fs::write(&shots, examples.to_string()).unwrap();
    let shots = shots.to_str().unwrap();
    let few = texts(&ocelli(&[&asked[..], &["--shots", shots]].concat(), "")).remove(0);
    let spelled = "<image>Question:What is it? Short answer:a rocket<|endofchunk|>\
                   Question:Is it day? Short answer:no<|endofchunk|>";
    assert_eq!(few, behind(model, &format!("{spelled}{question}"), &[ROCKET, FOX]));
    assert_ne!(few, answer);

    // The same examples before a prompt that says where its picture goes.
    let shown = "<image>What is it?a rocket<|endofchunk|>Is it day?no<|endofchunk|>";
    let prompt = ["generate", "-m", model, "-n", "8", "--image", FOX, "-i", "<image>A fox"];
    let few = ocelli(&[&prompt[..], &["--shots", shots]].concat(), "");
    assert_eq!(few.trim(), behind(model, &format!("{shown}<image>A fox"), &[ROCKET, FOX]));

    // Prompts of one call, each with the picture somewhere else, are what they are alone.
    let two = ["Look: <image>a", "<image>", "so much for <image> and more"];
    let mut together = vec!["generate", "-m", model, "-n", "8", "--image", FOX, "--json"];
    two.iter().for_each(|prompt| together.extend(["-i", prompt]));
    let alone: Vec<String> = two.iter().map(|prompt| behind(model, prompt, &[FOX])).collect();
    let together = texts(&ocelli(&together, ""));
    assert_eq!(together.iter().map(|text| text.trim()).collect::<Vec<_>>(), alone);

    let chat = ["run", "-m", model, "-n", "8", "--temperature", "0"];
    let lines = format!("/image {FOX}\nWhat is it?\n/image {ROCKET}\nAnd this?\n");
    let said = ocelli(&chat, &lines);
    let first = said.lines().next().unwrap();
    assert_eq!(first.trim(), behind(model, "<image>What is it?", &[FOX]));
}
