//! mPLUG-Owl, Qwen-VL, VisualGLM and InternLM-XComposer from a picture and words to words, by every command
//! that answers, with the prompts of their publications.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod widened;

use serde_json::Value;
use std::path::Path;
use widened::{FOX, Folder, ROCKET, ocelli, texts, widened};

/// Pieces of the small LLaMA tokenizer, and more than those of the others.
const VOCAB: usize = 900;
/// What a text with everything around it may need.
const CONTEXT: usize = 2048;

/// What the model writes behind a prompt that is written out.
fn behind(model: &str, prompt: &str, images: &[&str]) -> String {
    let mut arguments = vec!["generate", "-m", model, "-n", "12", "-i", prompt];
    for image in images {
        arguments.extend(["--image", image]);
    }
    ocelli(&arguments, "").trim().to_owned()
}

/// `caption` and `vqa` ask as the publication does, and `run` remembers what was said.
fn asks_as_published(model: &Folder, prompt: impl Fn(&str) -> String, asked: [&str; 2]) {
    let model = model.path();
    let [caption, question] = asked;
    for (arguments, text) in
        [(&["caption"][..], caption), (&["vqa", "-q", "What is it?"], question)]
    {
        let rest = ["-m", model, "--jsonl", "-n", "12", FOX, ROCKET];
        let written = texts(&ocelli(&[arguments, &rest].concat(), ""));
        let expected = [FOX, ROCKET].map(|image| behind(model, &prompt(text), &[image]));
        assert_eq!(written, expected, "{arguments:?}");
        assert!(!expected[0].is_empty(), "{expected:?}");
    }
    let arguments = ["run", "-m", model, "-n", "12", "--temperature", "0", "--image", FOX];
    let file = Path::new(model).join("said.json");
    let input = format!("What is it?\nAnd why?\n/save {}\n", file.display());
    ocelli(&arguments, &input);
    let said: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(said["turns"].as_array().unwrap().len(), 2);
    let first = said["turns"][0]["answer"].as_str().unwrap();
    assert_eq!(first, behind(model, &prompt("What is it?"), &[FOX]));
}

#[test]
fn mplug_owl_answers_about_pictures() {
    let tables = [".embed_tokens.weight", ".lm_head.weight"];
    let words = ["text/tokenizers/llama_tiny", "tokenizer.model"];
    let model = widened("mplug_owl/tiny", &tables, VOCAB, words, |config| {
        config["text_config"]["vocab_size"] = VOCAB.into();
        config["text_config"]["max_position_embeddings"] = CONTEXT.into();
    });
    let prompt = |text: &str| {
        format!(
            "The following is a conversation between a curious human and AI assistant. The assistant \
             gives helpful, detailed, and polite answers to the user's questions.\nHuman: <image>\n\
             Human: {text}\nAI: "
        )
    };
    asks_as_published(&model, prompt, ["Describe this image in one sentence.", "What is it?"]);
}

#[test]
fn qwen_vl_answers_about_pictures() {
    let tables = ["transformer.wte.weight", "lm_head.weight"];
    let words = ["text/tokenizers/qwen_tiny", "qwen.tiktoken"];
    let model = widened("qwen_vl/long_context", &tables, VOCAB, words, |config| {
        config["vocab_size"] = VOCAB.into();
        config["max_position_embeddings"] = CONTEXT.into();
        // Behind 420 pieces, 3 tokens of a conversation, 205 without a meaning and 6 marks.
        config["visual"]["image_start_id"] = 634.into();
    });
    let base = |text: &str| format!("<img><image></img>{text}");
    let asked = ["Describe the image in English:", "What is it? Answer:"];
    for (arguments, text) in
        [(&["caption"][..], asked[0]), (&["vqa", "-q", "What is it?"], asked[1])]
    {
        let rest = ["-m", model.path(), "--jsonl", "-n", "12", FOX];
        let written = texts(&ocelli(&[arguments, &rest].concat(), ""));
        assert_eq!(written, [behind(model.path(), &base(text), &[FOX])], "{arguments:?}");
    }
    let chat = Path::new(model.path()).join("generation_config.json");
    std::fs::write(chat, r#"{"chat_format": "chatml"}"#).unwrap();
    let chat = |text: &str| {
        format!(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nPicture 1: \
             <img><image></img>\n{text}<|im_end|>\n<|im_start|>assistant\n"
        )
    };
    asks_as_published(&model, chat, ["Describe the image in English:", "What is it?"]);
    // What it says of places is read, and said with the answer.
    let rest = ["vqa", "-m", model.path(), "-q", "Where is it?", "--jsonl", "-n", "4", FOX];
    let line: Value = serde_json::from_str(ocelli(&rest, "").trim()).unwrap();
    assert_eq!(line["boxes"], Value::Array(Vec::new()));
}

#[test]
fn visualglm_answers_about_pictures() {
    let tables = ["transformer.word_embeddings.weight", "lm_head.weight"];
    let words = ["text/tokenizers/glm_tiny", "ice_text.model"];
    let tokenizer = ocelli_data::text::Tokenizer::from_dir(
        &widened::root().join("testdata/text/tokenizers/glm_tiny"),
    );
    let tokenizer = tokenizer.unwrap();
    let id = |token: &str| Value::from(tokenizer.id_of(token).unwrap());
    let model = widened("visualglm/tiny", &tables, VOCAB, words, |config| {
        config["vocab_size"] = VOCAB.into();
        config["max_sequence_length"] = CONTEXT.into();
        config["gmask_token_id"] = id("[gMASK]");
        config["bos_token_id"] = id("<sop>");
        config["eos_token_id"] = id("<eop>");
    });
    let prompt = |text: &str| format!("<img><image></img>问：{text}\n答：");
    asks_as_published(&model, prompt, ["描述这张图片。", "What is it?"]);
}

#[test]
fn xcomposer_answers_about_pictures() {
    let tables = [".embed_tokens.weight", ".lm_head.weight"];
    let words = ["text/tokenizers/llama_tiny", "tokenizer.model"];
    let model = widened("xcomposer/tiny", &tables, VOCAB, words, |config| {
        config["vocab_size"] = VOCAB.into();
        config["max_position_embeddings"] = CONTEXT.into();
    });
    let prompt = |text: &str| {
        format!(
            "meta instruction\nYou are an AI assistant whose name is 浦语.\n- 浦语 is a conversational \
             language model that is developed by Shanghai AI Laboratory (上海人工智能实验室). It is \
             designed to be helpful, honest, and harmless.\n- 浦语 can understand and communicate \
             fluently in the language chosen by the user such as English and 中文.\nconversation\n \
             <|User|>:<image>{text}\n<TOKENS_UNUSED_0> <|Bot|>:"
        )
    };
    asks_as_published(&model, prompt, ["Describe this image in one sentence.", "What is it?"]);
}
