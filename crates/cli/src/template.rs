//! How the turns of a conversation become the text that a model goes on from.

use crate::failure::Failure;
use clap::Args;
use ocelli_data::text::{ChatTemplate, IMAGE_MARK, Template, Tokenizer, Turn};
use ocelli_models::systems::talker::Talker;
use std::io::Read;
use std::path::PathBuf;

/// Bytes of a file with a template that are read; one more than a template may have is told apart.
const MOST_BYTES: u64 = (1 << 20) + 1;

/// Which template, and what stands before the first message.
#[derive(Args, Debug)]
pub(crate) struct TemplateArgs {
    /// Built-in conversation template, such as vicuna_v1 [default: the model's own]
    #[arg(long, value_name = "NAME", alias = "conv_mode", conflicts_with = "chat_template")]
    conv_mode: Option<String>,
    /// File with a chat template in Jinja [default: the model's own]
    #[arg(long, value_name = "FILE", alias = "jinja")]
    chat_template: Option<PathBuf>,
    /// Message of the system, in place of the template's own
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
}

/// A template with what stands before the first message.
#[derive(Debug)]
pub(crate) enum Form {
    /// One that is built in, and its name.
    Named(String, Box<Template>),
    /// One that came with the model or in a file, and the message of the system.
    Chat(Box<ChatTemplate>, Option<String>),
}

impl TemplateArgs {
    /// The template asked for, or else the model's own: that of a system that `talker` is, or the
    /// chat template that `own` reads.
    pub(crate) fn form(
        &self,
        tokenizer: &Tokenizer,
        talker: Option<&dyn Talker>,
        own: Option<ChatTemplate>,
    ) -> Result<Form, Failure> {
        let name = self.conv_mode.as_deref().or(talker.map(Talker::template));
        match (&self.chat_template, name) {
            (Some(path), _) => {
                let shown = path.display().to_string();
                let mut source = String::new();
                std::fs::File::open(path)
                    .and_then(|file| file.take(MOST_BYTES).read_to_string(&mut source))
                    .map_err(|e| Failure::input(format!("cannot read {shown}: {e}")))?;
                let template = ChatTemplate::for_tokenizer(&source, &shown, tokenizer)
                    .map_err(ocelli_data::Error::from)?;
                Ok(Form::Chat(Box::new(template), self.system.clone()))
            }
            (None, Some(name)) => {
                let Some(template) = Template::named(name) else {
                    let names: Vec<&str> = Template::names().collect();
                    let names = names.join(", ");
                    let what = format!("--conv-mode {name}: expected one of {names}");
                    return Err(Failure::usage(what));
                };
                let template = match &self.system {
                    Some(text) => template.with_system(text),
                    None => template.clone(),
                };
                Ok(Form::Named(name.to_owned(), Box::new(template)))
            }
            (None, None) => match own {
                Some(template) => Ok(Form::Chat(Box::new(template), self.system.clone())),
                None => Err(Failure::usage(
                    "the model has no chat template; give --chat-template FILE or --conv-mode NAME, \
                     or go on from a text with `ocelli generate`",
                )),
            },
        }
    }
}

impl Form {
    /// What the template is called.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Named(name, _) => name,
            Self::Chat(template, _) => template.file(),
        }
    }

    /// The turns that show `images` pictures before `text`, unless the text says where they go.
    pub(crate) fn show(&self, images: usize, text: &str) -> Vec<Turn> {
        match self {
            Self::Named(_, template) => template.show(images, text),
            Self::Chat(..) => {
                let are_placed = text.contains(IMAGE_MARK);
                let marks = format!("{IMAGE_MARK}\n").repeat(if are_placed { 0 } else { images });
                vec![Turn { user: marks + text, answer: None }]
            }
        }
    }

    /// The text of a conversation, which ends where the next answer begins.
    pub(crate) fn render(&self, turns: &[Turn]) -> Result<String, Failure> {
        match self {
            Self::Named(_, template) => Ok(template.render(turns)),
            Self::Chat(template, system) => {
                let text = template.render(system.as_deref(), turns);
                Ok(text.map_err(ocelli_data::Error::from)?)
            }
        }
    }

    /// Texts that end an answer.
    pub(crate) fn stops(&self) -> Vec<String> {
        match self {
            Self::Named(_, template) => template.stops().map(str::to_owned).collect(),
            // A model with a chat template ends its answers with a token.
            Self::Chat(..) => Vec::new(),
        }
    }
}
