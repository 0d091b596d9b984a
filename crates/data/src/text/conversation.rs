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
    /// As `Marked`, but of what was said before the marks alone are left, and no system text.
    #[serde(rename = "internlm")]
    InternLm,
}

/// A conversation template.
///
/// ```
/// use ocelli_data::text::{Template, Turn};
/// let turns = [Turn { user: "<image>\nWhat is it?".into(), answer: None }];
/// let text = Template::named("llava_hf").expect("it is built in").render(&turns);
/// assert_eq!(text, "USER: <image>\nWhat is it? ASSISTANT:");
/// ```
#[derive(Clone, Debug, Deserialize)]
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
    /// Whether pictures stand before everything, wherever they are shown.
    #[serde(default)]
    pictures_lead: bool,
    /// How a message shows a picture before its words; `{n}` counts the pictures of a conversation.
    #[serde(default = "picture_on_its_line")]
    picture: String,
    /// A turn that brings the picture, where pictures have turns of their own.
    #[serde(default)]
    image_turn: Option<[String; 2]>,
}

fn picture_on_its_line() -> String {
    format!("{IMAGE_MARK}\n")
}

/// A stretch of a rendered conversation.
#[derive(Debug)]
pub(super) struct Stretch {
    pub(super) text: String,
    /// Whether a model learns to write it.
    pub(super) is_learned: bool,
}

impl Stretch {
    fn given<const N: usize>(texts: [&str; N]) -> Self {
        Self { text: texts.concat(), is_learned: false }
    }

    fn learned<const N: usize>(texts: [&str; N]) -> Self {
        Self { text: texts.concat(), is_learned: true }
    }
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

    /// The same with another message of the system.
    #[must_use]
    pub fn with_system(&self, text: &str) -> Self {
        Self { system: text.to_owned(), ..self.clone() }
    }

    /// The text of a conversation. If the last turn has no answer, it ends where the answer begins.
    pub fn render(&self, turns: &[Turn]) -> String {
        let examples = self.examples.as_ref().map(|[user, answer]| (&user[..], Some(&answer[..])));
        let turns = turns.iter().map(|t| (&t.user[..], t.answer.as_deref()));
        let stretches = self.stretches(examples.into_iter().chain(turns));
        stretches.into_iter().map(|stretch| stretch.text).collect()
    }

    fn stretches<'a>(
        &self,
        turns: impl Iterator<Item = (&'a str, Option<&'a str>)>,
    ) -> Vec<Stretch> {
        match self.style {
            Style::Llama2 => return self.llama_2_stretches(turns),
            Style::InternLm => return self.internlm_stretches(turns),
            _ => {}
        }
        let joint = if self.style == Style::Named { ": " } else { "" };
        let [user_role, model_role] = &self.roles;
        let [user_end, answer_end] = &self.ends;
        let (mut stretches, mut shown) = (Vec::new(), 0);
        if !self.system.is_empty() {
            stretches.push(Stretch::given([&self.system, user_end]));
        }
        for (user, answer) in turns {
            let mut user = user;
            while let Some(rest) = user.strip_prefix(&self.picture).filter(|_| self.pictures_lead) {
                stretches.insert(shown, Stretch::given([&self.picture]));
                (user, shown) = (rest, shown + 1);
            }
            stretches.push(Stretch::given([user_role, joint, user, user_end]));
            match answer {
                Some(answer) => {
                    let role = [model_role, joint].concat();
                    // The space is one token with the word behind it, which is learned.
                    let space = &role[role.trim_end_matches(' ').len()..];
                    stretches.push(Stretch::given([role.trim_end_matches(' ')]));
                    stretches.push(Stretch::learned([space, answer, answer_end]));
                }
                // The space would be a token of its own.
                None => stretches.push(Stretch::given([model_role, joint.trim_end()])),
            }
        }
        self.count_pictures(&mut stretches);
        stretches
    }

    /// Numbers pictures from 1 where the template says so.
    fn count_pictures(&self, stretches: &mut [Stretch]) {
        let frame = self.picture.split(IMAGE_MARK).next().unwrap_or_default();
        if !frame.contains("{n}") {
            return;
        }
        let mut count = 0;
        for stretch in stretches {
            while stretch.text.contains(frame) {
                count += 1;
                let numbered = frame.replace("{n}", &count.to_string());
                stretch.text = stretch.text.replacen(frame, &numbered, 1);
            }
        }
    }

    /// As InternLM-XComposer remembers: the last message has all marks, the system text comes with the
    /// first one alone, and what was said before begins anew, message by message and answer by answer.
    fn internlm_stretches<'a>(
        &self,
        turns: impl Iterator<Item = (&'a str, Option<&'a str>)>,
    ) -> Vec<Stretch> {
        let [user_role, model_role] = &self.roles;
        let turns: Vec<_> = turns.collect();
        let Some(((user, answer), past)) = turns.split_last() else { return Vec::new() };
        let mut stretches = Vec::new();
        for (user, answer) in past {
            stretches.push(Stretch::given(["<s>", user_role, user, model_role]));
            stretches.extend(answer.map(|answer| Stretch::learned(["<s>", answer])));
        }
        let system = if past.is_empty() { self.system.as_str() } else { "" };
        stretches.push(Stretch::given([system, user_role, user, &self.ends[0], model_role]));
        stretches.extend(answer.map(|answer| Stretch::learned([answer, &self.ends[1]])));
        stretches
    }

    fn llama_2_stretches<'a>(
        &self,
        turns: impl Iterator<Item = (&'a str, Option<&'a str>)>,
    ) -> Vec<Stretch> {
        let [start, end] = &self.ends;
        let mut stretches: Vec<Stretch> = Vec::new();
        for (i, (user, answer)) in turns.enumerate() {
            let system = match &self.system[..] {
                system if i == 0 && !system.is_empty() => {
                    format!("<<SYS>>\n{system}\n<</SYS>>\n\n")
                }
                _ => String::new(),
            };
            stretches.push(Stretch::given([start, "[INST] ", &system, user, " [/INST]"]));
            if let Some(answer) = answer {
                stretches.push(Stretch::learned([" ", answer, " ", end]));
            }
        }
        if let Some(first) = stretches.first_mut() {
            // As published: the characters of the mark, not the mark.
            first.text = first.text.trim_start_matches(|c| start.contains(c)).to_owned();
        }
        stretches
    }

    /// A conversation as LLaVA trains on it, without the example of the template. The template of
    /// one mark for both sides stands before its messages then, and is learned with them; a plain one
    /// has the pictures in place of what the user says.
    pub(super) fn training_stretches(&self, turns: &[Turn]) -> Vec<Stretch> {
        let pairs = turns.iter().map(|t| (&t.user[..], t.answer.as_deref()));
        if self.style == Style::Plain {
            let shown = |text: &str| IMAGE_MARK.repeat(text.matches(IMAGE_MARK).count());
            return pairs
                .flat_map(|(user, answer)| {
                    let answer = answer.map(|text| Stretch::learned([text, &self.ends[1]]));
                    [Some(Stretch::given([&shown(user)])), answer]
                })
                .flatten()
                .collect();
        }
        let [mark, answer_end] = &self.ends;
        if self.style != Style::Named || mark != answer_end {
            return self.stretches(pairs);
        }
        let [user_role, model_role] = &self.roles;
        let mut stretches = vec![Stretch::given([&self.system, "\n\n"])];
        for (user, answer) in pairs {
            stretches.push(Stretch::learned([mark]));
            stretches.push(Stretch::given([" ", user_role, ": ", user, "\n"]));
            let said = answer.map(|answer| [mark, " ", model_role, ": ", answer, "\n"]);
            stretches.extend(said.map(Stretch::learned));
        }
        stretches.push(Stretch::learned([mark, " "]));
        stretches
    }

    /// What the user says as LLaVA trains on it: pictures before the words, each on its line.
    pub fn pictures_first(&self, text: &str) -> String {
        let images = text.matches(IMAGE_MARK).count();
        if images == 0 {
            return text.to_owned();
        }
        let words = text.replace(IMAGE_MARK, "");
        (self.picture.repeat(images) + words.trim()).trim().to_owned()
    }

    /// A message that shows `images` pictures before its text, unless the text says where they go.
    /// Where pictures have turns of their own they come first.
    pub fn show(&self, images: usize, text: &str) -> Vec<Turn> {
        let message = |user: String| vec![Turn { user, answer: None }];
        if images == 0 {
            return message(text.to_owned());
        }
        let frame = self.picture.trim_end();
        if text.contains(IMAGE_MARK) {
            let is_framed = text.contains(frame);
            return message(if is_framed {
                text.to_owned()
            } else {
                text.replace(IMAGE_MARK, frame)
            });
        }
        if let Some([user, answer]) = &self.image_turn {
            let shown = Turn { user: user.clone(), answer: Some(answer.clone()) };
            let mut turns = vec![shown; images];
            turns.push(Turn { user: text.to_owned(), answer: None });
            return turns;
        }
        message(self.picture.repeat(images) + text)
    }

    /// Texts that end an answer: what stands behind one, and what the next message begins with.
    pub fn stops(&self) -> impl Iterator<Item = &str> {
        let next = self.roles[0].trim();
        let is_marked = matches!(self.style, Style::Marked | Style::InternLm);
        [self.ends[1].trim(), if is_marked { next } else { "" }]
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
    fn another_message_of_the_system_stands_where_the_first_one_stood() {
        let turns = [Turn { user: "Hi".to_owned(), answer: None }];
        for (name, wanted) in [
            ("vicuna_v1", "Be brief. USER: Hi ASSISTANT:"),
            ("llava_llama_2", "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]"),
        ] {
            let template = Template::named(name).unwrap();
            assert_eq!(template.with_system("Be brief.").render(&turns), wanted);
            assert_ne!(template.render(&turns), wanted);
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

    /// The prompts of the demonstrations of mPLUG-Owl, Qwen-VL, VisualGLM and InternLM-XComposer.
    #[test]
    fn later_systems_are_asked_as_published() {
        let prompt = |name: &str, turns: &[(usize, &str, Option<&str>)]| {
            let template = Template::named(name).unwrap();
            let mut all = Vec::new();
            for (images, text, answer) in turns {
                let mut shown = template.show(*images, text);
                shown.last_mut().unwrap().answer = answer.map(str::to_owned);
                all.extend(shown);
            }
            template.render(&all)
        };
        let turns = [(1, "What is it?", Some("A fox.")), (1, "And this?", None)];
        assert_eq!(
            prompt("mplug_owl", &turns),
            "The following is a conversation between a curious human and AI assistant. The assistant \
             gives helpful, detailed, and polite answers to the user's questions.\nHuman: <image>\n\
             Human: What is it?\nAI: A fox.\nHuman: <image>\nHuman: And this?\nAI: "
        );
        assert_eq!(
            prompt("qwen_vl", &turns),
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nPicture 1: \
             <img><image></img>\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA fox.<|im_end|>\n\
             <|im_start|>user\nPicture 2: <img><image></img>\nAnd this?<|im_end|>\n\
             <|im_start|>assistant\n"
        );
        let words = "Describe the image in English:";
        assert_eq!(
            prompt("qwen_vl_base", &[(1, words, None)]),
            "<img><image></img>Describe the image in English:"
        );
        assert_eq!(
            prompt("visualglm", &turns),
            "<img><image></img><img><image></img>问：What is it?\n答：A fox.\n问：And this?\n答："
        );
        assert_eq!(
            prompt("xcomposer_vl", &turns),
            "<s> <|User|>:<image>What is it? <|Bot|>:<s>A fox. <|User|>:<image>And this?\n\
             <TOKENS_UNUSED_0> <|Bot|>:"
        );
        let first = prompt("xcomposer_vl", &turns[1..]);
        assert!(
            first.starts_with("meta instruction\n") && first.contains("\n <|User|>:<image>And")
        );
        assert_eq!(
            prompt("xcomposer", &turns[1..]),
            " <|User|>:<image>And this?\n<TOKENS_UNUSED_0> <|Bot|>:"
        );
    }

    /// The prompts of the chats of MiniGPT-4 and MiniGPT-v2.
    #[test]
    fn minigpt_frames_its_pictures() {
        let prompt = |name: &str, text: &str| {
            let template = Template::named(name).unwrap();
            template.render(&template.show(1, text))
        };
        let system = "Give the following image: <Img>ImageContent</Img>. You will be able to see \
                      the image once I provide it to you. Please answer my questions.";
        assert_eq!(
            prompt("minigpt4_vicuna_v0", "What is it?"),
            format!("{system}###Human: <Img><image></Img> What is it?###Assistant: ")
        );
        assert_eq!(
            prompt("minigpt4_llama_2", "What is it?"),
            format!("{system}<s>[INST] <Img><image></Img> What is it? [/INST] ")
        );
        let v2 = "<s>[INST] <Img><image></Img> [vqa] What is it? [/INST]";
        for text in ["[vqa] What is it?", "<image> [vqa] What is it?"] {
            assert_eq!(prompt("minigpt_v2", text), v2);
        }
        assert_eq!(prompt("minigpt_v2", "<Img><image></Img> [vqa] What is it?"), v2);
    }
}
