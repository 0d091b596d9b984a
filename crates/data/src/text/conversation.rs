//! Conversation templates: how the turns of a chat become the one text that a language model was
//! tuned to continue. `assets/text/NOTICE.md` tells where the published texts come from.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

/// Where a picture goes in a message.
pub const IMAGE_MARK: &str = "<image>";

/// A message of the user and the answer to it, or none yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// What the user says, with [`IMAGE_MARK`] where a picture goes.
    pub user: String,
    /// What the model answered.
    pub answer: Option<String>,
}

/// How turns are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Style {
    /// `USER: text`, with a colon and a space.
    Named,
    /// The role's mark with the text right behind it.
    Marked,
    /// `[INST] text [/INST]`, the system text inside of the first.
    #[serde(rename = "llama_2")]
    Llama2,
    /// The texts alone.
    Plain,
}

/// A conversation template.
///
/// ```
/// use ocelli_data::text::{Template, Turn};
/// let turns = [Turn { user: "<image>\nWhat is it?".into(), answer: None }];
/// let text = Template::named("llava_hf").expect("it is built in").render(&turns);
/// assert_eq!(text, "USER: <image>\nWhat is it? ASSISTANT:");
/// ```
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    style: Style,
    system: String,
    /// Of the user and of the model.
    roles: [String; 2],
    /// What stands behind a message of the user (and the system text), and behind an answer.
    ends: [String; 2],
    /// A turn that stands before the first one.
    #[serde(default)]
    examples: Option<[String; 2]>,
    /// A picture at the beginning of a message, with what stands around its mark, if that is not a
    /// line of its own.
    #[serde(default)]
    image: Option<String>,
    /// A turn that brings the picture, where pictures have turns of their own.
    #[serde(default)]
    image_turn: Option<[String; 2]>,
}

static TEMPLATES: LazyLock<BTreeMap<String, Template>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../assets/text/conversation_templates.json"))
        .expect("a test reads the built-in templates")
});

impl Template {
    /// The built-in template of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        TEMPLATES.get(name)
    }

    /// The names of the built-in templates.
    pub fn names() -> impl Iterator<Item = &'static str> {
        TEMPLATES.keys().map(String::as_str)
    }

    /// The text of a conversation. If the last turn has no answer, it ends where the answer begins.
    pub fn render(&self, turns: &[Turn]) -> String {
        let examples = self.examples.as_ref().map(|[user, answer]| (&user[..], Some(&answer[..])));
        let turns = turns.iter().map(|t| (&t.user[..], t.answer.as_deref()));
        let turns = examples.into_iter().chain(turns);
        if self.style == Style::Llama2 {
            return self.render_llama_2(turns);
        }
        let joint = if self.style == Style::Named { ": " } else { "" };
        let [user_role, model_role] = &self.roles;
        let [user_end, answer_end] = &self.ends;
        let mut text = String::new();
        if !self.system.is_empty() {
            text = format!("{}{user_end}", self.system);
        }
        for (user, answer) in turns {
            text += &[user_role, joint, user, user_end].concat();
            match answer {
                Some(answer) => text += &[model_role, joint, answer, answer_end].concat(),
                // The space would be a token of its own.
                None => text += &[model_role, joint.trim_end()].concat(),
            }
        }
        text
    }

    fn render_llama_2<'a>(
        &self,
        turns: impl Iterator<Item = (&'a str, Option<&'a str>)>,
    ) -> String {
        let [start, end] = &self.ends;
        let mut text = String::new();
        for (i, (user, answer)) in turns.enumerate() {
            let system = match &self.system[..] {
                system if i == 0 && !system.is_empty() => {
                    format!("<<SYS>>\n{system}\n<</SYS>>\n\n")
                }
                _ => String::new(),
            };
            text += &[start, "[INST] ", &system, user, " [/INST]"].concat();
            if let Some(answer) = answer {
                text += &[" ", answer, " ", end].concat();
            }
        }
        // As published: the characters of the mark, not the mark.
        text.trim_start_matches(|c| start.contains(c)).to_owned()
    }

    /// A message that shows `images` pictures before its text, unless the text says where they go.
    /// Where pictures have turns of their own they come first.
    pub fn show(&self, images: usize, text: &str) -> Vec<Turn> {
        if images == 0 || text.contains(IMAGE_MARK) {
            return vec![Turn { user: text.to_owned(), answer: None }];
        }
        if let Some([user, answer]) = &self.image_turn {
            let shown = Turn { user: user.clone(), answer: Some(answer.clone()) };
            let mut turns = vec![shown; images];
            turns.push(Turn { user: text.to_owned(), answer: None });
            return turns;
        }
        let mark = self.image.clone().unwrap_or_else(|| format!("{IMAGE_MARK}\n"));
        vec![Turn { user: mark.repeat(images) + text, answer: None }]
    }

    /// Texts that end an answer: what stands behind one, and what the next message begins with.
    pub fn stops(&self) -> impl Iterator<Item = &str> {
        let next = self.roles[0].trim();
        [self.ends[1].trim(), if self.style == Style::Marked { next } else { "" }]
            .into_iter()
            .filter(|stop| !stop.is_empty())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test may panic")]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Reference prompts of every template and conversation (testdata/golden/llava/templates).
    #[test]
    fn every_template_renders_as_in_its_reference() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/golden/llava/templates");
        let read = |name: &str| -> Value {
            serde_json::from_slice(&std::fs::read(format!("{folder}/{name}")).unwrap()).unwrap()
        };
        let (about, prompts) = (read("golden.json"), read("prompts.json"));
        let prompts = prompts.as_array().unwrap();
        assert!(prompts.len() > 50);
        for case in prompts {
            let name = case["template"].as_str().unwrap();
            let mut turns: Vec<Turn> = Vec::new();
            let conversation = case["conversation"].as_str().unwrap();
            for message in about["conversations"][conversation].as_array().unwrap() {
                let text = message[1].as_str().map(str::to_owned);
                if message[0] == "u" {
                    turns.push(Turn { user: text.unwrap(), answer: None });
                } else {
                    turns.last_mut().unwrap().answer = text;
                }
            }
            let got = Template::named(name).unwrap().render(&turns);
            assert_eq!(got, case["prompt"].as_str().unwrap(), "{name}, {conversation}");
        }
    }

    #[test]
    fn pictures_stand_before_the_text_or_in_turns_of_their_own() {
        let shown = |name: &str| Template::named(name).unwrap().show(2, "Which is older?");
        assert_eq!(shown("vicuna_v1")[0].user, "<image>\n<image>\nWhich is older?");
        let turns = shown("v1_mmtag");
        assert_eq!(turns.len(), 3);
        assert_eq!(turns[1].user, "<Image><image></Image>");
        let turns = Template::named("minigpt_v2").unwrap().show(1, "[refer] the fox");
        let text = Template::named("minigpt_v2").unwrap().render(&turns);
        assert_eq!(text, "<s>[INST] <Img><image></Img> [refer] the fox [/INST]");
    }
}
