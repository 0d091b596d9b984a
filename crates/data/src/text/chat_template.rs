//! Chat templates of published language models: Jinja programs that turn messages into the text that
//! the model was tuned to continue, as transformers renders them.
//!
//! A template comes with a model from anywhere, so it can neither read files nor other templates, and
//! its work and memory are bounded. Tools, documents and messages in parts are left out.

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::Deserialize;

use super::conversation::Turn;
use super::error::{Result, TextError};
use super::files::{parse_json, read_if_present, utf8};
use super::tokenizer::Tokenizer;

/// Bytes of a template at most. Published ones have up to some 20 KiB.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// Steps of one rendering, where 64 bytes of text are a step too: its memory stays below 64 MiB.
const MAX_STEPS: u64 = 1 << 20;
/// Its name within the environment; the ending must not ask for escapes of HTML.
const NAME: &str = "chat_template";

/// The chat template of a language model.
///
/// ```
/// use ocelli_data::text::{ChatTemplate, Turn};
/// let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}\
///               {% if add_generation_prompt %}<assistant>{% endif %}";
/// let template = ChatTemplate::new(source, "model.gguf", ["<s>", "</s>"])?;
/// let turns = [Turn { user: "Hello!".into(), answer: None }];
/// assert_eq!(template.render(None, &turns)?, "<user>Hello!\n<assistant>");
/// # Ok::<(), ocelli_data::text::TextError>(())
/// ```
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    file: String,
    /// The tokens that begin and end a text, as the vocabulary spells them.
    marks: [String; 2],
}

/// What a template raised.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// `tokenizer_config.json` and `chat_template.json`, as far as templates go.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    chat_template: Option<Templates>,
}

/// One template, or several by name, of which `default` is for messages without tools.
#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Several(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl ChatTemplate {
    /// The template `source`, which came from `file`, for a model whose texts begin and end with
    /// `marks`; an empty one stands for none.
    ///
    /// # Errors
    ///
    /// [`TextError::ChatTemplate`] if it is no Jinja, [`TextError::FileTooLarge`] if it has more than
    /// 1 MiB.
    pub fn new(source: &str, file: &str, marks: [&str; 2]) -> Result<Self> {
        let file = file.to_owned();
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(TextError::FileTooLarge { file, limit: MAX_TEMPLATE_BYTES as u64 });
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|source| failed(&file, source))?);
        environment.set_fuel(Some(MAX_STEPS));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> std::result::Result<Value, Error> {
                let error =
                    Error::new(ErrorKind::InvalidOperation, "the template raised an exception");
                Err(error.with_source(Raised(message)))
            },
        );
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|source| failed(&file, source))?;
        Ok(Self { environment, file, marks: marks.map(str::to_owned) })
    }

    /// As [`ChatTemplate::new`], with the marks of the model's tokenizer.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn for_tokenizer(source: &str, file: &str, tokenizer: &Tokenizer) -> Result<Self> {
        let named = tokenizer.named();
        let mark = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default();
        Self::new(source, file, [mark(named.start), mark(named.end)])
    }

    /// The template of a model's folder: `chat_template.jinja`, or what `chat_template.json` or
    /// `tokenizer_config.json` says; the first of these counts.
    ///
    /// # Errors
    ///
    /// As for [`ChatTemplate::new`], or if a file cannot be read.
    pub fn from_dir(folder: &Path, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let path = folder.join("chat_template.jinja");
        if let Some(bytes) = read_if_present(&path)? {
            let file = path.display().to_string();
            return Self::for_tokenizer(utf8(&bytes, &file)?, &file, tokenizer).map(Some);
        }
        for name in ["chat_template.json", "tokenizer_config.json"] {
            let path = folder.join(name);
            let Some(bytes) = read_if_present(&path)? else { continue };
            let file = path.display().to_string();
            let source = match parse_json::<Config>(&bytes, &file)?.chat_template {
                Some(Templates::One(source)) => Some(source),
                Some(Templates::Several(list)) => {
                    list.into_iter().find(|one| one.name == "default").map(|one| one.template)
                }
                None => None,
            };
            if let Some(source) = source {
                return Self::for_tokenizer(&source, &file, tokenizer).map(Some);
            }
        }
        Ok(None)
    }

    /// The file that it came from.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The text of a conversation behind the `system` message, if there is one. If the last turn has
    /// no answer, it ends where the answer begins.
    ///
    /// # Errors
    ///
    /// [`TextError::ConversationRefused`] if the template says that it is not made for such a
    /// conversation, [`TextError::ChatTemplate`] if it fails, or works without end.
    pub fn render(&self, system: Option<&str>, turns: &[Turn]) -> Result<String> {
        let message = |role: &'static str, content: &str| {
            Value::from(BTreeMap::from([
                ("role", role.to_owned()),
                ("content", content.to_owned()),
            ]))
        };
        let mut messages: Vec<Value> =
            system.map(|text| message("system", text)).into_iter().collect();
        for turn in turns {
            messages.push(message("user", &turn.user));
            messages.extend(turn.answer.as_deref().map(|answer| message("assistant", answer)));
        }
        let opens_answer = turns.last().is_some_and(|turn| turn.answer.is_none());
        let mut context = BTreeMap::from([
            ("messages", Value::from(messages)),
            ("add_generation_prompt", Value::from(opens_answer)),
        ]);
        for (name, mark) in ["bos_token", "eos_token"].into_iter().zip(&self.marks) {
            // As in transformers, a token that the model does not have is not defined.
            if !mark.is_empty() {
                context.insert(name, Value::from(mark));
            }
        }
        let template =
            self.environment.get_template(NAME).expect("it was added by its constructor");
        template.render(Value::from(context)).map_err(|source| failed(&self.file, source))
    }
}

/// Tells what a template says from what goes wrong with it.
fn failed(file: &str, source: Error) -> TextError {
    let file = file.to_owned();
    let mut cause = std::error::Error::source(&source);
    while let Some(error) = cause {
        if let Some(Raised(reason)) = error.downcast_ref() {
            return TextError::ConversationRefused { file, reason: reason.clone() };
        }
        cause = error.source();
    }
    TextError::ChatTemplate { file, line: source.line().unwrap_or(0), source }
}
