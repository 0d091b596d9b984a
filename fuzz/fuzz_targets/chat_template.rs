//! Any text as a chat template: it renders a conversation or is refused, within its steps.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ocelli_data::text::{ChatTemplate, Turn};

fuzz_target!(|source: &str| {
    if let Ok(template) = ChatTemplate::new(source, "model.gguf", ["<s>", "</s>"]) {
        let turn = |user: &str, answer: Option<&str>| Turn {
            user: user.to_owned(),
            answer: answer.map(str::to_owned),
        };
        let turns = [turn("What is it?", Some("A cat.")), turn("Why? ½ 猫", None)];
        let _ = template.render(Some("Be brief."), &turns);
    }
});
