//! Chat templates render as transformers 5.24.0 renders them, and hostile ones are refused.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use ocelli_data::text::{ChatTemplate, TextError, Tokenizer, Turn};
use serde_json::Value;

fn turn(user: &str, answer: Option<&str>) -> Turn {
    Turn { user: user.to_owned(), answer: answer.map(str::to_owned) }
}

/// Written by `tools/make_chat_template_cases.py`.
fn reference() -> Value {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/text/chat_templates.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn conversations_are_rendered_or_refused_as_in_the_reference() {
    let reference = reference();
    let (mut rendered, mut refused) = (0, 0);
    for case in reference["cases"].as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let about = &reference["templates"][name];
        let marks = [0, 1].map(|i| about["marks"][i].as_str().unwrap());
        let source = about["source"].as_str().unwrap();
        let template = ChatTemplate::new(source, name, marks).unwrap();
        let turns = case["turns"].as_array().unwrap().iter();
        let turns: Vec<Turn> = turns.map(|t| turn(t[0].as_str().unwrap(), t[1].as_str())).collect();
        match (template.render(case["system"].as_str(), &turns), case["prompt"].as_str()) {
            (Ok(text), Some(prompt)) => {
                assert_eq!(text, prompt, "{name}");
                rendered += 1;
            }
            (Err(TextError::ConversationRefused { reason, .. }), None) => {
                assert_eq!(reason, case["error"].as_str().unwrap(), "{name}");
                refused += 1;
            }
            // A first message that is not there is an error in both, in other words.
            (Err(TextError::ChatTemplate { line: 2, .. }), None) if turns.is_empty() => {}
            (found, _) => panic!("{name}: {found:?}, expected {case}"),
        }
    }
    assert_eq!((rendered, refused), (21, 3));
}

#[test]
fn broken_templates_are_refused_with_their_line() {
    for (source, line) in [("a\n{% if %}", 2), ("{{ messages", 1), ("{% frob %}", 1)] {
        match ChatTemplate::new(source, "f", ["", ""]) {
            Err(TextError::ChatTemplate { line: found, .. }) => assert_eq!(found, line, "{source}"),
            found => panic!("{source}: {found:?}"),
        }
    }
    for source in ["\n{{ messages | frob }}", "\n{{ messages.frob() }}", "\n{{ 1 / 0 }}"] {
        let template = ChatTemplate::new(source, "f", ["", ""]).unwrap();
        match template.render(None, &[turn("Hello!", None)]) {
            Err(TextError::ChatTemplate { line: 2, .. }) => {}
            found => panic!("{source}: {found:?}"),
        }
    }
    let long = "x".repeat((1 << 20) + 1);
    let found = ChatTemplate::new(&long, "f", ["", ""]);
    assert!(matches!(found, Err(TextError::FileTooLarge { .. })));
}

#[test]
fn templates_neither_work_without_end_nor_read_files() {
    let doubled = "{% set x = x ~ x %}".repeat(40);
    let nested = format!("{}1{}", "(".repeat(10_000), ")".repeat(10_000));
    for source in [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 99999999 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        &format!("{{% set x = '0123456789' %}}{doubled}{{{{ x }}}}"),
        &format!("{{{{ {nested} }}}}"),
        "{% include 'Cargo.toml' %}",
        "{% for a in messages recursive %}{{ loop([messages]) }}{% endfor %}",
    ] {
        let made = ChatTemplate::new(source, "f", ["", ""]);
        let found = made.and_then(|template| template.render(None, &[turn("Hello!", None)]));
        let start = &source[..source.len().min(50)];
        assert!(matches!(found, Err(TextError::ChatTemplate { .. })), "{start}: {found:?}");
    }
}

#[test]
fn a_folder_says_its_template_in_one_of_three_files() {
    let dir = tempfile::tempdir().unwrap();
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/text/tokenizers/gpt2");
    let tokenizer = Tokenizer::from_dir(&files).unwrap();
    let render = || {
        let template = ChatTemplate::from_dir(dir.path(), &tokenizer).unwrap();
        template.map(|t| t.render(None, &[turn("Hi", None)]).unwrap())
    };
    assert_eq!(render(), None);
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("tokenizer_config.json", r#"{"bos_token": "<|endoftext|>"}"#);
    assert_eq!(render(), None);
    write("tokenizer_config.json", r#"{"chat_template": "{{ eos_token }}a"}"#);
    assert_eq!(render().unwrap(), "<|endoftext|>a");
    let several = r#"{"chat_template": [{"name": "tool_use", "template": "b"},
        {"name": "default", "template": "{{ messages[0].content }}"}]}"#;
    write("tokenizer_config.json", several);
    assert_eq!(render().unwrap(), "Hi");
    write("chat_template.json", r#"{"chat_template": "c"}"#);
    assert_eq!(render().unwrap(), "c");
    write("chat_template.jinja", "d\n");
    assert_eq!(render().unwrap(), "d");
    write("chat_template.jinja", "{{");
    assert!(ChatTemplate::from_dir(dir.path(), &tokenizer).is_err());
}
